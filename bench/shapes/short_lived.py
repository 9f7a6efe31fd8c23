"""A server as `tickwheel serve` runs it, but with short partitions and a short retention.

    python -m tickwheel.bench.shapes.short_lived postgresql://…

Width and retention are arguments in Python, not options: this is the server of one's own that
`docs/operations.md` describes.
"""

from __future__ import annotations

import sys

import uvloop

from tickwheel.server.serve import ServeOptions, serve
from tickwheel.storage import PostgresStore

PARTITION_MS = 120_000
RETENTION_MS = 120_000


def main(dsn: str) -> None:
    """Serve on any free port until SIGTERM."""
    store = PostgresStore(dsn, partition_ms=PARTITION_MS, retention_ms=RETENTION_MS)
    uvloop.run(serve(ServeOptions(port=0), store=store))


if __name__ == "__main__":
    main(sys.argv[1])
