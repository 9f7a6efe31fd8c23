-- The schedulers that live, and where workers reach them.
CREATE TABLE {schema}.schedulers (
    id text PRIMARY KEY,
    url text NOT NULL,
    started_at timestamptz NOT NULL,
    shares boolean NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

ALTER TABLE {schema}.shards
    ADD COLUMN owned_since timestamptz,
    ADD COLUMN recovered boolean NOT NULL DEFAULT false;

-- How the limit of a queue is shared out, while there are several schedulers (`core.permits`).
CREATE TABLE {schema}.queue_permits (
    queue text NOT NULL REFERENCES {schema}.queues ON DELETE CASCADE,
    owner text NOT NULL,
    permits bigint NOT NULL,
    wanted bigint NOT NULL,
    PRIMARY KEY (queue, owner)
) WITH (fillfactor = 50);
