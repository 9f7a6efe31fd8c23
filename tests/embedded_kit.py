"""A Postgres of a test's own."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def embedded_postgres() -> Iterator[str]:
    """Start a server; yield its DSN; stop it."""
    from tickwheel.storage import EmbeddedPostgres

    with tempfile.TemporaryDirectory(prefix="tickwheel-") as folder, asyncio.Runner() as runner:
        # A server started by root runs as another account, which must come in.
        Path(folder).chmod(0o755)
        server = EmbeddedPostgres(Path(folder) / "data")
        dsn = runner.run(server.start())
        try:
            yield dsn
        finally:
            runner.run(server.stop())
