-- name: queue_columns
name, max_depth, max_running, lease_ms, max_attempts, priority, options, paused, paused_reason,
priorities

-- name: queues
SELECT {queue_columns} FROM {schema}.queues ORDER BY name COLLATE "C";

-- name: touch_lane
INSERT INTO {schema}.queues AS q ({queue_columns})
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (name) DO UPDATE SET priorities = q.priorities | excluded.priorities
RETURNING {queue_columns};

-- name: put_queue
INSERT INTO {schema}.queues AS q ({queue_columns})
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (name) DO UPDATE
    SET max_depth = excluded.max_depth,
        max_running = excluded.max_running,
        lease_ms = excluded.lease_ms,
        max_attempts = excluded.max_attempts,
        priority = excluded.priority,
        options = excluded.options,
        priorities = q.priorities | excluded.priorities
RETURNING {queue_columns};

-- name: pause_queue
UPDATE {schema}.queues SET paused = $2, paused_reason = $3 WHERE name = $1
RETURNING {queue_columns};

-- name: dead_letters
SELECT {job_columns}, died_at
FROM {schema}.dead_letters
WHERE (died_at, id) < ($1::timestamptz, $2::uuid)
    AND ($3::text IS NULL OR state = $3)
    AND ($4::text IS NULL OR queue = $4)
    AND ($5::text IS NULL OR task = $5)
    AND ($6::text IS NULL OR $6 = ANY(tags))
    AND ($7::text IS NULL OR schedule_id = $7)
    AND ($8::text[] IS NULL OR queue = ANY($8))
ORDER BY died_at DESC, id DESC
LIMIT $9;

-- name: count_dead
SELECT count(*)
FROM (SELECT FROM {schema}.dead_letters WHERE queue = $1 LIMIT $2) AS counted;

-- name: take_letters
DELETE FROM {schema}.dead_letters
WHERE id = ANY($1::uuid[])
RETURNING id;

-- name: redriven
SELECT j.id
FROM unnest($1::timestamptz[], $2::uuid[], $3::uuid[]) AS a (scheduled_at, id, redriven_from)
JOIN {partition} j
    ON j.scheduled_at = a.scheduled_at AND j.id = a.id AND j.redriven_from = a.redriven_from;
