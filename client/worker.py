"""The runtime for tasks written in Python: one declaration, served by `run`, `serve` or a context.

    worker = Worker("http://127.0.0.1:8080", queues={"email": 50, "reports": 2})

    @worker.task("send_email")
    async def send_email(ctx, user_id: int) -> None: ...

    if __name__ == "__main__":
        worker.run()

How it ends a job is in `client.outcome`, how it shares a task among handlers in `client.relay`,
what goes over the wire in `client.session`.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import itertools
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self, TypeAlias, TypeVar, overload

from . import environment
from .errors import InvalidArgument
from .handlers import Around, Handler
from .runtime import Runtime
from .transport import base_url

PROTOCOL = 1
NAME = r"[A-Za-z0-9_.-]{1,128}"
GC_THRESHOLDS = (50_000, 20, 50)
"""Jobs come by the hundred and go without cycles; by default they would be searched all the time."""

F = TypeVar("F", bound=Callable[..., Any])
Hook: TypeAlias = Callable[[], Awaitable[None] | None]


class Worker:
    """What this worker can do, and for which schedulers.

    `urls`: one scheduler or several, by default `TICKWHEEL_URL` (separated by commas). `api_key`:
    by default `TICKWHEEL_API_KEY`. `queues`: how many jobs of each queue run at once, async ones and
    threads alike. `grace_seconds`: how long running handlers may go on when the worker is told to
    stop.
    """

    def __init__(
        self,
        urls: str | Sequence[str] | None = None,
        queues: Mapping[str, int] | None = None,
        *,
        name: str | None = None,
        api_key: str | None = None,
        grace_seconds: float = 30.0,
    ) -> None:
        if urls is None:
            urls = environment.urls()
        self.urls = [base_url(url) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self.urls:
            raise InvalidArgument("a worker needs a scheduler's URL")
        self.queues = _checked({"default": 10} if queues is None else queues)
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self.api_key = environment.api_key(api_key)
        self.grace_seconds = grace_seconds
        self.handlers: dict[str, Handler] = {}
        self.arounds: list[Around] = []
        self._on_start: list[Hook] = []
        self._on_stop: list[Hook] = []
        self._runtime: Runtime | None = None
        self._serving: asyncio.Task[None] | None = None

    @overload
    def task(self, name: F) -> F: ...

    @overload
    def task(self, name: str | None = None) -> Callable[[F], F]: ...

    def task(self, name: F | str | None = None) -> F | Callable[[F], F]:
        """Declare a function as the code of the task `name`, by default the function's own name.

        If its first parameter is named `ctx` it gets the `Context` there; the job's args follow by
        name. Async functions run in the event loop, others in threads. What it returns is the
        job's result (JSON, up to 64 KiB); what it raises fails the attempt: `Retry` and `Fatal`
        say how, everything else is tried again by the job's policy.
        """
        if callable(name):
            return self.task()(name)

        def declare(function: F) -> F:
            task = name or function.__name__
            if task in self.handlers:
                raise ValueError(f"the task {task} is declared twice")
            self.handlers[task] = Handler(task, function)
            return function

        return declare

    def around(self, hook: Around) -> Around:
        """Declare `async def hook(ctx, call): return await call()` to run around every job."""
        self.arounds.append(hook)
        return hook

    def on_start(self, hook: Hook) -> Hook:
        """Declare a function, async or not, to call before the first job."""
        self._on_start.append(hook)
        return hook

    def on_stop(self, hook: Hook) -> Hook:
        """Declare a function, async or not, to call after the last job."""
        self._on_stop.append(hook)
        return hook

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal skips the grace.

        For the main thread of a process that does nothing else: takes uvloop if it is installed,
        and has the garbage collector look seldom, and not at what the process began with.
        """
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._run())

    async def serve(self) -> None:
        """Serve until `stop`. Cancelling it drains without the grace."""
        if self._runtime is not None:
            raise RuntimeError("the worker is serving already")
        self._runtime = Runtime(self)
        try:
            await self._runtime.run()
        finally:
            self._runtime = None

    def stop(self, *, now: bool = False) -> None:
        """Drain and end `serve`; `now` skips the grace. From the loop that serves."""
        if self._runtime is not None:
            self._runtime.stop(now=now)

    async def __aenter__(self) -> Self:
        self._serving = asyncio.create_task(self.serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        serving, self._serving = self._serving, None
        assert serving is not None
        if self._runtime is None:
            await asyncio.sleep(0)  # left before `serve` took its first step
        self.stop()
        await serving

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        signals = itertools.count()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            loop.add_signal_handler(number, lambda: self.stop(now=next(signals) > 0))
        try:
            await self.serve()
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def registration(self) -> dict[str, Any]:
        """Return what the worker tells a scheduler about itself."""
        return {
            "name": self.name,
            "queues": self.queues,
            "tasks": sorted(self.handlers),
            "protocol": PROTOCOL,
        }

    def served(self) -> str:
        """Return its queues with their slots and its tasks, as they are logged."""
        queues = ", ".join(f"{name} ({slots})" for name, slots in self.queues.items())
        return f"queues {queues}, the tasks {', '.join(sorted(self.handlers)) or '(none)'}"

    async def started(self) -> None:
        """Call the hooks for the start."""
        await _call(self._on_start)

    async def stopped(self) -> None:
        """Call the hooks for the end."""
        await _call(self._on_stop)


def _checked(queues: Mapping[str, int]) -> dict[str, int]:
    """Return the queues with their slots; raise ValueError if no worker can serve them."""
    if not isinstance(queues, Mapping):
        raise InvalidArgument(
            f"queues maps each name to its slots, like {{'mail': 5}}, not {queues!r}"
        )
    for name, slots in queues.items():
        if not (isinstance(name, str) and re.fullmatch(NAME, name)):
            raise InvalidArgument(f"queue {name!r}: a name is {NAME}")
        if not isinstance(slots, int) or slots < 1:
            raise InvalidArgument(f"queue {name}: {slots!r} is not a number of slots, at least one")
    if not queues:
        raise InvalidArgument("a worker needs queues, each with at least one slot")
    return dict(queues)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _call(hooks: Sequence[Hook]) -> None:
    for hook in hooks:
        answer = hook()
        if inspect.isawaitable(answer):
            await answer
