"""Every answer is one that /openapi.json promises, whatever is sent.

Schemathesis reads the description from a real server and sends what it allows and what it forbids,
one call at a time and in chains. No answer may be a 5xx, have a status, a content type or a body
that the description doesn't know, or accept what the description forbids; and no call goes through
without its key. `SECONDS` sets how long.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from integration.cluster import TICKWHEEL, cluster

_SECONDS = int(os.environ.get("SECONDS", "20"))
_SEED = os.environ.get("SEED", "1")
_HERE = Path(__file__).parent
_CALLS_A_SECOND_MIN = 20


@pytest.mark.timeout(_SECONDS * 3 + 300)
@pytest.mark.parametrize("queues", [(), ("one",)], ids=["any key", "a key for one queue"])
async def test_no_request_gets_an_answer_that_the_description_does_not_know(
    postgres_dsn: str, schema: str, tmp_path: Path, queues: tuple[str, ...]
) -> None:
    async with cluster(postgres_dsn, schema, tmp_path) as house:
        server = await house.server()
        key = _key(postgres_dsn, schema, queues)
        code, printed = await asyncio.to_thread(_run, f"{house.url}/openapi.json", key, tmp_path)
        print(printed)
        assert code == 0, printed
        assert server.poll() is None
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log, log
    calls = re.search(r"(\d+) generated", printed)
    assert calls is not None, printed
    assert int(calls[1]) >= _SECONDS * _CALLS_A_SECOND_MIN, printed


def _key(dsn: str, schema: str, queues: tuple[str, ...]) -> str:
    command = [*TICKWHEEL, "keys", "create", "contract", "--json"]
    command += ["--dsn", dsn, "--schema", schema]
    command += [f"--queue={queue}" for queue in queues]
    made = subprocess.run(command, capture_output=True, check=True, text=True)
    return str(json.loads(made.stdout)["token"])


def _run(url: str, key: str, folder: Path) -> tuple[int, str]:
    command = [str(Path(sys.executable).with_name("schemathesis"))]
    command += ["--config-file", str(_HERE / "schemathesis.toml")]
    command += ["run", url, "--max-time", str(_SECONDS), "--seed", _SEED, "--no-color"]
    run = subprocess.run(
        command,
        cwd=folder,
        check=False,
        env={**os.environ, "TICKWHEEL_CONTRACT_KEY": key, "PYTHONPATH": str(_HERE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS * 2 + 120,
    )
    return run.returncode, run.stdout
