"""The schedulers on the same store, as this one last saw them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .ids import shard_of
from .ports_cluster import Member, Owned

COMPANY_MS = 600_000
SUSPECTED_MS = 250


class Neighbours:
    """Who lives, and who owns which shard, as of the last look."""

    def __init__(self) -> None:
        self.members: Sequence[Member] = ()
        """All that live, this scheduler too, the oldest first."""
        self._company_ms = self._suspected_ms = -(1 << 60)
        self._owners: Mapping[int, Owned] = {}

    def began(self, now_monotonic_ms: int, unknown_ms: int) -> None:
        """Note a start: for so long there may be others, who started too, and aren't known yet."""
        self._company_ms = now_monotonic_ms + unknown_ms - COMPANY_MS

    @property
    def serving(self) -> list[Member]:
        """Those that serve remote workers."""
        return [each for each in self.members if each.url]

    @property
    def eldest(self) -> str:
        """The one that does what only one should do; empty if nobody is known."""
        return self.members[0].id if self.members else ""

    def look(
        self, members: Sequence[Member], owners: Mapping[int, Owned], now_monotonic_ms: int
    ) -> None:
        """Note who lives, and the owner of each shard."""
        self.members, self._owners = members, owners
        self._suspected_ms = now_monotonic_ms
        if len(members) > 1:
            self._company_ms = now_monotonic_ms

    def had_company(self, now_monotonic_ms: int) -> bool:
        """Tell whether there were others within the last ten minutes, or may have been."""
        return now_monotonic_ms - self._company_ms < COMPANY_MS

    def knows(self, member_id: str) -> bool:
        """Tell whether that scheduler lived."""
        return any(each.id == member_id for each in self.members)

    def suspect(self, ids: Iterable[str], now_monotonic_ms: int) -> bool:
        """Note that these don't answer; tell whether to look if they live, 4 times a second at most."""
        if now_monotonic_ms - self._suspected_ms < SUSPECTED_MS or not any(map(self.knows, ids)):
            return False
        self._suspected_ms = now_monotonic_ms
        return True

    def owner(self, job_id: str) -> str | None:
        """Return who owned the job, None if nobody did that lived."""
        owned = self._owners.get(shard_of(job_id))
        return owned.owner if owned is not None and self.knows(owned.owner) else None
