"""The scheduler: an asyncio shell around the synchronous core, and the embedding API.

    jobs.submit ─ group commit ─► store ══COMMIT══► residents ─► wheel ─► ready lanes
    loader, sweeper, ticker ─────► store ───────────► residents      (cache of what is near)
    workers.poll ─ dispatcher: match, claim ══COMMIT══► hold ─► answer
    workers.report ─ settler: token check ─ group commit ══COMMIT══► answer, retry ─► residents

This module wires the parts, starts and stops them in order, and says whether they make progress.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from .clock import Clock, SteadyClock, SystemClock
from .dead_letters import DeadLetters
from .dispatcher import Dispatcher
from .errors import Unavailable
from .gate import Gate
from .handler import handler_of
from .hints import jobs_of
from .job import NO_OPTIONS, Appended
from .jobs import Jobs
from .kernel import Kernel, report_failure
from .lease import Lease
from .loader import Loader
from .local import LocalWorker, args_of, ms_of, spec_of
from .metrics import Metrics, NoMetrics
from .names import check_name
from .ownership import Ownership
from .ports import Store
from .queues import Queues
from .schedule import JobTemplate, Schedule, ScheduleSpec
from .schedules import Schedules
from .settings import Settings
from .settler import Settler
from .snapshot import Snapshot, snapshot
from .sweeper import Sweeper
from .ticker import Ticker
from .workers import Workers

_MAINTAIN_MS = 10_000
_RETRY_MS = 1_000
_PROGRESS_MS = 10_000
_UNKNOWN_TTLS = 3
"""So many shard TTLs after a start, all that started then know each other."""

F = TypeVar("F", bound=Callable[..., Any])


class Scheduler:
    """One scheduler on one store, for one event loop.

    `clock`, `rng` and `metrics` default to the system's clock, a seed from the system, and
    nothing. `url` is where remote workers reach it, if they do. Use it as an async context manager,
    or `start` and `stop` it. If `failed` is ever set, stop it and start another.
    """

    def __init__(
        self,
        store: Store,
        *,
        settings: Settings | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        metrics: Metrics | None = None,
        url: str = "",
    ) -> None:
        self.store = store
        self.settings = settings or Settings()
        self.clock = SteadyClock(clock or SystemClock())
        self._rng = rng or random.Random(random.SystemRandom().getrandbits(128))
        self._metrics = metrics or NoMetrics()
        self._url = url
        self.failed = asyncio.Event()
        """A part has failed, which is a defect: nothing is fired here any more, and its shards are
        left to others."""
        self._parts: list[asyncio.Task[None]] = []
        self._wire()

    def _wire(self) -> None:
        kernel = Kernel(self.store, self.settings, self.clock, self._rng, self._metrics)
        self._kernel = kernel
        self.boot_id = kernel.boot_id
        self._settler = Settler(kernel, self._job_ended)
        self._dispatcher = Dispatcher(kernel, self._settler)
        self._loader = Loader(kernel)
        self._sweeper = Sweeper(kernel, self._dispatcher.ask_to_stop, self._settler.release)
        self._ownership = Ownership(
            kernel, self._sweeper, self._dispatcher, self._settler, self._url
        )
        self._ticker = Ticker(kernel)
        self.jobs = Jobs(kernel, self._settler, self._dispatcher)
        self.schedules = Schedules(kernel, self._ticker)
        self.queues = Queues(kernel, self._dispatcher)
        self.dead_letters = DeadLetters(kernel)
        self.workers = Workers(kernel, self._dispatcher, self._settler)
        self._local = LocalWorker(kernel, self.workers)
        self._gate = Gate(kernel, self._ticker, self._dispatcher.parked, self.jobs.cancel)

    async def start(self) -> None:
        """Open the store, take shards, and start to fire; once. Raises `Unavailable`."""
        if self._parts or self._kernel.draining:
            raise RuntimeError("a scheduler starts once")
        kernel = self._kernel
        await self.store.open()
        self._deafen = self.store.on_hint(self._hear)
        try:
            kernel.shard_count = await self.store.shard_count()
            await self.store.prepare(self.clock.now_ms())
            await self._sweeper.read_lanes()
            unknown_ms = _UNKNOWN_TTLS * self.settings.shard_ttl_ms
            kernel.neighbours.began(self.clock.monotonic_ms(), unknown_ms)
            await self._ownership.keep()
        except BaseException:
            self._deafen()
            await self.store.close()
            raise
        self._sweeper.progress_ms = self.clock.monotonic_ms()
        loop = asyncio.get_running_loop()
        self._parts = [
            loop.create_task(part, name=name)
            for name, part in (
                ("dispatcher", self._dispatcher.run()),
                ("loader", self._loader.run()),
                ("sweeper", self._sweeper.run()),
                ("listener", self._sweeper.run_told()),
                ("counter", self._sweeper.run_counts()),
                ("hints", kernel.hints.run()),
                ("recovery", self._sweeper.run_recovery(self._ownership.recovered)),
                ("permits", kernel.permits.run()),
                ("ownership", self._ownership.run()),
                ("ticker", self._ticker.run()),
                ("gate", self._gate.run()),
                ("upkeep", self._maintain()),
            )
        ]
        for part in self._parts:
            part.add_done_callback(self._ended)
        self._local.start()

    async def stop(self) -> None:
        """Drain and stop: claim nothing more, give back what was not sent, write what has ended.

        Running attempts of remote workers go on; their reports are taken until the very end, and
        by the next scheduler after that.
        """
        self._kernel.draining = True
        await self._local.stop(self.settings.drain_ms)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_ms / 1000):
                await asyncio.gather(self._dispatcher.claims_done(), self.jobs.drain())
                self._dispatcher.release_held()
                await self._kernel.finish()
                await self._settler.commit.drain()
        self._deafen()
        for part in self._parts:
            part.cancel()
        await asyncio.gather(*self._parts, return_exceptions=True)
        self._parts = []
        for session in self._kernel.sessions.all():
            self._kernel.sessions.remove(session)
        with suppress(Unavailable):
            await self._ownership.release()
        await self.store.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @overload
    def task(self, name: F) -> F: ...

    @overload
    def task(self, name: str, **defaults: Any) -> Callable[[F], F]: ...

    def task(self, name: F | str, **defaults: Any) -> F | Callable[[F], F]:
        """Register an in-process handler; `defaults` are the keywords of `submit`.

        Without parentheses the task has the function's own name. Raises `InvalidRequest` for a
        value, and TypeError for a keyword, that no submission may have.
        """
        if callable(name):
            return self.task(name.__name__)(name)
        spec_of(name, None, defaults)

        def register(function: F) -> F:
            self._local.add(name, handler_of(function, defaults))
            return function

        return register

    async def submit(
        self, task: str, args: dict[str, Any] | None = None, **settings: Any
    ) -> Appended:
        """Submit one job; return once it is durable.

        Keywords: `delay` (seconds), `run_at` (an aware datetime), `queue`, `priority`,
        `max_attempts`, `idempotency_key`, `tags`, `options` (`JobOptions`). Raises as
        `jobs.submit` does.
        """
        handler = self._local.handlers.get(task)
        if handler is not None:
            settings = {**handler.defaults, **settings}
        spec = spec_of(task, args, settings)
        if handler is not None:
            self._local.serve_queue(spec.queue)
        [appended] = await self.jobs.submit([spec])
        return appended

    async def schedule(
        self,
        schedule_id: str,
        *,
        task: str,
        args: dict[str, Any] | None = None,
        cron: str | Sequence[str] = (),
        interval: float | None = None,
        at: Sequence[datetime] = (),
        queue: str | None = None,
        **spec: Any,
    ) -> Schedule:
        """Define a schedule: `cron`, `interval` (seconds) or `at`; else as `ScheduleSpec`."""
        handler = self._local.handlers.get(task)
        defaults = handler.defaults if handler is not None else {}
        template = JobTemplate(
            check_name(task, "/job/task"),
            args_of(args),
            check_name(queue or defaults.get("queue", "default"), "/job/queue"),
            defaults.get("priority"),
            defaults.get("max_attempts"),
            defaults.get("options", NO_OPTIONS),
            tuple(defaults.get("tags", ())),
        )
        if handler is not None:
            self._local.serve_queue(template.queue)
        definition = ScheduleSpec(
            template=template,
            cron=(cron,) if isinstance(cron, str) else tuple(cron),
            interval_ms=None if interval is None else round(interval * 1000),
            at=tuple(ms_of(instant, "/at") for instant in at),
            **spec,
        )
        schedule, _ = await self.schedules.put(schedule_id, definition)
        return schedule

    def snapshot(self) -> Snapshot:
        """Return how things stand, from memory: what gauges show."""
        return snapshot(self._kernel)

    def not_ready(self) -> str | None:
        """Return why this scheduler makes no progress, in a line; None if it does."""
        kernel = self._kernel
        if kernel.draining:
            return "shutting down"
        failed = [each.get_name() for each in self._parts if each.done() and not each.cancelled()]
        if failed or not self._parts:
            return f"not running: {', '.join(failed) or 'not started'}"
        if self._ownership.skew_ms:
            return f"this clock and the store's are {abs(self._ownership.skew_ms)} ms apart"
        silent_ms = self.clock.monotonic_ms() - self._sweeper.progress_ms
        if silent_ms > _PROGRESS_MS or not kernel.owns_time():
            return "the store does not answer"
        if not kernel.residents.shards:
            return "standing by: other schedulers own all shards"
        if not self._loader.loaded():
            return "loading"
        return None

    def _ended(self, part: asyncio.Task[None]) -> None:
        """Let go of the shards if a part has failed: somebody else may fire what is in them."""
        report_failure(part)
        if not part.cancelled():
            self.failed.set()
            for each in self._parts:
                each.cancel()

    async def _maintain(self) -> None:
        while True:
            try:
                kernel = self._kernel
                if kernel.residents.shards and kernel.neighbours.eldest in ("", kernel.boot_id):
                    await self.store.maintain(self.clock.now_ms())
                await asyncio.sleep(_MAINTAIN_MS / 1000)
            except Unavailable:
                await asyncio.sleep(_RETRY_MS / 1000)

    def _job_ended(self, lease: Lease) -> None:
        self._gate.ended(lease)

    def _hear(self, hint: str) -> None:
        """Do what another scheduler's hint asks for (`core.hints`)."""
        word, _, rest = hint.partition(" ")
        if word == "jobs":
            self._sweeper.hear(jobs_of(hint))
        elif word == "queues":
            self._sweeper.hear_of_queues()
        elif word == "schedule":
            self._ticker.forget(rest)
        elif word == "shards":
            self._ownership.hear_of_shards()
        elif word == "missed":
            self._sweeper.recover.set()
