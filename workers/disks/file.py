"""The file carrier: disks on a datastore that the worker has mounted (NFS, or the simulator's folders).

A -flat.vmdk is the raw disk. The rules that keep this safe are VMware's: read only a base that is frozen by a snapshot
or belongs to a VM that is off; write only a disk that nothing stands on and nobody has open; a changed disk gets a new
content id (CID), or a delta that stands on it would be silently wrong (VMware KB 345254).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from workers.errors import ConfigError, DiskBusy, NoSpace, NotFound, Refused, UnderstudyError
from workers.extents import GRANULE, Extents, Gathering
from workers.point import BATCH, Piece, check

# Linux: open-file-description locks (fcntl(2)). They belong to the open file, so a thread pool shares one and the
# kernel drops it with the last descriptor, also after SIGKILL; a SIGSTOPped holder keeps it.
_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

#: Runs of at least this many bytes are written past the page cache (O_DIRECT): a restore of 2.5 GiB took 6 to 11 s in
#: the kernel through the cache, below 1 s past it. Scattered small writes are faster through it, with one fdatasync.
DIRECT = 1 << 20
#: pwritev takes at most IOV_MAX buffers
_IOV_MAX = 1024
_NO_PARENT = "ffffffff"
_ON_A_SNAPSHOT = "stands on a snapshot; the file carrier reads only a base disk: remove the VM's other snapshots first"


def datastore_file(mounts: Mapping[str, Path], file: str) -> Path:
    """The path on this worker of "[datastore] folder/name"; `ConfigError` when that datastore is not mounted here."""
    match = re.fullmatch(r"\[([^\]]+)\] ?(.+)", file)
    if match is None:
        raise NotFound(f"{file!r} is not a datastore path such as '[datastore1] vm/vm.vmdk'")
    name, relative = match.groups()
    if name not in mounts:
        raise ConfigError(
            f"datastore {name} of {file} is not mounted on this worker; "
            f"add it to the site's `datastores` (configured: {', '.join(sorted(mounts)) or 'none'})"
        )
    root = mounts[name].resolve()
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise Refused(f"{file} leads out of the datastore's folder {root}; it is not touched")
    return path


class Descriptor:
    """The text half of a VMDK: which file holds the bytes, and the content ids (Virtual Disk Format 1.1, VMware)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text("latin-1")
        except FileNotFoundError as err:
            raise NotFound(
                f"the disk {path} does not exist on this worker's mount; check that the datastore is mounted"
            ) from err
        extents = re.findall(r'^RW (\d+) (\w+) "([^"]+)"', self.text, re.MULTILINE)
        if self.has_parent and (len(extents) != 1 or extents[0][1] not in ("VMFS", "FLAT")):
            raise Refused(f"{path} {_ON_A_SNAPSHOT}")
        if len(extents) != 1 or extents[0][1] not in ("VMFS", "FLAT"):
            raise Refused(f"the disk {path} is not one flat file; the file carrier reads and writes only those")
        self.size = int(extents[0][0]) * 512
        self.flat: Path = path.parent / extents[0][2]

    def _field(self, name: str) -> str:
        match = re.search(rf"^{name}=(\w+)", self.text, re.MULTILINE)
        return match.group(1).lower() if match else ""

    @property
    def cid(self) -> str:
        return self._field("CID")

    @property
    def has_parent(self) -> bool:
        return self._field("parentCID") not in ("", _NO_PARENT)

    def children(self) -> list[Path]:
        """Descriptors beside this one that name it as their parent."""
        mark = f'parentFileNameHint="{self.path.name}"'
        return [
            other
            for other in sorted(self.path.parent.glob("*.vmdk"))
            if other != self.path and other.stat().st_size < 1 << 16 and mark in other.read_text("latin-1")
        ]

    def renew_cid(self, fresh: str) -> None:
        """Give the disk the content id `fresh` (8 hex digits): its data is about to change. In place, synced."""
        match = re.search(r"^CID=(\w{8})", self.text, re.MULTILINE)
        if match is None:
            raise Refused(f"the descriptor {self.path} has no CID line; it is left alone")
        with open(self.path, "r+b") as file:
            file.seek(match.start(1))
            file.write(fresh.encode())
            file.flush()
            os.fsync(file.fileno())
        self.__init__(self.path)  # type: ignore[misc]


def check_unowned(path: Path) -> None:
    """Raise `DiskBusy` when a host holds the disk open: on NFS that shows as lock files beside it (.lck-*, *.lck)."""
    marks = [p.name for p in path.parent.iterdir() if p.name.startswith(".lck-") or p.name == path.name + ".lck"]
    if marks:
        raise DiskBusy(f"a host holds {path} open ({marks[0]} is there); power the VM off, or wait until it lets go")


class FileReader:
    """A frozen flat disk. Refuses a delta: only the base of a chain is a raw disk."""

    def __init__(self, descriptor: Path) -> None:
        found = Descriptor(descriptor)
        if found.has_parent:
            raise Refused(f"{descriptor} {_ON_A_SNAPSHOT}")
        self.size = found.size
        self.path = found.flat
        self._fd = open_file(found.flat, os.O_RDONLY)
        if os.fstat(self._fd).st_size < self.size:
            self.close()
            raise Refused(f"{found.flat} is shorter than its descriptor says ({self.size} bytes); nothing was read")

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        """By SEEK_DATA: on NFS without holes this is the whole disk, which is right, only slower."""
        end = self.size if end is None else min(end, self.size)
        found, position = Gathering(), start
        while position < end:
            try:
                data = os.lseek(self._fd, position, os.SEEK_DATA)
            except OSError as err:
                if err.errno == errno.ENXIO:
                    break
                return Extents.whole(self.size).clip(start, end)
            position = os.lseek(self._fd, data, os.SEEK_HOLE)
            found.add(data, position - data)
        return found.extents().clip(start, end)

    def forget_cached(self) -> None:
        """What is read next comes from the datastore, not from this machine's memory of it."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        return [Piece(offset, length, self._pread(offset, length)) for offset, length in batch]

    def _pread(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                raise self._ended(offset + len(data))
            data += more
        return data

    def fill(self, batch: Sequence[tuple[int, int]], into: memoryview) -> None:
        end = 0
        for offset, length in batch:
            rest, end = into[end : end + length], end + length
            while rest:
                done = os.preadv(self._fd, [rest], offset)
                if not done:
                    raise self._ended(offset)
                rest, offset = rest[done:], offset + done

    def _ended(self, at: int) -> UnderstudyError:
        return UnderstudyError(f"{self.path} ended at {at} of {self.size} bytes while it was read")

    def close(self) -> None:
        """A second time does nothing: by then the number may be another open file's."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class FileWriter(FileReader):
    """A flat disk that may be written: it has no parent, nothing stands on it, no host has it open."""

    #: the same disk past the page cache, where the file system can do that
    _direct: int | None = None

    def __init__(self, descriptor: Path, *, holes: bool = True) -> None:
        """`holes`: zeroes may give their space back. A thick disk would lose what it was given at its making."""
        check_unowned(descriptor)
        self._holes = holes
        found = Descriptor(descriptor)
        children = found.children()
        if children:
            raise Refused(f"{descriptor} is not written: {children[0].name} stands on it; remove that snapshot first")
        super().__init__(descriptor)
        os.close(self._fd)
        self._fd = open_file(found.flat, os.O_RDWR)
        self._direct = open_direct(found.flat)
        self._mine = threading.local()
        self._broken: OSError | None = None

    def close(self) -> None:
        super().close()
        direct, self._direct = self._direct, None
        if direct is not None:
            os.close(direct)

    def write(self, pieces: Sequence[Piece]) -> None:
        """Neighbouring pieces go out in one pwritev; zeroes become holes where the file system can."""
        run: list[bytes | memoryview] = []
        start = end = 0
        check(pieces, self.size)
        with _told(self.path):
            for piece in pieces:
                if piece.data is None:
                    self._zero(piece.offset, piece.length)
                    continue
                if run and (piece.offset != end or len(run) == _IOV_MAX):
                    self._pwritev(run, start)
                    run = []
                if not run:
                    start = piece.offset
                run.append(piece.data)
                end = piece.offset + piece.length
            if run:
                self._pwritev(run, start)

    def _pwritev(self, buffers: list[bytes | memoryview], offset: int) -> None:
        total = sum(len(b) for b in buffers)
        if self._direct is not None and DIRECT <= total <= BATCH and offset % GRANULE == total % GRANULE == 0:
            self._write_direct(buffers, offset, total)
            return
        done = os.pwritev(self._fd, buffers, offset)
        if done < total:  # short writes happen at signals and at the end of space; the second call says which
            self._pwrite(memoryview(b"".join(buffers))[done:], offset + done)

    def _write_direct(self, buffers: list[bytes | memoryview], offset: int, total: int) -> None:
        """Past the page cache, from this thread's own aligned memory."""
        if not hasattr(self._mine, "memory"):
            self._mine.memory = memoryview(mmap.mmap(-1, BATCH))
        aligned, end = self._mine.memory, 0
        for buffer in buffers:
            aligned[end : end + len(buffer)] = buffer
            end += len(buffer)
        assert self._direct is not None
        rest = aligned[:total]
        while rest:
            done = os.pwrite(self._direct, rest, offset + total - len(rest))
            rest = rest[done:]
            if done % GRANULE:  # a full file system may cut anywhere; the rest is no longer aligned
                self._pwrite(rest, offset + total - len(rest))
                return

    def _pwrite(self, rest: memoryview, offset: int) -> None:
        while rest:
            done = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[done:], offset + done

    def _zero(self, offset: int, length: int) -> None:
        if self._holes and _libc.fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
            return
        if self._holes and ctypes.get_errno() not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(self.path))
        zeroes = bytes(min(length, 1 << 20))
        while length:
            done = os.pwrite(self._fd, zeroes[: min(length, len(zeroes))], offset)
            offset, length = offset + done, length - done

    def flush(self) -> None:
        """fdatasync. After one failure all later calls fail: the kernel reports a lost write only once (fsync(2))."""
        if self._broken is not None:
            raise self._broken
        try:
            os.fdatasync(self._fd)
        except OSError as err:
            self._broken = err
            # What could not be written now counts as clean in the page cache: a compare that reads it there would
            # find it equal and commit bytes that the disk does not have. So the next reader must ask the disk.
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with _told(self.path):
                raise


class FileLock:
    """Range locks on a flat disk against other workers. ESXi does not see them (its own locks are files)."""

    def __init__(self, flat: Path) -> None:
        self.path = flat

    @contextmanager
    def lock(self, offset: int, length: int, *, wait: float) -> Iterator[None]:
        """`length` 0 = to the end of the disk, however long it grows."""
        with ExitStack() as stack:
            fd = open_file(self.path, os.O_RDWR)
            stack.callback(os.close, fd)  # closing the last descriptor releases the lock
            deadline = time.monotonic() + wait
            while not self._try(fd, offset, length):
                if time.monotonic() > deadline:
                    raise DiskBusy(
                        f"another worker has held {self.path} locked for {wait:.0f} s; "
                        "it may be stopped or its mount may hang: end that process, or wait until it goes on"
                    )
                time.sleep(0.02)
            yield

    @staticmethod
    def _try(fd: int, offset: int, length: int) -> bool:
        try:
            fcntl.fcntl(fd, _OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0))
        except OSError as err:
            if err.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True


def open_file(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as err:
        raise NotFound(f"{path} does not exist on this worker's mount; check that the datastore is mounted") from err
    except PermissionError as err:
        raise Refused(f"{path} may not be opened by this worker's user; mount the datastore with the right to") from err


def open_direct(path: Path) -> int | None:
    """None where the file system has no O_DIRECT (tmpfs, some NFS servers)."""
    try:
        return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn "no space left" into its sentence; other errors of the file system keep theirs."""
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"no space left on the datastore of {path}; free some, then the run goes on") from err
        raise UnderstudyError(f"{path} could not be written: {err.strerror}") from err
