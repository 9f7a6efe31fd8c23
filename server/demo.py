"""The command `demo`: all of it for real, in half a minute, with an account that must balance.

A Postgres of its own, a server and two worker processes; thousands of jobs on time, schedules,
retries, dead letters, a redrive, and a `kill -9` of a worker that holds leases. In the end three
independent counts are compared (`demo_check`). The status is 0 only if every line adds up.

    demo_house  processes and folder     demo_plan    what is offered      demo_story  what happens
    demo_worker what the workers run     demo_ledger  what they wrote      demo_view   what is shown
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
import orjson

from tickwheel.client import Client
from tickwheel.client.cli_options import DURATION, option
from tickwheel.client.cli_root import Failure
from tickwheel.client.errors import ClientError
from tickwheel.core.clock import SystemClock

from .demo_check import Evidence, check, measure
from .demo_house import DemoError, open_house
from .demo_plan import JOBS_MAX, JOBS_MIN, SECONDS_MAX, SECONDS_MIN
from .demo_story import Story
from .demo_view import View

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@option(
    "--jobs",
    type=click.IntRange(JOBS_MIN, JOBS_MAX),
    default=20_000,
    show_default=True,
    help="How many jobs to submit.",
)
@option("--seconds", type=DURATION, default="10s", show_default=True, help="Due over that long.")
@option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Where the server listens; any free port unless given.",
)
@option("--keep", is_flag=True, help="Keep the folder: database, ledgers, logs.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the figures as JSON, and nothing else."
)
def demo(jobs: int, seconds: float, port: int, keep: bool, as_json: bool) -> None:
    """See it all run, with a database of its own, and check every figure.

    The status is 0 if all adds up, 1 if not, 4 if the port is taken, 5 if there is no room for
    temporary files, 6 if no Postgres can be started here, and 128 + the signal that stopped it.
    """
    if not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise click.BadParameter(
            f"between {SECONDS_MIN:g} and {SECONDS_MAX:g} seconds", param_hint="--seconds"
        )
    view = View(SystemClock(), quiet=as_json)
    try:
        seen, folder = _interruptible(_play(view, jobs, seconds, port, keep))
    except DemoError as error:
        raise Failure(str(error), error.exit_code) from error
    _conclude(view, seen, folder if keep else None, as_json)


async def _play(
    view: View, jobs: int, seconds: float, port: int, keep: bool
) -> tuple[Evidence, Path]:
    """Start everything, let the story run, and end everything; a child that dies ends it all."""
    async with open_house(port, keep, view.tell) as house, Client(house.url) as client:
        story = Story(house, client, SystemClock(), view.tell)
        with view.live(house.url):
            told = asyncio.create_task(_tell(story, jobs, seconds))
            watchers = [
                asyncio.create_task(child.watch()) for child in (house.server, *house.workers)
            ]
            watchers.append(asyncio.create_task(view.keep_fresh(story, client)))
            try:
                await _first_error(told, watchers)
            finally:
                for task in (told, *watchers):
                    task.cancel()
                await asyncio.gather(told, *watchers, return_exceptions=True)
    return told.result(), house.folder


async def _tell(story: Story, jobs: int, seconds: float) -> Evidence:
    try:
        return await story.run(jobs, seconds)
    except ClientError as error:
        raise DemoError(f"the server: {error}") from error


async def _first_error(told: asyncio.Task[Evidence], watchers: list[asyncio.Task[None]]) -> None:
    """Wait until the story is told, or something beside it goes wrong."""
    waiting: set[asyncio.Task[Any]] = {told, *watchers}
    while not told.done():
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


def _interruptible(work: Coroutine[Any, Any, tuple[Evidence, Path]]) -> tuple[Evidence, Path]:
    """Run it; a signal cancels it once, and what it has started is ended in order."""
    received: list[int] = []

    async def main() -> tuple[Evidence, Path]:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)

        def on_signal(number: int) -> None:
            if not received:
                task.cancel()
            received.append(number)

        for number in STOPPING:
            loop.add_signal_handler(number, on_signal, number)
        return await task

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        name = signal.Signals(received[0]).name
        raise Failure(f"stopped by {name}", 128 + received[0]) from None


def _conclude(view: View, seen: Evidence, kept: Path | None, as_json: bool) -> None:
    """Print the figures; raise `Failure` if a line doesn't add up."""
    lines = check(seen)
    measures = measure(seen)
    wrong = [line for line in lines if not line.adds_up]
    if as_json:
        document: dict[str, Any] = {
            "ok": not wrong,
            "lines": {line.name: {**line._asdict(), "adds_up": line.adds_up} for line in lines},
            **measures._asdict(),
            "folder": None if kept is None else str(kept),
        }
        click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        view.result(lines, measures)
    if wrong:
        counts = "; ".join(
            f"{line.name}: expected {line.expected}, ledger {line.ledger}, server {line.server}"
            for line in wrong
        )
        hint = "" if kept else " (--keep keeps the ledgers and logs)"
        raise Failure(f"it doesn't add up: {counts}{hint}")
    if not as_json:
        click.echo("every line adds up")
