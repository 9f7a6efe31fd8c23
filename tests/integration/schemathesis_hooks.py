"""What Schemathesis leaves be: nobody waits for long."""

from __future__ import annotations

from typing import Any

import schemathesis

_WAIT_SECONDS = 0.01


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]
) -> None:
    for given in (case.body, case.query):
        if isinstance(given, dict) and _is_long(given.get("wait_seconds")):
            given["wait_seconds"] = _WAIT_SECONDS


def _is_long(seconds: object) -> bool:
    """Say if it is a wait that the server would accept."""
    return isinstance(seconds, int | float) and _WAIT_SECONDS < seconds <= 30
