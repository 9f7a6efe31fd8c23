"""The commands about queues and dead letters."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from .cli_options import DURATION, option, remote
from .cli_output import Output, collect, fields, progress
from .errors import ClientError, NotFound

if TYPE_CHECKING:
    from .client import Client

LIST_LIMIT = 50
PAGE = 500
RATE_MAX = 1_000_000
_NOT_SETTABLE = ("name", "paused", "paused_reason")


@click.group(short_help="Look at queues, limit, pause, purge them.")
def queues() -> None:
    """Look at queues, and set their limits."""


@queues.command("list")
@remote
async def list_queues(client: Client, out: Output) -> None:
    """List the queues."""
    names = ("name", "paused", "max_depth", "max_running", "lease_seconds", "max_attempts")
    out.items(await client.queues.list(), fields(names))


@queues.command()
@click.argument("name")
@remote
async def show(client: Client, out: Output, name: str) -> None:
    """Show a queue's settings."""
    out.item(await client.queues.get(name))


@queues.command("set")
@click.argument("name")
@option("--max-depth", type=click.IntRange(1), help="Due jobs that may wait; more are refused.")
@option("--max-running", type=click.IntRange(0), help="Jobs that may run at once; 0 is any number.")
@option("--lease", type=DURATION, help="Silence of a worker after which an attempt is lost.")
@option("--max-attempts", type=click.IntRange(1, 100), help="Default of its jobs.")
@option("--priority", type=click.IntRange(0, 9), help="Default of its jobs.")
@option("--task-timeout", type=DURATION, help="Default of its jobs.")
@remote
async def set_queue(client: Client, out: Output, name: str, **options: Any) -> None:
    """Change a queue's limits and the defaults of its jobs; what isn't given stays."""
    try:
        before = await client.queues.get(name)
    except NotFound:
        before = {}
    settings = {key: value for key, value in before.items() if key not in _NOT_SETTABLE}
    for field, given in (
        ("max_depth", options["max_depth"]),
        ("max_running", options["max_running"]),
        ("lease_seconds", options["lease"]),
        ("max_attempts", options["max_attempts"]),
        ("priority", options["priority"]),
        ("timeout_seconds", options["task_timeout"]),
    ):
        if given is not None:
            settings[field] = given
    if options["max_running"] == 0:
        del settings["max_running"]
    out.item(await client.queues.put(name, settings))


@queues.command()
@click.argument("name")
@option("--reason", help="Why, for whoever finds it paused.")
@remote
async def pause(client: Client, out: Output, name: str, reason: str | None) -> None:
    """Send nothing more from the queue; what runs goes on."""
    out.done(f"{name} is paused", await client.queues.pause(name, reason))


@queues.command()
@click.argument("name")
@remote
async def resume(client: Client, out: Output, name: str) -> None:
    """Send again."""
    out.done(f"{name} is resumed", await client.queues.resume(name))


@queues.command()
@click.argument("name")
@click.confirmation_option(prompt="Cancel every waiting job of the queue?")
@remote
async def purge(client: Client, out: Output, name: str) -> None:
    """Cancel every waiting job of the queue."""
    purged = await client.queues.purge(name)
    out.done(f"{purged} jobs are cancelled", {"purged": purged})


@queues.command()
@click.argument("name")
@remote
async def stats(client: Client, out: Output, name: str) -> None:
    """Show a queue's depth, age and rates."""
    out.item({"name": name, **await client.queues.stats(name)})


@click.group(short_help="List, redrive, delete dead letters.")
def dead() -> None:
    """Look after jobs whose budget is spent."""


@dead.command("list")
@option("--queue", help="Only those of this queue.")
@option("--task", help="Only those of this task.")
@option("--limit", type=click.IntRange(1), default=LIST_LIMIT, show_default=True, help="At most.")
@remote
async def list_dead(client: Client, out: Output, limit: int, **where: Any) -> None:
    """List dead letters, latest first."""
    columns = [
        *fields(("id", "reason", "died_at")),
        ("task", lambda item: item["job"]["task"]),
        ("queue", lambda item: item["job"]["queue"]),
        ("attempts", lambda item: item["job"]["attempt"]),
        ("error", lambda item: (item["job"].get("error") or {}).get("message")),
    ]
    out.items(await collect(client.dead_letters.list(limit=limit, **where)), columns)


@dead.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All, instead of IDS or a filter.")
@option("--queue", help="Only those of this queue.")
@option("--task", help="Only those of this task.")
@option("--limit", type=click.IntRange(1), help="At most so many.")
@option("--rate", type=click.FloatRange(0, RATE_MAX, min_open=True), help="New jobs per second.")
@option("--dry-run", is_flag=True, help="Only say how many it would be.")
@remote
async def redrive(
    client: Client,
    out: Output,
    ids: tuple[str, ...],
    everything: bool,
    queue: str | None,
    task: str | None,
    limit: int | None,
    rate: float | None,
    dry_run: bool,
) -> None:
    """Make new jobs of dead letters: of those with IDS, of all that match, or of --all."""
    if bool(ids or queue or task) == everything:
        raise click.UsageError("give ids, --queue, --task or --all")
    if len(ids) > PAGE:
        raise click.UsageError(f"give at most {PAGE} ids")
    if math.isnan(rate or 0):  # which is in any range
        raise click.BadParameter("not a number", param_hint="'--rate'")
    chosen: dict[str, Any] = {
        "all": everything,
        "queue": queue,
        "filter": {"task": task} if task else None,
    }
    most = PAGE if limit is None else min(PAGE, limit)
    remaining: int | None
    if dry_run or ids:
        answer = await client.dead_letters.redrive(
            **chosen, ids=list(ids) or None, limit=most, rate_per_second=rate, dry_run=dry_run
        )
        done, remaining = answer["redriven"], answer["remaining"]
    else:
        letters = client.dead_letters.list(queue=queue, task=task, limit=limit)
        done = await _redriven(client, [letter["id"] async for letter in letters], rate)
        remaining = None
        with suppress(ClientError):  # what was done is to be told all the same
            answer = await client.dead_letters.redrive(**chosen, limit=1, dry_run=True)
            remaining = answer["remaining"]
    verb = "would be redriven" if dry_run else "redriven"
    out.done(
        f"{len(done)} {verb}, {'?' if remaining is None else remaining} remain",
        {"redriven": done, "remaining": remaining, "dry_run": dry_run},
    )
    out.failed = len(done) < min(len(ids), most)
    out.finish()


async def _redriven(client: Client, ids: Sequence[str], rate: float | None) -> list[dict[str, str]]:
    """Redrive the letters that there are now: what dies again meanwhile is not taken twice."""
    done: list[dict[str, str]] = []
    with progress("redriving", len(ids)) as advance:
        for start in range(0, len(ids), PAGE):
            if start and rate is not None:
                # The scheduler spreads one page; the pages follow each other at the same rate.
                await asyncio.sleep(PAGE / rate)
            page = ids[start : start + PAGE]
            answer = await client.dead_letters.redrive(ids=page, rate_per_second=rate)
            done += answer["redriven"]
            advance(len(page))
    return done


def _chosen_and_confirmed(command: Callable[..., None]) -> Callable[..., None]:
    """Add --yes to a command with ids or --all: it is asked for after a look at those."""

    @functools.wraps(command)
    def run(yes: bool, **options: Any) -> None:
        if options["everything"] == bool(options["ids"]):
            raise click.UsageError("give ids, or --all")
        if not yes:
            click.confirm("Delete them for good?", abort=True)
        command(**options)

    return click.option("--yes", is_flag=True, help="Confirm the action without prompting.")(run)


@dead.command()
@click.argument("ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that match, instead of IDS.")
@option("--queue", help="With --all: only those of this queue.")
@option("--task", help="With --all: only those of this task.")
@_chosen_and_confirmed
@remote
async def delete(
    client: Client,
    out: Output,
    ids: tuple[str, ...],
    everything: bool,
    queue: str | None,
    task: str | None,
) -> None:
    """Delete dead letters for good."""
    wanted = list(ids)
    if everything:
        letters = client.dead_letters.list(queue=queue, task=task)
        wanted = [letter["id"] async for letter in letters]
    deleted = 0
    with progress("deleting", len(wanted)) as advance:
        for start in range(0, len(wanted), PAGE):
            page = wanted[start : start + PAGE]
            deleted += await client.dead_letters.delete(page)
            advance(len(page))
    out.done(f"{deleted} deleted", {"deleted": deleted})
    out.failed = deleted < len(ids)
    out.finish()
