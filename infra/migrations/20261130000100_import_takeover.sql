-- migrate:up

ALTER TABLE builder.imports
    ALTER COLUMN holder DROP NOT NULL,                 -- null while nobody works on it: its builder handed it back
    ADD COLUMN times_lost integer NOT NULL DEFAULT 0;  -- how many builders were lost while they worked on it

-- migrate:down

UPDATE builder.imports SET holder = '' WHERE holder IS NULL;
ALTER TABLE builder.imports
    DROP COLUMN times_lost,
    ALTER COLUMN holder SET NOT NULL;
