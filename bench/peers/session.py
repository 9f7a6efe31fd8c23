"""A whole run: every system installed, measured in turn, and put on record whatever came of it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from tickwheel.bench import machine

from . import services
from .cell import Ask
from .measure import measure
from .peer import Peer, Shape
from .record import SHAPES, Record, Row, row, short
from .search import RateSearch, order

__all__ = ["FULL", "QUICK", "Scale", "Session"]

Note = Callable[[str], None]
"""Told what is under way."""

Kept = Callable[[Row], None]
"""Told of each row."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of a peer's sizes to measure. `searches`: look for the highest rate held."""

    share: float
    single_seconds: float
    due_seconds: float
    lead_share: float
    searches: bool


FULL = Scale(share=1.0, single_seconds=5.0, due_seconds=10.0, lead_share=1.0, searches=True)
QUICK = Scale(share=0.1, single_seconds=0.7, due_seconds=2.0, lead_share=0.4, searches=False)


@dataclass(slots=True)
class Session:
    """A run under way on one Postgres server; `folder` is for logs and stamps."""

    record: Record
    postgres: services.Postgres
    folder: Path
    scale: Scale
    note: Note
    kept: Kept
    _searches: dict[str, RateSearch] = field(default_factory=dict)
    _broken: dict[str, str] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=count)

    async def run(self, peers: Sequence[Peer], ours: Peer, repeats: int) -> None:
        """Install all, then measure all in the order of `search.order`.

        Raises ValueError, and keeps nothing of a measurement, if the sources changed meanwhile.
        """
        for peer in (ours, *peers):
            self.note(f"{peer.name}: installing")
            try:
                peer.install()
            except (OSError, subprocess.SubprocessError) as error:
                said = getattr(error, "stderr", None) or ""
                self._broken[peer.name] = f"can't be installed: {error} {said}".strip()
        for peer, repeat in order(peers, ours, repeats):
            for shape in SHAPES:
                await self._shape(peer, shape, repeat)

    async def _shape(self, peer: Peer, shape: Shape, repeat: int) -> None:
        sizes, scale = peer.sizes, self.scale
        if shape == "due":
            await self._due(peer, repeat)
        elif shape == "single":
            await self._one(peer, Ask(shape, seconds=scale.single_seconds), repeat)
        else:
            jobs = sizes.drain if shape == "drain" else sizes.end
            ask = Ask(shape, jobs=round(jobs * scale.share), warm=sizes.warm)
            await self._one(peer, ask, repeat)

    async def _due(self, peer: Peer, repeat: int) -> None:
        """Measure the rates always asked for, and the best one, for which the first turn looks."""
        sizes = peer.sizes
        for rate in sizes.due_also if self.scale.searches else ():
            await self._one(peer, self._due_ask(peer, rate), repeat)
        search = self._searches.setdefault(peer.name, RateSearch(sizes.due, sizes.due_from))
        if repeat or not self.scale.searches:
            await self._one(peer, self._due_ask(peer, search.best), repeat)
            return
        while (rate_now := search.next()) is not None:
            made = await self._one(peer, self._due_ask(peer, rate_now), repeat)
            search.tell(bool(made.get("figures", {}).get("held")))
            if "error" in made:
                return

    def _due_ask(self, peer: Peer, rate: int) -> Ask:
        seconds = self.scale.due_seconds
        return Ask(
            "due",
            jobs=round(rate * seconds),
            seconds=seconds,
            rate=rate,
            lead_seconds=max(1.0, peer.sizes.lead_seconds * self.scale.lead_share),
            warm=peer.sizes.warm,
        )

    async def _one(self, peer: Peer, ask: Ask, repeat: int) -> Row:
        """Measure once, and keep the row; an error is kept in it."""
        self.note(f"{peer.name}: {ask.shape}" + (f" {ask.rate:,}/s" if ask.rate else ""))
        made = row(peer, ask.shape, repeat)
        if peer.name in self._broken:
            made["error"] = self._broken[peer.name]
        else:
            try:
                figures, versions = await self._measured(peer, ask)
                made["figures"] = short(figures)
                made["version"] = ", ".join(f"{name} {said}" for name, said in versions.items())
            except Exception as error:  # noqa: BLE001 (whatever it is, it is put on record)
                made["error"] = f"{type(error).__name__}: {error}"
        machine.require_commit(self.record.results["commit"], machine.MEASURED_WITH_PEERS)
        self.record.add(made)
        self.kept(made)
        return made

    async def _measured(self, peer: Peer, ask: Ask) -> tuple[dict[str, Any], dict[str, Any]]:
        number = next(self._numbers)
        with tempfile.TemporaryDirectory(
            prefix=f"{number}-{peer.name}-", dir=self.folder
        ) as folder:
            async with self._service(peer, Path(folder), number) as running:
                return await measure(peer, ask, running, Path(folder))

    def _service(
        self, peer: Peer, folder: Path, number: int
    ) -> AbstractAsyncContextManager[services.Running]:
        if peer.service == "postgres":
            return self.postgres.database(f"peers_{number}")
        return services.redis(folder / "redis", always=peer.service == "redis-always")
