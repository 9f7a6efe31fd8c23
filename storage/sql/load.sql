-- name: load
-- scheduled_at only where it is another time than run_at.
SELECT page.*
FROM unnest($1::smallint[], $2::timestamptz[], $3::uuid[]) AS s (shard, run_at, id)
CROSS JOIN LATERAL (
    SELECT j.run_at, j.id, row_number() OVER (ORDER BY j.run_at, j.id) AS nth, j.shard,
        nullif(j.scheduled_at, j.run_at) AS scheduled_at, j.fencing_token, j.expires_at,
        j.schedule_id
    FROM {partition} j
    WHERE j.indexed
        AND j.shard = s.shard
        AND j.queue = $4
        AND j.priority = $5
        AND (j.run_at, j.id) > (s.run_at, s.id)
        AND j.run_at <= $6
        AND j.state = 'scheduled'
    ORDER BY j.run_at, j.id
    LIMIT $7
) AS page
ORDER BY page.run_at, page.id
LIMIT $8;

-- name: unfinished
SELECT page.*
FROM unnest($1::smallint[], $2::timestamptz[], $3::uuid[]) AS s (shard, run_at, id)
CROSS JOIN LATERAL (
    SELECT j.run_at, j.id, row_number() OVER (ORDER BY j.run_at, j.id) AS nth, j.shard,
        j.state = 'running' AS is_running, j.scheduled_at, j.schedule_id, j.expires_at,
        j.fencing_token, j.worker_id, j.owner, j.started_at,
        j.cancel_requested_at IS NOT NULL AS cancel_requested, j.task,
        CASE WHEN j.state = 'running' THEN j.options END AS options,
        j.attempt, j.failures, j.lost_leases, j.releases, j.max_attempts
    FROM {partition} j
    WHERE j.indexed
        AND j.shard = s.shard
        AND j.queue = $4
        AND j.priority = $5
        AND (j.run_at, j.id) > (s.run_at, s.id)
        AND j.run_at <= $6
    ORDER BY j.run_at, j.id
    LIMIT $7
) AS page
ORDER BY page.run_at, page.id
LIMIT $8;

-- name: count_waiting
SELECT count(*)
FROM (
    SELECT
    FROM unnest($1::smallint[]) AS s (shard)
    CROSS JOIN LATERAL (
        SELECT
        FROM {partition} j
        WHERE j.indexed
            AND j.shard = s.shard
            AND j.queue = $2
            AND j.priority = $3
            AND (j.run_at, j.id) > ($4::timestamptz, $5::uuid)
            AND j.run_at <= $6
            AND j.state = 'scheduled'
        ORDER BY j.run_at, j.id
        LIMIT $7
    ) AS page
    LIMIT $7
) AS counted;

-- name: find
SELECT {job_columns}, a.place
FROM unnest($1::timestamptz[], $2::uuid[]) WITH ORDINALITY AS a (at_time, at_id, place)
JOIN {partition} j ON j.scheduled_at = a.at_time AND j.id = a.at_id;

-- name: moved
SELECT id, scheduled_at FROM {schema}.moved_jobs WHERE id = ANY($1::uuid[]);

-- name: index_led
-- A page of those that lead from $1 on and until $2 at the latest, and all that lies between the
-- first of them and the last that they lead to. One that an outage has left behind may be hours
-- before the next: only those within $4 milliseconds of the first are taken, or all rows between
-- would be read. Rows are locked in the order of their ids, as by whoever ends them. Answers from
-- where to go on; NULL if nobody was left for another page.
WITH leaders AS MATERIALIZED (
    SELECT scheduled_at, leads_until
    FROM {partition}
    WHERE scheduled_at >= $1 AND leads_until <= $2
    ORDER BY scheduled_at, id
    LIMIT $3
), span AS MATERIALIZED (
    SELECT min(scheduled_at) AS since, max(leads_until) AS until, max(scheduled_at) AS place
    FROM leaders
    WHERE scheduled_at <= (SELECT min(scheduled_at) FROM leaders) + $4 * interval '1 millisecond'
), found AS MATERIALIZED (
    SELECT j.scheduled_at, j.id, span.until
    FROM span
    JOIN {partition} j ON j.scheduled_at BETWEEN span.since AND span.until
    WHERE j.leads_until <= span.until OR (NOT j.indexed AND j.finished_at IS NULL)
    ORDER BY j.id
    FOR UPDATE OF j
), settled AS (
    UPDATE {partition} j
    SET indexed = j.finished_at IS NULL,
        leads_until = CASE WHEN j.leads_until > found.until THEN j.leads_until END
    FROM found
    WHERE j.scheduled_at = found.scheduled_at AND j.id = found.id
)
SELECT span.place
FROM span
WHERE (SELECT count(*) = $3 OR max(scheduled_at) > span.place FROM leaders);
