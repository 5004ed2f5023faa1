"""The example of deploy/examples/small-company at work: sixty VMs at two sites are protected as its files say.

Redis, PostgreSQL, Beat and the workers of both sites are real processes, and nobody asks them for anything:
inventories, groups, backups and replication come from Beat's ticks. What of the example's files is replaced is in
company.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import services
from tests.configurations import understudy
from tests.integration import company as companies
from tests.integration.company import NONE, SIZE, TIER_1, Company, machines
from tests.integration.realm import Realm, realm
from tests.integration.world import PASSWORD, flat
from workers.models import Pair, Run, RunKind, RunState, Trigger
from workers.policy import of_all
from workers.settings import load
from workers.vsphere import inventory
from workers.vsphere.building import disk_map

#: a hundred runs on a machine that is busy with other tests
PATIENCE = 400
TIER, FILES = "1-tier-1.toml", "3-file-servers.toml"

STANDBY = {"erp-app", "shop-web", "shop-api", "mail-01", "dc-01", "dc-02"} | {
    *("sql-erp", "sql-warehouse", "sql-ledger", "sql-payroll", "pg-01", "ora-legacy"),
}
FILE_SERVERS = {"fs-users", "fs-projects", "fs-archive"}
OTHERS = {f"app-{number:02}" for number in range(1, 10)} | {
    *("print-01", "wiki", "ci-01", "app-old", "kiosk-01", "golden-debian"),
}
LEFT_OUT = {machine.name for machine in machines()} - STANDBY - FILE_SERVERS - OTHERS
#: of the VM that becomes more important, of the one that is not needed any more, and of those that work meanwhile
RISES, GOES, CHANGED = "app-07", "mail-01", ("erp-app", "shop-api")
TIER_1_THEN = {"erp-app", "shop-web", "shop-api", "dc-01", "dc-02", "sql-erp", RISES}


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Company, Realm]]:
    with (
        services.Redis() as redis,
        services.Postgres() as postgres,
        companies.company(tmp_path, redis=redis.url, catalogue=postgres.database()) as company,
    ):
        monkeypatch.setenv("UNDERSTUDY_CONFIG", str(company.config))
        assert_only_times_and_places_are_replaced(company)
        company.build(machines())
        company.begin_round()
        said("init")
        company.open()
        with realm(company, redis) as processes:
            yield company, processes


def said(*arguments: str) -> Any:
    """What a command prints, as JSON where it can."""
    done = understudy(*arguments)
    assert done.code == 0, done
    return json.loads(done.out) if "--json" in arguments else done.out


def assert_only_times_and_places_are_replaced(company: Company) -> None:
    """What is at work is the example: every other value of it is in force as it is written there."""
    there, here = (
        {each.key: str(each.value).replace(str(folder), "") for each in of_all(load(folder))}
        for folder in (companies.EXAMPLE, company.config)
    )
    differing = {key for key in there.keys() | here.keys() if there.get(key) != here.get(key)}
    assert differing == {
        *(
            f"sites.{site}.{key}"
            for site in ("office", "colo")
            for key in ("vcenter", *(f"datastores.{site}-{kind}" for kind in ("fast", "bulk")))
        ),
        *("stores.main.path", "stores.files.path"),
        *(
            key
            for key in differing
            if re.fullmatch(r"tuning\.\w+|groups\.[\w-]+\.(backup|replicate\.schedule)\.\w+", key)
        ),
    }


def runs(company: Company) -> list[Run]:
    return company.catalogue.runs(limit=10_000)


def replicas(company: Company) -> dict[tuple[str, str], Pair]:
    """(source's name, recovery target) -> pair."""
    return {(pair.vm, pair.recovery_target): pair for pair in company.catalogue.pairs()}


def synced(company: Company) -> dict[tuple[str, str], int]:
    """(source's name, recovery target) -> the restore point that the replica holds, by its number."""
    held = {point.pair: int(point.point[:8]) for point in company.catalogue.latest_sync_points()}
    return {key: held[pair.id] for key, pair in replicas(company).items() if pair.id in held}


def newest(company: Company) -> dict[str, int]:
    return {point.name: point.seq for point in company.catalogue.newest_points()}


def first_round_is_over(company: Company) -> bool:
    wanted = {*((vm, "standby") for vm in STANDBY), *((vm, "shelf") for vm in OTHERS)}
    if company.catalogue.live_runs():
        return False
    return wanted <= synced(company).keys() and newest(company).keys() >= FILE_SERVERS


def judge_the_groups(company: Company) -> None:
    inside = {one["name"]: {member["vm"] for member in one["members"]} for one in said("group", "list", "--json")}
    tier_1 = {machine.name for machine in machines() if TIER_1 in machine.tags}
    assert inside == {
        "tier-1": tier_1,
        "databases": STANDBY - tier_1 | {"sql-erp"},
        "file-servers": FILE_SERVERS,
        "everything-else": OTHERS,
    }
    outside = {one["vm"]: one["why"] for one in said("group", "unprotected", "--json")}
    assert set(outside) == LEFT_OUT and len(LEFT_OUT) + len(STANDBY | FILE_SERVERS | OTHERS) == 60
    assert outside["lab-03"]["everything-else"] == "excluded: folder Office/Lab/Students matches Office/Lab"
    assert outside["sql-copy"]["databases"] == "excluded: tag protection:none"
    assert outside["test-2"]["tier-1"] == "tag (none) is not protection:tier-1"


def judge_the_first_round(company: Company) -> None:
    """One backup of each, by the schedule; one sync of each, set off by it. The file servers wait for their night."""
    found = Counter((run.kind, run.trigger, run.state) for run in runs(company) if run.vm not in FILE_SERVERS)
    assert found == {
        (RunKind.BACKUP, Trigger.SCHEDULE, RunState.SUCCEEDED): len(STANDBY | OTHERS),
        (RunKind.SYNC, Trigger.AFTER_BACKUP, RunState.SUCCEEDED): len(STANDBY | OTHERS),
    }
    # Their schedules for both came at once, so that who was first found something to replicate or did not.
    night = Counter((run.kind, run.trigger) for run in runs(company) if run.vm in FILE_SERVERS)
    assert night == {(kind, Trigger.SCHEDULE): len(FILE_SERVERS) for kind in (RunKind.BACKUP, RunKind.SYNC)}

    quiesced = {point.name for point in company.catalogue.newest_points() if point.consistency == "quiesced"}
    assert quiesced == STANDBY | FILE_SERVERS  # the group of all others does without

    lines = {(line["vm"], line["recovery_target"]): line for line in said("status", "--json")}
    assert sorted(vm for vm, _ in lines) == sorted(STANDBY | OTHERS | FILE_SERVERS)
    states = {key: line["state"] for key, line in lines.items() if key[0] not in FILE_SERVERS}
    assert set(states.values()) == {"in sync"}
    assert lines["sql-erp", "standby"]["groups"] == ["tier-1", "databases"]
    last = said("status").splitlines()[-1]
    assert last.startswith(f"{len(LEFT_OUT)} VMs are in no group (lab-01, lab-02, lab-03, ...)"), last


def found_wrong() -> dict[str, str]:
    """What `check` finds wrong, and its sentences."""
    found: list[dict[str, str]] = json.loads(understudy("check", "--json").out)
    return {finding["what"]: finding["sentence"] for finding in found if finding["result"] == "failed"}


def live_on(company: Company) -> None:
    """Guests write, one VM becomes important, one is given up."""
    for number, name in enumerate((*CHANGED, "pg-01")):
        company.scribble(name, 1000 + number)
    company.begin_round()
    company.tag(TIER_1, RISES)
    company.tag(NONE, GOES)
    company.untag(TIER_1, GOES)


def moved(company: Company) -> bool:
    """Both are seen, and what was backed up of the first is on its way to where its new group replicates it."""
    rows = {(row.name, row.group): row.left for row in company.catalogue.memberships()}
    seen = rows.get((RISES, "tier-1"), True) is None and rows[GOES, "tier-1"] is not None
    return seen and (RISES, "standby") in synced(company)


def second_round_is_over(company: Company) -> bool:
    if company.catalogue.live_runs():
        return False
    nights = [run for run in runs(company) if run.vm in FILE_SERVERS and run.kind is RunKind.SYNC]
    held = synced(company)
    return len(nights) == 2 * len(FILE_SERVERS) and all(held.get((vm, "standby")) == 2 for vm in TIER_1_THEN)


def judge_the_second_round(company: Company, new: list[Run]) -> None:
    """The first group's backups and syncs, the file servers' night, the move of one VM: nothing else was run."""
    found = Counter((run.kind, run.trigger, run.vm) for run in new)
    assert found == {
        **{(RunKind.BACKUP, Trigger.SCHEDULE, vm): 1 for vm in TIER_1_THEN},
        **{(RunKind.SYNC, Trigger.AFTER_BACKUP, vm): 1 for vm in TIER_1_THEN},
        (RunKind.SYNC, Trigger.AFTER_BACKUP, RISES): 2,
        **{(RunKind.SYNC, Trigger.SCHEDULE, vm): 1 for vm in FILE_SERVERS},
    }
    assert {run.state for run in new if run.vm not in FILE_SERVERS} == {RunState.SUCCEEDED}
    # Written was what the guests had written, and what was not there before.
    written = Counter({run.vm: 0 for run in new})
    for run in new:
        written[run.vm] += run.written if run.kind is RunKind.SYNC else 0
    assert 0 < written[RISES] <= SIZE
    for vm in TIER_1_THEN - {RISES}:
        assert (written[vm] > 0) == (vm in CHANGED), (vm, written[vm])
    for vm in CHANGED:
        assert written[vm] <= company.written[vm], vm
    # With the schedule of the first evening, each file server was replicated once.
    states = Counter(run.state for run in runs(company) if run.vm in FILE_SERVERS and run.kind is RunKind.SYNC)
    assert states == {RunState.SUCCEEDED: 3, RunState.NOTHING_NEW: 3}


def ended_since(company: Company, before: set[str]) -> list[Run]:
    return [run for run in runs(company) if run.id not in before and not run.live]


def ticks(control: services.Program) -> int:
    """How many ticks of dispatch the control worker has done."""
    lines = control.log.read_text(errors="replace").splitlines()
    return sum("Task understudy.dispatch" in line and "succeeded" in line for line in lines)


def judge_the_replicas(company: Company) -> None:
    """Each holds what its point held, byte for byte, where the example says; and there is nothing else."""
    s = company.session("colo")
    there = {vm.identity.instance_uuid: vm for vm in inventory.list_vms(s)}
    held, pairs = synced(company), replicas(company)
    assert set(pairs) == {
        *((vm, "standby") for vm in STANDBY | {RISES}),
        *((vm, "shelf") for vm in OTHERS | FILE_SERVERS),
    }
    assert {pair.replica for pair in pairs.values()} == set(there)
    for (vm, target), pair in pairs.items():
        assert pair.replica is not None
        place = there[pair.replica]
        state = inventory.vm_state(s, place.identity.moref)
        name, folder = f"{vm}-{'standby' if target == 'standby' else 'replica'}", f"Colo/Replicas/{target.capitalize()}"
        if vm == "erp-app":
            name, folder = "erp-standby", "Colo/Replicas/Standby/ERP"
        assert (place.identity.name, place.folder, place.power, place.template) == (name, folder, "poweredOff", False)
        judge_the_disks(company, vm, target, disk_map(state), held[vm, target])
        cards = [(card.network, card.connected) for card in state.config.nics]
        if vm == "shop-web":
            assert cards[0] == ("DR DMZ", True) and not cards[1][1]
        elif vm != "kiosk-01":
            assert cards == [("DR Servers" if target == "standby" else "Isolated", True)], vm
    pools = {
        s.read(s.vm(there[str(pairs[vm, "standby"].replica)].identity.moref), "resourcePool")["resourcePool"].name
        for vm in CHANGED
    }
    assert pools == {"Replicas"}


def judge_the_disks(company: Company, vm: str, target: str, disks: dict[str, Any], point: int) -> None:
    wanted = company.rounds[point - 1][vm]
    first, *more = wanted
    if vm == "sql-warehouse":
        wanted = {first: wanted[first]}
    assert disks.keys() == wanted.keys(), vm
    for key, disk in disks.items():
        assert flat(company.sites["colo"], disk.file).read_bytes() == wanted[key], (vm, disk.label)
        fast = target == "standby" and key not in more
        assert disk.file.startswith("[colo-fast]" if fast else "[colo-bulk]"), (vm, disk.file)
        assert (disk.thin, disk.eager) == (vm not in ("fs-archive", "sql-erp"), vm == "sql-erp"), vm


def judge_the_last_words(company: Company) -> None:
    """In sync are all but the shelved replica of the VM that moved, which nobody writes to any more, and says so."""
    lines = {(line["vm"], line["recovery_target"]): line for line in said("status", "--json")}
    assert lines.keys() == replicas(company).keys()
    behind = {key: line for key, line in lines.items() if line["state"] != "in sync"}
    assert {key: line["state"] for key, line in behind.items()} == {(RISES, "shelf"): "needs sync"}
    assert lines[RISES, "standby"]["groups"] == ["tier-1"] and lines[RISES, "standby"]["remark"] == ""
    assert lines[RISES, "shelf"]["remark"].startswith("its groups now (tier-1) do not replicate it to shelf")
    gone = lines[GOES, "standby"]
    assert gone["groups"] == [] and "it left the group tier-1" in gone["remark"]
    assert not [key for key, line in lines.items() if line["problem"]]
    last = said("status").splitlines()[-1]
    assert last.startswith(f"{len(LEFT_OUT) + 1} VMs are in no group (lab-01, lab-02, lab-03, ...)"), last
    why = {one["vm"]: one["why"] for one in said("group", "unprotected", "--json")}
    assert why[GOES]["everything-else"] == "excluded: tag protection:none"


@pytest.mark.timeout(900)
def test_a_small_company_is_protected_by_itself(town: tuple[Company, Realm]) -> None:
    company, processes = town
    workers = [
        processes.worker(None),
        processes.worker("office", concurrency=2),
        processes.worker("colo", concurrency=2),
    ]
    processes.beat()
    services.wait_for(lambda: first_round_is_over(company), "the first round", PATIENCE, every=1)
    judge_the_groups(company)
    judge_the_first_round(company)
    assert found_wrong() == {}

    before = {run.id for run in runs(company)}
    live_on(company)
    services.wait_for(lambda: moved(company), "the tags to be seen", PATIENCE, every=0.5)
    company.come_due(TIER, *companies.SCHEDULES[TIER], 2)
    company.come_due(FILES, companies.SCHEDULES[FILES][1], 2)
    services.wait_for(lambda: second_round_is_over(company), "the second round", PATIENCE, every=0.5)
    judge_the_second_round(company, [run for run in runs(company) if run.id not in before])

    before = {run.id for run in runs(company)}
    company.come_due(FILES, companies.SCHEDULES[FILES][1], 3)
    services.wait_for(lambda: len(new := ended_since(company, before)) == 3 and new, "a night", PATIENCE, every=0.2)
    done = ticks(workers[0])
    services.wait_for(lambda: ticks(workers[0]) >= done + 3, "three more ticks", PATIENCE, every=0.1)
    new = [run for run in runs(company) if run.id not in before]
    assert {run.vm for run in new} == FILE_SERVERS and len(new) == 3, "nothing is new for anybody else"
    assert {(run.kind, run.state, run.read, run.written) for run in new} == {(RunKind.SYNC, RunState.NOTHING_NEW, 0, 0)}
    judge_the_replicas(company)
    judge_the_last_words(company)
    assert company.catalogue.failures() == []
    for file in company.folder.glob("*.log"):
        assert PASSWORD not in file.read_text(errors="replace"), file
