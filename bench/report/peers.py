"""The peers' section: its results file's tables, made by `bench.peers.table`, and how to read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tickwheel.bench.peers import table

_INTRODUCTION = """\
Each system in the configuration that its own documentation gives as the best for throughput, the \
same payload and a handler that does nothing, on the same Postgres (Redis with its append-only \
file), one after the other in one run, with Tickwheel in between. One process submits, as the \
configuration says. A ratio above 1 is in Tickwheel's favour. Memory is that of all \
processes with the database, end to end; it grows with the jobs of a run, of which faster systems \
get more. Most peers run handlers in the process that talks to the database; \
Tickwheel's run behind HTTP, under leases, and leave a history.
"""


def section(path: Path) -> str:
    """Render the file. Raises ValueError where it isn't one."""
    try:
        document = json.loads(path.read_text())
        begun, rows = f"begun {document['at']}, commit `{document['commit']}`", document["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of peers: {error!r}") from error
    parts = (
        f"## Peers, side by side\n\nBy `make bench-peers`, {begun}.\n",
        _where(document),
        _INTRODUCTION,
        table.text(rows),
    )
    return "\n".join(part for part in parts if part)


def _where(document: dict[str, Any]) -> str:
    """Return the machine and the versions that all share, as far as the record has them."""
    machine, postgres = document.get("machine", {}), document.get("postgres", {})
    named = (
        ("{}", machine.get("processor")),
        ("{} cores", machine.get("cores")),
        ("{} GB of memory", machine.get("memory_gb")),
        ("{}", machine.get("system")),
        ("databases on {}", machine.get("filesystem")),
        ("a page synced in {} µs", machine.get("sync_p50_us")),
        ("Postgres {}", postgres.get("server_version")),
        ("Redis {}", document.get("redis")),
        *((f"{name} {{}}", _version(document["rows"], name)) for name in ("Python", "Node")),
    )
    known = [text.format(value) for text, value in named if value]
    return f"Measured on: {', '.join(known)}.\n" if known else ""


def _version(rows: list[dict[str, Any]], name: str) -> str:
    """Return the version of an interpreter that the peers' processes told of; "" if none did."""
    told = (re.findall(rf"\b{name.lower()} ([^, ]+)", row.get("version", "")) for row in rows)
    return " and ".join(sorted({version for each in told for version in each}))
