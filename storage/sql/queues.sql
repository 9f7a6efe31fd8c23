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
-- One half of the union is empty: letters that are named are found by their ids, all others by time.
SELECT {job_columns}, died_at
FROM (
    SELECT *, sum(octet_length(concat(args, result, error))) OVER (
        ORDER BY died_at DESC, id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes_before
    FROM (
        SELECT *
        FROM (
            (
                SELECT *
                FROM {schema}.dead_letters
                WHERE $7::uuid[] IS NULL
                    AND (died_at, id) < ($8::timestamptz, $9::uuid)
                    AND {job_conditions}
                ORDER BY died_at DESC, id DESC
                LIMIT $10
            )
            UNION ALL
            (SELECT * FROM {schema}.dead_letters WHERE id = ANY($7) OFFSET 0)
        ) AS letters
        WHERE (died_at, id) < ($8, $9) AND {job_conditions}
        ORDER BY died_at DESC, id DESC
        LIMIT $10
    ) AS page
) AS measured
WHERE coalesce(bytes_before, 0) < $11
ORDER BY died_at DESC, id DESC;

-- name: count_letters
SELECT count(*)
FROM (
    SELECT
    FROM (
        SELECT * FROM {schema}.dead_letters WHERE $7::uuid[] IS NULL
        UNION ALL
        SELECT * FROM {schema}.dead_letters WHERE id = ANY($7)
    ) AS letters
    WHERE {job_conditions}
    LIMIT $8
) AS counted;

-- name: count_dead
SELECT count(*)
FROM (SELECT FROM {schema}.dead_letters WHERE queue = $1 LIMIT $2) AS counted;

-- name: take_letters
DELETE FROM {schema}.dead_letters
WHERE id = ANY($1::uuid[]) AND ($2::text[] IS NULL OR queue = ANY($2))
RETURNING id;

-- name: redriven
SELECT j.id
FROM unnest($1::timestamptz[], $2::uuid[], $3::uuid[]) AS a (scheduled_at, id, redriven_from)
JOIN {partition} j
    ON j.scheduled_at = a.scheduled_at AND j.id = a.id AND j.redriven_from = a.redriven_from;
