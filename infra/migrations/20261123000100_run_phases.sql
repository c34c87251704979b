-- migrate:up

ALTER TABLE runner.runs
    ADD COLUMN first_byte_ms integer,
    ADD COLUMN remove_ms     integer;

-- migrate:down

ALTER TABLE runner.runs
    DROP COLUMN first_byte_ms,
    DROP COLUMN remove_ms;
