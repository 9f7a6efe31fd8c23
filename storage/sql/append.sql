-- name: keys_take
INSERT INTO {schema}.idempotency_keys AS k (queue, key, body_hash, job_id, run_at, expires_at)
SELECT *
FROM unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[], $5::timestamptz[], $6::timestamptz[])
    AS a (queue, key, body_hash, job_id, run_at, expires_at)
ORDER BY queue, key
ON CONFLICT (queue, key) DO UPDATE
    SET (body_hash, job_id, run_at, expires_at)
        = (excluded.body_hash, excluded.job_id, excluded.run_at, excluded.expires_at)
    WHERE k.expires_at <= $7
RETURNING job_id;

-- name: keys_read
SELECT k.queue, k.key, k.body_hash, k.job_id, k.run_at
FROM unnest($1::text[], $2::text[]) AS a (queue, key)
JOIN {schema}.idempotency_keys k ON k.queue = a.queue AND k.key = a.key;

-- name: jobs_there
-- Whoever gets a token takes the row for what was to be written: one that was asked to stop is not.
SELECT j.id, CASE
    WHEN j.state = 'running' AND j.owner = $3 AND j.cancel_requested_at IS NULL
    THEN j.fencing_token ELSE 0 END
FROM unnest($1::timestamptz[], $2::uuid[]) AS a (scheduled_at, id)
JOIN {partition} j ON j.scheduled_at = a.scheduled_at AND j.id = a.id;
