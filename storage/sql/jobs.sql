-- name: job_columns
id, state, queue, priority, task, args, options, tags, shard, scheduled_at, run_at, created_at,
expires_at, started_at, finished_at, cancel_requested_at, attempt, failures, lost_leases, releases,
max_attempts, fencing_token, worker_id, owner, schedule_id, redriven_from, result,
error, reason

-- name: claim
-- An array that is NULL stands for the usual value in every row: run_at = scheduled_at, and zeros.
UPDATE {partition} j
SET state = 'running',
    attempt = j.attempt + 1,
    fencing_token = greatest(j.fencing_token, $6::bigint << 32) + 1,
    owner = $7::text,
    worker_id = a.worker_id,
    started_at = $8::timestamptz
FROM unnest($1::timestamptz[], $2::uuid[], $3::timestamptz[], $4::bigint[], $5::text[])
    WITH ORDINALITY AS a (scheduled_at, id, run_at, fencing_token, worker_id, place)
WHERE j.scheduled_at = a.scheduled_at
    AND j.id = a.id
    AND j.state = 'scheduled'
    AND j.run_at = coalesce(a.run_at, a.scheduled_at)
    AND j.fencing_token = coalesce(a.fencing_token, 0)
    AND (j.expires_at IS NULL OR j.expires_at > $8)
RETURNING a.place, j.fencing_token, j.task, j.args, j.options, j.attempt, j.failures,
    j.lost_leases, j.releases, j.max_attempts;

-- name: claimed_before
SELECT a.place, j.fencing_token, j.task, j.args, j.options, j.attempt, j.failures,
    j.lost_leases, j.releases, j.max_attempts
FROM unnest($1::timestamptz[], $2::uuid[], $3::timestamptz[], $4::bigint[], $5::text[])
    WITH ORDINALITY AS a (scheduled_at, id, run_at, fencing_token, worker_id, place)
JOIN {partition} j ON j.scheduled_at = a.scheduled_at AND j.id = a.id
WHERE j.state = 'running'
    AND j.run_at = coalesce(a.run_at, a.scheduled_at)
    AND j.fencing_token > coalesce(a.fencing_token, 0)
    AND j.owner = $6
    AND j.worker_id = a.worker_id
    AND j.started_at = $7;

-- name: settle_succeeded
UPDATE {partition} j
SET state = 'succeeded',
    finished_at = a.at,
    attempt = coalesce(a.attempt, 0),
    failures = coalesce(a.failures, 0),
    lost_leases = coalesce(a.lost_leases, 0),
    releases = coalesce(a.releases, 0),
    result = a.result,
    error = NULL,
    reason = NULL
FROM unnest(
    $1::timestamptz[], $2::uuid[], $3::bigint[], $4::timestamptz[],
    $5::smallint[], $6::smallint[], $7::smallint[], $8::smallint[], $9::json[]
) WITH ORDINALITY AS a (
    scheduled_at, id, fencing_token, at,
    attempt, failures, lost_leases, releases, result, place
)
WHERE j.scheduled_at = a.scheduled_at
    AND j.id = a.id
    AND j.state = 'running'
    AND j.fencing_token = a.fencing_token
RETURNING a.place;

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
        result = a.result,
        error = a.error
    FROM unnest(
        $1::timestamptz[], $2::uuid[], $3::bigint[], $4::timestamptz[],
        $5::smallint[], $6::smallint[], $7::smallint[], $8::smallint[], $9::json[],
        $10::text[], $11::timestamptz[], $12::json[], $13::text[]
    ) WITH ORDINALITY AS a (
        scheduled_at, id, fencing_token, at,
        attempt, failures, lost_leases, releases, result,
        state, run_at, error, reason, place
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
SELECT place FROM settled;

-- name: settled_before
SELECT a.place
FROM unnest(
    $1::timestamptz[], $2::uuid[], $3::bigint[], $4::text[],
    $5::smallint[], $6::smallint[], $7::smallint[], $8::smallint[]
) WITH ORDINALITY AS a (
    scheduled_at, id, fencing_token, state, attempt, failures, lost_leases, releases, place
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
SET state = a.state, reason = a.reason, finished_at = $7::timestamptz
FROM unnest(
    $1::timestamptz[], $2::uuid[], $3::timestamptz[], $4::bigint[], $5::text[], $6::text[]
) WITH ORDINALITY AS a (scheduled_at, id, run_at, fencing_token, state, reason, place)
WHERE j.scheduled_at = a.scheduled_at
    AND j.id = a.id
    AND j.state = 'scheduled'
    AND j.run_at = a.run_at
    AND j.fencing_token = a.fencing_token
RETURNING a.place;

-- name: ended_before
SELECT a.place
FROM unnest(
    $1::timestamptz[], $2::uuid[], $3::timestamptz[], $4::bigint[], $5::text[], $6::text[]
) WITH ORDINALITY AS a (scheduled_at, id, run_at, fencing_token, state, reason, place)
JOIN {partition} j ON j.scheduled_at = a.scheduled_at AND j.id = a.id
WHERE j.state = a.state
    AND j.reason = a.reason
    AND j.run_at = a.run_at
    AND j.fencing_token = a.fencing_token
    AND j.finished_at = $7;
