"""A VM as the target of a full restore: a new one, or the original. Marked as half done until everything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from uuid import uuid4

from workers import faults, nvram, plan, spread
from workers.destination import provisioned
from workers.disks.throttle import rate_of, slow_writer
from workers.errors import NoSpace, NotFound, Refused, Transient
from workers.extents import Extents
from workers.links import toll
from workers.models import PointDisk, RunReport, RunState, Slice, VmState
from workers.overload import gentle
from workers.point import Reader
from workers.replica_held import nonce
from workers.restore_held import HeldVm, Longer, holder, read_marker
from workers.settings import size
from workers.transfer import copy, in_slices
from workers.vsphere import inventory, power, replica, restoring
from workers.vsphere.building import ReplicaSpec


class RestoreTarget(HeldVm):
    """Every step may be entered again after a crash."""

    @property
    def written(self) -> bool:
        """Stopped after the marks were taken away: only what follows is left to do."""
        return self.live.recall("finishing") is not None and self.marker is None

    def nothing_new(self) -> str | None:
        return None  # somebody asked for just this

    def take(self) -> Mapping[str, Extents]:
        if (left := self.join()) is not None:
            return left
        if self.state is None:
            self._build()
        else:
            self._check_free()
        if self.order.over:
            self._seize()
        with self._locked():
            self._own()
            nvram.write(self.point.nvram, self.session, self.moref, self.site.datastores, self.live.note)
        return {key: self._todo(part) for key, part in self.parts.items()}

    def join(self) -> Mapping[str, Extents] | None:
        """What `take` gave an earlier message, when all is as it left it; None when something must be changed first."""
        if self.state is None or self.marker is None or self.marker.run != self.live.run.id or not self.live.planned:
            return None
        evidence = replica.content_evidence(self.state)
        if self.state.power != "poweredOff" or self.state.snapshots or not evidence or self.marker.content != evidence:
            return None
        held = self._disks()
        if any(key not in held or held[key].capacity < part.disk.capacity for key, part in self.parts.items()):
            return None
        return {key: self._todo(part) for key, part in self.parts.items()}

    def _todo(self, part: PointDisk) -> Extents:
        """Of a new disk what the point holds; of one that held something else everything, compared."""
        compare = self._compares(part.disk.id)
        todo = Extents.whole(self._disks()[part.disk.id].capacity) if compare else self.store.allocated(part)
        if not self.live.planned:
            how = "compare: only what differs is written" if compare else "full: it is empty"
            self.live.note(f"{part.disk.label}: {how}, {todo.total} bytes")
        return todo

    def _compares(self, disk: str) -> bool:
        fresh = (self.live.recall("fresh") or "").split()
        return self.live.recall("compare") is not None or (self.order.over and disk not in fresh)

    # --- a new VM -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self._clear_the_name()
        self._demand_space()
        order, point = self.order, self.point
        again = self.live.recall("made") is not None
        uuid = self.live.recall("made") or (order.source if order.same_identity else str(uuid4()))
        if order.same_identity and inventory.find_uuid(self.session, order.source) is not None:
            raise Refused(f"the original VM {order.vm} is still at {order.site}; restore without --same-identity")
        self.live.forget_slices()  # of a VM that is gone
        self.live.remember(made=uuid)
        spec = ReplicaSpec(
            name=order.name,
            instance_uuid=uuid,
            mark=f"{self.live.here.catalogue.realm}/restore/{self.live.run.id}",
            bios_uuid=point.vm.bios_uuid if order.same_identity else "",
            mac="keep" if order.same_identity else "generate",
            annotation=restoring.SIGN,
            config=point.config,
            datastore=order.datastore,
            compute=order.compute,
            pool=order.pool,
            folder=order.folder,
            networks=order.networks,
            provisioning=order.provisioning,
            excluded_disks=order.excluded,
            notes={restoring.MARKER: self._new_marker(uuid, built=True).model_dump_json()},
        )
        faults.at("restore.building")
        built = replica.create(self.session, spec, wait=self._patience())
        faults.at("restore.built")
        self.live.note(*built.notes, *point.config.dropped)
        self._reread(built.moref)
        self._begins = not again

    def _clear_the_name(self) -> None:
        """A VM of that name is somebody's, unless a restore that failed has left it half done."""
        try:
            named = inventory.find_vm(self.session, self.order.name)
        except NotFound:
            return
        state = inventory.vm_state(self.session, named.identity.moref)
        text = state.notes.get(restoring.MARKER)
        left = read_marker(self.order.name, text) if text else None
        if left is not None and left.run == self.live.run.id:
            return  # built a moment ago; its answer was lost
        mine = (self.live.here.catalogue.realm, state.identity.instance_uuid)
        ours = left is not None and left.built and (left.realm, left.vm) == mine and not self._at_work(left.run)
        if left is None or not ours or state.power != "poweredOff":
            raise Refused(
                f"a VM named {self.order.name} is already at {self.order.site}; nothing was written. "
                "Give the restored one another name, or rename that one"
            )
        replica.destroy(self.session, named.identity.moref, wait=self._patience())
        self.live.note(f"what run {left.run}, which failed, had half restored as {self.order.name} was removed")

    def _at_work(self, run: str) -> bool:
        try:
            return self.live.here.catalogue.run(run).live
        except NotFound:
            return False  # of a catalogue that was lost: it can neither write a mark nor commit

    def _demand_space(self) -> None:
        needed = sum(
            self.store.allocated(p).total if provisioned(p.disk, self.order.provisioning) == "thin" else p.disk.capacity
            for p in self.parts.values()
        )
        free = inventory.datastore_free(self.session, self.order.datastore)
        if needed > free:
            raise NoSpace(
                f"the restore needs {needed} bytes, the datastore {self.order.datastore} at {self.order.site} has "
                f"{free} free; nothing was written. Free some, or name another one with --datastore"
            )

    # --- the original ---------------------------------------------------------------------------------------------

    def check_original(self) -> None:
        """Raise `Refused` unless the original may be written now: off, and nothing stands on its disks."""
        assert self.state is not None
        self._check_free()
        outside = [d.label for d in self.state.config.disks if d.id in self.parts and d.unprotected]
        if outside:
            raise Refused(f"{', '.join(outside)} of {self._name} can not be written: {self._unprotected(outside[0])}")

    def _unprotected(self, label: str) -> str:
        assert self.state is not None
        return next(d.unprotected or "" for d in self.state.config.disks if d.label == label)

    def _check_free(self) -> None:
        assert self.state is not None
        if self.state.power != "poweredOff":
            raise Refused(
                f"{self._name} is {'running' if self.state.power == 'poweredOn' else 'suspended'}; nothing was "
                "written. Power it off, then restore again"
            )
        if self.state.snapshots:
            raise Refused(
                f"the snapshot {self.state.snapshots[0].name!r} stands on {self._name}; nothing was written. "
                "Remove its snapshots (or wait for the backup that made one), then restore again"
            )

    def _seize(self) -> None:
        """From here on the VM says that it is half restored, and nobody backs it up."""
        assert self.state is not None
        if self.state.config.template:
            restoring.make_vm(self.session, self.moref)
            self._reread()
        if self.marker is None or self.marker.run != self.live.run.id:
            if self.marker is not None:
                self.live.note(f"run {self.marker.run} had left {self._name} half restored; all of it is compared")
                if self.marker.fence >= self.live.run.fence:
                    self.live.refence(self.marker.fence)
            self.live.forget_slices()
            self._write(self._new_marker(self.state.identity.instance_uuid, built=False))
            faults.at("restore.claimed")
        restoring.take_over(self.session, self.state, self.live.run.id, self.parts, wait=self._patience())
        self._reread()
        self._follow_hardware()

    def _follow_hardware(self) -> None:
        """Missing disks come back, smaller ones grow. A disk that the point does not know is not in the way."""
        assert self.state is not None
        held = self._disks()
        sizes = {key: min(held[key].capacity, part.disk.capacity) for key, part in self.parts.items() if key in held}
        changes = plan.hardware(self.point, sizes, self.order.excluded)
        known = {d.disk.id for d in self.point.disks}
        for disk in self.state.config.disks:
            if disk.id not in known and disk.id not in {d.id for d in held.values()}:
                self.live.note(f"{disk.label} came after the restore point: it stays as it is")
        if not changes:
            return
        added = [c.disk for c in changes if c.kind == "add disk"]
        if added:
            self.live.remember(fresh=" ".join(added))
        for change in changes:
            self.live.note(f"hardware: {change.kind} {change.label} ({change.capacity} bytes)")
        replica.change_hardware(
            self.session, self.moref, changes, self.point.config, self.state.change_version, wait=self._patience()
        )
        self._reread()
        faults.at("restore.hardware")

    # --- writing --------------------------------------------------------------------------------------------------

    def _own(self) -> None:
        """The disks get new content ids, kept in the mark: so that a change by somebody else shows."""
        assert self.marker is not None
        self._reread()
        self._check_free()
        evidence = replica.content_evidence(self.state) if self.state is not None else ""
        if not evidence:
            raise Refused(
                f"vCenter gives no content ids for the disks of {self._name}, so that a change by somebody else could "
                "not be noticed; restore to a datastore with VMDK files (NFS, VMFS)"
            )
        if self.marker.content == evidence:
            return
        if not self._begins:
            if self.marker.content:
                self.live.note(f"somebody opened the disks of {self._name} meanwhile: all of it is compared")
            self.live.forget_slices()
            self.live.remember(compare="yes")
        assert self.state is not None
        self.ways.remember(self.state, self._disks().values())
        for disk in self._disks().values():
            self._way(disk).renew(plan.new_cid(nonce()[:8], disk.id))
        self._reread()
        faults.at("restore.renewed")
        assert self.state is not None
        self._write(self.marker.model_copy(update={"content": replica.content_evidence(self.state), "nonce": nonce()}))
        faults.at("restore.owned")

    def cut(self, disk: str, todo: Extents) -> Iterable[tuple[int, int]]:
        if self.live.one_writer:
            return in_slices(todo, max(todo.total, 1))
        tuning = self.live.here.settings.tuning
        most = size(tuning.slice_size)
        return in_slices(todo, spread.slice_bytes(todo.total, most=most, workers=tuning.spread))

    def reader(self, disk: str) -> Reader:
        """The disk as the point has it; beyond its end, where the VM's disk is larger by now, zeroes."""
        return Longer(
            self.store.reader(self.point, disk, toll(self.live, self.order.store)), self._disks()[disk].capacity
        )

    def write(self, part: Slice, todo: Extents, source: Reader) -> None:
        """Lock the range, then check the fence, write, sync, and only then checkpoint."""
        disk = self._disks()[part.disk]
        way = self._way(disk)
        faults.at("slice.locking")
        with way.hold(part.done, part.end - part.done, wait=self._wait()) as held:
            faults.at("slice.locked")
            self.live.check_slice(part)
            self._prove_unchanged()
            faults.at("slice.checked")
            with closing(held.writer(holes=True)) as destination:
                reading, writing = gentle(destination, self.live, self.order.site, disk, way.name)
                copied = copy(
                    source,
                    slow_writer(writing, rate_of(f"site {self.order.site}", self.site.bytes_per_second)),
                    todo,
                    threads=self.live.threads,
                    deadline=self.live.deadline,
                    against=reading if self._compares(part.disk) else None,
                    stop=lambda: self.live.lost,
                )
                faults.at("slice.written")
                destination.flush()
                faults.at("slice.synced")
        done = part.end if copied.done >= todo.end else copied.done
        self.live.checkpoint(
            part.model_copy(
                update={"done": done, "read": part.read + copied.read, "written": part.written + copied.written}
            )
        )

    def _prove_unchanged(self) -> None:
        self._reread()
        self.marker = self._read()
        assert self.state is not None
        self._check_free()
        if self.marker is None or self.marker.run != self.live.run.id:
            raise Refused(
                f"the mark of this restore is gone from {self._name}: somebody took it away, or reverted the VM. "
                "Restore again: all of it is compared then"
            )
        if replica.content_evidence(self.state) != self.marker.content:
            raise Transient(f"somebody opened the disks of {self._name} during its restore; it is compared again")

    def flush(self) -> None:
        """Each slice is synced and checkpointed as it ends."""

    def commit(self) -> RunReport:
        whole = self.order.over and not self.order.excluded
        config = self.point.config
        with self._locked():
            self.live.check()
            self._prove_unchanged()
            self.live.remember(finishing="yes")
            faults.at("restore.finishing")
            assert self.state is not None
            annotation = config.annotation if whole or not self.order.over else self.state.config.annotation
            restoring.release(
                self.session,
                self.state,
                annotation=restoring.without_sign(annotation) or f"Restored from the backup {self.point.id}",
                hardware=config if whole else None,
                wait=self._patience(),
            )
            faults.at("restore.released")
        return self.conclude()

    def conclude(self) -> RunReport:
        """Everything is written and the marks are gone. Repeatable."""
        if self.state is None:
            raise NotFound(f"{self.order.name} was restored, and has been removed from {self.order.site} since")
        if self.order.template:
            restoring.make_template(self.session, self.moref)
            faults.at("restore.template")
        if self.order.power_on:
            self.live.check()  # who slept here must not start what somebody has used and switched off by now
            power.power_on(self.session, self.moref, wait=self._patience())
            faults.at("restore.running")
        if self.order.over and len(self._nics(self.state)) != len(self.point.config.nics):
            self.live.note("the network cards stay as they are now; compare them with those of the restore point")
        self.store.unpin(self.order.source, self.order.point, holder(self.live.here.catalogue.realm, self.live.run.id))
        self.live.remember(pinned=None)
        what = "template" if self.order.template else "VM"
        report = self.live.report("succeeded", f"the {what} {self._name} holds {self.point.id}", self.point.id)
        return self.live.finish(RunState.SUCCEEDED, report)

    @staticmethod
    def _nics(state: VmState) -> Sequence[object]:
        return state.config.nics
