"""Keys, scopes, and queues that a key is limited to: what isn't allowed doesn't even show."""

from __future__ import annotations

import base64
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request
from integration.http_house import House, house

from tickwheel.core.clock import SystemClock
from tickwheel.core.errors import NotFound, Unavailable
from tickwheel.core.job import JobSpec
from tickwheel.core.ports_cluster import ApiKey
from tickwheel.server.auth import CACHE_MS, Auth, Principal, new_key, token_digest
from tickwheel.server.problems import Unauthorized
from tickwheel.server.routes import ROUTES, Route
from tickwheel.server.scopes import SCOPES
from tickwheel.storage import MemoryStore

UUID = "018f3c2a-9b40-7000-8000-000000000001"


def address(route: Route) -> str:
    return route.path.replace("{id}", UUID).replace("{name}", "q")


async def test_every_route_declares_a_scope_and_holds_it() -> None:
    async with house() as h:
        tokens = {scope: (await h.add_key(scope))[1] for scope in SCOPES}
        for route in ROUTES:
            assert route.scope in (*SCOPES, "open")
            body: Any = {} if route.method != "GET" else None
            bare = await h.call(route.method, address(route), body)
            if route.scope == "open":
                assert bare.status == 200
                assert route.path in ("/healthz", "/readyz", "/openapi.json")
                continue
            assert (bare.status, bare.code) == (401, "unauthorized"), route
            for scope, token in tokens.items():
                reply = await h.call(route.method, address(route), body, token=token)
                if scope == route.scope:
                    assert reply.status not in (401, 403), route
                else:
                    assert (reply.status, reply.code) == (403, "insufficient_scope"), route


async def test_an_application_has_no_route_beside_the_table() -> None:
    async with house() as h:
        documented = (await h.call("GET", "/openapi.json")).body["paths"]
        assert {(path, method) for path, methods in documented.items() for method in methods} == {
            (route.path, route.method.lower()) for route in ROUTES
        }


async def test_whatever_is_wrong_with_a_key_the_answer_is_the_same() -> None:
    async with house() as h:
        clock = h.scheduler.clock
        _, good = await h.add_key("read")
        revoked, revoked_token = await h.add_key("read")
        await h.store.put_key(revoked._replace(revoked_at_ms=clock.now_ms()))
        _, expired = await h.add_key("read", expires_at_ms=clock.now_ms() - 1)
        wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
        headers: list[dict[str, str]] = [
            {},
            {"Authorization": ""},
            {"Authorization": "Bearer"},
            {"Authorization": f"Basic {good}"},
            {"Authorization": good},
            {"Authorization": f"Bearer  {good}"},
            {"Authorization": f"Bearer {good} "[:-2]},
            {"Authorization": "Bearer tw_0123456789abcdef_" + "A" * 43},
            {"Authorization": f"Bearer {wrong}"},
            {"Authorization": f"Bearer {revoked_token}"},
            {"Authorization": f"Bearer {expired}"},
            {"X-Api-Key": good},
            {"Cookie": f"key={good}"},
        ]
        assert (await h.call("GET", "/v1/jobs", token=good)).status == 200
        seen = []
        for sent in headers:
            reply = await h.call("GET", "/v1/jobs", headers=sent)
            assert (reply.status, reply.code) == (401, "unauthorized")
            assert reply.headers["WWW-Authenticate"].startswith("Bearer")
            seen.append({k: v for k, v in reply.body.items() if k != "request_id"})
        assert all(body == seen[0] for body in seen)
        for query in (f"?key={good}", f"?access_token={good}"):
            assert (await h.call("GET", f"/v1/jobs{query}")).status == 401


async def test_a_revocation_counts_within_a_minute_and_an_expiry_at_once() -> None:
    class Clock(SystemClock):
        ahead_ms = 0

        def now_ms(self) -> int:
            return super().now_ms() + self.ahead_ms

        def monotonic_ms(self) -> int:
            return super().monotonic_ms() + self.ahead_ms

    clock, store = Clock(), MemoryStore()
    auth = Auth(store, clock)
    revoked, revoked_token = new_key("a", ["read"], None, clock.now_ms())
    expiring, expiring_token = new_key("b", ["read"], None, clock.now_ms(), clock.now_ms() + 5_000)
    await store.put_key(revoked)
    await store.put_key(expiring)
    assert (await auth._authenticate(f"Bearer {revoked_token}")).id == revoked.id
    assert (await auth._authenticate(f"Bearer {expiring_token}")).id == expiring.id
    await store.put_key(revoked._replace(revoked_at_ms=clock.now_ms()))
    clock.ahead_ms = 6_000
    with pytest.raises(Unauthorized):
        await auth._authenticate(f"Bearer {expiring_token}")
    assert (await auth._authenticate(f"Bearer {revoked_token}")).id == revoked.id
    clock.ahead_ms = CACHE_MS + 1
    with pytest.raises(Unauthorized):
        await auth._authenticate(f"Bearer {revoked_token}")


class Away(MemoryStore):
    """A store whose keys nobody can read while `away`."""

    away = False

    async def keys(self) -> list[ApiKey]:
        return await super().keys() if not self.away else self._unavailable()

    async def get_key(self, key_id: str) -> ApiKey | None:
        return await super().get_key(key_id) if not self.away else self._unavailable()

    def _unavailable(self) -> Any:
        raise Unavailable("away")


@pytest.mark.parametrize("locked", [False, True])
async def test_while_the_store_does_not_answer_a_worker_that_is_known_renews_its_leases(
    locked: bool,
) -> None:
    store = Away()
    async with house(store) as h:
        token = (await h.add_key("work", "submit"))[1] if locked else None
        job = (await h.call("POST", "/v1/jobs", {"task": "t"}, token=token)).body
        worker = {"name": "w", "queues": {"default": 1}}
        worker_id = (await h.call("POST", "/v1/workers", worker, token=token)).body["worker_id"]
        path = f"/v1/workers/{worker_id}"
        ask = {"seq": 1, "slots": {"default": 1}, "wait_seconds": 10}
        [sent] = (await h.call("POST", f"{path}/poll", ask, token=token)).body["jobs"]
        assert sent["id"] == job["id"]
        running = {"running": [{"job_id": job["id"], "fencing_token": sent["fencing_token"]}]}
        now, store.away = h.scheduler.clock.monotonic_ms, True
        h.scheduler.clock.monotonic_ms = lambda: now() + CACHE_MS + 1  # type: ignore[method-assign]
        for _ in range(2):
            reply = await h.call("POST", f"{path}/report", running, token=token)
            assert (reply.status, reply.body["results"][0]["status"]) == (200, "ok")
        _, stranger = new_key("k", SCOPES, None, 1)
        assert (await h.call("GET", "/v1/workers", token=stranger)).status == 503


@pytest.mark.parametrize("header", ["", "Bearer tw_0123456789abcdef_" + "x" * 43])
async def test_nobody_is_let_in_by_a_server_that_has_read_no_keys_yet(header: str) -> None:
    store = Away()
    store.away = True
    request = make_mocked_request("GET", "/", headers={"Authorization": header, "Host": "[::1]"})
    with pytest.raises(Unavailable):
        await Auth(store, SystemClock()).authorize(request, "read")


async def test_only_so_many_keys_are_kept_in_mind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickwheel.server.auth.CACHED_KEYS_MAX", 2)
    store = MemoryStore()
    auth = Auth(store, SystemClock())
    for _ in range(2):
        for name in ("a", "b", "c"):
            key, token = new_key(name, ["read"], None, 1)
            await store.put_key(key)
            assert (await auth._authenticate(f"Bearer {token}")).id == key.id
    assert len(auth._believed) == 2


async def test_no_secret_is_stored() -> None:
    key, token = new_key("n", SCOPES, ["q"], 1, 2)
    secret = token.split("_", 2)[2]
    assert len(secret) * 6 >= 160
    assert (key.digest, len(key.digest)) == (token_digest(token), 32)
    assert secret not in repr(key)
    assert token.startswith(f"tw_{key.id}_")
    assert len({new_key("n", ["read"], None, 1)[1] for _ in range(100)}) == 100


@pytest.mark.parametrize("scopes", [[], ["admin"], ["read", "admin"]])
def test_a_key_has_known_scopes(scopes: list[str]) -> None:
    with pytest.raises(ValueError, match="scopes"):
        new_key("n", scopes, None, 0)


def test_a_limited_principal_knows_its_queues_only() -> None:
    who = Principal("k", frozenset(), frozenset({"a"}))
    who.check_queue("a")
    with pytest.raises(NotFound):
        who.check_queue("b")


async def tenants(h: House) -> tuple[ApiKey, str, str]:
    """Two keys with all scopes: of queue a, and of queue b; the first is returned whole."""
    key, mine = await h.add_key(*SCOPES, queues=["a"])
    _, theirs = await h.add_key(*SCOPES, queues=["b"])
    return key, mine, theirs


async def test_nothing_of_another_queue_shows_or_moves_on_any_route() -> None:
    async with house() as h:
        _, mine, theirs = await tenants(h)
        body: dict[str, Any] = {"task": "t", "queue": "b", "delay_seconds": 99}
        created = (await h.call("POST", "/v1/jobs", body, token=theirs)).body
        schedule = {"job": {"task": "t", "queue": "b"}, "interval_seconds": 3600}
        assert (await h.call("PUT", "/v1/schedules/s", schedule, token=theirs)).status == 201
        worker = (
            await h.call("POST", "/v1/workers", {"name": "w", "queues": {"b": 1}}, token=theirs)
        ).body["worker_id"]
        own = {"job": {"task": "t", "queue": "a"}, "interval_seconds": 3600}
        attempts: list[tuple[str, str, Any]] = [
            ("POST", "/v1/jobs", body),
            ("POST", "/v1/jobs", {"jobs": [{"task": "t", "queue": "a"}, body]}),
            ("GET", f"/v1/jobs/{created['id']}", None),
            ("GET", f"/v1/jobs/{created['id']}?wait_seconds=1", None),
            ("POST", f"/v1/jobs/{created['id']}/cancel", None),
            ("POST", f"/v1/jobs/{created['id']}/reschedule", {"delay_seconds": 1}),
            ("POST", f"/v1/jobs/{created['id']}/run", None),
            ("PUT", "/v1/schedules/s", own),
            ("PUT", "/v1/schedules/s2", schedule),
            ("GET", "/v1/schedules/s", None),
            ("PATCH", "/v1/schedules/s", {"jitter_seconds": 1}),
            ("DELETE", "/v1/schedules/s", None),
            ("POST", "/v1/schedules/s/pause", None),
            ("POST", "/v1/schedules/s/resume", None),
            ("POST", "/v1/schedules/s/trigger", None),
            ("GET", "/v1/schedules/s/preview", None),
            ("GET", "/v1/queues/b", None),
            ("PUT", "/v1/queues/b", {}),
            ("POST", "/v1/queues/b/pause", None),
            ("POST", "/v1/queues/b/resume", None),
            ("POST", "/v1/queues/b/purge", None),
            ("GET", "/v1/queues/b/stats", None),
            ("POST", "/v1/dead-letters/redrive", {"queue": "b"}),
            ("POST", "/v1/workers", {"name": "w", "queues": {"a": 1, "b": 1}}),
            ("POST", f"/v1/workers/{worker}/poll", {"seq": 1, "slots": {"a": 1}}),
            ("POST", f"/v1/workers/{worker}/report", {}),
            ("DELETE", f"/v1/workers/{worker}", None),
        ]
        own_worker = (
            await h.call("POST", "/v1/workers", {"name": "w", "queues": {"a": 1}}, token=mine)
        ).body["worker_id"]
        other_slots = {"seq": 1, "slots": {"b": 1}}
        attempts.append(("POST", f"/v1/workers/{own_worker}/poll", other_slots))
        before = await _everything(h, theirs)
        for method, path, sent in attempts:
            reply = await h.call(method, path, sent, token=mine)
            assert reply.status == 404, (method, path, reply.raw)
            assert reply.code in ("not_found", "unknown_worker")
        assert await _everything(h, theirs) == before
        await h.call("DELETE", f"/v1/workers/{own_worker}", token=mine)
        for path, name in (
            ("/v1/jobs", "jobs"),
            ("/v1/jobs?queue=b", "jobs"),
            ("/v1/schedules", "schedules"),
            ("/v1/queues", "queues"),
            ("/v1/workers", "workers"),
            ("/v1/dead-letters", "dead_letters"),
        ):
            assert (await h.call("GET", path, token=mine)).body[name] == [], path
            if name != "dead_letters":
                assert (await h.call("GET", path, token=theirs)).body[name] != [], path


async def _everything(h: House, token: str) -> list[Any]:
    paths = ("/v1/jobs", "/v1/schedules", "/v1/queues", "/v1/dead-letters")
    return [(await h.call("GET", path, token=token)).body for path in paths]


async def test_a_cursor_shows_nothing_of_the_rows_that_were_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tickwheel.storage.memory_jobs.LIST_EXAMINED_MAX", 2)
    async with house() as h:
        _, token = await h.add_key("read", queues=["mine"])
        store = cast(MemoryStore, h.store)
        for _ in range(3):
            await h.scheduler.jobs.submit([JobSpec("t", queue="theirs", delay_ms=99_000)])
        page = (await h.call("GET", "/v1/jobs", token=token)).body
        assert page["jobs"] == []
        sealed = base64.urlsafe_b64decode(page["next_cursor"] + "==")
        for job_id in store._tables.jobs:
            assert job_id[:13].encode() not in sealed
        more = f"/v1/jobs?cursor={page['next_cursor']}"
        assert (await h.call("GET", more, token=token)).body == {"jobs": [], "next_cursor": None}


async def test_a_patch_does_not_move_a_schedule_into_another_queue() -> None:
    async with house() as h:
        _, mine, _ = await tenants(h)
        own = {"job": {"task": "t", "queue": "a"}, "interval_seconds": 3600}
        await h.call("PUT", "/v1/schedules/s", own, token=mine)
        reply = await h.call("PATCH", "/v1/schedules/s", {"job": {"queue": "b"}}, token=mine)
        assert reply.status == 404
        read = (await h.call("GET", "/v1/schedules/s", token=mine)).body
        assert read["job"]["queue"] == "a"


async def test_dead_letters_of_another_queue_are_neither_redriven_nor_deleted() -> None:
    async with house() as h:
        worker = await h.worker(b=1)
        created = await h.submit(queue="b", max_attempts=1)
        (leased,) = await h.lease(worker, b=1)
        error = {"type": "E", "message": ""}
        token = leased["fencing_token"]
        await h.report(
            worker, failed=[{"job_id": leased["id"], "fencing_token": token, "error": error}]
        )
        _, mine, theirs = await tenants(h)
        ids = {"ids": [created["id"]]}
        redriven = await h.call("POST", "/v1/dead-letters/redrive", ids, token=mine)
        assert redriven.body["redriven"] == []
        assert (await h.call("DELETE", "/v1/dead-letters", ids, token=mine)).body == {"deleted": 0}
        assert (await h.call("DELETE", "/v1/dead-letters", ids, token=theirs)).body == {
            "deleted": 1
        }


async def test_a_workers_session_answers_to_its_own_key_only() -> None:
    async with house() as h:
        _, mine = await h.add_key("work")
        _, other = await h.add_key("work")
        body = {"name": "w", "queues": {"a": 1}}
        worker = (await h.call("POST", "/v1/workers", body, token=mine)).body["worker_id"]
        for method, suffix, sent in (
            ("POST", "/poll", {"seq": 1, "slots": {}}),
            ("POST", "/report", {}),
            ("DELETE", "", None),
        ):
            path = f"/v1/workers/{worker}{suffix}"
            assert (await h.call(method, path, sent, token=other)).code == "unknown_worker"
            assert (await h.call(method, path, sent, token=mine)).status < 300


async def test_without_keys_no_other_site_and_no_other_host_is_served() -> None:
    async with house() as h:
        for headers, code in (
            ({"Origin": "https://evil.example"}, "cross_site"),
            ({"Origin": "null"}, "cross_site"),
            ({"Origin": "http://[::1"}, "cross_site"),
            ({"Sec-Fetch-Site": "cross-site"}, "cross_site"),
            ({"Host": "evil.example"}, "foreign_host"),
            ({"Host": "127.0.0.1.evil.example:80"}, "foreign_host"),
            ({"Host": "[::1"}, "foreign_host"),
        ):
            reply = await h.call("POST", "/v1/queues/q/purge", headers=headers)
            assert (reply.status, reply.code) == (403, code)
        for headers in (
            {"Origin": h.url},
            {"Host": "localhost:1"},
            {"Host": "[::1]:1"},
            {"Sec-Fetch-Site": "same-origin"},
        ):
            assert (await h.call("GET", "/v1/queues", headers=headers)).status == 200
    async with house(loopback_only=False) as h:
        reply = await h.call("GET", "/v1/queues", headers={"Host": "jobs.example"})
        assert reply.status == 200


async def test_the_first_key_closes_a_server_that_was_open() -> None:
    async with house() as h:
        assert (await h.call("GET", "/v1/jobs")).status == 200
        now = h.scheduler.clock.monotonic_ms
        _, token = await h.add_key("read")
        h.scheduler.clock.monotonic_ms = lambda: now() + 3_000  # type: ignore[method-assign]
        assert (await h.call("GET", "/v1/jobs")).status == 401
        assert (await h.call("GET", "/v1/jobs", token=token)).status == 200


async def test_what_is_changed_is_in_the_audit_log_with_who_did_it() -> None:
    store = MemoryStore()
    async with house(store) as h:
        key, token = await h.add_key("manage", "submit")
        created = (
            await h.call("POST", "/v1/jobs", {"task": "t", "delay_seconds": 9}, token=token)
        ).body
        await h.call("POST", f"/v1/jobs/{created['id']}/cancel", token=token)
        await h.call("PUT", "/v1/queues/a%0a%1b[31m", {}, token=token)
        log = [row[1:] for row in store._tables.audit_log]
        assert log == [
            (key.id, "job.cancel", created["id"]),
            (key.id, "queue.put", "a??[31m"),
        ]


async def test_every_route_that_manages_is_audited() -> None:
    for route in ROUTES:
        assert (route.audit is not None) == (route.scope == "manage"), route
