"""The tables of `understudy group`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from tasks import show
from workers.group import Answer, Outside, Shown


def groups(found: Sequence[Shown]) -> None:
    if not found:
        return show.say("no group is configured yet; add [groups.NAME] to the configuration")
    rows = show.table(
        "group", "source", "VMs", "held", "left", "store", "target", "rule", right=("VMs", "held", "left")
    )
    for one in found:
        rows.add_row(
            *(one.name, one.source or "-", str(len(one.members)), str(len(one.held)), str(len(one.left))),
            *(one.store or "-", ", ".join(one.targets) or "-", one.rule or "(not in the configuration any more)"),
        )
    show.console().print(rows)
    for concern in dict.fromkeys(concern for one in found for concern in one.concerns):
        show.complain(concern)


def group(one: Shown) -> None:
    show.say(f"{one.name}: {one.rule or 'not in the configuration any more'}")
    if one.source is not None:
        goal = f", replicated to {', '.join(one.targets)}" if one.targets else ""
        show.say(f"VMs of {one.source}, backed up to {one.store}{goal}; inventory of {show.moment(one.read)} UTC")
    if one.members:
        rows = show.table("VM", "since (UTC)", "why", title="\nmembers")
        for member in one.members:
            rows.add_row(member.vm, show.moment(member.since), member.why)
        show.console().print(rows)
    else:
        show.say("no VM is in it")
    if one.held:
        rows = show.table("VM", "why it would leave", title="\nkept until somebody decides")
        for leaving in one.held:
            rows.add_row(leaving.vm, leaving.why)
        show.console().print(rows)
    if one.left:
        rows = show.table("VM", "left (UTC)", "all kept until (UTC)", "why", title="\nleft")
        for past in one.left:
            rows.add_row(past.vm, show.moment(past.left), show.moment(past.until), past.why)
        show.console().print(rows)
    for concern in one.concerns:
        show.complain(concern)


def answers(found: Sequence[Answer]) -> None:
    if not found:
        return show.say("no group is configured yet; add [groups.NAME] to the configuration")
    rows = show.table("group", "", "why")
    for answer in found:
        word = Text("in it", style="green") if answer.inside else Text("not in it", style="yellow")
        rows.add_row(answer.group, word, answer.why)
    show.console().print(rows)


def unprotected(found: Sequence[Outside]) -> None:
    if not found:
        return show.say("every VM that is known is in a group")
    rows = show.table("VM", "site", "folder", "why")
    for one in found:
        reasons = [f"{name}: {why}" for name, why in one.why.items()] or ["no group has its VMs at this site"]
        rows.add_row(one.vm, one.site, one.folder, "; ".join(reasons))
    show.console().print(rows)
