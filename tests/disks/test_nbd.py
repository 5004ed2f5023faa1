"""What VMware's library and nbdkit do wrong, in sentences; what is never told; what is left behind and found again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tasks.app import task_limit
from tests.disks.bench import MIB, SIZE, FileText
from tests.disks.standin import ROOT, Standin, plugin
from tests.disks.test_file import make
from tests.services import wait_for
from workers import carried
from workers.disks import libnbd, nbdkit
from workers.disks.libnbd import Connection, Request
from workers.disks.nbd import Nbd, NbdReader, NbdWriter, Opened
from workers.disks.nbdkit import Export, Library, Process
from workers.errors import CarrierFailed, ConfigError, DiskBusy, LoginFailed, NotFound, Transient
from workers.point import Piece
from workers.settings import Site, Tuning, seconds


class Place:
    def __init__(self, folder: Path) -> None:
        (folder / "ds1" / "vm").mkdir(parents=True)
        self.descriptor = make(folder / "ds1" / "vm", "a", SIZE)
        self.standin = Standin(folder / "vddk", {"ds1": folder / "ds1"}, user="u", password="s3cret", thumbprint="AA")

    def export(self, **other: object) -> Export:
        export = Export(
            self.standin.library, "vc", 443, "u", lambda: "s3cret", "AA", "vm-1", "[ds1] vm/a.vmdk", None, "run-1"
        )
        return export._replace(**other)  # type: ignore[arg-type]

    def disk(self, **other: object) -> Nbd:
        return Nbd(self.export(**other), FileText(self.descriptor))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("nbd"))


@pytest.fixture
def place(built: Place, apart: Path) -> Iterator[Place]:
    yield built
    built.standin.cure()
    (built.standin.faults / "log").write_text("")


def test_a_failed_read_is_an_error_of_that_read_alone(place: Place) -> None:
    with closing(place.disk().reader()) as reader:
        place.standin.fault("fails", 2)
        with pytest.raises(CarrierFailed, match=r"did not carry \[ds1\] vm/a.vmdk .*read failed.*Unknown error"):
            reader.read([(0, 8 * MIB)])
        assert len(reader.read([(0, MIB)])) == 1


def test_a_lost_connection_is_named_and_tried_again_by_the_run(place: Place) -> None:
    with place.disk().hold(0, 0, wait=0) as held:
        writer = held.writer(holes=True)
        place.standin.fault("timeout", 1)
        with pytest.raises(Transient, match="NBD_ERR_NETWORK_TIMEOUT"):
            writer.write([Piece(0, 4096, b"x" * 4096)])


def test_san_reads_and_never_writes_a_disk_without_a_snapshot(place: Place) -> None:
    site = Site(
        vcenter="vc", user="u", password_env="P", vddk={"libdir": place.standin.folder, "transports": "san:nbd"}
    )
    assert site.reaches("ds1")
    disk = place.disk(library=carried.library(site)._replace(plugin=plugin()))
    disk.reader().close()
    with disk.still(wait=0):
        pass
    assert [line.split("modes=")[1].split()[0] for line in place.standin.log if "modes=" in line] == ["san:nbd", "nbd"]


def test_san_alone_is_no_way_to_a_replica() -> None:
    site = Site(vcenter="vc", user="u", password_env="P", vddk={"libdir": "/nowhere", "transports": "san"})
    assert not site.reaches("ds1")
    assert "names san alone" in str(carried._no_nbd("prod", site, reads=False))
    assert "san alone" not in str(carried._no_nbd("prod", site, reads=True)), "a snapshot is read by it"


@pytest.mark.parametrize(
    ("other", "error", "said"),
    [
        ({"password": lambda: "wrong"}, LoginFailed, "incorrect user name or password"),
        ({"thumbprint": "BB"}, LoginFailed, "incorrect user"),
        ({"file": "[ds1] vm/none.vmdk"}, NotFound, "does not find"),
        ({"file": "[ds1] lock in use/block.vmdk"}, NotFound, "does not find"),
        ({"library": Library(Path("/nowhere"))}, ConfigError, "no libvixDiskLib.so in /nowhere"),
        ({"library": Library(Path("/nowhere"), "/no/plugin.so")}, ConfigError, "no /no/plugin.so"),
    ],
)
def test_what_can_not_be_opened_says_why(place: Place, other: dict[str, object], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        place.disk(**other).reader()
    assert not list(nbdkit.runtime().glob("*"))


@pytest.mark.parametrize("said", ["querying allocated blocks failed", "Error 1 (Unknown error)"])
def test_a_vms_name_is_no_error(said: str) -> None:
    for name in ("lock", "plugin", "not found", "insufficient permission"):
        file = f"[ds1] {name}/{name}.vmdk"
        error = nbdkit.in_words(file, f"nbdkit: vddk[1]: error: VixDiskLib_Open: {file}: {said}\n", "ended")
        assert type(error) is CarrierFailed, (name, error)


def test_a_locked_disk_is_waited_for(place: Place) -> None:
    place.standin.fault("locked", 100)
    with pytest.raises(DiskBusy, match="up to 15 minutes"), place.disk().hold(0, 0, wait=0):
        raise AssertionError("held")
    place.standin.fault("locked", 1)
    with place.disk().hold(0, 0, wait=60):
        pass
    assert len([line for line in place.standin.log if line.startswith("open")]) == 3


def test_the_library_is_told_that_the_disk_is_let_go(place: Place) -> None:
    """Else its host would keep the lock: at a signal nbdkit ends without closing the disk."""
    place.disk().reader().close()
    with place.disk().hold(0, 0, wait=0) as held:
        held.writer(holes=True).write([Piece(0, 4096, b"x" * 4096)])
    with place.disk().still(wait=0):
        pass
    said = [line.split()[0] for line in place.standin.log]
    opened = [word for word in said if word in ("open", "close")]
    assert opened == ["open", "close"] * 4, "what was written is opened once more for its content id"


def test_requests_are_under_way_side_by_side(place: Place) -> None:
    """A host answers after milliseconds: one after the other they would be all that counts."""
    place.standin.fault("slow", 20_000)
    with closing(place.disk().reader()) as reader:
        reader.read([(at * 65536, 4096) for at in range(32)])
    (closed,) = (line for line in place.standin.log if line.startswith("close"))
    assert int(closed.removeprefix("close most=")) >= 8


def test_the_password_is_told_to_nobody(place: Place) -> None:
    opened = Opened(Process(place.export(), write=False))
    try:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                for file in ("cmdline", "environ"):
                    try:
                        assert b"s3cret" not in (folder / file).read_bytes(), (folder, file)
                    except OSError:
                        continue  # it has ended
        for file in opened._process._folder.iterdir():
            if file.is_file():
                assert b"s3cret" not in file.read_bytes(), file
    finally:
        opened.close()


def test_a_temporary_folder_too_deep_for_a_socket_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's path has 107 bytes. The longest folder that is not refused works. (Patched, for `tempfile` asks the
    environment once in a process.)"""
    for length, works in ((nbdkit._LONGEST, True), (nbdkit._LONGEST + 1, False)):
        folder = "/tmp/" + "d" * (length - len("/tmp/") - len(f"/{nbdkit.runtime().name}"))
        Path(folder).mkdir()
        try:
            monkeypatch.setattr(tempfile, "tempdir", folder)
            assert len(str(nbdkit.runtime())) == length
            if works:
                with closing(place.disk().reader()) as reader:
                    assert len(reader.read([(0, MIB)])) == 1
            else:
                with pytest.raises(ConfigError, match=f"{folder} is too long for a socket by 1 bytes: .*TMPDIR"):
                    place.disk().reader()
                assert not nbdkit.runtime().exists()
        finally:
            shutil.rmtree(folder)


def test_vmwares_library_is_told_how_long_it_may_wait_for_a_host(place: Place) -> None:
    opened = Opened(Process(place.export(snapshot="snapshot-7"), write=False))
    said = (opened._process._folder / "config").read_text()
    opened.close()
    assert "vixDiskLib.nfc.ReadTimeoutMs=60000" in said and "vixDiskLib.nfc.WriteTimeoutMs=600000" in said
    log = "\n".join(place.standin.log)
    assert "config=/" in log and "snapshot=snapshot-7" in log and "modes=nbdssl:nbd" in log and "port=443" in log


def test_a_library_that_hangs_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libnbd, "SILENT", 0.3)  # minutes
    monkeypatch.setattr(nbdkit, "STOP_WAIT", 0.3)  # a minute
    opened = place.disk().reader()._opened
    process = opened._process._process
    with closing(NbdReader(opened)) as reader:
        place.standin.fault("hang")
        for said in ("no answer for", "the disk is closed"):
            with pytest.raises(CarrierFailed, match=said):
                reader.read([(0, 4096)])
    assert process.poll() == -signal.SIGKILL


def test_an_older_error_is_not_told_as_the_cause_of_the_next_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libnbd, "SILENT", 0.3)
    monkeypatch.setattr(nbdkit, "STOP_WAIT", 0.3)
    with closing(place.disk().reader()) as reader:
        place.standin.fault("fails", 1)
        with pytest.raises(CarrierFailed, match="Unknown error"):
            reader.read([(0, 4096)])
        place.standin.fault("hang")
        with pytest.raises(CarrierFailed, match="no answer for"):
            reader.read([(0, 4096)])


def listens(path: Path) -> bool:
    """Asked without connecting: nbdkit ends after its last client."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(line[3] == "00010000" and line[-1] == str(path) for line in lines)


@pytest.mark.parametrize("doing", ["opening", "reading", "flush"])
def test_an_nbdkit_that_is_stopped_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch, doing: str) -> None:
    for limit in ("SILENT", "SILENT_WRITING"):
        monkeypatch.setattr(libnbd, limit, 0.3)
    monkeypatch.setattr(nbdkit, "STOP_WAIT", 0.3)
    server = Process(place.export(), write=doing == "flush")
    wait_for(lambda: listens(server.socket), "nbdkit listens")
    opened = Opened(server) if doing != "opening" else None
    os.kill(server._process.pid, signal.SIGSTOP)
    with pytest.raises(CarrierFailed, match=f"{doing}.*: no answer for"):
        if opened is None:
            Opened(server)
        elif doing == "flush":
            NbdWriter(opened).flush()
        else:
            NbdReader(opened).read([(0, 4096)])
    if opened is not None:
        opened.close()
    assert server._process.poll() == -signal.SIGKILL and not list(nbdkit.runtime().glob("*"))
    with place.disk().hold(0, 0, wait=5):
        pass


def test_who_opens_or_reads_is_told_of_a_hung_server_before_its_task_is_killed() -> None:
    """A task that its time limit kills is a lost worker, of whom nobody knows why."""
    tuning = Tuning()
    limit = task_limit(tuning)
    assert seconds(tuning.slice_time) + libnbd.SILENT + 2 * nbdkit.STOP_WAIT < limit
    vmwares = nbdkit._TIMEOUTS
    assert libnbd.SILENT * 1000 > max(vmwares["AcceptTimeoutMs"], vmwares["RequestTimeoutMs"], vmwares["ReadTimeoutMs"])
    assert libnbd.SILENT_WRITING * 1000 > vmwares["WriteTimeoutMs"]


def test_a_flush_that_failed_once_fails_for_ever(place: Place) -> None:
    """hole 22: what was lost is told once."""
    with place.disk().hold(0, 0, wait=0) as held:
        writer = held.writer(holes=True)
        writer.write([Piece(0, 4096, b"x" * 4096)])
        os.kill(held._opened._process._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        for _ in range(2):
            with pytest.raises(CarrierFailed):
                writer.flush()


def test_the_connection_bounds_what_is_under_way_and_keeps_its_order(place: Place) -> None:
    """More and larger requests than may be under way at once."""
    opened = Opened(Process(place.export(), write=True))
    try:
        wire: Connection = opened.wire
        memory = memoryview(bytearray(os.urandom(SIZE)))
        wire.write([Request(0, SIZE, memory)])
        wire.flush()
        back = memoryview(bytearray(SIZE))
        wire.read([Request(at, 4096, back[at : at + 4096]) for at in range(0, SIZE, 4096)])
        assert back == memory
        with pytest.raises(ValueError, match="may be written"):  # C would write into it all the same
            wire.read([Request(0, 4096, memoryview(bytes(4096)))])
    finally:
        opened.close()
        opened.close()


CHILD = """
import sys, time, json
from pathlib import Path
from workers.disks.nbdkit import Export, Library, Process
from workers.disks.nbd import Opened
libdir, plugin = sys.argv[1:]
opened = Opened(Process(Export(Library(Path(libdir), plugin), "vc", 443, "u", lambda: "s3" + "cret", "AA", "vm-1",
                               "[ds1] vm/a.vmdk", None, "run-9"), write=True))
print(opened._process._process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def worker(place: Place) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that has the disk open to be written: it, and its nbdkit's number."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(place.standin.folder), plugin()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": tempfile.gettempdir(), "PYTHONPATH": str(ROOT)},
    )
    assert child.stdout is not None
    try:
        yield child, int(child.stdout.readline())
    finally:
        child.kill()
        child.wait()
        nbdkit.end_left_behind(lambda run: True)


def test_hole_26_nbdkit_dies_with_its_worker(place: Place, worker: tuple[subprocess.Popen[str], int]) -> None:
    child, server = worker
    child.kill()
    child.wait()
    wait_for(lambda: nbdkit.started(server) == "", "nbdkit ended with its worker")
    with place.disk().hold(0, 0, wait=5):
        pass
    assert nbdkit.end_left_behind(lambda run: False) == [] and not list(nbdkit.runtime().glob("*"))


def test_hole_26_what_a_stopped_worker_of_a_dead_run_holds_is_taken_from_it(
    place: Place, worker: tuple[subprocess.Popen[str], int]
) -> None:
    child, server = worker
    os.kill(child.pid, signal.SIGSTOP)
    assert nbdkit.end_left_behind(lambda run: False) == [] and nbdkit.started(server) != "", "its run lives"
    (said,) = nbdkit.end_left_behind(lambda run: run == "run-9")
    assert f"process {server}" in said and "run-9" in said
    with place.disk().hold(0, 0, wait=5):
        pass


def test_a_process_that_only_has_the_number_is_left_alone(
    place: Place, worker: tuple[subprocess.Popen[str], int]
) -> None:
    _, server = worker
    (register,) = nbdkit.runtime().glob("*/register")
    said = json.loads(register.read_text())
    register.write_text(json.dumps({**said, "since": "1", "worker_since": "1"}))
    assert nbdkit.end_left_behind(lambda run: True) == []
    assert nbdkit.started(server) != ""


def test_a_folder_that_was_never_registered_goes_in_its_time(apart: Path) -> None:
    old, young = (nbdkit.runtime() / name for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "config").touch()
    os.utime(old, times=(0, 0))
    assert nbdkit.end_left_behind(lambda run: True) == []
    assert not old.exists() and young.exists()
