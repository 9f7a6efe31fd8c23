"""The root of the command line: the client's commands, and those that other packages add.

The exit status is for scripts: 0 done; 1 it failed, or there is no such thing; 2 wrong usage, also
by the scheduler's judgement; 3 the scheduler or its database can't be reached. What goes wrong is
one line on the standard error, never a traceback (unless TICKWHEEL_DEBUG is set).

A package adds commands by an entry point of the group `tickwheel.commands`: a function that takes
the root group. So the server's commands stand beside these, and nothing here imports the server.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points, version
from typing import Any

import click

from tickwheel.core.errors import InvalidRequest, TickwheelError, Unavailable

from . import cli_jobs, cli_queues, cli_schedules, cli_worker
from .cli_output import clean
from .errors import ClientError, InvalidArgument, Unreachable
from .errors import InvalidRequest as Refused

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
COMMANDS = "tickwheel.commands"


class Failure(click.ClickException):
    """What is said, in one line, before the command ends with `exit_code`."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(clean(" ".join(message.split())))
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        """Print the line on the standard error."""
        click.echo(f"tickwheel: {self.message}", file=file or sys.stderr)


def failure(error: Exception) -> Failure:
    """Return what to say of an error, and the status that it stands for."""
    match error:
        case Unreachable() | Unavailable():
            return Failure(str(error), EXIT_UNREACHABLE)
        case Refused() | InvalidRequest() | InvalidArgument():
            return Failure(str(error), EXIT_USAGE)
        case ClientError() | TickwheelError() | TimeoutError():
            return Failure(str(error) or "it took too long")
        case ModuleNotFoundError(name=str(name)) if not name.startswith("tickwheel"):
            return Failure(
                f"{name} is not installed, which this command needs: "
                "pip install 'tickwheel[server,embedded]'"
            )
        case _:
            return Failure(f"{type(error).__name__}: {error}")


class Root(click.Group):
    """A group that turns every error of its commands into a line and a status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself shows a `ClickException` and a broken pipe."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("TICKWHEEL_DEBUG"):
                raise
            raise failure(error) from error


def build() -> click.Group:
    """Return the root group with all commands, the installed packages' own among them."""
    root = Root(
        "tickwheel",
        help="Durable jobs, fired on time.\n\n"
        "Options are also read from the environment: --url from TICKWHEEL_URL, and so on.",
        epilog="Exit status: 0 done; 1 it failed, or there is no such thing; 2 wrong usage, or "
        "the server can't start; 3 the scheduler or its database can't be reached.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    click.version_option(version("tickwheel"), prog_name="tickwheel")(root)
    for command in (
        cli_jobs.submit,
        cli_jobs.jobs,
        cli_schedules.schedules,
        cli_queues.queues,
        cli_queues.dead,
        cli_worker.worker,
        cli_worker.workers,
        cli_worker.cluster,
    ):
        root.add_command(command)
    for entry in entry_points(group=COMMANDS):
        entry.load()(root)
    return root
