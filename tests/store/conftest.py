"""The same tests over stores of each kind: those that fix what a store is on all kinds, the others on one, and on the
rest in the long form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.store import Store

#: of the encrypted stores of these tests
KEY = bytes(range(32))
#: what fixes how a store behaves, whatever is below: always on all kinds
ALWAYS = {"test_roundtrip", "test_damage", "test_verify"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind_of_store" in metafunc.fixturenames:
        always = metafunc.module.__name__.rpartition(".")[2] in ALWAYS
        rarely = pytest.param("encrypted", marks=() if always else pytest.mark.slow)
        metafunc.parametrize("kind_of_store", ["plain", rarely], indirect=True, scope="module")


@pytest.fixture(scope="module")
def kind_of_store(request: pytest.FixtureRequest) -> Iterator[str]:
    """As long as it lasts, stores are made and opened with a key, or without one."""
    made, opened = Store.create, Store.open
    if request.param == "plain":
        yield "plain"
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "create", lambda path, key=KEY: made(path, key))
        patch.setattr(Store, "open", lambda path, key=KEY: opened(path, key))
        yield "encrypted"


@pytest.fixture
def store(kind_of_store: str, tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store")
