"""What the table of routes doesn't list is refused on every one of them, before anything is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from integration.http_house import House, house

from tickwheel.server.routes import ROUTES, Route

SCHEDULE = {"cron": ["0 0 1 1 *"], "job": {"task": "t"}}


@asynccontextmanager
async def furnished() -> AsyncIterator[tuple[House, list[tuple[Route, str]]]]:
    """Yield a house with one thing of each kind, and every route with its address there."""
    async with house() as h:
        ids = {
            "/v1/jobs": (await h.submit(delay_seconds=9_000))["id"],
            "/v1/workers": await h.worker(),
            "/v1/queues": "default",
            "/v1/schedules": "s",
        }
        await h.call("PUT", "/v1/schedules/s", SCHEDULE)
        await h.call("PUT", "/v1/queues/default", {})

        def address(path: str) -> str:
            kind, brace, rest = path.partition("/{")
            return f"{kind}/{ids[kind]}{rest.partition('}')[2]}" if brace else path

        yield h, [(route, address(route.path)) for route in ROUTES]


async def everything(h: House) -> list[Any]:
    paths = ("/v1/jobs", "/v1/schedules", "/v1/queues", "/v1/dead-letters")
    workers = (await h.call("GET", "/v1/workers")).body["workers"]
    lists = [(await h.call("GET", path)).body for path in paths]
    return [*lists, [each["worker_id"] for each in workers]]


async def test_an_unknown_parameter_is_400_on_every_route_and_nothing_is_written() -> None:
    async with furnished() as (h, routes):
        before = await everything(h)
        for route, path in routes:
            reply = await h.call(route.method, f"{path}?nope=1")
            assert (reply.status, reply.code) == (400, "invalid_parameter"), route
            assert reply.body["detail"].startswith("there is no parameter nope; known: "), route
            reply = await h.call(route.method, f"{path}?nope%20=1")
            assert reply.body["detail"].startswith("there is no such parameter; known: "), route
        assert await everything(h) == before


@pytest.mark.parametrize(
    ("sent", "status", "code", "pointer"),
    [
        (b'{"nope":1}', 422, "unknown_field", "/nope"),
        (b"{bad", 400, "invalid_json", None),
        (b"[]", 422, "invalid", None),
    ],
)
async def test_a_body_that_a_route_does_not_take_is_refused_and_nothing_is_written(
    sent: bytes, status: int, code: str, pointer: str | None
) -> None:
    async with furnished() as (h, routes):
        before = await everything(h)
        for route, path in routes:
            reply = await h.call(route.method, path, sent)
            assert (reply.status, reply.code) == (status, code), route
            assert reply.body.get("pointer") == pointer, route
        assert await everything(h) == before


async def test_an_empty_body_or_object_is_taken_where_none_is_needed() -> None:
    async with furnished() as (h, routes):
        for route, path in routes:
            if not route.body:
                for sent in (b"", b"{}"):
                    reply = await h.call(route.method, path, sent)
                    assert reply.status in (route.status, 404, 409), (route, reply.raw)


async def test_an_empty_body_whose_end_comes_late_is_none() -> None:
    async with furnished() as (h, _):
        name, port = h.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        writer.write(
            b"POST /v1/queues/default/purge HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        writer.write(b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()


@pytest.mark.parametrize("path", ["/v1/queues/q/purge?task=t", "/v1/queues/q/purge"])
async def test_a_connection_goes_on_after_a_body_that_was_refused(path: str) -> None:
    async with house() as h:
        for _ in range(3):
            big = {"nope": "x" * 1_000_000}
            assert (await h.call("POST", path, big)).status in (400, 422)
            await h.submit()
        connector = h.session.connector
        assert connector is not None
        assert sum(map(len, connector._conns.values())) == 1
        assert len(await h.jobs()) == 3
