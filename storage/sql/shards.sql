-- name: shards_life
SELECT pg_try_advisory_lock(hashtextextended('tickwheel owner {schema} ' || $1, 0));

-- name: shards_others
SELECT DISTINCT owner FROM {schema}.shards
WHERE owner <> $1 AND expires_at > clock_timestamp();

-- name: shards_is_gone
SELECT pg_try_advisory_xact_lock(hashtextextended('tickwheel owner {schema} ' || $1, 0));

-- name: acquire_shards
WITH free AS MATERIALIZED (
    SELECT shard FROM {schema}.shards
    WHERE owner IS NULL OR expires_at <= clock_timestamp() OR owner = ANY($2)
    ORDER BY shard
    FOR UPDATE
)
UPDATE {schema}.shards s
SET epoch = s.epoch + 1,
    owner = $1,
    expires_at = clock_timestamp() + $3 * interval '1 millisecond'
FROM free
WHERE s.shard = free.shard
RETURNING s.shard, s.epoch;

-- name: shards_of
SELECT shard, epoch FROM {schema}.shards
WHERE owner = $1 AND expires_at > clock_timestamp();

-- name: renew_shards
UPDATE {schema}.shards s
SET expires_at = clock_timestamp() + $4 * interval '1 millisecond'
FROM unnest($2::smallint[], $3::bigint[]) AS mine (shard, epoch)
WHERE s.shard = mine.shard AND s.epoch = mine.epoch AND s.owner = $1
RETURNING s.shard;

-- name: release_shards
UPDATE {schema}.shards s
SET owner = NULL, expires_at = '-infinity'
FROM unnest($2::smallint[], $3::bigint[]) AS mine (shard, epoch)
WHERE s.shard = mine.shard AND s.epoch = mine.epoch AND s.owner = $1;

-- name: owners
SELECT shard, owner FROM {schema}.shards
WHERE owner IS NOT NULL AND expires_at > clock_timestamp();

-- name: key_columns
id, digest, name, scopes, queues, created_at, expires_at, revoked_at

-- name: put_key
INSERT INTO {schema}.api_keys ({key_columns})
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (id) DO UPDATE
    SET digest = excluded.digest,
        name = excluded.name,
        scopes = excluded.scopes,
        queues = excluded.queues,
        created_at = excluded.created_at,
        expires_at = excluded.expires_at,
        revoked_at = excluded.revoked_at;

-- name: get_key
SELECT {key_columns} FROM {schema}.api_keys WHERE id = $1;

-- name: keys
SELECT {key_columns} FROM {schema}.api_keys ORDER BY created_at, id COLLATE "C";

-- name: audit
INSERT INTO {schema}.audit_log (at, actor, action, target) VALUES ($1, $2, $3, $4);
