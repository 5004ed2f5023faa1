"""Who belongs to a group and why: rules over what the inventory says of a VM. Pure: it decides, and does nothing.

A rule has three answers. What is not known (tags that nobody has asked for yet, a host out of sight) is neither a match
nor a mismatch: such a VM stays where it is, and joins nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from workers.models import VmIdentity, VmSummary
from workers.settings import Rule

#: Fewer leave without being asked about: that a few VMs of a small group are deleted is an ordinary day.
FEW = 5

#: A fact of a VM: how it is shown, and all texts that a pattern may match.
Fact = tuple[str, tuple[str, ...]]


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Only * and ? mean something: a VM may well be called web[1]."""
    parts = ("".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in text) for text in texts)
    return re.compile("|".join(f"(?:{part})" for part in parts) or "(?!)", re.DOTALL)


def matches(pattern: str, text: str) -> bool:
    return _pattern([pattern]).fullmatch(text) is not None


def _plain(*texts: str) -> tuple[Fact, ...]:
    return tuple((text, (text,)) for text in texts)


def _folders(folder: str) -> tuple[Fact, ...]:
    """A folder's VMs are those of the folders below it, too."""
    names = folder.split("/")
    return ((folder, tuple("/".join(names[: end + 1]) for end in range(len(names)))),)


def _tags(tags: tuple[str, ...]) -> tuple[Fact, ...]:
    return tuple((tag, (tag, tag.partition(":")[2])) for tag in tags)


class _Subject(NamedTuple):
    """What a condition is about: the VM's own value (None: not known), and that value as facts."""

    value: Callable[[VmSummary], Any]
    facts: Callable[[Any], tuple[Fact, ...]]


_SUBJECTS = {
    "name": _Subject(lambda vm: vm.identity.name, _plain),
    "folder": _Subject(lambda vm: vm.folder, _folders),
    "tag": _Subject(lambda vm: vm.tags, _tags),
    "datastore": _Subject(lambda vm: vm.datastores, lambda names: _plain(*names)),
    "cluster": _Subject(lambda vm: vm.cluster, _plain),
    "power": _Subject(lambda vm: vm.power, lambda power: _plain("on" if power == "poweredOn" else "off")),
    "template": _Subject(lambda vm: vm.template, lambda template: _plain("yes" if template else "no")),
}

#: Answers that a condition remembers: VMs share folders, datastores, sets of tags. 5,000 VMs against 20 rules take half
#: a second with it and more than two without.
REMEMBERED = 1000


class _Condition:
    def __init__(self, key: str, wanted: tuple[str, ...]) -> None:
        self.key = key
        self.wanted = wanted
        self._subject = _SUBJECTS[key]
        self._pattern = _pattern(wanted)
        self._answers: dict[Any, bool] = {}

    def holds(self, vm: VmSummary) -> bool | None:
        value = self._subject.value(vm)
        if value is None:
            return None
        answer = self._answers.get(value)
        if answer is None:
            if len(self._answers) >= REMEMBERED:
                self._answers.clear()
            texts = (text for _, several in self._subject.facts(value) for text in several)
            answer = self._answers[value] = any(map(self._pattern.fullmatch, texts))
        return answer

    def why(self, vm: VmSummary) -> str:
        value = self._subject.value(vm)
        if value is None:
            return f"{self.key} is not known: not asked for yet, or vCenter does not say it"
        facts = self._subject.facts(value)
        for shown, texts in facts:
            for wanted in self.wanted:
                if any(matches(wanted, text) for text in texts):
                    return f"{self.key} {shown}" if shown == wanted else f"{self.key} {shown} matches {wanted}"
        shown = ", ".join(shown for shown, _ in facts) or "(none)"
        return f"{self.key} {shown} is not {' or '.join(self.wanted) or '(anybody)'}"


class _Judge:
    """A rule made ready: thousands of VMs are held against tens of rules every few seconds."""

    def __init__(self, rule: Rule) -> None:
        wanted = ((key, _wanted(rule, key)) for key in _SUBJECTS)
        conditions = [_Condition(key, patterns) for key, patterns in wanted if patterns is not None]
        self.parts: list[_Condition | _Judge] = [*conditions, *map(_Judge, rule.all or ())]
        self.any = [_Judge(inner) for inner in rule.any or ()]
        self.no = _Judge(rule.not_) if rule.not_ is not None else None

    def holds(self, vm: VmSummary) -> bool | None:
        unknown = False
        for part in self.parts:
            answer = part.holds(vm)
            if answer is False:
                return False
            unknown = unknown or answer is None
        rest = (self._one_holds(vm), self._not_holds(vm))
        return False if False in rest else None if unknown or None in rest else True

    def _one_holds(self, vm: VmSummary) -> bool | None:
        unknown = False
        for part in self.any:
            answer = part.holds(vm)
            if answer is True:
                return True
            unknown = unknown or answer is None
        return None if unknown else not self.any

    def _not_holds(self, vm: VmSummary) -> bool | None:
        answer = self.no.holds(vm) if self.no is not None else False
        return None if answer is None else not answer

    def why(self, vm: VmSummary) -> str:
        parts = [(part.holds(vm), part.why(vm)) for part in self.parts]
        if self.any:
            parts.append((self._one_holds(vm), self._why_any(vm)))
        if self.no is not None:
            answer = self._not_holds(vm)
            parts.append((answer, f"{'excluded: ' if answer is False else ''}{self.no.why(vm)}"))
        for decisive in (False, None):
            for answer, why in parts:
                if answer is decisive:
                    return why
        return "; ".join(why for _, why in parts)

    def _why_any(self, vm: VmSummary) -> str:
        answer = self._one_holds(vm)
        if answer is False:
            return "none of: " + ", ".join(f"({part.why(vm)})" for part in self.any)
        return next(part.why(vm) for part in self.any if part.holds(vm) is answer)


def _wanted(rule: Rule, key: str) -> tuple[str, ...] | None:
    value = getattr(rule, key)
    if isinstance(value, bool):
        return ("yes" if value else "no",)
    return (value,) if isinstance(value, str) else value


@lru_cache(maxsize=1024)
def _judge(rule: Rule) -> _Judge:
    return _Judge(rule)


def holds(rule: Rule, vm: VmSummary) -> bool | None:
    """Whether the VM is as the rule says; None when that is not known."""
    return _judge(rule).holds(vm)


def may_cover(rule: Rule, name: str) -> bool:
    """Whether a VM of this name can be in the group at all, whatever else is true of it."""
    nothing: dict[str, Any] = dict.fromkeys(VmSummary.model_fields)
    who = VmIdentity.model_construct(name=name)
    return _judge(rule).holds(VmSummary.model_construct(**{**nothing, "identity": who})) is not False


def explain(rule: Rule, vm: VmSummary) -> str:
    """Why `holds` answers as it does: the part that decides, or all of them where all had to hold."""
    return _judge(rule).why(vm)


def sentence(rule: Rule) -> str:
    """The rule in words."""
    parts = []
    for key in _SUBJECTS:
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
    judge = _judge(rule)
    answers = {uuid: judge.holds(vm) for uuid, vm in vms.items() if uuid not in absent}
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
