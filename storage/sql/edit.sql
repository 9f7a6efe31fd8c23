-- name: cancel
UPDATE {partition}
SET state = CASE WHEN state = 'scheduled' THEN 'cancelled' ELSE state END,
    indexed = indexed AND state <> 'scheduled',
    finished_at = CASE WHEN state = 'scheduled' THEN $3::timestamptz END,
    reason = CASE WHEN state = 'scheduled' THEN $4 ELSE reason END,
    cancel_requested_at = CASE WHEN state = 'running' THEN $3::timestamptz END
WHERE scheduled_at = $1
    AND id = $2
    AND (state = 'scheduled' OR (state = 'running' AND cancel_requested_at IS NULL))
RETURNING {job_columns};

-- name: reschedule
WITH gone AS (
    DELETE FROM {partition}
    WHERE scheduled_at = $1 AND id = $2 AND state = 'scheduled' AND leads_until IS NULL
    RETURNING *
), moved AS (
    INSERT INTO {schema}.moved_jobs (id, scheduled_at)
    SELECT id, $3::timestamptz FROM gone
    ON CONFLICT (id) DO UPDATE SET scheduled_at = excluded.scheduled_at
)
INSERT INTO {schema}.jobs ({job_columns})
SELECT id, state, queue, priority, task, args, options, tags, shard, $3::timestamptz,
    $3::timestamptz, created_at, expires_at + ($3::timestamptz - run_at), started_at, finished_at,
    cancel_requested_at, attempt, failures, lost_leases, releases, max_attempts, fencing_token, worker_id, owner, schedule_id,
    redriven_from, result, error, reason
FROM gone
RETURNING {job_columns};

-- name: purge
WITH chosen AS MATERIALIZED (
    SELECT page.scheduled_at, page.id
    FROM unnest($1::smallint[]) AS s (shard)
    CROSS JOIN generate_series(0, 9) AS p (priority)
    CROSS JOIN LATERAL (
        SELECT j.scheduled_at, j.id
        FROM {partition} j
        WHERE j.indexed
            AND j.shard = s.shard
            AND j.queue = $2
            AND j.priority = p.priority
            AND j.state = 'scheduled'
        ORDER BY j.run_at, j.id
        LIMIT $3
    ) AS page
    LIMIT $3
)
UPDATE {partition} j
SET state = 'cancelled', reason = 'purged', indexed = false, finished_at = $4::timestamptz
FROM chosen
WHERE j.scheduled_at = chosen.scheduled_at AND j.id = chosen.id AND j.state = 'scheduled'
RETURNING j.id;
