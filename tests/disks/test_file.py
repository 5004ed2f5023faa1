"""The file carrier on real files: bytes, holes, locks across processes, and what it refuses."""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workers.disks.file import Descriptor, FileLock, FileReader, FileWriter, datastore_file
from workers.errors import ConfigError, DiskBusy, NoSpace, NotFound, Refused, UnderstudyError
from workers.extents import Extents
from workers.point import Piece

MIB = 1 << 20


def make(folder: Path, name: str, size: int = 4 * MIB, parent: str = "") -> Path:
    """A flat VMDK as VMware lays it out."""
    descriptor = folder / f"{name}.vmdk"
    parent_lines = f'parentFileNameHint="{parent}"\n' if parent else ""
    descriptor.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=1234abcd\n"
        f"parentCID={'0000cafe' if parent else 'ffffffff'}\n"
        f'createType="vmfs"\n{parent_lines}\nRW {size // 512} VMFS "{name}-flat.vmdk"\n'
    )
    with open(folder / f"{name}-flat.vmdk", "wb") as flat:
        flat.truncate(size)
    return descriptor


def test_bytes_written_are_the_bytes_read_and_zeroes_become_holes(tmp_path: Path) -> None:
    disk = make(tmp_path, "a")
    data = random.Random(1).randbytes(MIB)
    writer = FileWriter(disk)
    writer.write([Piece(4096, 4096, data[:4096]), Piece(8192, MIB, data), Piece(2 * MIB, 512, data[:512])])
    writer.write([Piece(8192 + 4096, 8192, None)])
    writer.flush()
    writer.close()
    expected = bytearray(4 * MIB)
    expected[4096:8192] = data[:4096]
    expected[8192 : 8192 + MIB] = data
    expected[2 * MIB : 2 * MIB + 512] = data[:512]
    expected[12288:20480] = bytes(8192)
    assert (tmp_path / "a-flat.vmdk").read_bytes() == expected
    reader = FileReader(disk)
    pieces = reader.read([(0, 5000), (MIB, 100)])
    assert [bytes(p.data or b"") for p in pieces] == [expected[:5000], expected[MIB : MIB + 100]]
    allocated = reader.allocated()
    reader.close()
    for offset in range(0, 4 * MIB, 4096):
        if any(expected[offset : offset + 4096]):
            assert allocated.clip(offset, offset + 4096).total == 4096


def test_large_runs_go_past_the_page_cache_and_small_ones_beside_them(tmp_path: Path) -> None:
    """Both ways into one file, in every order and alignment, from several threads."""
    disk = make(tmp_path, "a", 32 * MIB)
    rng = random.Random(7)
    expected = bytearray(32 * MIB)
    writer = FileWriter(disk)
    lots: list[list[Piece]] = [[], [], [], []]
    for number in range(32):
        length = rng.choice([MIB, MIB, 700_000, 4096, 512, MIB - 4096])
        offset = number * MIB + (0 if length == MIB else rng.choice([0, 512, 4096]))
        data = rng.randbytes(length)
        expected[offset : offset + length] = data
        half = length // 2
        lots[number % 4] += [Piece(offset, half, data[:half]), Piece(offset + half, length - half, data[half:])]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(writer.write, lots))
    writer.flush()
    assert b"".join(bytes(p.data or b"") for p in writer.read([(0, 32 * MIB)])) == expected
    writer.close()
    assert (tmp_path / "a-flat.vmdk").read_bytes() == expected


def test_a_disk_that_ends_while_it_is_read_is_named(tmp_path: Path) -> None:
    reader = FileReader(make(tmp_path, "a", MIB))
    os.truncate(tmp_path / "a-flat.vmdk", MIB // 2)
    for read in (reader.read, lambda batch: reader.fill(batch, memoryview(bytearray(8192)))):
        with pytest.raises(UnderstudyError, match=f"a-flat.vmdk ended at {MIB // 2} of {MIB} bytes while it was read"):
            read([(MIB // 2 - 4096, 8192)])
    reader.close()


def test_more_pieces_than_one_pwritev_takes(tmp_path: Path) -> None:
    disk = make(tmp_path, "a", 8 * MIB)
    data = random.Random(2).randbytes(2000 * 4096)
    writer = FileWriter(disk)
    writer.write([Piece(i * 4096, 4096, data[i * 4096 : (i + 1) * 4096]) for i in range(2000)])
    writer.close()
    assert (tmp_path / "a-flat.vmdk").read_bytes()[: len(data)] == data


def test_nothing_is_written_beyond_the_end(tmp_path: Path) -> None:
    writer = FileWriter(make(tmp_path, "a"))
    with pytest.raises(ValueError, match="beyond"):
        writer.write([Piece(4 * MIB - 512, 1024, bytes(1024))])
    writer.close()
    assert (tmp_path / "a-flat.vmdk").stat().st_size == 4 * MIB


def test_a_new_content_id_and_nothing_else_changes(tmp_path: Path) -> None:
    disk = make(tmp_path, "a")
    before = disk.read_text()
    inode = disk.stat().st_ino
    descriptor = Descriptor(disk)
    descriptor.renew_cid("00c0ffee")
    assert descriptor.cid == "00c0ffee"
    assert disk.read_text() == before.replace("1234abcd", "00c0ffee")
    assert disk.stat().st_ino == inode


@pytest.mark.parametrize("kind", [FileReader, FileWriter])
def test_a_delta_is_refused(tmp_path: Path, kind: type[FileReader]) -> None:
    make(tmp_path, "a")
    delta = make(tmp_path, "a-000001", parent="a.vmdk")
    with pytest.raises(Refused, match="snapshot"):
        kind(delta)


def test_a_base_on_which_a_delta_stands_is_read_but_not_written(tmp_path: Path) -> None:
    base = make(tmp_path, "a")
    make(tmp_path, "a-000001", parent="a.vmdk")
    FileReader(base).close()
    with pytest.raises(Refused, match=r"a-000001\.vmdk stands on it"):
        FileWriter(base)


@pytest.mark.parametrize("mark", [".lck-3a00000000000000", "a.vmdk.lck"])
def test_a_disk_that_a_host_holds_open_is_not_written(tmp_path: Path, mark: str) -> None:
    disk = make(tmp_path, "a")
    (tmp_path / mark).touch()
    with pytest.raises(DiskBusy, match="power the VM off"):
        FileWriter(disk)


@pytest.mark.parametrize("kind", [FileReader, FileWriter])
def test_a_flat_file_shorter_than_its_descriptor_is_refused(tmp_path: Path, kind: type[FileReader]) -> None:
    disk = make(tmp_path, "a")
    os.truncate(tmp_path / "a-flat.vmdk", MIB)
    with pytest.raises(Refused, match="shorter"):
        kind(disk)


def test_datastore_paths(tmp_path: Path) -> None:
    (tmp_path / "ds").mkdir()
    mounts = {"nfs 1": tmp_path / "ds"}
    assert datastore_file(mounts, "[nfs 1] vm/vm.vmdk") == tmp_path / "ds/vm/vm.vmdk"
    with pytest.raises(ConfigError, match=r"datastore other .* not mounted.*nfs 1"):
        datastore_file(mounts, "[other] vm/vm.vmdk")
    with pytest.raises(Refused, match="leads out"):
        datastore_file(mounts, "[nfs 1] ../../etc/passwd")
    with pytest.raises(NotFound, match="datastore path"):
        datastore_file(mounts, "vm.vmdk")


def test_no_space_is_a_sentence(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        writer = FileWriter(make(tmp_path, "a"))
        with pytest.raises(NoSpace, match="no space left on the datastore"):
            writer.write([Piece(0, 2 * MIB, os.urandom(2 * MIB))])
        writer.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


HOLDER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from workers.disks.file import FileLock
with FileLock(Path(sys.argv[1])).lock(int(sys.argv[2]), int(sys.argv[3]), wait=0):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("held", "wanted", "free"),
    [
        pytest.param((0, 4096), (4096, 4096), True, id="neighbours"),
        pytest.param((0, 4097), (4096, 4096), False, id="overlap"),
        pytest.param((0, 0), (3 * MIB, 1), False, id="whole-disk"),
        pytest.param((4096, 4096), (0, 0), False, id="whole-disk-wanted"),
    ],
)
def test_locks_hold_between_processes_until_the_holder_dies(
    tmp_path: Path, held: tuple[int, int], wanted: tuple[int, int], free: bool
) -> None:
    make(tmp_path, "a")
    flat = tmp_path / "a-flat.vmdk"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(flat), str(held[0]), str(held[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        if free:
            with FileLock(flat).lock(*wanted, wait=0):
                pass
        else:
            with pytest.raises(DiskBusy, match="locked"), FileLock(flat).lock(*wanted, wait=0.05):
                pass
    finally:
        holder.kill()
        holder.wait()
    with FileLock(flat).lock(*wanted, wait=2):
        pass


def test_after_a_failed_sync_no_later_one_may_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hole 22: the kernel reports a lost write once. A real EIO needs a failing device, hence the patched call."""
    writer = FileWriter(make(tmp_path, "a"))
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    advised: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: advised.append(advice))
    with pytest.raises(Exception, match="Input/output error"):
        writer.flush()
    assert advised == [os.POSIX_FADV_DONTNEED], "a compare would read what the disk does not have"
    monkeypatch.setattr(os, "fdatasync", real)
    with pytest.raises(OSError, match="Input/output error"):
        writer.flush()
    writer.close()


def test_allocated_is_a_superset_on_a_file_system_without_holes(tmp_path: Path) -> None:
    disk = make(tmp_path, "a")
    (tmp_path / "a-flat.vmdk").write_bytes(bytes(4 * MIB))
    reader = FileReader(disk)
    assert reader.allocated() == Extents.whole(4 * MIB)
    reader.close()


def test_hole_26_what_a_killed_worker_has_started_holds_no_lock(tmp_path: Path) -> None:
    """A helper process outlives the worker; the lock ends with the worker all the same."""
    flat = Descriptor(make(tmp_path, "disk")).flat
    worker = f"""
import os, signal, subprocess
from pathlib import Path
from workers.disks.file import FileLock
with FileLock(Path({str(flat)!r})).lock(0, 0, wait=0):
    print(subprocess.Popen(["sleep", "100"], close_fds=False, stdout=subprocess.DEVNULL).pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", worker], stdout=subprocess.PIPE, check=False)
    assert killed.returncode == -9
    helper = int(killed.stdout)
    try:
        with FileLock(flat).lock(0, 0, wait=0):
            os.kill(helper, 0)  # it lives
    finally:
        os.kill(helper, 9)
