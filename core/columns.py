"""Many values of one kind as columns, a sequence for each field.

What is done to a whole column at once is done by Python's own loops in C. So batches are resolved,
written, started and settled by column, and made into rows only where somebody needs a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, TypeVar, overload

from .job import JobSpec

T = TypeVar("T", bound=tuple[Any, ...])


def tuples_of(kind: type[T], *columns: Iterable[Any]) -> list[T]:
    """Return named tuples, made of a column for each of their fields: twice as fast as by name.

    It ends with the shortest column; as many columns as fields are for the caller to see to.
    """
    return list(map(partial(tuple.__new__, kind), zip(*columns, strict=False)))


class PlainJobs(Sequence[JobSpec]):
    """Specs that say no more than the first five fields of a `JobSpec`: a column for each of them.

    A batch is resolved a column at a time, so that specs made for it would be for nothing.
    """

    __slots__ = ("columns",)

    def __init__(self, *columns: Sequence[Any]) -> None:
        """Take five columns of the same length."""
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    @overload
    def __getitem__(self, place: int) -> JobSpec: ...
    @overload
    def __getitem__(self, place: slice) -> list[JobSpec]: ...
    def __getitem__(self, place: int | slice) -> JobSpec | list[JobSpec]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        return JobSpec(*(column[place] for column in self.columns))
