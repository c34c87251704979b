-- migrate:up

ALTER TABLE registry.tokens
    ADD COLUMN last_used_at timestamptz;  -- noted now and then, not with each request

-- migrate:down

ALTER TABLE registry.tokens
    DROP COLUMN last_used_at;
