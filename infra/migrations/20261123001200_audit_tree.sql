-- migrate:up

-- Whoever asks for one bundle's events, an actor's or an action's goes through one of these in the order of the answer,
-- within whatever times, so a page costs the same wherever it is and however many events there are.
DROP INDEX audit.events_by_actor, audit.events_by_action, audit.events_by_subject, audit.events_by_time;
CREATE INDEX events_by_time ON audit.events (at DESC, id DESC);
CREATE INDEX events_by_actor ON audit.events (actor, at DESC, id DESC);
CREATE INDEX events_by_action ON audit.events (action, at DESC, id DESC);
CREATE INDEX events_by_subject ON audit.events (subject, at DESC, id DESC);
CREATE INDEX events_by_thing ON audit.events (split_part(subject, '@', 1), at DESC, id DESC);

CREATE TABLE audit.unsealed (
    event_id bigint PRIMARY KEY
);

COMMENT ON TABLE audit.unsealed IS 'Events without a place in the tree. Filled in the transaction that appends, emptied by the sealer.';

CREATE TABLE audit.leaves (
    position bigint PRIMARY KEY,
    event_id bigint NOT NULL UNIQUE,
    hash     bytea NOT NULL CHECK (length(hash) = 32)
);

COMMENT ON TABLE audit.leaves IS 'The places of events in the Merkle tree (RFC 9162), from 0 on, in the order in which they were sealed.';

CREATE TABLE audit.subtrees (
    level    smallint NOT NULL CHECK (level > 0),
    position bigint NOT NULL,
    hash     bytea NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, position)
);

COMMENT ON TABLE audit.subtrees IS 'Hashes of whole subtrees of 2^level leaves, of every eighth level: what is between is computed.';

CREATE TABLE audit.checkpoints (
    tree_size bigint PRIMARY KEY CHECK (tree_size > 0),
    root      bytea NOT NULL CHECK (length(root) = 32),
    note      text NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE audit.checkpoints IS 'Roots that were signed, as C2SP notes. The same are in the bucket, where they were written first.';

CREATE FUNCTION audit.await_sealing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit.unsealed (event_id) SELECT id FROM appended;
    RETURN NULL;
END
$$;

CREATE TRIGGER await_sealing AFTER INSERT ON audit.events
    REFERENCING NEW TABLE AS appended FOR EACH STATEMENT EXECUTE FUNCTION audit.await_sealing();

INSERT INTO audit.unsealed (event_id) SELECT id FROM audit.events;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit.leaves
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON audit.leaves
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit.subtrees
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON audit.subtrees
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit.checkpoints
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
CREATE TRIGGER never_truncated BEFORE TRUNCATE ON audit.checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();

-- migrate:down

DROP TRIGGER await_sealing ON audit.events;
DROP FUNCTION audit.await_sealing();
DROP TABLE audit.unsealed, audit.leaves, audit.subtrees, audit.checkpoints;
DROP INDEX audit.events_by_time, audit.events_by_actor, audit.events_by_action, audit.events_by_subject,
    audit.events_by_thing;
CREATE INDEX events_by_actor ON audit.events (actor, id DESC);
CREATE INDEX events_by_action ON audit.events (action, id DESC);
CREATE INDEX events_by_subject ON audit.events (subject text_pattern_ops, id DESC);
CREATE INDEX events_by_time ON audit.events (at);
