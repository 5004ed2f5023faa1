"""A replica compared with its sync point, under its seal. What it finds goes to the catalogue; no disk is written.

A range differs because the storage lost or changed it: that nobody else wrote is known before (content ids, power,
snapshots: the same look as before a sync), or the run ends as `Touched` and compares nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

from workers import faults, plan, scrub
from workers.catalogue import Damage, Scrub
from workers.differences import Doubtful, Findings
from workers.disks.carrier import Carrier
from workers.errors import NotFound, Refused, StoreDamaged, ValidationFailed
from workers.extents import GRANULE, Extents
from workers.models import Disk, PointDisk, RunReport, RunState, Slice, Trigger
from workers.overload import gentle_reader
from workers.point import Reader
from workers.replica_target import ReplicaTarget
from workers.settings import size
from workers.transfer import copy, in_slices
from workers.vsphere import replica

#: ranges that a sentence names; all are counted
MOST_NAMED = 10
#: keys of a run's memory: what it compares, which share of everything a day is due (none: all of it, at once), whether
#: it mends what it finds, that it does so now, how many bytes could not be compared
SCOPE, SHARE, REPAIR, MEND, UNREAD = "scope", "share", "repair", "mend", "unread"


class VerifiedReplica(ReplicaTarget):
    """Implements workers.sync.Target, and writes to the catalogue only. The seal stays: the base under it is read."""

    #: bytes that could not be compared since the round's place was last written
    _unread = 0
    _stays = True

    def _judge(self, discard: bool, full: str | None, back_to: str | None) -> plan.Decision:
        if self.state is None:
            self.beginning = None
            return plan.Decision("nothing", "there is no replica yet, so nothing was compared")
        base = self.cursor.base if self.cursor is not None else None
        if base is not None and all(p.id != base for p in self.points):
            raise NotFound(
                f"the replica {self.pair.replica_name} holds the restore point {base}, which is not in the store "
                f"{self.source} any more: there is nothing to compare it with. The next sync makes another one"
            )
        super()._judge(False, None, None)  # is it ours, and has nobody touched it?
        assert self.cursor is not None
        if self.cursor.store != self.store.id and len(self._order) == 1:
            raise Refused(
                f"the replica {self.pair.replica_name} was synced from another store than {self.pair.store} is now; "
                "the next sync compares every block, so nothing was compared here"
            )
        if self.cursor.state != "committed" and self.live.recall(MEND) is None:
            why = "a sync of it stopped half way and goes on first, so nothing was compared"
            if self.live.run.trigger is Trigger.AD_HOC:
                raise Refused(f"the replica {self.pair.replica_name} holds a mixture now: {why}; ask again then")
            return plan.Decision("nothing", why)
        self.goal = next(p for p in self.points if p.id == base)
        return plan.Decision("delta", f"what differs from {base}", (base,))

    def nothing_new(self) -> str | None:
        if self.decision.mode == "nothing":
            return self.decision.reason
        assert self.cursor is not None
        self._conclude_for_the_dead(self.cursor)
        if self.live.recall(SCOPE) is None:
            self._choose()
        return None if self.scope else "all that is due was compared already"

    @property
    def scope(self) -> dict[str, tuple[int, int]]:
        """Disk -> (start, end), as the first message of the run chose."""
        found = {}
        for line in (self.live.recall(SCOPE) or "").splitlines():
            disk, start, end = line.rsplit(" ", 2)
            found[disk] = (int(start), int(end))
        return found

    def _parts(self) -> dict[str, PointDisk]:
        assert self.goal is not None
        return {part.disk.id: part for part in plan.protected(self.goal, self.place.excluded_disks)}

    def _sizes(self) -> dict[str, int]:
        """The disks that both have: one that the configuration excludes only now is on the replica until a sync."""
        return {key: part.disk.capacity for key, part in self._parts().items() if key in self._disks()}

    def _choose(self) -> None:
        """What this run compares: everything, or what of a round is due by now."""
        sizes = self._sizes()
        now = self.here.catalogue.now()
        known = self.here.catalogue.scrubs(self.live.run.target).get(self.live.run.target)
        share = self.live.recall(SHARE)
        if share is None:
            chosen = {disk: (0, size) for disk, size in sizes.items()}
            began = self.live.run.created
        else:
            running = known if known is not None and known.ended is None else None
            began = running.began if running is not None else now
            due_now = scrub.share_due(float(share), began, self.pair.source, now)
            chosen, _, _ = scrub.scope(list(sizes.items()), running, due_now)
        self.live.remember(
            **{SCOPE: "\n".join(f"{disk} {start} {end}" for disk, (start, end) in chosen.items())},
            began=began.isoformat(),
        )
        assert self.goal is not None
        for disk, (start, end) in chosen.items():
            what = "all" if (start, end) == (0, sizes[disk]) else f"bytes {start} to {end}"
            self._note(f"{self._label(disk)}: {what} compared with {self.goal.id}")
        for key, part in self._parts().items():
            if key not in sizes:
                self._note(f"{part.disk.label}: not compared, the replica has no such disk")

    def take(self) -> Mapping[str, Extents]:
        assert self.goal is not None and self.cursor is not None
        if self.live.recall("situation") not in (None, self.cursor.nonce):
            self.live.forget_slices()
            self._note("the replica was synced since this began: it is compared with what it holds now")
        self.live.remember(situation=self.cursor.nonce, point=self.goal.id)
        if self.live.planned:  # each slice asks for what is allocated in it
            return {disk: Extents.whole(end).clip(start, end) for disk, (start, end) in self.scope.items()}
        todo = {}
        for disk, (start, end) in self.scope.items():
            with closing(self._frozen(disk).reader()) as held:
                todo[disk] = self._allocated(disk, held, start, end)
        return todo

    def _allocated(self, disk: str, held: Reader, start: int, end: int) -> Extents:
        """What neither of the two has is zeroes in both."""
        allocated = held.allocated(start, end) | self.store.allocated(self._parts()[disk], start, end)
        return allocated.align(GRANULE, self._sizes()[disk]).clip(start, end)

    def _frozen(self, disk: str) -> Carrier:
        """The disk under the seal: what the last sync wrote, whatever stands on it."""
        assert self.state is not None
        found: Disk = self._disks()[disk]
        seal = self.state.snapshots[0].moref if self.state.snapshots else None
        return self._way(found, found.parent or found.file, snapshot=seal)

    def _label(self, disk: str) -> str:
        part = self._parts().get(disk)
        return part.disk.label if part is not None else disk

    def cut(self, disk: str, todo: Extents) -> Iterable[tuple[int, int]]:
        return in_slices(todo, size(self.here.settings.tuning.slice_size))  # no helpers: see tasks/dispatch.py

    def write(self, part: Slice, todo: Extents, source: Reader) -> None:
        """Compare the slice, under the lock that a writer needs; what differs is on record before it counts as done."""
        frozen = self._frozen(part.disk)
        with frozen.unwritten(part.done, part.end - part.done, wait=self._wait()):
            faults.at("verify.locked")
            self.live.check()
            self._prove_sealed()
            found = Findings()
            disk = self._disks()[part.disk]
            with closing(
                gentle_reader(frozen.reader(fresh=True), self.live, self.pair.site, disk, frozen.name)
            ) as held:
                todo &= self._allocated(part.disk, held, part.done, part.end)
                doubtful = Doubtful(source, held)
                copied = copy(
                    doubtful,
                    found,
                    todo,
                    threads=self.live.threads,
                    deadline=self.live.deadline,
                    against=held,
                    stop=lambda: self.live.lost,
                )
        done = part.end if copied.done >= todo.end else copied.done
        self._report_unread(part.disk, doubtful)
        self.here.catalogue.compared(
            self.live.run.id, self.live.owner, part.disk, part.done, done, list(self._damages(part.disk, found))
        )
        faults.at("verify.found")
        self.live.checkpoint(part.model_copy(update={"done": done, "read": part.read + copied.read}))
        self._move_on(part.disk, done)

    def _prove_sealed(self) -> None:
        """Still off, under our seal alone, with the content ids of the cursor: what is read is what was committed."""
        assert self.cursor is not None
        self._reread()
        assert self.state is not None
        plan.check_untouched(self.cursor, self.state, replica.content_evidence(self.state), {}, discard=False)

    def _damages(self, disk: str, found: Findings) -> Iterator[Damage]:
        assert self.goal is not None
        for start, end, granules in found.ranges():
            yield Damage(
                target=self.live.run.target,
                disk=disk,
                start=start,
                end=end,
                granules=granules,
                label=self._label(disk),
                point=self.goal.id,
                run=self.live.run.id,
                found=self.live.run.created,
            )

    def _report_unread(self, disk: str, doubtful: Doubtful) -> None:
        if not doubtful.unread:
            return
        before = int(self.live.recall(UNREAD) or 0)
        self.live.remember(**{UNREAD: str(before + sum(length for _, length, _ in doubtful.unread))})
        self._unread += sum(length for _, length, _ in doubtful.unread)
        for offset, length, why in doubtful.unread[:MOST_NAMED]:
            self._note(f"{self._label(disk)}: bytes {offset} to {offset + length} could not be compared: {why}")

    # --- the round, and the end -----------------------------------------------------------------------------------

    def _move_on(self, disk: str, offset: int) -> None:
        """The round has come to this place, unless something before it failed and waits to be compared again.
        What a person asked for is a round of its own, from the begin."""
        if self.live.recall(SHARE) is None:
            return
        left = [(s.disk, s.done) for s in self.here.catalogue.slices(self.live.run.id) if not s.finished]
        disk, offset = min([(disk, offset), *left])
        sizes = self._sizes()
        covered = sum(size for key, size in sizes.items() if key < disk) + offset
        self._record(covered, sum(sizes.values()))

    def _record(self, covered: int, total: int, *, whole: bool = False) -> None:
        catalogue, target = self.here.catalogue, self.live.run.target
        known = catalogue.scrubs(target).get(target)
        now = catalogue.now()
        again = known is not None and known.ended is None
        base = known if known is not None else Scrub(target=target, round=0, began=now)
        began = base.began if again and not whole else datetime.fromisoformat(self.live.recall("began") or "")
        unread, self._unread = (base.unread if again and not whole else 0) + self._unread, 0
        part, offset = scrub.place(self._sizes(), covered)
        changed: dict[str, Any] = {
            "round": base.round if again else base.round + 1,
            "began": began,
            "ended": now if whole or covered >= total else None,
            "part": part,
            "offset": offset,
            "covered": covered,
            "total": total,
            "unread": unread,
        }
        if changed["ended"] is not None and not unread:
            changed |= {"whole_began": began, "whole_ended": now}
        catalogue.scrubbed(self.live.run.id, self.live.owner, base.model_copy(update=changed))

    def stop_here(self) -> RunReport:
        """The time of a scheduled part is up: what is left of it is due again, after whatever else is."""
        self._note("its time was up; the rest of this part is compared later")
        return self._conclude()

    def commit(self) -> RunReport:
        self.live.check()
        self._prove_sealed()
        scope, sizes = self.scope, self._sizes()
        total = sum(sizes.values())
        self._drop_stale()
        if self.live.recall(SHARE) is None:
            if self.live.recall(UNREAD) is None:
                self._record(total, total, whole=True)
        elif scope:
            last = max(scope)
            self._record(sum(size for key, size in sizes.items() if key < last) + scope[last][1], total)
        return self._conclude()

    def _drop_stale(self) -> None:
        """What others found in ranges that hold nothing any more, or on disks that are gone, is no finding now."""
        sizes = self._sizes()
        for each in self.here.catalogue.damages(self.live.run.target):
            start, end = self.scope.get(each.disk, (0, 0)) if each.disk in sizes else (each.start, each.end)
            start, end = max(start, each.start), min(end, each.end)
            if each.run != self.live.run.id and start < end:
                self.here.catalogue.compared(self.live.run.id, self.live.owner, each.disk, start, end, [])

    def _conclude(self) -> RunReport:
        assert self.goal is not None
        found = self.here.catalogue.damages(self.live.run.target)
        if self.live.recall(SHARE) is not None and self.live.recall(REPAIR) is None:
            # What another run found and nobody has mended yet is not this one's news.
            found = [each for each in found if each.run == self.live.run.id]
        if found:
            sentence = differs(self.pair.replica_name, self.pair.vm, found, self._files())
            if self.live.recall(REPAIR) is None:
                raise ValidationFailed(sentence)
            self.live.note(sentence)
            self.live.remember(**{MEND: "yes"})
            self.live.forget_slices()
            return self.live.report("mends", sentence)
        if (unread := self.live.recall(UNREAD)) is not None:
            raise StoreDamaged(
                f"{unread} bytes of the replica {self.pair.replica_name} could not be compared with {self.goal.id}: "
                f"the store {self.source} is damaged there (this run's reasons name it); nothing else differs. "
                f"`understudy store verify {self.source} --deep` names all of it and says what to do"
            )
        why = f"what was compared of {self.pair.replica_name} is what {self.goal.id} says"
        self._note(why)
        return self.live.finish(RunState.SUCCEEDED, self.live.report("verified", why, self.goal.id))

    def _files(self) -> dict[str, str]:
        return {key: disk.parent or disk.file for key, disk in self._disks().items()}


def differs(name: str, vm: str, found: Sequence[Damage], files: Mapping[str, str]) -> str:
    """What differs, in a sentence for people: some of the ranges, and how much in all."""
    granules = sum(each.granules for each in found)
    some = ", ".join(
        f"{each.label}{f' ({files[each.disk]})' if each.disk in files else ''} bytes {each.start} to {each.end}"
        for each in found[:MOST_NAMED]
    )
    more = f" and {len(found) - MOST_NAMED} more ranges" if len(found) > MOST_NAMED else ""
    return (
        f"{granules} granule{'s' if granules != 1 else ''} of 4 KiB of the replica {name} "
        f"{'are' if granules != 1 else 'is'} not what {found[0].point} says, and nobody wrote to it: the storage lost "
        f"or changed {'them' if granules != 1 else 'it'}. {some}{more}. `understudy verify {vm} --repair` writes just "
        "these again from the store; have the datastore looked at"
    )
