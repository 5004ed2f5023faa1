"""Fill a new catalogue after the old one was lost: from the stores' manifests and the cursors on the replicas.

Nothing is guessed: what is not certain is paused, or left out with a sentence. Every step may be repeated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from workers import backup, dispatch, replicate
from workers.destination import of_member
from workers.errors import BadInput, NotFound, UnderstudyError
from workers.members import last_groups_of
from workers.membership import may_cover
from workers.models import Cursor, Model, Pair, RestorePoint, Run, RunKind, RunState, SyncPoint, Trigger, VmState
from workers.replica import CURSOR
from workers.replica_held import PAUSED
from workers.restore_held import read_marker
from workers.run import Here
from workers.settings import Group
from workers.snapshot_point import prefix
from workers.store import Store
from workers.vsphere import inventory, restoring
from workers.vsphere.session import connect

#: A lost catalogue had given fences to runs that left no trace: each "nothing new" took one. A run every 10 s for 300
#: years takes fewer than these.
ROOM = 10**9


class Rebuilt(Model):
    """What was found. `troubles`: what could not be read or decided; mend it and rebuild again."""

    realm: str
    taken_over: bool
    points: int
    chains: int
    #: "vm -> site/replica: what it holds"
    pairs: tuple[str, ...]
    remarks: tuple[str, ...]
    troubles: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        yield f"realm {self.realm}" + (", taken over from what the old catalogue left" if self.taken_over else "")
        yield f"{self.points} restore points of {self.chains} VMs, {len(self.pairs)} replicas"
        yield from self.pairs
        yield from self.remarks
        yield from (f"not done: {trouble}" for trouble in self.troubles)


class _Found:
    """One look at everything that outlives a catalogue."""

    def __init__(self, here: Here, *, stores: bool, replicas: bool) -> None:
        self.troubles: list[str] = []
        self.remarks: list[str] = []
        self.stores: dict[str, Store] = {}
        #: store name -> VM -> its points
        self.points: dict[str, dict[str, list[RestorePoint]]] = {}
        #: VMs with a note or a snapshot of ours
        self.vms: list[VmState] = []
        for name, configured in here.settings.stores.items():
            try:
                store = Store.at(configured)
                self.points[name] = {vm: store.points(vm) for vm in store.vms()} if stores or replicas else {}
                self.stores[name] = store
            except (UnderstudyError, OSError) as err:
                self.troubles.append(f"the store {name}: {err}")
        for site in here.settings.sites if replicas else ():
            try:
                dispatch.discover(here, site)
                self.vms += inventory.marked(connect(site, here.settings.site(site)))
            except UnderstudyError as err:
                self.troubles.append(f"the site {site}: {err}")

    def realms(self) -> Counter[str]:
        """Who wrote what was found, and how much of it. A replica that follows no store of ours is a neighbour's."""
        seen = Counter(point.realm for vms in self.points.values() for found in vms.values() for point in found)
        ours = {store.id for store in self.stores.values()}
        seen.update(cursor.realm for _, cursor in self.cursors() if cursor.store in ours)
        return seen

    def cursors(self) -> Iterator[tuple[VmState, Cursor]]:
        for state in self.vms:
            try:
                if (text := state.notes.get(CURSOR)) is not None:
                    yield state, Cursor.model_validate_json(text)
            except ValueError:
                said = f"the cursor on {state.identity.name} ({state.identity.site}) can not be read"
                if said not in self.troubles:
                    self.troubles.append(said)


def rebuild(
    here: Here,
    *,
    from_stores: bool = True,
    from_replicas: bool = True,
    realm: str | None = None,
    end_lost_runs: bool = False,
) -> Rebuilt:
    """Repeatable. Raises `BadInput` when it is not clear which installation this was."""
    found = _Found(here, stores=from_stores, replicas=from_replicas)
    before = here.catalogue.realm
    wanted = _realm(here, found, realm)
    here.catalogue.take_over_realm(wanted)
    points = _points(here, found, wanted) if from_stores else 0
    pairs = [line for state, cursor in found.cursors() if (line := _pair(here, found, state, cursor)) is not None]
    _lost_runs(here, found, wanted, end=end_lost_runs)
    return Rebuilt(
        realm=wanted,
        taken_over=wanted != before,
        points=points,
        chains=sum(len(vms) for vms in found.points.values()) if from_stores else 0,
        pairs=tuple(sorted(pairs)),
        remarks=tuple(dict.fromkeys(found.remarks)),
        troubles=tuple(dict.fromkeys(found.troubles)),
    )


def _realm(here: Here, found: _Found, named: str | None) -> str:
    """Ours, once the catalogue is in use; else the one that left everything behind, or the one that is named."""
    seen, ours = found.realms(), here.catalogue.realm
    if named is not None:
        full = [realm for realm in {*seen, ours} if realm.startswith(named)]
        if len(full) != 1:
            raise BadInput(f"no realm {named!r} has left anything here; there is {_many(seen) or 'nothing at all'}")
        return full[0]
    if not here.catalogue.is_new() or ours in seen or not seen:
        return ours
    if len(seen) > 1:
        raise BadInput(
            f"stores and replicas were written by several installations: {_many(seen)}; nothing was changed. "
            "Say with --realm which one's catalogue was lost"
        )
    return next(iter(seen))


def _many(seen: Mapping[str, int]) -> str:
    return ", ".join(f"{realm} ({count} points and replicas)" for realm, count in seen.items())


# --- stores ---------------------------------------------------------------------------------------------------------


def _points(here: Here, found: _Found, realm: str) -> int:
    """Also those that another realm has written: a chain is gone on with, whoever began it."""
    count = 0
    for name, vms in found.points.items():
        for vm, points in vms.items():
            here.catalogue.adopt_points(name, points)
            count += len(points)
            here.catalogue.keep_fence(backup.target_of(name, vm), max((p.fence for p in points), default=0), ROOM)
    return count


# --- replicas -------------------------------------------------------------------------------------------------------


def _pair(here: Here, found: _Found, state: VmState, cursor: Cursor) -> str | None:
    """Record the pair of a replica; a line about it, None when it is not ours or not certain."""
    name = f"{state.identity.site}/{state.identity.name}"
    if cursor.realm != here.catalogue.realm:
        found.remarks.append(f"{name} is the replica of another installation (realm {cursor.realm[:8]})")
        return None
    if (cursor.vm, cursor.vcenter) != (state.identity.instance_uuid, state.identity.vcenter):
        found.remarks.append(f"{name} is a clone of a replica, or was restored: its cursor is of another VM")
        return None
    try:
        pair = here.catalogue.adopt_pair(_told(here, found, state, cursor))
    except UnderstudyError as err:
        found.troubles.append(f"the replica {name}: {err}")
        return None
    fence = max(cursor.fence, int(_of_witness(state.witness, "fence")))
    here.catalogue.keep_fence(replicate.target_of(pair.id), fence, ROOM)
    _pin(here, found, pair, cursor)
    if cursor.state == "committed" and cursor.base is not None:
        here.catalogue.adopt_sync_point(_sync_point(here, found, pair, cursor))
    elif cursor.base is not None and cursor.targets:
        here.catalogue.applying(pair.id, base=cursor.base, toward=cursor.targets[-1], undo=cursor.undo)
    if (doubt := _doubt(state, cursor)) is not None and pair.paused is None:
        here.catalogue.pause(pair.id, doubt)
        found.remarks.append(f"{name} is paused: {doubt}")
    half = f", and half of {', '.join(cursor.targets)}" if cursor.state == "applying" else ""
    return f"{pair.vm} -> {name}: holds {cursor.base or 'nothing yet'}{half}"


def _told(here: Here, found: _Found, state: VmState, cursor: Cursor) -> Pair:
    """The pair as cursor, witness, store and configuration tell it. Raises `NotFound` or `BadInput`."""
    newest = _newest(found, cursor)
    known = next((vm.identity for vm in here.catalogue.inventory() if vm.identity.instance_uuid == cursor.source), None)
    source = known or (newest.vm if newest is not None else None)
    if source is None:
        raise NotFound(f"its source {cursor.source} is in no inventory and has no restore point here")
    targets = _targets(here, cursor.source, source.site, source.name, state)
    if len(targets) != 1:
        raise BadInput(
            f"{len(targets)} groups bring {source.name} to {state.identity.site} under that name "
            f"({', '.join(sorted(targets)) or 'add its group, or the replica name that it had, again'})"
        )
    recovery, store = targets.popitem()
    held = next((name for name, opened in found.stores.items() if opened.id == cursor.store), store)
    return Pair(
        id=cursor.pair,
        source_site=source.site,
        source=cursor.source,
        vm=source.name,
        store=held,
        recovery_target=recovery,
        site=state.identity.site,
        replica=state.identity.instance_uuid,
        replica_name=state.identity.name,
        generation=max(1, int(_of_witness(state.witness, "generation"))),
    )


def _newest(found: _Found, cursor: Cursor) -> RestorePoint | None:
    points = [p for vms in found.points.values() for p in vms.get(cursor.source, [])]
    return max(points, key=lambda point: (point.data_time, point.seq), default=None)


def _targets(here: Here, source: str, site: str, vm: str, state: VmState) -> dict[str, str]:
    """Recovery target -> store, of the groups that would make just this replica; by its name if several could."""
    settings = here.settings
    fit: dict[str, str] = {}
    named: dict[str, str] = {}
    groups: Mapping[str, Group] = last_groups_of(here, source)
    if not groups:  # production may be gone, and no inventory of it be left: then only the name is known
        groups = {name: g for name, g in settings.groups.items() if g.source == site and may_cover(g.rule, vm)}
    for name, group in groups.items():
        for aim in group.targets:
            if settings.targets[aim].site == state.identity.site:
                fit[aim] = group.store
                if state.identity.name == of_member(settings, name, vm, aim).name:
                    named[aim] = group.store
    return named or fit


def _of_witness(witness: str, key: str) -> str:
    match = re.search(rf"\b{key}=(\d+)", witness)
    return match[1] if match is not None else "0"


def _doubt(state: VmState, cursor: Cursor) -> str | None:
    """What the witness knows better than the cursor, which a revert in vSphere takes back."""
    if not state.witness:
        return None
    if state.witness.endswith(PAUSED):
        return "it was paused when the catalogue was lost (after a rollback, say); resume it when it shall go on"
    if int(_of_witness(state.witness, "fence")) > cursor.fence:
        return (
            "its custom attribute knows of a later sync than its cursor: somebody reverted it, or put an old copy "
            "back. Look at it; when it is resumed, what it holds now counts"
        )
    return None


def _pin(here: Here, found: _Found, pair: Pair, cursor: Cursor) -> None:
    """What the cursor names stays in the store. A pin that is there already stays what it is."""
    for point in filter(None, (cursor.base, *cursor.targets)):
        try:
            if pair.store in found.stores:
                found.stores[pair.store].pin(pair.source, point, f"{here.catalogue.realm}:{pair.id}")
        except NotFound:
            found.remarks.append(f"{pair.vm}: the restore point {point} is gone; its next sync compares every block")


def _sync_point(here: Here, found: _Found, pair: Pair, cursor: Cursor) -> SyncPoint:
    assert cursor.base is not None
    points = found.points.get(pair.store, {}).get(pair.source, [])
    held = next((point for point in points if point.id == cursor.base), None)
    return SyncPoint(
        run=cursor.run,
        pair=pair.id,
        vm=pair.vm,
        replica=pair.replica_name,
        point=cursor.base,
        parent=None,
        fence=cursor.fence,
        data_time=cursor.data_time or (held.data_time if held else here.catalogue.now()),
        committed=here.catalogue.now(),
        mode="delta",
        change_ids={d.disk.id: d.disk.change_id for d in held.disks} if held else {},
        written=0,
        reasons=("read from the replica, when the catalogue was rebuilt",),
    )


# --- runs that the lost catalogue knew --------------------------------------------------------------------------------


def _lost_runs(here: Here, found: _Found, realm: str, *, end: bool) -> None:
    """Runs that left a snapshot are ended, so that they can publish nothing more; then the reaper may remove it."""
    for state in found.vms:
        for node in state.snapshots:
            if node.name.startswith(prefix(realm)):
                run = node.name.removeprefix(prefix(realm))
                if not _known(here, run):
                    _end(here, found, state, run, node.moref)
        text = state.notes.get(restoring.MARKER)
        if text and read_marker(state.identity.name, text).realm == realm:
            found.remarks.append(
                f"{state.identity.site}/{state.identity.name} is half restored; if no restore is at work on it, start "
                "that restore again"
            )
    for name, store in found.stores.items():
        for run in store.runs():
            if _known(here, run):
                continue
            if end:
                store.abandon(run)
                found.remarks.append(f"the run {run} was ended in the store {name}")
            else:
                found.remarks.append(
                    f"the store {name} still waits for the run {run}, which this catalogue does not know: when no "
                    "worker of the lost installation is running any more, `understudy rebuild --end-lost-runs`"
                )


def _known(here: Here, run: str) -> bool:
    try:
        here.catalogue.run(run)
    except NotFound:
        return False
    return True


def _end(here: Here, found: _Found, state: VmState, run: str, moref: str) -> None:
    uuid = state.identity.instance_uuid
    of_it = [name for name, store in found.stores.items() if run in store.runs()]
    of_vm = [name for name, vms in found.points.items() if uuid in vms]
    for store in found.stores.values():
        store.abandon(run)
    name = next(iter([*of_it, *of_vm, *found.stores]), None)
    if name is None:
        return found.troubles.append(f"the run {run} of {state.identity.name}: no store can be read to end it there")
    lost = Run(
        id=run,
        kind=RunKind.BACKUP,
        target=backup.target_of(name, uuid),
        vm=state.identity.name,
        site=state.identity.site,
        trigger=Trigger.SCHEDULE,
        slot=None,
        state=RunState.FAILED,
        fence=0,
        attempts=0,
        memory={"snapshot": moref},
        created=here.catalogue.now(),
    )
    here.catalogue.adopt_lost_run(
        lost,
        "its catalogue was lost while it worked; it was ended when the catalogue was rebuilt",
    )
    found.remarks.append(f"the backup run {run} of {state.identity.name} was ended; the reaper removes its snapshot")
