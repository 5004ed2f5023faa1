"""The words of `understudy status`: a table for the pure function, and the queries behind thousands of lines."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from workers import settings
from workers.catalogue import Catalogue, Ended, Hold, HoldKind, PointSummary
from workers.errors import NotFound
from workers.models import Pair, Run, RunKind, RunState, SyncPoint, Trigger, VmIdentity, VmSummary
from workers.run import Here
from workers.state import State, status
from workers.status import overview

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def a_pair(**changes: Any) -> Pair:
    given = {"id": "p1", "source_site": "prod", "source": "u1", "vm": "web", "store": "main", "recovery_target": "dr"}
    return Pair.model_validate({**given, "site": "dr", "replica_name": "web_replica", **changes})


def a_point(number: int, *, age: timedelta = HOUR) -> PointSummary:
    times = {"created": NOW - age, "data_time": NOW - age}
    sizes = dict.fromkeys(("capacity", "read", "changed", "stored"), 0)
    names = {"store": "main", "vm": "u1", "name": "web", "run": "r", "consistency": "quiesced", "parent": None}
    return PointSummary.model_validate({**names, **times, **sizes, "id": f"{number:08d}-x", "seq": number})


def a_sync(number: int, *, age: timedelta = HOUR) -> SyncPoint:
    return SyncPoint(
        run="r1",
        pair="p1",
        vm="web",
        replica="u2",
        point=f"{number:08d}-x",
        parent=None,
        fence=1,
        data_time=NOW - age,
        committed=NOW,
        mode="delta",
        change_ids={},
        written=0,
    )


def a_run(state: RunState, **changes: Any) -> Run:
    given = {"id": "r9", "kind": "sync", "target": "pair:p1", "vm": "web", "site": "dr", "trigger": "ad hoc"}
    return Run.model_validate(
        {**given, "slot": None, "fence": 3, "attempts": 1, "created": NOW, "state": state, **changes}
    )


def failed(family: str, error: str | None = "it broke") -> Ended:
    return Ended(run=a_run(RunState.FAILED, error=error), family=family)


DONE = Ended(run=a_run(RunState.SUCCEEDED), family=None)
NOTHING = Ended(run=a_run(RunState.NOTHING_NEW), family=None)
QUEUED = a_run(RunState.QUEUED, attempts=0)
RETRIED = a_run(RunState.QUEUED, error="vCenter is away", not_before=NOW + timedelta(seconds=40))
DUE_AGAIN = a_run(RunState.QUEUED, error="vCenter is away", not_before=NOW - timedelta(seconds=1))
STARTING = a_run(RunState.RUNNING, lease_until=NOW + HOUR)
WORKING = a_run(RunState.RUNNING, lease_until=NOW + HOUR, memory={"planned": "yes"})
DESERTED = a_run(RunState.RUNNING, lease_until=NOW - timedelta(seconds=7), memory={"planned": "yes"})


@pytest.mark.parametrize(
    ("pair", "newest", "synced", "live", "last", "state", "words"),
    [
        pytest.param(None, None, None, None, None, State.NEVER_BACKED_UP, "", id="no backup yet"),
        pytest.param(None, a_point(1), None, None, DONE, State.BACKED_UP, "", id="backed up only"),
        pytest.param(None, a_point(1), None, None, failed("no space"), State.FAILED, "it broke", id="backup failed"),
        pytest.param(None, a_point(1), None, QUEUED, DONE, State.QUEUED, "", id="backup queued"),
        pytest.param(a_pair(), None, None, None, None, State.NEVER_SYNCED, "", id="neither backup nor sync"),
        pytest.param(a_pair(), a_point(1), None, None, None, State.NEVER_SYNCED, "", id="never synced"),
        pytest.param(a_pair(), a_point(1), None, None, NOTHING, State.NEVER_SYNCED, "", id="nothing to sync from then"),
        pytest.param(a_pair(), a_point(2), a_sync(2), None, DONE, State.IN_SYNC, "", id="in sync"),
        pytest.param(a_pair(), a_point(3), a_sync(2), None, DONE, State.NEEDS_SYNC, "", id="a newer point"),
        pytest.param(a_pair(), None, a_sync(2), None, DONE, State.NEEDS_SYNC, "", id="its store was exchanged"),
        pytest.param(a_pair(), a_point(3), a_sync(2), QUEUED, DONE, State.QUEUED, "", id="queued"),
        pytest.param(a_pair(), a_point(3), a_sync(2), RETRIED, DONE, State.QUEUED, "in 40 s: vCenter", id="retried"),
        pytest.param(a_pair(), a_point(3), a_sync(2), DUE_AGAIN, DONE, State.QUEUED, "vCenter is away", id="due again"),
        pytest.param(a_pair(), a_point(3), a_sync(2), STARTING, DONE, State.STARTING, "", id="starting"),
        pytest.param(a_pair(), a_point(3), a_sync(2), WORKING, DONE, State.IN_PROGRESS, "", id="in progress"),
        pytest.param(a_pair(), a_point(3), a_sync(2), DESERTED, DONE, State.IN_PROGRESS, "ran out 7 s", id="deserted"),
        pytest.param(
            a_pair(), a_point(3), a_sync(2), WORKING, failed("touched"), State.IN_PROGRESS, "", id="once more"
        ),
        pytest.param(a_pair(), a_point(2), a_sync(1), None, failed("disk busy"), State.FAILED, "it broke", id="failed"),
        pytest.param(
            a_pair(), a_point(2), a_sync(2), None, failed("refused"), State.FAILED, "it broke", id="same point"
        ),
        pytest.param(a_pair(), a_point(2), None, None, failed("touched"), State.TOUCHED, "it broke", id="touched"),
        pytest.param(
            a_pair(), a_point(2), None, None, failed("x", None), State.FAILED, "no reason", id="no reason kept"
        ),
    ],
)
def test_the_words(
    pair: Pair | None,
    newest: PointSummary | None,
    synced: SyncPoint | None,
    live: Run | None,
    last: Ended | None,
    state: State,
    words: str,
) -> None:
    found = status(pair, newest, synced, live, last, NOW)
    assert found.state == state
    assert words in found.sentence if words else found.sentence == ""


def a_hold(kind: HoldKind, reason: str = "moving house") -> Hold:
    return Hold(target="pair:p1", kind=kind, since=NOW - HOUR, who="ann", reason=reason)


def in_a_row(count: int, family: str, state: RunState = RunState.FAILED, **changes: Any) -> Ended:
    """A target whose last runs failed so, the last of them half an hour ago."""
    run = a_run(state, error="it broke", family=family, ended=NOW - HOUR / 2, **changes)
    return Ended(run=run, family=family, failures=count, since=NOW - 5 * HOUR, blamed=family)


ASKED = in_a_row(0, "", RunState.NEEDS_APPROVAL, memory={"approval": "9.0 GB would be compared again"})


@pytest.mark.parametrize(
    ("kinds", "live", "last", "state", "words"),
    [
        pytest.param(["paused"], None, DONE, State.PAUSED, "2026-05-01 11:00 UTC by ann \\(moving", id="paused"),
        pytest.param(["paused"], None, failed("touched"), State.PAUSED, "understudy resume", id="paused, touched"),
        pytest.param(["paused"], WORKING, None, State.IN_PROGRESS, "", id="paused, still works"),
        pytest.param(["paused", "disabled"], None, DONE, State.DISABLED, "until `understudy enable`", id="disabled"),
        pytest.param(["forgotten"], None, None, State.DISABLED, "forgotten since", id="forgotten"),
        pytest.param([], None, in_a_row(2, "no space"), State.FAILED, "it broke", id="twice is not yet too often"),
        pytest.param(
            [], None, in_a_row(3, "no space"), State.QUARANTINED,
            r"3 runs in a row failed since 2026-05-01 07:00 UTC \(no space\).*again in 30 min.*it broke",
            id="quarantined",
        ),
        pytest.param([], None, in_a_row(1, "refused"), State.QUARANTINED, "1 run failed", id="refused at once"),
        pytest.param([], None, in_a_row(1, "touched"), State.TOUCHED, "looked at again in 30 min", id="touched"),
        pytest.param([], WORKING, in_a_row(3, "no space"), State.IN_PROGRESS, "", id="the probe"),
        pytest.param(["paused"], None, in_a_row(3, "no space"), State.PAUSED, "by ann", id="paused, quarantined"),
        pytest.param([], None, ASKED, State.APPROVAL_NEEDED, "9.0 GB would be compared again", id="approval needed"),
        pytest.param(["approved"], None, ASKED, State.QUEUED, "approved by ann", id="approved"),
        pytest.param(["approved"], None, DONE, State.IN_SYNC, "", id="approved before it was needed"),
    ],
)  # fmt: skip
def test_what_people_said_and_what_failed_too_often(
    kinds: list[str], live: Run | None, last: Ended | None, state: State, words: str
) -> None:
    held = {kind: a_hold(HoldKind(kind)) for kind in kinds}
    found = status(a_pair(), a_point(2), a_sync(2), live, last, NOW, held=held, tuning=settings.Tuning())
    assert found.state is state
    assert re.search(words, found.sentence) if words else found.sentence == ""


@pytest.mark.parametrize(
    ("kinds", "live", "last", "state"),
    [
        pytest.param(["paused"], None, failed("no space"), State.REVERT_FAILED, id="after it had paused the pair"),
        pytest.param([], None, failed("no space"), State.REVERT_FAILED, id="before that"),
        pytest.param(["paused"], None, DONE, State.PAUSED, id="it went well"),
        pytest.param(["paused"], WORKING, failed("no space"), State.IN_PROGRESS, id="once more"),
        pytest.param(["disabled", "paused"], None, failed("no space"), State.DISABLED, id="switched off since"),
        pytest.param([], None, failed("touched"), State.TOUCHED, id="touched"),
        pytest.param([], None, in_a_row(3, "no space"), State.QUARANTINED, id="too often"),
    ],
)
def test_a_rollback_that_failed_is_not_hidden_by_its_pause(
    kinds: list[str], live: Run | None, last: Ended, state: State
) -> None:
    held = {kind: a_hold(HoldKind(kind)) for kind in kinds}
    given = {"held": held, "tuning": settings.Tuning()}
    found = status(a_pair(), a_point(2), a_sync(2), live, last, NOW, back=True, **given)
    assert found.state is state
    assert state is not State.REVERT_FAILED or (found.sentence == "it broke" and found.problem)
    assert status(a_pair(), a_point(2), a_sync(2), live, last, NOW, **given).state is not State.REVERT_FAILED


@pytest.mark.parametrize(
    ("pair", "newest", "synced", "live", "kinds", "state", "late"),
    [
        pytest.param(a_pair(), a_point(2), a_sync(2, age=3 * HOUR), None, [], State.IN_SYNC, None, id="within"),
        pytest.param(a_pair(), a_point(2), a_sync(2, age=5 * HOUR), None, [], State.RPO_BREACHED, 3600, id="breached"),
        pytest.param(a_pair(), a_point(3), a_sync(2, age=5 * HOUR), None, [], State.RPO_BREACHED, 3600, id="a newer"),
        pytest.param(a_pair(), a_point(3), a_sync(2, age=5 * HOUR), WORKING, [], State.IN_PROGRESS, 3600, id="at work"),
        pytest.param(a_pair(), a_point(3), a_sync(2, age=5 * HOUR), None, ["paused"], State.PAUSED, 3600, id="paused"),
        pytest.param(None, a_point(3, age=5 * HOUR), None, None, [], State.RPO_BREACHED, 3600, id="backups alone"),
        pytest.param(a_pair(), a_point(1), None, None, [], State.NEVER_SYNCED, None, id="never synced"),
        pytest.param(
            a_pair(created=NOW - 6 * HOUR), a_point(1), None, None, [], State.RPO_BREACHED, 7200, id="never, for long"
        ),
        pytest.param(a_pair(created=NOW - HOUR), a_point(1), None, None, [], State.NEVER_SYNCED, None, id="new"),
    ],
)
def test_the_rpo_is_a_state(
    pair: Pair | None,
    newest: PointSummary | None,
    synced: SyncPoint | None,
    live: Run | None,
    kinds: list[str],
    state: State,
    late: float | None,
) -> None:
    held = {kind: a_hold(HoldKind(kind)) for kind in kinds}
    found = status(pair, newest, synced, live, DONE, NOW, held=held, rpo=4 * 3600)
    assert (found.state, found.late) == (state, late)
    assert found.problem == (late is not None)
    assert ("RPO of 4 h" in found.sentence or "RPO is 4 h" in found.sentence) == (late is not None)


@pytest.mark.parametrize(
    ("pair", "newest", "synced", "lag"),
    [
        pytest.param(None, None, None, None, id="nothing kept"),
        pytest.param(None, a_point(1, age=2 * HOUR), None, 7200, id="of the restore point"),
        pytest.param(a_pair(), a_point(1, age=HOUR), None, None, id="nothing on the replica"),
        pytest.param(a_pair(), a_point(2, age=HOUR), a_sync(1, age=3 * HOUR), 10800, id="of what the replica holds"),
        pytest.param(a_pair(), a_point(1), a_sync(1, age=-HOUR), 0, id="a source's clock that is ahead"),
    ],
)
def test_the_lag(pair: Pair | None, newest: PointSummary | None, synced: SyncPoint | None, lag: float | None) -> None:
    assert status(pair, newest, synced, None, None, NOW).lag == lag


# --- over a real catalogue --------------------------------------------------------------------------------------------

CONFIG = """
redis = "redis://127.0.0.1:1/0"
catalogue = "sqlite:///catalogue.db"
[sites.prod]
vcenter = "127.0.0.1:1"
user = "u"
password_env = "X"
[stores.main]
path = "store"
[targets.dr]
site = "prod"
datastore = "ds"
[groups.web]
source = "prod"
vms = ["web-*"]
store = "main"
target = "dr"
[groups.only-backups]
source = "prod"
vms = ["db-*"]
store = "main"
"""


@pytest.fixture
def here(tmp_path: Path) -> Here:
    (tmp_path / "understudy.toml").write_text(CONFIG)
    conf = settings.load(tmp_path / "understudy.toml")
    return Here(conf, Catalogue.create(conf.catalogue))


def seen(here: Here, *names: str) -> None:
    """The inventory of prod is exactly these."""
    here.catalogue.record_inventory(
        "prod",
        [
            VmSummary(
                identity=VmIdentity(
                    site="prod", vcenter="v", instance_uuid=f"uuid-{name}", bios_uuid="b", moref=f"vm-{name}", name=name
                ),
                power="poweredOn",
                template=False,
                folder="",
            )
            for name in names
        ],
    )


def paired(here: Here, name: str) -> Pair:
    given = {"source_site": "prod", "source": f"uuid-{name}", "vm": name, "store": "main", "site": "prod"}
    return here.catalogue.ensure_pair(**given, recovery_target="dr", replica_name=f"{name}_replica")


def run_of(here: Here, kind: RunKind, target: str, vm: str) -> Run:
    return here.catalogue.request_run(kind, target, vm=vm, site="prod", trigger=Trigger.AD_HOC)[0]


def test_a_line_for_each_pair_and_each_vm_that_is_only_backed_up(here: Here) -> None:
    seen(here, "web-1", "web-2", "db-1", "other")
    paired(here, "web-2")
    lines = {line.vm: line for line in overview(here)}
    assert {vm: line.state for vm, line in lines.items()} == {
        "db-1": State.NEVER_BACKED_UP,
        "web-1": State.NEVER_SYNCED,
        "web-2": State.NEVER_SYNCED,
    }
    assert lines["db-1"].sync is None and lines["web-1"].pair is None and lines["web-2"].pair is not None
    assert lines["web-1"].groups == ("web",)


def test_what_is_kept_of_a_vm_that_is_gone_stays_in_it(here: Here) -> None:
    seen(here, "web-1", "other")
    paired(here, "web-1")
    paired(here, "other")  # under no group any more
    seen(here, "other")
    remarks = {line.vm: line.remark for line in overview(here)}
    assert "gone from its vCenter" in remarks["web-1"]
    assert "no group covers this VM" in remarks["other"]


def test_what_a_vm_leaves_behind_in_another_group_is_not_called_unprotected(here: Here) -> None:
    """It was replicated by `web`, was renamed, and is only backed up now: the replica is the only thing that stands."""
    seen(here, "db-1")
    paired(here, "db-1")
    alone, left = sorted(overview(here), key=lambda line: line.pair is not None)
    assert alone.groups == ("only-backups",) and alone.remark == ""
    assert left.groups == () and left.remark.startswith(
        "its groups now (only-backups) do not replicate it to dr from main: this replica stays as it is."
    )
    assert "`understudy forget db-1 --target dr`" in left.remark


def test_failures_of_backups_show_beside_a_sync(here: Here) -> None:
    seen(here, "web-1")
    pair = paired(here, "web-1")
    catalogue = here.catalogue
    for kind, target, family in [
        (RunKind.BACKUP, "chain:main:uuid-web-1", "no space"),
        (RunKind.SYNC, f"pair:{pair.id}", "touched"),
    ]:
        run = run_of(here, kind, target, "web-1")
        assert catalogue.claim(run.id, "me", 30)
        catalogue.finish(run.id, "me", RunState.FAILED, error=f"{family} it was", family=family)
    (line,) = overview(here, ["web-1"])
    assert line.state is State.TOUCHED
    backups, sync = line.troubles
    assert backups == "backup: no space it was" and sync.startswith("sync: touched it was (looked at again in ")
    again = run_of(here, RunKind.SYNC, f"pair:{pair.id}", "web-1")
    (line,) = overview(here, ["uuid-web-1"])
    assert line.state is State.QUEUED and line.live == (again,)
    assert line.last_sync is not None and line.last_sync.family == "touched"


def test_an_unknown_vm_is_a_sentence(here: Here) -> None:
    seen(here, "web-1", "other")
    with pytest.raises(NotFound, match=r"no VM 'web-l'.*near: web-1"):
        overview(here, ["web-l"])
    with pytest.raises(NotFound, match="under no group's policy"):
        overview(here, ["other"])


def test_thousands_of_lines_take_a_handful_of_queries(here: Here) -> None:
    asked: list[str] = []

    def count(count: int) -> int:
        names = [f"web-{number}" for number in range(count)]
        seen(here, *names)
        engine = here.catalogue.engine
        with engine.begin() as conn:
            conn.exec_driver_sql("DELETE FROM runs")
            conn.exec_driver_sql("DELETE FROM targets")
            for number, name in enumerate(names):
                conn.exec_driver_sql("INSERT INTO targets VALUES (?, 2, NULL)", (f"chain:main:uuid-{name}",))
                for fence in (1, 2):
                    conn.exec_driver_sql(
                        "INSERT INTO runs (id, kind, target, vm, site, trigger, state, fence, attempts, memory, "
                        "reasons, created, sent, read, written, stored) VALUES (?, 'backup', ?, ?, 'prod', 'ad hoc', "
                        "'succeeded', ?, 1, '{}', '[]', '2026-01-01 00:00:00', '2026-01-01 00:00:00', 0, 0, 0)",
                        (f"{number}-{fence}", f"chain:main:uuid-{name}", name, fence),
                    )
        asked.clear()
        lines = overview(here)
        assert len(lines) == count
        assert all(line.last_backup is not None and line.last_backup.run.fence == 2 for line in lines)
        return len(asked)

    sa.event.listen(here.catalogue.engine, "before_cursor_execute", lambda c, cursor, text, *more: asked.append(text))
    few, many = count(10), count(2000)
    assert few == many <= 34
