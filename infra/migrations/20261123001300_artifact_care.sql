-- migrate:up

-- What becomes of an artifact's object. Marked: nothing keeps it, and it waits for its grace; a use takes the mark away.
-- Claimed: it is being deleted, and nobody may begin to use it. Collected: its object is gone; the row and its revisions
-- stay. Damaged: its object is missing or not what it should be, and nobody is given it. Publishing its bytes again ends
-- all of these.
ALTER TABLE registry.artifacts
    ADD COLUMN stored_at         timestamptz NOT NULL DEFAULT now(),  -- when its object was last put into the bucket
    ADD COLUMN last_used_at      timestamptz,                         -- by a run, to about an hour
    ADD COLUMN gc_marked_at      timestamptz,
    ADD COLUMN gc_claimed_at     timestamptz,
    ADD COLUMN collected_at      timestamptz,
    ADD COLUMN collection_policy text,
    ADD COLUMN damaged_at        timestamptz,
    ADD COLUMN damage            text;

-- What was published before its uses were noted may have been used until now.
UPDATE registry.artifacts SET stored_at = created_at, last_used_at = now();

CREATE INDEX artifacts_by_content ON registry.artifacts (content_digest);
CREATE INDEX artifacts_to_collect ON registry.artifacts (digest)
    WHERE collected_at IS NULL AND (gc_marked_at IS NOT NULL OR gc_claimed_at IS NOT NULL);

-- Work that one registry does at a time: when it was last done, and how far it is.
CREATE TABLE registry.upkeep (
    name     text PRIMARY KEY,
    began_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    progress jsonb NOT NULL DEFAULT '{}'
);

-- migrate:down

DROP TABLE registry.upkeep;
DROP INDEX registry.artifacts_to_collect;
DROP INDEX registry.artifacts_by_content;
ALTER TABLE registry.artifacts
    DROP COLUMN damage,
    DROP COLUMN damaged_at,
    DROP COLUMN collection_policy,
    DROP COLUMN collected_at,
    DROP COLUMN gc_claimed_at,
    DROP COLUMN gc_marked_at,
    DROP COLUMN last_used_at,
    DROP COLUMN stored_at;
