"""Adopt a replica that another realm wrote, or a catalogue that is lost: its cursor becomes ours, nothing is believed.

The cursor is replaced by compare-and-set under a higher fence, so that whoever wrote it before stops at its next step.
The next sync compares every block. Each step may be entered again after a crash.
"""

from __future__ import annotations

from workers import faults, plan
from workers.errors import Foreign, Refused
from workers.models import RunKind, RunReport, RunState, SnapshotNode
from workers.replica_held import HeldReplica
from workers.run import Here, Live, execute
from workers.vsphere import replica, snapshots
from workers.vsphere.building import MARK


def run(here: Here, run_id: str) -> RunReport:
    """Do, or go on with, an adoption; without a person's yes it only says whose the replica is."""
    return execute(here, run_id, RunKind.ADOPT, _adopt)


def _adopt(live: Live) -> RunReport:
    pair = live.here.catalogue.pair(live.run.target.removeprefix("pair:"))
    found = Adoption(live, pair)
    said = found.whose()
    live.note(said)
    if found.is_ours():
        return live.finish(RunState.NOTHING_NEW, live.report("nothing new", said))
    found.refuse()
    if live.recall("confirmed") is None:
        return live.finish(RunState.NOTHING_NEW, live.report("looked", said))
    found.take()
    why = f"{pair.replica_name} is this realm's now; the next sync compares every block"
    live.note(why)
    return live.finish(RunState.SUCCEEDED, live.report("succeeded", why))


class Adoption(HeldReplica):
    """The replica of somebody else, in the hands of a claimed run."""

    def _judge(self, discard: bool, full: str | None, back_to: str | None) -> plan.Decision:
        return plan.Decision("nothing", "whose it is, is what this is about")

    def whose(self) -> str:
        """In words, for the person who has to say yes."""
        name = self.pair.replica_name
        if self.state is None:
            raise Refused(f"there is no replica {name} at {self.pair.site}: the next sync builds one")
        if self.cursor is None:
            raise Foreign(f"{name} has no cursor, so that nobody can say whose replica it is; it can not be adopted")
        held = f"{self.cursor.base or 'nothing'}, committed"
        if self.cursor.state == "applying":
            held = f"a mixture of {', '.join([self.cursor.base or 'nothing', *self.cursor.targets])}"
        of = "this realm" if self.cursor.realm == self.here.catalogue.realm else f"the realm {self.cursor.realm}"
        data = f", data of {self.cursor.data_time:%Y-%m-%d %H:%M} UTC" if self.cursor.data_time else ""
        return (
            f"{name} at {self.pair.site} belongs to {of}, pair {self.cursor.pair} (this one is {self.pair.id}); "
            f"it holds {held}{data}, fence {self.cursor.fence}"
        )

    def is_ours(self) -> bool:
        """Ours altogether: also an adoption that stopped half way is not done yet."""
        assert self.cursor is not None
        mine = (self.cursor.realm, self.cursor.pair) == (self.here.catalogue.realm, self.pair.id)
        return mine and not self._strange_seals() and self.live.recall("from") is None

    def refuse(self) -> None:
        """Raise where even a person's yes is not enough."""
        assert self.state is not None and self.cursor is not None
        name = self.state.identity.name
        if self.cursor.vm != self.state.identity.instance_uuid:
            raise Foreign(
                f"{name} carries the cursor of another VM ({self.cursor.vm}): it is a clone or was restored. Nothing "
                "was written; rename or remove it, or choose another replica name"
            )
        if self.cursor.source != self.pair.source:
            raise Foreign(
                f"{name} is the replica of another VM (instance UUID {self.cursor.source}), not of {self.pair.vm}; "
                "nothing was written"
            )
        others = {pair.id: pair for pair in self.here.catalogue.pairs() if pair.id != self.pair.id}
        if self.cursor.realm == self.here.catalogue.realm and self.cursor.pair in others:
            other = others[self.cursor.pair]
            raise Refused(
                f"{name} is the replica of {other.vm} for the recovery target {other.recovery_target}; "
                "`understudy forget` that pair first"
            )
        if self.state.power != "poweredOff":
            raise Refused(f"{name} is {self.state.power}: power it off if production does not run on it; nothing done")
        foreign = [node.name for node in self.state.snapshots if not node.name.startswith("understudy/")]
        if foreign:
            raise Refused(f"somebody's snapshot {foreign[0]!r} stands on {name}; remove it (its data stays) first")

    def take(self) -> None:
        assert self.state is not None and self.cursor is not None
        if self.live.recall("from") is None:
            self.live.remember(**{"from": f"{self.cursor.realm}:{self.cursor.pair}"})
        with self._locked():
            self.live.check()
            self._reread()
            self.refuse()
            self._claim()
            for node in self._strange_seals():
                snapshots.remove(self.session, self.state.identity.moref, node.moref, wait=self._patience())
                faults.at("adopt.unsealed")
            self._reread()
            self._bind()
        replica.set_witness(self.session, self.state.identity.moref, self._witness(self.cursor))
        self._unpin_for(self.live.recall("from") or "")
        self.here.catalogue.disown(self.pair.id)
        if self.pair.replica not in (None, self.state.identity.instance_uuid):
            self.here.catalogue.set_replica(self.pair.id, None)
        self.here.catalogue.set_replica(self.pair.id, self.state.identity.instance_uuid)

    def _claim(self) -> None:
        """From here on it is ours, and nothing is concluded from what it held."""
        assert self.cursor is not None and self.state is not None
        if self.cursor.run == self.live.run.id:
            return
        if self.cursor.fence >= self.live.run.fence:
            self.live.refence(self.cursor.fence)
        why = f"adopted ({self.live.recall('confirmed')}); it belonged to {self.live.recall('from')}"
        binding = replica.disk_binding(self.state)
        self._write(self._cursor(state="applying", base=None, targets=(), content="", disks=binding, compare=why[:300]))
        faults.at("adopt.claimed")

    def _bind(self) -> None:
        """The evidence of now, so that a touch between now and the next sync shows."""
        assert self.cursor is not None and self.state is not None
        mark = f"{self.here.catalogue.realm}/{self.pair.id}"
        if self.state.notes.get(MARK) != mark:
            moref, version = self.state.identity.moref, self.state.change_version
            replica.write_cursor(self.session, moref, MARK, mark, version, wait=self._patience())
            self._reread()
        evidence = replica.content_evidence(self.state)
        if self.cursor.content != evidence:
            binding = replica.disk_binding(self.state)
            self._write(
                self._cursor(
                    state="applying",
                    base=None,
                    targets=(),
                    content=evidence,
                    disks=binding,
                    compare=self.cursor.compare,
                )
            )

    def _strange_seals(self) -> list[SnapshotNode]:
        """Of whoever had it before: no cursor of ours speaks of them."""
        assert self.state is not None
        prefix = f"understudy/{self.here.catalogue.realm[:8]}/{self.pair.id[:8]}/"
        seals = [node for node in self.state.snapshots if node.name.startswith("understudy/")]
        return [node for node in seals if not node.name.startswith(prefix)]

    def _unpin_for(self, holder: str) -> None:
        for point, holders in self.store.pins(self.pair.source).items():
            if holder in holders:
                self.store.unpin(self.pair.source, point, holder)
