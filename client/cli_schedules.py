"""The commands about schedules."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import click

from tickwheel.core.plan import PREVIEW_MAX

from .cli_jobs import shown
from .cli_options import DEFINITION, DURATION, INSTANT, JSON_OBJECT, option, remote
from .cli_output import Column, Output, collect, fields, when

if TYPE_CHECKING:
    from .client import Client

PREVIEW_COUNT = 10


@click.group(short_help="Define and steer recurring jobs.")
def schedules() -> None:
    """Define what runs when, again and again."""


@schedules.command("list")
@option("--limit", type=click.IntRange(1), help="At most so many.")
@remote
async def list_schedules(client: Client, out: Output, limit: int | None) -> None:
    """List schedules by id."""
    columns = [
        *fields(("id",)),
        ("task", lambda item: item["job"].get("task")),
        ("queue", lambda item: item["job"].get("queue")),
        ("when", _recurrence),
        *fields(("timezone", "paused")),
        ("next", lambda item: when(next(iter(item.get("next_fire_times") or ()), None))),
    ]
    out.items(await collect(client.schedules.list(limit=limit)), columns)


@schedules.command()
@click.argument("schedule_id")
@remote
async def show(client: Client, out: Output, schedule_id: str) -> None:
    """Show all of one schedule."""
    out.item(shown(await client.schedules.get(schedule_id), out))


@schedules.command()
@click.argument("schedule_id")
@click.argument("definition", metavar="[DEFINITION-JSON]", type=DEFINITION, required=False)
@option("--task", help="What to run.")
@option("--args", type=JSON_OBJECT, help="Its arguments, a JSON object.")
@option("--queue", help="The queue of its jobs.")
@option("--cron", multiple=True, help="Such as '0 9 * * mon-fri'; repeatable.")
@option("--interval", type=DURATION, help="Such as 90s or 2h.")
@option("--at", type=INSTANT, multiple=True, help="One moment; repeatable.")
@option("--timezone", help="Of the cron expression, such as Europe/Berlin.")
@option("--misfire", type=click.Choice(("skip", "fire_once", "fire_all")), help="After downtime.")
@option("--catchup-window", type=DURATION, help="How far back a misfire is made up for.")
@option(
    "--overlap",
    type=click.Choice(("allow", "skip", "buffer_one", "cancel_other")),
    help="If the last job still runs.",
)
@option("--jitter", type=DURATION, help="Spread each fire time over that much.")
@option("--start-at", type=INSTANT, help="Not before then.")
@option("--end-at", type=INSTANT, help="Not after then.")
@remote
async def put(
    client: Client,
    out: Output,
    schedule_id: str,
    definition: dict[str, Any] | None,
    **options: Any,
) -> None:
    """Make the schedule, or make it like this: from options, over DEFINITION-JSON if it is given.

    The JSON is that of the API; `-` reads it from stdin, `@file` from a file.
    """
    schedule = await client.schedules.put(schedule_id, _definition(definition or {}, options))
    fires = when(next(iter(schedule.get("next_fire_times") or ()), None))
    out.done(f"{schedule_id}: next at {fires}" if fires else f"{schedule_id}: never", schedule)


@schedules.command()
@click.argument("schedule_id")
@remote
async def delete(client: Client, out: Output, schedule_id: str) -> None:
    """Delete it, with those of its jobs that have not started."""
    await client.schedules.delete(schedule_id)
    out.done(f"{schedule_id} is deleted", {"id": schedule_id, "deleted": True})


@schedules.command()
@click.argument("schedule_id")
@option("--reason", help="Why, for whoever finds it paused.")
@remote
async def pause(client: Client, out: Output, schedule_id: str, reason: str | None) -> None:
    """Fire no more until it is resumed."""
    out.done(f"{schedule_id} is paused", await client.schedules.pause(schedule_id, reason))


@schedules.command()
@click.argument("schedule_id")
@remote
async def resume(client: Client, out: Output, schedule_id: str) -> None:
    """Go on from now."""
    out.done(f"{schedule_id} is resumed", await client.schedules.resume(schedule_id))


@schedules.command()
@click.argument("schedule_id")
@remote
async def trigger(client: Client, out: Output, schedule_id: str) -> None:
    """Submit one job of it now, beside its times."""
    job = await client.schedules.trigger(schedule_id)
    out.done(str(job["id"]), job)


@schedules.command()
@click.argument("schedule_id")
@option(
    "--count",
    type=click.IntRange(1, PREVIEW_MAX),
    default=PREVIEW_COUNT,
    show_default=True,
    help="How many.",
)
@remote
async def preview(client: Client, out: Output, schedule_id: str, count: int) -> None:
    """Show its next fire times, in its own time zone."""
    times = await client.schedules.preview(schedule_id, count)
    if out.as_json:
        out.done("", {"next_fire_times": times})
        return
    zone = ZoneInfo((await client.schedules.get(schedule_id)).get("timezone") or "UTC")
    column: Column = ("run_at", lambda item: when(item["run_at"], zone))
    out.items([{"run_at": moment} for moment in times], [column])


def _definition(base: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the definition of the API: `base`, with the options that were given in its place."""
    times: tuple[datetime, ...] = options["at"]
    given = {
        "cron": list(options["cron"]) or None,
        "interval_seconds": options["interval"],
        "at": [moment.isoformat() for moment in times] or None,
        "timezone": options["timezone"],
        "misfire": options["misfire"],
        "catchup_window_seconds": options["catchup_window"],
        "overlap": options["overlap"],
        "jitter_seconds": options["jitter"],
        "start_at": _text(options["start_at"]),
        "end_at": _text(options["end_at"]),
    }
    template = {name: options[name] for name in ("task", "args", "queue")}
    return {
        **base,
        **_told(given),
        "job": {**base.get("job", {}), **_told(template)},
    }


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _recurrence(schedule: Mapping[str, Any]) -> str:
    if schedule.get("cron"):
        cron = schedule["cron"]
        return cron if isinstance(cron, str) else " | ".join(cron)
    if schedule.get("interval_seconds"):
        return f"every {schedule['interval_seconds']:g}s"
    return f"at {len(schedule.get('at') or ())} times"
