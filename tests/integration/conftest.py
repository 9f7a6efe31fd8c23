"""What the tests with real Postgres share."""

from __future__ import annotations

import pytest

from .postgres_kit import new_schema


@pytest.fixture
def schema() -> str:
    return new_schema()
