"""The server's commands: serve, keys, migrate, demo. Added to the root by an entry point.

Those beside `serve` work on the database itself: they need no running scheduler, and with the
embedded Postgres they use the server of one that runs, or start it for the moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from tickwheel.client.cli_options import DURATION, as_json, log_level, option
from tickwheel.client.cli_output import Output, fields
from tickwheel.client.errors import InvalidArgument
from tickwheel.core.clock import SystemClock
from tickwheel.core.errors import NotFound
from tickwheel.core.names import NAME, is_name

from .scopes import SCOPES

if TYPE_CHECKING:
    from tickwheel.core.ports_cluster import ApiKey
    from tickwheel.storage import PostgresStore

SCHEMA = "tickwheel"
ACTOR = "command line"
EXPIRY_SECONDS_MAX = 100 * 366 * 86_400
LAST_STAMP = datetime(9999, 1, 1, tzinfo=UTC)
"""The last year of all dates has begun: what is later can't be shown in every zone."""

T = TypeVar("T")


def register(root: click.Group) -> None:
    """Add the server's commands to the root of the command line."""
    for command in (serve, keys, migrate, demo):
        root.add_command(command)


def database(command: Any) -> Any:
    """Add the options that say where the database is."""
    for add in (
        option("--schema", default=SCHEMA, show_default=True, help="The schema in the database."),
        option(
            "--data-dir",
            type=click.Path(file_okay=False, path_type=Path),
            help="Where the embedded Postgres keeps its data.",
        ),
        option("--dsn", help="A Postgres of your own, postgresql://…; else an embedded one runs."),
    ):
        command = add(command)
    return command


def chosen(dsn: str | None, data_dir: Path | None) -> tuple[str | None, Path | None]:
    """Return the DSN or the data directory; what the command line says stands over the environment.

    Raises `click.UsageError` if both are given there.
    """
    context = click.get_current_context()

    def typed(name: str) -> bool:
        return context.get_parameter_source(name) is ParameterSource.COMMANDLINE

    if typed("dsn") and typed("data_dir"):
        raise click.UsageError("give --dsn or --data-dir, not both")
    if dsn is not None and not typed("data_dir"):
        return dsn, None
    return None, data_dir


@click.command(short_help="Run a scheduler.")
@option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any.")
@database
@option(
    "--pool-size", type=click.IntRange(1, 100), default=8, show_default=True, help="Connections."
)
@option("--replica-dsn", help="A hot standby of it, which takes loads and lists.")
@option("--insecure", is_flag=True, help="Serve beyond loopback without API keys.")
@option(
    "--tls-cert",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Speak HTTPS, with this certificate (PEM, with its chain).",
)
@option(
    "--tls-key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Its key, if that is in another file.",
)
@option("--advertise-url", help="Where workers reach this scheduler, if not at host and port.")
@option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Schedulers, on ports from --port on; they share the work.",
)
@log_level
def serve(dsn: str | None, data_dir: Path | None, **options: Any) -> None:
    """Run a scheduler until SIGTERM or Ctrl-C; prints `listening on …` once it is ready.

    Without --dsn it runs a Postgres of its own, with its data in --data-dir.
    """
    from tickwheel.client.transport import base_url

    from .serve import ServeOptions, run

    dsn, data_dir = chosen(dsn, data_dir)
    if options["advertise_url"] and options["processes"] > 1:
        raise click.UsageError("--advertise-url is for one scheduler, not for several --processes")
    if options["advertise_url"]:
        base_url(options["advertise_url"])
    run(ServeOptions(dsn=dsn, data_dir=data_dir, **options))


@click.group(short_help="Make, list, revoke API keys.")
def keys() -> None:
    """Look after the API keys, in the database itself."""


@keys.command()
@click.argument("name")
@option(
    "--scope", "scopes", type=click.Choice(SCOPES), multiple=True, help="Repeatable; default: all."
)
@option(
    "--queue",
    "queues",
    multiple=True,
    envvar="TICKWHEEL_KEY_QUEUES",
    help="Only for this queue; repeatable.",
)
@option("--expires-in", type=DURATION, help="Such as 90d; default: never.")
@database
@as_json
def create(
    name: str,
    scopes: tuple[str, ...],
    queues: tuple[str, ...],
    expires_in: float | None,
    out: Output,
    **where: Any,
) -> None:
    """Make a key and print its token, which is shown this once and stored nowhere."""
    from .auth import new_key

    if expires_in is not None and expires_in > EXPIRY_SECONDS_MAX:
        raise InvalidArgument("--expires-in takes up to 100 years")
    for queue in queues:
        if not is_name(queue):
            raise InvalidArgument(f"--queue {queue!r}: a name is {NAME}")
    now_ms = SystemClock().now_ms()
    expires_at_ms = None if expires_in is None else now_ms + round(expires_in * 1000)
    key, token = new_key(name, scopes or SCOPES, queues or None, now_ms, expires_at_ms)

    async def work(store: PostgresStore) -> bool:
        first = not await store.keys()
        await store.put_key(key)
        await store.audit(ACTOR, "key.create", key.id, now_ms)
        return first

    if on_store(work, **where):
        out.warn("the first key: from now on every request needs one, workers' included")
    if not out.as_json:
        out.warn(f"key {key.id} is made; its token is shown only now:")
    out.done(token, {**_resource(key), "token": token})


@keys.command("list")
@database
@as_json
def list_keys(out: Output, **where: Any) -> None:
    """List the keys, revoked ones too."""
    stored = on_store(lambda store: store.keys(), make=False, **where)
    names = ("id", "name", "scopes", "queues", "created_at", "expires_at", "revoked_at")
    out.items([_resource(key) for key in stored], fields(names))


@keys.command()
@click.argument("key_id")
@database
@as_json
def revoke(key_id: str, out: Output, **where: Any) -> None:
    """Revoke a key; running schedulers refuse it within a minute."""

    async def work(store: PostgresStore) -> ApiKey:
        key: ApiKey | None = await store.get_key(key_id)
        if key is None:
            raise NotFound(f"no key has the id {key_id}: `keys list` shows the ids")
        if key.revoked_at_ms is None:
            now_ms = SystemClock().now_ms()
            key = key._replace(revoked_at_ms=now_ms)
            await store.put_key(key)
            await store.audit(ACTOR, "key.revoke", key_id, now_ms)
        return key

    key = on_store(work, make=False, **where)
    out.done(f"{key_id} is revoked", _resource(key))


@click.command(short_help="Bring the database's schema up to date.")
@database
@as_json
def migrate(out: Output, schema: str, **where: Any) -> None:
    """Bring the schema up to date. `serve` does so too; several at once are safe."""

    async def work(store: PostgresStore) -> int:
        return await store.check()

    on_store(work, schema=schema, **where)
    out.done(f"the schema {schema} is up to date", {"schema": schema, "up_to_date": True})


@click.command(
    short_help="See it all run, with a database of its own.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.pass_context
def demo(context: click.Context) -> None:
    """Run the demonstration, whose options are its own."""
    from .demo import demo as command

    status = command.main(args=context.args, prog_name="tickwheel demo", standalone_mode=False)
    context.exit(status if isinstance(status, int) else 0)


def on_store(
    work: Callable[[PostgresStore], Awaitable[T]],
    *,
    dsn: str | None,
    data_dir: Path | None,
    schema: str,
    make: bool = True,
) -> T:
    """Return what `work` does on the store, opened for it.

    Says on standard error which embedded database that is. `make`: whether it may be a new one.
    """
    dsn, data_dir = chosen(dsn, data_dir)

    async def main() -> T:
        from tickwheel.storage import PostgresStore

        async with _reachable(dsn, data_dir, make) as reached:
            store = PostgresStore(reached, schema=schema, pool_size=1)
            try:
                await store.open()
                return await work(store)
            finally:
                await store.close()

    return asyncio.run(main())


@asynccontextmanager
async def _reachable(dsn: str | None, data_dir: Path | None, make: bool) -> AsyncIterator[str]:
    """Yield the DSN; an embedded server runs already, or for as long as it is needed."""
    if dsn is not None:
        yield dsn
        return
    from tickwheel.storage.embedded import EmbeddedPostgres, running_dsn

    found = running_dsn(data_dir)
    postgres = EmbeddedPostgres(data_dir)
    if found is None and not postgres.exists() and not make:
        raise NotFound(f"there is no database in {postgres.data_dir}: give --data-dir or --dsn")
    known = "" if found is not None or postgres.exists() else "new "
    click.echo(f"the {known}database in {postgres.data_dir}", err=True)
    if found is not None:
        yield found
        return
    started = await postgres.start()
    try:
        yield started
    finally:
        await postgres.stop()


def _resource(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "queues": None if key.queues is None else sorted(key.queues),
        "created_at": _stamp(key.created_at_ms),
        "expires_at": _stamp(key.expires_at_ms),
        "revoked_at": _stamp(key.revoked_at_ms),
    }


def _stamp(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    seconds = min(at_ms / 1000, LAST_STAMP.timestamp())
    return datetime.fromtimestamp(seconds, UTC).isoformat()
