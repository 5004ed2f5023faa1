"""A replica VM as the target of a sync: taken, written slice by slice, committed."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing

from workers import approval, faults, nvram, plan, spread, undo_kept
from workers.destination import datastore_of, differences
from workers.disks.carrier import Held
from workers.disks.saving import ReadWriter
from workers.disks.throttle import rate_of, slow_writer
from workers.errors import Refused, Touched, Transient
from workers.extents import Extents
from workers.members import policies_of
from workers.models import Cursor, Disk, HardwareChange, RunReport, Slice, SyncPlan, VmConfig
from workers.overload import gentle
from workers.point import Reader
from workers.replica_held import BACK_TO, nonce
from workers.replica_new import COMPARE_WORDS, NewReplica
from workers.settings import size
from workers.transfer import copy, in_slices
from workers.vsphere import replica, snapshots
from workers.vsphere.building import NewDisk


class ReplicaTarget(NewReplica):
    """Brings the replica up to `goal` for one claimed run. Every step may be entered again after a crash."""

    def nothing_new(self) -> str | None:
        if self.decision.mode != "nothing":
            return None
        self._stay_there()
        if self.cursor is not None and self.cursor.state == "committed":
            self._conclude_for_the_dead(self.cursor)
        return self.decision.reason

    def _conclude_for_the_dead(self, cursor: Cursor) -> None:
        """What the run that committed may not have lived to do; what is done already costs nothing."""
        assert self.state is not None and cursor.base is not None
        if not self.state.snapshots:
            self._note("the last sync was committed but not sealed; sealed now")
            with self._locked():
                self.live.check()
                self._reread()
                self._still(self.evidence)
                self._seal(cursor)
        if self.state.witness != self._witness(cursor):
            replica.set_witness(self.session, self.state.identity.moref, self._witness(cursor))
        known = self.here.catalogue.sync_point(self.pair.id)
        if known is None or (known.point, known.fence) != (cursor.base, cursor.fence):
            self.here.catalogue.adopt_sync_point(self._sync_point(cursor))
        self._over()
        self._unpin_others(cursor.base)

    def join(self) -> Mapping[str, Extents] | None:
        """What `take` gave an earlier message, when all is as it left it: then there is nothing to change, and no
        worker that writes needs to be waited for. None when something must be changed first.
        """
        if self.goal is None or self.state is None or self.cursor is None or not self.live.planned:
            return None
        cursor, compares = self.cursor, self.decision.mode == "compare"
        begun = self._begun() and self.goal.id in cursor.targets and bool(cursor.compare) == compares
        ours = self._owned() and cursor.content == self.evidence and cursor.fence == self.live.run.fence
        known = self.pair.replica == self.state.identity.instance_uuid
        if not (begun and ours and known) or self.doubt is not None or self.state.snapshots or self._hardware():
            return None
        extents = self._extents(())
        return extents if self.live.recall("situation") == self._situation(extents) else None

    def take(self) -> Mapping[str, Extents]:
        assert self.goal is not None
        if (left := self.join()) is not None:
            self.store.pin(self.pair.source, self.goal.id, self._holder())
            return left
        changes = self._hardware()
        extents = self._extents(changes)
        situation = self._situation(extents)
        if self.live.planned and (why := self._overtaken(situation)) is not None:
            self.live.forget_slices()
            self._note(f"the checkpoints of this run are given up: {why}")
        if not self.live.planned:
            self._ask(changes, extents)
            self.live.remember(situation=situation)
            self._explain(changes, extents)
        self._stay_there()
        self.store.pin(self.pair.source, self.goal.id, self._holder())
        faults.at("pin.after")
        if self.state is None:
            self._create()
        else:
            self._begin()
        assert self.state is not None
        self._say_half_applied()
        if self.pair.replica != self.state.identity.instance_uuid:
            if self.pair.replica is not None:  # it is gone, see _find: given up for the one that was built instead
                self.here.catalogue.set_replica(self.pair.id, None)
            self.pair = self.here.catalogue.set_replica(
                self.pair.id, self.state.identity.instance_uuid, self.state.identity.name
            )
        with self._locked():
            self._unseal()
            self._own(changes)
            nvram.write(self.goal.nvram, self.session, self.state.identity.moref, self.site.datastores, self._note)
        return extents

    def _begun(self) -> bool:
        """Does the replica itself say that this run is at work on it? One built anew, or put back, does not."""
        return self.cursor is not None and self.cursor.state == "applying" and self.cursor.run == self.live.run.id

    def _situation(self, extents: Mapping[str, Extents]) -> str:
        """Digest of what the slices are planned for."""
        assert self.goal is not None
        found = hashlib.sha256(f"{self.store.id} {self.goal.id} {self.decision.mode == 'compare'}".encode())
        for disk, todo in sorted(extents.items()):
            found.update(f" {disk} {len(todo)} ".encode())
            found.update(todo.offsets.tobytes())
            found.update(todo.lengths.tobytes())
        return found.hexdigest()[:32]

    def _overtaken(self, situation: str) -> str | None:
        """Why the slices that an earlier message planned, and their checkpoints, count no more."""
        if self.state is None:
            return "they are about a replica that is gone"
        if self.doubt is not None:
            return "what the replica holds must be compared"
        if not self._begun():
            return "the replica is not as they left it"
        if self.live.recall("situation") != situation:
            return "the restore points or the configuration are not those that they were made for"
        return None

    def _worded(self, changes: Sequence[HardwareChange], extents: Mapping[str, Extents]) -> SyncPlan:
        return plan.sync_plan(
            self.pair.vm, self.decision, self.goal, extents, changes, self.cursor, self.place.excluded_disks
        )

    def _ask(self, changes: Sequence[HardwareChange], extents: Mapping[str, Extents]) -> None:
        """Raise `ApprovalNeeded` where the groups want a person to be asked before so much is written or compared."""
        aim = self.pair.recovery_target
        policy = approval.strictest(policies_of(self.here, self.pair.source, lambda group: aim in group.targets))
        synced = self.here.catalogue.sync_point(self.pair.id) is not None
        first, again = plan.in_full(self._worded(changes, extents), synced=synced)
        yes = None
        if (back_to := self.live.recall(BACK_TO)) is not None:  # an approval would let the next sync go elsewhere
            yes = f"`understudy rollback {self.pair.vm} --to {back_to} --full`"
        self.live.may_read_all(policy, first=first, again=again, yes=yes)

    def _explain(self, changes: Sequence[HardwareChange], extents: Mapping[str, Extents]) -> None:
        worded = self._worded(changes, extents)
        for disk in worded.disks:
            self._note(f"{disk.label}: {disk.mode}, {disk.bytes} bytes; {disk.reason}")
        assert self.goal is not None
        if self.goal.config.template:
            self._note("the source is a template; its replica is a VM, and a restore from a backup makes it a template")
        named = {name for d in self.goal.config.disks for name in (d.id, d.label)}
        for excluded in self.place.excluded_disks:
            if excluded not in named:
                why = f"excluded_disks names {excluded!r}, which is no disk of {self.pair.vm}: nothing is left out"
                self._note(why)
        vm = self.state or (self.beginning.vm if self.beginning is not None else None)
        if vm is not None:
            for difference in differences(self.place, self.goal.config, vm.config, self._disks()):
                self._note(difference)
        if self.state is not None and self.place.existing not in (None, *self._names()):
            self._note(f"existing = {self.place.existing!r} is not looked at: {self.pair.replica_name} is the replica")
        for change in worded.hardware:
            self._note(f"hardware: {change.kind} {change.label or change.disk} ({change.capacity} bytes)")

    def _names(self) -> tuple[str, str]:
        assert self.state is not None
        return self.state.identity.name, self.state.identity.instance_uuid

    def _begin(self) -> None:
        """The cursor says `applying` before anything else changes; the set of targets only grows."""
        assert self.cursor is not None and self.goal is not None
        old = self.cursor
        if old.fence > self.live.run.fence or (old.fence == self.live.run.fence and old.run != self.live.run.id):
            self.live.refence(old.fence)
        compare = self.decision.reason[:COMPARE_WORDS] if self.decision.mode == "compare" else ""
        undo = self._keep(old)
        same = bool(old.compare) == bool(compare) and old.undo == undo
        if self._begun() and self.goal.id in old.targets and same:
            return
        targets = old.targets if self.goal.id in old.targets else (*old.targets, self.goal.id)
        if compare:  # every block is compared until a commit, so the list no longer decides; it must not grow for ever
            targets = targets[-plan.MOST_TARGETS :]
        self._write(
            self._cursor(
                state="applying",
                base=old.base,
                targets=targets,
                content=old.content,
                taking=old.taking,
                disks=old.disks,
                fresh=old.fresh,
                compare=compare,
            ).model_copy(update={"undo": undo, "library": old.library})
        )
        faults.at("cursor.applying")

    def _keep(self, old: Cursor) -> str:
        """What keeps the replica's old content from now on, for the cursor; "" = nothing does.

        It is kept from the first write after a commit, or not at all: what was overwritten before is lost.
        """
        assert self.state is not None
        why = undo_kept.possible(self.here.settings, self.pair, self.source, self.state, self._note)
        if old.state == "applying":
            lost = "it is not wanted" if why is None else self.doubt
            lost = lost or undo_kept.lost(self.site.datastores, self.state, old.undo)
            if old.undo and lost is not None:
                self._note(f"what was kept of {old.base} is given up: {lost}")
            return "" if lost is not None else old.undo
        if why is None or self.doubt is not None or old.base is None:
            return ""
        self._note(f"what is overwritten of {old.base} is kept beside the replica's disks until the commit: {why}")
        ours = {"realm": self.here.catalogue.realm, "pair": self.pair.id, "base": old.base, "run": self.live.run.id}
        return undo_kept.begin(self.session, self.site.datastores, self.state, **ours)

    def _unseal(self) -> None:
        """Remove our seal; a file writer needs disks on which nothing stands."""
        assert self.state is not None
        self._reread()
        self._still(self.evidence)
        ours = plan.seal_name(self.here.catalogue.realm, self.pair.id, "")
        for node in (s for s in self.state.snapshots if s.name.startswith(ours)):
            faults.at("unseal.before")
            snapshots.remove(self.session, self.state.identity.moref, node.moref, wait=self._patience())
            faults.at("unseal.after")
        self._reread()
        self._still(self.evidence)
        standing = [d for d in self.state.config.disks if d.parent is not None]
        if standing or self.state.snapshots:
            raise Refused(
                f"the disks of {self.pair.replica_name} still stand on a snapshot after the seal was removed "
                f"({standing[0].file if standing else self.state.snapshots[0].name}); "
                "consolidate the VM's disks, then sync again"
            )

    def _own(self, changes: Sequence[HardwareChange]) -> None:
        """Hardware follows the point, and the disks get new content ids: what was known of their data is void.

        After a crash between the cursor with `content=""` and the one with the new evidence each disk must have its old
        content id or the one that `taking` gives it: else somebody else opened it.
        """
        assert self.state is not None and self.cursor is not None
        current = replica.content_evidence(self.state)
        if self.cursor.content == current and self.cursor.run == self.live.run.id and self._owned() and not changes:
            return  # an earlier message of this run came this far
        added = tuple(c.disk for c in changes if c.kind == "add disk" and c.disk not in self.cursor.fresh)
        anew = {disk.id for source, disk in self._disks().items() if source in self._anew()}
        taking = plan.taking(secrets.token_hex(4), (d for d in self.state.config.disks if d.id not in anew))
        fresh = (*self.cursor.fresh, *added)
        self._write(self.cursor.model_copy(update={"content": "", "taking": taking, "fresh": fresh, "nonce": nonce()}))
        if self.live.recall("discard") is not None or self.live.recall("full") is not None:
            # What was given up is what was there now. The cursor says to compare it, also to later messages.
            self.live.remember(discard=None, full=None)
        faults.at("own.before")
        if changes:
            config, made = self._added(changes)
            replica.change_hardware(
                self.session,
                self.state.identity.moref,
                changes,
                config,
                self.state.change_version,
                made=made,
                keep=undo_kept.removable(self._kept(), self._disks()),
                wait=self._patience(),
            )
            self._reread()
            faults.at("hardware.after")
        self.ways.remember(self.state, self._disks().values())
        for disk in self._disks().values():
            self._way(disk).renew(plan.new_cid(taking, disk.id))
        self._reread()
        faults.at("own.renewed")
        if not replica.content_evidence(self.state):
            raise Refused(
                f"vCenter gives no content ids for the disks of {self.pair.replica_name}, so that a change by somebody "
                "else could not be noticed; place the replica on a datastore with VMDK files (NFS, VMFS)"
            )
        self._write(
            self.cursor.model_copy(
                update={
                    "content": replica.content_evidence(self.state),
                    "taking": "",
                    "disks": replica.disk_binding(self.state),
                    "library": self.live.one_writer,
                    "nonce": nonce(),
                }
            )
        )
        self.live.remember(owned=self.cursor.content)
        faults.at("own.after")

    def _added(self, changes: Sequence[HardwareChange]) -> tuple[VmConfig, dict[str, NewDisk]]:
        """The configuration that disks are added from, and how and where they are made."""
        assert self.goal is not None and self.state is not None
        added = {c.disk for c in changes if c.kind == "add disk"}
        disks = [d for d in self.goal.config.disks if d.id in added]
        return self.goal.config, self._new_disks(disks, home=datastore_of(self.state.vmx))

    def _owned(self) -> bool:
        return self.cursor is not None and self.live.recall("owned") == self.cursor.content != ""

    def cut(self, disk: str, todo: Extents) -> Iterable[tuple[int, int]]:
        tuning = self.here.settings.tuning
        most = spread.slice_bytes(todo.total, most=size(tuning.slice_size), workers=tuning.spread)
        return in_slices(todo, max(todo.total, 1) if self.live.one_writer else most)

    def write(self, part: Slice, todo: Extents, source: Reader) -> None:
        """Lock the range, then check the fence, write, sync, and only then checkpoint."""
        disk = self._disks()[part.disk]
        faults.at("slice.locking")
        with (way := self._way(disk)).hold(part.done, part.end - part.done, wait=self._wait()) as held:
            faults.at("slice.locked")
            self.live.check_slice(part)
            self._prove_unchanged()
            faults.at("slice.checked")
            with closing(self._opened(held, disk, part)) as destination:
                reading, writing = gentle(destination, self.live, self.pair.site, disk, way.name)
                copied = copy(
                    source,
                    slow_writer(writing, rate_of(f"site {self.pair.site}", self.site.bytes_per_second)),
                    todo,
                    threads=self.live.threads,
                    deadline=self.live.deadline,
                    against=reading if self.decision.mode == "compare" else None,
                    stop=lambda: self.live.lost,
                )
                faults.at("slice.written")
                destination.flush()
                faults.at("slice.synced")
                self._read_back(destination, source, todo.clip(0, copied.done))
        done = part.end if copied.done >= todo.end else copied.done
        self.live.checkpoint(
            part.model_copy(
                update={"done": done, "read": part.read + copied.read, "written": part.written + copied.written}
            )
        )

    def _opened(self, held: Held, disk: Disk, part: Slice) -> ReadWriter:
        """The disk, to be written under the lock on the slice's range."""
        writer = held.writer(holes=disk.thin)
        try:
            return undo_kept.saving(self.site.datastores, self._kept(), disk, writer, part, self._wait())
        except BaseException:
            writer.close()
            raise

    def _read_back(self, destination: Reader, source: Reader, written: Extents) -> None:
        """A look at what was written and synced. What a restore point gives has a digest that verifies it later."""

    def flush(self) -> None:
        """Each slice is checkpointed as it ends."""

    def commit(self) -> RunReport:
        assert self.cursor is not None and self.goal is not None
        with self._locked():
            self.live.check()
            self._prove_unchanged()
            faults.at("commit.before")
            committed = self._cursor(
                state="committed",
                base=self.goal.id,
                targets=(),
                content=self.cursor.content,
                disks=self.cursor.disks,
                data_time=self.goal.data_time,
            )
            self._write(committed)
            faults.at("commit.after")
        return self.conclude()

    def _prove_unchanged(self) -> None:
        """Since the slices began nobody else opened the disks: else what was checkpointed proves nothing."""
        self._reread()
        assert self.state is not None and self.cursor is not None
        if (why := plan.left_by_library(self.cursor, self.state, replica.content_evidence(self.state))) is not None:
            raise Transient(f"{why}; all of it is compared")
        self._still(self.cursor.content)
        if self.state.snapshots:
            raise Refused(
                f"somebody took the snapshot {self.state.snapshots[0].name!r} of the replica {self.pair.replica_name} "
                "during the sync; nothing was committed. Remove that snapshot (its data stays), then sync again"
            )

    def _still(self, evidence: str) -> None:
        """Raise `Touched` unless the replica, as just read, is off and its disks' contents are those of `evidence`."""
        assert self.state is not None
        if self.state.power != "poweredOff" or replica.content_evidence(self.state) != evidence:
            raise Touched(
                f"the replica {self.pair.replica_name} was powered on or written by somebody else during the sync; "
                "nothing was committed. If production runs on it, keep it; if not, power it off and run "
                "`understudy sync --discard-changes`, which compares all of it"
            )
