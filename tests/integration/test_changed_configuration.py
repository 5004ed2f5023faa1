"""The configuration changed under running workers: taken, refused while the old one stays in force, and mended."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests import services
from tests.configurations import Said, understudy
from tests.integration.realm import PATIENCE, Realm
from tests.integration.world import MIB
from workers.catalogue import InForce
from workers.store import Store

#: what is not there yet when the workers start
GROUP = """
[stores.spare]
path = "spare"
[groups.more]
source = "prod"
store = "spare"
vms = ["late-*"]
backup = { every = "1d", jitter = "none" }
"""


def rewrite(file: Path, text: str) -> None:
    """Whole, and as if it had been there for a while: nobody has to wait until it is left alone."""
    other = file.with_suffix(".new")
    other.write_text(text)
    then = other.stat().st_mtime - 60
    os.utime(other, (then, then))
    other.replace(file)


@pytest.fixture(scope="module")
def realm(make_realm: Callable[..., Realm]) -> Iterator[Realm]:
    """With a control worker, one of prod, and Beat."""
    made = make_realm(vms=["early"], tuning={"inventory_every": "1s"})
    made.world.make_vm("early", 4 * MIB)
    Store.create(made.world.folder / "spare")
    made.workers(None, "prod")
    made.beat()
    yield made


def look(realm: Realm, *arguments: str, code: int = 0) -> Said:
    """What asks the catalogue alone, without a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERSTUDY_CONFIG", "")
        said = understudy("--config", str(realm.world.config), *arguments)
    assert said.code == code, said
    return said


def known(realm: Realm) -> dict[str, InForce]:
    """By the part of its name before the host's."""
    return {each.worker.partition("@")[0]: each for each in realm.world.catalogue.configurations()}


def told(realm: Realm, condition: Callable[[InForce], bool], what: str) -> dict[str, InForce]:
    """When it holds at both workers."""

    def look() -> dict[str, InForce] | None:
        found = known(realm)
        return found if set(found) == {"control", "prod"} and all(map(condition, found.values())) else None

    found: dict[str, InForce] = services.wait_for(look, what, PATIENCE)
    return found


def test_a_changed_configuration_under_running_workers(realm: Realm) -> None:
    world, file = realm.world, realm.world.config
    first = file.read_text()
    started = told(realm, lambda each: bool(each.digest), "the configurations of the start")
    assert len({each.digest for each in started.values()}) == 1

    # A valid new one: VMs that nobody backed up have a group now, and no worker was started again.
    world.make_vm("late-1", 4 * MIB)
    rewrite(file, first + GROUP)
    taken = told(realm, lambda each: each.digest != started["prod"].digest, "the new configuration")
    run = services.wait_for(lambda: next(iter(world.catalogue.runs("late-1")), None), "a run of late-1", PATIENCE)
    realm.ended(run)
    assert all(each.since > started[name].since for name, each in taken.items())

    # A wrong one, in which moreover the new group is missing: it stays in force.
    rewrite(file, first.replace("[tuning]", "[tuning]\nthreads = 0"))
    refused = told(realm, lambda each: bool(each.refused), "the refusal")
    assert {each.digest for each in refused.values()} == {taken["prod"].digest}
    assert all("tuning.threads = 0" in each.refused for each in refused.values())
    world.make_vm("late-2", 4 * MIB)
    run = services.wait_for(lambda: next(iter(world.catalogue.runs("late-2")), None), "a run of late-2", PATIENCE)
    realm.ended(run)
    failures = [each for each in world.catalogue.failures() if each.kind == "configuration"]
    assert len(failures) == 2, "once per worker and change"
    assert all("stays in force" in each.message and "tuning.threads = 0" in each.message for each in failures)

    # Whoever looks is told, on top.
    looked = look(realm, "status", "--json")
    assert {line["vm"] for line in json.loads(looked.out)} == {"early", "late-1", "late-2"}
    for said in (looked, realm.command("check", code=1), look(realm, "config", "check", code=1)):
        top = said.stderr.splitlines()[0] if isinstance(said, CompletedProcess) else said.err.splitlines()[0]
        assert "the configuration in force at " in top and "the newer one is refused: " in top
        assert "tuning.threads = 0" in top and f"{taken['prod'].since:%Y-%m-%d %H:%M:%S}" in top
    assert "tuning.threads = 0" in realm.command("worker", "--site", "dr", code=1).stderr, "none before: it fails"

    # A child that takes the place of a killed one knows the configuration in force, not only that of the start.
    worker = next(each for each in realm._programs if "--site" in each.process.args)
    (child,) = worker.children()
    os.kill(child, signal.SIGKILL)
    services.wait_for(lambda: [pid for pid in worker.children() if pid != child], "another child", PATIENCE)
    world.make_vm("late-3", 4 * MIB)
    run = services.wait_for(lambda: next(iter(world.catalogue.runs("late-3")), None), "a run of late-3", PATIENCE)
    realm.ended(run)  # with a store that the configuration of the start does not have

    # Mended.
    rewrite(file, first + GROUP.replace('"1d"', '"2d"'))
    mended = told(realm, lambda each: not each.refused, "the mended configuration")
    assert all(each.digest != taken["prod"].digest for each in mended.values())
    assert look(realm, "status").err == ""


def test_a_new_site_has_its_queues_and_what_needs_a_restart_is_said(realm: Realm) -> None:
    """Its inventory is asked for by a worker that was started before there was that site."""
    file = realm.world.config
    site = file.read_text().partition("[sites.dr]")[2].partition("[stores.main]")[0]
    text = file.read_text() + "\n[sites.third]" + site.replace("[sites.dr.", "[sites.third.")
    rewrite(file, text.replace("[tuning]", '[tuning]\nslice_time = "9m"'))
    found = told(realm, lambda each: bool(each.waits), "the new site")
    assert all(each.waits.startswith("tuning.slice_time changed: that waits until") for each in found.values())
    services.wait_for(lambda: realm.waiting("data.third", "understudy.discover"), "a message for it", PATIENCE)
    assert "tuning.slice_time changed: that waits until" in look(realm, "status").err


def test_a_worker_whose_site_is_gone_keeps_the_configuration(realm: Realm) -> None:
    file = realm.world.config
    whole = file.read_text()
    for group in ("all", "more"):
        whole = whole.replace(f'[groups.{group}]\nsource = "prod"', f'[groups.{group}]\nsource = "dr"')
    before, _, rest = whole.partition("[sites.prod]")
    rewrite(file, before + "[sites.dr]" + rest.partition("[sites.dr]")[2])
    # It looks before a task. The control worker, which has taken it, gives it none any more.
    realm.client.send_task("understudy.discover", kwargs={"site": "prod"}, queue="data.prod")
    refused = services.wait_for(lambda: known(realm)["prod"].refused, "the refusal", PATIENCE)
    assert "stop the workers of prod first, or add sites.prod again" in refused
    services.wait_for(lambda: not known(realm)["control"].refused, "the control worker to take it", PATIENCE)
