-- migrate:up

ALTER TYPE registry.version_status ADD VALUE 'yanked';       -- by PATCH with a reason: not latest, new runs only where they insist
ALTER TYPE registry.version_status ADD VALUE 'quarantined';  -- by an administrator's PATCH: never run, never downloaded

ALTER TABLE registry.versions
    ADD COLUMN status_reason text,         -- why it has its status; null while active
    ADD COLUMN status_by     text,         -- who gave it its status
    ADD COLUMN status_at     timestamptz;

UPDATE registry.versions SET status_reason = deprecation_reason;
UPDATE registry.versions v
SET (status_by, status_at) = (
    SELECT e.actor, e.at
    FROM registry.bundles b
    JOIN audit.events e ON e.action = 'version.deprecated' AND e.subject = b.slug || '@' || v.version
    WHERE b.id = v.bundle_id
    ORDER BY e.id DESC
    LIMIT 1
)
WHERE v.status = 'deprecated';

COMMENT ON COLUMN registry.versions.deprecation_reason IS 'Superseded by status_reason.';

ALTER TABLE registry.bundles
    ADD COLUMN immutable         boolean NOT NULL DEFAULT false,  -- none of its versions is replaced but by an administrator
    ADD COLUMN allowed_platforms text[];                          -- null: whatever the registry's policy says

-- migrate:down

ALTER TABLE registry.bundles
    DROP COLUMN allowed_platforms,
    DROP COLUMN immutable;

-- Values can't be removed from a type: what was yanked or quarantined is deprecated by one that does not have them.
DROP INDEX registry.versions_latest;
ALTER TYPE registry.version_status RENAME TO version_status_with_standing;
CREATE TYPE registry.version_status AS ENUM ('active', 'deprecated');
ALTER TABLE registry.versions
    ALTER COLUMN status DROP DEFAULT,
    ALTER COLUMN status TYPE registry.version_status
        USING (CASE status::text WHEN 'active' THEN 'active' ELSE 'deprecated' END)::registry.version_status,
    ALTER COLUMN status SET DEFAULT 'active';
DROP TYPE registry.version_status_with_standing;
CREATE INDEX versions_latest ON registry.versions (bundle_id, prerelease, sort_key DESC) WHERE status = 'active';

UPDATE registry.versions SET deprecation_reason = status_reason;
COMMENT ON COLUMN registry.versions.deprecation_reason IS NULL;
ALTER TABLE registry.versions
    DROP COLUMN status_at,
    DROP COLUMN status_by,
    DROP COLUMN status_reason;
