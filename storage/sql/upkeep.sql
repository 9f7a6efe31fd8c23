-- name: expire_keys
DELETE FROM {schema}.idempotency_keys
WHERE (queue, key) IN (
    SELECT queue, key FROM {schema}.idempotency_keys
    WHERE expires_at <= $1
    ORDER BY expires_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
RETURNING 1;

-- name: expire_letters
DELETE FROM {schema}.dead_letters
WHERE (id, fencing_token) IN (
    SELECT id, fencing_token FROM {schema}.dead_letters
    WHERE died_at <= $1
    ORDER BY died_at, id
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
RETURNING 1;

-- name: expire_moves
DELETE FROM {schema}.moved_jobs
WHERE id IN (
    SELECT id FROM {schema}.moved_jobs
    WHERE scheduled_at < (SELECT min(starts_at) FROM {schema}.partitions)
        AND scheduled_at < $1
    ORDER BY scheduled_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
RETURNING 1;

-- name: expire_audit
DELETE FROM {schema}.audit_log
WHERE id IN (
    SELECT id FROM {schema}.audit_log
    WHERE id <= (SELECT max(id) FROM {schema}.audit_log) - $1
    ORDER BY id
    LIMIT $2
)
RETURNING 1;

-- name: ticks_old
SELECT fire_time, job_id FROM {schema}.schedule_ticks
WHERE (fire_time, job_id) > ($1::timestamptz, $2::uuid) AND fire_time < $3
ORDER BY fire_time, job_id
LIMIT $4;
