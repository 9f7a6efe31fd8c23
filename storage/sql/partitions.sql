-- name: partitions_all
SELECT starts_at, ends_at, name FROM {schema}.partitions ORDER BY starts_at;

-- name: partitions_live
-- A partition that nothing was ever written to has a file without a byte.
SELECT name FROM {schema}.partitions
WHERE starts_at <= $1
    AND drained_at IS NULL
    AND pg_relation_size(to_regclass('{schema}.' || name)) > 0
ORDER BY starts_at;

-- name: partitions_filled
SELECT starts_at, ends_at, name FROM {schema}.partitions
WHERE starts_at <= $1 AND pg_relation_size(to_regclass('{schema}.' || name)) > 0
ORDER BY starts_at DESC;

-- name: partition_lock
SET LOCAL lock_timeout = '30s';
SELECT pg_advisory_xact_lock(hashtextextended('tickwheel partitions {schema}', 0));
SET LOCAL lock_timeout = DEFAULT;

-- name: partition_create
-- Room for each row's claimed version, which is a third longer: so its claim is heap-only. Vacuum
-- comes late, and not for inserts alone: a partition is dropped as a whole, and plans are pinned.
CREATE TABLE {partition} (LIKE {schema}.jobs INCLUDING ALL) WITH (
    fillfactor = 42,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_threshold = 2000000,
    autovacuum_vacuum_scale_factor = 0.5,
    autovacuum_analyze_threshold = 2000000000,
    autovacuum_analyze_scale_factor = 0
);

-- name: partition_attach
ALTER TABLE {schema}.jobs ATTACH PARTITION {partition}

-- name: partition_note
INSERT INTO {schema}.partitions (starts_at, ends_at, name) VALUES ($1, $2, $3);

-- name: partition_forget
DELETE FROM {schema}.partitions WHERE name = $1;

-- name: partition_reopen
UPDATE {schema}.partitions SET drained_at = NULL WHERE name = $1;

-- name: partitions_missing
DELETE FROM {schema}.partitions
WHERE to_regclass('{schema}.' || name) IS NULL
RETURNING name;

-- name: partitions_ended
SELECT name, starts_at, ends_at, drained_at FROM {schema}.partitions
WHERE ends_at <= $1
ORDER BY starts_at;

-- name: partition_note_lock
SELECT name FROM {schema}.partitions WHERE name = $1 FOR UPDATE;

-- name: partition_drained
UPDATE {schema}.partitions SET drained_at = $2 WHERE name = $1;

-- name: partition_unfinished
SELECT EXISTS (
    SELECT 1 FROM {partition}
    WHERE indexed
    ORDER BY shard, queue, priority, run_at, id
    LIMIT 1
) OR EXISTS (
    SELECT 1 FROM {partition}
    WHERE leads_until IS NOT NULL
    ORDER BY scheduled_at, id
    LIMIT 1
);

-- name: partition_detach_pending
SELECT c.relname
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = '{schema}.jobs'::regclass AND i.inhdetachpending;

-- name: partition_attached
SELECT EXISTS (
    SELECT 1 FROM pg_inherits
    WHERE inhparent = '{schema}.jobs'::regclass AND inhrelid = to_regclass('{partition}')
);

-- name: partition_finalize
ALTER TABLE {schema}.jobs DETACH PARTITION {partition} FINALIZE;

-- name: partition_detach
ALTER TABLE {schema}.jobs DETACH PARTITION {partition} CONCURRENTLY;

-- name: partition_exclusive
LOCK TABLE {partition} IN ACCESS EXCLUSIVE MODE;

-- name: partition_drop
DROP TABLE {partition};

-- name: partition_delete_finished
DELETE FROM {partition}
WHERE (scheduled_at, id) IN (
    SELECT scheduled_at, id FROM {partition}
    WHERE finished_at <= $1 AND leads_until IS NULL
    LIMIT $2
)
RETURNING 1;
