"""Backups and syncs on request: the runs are requested, sent, and followed if somebody waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import typer
from kombu.exceptions import OperationalError

from tasks import backup as backup_tasks
from tasks import pairs as care
from tasks import replicate as sync_tasks
from tasks import show, tables
from tasks import verify as verify_tasks
from tasks.app import adhoc_queue, here
from tasks.dispatch import discover, send_requested
from tasks.follow import follow
from workers import dispatch, replicate, store_scrub
from workers import forget as forgetting
from workers.errors import BadInput, BrokerUnreachable, NotFound, TargetBusy
from workers.models import RunKind, RunState

#: seconds to wait for the sites to say whether they have a VM that nobody knows
LOOK_FOR = 20

#: seconds that a scheduled comparison has to come to its checkpoint and make room for a sync
GIVES_WAY = 60

#: how a run that is waited for may end without having done what was asked
NOT_WELL = (RunState.FAILED, RunState.NEEDS_APPROVAL, RunState.STOPPED)


def backup(vms: Sequence[str], *, wait: bool, full: str | None, as_json: bool) -> None:
    """`full`: who wants every block to be read and compared, and why."""
    _known(vms)

    def ask(vm: str) -> list[Any]:
        return _not_joined(backup_tasks.request_runs(vm, full=full), full)

    request(vms, ask, wait=wait, as_json=as_json)


def sync(
    vms: Sequence[str],
    *,
    wait: bool,
    discard_changes: bool,
    full: str | None,
    targets: Sequence[str] = (),
    as_json: bool,
) -> None:
    _known(vms)

    def ask(vm: str) -> list[Any]:
        until = time.monotonic() + GIVES_WAY
        while True:
            try:
                made = sync_tasks.request_runs(vm, discard_changes=discard_changes, full=full, targets=targets)
                return _not_joined(made, full)
            except TargetBusy:
                if time.monotonic() > until:
                    raise
            time.sleep(0.5)

    request(vms, ask, wait=wait, as_json=as_json)


def verify(vms: Sequence[str], *, repair: bool, wait: bool, targets: Sequence[str] = (), as_json: bool) -> None:
    request(vms, lambda vm: verify_tasks.request_runs(vm, repair=repair, targets=targets), wait=wait, as_json=as_json)


def verify_stores(stores: Sequence[str], *, deep: bool, vm: str | None, wait: bool, as_json: bool) -> None:
    if not deep or vm is not None:
        raise BadInput("--on-worker reads everything: it goes with --deep, and without --vm; nothing was requested")
    request(stores, lambda name: [store_scrub.request(here(), name)], wait=wait, as_json=as_json)


def _not_joined(made: list[Any], full: str | None) -> list[Any]:
    """A run that was under way before is not the full one that was asked for: that is said."""
    for run, created in made:
        if full and not created and "full" not in run.memory:
            show.complain(
                f"understudy: the {run.kind} {run.id} of {run.vm} was under way already, and it is not a full one: "
                "ask again when it has ended"
            )
    return made


def plan(
    vms: Sequence[str], *, discard_changes: bool, full: str | None = None, targets: Sequence[str] = (), as_json: bool
) -> None:
    """What a sync would do now, and why. Nothing is requested."""
    _known(vms)
    plans = []
    for vm in vms:
        found = [m for target in targets or (None,) for m in dispatch.replicated(here(), vm, target)]
        for pair in [pair for member in found if (pair := dispatch.pair_of(here(), member)) is not None]:
            made = replicate.preview(here(), pair, discard=discard_changes, full=full)
            plans.append((f"{pair.site}/{pair.replica_name}", made))
    if as_json:
        return show.as_json([{"replica": name, **made.model_dump(mode="json")} for name, made in plans])
    for name, made in plans:
        tables.plan(made, name)


def adopt(vm: str, *, targets: Sequence[str], yes: str | None, as_json: bool) -> None:
    """Whose the VM's replica is; with `yes`, who wants it adopted and why, that is done."""
    pair = care.one_pair(vm, targets)
    said = send_requested(care.request_runs(pair, RunKind.ADOPT, {"confirmed": yes} if yes else {}))
    _wait([each["run"] for each in said], as_json=as_json, reasons=True)
    if not yes and not as_json:
        show.say("nothing was changed. To make it this installation's replica: the same with --yes")


def forget(
    vm: str, *, targets: Sequence[str], with_replica: bool, yes: bool, who: str, reason: str, as_json: bool
) -> None:
    """End a pair; without `yes` it is only said what that means."""
    pair = care.one_pair(vm, targets)
    what = f"the pair of {pair.vm} and {pair.site}/{pair.replica_name}"
    if not yes:
        fate = "the replica and its files are removed" if with_replica else "the replica stays, as a VM of its own"
        show.say(f"{what} would be forgotten: {fate}, its restore points are not held any more. Nothing was done yet")
        show.say("to do it: the same with --yes")
        raise typer.Exit(1)
    memory = {"who": who, "reason": reason, **({"with_replica": "yes"} if with_replica else {})}
    requested = care.request_runs(pair, RunKind.FORGET, memory)
    if forgetting.is_orphan(here(), pair):  # nobody takes messages of its site
        forgetting.run(here(), requested[0][0].id)
    else:
        send_requested(requested)
    _wait([run.id for run, _ in requested], as_json=as_json, reasons=True)


def request(vms: Sequence[str], ask: Callable[[str], list[Any]], *, wait: bool, as_json: bool) -> None:
    made = [each for vm in dict.fromkeys(vms) for each in ask(vm)]
    said = send_requested(made)
    if wait:
        return _wait([each["run"] for each in said], as_json=as_json)
    if as_json:
        return show.as_json(said)
    for each in said:
        joined = f"joined, it is {each['state']}" if each["joined"] else "requested"
        show.say(f"{each['kind']} of {each['vm']}: run {each['run']} {joined}")
    show.say(f"follow it with `understudy show {said[0]['run']}`, or all with `understudy status`")


def _wait(run_ids: Sequence[str], *, as_json: bool, reasons: bool = False) -> None:
    """Until the runs have ended. `reasons`: all of what they have to say is shown."""
    try:
        ended = follow(here(), run_ids, quiet=as_json)
    except KeyboardInterrupt:
        show.complain(f"not waiting any more; the runs go on: {', '.join(run_ids)} (`understudy show RUN`)")
        raise typer.Exit(130) from None
    if as_json:
        show.as_json(ended)
    elif reasons:
        for sentence in dict.fromkeys(reason for run in ended for reason in run.reasons):
            show.say(sentence)
    else:
        tables.runs(ended)
    failed = [run for run in ended if run.state in NOT_WELL]
    for run in failed:
        word = "failed" if run.state is RunState.FAILED else f"ended: {run.state}"
        show.complain(f"understudy: {run.kind} of {run.vm} {word}: {run.error or '; '.join(run.reasons[-1:])}")
    if failed:
        raise typer.Exit(1)


def _known(vms: Sequence[str]) -> None:
    """That each name is of a VM under a policy. For one that nobody knows, all sites are asked what they have."""
    for vm in vms:
        try:
            dispatch.find(here(), vm)
        except NotFound:
            _look_for(vm)


def _look_for(vm: str) -> None:
    """Return when the catalogue knows the VM; its `NotFound` when the sites have answered, or have had their time."""
    try:
        asked = [
            discover.apply_async(kwargs={"site": site}, queue=adhoc_queue(site), expires=LOOK_FOR)
            for site in here().settings.sites
        ]
    except (OperationalError, OSError) as err:
        raise BrokerUnreachable(
            f"no VM {vm!r} is known, and the sites can not be asked for it: Redis does not answer. "
            "Start it, or correct `redis` in the configuration"
        ) from err
    deadline = time.monotonic() + LOOK_FOR
    while True:
        answered = all(each.ready() for each in asked)  # before the look: what they found is then in the catalogue
        try:
            dispatch.find(here(), vm)
            return
        except NotFound:
            if answered or time.monotonic() > deadline:
                raise
        time.sleep(0.2)
