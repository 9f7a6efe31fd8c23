"""The commands about workers: run one, list them all."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from .cli_options import DURATION, log_level, option, remote
from .cli_output import Column, Output, fields, ranges, when
from .errors import InvalidArgument

if TYPE_CHECKING:
    from .client import Client
    from .worker import Worker


@click.group(short_help="Look at workers.")
def workers() -> None:
    """Look at the workers that the scheduler knows."""


@workers.command("list")
@remote
async def list_workers(client: Client, out: Output) -> None:
    """List the worker sessions."""
    names = ("worker_id", "name", "queues", "running", "held", "registered_at", "last_seen_at")
    out.items(await client.workers(), fields(names))


@click.command(short_help="Look at the schedulers.")
@remote
async def cluster(client: Client, out: Output) -> None:
    """List the schedulers on the database, and the shards of each."""
    found = await client.cluster()
    if out.as_json:
        out.item(found)
        return
    columns: list[Column] = [
        ("id", lambda each: f"{each['id']} (here)" if each["here"] else each["id"]),
        ("url", lambda each: each["url"]),
        ("started_at", lambda each: when(each["started_at"])),
        ("shards", lambda each: ranges([owned["shard"] for owned in each["shards"]])),
        ("since", lambda each: when(max((owned["since"] for owned in each["shards"]), default=""))),
    ]
    out.items(found["schedulers"], columns)
    if found["unowned"]:
        out.warn(f"nobody owns the shards {ranges(found['unowned'])}")


@click.command(short_help="Run a worker.")
@click.argument("target", metavar="MODULE:WORKER")
@option("--url", "urls", help="The scheduler; several are separated by commas.")
@option("--api-key", help="Its key, if it has keys.")
@option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME=SLOTS",
    envvar="TICKWHEEL_QUEUES",
    help="Jobs at once; repeatable.",
)
@option("--name", help="What the worker is called in lists.")
@option("--grace", type=DURATION, help="How long running jobs may go on after SIGTERM.")
@log_level
def worker(
    target: str,
    urls: str | None,
    api_key: str | None,
    queues: tuple[str, ...],
    name: str | None,
    grace: float | None,
) -> None:
    """Run the worker named WORKER in the Python module MODULE, until SIGTERM or Ctrl-C.

    The module is looked for in the current folder, too. Options stand over what the code says.
    """
    from .transport import base_url

    loaded = load(target)
    if urls is not None:
        loaded.urls = [base_url(url.strip()) for url in urls.split(",")]
    if queues:
        loaded.queues = dict(_slots(text) for text in queues)
    loaded.api_key = api_key or loaded.api_key
    loaded.name = name or loaded.name
    loaded.grace_seconds = loaded.grace_seconds if grace is None else grace
    loaded.run()


def load(target: str) -> Worker:
    """Return the worker that `module:name` names; raise `click.BadParameter` if there is none."""
    from .worker import Worker

    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise click.BadParameter("say module:worker", param_hint="MODULE:WORKER")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except InvalidArgument:
        raise  # such as TICKWHEEL_URL, which the worker reads where it is declared
    except Exception as error:
        if os.environ.get("TICKWHEEL_DEBUG"):
            raise
        what = f"can't import {module_name}: {type(error).__name__}: {error}"
        raise click.BadParameter(" ".join(what.split()), param_hint="MODULE:WORKER") from error
    found = getattr(module, name, None)
    if not isinstance(found, Worker):
        what = (
            f"is a {type(found).__name__}, no Worker" if hasattr(module, name) else "is not there"
        )
        where = getattr(module, "__file__", module_name)
        raise click.BadParameter(f"{name} {what} ({where})", param_hint="MODULE:WORKER")
    return found


def _slots(text: str) -> tuple[str, int]:
    name, _, slots = text.rpartition("=")
    if not name or not slots.isdigit() or int(slots) < 1:
        raise click.BadParameter(f"{text!r} is not NAME=SLOTS", param_hint="--queue")
    return name, int(slots)
