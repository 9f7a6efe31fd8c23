"""The guards, and how each is taken away: a text in a file, what stands there instead, and the tests
that must fail then."""

from __future__ import annotations

from typing import NamedTuple

JOBS, APPEND, SCHEDULES, SHARDS = (
    f"storage/sql/{name}.sql" for name in ("jobs", "append", "schedules", "shards")
)
SETTLE, CLAIM = "tests/conformance/test_settle.py", "tests/conformance/test_claim.py"
MEETING = "tests/integration/test_interleavings.py"
SIMULATION = "tests/simulation/test_world.py"


class Guard(NamedTuple):
    """A guard. `after` is a text before it in the file, from which on it is looked for."""

    name: str
    file: str
    text: str
    instead: str
    tests: str
    after: str = ""


GUARDS = (
    Guard("state in claim", JOBS, "AND j.state = 'scheduled'\n", "\n", CLAIM, "-- name: claim\n"),
    Guard("run_at in claim", JOBS, "AND j.run_at = coalesce(a.run_at, a.scheduled_at)\n", "\n",
          CLAIM, "-- name: claim\n"),
    Guard("token in claim", JOBS, "AND j.fencing_token = coalesce(a.fencing_token, 0)\n", "\n",
          CLAIM, "-- name: claim\n"),
    Guard("start deadline in claim", JOBS, "AND (j.expires_at IS NULL OR j.expires_at > $9)\n",
          "\n", CLAIM, "-- name: claim\n"),
    Guard("member in claim", JOBS,
          "AND EXISTS (SELECT FROM {schema}.schedulers s WHERE s.id = $8::text FOR KEY SHARE)\n",
          "\n", MEETING),
    Guard("lock on the member in claim", JOBS, " FOR KEY SHARE)", ")", MEETING),
    Guard("the claim charges", JOBS, "attempt = j.attempt + 1,", "attempt = j.attempt,", CLAIM),
    Guard("the claim's token grows", JOBS,
          "fencing_token = greatest(j.fencing_token, $7::bigint << 32) + 1,",
          "fencing_token = greatest(j.fencing_token, $7::bigint << 32),", CLAIM),
    Guard("state in success", JOBS, "AND j.state = 'running'\n", "\n", SETTLE,
          "-- name: settle_succeeded"),
    Guard("token in success", JOBS, "AND j.fencing_token = a.fencing_token;", ";", SETTLE,
          "-- name: settle_succeeded"),
    Guard("state in other ends", JOBS, "AND j.state = 'running'\n", "\n", SETTLE,
          "-- name: settle_otherwise"),
    Guard("token in other ends", JOBS, "AND j.fencing_token = a.fencing_token\n", "\n", SETTLE,
          "-- name: settle_otherwise"),
    Guard("state in end of waiting", JOBS, "AND j.state = 'scheduled'\n", "\n",
          "tests/conformance/test_endings.py", "-- name: end_waiting"),
    Guard("a lost reply to a settlement is looked up", "storage/pg_path.py",
          "if len(rows) < len(ats):", "if False:", SETTLE),
    Guard("the letter is written with the death", JOBS, "WHERE state = 'dead'\n", "WHERE false\n",
          SETTLE),
    Guard("the key's body is compared", "storage/pg_append.py", "holder.body_hash != key.body_hash", "False",
          "tests/conformance/test_idempotency.py"),
    Guard("one tick per time", SCHEDULES, "ON CONFLICT DO NOTHING\nRETURNING fire_time",
          "ON CONFLICT (schedule_id, fire_time) DO UPDATE SET job_id = excluded.job_id\n"
          "RETURNING fire_time", "tests/conformance/test_ticks.py"),
    Guard("epoch in renewal", SHARDS, "AND s.epoch = mine.epoch", "",
          "tests/conformance/test_shards.py", "-- name: renew_shards"),
    Guard("owner in renewal", SHARDS, "AND s.owner = $1\n", "\n",
          "tests/conformance/test_shards.py", "-- name: renew_shards"),
    Guard("epoch in release", SHARDS, "AND s.epoch = mine.epoch", "",
          "tests/conformance/test_shards.py", "-- name: release_shards"),
    Guard("expiry in take-over", SHARDS, "expires_at <= clock_timestamp() OR owner = ANY($2)",
          "true", "tests/conformance/test_shards.py", "-- name: acquire_shards"),
    Guard("partitions ahead", "storage/partitions.py", "for step in range(steps)", "for step in ()",
          "tests/integration/test_postgres_partitions.py"),
    Guard("the sweep of what is overdue", "core/sweeper.py",
          "news = kernel.residents.admit_all(", "news = 0 and kernel.residents.admit_all(",
          "tests/unit/test_sweeper.py"),
    Guard("the sweep's overlap", "core/sweeper.py",
          "(until_ms - kernel.settings.sweep_overlap_ms, ID_LAST)", "(until_ms, ID_LAST)",
          "tests/unit/test_sweeper.py"),
    Guard("a fresh lease after a take-over", "core/sweeper.py",
          "monotonic_ms + lease_ms + spread_ms", "monotonic_ms", "tests/unit/test_sweeper.py"),
    Guard("what ended while it was read is not adopted", "core/sweeper.py",
          "if row.id in ended:", "if False:", "tests/unit/test_sweeper.py"),
    Guard("grace after a stall", "core/grace.py",
          "self.until_ms = now_ms + stalled_ms", "pass",
          "tests/unit/test_dispatcher.py"),
    Guard("trust from the moment of sending", "core/ownership.py",
          "self._trusted_until_ms = sent_ms + ttl_ms - ttl_ms // 5",
          "self._trusted_until_ms = kernel.clock.monotonic_ms() + ttl_ms - ttl_ms // 5",
          "tests/unit/test_ownership.py"),
    Guard("the time is asked on the shards' connection", "storage/postgres.py",
          "await self._shard_pool.read(work, attempts_max=2)",
          "await self._pool.read(work, attempts_max=2)",
          "tests/integration/test_postgres_pool.py -k does_not_wait"),
    Guard("trust before each send", "core/dispatcher.py",
          "if batch and not self._kernel.owns_time():", "if False:", "tests/unit"),
    Guard("a clock that counts a suspend", "core/clock.py",
          'getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)', "time.CLOCK_MONOTONIC",
          "tests/unit/test_clock.py"),
    Guard("one token, one session", "core/workers.py",
          'return lease if lease.worker_id == session.worker_id else "stale"', "return lease",
          "tests/unit/test_workers.py tests/unit/test_reports.py"),
    Guard("only the owner renews", "core/workers.py",
          "if outcome is None and not self._kernel.may_renew(check(job_id)):", "if False:",
          "tests/unit/test_ownership.py"),
    Guard("leases are forgotten before their shards are released", "core/ownership.py",
          "self._leave(epochs)\n        await self._pay()",
          "await self._pay()\n        self._leave(epochs)",
          "tests/unit/test_ownership.py"),
    Guard("nobody takes a permit that may be in use", "storage/memory_shards.py",
          "may_grow=all_share and recovered", "may_grow=recovered", "tests/unit/test_permits.py"),
    Guard("nobody takes a permit while what runs is unknown", "storage/memory_shards.py",
          "may_grow=all_share and recovered", "may_grow=all_share", "tests/unit/test_permits.py"),
    Guard("who owns a shard is not dead", "storage/memory_shards.py", "row.owner in living and ", "",
          "tests/unit/test_permits.py"),
    Guard("nothing is started over the limit", "core/permits.py",
          "return Grant(permits, fair, max(0, min(permits, free)))",
          "return Grant(permits, fair, permits)", "tests/unit/test_permits.py"),
    Guard("grants end with trust", "core/ownership.py", "kernel.permits.forget()", "pass",
          "tests/unit/test_permits.py"),
    Guard("an attempt of another's takes no permit", "core/kernel.py",
          "lease.visiting = lease.job[7] not in self.residents.shards", "pass",
          "tests/unit/test_kernel.py"),
    Guard("permits are given back here first", "core/permits.py",
          "self._granted[queue] = granted.cut(keep)", "pass",
          "tests/unit/test_permits.py"),
    Guard("what was granted before all was forgotten does not count", "core/permits.py",
          "if forgets != self._forgets:", "if False:", "tests/unit/test_permits.py"),
    Guard("attempts given away count until their shards are released", "core/permits.py",
          "if recovered and not unreleased and", "if recovered and", "tests/unit/test_permits.py"),
    Guard("permits of the dead stay until all is recovered", "storage/memory_shards.py",
          "if recovered:", "if True:", "tests/unit/test_permits.py"),
    Guard("a lease counts from its poll", "client/session.py",
          'sent_at + answer["waited_seconds"]', "now()", "tests/unit/test_worker_session.py"),
    Guard("nothing begins past its lease", "client/relay.py",
          "if attempt.fence_at <= self._slice_began:", "if False:",
          "tests/unit/test_worker_parts.py"),
    Guard("what goes on of a session that is gone is kept", "core/kernel.py",
          "            and lease.id not in self.gone[lease.claimed_by]\n", "", "tests/unit/test_sweeper.py"),
    Guard("what others look after goes on, too", "client/session.py",
          "kept = [job_id for each in sessions", "kept = [job_id for each in (self,)",
          "tests/unit/test_worker_cluster.py"),
    Guard("queues in a key's jobs", "server/api_jobs.py", "who.check_queue", "id",
          "tests/integration/test_http_auth.py"),
    Guard("queues in a key's polls", "server/api_workers.py", "who.check_queue", "id",
          "tests/integration/test_http_auth.py"),
    Guard("queues in a key's queues", "server/api_queues.py", "who.check_queue", "id",
          "tests/integration/test_http_auth.py"),
    Guard("queues in a key's schedules", "server/api_schedules.py", "who.check_queue", "id",
          "tests/integration/test_http_auth.py"),
)  # fmt: skip
