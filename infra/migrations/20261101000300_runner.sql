-- migrate:up

CREATE SCHEMA runner;

CREATE TYPE runner.run_state AS ENUM (
    'queued',     -- accepted, or given back by a runner that was lost or stopped
    'starting',   -- leased: the bundle is being fetched, verified and unpacked
    'running',    -- the handler was called
    'succeeded',  -- it returned a result and its outputs are stored
    'failed',     -- it threw, crashed, ended without a result, or was refused before its start
    'cancelled',  -- somebody asked
    'timed_out',  -- it took longer than its limit
    'lost'        -- every attempt ended with its runner
);

CREATE TYPE runner.workflow_run_state AS ENUM (
    'running',    -- from its creation on
    'succeeded',  -- every step did
    'failed',     -- a step failed, timed out or was lost; what did not depend on it still ran
    'cancelled'   -- somebody asked
);

CREATE TYPE runner.step_state AS ENUM (
    'waiting',    -- for the steps it depends on
    'queued',     -- its run was accepted
    'running',    -- its run is starting or running
    'succeeded',
    'failed',     -- its run ended in any other way, or its parameters could not be rendered
    'skipped',    -- something it depends on failed
    'cancelled'
);

CREATE TABLE runner.workflow_runs (
    id          text PRIMARY KEY,
    workflow    text NOT NULL,
    state       runner.workflow_run_state NOT NULL DEFAULT 'running',
    parameters  jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    created_by  text NOT NULL,
    request_id  text,
    finished_at timestamptz
);

CREATE TABLE runner.runs (
    id                  text PRIMARY KEY,
    state               runner.run_state NOT NULL DEFAULT 'queued',
    slug                text NOT NULL,
    version             text NOT NULL,
    revision            integer NOT NULL,
    digest              text NOT NULL,
    artifact            jsonb NOT NULL,  -- all that is needed to fetch and start it, as the registry answered at acceptance
    job                 text,
    workflow_run_id     text REFERENCES runner.workflow_runs (id),
    step                text,
    parameters          jsonb NOT NULL,
    inputs              jsonb NOT NULL,
    limits              jsonb NOT NULL,
    max_attempts        integer NOT NULL CHECK (max_attempts > 0),
    attempts            integer NOT NULL DEFAULT 0,
    lease               uuid,            -- of the attempt that may write; every write names it
    cancel_requested_at timestamptz,
    result              jsonb,
    error               jsonb,
    progress            double precision,
    progress_message    text,
    queued_ms           integer,
    fetch_ms            integer,
    start_ms            integer,
    handler_ms          integer,
    upload_ms           integer,
    log_key             text,
    created_at          timestamptz NOT NULL DEFAULT now(),
    created_by          text NOT NULL,
    request_id          text,
    queued_at           timestamptz NOT NULL DEFAULT now(),
    started_at          timestamptz,
    finished_at         timestamptz
);

CREATE INDEX runs_by_state ON runner.runs (state, id DESC);
CREATE INDEX runs_by_slug ON runner.runs (slug, id DESC);
CREATE INDEX runs_by_job ON runner.runs (job, id DESC);
CREATE INDEX runs_by_workflow_run ON runner.runs (workflow_run_id) WHERE workflow_run_id IS NOT NULL;

CREATE TABLE runner.outputs (
    run_id       text NOT NULL REFERENCES runner.runs (id),
    path         text COLLATE "C" NOT NULL,
    size         bigint NOT NULL,
    digest       text NOT NULL,
    content_type text NOT NULL,
    PRIMARY KEY (run_id, path)
);

CREATE TABLE runner.workflow_steps (
    workflow_run_id text NOT NULL REFERENCES runner.workflow_runs (id),
    position        integer NOT NULL,
    name            text NOT NULL,
    definition      jsonb NOT NULL,  -- the step as the workflow had it when it was started
    job             jsonb NOT NULL,  -- the job's definition at that time
    resolution      jsonb NOT NULL,  -- what its bundle reference meant at that time
    state           runner.step_state NOT NULL DEFAULT 'waiting',
    run_id          text REFERENCES runner.runs (id),
    error           jsonb,
    PRIMARY KEY (workflow_run_id, name)
);

CREATE TABLE runner.journal (
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

DROP SCHEMA runner CASCADE;
