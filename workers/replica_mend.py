"""A replica that differs from its sync point, mended: just the ranges on record are written again from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

from workers import faults
from workers.differences import Findings
from workers.errors import ValidationFailed
from workers.extents import Extents
from workers.models import HardwareChange, RunReport, Slice
from workers.point import Reader
from workers.replica_target import ReplicaTarget
from workers.replica_verify import VerifiedReplica
from workers.transfer import copy


class MendedReplica(VerifiedReplica):
    """The same replica, to be written where it was found to differ: by the steps of a sync, to the point it holds.

    The cursor says `applying A -> {A}` meanwhile: whoever comes after a crash, in whatever state the ranges are, has
    A, rot, or nothing else in them. So a sync to C needs diff(A, C) as ever; the rot stays on record until
    it is mended.
    """

    def nothing_new(self) -> str | None:
        return None

    def _hardware(self) -> tuple[HardwareChange, ...]:
        return ()  # another run's matter: here the point stays the same

    def _extents(self, changes: Sequence[HardwareChange]) -> dict[str, Extents]:
        found: dict[str, list[tuple[int, int]]] = {}
        for each in self.here.catalogue.damages(self.live.run.target):
            found.setdefault(each.disk, []).append((each.start, each.end - each.start))
        return {disk: Extents.of(found[disk]).clip(0, size) for disk, size in self._sizes().items() if disk in found}

    def _ask(self, changes: Sequence[HardwareChange], extents: Mapping[str, Extents]) -> None:
        """Nobody has to approve it: it is what was asked for, and little."""

    def _explain(self, changes: Sequence[HardwareChange], extents: Mapping[str, Extents]) -> None:
        for disk, todo in extents.items():
            self._note(f"{self._label(disk)}: {todo.total} bytes in {len(todo)} ranges written again from the store")

    def take(self) -> Mapping[str, Extents]:
        return ReplicaTarget.take(self)

    def write(self, part: Slice, todo: Extents, source: Reader) -> None:
        ReplicaTarget.write(self, part, todo, source)
        now = self.here.catalogue.slices(self.live.run.id)
        mended = todo.clip(0, next(s.done for s in now if (s.disk, s.start) == (part.disk, part.start)))
        found = Findings()
        with closing(self._way(self._disks()[part.disk]).reader(fresh=True)) as held:
            copy(source, found, mended, threads=self.live.threads, against=held)
        if lost := list(found.ranges()):
            raise ValidationFailed(
                f"the datastore does not keep what it is given: byte {lost[0][0]} of {self._label(part.disk)} of "
                f"{self.pair.replica_name} ({self._files()[part.disk]}) was mended and reads otherwise again. Move the "
                "replica to other storage, or remove it so that the next sync builds it there"
            )

    def commit(self) -> RunReport:
        return ReplicaTarget.commit(self)

    def conclude(self) -> RunReport:
        self.here.catalogue.mended(self.live.run.id, self.live.owner)
        faults.at("verify.mended")
        report = ReplicaTarget.conclude(self)
        return report.model_copy(update={"outcome": "repaired", "reason": f"{report.written} bytes were mended"})
