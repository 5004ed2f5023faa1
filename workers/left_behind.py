"""What a failed run left behind, removed by a worker of its site: snapshots, packs, pins, processes."""

from __future__ import annotations

from workers.carried import detach_left_behind
from workers.claims import over
from workers.disks import nbdkit
from workers.errors import Refused
from workers.models import Run, RunKind
from workers.restore_held import holder
from workers.restore_order import Order
from workers.run import Here
from workers.snapshot_point import snapshot_name
from workers.store import Store
from workers.vsphere import changes, inventory, snapshots
from workers.vsphere.session import connect


def clean_up(here: Here, run_id: str) -> None:
    """Repeatable; then the catalogue knows that nothing is left. Raises `Refused` of a run that has not ended."""
    nbdkit.end_left_behind(lambda run: over(here, run))
    ended = here.catalogue.run(run_id)
    if ended.live:
        raise Refused(f"the {ended.kind} {run_id} of {ended.vm} is {ended.state}: what it has made is in use")
    if ended.kind not in (RunKind.BACKUP, RunKind.RESTORE, RunKind.COPY):
        return  # the others leave nothing that is not the target's own
    if ended.kind is RunKind.RESTORE:
        _unpin(here, ended)
    elif ended.kind is RunKind.COPY:
        _end_copy(here, ended)
    else:
        _remove_snapshot(here, ended)
    here.catalogue.cleaned(run_id)


def _remove_snapshot(here: Here, ended: Run) -> None:
    _, store_name, uuid = ended.target.split(":", 2)
    session = connect(ended.site, here.settings.site(ended.site))
    detach_left_behind(session)
    found = inventory.find_uuid(session, uuid)
    if found is not None:
        left = snapshots.find(session, found.identity.moref, snapshot_name(here.catalogue.realm, ended.id))
        if left is not None:
            snapshots.remove(session, found.identity.moref, left)
        changes.tidy(session, found.identity.moref)
    if store_name in here.settings.stores:
        Store.at(here.settings.store(store_name)).abandon(ended.id)


def _end_copy(here: Here, ended: Run) -> None:
    """Its pin in the source store, and what it wrote to the other one: until prune, that serves the next copy."""
    _, to, uuid = ended.target.split(":", 2)
    source, point = ended.memory.get("from", ""), ended.memory.get("point")
    if source in here.settings.stores and point is not None:
        store = Store.at(here.settings.store(source))
        store.unpin(uuid, point, holder(here.catalogue.realm, ended.id))
    if to in here.settings.stores:
        Store.at(here.settings.store(to)).abandon(ended.id)


def _unpin(here: Here, ended: Run) -> None:
    """The pin of a restore. The half restored VM stays, marked, for the next try."""
    order = Order.model_validate_json(ended.memory["order"])
    if order.store in here.settings.stores:
        store = Store.at(here.settings.store(order.store))
        store.unpin(order.source, order.point, holder(here.catalogue.realm, ended.id))
