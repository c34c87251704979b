-- migrate:up

CREATE SCHEMA audit;

CREATE TABLE audit.events (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor           text NOT NULL,
    action          text NOT NULL,
    subject         text NOT NULL,
    digest          text,
    previous_digest text,
    reason          text,
    request_id      text,
    client          text,
    detail          jsonb NOT NULL DEFAULT '{}'
);

COMMENT ON TABLE audit.events IS 'Who changed what. Appended in the transaction of the change; never updated, never deleted.';

CREATE INDEX events_by_actor ON audit.events (actor, id DESC);
CREATE INDEX events_by_action ON audit.events (action, id DESC);
CREATE INDEX events_by_subject ON audit.events (subject text_pattern_ops, id DESC);
CREATE INDEX events_by_time ON audit.events (at);

CREATE FUNCTION audit.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit trail is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit.events
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON audit.events
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();

-- migrate:down

DROP SCHEMA audit CASCADE;
