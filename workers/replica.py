"""A pair's replica VM, looked at: whose it is, what it holds, what a sync would do with it. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from workers import plan, sources
from workers.beginning import Beginning, find_existing, of_existing, of_seed
from workers.destination import of_pair
from workers.disks.file import Descriptor, datastore_file
from workers.errors import Foreign, NotFound, Transient, UnderstudyError
from workers.extents import Extents
from workers.members import last_groups_of
from workers.models import Cursor, Disk, HardwareChange, Pair, RestorePoint, SyncPlan, VmState
from workers.run import Here
from workers.store import Store
from workers.vsphere import inventory, replica
from workers.vsphere.building import disk_map
from workers.vsphere.session import Session, connect

#: the extraConfig key that holds what the disks hold
CURSOR = "understudy.cursor"


class Replica:
    """One consistent look at a pair: restore points, the replica and its cursor, and how to go on from there."""

    #: whether it is about the point that the replica holds, and no newer one
    _stays = False

    def __init__(
        self,
        here: Here,
        pair: Pair,
        *,
        goal: str | None = None,
        discard: bool = False,
        full: str | None = None,
        back_to: str | None = None,
        source: str | None = None,
    ) -> None:
        """`source`: the store that an earlier message of the run has read."""
        self.here = here
        self.pair = pair
        groups = last_groups_of(here, pair.source)
        self.place = of_pair(here.settings, pair, groups)
        self._order = sources.order(groups.values(), pair.recovery_target, pair.store)
        self._rpo = sources.rpo(groups.values(), pair.recovery_target, pair.store)
        #: the store that is read, one of those that have the VM's restore points
        self.source = source if source in self._order else self._order[0]
        self.site = here.settings.site(pair.site)
        self.points, self.goal = self._goals(goal, back_to)
        self.session: Session = connect(pair.site, self.site)
        #: of a replica that is not there yet, and is not built from nothing
        self.beginning: Beginning | None = None
        self.state: VmState | None = self._find()
        self.cursor = read_cursor(self.state)
        #: found just now, or None: a reason to compare every block
        self.doubt: str | None = None
        #: of the disks' contents when we looked
        self.evidence = ""
        self.decision = self._judge(discard, full, back_to)

    @cached_property
    def store(self) -> Store:
        return Store.at(self.here.settings.store(self.source))

    def _goals(self, goal: str | None, back_to: str | None) -> tuple[list[RestorePoint], RestorePoint | None]:
        """The restore points that count, and the one to go to: the newest, or the one that a person named."""
        if len(self._order) > 1:
            self._choose_source(back_to or goal or (self._held() if self._stays else None))
        points = self._up_to(self.store.points(self.pair.source), goal if back_to is None else None)
        if back_to is not None:
            return points, self._named(points, back_to)
        return points, points[-1] if points else None

    def _choose_source(self, wanted: str | None) -> None:
        """Which of several stores is read (workers/sources.py). A run stays with one as long as it can be read."""
        held = self._held()
        stores = [self.source, *(name for name in self._order if name != self.source)]
        choice = sources.choose(
            stores,
            lambda name: look(self.here, name, self.pair.source),
            held=held,
            now=self.here.catalogue.now(),
            rpo=self._rpo,
            wanted=(wanted,) if wanted is not None else (),
        )
        if choice.store is None:
            raise Transient(f"none of the stores can be read that {self.pair.vm} is replicated from: {choice.reason}")
        self.source = choice.store
        if choice.reason:
            self._note(choice.reason)

    def _held(self) -> str | None:
        """The newest point that may be on the replica's disks, as the catalogue mirrors its cursor."""
        synced, half = (
            self.here.catalogue.sync_point(self.pair.id),
            self.here.catalogue.half_applied().get(self.pair.id),
        )
        points = [*([synced.point] if synced is not None else []), *([half.toward] if half is not None else [])]
        return max(points, key=sources.number, default=None)

    def _judge(self, discard: bool, full: str | None, back_to: str | None) -> plan.Decision:
        """Is it ours and untouched, and which way does it go on? Nothing has been written before this is answered."""
        self._prove_ours(discard)
        if self.state is None and self.beginning is None and self.place.seed is not None and self.goal is not None:
            self.beginning = of_seed(self.session, self.site.datastores, self.pair, self.place, self.goal)
        if self.beginning is not None:
            return plan.Decision("compare", self.beginning.reason)
        return plan.decide(
            self.cursor,
            self.points,
            store=self.store.id,
            compare=self.doubt or full,
            back_to=back_to,
            several=len(self._order) > 1,
        )

    def _prove_ours(self, discard: bool) -> None:
        """A replica that is there is ours, off, and as we left it; else there is a doubt, or an error."""
        if self.state is None:
            return
        if self.cursor is None:
            raise Foreign(
                f"the replica {self.state.identity.name} has lost its cursor (was it registered again?); "
                "nothing was written. Rename or remove it, and the next sync builds a new one"
            )
        pair = self.pair
        plan.check_ours(self.cursor, self.state, realm=self.here.catalogue.realm, pair=pair.id, source=pair.source)
        self.evidence = replica.content_evidence(self.state)
        cids = descriptor_cids(self.state, self.site.datastores) if self.cursor.taking else {}
        self.doubt = plan.check_untouched(self.cursor, self.state, self.evidence, cids, discard=discard)

    @staticmethod
    def _up_to(points: list[RestorePoint], goal: str | None) -> list[RestorePoint]:
        """A run keeps the point that it began with, for its checkpoints are about that point."""
        ids = [p.id for p in points]
        return points[: ids.index(goal) + 1] if goal in ids else points

    def _named(self, points: Sequence[RestorePoint], wanted: str) -> RestorePoint:
        found = next((p for p in points if p.id == wanted), None)
        if found is None:
            raise NotFound(
                f"the restore point {wanted} of {self.pair.vm} is not in the store {self.source} any more; nothing "
                f"was written. It has {', '.join(p.id for p in points) or 'none'}"
            )
        return found

    def _note(self, reason: str) -> None:
        """A reason for people; only a run has somewhere to keep it."""

    def _find(self) -> VmState | None:
        if self.pair.replica is not None:
            found = inventory.find_uuid(self.session, self.pair.replica)
            if found is not None:
                return inventory.vm_state(self.session, found.identity.moref)
            self._note(f"the replica {self.pair.replica_name} is gone from its vCenter; it is built again")
        if self.place.existing is not None:
            there = find_existing(self.session, self.place.existing, self.pair.vm)
            if read_cursor(there) is not None:
                return there  # taken over by a run that stopped before it could say so, or somebody else's
            if self.goal is not None:
                self.beginning = of_existing(self.here, self.pair, self.place, there, self.goal)
            return None
        try:
            named = inventory.find_vm(self.session, self.pair.replica_name)
        except NotFound:
            return None
        state = inventory.vm_state(self.session, named.identity.moref)
        if read_cursor(state) is None:
            raise Foreign(
                f"a VM named {self.pair.replica_name} is already at site {self.pair.site} and is no replica of ours; "
                "nothing was written. Rename it, or give this VM's replica another name (overrides.NAME.name)"
            )
        return state  # ours if its cursor says so: built by a run that stopped before it could say where

    def plan(self) -> SyncPlan:
        nothing = self.decision.mode == "nothing"
        changes = () if nothing or self.goal is None else self._hardware()
        extents = {} if nothing else self._extents(changes)
        made = plan.sync_plan(
            self.pair.vm, self.decision, self.goal, extents, changes, self.cursor, self.place.excluded_disks
        )
        builds = self.beginning is not None and self.beginning.vm is None
        return made.model_copy(update={"build_replica": made.build_replica or builds})

    def same_vcenter(self) -> bool:
        return self.goal is not None and self.goal.vm.vcenter == self.session.vcenter

    def _hardware(self) -> tuple[HardwareChange, ...]:
        """What must change on the replica; nothing when it is still to be built, with all its disks."""
        assert self.goal is not None
        if self.state is None and (self.beginning is None or self.beginning.vm is None):
            return ()
        held = {key: disk.capacity for key, disk in self._disks().items()}
        return plan.hardware(self.goal, held, self.place.excluded_disks, self._anew())

    def _anew(self) -> set[str]:
        """Disks that a run added and could not make its own before it stopped: they are still empty, or somebody else
        has written to them, which nothing would show."""
        if self.state is None or self.cursor is None or not self.cursor.taking:
            return set()
        cids = descriptor_cids(self.state, self.site.datastores)
        return plan.added_and_open(self.cursor.taking, self._disks(), cids, self.cursor.fresh)

    def _disks(self) -> dict[str, Disk]:
        """Source disk id -> the replica's disk that carries it."""
        if self.state is not None:
            return disk_map(self.state)
        return self.beginning.copies if self.beginning is not None else {}

    def _extents(self, changes: Sequence[HardwareChange]) -> dict[str, Extents]:
        """What each disk needs: the difference between the goal and every state that its blocks may be in."""
        assert self.goal is not None
        known = {p.id: {d.disk.id: d for d in p.disks} for p in self.points}
        fresh = {c.disk for c in changes if c.kind == "add disk"}
        if self.cursor is not None:
            fresh |= set(self.cursor.fresh)
        result = {}
        for part in plan.protected(self.goal, self.place.excluded_disks):
            if self.decision.mode == "compare":
                result[part.disk.id] = Extents.whole(part.disk.capacity)
                continue
            states: set[str | None] = {None} if self.decision.mode == "build" else set(self.decision.since)
            if part.disk.id in fresh:
                states.add(None)
            todo = Extents.of([])
            for state in states:
                before = known[state].get(part.disk.id) if state is not None else None
                todo = todo | self.store.diff(before, part)
            result[part.disk.id] = todo
        return result


def look(here: Here, store: str, vm: str) -> sources.Seen:
    """A store with a VM's restore points, as it is found from here."""
    try:
        return sources.Seen(store, Store.at(here.settings.store(store)).points(vm))
    except UnderstudyError as err:
        return sources.Seen(store, why=str(err))
    except OSError as err:
        return sources.Seen(store, why=f"{err.filename or store}: {err.strerror}")


def descriptor_cids(state: VmState, datastores: Mapping[str, Path]) -> dict[str, str]:
    """The disks' content ids by their descriptors; what stands on a snapshot has none that we gave."""
    disks = [disk for disk in state.config.disks if disk.parent is None]
    return {disk.id: Descriptor(datastore_file(datastores, disk.file)).cid for disk in disks}


def read_cursor(state: VmState | None) -> Cursor | None:
    """What the VM says that its disks hold; None for one that is no replica.

    Raises `Foreign` when it can not be read.
    """
    text = state.notes.get(CURSOR) if state is not None else None
    if not text:
        return None
    assert state is not None
    try:
        return Cursor.model_validate_json(text)
    except ValueError as err:
        raise Foreign(
            f"the cursor on {state.identity.name} can not be read ({text[:80]!r}); nothing was written. "
            "It may come from a newer Understudy: upgrade, or rename the VM to have a new replica built"
        ) from err
