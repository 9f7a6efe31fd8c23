"""What the systems from PyPI share: an environment, and one script of `python/` in several roles."""

from __future__ import annotations

from typing import ClassVar

from .environments import Environment
from .peer import HERE, Command, Peer, Shape

__all__ = ["SCRIPTS", "PythonPeer"]

SCRIPTS = HERE / "python"


class PythonPeer(Peer):
    """A system whose `script` in `python/` plays the roles `produce` and `work`."""

    environment: ClassVar[Environment]
    script: ClassVar[str]

    processes: ClassVar[int] = 2
    """How many worker processes."""

    prepares: ClassVar[bool] = False
    """The script has a role `prepare` too, which makes the schema."""

    def install(self) -> None:
        """Make the environment, unless it is there. Raises CalledProcessError."""
        self.environment.install()

    def prepare(self, url: str) -> list[Command]:
        """Return the role `prepare`, if the script has it."""
        return [self._play("prepare")] if self.prepares else []

    def workers(self, shape: Shape) -> list[Command]:
        """Return the role `work`, as often as there are processes."""
        return [self._play("work")] * self.processes

    def producer(self) -> Command:
        """Return the role `produce`."""
        return self._play("produce")

    def _play(self, role: str) -> Command:
        return (self.environment.python, str(SCRIPTS / self.script), role)

    def _module(self, module: str, *arguments: str) -> Command:
        """Return the command `module` of the environment."""
        return (self.environment.python, "-m", module, *arguments)
