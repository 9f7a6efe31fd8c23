"""What all tests share: `async def` tests, an event loop per test, and one Postgres per process.

An `async def` test runs on the loop of the `runner` fixture, where its fixtures have already
opened what it needs, and which is closed, with all its tasks ended, before the next test.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import Iterator

import pytest
from embedded_kit import embedded_postgres

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background began us: what waits for Ctrl-C, here or in a child, would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of one test and its fixtures."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests to their end."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    runner = pyfuncitem.funcargs.get("runner")
    if isinstance(runner, asyncio.Runner):
        runner.run(test)
    else:
        asyncio.run(test)
    return True


@pytest.fixture(scope="session")
def postgres_dsn() -> Iterator[str]:
    """The DSN of a server of this process's own, stopped at the end. Use a schema of your own."""
    with embedded_postgres() as dsn:
        yield dsn
