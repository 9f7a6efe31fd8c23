"""The composition root: store, scheduler, application and socket, from start to drained stop.

The order is what makes errors short and stops clean. The port is bound first, so that a taken one
is told before a database is touched; it listens last, when the scheduler is ready. On the way
down the scheduler drains while the connections still live, so every caller gets an answer: new
work a 503, waiting polls an empty one, reports their commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tickwheel.core.errors import TickwheelError
from tickwheel.core.ports import Store
from tickwheel.core.scheduler import Scheduler
from tickwheel.core.settings import Settings

from .app import build_app, make_runner
from .auth import is_loopback
from .metrics import ServerMetrics
from .stalls import StallWatch

LOG = logging.getLogger("tickwheel.server")

READY_SECONDS_MAX = 10.0
READY_POLL_SECONDS = 0.01
BACKLOG_MAX = 1024
HANDSHAKE_SECONDS_MAX = 10.0
"""How long a client may take to agree on TLS."""
GC_THRESHOLDS = (50_000, 20, 20)
"""Seldom: what a running job needs goes by itself, and to look at it thousands at a time took a
sixth of the process. Jobs that stay are shown to the collector as they come (`core.residents`).
"""
EXIT_CANNOT_START = 2
EXIT_FORCED = 1
EXIT_FAILED = 1


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve. Without `dsn` an embedded Postgres runs in `data_dir` (None: the default).

    `replica_dsn`: a hot standby of it, to take loads and lists.

    `insecure` allows a host other than loopback while there are no API keys. Port 0: any free one.
    `advertise_url` is where workers reach this scheduler, if not at host and port. `processes`: how
    many schedulers, on ports that follow one another. `tls_cert`: a PEM file with the certificate
    and its chain, `tls_key` with its key if that is in another; with them it speaks HTTPS only.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    dsn: str | None = None
    data_dir: Path | None = None
    replica_dsn: str | None = None
    schema: str = "tickwheel"
    pool_size: int = 8
    insecure: bool = False
    advertise_url: str | None = None
    processes: int = 1
    tls_cert: Path | None = None
    tls_key: Path | None = None
    settings: Settings = field(default_factory=Settings)


class Failed(Exception):
    """A part of the scheduler has failed; the log says how. Whoever looks after it starts it again."""


class CannotStart(Exception):
    """The server can't start; the text is one line for the person who tried."""


def run(options: ServeOptions) -> None:
    """Serve on a loop of its own until SIGTERM or SIGINT; `SystemExit(2)` if it can't start."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            if options.processes > 1:
                from .processes import supervise

                runner.run(supervise(options, options.processes))
            else:
                runner.run(serve(options))
    except CannotStart as error:
        print(f"tickwheel: {error}", file=sys.stderr)
        raise SystemExit(EXIT_CANNOT_START) from None
    except Failed as failed:
        print(f"tickwheel: {failed}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None


async def serve(options: ServeOptions, *, store: Store | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return; a second signal exits at once.

    Prints `listening on http://host:port` when it is ready. `store` replaces the one that the
    options name. Raises `CannotStart`, or `Failed` when a part of the scheduler does.
    """
    with signals() as stopping:
        async with contextlib.AsyncExitStack() as stack:
            tls = tls_context(options.tls_cert, options.tls_key)
            sock = _bind(options.host, options.port)
            stack.callback(sock.close)
            try:
                scheduler = await _start(options, store, sock, tls, stack, stopping)
            except TickwheelError as error:
                raise CannotStart(error.detail) from error
            if not stopping.is_set():
                gc.collect()
                gc.freeze()
                gc.set_threshold(*GC_THRESHOLDS)
                print(f"listening on {_url(options.host, sock, tls)}", flush=True)
            await _first(stopping, scheduler.failed)
            LOG.info("stopping: what runs here is handed on; the signal again ends it at once")
        if scheduler.failed.is_set():
            raise Failed("a part of the scheduler has failed: its log says how, please report it")


async def _start(
    options: ServeOptions,
    store: Store | None,
    sock: socket.socket,
    tls: ssl.SSLContext | None,
    stack: contextlib.AsyncExitStack,
    stopping: asyncio.Event,
) -> Scheduler:
    if store is None:
        store = await _make_store(options, stack)
    metrics = ServerMetrics()
    url = options.advertise_url or _url(_reachable(options.host), sock, tls)
    scheduler = Scheduler(store, settings=options.settings, metrics=metrics, url=url)
    loopback = is_loopback(options.host)
    app = build_app(scheduler, metrics=metrics, loopback_only=loopback)
    runner = make_runner(app)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    listening = stack.enter_context(contextlib.ExitStack())
    stack.push_async_callback(store.close)
    await scheduler.start()
    stack.push_async_callback(scheduler.stop)
    if not await store.keys():
        if not (loopback or options.insecure):
            raise CannotStart(
                f"no API key exists, so only loopback is served and not {options.host}: "
                "make one with `tickwheel keys create`, or say --insecure"
            )
        print(f"no API key exists: open to everyone who reaches {options.host}", file=sys.stderr)
    await _until_ready(scheduler, stopping)
    stalls = StallWatch(metrics.stall)
    stalls.start()
    stack.callback(stalls.stop)
    _listen(sock)
    assert runner.server is not None
    # Not by a site of aiohttp's, which waits a minute for whoever connects and says nothing.
    server = await asyncio.get_running_loop().create_server(
        runner.server,
        sock=sock,
        ssl=tls,
        backlog=BACKLOG_MAX,
        ssl_handshake_timeout=None if tls is None else HANDSHAKE_SECONDS_MAX,
    )
    listening.callback(server.close)
    return scheduler


async def _make_store(options: ServeOptions, stack: contextlib.AsyncExitStack) -> Store:
    from tickwheel.storage import PostgresStore

    dsn = options.dsn
    if dsn is None:
        dsn = await embedded(options.data_dir, stack)
    return PostgresStore(
        dsn,
        schema=options.schema,
        pool_size=options.pool_size,
        replica_dsn=options.replica_dsn,
    )


async def embedded(data_dir: Path | None, stack: contextlib.AsyncExitStack) -> str:
    """Start the embedded Postgres for as long as the stack lasts; return its DSN."""
    try:
        from tickwheel.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError
    except ImportError:
        raise CannotStart(
            "no --dsn, and no embedded Postgres: pip install 'tickwheel[embedded]'"
        ) from None
    postgres = EmbeddedPostgres(data_dir)
    try:
        dsn = await postgres.start()
    except EmbeddedPostgresError as error:
        raise CannotStart(str(error)) from error
    print(f"Postgres in {postgres.data_dir}", file=sys.stderr)
    stack.push_async_callback(postgres.stop)
    return dsn


async def _until_ready(scheduler: Scheduler, stopping: asyncio.Event) -> None:
    """Wait for the scheduler's first load; one that waits for another's shards serves anyway."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_SECONDS_MAX):
            while scheduler.not_ready() is not None and not stopping.is_set():  # noqa: ASYNC110
                await asyncio.sleep(READY_POLL_SECONDS)


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise CannotStart(f"can't listen on {host}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise CannotStart(f"can't listen on {host}:{port}: {error.strerror}") from error
    return sock


def _listen(sock: socket.socket) -> None:
    """Listen. Another process may have been faster: until one of them listens both can bind."""
    try:
        sock.listen(BACKLOG_MAX)
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise CannotStart(f"can't listen on {host}:{port}: {error.strerror}") from error


def _reachable(host: str) -> str:
    """Return a name for this machine where the host means every address."""
    return socket.getfqdn() if host in ("", "0.0.0.0", "::") else host


def tls_context(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return what to speak TLS 1.2 or newer with; None without a certificate. Raises CannotStart."""
    if cert is None:
        if key is not None:
            raise CannotStart("--tls-key needs --tls-cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or getattr(error, "reason", None) or error
        raise CannotStart(f"the certificate {cert} with its key: {reason}") from error
    return context


def _url(host: str, sock: socket.socket, tls: ssl.SSLContext | None) -> str:
    scheme, port = "http" if tls is None else "https", sock.getsockname()[1]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@contextlib.contextmanager
def signals(forced: Callable[[], None] | None = None) -> Iterator[asyncio.Event]:
    """Yield what SIGTERM or SIGINT sets; a second one calls `forced`, and ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set():
            if forced is not None:
                forced()
            os._exit(EXIT_FORCED)
        stopping.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stopping
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop
