"""One contract for all carriers: what is read is what is there, and what was flushed is what is read.

Each carrier gets the same VMDK (a descriptor and a flat file); what it changes is judged by the flat file itself.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.disks.bench import MIB, SIZE, Bench, losetup
from workers.disks.gentle import GentleReader, Pace
from workers.disks.lent import Lent
from workers.disks.nbd import NbdWriter
from workers.disks.throttle import Rate, SlowReader
from workers.errors import DiskBusy, Refused, UnderstudyError
from workers.extents import Extents
from workers.gather import fill
from workers.point import Filling, Piece


@pytest.fixture(params=["file", "nbd", "hotadd", "hotadd loop", "memory"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, apart: Path) -> Iterator[Bench]:
    if request.param == "hotadd loop" and (shutil.which("losetup") is None or os.getuid() != 0):
        pytest.skip("loop devices need root and the package mount")
    yield Bench(request.param, tmp_path)
    for link in (tmp_path / "by-id").iterdir():
        if request.param == "hotadd loop":
            losetup("--detach", str(link.readlink()))


def test_what_is_written_and_flushed_is_what_is_there(bench: Bench) -> None:
    """Pieces of every size and alignment that the store gives, zeroes among them; also read back before the end."""
    rng = random.Random(7)
    disk, expected = bench.disk(), bytearray(SIZE)
    big = rng.randbytes(5 * MIB)
    pieces = [
        Piece(0, len(big), memoryview(big)),
        Piece(len(big), MIB - 4096, None),
        Piece(6 * MIB, 4096, rng.randbytes(4096)),
        Piece(6 * MIB + 4096, 8192, rng.randbytes(8192)),
        Piece(6 * MIB + 12288, 512, rng.randbytes(512)),
        Piece(SIZE - 4096, 4096, rng.randbytes(4096)),
    ]
    cleared = [Piece(MIB, 2 * MIB + 4096, None)]
    with disk.hold(0, 0, wait=0) as held, closing(held.writer(holes=True)) as writer:
        assert writer.size == SIZE
        writer.write(pieces)
        writer.write(cleared)
        writer.flush()
        for piece in [*pieces, *cleared]:
            expected[piece.offset : piece.offset + piece.length] = piece.data or bytes(piece.length)
        (seen,) = writer.read([(6 * MIB, MIB)])
        assert bytes(seen.data or b"") == expected[6 * MIB : 7 * MIB]
    assert bench.content == expected


def test_pieces_that_overlap_or_go_back_are_refused_before_anything_is_written(bench: Bench) -> None:
    """What is under way at once has no order, so which of two overlapping pieces would stand is left to chance."""
    data = bytes([7]) * 8192
    wrong = {
        "overlaps": [Piece(0, 8192, data), Piece(4096, 8192, None)],
        "the same again": [Piece(4096, 8192, data), Piece(4096, 8192, data)],
        "goes back": [Piece(MIB, 8192, data), Piece(0, 8192, data)],
    }
    disk = bench.disk()
    with disk.hold(0, 0, wait=0) as held, closing(held.writer(holes=True)) as writer:
        for pieces in wrong.values():
            with pytest.raises(ValueError, match="begins before"):
                writer.write(pieces)
        writer.flush()
    assert not any(bench.content)


def test_ranges_come_in_order_whole_and_as_the_readers_own_memory(bench: Bench) -> None:
    content = random.Random(8).randbytes(SIZE)
    disk = bench.disk()
    bench.put(0, content)
    with closing(disk.reader()) as reader:
        assert reader.size == SIZE
        ranges = [(0, 3 * MIB), (3 * MIB + 512, 512), (4 * MIB, 100), (SIZE - 4096, 4096), (0, 4096)]
        pieces = reader.read(ranges)
        assert [(p.offset, p.length) for p in pieces] == ranges
        again = reader.read([(0, 4096)])[0]
        assert [bytes(p.data or b"") for p in pieces] == [content[o : o + n] for o, n in ranges]
        assert bytes(again.data or b"") == content[:4096]
        assert reader.read([]) == []


def test_ranges_are_laid_one_after_the_other_into_memory_that_is_given(bench: Bench) -> None:
    """By the carrier itself, and through all that may stand before it on the way."""
    content = random.Random(10).randbytes(SIZE)
    disk = bench.disk()
    bench.put(0, content)
    scattered = [(at, 4096) for at in range(MIB, 2 * MIB, 16384)]
    ranges = [(0, 70_000), *scattered, (3 * MIB + 512, 512), (4 * MIB, 3 * MIB), (SIZE - 100, 100)]
    expected = b"".join(content[offset : offset + length] for offset, length in ranges)
    with closing(disk.reader()) as reader:
        assert isinstance(reader, Filling) == (bench.carrier != "memory")  # memory takes the way of who can only read
        on_the_way = GentleReader(SlowReader(Lent(reader), Rate(1 << 40)), Pace(), lambda: None)
        assert isinstance(on_the_way, Filling)
        for each in (reader, on_the_way):
            held = bytearray(b"?" * (len(expected) + 2))
            fill(each, ranges, memoryview(held)[1:-1])
            assert held == b"?" + expected + b"?"
            fill(each, [], memoryview(b""))


def test_threads_share_a_reader(bench: Bench) -> None:
    content = random.Random(9).randbytes(SIZE)
    disk = bench.disk()
    bench.put(0, content)
    wrong: list[int] = []

    def look(seed: int, reader: object) -> None:
        rng = random.Random(seed)
        for _ in range(10):
            offset = rng.randrange(0, SIZE - 70_000)
            (piece,) = reader.read([(offset, 70_000)])  # type: ignore[attr-defined]
            if bytes(piece.data or b"") != content[offset : offset + 70_000]:
                wrong.append(offset)

    with closing(disk.reader()) as reader:
        threads = [threading.Thread(target=look, args=(seed, reader)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_what_is_not_allocated_reads_as_zeroes(bench: Bench) -> None:
    disk = bench.disk()
    bench.put(2 * MIB, b"x" * 65536)
    with closing(disk.reader()) as reader:
        allocated = reader.allocated()
        assert allocated.clip(2 * MIB, 2 * MIB + 65536).total == 65536
        outside = Extents.whole(SIZE) - allocated
        if bench.carrier in ("file", "nbd"):  # a device and memory do not know what was never written
            assert outside.total >= SIZE // 2
        assert all(not any(p.data or b"") for p in reader.read(list(outside)))


def test_what_is_allocated_can_be_asked_for_a_part(bench: Bench) -> None:
    """As the whole answer says of that part, also where data begins before it or ends after it."""
    disk = bench.disk()
    bench.put(2 * MIB, b"x" * MIB)
    bench.put(SIZE - 65536, b"y" * 65536)
    with closing(disk.reader()) as reader:
        whole = reader.allocated()
        inside = (2 * MIB + 65536, 2 * MIB + 131072)
        for start, end in ((0, MIB), (0, 3 * MIB), inside, (MIB, SIZE), (5 * MIB, SIZE + MIB), (0, 0)):
            assert reader.allocated(start, end) == whole.clip(start, end), (start, end)
        assert reader.allocated(MIB) == whole.clip(MIB, SIZE)


def test_what_is_beyond_the_end_is_an_error_and_changes_nothing(bench: Bench) -> None:
    disk = bench.disk()
    with disk.hold(0, 0, wait=0) as held, closing(held.writer(holes=True)) as writer:
        with pytest.raises(ValueError, match="beyond the disk"):
            writer.write([Piece(SIZE - 512, 4096, bytes(4096))])
        with pytest.raises(UnderstudyError):
            writer.read([(SIZE - 512, 4096)])
    assert len(bench.content) == SIZE


def test_a_closed_disk_is_closed_twice_without_harm(bench: Bench) -> None:
    reader = bench.disk().reader()
    reader.read([(0, 4096)])
    reader.close()
    reader.close()


def test_nothing_that_stands_on_a_snapshot_is_written(bench: Bench) -> None:
    bench.disk()
    delta = bench.disk("a-000001", parent="a.vmdk")
    with pytest.raises(Refused, match="snapshot"), delta.hold(0, 0, wait=0) as held:
        held.writer(holes=True)


def test_one_writer_at_a_time(bench: Bench) -> None:
    """A range, or the whole disk where the carrier says so; who comes later waits, then is told."""
    disk, other = bench.disk(), bench.disk()
    with disk.hold(0, MIB, wait=0):
        with pytest.raises(DiskBusy), other.hold(0, 4096, wait=0):
            raise AssertionError("held twice")
        with pytest.raises(DiskBusy), other.still(wait=0):
            raise AssertionError("still while somebody writes")
        if not disk.whole:
            with other.hold(2 * MIB, MIB, wait=0):
                pass
    with other.still(wait=0), closing(other.reader()) as reader:
        reader.read([(0, 4096)])
    with other.hold(0, MIB, wait=0):
        pass


def test_a_disk_under_a_snapshot_is_locked_without_the_right_to_write_it(bench: Bench) -> None:
    """On vVols and on vSAN nobody may open it to be written; who wrote before the snapshot is waited for as ever."""
    writing, frozen = bench.disk(), bench.disk(frozen=True)
    with writing.hold(0, MIB, wait=0):
        bench.disk("a-000001", parent="a.vmdk")
        with pytest.raises(DiskBusy), frozen.still(wait=0):
            raise AssertionError("still while somebody writes")
    if bench.carrier in ("nbd", "hotadd", "hotadd loop"):  # the file carrier's lock is its own
        with pytest.raises(UnderstudyError), writing.still(wait=0):
            raise KeyError("a disk was opened to be written that a snapshot stands on")
    with frozen.still(wait=0), closing(frozen.reader()) as reader:
        reader.read([(0, 4096)])


def test_what_we_write_leaves_the_content_id_that_we_gave(bench: Bench) -> None:
    disk = bench.disk()
    disk.renew("0badcafe")
    assert disk.content_id() == "0badcafe"
    with disk.hold(0, MIB, wait=0) as held, closing(held.writer(holes=True)) as writer:
        writer.write([Piece(0, 4096, b"y" * 4096)])
        writer.flush()
    assert disk.content_id() == "0badcafe"
    assert "CID=0badcafe" in (bench.folder / "a.vmdk").read_text()
    assert disk.capacity() == SIZE


@pytest.mark.parametrize("bench", ["nbd", "hotadd", "hotadd loop"], indirect=True)
@pytest.mark.parametrize("closed", [True, False], ids=["and has gone", "and has it open"])
def test_who_writes_before_the_content_id_comes_back_is_seen(
    bench: Bench, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that had the disk just after us, and wrote: what it left is not taken for ours."""
    disk = bench.disk()
    disk.renew("0badcafe")
    with ExitStack() as stack:
        with disk.hold(0, MIB, wait=0) as held:
            with closing(held.writer(holes=True)) as writer:
                writer.write([Piece(0, 4096, b"y" * 4096)])
                writer.flush()
            opening = "_alone" if bench.carrier == "nbd" else "_attached"
            unchanged = getattr(disk, opening)

            def beside(wait: float) -> object:
                monkeypatch.setattr(disk, opening, unchanged)
                foreign = stack.enter_context(closing(unchanged(wait)))
                if bench.carrier == "nbd":
                    NbdWriter(foreign).write([Piece(8192, 4096, b"f" * 4096)])
                else:
                    bench.put(8192, b"f" * 4096)
                if closed:
                    stack.close()
                return unchanged(wait)

            monkeypatch.setattr(disk, opening, beside)
    assert bench.content[8192:12288] == b"f" * 4096
    assert disk.content_id() != "0badcafe"


def test_a_disk_that_is_not_there_is_named(bench: Bench) -> None:
    missing: Callable[[], object] = bench.to(bench.folder / "none.vmdk").reader
    with pytest.raises(UnderstudyError, match=r"none\.vmdk"):
        missing()


def test_the_first_error_is_the_one_to_be_told(bench: Bench) -> None:
    """Also where letting go fails after it, for the descriptor can not be had any more."""
    disk = bench.disk()
    with pytest.raises(KeyError, match="first"), disk.hold(0, MIB, wait=0) as held:
        with closing(held.writer(holes=True)) as writer:
            writer.write([Piece(0, 4096, b"z" * 4096)])
        (bench.folder / "a.vmdk").unlink()
        raise KeyError("first")
