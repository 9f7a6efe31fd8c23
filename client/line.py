"""A blocking connection to one scheduler, for the renewal thread: no event loop is involved."""

from __future__ import annotations

import contextlib
import http.client
from urllib.parse import urlsplit

from .errors import Unreachable, problem
from .pipe import authorization


class Line:
    """One keep-alive connection, opened again when it broke. For one thread."""

    def __init__(self, url: str, api_key: str | None, timeout_seconds: float = 10.0) -> None:
        self.url = url
        parts = urlsplit(url)
        assert parts.hostname is not None
        secure = parts.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        # Without one it looks for a port in the host, and finds it in an IPv6 address.
        port = parts.port or (443 if secure else 80)
        self._connection = connect(parts.hostname, port, timeout=timeout_seconds)
        self._prefix = parts.path
        self._headers = {"Content-Type": "application/json"}
        said = authorization(parts, api_key)
        if said is not None:
            self._headers["Authorization"] = said

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Return the answer's body. Raises `Unreachable` or a `ProblemError`.

        Sent again at once if a connection that had been idle turns out to be closed.
        """
        connection = self._connection
        reused = connection.sock is not None
        try:
            connection.request(method, self._prefix + path, body, self._headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if reused and not isinstance(error, TimeoutError):
                return self.request(method, path, body)
            reason = str(error) or type(error).__name__
            raise Unreachable(f"no answer ({reason})", sent=True) from error
        if response.status >= 300:
            raise problem(response.status, answer, response.headers.get("Retry-After"))
        return answer

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        with contextlib.suppress(OSError):
            self._connection.close()
