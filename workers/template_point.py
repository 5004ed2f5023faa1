"""A template as the point of a backup: no snapshot of it is possible, so its frozen disks are read, guarded."""

from __future__ import annotations

from workers import faults, places, plan
from workers.errors import Refused
from workers.models import Disk, RestorePoint, VmState
from workers.run import Live
from workers.snapshot_point import SnapshotPoint, remove_snapshots, state_of, time_of
from workers.vsphere.session import Session


def take(live: Live, session: Session, uuid: str, *, quiesce: bool) -> SnapshotPoint:
    """What a backup reads: a snapshot of a VM, or a template as it lies there."""
    state = state_of(session, uuid, live.run.vm)
    places.demand(live, live.run.site, state)
    if state.config.template:
        return TemplatePoint.frozen(live, session, state)
    if live.recall("frozen") is not None:
        live.note("started again: it was a template, and was made a VM meanwhile")
        live.forget_slices()
        live.remember(frozen=None)
    return SnapshotPoint.take(live, session, uuid, quiesce=quiesce)


class TemplatePoint(SnapshotPoint):
    """Nobody can start a template; whoever makes a VM of it changes its changeVersion, which never comes back."""

    untracked = "it is a template, which has no change tracking"

    @classmethod
    def frozen(cls, live: Live, session: Session, state: VmState) -> TemplatePoint:
        if live.recall("snapshot") is not None:
            live.note("started again: it was a VM, and was made a template meanwhile")
            live.forget_slices()
            remove_snapshots(live, session, state.identity.instance_uuid)
            live.remember(snapshot=None)
            state = state_of(session, state.identity.instance_uuid, live.run.vm)
        if state.snapshots:
            raise Refused(
                f"the template {state.identity.name} has the snapshot {state.snapshots[0].name!r}, so that its disks "
                "can not be read; make a VM of it, remove the snapshot, and make it a template again"
            )
        before, now = live.recall("frozen"), _evidence(state)
        if before != now:
            if before is not None:
                live.note("started again: the template was changed while it was read")
            live.forget_slices()
            live.remember(
                frozen=now,
                taken=live.here.catalogue.now().isoformat(),
                host_build=state.host_build,
                tree=plan.tree_fingerprint(state.snapshots),
            )
        faults.at("template.frozen")
        taken = time_of(live.recall("taken"))
        return cls(live, session, state, f"template {state.change_version}", "powered-off", taken)

    def lost(self) -> str | None:
        state = state_of(self.session, self.state.identity.instance_uuid, self.live.run.vm)
        if state.config.template and _evidence(state) == self.live.recall("frozen"):
            return None
        return "the template was changed while it was read"

    def unchanged_since(self, parent: RestorePoint) -> str | None:
        """The disks hold what they held, and nobody has even touched the configuration."""
        held = {d.disk.id: _content(d.disk) for d in parent.disks}
        now = {key: _content(disk) for key, disk in self.disks.items()}
        if parent.snapshot != self.moref or held != now or not all(d.content_id for d in self.disks.values()):
            return None
        return f"the template has not changed since the restore point {parent.id}"


def _content(disk: Disk) -> tuple[str, str, int]:
    return disk.content_id, disk.file, disk.capacity


def _evidence(state: VmState) -> str:
    """changeVersion alone would do; the content ids are for whoever writes to a datastore past vCenter."""
    disks = sorted(f"{disk.id}={disk.content_id}" for disk in state.config.disks)
    return " ".join([state.change_version, *disks])
