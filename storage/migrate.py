"""Brings the schema to the version of this code: the numbered files of `migrations/`, forward.

Each file runs once, in one transaction with its note in `migrations`, under an advisory lock that
belongs to the schema's name; so any number of processes may start at the same time, and one of
them does the work. A schema that is newer than the code is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tickwheel.core.errors import Unavailable

from .link import Link
from .statements import Statements

MIGRATIONS_DIR: Final = Path(__file__).parent / "migrations"
_NUMBERED: Final = re.compile(r"(\d{4})_\w+\.sql")


def migrations() -> dict[int, str]:
    """Return the texts by number, in order."""
    files = sorted(MIGRATIONS_DIR.glob("*.sql"))
    return {int(m[1]): path.read_text() for path in files if (m := _NUMBERED.fullmatch(path.name))}


async def migrate(link: Link, sql: Statements, shards: int) -> int:
    """Migrate; return how many shards the store was made with. Raises `Unavailable` if newer."""
    texts = migrations()
    async with link.transaction():
        await link.script(sql("migrate_lock"))
        if not await link.value(sql("schema_exists")):
            await link.script(sql("schema_create"))
        if not await link.value(sql("migrations_exist")):
            await link.script(sql("migrations_create"))
        version: int = await link.value(sql("migrations_version"))
        if version > max(texts):
            raise Unavailable(f"the schema {sql.schema} is of version {version}, newer than this")
        for number, text in texts.items():
            if number > version:
                await link.script(text.replace("{schema}", sql.schema))
                await link.fetch(sql("migrations_note"), number)
        await link.fetch(sql("shards_note"), shards)
        count: int = await link.value(sql("shard_count"))
        await link.fetch(sql("shards_make"), count)
    return count
