"""Messages by hand (from Flower, say) with the wrong run: a sentence, and nothing is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.paired import configured, end, seen
from workers import adopt, backup, dispatch, forget, left_behind, replicate, restore
from workers.errors import BadInput, Refused
from workers.models import RunKind, RunReport, RunState, Trigger
from workers.run import Here

POLICY = """
[targets.far]
site = "dr"
datastore = "ds"
[groups.web]
source = "prod"
vms = ["web-*"]
store = "main"
target = "far"
"""


@pytest.fixture
def here(tmp_path: Path) -> Here:
    made = configured(tmp_path, POLICY)
    seen(made, "web-1")
    return made


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (forget.run, RunKind.SYNC),
        (adopt.run, RunKind.SYNC),
        (replicate.run, RunKind.FORGET),
        (replicate.run, RunKind.BACKUP),
        (backup.run, RunKind.SYNC),
        (restore.run, RunKind.BACKUP),
        (replicate.help_out, RunKind.BACKUP),
        (backup.help_out, RunKind.SYNC),
        (restore.help_out, RunKind.SYNC),
    ],
)
def test_a_run_is_only_worked_on_as_what_it_is(
    here: Here, work: Callable[[Here, str], RunReport], kind: RunKind
) -> None:
    """A sync's id in a message of understudy.forget.run would take the marks off the replica."""
    (member,) = dispatch.find(here, "web-1")
    pair = dispatch.pair_of(here, member)
    assert pair is not None
    if kind is RunKind.BACKUP:
        run, _ = dispatch.request_backup(here, member, Trigger.AD_HOC)
    elif kind is RunKind.SYNC:
        run, _ = dispatch.request_sync(here, pair, Trigger.AD_HOC)
    else:
        run, _ = dispatch.request_care(here, pair, kind, memory={})
    with pytest.raises(BadInput, match=f"the run {run.id} is a {kind} of web-1, no "):
        work(here, run.id)
    assert here.catalogue.run(run.id) == run, "nor claimed, nor failed"


def test_what_a_live_backup_has_made_is_not_cleaned_up(here: Here) -> None:
    (member,) = dispatch.find(here, "web-1")
    run, _ = dispatch.request_backup(here, member, Trigger.AD_HOC)
    with pytest.raises(Refused, match="is queued: what it has made is in use"):
        left_behind.clean_up(here, run.id)
    assert here.catalogue.claim(run.id, "somebody", 60)
    with pytest.raises(Refused, match="is running: what it has made is in use"):
        left_behind.clean_up(here, run.id)


def test_a_sync_leaves_nothing_to_clean_up(here: Here) -> None:
    (member,) = dispatch.find(here, "web-1")
    pair = dispatch.pair_of(here, member)
    assert pair is not None
    run, _ = dispatch.request_sync(here, pair, Trigger.AD_HOC)
    end(here, run)
    left_behind.clean_up(here, run.id)
    assert here.catalogue.run(run.id).state is RunState.FAILED
