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
            WHERE (scheduled_at, id) < ($1::timestamptz, $2::uuid)
            ORDER BY scheduled_at DESC, id DESC
            LIMIT $3
        ) AS examined
        WHERE ($4::text IS NULL OR state = $4)
            AND ($5::text IS NULL OR queue = $5)
            AND ($6::text IS NULL OR task = $6)
            AND ($7::text IS NULL OR $7 = ANY(tags))
            AND ($8::text IS NULL OR schedule_id = $8)
            AND ($9::text[] IS NULL OR queue = ANY($9))
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
