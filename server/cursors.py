"""Page cursors that can't be made up or read: where to go on, sealed for one list and one caller.

A cursor is base64url of a 16-byte MAC and the place. The MAC covers the list's name, its filter
and the principal, so a cursor is good for nothing but the next page of what it was given for. The
place is hidden under a key stream that begins with the MAC (as in SIV, RFC 5297): it may be that of
a job which the caller shall not see.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Any

import orjson

from .problems import InvalidParameter

MAC_BYTES = 16


class Cursors:
    """Seals and opens cursors under one secret, random per application."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def seal(self, place: Any, purpose: str) -> str:
        """Return the cursor of a place (plain JSON) for one purpose."""
        body = orjson.dumps(place)
        mac = self._mac(body, purpose)
        return base64.urlsafe_b64encode(mac + self._mask(body, mac)).decode().rstrip("=")

    def open(self, cursor: str, purpose: str) -> Any:
        """Return the place; raise `InvalidParameter` unless `seal` made it for this purpose."""
        try:
            sealed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise _forged() from None
        mac = sealed[:MAC_BYTES]
        body = self._mask(sealed[MAC_BYTES:], mac)
        if not hmac.compare_digest(mac, self._mac(body, purpose)):
            raise _forged()
        return orjson.loads(body)

    def _mac(self, body: bytes, purpose: str) -> bytes:
        key = hashlib.sha256(self._secret + purpose.encode()).digest()
        return hmac.digest(key, body, "sha256")[:MAC_BYTES]

    def _mask(self, body: bytes, mac: bytes) -> bytes:
        stream = hashlib.shake_256(self._secret + mac).digest(len(body))
        return bytes(a ^ b for a, b in zip(body, stream, strict=True))


def _forged() -> InvalidParameter:
    return InvalidParameter("this cursor was not made for this list", code="invalid_cursor")
