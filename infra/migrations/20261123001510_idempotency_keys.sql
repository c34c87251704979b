-- migrate:up

CREATE TABLE registry.idempotency_keys (
    subject        text NOT NULL,         -- of the token
    key            text NOT NULL,
    request_digest bytea NOT NULL,        -- of method, path and body
    holder         text NOT NULL,         -- which request claimed it
    held_until     timestamptz NOT NULL,  -- when another may take over, if there is no answer by then
    created_at     timestamptz NOT NULL,
    status         smallint,              -- of the answer; null until there is one
    headers        jsonb,
    body           text,
    PRIMARY KEY (subject, key)
);
CREATE INDEX idempotency_keys_by_age ON registry.idempotency_keys (created_at);

CREATE TABLE builder.idempotency_keys (
    subject        text NOT NULL,         -- of the token
    key            text NOT NULL,
    request_digest bytea NOT NULL,        -- of method, path and body
    holder         text NOT NULL,         -- which request claimed it
    held_until     timestamptz NOT NULL,  -- when another may take over, if there is no answer by then
    created_at     timestamptz NOT NULL,
    status         smallint,              -- of the answer; null until there is one
    headers        jsonb,
    body           text,
    PRIMARY KEY (subject, key)
);
CREATE INDEX idempotency_keys_by_age ON builder.idempotency_keys (created_at);

CREATE TABLE runner.idempotency_keys (
    subject        text NOT NULL,         -- of the token
    key            text NOT NULL,
    request_digest bytea NOT NULL,        -- of method, path and body
    holder         text NOT NULL,         -- which request claimed it
    held_until     timestamptz NOT NULL,  -- when another may take over, if there is no answer by then
    created_at     timestamptz NOT NULL,
    status         smallint,              -- of the answer; null until there is one
    headers        jsonb,
    body           text,
    PRIMARY KEY (subject, key)
);
CREATE INDEX idempotency_keys_by_age ON runner.idempotency_keys (created_at);

-- migrate:down

DROP TABLE registry.idempotency_keys;
DROP TABLE builder.idempotency_keys;
DROP TABLE runner.idempotency_keys;
