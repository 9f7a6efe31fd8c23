"""The commands about jobs: submit, list, show, cancel, reschedule, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from .cli_options import DURATION, INSTANT, JSON_OBJECT, each, option, remote
from .cli_output import Output, collect, fields, waiting, when

if TYPE_CHECKING:
    from .client import Client

STATES = ("scheduled", "running", "succeeded", "dead", "cancelled", "expired")
LIST_LIMIT = 50
COLUMNS = fields(("id", "state", "task", "queue", "priority", "attempt", "run_at", "finished_at"))


@click.command(short_help="Submit a job.")
@click.argument("task")
@click.argument("args", metavar="[ARGS-JSON]", type=JSON_OBJECT, required=False)
@option("--queue", help="Its queue.")
@option("--delay", type=DURATION, help="Run it this much later, such as 90s or 2h.")
@option("--run-at", type=INSTANT, help="Run it then; local time unless a zone is given.")
@option("--priority", type=click.IntRange(0, 9), help="Lower runs first.")
@option("--max-attempts", type=click.IntRange(1, 100), help="The budget of attempts.")
@option("--task-timeout", type=DURATION, help="How long one attempt may run.")
@option("--idempotency-key", help="Repeats with this key are one job.")
@option("--tag", "tags", multiple=True, help="A tag to find it by; repeatable.")
@option("--wait", is_flag=True, help="Wait for its end; status 1 unless it succeeds.")
@option("--wait-timeout", type=DURATION, help="Wait no longer than that.")
@remote
async def submit(
    client: Client,
    out: Output,
    task: str,
    args: dict[str, Any] | None,
    wait: bool,
    wait_timeout: float | None,
    task_timeout: float | None,
    tags: tuple[str, ...],
    **options: Any,
) -> None:
    """Submit a job of TASK with ARGS-JSON, an object; `-` reads it from stdin, `@file` from a file."""
    if options["delay"] is not None and options["run_at"] is not None:
        raise click.UsageError("give --delay or --run-at, not both")
    job: Mapping[str, Any] = await client.submit(
        task, args, timeout_seconds=task_timeout, tags=list(tags) or None, **options
    )
    if not wait:
        out.done(f"{job['id']} runs at {when(job.get('run_at'))}", job)
        return
    with waiting(f"waiting for {job['id']}"):
        job = await client.wait(str(job["id"]), timeout_seconds=wait_timeout)
    out.item(shown(job, out))
    out.failed = job["state"] != "succeeded"
    out.finish()


@click.group(short_help="List, show, cancel, move jobs.")
def jobs() -> None:
    """Look at jobs, and change their course."""


@jobs.command("list")
@option("--state", type=click.Choice(STATES), help="Only those in this state.")
@option("--queue", help="Only those in this queue.")
@option("--task", help="Only those of this task.")
@option("--tag", help="Only those with this tag.")
@option("--limit", type=click.IntRange(1), default=LIST_LIMIT, show_default=True, help="At most.")
@remote
async def list_jobs(client: Client, out: Output, limit: int, **where: Any) -> None:
    """List jobs, newest first."""
    with waiting("reading"):
        found = await collect(client.list_jobs(limit=limit, **where))
    out.items(found, COLUMNS)


@jobs.command()
@click.argument("job_id")
@remote
async def show(client: Client, out: Output, job_id: str) -> None:
    """Show all of one job."""
    out.item(shown(await client.get(job_id), out))


@jobs.command()
@click.argument("job_ids", nargs=-1, required=True)
@remote
async def cancel(client: Client, out: Output, job_ids: tuple[str, ...]) -> None:
    """Cancel jobs; running ones are asked to stop."""
    changed(await each(job_ids, client.cancel, out), out)


@jobs.command()
@click.argument("job_ids", nargs=-1, required=True)
@remote
async def run(client: Client, out: Output, job_ids: tuple[str, ...]) -> None:
    """Make waiting jobs due now."""
    changed(await each(job_ids, client.run_now, out), out)


@jobs.command()
@click.argument("job_id")
@click.argument("run_at", type=INSTANT)
@remote
async def reschedule(client: Client, out: Output, job_id: str, run_at: datetime) -> None:
    """Move a waiting job to RUN_AT."""
    job = await client.reschedule(job_id, run_at)
    out.done(f"{job['id']} runs at {when(job.get('run_at'))}", job)


def changed(done: Sequence[Mapping[str, Any]], out: Output) -> None:
    """Print the jobs that were changed, and end with status 1 if some were not."""
    if done or out.as_json:
        out.items(done, COLUMNS)
    out.finish()


def shown(job: Mapping[str, Any], out: Output) -> Mapping[str, Any]:
    """Return the job with its instants in local time and its error to read, unless JSON is wanted."""
    if out.as_json:
        return job
    told = {name: when(v) if name.endswith("_at") else v for name, v in job.items()}
    if (error := job.get("error")) is not None:
        trace = str(error.get("traceback") or "").strip()
        told["error"] = f"{error['type']}: {error['message']}" + (f"\n{trace}" if trace else "")
    return told
