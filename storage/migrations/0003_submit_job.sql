-- Submits one job in the caller's own transaction: it is there if, and only if, that commits. With
-- the rights of the schema's owner, so that a caller needs no more than USAGE on the schema.
CREATE FUNCTION {schema}.submit_job(
    task text,
    args json DEFAULT '{}',
    queue text DEFAULT 'default',
    run_at timestamptz DEFAULT NULL,
    priority integer DEFAULT NULL,
    max_attempts integer DEFAULT NULL,
    tags text[] DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
#variable_conflict use_variable
DECLARE
    now_at timestamptz := clock_timestamp();
    due_at timestamptz := greatest(coalesce(run_at, now_at), now_at);
    lane {schema}.queues;
    shard integer;
    id uuid;
BEGIN
    IF task IS NULL OR task !~ '^[A-Za-z0-9_.-]{1,128}$' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a task''s name is [A-Za-z0-9_.-]{1,128}';
    ELSIF queue IS NULL OR queue !~ '^[A-Za-z0-9_.-]{1,128}$' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a queue''s name is [A-Za-z0-9_.-]{1,128}';
    ELSIF args IS NULL OR json_typeof(args) <> 'object' OR octet_length(args::text) > 262144 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'args is a JSON object of at most 256 KiB';
    ELSIF priority NOT BETWEEN 0 AND 9 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'a priority is 0 to 9';
    ELSIF max_attempts NOT BETWEEN 1 AND 100 THEN
        RAISE invalid_parameter_value USING MESSAGE = 'max_attempts is 1 to 100';
    ELSIF cardinality(tags) > 16 OR EXISTS (
        SELECT FROM unnest(tags) AS tag WHERE tag IS NULL OR octet_length(tag) NOT BETWEEN 1 AND 64
    ) THEN
        RAISE invalid_parameter_value USING MESSAGE = 'tags are at most 16 of 1 to 64 bytes';
    END IF;

    SELECT * INTO lane FROM {schema}.queues WHERE name = queue;
    priority := coalesce(priority, lane.priority, 5);
    max_attempts := coalesce(max_attempts, lane.max_attempts, 5);
    IF lane.name IS NULL OR lane.priorities >> priority & 1 = 0 THEN
        INSERT INTO {schema}.queues AS q (name, max_depth, lease_ms, max_attempts, priority, paused,
            priorities)
        VALUES (queue, 1000000, 30000, 5, 5, false, 1 << priority)
        ON CONFLICT (name) DO UPDATE SET priorities = q.priorities | excluded.priorities;
    END IF;

    due_at := date_trunc('milliseconds', due_at + interval '999 microseconds');
    SELECT floor(random() * value) INTO shard FROM {schema}.meta WHERE name = 'shards';
    id := (
        lpad(to_hex(floor(extract(epoch FROM due_at) * 1000)::bigint), 12, '0')
        || '7' || lpad(to_hex(shard), 3, '0')
        || substr(replace(gen_random_uuid()::text, '-', ''), 17)
    )::uuid;
    INSERT INTO {schema}.jobs (id, scheduled_at, run_at, created_at, shard, priority, max_attempts,
        queue, task, args, tags)
    VALUES (id, due_at, due_at, date_trunc('milliseconds', now_at), shard, priority, max_attempts,
        queue, task, args, nullif(tags, '{}'));
    PERFORM pg_notify('tickwheel_{schema}', 'jobs ' || id);
    RETURN id;
EXCEPTION
    WHEN check_violation THEN
        IF due_at < now_at + interval '7 days' THEN
            RAISE object_not_in_prerequisite_state USING
                MESSAGE = 'no partition is made for run_at yet',
                HINT = 'Schedulers make partitions ahead. Try again while one runs.';
        END IF;
        RAISE invalid_parameter_value USING
            MESSAGE = 'run_at is further ahead than partitions are made, which is a week',
            HINT = 'Submit jobs that are further away over HTTP.';
END
$function$;
