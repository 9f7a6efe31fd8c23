-- name: schedule_columns
id, spec, args, version, cursor_at, paused, paused_reason, created_at, updated_at, last_fire_at,
fired, skipped, missed

-- name: schedule_insert
INSERT INTO {schema}.schedules
    (id, shard, queue, spec, args, version, cursor_at, paused, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, 1, $6, false, $6, $6)
ON CONFLICT (id) DO NOTHING
RETURNING {schedule_columns};

-- name: schedule_get
SELECT {schedule_columns} FROM {schema}.schedules WHERE id = $1;

-- name: schedule_lock
SELECT {schedule_columns} FROM {schema}.schedules WHERE id = $1 FOR UPDATE;

-- name: schedule_change
UPDATE {schema}.schedules
SET queue = $2, spec = $3, args = $4, version = version + 1, cursor_at = $5, updated_at = $5
WHERE id = $1
RETURNING {schedule_columns};

-- name: schedule_pause
UPDATE {schema}.schedules
SET paused = $2, paused_reason = $3, version = version + 1, cursor_at = $4, updated_at = $4
WHERE id = $1
RETURNING {schedule_columns};

-- name: schedule_delete
DELETE FROM {schema}.schedules WHERE id = $1;

-- name: schedules
SELECT {schedule_columns}
FROM (
    SELECT *, sum(octet_length(args::text)) OVER (
        ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes_before
    FROM (
        SELECT *
        FROM {schema}.schedules
        WHERE id > $1 AND ($3::text[] IS NULL OR queue = ANY($3))
        ORDER BY id
        LIMIT $2
    ) AS page
) AS measured
WHERE coalesce(bytes_before, 0) < $4
ORDER BY id;

-- name: schedules_due
SELECT {schedule_columns}
FROM {schema}.schedules
WHERE shard = ANY($1::smallint[]) AND NOT paused AND cursor_at < $2
ORDER BY cursor_at, id
LIMIT $3;

-- name: schedule_advance
UPDATE {schema}.schedules
SET cursor_at = $4, missed = missed + $5
WHERE id = $1 AND version = $2 AND cursor_at = $3 AND NOT paused
RETURNING id;

-- name: ticks_insert
INSERT INTO {schema}.schedule_ticks (schedule_id, fire_time, job_id)
SELECT $1, a.fire_time, a.job_id
FROM unnest($2::timestamptz[], $3::uuid[]) AS a (fire_time, job_id)
ORDER BY a.fire_time
ON CONFLICT DO NOTHING
RETURNING fire_time;

-- name: ticks_jobs
SELECT job_id FROM {schema}.schedule_ticks
WHERE schedule_id = $1 AND fire_time = ANY($2::timestamptz[]);

-- name: ticks_of_jobs
SELECT fire_time, job_id FROM {schema}.schedule_ticks
WHERE schedule_id = $1 AND fire_time < $2 AND job_id = ANY($3::uuid[])
ORDER BY fire_time
LIMIT $4;

-- name: ticks_delete
DELETE FROM {schema}.schedule_ticks WHERE job_id = ANY($1::uuid[]);

-- name: unstarted_cancel
-- Here and below, the order of the index: on a partition without statistics nothing else keeps the
-- planner from reading another index from end to end.
WITH chosen AS MATERIALIZED (
    SELECT scheduled_at, id
    FROM {partition}
    WHERE indexed
        AND schedule_id IS NOT NULL
        AND schedule_id = $1
        AND state = 'scheduled'
        AND attempt = 0
        AND run_at > $5
        AND ($4::uuid[] IS NULL OR id = ANY($4))
    ORDER BY schedule_id, scheduled_at, id
)
UPDATE {partition} j
SET state = 'cancelled', reason = $2, indexed = false, finished_at = $3::timestamptz
FROM chosen
WHERE j.scheduled_at = chosen.scheduled_at
    AND j.id = chosen.id
    AND j.state = 'scheduled'
    AND j.attempt = 0
RETURNING j.id;

-- name: unstarted_due
SELECT id FROM {partition}
WHERE indexed
    AND schedule_id IS NOT NULL
    AND schedule_id = $1
    AND state = 'scheduled'
    AND attempt = 0
    AND run_at < $2
ORDER BY schedule_id, scheduled_at, id;

-- name: active_jobs
SELECT a.schedule_id, active.id
FROM unnest($1::text[]) AS a (schedule_id)
CROSS JOIN LATERAL (
    SELECT j.id
    FROM {partition} j
    WHERE j.indexed
        AND j.schedule_id IS NOT NULL
        AND j.schedule_id = a.schedule_id
        AND NOT (j.state = 'scheduled' AND j.attempt = 0)
    ORDER BY j.schedule_id, j.scheduled_at, j.id
) AS active;

-- name: count_skipped
UPDATE {schema}.schedules
SET skipped = skipped + $2,
    fired = fired + $3,
    last_fire_at = CASE WHEN $3 > 0 THEN $4::timestamptz ELSE last_fire_at END
WHERE id = $1;
