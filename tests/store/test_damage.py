"""Damage is named and never returned as data; what is too new is refused; a full disk is a sentence."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.disks import VM, MemoryDisk, assert_content, backup, make_point, noise, write_disk
from workers.errors import BadInput, NoSpace, NotFound, StoreDamaged, StoreTooNew, UnderstudyError
from workers.extents import Extents
from workers.store import Store

MIB = 1 << 20


def small() -> MemoryDisk:
    disk = MemoryDisk(8 * MIB)
    disk.put(0, noise(MIB, 1))
    disk.put(2 * MIB, b"compressible " * 50_000)
    disk.put(4 * MIB, noise(4096, 2))
    return disk


@pytest.fixture
def filled(store: Store) -> tuple[Store, list[MemoryDisk]]:
    disk = small()
    states = []
    for i in range(3):
        disk.put(i * 40960, noise(8192, 10 + i))
        states.append(disk.copy())
        backup(store, disk)
    return store, states


def use(path: Path, states: list[MemoryDisk]) -> None:
    """Reads all that can be read: each byte is right, or it raises."""
    store = Store.open(path)
    points = store.points(VM)
    assert len(points) == len(states)
    for point, state in zip(points, states, strict=True):
        assert_content(store, point, state)
    for a, x in zip(points, states, strict=True):
        for b, y in zip(points, states, strict=True):
            assert not y.differs(x) - store.diff(a.disks[0], b.disks[0])


def needed_files(path: Path) -> list[Path]:
    return [path / "store.json", *(f for sub in ("packs", "maps", "points") for f in sorted((path / sub).rglob("*.*")))]


def files_of(path: Path) -> list[Path]:
    return [file for file in needed_files(path) if file.is_file()]


def test_every_flipped_bit_is_found_or_harmless(filled: tuple[Store, list[MemoryDisk]], tmp_path: Path) -> None:
    store, states = filled
    dice = random.Random(7)
    caught = 0
    for file in files_of(store.path):
        data = file.read_bytes()
        spots = {0, 9, 20, 64, 4095, 4096, 4100, 4160, len(data) - 1, len(data) - 40, len(data) - 60, len(data) // 2}
        spots |= {dice.randrange(len(data)) for _ in range(8)}
        for spot in sorted(spot for spot in spots if 0 <= spot < len(data)):
            bad = bytearray(data)
            bad[spot] ^= 1 << dice.randrange(8)
            file.write_bytes(bad)
            try:
                use(store.path, states)
            except (StoreDamaged, StoreTooNew, NotFound) as err:
                assert file.name in str(err) or file.parent.name == "points", f"{err} does not name {file}"
                caught += 1
            file.write_bytes(data)
    assert caught > 60
    use(store.path, states)


def test_cut_and_missing_files(filled: tuple[Store, list[MemoryDisk]]) -> None:
    store, states = filled
    for file in files_of(store.path):
        if file.suffix == ".json":
            continue
        data = file.read_bytes()
        for length in (0, 10, 4096, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:length])
            with pytest.raises(StoreDamaged, match=file.name):
                use(store.path, states)
                # A file of maps is read past its trailer only by `verify`.
                raise StoreDamaged(str(file)) if file.suffix == ".maps" else AssertionError
            assert file.suffix == ".maps" or any(file.name in problem for problem in store_problems(store.path))
        file.unlink()
        with pytest.raises(StoreDamaged, match="missing"):
            use(store.path, states)
        assert any(file.name in problem for problem in store_problems(store.path))
        file.write_bytes(data)


def store_problems(path: Path) -> list[str]:
    return Store.open(path).verify(deep=True)


def test_verify_names_the_pack_and_says_what_to_do(filled: tuple[Store, list[MemoryDisk]]) -> None:
    store, _ = filled
    pack = max((store.path / "packs").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[4096 + 1000] ^= 0x10
    pack.write_bytes(data)
    assert Store.open(store.path).verify() == []
    problems = store_problems(store.path)
    assert len(problems) == 1 and pack.name in problems[0] and "The next backup of each of these VMs" in problems[0]


def test_a_damaged_pack_that_was_moved_away_is_made_up_for(filled: tuple[Store, list[MemoryDisk]]) -> None:
    """What the error says helps: the next full stores the content anew, and the pack is not missed by prune."""
    store, states = filled
    max((store.path / "packs").iterdir(), key=lambda path: path.stat().st_size).unlink()
    fresh = Store.open(store.path)
    point, _ = backup(fresh, states[-1], mode="full")
    assert_content(fresh, point, states[-1])
    for old in fresh.points(VM)[:-1]:
        fresh.retire(VM, old.id)
    fresh.prune()
    assert fresh.verify(deep=True) == []
    assert_content(fresh, point, states[-1])


def test_a_damaged_blob_is_not_reused_by_the_next_full(filled: tuple[Store, list[MemoryDisk]]) -> None:
    """A pack whose trailer is damaged counts as absent for dedup: the next full stores its content again."""
    store, states = filled
    pack = max((store.path / "packs").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[-100] ^= 1
    data[-40] ^= 1
    pack.write_bytes(data)
    fresh = Store.open(store.path)
    point, made = backup(fresh, states[-1], mode="full")
    assert made[0].stored > MIB // 2
    assert_content(fresh, point, states[-1])


@pytest.mark.parametrize("kind", ["store", "point", "pack", "maps", "index", "tombstone"])
def test_what_is_too_new_is_refused(filled: tuple[Store, list[MemoryDisk]], kind: str) -> None:
    store, states = filled
    path = store.path
    if kind == "store":
        _json(path / "store.json", 9)
    elif kind == "point":
        file = sorted((path / "points" / VM).iterdir())[0]
        file.write_bytes(re.sub(rb'^{"format":\d,', b'{"format":9,', file.read_bytes()))
    elif kind in ("pack", "maps"):
        for file in (path / f"{kind.removesuffix('s')}s").iterdir():
            _patch(file, 8)
    elif kind == "index":
        for file in (path / "index").glob("*.idx"):
            _patch(file, 8)
        use(path, states)
        assert any("format 9" in problem for problem in Store.open(path).verify())
        return
    else:
        _json(path / "tombs" / "0000000000000001.json", 9)
        with pytest.raises(StoreTooNew, match="format 9"):
            store.prune()
        return
    with pytest.raises(StoreTooNew, match="format 9"):
        use(path, states)


def _json(file: Path, version: int) -> None:
    data = json.loads(file.read_bytes()) if file.exists() else {"packs": [], "maps": []}
    file.write_text(json.dumps(data | {"format": version}))


def _patch(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] = 9
    file.write_bytes(data)


def test_create_and_open(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no store"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match=r"letter\.txt"):
        Store.create(tmp_path / "used")
    store = Store.create(tmp_path / "store")
    assert Store.create(tmp_path / "store").id == store.id == Store.open(tmp_path / "store").id
    (store.path / "store.json").write_text("{")
    with pytest.raises(StoreDamaged, match=r"store\.json"):
        Store.open(store.path)
    backup(Store.create(tmp_path / "lost"), small())
    (tmp_path / "lost" / "store.json").unlink()
    with pytest.raises(BadInput, match=r"restore store\.json"):
        Store.create(tmp_path / "lost")


# --- full and failing file systems ------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tiny", mount]).returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_full_store_says_so_and_stays_whole(tiny: Path) -> None:
    store = Store.create(tiny / "store")
    disk = MemoryDisk(64 * MIB)
    disk.put(0, noise(2 * MIB, 1))
    first, _ = backup(store, disk)
    before = disk.copy()
    disk.put(8 * MIB, noise(12 * MIB, 2))
    with pytest.raises(NoSpace, match=str(tiny)):
        backup(store, disk, disk.differs(before), run="too-big")
    assert store.newest(VM) == first and store.verify(deep=True) == []
    assert_content(store, first, before)
    store.abandon("too-big")
    store.prune()
    used = sum(file.stat().st_size for file in (tiny / "store" / "packs").iterdir())
    assert used < 3 * MIB
    disk = before.copy()
    disk.put(8 * MIB, noise(MIB, 3))
    point, _ = backup(store, disk, disk.differs(before))
    assert_content(store, point, disk)


def test_every_write_may_find_the_store_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC at the n-th write, for each n: a sentence, and the store is as before."""
    disk = small()
    first, _ = backup(store, disk)
    before = disk.copy()
    disk.put(0, noise(MIB, 5))
    real = os.pwrite
    for n in range(100):
        count = [0]

        def full(fd: int, data: memoryview, offset: int, n: int = n, count: list[int] = count) -> int:
            count[0] += 1
            if count[0] > n:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", full)  # a real file system is not full at just the n-th write
        try:
            point, _ = backup(store, disk, disk.differs(before), run=f"run-{n}")
        except NoSpace as err:
            monkeypatch.setattr(os, "pwrite", real)
            assert str(store.path) in str(err)
            assert store.newest(VM) == first
            store.abandon(f"run-{n}")
            store.prune()
            assert len(list((store.path / "packs").iterdir())) == 1
        else:
            assert n > 4
            assert_content(store, point, disk)
            return
    pytest.fail("the backup never got through")


def test_hole_22_after_a_failed_fsync_nothing_more_is_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a lost write once: a second fsync that succeeds would lie."""
    disk, real, failed = small(), os.fsync, list[int]()

    def fsync(fd: int) -> None:
        if ".pack" in os.readlink(f"/proc/self/fd/{fd}") and not failed:
            failed.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)  # a real EIO needs a failing device
    with store.writer("run") as writer:
        made, _ = write_disk(writer, disk, disk.allocated())
        with pytest.raises(OSError, match="Input/output"):
            writer.flush()
        for action in (writer.flush, lambda: writer.commit(make_point(None, "run", [made]))):
            with pytest.raises(UnderstudyError, match="an earlier write"):
                action()
    assert store.newest(VM) is None and failed


def test_an_error_of_the_source_is_passed_on_and_the_writer_goes_on(store: Store) -> None:
    disk = small()
    with store.writer("run") as writer:
        broken = disk.copy()
        broken.read = _fails  # type: ignore[method-assign, assignment]
        with pytest.raises(ConnectionError):
            write_disk(writer, broken, Extents.whole(disk.size))
        made, _ = write_disk(writer, disk, disk.allocated())
        point = make_point(None, "run", [made])
        writer.commit(point)
    assert_content(store, point, disk)


def _fails(batch: object) -> None:
    raise ConnectionError("the host went away")


def test_a_store_without_o_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuses(path: os.PathLike[str] | str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_DIRECT:
            real(path, flags & ~os.O_DIRECT, mode, dir_fd=dir_fd)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuses)  # which file systems have it differs by kernel
    store = Store.create(tmp_path / "store")
    point, _ = backup(store, small())
    assert_content(store, point, small())


def test_a_copy_of_a_store_is_a_store(filled: tuple[Store, list[MemoryDisk]], tmp_path: Path) -> None:
    store, states = filled
    shutil.copytree(store.path, tmp_path / "copy")
    use(tmp_path / "copy", states)
