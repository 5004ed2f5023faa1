"""One contract for all carriers: what is read is what is there, and what was flushed is what is read.

Each carrier gets the same VMDK (a descriptor and a flat file); what it changes is judged by the flat file itself.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.disks.standin import Standin
from tests.disks.test_file import make
from workers.disks.carrier import Carrier
from workers.disks.mounted import Mounted
from workers.disks.nbd import Nbd
from workers.disks.nbdkit import Export
from workers.errors import DiskBusy, Refused, UnderstudyError
from workers.extents import Extents
from workers.point import Piece

MIB = 1 << 20
SIZE = 8 * MIB


class FileText:
    """A descriptor that is fetched and put back whole, as through vCenter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = f"[ds1] {path.parent.name}/{path.name}"

    def get(self) -> str:
        return self.path.read_text("latin-1")

    def put(self, text: str) -> None:
        self.path.write_text(text, "latin-1")


class Bench:
    """A VM's folder on a datastore, and a carrier to each disk in it."""

    def __init__(self, carrier: str, folder: Path, standin: Standin | None) -> None:
        self.carrier = carrier
        self.folder = folder
        self.standin = standin

    def disk(self, name: str = "a", size: int = SIZE, parent: str = "") -> Carrier:
        descriptor = self.folder / f"{name}.vmdk"
        if not descriptor.exists():
            make(self.folder, name, size, parent)
        return self.to(descriptor)

    def to(self, descriptor: Path) -> Carrier:
        if self.standin is None:
            return Mounted(descriptor)
        file = f"[ds1] vm/{descriptor.name}"
        login = {"server": "127.0.0.1", "port": 443, "user": "u", "password": lambda: "p", "thumbprint": "AA:BB"}
        return Nbd(Export(self.standin.library, vm="vm-1", file=file, run="run-1", **login), FileText(descriptor))

    def flat(self, name: str = "a") -> Path:
        return self.folder / f"{name}-flat.vmdk"


@pytest.fixture(params=["file", "nbd"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    folder = tmp_path / "ds1" / "vm"
    folder.mkdir(parents=True)
    standin = None
    if request.param == "nbd":
        standin = Standin(tmp_path / "vddk", {"ds1": tmp_path / "ds1"}, user="u", password="p", thumbprint="AA:BB")
    yield Bench(request.param, folder, standin)


def test_what_is_written_and_flushed_is_what_is_there(bench: Bench) -> None:
    """Pieces of every size and alignment that the store gives, zeroes among them; also read back before the end."""
    rng = random.Random(7)
    disk, expected = bench.disk(), bytearray(SIZE)
    big = rng.randbytes(5 * MIB)
    pieces = [
        Piece(0, len(big), memoryview(big)),
        Piece(6 * MIB, 4096, rng.randbytes(4096)),
        Piece(6 * MIB + 4096, 8192, rng.randbytes(8192)),
        Piece(6 * MIB + 12288, 512, rng.randbytes(512)),
        Piece(SIZE - 4096, 4096, rng.randbytes(4096)),
        Piece(MIB, 2 * MIB + 4096, None),
    ]
    with disk.hold(0, 0, wait=0) as held, closing(held.writer(holes=True)) as writer:
        assert writer.size == SIZE
        writer.write(pieces)
        writer.flush()
        for piece in pieces:
            expected[piece.offset : piece.offset + piece.length] = piece.data or bytes(piece.length)
        (seen,) = writer.read([(6 * MIB, MIB)])
        assert bytes(seen.data or b"") == expected[6 * MIB : 7 * MIB]
    assert bench.flat().read_bytes() == expected


def test_ranges_come_in_order_whole_and_as_the_readers_own_memory(bench: Bench) -> None:
    content = random.Random(8).randbytes(SIZE)
    disk = bench.disk()
    bench.flat().write_bytes(content)
    with closing(disk.reader()) as reader:
        assert reader.size == SIZE
        ranges = [(0, 3 * MIB), (3 * MIB + 512, 512), (4 * MIB, 100), (SIZE - 4096, 4096), (0, 4096)]
        pieces = reader.read(ranges)
        assert [(p.offset, p.length) for p in pieces] == ranges
        again = reader.read([(0, 4096)])[0]
        assert [bytes(p.data or b"") for p in pieces] == [content[o : o + n] for o, n in ranges]
        assert bytes(again.data or b"") == content[:4096]
        assert reader.read([]) == []


def test_threads_share_a_reader(bench: Bench) -> None:
    content = random.Random(9).randbytes(SIZE)
    disk = bench.disk()
    bench.flat().write_bytes(content)
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
    with open(bench.flat(), "r+b") as flat:
        flat.seek(2 * MIB)
        flat.write(b"x" * 65536)
    with closing(disk.reader()) as reader:
        allocated = reader.allocated()
        assert allocated.clip(2 * MIB, 2 * MIB + 65536).total == 65536
        outside = Extents.whole(SIZE) - allocated
        assert outside.total >= SIZE // 2
        assert all(not any(p.data or b"") for p in reader.read(list(outside)))


def test_what_is_beyond_the_end_is_an_error_and_changes_nothing(bench: Bench) -> None:
    disk = bench.disk()
    with disk.hold(0, 0, wait=0) as held, closing(held.writer(holes=True)) as writer:
        with pytest.raises(ValueError, match="beyond the disk"):
            writer.write([Piece(SIZE - 512, 4096, bytes(4096))])
        with pytest.raises(UnderstudyError):
            writer.read([(SIZE - 512, 4096)])
    assert bench.flat().stat().st_size == SIZE


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


def test_a_disk_that_is_not_there_is_named(bench: Bench) -> None:
    missing: Callable[[], object] = bench.to(bench.folder / "none.vmdk").reader
    with pytest.raises(UnderstudyError, match=r"none\.vmdk"):
        missing()
