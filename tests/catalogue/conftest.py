"""Every test of this folder that takes `url` or `catalogue` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import Postgres
from workers.catalogue import Catalogue


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a catalogue that does not exist yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalogue.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def catalogue(url: str) -> Iterator[Catalogue]:
    made = Catalogue.create(url)
    yield made
    made.close()
