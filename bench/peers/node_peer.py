"""What the systems from npm share: one installation, and one program a system beside its modules.

Node itself comes from npm too (the package `node`), so any Node that runs npm will do. A program
finds its imports in the `node_modules` beside it, so the programs are copied into the cache, anew
each time; the packages are installed again when `node/package.json` has changed.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import ClassVar

from .environments import INSTALL_SECONDS_MAX, cache
from .peer import CACHE, HERE, Command, Peer, Shape

__all__ = ["NodePeer"]

_SOURCES = HERE / "node"
_FOLDER = CACHE / "node"
_NPM = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error")


class NodePeer(Peer):
    """A system whose `program` in `node/` plays the roles `prepare`, `produce` and `work`."""

    program: ClassVar[str]

    work_settings: ClassVar[tuple[str, ...]] = ()
    """What the workers are told on their command line beside their role."""

    def install(self) -> None:
        """Install Node and all packages, unless that list is there; copy the programs.

        Raises CalledProcessError, and FileNotFoundError where there is no npm.
        """
        wanted = (_SOURCES / "package.json").read_text()
        stamp = cache() / "node.installed"
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(_FOLDER, ignore_errors=True)
            _FOLDER.mkdir()
            (_FOLDER / "package.json").write_text(wanted)
            subprocess.run(
                _NPM,
                cwd=_FOLDER,
                check=True,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS_MAX,
            )
            stamp.write_text(wanted)
        for program in _SOURCES.glob("*.mjs"):
            shutil.copyfile(program, _FOLDER / program.name)

    def workers(self, shape: Shape) -> list[Command]:
        """Return the one worker process."""
        return [self._command("work", *self.work_settings)]

    def producer(self) -> Command:
        """Return the producer."""
        return self._command("produce")

    def _command(self, *arguments: str) -> Command:
        node = _FOLDER / "node_modules" / ".bin" / "node"
        return (str(node), str(_FOLDER / self.program), *arguments)
