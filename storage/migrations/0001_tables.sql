CREATE TABLE {schema}.meta (
    name text PRIMARY KEY,
    value bigint NOT NULL
);

CREATE TABLE {schema}.jobs (
    id uuid NOT NULL,
    scheduled_at timestamptz NOT NULL,
    run_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    cancel_requested_at timestamptz,
    fencing_token bigint NOT NULL DEFAULT 0,
    shard smallint NOT NULL,
    priority smallint NOT NULL,
    max_attempts smallint NOT NULL,
    attempt smallint NOT NULL DEFAULT 0,
    failures smallint NOT NULL DEFAULT 0,
    lost_leases smallint NOT NULL DEFAULT 0,
    releases smallint NOT NULL DEFAULT 0,
    state text NOT NULL DEFAULT 'scheduled',
    queue text NOT NULL,
    task text NOT NULL,
    args json NOT NULL,
    options json,
    tags text[],
    owner text,
    worker_id text,
    schedule_id text,
    redriven_from uuid,
    result json,
    error json,
    reason text,
    indexed boolean NOT NULL DEFAULT true,
    leads_until timestamptz,
    PRIMARY KEY (scheduled_at, id)
) PARTITION BY RANGE (scheduled_at);

-- The pending set, whatever the history: all jobs that wait, and most that run. Claims and releases
-- touch none of its columns, so that they stay heap-only; only the end of a job takes its row out.
-- Jobs written as started together are left out, so that their end is heap-only too, and are found
-- by the first of them, which leads to all up to its `leads_until`.
CREATE INDEX jobs_pending ON {schema}.jobs (shard, queue, priority, run_at, id)
    WHERE indexed;
CREATE INDEX jobs_leaders ON {schema}.jobs (scheduled_at, id) WHERE leads_until IS NOT NULL;
CREATE INDEX jobs_of_schedule ON {schema}.jobs (schedule_id, scheduled_at, id)
    WHERE indexed AND schedule_id IS NOT NULL;

-- `drained_at`: its range is long over and nothing in it is unfinished, so nobody need look.
CREATE TABLE {schema}.partitions (
    starts_at timestamptz PRIMARY KEY,
    ends_at timestamptz NOT NULL,
    name text NOT NULL UNIQUE,
    drained_at timestamptz
);

-- Where a reschedule has moved a row whose id tells its first scheduled_at.
CREATE TABLE {schema}.moved_jobs (
    id uuid PRIMARY KEY,
    scheduled_at timestamptz NOT NULL
);
CREATE INDEX moved_jobs_by_time ON {schema}.moved_jobs (scheduled_at);

CREATE TABLE {schema}.idempotency_keys (
    queue text NOT NULL,
    key text NOT NULL,
    body_hash bytea NOT NULL,
    job_id uuid NOT NULL,
    run_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (queue, key)
);
CREATE INDEX idempotency_keys_expiry ON {schema}.idempotency_keys (expires_at);

CREATE TABLE {schema}.dead_letters (
    LIKE {schema}.jobs,
    died_at timestamptz NOT NULL,
    PRIMARY KEY (id, fencing_token)
);
ALTER TABLE {schema}.dead_letters DROP COLUMN indexed, DROP COLUMN leads_until;
CREATE INDEX dead_letters_by_time ON {schema}.dead_letters (died_at, id);
CREATE INDEX dead_letters_by_queue ON {schema}.dead_letters (queue, died_at, id);

CREATE TABLE {schema}.queues (
    name text PRIMARY KEY,
    max_depth bigint NOT NULL,
    max_running bigint,
    lease_ms bigint NOT NULL,
    max_attempts smallint NOT NULL,
    priority smallint NOT NULL,
    options json,
    paused boolean NOT NULL,
    paused_reason text,
    priorities smallint NOT NULL
);

CREATE TABLE {schema}.schedules (
    id text COLLATE "C" PRIMARY KEY,
    shard smallint NOT NULL,
    queue text NOT NULL,
    spec json NOT NULL,
    args json NOT NULL,
    version bigint NOT NULL,
    cursor_at timestamptz NOT NULL,
    paused boolean NOT NULL,
    paused_reason text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    last_fire_at timestamptz,
    fired bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    missed bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE INDEX schedules_due ON {schema}.schedules (shard, cursor_at) WHERE NOT paused;

CREATE TABLE {schema}.schedule_ticks (
    schedule_id text NOT NULL REFERENCES {schema}.schedules ON DELETE CASCADE,
    fire_time timestamptz NOT NULL,
    job_id uuid NOT NULL,
    PRIMARY KEY (schedule_id, fire_time)
);
CREATE INDEX schedule_ticks_job ON {schema}.schedule_ticks (job_id);
CREATE INDEX schedule_ticks_by_time ON {schema}.schedule_ticks (fire_time, job_id);

-- UNIQUE (shard, epoch) makes raising the epoch a key update, so that a FOR KEY SHARE on the row
-- holds a take-over back and lets a renewal pass.
CREATE TABLE {schema}.shards (
    shard smallint PRIMARY KEY,
    epoch bigint NOT NULL DEFAULT 0,
    owner text,
    expires_at timestamptz NOT NULL DEFAULT '-infinity',
    UNIQUE (shard, epoch)
) WITH (fillfactor = 50);

CREATE TABLE {schema}.api_keys (
    id text PRIMARY KEY,
    digest bytea NOT NULL,
    name text NOT NULL,
    scopes text[] NOT NULL,
    queues text[],
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz
);

CREATE TABLE {schema}.audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    target text NOT NULL
);
