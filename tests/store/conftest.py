from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import s3
from tests.store.objects import ObjectPath, Objects
from workers.settings import StoreSettings
from workers.store import Store

#: a module that has KINDS = EVERY runs its tests that take `store` over each kind of place
EVERY = ("folder", "objects")
EVERY_SLOWLY = ("folder", pytest.param("objects", marks=pytest.mark.slow))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kinds = getattr(metafunc.module, "KINDS", ())
    if kinds and "store" in metafunc.fixturenames:
        metafunc.parametrize("store", kinds, indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if getattr(request, "param", "folder") == "objects":
        return Store.create(objects(tmp_path))
    return Store.create(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    """For what only a folder has."""
    return Store.create(tmp_path / "store")


def objects(tmp_path: Path) -> ObjectPath:
    copies = tmp_path / "copies"
    copies.mkdir(exist_ok=True)
    return ObjectPath(Objects(copies))


@pytest.fixture(scope="session")
def server() -> Iterator[s3.S3]:
    with s3.running() as found:
        yield found


@pytest.fixture
def place(server: s3.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreSettings]:
    """A store's settings, in a bucket of its own."""
    monkeypatch.setenv("S3_TEST_KEY", f"{s3.KEY}:{s3.SECRET}")
    server.fault()
    yield StoreSettings(
        s3={  # type: ignore[arg-type]
            "bucket": server.bucket(),
            "prefix": "site-a/",
            "endpoint": server.endpoint,
            "region": "us-east-1",
            "access_key_env": "S3_TEST_KEY",
        },
        cache=tmp_path / "cache",
    )
    server.fault()
