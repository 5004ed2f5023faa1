"""A store in a bucket of a real S3 server: the same store, whatever requests are refused, cut off or answered twice."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from tests import repository, s3
from tests.store.disks import VM, MemoryDisk, assert_content, backup, make_point, noise, write_disk
from workers.errors import (
    BadInput,
    ConfigError,
    Conflict,
    LoginFailed,
    NoSpace,
    NotFound,
    Refused,
    StoreDamaged,
    StoreUnreachable,
    UnderstudyError,
)
from workers.settings import StoreSettings
from workers.store import Store, bucket, bucket_io
from workers.store.bucket import BucketPath
from workers.store.bucket_cache import Cache

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "ATTEMPTS", 2)  # else minutes pass until a failure is told
    monkeypatch.setattr(bucket, "MEETINGS", 3)


def disk_of(*seeds: int) -> MemoryDisk:
    disk = MemoryDisk(8 * MIB)
    for i, seed in enumerate(seeds):
        disk.put(i * MIB, noise(512 << 10, seed))
    return disk


def changed(place: StoreSettings, **how: object) -> StoreSettings:
    assert place.s3 is not None
    return place.model_copy(update={"s3": place.s3.model_copy(update=how)})


def root_of(store: Store) -> BucketPath:
    assert isinstance(store.path, BucketPath)
    return store.path


def test_points_come_go_and_are_read_back(server: s3.S3, place: StoreSettings) -> None:
    """Backups, deduplication, a pin, a retirement, prune, compaction, verification, the figures."""
    store, disk = Store.make(place), disk_of(1, 2)
    first, _ = backup(store, disk)
    disk.put(4 * MIB, noise(64 << 10, 3))
    second, made = backup(store, disk)
    assert made[0].stored < 80 << 10
    assert_content(Store.at(place), first, disk_of(1, 2))
    assert_content(store, second, disk)
    store.pin(VM, first.id, "pair-1")
    with pytest.raises(Refused, match="pair-1"):
        store.retire(VM, first.id)
    store.unpin(VM, first.id, "pair-1")
    small = disk_of(0)
    third, made = backup(store, small, mode="full")
    again, made = backup(store, disk_of(0, 2), mode="full")
    assert made[0].stored < 10_000, "the index of an earlier run knows the content"
    for point in (first, second, third):
        store.retire(VM, point.id)
    store.close()
    assert store.prune().waiting == 0
    assert store.compact(below=0.9).state == "done"
    assert store.compact(below=0.9).state == "nothing to do"
    assert store.prune().packs == 1
    figures = store.stats()
    assert (figures.points, figures.free) == (1, None) and figures.dead == 0
    store.close()
    assert_content(Store.at(place), store.point(VM, again.id), disk_of(0, 2))
    assert store.verify(deep=True) == []
    store.close()
    assert not [key for key in server.keys(root_of(store).bucket.settings.bucket) if "writers" in key or "tomb" in key]


@pytest.mark.slow
def test_a_pack_of_many_parts(server: s3.S3, place: StoreSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is uploaded while it is written; one that was cut off has no name, and is swept in its time."""
    monkeypatch.setattr(bucket_io, "PART", 5 << 20)  # S3's own least
    store = Store.make(place)
    disk = MemoryDisk(16 * MIB)
    disk.put(0, noise(11 * MIB, 1))
    point, _ = backup(store, disk)
    asked = [line for line in server.fault() if "partNumber" in line]
    assert len(asked) == 3
    assert_content(store, point, disk)
    with store.writer("cut-off") as writer:
        other = MemoryDisk(16 * MIB)
        other.put(0, noise(11 * MIB, 2))
        server.fault("PUT .*partNumber=2", "503 SlowDown", times=9)
        with pytest.raises(StoreUnreachable):
            write_disk(writer, other, other.allocated())
            writer.flush()
        server.fault()
    store.abandon("cut-off")
    mine = root_of(store).bucket
    mine.call("create_multipart_upload", "packs/0000000000000001.pack")
    monkeypatch.setattr(bucket, "STALE_UPLOAD", 1e12)  # days
    store.prune()
    assert mine.call("list_multipart_uploads").get("Uploads"), "a young one may be somebody's"
    monkeypatch.setattr(bucket, "STALE_UPLOAD", -1.0)
    store.prune()
    assert not mine.call("list_multipart_uploads").get("Uploads")
    store.close()


@pytest.mark.slow
def test_an_upload_that_somebody_gave_up_is_begun_anew(server: s3.S3, place: StoreSettings) -> None:
    """Prune does so after two days: to a run that slept so long it is an outage, and no damage."""
    pack = root_of(Store.make(place)) / "packs" / "0000000000000001.pack"
    upload = pack.begin()
    upload.write(bytes(bucket_io.PART + 1), 0)
    server.fault("POST .*uploadId", "404 NoSuchUpload", times=9)
    with pytest.raises(StoreUnreachable, match="given up"):
        upload.finish()
    server.fault()
    upload.close()
    assert not pack.exists()


@pytest.mark.parametrize(
    "what",
    ["PUT .*points", *(pytest.param(f"PUT .*{each}", marks=pytest.mark.slow) for each in ("writers", "packs", "maps"))],
)
def test_an_answer_that_is_lost(server: s3.S3, place: StoreSettings, what: str) -> None:
    """The request was done, and is sent again: it finds its own work, and not somebody else's."""
    store, disk = Store.make(place), disk_of(1)
    server.fault(what, "answer lost", times=1)
    point, _ = backup(store, disk)
    assert_content(store, point, disk)
    assert store.runs() == []
    store.close()


@pytest.mark.slow
def test_it_is_tried_again_and_then_said(server: s3.S3, place: StoreSettings) -> None:
    store, disk = Store.make(place), disk_of(1)
    server.fault("PUT .*packs", "503 SlowDown", times=1)
    first, _ = backup(store, disk)
    for how in ("503 SlowDown", "500 InternalError", "drop"):
        server.fault("PUT .*(packs|maps)", how, times=9)
        with pytest.raises(StoreUnreachable, match="the run goes on"):
            backup(store, disk_of(2), run="later", mode="full")
        server.fault()
    with store.writer("later") as writer:
        made, _ = write_disk(writer, disk_of(2), disk_of(2).allocated())
        writer.commit(make_point(first, "later", [made]))
    assert store.verify(deep=True) == []
    store.close()


@pytest.mark.slow
def test_what_is_refused_is_said_in_words(
    server: s3.S3, place: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.make(place)
    backup(store, disk_of(1))
    cases: list[tuple[str, type[UnderstudyError], str]] = [
        ("403 AccessDenied", LoginFailed, "give this access key the right"),
        ("403 InvalidAccessKeyId", LoginFailed, "does not know this access key"),
        ("403 SignatureDoesNotMatch", LoginFailed, "secret"),
        ("400 ExpiredToken", LoginFailed, "expired"),
        ("403 RequestTimeTooSkewed", LoginFailed, "clock"),
        ("507 InsufficientStorage", NoSpace, "quota"),
        ("501 NotImplemented", BadInput, "lacks something"),
        ("301 PermanentRedirect", BadInput, "another region"),
        ("409 OperationAborted", StoreUnreachable, "others write it"),
    ]
    for how, kind, words in cases:
        server.fault("PUT .*writers", how, times=9)
        with pytest.raises(kind, match=words) as caught:
            store.writer("run")
        server.fault()
        assert s3.SECRET not in _everything(caught.value) and s3.KEY not in _everything(caught.value)
    with pytest.raises(NotFound, match="there is no bucket"):
        Store.at(changed(place, bucket="no-such-bucket"))
    with pytest.raises(NotFound, match="understudy init"):
        Store.at(changed(place, prefix="elsewhere"))
    with pytest.raises(StoreUnreachable, match="does not answer"):
        Store.at(changed(place, endpoint="http://127.0.0.1:9"))
    with pytest.raises(ConfigError, match="NOT_SET"):
        Store.at(changed(place, access_key_env="NOT_SET"))
    with pytest.raises(ConfigError, match="is not there"):
        Store.at(changed(place, ca_file=tmp_path / "ca.pem"))
    store.close()


def _everything(err: BaseException | None) -> str:
    found = ""
    while err is not None:
        found += repr(err) + repr(vars(err))
        err = err.__cause__ or (None if err.__suppress_context__ else err.__context__)
    return found


def test_an_endpoint_without_conditional_writes_is_refused(server: s3.S3, place: StoreSettings) -> None:
    server.fault("PUT ", "unconditional", times=1000)
    with pytest.raises(Refused, match="does not honour conditional writes"):
        Store.make(place)
    server.fault()
    assert server.keys(place.s3.bucket if place.s3 else "") == []


@pytest.mark.slow
def test_damage_in_the_bucket_is_found_though_copies_are_here(server: s3.S3, place: StoreSettings) -> None:
    store, disk = Store.make(place), disk_of(1)
    point, _ = backup(store, disk)
    assert_content(store, point, disk)
    root = root_of(store)
    for folder in ("packs", "maps"):
        name = root / folder / (root / folder).names("")[0]
        good = name.read_bytes()
        bad = bytearray(good)
        bad[len(bad) - 100 if folder == "maps" else 5000] ^= 1
        name.put(bytes(bad))
        problems = store.verify(deep=True)
        assert problems and any(str(name) in line for line in problems)
        name.put(good)
    assert store.verify(deep=True) == []
    (root / "packs" / (root / "packs").names("")[0]).remove()
    with pytest.raises(StoreDamaged, match="is missing"):
        assert_content(Store.at(place), point, disk)
    store.close()


@pytest.mark.slow
def test_two_writers_at_once(server: s3.S3, place: StoreSettings) -> None:
    """Two VMs at the same time; and twice the same number, of which one is published."""
    store = Store.make(place)
    disks = {"vm-a": disk_of(1, 2), "vm-b": disk_of(1, 3)}
    made = {}

    def one(vm: str) -> None:
        made[vm] = backup(Store.at(place), disks[vm], vm=vm)[0]

    threads = [threading.Thread(target=one, args=(vm,)) for vm in disks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for vm, disk in disks.items():
        assert_content(store, made[vm], disk)
    writers = [store.writer(f"run-{i}") for i in range(2)]
    said = []

    def commit(i: int) -> None:
        segments, _ = write_disk(writers[i], disks["vm-a"], disks["vm-a"].allocated())
        try:
            writers[i].commit(make_point(made["vm-a"], f"run-{i}", [segments], "vm-a"))
        except Conflict as err:
            said.append(err)

    threads = [threading.Thread(target=commit, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 1 and len(store.points("vm-a")) == 2
    store.close()


KILLED = """
    import os, sys
    from tests.store.disks import *
    from tests.store.test_bucket import disk_of
    from workers import faults
    from workers.settings import StoreSettings
    from workers.store import Store

    def at(label):
        if label == sys.argv[2]:
            os._exit(9)

    faults.at = at
    backup(Store.at(StoreSettings.model_validate_json(sys.argv[1])), disk_of(7), run="killed", mode="full")
"""


@pytest.mark.parametrize("step", ["store.checked", pytest.param("store.linked", marks=pytest.mark.slow)])
def test_a_writer_that_is_killed(place: StoreSettings, step: str) -> None:
    """No secret is in its arguments; what it leaves is taken up by the next process of its run, or given up."""
    store = Store.make(place)
    first, _ = backup(store, disk_of(1))
    command = [sys.executable, "-c", textwrap.dedent(KILLED), place.model_dump_json(), step]
    assert s3.SECRET not in " ".join(command)
    environment = {**os.environ, "PYTHONPATH": str(repository.ROOT)}
    assert subprocess.run(command, env=environment, timeout=120).returncode == 9
    assert store.runs() == ["killed"]
    store.close()
    if step == "store.linked":
        assert store.newest(VM) != first
        store.prune()
    else:
        assert store.newest(VM) == first
        with store.writer("killed") as writer:
            made, _ = write_disk(writer, disk_of(7), disk_of(7).allocated())
            writer.commit(make_point(first, "killed", [made]))
    newest = store.newest(VM)
    assert newest is not None and newest.run == "killed" and store.runs() == []
    assert_content(store, newest, disk_of(7))
    store.close()


def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "id:secret")
    of = {"bucket": "b", "endpoint": "https://s3 .example.com", "access_key_env": "THE_KEY"}
    with pytest.raises(BadInput, match="not an address of an endpoint"):
        Store.at(StoreSettings.model_validate({"s3": of}))


def test_what_killed_workers_left_half_fetched_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "store", MIB)
    old, young = (cache._folder() / f".1-{name}" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(bytes(100))
    os.utime(old, times=(0, 0))
    assert cache.path("maps/1.maps", lambda into: into.write_bytes(b"map") and None).read_bytes() == b"map"
    assert not old.exists() and young.exists()


@pytest.mark.slow
def test_copies_stay_within_their_bound(place: StoreSettings, tmp_path: Path) -> None:
    store = Store.make(place.model_copy(update={"cache_size": "1MiB"}))
    for seed in range(8):
        point, _ = backup(store, disk_of(seed), mode="full")
        assert_content(store, point, disk_of(seed))
    held = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert held < 2 * MIB
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "cache").iterdir())
    assert store.verify(deep=True) == []
    store.close()
