"""What holds for a VM that left one of its groups: what that group kept stays until its grace ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.catalogue import some
from tests.paired import PLACES, age_farewells, changed, configured, identity, seen
from workers import dispatch, grace, prune
from workers.members import Roll, policies_of, settle
from workers.run import Here
from workers.settings import Group, Keep

SPARE = PLACES + '[stores.spare]\npath = "spare"\n'
ALL = '[groups.all]\nsource = "prod"\nvms = ["*"]\nstore = "main"\nkeep = { last = 2 }\nquiesce = false\n'
#: its members, its store
GOLD = (
    '[groups.gold]\nsource = "prod"\nvms = [%s]\nstore = "%s"\nkeep = { monthly = 12 }\ngrace = "10d"\nfull = "never"\n'
)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    made = configured(tmp_path, ALL)
    seen(made, "web-1")
    return made


def lived_through(here: Here, folder: Path, *policies: str) -> Here:
    for policy in policies:
        here = changed(here, folder, policy, places=SPARE)
        settle(here)
    return here


def keeps(here: Here, store: str = "main") -> list[Keep]:
    """By the tick over all VMs, which is what each backup does for its own."""
    found = prune.Rules(here).of(store, "uuid-web-1")
    assert found == prune.rules_of(here, store, "uuid-web-1")
    return found


def test_what_a_group_kept_stays_in_its_grace_though_another_group_covers_the_vm(here: Here, tmp_path: Path) -> None:
    """A tag that was removed by mistake took a year of restore points at the next prune."""
    here = lived_through(here, tmp_path, ALL + GOLD % ('"web-1"', "main"))
    assert keeps(here) == [Keep(last=2), Keep(monthly=12)]
    here = lived_through(here, tmp_path, ALL + GOLD % ("", "main"))
    assert keeps(here) == [Keep(last=2), Keep(monthly=12)]
    age_farewells(here, 11)
    seen(here, "web-1")
    assert keeps(here) == [Keep(last=2)]


def test_of_a_group_that_is_not_configured_any_more_nobody_knows_what_it_kept(here: Here, tmp_path: Path) -> None:
    here = lived_through(here, tmp_path, ALL + GOLD % ('"web-1"', "main"), ALL)
    assert keeps(here) == [], "everything is kept"
    age_farewells(here, 400)
    seen(here, "web-1")
    assert keeps(here) == [Keep(last=2)]


def test_a_chain_in_a_store_that_no_group_names_any_more_has_a_grace_too(here: Here, tmp_path: Path) -> None:
    """It was kept whole for ever, because some other group covers the VM."""
    here = lived_through(here, tmp_path, ALL + GOLD % ('"web-1"', "spare"), ALL + GOLD % ("", "spare"))
    assert keeps(here, "spare") == [] and keeps(here) == [Keep(last=2)]
    age_farewells(here, 10)
    assert keeps(here, "spare") == [], "nobody has looked since: it may be back"
    seen(here, "web-1")
    assert keeps(here, "spare") == [Keep(last=1)]
    assert keeps(here, "other") == [], "never backed up there by any group"


def test_the_policy_of_a_group_that_a_vm_left_counts_only_where_none_covers_it(here: Here, tmp_path: Path) -> None:
    def policies(here: Here) -> list[Group]:
        return policies_of(here, "uuid-web-1", lambda group: group.store == "main")

    here = lived_through(here, tmp_path, ALL + GOLD % ('"web-1"', "main"))
    assert [group.full for group in policies(here)] == ["allow", "never"]
    here = lived_through(here, tmp_path, ALL + GOLD % ("", "main"))
    assert [group.full for group in policies(here)] == ["allow"]
    here = lived_through(here, tmp_path, (ALL + GOLD % ("", "main")).replace('["*"]', "[]"))
    assert [group.full for group in policies(here)] == ["allow", "never"], "what was under way goes on as it began"
    assert not all(group.quiesce for group in policies(here))


def test_what_holds_a_point_is_asked_without_reading_all_pairs(here: Here) -> None:
    """Per VM all pairs were read: at 5,000 VMs a prune took minutes for that alone."""
    for number in range(20):
        some.pair(here.catalogue, f"uuid-{number}", vm=f"other-{number}")
    mine = some.pair(here.catalogue, identity("web-1").instance_uuid, vm="web-1")
    rows: list[int] = []

    class Opened:
        def pins(self, uuid: str) -> dict[str, set[str]]:
            assert uuid == "uuid-web-1"
            return {"p1": {f"{here.catalogue.realm}:{mine.id}", "somebody"}}

    original = here.catalogue.pairs
    sa.event.listen(
        here.catalogue.engine,
        "before_cursor_execute",
        lambda c, cursor, text, parameters, *more: rows.append(len(parameters)) if "FROM pairs" in text else None,
    )
    assert prune.needed(here, "main", Opened(), "uuid-web-1") == {  # type: ignore[arg-type]
        "p1": ["pinned by replica dr-site/web-01_replica", "pinned by somebody"]
    }
    assert len(original()) == 21 and rows[0] > rows[-1], "the first was about one VM"


def test_a_vm_of_which_only_a_forgotten_pair_is_left_is_not_listed_for_ever(here: Here, tmp_path: Path) -> None:
    far = '[targets.far]\nsite = "dr"\ndatastore = "ds"\n'
    here = lived_through(here, tmp_path, far + ALL + 'target = "far"\n')
    dispatch.dispatch(here, here.catalogue.now())
    (pair,) = here.catalogue.pairs()
    seen(here, "web-2")
    settle(here)
    age_farewells(here, 400)
    seen(here, "web-2")
    grace.forget_strangers(here, here.catalogue.now())
    assert [row.vm for row in Roll(here).left()] == ["uuid-web-1"], "its pair is kept"
    here.catalogue.forget_pair(pair.id, who="ann", reason="sold")
    grace.forget_strangers(here, here.catalogue.now())
    assert Roll(here).left() == []
