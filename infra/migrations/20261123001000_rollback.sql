-- migrate:up

-- Which earlier revision of the version this one went back to; null where a tarball was published.
ALTER TABLE registry.revisions
    ADD COLUMN rolled_back_to integer CHECK (rolled_back_to < revision),
    ADD CONSTRAINT revisions_rolled_back_to FOREIGN KEY (version_id, rolled_back_to)
        REFERENCES registry.revisions (version_id, revision);

-- migrate:down

ALTER TABLE registry.revisions
    DROP CONSTRAINT revisions_rolled_back_to,
    DROP COLUMN rolled_back_to;
