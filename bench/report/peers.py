"""The peers' section: its results file's tables, made by `bench.peers.table`, and how to read them."""

from __future__ import annotations

import json
from pathlib import Path

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
    head = f"## Peers, side by side\n\nBy `make bench-peers`, {begun}.\n\n"
    return f"{head}{_INTRODUCTION}\n{table.text(rows)}"
