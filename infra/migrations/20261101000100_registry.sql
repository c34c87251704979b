-- migrate:up

CREATE SCHEMA registry;

CREATE TABLE registry.tokens (
    id         text PRIMARY KEY,
    hash       bytea NOT NULL CONSTRAINT tokens_hash_unique UNIQUE,
    subject    text NOT NULL,
    scopes     text[] NOT NULL CHECK (cardinality(scopes) > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz
);

CREATE TABLE registry.bundles (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slug         text NOT NULL CONSTRAINT bundles_slug_unique UNIQUE,
    display_name text,
    description  text,
    metadata     jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text NOT NULL
);

-- A row says that the object was complete when it was written; whether it still is, the bucket knows.
CREATE TABLE registry.artifacts (
    digest         text PRIMARY KEY,
    content_digest text NOT NULL,
    size           bigint NOT NULL,
    unpacked_size  bigint NOT NULL,
    file_count     integer NOT NULL,
    compression    text NOT NULL,
    object_key     text NOT NULL,
    manifest       jsonb NOT NULL,
    platforms      text[] NOT NULL,
    native         jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE registry.artifact_files (
    digest      text NOT NULL REFERENCES registry.artifacts (digest),
    path        text COLLATE "C" NOT NULL,
    type        text NOT NULL,
    size        bigint NOT NULL,
    mode        integer NOT NULL,
    file_digest bytea,
    link_target text,
    PRIMARY KEY (digest, path)
);

CREATE TYPE registry.version_status AS ENUM (
    'active',      -- from publication on, and again when a deprecation is taken back
    'deprecated'   -- by PATCH with a reason: no longer latest, new runs only by digest
);

CREATE TABLE registry.versions (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bundle_id          bigint NOT NULL REFERENCES registry.bundles (id),
    version            text NOT NULL,
    sort_key           text COLLATE "C" NOT NULL,
    prerelease         boolean NOT NULL,
    status             registry.version_status NOT NULL DEFAULT 'active',
    deprecation_reason text,
    immutable          boolean NOT NULL DEFAULT false,
    revision           integer NOT NULL CHECK (revision > 0),
    CONSTRAINT versions_unique UNIQUE (bundle_id, version)
);

CREATE INDEX versions_latest ON registry.versions (bundle_id, prerelease, sort_key DESC) WHERE status = 'active';
CREATE INDEX versions_in_order ON registry.versions (bundle_id, sort_key DESC);

CREATE TABLE registry.revisions (
    version_id      bigint NOT NULL REFERENCES registry.versions (id),
    revision        integer NOT NULL CHECK (revision > 0),
    digest          text NOT NULL REFERENCES registry.artifacts (digest),
    published_at    timestamptz NOT NULL DEFAULT now(),
    published_by    text NOT NULL,
    reason          text,
    previous_digest text REFERENCES registry.artifacts (digest),
    build_id        text,
    PRIMARY KEY (version_id, revision)
);

CREATE INDEX revisions_by_digest ON registry.revisions (digest);

CREATE TABLE registry.jobs (
    slug       text PRIMARY KEY,
    definition jsonb NOT NULL,
    revision   integer NOT NULL DEFAULT 1,
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by text NOT NULL
);

CREATE TABLE registry.workflows (
    slug       text PRIMARY KEY,
    definition jsonb NOT NULL,
    revision   integer NOT NULL DEFAULT 1,
    updated_at timestamptz NOT NULL DEFAULT now(),
    updated_by text NOT NULL
);

-- migrate:down

DROP SCHEMA registry CASCADE;
