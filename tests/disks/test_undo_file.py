"""Undo files on real files: whatever is cut off, damaged or doubled, a disk comes back as it was, or not at all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.disks.test_file import make
from workers import faults
from workers.disks import undo_file
from workers.disks.file import FileLock, FileWriter
from workers.disks.saving import Saving
from workers.disks.undo_file import UndoFile
from workers.errors import NoSpace, NotFound, StoreDamaged
from workers.extents import GRANULE
from workers.point import BATCH, Piece

MIB = 1 << 20
SIZE = 1 * MIB


class Died(Exception):
    """The worker."""


class Disk:
    """A disk with some content, and its undo file."""

    def __init__(self, folder: Path, size: int = SIZE, seed: int = 0, *, full: bool = False) -> None:
        self.vmdk = make(folder, "disk", size)
        self.undo = folder / "undo"
        rng = random.Random(seed)
        with open(self.flat, "r+b") as file:
            for _ in range(3):  # and holes between
                file.seek(rng.randrange(size // GRANULE) * GRANULE)
                file.write(rng.randbytes(min(rng.randrange(1, size // 4), size - file.tell())))
        if full:
            self.flat.write_bytes(rng.randbytes(size))
        self.before = self.flat.read_bytes()
        undo_file.create(self.undo, size)

    @property
    def flat(self) -> Path:
        return self.vmdk.with_name("disk-flat.vmdk")

    def saving(self, start: int = 0, end: int = SIZE) -> closing[Saving]:
        return closing(Saving(FileWriter(self.vmdk), UndoFile(self.undo), start, end))

    def write(self, *ranges: tuple[int, int], fill: bytes = b"new!") -> None:
        with self.saving() as disk:
            disk.write([Piece(offset, n, (fill * (-(-n // len(fill))))[:n]) for offset, n in ranges])

    def restored(self) -> bytes:
        with closing(UndoFile(self.undo)) as undo, closing(FileWriter(self.vmdk)) as disk:
            for batch in undo.covered.batches(BATCH):
                disk.write(undo.read(batch))
        return self.flat.read_bytes()


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, step: str, doing: Callable[[], object] | None = None) -> Iterator[None]:
    """The worker ends at a step, or something else happens there."""

    def at(label: str) -> None:
        if label == step:
            if doing is None:
                raise Died
            monkeypatch.setattr(faults, "at", lambda _: None)
            doing()

    with monkeypatch.context() as patch:
        patch.setattr(faults, "at", at)
        yield


def test_what_was_overwritten_comes_back_and_is_kept_once(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.write((0, 100_000 // GRANULE * GRANULE), (500 * 1024, 8192))
    kept = disk.undo.stat().st_size
    disk.write((0, 40960), fill=b"newer")
    assert disk.undo.stat().st_size == kept, "it held half of something newer by then"
    disk.write((40960, 300 * 1024))
    assert disk.undo.stat().st_size > kept
    assert disk.flat.read_bytes() != disk.before
    assert disk.restored() == disk.before


def test_zeroes_and_what_compresses_take_little(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 8 * MIB)
    with open(disk.flat, "r+b") as file:
        file.truncate(0)
        file.truncate(8 * MIB)
        file.seek(4 * MIB)
        file.write(b"a line of a log\n" * (MIB // 16))
    disk.before = disk.flat.read_bytes()
    with disk.saving(end=8 * MIB) as writer:
        writer.write([Piece(0, 8 * MIB, random.Random(1).randbytes(8 * MIB))])
    with closing(UndoFile(disk.undo)) as undo:
        assert undo.taken < 64 << 10
    assert disk.restored() == disk.before


STEPS = ["undo.reserved", "undo.written", "undo.synced", "undo.saved"]


@pytest.mark.parametrize("step", STEPS)
def test_a_save_that_is_cut_off_is_nothing_or_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    disk = Disk(tmp_path)
    disk.write((0, 8192))
    with dying(monkeypatch, step), pytest.raises(Died):
        disk.write((65536, 65536))
    assert disk.flat.read_bytes()[65536:131072] == disk.before[65536:131072], "nothing is overwritten before it is kept"
    disk.write((131072, 8192))  # behind what was cut off
    disk.write((65536, 65536), fill=b"later")
    assert disk.restored() == disk.before


def test_a_record_of_which_the_disk_has_only_a_part_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine went down before the sync: pages of it are missing, also the one that describes it."""
    disk = Disk(tmp_path, full=True)
    for lost in (0, 4096, 20480):
        at = disk.undo.stat().st_size
        with dying(monkeypatch, "undo.written"), pytest.raises(Died):
            disk.write((0, 65536))
        with open(disk.undo, "r+b") as file:
            file.seek(at + lost)
            file.write(bytes(4096))
    disk.write((0, 65536))
    assert disk.restored() == disk.before


def test_what_was_kept_and_is_damaged_is_named_and_never_taken_for_cut_off(tmp_path: Path) -> None:
    disk = Disk(tmp_path, full=True)
    disk.write((0, 65536))
    disk.write((65536, 65536))
    whole = disk.undo.read_bytes()
    second = 4096 + len(whole[4096:]) // 2
    for at in (3, 4096 + 20, 4096 + 520, second // 4096 * 4096 + 4096 - 700, len(whole) // 3):
        disk.undo.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        now = disk.flat.read_bytes()
        try:
            assert disk.restored() == disk.before, f"a flipped bit at {at} came through"
        except StoreDamaged as err:
            assert str(disk.undo) in str(err)
        disk.flat.write_bytes(now)
    disk.undo.unlink()
    with pytest.raises(NotFound, match="is gone"):
        UndoFile(disk.undo)


def test_of_two_records_of_one_range_the_first_counts(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.saving() as one, disk.saving() as other:  # the second opened before the first had saved
        one.write([Piece(0, 65536, b"1" * 65536)])
        other.write([Piece(32768, 65536, b"2" * 65536)])
    assert disk.restored() == disk.before


def test_threads_of_two_workers_append_to_one_file(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 8 * MIB)
    rng = random.Random(3)

    def write(worker: Saving, offset: int) -> None:
        worker.write([Piece(offset, 32768, rng.randbytes(32768))])

    half = 4 * MIB
    with disk.saving(0, half) as one, disk.saving(half, 2 * half) as other, ThreadPoolExecutor(4) as pool:
        for done in [
            pool.submit(write, worker, base + step)
            for step in range(0, half, 128 << 10)
            for worker, base in ((one, 0), (other, half))
        ]:
            done.result()
    assert disk.restored() == disk.before


def test_a_record_that_is_being_written_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens the file reads without a lock: of a sector that another worker writes he may see a part."""
    disk = Disk(tmp_path)
    disk.write((0, 8192))
    with open(disk.undo, "r+b", buffering=0) as file:
        whole = os.pread(file.fileno(), 512, 4096)
        os.pwrite(file.fileno(), bytes(400), 4096 + 100)
        seen, real = threading.Event(), UndoFile._record

        def record(self: UndoFile, sector: bytes, position: int) -> object:
            found = real(self, sector, position)
            seen.set()
            return found

        monkeypatch.setattr(UndoFile, "_record", record)  # it only says when it is there: no step is so deep
        with ThreadPoolExecutor(1) as pool:
            with FileLock(disk.undo).lock(0, 1, wait=0):
                opened = pool.submit(UndoFile, disk.undo)
                assert seen.wait(20)
                os.pwrite(file.fileno(), whole, 4096)
            with closing(opened.result(20)) as undo:
                assert undo.covered.total == 8192


def test_a_full_datastore_is_a_sentence_and_nothing_is_overwritten(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], check=True)
    try:
        disk = Disk(tmp_path, full=True)
        disk.undo.unlink()
        disk.undo = small / "undo"
        undo_file.create(disk.undo, SIZE)
        disk.write((0, 200 << 10))
        took = disk.undo.stat().st_size
        now = disk.flat.read_bytes()
        for _ in range(3):
            with pytest.raises(NoSpace, match=r"no space left at .*nothing of that range was overwritten"):
                disk.write((512 << 10, 500 << 10))
            assert disk.undo.stat().st_size == took, "what could not be kept takes no space"
        assert disk.flat.read_bytes() == now
        disk.write((512 << 10, 100 << 10))
        assert disk.restored() == disk.before
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_sync_that_fails_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the device can not be had on demand, so fdatasync is told to fail."""
    disk = Disk(tmp_path)

    def fails(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "fdatasync", fails)
        disk.write((0, 65536))
    assert disk.flat.read_bytes() == disk.before
    with closing(UndoFile(disk.undo)) as undo:
        assert not undo.covered


WRITE = st.tuples(
    st.integers(0, 31), st.integers(1, 12), st.sampled_from([*STEPS, "", "", "", "half"]), st.integers(0, 255)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(WRITE, min_size=1, max_size=4), min_size=1, max_size=6), st.integers(0, 100))
def test_any_life_can_be_undone(
    tmp_path_factory: pytest.TempPathFactory, lives: list[list[tuple[int, int, str, int]]], seed: int
) -> None:
    """Writers of the two halves of a disk in turns, each of which may die at any step and is followed by another."""
    grain, half = 16 << 10, 32
    disk = Disk(tmp_path_factory.mktemp("life"), 2 * half * grain, seed)
    for life in lives:
        workers: list[Saving | None] = [None, None]
        for number, (first, count, fate, fill) in enumerate(life):
            side = number % 2
            base = side * half
            worker = workers[side] or Saving(
                FileWriter(disk.vmdk), UndoFile(disk.undo), base * grain, (base + half) * grain
            )
            workers[side] = None
            start, end = (base + first) * grain, min(base + first + count, base + half) * grain
            # the loop hands each range out once to one opening of the undo file
            if _dies(worker, [Piece(start, end - start, bytes([fill]) * (end - start))], fate):
                continue
            worker.close()
    assert disk.restored() == disk.before
    assert disk.restored() == disk.before, "a second time, too"


def _dies(worker: Saving, pieces: Sequence[Piece], fate: str) -> bool:
    def at(label: str) -> None:
        if label == fate:
            raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "at", at)
        if fate == "half":
            real = worker._disk

            class Half:
                size, read, close = real.size, real.read, real.close

                def write(self, pieces: Sequence[Piece]) -> None:
                    (piece,) = pieces
                    assert piece.data is not None
                    real.write([Piece(piece.offset, piece.length // 2, piece.data[: piece.length // 2])])
                    raise Died

            worker._disk = Half()  # type: ignore[assignment]
        try:
            worker.write(pieces)
        except Died:
            worker.close()  # the kernel does that for a process
            return True
        return False


def test_processes_that_write_one_disk_and_are_killed_at_any_step(tmp_path: Path) -> None:
    """Three workers, each in its third of the disk; whoever is killed is followed by another one in the same place."""
    part = 2 * MIB
    disk = Disk(tmp_path, 3 * part, full=True)
    rng, deaths = random.Random(7), 0
    for _ in range(6):
        workers = [_worker(disk, start, part, rng.randrange(1 << 30)) for start in range(0, 3 * part, part)]
        deaths += sum(os.waitpid(pid, 0)[1] == signal.SIGKILL for pid in workers)
    assert deaths > 5
    assert disk.flat.read_bytes() != disk.before
    assert disk.restored() == disk.before


def _worker(disk: Disk, start: int, length: int, seed: int) -> int:
    if pid := os.fork():
        return pid
    try:
        rng = random.Random(seed)
        faults.at = lambda _: os.kill(os.getpid(), signal.SIGKILL) if rng.random() < 0.03 else None  # type: ignore[assignment]
        with disk.saving(start, start + length) as writer:
            for offset in rng.sample(range(start, start + length, 64 << 10), 12):
                writer.write([Piece(offset, 64 << 10, rng.randbytes(64 << 10))])
        os._exit(0)
    finally:
        os._exit(1)
