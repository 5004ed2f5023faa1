"""nbdkit with its vddk plugin: one process a disk, which brings VMware's library to a Unix socket.

The library is the user's own. It runs in a process of its own, so that what it does to memory, signals or its threads
can not hurt the worker. The process dies with the worker; it is registered in a folder of this machine, so that one
which its worker left behind all the same (stopped, or hung inside the library) can be found and ended.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from workers.errors import (
    CarrierFailed,
    ConfigError,
    DiskLocked,
    LoginFailed,
    NotFound,
    UnderstudyError,
)

T = TypeVar("T")

#: seconds until a process that was started must have opened the disk. VMware's own limit for a connection is 3 minutes
START_WAIT = 240.0
#: seconds that a process has to end after its client hung up: VMware's library gives the disk's lock back meanwhile
STOP_WAIT = 60.0
#: seconds after which a folder without an entry was left by a worker that died before it could make one
UNREGISTERED = 3600.0
#: requests that nbdkit works on at once, per process
THREADS = 16
#: VMware's limits for the network to the host, in ms (VDDK guide, "NFC timeouts"): without them a host that vanished
#: keeps a call for ever. Reading 1 minute, writing 10, the rest 3.
_TIMEOUTS = {"AcceptTimeoutMs": 180000, "RequestTimeoutMs": 180000, "ReadTimeoutMs": 60000, "WriteTimeoutMs": 600000}


class Library(NamedTuple):
    """Where VMware's library is on this worker, and how it is used."""

    libdir: Path
    plugin: str = "vddk"
    transports: str = "nbdssl:nbd"
    compression: str = "none"
    #: transports of a disk that is written
    to_write: str = "nbdssl:nbd"


class Export(NamedTuple):
    """One disk as VMware's library opens it: a snapshot's, read only, or a VM's own, to be written."""

    library: Library
    server: str
    port: int
    user: str
    password: Callable[[], str]
    #: SHA-1, as VMware's library wants it
    thumbprint: str
    vm: str
    file: str
    snapshot: str | None = None
    #: who it is for, so that what is left behind is known by its run
    run: str = ""


def runtime() -> Path:
    """This user's folder for sockets and the register, of this machine and this boot."""
    return Path(tempfile.gettempdir()) / f"understudy-nbd-{os.getuid()}"


#: of a socket's path (unix(7): 108 bytes, with a zero at the end), less what `Process` puts behind `runtime()`
_LONGEST = 107 - len("/tmpxxxxxxxx/socket")


def missing(library: Library) -> str | None:
    """Why VMware's library can not be used on this worker, in words; None when it can, as far as that is seen here."""
    if shutil.which("nbdkit") is None:
        return "nbdkit is not installed on this worker: install the packages nbdkit and nbdkit-plugin-vddk"
    if (length := len(os.fsencode(runtime()))) > _LONGEST:
        return (
            f"the path of this worker's temporary folder {tempfile.gettempdir()} is too long for a socket by "
            f"{length - _LONGEST} bytes: start the worker with TMPDIR set to a shorter one"
        )
    if "/" in library.plugin and not Path(library.plugin).is_file():
        return f"there is no {library.plugin}, which `vddk.plugin` names"
    found = [*library.libdir.glob("libvixDiskLib.so*"), *library.libdir.glob("lib64/libvixDiskLib.so*")]
    if not found:
        return (
            f"there is no libvixDiskLib.so in {library.libdir} or its lib64: unpack VMware's Virtual Disk Development "
            "Kit there, or say in `vddk.libdir` where it is"
        )
    return None


def loads(library: Library) -> str:
    """The version of VMware's library, asked by loading it. Raises `ConfigError` with what nbdkit says."""
    if (why := missing(library)) is not None:
        raise ConfigError(why)
    command = ["nbdkit", library.plugin, "--dump-plugin", f"libdir={library.libdir}"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired as err:
        raise ConfigError(f"nbdkit did not load VMware's library in {library.libdir} within a minute") from err
    said = dict(line.split("=", 1) for line in told.stdout.splitlines() if "=" in line)
    if told.returncode or "vddk_default_libdir" not in said:
        why = _last(told.stderr) or "nbdkit has no plugin vddk: install the package nbdkit-plugin-vddk"
        raise ConfigError(f"VMware's library in {library.libdir} can not be used: {why}")
    return said.get("vddk_library_version", "of an unknown version")


class Process:
    """nbdkit, serving one disk at `socket` until `close`."""

    def __init__(self, export: Export, *, write: bool) -> None:
        if (why := missing(export.library)) is not None:
            raise ConfigError(why)
        self.export = export
        runtime().mkdir(mode=0o700, exist_ok=True)
        if runtime().lstat().st_uid != os.getuid():
            raise ConfigError(f"{runtime()} belongs to somebody else; remove it")
        self._folder = Path(tempfile.mkdtemp(dir=runtime()))
        self.socket = self._folder / "socket"
        self._log = self._folder / "log"
        self._told = 0
        try:
            self._process = self._start(write)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        try:
            self._register()
        except BaseException:
            self.close()
            raise

    def _start(self, write: bool) -> subprocess.Popen[bytes]:
        timeouts = self._folder / "config"
        timeouts.write_text("".join(f"vixDiskLib.nfc.{key}={value}\n" for key, value in _TIMEOUTS.items()))
        password = self.export.password().encode()
        readable, writable = os.pipe()
        try:
            os.write(writable, password)  # far below what a pipe holds
            os.close(writable)
            with open(self._log, "wb") as log:
                return subprocess.Popen(
                    list(_command(self.export, self.socket, timeouts, readable, write)),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(readable,),
                    env={"PATH": os.defpath, "LANG": "C", "TMPDIR": str(self._folder)},
                    process_group=0,  # a terminal's or a supervisor's signal to the worker leaves the disk whole
                )
        except FileNotFoundError as err:
            raise ConfigError("nbdkit is not installed on this worker: install the package nbdkit") from err
        finally:
            os.close(readable)

    def _register(self) -> None:
        whose = {
            "run": self.export.run,
            "pid": self._process.pid,
            "since": started(self._process.pid),
            "worker": os.getpid(),
            "worker_since": started(os.getpid()),
            "boot": _boot(),
        }
        beside = self._folder / "register.new"
        beside.write_text(json.dumps(whose))
        beside.rename(self._folder / "register")

    def client(self, connect: Callable[[str], T]) -> T:
        """What `connect` gives, tried until nbdkit listens. The disk itself is opened when the first client comes."""
        deadline = time.monotonic() + START_WAIT
        pause = 0.002
        while True:
            if self.socket.exists():  # ENOENT is how libnbd says that the server could not open the disk
                try:
                    return connect(str(self.socket))
                except OSError as err:
                    if err.errno != errno.ECONNREFUSED:  # bound, and not listening yet
                        raise self.error(f"opening: {err.strerror or err}") from err
            if self._process.poll() is not None:
                raise self.error(f"nbdkit ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self.error("nbdkit did not begin to listen")
            time.sleep(pause)
            pause = min(0.05, pause * 2)

    def said(self) -> str:
        """What was printed since this was asked for the last time: it is no cause of what fails later."""
        try:
            with open(self._log, "rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._told, end - 20000))
                self._told, text = end, log.read(20000)
        except OSError:
            return ""
        return text.decode(errors="replace")

    def error(self, why: str) -> UnderstudyError:
        """What nbdkit or VMware's library said just now, as a sentence of the family that tells what to do next."""
        return in_words(self.export.file, self.said(), why)

    def close(self, *, served: bool = False) -> None:
        """`served`: its clients have hung up, so it ends by itself. A second time does nothing."""
        for send in (*((None,) if served else ()), signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                if send is not None:
                    self._process.send_signal(send)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_WAIT)
        shutil.rmtree(self._folder, ignore_errors=True)


def _command(export: Export, where: Path, timeouts: Path, password: int, write: bool) -> Iterator[str]:
    library = export.library
    yield shutil.which("nbdkit") or "nbdkit"
    yield from ("--foreground", "--exit-with-parent", "--threads", str(THREADS), "--unix", str(where))
    if not write:
        yield "--readonly"
    # It ends after its last client, and closes the disk first: at a signal nbdkit ends without doing so, and a host
    # keeps its lock. VMware's library works in sectors: what is smaller the other filter reads, changes and writes.
    yield from ("--filter=exitlast", "--filter=blocksize", library.plugin)
    yield from (f"libdir={library.libdir}", f"config={timeouts}")
    yield from (f"server={export.server}", f"port={export.port}", f"user={export.user}", f"password=-{password}")
    transports = library.to_write if write else library.transports
    yield from (f"thumbprint={export.thumbprint}", f"vm=moref={export.vm}", f"transports={transports}")
    if export.snapshot is not None:
        yield f"snapshot={export.snapshot}"
    yield from (f"compression={library.compression}", f"file={export.file}", "minblock=512", "maxdata=2M")


# --- what goes wrong ----------------------------------------------------------------------------------------------

#: not "block", of which there is talk in other errors
_LOCKED = re.compile(r"\block|is busy|in use")
_LOGIN = (
    "username or password",
    "user name or password",
    "incorrect user",
    "cannot complete login",
    "insufficient perm",
)
_ABSENT = ("was not found", "cannot be found", "does not exist", "no such", "file not found", "not found")


def in_words(file: str, said: str, why: str) -> UnderstudyError:
    """What nbdkit printed, as an error of its family. What is not known is tried again: most is the network."""
    last = _last(said) or why
    text = last.replace(file, "").lower()  # a VM may be called block-01, or plugin
    if "open" in text and _LOCKED.search(text):
        return DiskLocked(
            f"the disk {file} is locked by a host, or by another worker ({last}). After a worker was killed a host may "
            "keep it for up to 15 minutes; it is tried again"
        )
    if any(word in text for word in _LOGIN):
        return LoginFailed(f"VMware's library was not let in to {file} ({last}); check the site's user and its rights")
    if "open" in text and any(word in text for word in _ABSENT):
        return NotFound(f"VMware's library does not find {file} ({last})")
    if "dlopen" in text or "undefined symbol" in text or "shared object" in text or "plugin" in text:
        return ConfigError(f"VMware's library can not be used on this worker ({last}); `understudy check` tells more")
    return CarrierFailed(f"VMware's library did not carry {file} ({last}); it is tried again")


def _last(said: str) -> str:
    """The last errors in what was printed: one that is tried again inside may be followed by another."""
    lines = [line.strip() for line in said.splitlines() if "error:" in line.lower()]
    return "; ".join(dict.fromkeys(line.split("error:", 1)[-1].strip() for line in lines[-3:]))


# --- what is left behind ------------------------------------------------------------------------------------------


def end_left_behind(over: Callable[[str], bool]) -> list[str]:
    """End the processes of this machine whose worker is gone, or whose run is `over`; sentences of what was done.

    A process is known by its number and the moment of its start: a number is used again.
    """
    done = []
    for folder in sorted(runtime().glob("*")) if runtime().exists() else []:
        try:
            whose = json.loads((folder / "register").read_text())
            pid, since, run = int(whose["pid"]), str(whose["since"]), str(whose["run"])
            worker, worker_since, boot = int(whose["worker"]), str(whose["worker_since"]), str(whose["boot"])
        except (OSError, ValueError, KeyError, TypeError):
            with suppress(FileNotFoundError):
                if time.time() - folder.stat().st_mtime > UNREGISTERED:
                    shutil.rmtree(folder, ignore_errors=True)
            continue  # being made, or being removed
        same_boot = boot == _boot()
        lives = same_boot and since != "" and started(pid) == since
        orphan = not same_boot or started(worker) != worker_since
        if lives and not orphan and not over(run):
            continue
        if not lives and not orphan:
            continue  # its worker sees to it
        if lives:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            done.append(f"ended nbdkit (process {pid}), which run {run} had left behind on {socket.gethostname()}")
        if orphan:
            shutil.rmtree(folder, ignore_errors=True)
    return done


def started(pid: int) -> str:
    """When a process began, in the kernel's ticks since the boot; "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
