"""Forget a pair: unpin its restore points, take our marks off the replica, or remove the replica. The history stays.

Everything that may be refused is refused before anything is changed. Each step may be entered again after a crash: what
is done already is found done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from workers import faults, plan, undo_kept
from workers.carried import Carried, under
from workers.errors import ConfigError, Foreign, NotFound, Refused, Touched
from workers.models import Pair, RunKind, RunReport, RunState, VmState
from workers.pins_elsewhere import unpin_elsewhere
from workers.replica import descriptor_cids, read_cursor
from workers.run import Here, Live, execute
from workers.settings import seconds
from workers.store import Store
from workers.vsphere import inventory, replica, snapshots
from workers.vsphere.session import Session, connect


def run(here: Here, run_id: str) -> RunReport:
    """Do, or go on with, the forgetting of a pair."""
    return execute(here, run_id, RunKind.FORGET, _forget)


def _forget(live: Live) -> RunReport:
    here = live.here
    pair = here.catalogue.pair(live.run.target.removeprefix("pair:"))
    store = _store(live, pair)
    if not is_orphan(here, pair):
        session = connect(pair.site, here.settings.site(pair.site))
        state = _find(session, pair)
        if live.recall("with_replica") is not None:
            _remove(live, session, pair, state)
        else:
            _release(live, session, pair, state)
    else:
        _give_up_the_site(live, pair)
    _unpin(live, pair, store)
    faults.at("forget.unpinned")
    who, reason = live.recall("who") or "somebody", live.recall("reason") or "no reason given"
    here.catalogue.forget_pair(pair.id, who=who, reason=reason)
    faults.at("forget.forgotten")
    report = live.report("succeeded", f"the pair of {pair.vm} and {pair.site}/{pair.replica_name} is forgotten")
    return live.finish(RunState.SUCCEEDED, report)


def is_orphan(here: Here, pair: Pair) -> bool:
    """Whether no worker can do it: the replica's site is gone for good. Then it is done where it is asked for."""
    return pair.site not in here.settings.sites


def _give_up_the_site(live: Live, pair: Pair) -> None:
    gone = f"the site {pair.site} is not in the configuration any more"
    if live.recall("with_replica") is not None:
        raise Refused(
            f"{gone}, so that {pair.replica_name} there can not be removed; nothing was done. Forget the pair without "
            f"--with-replica, or add sites.{pair.site} again"
        )
    live.note(f"{gone}: {pair.replica_name} there, if it still is, keeps our marks")


def _find(session: Session, pair: Pair) -> VmState | None:
    if pair.replica is not None:
        found = inventory.find_uuid(session, pair.replica)
    else:  # one that was built by a run which stopped before it could say so
        try:
            found = inventory.find_vm(session, pair.replica_name)
        except NotFound:
            found = None
    return inventory.vm_state(session, found.identity.moref) if found is not None else None


def _is_ours(live: Live, pair: Pair, state: VmState) -> bool:
    cursor = read_cursor(state)
    if cursor is None:
        return False
    plan.check_ours(cursor, state, realm=live.here.catalogue.realm, pair=pair.id, source=pair.source)
    return True


def _remove(live: Live, session: Session, pair: Pair, state: VmState | None) -> None:
    """The same proof as before writing: ours, off, changed by nobody."""
    if state is None:
        live.note(f"there is no replica {pair.replica_name} at {pair.site} any more")
        return
    if not _is_ours(live, pair, state):
        raise Foreign(
            f"{state.identity.name} at {pair.site} has no cursor of ours and is not removed; if nothing of value is in "
            "it, remove it in vCenter, then forget the pair without its replica"
        )
    _prove_untouched(session, state)
    with _locked(live, session, state):
        live.check()
        again = inventory.vm_state(session, state.identity.moref)
        if again.power != "poweredOff" or replica.content_evidence(again) != replica.content_evidence(state):
            raise Touched(f"the replica {state.identity.name} was powered on or written just now; it is not removed")
        faults.at("forget.removing")
        _drop_kept(live, pair, again, disks=True)
        replica.destroy(session, state.identity.moref, wait=_patience(live))
    live.note(f"the replica {pair.replica_name} and its files are removed")


def _prove_untouched(session: Session, state: VmState) -> None:
    cursor = read_cursor(state)
    assert cursor is not None
    cids = descriptor_cids(state, session) if cursor.taking else {}
    plan.check_untouched(cursor, state, replica.content_evidence(state), cids, discard=False)


def _release(live: Live, session: Session, pair: Pair, state: VmState | None) -> None:
    """Seal and marks go, the VM and its disks stay, also when it runs: then somebody's production is on it."""
    if state is None:
        live.note(f"there is no replica {pair.replica_name} at {pair.site}: nothing to do there")
        return
    if live.recall("released") != state.identity.instance_uuid:
        try:
            if not _is_ours(live, pair, state):
                live.note(f"{state.identity.name} at {pair.site} has no cursor of ours and is left as it is")
                return
        except Foreign as err:
            live.note(f"{state.identity.name} at {pair.site} is left as it is: {err}")
            return
        cursor = read_cursor(state)
        if cursor is not None and cursor.state == "applying":
            names = ", ".join([cursor.base or "nothing", *cursor.targets])
            live.note(f"its disks are a mixture of {names}: no state that {pair.vm} ever had")
        live.remember(released=state.identity.instance_uuid)
    moref = state.identity.moref
    with _locked(live, session, state):
        live.check()
        ours = plan.seal_name(live.here.catalogue.realm, pair.id, "")
        for node in (node for node in state.snapshots if node.name.startswith(ours)):
            snapshots.remove(session, moref, node.moref, wait=_patience(live))
            faults.at("forget.unsealed")
        _drop_kept(live, pair, state, disks=False)
        replica.release(session, inventory.vm_state(session, moref), wait=_patience(live))
    faults.at("forget.released")
    live.note(f"{state.identity.name} at {pair.site} is an ordinary VM now: our marks and the seal are gone")


def _drop_kept(live: Live, pair: Pair, state: VmState, *, disks: bool) -> None:
    """What was kept of its older content; `disks`: with the files of disks that a sync took off it."""
    mounts = live.here.settings.site(live.run.site).datastores
    realm = live.here.catalogue.realm
    for sentence in undo_kept.clear(mounts, state, realm=realm, pair=pair.id, disks=disks):
        live.note(sentence)


@contextmanager
def _locked(live: Live, session: Session, state: VmState) -> Iterator[None]:
    """No writer of an older run that sleeps may wake up later and write into what is somebody's own VM by then.

    Where it runs, or stands on other people's snapshots, ESXi or the snapshot is between such a writer and its data.
    """
    with ExitStack() as stack:
        if state.power == "poweredOff" and len(state.snapshots) <= 1:
            wait = float(seconds(live.here.settings.tuning.lock_wait))
            carried = Carried(session, state.identity.moref, run=live.run.id, over=live.over)
            carried.choose(state.config.disks, reads=False)
            for disk in sorted(state.config.disks, key=lambda disk: disk.parent or disk.file):
                file, seal = under(state, disk)
                stack.enter_context(carried.of(disk, file=file, snapshot=seal).still(wait=wait))
        yield


def _store(live: Live, pair: Pair) -> Store | None:
    """Opened before anything is touched: it may not be mounted here."""
    try:
        configured = live.here.settings.store(pair.store)
    except ConfigError as err:
        live.note(f"the pins of this pair stay in the store {pair.store}: {err}")
        return None
    return Store.at(configured)


def _unpin(live: Live, pair: Pair, store: Store | None) -> None:
    holder = f"{live.here.catalogue.realm}:{pair.id}"
    if store is not None:
        for point in (point for point, holders in store.pins(pair.source).items() if holder in holders):
            store.unpin(pair.source, point, holder)
    unpin_elsewhere(live.here, pair)


def _patience(live: Live) -> float:
    return float(seconds(live.here.settings.tuning.vcenter_wait))
