"""Copies between stores in buckets and folders, encrypted or not: what crosses is counted at the servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import s3
from tests.store.disks import VM, MemoryDisk, assert_content, backup, noise
from tests.store.test_intake import MIB, SIZE, bring, scattered
from workers import faults
from workers.faults import InjectedFault
from workers.models import RestorePoint
from workers.settings import StoreSettings
from workers.store import Store, intake, place
from workers.store.store import configured

KEY, OTHER = bytes(range(32)), bytes(range(32, 64))


class End:
    """A store at one end of a copy; each `open` is another worker's, who has nothing of it yet."""

    def __init__(self, server: s3.S3, folder: Path, kind: str) -> None:
        self._server, self._folder, self._opened = server, folder, 0
        self.key = {"plain": None, "sealed": KEY, "other key": OTHER}[kind.partition(" in ")[0]]
        self.bucket = server.bucket() if kind.endswith("bucket") else ""
        folder.mkdir()
        Store.create(self._path(), self.key).close()

    def _path(self) -> place.Path:
        if not self.bucket:
            return self._folder / "store"
        self._opened += 1
        keys = {"bucket": self.bucket, "prefix": "a", "endpoint": self._server.endpoint, "region": "us-east-1"}
        table = {**keys, "access_key_env": "S3_TEST_KEY"}
        found = StoreSettings(s3=table, cache=self._folder / f"cache-{self._opened}")  # type: ignore[arg-type]
        return configured(found)

    def open(self) -> Store:
        return Store.open(self._path(), self.key)


@pytest.fixture
def ends(server: s3.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near: str, far: str) -> tuple[End, End]:
    monkeypatch.setenv("S3_TEST_KEY", f"{s3.KEY}:{s3.SECRET}")
    server.fault()
    return End(server, tmp_path / "near", near), End(server, tmp_path / "far", far)


def copied(near: End, far: End, point: RestorePoint, run: str, base: RestorePoint | None = None) -> Store:
    source, to = near.open(), far.open()
    mine = to.point(VM, base.id) if base is not None else None
    bring(source, to, source.point(VM, point.id), run=run, base=mine)
    source.close()
    return to


def slow(*pairs: tuple[str, str]) -> list[object]:
    return [pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(
    ("near", "far"),
    [
        ("plain in a bucket", "plain in a bucket"),
        ("sealed in a bucket", "sealed in a bucket"),
        *slow(
            ("sealed in a bucket", "other key in a bucket"), ("plain in a bucket", "sealed in a bucket"),
            ("sealed in a bucket", "plain in a bucket"), ("plain in a folder", "sealed in a bucket"),
            ("sealed in a bucket", "plain in a folder"), ("sealed in a folder", "other key in a folder"),
        ),
    ],
)  # fmt: skip
def test_an_increment_sends_little_more_than_is_new(server: s3.S3, ends: tuple[End, End]) -> None:
    """Counted at both servers: content, maps, manifests, lists and notes together."""
    one, two = ends
    source = MemoryDisk(SIZE)
    source.put(0, noise(3 * MIB, 1) + b"text " * 100_000)
    store = one.open()
    first, _ = backup(store, source)
    copied(one, two, first, "copy-1").close()
    before = source.copy()
    scattered(source, 1, 60)
    source.put(20 * MIB, noise(2 * MIB, 5))
    second, made = backup(store, source)
    store.close()
    fresh = sum(segment.stored for segment in made)
    server.carried()
    to = copied(one, two, second, "copy-2", first)
    crossed = server.carried()
    for bucket, way in ((one.bucket, 1), (two.bucket, 0)):
        assert not bucket or crossed[bucket][way] <= 1.1 * fresh, (bucket, way, crossed, fresh)
    assert_content(to, to.point(VM, second.id), source)
    assert_content(to, to.point(VM, first.id), before)
    assert to.verify(deep=True) == [] and to.runs() == []
    to.close()


@pytest.mark.parametrize(
    ("near", "far", "label", "every"),
    [
        ("plain in a bucket", "sealed in a bucket", "intake.noted", 2),
        # The ends of both segments arrive before anything of them is durable: two arrivals in a row must be possible.
        pytest.param("sealed in a bucket", "other key in a bucket", "intake.arrived", 3, marks=pytest.mark.slow),
        pytest.param("sealed in a bucket", "plain in a bucket", "intake.durable", 2, marks=pytest.mark.slow),
        pytest.param("plain in a bucket", "plain in a bucket", "intake.noted", 2, marks=pytest.mark.slow),
    ],
)
def test_a_copy_that_is_stopped_goes_on_elsewhere(
    server: s3.S3, ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch, label: str, every: int
) -> None:
    """Each message is another worker's, and gets no further than a few reads; what is durable is not sent again."""
    one, two = ends
    source = MemoryDisk(SIZE)
    source.put(0, noise(3 * MIB, 1))
    scattered(source, 1, 60)
    store = one.open()
    point, made = backup(store, source)
    store.close()
    whole = sum(segment.stored for segment in made)
    monkeypatch.setattr(intake, "READ", 1 << 20)
    passed, stops = [0], 0

    def at(step: str) -> None:
        passed[0] += step == label
        if step == label and passed[0] % every == 0:
            raise InjectedFault(label)

    monkeypatch.setattr(faults, "at", at)
    server.carried()
    for _ in range(20):
        source_store, to = one.open(), two.open()
        try:
            bring(source_store, to, source_store.point(VM, point.id), until=1.0)
            break
        except InjectedFault:
            stops += 1
        finally:
            source_store.close()
            to.close()
    monkeypatch.undo()
    monkeypatch.setenv("S3_TEST_KEY", f"{s3.KEY}:{s3.SECRET}")
    went = server.carried()[one.bucket][1]
    # Per stop: a read, and what another worker has to look at: the ends of packs, the maps.
    assert 0 < stops < 19 and went <= whole + (stops + 1) * (1600 << 10), (went, whole, stops)
    to = two.open()
    assert_content(to, to.point(VM, point.id), source)
    assert to.verify(deep=True) == [] and to.runs() == []
    to.close()
