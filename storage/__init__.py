"""Where jobs live: two stores behind the ports of `tickwheel.core.ports`, one behaviour.

`MemoryStore` keeps everything in this process and needs nothing; it is also the executable
specification that the other is compared with. `PostgresStore` is the durable one. Its driver, and
the server from a wheel that `EmbeddedPostgres` starts, are imported on first use only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .memory import MemoryStore

if TYPE_CHECKING:
    from .embedded import EmbeddedPostgres
    from .postgres import PostgresStore

__all__ = ["EmbeddedPostgres", "MemoryStore", "PostgresStore"]

_LAZY = {"EmbeddedPostgres": ".embedded", "PostgresStore": ".postgres"}

if not TYPE_CHECKING:  # else every name would be an attribute of this module

    def __getattr__(name: str) -> object:
        if name in _LAZY:
            return getattr(import_module(_LAZY[name], __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
