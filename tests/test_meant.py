"""Which VM is meant, and that all that is named is answered: names of two VMs, odd names, VMs in the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.catalogue import some
from tests.command import forgetting, run
from tests.paired import changed, configured, end, identity, seen
from workers import dispatch, holding, named, policy
from workers.destination import of_pair
from workers.errors import BadInput, ConfigError, NotFound
from workers.models import RunState, Trigger
from workers.run import Here
from workers.status import Filter, overview, selected

POLICY = """
[targets.far]
site = "dr"
datastore = "ds"
[targets.same]
site = "prod"
datastore = "ds"
suffix = ""
[groups.web]
source = "prod"
vms = ["*"]
store = "main"
target = "far"
backup = { every = "1h", jitter = "none" }
[groups.there]
source = "dr"
vms = ["*"]
store = "main"
"""
WHO = {"who": "ann", "reason": "moving"}


@pytest.fixture
def here(tmp_path: Path) -> Here:
    made = configured(tmp_path, POLICY)
    seen(made, "web-1", "db-1")
    seen(made, "web-1", "file-1", site="dr")
    return made


@pytest.fixture
def command(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNDERSTUDY_CONFIG", str(tmp_path / "understudy.toml"))
    with forgetting():
        yield


def meant(here: Here, *names: str, **more: Any) -> set[str]:
    return {each.target for each in holding.subjects(here, names, **{"which": "both", **more})}


def test_a_name_of_two_vms_is_asked_about_and_their_uuids_are_not(here: Here) -> None:
    dispatch.dispatch(here, here.catalogue.now())  # the one of prod has a pair, the other has none
    for ask in (dispatch.find, meant):
        with pytest.raises(BadInput, match=r"several VMs are called web-1: .*instance UUID"):
            ask(here, "web-1")
    assert {m.vm.identity.site for m in dispatch.find(here, "uuid-dr-web-1")} == {"dr"}
    assert meant(here, "uuid-dr-web-1") == {"chain:main:uuid-dr-web-1"}
    assert len(meant(here, "uuid-web-1")) == 2


def test_of_a_name_that_two_vms_had_the_one_that_is_there_is_meant(here: Here) -> None:
    dispatch.dispatch(here, here.catalogue.now())
    seen(here, "db-1")
    assert meant(here, "web-1") == {"chain:main:uuid-dr-web-1"}
    (pair,) = here.catalogue.pairs("uuid-web-1")
    assert meant(here, "uuid-web-1") == {f"pair:{pair.id}"}


def test_a_name_that_has_nothing_of_what_is_meant_is_not_passed_over(here: Here) -> None:
    with pytest.raises(BadInput, match="file-1 has a replica"):
        meant(here, "db-1", "file-1", which="replicas")
    with pytest.raises(BadInput, match="there has a replica"):
        meant(here, groups=["web", "there"], which="replicas")


def test_one_vm_that_can_not_be_replicated_keeps_no_group_from_being_paused(here: Here, tmp_path: Path) -> None:
    dispatch.dispatch(here, here.catalogue.now())
    two = POLICY.replace('vms = ["*"]\nstore = "main"\ntarget = "far"', 'vms = ["*"]\nstore = "main"\ntarget = "same"')
    here = changed(here, tmp_path, two + '[groups.web.overrides.db-1]\nname = "db-other"\n')
    seen(here, "web-2", "db-1")
    found = holding.subjects(here, [], groups=["web"], which="replicas")
    assert [each.vm for each in found] == ["db-1"], "web-2 would have its own name at its own site"
    assert holding.pause(here, found[0], **WHO).done


def test_pausing_a_large_group_takes_few_queries(here: Here) -> None:
    """It was one transaction and a reading of all pairs per VM: 5,000 VMs took minutes."""
    names = [f"web-{number}" for number in range(30)]
    seen(here, *names)
    dispatch.dispatch(here, here.catalogue.now())
    asked: list[str] = []
    sa.event.listen(here.catalogue.engine, "before_cursor_execute", lambda c, cursor, text, *more: asked.append(text))
    assert len(meant(here, groups=["web"])) == 60
    assert len(asked) <= 20


def test_a_tick_resolves_no_whole_policy_for_a_pair_that_is_as_it_should_be(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did so four times per VM, only for the replica's name: 22 s of a tick over 5,000 VMs, which take 2 now."""
    dispatch.dispatch(here, here.catalogue.now())
    monkeypatch.setattr(policy, "resolved", None)  # who calls it fails
    assert dispatch.dispatch(here, here.catalogue.now()) == []


def test_a_pair_of_two_groups_has_one_name_whichever_of_them_is_looked_at(here: Here, tmp_path: Path) -> None:
    """It changed at each tick; a replica that was being built under the one name was not found under the other."""
    second = (
        POLICY
        + """
[groups.second]
source = "prod"
vms = ["db-1"]
store = "main"
target = "far"
overrides = { db-1 = { name = "db-1-of-second" } }
"""
    )
    here = changed(here, tmp_path, second)
    one, two = dispatch.find(here, "db-1")
    pairs = [dispatch.pair_of(here, member) for member in (one, two, one)]
    assert (one.name, two.name) == ("web", "second")
    assert [pair.replica_name for pair in pairs if pair is not None] == ["db-1-of-second"] * 3
    assert of_pair(here.settings, pairs[0], ["web", "second"]).name == "db-1-of-second" if pairs[0] else False


@pytest.mark.usefixtures("command")
def test_one_that_is_refused_does_not_hide_what_was_done(
    here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(here, tmp_path, POLICY + 'full = "never"\n')
    for name in ("db-1", "uuid-dr-web-1", "file-1"):
        (member,) = dispatch.find(here, name)
        end(here, dispatch.request_backup(here, member, Trigger.AD_HOC)[0], state=RunState.NEEDS_APPROVAL)
    assert run("approve", "db-1", "file-1", "uuid-dr-web-1", "--backups") == 1
    said = capsys.readouterr()
    assert "db-1, the backups to main: approved" in said.out
    assert said.out.count('full = "never"') == 2 and "Traceback" not in said.err


ODD = ["100%", "it's", 'say "hi"', "grün-日本", "web[1]", "a b/c", "-dash", "[red]x[/red]", "x\\y"]


@pytest.mark.usefixtures("command")
def test_odd_names(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    seen(here, *ODD)
    for command in (("pause", "--reason", "100% 'sure'"), ("config", "show"), ("resume", "--json"), ("status",)):
        assert run(*command, "--", *ODD) == 0
        said = capsys.readouterr()
        wanted = [json.dumps(name, ensure_ascii=False)[1:-1] if "--json" in command else name for name in ODD]
        assert [name for name in wanted if name not in said.out] == [] and "Traceback" not in said.err
    for command in (("group", "why"), ("points",), ("runs",)):
        assert run(*command, "--", ODD[4]) == 0


def test_a_pattern_of_status_means_what_one_of_a_group_means(here: Here) -> None:
    seen(here, "web[1]", "web1")
    found = selected(here, overview(here), Filter(names=("web[1]",)))
    assert [line.vm for line in found] == ["web[1]"]


@pytest.mark.usefixtures("command")
def test_the_runs_of_a_vm_that_nobody_knows(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("runs", "bd-1") == 1
    assert "no VM 'bd-1' is known" in capsys.readouterr().err
    assert run("runs", "db-1") == 0


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize("target", [["far"], {"a": 1}, 7, "", "far\0"])
def test_a_recovery_target_that_is_no_text_is_a_sentence(here: Here, target: Any) -> None:
    from tasks import replicate

    with pytest.raises(BadInput, match="target"):
        replicate.request.run(vm="db-1", target=target)
    assert here.catalogue.runs() == []


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize("task", ["request", "roll_back"])
def test_a_text_that_no_database_takes_is_a_sentence(here: Here, task: str) -> None:
    from tasks import restore

    for given in ({"vm": "db-1\0", "to": "x"}, {"vm": "db-1", "to": "x\0"}):
        with pytest.raises(BadInput):
            getattr(restore, task).run(**given)


def test_what_keeps_a_vm_from_being_replicated_is_a_problem(here: Here, tmp_path: Path) -> None:
    """It was a sentence that `--problems` did not show: such a VM waited in silence."""
    wrong = changed(here, tmp_path, POLICY.replace('target = "far"', 'target = "same"', 1))
    line = next(line for line in overview(wrong, ["db-1"]))
    assert line.problem and "would have the same name" in " ".join(line.troubles)


def test_a_replica_whose_target_now_means_another_site_is_a_problem(here: Here, tmp_path: Path) -> None:
    (member,) = dispatch.find(here, "db-1")
    pair = dispatch.pair_of(here, member)
    assert pair is not None
    here.catalogue.set_replica(pair.id, "uuid-of-the-replica")
    moved = changed(here, tmp_path, POLICY.replace('[targets.far]\nsite = "dr"', '[targets.far]\nsite = "prod"'))
    (line,) = overview(moved, ["db-1"])
    assert line.problem and "now means the site prod" in " ".join(line.troubles)
    assert not overview(here, ["db-1"])[0].problem


def test_what_no_group_wants_any_more_is_said_as_it_is(here: Here, tmp_path: Path) -> None:
    """The VM is still under a policy; it is its replica that nobody wants any more."""
    dispatch.dispatch(here, here.catalogue.now())
    without = changed(here, tmp_path, POLICY.replace('target = "far"\n', ""))
    replica = next(line for line in overview(without, ["db-1"]) if line.pair is not None)
    assert "do not replicate it to far" in replica.remark
    assert "understudy forget db-1 --target far" in replica.remark


@pytest.mark.usefixtures("command")
def test_points_of_a_store_that_can_not_be_read_do_not_seem_to_go(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no store at its path, and another one is not configured: nobody here knows what keeps these points."""
    for name, uuid in (("main", "uuid-web-1"), ("old", "uuid-dr-web-1")):
        who = identity("web-1").model_copy(update={"instance_uuid": uuid})
        here.catalogue.record_point(name, some.restore_point(1).model_copy(update={"vm": who}))
    assert run("points", "web-1") == 0
    said = capsys.readouterr().out
    assert said.count("not known here") == 2 and "goes at the next prune" not in said
    assert "the store old is not in the configuration any more" in said and "main can not be read from here" in said
    with pytest.raises(ConfigError, match=r"the store old is not in the configuration any more; add stores\.old again"):
        named.store(here, "old")
    seen(here, "was", site="burnt")
    with pytest.raises(ConfigError, match="the site burnt is not in the configuration any more"):
        named.site(here, "burnt")
    with pytest.raises(NotFound, match=r"^there is no store 'mein'; configured are: main; did you mean main\?$"):
        named.store(here, "mein")
    assert "main, VM uuid-web-1" in said and "old, VM uuid-dr-web-1" in said, "two VMs had that name"
