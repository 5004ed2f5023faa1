"""One contract for all carriers: what is read is what is there, and what was flushed is what is read.

Each carrier gets the same VMDK (a descriptor and a flat file); what it changes is judged by the flat file itself.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from tests.disks.standin import Standin
from tests.disks.test_file import make
from workers.disks.carrier import Carrier
from workers.disks.described import Described
from workers.disks.hotadd import Hotadd
from workers.disks.memory import MemoryDisk
from workers.disks.mounted import Mounted
from workers.disks.nbd import Nbd, NbdWriter
from workers.disks.nbdkit import Export
from workers.errors import DiskBusy, NotFound, Refused, UnderstudyError
from workers.extents import Extents
from workers.point import Piece
from workers.settings.places import CarrierName

MIB = 1 << 20
SIZE = 8 * MIB


class FileText:
    """A descriptor that is fetched and put back whole, as through vCenter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = f"[ds1] {path.parent.name}/{path.name}"

    def get(self) -> str:
        try:
            return self.path.read_text("latin-1")
        except FileNotFoundError as err:
            raise NotFound(f"{self.file} is not there") from err

    def put(self, text: str) -> None:
        self.path.write_text(text, "latin-1")


class Looked(FileText):
    """A descriptor that is asked for while its disk may be attached."""

    slot: Plugged

    def get(self) -> str:
        self.slot.look()
        return super().get()


class Plugged:
    """The worker's VM with a place for the disk: what is attached shows as a device, the flat file or a loop device.

    As a host it gives a disk another content id at the first write; that there was one shows when somebody looks.
    """

    def __init__(self, text: FileText, devices: Path, loop: bool) -> None:
        self.file = text.file
        self._text = text
        self._loop = loop
        self._uuid = f"6000C29{abs(hash(text.file)) % (1 << 100):025x}"
        self._link = devices / f"wwn-0x{self._uuid.lower()}"
        self._was: bytes | None = None
        self._flat = text.path.with_name(text.path.stem + "-flat.vmdk")

    def attach(self, *, write: bool) -> str:
        assert not self._link.is_symlink(), "attached twice"
        if write and f'parentFileNameHint="{self._text.path.name}"' in _texts(self._flat.parent):
            raise Refused(f"{self.file} is read-only: a snapshot stands on it, on a vVol or on vSAN")
        self._was = self._flat.read_bytes() if write else None
        self._link.symlink_to(losetup("--find", "--show", str(self._flat)) if self._loop else self._flat)
        return self._uuid

    def look(self) -> None:
        if self._was is not None and self._was != self._flat.read_bytes():
            self._was = None
            FileText.put(
                self._text, re.sub(r"(?m)^CID=.*", f"CID={random.getrandbits(31):08x}", FileText.get(self._text))
            )

    def detach(self) -> None:
        if self._link.is_symlink():
            if self._loop:
                losetup("--detach", str(self._link.readlink()))
            self._link.unlink()
            self.look()


def _texts(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*.vmdk") if "-flat" not in path.name)


def losetup(*arguments: str) -> str:
    done = subprocess.run(["losetup", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop device can be had here: {done.stderr.strip()}")
    return done.stdout.strip()


class InMemory:
    """workers.disks.memory as a carrier."""

    name: ClassVar[CarrierName] = "file"
    whole: ClassVar[bool] = False

    def __init__(self, text: FileText, disk: MemoryDisk) -> None:
        self._text = text
        self._disk = disk

    def reader(self, *, fresh: bool = False) -> MemoryDisk:
        self._text.get()
        return self._disk

    @contextmanager
    def hold(self, offset: int, length: int, *, wait: float) -> Iterator[InMemory]:
        with self._disk.lock(offset, length, wait=wait):
            yield self

    def writer(self, *, holes: bool) -> MemoryDisk:
        Described(self._text).check_base()
        return self._disk

    def unwritten(self, offset: int, length: int, *, wait: float) -> AbstractContextManager[None]:
        return self._disk.lock(offset, length, wait=wait)

    def still(self, *, wait: float) -> AbstractContextManager[None]:
        return self._disk.lock(0, 0, wait=wait)

    def content_id(self) -> str:
        return Described(self._text).cid

    def renew(self, fresh: str) -> None:
        Described(self._text).renew(fresh)

    def capacity(self) -> int:
        return Described(self._text).size


class Bench:
    """A VM's folder on a datastore, and a carrier to each disk in it."""

    def __init__(self, carrier: str, folder: Path) -> None:
        self.carrier = carrier
        self.folder = folder / "ds1" / "vm"
        self.folder.mkdir(parents=True)
        self.devices = folder / "by-id"
        self.devices.mkdir()
        self._memory: dict[str, MemoryDisk] = {}
        if carrier == "nbd":
            login = {"user": "u", "password": "p", "thumbprint": "AA:BB"}
            self.standin = Standin(folder / "vddk", {"ds1": folder / "ds1"}, **login)

    def disk(self, name: str = "a", parent: str = "", *, frozen: bool = False) -> Carrier:
        descriptor = self.folder / f"{name}.vmdk"
        if not descriptor.exists():
            make(self.folder, name, SIZE, parent)
        return self.to(descriptor, frozen=frozen)

    def to(self, descriptor: Path, *, frozen: bool = False) -> Carrier:
        text = FileText(descriptor)
        if self.carrier == "file":
            return Mounted(descriptor)
        if self.carrier == "memory":
            return InMemory(text, self._memory.setdefault(descriptor.stem, MemoryDisk(bytes(SIZE))))
        if self.carrier == "nbd":
            login = {"server": "127.0.0.1", "port": 443, "user": "u", "password": lambda: "p", "thumbprint": "AA:BB"}
            export = Export(self.standin.library, vm="vm-1", file=text.file, run="run-1", **login)
            return Nbd(export, text, frozen=frozen)
        looked = Looked(descriptor)
        looked.slot = Plugged(text, self.devices, self.carrier == "hotadd loop")
        return Hotadd(looked.slot, looked, site=str(self.folder), devices=self.devices, frozen=frozen)

    @property
    def content(self) -> bytes:
        """What the disk "a" holds, past its carrier."""
        return self._memory["a"].durable if self.carrier == "memory" else (self.folder / "a-flat.vmdk").read_bytes()

    def put(self, offset: int, data: bytes) -> None:
        if self.carrier == "memory":
            self._memory["a"].content[offset : offset + len(data)] = data
        else:
            with open(self.folder / "a-flat.vmdk", "r+b") as flat:
                flat.seek(offset)
                flat.write(data)


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
    assert bench.content == expected


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
