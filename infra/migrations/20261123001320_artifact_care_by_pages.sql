-- migrate:up

-- Collections look at all artifacts by their digest, some at a time.
DROP INDEX registry.artifacts_to_collect;

-- migrate:down

CREATE INDEX artifacts_to_collect ON registry.artifacts (digest)
    WHERE collected_at IS NULL AND (gc_marked_at IS NOT NULL OR gc_claimed_at IS NOT NULL);
