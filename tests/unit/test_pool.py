"""What the pools of one store make of servers that are on different timelines."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tickwheel.core.errors import Unavailable
from tickwheel.storage.link import Link
from tickwheel.storage.pool import Pool, Primary


class Connection:
    """Stands for the driver's."""

    closed = False

    def is_closed(self) -> bool:
        return self.closed

    def is_in_transaction(self) -> bool:
        return False

    def terminate(self) -> None:
        self.closed = True


class Servers:
    """Stands for `connect`: whoever connects is led to a server on this timeline."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timeline = 1
        self.made: list[Connection] = []
        monkeypatch.setattr("tickwheel.storage.pool.connect", self._connect)

    async def _connect(self, dsn: str, generation: int, *_: int, standby: bool = False) -> Link:
        self.made.append(Connection())
        return Link(self.made[-1], self.timeline, generation)

    @property
    def open(self) -> list[bool]:
        return [not connection.closed for connection in self.made]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    return Servers(monkeypatch)


async def no_pause(_seconds: float) -> None:
    """Stand in for the pauses between retries."""


def pools(count: int) -> list[Pool]:
    primary = Primary()
    return [Pool("", 2, random.Random(0), no_pause, primary=primary) for _ in range(count)]


async def timeline(link: Any) -> int:
    return int(link.timeline)


async def test_a_server_on_an_older_timeline_is_not_used(servers: Servers) -> None:
    [pool] = pools(1)
    servers.timeline = 2
    assert await pool.run(timeline) == 2
    pool.expire()
    servers.timeline = 1
    with pytest.raises(Unavailable, match="timeline 1"):
        await pool.run(timeline)
    servers.timeline = 2
    assert await pool.run(timeline) == 2
    assert servers.open == [*[False] * (len(servers.made) - 1), True]


async def test_what_one_pool_has_learned_of_timelines_the_others_know(servers: Servers) -> None:
    one, other = pools(2)
    servers.timeline = 2
    await one.run(timeline)
    servers.timeline = 1
    with pytest.raises(Unavailable, match="timeline 1"):
        await other.run(timeline)


async def test_a_new_timeline_in_one_pool_ends_older_connections_of_the_others(
    servers: Servers,
) -> None:
    one, other = pools(2)

    async def used_meanwhile(link: Any) -> int:
        servers.timeline = 2
        return await other.run(timeline)

    await one.run(timeline)
    assert await one.run(used_meanwhile) == 2
    assert servers.open == [False, True]
    assert await one.run(timeline) == 2
    assert await other.run(timeline) == 2
    assert len(servers.made) == 3


async def test_a_server_that_takes_no_writes_ends_idle_connections_of_all_pools(
    servers: Servers,
) -> None:
    one, other = pools(2)
    await one.run(timeline)
    await other.run(timeline)
    one.expire()
    await other.run(timeline)
    assert servers.open == [False, False, True]


async def test_a_pool_that_is_closed_ends_no_connections_of_the_others(servers: Servers) -> None:
    one, other = pools(2)
    await other.run(timeline)
    await one.close()
    await other.run(timeline)
    assert servers.open == [True]


async def test_a_connection_that_comes_back_to_a_closed_pool_is_ended(servers: Servers) -> None:
    [pool] = pools(1)

    async def closed_meanwhile(_: Any) -> None:
        await pool.close()

    await pool.run(closed_meanwhile)
    assert servers.open == [False]


async def test_a_standby_has_no_timeline_to_compare(servers: Servers) -> None:
    servers.timeline = 0
    pool = Pool("", 1, random.Random(0), no_pause, standby=True)
    assert await pool.run(timeline) == 0
