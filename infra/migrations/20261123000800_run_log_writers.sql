-- migrate:up

-- A holder of a run's lease may put the run's log into the bucket, below a key of its own. Its row goes in the transaction
-- that makes this the run's log; the rows that a run has when it has ended say which objects are nobody's.
CREATE TABLE runner.log_writers (
    run_id text NOT NULL REFERENCES runner.runs (id),
    lease  uuid NOT NULL,
    PRIMARY KEY (run_id, lease)
);

-- migrate:down

DROP TABLE runner.log_writers;
