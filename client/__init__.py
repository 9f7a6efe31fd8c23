"""The two callers of a scheduler: `Client` submits and asks, `Worker` runs the jobs.

    from tickwheel.client import Client, Worker

Names are loaded at first use, so a command that needs one doesn't pay for all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batching import Batcher
    from .client import Client
    from .context import Context
    from .errors import (
        ClientError,
        Conflict,
        Fatal,
        InvalidRequest,
        NonRetryable,
        NotAllowed,
        NotFound,
        ProblemError,
        Retry,
        TryLater,
        Unreachable,
    )
    from .worker import Worker

DEFAULT_URL = "http://127.0.0.1:8080"

_HOMES = {"Batcher": "batching", "Client": "client", "Context": "context", "Worker": "worker"}

__all__ = [
    "Batcher",
    "Client",
    "ClientError",
    "Conflict",
    "Context",
    "Fatal",
    "InvalidRequest",
    "NonRetryable",
    "NotAllowed",
    "NotFound",
    "ProblemError",
    "Retry",
    "TryLater",
    "Unreachable",
    "Worker",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value
