"""Pause, disable, approve and back, and the filters of status: over a real catalogue, without any vCenter."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.catalogue import some
from tests.command import forgetting, run
from tests.paired import configured, end, identity, seen
from workers import dispatch, holding
from workers.catalogue import HoldKind
from workers.errors import BadInput, NotFound, Refused
from workers.models import RunKind, RunState, Trigger
from workers.run import Here
from workers.state import State
from workers.status import Filter, Protected, ordered, overview, selected, summary

POLICY = """
[targets.near]
site = "prod"
datastore = "ds"
[targets.far]
site = "dr"
datastore = "ds"
[groups.web]
source = "prod"
scrub = 0
vms = ["web-*"]
store = "main"
target = "far"
backup = { every = "1h", jitter = "none" }
[groups.twice]
source = "prod"
scrub = 0
vms = ["web-1"]
store = "main"
target = "near"
full = "never"
[groups.files]
source = "prod"
scrub = 0
vms = ["file-*"]
store = "main"
backup = { every = "1h", jitter = "none" }
rpo = "4h"
"""

ANN = {"who": "ann", "reason": "moving"}


@pytest.fixture
def here(tmp_path: Path) -> Here:
    made = configured(tmp_path, POLICY)
    seen(made, "web-1", "web-2", "file-1")
    return made


def meant(here: Here, *names: str, **more: Any) -> list[holding.Subject]:
    return holding.subjects(here, names, **{"which": "replicas", **more})


def what(subjects: list[holding.Subject]) -> list[str]:
    return [str(subject) for subject in subjects]


# --- who is meant ---------------------------------------------------------------------------------------------------


def test_which_targets_of_a_vm_are_meant(here: Here) -> None:
    far, near = "web-1, the replica dr/web-1_replica", "web-1, the replica prod/web-1_replica"
    assert what(meant(here, "web-1")) == [far, near]
    assert what(meant(here, "web-1", targets=["near"])) == [near]
    assert what(meant(here, "web-1", which="backups")) == ["web-1, the backups to main"]
    assert len(meant(here, "web-1", which="both")) == 3
    assert what(meant(here, groups=["web"])) == [far, "web-2, the replica dr/web-2_replica"]
    assert what(meant(here, groups=["files"], which="both")) == ["file-1, the backups to main"]
    seen(here, "web-2", "file-1")
    assert what(meant(here, "web-1")) == [far, near], "also of a VM that is gone"


@pytest.mark.parametrize(
    ("names", "more", "error", "words"),
    [
        ([], {}, BadInput, "nothing is named"),
        (["wbe-1"], {}, NotFound, "near: web-1"),
        (["web-1"], {"targets": ["nowhere"]}, BadInput, "there are: far, near"),
        ([], {"groups": ["wbe"]}, BadInput, "there are: files, twice, web"),
        (["web-2"], {"targets": ["near"]}, BadInput, "none of web-2 has a replica at near"),
        (["file-1"], {}, BadInput, "none of file-1 has a replica; for backups say --backups"),
    ],
)
def test_what_is_not_there_is_a_sentence(
    here: Here, names: list[str], more: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        meant(here, *names, **more)


# --- pause, disable -------------------------------------------------------------------------------------------------


def due(here: Here, hours: float = 0) -> set[tuple[str, str]]:
    fresh = dispatch.dispatch(here, here.catalogue.now() + timedelta(hours=hours))
    for run_ in fresh:
        end(here, run_, state=RunState.SUCCEEDED)
    return {(run_.vm, run_.kind) for run_ in fresh}


def test_a_pause_skips_the_schedule_and_not_a_person(here: Here) -> None:
    (files,) = meant(here, "file-1", which="backups")
    assert holding.pause(here, files, **ANN).sentence == (
        "paused: its schedules are skipped until `understudy resume file-1`"
    )
    assert due(here) == {("web-1", "backup"), ("web-2", "backup")}
    (member,) = dispatch.find(here, "file-1")
    asked, created = dispatch.request_backup(here, member, Trigger.AD_HOC)
    assert created
    end(here, asked, state=RunState.SUCCEEDED)
    assert "paused by ann (moving)" in holding.resume(here, files).sentence
    assert due(here) == {("file-1", "backup")}, "what was missed is done once"
    assert not holding.resume(here, files).done
    assert due(here) == set()


def test_disabled_is_off_for_everybody(here: Here) -> None:
    (files,) = meant(here, "file-1", which="backups")
    holding.disable(here, files, **ANN)
    (member,) = dispatch.find(here, "file-1")
    with pytest.raises(Refused, match=r"disabled since .* by ann \(moving\); `understudy enable file-1` ends that"):
        dispatch.request_backup(here, member, Trigger.AD_HOC)
    assert ("file-1", "backup") not in due(here)
    assert "understudy enable" in holding.resume(here, files).sentence, "resume does not end it, and says what does"
    assert holding.enable(here, files).done and not holding.enable(here, files).done
    assert due(here) == {("file-1", "backup")}


def test_what_waits_is_stopped_with_now(here: Here) -> None:
    (files,) = meant(here, "file-1", which="backups")
    (member,) = dispatch.find(here, "file-1")
    run_, _ = dispatch.request_backup(here, member, Trigger.AD_HOC)
    assert f"the run {run_.id} goes on" in holding.pause(here, files, **ANN).sentence
    assert f"the run {run_.id} was stopped" in holding.pause(here, files, **ANN, now=True).sentence
    assert here.catalogue.run(run_.id).state is RunState.STOPPED


# --- quarantine -----------------------------------------------------------------------------------------------------


def test_what_fails_in_a_row_is_set_aside_probed_and_rejoins(here: Here) -> None:
    seen(here, "file-1")
    for hour in range(3):
        (run_,) = dispatch.dispatch(here, here.catalogue.now() + timedelta(hours=hour))
        end(here, run_)
    last = here.catalogue.runs("file-1")[0].ended
    assert last is not None
    (line,) = overview(here)
    assert line.state is State.QUARANTINED and line.problem
    assert dispatch.dispatch(here, last + timedelta(minutes=59)) == [], "also a slot that is due"
    (probe,) = dispatch.dispatch(here, last + timedelta(minutes=61))
    assert dispatch.dispatch(here, last + timedelta(minutes=61)) == [], "two ticks, one probe"
    end(here, probe)
    again = here.catalogue.run(probe.id).ended
    assert again is not None
    assert dispatch.dispatch(here, again + timedelta(minutes=119)) == []
    (probe,) = dispatch.dispatch(here, again + timedelta(minutes=121))
    end(here, probe, state=RunState.SUCCEEDED)
    assert overview(here)[0].state is State.NEVER_BACKED_UP and not overview(here)[0].problem
    assert len(dispatch.dispatch(here, again + timedelta(hours=9))) == 1, "its schedule goes on"


def test_a_probe_is_made_also_without_a_schedule(here: Here) -> None:
    seen(here, "web-2")
    (pair,) = (subject.pair for subject in meant(here, "web-2"))
    assert pair is not None
    run_, _ = dispatch.request_sync(here, pair, Trigger.AD_HOC)
    end(here, run_, "touched")
    due(here)
    now = here.catalogue.now()
    (probe,) = [r for r in dispatch.dispatch(here, now + timedelta(minutes=61)) if r.kind is RunKind.SYNC]
    assert probe.trigger is Trigger.PROBE


@pytest.mark.parametrize("family", ["transient", "vcenter unreachable"])
def test_a_sync_that_failed_once_is_tried_again_without_a_new_backup(here: Here, family: str) -> None:
    """It had its try for this restore point, and of a template, say, there comes no other."""
    seen(here, "web-2")
    point = some.restore_point(1).model_copy(update={"vm": identity("web-2")})
    here.catalogue.record_point("main", point)
    (run_,) = [r for r in dispatch.dispatch(here, here.catalogue.now()) if r.kind is RunKind.SYNC]
    end(here, run_, family)
    due(here)
    assert ("web-2", "sync") not in due(here, 0.9), "not at once: it was tried several times"
    probes = [r for r in dispatch.dispatch(here, here.catalogue.now() + timedelta(hours=1.1)) if r.kind is RunKind.SYNC]
    assert [(r.vm, r.trigger) for r in probes] == [("web-2", Trigger.PROBE)]


def test_resume_ends_a_quarantine_at_once(here: Here) -> None:
    seen(here, "file-1")
    for hour in range(3):
        (run_,) = dispatch.dispatch(here, here.catalogue.now() + timedelta(hours=hour))
        end(here, run_, "no space")
    (files,) = meant(here, "file-1", which="both")
    assert "quarantine (no space, 3 failed runs) is ended" in holding.resume(here, files).sentence
    (line,) = overview(here)
    assert line.state is State.FAILED, "the last run has failed all the same"
    assert len(dispatch.dispatch(here, here.catalogue.now() + timedelta(hours=3))) == 1


def test_an_outage_sets_nobody_aside(here: Here) -> None:
    seen(here, "file-1")
    for hour in range(6):
        (run_,) = dispatch.dispatch(here, here.catalogue.now() + timedelta(hours=hour))
        end(here, run_, "vcenter unreachable")
    assert overview(here)[0].state is State.FAILED


def test_only_what_waits_is_approved(here: Here) -> None:
    (near,) = meant(here, "web-1", targets=["near"])
    assert not holding.approve(here, near, **ANN).done
    assert near.pair is not None
    run_, _ = dispatch.request_sync(here, near.pair, Trigger.AD_HOC)
    end(here, run_, state=RunState.NEEDS_APPROVAL)
    with pytest.raises(Refused, match='full = "never"'):
        holding.approve(here, near, **ANN)
    (files,) = meant(here, "file-1", which="backups")
    (member,) = dispatch.find(here, "file-1")
    run_, _ = dispatch.request_backup(here, member, Trigger.AD_HOC)
    end(here, run_, state=RunState.NEEDS_APPROVAL)
    assert holding.approve(here, files, **ANN).done
    assert HoldKind.APPROVED in here.catalogue.holds(files.target)[files.target]
    holding.pause(here, files, **ANN)
    said = holding.approve(here, files, **ANN).sentence
    assert "but it is paused: it starts after `understudy resume file-1`" in said
    assert ("file-1", "backup") not in due(here)
    holding.resume(here, files)
    assert ("file-1", "backup") in due(here)


# --- status ---------------------------------------------------------------------------------------------------------


def names(lines: list[Protected]) -> list[str]:
    return [f"{line.vm}/{line.recovery_target or '-'}" for line in lines]


def test_the_filters_of_status(here: Here) -> None:
    (near,) = meant(here, "web-1", targets=["near"])
    holding.pause(here, near, **ANN)
    (member,) = dispatch.find(here, "file-1")
    end(here, dispatch.request_backup(here, member, Trigger.AD_HOC)[0])
    here.catalogue.set_failover(near.pair.id, "test running")
    lines = overview(here)
    every = ["file-1/-", "web-1/far", "web-1/near", "web-2/far"]
    for wanted, found in [
        (Filter(), every),
        (Filter(states=("paused", "failed")), ["file-1/-", "web-1/near"]),
        (Filter(states=("test running",)), ["web-1/near"]),
        (Filter(states=("none", "revert failed")), ["file-1/-", "web-1/far", "web-2/far"]),
        (Filter(groups=("web",)), ["web-1/far", "web-2/far"]),
        (Filter(sites=("dr",)), ["web-1/far"]),
        (Filter(targets=("near",)), ["web-1/near"]),
        (Filter(names=("*-1",)), ["file-1/-", "web-1/far", "web-1/near"]),
        (Filter(older=60), every),
        (Filter(problems=True), ["file-1/-"]),
        (Filter(problems=True, groups=("web",)), []),
    ]:
        assert names(selected(here, lines, wanted)) == found, wanted
    assert names(ordered(lines, "state"))[0] == "file-1/-"
    assert summary(lines) == "4 shown: 2 never synced, 1 failed, 1 paused; 1 with a problem"
    for wrong in (Filter(states=("faild",)), Filter(groups=("x",)), Filter(sites=("x",)), Filter(targets=("x",))):
        with pytest.raises(BadInput, match="is not known here; it is one of"):
            selected(here, lines, wrong)


def test_five_thousand_pairs_are_told_in_a_fixed_number_of_queries(here: Here) -> None:
    """Measured: 5,000 pairs with two runs each, a fifth of them failing, take about 2 s of one core."""
    count = 5000
    vms = [f"web-{number}" for number in range(10, 10 + count)]
    seen(here, *vms)
    engine = here.catalogue.engine
    run_row = (
        "INSERT INTO runs (id, kind, target, vm, site, trigger, state, fence, attempts, memory, reasons, created, "
        "ended, sent, read, written, stored, family) VALUES (?, 'sync', ?, ?, 'dr', 'ad hoc', ?, ?, 1, '{}', '[]', "
        "'2026-01-01 00:00:00', '2026-01-01 00:00:00', '2026-01-01 00:00:00', 0, 0, 0, ?)"
    )
    with engine.begin() as conn:
        raw = conn.connection.cursor()
        raw.executemany(
            "INSERT INTO pairs VALUES (?, 'prod', ?, ?, 'main', 'far', 'dr', NULL, ?, 1, 'none', "
            "'2026-01-01 00:00:00')",
            [(name, f"uuid-{name}", name, f"{name}_replica") for name in vms],
        )
        raw.executemany("INSERT INTO targets VALUES (?, 3, NULL)", [(f"pair:{name}",) for name in vms])
        for fence in (1, 2, 3):
            bad = [number % 5 == 0 for number in range(count)]
            raw.executemany(
                run_row,
                [
                    (f"{name}-{fence}", f"pair:{name}", name, "failed" if b else "succeeded", fence, "x" if b else None)
                    for name, b in zip(vms, bad, strict=True)
                ],
            )
    asked: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda c, cursor, text, *more: asked.append(text))
    began = time.process_time()
    lines = overview(here)
    spent = time.process_time() - began
    assert len(lines) == count and len(asked) <= 34
    assert sum(line.state is State.QUARANTINED for line in lines) == count // 5
    assert spent < 60, "hundreds of times slower than it has to be"


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNDERSTUDY_CONFIG", str(tmp_path / "understudy.toml"))
    with forgetting():
        yield


@pytest.mark.usefixtures("command")
def test_the_commands(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str, code: int = 0) -> str:
        assert run(*arguments) == code
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return told.out + told.err

    assert "web-1, the replica dr/web-1_replica: paused" in said("pause", "web-1", "--reason", "storage is moved")
    answers = json.loads(said("disable", "file-1", "--backups", "--reason", "old", "--json"))
    assert [answer["done"] for answer in answers] == [True]
    assert "storage is moved" in said("status", "--state", "paused") and "2 shown: 2 paused" in said(
        "status", "--state", "paused"
    )
    assert "disabled since" in said("backup", "file-1", code=1)
    assert said("status", "--problems", "--fail-on", "problems") == "0 shown: none; none with a problem\n"
    assert "enabled; it was disabled by" in said("enable", "file-1")
    assert "resumed; it was paused by" in said("resume", "--group", "web")
    assert "nothing waits for approval" in said("approve", "web-1", code=1)
    assert "--state 'broken' is not known" in said("status", "--state", "broken", code=1)
    assert "a number and a unit" in said("status", "--older", "soon", code=2)
    assert "--sort 'size' is not known" in said("status", "--sort", "size", code=1)
    (member,) = dispatch.find(here, "file-1")
    end(here, dispatch.request_backup(here, member, Trigger.AD_HOC)[0], "refused")
    assert "1 quarantined" in said("status", "--fail-on", "problems", "--sort", "state", code=1)
    listed = json.loads(said("status", "--problems", "--json"))
    assert [(line["vm"], line["state"], line["problem"]) for line in listed] == [("file-1", "quarantined", True)]
    assert "say which, with --target" in said("forget", "web-1", code=1)
    assert "Nothing was done yet" in said("forget", "web-1", "--target", "far", code=1)
    assert here.catalogue.runs("web-1") == []
