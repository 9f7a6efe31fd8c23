-- name: job_columns
id, state, queue, priority, task, args, options, tags, shard, scheduled_at, run_at, created_at,
expires_at, started_at, finished_at, cancel_requested_at, attempt, failures, lost_leases, releases,
max_attempts, fencing_token, worker_id, owner, schedule_id, redriven_from, result,
error, reason

-- name: claim
-- An array that is NULL stands for the usual value in every row: run_at = scheduled_at, token 0, and
-- the first worker. The lock keeps a scheduler from being counted out while a claim of its is under
-- way, and what it sends later claims nothing.
UPDATE {partition} j
SET state = 'running',
    attempt = j.attempt + 1,
    fencing_token = greatest(j.fencing_token, $7::bigint << 32) + 1,
    owner = $8::text,
    worker_id = ($6::text[])[coalesce(a.worker, 1)],
    started_at = $9::timestamptz
FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::bigint[], $5::smallint[])
    WITH ORDINALITY AS a (id, scheduled_at, run_at, fencing_token, worker, place)
WHERE j.scheduled_at = a.scheduled_at
    AND j.id = a.id
    AND j.state = 'scheduled'
    AND j.run_at = coalesce(a.run_at, a.scheduled_at)
    AND j.fencing_token = coalesce(a.fencing_token, 0)
    AND (j.expires_at IS NULL OR j.expires_at > $9)
    AND EXISTS (SELECT FROM {schema}.schedulers s WHERE s.id = $8::text FOR KEY SHARE)
RETURNING a.place - 1, j.fencing_token, j.task, j.args, j.options, j.attempt, j.failures,
    j.lost_leases, j.releases, j.max_attempts;

-- name: claimed_before
SELECT a.place - 1, j.fencing_token, j.task, j.args, j.options, j.attempt, j.failures,
    j.lost_leases, j.releases, j.max_attempts
FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::bigint[], $5::smallint[])
    WITH ORDINALITY AS a (id, scheduled_at, run_at, fencing_token, worker, place)
JOIN {partition} j ON j.scheduled_at = a.scheduled_at AND j.id = a.id
WHERE j.state = 'running'
    AND j.run_at = coalesce(a.run_at, a.scheduled_at)
    AND j.fencing_token > coalesce(a.fencing_token, 0)
    AND j.owner = $7
    AND j.worker_id = ($6::text[])[coalesce(a.worker, 1)]
    AND j.started_at = $8;

-- name: settle_succeeded
-- Answers by its count alone: nearly always that is all of them.
UPDATE {partition} j
SET state = 'succeeded', indexed = false, finished_at = $5::timestamptz, result = a.result,
    error = NULL, reason = NULL
FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::json[])
    AS a (id, scheduled_at, fencing_token, result)
WHERE j.scheduled_at = a.scheduled_at
    AND j.id = a.id
    AND j.state = 'running'
    AND j.fencing_token = a.fencing_token;

-- name: succeeded
SELECT a.place - 1
FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[])
    WITH ORDINALITY AS a (id, scheduled_at, fencing_token, place)
JOIN {partition} j ON j.scheduled_at = a.scheduled_at AND j.id = a.id
WHERE j.state = 'succeeded' AND j.fencing_token = a.fencing_token;

-- name: settle_otherwise
-- A cancel request overrules both `scheduled` and `dead`.
WITH settled AS (
    UPDATE {partition} j
    SET state = CASE
            WHEN j.cancel_requested_at IS NOT NULL AND a.state IN ('scheduled', 'dead')
            THEN 'cancelled' ELSE a.state END,
        reason = CASE
            WHEN j.cancel_requested_at IS NOT NULL AND a.state IN ('scheduled', 'dead')
            THEN 'cancelled' ELSE a.reason END,
        run_at = CASE
            WHEN j.cancel_requested_at IS NULL AND a.state = 'scheduled'
            THEN a.run_at ELSE j.run_at END,
        finished_at = CASE
            WHEN j.cancel_requested_at IS NULL AND a.state = 'scheduled'
            THEN NULL ELSE a.at END,
        indexed = j.cancel_requested_at IS NULL AND a.state = 'scheduled',
        owner = CASE
            WHEN j.cancel_requested_at IS NULL AND a.state = 'scheduled'
            THEN NULL ELSE j.owner END,
        worker_id = CASE
            WHEN j.cancel_requested_at IS NULL AND a.state = 'scheduled'
            THEN NULL ELSE j.worker_id END,
        started_at = CASE
            WHEN j.cancel_requested_at IS NULL AND a.state = 'scheduled'
            THEN NULL ELSE j.started_at END,
        expires_at = CASE WHEN coalesce(a.attempt, 0) = 0 THEN j.expires_at END,
        attempt = coalesce(a.attempt, 0),
        failures = coalesce(a.failures, 0),
        lost_leases = coalesce(a.lost_leases, 0),
        releases = coalesce(a.releases, 0),
        error = a.error
    FROM unnest(
        $1::uuid[], $2::timestamptz[], $3::bigint[], $4::text[],
        $5::smallint[], $6::smallint[], $7::smallint[], $8::smallint[],
        $9::timestamptz[], $10::timestamptz[], $11::json[], $12::text[]
    ) WITH ORDINALITY AS a (
        id, scheduled_at, fencing_token, state,
        attempt, failures, lost_leases, releases,
        run_at, at, error, reason, place
    )
    WHERE j.scheduled_at = a.scheduled_at
        AND j.id = a.id
        AND j.state = 'running'
        AND j.fencing_token = a.fencing_token
    RETURNING a.place, a.at, j.*
), dead AS (
    INSERT INTO {schema}.dead_letters ({job_columns}, died_at)
    SELECT {job_columns}, at FROM settled WHERE state = 'dead'
    ON CONFLICT DO NOTHING
)
SELECT place - 1 FROM settled;

-- name: settled_before
SELECT a.place - 1
FROM unnest(
    $1::uuid[], $2::timestamptz[], $3::bigint[], $4::text[],
    $5::smallint[], $6::smallint[], $7::smallint[], $8::smallint[]
) WITH ORDINALITY AS a (
    id, scheduled_at, fencing_token, state, attempt, failures, lost_leases, releases, place
)
JOIN {partition} j ON j.scheduled_at = a.scheduled_at AND j.id = a.id
WHERE j.fencing_token = a.fencing_token
    AND j.state = CASE
        WHEN j.cancel_requested_at IS NOT NULL AND a.state IN ('scheduled', 'dead')
        THEN 'cancelled' ELSE a.state END
    AND (j.attempt, j.failures, j.lost_leases, j.releases)
        = (
            coalesce(a.attempt, 0), coalesce(a.failures, 0), coalesce(a.lost_leases, 0),
            coalesce(a.releases, 0)
        );

-- name: end_waiting
UPDATE {partition} j
SET state = a.state, reason = a.reason, indexed = false, finished_at = $7::timestamptz
FROM unnest(
    $1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::bigint[], $5::text[], $6::text[]
) WITH ORDINALITY AS a (id, scheduled_at, run_at, fencing_token, state, reason, place)
WHERE j.scheduled_at = a.scheduled_at
    AND j.id = a.id
    AND j.state = 'scheduled'
    AND j.run_at = a.run_at
    AND j.fencing_token = a.fencing_token
RETURNING a.place - 1;

-- name: ended_before
SELECT a.place - 1
FROM unnest(
    $1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::bigint[], $5::text[], $6::text[]
) WITH ORDINALITY AS a (id, scheduled_at, run_at, fencing_token, state, reason, place)
JOIN {partition} j ON j.scheduled_at = a.scheduled_at AND j.id = a.id
WHERE j.state = a.state
    AND j.reason = a.reason
    AND j.run_at = a.run_at
    AND j.fencing_token = a.fencing_token
    AND j.finished_at = $7;
