-- name: migrate_lock
SET LOCAL lock_timeout = '30s';
SELECT pg_advisory_xact_lock(hashtextextended('tickwheel migrate {schema}', 0));
SET LOCAL lock_timeout = DEFAULT;

-- name: schema_exists
SELECT to_regnamespace('{schema}') IS NOT NULL;

-- name: schema_create
CREATE SCHEMA {schema};

-- name: migrations_exist
SELECT to_regclass('{schema}.migrations') IS NOT NULL;

-- name: migrations_create
CREATE TABLE {schema}.migrations (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- name: migrations_version
SELECT coalesce(max(version), 0) FROM {schema}.migrations;

-- name: migrations_note
INSERT INTO {schema}.migrations (version) VALUES ($1);

-- name: shards_note
INSERT INTO {schema}.meta (name, value) VALUES ('shards', $1) ON CONFLICT (name) DO NOTHING;

-- name: shard_count
SELECT value FROM {schema}.meta WHERE name = 'shards';

-- name: shards_make
INSERT INTO {schema}.shards (shard)
SELECT generate_series(0, $1::integer - 1)
ON CONFLICT (shard) DO NOTHING;

-- name: check
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint
FROM {schema}.meta
WHERE name = 'shards'
FOR KEY SHARE;
