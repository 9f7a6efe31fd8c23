"""HTTPS: client, worker and commands speak it, and trust no certificate that they can't check."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from integration.cluster import TICKWHEEL

from tickwheel.client import Client, Worker
from tickwheel.client.errors import Unreachable
from tickwheel.server.serve import CannotStart, tls_context


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that nobody has signed, with its key."""
    folder = tmp_path_factory.mktemp("tls")
    name = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", name]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert.pem"


@contextmanager
def serving(
    dsn: str, certificate: Path, folder: Path, schema: str, command: Sequence[str] = TICKWHEEL
) -> Iterator[str]:
    """A server that speaks TLS, by its URL."""
    key = certificate.with_name("key.pem")
    options = ["--port", "0", "--dsn", dsn, "--schema", schema]
    options += ["--tls-cert", str(certificate), "--tls-key", str(key)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "serve", *options], stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    with process.stdout:
        try:
            found = re.match(rb"listening on (https://\S+)", process.stdout.readline())
            assert found is not None, (folder / "log").read_text()
            yield found[1].decode()
        finally:
            process.terminate()
            assert process.wait(30) == 0


@pytest.fixture
def url(postgres_dsn: str, certificate: Path, tmp_path: Path, schema: str) -> Iterator[str]:
    with serving(postgres_dsn, certificate, tmp_path, schema) as url:
        yield url


async def test_a_job_goes_all_the_way_over_tls(
    url: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    worker = Worker(url)

    @worker.task
    async def double(n: int) -> int:
        return 2 * n

    async with worker, Client(url) as client:
        job = await client.submit("double", {"n": 21})
        assert (await client.wait(job["id"], timeout_seconds=20))["result"] == 42
    command = [*TICKWHEEL, "workers", "list", "--url", url]
    environment = os.environ | {"SSL_CERT_FILE": str(certificate)}
    await asyncio.to_thread(subprocess.run, command, check=True, env=environment)


async def test_a_certificate_that_cannot_be_checked_is_refused(url: str) -> None:
    async with Client(url, retries=0) as client:
        with pytest.raises(Unreachable, match="certificate"):
            await client.submit("t")


async def test_plain_http_and_old_tls_get_nothing(url: str) -> None:
    async with Client(url.replace("https", "http"), retries=0) as client:
        with pytest.raises(Unreachable):
            await client.submit("t")
    port = int(url.rsplit(":", 1)[1])
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(raw)


HURRIED = """
import sys
from tickwheel.client.cli import main
from tickwheel.server import serve
serve.HANDSHAKE_SECONDS_MAX = 0.3
sys.exit(main())
"""


async def test_who_says_nothing_is_not_waited_for(
    postgres_dsn: str, certificate: Path, tmp_path: Path, schema: str
) -> None:
    command = (sys.executable, "-c", HURRIED)
    with serving(postgres_dsn, certificate, tmp_path, schema, command) as url:
        port = int(url.rsplit(":", 1)[1])
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        async with asyncio.timeout(10):
            for reader, writer in silent:
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
                writer.close()
        trusted = ssl.create_default_context(cafile=certificate)
        _, writer = await asyncio.open_connection("localhost", port, ssl=trusted)
        writer.close()


def test_a_wrong_certificate_is_told_in_a_line(certificate: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    with pytest.raises(CannotStart, match="No such file"):
        tls_context(tmp_path / "missing.pem", None)
    for cert, key in ((nothing, None), (certificate, nothing)):
        with pytest.raises(CannotStart, match="with its key"):
            tls_context(cert, key)
    with pytest.raises(CannotStart, match="--tls-key needs"):
        tls_context(None, certificate)
