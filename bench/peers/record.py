"""The peers' results: one JSON file, written anew after every measurement.

`bench/results/peers-<date>-<commit>.part` while it grows, `.json` when a run of all peers has ended.

    {"kind": "peers", "quick": false, "commit", "at", "machine": {}, "postgres": {}, "redis": "7.0.15",
     "rows": [{"system", "version", "configuration", "remark", "service", "shape", "repeat",
               "at", "load", "figures": {}}]}

There is a row for each repeat; of the shape "due" there is one for each rate tried too, which its
figure `rate` tells. `shape` is drain, end, single or due. A measurement that failed has "error",
its text, and no figures; `table.merged` joins the repeats of a row. Units are in the names of figures: `cpu_us` is µs per job over all
processes; `per_second` jobs (of single: calls).
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tickwheel.bench import machine

from .peer import Peer, Shape

__all__ = ["SHAPES", "Record", "Row", "row"]

SHAPES: tuple[Shape, ...] = ("drain", "end", "single", "due")
DIGITS = 3

Row = dict[str, Any]


class _File(msgspec.Struct):
    """What is read back."""

    rows: list[Row]


@dataclass(slots=True)
class Record:
    """The file and what is in it."""

    path: Path
    results: dict[str, Any]

    @classmethod
    def new(cls, folder: Path, postgres: dict[str, str], *, quick: bool) -> Record:
        """Begin a record of this machine and commit."""
        commit, now = machine.commit(machine.MEASURED_WITH_PEERS), datetime.now(UTC)
        name = f"{'quick-' if quick else ''}peers-{now:%Y-%m-%d}-{commit}.part"
        folder.mkdir(parents=True, exist_ok=True)
        results = {
            "kind": "peers",
            "quick": quick,
            "commit": commit,
            "at": now.isoformat(timespec="seconds"),
            "machine": machine.machine(),
            "postgres": postgres,
            "redis": _redis_version(),
            "rows": [],
        }
        return cls(folder / name, results)

    def add(self, one: Row) -> None:
        """Keep a row, and write the file."""
        self.results["rows"].append(one)
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.results, indent=1) + "\n")
        draft.replace(self.path)

    def publish(self) -> None:
        """Give the file its last name, in place of an earlier one of the day."""
        self.path = self.path.replace(self.path.with_suffix(".json"))


def read(path: Path) -> list[Row]:
    """Return the rows of a record. Raises ValueError where it is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_File).rows
    except msgspec.DecodeError as error:
        raise ValueError(f"{path} is no record of peers: {error}") from error


def row(peer: Peer, shape: Shape, repeat: int) -> Row:
    """Return the beginning of a row: who, what, when, on how busy a machine."""
    return {
        "system": peer.name,
        "version": "",
        "configuration": peer.configuration,
        "remark": peer.remark,
        "service": peer.service,
        "shape": shape,
        "repeat": repeat,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def short(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures with floats cut to thousandths."""
    return {
        name: round(value, DIGITS) if isinstance(value, float) else value
        for name, value in figures.items()
    }


def _redis_version() -> str:
    try:
        command = ("redis-server", "--version")
        told = subprocess.run(command, check=True, capture_output=True, text=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "not installed"
    return told.stdout.partition("v=")[2].partition(" ")[0]
