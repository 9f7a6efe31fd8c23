"""What is said of options that a job doesn't have."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


def no_such_options(wrong: Iterable[str], known: Collection[str]) -> str:
    """Return which options are wrong, what was perhaps meant by each, and which there are."""
    said = ", ".join(f"{name}{_meant(name, known)}" for name in sorted(wrong))
    return f"a job has no {said}: it may have {', '.join(sorted(known))}"


def _meant(name: str, known: Collection[str]) -> str:
    # Some options have their unit in their name, in others it is left out.
    for text in (name.removesuffix("_seconds"), name):
        if near := difflib.get_close_matches(text, known, n=1):
            return f", perhaps {near[0]}"
    return ""
