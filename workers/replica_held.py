"""A replica in the hands of a claimed run: its cursor by compare-and-set, its disks locked, its seal."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Literal

from workers import faults, plan, undo_kept
from workers.carried import Ways, under
from workers.disks.carrier import Carrier
from workers.errors import FencedOut, NotFound
from workers.models import Cursor, Disk, Pair, RunReport, SyncPoint
from workers.pins_elsewhere import unpin_elsewhere
from workers.replica import CURSOR, Replica, read_cursor
from workers.run import Here, Live, NotYet
from workers.settings import seconds
from workers.vsphere import inventory, replica, snapshots

#: in a run's memory: the restore point that a person named; without it a sync goes to the newest
BACK_TO = "back to"

#: in a run's memory: the store that it reads, where it has the choice
SOURCE = "source"

#: begins the reason of a pause that keeps a replica at the point that a person named
ROLLED_BACK = "rolled back to "

#: ends the witness of a pair that must stay where it is, so that the pause outlives the catalogue
PAUSED = " paused"


class HeldReplica(Replica):
    """What every step of a sync needs. Nothing here may be used by a worker that does not hold the run."""

    def __init__(self, live: Live, pair: Pair) -> None:
        self.live = live
        self._known: tuple[str, undo_kept.Kept] | None = None
        super().__init__(
            live.here,
            pair,
            goal=live.recall("point"),
            discard=live.recall("discard") is not None,
            full=live.recall("full"),
            back_to=live.recall(BACK_TO),
            source=live.recall(SOURCE),
        )
        self.ways = Ways(live, self.session)

    def _note(self, reason: str) -> None:
        self.live.note(reason)

    def committed_by(self, run_id: str) -> bool:
        return self.cursor is not None and self.cursor.state == "committed" and self.cursor.run == run_id

    def _stay_there(self) -> None:
        """Of a rollback: the pair is paused before a byte is written, so that no tick comes in between."""
        if (back_to := self.live.recall(BACK_TO)) is not None:
            self.pair = stay_there(self.here, self.pair, back_to)

    def conclude(self) -> RunReport:
        """After the commit: seal, witness, catalogue, pins. Repeatable from any point between."""
        assert self.cursor is not None and self.state is not None
        with self._locked():
            self.live.check()
            self._reread()
            self._seal(self.cursor)
        replica.set_witness(self.session, self.state.identity.moref, self._witness(self.cursor))
        self._over()
        point = self._sync_point(self.cursor)
        report = self.live.report("succeeded", f"replica holds {point.point}", point.point)
        self._unpin_others(point.point)  # while the run lives, so that a failure to do so is tried again
        faults.at("catalogue.before")
        point = self.here.catalogue.commit_sync(
            self.live.run.id, self.live.owner, point.model_copy(update={"written": report.written}), read=report.read
        )
        faults.at("catalogue.after")
        return report.model_copy(update={"sync_point": point})

    def _kept(self) -> undo_kept.Kept | None:
        """What is kept of the replica's old content, as its cursor says."""
        if self.cursor is None or not self.cursor.undo:
            return None
        if self._known is None or self._known[0] != self.cursor.undo:
            self._known = self.cursor.undo, undo_kept.load(self.site.datastores, self.cursor.undo)
        return self._known[1]

    def _say_half_applied(self) -> None:
        """The catalogue knows what the cursor says, so that a status need not look at the replica."""
        if self.cursor is not None and self.cursor.state == "applying" and self.cursor.base is not None:
            said = {"base": self.cursor.base, "toward": self.cursor.targets[-1], "undo": self.cursor.undo}
            self.here.catalogue.applying(self.pair.id, **said)

    def _over(self) -> None:
        """The replica is committed and sealed: what was kept of its older content goes."""
        assert self.state is not None
        self.live.check()  # who slept here would take away what a newer run keeps by now
        half = self.here.catalogue.half_applied().get(self.pair.id)
        realm, pair = self.here.catalogue.realm, self.pair.id
        for sentence in undo_kept.clear(self.site.datastores, self.state, realm=realm, pair=pair):
            self._note(sentence)
        if half is not None and half.undo:  # of the replica before this one, where that was deleted half-applied
            for sentence in undo_kept.clear_gone(self.site.datastores, half.undo, realm=realm, pair=pair):
                self._note(sentence)
        self.here.catalogue.applied(self.pair.id)
        faults.at("undo.cleared")

    def _seal(self, cursor: Cursor) -> None:
        """The integrity snapshot, named after the sync point; made once."""
        assert self.state is not None and cursor.base is not None
        name = plan.seal_name(cursor.realm, cursor.pair, cursor.base)
        if any(s.name == name for s in self.state.snapshots):
            return
        faults.at("seal.before")
        snapshots.create(
            self.session,
            self.state.identity.moref,
            name,
            f"Integrity snapshot of {self.pair.vm}: nobody but Understudy changed the disks while it stands alone",
            quiesce=False,
            wait=self._patience(),
        )
        faults.at("seal.after")

    def _cursor(
        self,
        *,
        state: Literal["committed", "applying"],
        base: str | None,
        targets: tuple[str, ...],
        content: str,
        disks: str,
        taking: str = "",
        fresh: tuple[str, ...] = (),
        compare: str = "",
        vm: str | None = None,
        data_time: datetime | None = None,
    ) -> Cursor:
        if vm is None:
            assert self.state is not None
            vm = self.state.identity.instance_uuid
        return Cursor(
            realm=self.here.catalogue.realm,
            pair=self.pair.id,
            fence=self.live.run.fence,
            state=state,
            base=base,
            targets=targets,
            run=self.live.run.id,
            nonce=nonce(),
            store=self.store.id,
            source=self.pair.source,
            vcenter=self.session.vcenter,
            vm=vm,
            disks=disks,
            content=content,
            taking=taking,
            fresh=fresh,
            compare=compare,
            data_time=data_time or (self.cursor.data_time if self.cursor else None),
        )

    def _write(self, cursor: Cursor) -> None:
        """Compare-and-set by the VM's changeVersion. A lower fence never replaces a higher one."""
        assert self.state is not None
        self.live.check()
        before = read_cursor(self.state)
        if before is not None and before.fence > cursor.fence:
            raise FencedOut(
                f"the cursor of {self.pair.replica_name} carries fence {before.fence}, this run's is {cursor.fence}; "
                "a newer run owns the replica"
            )
        if before is not None and self.cursor is not None and before.nonce != self.cursor.nonce:
            raise FencedOut(f"the cursor of {self.pair.replica_name} was written by another execution of this run")
        replica.write_cursor(
            self.session,
            self.state.identity.moref,
            CURSOR,
            cursor.model_dump_json(exclude_defaults=True),
            self.state.change_version,
            wait=self._patience(),
        )
        self.cursor = cursor
        self._reread()

    def _reread(self, moref: str | None = None) -> None:
        if moref is None:
            assert self.state is not None
            moref = self.state.identity.moref
        self.state = inventory.vm_state(self.session, moref)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The whole-disk lock on every disk of the replica, in one order."""
        with ExitStack() as stack:
            for disk in sorted(self._disks().values(), key=lambda disk: disk.parent or disk.file):
                assert self.state is not None
                file, seal = under(self.state, disk)
                try:
                    stack.enter_context(self._way(disk, file, snapshot=seal).still(wait=self._wait()))
                except NotFound as err:
                    self._look_again(disk, err)
                    raise
            yield

    def _look_again(self, disk: Disk, err: NotFound) -> None:
        """Later, when the VM has changed since: vCenter may still be at work on what a lost connection asked it for."""
        assert self.state is not None
        before = self.state.change_version
        self._reread()
        if self.state.change_version != before:
            raise NotYet(f"{disk.label} of the replica was taken off while it was looked at") from err

    def _way(self, disk: Disk, file: str | None = None, *, snapshot: str | None = None) -> Carrier:
        """The carrier of a disk of the replica, or of another file of it than the live one."""
        assert self.state is not None
        return self.ways.of(self.state, disk, file, snapshot=snapshot)

    def _patience(self) -> float:
        """How long one vCenter task is waited for before the run comes back later."""
        return float(seconds(self.here.settings.tuning.vcenter_wait))

    def _wait(self) -> float:
        return float(seconds(self.here.settings.tuning.lock_wait))

    def _holder(self) -> str:
        return f"{self.here.catalogue.realm}:{self.pair.id}"

    def _unpin_others(self, kept: str) -> None:
        self.live.check()  # who slept here would take the pin from what a newer run goes to by now
        for point, holders in self.store.pins(self.pair.source).items():
            if point != kept and self._holder() in holders:
                self.store.unpin(self.pair.source, point, self._holder())
        others = {name for name in self._order if name != self.source}
        unpin_elsewhere(self.here, self.pair, self.source, kept=self.store.id, hold=kept, also=others)

    def _witness(self, cursor: Cursor) -> str:
        """What a revert in vSphere can not take back, in the custom attribute (at most 255 characters)."""
        text = f"{cursor.realm} {cursor.pair} fence={cursor.fence} generation={self.pair.generation} base={cursor.base}"
        return text + (PAUSED if self.pair.paused is not None else "")

    def _sync_point(self, cursor: Cursor) -> SyncPoint:
        assert cursor.base is not None and self.state is not None
        found = next((p for p in self.points if p.id == cursor.base), None)
        before = self.here.catalogue.sync_point(self.pair.id)
        same = before.change_ids if before is not None and before.point == cursor.base else {}
        return SyncPoint(
            run=cursor.run,
            pair=self.pair.id,
            vm=self.pair.vm,
            replica=self.pair.replica_name,
            point=cursor.base,
            parent=before.point if before is not None and before.point != cursor.base else None,
            fence=cursor.fence,
            data_time=cursor.data_time or (found.data_time if found else self.here.catalogue.now()),
            committed=self.here.catalogue.now(),
            mode=self.decision.mode if self.decision.mode != "nothing" else "delta",
            change_ids={d.disk.id: d.disk.change_id for d in found.disks} if found else same,
            written=0,
        )


def stay_there(here: Here, pair: Pair, point: str) -> Pair:
    """Pause a pair that was put at a point by a person.

    Also when it is paused already: for another reason, or at another point, that would be undone by a sync by name.
    """
    before = pair.paused or ""
    there = f"{ROLLED_BACK}{point} on request; it stays there until it is resumed"
    if before.startswith(there):
        return pair
    also = f". Paused before: {before}" if before and not before.startswith(ROLLED_BACK) else ""
    held = here.catalogue.pause(pair.id, there + also)
    faults.at("rollback.paused")
    return held


def nonce() -> str:
    return secrets.token_hex(8)
