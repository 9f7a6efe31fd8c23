"""What a key may be for. On its own, so that the command line needn't load the server to say it."""

from __future__ import annotations

from typing import Final, Literal, get_args

Scope = Literal["submit", "read", "manage", "work"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
