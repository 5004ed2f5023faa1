"""Whether so much may be read or compared without asking: the policy of groups against a plan. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from workers.settings import Group, size

STRICTER = ("allow", "ask", "never")


class Policy(NamedTuple):
    full: str = "allow"
    #: bytes
    budget: int | None = None


def strictest(groups: Iterable[Group]) -> Policy:
    """Of several groups that cover a VM the strictest word and the smallest budget."""
    groups = list(groups)
    budgets = [size(group.full_budget) for group in groups if group.full_budget is not None]
    return Policy(max((g.full for g in groups), key=STRICTER.index, default="allow"), min(budgets, default=None))


def objection(policy: Policy, *, first: int, again: int) -> str | None:
    """Why a person must be asked; None where nobody must.

    `first`: bytes of disks that were never brought over, `again`: bytes that were before, and would be read or compared
    once more. The first time is not a surprise, so that only a budget stands against it.
    """
    total = first + again
    if policy.budget is not None and total > policy.budget:
        return f"{_amount(total)} would be read or compared in full, and full_budget is {_amount(policy.budget)}"
    if again and policy.full == "ask":
        return f'{_amount(again)} would be read or compared again, and the group says full = "ask"'
    if again and policy.full == "never":
        return f'{_amount(again)} would be read or compared again, and the group says full = "never"'
    return None


def _amount(count: int) -> str:
    return f"{count / 10**9:.1f} GB" if count >= 10**9 else f"{count / 10**6:.1f} MB"
