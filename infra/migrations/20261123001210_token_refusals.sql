-- migrate:up

ALTER TABLE registry.tokens ADD COLUMN refused_at timestamptz;

COMMENT ON COLUMN registry.tokens.refused_at IS 'When the use of the token, revoked or expired, was last put into the audit trail.';

-- migrate:down

ALTER TABLE registry.tokens DROP COLUMN refused_at;
