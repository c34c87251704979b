-- migrate:up

ALTER TABLE runner.runs
    ADD COLUMN secrets text[] NOT NULL DEFAULT '{}';  -- names that the job declared; values are stored nowhere

-- migrate:down

ALTER TABLE runner.runs
    DROP COLUMN secrets;
