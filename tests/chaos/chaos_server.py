"""A scheduler with a short shard TTL: `chaos_server.py DSN SCHEMA PORT ADVERTISED_URL [REPLICA_DSN]`."""

from __future__ import annotations

import sys

import uvloop

from tickwheel.core.settings import Settings
from tickwheel.server.serve import ServeOptions, serve

SHARD_TTL_MS = 1_500


def main(dsn: str, schema: str, port: str, url: str, replica_dsn: str | None = None) -> None:
    options = ServeOptions(
        port=int(port),
        dsn=dsn,
        schema=schema,
        advertise_url=url,
        replica_dsn=replica_dsn,
        settings=Settings(shard_ttl_ms=SHARD_TTL_MS),
    )
    uvloop.run(serve(options))


if __name__ == "__main__":
    main(*sys.argv[1:])
