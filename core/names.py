"""Names: what a task, a queue and a schedule may be called."""

from __future__ import annotations

import re
from functools import lru_cache

from .errors import InvalidRequest

NAME = r"[A-Za-z0-9_.-]{1,128}"
_NAME = re.compile(NAME)


@lru_cache(maxsize=4096)
def is_name(text: str) -> bool:
    """Tell whether a text is a name."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str, pointer: str) -> str:
    """Return a name; raise `InvalidRequest` unless it is one."""
    if not (isinstance(name, str) and is_name(name)):
        raise InvalidRequest(f"a name is {NAME}", code="name_invalid", pointer=pointer)
    return name
