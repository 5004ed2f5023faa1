"""A scrub that never has its turn: status says so, and in the end it goes before what is due more often."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.catalogue import some
from tests.command import forgetting, run
from tests.paired import PLACES, changed, configured, end, identity, seen
from workers import dispatch
from workers.catalogue import schema
from workers.models import Pair, Run, RunKind, RunState
from workers.run import Here
from workers.scrub import LATE
from workers.status import overview

POLICY = """
[targets.far]
site = "dr"
datastore = "ds"
[groups.web]
source = "prod"
vms = ["*"]
store = "main"
target = "far"
scrub = 0.25
replicate = { after_backup = false, schedule = { every = "1h", jitter = "none" } }
"""


@pytest.fixture
def here(tmp_path: Path) -> Here:
    made = configured(tmp_path, POLICY)
    return changed(made, tmp_path, POLICY, places=PLACES.replace("scrub = 0", "scrub = 0.25"))


@pytest.fixture
def pair(here: Here) -> Pair:
    """Backed up and synced just now."""
    seen(here, "web")
    who, now = identity("web"), here.catalogue.now()
    here.catalogue.record_point("main", some.restore_point(1).model_copy(update={"vm": who, "created": now}))
    made = some.pair(here.catalogue, who.instance_uuid, vm="web", recovery_target="far", site="dr")
    sync = some.claimed(here.catalogue, f"pair:{made.id}", "me", kind=RunKind.SYNC, pair=made.id)
    here.catalogue.commit_sync(sync.id, "me", some.sync_point(made, sync))
    return made


@pytest.fixture
def command(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNDERSTUDY_CONFIG", str(tmp_path / "understudy.toml"))
    with forgetting():
        yield


def ticks(here: Here, pair: Pair, now: datetime) -> list[Run]:
    return [made for made in dispatch.dispatch(here, now) if made.target == f"pair:{pair.id}"]


def test_a_scrub_that_finds_no_place_goes_first_in_the_end_and_once_a_day(
    here: Here, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, found = here.catalogue.now(), dict[int, list[str]]()
    for hour in range(1, 24 * 4, 3):
        for _ in range(3):  # what is made ends at once, without having done anything
            for made in ticks(here, pair, start + timedelta(hours=hour)):
                found.setdefault(hour, []).append(made.kind + (" late" if LATE in made.memory else ""))
                end(here, made, state=RunState.NOTHING_NEW)
    parts = {hour: kinds for hour, kinds in found.items() if kinds != ["sync"]}
    first, *later = parts.values()
    assert first == ["sync", "verify"] and later == [["verify late", "sync"]] * len(later)
    assert 2 <= len(later) <= 3 and all(b - a == 24 for a, b in pairwise(parts)), parts
    assert len(found) == 32, "a sync each time"
    monkeypatch.setattr(dispatch.verify, "request_part", None)
    assert ticks(here, pair, start + timedelta(hours=hour)) == [], "what had its try costs no transaction"


def test_a_late_part_waits_behind_no_other_message(here: Here, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import dispatch as sending

    priorities: list[int | None] = []
    monkeypatch.setattr(sending.app, "send_task", lambda _, **given: priorities.append(given["priority"]))
    now = here.catalogue.now()
    for days, first in ((1, RunKind.SYNC), (3, RunKind.VERIFY)):
        (made,) = ticks(here, pair, now + timedelta(days=days))
        assert made.kind is first
        if first is RunKind.SYNC:
            end(here, made, state=RunState.NOTHING_NEW)
    sending._send("understudy.verify.run", made, None, None)
    sending._send("understudy.verify.run", made.model_copy(update={"memory": {}}), None, None)
    assert priorities == [None, sending.LAST]


@pytest.mark.usefixtures("command")
def test_status_says_how_late_it_is(here: Here, pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = overview(here)
    assert (line.scrub_late, line.store_scrub_late) == (None, None)
    _made_earlier(here, days=9.5)
    assert run("status", "web") == 0
    said = capsys.readouterr().out
    assert "web: verify: the scrub of the replica is 8 days late; all of it never was compared" in said or (
        "web: verify: the scrub of the replica is 9 days late" in said
    )
    assert "the scrub of the store main is " in said and "its next part has been due for " in said
    assert run("status", "--json") == 0
    (shown,) = json.loads(capsys.readouterr().out)
    day = 86400
    assert 8.4 * day < shown["scrub_late"] < 9.6 * day and 8.4 * day < shown["store_scrub_late"] < 9.6 * day
    assert shown["scrub"] is None and shown["store_scrub"] is None


def _made_earlier(here: Here, *, days: float) -> None:
    at = here.catalogue.now() - timedelta(days=days)
    with here.catalogue.write() as conn:
        for table in (schema.pairs, schema.points):
            conn.execute(sa.update(table).values(created=at))
