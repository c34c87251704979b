-- migrate:up

ALTER TABLE runner.runs
    ADD COLUMN priority           integer NOT NULL DEFAULT 0,
    ADD COLUMN concurrency_key    text,     -- of the runs of a scope with the same key, one has its turn at a time
    ADD COLUMN max_running        integer,  -- how many runs of the scope may have their turn at a time
    ADD COLUMN turn_scope         text,     -- the job or bundle; null where the run need not wait for its turn
    ADD COLUMN has_turn           boolean,  -- null without a scope; true until it ends, also between attempts
    ADD COLUMN idempotency_key    text,
    ADD COLUMN idempotency_digest text;     -- of the request that came with the key

CREATE INDEX runs_with_turn ON runner.runs (turn_scope, concurrency_key) WHERE has_turn AND finished_at IS NULL;
CREATE INDEX runs_without_turn ON runner.runs (turn_scope, priority DESC, id) WHERE NOT has_turn AND finished_at IS NULL;
CREATE UNIQUE INDEX runs_by_idempotency_key ON runner.runs (created_by, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX runs_queued_by_job ON runner.runs (job) WHERE state = 'queued';

-- migrate:down

DROP INDEX runner.runs_queued_by_job;
ALTER TABLE runner.runs
    DROP COLUMN idempotency_digest,
    DROP COLUMN idempotency_key,
    DROP COLUMN has_turn,
    DROP COLUMN turn_scope,
    DROP COLUMN max_running,
    DROP COLUMN concurrency_key,
    DROP COLUMN priority;
