"""Operations on pairs and backups: pause, resume, disable, enable, approve, adopt, forget."""

from __future__ import annotations

import getpass
import socket
from typing import Annotated, Any

import typer

from tasks import show
from tasks.cli.application import Json, app

MaybeVms = Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help="Names or instance UUIDs of VMs.")]
Groups = Annotated[list[str] | None, typer.Option("--group", help="All VMs of this group.")]
Targets = Annotated[list[str] | None, typer.Option("--target", help="Only the replicas at this recovery target.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; shown in status.")]
Now = Annotated[bool, typer.Option("--now", help="Also stop what runs, at its next checkpoint.")]
Backups = Annotated[bool, typer.Option("--backups", help="The VMs' backups, not their replicas.")]


@app.command()
def pause(
    vms: MaybeVms = None,
    group: Groups = None,
    target: Targets = None,
    backups: Backups = False,
    reason: Reason = "no reason given",
    now: Now = False,
    json: Json = False,
) -> None:
    """Skip the schedules of VMs' replicas until they are resumed. Who asks for a sync by name still gets it.

    What runs goes on to its end, unless --now is given. With --backups the VMs' backups are paused instead.

    Example: understudy pause web-01 --reason "storage is being moved"
    """
    said = {"who": person(), "reason": reason, "now": now}
    _each("pause", vms, group, target, "backups" if backups else "replicas", json, **said)


@app.command()
def resume(
    vms: MaybeVms = None,
    group: Groups = None,
    target: Targets = None,
    backups: Backups = False,
    json: Json = False,
) -> None:
    """End pauses and quarantines of VMs, of replicas and backups alike: what is due starts at the next tick.

    Example: understudy resume --group web
    """
    _each("resume", vms, group, target, "backups" if backups else "both", json)


@app.command()
def disable(
    vms: MaybeVms = None,
    group: Groups = None,
    target: Targets = None,
    backups: Backups = False,
    reason: Reason = "no reason given",
    now: Now = False,
    json: Json = False,
) -> None:
    """Switch VMs' replicas off until they are enabled: nothing is started for them, whoever asks.

    Example: understudy disable web-01 --reason "is being taken out of service" --now
    """
    said = {"who": person(), "reason": reason, "now": now}
    _each("disable", vms, group, target, "backups" if backups else "replicas", json, **said)


@app.command()
def enable(
    vms: MaybeVms = None,
    group: Groups = None,
    target: Targets = None,
    backups: Backups = False,
    json: Json = False,
) -> None:
    """Switch on again what was disabled. A pair that was forgotten begins anew, with a new replica.

    Example: understudy enable web-01
    """
    _each("enable", vms, group, target, "backups" if backups else "both", json)


@app.command()
def approve(
    vms: MaybeVms = None,
    group: Groups = None,
    target: Targets = None,
    backups: Backups = False,
    reason: Reason = "no reason given",
    json: Json = False,
) -> None:
    """Let runs that wait for approval read or compare everything, once. See groups.NAME.full and full_budget.

    Example: understudy approve web-01 --reason "its storage was replaced"
    """
    said = {"who": person(), "reason": reason}
    if not _each("approve", vms, group, target, "backups" if backups else "both", json, **said):
        raise typer.Exit(1)


@app.command()
def adopt(
    vm: Annotated[str, typer.Argument(help="Name or instance UUID of a VM.")],
    target: Targets = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, whose it is is shown.")] = False,
    reason: Reason = "no reason given",
    json: Json = False,
) -> None:
    """Take over a VM's replica that another installation has written, or this one before its catalogue was lost.

    Nothing of what it says to hold is believed: the next sync compares every block. If the other installation still
    lives, it stops at its next step and then refuses this replica.

    Example: understudy adopt web-01 --yes
    """
    from tasks import ask

    confirmed = f"{person()}: {reason}" if yes else None
    ask.adopt(vm, targets=target or [], yes=confirmed, as_json=json)


@app.command()
def forget(
    vm: Annotated[str, typer.Argument(help="Name or instance UUID of a VM.")],
    target: Targets = None,
    with_replica: Annotated[bool, typer.Option("--with-replica", help="Remove the replica VM, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, it is only said what would be done.")] = False,
    reason: Reason = "no reason given",
    json: Json = False,
) -> None:
    """End a pair: its restore points are not held any more, the replica becomes an ordinary VM or is removed.

    What was run stays on record. Nothing is started for the pair until `understudy enable`, which begins anew.

    Example: understudy forget web-01 --with-replica --yes
    """
    from tasks import ask

    flags = {"with_replica": with_replica, "yes": yes, "as_json": json}
    ask.forget(vm, targets=target or [], who=person(), reason=reason, **flags)


def _each(
    verb: str,
    vms: list[str] | None,
    groups: list[str] | None,
    targets: list[str] | None,
    which: Any,
    json: bool,
    **said: Any,
) -> bool:
    """Whether anything was done. Everything that is named is known before the first of it is touched; one that is
    refused then does not keep the others from their answers."""
    from tasks.app import here
    from workers import holding
    from workers.errors import UnderstudyError

    meant = holding.subjects(here(), vms or [], groups=groups or [], targets=targets or [], which=which)
    answers, wrong = [], False
    for subject in meant:
        try:
            answers.append(getattr(holding, verb)(here(), subject, **said))
        except UnderstudyError as err:
            answers.append(holding.refused(subject, err))
            wrong = True
    if json:
        show.as_json(answers)
    else:
        for answer in answers:
            show.say(f"{answer.vm}, {answer.what}: {answer.sentence}")
    if wrong:
        raise typer.Exit(1)
    return any(answer.done for answer in answers)


def person() -> str:
    """Who asks, as far as this machine knows."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name
        return f"somebody@{socket.gethostname()}"
