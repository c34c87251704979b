-- migrate:up

-- Since when log and outputs of a run, or the log of a build, are gone from the bucket because they were kept long enough.
ALTER TABLE runner.runs ADD COLUMN expired_at timestamptz;
ALTER TABLE builder.builds ADD COLUMN log_expired_at timestamptz;

-- migrate:down

ALTER TABLE builder.builds DROP COLUMN log_expired_at;
ALTER TABLE runner.runs DROP COLUMN expired_at;
