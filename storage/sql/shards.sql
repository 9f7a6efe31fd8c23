-- name: shards_life
SELECT pg_try_advisory_lock(hashtextextended('tickwheel owner {schema} ' || $1, 0));

-- name: shards_others
SELECT owner FROM {schema}.shards WHERE owner <> $1 AND expires_at > clock_timestamp()
UNION
SELECT id FROM {schema}.schedulers WHERE id <> $1 AND expires_at > clock_timestamp();

-- name: shards_is_gone
SELECT pg_try_advisory_xact_lock(hashtextextended('tickwheel owner {schema} ' || $1, 0));

-- name: join
INSERT INTO {schema}.schedulers (id, url, started_at, shares, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + $5 * interval '1 millisecond')
ON CONFLICT (id) DO UPDATE
    SET shares = excluded.shares, expires_at = excluded.expires_at;

-- name: join_bury
-- Whoever has claims under way is left for later: they last as long as its process is frozen.
WITH dead AS MATERIALIZED (
    SELECT id FROM {schema}.schedulers
    WHERE id = ANY($1) OR expires_at <= clock_timestamp()
    FOR UPDATE SKIP LOCKED
)
DELETE FROM {schema}.schedulers s USING dead WHERE s.id = dead.id;

-- name: members
SELECT id, url, started_at, shares FROM {schema}.schedulers
WHERE expires_at > clock_timestamp()
ORDER BY started_at, id COLLATE "C";

-- name: leave
WITH released AS (
    UPDATE {schema}.shards s
    SET owner = NULL, owned_since = NULL, expires_at = '-infinity'
    FROM unnest($2::smallint[], $3::bigint[]) AS mine (shard, epoch)
    WHERE s.shard = mine.shard AND s.epoch = mine.epoch AND s.owner = $1
)
DELETE FROM {schema}.schedulers WHERE id = $1;

-- name: take_free
WITH alive AS (
    SELECT count(*) AS members, count(*) FILTER (WHERE id = $1) AS me
    FROM {schema}.schedulers
    WHERE expires_at > clock_timestamp()
), free AS MATERIALIZED (
    SELECT shard FROM {schema}.shards
    WHERE owner IS NULL AND (SELECT me FROM alive) > 0
    ORDER BY shard
    LIMIT greatest(0, (SELECT ($4 + members - 1) / greatest(1, members) FROM alive) - $3)
    FOR UPDATE SKIP LOCKED
)
UPDATE {schema}.shards s
SET epoch = s.epoch + 1,
    owner = $1,
    owned_since = clock_timestamp(),
    recovered = false,
    expires_at = clock_timestamp() + $2 * interval '1 millisecond'
FROM free
WHERE s.shard = free.shard
RETURNING s.shard, s.epoch;

-- name: acquire_shards
-- A dead owner that is not counted out yet may have claims under way: what runs is not known before
-- they are over, and whoever had its shards would wait for their rows.
WITH free AS MATERIALIZED (
    SELECT shard FROM {schema}.shards h
    WHERE (owner IS NULL OR expires_at <= clock_timestamp() OR owner = ANY($2))
        AND NOT EXISTS (
            SELECT FROM {schema}.schedulers s
            WHERE s.id = h.owner AND (s.expires_at <= clock_timestamp() OR s.id = ANY($2))
        )
    ORDER BY shard
    LIMIT $4
    FOR UPDATE SKIP LOCKED
)
UPDATE {schema}.shards s
SET epoch = s.epoch + 1,
    owner = $1,
    owned_since = clock_timestamp(),
    recovered = false,
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
SET owner = NULL, owned_since = NULL, expires_at = '-infinity'
FROM unnest($2::smallint[], $3::bigint[]) AS mine (shard, epoch)
WHERE s.shard = mine.shard AND s.epoch = mine.epoch AND s.owner = $1;

-- name: shards_recovered
UPDATE {schema}.shards s
SET recovered = true
FROM unnest($2::smallint[], $3::bigint[]) AS mine (shard, epoch)
WHERE s.shard = mine.shard AND s.epoch = mine.epoch AND s.owner = $1;

-- name: permits_lock
-- All limits, and then those that are locked here. Somebody else's lock is not waited for: a user's
-- own transaction may hold it for long.
WITH locked AS MATERIALIZED (
    SELECT name, max_running FROM {schema}.queues
    WHERE name = ANY($1)
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT name, max_running, false AS locked FROM {schema}.queues WHERE name = ANY($1)
UNION ALL
SELECT name, max_running, true FROM locked
ORDER BY locked;

-- name: permits_state
-- All in one statement, of one moment: of whoever dies after it nothing is known to be recovered.
SELECT
    NOT EXISTS (
        SELECT FROM {schema}.shards h
        WHERE h.expires_at <= statement_timestamp() OR NOT h.recovered OR NOT EXISTS (
            SELECT FROM {schema}.schedulers s
            WHERE s.id = h.owner AND s.expires_at > statement_timestamp()
        )
    ) AND NOT EXISTS (
        -- Dead, but not counted out yet: it may have claims under way.
        SELECT FROM {schema}.schedulers WHERE expires_at <= statement_timestamp()
    ),
    NOT EXISTS (
        SELECT FROM {schema}.schedulers
        WHERE expires_at > statement_timestamp() AND NOT shares
    ),
    ARRAY(SELECT id FROM {schema}.schedulers WHERE expires_at > statement_timestamp());

-- name: permits_bury
DELETE FROM {schema}.queue_permits WHERE queue = ANY($1) AND owner <> ALL($2);

-- name: permits_others
SELECT queue, owner, permits, wanted FROM {schema}.queue_permits
WHERE queue = ANY($1) AND owner <> $2;

-- name: permits_put
INSERT INTO {schema}.queue_permits (queue, owner, permits, wanted)
SELECT queue, $1, permits, wanted
FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS new (queue, permits, wanted)
ON CONFLICT (queue, owner) DO UPDATE SET permits = excluded.permits, wanted = excluded.wanted;

-- name: owners
SELECT shard, owner, owned_since FROM {schema}.shards
WHERE owner IS NOT NULL AND expires_at > clock_timestamp();

-- name: hint
SELECT pg_notify('tickwheel_{schema}', $1);

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
