-- migrate:up

ALTER TABLE runner.runs ADD COLUMN sandbox jsonb;  -- how the last attempt that was started was confined

-- migrate:down

ALTER TABLE runner.runs DROP COLUMN sandbox;
