"""Where the scheduler is and what opens it, unless the caller says: from the environment.

Read when a `Client` or a `Worker` is made, as the commands read it for their options.
"""

from __future__ import annotations

import os

from . import DEFAULT_URL


def urls() -> list[str]:
    """Return the schedulers of `TICKWHEEL_URL`, which are separated by commas, else the default."""
    return os.environ.get("TICKWHEEL_URL", DEFAULT_URL).split(",")


def api_key(given: str | None) -> str | None:
    """Return the key that was given, else `TICKWHEEL_API_KEY`."""
    return os.environ.get("TICKWHEEL_API_KEY") if given is None else given
