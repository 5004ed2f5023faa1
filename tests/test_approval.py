"""What may be read or compared in full without asking: a table."""

from __future__ import annotations

from typing import Any

import pytest

from workers import approval
from workers.approval import Policy
from workers.settings import Group

GB = 10**9


@pytest.mark.parametrize(
    ("policy", "first", "again", "words"),
    [
        pytest.param(Policy(), 0, 900 * GB, None, id="allowed"),
        pytest.param(Policy("allow", 500 * GB), 0, 500 * GB, None, id="within the budget"),
        pytest.param(Policy("allow", 500 * GB), 0, 501 * GB, "full_budget is 500.0 GB", id="over the budget"),
        pytest.param(Policy("allow", 500 * GB), 300 * GB, 300 * GB, "600.0 GB", id="new and old disks together"),
        pytest.param(Policy("ask"), 900 * GB, 0, None, id="the first time is no surprise"),
        pytest.param(Policy("ask", 500 * GB), 900 * GB, 0, "900.0 GB", id="the first time over the budget"),
        pytest.param(Policy("ask"), 0, 4096, 'full = "ask"', id="asked"),
        pytest.param(Policy("ask", 500 * GB), 0, 1, 'full = "ask"', id="asked, however little"),
        pytest.param(Policy("never"), 900 * GB, 0, None, id="never again, but a first time"),
        pytest.param(Policy("never"), 0, 1, 'full = "never"', id="never"),
    ],
)
def test_who_must_be_asked(policy: Policy, first: int, again: int, words: str | None) -> None:
    found = approval.objection(policy, first=first, again=again)
    assert (found is None) == (words is None)
    assert words is None or words in str(found)


def group(**more: Any) -> Group:
    return Group(source="prod", vms=("*",), store="main", **more)


def test_of_several_groups_the_strictest_counts() -> None:
    assert approval.strictest([]) == Policy("allow", None)
    some = [group(full="ask"), group(full_budget="2TB"), group(full="allow", full_budget="500GB")]
    assert approval.strictest(some) == Policy("ask", 500 * GB)
