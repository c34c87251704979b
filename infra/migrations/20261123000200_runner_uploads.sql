-- migrate:up

-- An attempt that has begun to upload its outputs. Its row goes in the transaction that records the outputs; the row of an
-- attempt that lost its lease, or whose run has ended otherwise, says which objects nobody will ever record.
CREATE TABLE runner.uploads (
    run_id  text NOT NULL REFERENCES runner.runs (id),
    attempt integer NOT NULL,
    lease   uuid NOT NULL,
    PRIMARY KEY (run_id, attempt)
);

ALTER TABLE runner.outputs ADD COLUMN object_key text;
UPDATE runner.outputs SET object_key = 'outputs/' || run_id || '/' || path;
ALTER TABLE runner.outputs ALTER COLUMN object_key SET NOT NULL;

-- Entries of the queue are found by the id of their run.
DO $$
BEGIN
    IF to_regclass('runner.queue_pgqueuer') IS NOT NULL THEN
        UPDATE runner.queue_pgqueuer SET dedupe_key = convert_from(payload, 'UTF8')
        WHERE entrypoint = 'run' AND dedupe_key IS NULL;
    END IF;
END
$$;

-- migrate:down

ALTER TABLE runner.outputs DROP COLUMN object_key;
DROP TABLE runner.uploads;
