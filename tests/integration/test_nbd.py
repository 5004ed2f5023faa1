"""Datastores that nobody has mounted: backup and sync by VMware's library alone, judged byte for byte.

nbdkit and its vddk plugin are the real ones; the library is a stand-in (tests/disks/vddk) over the simulators' files.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyVmomi import vim

from tests.disks.standin import Standin, alone, needed, plugin
from tests.integration.test_restore import assert_holds, of, restored
from tests.integration.test_verify import base, grown, rot
from tests.integration.test_verify import check as verified
from tests.integration.vcenter import PASSWORD, USER, Vcenter
from tests.integration.world import MIB, World
from workers import backup, check, faults, replicate
from workers.disks import nbdkit
from workers.errors import ConfigError
from workers.models import RunState

Make = Callable[..., tuple[World, dict[str, Standin]]]


def sha1(certificate: Path) -> str:
    digits = hashlib.sha1(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest()
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


@pytest.fixture
def make(make_world: Callable[..., World], vcenters: tuple[Vcenter, Vcenter], tmp_path: Path) -> Iterator[Make]:
    needed()

    def made(carriers: str = "", **settings: object) -> tuple[World, dict[str, Standin]]:
        standins, lines = {}, {}
        for vcenter in vcenters:
            stores = {name: vcenter.datastores / name for name in ("ds1", "ds2")}
            login = {"user": USER, "password": PASSWORD, "thumbprint": sha1(vcenter.certificate)}
            standins[vcenter.name] = Standin(tmp_path / f"vddk-{vcenter.name}", stores, **login)
            folder = standins[vcenter.name].folder
            lines[vcenter.name] = [*carriers.splitlines(), f'vddk = {{ libdir = "{folder}", plugin = "{plugin()}" }}']
        return make_world(sites=lines, **settings), standins

    with alone():
        yield made


def reasons(world: World, run: str) -> str:
    return "\n".join(world.catalogue.run(run).reasons)


def no_process_is_left() -> bool:
    return not list(nbdkit.runtime().glob("*"))


def test_a_backup_and_a_sync_of_what_is_mounted_nowhere(make: Make) -> None:
    world, standins = make(mounted=())
    world.make_vm("far-01", 8 * MIB, 5 * MIB, firmware="efi")
    nvram = world.prod.datastores / "ds1" / "far-01" / "far-01.nvram"
    nvram.write_bytes(bytes(range(256)) * 4)
    world.scribble("far-01", 1)
    first = world.backup("far-01")
    assert first.point is not None
    world.assert_point_is_readable("far-01", first.point)
    said = reasons(world, first.run)
    assert "go by nbd, not by file: the datastore ds1 is not among sites.prod.datastores" in said
    assert all("read_only=1" in line and "snapshot=snapshot-" in line for line in standins["prod"].log if "vm=" in line)

    assert world.sync("far-01").outcome == "succeeded"
    world.assert_replica_is("far-01", first.point)
    (copied,) = (world.dr.datastores / "ds1").glob("far-01*/*.nvram")
    assert copied.read_bytes() == nvram.read_bytes()
    for seed in (2, 3):
        world.scribble("far-01", seed)
        point = world.backup("far-01").point
        assert point is not None
        assert all("; by nbd, not by file" in disk.reason for disk in world.plan("far-01").disks)
        report = world.sync("far-01")
        assert report.outcome == "succeeded" and 0 < report.written < 8 * MIB
        world.assert_replica_is("far-01", point)
    assert "go by nbd" in reasons(world, report.run)
    assert any("snapshot=-" in line and "read_only=0" in line for line in standins["dr"].log)
    assert world.sync("far-01").outcome == RunState.NOTHING_NEW
    found = {each.what: each for each in check.sites(world.settings, ["prod"], None)}
    assert found["carrier prod/nbd"].result == "ok" and "VMware's library 8" in found["carrier prod/nbd"].sentence
    assert no_process_is_left()
    secrets = [line for line in (*standins["prod"].log, *standins["dr"].log) if PASSWORD in line]
    assert not secrets


@pytest.mark.slow
def test_rot_is_mended_and_a_vm_restored_by_the_library(make: Make) -> None:
    world, _ = make(mounted=())
    point = grown(world, "far-02")
    rot(base(world, "far-02"), 3 * MIB + 5)
    mended = verified(world, "far-02", repair=True)
    assert mended.state is RunState.SUCCEEDED and mended.written == 4096
    world.assert_replica_is("far-02", point)
    assert verified(world, "far-02").state is RunState.SUCCEEDED

    report = restored(world, "far-02", to="far-new", point=point)
    assert "go by nbd" in reasons(world, report.run)
    assert_holds(world, world.state("far-new"), "prod", of(world, point))
    assert no_process_is_left()


def test_a_disk_that_stands_on_somebodys_snapshot_is_read_by_the_library(make: Make) -> None:
    """As a file only the base of a chain can be read: where both ways are open the second one is taken."""
    world, standins = make()
    world.make_vm("chained", 4 * MIB)
    world.scribble("chained", 1)
    plain = world.backup("chained")
    assert "goes by file, which its site prefers" in reasons(world, plain.run) and not standins["prod"].log
    vm = world.vm("chained")
    world.source.wait(vm.CreateSnapshot_Task(name="mine", description="", memory=False, quiesce=False))
    world.scribble("chained", 2)
    again = world.backup("chained")
    assert "goes by nbd, not by file: it stands on another snapshot" in reasons(world, again.run)
    assert again.point is not None
    world.assert_point_is_readable("chained", again.point)


def test_what_does_not_work_here_is_seen_before_it_is_chosen(make: Make) -> None:
    """A closed port, a refused login: the next carrier takes over, for a backup and a sync, and the runs say why."""
    world, standins = make(carriers='carriers = ["nbd", "file"]', mounted=("ds1", "ds2"))
    world.make_vm("walled", 4 * MIB)
    world.scribble("walled", 1)
    standins["prod"].fault("unreachable")
    first = world.backup("walled")
    assert "goes by file, not by nbd: it was tried: VMware's library did not carry" in reasons(world, first.run)
    standins["dr"].fault("refused")
    built = world.sync("walled")
    assert "goes by file, not by nbd: it was tried: VMware's library was not let in" in reasons(world, built.run)
    world.assert_replica_is("walled", first.point)
    for standin in standins.values():
        standin.cure()
    world.scribble("walled", 2)
    again = world.backup("walled")
    assert "goes by nbd, which its site prefers" in reasons(world, again.run)
    standins["dr"].fault("locked", 1)  # of the moment: that is waited for, and nothing is chosen for it
    synced = world.sync("walled")
    assert "goes by nbd, which its site prefers" in reasons(world, synced.run)
    world.assert_replica_is("walled", again.point)
    assert no_process_is_left()


def test_a_locked_disk_is_waited_for_and_a_lost_connection_is_tried_again(make: Make) -> None:
    world, standins = make(mounted=(), tuning={"attempts": 5})
    world.make_vm("busy", 4 * MIB)
    world.scribble("busy", 1)
    standins["prod"].fault("locked", 1)
    run = world.request_backup("busy")
    waiting = backup.run(world.here, run.id)
    assert waiting.outcome == "waiting" and "locked by a host" in waiting.reason
    standins["prod"].fault("timeout", 2)
    world.expire_lease(run)
    waiting = backup.run(world.here, run.id)
    assert waiting.outcome == "waiting" and "did not carry" in waiting.reason
    standins["prod"].cure()
    world.expire_lease(run)
    report = backup.run(world.here, run.id)
    world.keep("busy", report)
    assert report.point is not None
    world.assert_point_is_readable("busy", report.point)
    assert no_process_is_left()


def test_hole_26_a_killed_workers_nbdkit_dies_with_it_and_all_of_the_replica_is_compared(make: Make) -> None:
    world, _ = make(mounted=(), store=('site = "prod"',))
    world.make_vm("shot", 4 * MIB)
    world.scribble("shot", 1)
    world.backup("shot")
    world.sync("shot")
    world.scribble("shot", 2)
    point = world.backup("shot").point
    assert point is not None
    run = world.request_sync("shot")
    world.killed_at(run, "slice.written")
    report = world.sync("shot")
    assert report.outcome == "succeeded" and "a worker that wrote by VMware's library was killed" in reasons(
        world, report.run
    )
    world.assert_replica_is("shot", point)
    assert "nothing is kept of what is overwritten, for the datastore ds1 is not mounted" in reasons(world, run.id)
    nbdkit.end_left_behind(lambda run: False)
    assert no_process_is_left()


@pytest.mark.parametrize("step", [pytest.param("slice.checked", marks=pytest.mark.slow), "slice.written"])
def test_an_nbdkit_that_is_killed_while_it_writes_costs_one_try(
    make: Make, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The out-of-memory killer takes it, and its worker lives: what was written is not known to be on the disk."""
    world, _ = make(mounted=())
    vm = f"torn-{step[6:]}"
    world.make_vm(vm, 4 * MIB)
    world.scribble(vm, 1)
    world.backup(vm)
    world.sync(vm)
    world.scribble(vm, 2)
    point = world.backup(vm).point
    assert point is not None
    killed: list[int] = []

    def passed(label: str) -> None:
        if label == step and not killed:
            (register,) = nbdkit.runtime().glob("*/register")
            killed.append(json.loads(register.read_text())["pid"])
            os.kill(killed[0], signal.SIGKILL)
            os.waitid(os.P_PID, killed[0], os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(faults, "at", passed)
    run = world.request_sync(vm)
    waiting = replicate.run(world.here, run.id)
    assert killed and waiting.outcome == "waiting" and "did not carry" in waiting.reason
    world.expire_lease(run)
    assert replicate.run(world.here, run.id).outcome == "succeeded"
    world.assert_replica_is(vm, point)
    assert no_process_is_left()


def test_what_is_missing_is_said_of_each_way(make: Make) -> None:
    world, standins = make(mounted=())
    next(standins["prod"].folder.glob("libvixDiskLib*")).unlink()
    world.make_vm("nowhere", 4 * MIB)
    with pytest.raises(ConfigError, match=r"Not by file: the datastore ds1 .* not by nbd: there is no libvixDiskLib"):
        world.backup("nowhere")
    assert isinstance(world.vm("nowhere"), vim.VirtualMachine) and not world.state("nowhere").snapshots
