-- migrate:up

CREATE SCHEMA builder;

CREATE TYPE builder.import_state AS ENUM (
    'queued',            -- accepted
    'running',           -- a builder works on it
    'succeeded',         -- every bundle was built and published
    'partially_failed',  -- some bundles were, some were not
    'failed'             -- no bundle was, or the builder was lost
);

CREATE TYPE builder.build_state AS ENUM (
    'queued',     -- waits for its import's turn
    'running',    -- in a workspace
    'succeeded',  -- published, or found unchanged
    'failed'      -- a command failed, hung, or the registry refused the result
);

CREATE TABLE builder.imports (
    id           text PRIMARY KEY,
    example      text NOT NULL,
    state        builder.import_state NOT NULL DEFAULT 'queued',
    error        jsonb,
    requested_by text NOT NULL,
    request_id   text,
    holder       text NOT NULL,
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    started_at   timestamptz,
    finished_at  timestamptz
);

CREATE INDEX imports_by_example ON builder.imports (example, id DESC);
CREATE INDEX imports_unfinished ON builder.imports (heartbeat_at) WHERE state IN ('queued', 'running');

CREATE TABLE builder.builds (
    id              text PRIMARY KEY,
    import_id       text NOT NULL REFERENCES builder.imports (id),
    slug            text NOT NULL,
    state           builder.build_state NOT NULL DEFAULT 'queued',
    stage           text,
    version         text,
    revision        integer,
    digest          text,
    previous_digest text,
    unchanged       boolean,
    platforms       text[] NOT NULL DEFAULT '{}',
    error           jsonb,
    log_key         text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    finished_at     timestamptz,
    CONSTRAINT builds_slug_once UNIQUE (import_id, slug)
);

CREATE INDEX builds_unarchived ON builder.builds (id) WHERE log_key IS NULL;

-- What `GET /imports/{id}/events` sends: numbered within the import, so that a client can resume.
CREATE TABLE builder.import_events (
    import_id text NOT NULL REFERENCES builder.imports (id),
    seq       integer NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    kind      text NOT NULL,
    data      jsonb NOT NULL,
    PRIMARY KEY (import_id, seq)
);

CREATE TABLE builder.journal (
    stream  text NOT NULL,
    seq     bigint NOT NULL,
    at      timestamptz NOT NULL,
    source  text NOT NULL,
    level   text NOT NULL,
    message text NOT NULL,
    fields  jsonb,
    PRIMARY KEY (stream, seq)
);

-- migrate:down

DROP SCHEMA builder CASCADE;
