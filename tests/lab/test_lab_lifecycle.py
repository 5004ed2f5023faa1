"""Up, down and status: real processes, real crashes, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import lab
from tasks.lab import LabError, LabState, datastores, processes, services
from tests.services import wait_for
from workers import settings
from workers.errors import BadInput, ConfigError, NotFound
from workers.vsphere.session import Session


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "a lab"  # a blank in the path has broken many a script
    yield folder
    lab.down(folder, erase=True)


def up(folder: Path, *names: str) -> LabState:
    return lab.up(folder, only=names or services.FOUNDATION, concurrency=1)


def pids(state: LabState) -> dict[str, int]:
    return {service.name: service.pid for service in state.services if service.pid is not None}


def gone(pid: int) -> bool:
    wait_for(lambda: processes.start_time(pid) is None, f"the end of process {pid}")
    return True


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    gone(pid)


def nothing_left(folder: Path) -> bool:
    image = folder / "datastores.img"
    loops = subprocess.run(["/sbin/losetup", "-n", "-O", "NAME", "-j", image], capture_output=True, text=True).stdout
    return not processes.members(folder) and not datastores.is_mounted(folder / "datastores") and not loops.strip()


@pytest.fixture
def foundation(folder: Path) -> LabState:
    return up(folder)


def shown_in_arguments(folder: Path) -> list[str]:
    """The command lines, which everybody on the machine can read, that hold a password of the lab."""
    words = [path.read_text().strip() for path in (folder / "secrets").iterdir()]
    lines = [Path(f"/proc/{process.pid}/cmdline").read_text() for process in processes.members(folder)]
    assert lines
    return [line for line in lines if any(word in line for word in words)]


# --- up -----------------------------------------------------------------------------------------------------------


def test_what_it_writes_is_a_valid_configuration_by_which_the_vcenters_let_us_in(foundation: LabState) -> None:
    conf = settings.load(foundation.config)
    assert set(conf.sites) == set(foundation.vcenters) == {"prod", "dr"}
    for name, site in conf.sites.items():
        with Session(name, site) as session:
            assert session.vcenter
        for path in site.datastores.values():
            assert path.is_dir(), "the simulator and the workers mean the same folder"


def test_nobody_else_can_read_a_password(foundation: LabState) -> None:
    assert stat.S_IMODE(foundation.folder.stat().st_mode) == 0o700
    words = {path.read_text().strip() for path in (foundation.folder / "secrets").iterdir()}
    assert len(words) == 4, "Redis, two vCenters, Flower"
    for path in foundation.folder.rglob("*"):
        if path.is_file() and path.stat().st_size < 1 << 20 and any(w.encode() in path.read_bytes() for w in words):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert not shown_in_arguments(foundation.folder)


def test_up_again_changes_nothing(folder: Path, foundation: LabState) -> None:
    assert up(folder) == foundation == lab.status(folder)


def test_up_mends_what_was_killed_and_what_hangs(folder: Path, foundation: LabState) -> None:
    before, config = pids(foundation), foundation.config.read_text()
    kill(before["prod"])
    os.kill(before["redis"], signal.SIGSTOP)
    state = up(folder)
    after = pids(state)
    assert set(after) == set(before)
    assert after["dr"] == before["dr"], "what is well is left alone"
    assert after["prod"] != before["prod"] and after["redis"] != before["redis"]
    assert gone(before["redis"])
    assert state.vcenters == foundation.vcenters, "same ports and certificates"
    assert state.config.read_text() == config


def test_a_port_that_was_taken_meanwhile_is_replaced(folder: Path, foundation: LabState) -> None:
    port = int(foundation.vcenters["prod"].address.split(":")[1])
    kill(pids(foundation)["prod"])
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        state = up(folder)
    assert state.vcenters["prod"].address != foundation.vcenters["prod"].address
    assert settings.load(state.config).sites["prod"].vcenter == state.vcenters["prod"].address


def test_it_takes_no_folder_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="not a lab"):
        up(tmp_path)
    with pytest.raises(BadInput, match="not a lab"):
        lab.status(tmp_path)
    lab.down(tmp_path, erase=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_name_that_is_no_service_is_told_what_there_is(folder: Path) -> None:
    with pytest.raises(LabError, match=r"no mail; it has redis, prod, dr, worker-prod"):
        lab.up(folder, only=["mail"])
    assert not folder.exists()


def test_a_mistake_in_the_extra_configuration_is_a_sentence(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"understudy.toml: .*somewhere"):
        lab.up(
            folder, only=services.FOUNDATION, extra='[groups.a]\nsource = "somewhere"\nvms = ["*"]\nstore = "main"\n'
        )


# --- down ---------------------------------------------------------------------------------------------------------


def test_down_ends_all_and_keeps_the_data(folder: Path, foundation: LabState) -> None:
    lab.down(folder)
    assert nothing_left(folder)
    state = lab.status(folder)
    assert not state.running and pids(state) == {}
    assert (folder / "store" / "store.json").exists()
    lab.down(folder)
    assert up(folder).vcenters == foundation.vcenters


def test_erase_removes_the_folder(folder: Path, foundation: LabState) -> None:
    lab.down(folder, erase=True)
    assert not folder.exists() and nothing_left(folder)
    lab.down(folder, erase=True)
    with pytest.raises(NotFound, match="no lab"):
        lab.status(folder)


def test_down_after_everything_was_lost_but_the_processes(folder: Path, foundation: LabState) -> None:
    """As after a kill of `up` before it wrote anything down: found by their mark."""
    for record in (folder / "run").iterdir():
        record.unlink()
    (folder / "lab.json").write_text("{ torn")
    lab.down(folder)
    assert nothing_left(folder)


def test_down_goes_on_after_a_failure_and_then_tells_it(folder: Path, foundation: LabState) -> None:
    if not datastores.is_mounted(folder / "datastores"):
        pytest.skip("no mount on this machine that could be busy")
    with (folder / "datastores" / "open").open("w"), pytest.raises(LabError, match=rf"pid {os.getpid()}\b"):
        lab.down(folder, erase=True)
    assert not processes.members(folder), "the processes were ended all the same"
    assert (folder / "store").exists(), "nothing is erased while something is in use"


# --- the whole of it ----------------------------------------------------------------------------------------------


@pytest.fixture
def whole(folder: Path) -> LabState:
    return up(folder, *services.NAMES)


def children_of(folder: Path, name: str, leader: int) -> set[int]:
    return {process.pid for process in processes.members(folder, name)} - {leader}


def test_the_whole_lab_is_mended_changed_and_ended(folder: Path, whole: LabState) -> None:
    """One long test, for each start of five Python processes takes ten seconds."""
    assert whole.running and not shown_in_arguments(folder)
    before = pids(whole)

    # A worker is killed: its pool children, orphans now, must not go on beside the new worker's.
    leader = before["worker-prod"]
    left: set[int] = wait_for(lambda: children_of(folder, "worker-prod", leader), "a pool child of the worker")
    kill(leader)
    state = up(folder, *services.NAMES)
    assert {name for name, pid in pids(state).items() if pid != before[name]} == {"worker-prod"}
    assert all(gone(pid) for pid in left)

    # Another configuration: all who read it are started anew, the foundation is not.
    before = pids(state)
    state = lab.up(folder, concurrency=1, extra='[tuning]\nslice_time = "2m"\n')
    assert settings.load(state.config).tuning.slice_time == "2m"
    assert {name for name, pid in pids(state).items() if pid == before[name]} == set(services.FOUNDATION)

    # The worst: everything is killed at once, only the pool children live on.
    for pid in pids(state).values():
        os.kill(pid, signal.SIGKILL)
    lab.down(folder)
    assert nothing_left(folder)
