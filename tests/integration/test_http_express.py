"""The express lane over raw sockets: the same answers, and the same refusals."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from integration.express_kit import (
    JOB,
    JSON,
    Gated,
    Watch,
    both_loops,
    head,
    line,
    padded,
    post,
    watched_lane,
)
from integration.http_house import Reply, house

from tickwheel.core.errors import Unavailable
from tickwheel.server.auth import CACHE_MS, RECHECK_MS
from tickwheel.server.door import HEADS_MAX

__all__ = ["both_loops", "watched_lane"]

STAMPS = {"id", "run_at", "scheduled_at", "created_at", "expires_at", "request_id"}
FAR = b"9999-12-31T23:59:59Z"
NEAR = b"2029-12-31T23:59:59Z"


def timeless(value: Any) -> Any:
    """Return a document without what differs from request to request."""
    if isinstance(value, list):
        return [timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: item is not None if name in STAMPS else timeless(item) for name, item in value.items()
    }


def same(one: Reply, other: Reply) -> bool:
    """Say that two answers differ in nothing but ids and stamps, down to the order of names."""
    assert list(one.headers) == list(other.headers)
    for reply in (one, other):
        assert parsedate_to_datetime(reply.headers["Date"]).tzinfo is not None
        assert len(reply.raw) == int(reply.headers["Content-Length"])
        if "Location" in reply.headers:
            assert reply.headers["Location"] == f"/v1/jobs/{reply.body['id']}"
    assert list(one.body) == list(other.body)
    fixed = ("Content-Type", "Server", "Retry-After")
    return (one.status, timeless(one.body), [one.headers.get(name) for name in fixed]) == (
        other.status,
        timeless(other.body),
        [other.headers.get(name) for name in fixed],
    )


BODIES = {
    "least": JOB,
    "args": b'{"task":"a.b","args":{ "z":1.0e0, "%d":"\\u0000%s\xc3\xbc" },"queue":"q-1"}',
    "delay": b'{"task":"t","delay_seconds":3600.0004}',
    "run_at": b'{"task":"t","run_at":"2029-12-31T23:59:59.0001+01:00"}',
    "past": b'{"task":"t","run_at":"2001-01-01T00:00:00Z"}',
    "priority": b'{"task":"t","priority":0,"max_attempts":7}',
    "tags": '{"task":"t","tags":["a","ü \\" \\\\ %d"]}'.encode(),
    "options": b'{"task":"t","headers":{"a":"b \\" %b"},"timeout_seconds":1.5,'
    b'"retry_policy":{"strategy":"fixed","non_retryable":["E"]},"on_lost_lease":"dead"}',
    "deadline": b'{"task":"t","delay_seconds":9,"start_deadline_seconds":60}',
    "batch": b'{"jobs":[{"task":"t"},{"task":"u","delay_seconds":9,"tags":["x"]}]}',
    "batch of one": b'{"jobs":[{"task":"t","run_at":"2029-01-01T00:00:00Z"}]}',
    "batch with a key": b'{"jobs":[{"task":"t"},{"task":"t","idempotency_key":"k"}]}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
async def test_the_answer_is_the_usual_one_and_reads_the_same_later(
    body: bytes, lane: Watch
) -> None:
    async with house() as h, line(h) as usual, line(h) as express:
        first = await usual.ask(post(body.replace(b'"k"', b'"j"')))
        await express.ask(post(body.replace(b'"k"', b'"l"')))
        assert lane.taken == []
        reply = await express.ask(post(body))
        assert lane.taken == [body]
        assert (first.status, same(first, reply)) == (201, True)
        for created in reply.body.get("jobs", [reply.body]):
            read = (await h.call("GET", f"/v1/jobs/{created['id']}")).body
            assert {name: read[name] for name in created if name != "deduplicated"} == {
                name: value for name, value in created.items() if name != "deduplicated"
            }
            assert "jobs" in reply.body or created.keys() == read.keys() - {"progress"}
        count = len(reply.body.get("jobs", [1]))
        text = (await h.call("GET", "/metrics")).raw.decode()
        counted = [row for row in text.splitlines() if '"/v1/jobs"' in row and '"201"' in row]
        assert [row.rsplit(" ", 1)[1] for row in counted] == ["3.0"]
        assert len(await h.jobs()) == 3 * count


async def test_a_head_is_known_whatever_the_length_and_too_many_are_forgotten(
    lane: Watch,
) -> None:
    async with house() as h, line(h) as one:
        for count in range(HEADS_MAX):
            said = b"X-Count: %d" % count
            assert (await one.ask(post(padded(JOB, 100 + count), said))).status == 201
            assert len(lane.taken) == 2 * count
            for length in (100, 1_000):
                assert (await one.ask(post(padded(JOB, length), said))).status == 201
            assert len(lane.taken) == 2 * count + 2
        (door,) = lane.doors
        assert len(door._known) == HEADS_MAX
        assert (await one.ask(post())).status == 201
        assert 1 <= len(door._known) <= HEADS_MAX
        async with line(h) as other:
            assert (await other.ask(post())).status == 201
        assert len(lane.taken) == 2 * HEADS_MAX


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (b"Content-Length:%d", 0),
        (b"Content-Length:  %d", 0),
        (b"Content-Length: 00%d", 2),
        (b"content-length: %d", 2),
    ],
)
async def test_a_length_written_otherwise_is_answered_all_the_same(
    header: bytes, taken: int, lane: Watch
) -> None:
    async with house() as h, line(h) as one:
        for _ in range(3):
            assert (await one.ask(head(JSON, header % len(JOB)) + JOB)).status == 201
        assert len(lane.taken) == taken
        assert len(await h.jobs()) == 3


async def test_a_key_that_is_no_text_is_nobodys_and_never_takes_the_lane(lane: Watch) -> None:
    async with house() as h, line(h) as one:
        for _ in range(2):
            assert (await one.ask(post(JOB, b"Authorization: Bearer \xff\xfe"))).status == 201
        assert lane.taken == []
        assert len(await h.jobs()) == 2


async def test_a_repeat_of_an_idempotency_key_is_answered_on_the_lane_with_the_first_job(
    lane: Watch,
) -> None:
    async with house() as h, line(h) as one:
        body = b'{"task":"t","idempotency_key":"k"}'
        first, second, other = [
            await one.ask(post(sent)) for sent in (body, body, body.replace(b'"t"', b'"u"'))
        ]
        assert (first.status, second.status, other.status) == (201, 200, 409)
        assert second.body == {**first.body, "deduplicated": True}
        assert lane.taken == [body, body.replace(b'"t"', b'"u"')]
        assert other.body["code"] == "idempotency_conflict"
        assert len(await h.jobs()) == 1


BAD = {
    "no JSON": b"{",
    "nothing": b"",
    "a double": b'{"task":"t","task":"u"}',
    "no object": b"[]",
    "an unknown field": b'{"task":"t","x":1}',
    "a bad name": b'{"task":"t","queue":"../x"}',
    "a bad tag": b'{"task":"t","tags":["a\\u0000"]}',
    "a bad priority in a batch": b'{"jobs":[{"task":"t"},{"task":"t","priority":10}]}',
    "no jobs": b'{"jobs":[]}',
    "both times": b'{"task":"t","run_at":"2029-01-01T00:00:00Z","delay_seconds":1}',
    "depth": b'{"task":"t","args":' + b'{"a":' * 129 + b"1" + b"}" * 129 + b"}",
    "no UTF-8": b'{"task":"\xff"}',
    "a request": post(),
    "too large": b'{"task":"t","args":{"a":"' + b"x" * 300_000 + b'"}}',
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_a_bad_body_behind_a_known_head_is_refused_as_ever(bad: bytes, lane: Watch) -> None:
    async with house() as h, line(h) as usual, line(h) as express:
        length = max(len(bad), len(JOB))
        bad = padded(bad, length)
        assert (await express.ask(post(padded(JOB, length)))).status == 201
        replies = [await usual.ask(post(bad)), await express.ask(post(bad))]
        assert same(*replies)
        assert replies[1].status in (400, 413, 422)
        assert replies[1].code
        assert lane.taken == []
        assert (await express.ask(post())).status == 201
        assert len(await h.jobs()) == 2


async def test_a_key_is_believed_on_the_lane_as_long_as_anywhere(lane: Watch) -> None:
    async with house() as h, line(h) as one, line(h) as two:
        clock = h.scheduler.clock
        revoked, token = await h.add_key("submit", "read")
        _, expiring = await h.add_key("submit", expires_at_ms=clock.now_ms() + 60_000)
        mine, other = (
            post(JOB, b"Authorization: Bearer " + each.encode()) for each in (token, expiring)
        )
        for _ in range(2):
            assert (await one.ask(mine)).status == (await two.ask(other)).status == 201
        assert len(lane.taken) == 2
        await h.store.put_key(revoked._replace(revoked_at_ms=clock.now_ms()))
        assert (await one.ask(mine)).status == 201
        now, steady = clock.now_ms, clock.monotonic_ms
        clock.now_ms = lambda: now() + 60_001  # type: ignore[method-assign]
        assert (await two.ask(other)).code == "unauthorized"
        assert len(lane.taken) == 3
        clock.monotonic_ms = lambda: steady() + CACHE_MS + 1  # type: ignore[method-assign]
        assert (await one.ask(mine)).code == "unauthorized"
        assert len(lane.taken) == 3


async def test_scope_and_queues_are_held_on_the_lane(lane: Watch) -> None:
    async with house() as h, line(h) as one:
        _, limited = await h.add_key("submit", queues=["a"])
        _, reader = await h.add_key("read")
        mine = b"Authorization: Bearer " + limited.encode()
        bodies = [b'{"task":"t","queue":"%b"}' % queue for queue in (b"a", b"a", b"b", b"a")]
        replies = [await one.ask(post(body, mine)) for body in bodies]
        assert [reply.status for reply in replies] == [201, 201, 404, 201]
        batch = b'{"jobs":[{"task":"t","queue":"a"},{"task":"t","queue":"%b"}]}'
        replies = [await one.ask(post(batch % queue, mine)) for queue in (b"a", b"b", b"a")]
        assert [reply.status for reply in replies] == [201, 404, 201]
        assert len(lane.taken) == 6
        for _ in range(2):
            bare = post(JOB, b"Authorization: Bearer " + reader.encode())
            assert (await one.ask(bare)).code == "insufficient_scope"
            assert (await one.ask(post())).code == "unauthorized"
        assert len(lane.taken) == 6


@pytest.mark.parametrize("told", [False, True])
async def test_the_first_key_closes_the_lane_of_an_open_connection(told: bool, lane: Watch) -> None:
    async with house() as h, line(h) as one:
        for _ in range(2):
            assert (await one.ask(post())).status == 201
        _, token = await h.add_key("submit")
        if told:
            assert (await h.call("POST", "/v1/jobs", JOB, token=token)).status == 201
        else:
            now = h.scheduler.clock.monotonic_ms
            ahead = lambda: now() + RECHECK_MS
            h.scheduler.clock.monotonic_ms = ahead  # type: ignore[method-assign]
        for _ in range(2):
            assert (await one.ask(post())).code == "unauthorized"
        assert len(lane.taken) == 1


async def test_errors_after_the_enqueue_are_problem_documents(lane: Watch) -> None:
    store = Gated()
    async with house(store) as h, line(h) as one:
        single, batch = b'{"task":"t","run_at":"%b"}', b'{"jobs":[{"task":"t"},%b]}'
        for form, pointer in ((single, "/run_at"), (batch % single, "/jobs/1/run_at")):
            assert (await one.ask(post(form % NEAR))).status == 201
            reply = await one.ask(post(form % FAR))
            assert (reply.status, reply.code) == (422, "run_at_out_of_range")
            assert reply.body["pointer"] == pointer
        store.error = Unavailable("down", retry_after_seconds=2.5)
        reply = await one.ask(post(single % NEAR))
        assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "unavailable", "3")
        store.error = None
        await h.call("PUT", "/v1/queues/f", {"max_depth": 1})
        replies = [await one.ask(post(b'{"task":"t","queue":"f"}')) for _ in range(2)]
        assert [reply.status for reply in replies] == [201, 429]
        assert replies[1].code == "queue_full"
        assert len(lane.taken) == 6
        h.scheduler._kernel.draining = True
        reply = await one.ask(post(single % NEAR))
        assert (reply.status, reply.code) == (503, "draining")
        h.scheduler._kernel.draining = False
        assert len(await h.jobs()) == 4


async def test_a_problem_has_the_same_headers_on_the_lane(lane: Watch) -> None:
    async with house() as h, line(h) as usual, line(h) as express:
        body = b'{"task":"t","run_at":"%b"}'
        assert (await express.ask(post(body % NEAR))).status == 201
        replies = [await each.ask(post(body % FAR)) for each in (usual, express)]
        assert lane.taken == [body % FAR]
        assert same(*replies)
