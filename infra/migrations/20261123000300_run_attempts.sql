-- migrate:up

CREATE TYPE runner.attempt_state AS ENUM (
    'running',      -- from its lease on
    'succeeded',
    'failed',
    'cancelled',
    'timed_out',
    'lost',         -- its runner fell silent, and another took the run over
    'handed_back'   -- its runner had to stop
);

CREATE TABLE runner.attempts (
    run_id     text NOT NULL REFERENCES runner.runs (id),
    number     integer NOT NULL,
    state      runner.attempt_state NOT NULL DEFAULT 'running',
    runner     text NOT NULL,
    error      jsonb,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at   timestamptz,
    PRIMARY KEY (run_id, number)
);

ALTER TABLE runner.runs
    ADD COLUMN retry           jsonb NOT NULL DEFAULT '{}',  -- the job's policy as it was at acceptance
    ADD COLUMN next_attempt_at timestamptz;                  -- while it waits for another attempt

-- migrate:down

ALTER TABLE runner.runs
    DROP COLUMN next_attempt_at,
    DROP COLUMN retry;
DROP TABLE runner.attempts;
DROP TYPE runner.attempt_state;
