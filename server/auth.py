"""Who may do what: bearer keys, scopes, and the queues that a key is limited to.

    Authorization: Bearer tw_<id: 16 hex>_<secret: 256 bits, base64url>

Only the SHA-256 of the whole token is stored: with that much entropy a slow hash would protect
nothing and let anyone burn our CPU. A key is looked up by its id and compared in constant time;
an unknown id is compared with a dummy, and every failure gives the same answer. A key that was
found valid is believed for up to a minute, so that a revocation takes that long at most; while the
store does not answer, for longer, so that who runs jobs may say so and loses no lease over it.

While the store holds no key at all the server is open, for which it must listen on loopback only.
A browser could be led there by any web page, so an open server answers no cross-site request, and
none that was addressed to another host's name (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from tickwheel.core.clock import Clock
from tickwheel.core.errors import NotFound, Unavailable
from tickwheel.core.ports_cluster import ApiKey, KeyStore

from .problems import Forbidden, Unauthorized
from .scopes import SCOPES

CACHE_MS = 60_000
CACHED_KEYS_MAX = 10_000
RECHECK_MS = 2_000
"""How long an open server is taken for open, and an answer that did not come for none."""

_TOKEN = re.compile(r"tw_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_NO_DIGEST = bytes(32)


class Principal(NamedTuple):
    """Who makes a request: the key's id (`""` while the server is open), and what it may do."""

    id: str
    scopes: frozenset[str]
    queues: frozenset[str] | None

    def check_queue(self, queue: str) -> None:
        """Raise `NotFound` for a queue that the key is not limited to: it shall not even show."""
        if not self.sees(queue):
            raise NotFound("there is no such queue, or none that this key may use")

    def sees(self, queue: str) -> bool:
        """Say if the key may see what is in the queue."""
        return self.queues is None or queue in self.queues


EVERYONE = Principal("", frozenset(SCOPES), None)


class _Believed(NamedTuple):
    principal: Principal
    until_ms: int
    expires_at_ms: int | None

    def expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and self.expires_at_ms <= now_ms


class Auth:
    """Tells who makes a request, and refuses who may not."""

    def __init__(self, keys: KeyStore, clock: Clock, *, loopback_only: bool = True) -> None:
        self._keys = keys
        self._clock = clock
        self._loopback_only = loopback_only
        self._believed: dict[bytes, _Believed] = {}
        self._locked = False
        self._open_until_ms = -1

    async def authorize(self, request: web.BaseRequest, scope: str) -> Principal:
        """Return the principal; raise `Unauthorized`, or `Forbidden` without the scope."""
        header = request.headers.get(hdrs.AUTHORIZATION, "")
        if not self._locked and await self._is_open(header):
            self._check_same_site(request)
            return EVERYONE
        principal = await self._authenticate(header)
        if scope not in principal.scopes:
            raise Forbidden(f"this key lacks the scope {scope}")
        return principal

    def recall(self, header: str, scope: str) -> Principal | None:
        """Return whom a request with this Authorization comes from, if it is known without asking.

        `authorize` has let a request through before that had it, and was the same otherwise too.
        """
        if not header:
            recheck = self._clock.monotonic_ms() >= self._open_until_ms
            return None if self._locked or recheck else EVERYONE
        believed = self._lately(token_digest(header.partition(" ")[2]))
        if believed is None or believed.expired(self._clock.now_ms()):
            return None
        return believed.principal if scope in believed.principal.scopes else None

    async def _is_open(self, header: str) -> bool:
        now_ms = self._clock.monotonic_ms()
        # Who presents a key believes that there are some: limited by it from the first request on.
        if header or now_ms >= self._open_until_ms:
            try:
                self._locked = bool(await self._keys.keys())
            except Unavailable:
                if header or self._open_until_ms < 0:
                    raise
                now_ms = self._clock.monotonic_ms()
            self._open_until_ms = now_ms + RECHECK_MS
        return not self._locked

    async def _authenticate(self, header: str) -> Principal:
        scheme, _, token = header.partition(" ")
        match = _TOKEN.fullmatch(token)
        if match is None or scheme.lower() != "bearer":
            raise Unauthorized
        digest = token_digest(token)
        believed = self._lately(digest) or await self._look_up(match[1], digest)
        if believed.expired(self._clock.now_ms()):
            raise Unauthorized
        return believed.principal

    def _lately(self, digest: bytes) -> _Believed | None:
        """Return what is believed of a token, unless it must be looked up again."""
        believed = self._believed.get(digest)
        fresh = believed is not None and believed.until_ms > self._clock.monotonic_ms()
        return believed if fresh else None

    async def _look_up(self, key_id: str, digest: bytes) -> _Believed:
        now_ms = self._clock.monotonic_ms()
        try:
            key = await self._keys.get_key(key_id)
        except Unavailable:
            believed = self._believed.get(digest)
            if believed is None:
                raise
            until_ms = self._clock.monotonic_ms() + RECHECK_MS
            self._believed[digest] = believed = believed._replace(until_ms=until_ms)
            return believed
        self._believed.pop(digest, None)
        stored = _NO_DIGEST if key is None else key.digest
        if not hmac.compare_digest(stored, digest) or key is None or key.revoked_at_ms is not None:
            raise Unauthorized
        principal = Principal(key.id, key.scopes, key.queues)
        believed = _Believed(principal, now_ms + CACHE_MS, key.expires_at_ms)
        while len(self._believed) >= CACHED_KEYS_MAX:
            del self._believed[next(iter(self._believed))]
        self._believed[digest] = believed
        return believed

    def _check_same_site(self, request: web.BaseRequest) -> None:
        headers = request.headers
        host = headers.get(hdrs.HOST, "")
        if self._loopback_only and not _names_loopback(host):
            raise Forbidden("without keys only requests to loopback", code="foreign_host")
        origin = headers.get(hdrs.ORIGIN)
        if origin is not None and _authority(origin) != host.lower():
            raise Forbidden("without keys no cross-site requests", code="cross_site")
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Forbidden("without keys no cross-site requests", code="cross_site")


def new_key(
    name: str,
    scopes: Iterable[str],
    queues: Iterable[str] | None,
    now_ms: int,
    expires_at_ms: int | None = None,
) -> tuple[ApiKey, str]:
    """Return a new key to store, and its token, which is shown once and kept nowhere.

    `queues` None: any. Raises `ValueError` for a scope that doesn't exist, or for none.
    """
    wanted = frozenset(scopes)
    if not wanted or not wanted <= set(SCOPES):
        raise ValueError(f"scopes are some of {', '.join(SCOPES)}")
    key_id = secrets.token_hex(8)
    token = f"tw_{key_id}_{secrets.token_urlsafe(32)}"
    limited = None if queues is None else frozenset(queues)
    digest = token_digest(token)
    return ApiKey(key_id, digest, name, wanted, limited, now_ms, expires_at_ms, None), token


def token_digest(token: str) -> bytes:
    """Return what is stored of a token."""
    return hashlib.sha256(token.encode()).digest()


def is_loopback(host: str) -> bool:
    """Say if a host, as an address or a name, is this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


@lru_cache(maxsize=256)
def _names_loopback(authority: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{authority}").hostname or "")
    except ValueError:
        return False
