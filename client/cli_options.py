"""What commands share: options that also come from the environment, and their kinds of values."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import click
import orjson

from . import DEFAULT_URL
from .cli_output import Output
from .errors import InvalidArgument

RETRIES = 2
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd]?)")


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """Return `click.option` that reads TICKWHEEL_<NAME> too."""
    name = next(name for name in names if name.startswith("--"))[2:]
    settings.setdefault("envvar", f"TICKWHEEL_{name.replace('-', '_').upper()}")
    return click.option(*names, **settings)


def as_json(command: Callable[..., None]) -> Callable[..., None]:
    """Add --json to a command, which gets `out` instead."""

    @functools.wraps(command)
    def run(as_json: bool, **options: Any) -> None:
        command(out=Output(as_json), **options)

    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(run)


def remote(command: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a coroutine `command(client, out, **options)` one that a scheduler is needed for.

    Adds --url, --api-key, --timeout and --json.
    """

    @as_json
    @functools.wraps(command)
    def run(url: str, api_key: str | None, timeout: float, out: Output, **options: Any) -> None:
        from .client import Client

        async def main() -> None:
            first = url.partition(",")[0]  # in the environment there may be all of a worker's
            async with Client(
                first, api_key=api_key, timeout_seconds=timeout, retries=RETRIES
            ) as client:
                await command(client, out, **options)

        asyncio.run(main())

    adders = [
        option("--url", default=DEFAULT_URL, show_default=True, help="The scheduler."),
        option("--api-key", help="Its key, if it has keys."),
        option(
            "--timeout", type=DURATION, default="30s", show_default=True, help="For one request."
        ),
    ]
    for add in reversed(adders):
        run = add(run)
    return run


def log_level(command: Callable[..., None]) -> Callable[..., None]:
    """Add --log-level to a command that runs on, and set up its log on the standard error."""

    @functools.wraps(command)
    def run(log_level: str, **options: Any) -> None:
        logging.basicConfig(level=log_level.upper(), format=LOG_FORMAT)
        command(**options)

    levels = click.Choice(("debug", "info", "warning", "error"))
    add = option("--log-level", type=levels, default="info", show_default=True)
    logged: Callable[..., None] = add(run)
    return logged


async def each(
    ids: tuple[str, ...], action: Callable[[str], Awaitable[Any]], out: Output
) -> list[Any]:
    """Do something to each of several things; those that refuse are told, and fail the command."""
    from .errors import ProblemError

    done = []
    failed = 0
    for item in ids:
        try:
            done.append(await action(item))
        except ProblemError as error:
            failed += 1
            out.warn(f"{item}: {error.detail}")
    if failed:
        out.failed = True
    return done


class _Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, or a number with a unit: 500ms, 90s, 10m, 2h, 1d."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = _DURATION.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not a duration such as 90, 500ms, 10m, 2h or 1d", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2]]
        if not math.isfinite(seconds):
            raise InvalidArgument(f"{value[:20]}… is too long a duration")
        return seconds


class _Instant(click.ParamType):  # type: ignore[type-arg]
    """A moment in RFC 3339; without a zone it is local time."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo is not None else moment.astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time such as 2030-01-31T09:00:00Z", param, ctx)


class _JsonObject(click.ParamType):  # type: ignore[type-arg]
    """A JSON object; `-` reads it from the standard input, `@file` from a file.

    `hint` is added to what is said of something that is no JSON.
    """

    name = "json"

    def __init__(self, hint: str = "") -> None:
        self._hint = hint

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            document = orjson.loads(self._text(value))
        except OSError as error:
            self.fail(f"can't read {value[1:]}: {error.strerror}", param, ctx)
        except orjson.JSONDecodeError as error:
            self.fail(f"not JSON: {error}{self._hint}", param, ctx)
        if not isinstance(document, dict):
            self.fail("must be a JSON object, such as '{\"user_id\": 42}'", param, ctx)
        return document

    def _text(self, value: str) -> str | bytes:
        if value == "-":
            return sys.stdin.read()
        if value.startswith("@"):
            with open(value[1:], "rb") as file:
                return file.read()
        return value


DURATION = _Duration()
INSTANT = _Instant()
JSON_OBJECT = _JsonObject()
DEFINITION = _JsonObject("; what to run, and with which arguments, is said by --task and --args")
