"""Who belongs to a group and why: rules over what the inventory says of a VM. Pure: it decides, and does nothing.

A rule has three answers. What is not known (tags that nobody has asked for yet, a host out of sight) is neither a match
nor a mismatch: such a VM stays where it is, and joins nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from workers.models import VmSummary
from workers.settings import Rule

#: Fewer leave without being asked about: that a few VMs of a small group are deleted is an ordinary day.
FEW = 5

#: A fact of a VM: how it is shown, and all texts that a pattern may match.
Fact = tuple[str, tuple[str, ...]]


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    """Only * and ? mean something: a VM may well be called web[1]."""
    return re.compile("".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in text), re.DOTALL)


def matches(pattern: str, texts: Iterable[str]) -> bool:
    return any(_pattern(pattern).fullmatch(text) for text in texts)


def _plain(*texts: str) -> tuple[Fact, ...]:
    return tuple((text, (text,)) for text in texts)


def _folders(vm: VmSummary) -> tuple[Fact, ...]:
    """A folder's VMs are those of the folders below it, too."""
    names = vm.folder.split("/")
    return ((vm.folder, tuple("/".join(names[: end + 1]) for end in range(len(names)))),)


def _tags(vm: VmSummary) -> tuple[Fact, ...] | None:
    return None if vm.tags is None else tuple((tag, (tag, tag.partition(":")[2])) for tag in vm.tags)


#: condition -> what of a VM it is about; None when that is not known
_FACTS: dict[str, Callable[[VmSummary], tuple[Fact, ...] | None]] = {
    "name": lambda vm: _plain(vm.identity.name),
    "folder": _folders,
    "tag": _tags,
    "datastore": lambda vm: None if vm.datastores is None else _plain(*vm.datastores),
    "cluster": lambda vm: None if vm.cluster is None else _plain(vm.cluster),
    "power": lambda vm: _plain("on" if vm.power == "poweredOn" else "off"),
    "template": lambda vm: _plain("yes" if vm.template else "no"),
}


class _Condition(NamedTuple):
    key: str
    wanted: tuple[str, ...]
    facts: tuple[Fact, ...] | None

    def holds(self) -> bool | None:
        if self.facts is None:
            return None
        return any(matches(pattern, texts) for pattern in self.wanted for _, texts in self.facts)

    def why(self) -> str:
        if self.facts is None:
            return f"{self.key} is not known: not asked for yet, or vCenter does not say it"
        for shown, texts in self.facts:
            for pattern in self.wanted:
                if matches(pattern, texts):
                    return f"{self.key} {shown}" if shown == pattern else f"{self.key} {shown} matches {pattern}"
        shown = ", ".join(shown for shown, _ in self.facts) or "(none)"
        return f"{self.key} {shown} is not {' or '.join(self.wanted)}"


def _conditions(rule: Rule, vm: VmSummary) -> Iterable[_Condition]:
    for key, facts in _FACTS.items():
        wanted = getattr(rule, key)
        if isinstance(wanted, bool):
            wanted = ("yes" if wanted else "no",)
        if wanted is not None:
            yield _Condition(key, (wanted,) if isinstance(wanted, str) else wanted, facts(vm))


def holds(rule: Rule, vm: VmSummary) -> bool | None:
    """Whether the VM is as the rule says; None when that is not known."""
    answers: list[bool | None] = []
    for condition in _conditions(rule, vm):
        answers.append(condition.holds())
        if answers[-1] is False:
            return False
    answers += [holds(inner, vm) for inner in rule.all or ()]
    if rule.any is not None:
        answers.append(_either(holds(inner, vm) for inner in rule.any))
    if rule.not_ is not None:
        answers.append(_opposite(holds(rule.not_, vm)))
    return False if False in answers else None if None in answers else True


def _either(answers: Iterable[bool | None]) -> bool | None:
    found = set(answers)
    return True if True in found else None if None in found else False


def _opposite(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def explain(rule: Rule, vm: VmSummary) -> str:
    """Why `holds` answers as it does: the part that decides, or all of them where all had to hold."""
    parts = [(condition.holds(), condition.why()) for condition in _conditions(rule, vm)]
    parts += [(holds(inner, vm), explain(inner, vm)) for inner in rule.all or ()]
    if rule.any is not None:
        parts.append(_why_any(rule.any, vm))
    if rule.not_ is not None:
        answer = _opposite(holds(rule.not_, vm))
        parts.append((answer, f"{'' if answer is not False else 'excluded: '}{explain(rule.not_, vm)}"))
    for decisive in (False, None):
        for answer, why in parts:
            if answer is decisive:
                return why
    return "; ".join(why for _, why in parts)


def _why_any(rules: Iterable[Rule], vm: VmSummary) -> tuple[bool | None, str]:
    parts = [(holds(rule, vm), explain(rule, vm)) for rule in rules]
    answer = _either(answer for answer, _ in parts)
    if answer is False:
        return False, "none of: " + ", ".join(f"({why})" for _, why in parts)
    return answer, next(why for found, why in parts if found is answer)


def sentence(rule: Rule) -> str:
    """The rule in words."""
    parts = []
    for key in _FACTS:
        wanted = getattr(rule, key)
        if isinstance(wanted, bool):
            parts.append("template" if wanted else "no template")
        elif wanted is not None:
            parts.append(f"{key} {wanted if isinstance(wanted, str) else ' or '.join(wanted) or '(nobody)'}")
    parts += [f"({sentence(inner)})" for inner in rule.all or ()]
    if rule.any is not None:
        parts.append("(" + " or ".join(f"({sentence(inner)})" for inner in rule.any) + ")")
    if rule.not_ is not None:
        parts.append(f"not ({sentence(rule.not_)})")
    return " and ".join(parts)


class Outcome(NamedTuple):
    """What a group's rule means for the VMs of its site, and for those that were in it. All are instance UUIDs."""

    #: under the group's policy
    inside: frozenset[str]
    joining: frozenset[str]
    #: who leaves -> why
    leaving: dict[str, str]
    #: who would leave -> why; inside until a person agrees
    held: dict[str, str]


def settle(
    rule: Rule,
    vms: Mapping[str, VmSummary],
    before: Collection[str],
    absent: Mapping[str, str],
    *,
    exodus: float,
    asked: Collection[str] = (),
    agreed: bool = False,
) -> Outcome:
    """Who is in a group now. `vms`: what the last complete answer had of the group's site. `before`: who was in it.

    `absent`: who cannot be in any group, and why. Where more than the part `exodus` of a group would leave it, and at
    least `FEW`, a wrong rule or a missing right is more likely than so many farewells: nobody leaves until a person
    has `agreed`. Who was `asked` about before waits for that answer, however the group has grown meanwhile.
    """
    answers = {uuid: holds(rule, vm) for uuid, vm in vms.items() if uuid not in absent}
    inside = {uuid for uuid, answer in answers.items() if answer or (answer is None and uuid in before)}
    out = {uuid: _farewell(rule, vms.get(uuid), absent.get(uuid)) for uuid in before if uuid not in inside}
    many = len(out) >= FEW and len(out) > exodus * len(before)
    held = {} if agreed else {uuid: why for uuid, why in out.items() if many or uuid in asked}
    return Outcome(
        inside=frozenset(inside | held.keys()),
        joining=frozenset(inside - set(before)),
        leaving={uuid: why for uuid, why in out.items() if uuid not in held},
        held=held,
    )


def _farewell(rule: Rule, vm: VmSummary | None, absent: str | None) -> str:
    if absent is not None:
        return absent
    return "it is gone from the group's site" if vm is None else explain(rule, vm)
