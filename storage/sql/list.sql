-- name: job_conditions
($1::text IS NULL OR state = $1)
AND ($2::text IS NULL OR queue = $2)
AND ($3::text IS NULL OR task = $3)
AND ($4::text IS NULL OR $4 = ANY(tags))
AND ($5::text IS NULL OR schedule_id = $5)
AND ($6::text[] IS NULL OR queue = ANY($6))

-- name: list_jobs
SELECT {job_columns}
FROM (
    SELECT *, sum(octet_length(concat(args, result, error))) OVER (
        ORDER BY scheduled_at DESC, id DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes_before
    FROM (
        SELECT *
        FROM (
            SELECT *
            FROM {partition}
            WHERE (scheduled_at, id) < ($7::timestamptz, $8::uuid)
            ORDER BY scheduled_at DESC, id DESC
            LIMIT $9
        ) AS examined
        WHERE {job_conditions}
        ORDER BY scheduled_at DESC, id DESC
        LIMIT $10
    ) AS page
) AS measured
WHERE coalesce(bytes_before, 0) < $11
ORDER BY scheduled_at DESC, id DESC;

-- name: list_examined
SELECT scheduled_at, id, nth
FROM (
    SELECT scheduled_at, id, row_number() OVER (ORDER BY scheduled_at DESC, id DESC) AS nth
    FROM {partition}
    WHERE (scheduled_at, id) < ($1::timestamptz, $2::uuid)
    ORDER BY scheduled_at DESC, id DESC
    LIMIT $3
) AS examined
ORDER BY nth DESC
LIMIT 1;

-- name: list_timeout
SET LOCAL statement_timeout = '1s';
