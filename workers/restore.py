"""Restore a VM: from a restore point (the point) to a new VM, or over the original (the target)."""

from __future__ import annotations

from workers import backup, faults, helper, places, plan
from workers.errors import BadInput, NeedsPerson, NotFound, Refused, UnderstudyError
from workers.models import Model, PointDisk, RestorePoint, Run, RunKind, RunReport, Trigger, VmState
from workers.restore_held import holder
from workers.restore_order import Order, Wish, order_of
from workers.restore_target import RestoreTarget
from workers.run import Here, Live, NotYet, execute
from workers.store import Store
from workers.sync import bring_over, sync
from workers.vsphere import inventory, restoring
from workers.vsphere.session import connect

#: times that what the original holds is backed up anew because somebody used the VM meanwhile
AGAIN = 3


class DiskToRestore(Model):
    label: str
    capacity: int
    #: what the point holds of it; over the original all of the disk is compared, and what differs is written
    bytes: int


class RestorePlan(Model):
    """What a restore would do. `objections`: why it would be refused now."""

    vm: str
    point: str
    where: str
    what: str
    disks: tuple[DiskToRestore, ...]
    left_out: tuple[str, ...]
    objections: tuple[str, ...]


def request(here: Here, wish: Wish) -> tuple[Run, bool]:
    """The run that does it, or the live one that does just that. Nothing is touched yet."""
    order = order_of(here, wish)
    text = order.model_dump_json()
    run, made = here.catalogue.request_run(
        RunKind.RESTORE,
        order.fenced,
        vm=order.vm,
        site=order.site,
        trigger=Trigger.AD_HOC,
        memory={"order": text},
    )
    if run.memory.get("order") != text:
        raise Refused(
            f"another restore to {order.name} is under way (run {run.id}); nothing was requested. "
            f"Wait until it has ended: `understudy show {run.id}`"
        )
    return run, made


def run(here: Here, run_id: str) -> RunReport:
    """Do, or go on with, a restore run."""
    return execute(here, run_id, RunKind.RESTORE, _restore)


def _restore(live: Live) -> RunReport:
    order = Order.model_validate_json(live.recall("order") or "")
    _hold_point(live, order)
    target = RestoreTarget(live, order)
    if target.written:
        return target.conclude()
    if order.over and target.marker is None:
        target.check_original()
        _keep_undo(live, order, target)
        target = RestoreTarget(live, order)  # the backup may have taken its time
    places.demand(live, order.site, target.state, (order.datastore,) if target.state is None else ())
    return sync(target, target, live)


def _hold_point(live: Live, order: Order) -> None:
    """Before all else: the backup of what the original holds now is one point more, for which another one may go."""
    live.remember(pinned="yes")
    store = Store.at(live.here.settings.store(order.store))
    store.pin(order.source, order.point, holder(live.here.catalogue.realm, live.run.id))
    faults.at("restore.pinned")


def help_out(here: Here, run_id: str) -> RunReport:
    """Work on free slices of a restore that another worker began."""
    return helper.help_out(here, run_id, RunKind.RESTORE, _help, run)


def _help(live: helper.Helper) -> None:
    target = RestoreTarget(live, Order.model_validate_json(live.recall("order") or ""))
    todo = None if target.written else target.join()
    if todo is None:
        raise helper.NotAsLeft
    places.demand(live, target.order.site, target.state)
    bring_over(target, target, live, todo)


def _keep_undo(live: Live, order: Order, target: RestoreTarget) -> None:
    """What is there now must be in the store before it is written over: as the newest restore point."""
    if not order.undo:
        return live.note(f"what {order.name} held is not kept: asked so")
    for _ in range(AGAIN):
        newest = target.store.newest(order.source)
        state = inventory.vm_state(target.session, target.moref)
        if newest is not None and _holds(newest, state):
            return live.note(
                f"what {order.name} held is kept as the restore point {newest.id}: to have it back, "
                f"`understudy restore {order.vm} --point {newest.id} --over-original`"
            )
        if state.power != "poweredOff":
            return  # refused, in words, by whoever looks next
        _back_up(live, order)
    raise Refused(
        f"what {order.name} holds was backed up {AGAIN} times, and was changed each time before it could be written "
        "over; nothing was written. Find out who starts the VM, or restore with --no-undo"
    )


def _holds(point: RestorePoint, state: VmState) -> bool:
    """Is the point just what the VM's disks hold? Equal content ids on disks that nobody has open mean equal data."""
    kept = {d.disk.id: (d.disk.content_id, d.disk.capacity) for d in point.disks}
    now = {d.id: (d.content_id, d.capacity) for d in state.config.disks if d.unprotected is None}
    return kept == now and all(content for content, _ in now.values()) and state.power == "poweredOff"


def _back_up(live: Live, order: Order) -> None:
    """In this task: a backup's own run, so that everything about it is as in any other."""
    made, _ = live.here.catalogue.request_run(
        RunKind.BACKUP,
        backup.target_of(order.store, order.source),
        vm=order.name,
        site=order.site,
        trigger=Trigger.AD_HOC,
    )
    live.note(f"what {order.name} holds is backed up first, by run {made.id}")
    try:
        report = backup.run(live.here, made.id)
    except (NeedsPerson, BadInput) as err:
        raise Refused(
            f"what {order.name} holds can not be backed up before it is written over, so nothing was written: {err}. "
            "Mend that, or restore with --no-undo"
        ) from err
    if live.here.catalogue.run(made.id).live:
        raise NotYet(f"waits for the backup of what {order.name} holds (run {made.id}): {report.reason}")


def preview(here: Here, wish: Wish) -> RestorePlan:
    """What the restore would do now. Reads only."""
    order = order_of(here, wish)
    store = Store.at(here.settings.store(order.store))
    point = store.point(order.source, order.point)
    parts = plan.protected(point, order.excluded)
    disks = [DiskToRestore(label=p.disk.label, capacity=p.disk.capacity, bytes=_bytes(store, p)) for p in parts]
    kind = "template" if order.template else "VM"
    return RestorePlan(
        vm=order.vm,
        point=order.point,
        where=f"{order.site}/{order.name}",
        what=f"over the original {kind}" if order.over else f"a new {kind} on {order.datastore}",
        disks=tuple(disks),
        left_out=tuple(d.disk.label for d in point.disks if d not in parts),
        objections=tuple(_objections(here, order, sum(d.bytes for d in disks))),
    )


def _bytes(store: Store, part: PointDisk) -> int:
    return store.allocated(part).total


def _objections(here: Here, order: Order, needed: int) -> list[str]:
    session = connect(order.site, here.settings.site(order.site))
    if order.over:
        found = inventory.find_uuid(session, order.source)
        if found is None:
            return [f"the original VM is not at {order.site} any more"]
        state = inventory.vm_state(session, found.identity.moref)
        said = [f"{order.name} is {state.power}: power it off"] if state.power != "poweredOff" else []
        return said + [f"the snapshot {node.name!r} stands on it" for node in state.snapshots[:1]]
    said = []
    try:
        named = inventory.vm_state(session, inventory.find_vm(session, order.name).identity.moref)
        if restoring.MARKER not in named.notes:
            said.append(f"a VM named {order.name} is already at {order.site}")
    except NotFound:
        pass
    except UnderstudyError as err:
        said.append(str(err))
    free = inventory.datastore_free(session, order.datastore)
    if needed > free:
        said.append(f"{needed} bytes are needed, {order.datastore} has {free} free")
    return said
