"""Errors of one thing among many, as of a schedule: they cost the others nothing, and are told once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import Unavailable


class Failures:
    """What has failed and was told to the loop's exception handler, by name."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    @contextmanager
    def contained(self, name: str) -> Iterator[None]:
        """Tell of an error inside, unless that was done since it last went well.

        `Unavailable` is raised all the same: then nothing else goes well either.
        """
        try:
            yield
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, it is told)
            if name not in self._told:
                self._told.add(name)
                context = {"message": f"{name} fails", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)
        else:
            self._told.discard(name)
