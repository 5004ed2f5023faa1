"""A snapshot of a source VM as the point of a backup: made once per run, found again by its later messages."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import cast

from workers import carriers, faults, nvram, plan
from workers.carried import Carried, detach_left_behind, words
from workers.carriers import CARRIERS
from workers.disks.lent import Lent
from workers.disks.throttle import rate_of, slow_reader
from workers.errors import ChangeTrackingUnusable, NotFound, Refused
from workers.models import Consistency, Disk, RestorePoint, VmConfig, VmState
from workers.overload import gentle_reader
from workers.point import Reader
from workers.run import Live
from workers.vsphere import changes, inventory, restoring, snapshots
from workers.vsphere.session import Session

#: remembered while the snapshot is made: if nobody lives to write its moref down, the reaper still knows of it
UNNAMED = "being made"

#: seconds that one message waits for the removal of a snapshot, which may take hours: rather often than long
REMOVAL_WAIT = 20.0


def snapshot_name(realm: str, run_id: str) -> str:
    return f"{prefix(realm)}{run_id}"


def prefix(realm: str) -> str:
    return f"understudy/{realm[:8]}/backup/"


class SnapshotPoint:
    """The frozen disks and configuration of a VM. Made once per run; a later message of the run finds it again."""

    #: the disk that was read last, by its id. One carrier takes seconds to open it, and slices of a disk come in a row
    _open: tuple[str, Reader] | None = None

    #: why nobody can say what changed, whatever change tracking answers
    untracked: str | None = None

    def __init__(
        self, live: Live, session: Session, state: VmState, moref: str, consistency: Consistency, taken: datetime
    ) -> None:
        self.live = live
        self.session = session
        self.state = state
        self.moref = moref
        self.consistency = consistency
        self.taken = taken
        # Of the moment of the snapshot: a later message may find the VM on another host.
        self.host_build = live.recall("host_build") or ""
        self.tree = live.recall("tree") or ""
        self.restored = state.notes.get(restoring.RESTORED, "")
        self.mounts = live.here.settings.site(live.run.site).datastores
        self.config: VmConfig = state.config if state.config.template else self._frozen_config()
        self.disks: dict[str, Disk] = {d.id: d for d in self.config.disks if d.unprotected is None}

    @classmethod
    def take(cls, live: Live, session: Session, uuid: str, *, quiesce: bool) -> SnapshotPoint:
        """The run's snapshot: the one that an earlier message made, or a new one."""
        state = state_of(session, uuid, live.run.vm)
        vm, name = state.identity.moref, snapshot_name(live.here.catalogue.realm, live.run.id)
        found = snapshots.find(session, vm, name)
        known = live.recall("snapshot")
        if known not in (None, UNNAMED):
            if found != known:
                live.note(f"started again: the snapshot {known} of this run is gone")
                live.forget_slices()
                live.remember(snapshot=None)
            else:
                consistency = cast(Consistency, live.recall("consistency"))
                return cls(live, session, state, known, consistency, time_of(live.recall("taken")))
        live.remember(snapshot=UNNAMED)
        others = remove_snapshots(live, session, uuid)  # also one of ours that was not remembered: its time is unknown
        if others:
            live.remember(snapshot=None)
            raise Refused(
                f"the snapshot {others[0]!r} on {live.run.vm} is of a run that this catalogue does not know to have "
                "ended, so nothing was done. Was the catalogue lost? `understudy rebuild` ends such runs and has their "
                "snapshots removed"
            )
        try:
            if changes.enable(session, state_of(session, uuid, live.run.vm)):
                live.note("change tracking was off and has been enabled; this run reads the whole disks")
        except ChangeTrackingUnusable as err:
            live.note(f"change tracking stays off: {err}")
        faults.at("snapshot.before")
        taken = live.here.catalogue.now()
        moref, consistency, notes = snapshots.create(
            session,
            vm,
            name,
            f"Understudy backup of {live.run.vm}",
            quiesce=quiesce,
        )
        faults.at("snapshot.after")
        live.note(*notes)
        state = state_of(session, uuid, live.run.vm)
        live.remember(
            snapshot=moref,
            consistency=consistency,
            taken=taken.isoformat(),
            host_build=state.host_build,
            tree=plan.tree_fingerprint(state.snapshots),
        )
        return cls(live, session, state, moref, consistency, taken)

    def reader(self, disk: str) -> Reader:
        site = self.live.here.settings.site(self.live.run.site)
        limit = rate_of(f"site {self.live.run.site}", site.bytes_per_second)
        if self._open is None or self._open[0] != disk:
            self.close()
            found = self.disks[disk]
            way = self.carried.of(found, snapshot=self.mounted)
            self._open = disk, gentle_reader(way.reader(), self.live, self.live.run.site, found, way.name)
        return slow_reader(Lent(self._open[1]), limit)

    def close(self) -> None:
        """Let go of the disk that was read last: a disk that is open keeps its snapshot from being removed."""
        held, self._open = self._open, None
        if held is not None:
            held[1].close()

    @property
    def mounted(self) -> str | None:
        """The snapshot whose disks are read; None = those of the VM itself."""
        return self.moref

    def choose(self) -> Carried:
        """The way of each disk, before the first slice: helpers find what was chosen."""
        return self.carried

    @cached_property
    def carried(self) -> Carried:
        """The way of each disk, chosen once per run and told then."""
        before = self.live.recall(CARRIERS)
        vm = self.state.identity.moref
        found = Carried(self.session, vm, run=self.live.run.id, remembered=before, over=self.live.over)
        choices = found.choose(self.disks.values(), reads=True, snapshot=self.mounted)
        if carriers.restored(before).keys() != choices.keys():
            self.live.remember(**{CARRIERS: carriers.stored(choices)})
            self.live.note(*words(self.disks.values(), choices))
        return found

    def _frozen_config(self) -> VmConfig:
        return inventory.vm_config(self.session, self.state.identity.moref, self.moref)

    def lost(self) -> str | None:
        """Why what was read is not of one moment; None when all is well."""
        name = snapshot_name(self.live.here.catalogue.realm, self.live.run.id)
        if snapshots.find(self.session, self.state.identity.moref, name) == self.moref:
            return None
        return f"the snapshot {self.moref} was removed while it was read"

    def unchanged_since(self, parent: RestorePoint) -> str | None:
        """Why there is nothing new, as far as that is known without looking at the disks."""
        return None

    def nvram(self) -> str | None:
        return nvram.read(self.session, self.state.identity.moref, self.mounts, self.live.note)


def state_of(session: Session, uuid: str, name: str) -> VmState:
    found = inventory.find_uuid(session, uuid)
    if found is None:
        raise NotFound(
            f"the VM {name} ({uuid}) is not in this vCenter any more; its restore points stay. "
            "If it was created again, the new VM has another identity: back that one up by its name"
        )
    state = inventory.vm_state(session, found.identity.moref)
    check_whole(state)
    return state


def check_whole(state: VmState) -> None:
    """Raise `Refused` while a restore is at work on the VM, or has died on it: its disks are a mixture."""
    if restoring.MARKER in state.notes:
        raise Refused(
            f"{state.identity.name} is half restored: it is backed up when that is done. Is no restore at work on it "
            "(`understudy runs`)? Then start it again"
        )


def remove_snapshots(live: Live, session: Session, uuid: str) -> list[str]:
    """The backup snapshots of our realm on this VM whose runs are known to have ended, and this run's. Names of others.

    A run that the catalogue does not know may be at work: the catalogue may have been rebuilt.
    """
    found = inventory.find_uuid(session, uuid)
    if found is None:
        return []
    ours = prefix(live.here.catalogue.realm)
    left: list[str] = []
    for sentence in detach_left_behind(session):
        live.note(sentence)
    known = {moref} - {UNNAMED} if (moref := live.recall("snapshot")) is not None else set()
    for node in inventory.vm_state(session, found.identity.moref).snapshots:
        if not node.name.startswith(ours):
            continue
        if not _ended(live, node.name.removeprefix(ours)):
            left.append(node.name)
            continue
        known.discard(node.moref)
        snapshots.remove(session, found.identity.moref, node.moref, wait=REMOVAL_WAIT)
    for moref in known:  # off the list already, but its disks may still be consolidated, or have failed to be
        snapshots.remove(session, found.identity.moref, moref, wait=REMOVAL_WAIT)
    return left


def _ended(live: Live, run_id: str) -> bool:
    """Ours, or one that is known to be over."""
    try:
        return run_id == live.run.id or not live.here.catalogue.run(run_id).live
    except NotFound:
        return False


def time_of(text: str | None) -> datetime:
    assert text is not None
    return datetime.fromisoformat(text)
