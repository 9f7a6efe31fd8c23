"""SQL by name, out of the `.sql` files beside this module.

A file holds statements, each under a line `-- name: …`. These marks are filled in:

    {schema}        the schema's name
    {partition}     the full name of one partition of `jobs`: the hot statements name it themselves
    {…_columns}     the list of columns that a statement named so holds; `{job_columns}` are those
                    of a job, in the order of the fields of `core.job.Job`
    {…_conditions}  the conditions that a statement named so holds

Names that go into a text are checked identifiers; values are always parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

SQL_DIR: Final = Path(__file__).parent / "sql"
STATEMENTS_MAX: Final = 16_384
"""How many filled-in texts are kept; one statement on one partition is one text."""

_IDENTIFIER: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PARTS: Final = ("_columns", "_conditions")
_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def identifier(name: str) -> str:
    """Return `name` if it needs no quotes in SQL; raise ValueError otherwise."""
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"not a plain SQL identifier: {name!r}")
    return name


class Statements:
    """The statements for one schema: `sql("claim", "jobs_20261121")`."""

    def __init__(self, schema: str) -> None:
        """Read all files; raise ValueError if `schema` is not a plain identifier."""
        self.schema = identifier(schema)
        raw = dict(_read_all())
        parts = {name: raw.pop(name) for name in list(raw) if name.endswith(_PARTS)}
        self._texts = {
            name: _spliced(text, parts | {"schema": schema}) for name, text in raw.items()
        }
        self._filled = lru_cache(maxsize=STATEMENTS_MAX)(self._fill)

    def __call__(self, name: str, partition: str = "jobs") -> str:
        """Return the statement, on `partition` where it names one (default: the parent)."""
        return self._filled(name, partition)

    def _fill(self, name: str, partition: str) -> str:
        return self._texts[name].replace("{partition}", f"{self.schema}.{identifier(partition)}")


def _spliced(text: str, parts: Mapping[str, str]) -> str:
    for name, part in parts.items():
        text = text.replace("{" + name + "}", part)
    return text


def _read_all() -> Iterator[tuple[str, str]]:
    for path in sorted(SQL_DIR.glob("*.sql")):
        _, *parts = _NAME.split(path.read_text())
        yield from zip(parts[::2], (text.strip() for text in parts[1::2]), strict=True)
