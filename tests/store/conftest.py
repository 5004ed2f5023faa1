"""The same tests over stores of each kind: those that fix what a store is on all kinds, the others on one, and on the
rest in the long form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import s3
from tests.store.buckets import TriedPath
from tests.store.objects import ObjectPath, Objects
from workers.settings import StoreSettings
from workers.store import Store
from workers.store.bucket import BucketPath
from workers.store.store import configured

#: of the encrypted stores of these tests
KEY = bytes(range(32))
#: what fixes how a store behaves, whatever is below: always on all kinds
ALWAYS = {"test_roundtrip", "test_damage", "test_verify"}


#: a module that has KINDS = EVERY runs its tests that take `store` over each kind of place
EVERY = ("folder", "objects", pytest.param("bucket", marks=pytest.mark.slow))
EVERY_SLOWLY = ("folder", *(pytest.param(place, marks=pytest.mark.slow) for place in ("objects", "bucket")))
#: tests of these modules that are always run over all kinds of place, encrypted or not: what a store is, in short
CORE = {"test_a_run_goes_on_in_another_process", "test_a_disk_that_grew_and_one_that_shrank"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind_of_store" in metafunc.fixturenames:
        always = metafunc.module.__name__.rpartition(".")[2] in ALWAYS
        rarely = pytest.param("encrypted", marks=() if always else pytest.mark.slow)
        metafunc.parametrize("kind_of_store", ["plain", rarely], indirect=True, scope="module")
    places = getattr(metafunc.module, "KINDS", ())
    if places and metafunc.definition.originalname in CORE:
        places = ("folder", "objects", "bucket")
    if places and "store" in metafunc.fixturenames:
        metafunc.parametrize("store", places, indirect=True)


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
def store(request: pytest.FixtureRequest, kind_of_store: str, tmp_path: Path) -> Store:
    place = getattr(request, "param", "folder")
    if place == "objects":
        return Store.create(objects(tmp_path))
    if place == "bucket":
        found = configured(request.getfixturevalue("place"))
        assert isinstance(found, BucketPath)
        return Store.create(TriedPath(found.bucket))
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
