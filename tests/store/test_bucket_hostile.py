"""A bucket as it is found: objects that are not ours, objects that were cut, answers that nobody expects."""

from __future__ import annotations

from typing import Any

import pytest

from tests import s3
from tests.store.disks import VM, MemoryDisk, assert_content, backup, noise
from tests.store.test_bucket import changed, disk_of, root_of
from workers.errors import BadInput, StoreDamaged, StoreUnreachable
from workers.settings import StoreSettings
from workers.store import Store, bucket
from workers.store.bucket import BucketPath

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "ATTEMPTS", 2)
    monkeypatch.setattr(bucket, "MEETINGS", 3)


#: what people and their tools leave below a prefix, in any folder
STRANGERS = (
    "", "README.txt", "packs/", "packs/x.pack", "packs/0000000000000001 (1).pack", "packs//deep/er.pack",
    "maps/copy.maps", "index/old.idx", "suspects/note.txt", "points/", "points/README.md",
    "points/a folder/00000001.json", "points//x", "writers/", "readers/", "tombs/", "tombs/notes.txt", "pins/notes.txt",
    "compaction/x.moves",
)  # fmt: skip


def test_objects_that_are_not_ours_are_left_alone(server: s3.S3, place: StoreSettings) -> None:
    store, disk = Store.make(place), disk_of(1)
    root = root_of(store)
    for name in STRANGERS:
        server.client.put_object(Bucket=root.bucket.settings.bucket, Key=root.bucket.prefix + name, Body=b"not ours")
    first, _ = backup(store, disk)
    second, _ = backup(store, disk_of(2), mode="full")
    assert store.vms() == [VM] and store.runs() == []
    store.retire(VM, first.id)
    store.close()
    report = store.prune()
    assert (report.packs, report.waiting) == (1, 0)
    assert store.compact(below=0.9).state == "nothing to do"
    assert store.stats().packs == 1 and len(store.pack_sizes()) == 1
    assert_content(store, second, disk_of(2))
    problems = store.verify(deep=True)
    assert [line for line in problems if "old.idx" not in line] == []
    store.close()
    left = server.keys(root.bucket.settings.bucket)
    assert all(root.bucket.prefix + name in left for name in STRANGERS if not name.startswith(("index", "compaction")))


@pytest.mark.parametrize("length", [0, *(pytest.param(length, marks=pytest.mark.slow) for length in (100, 5000))])
def test_a_pack_that_was_cut_short_is_damage_with_a_name(place: StoreSettings, length: int) -> None:
    """Also where its ends are kept here: then a range is asked for that the bucket does not have any more."""
    store = Store.make(place)
    disk = MemoryDisk(8 * MIB)
    disk.put(0, noise(MIB, 1))
    point, _ = backup(store, disk)
    assert_content(store, point, disk)
    root = root_of(store)
    name = max(root / "packs" / each for each in (root / "packs").names(".pack"))
    name.put(name.read_bytes()[:length])
    with pytest.raises(StoreDamaged, match=name.name):
        assert_content(Store.at(place), point, disk)
    assert any(name.name in line for line in store.verify(deep=True))
    assert store.prune().packs == 0
    store.close()


def test_an_answer_that_breaks_off_is_asked_for_again(server: s3.S3, place: StoreSettings) -> None:
    store, disk = Store.make(place), disk_of(1, 2)
    point, _ = backup(store, disk)
    server.fault("GET .*(packs|maps|points)/", "cut", times=1)
    assert_content(store, store.point(VM, point.id), disk)
    server.fault("GET .*points/", "cut", times=99)
    with pytest.raises(StoreUnreachable, match="the run goes on"):
        store.point(VM, point.id)
    server.fault()
    store.close()


def test_what_is_archived_busy_or_not_allowed_is_said(server: s3.S3, place: StoreSettings) -> None:
    store, disk = Store.make(place), disk_of(1)
    point, _ = backup(store, disk)
    server.fault("GET .*points/", "403 InvalidObjectState", times=9)
    with pytest.raises(BadInput, match="archive"):
        store.point(VM, point.id)
    server.fault("PUT .*packs/", "409 OperationAborted", times=9)
    with pytest.raises(StoreUnreachable, match="OperationAborted"):
        backup(store, disk_of(2), run="later", mode="full")
    store.abandon("later")
    server.fault("PUT .*pins/", "409 ConditionalRequestConflict", times=999)
    with pytest.raises(StoreUnreachable, match="others write it just then"):
        store.pin(VM, point.id, "pair-1")
    server.fault()
    store.close()


@pytest.mark.parametrize("how", ["403 AccessDenied", pytest.param("501 NotImplemented", marks=pytest.mark.slow)])
def test_who_may_not_see_unfinished_uploads_prunes_all_the_same(server: s3.S3, place: StoreSettings, how: str) -> None:
    """That right is one of its own, and not every endpoint knows the list: a rule of the bucket removes them there."""
    store = Store.make(place)
    first, _ = backup(store, disk_of(1))
    backup(store, disk_of(2), mode="full")
    store.retire(VM, first.id)
    store.close()
    server.fault("GET .*uploads", how, times=99)
    assert store.prune().packs == 1
    server.fault()


def test_what_dead_writers_left_is_swept(server: s3.S3, place: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads of packs and of maps, and the trial objects of a process that was killed while it tried."""
    store = Store.make(place)
    mine = root_of(store).bucket
    for name in ("packs/0000000000000001.pack", "maps/0000000000000001.maps"):
        mine.call("create_multipart_upload", name)
    mine.call("put_object", "writers/.probe-0000000000000001", Body=b"1")
    monkeypatch.setattr(bucket, "STALE", 1e12)  # this server dates all uploads to 2010
    store.prune()
    assert len(mine.call("list_multipart_uploads")["Uploads"]) == 2, "young ones may be somebody's"
    monkeypatch.setattr(bucket, "STALE", -1.0)
    store.prune()
    assert not mine.call("list_multipart_uploads").get("Uploads")
    assert not [key for key in server.keys(mine.settings.bucket) if "probe" in key]


def test_lists_that_page_are_read_to_their_end(place: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is 1,000 names by itself."""
    store = Store.make(place)
    root = root_of(store)
    call, pages = root.bucket.call, list[dict[str, Any]]()

    def by_two(operation: str, key: str = "", **more: Any) -> dict[str, Any]:
        assert operation == "list_objects_v2" and len(pages) < 20
        pages.append(call(operation, key, **more, MaxKeys=2))
        return pages[-1]

    for number in range(5):
        root.bucket.call("put_object", f"readers/{number:04d}", Body=b"")
    monkeypatch.setattr(root.bucket, "call", by_two)
    folder = root / "readers"
    assert len(folder.names("")) == 5 and len(pages) == 3
    assert len(folder.ages()) == len(folder.sizes("")) == 5


def test_a_pack_that_went_is_not_there_though_a_writer_remembers_it(place: StoreSettings) -> None:
    """What a writer's list said is for that writer: verification and compaction ask again."""
    store = Store.make(place)
    backup(store, disk_of(1))
    backup(store, disk_of(1, 2), mode="full")
    path = root_of(store) / "packs" / (root_of(store) / "packs").names(".pack")[0]
    with store.writer("lives"):
        assert path.listed() and path.exists()
        BucketPath(bucket.Bucket(path.bucket.settings, path.bucket.cache), path.key).remove()
        assert path.listed() and not path.exists()
    store.abandon("lives")
    store.close()


def test_a_renewed_access_key_is_read_again(
    server: s3.S3, place: StoreSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.make(place)
    backup(store, disk_of(1))
    monkeypatch.setenv("S3_TEST_KEY", f"AKIARENEWED:{s3.SECRET}")
    server.fault("GET .*points", "403 InvalidAccessKeyId", times=1)
    with pytest.raises(BadInput, match="access key"):
        store.vms()
    seen: list[str] = []
    made = bucket.Bucket._connect
    monkeypatch.setattr(bucket.Bucket, "_connect", lambda self: (seen.append(self.settings.login().key), made(self))[1])
    assert store.vms() == [VM] and seen == ["AKIARENEWED"]
    assert changed(place, prefix="site-a/").s3 == place.s3
    store.close()
