"""Two days of a site of many VMs, under a clock of their own: what is due is run once, and nobody is forgotten.

The VMs are a vCenter's: they are made, renamed and deleted there, and each tick reads its inventory, also while it
fails to answer. Policy, membership, dispatch, runs, retries, quarantine, approval and status are the real ones, over a
real catalogue. Left out are the disks (moving the bytes of 20,000 runs would take hours, and test_main_job.py has that)
and Celery: the work of a run is to record what it would have made, or to fail as it is told to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from tests.catalogue import some
from tests.integration.two_days import Machines, configured
from tests.integration.vcenter import Vcenter
from workers import dispatch, holding, quarantine, replicate
from workers.approval import Policy
from workers.catalogue import Catalogue
from workers.errors import Touched, Transient, UnderstudyError, VcenterUnreachable
from workers.models import Run, RunKind, RunReport, RunState, SyncPoint, Trigger
from workers.run import Live, execute
from workers.state import State
from workers.status import Protected, overview

START = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)

POLICY = """
[tuning]
attempts = 2
retry_pause = "1s"
[targets.dr]
site = "dr"
datastore = "ds"
[groups.web]
source = "prod"
scrub = 0
vms = ["web-*"]
store = "main"
target = "dr"
backup = {{ every = "{every}", jitter = "none" }}
rpo = "{rpo}"
full = "ask"
[groups.db]
source = "prod"
scrub = 0
vms = ["db-*"]
store = "main"
target = "dr"
backup = {{ every = "8h" }}
replicate = {{ after_backup = false, schedule = {{ every = "8h", jitter = "none" }} }}
[groups.files]
source = "prod"
scrub = 0
vms = ["file-*"]
store = "main"
backup = {{ cron = "30 1 * * *", timezone = "Europe/Berlin", jitter = "none" }}
rpo = "26h"
"""


class Trouble(NamedTuple):
    """What is wrong with a VM's runs of a kind between two hours; `*` = with all VMs."""

    vm: str
    kind: RunKind
    since: float
    until: float
    error: type[UnderstudyError]


TROUBLES = (
    Trouble("web-003", RunKind.BACKUP, 5, 25, Transient),
    Trouble("web-004", RunKind.SYNC, 8, 26, Touched),
    Trouble("*", RunKind.BACKUP, 40, 43, VcenterUnreachable),
)
#: their runs are not those of a VM with which nothing happens
SPECIAL = {"web-003", "web-004", "web-005", "web-006", "web-007", "web-008", "web-009", "web-anew"}
#: between these hours the inventory can not be read; a VM is deleted in the midst of it
UNREADABLE = (18, 22)


class Site:
    """The VMs, the clock, and workers that do at once what a tick has sent."""

    def __init__(self, folder: Path, vcenter: Vcenter, *, vms: int, every: int) -> None:
        self.every = every
        self.rpo = 2.5 * every
        self.now = START
        self.readable = True
        self.here = configured(folder, vcenter, POLICY.format(every=f"{every}h", rpo=f"{int(self.rpo * 60)}m"))
        self.machines = Machines(self.here, vcenter)
        self._own_clock(self.here.catalogue)
        parts = {"file": vms // 5, "db": vms // 5, "web": vms - 2 * (vms // 5)}
        self.names = [f"{kind}-{number:03}" for kind, count in parts.items() for number in range(count)]
        #: VM -> time of the data of its newest restore point, and of its replica: the test's own record
        self.backed_up: dict[str, datetime] = {}
        self.synced: dict[str, datetime] = {}
        self.seq: Counter[str] = Counter()

    def _own_clock(self, catalogue: Catalogue) -> None:
        """The database's clock is the only one that decides; on SQLite it is a function, which is replaced."""

        def connected(connection: Any, _: Any) -> None:
            connection.create_function("strftime", 2, lambda *_: self.now.strftime("%Y-%m-%dT%H:%M:%S.%f")[:23])
            connection.execute("PRAGMA synchronous = OFF")  # no power cut is part of this

        engine = catalogue.engine
        sa.event.listen(engine, "connect", connected)
        engine.dispose()
        assert catalogue.now() == START

    @property
    def hour(self) -> float:
        return round((self.now - START) / HOUR, 2)

    def rename(self, old: str, new: str) -> None:
        self.machines.rename(old, new)
        self.names[self.names.index(old)] = new
        for log in (self.backed_up, self.synced):
            log[new] = log.pop(old)
        self.seq[new] = self.seq.pop(old)

    def tick(self) -> None:
        """Beat's ticks; what is sent is done, and what that sets off, too. Second tries come two seconds later."""
        answers = not UNREADABLE[0] <= self.hour < UNREADABLE[1]
        if self.readable is not answers:
            self.readable = answers
            self.machines.away(not answers)
        assert self.machines.read() is answers
        dispatch.dispatch(self.here, self.now)
        self._work_off()
        self.now += timedelta(seconds=2)
        self._work_off()

    def _work_off(self) -> None:
        while ready := [run for run in self.here.catalogue.live_runs() if (run.not_before or self.now) <= self.now]:
            for run in ready:
                self.work(run)

    def work(self, run: Run) -> None:
        """What tasks/backup.py and tasks/replicate.py do with a message."""
        try:
            report = execute(self.here, run.id, run.kind, self._backup if run.kind is RunKind.BACKUP else self._sync)
        except UnderstudyError:
            return
        if run.kind is RunKind.BACKUP and report.outcome == "succeeded" and report.point is not None:
            _, store, uuid = run.target.split(":")
            dispatch.after_backup(self.here, uuid, store, report.point)

    def _fail(self, live: Live) -> None:
        for trouble in TROUBLES:
            if trouble.vm in (live.run.vm, "*") and trouble.kind is live.run.kind:
                if trouble.since <= self.hour < trouble.until:
                    raise trouble.error(f"{trouble.error.family} since hour {trouble.since}")

    def _backup(self, live: Live) -> RunReport:
        self._fail(live)
        if live.run.vm == "web-005" and self.hour >= 12 and self.seq["lost web-005"] == 0:
            live.may_read_all(Policy("ask"), first=0, again=7 * 10**9)
            self.seq["lost web-005"] = 1
        name = live.run.vm
        self.seq[name] += 1
        point = some.restore_point(self.seq[name]).model_copy(
            update={
                "vm": self.machines.identity(live.run.target.split(":")[2]),
                "created": self.now,
                "data_time": self.now,
            }
        )
        self.here.catalogue.record_point("main", point)
        self.backed_up[name] = self.now
        return live.finish(RunState.SUCCEEDED, live.report("succeeded", "done", point.id))

    def _sync(self, live: Live) -> RunReport:
        self._fail(live)
        pair = self.here.catalogue.pair(live.run.target.removeprefix("pair:"))
        newest = next((p for p in reversed(self.here.catalogue.points(pair.source))), None)
        before = self.here.catalogue.sync_point(pair.id)
        if newest is None or (before is not None and before.point == newest.id):
            return live.finish(RunState.NOTHING_NEW, live.report("nothing new", "nothing new"))
        given = {"run": live.run.id, "pair": pair.id, "vm": pair.vm, "replica": pair.replica_name, "parent": None}
        point = SyncPoint(
            **given,
            point=newest.id,
            fence=live.run.fence,
            data_time=newest.data_time,
            committed=self.now,
            mode="delta",
            change_ids={},
            written=1,
        )
        self.here.catalogue.commit_sync(live.run.id, live.owner, point)
        self.synced[pair.vm] = newest.data_time
        return live.report("succeeded", "done", newest.id)

    # --- judging ----------------------------------------------------------------------------------------------

    def lines(self) -> dict[str, Protected]:
        return {line.vm: line for line in overview(self.here)}

    def runs(self, name: str, kind: RunKind) -> list[Run]:
        return self.here.catalogue.runs(name, kind, limit=10_000)

    def judge_rpo(self) -> None:
        """Every line says that its RPO is breached exactly when the test's own record says so."""
        for name, line in self.lines().items():
            if line.remark:  # gone, and under no policy any more
                continue
            if name.startswith("db"):
                assert line.state is not State.RPO_BREACHED
                continue
            data = (self.synced if line.pair is not None else self.backed_up).get(name)
            allowed = self.rpo if name.startswith("web") else 26
            status = line.sync or line.backup
            if data is not None:
                assert (status.late is not None) == ((self.now - data) / HOUR > allowed), (name, self.hour, status)
                assert line.problem or status.late is None or status.state is State.DISABLED, name


def slots(every: int, until: datetime) -> Iterator[str]:
    """By hand: the ticks of `every` hours, the first of them the one that START stands on."""
    moment = START
    while moment <= until:
        yield moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        moment += every * HOUR


def live_through(site: Site, step: timedelta) -> None:
    """The two days, and what people do in them."""
    late = site.names[-1]
    there = site.machines.are
    there([name for name in site.names if name != late])
    site.machines.read()
    person = {"who": "ann", "reason": "a test"}
    web = {name: (lambda name=name: holding.subjects(site.here, [name], which="replicas")[0]) for name in SPECIAL}
    backups = holding.subjects(site.here, ["web-005"], which="backups")[0]
    deeds: list[tuple[float, Any]] = [
        (10, lambda: there(site.names)),
        (15, lambda: holding.pause(site.here, web["web-006"](), **person)),
        (20, lambda: holding.approve(site.here, backups, **person)),
        (25, lambda: holding.resume(site.here, web["web-006"]())),
        (16, lambda: holding.disable(site.here, web["web-007"](), **person)),
        (20, lambda: there([name for name in site.names if name != "web-008"])),
        (26, lambda: site.rename("web-009", "web-anew")),
    ]
    ticks = 0
    while site.hour <= 48:
        for deed in [deed for deed in deeds if deed[0] <= site.hour]:
            deeds.remove(deed)
            deed[1]()
        site.tick()
        if site.hour % 3 == 1:
            site.judge_rpo()
        judge_the_special(site)
        ticks += 1
        site.now = START + ticks * step
    assert deeds == []


def judge_the_special(site: Site) -> None:
    hour, lines = site.hour, site.lines() if site.hour % 4 == 2 else {}
    if not lines:
        return
    if 5 + 3 * site.every < hour < 25:
        assert lines["web-003"].backup.state is State.QUARANTINED, hour
        assert "transient" in lines["web-003"].backup.sentence
    if 8 + site.every < hour < 26:
        assert lines["web-004"].state is State.TOUCHED, hour
    if 12 + site.every <= hour < 20:
        assert lines["web-005"].backup.state is State.APPROVAL_NEEDED, hour
    if 15 <= hour < 25:
        assert lines["web-006"].state is State.PAUSED
    if hour >= 16:
        assert lines["web-007"].state is State.DISABLED
    if 40 <= hour < 43:
        assert all(line.backup.state is not State.QUARANTINED for line in lines.values()), "a vCenter is away"


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[Vcenter]:
    made = Vcenter(tmp_path, "prod")
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("vms", "every", "step"),
    [
        pytest.param(20, 4, timedelta(hours=1), id="20 VMs"),
        pytest.param(300, 1, timedelta(minutes=10), id="300 VMs", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_two_days(vcenter: Vcenter, tmp_path: Path, vms: int, every: int, step: timedelta) -> None:
    site = Site(tmp_path, vcenter, vms=vms, every=every)
    live_through(site, step)
    ended = site.now - step
    last, late = site.lines(), site.names[-1]

    # Nobody is forgotten: at the end all are well, but for the one that is switched off and the one that is gone.
    well = {State.IN_SYNC, State.BACKED_UP, State.NEEDS_SYNC}
    assert {name for name, line in last.items() if line.state not in well} <= {"web-007", "web-008"}
    assert set(last) == set(site.names)
    assert site.here.catalogue.live_runs() == []

    # Each slot has exactly one run, and no run stands for none.
    for name in site.names:
        found = Counter(run.slot for run in site.runs(name, RunKind.BACKUP) if run.trigger is Trigger.SCHEDULE)
        assert set(found.values()) <= {1}, name
        if name.startswith("web") and name not in SPECIAL | {late}:
            assert sorted(map(str, found)) == sorted(slots(every, ended)), name
            triggers = {run.trigger for run in site.runs(name, RunKind.BACKUP)}
            assert triggers <= {Trigger.SCHEDULE, Trigger.PROBE}, "the outage's end is found by a probe"
        if name.startswith("file") and name != late:
            nights = ["2026-05-31T23:30:00Z", "2026-06-01T23:30:00Z", "2026-06-02T23:30:00Z"]
            assert sorted(map(str, found)) == nights, name
        if name.startswith("db") and name != late:
            syncs = [run.slot for run in site.runs(name, RunKind.SYNC)]
            assert sorted(map(str, syncs)) == sorted(slots(8, ended)), name

    # Every restore point of a VM with which nothing happened was synced once.
    for name in site.names:
        if name.startswith("web") and name not in SPECIAL | {late}:
            points = [run.point for run in site.runs(name, RunKind.BACKUP) if run.state is RunState.SUCCEEDED]
            assert [run.point for run in site.runs(name, RunKind.SYNC)] == points, name
    judge_the_quarantined(site)
    judge_the_others(site)
    judge_the_history(site, ended)


def judge_the_quarantined(site: Site) -> None:
    """Its schedule is skipped, it is probed rarer and rarer, and the first probe that can work ends it."""
    runs = [run for run in reversed(site.runs("web-003", RunKind.BACKUP)) if 5 <= (run.created - START) / HOUR < 33]
    failed = [run for run in runs if run.state is RunState.FAILED and run.family == "transient"]
    gaps = [(after.created - before.created) / HOUR for before, after in pairwise(failed[2:])]
    assert len(failed) >= 5 and gaps[0] >= 1 and gaps == sorted(gaps), "rarer and rarer"
    assert all((after.created - START) / HOUR < 25 for after in failed)
    good = next(run for run in runs if run.created > failed[-1].created and run.state is RunState.SUCCEEDED)
    aside = quarantine.RAREST * HOUR + site.every * HOUR
    assert good.created - failed[-1].created <= aside
    assert site.lines()["web-003"].state is State.IN_SYNC

    touched = [run for run in site.runs("web-004", RunKind.SYNC) if run.state is RunState.FAILED]
    assert touched and all(run.family == "touched" and run.attempts == 1 for run in touched), "a look, no retry"
    again = next(run for run in reversed(site.runs("web-004", RunKind.SYNC)) if run.created >= START + 26 * HOUR)
    assert again.state is RunState.SUCCEEDED and again.created <= START + 28 * HOUR


def judge_the_others(site: Site) -> None:
    asked = [run for run in site.runs("web-005", RunKind.BACKUP) if run.state is RunState.NEEDS_APPROVAL]
    assert asked and all(12 <= (run.created - START) / HOUR < 20 for run in asked)
    done = next(run for run in reversed(site.runs("web-005", RunKind.BACKUP)) if run.created > asked[0].created)
    assert done.state is RunState.SUCCEEDED and any("approved by ann" in reason for reason in done.reasons)
    assert (done.created - START) / HOUR < 20.6, "at the next tick"

    paused = [run for run in site.runs("web-006", RunKind.SYNC) if 15 <= (run.created - START) / HOUR < 25]
    assert paused == []
    assert [run for run in site.runs("web-006", RunKind.SYNC) if 25 <= (run.created - START) / HOUR < 25.6]
    assert not [run for run in site.runs("web-007", RunKind.SYNC) if (run.created - START) / HOUR >= 16]
    gone = [run for run in site.runs("web-008", RunKind.BACKUP) if (run.created - START) / HOUR >= UNREADABLE[0]]
    assert all((run.created - START) / HOUR < UNREADABLE[1] for run in gone), "a VM that is gone is left alone"
    assert gone, "and is not known to be gone while vCenter does not answer"
    assert "gone from its vCenter since 2026-06-01 22:00" in site.lines()["web-008"].remark
    chain = site.runs("web-anew", RunKind.BACKUP)[0].target
    whole = site.here.catalogue.runs(target=chain, limit=10_000)
    assert {run.vm for run in whole} == {"web-009", "web-anew"}, "one VM under two names"
    ticked = [run.slot for run in whole if run.trigger is Trigger.SCHEDULE]
    assert sorted(map(str, ticked)) == sorted(slots(site.every, START + 48 * HOUR))
    said = [each.message for each in site.here.catalogue.failures(10_000) if each.kind == "inventory"]
    assert len(said) == 1 and "nobody joins or leaves" in said[0]
    late = site.names[-1]
    joined = site.runs(late, RunKind.BACKUP)[-1]
    assert joined.created == START + 10 * HOUR, "a VM that is new is backed up at the next tick"


def judge_the_history(site: Site, ended: datetime) -> None:
    """Old runs go, and yet nothing starts anew because of that."""
    before = site.here.catalogue.latest_ended()
    site.now = ended + timedelta(seconds=3)
    dropped = site.here.catalogue.drop_history(12 * 3600)
    assert dropped.runs > len(site.names) and dropped.failures and dropped.sync_points
    assert site.here.catalogue.latest_ended() == before
    site.tick()
    assert site.here.catalogue.latest_ended() == before
    kept = {run.target for run in site.here.catalogue.runs(limit=100_000)}
    replicas = {replicate.target_of(pair.id) for pair in site.here.catalogue.pairs()}
    assert len(kept) == len(site.names) + len(replicas)
