"""What a restore is asked to do: a person's wish, checked and completed, before anything is touched."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from pydantic import Field

from workers import named
from workers.catalogue import KnownVm, PointSummary
from workers.errors import BadInput, ConfigError, NotFound, Refused, UnderstudyError
from workers.models import Model, Provisioning, RestorePoint
from workers.restore_points import choose, uuids_of
from workers.run import Here
from workers.store import Store


class Wish(Model):
    """As a person says it; what is empty is found."""

    vm: str
    point: str = "newest"
    store: str = ""
    to: str = ""
    over_original: bool = False
    site: str = ""
    target: str = ""
    datastore: str = ""
    compute: str = ""
    pool: str = ""
    folder: str = ""
    networks: dict[str, str] = Field(default_factory=dict)
    #: labels or ids; none = all
    disks: tuple[str, ...] = ()
    power_on: bool = False
    as_vm: bool = False
    same_identity: bool = False
    #: keep what the original holds now as a restore point, before it is written over
    undo: bool = True


class Order(Model):
    """Complete: what a worker does without asking anybody."""

    #: the source's name and instance UUID, as its restore point has them
    vm: str
    source: str
    store: str
    point: str
    data_time: datetime
    #: where the VM is, or will be
    site: str
    over: bool
    #: the new VM's name; over the original its present one
    name: str
    datastore: str = ""
    compute: str = ""
    pool: str = ""
    folder: str = ""
    networks: dict[str, str] = Field(default_factory=dict)
    provisioning: Provisioning = "thin"
    excluded: tuple[str, ...] = ()
    template: bool = False
    power_on: bool = False
    same_identity: bool = False
    undo: bool = True

    @property
    def fenced(self) -> str:
        """What its run fences: the VM that it writes over, or the name that it gives away."""
        return f"vm:{self.source}" if self.over else f"new:{self.site}/{self.name}"


def order_of(here: Here, wish: Wish) -> Order:
    """Raises a sentence for everything that can not be; nothing has been touched then."""
    if bool(wish.to) == wish.over_original:
        raise BadInput("say where to: either a name for a new VM (--to NAME), or --over-original")
    found = _point(here, wish)
    point = Store.at(here.settings.store(found.store)).point(found.vm, found.id)
    template = point.config.template and not wish.as_vm
    if template and wish.power_on:
        raise BadInput(f"{point.vm.name} was a template, and templates can not be powered on; add --as-vm")
    common = Order(
        vm=point.vm.name,
        source=found.vm,
        store=found.store,
        point=found.id,
        data_time=point.data_time,
        site="",
        over=wish.over_original,
        name=wish.to,
        excluded=_excluded(point, wish.disks),
        template=template,
        power_on=wish.power_on,
        same_identity=wish.same_identity,
        undo=wish.undo,
    )
    return _over(here, common, wish) if wish.over_original else _beside(here, common, wish, point)


def _point(here: Here, wish: Wish) -> PointSummary:
    """The point that is meant, of the one VM and the one store that are meant."""
    if wish.store:
        named.store(here, wish.store)
    points = [
        point
        for uuid in uuids_of(here, wish.vm)
        for point in here.catalogue.points(uuid)
        if wish.store in ("", point.store) and point.store in here.settings.stores
    ]
    if len(vms := {point.vm: point.name for point in points}) > 1:
        raise BadInput(
            f"{len(vms)} VMs were called {wish.vm}; say which by its instance UUID: {', '.join(sorted(vms))} "
            f"(`understudy points UUID` shows the points of each)"
        )
    stores = sorted({point.store for point in points})
    chosen = [
        choose([point for point in points if point.store == store], wish.point, whose=wish.vm)
        for store in stores
        if len(stores) == 1 or _has(points, store, wish)
    ]
    if not chosen:
        choose(points, wish.point, whose=wish.vm)  # says what there is
        raise NotFound(f"no store alone has the restore point {wish.point!r} of {wish.vm}; say which with --store")
    best = max(chosen, key=lambda point: (point.data_time, point.seq))
    return _nearest(here, wish, [point for point in chosen if point.id == best.id])


def _nearest(here: Here, wish: Wish, same: list[PointSummary]) -> PointSummary:
    """Of one point in several stores the one that can be read, if possible where the VM goes."""
    if len(same) == 1:
        return same[0]
    site = wish.site or (here.settings.targets[wish.target].site if wish.target in here.settings.targets else "")
    same = sorted(same, key=lambda point: here.settings.store(point.store).site not in ("", site))
    for point in same:
        with suppress(UnderstudyError, OSError):
            Store.at(here.settings.store(point.store)).point(point.vm, point.id)
            return point
    return same[0]


def _has(points: list[PointSummary], store: str, wish: Wish) -> bool:
    try:
        choose([point for point in points if point.store == store], wish.point, whose=wish.vm)
    except NotFound:
        return False
    return True


def _excluded(point: RestorePoint, wanted: tuple[str, ...]) -> tuple[str, ...]:
    labels = [part.disk.label for part in point.disks]
    unknown = [name for name in wanted if all(name not in (d.disk.label, d.disk.id) for d in point.disks)]
    if unknown:
        raise NotFound(
            f"the restore point {point.id} has no disk {unknown[0]!r}; it has {', '.join(labels)} "
            "(give a label or an id, in quotation marks)"
        )
    kept = {d.disk.id for d in point.disks if not wanted or d.disk.label in wanted or d.disk.id in wanted}
    return tuple(d.disk.id for d in point.disks if d.disk.id not in kept)


def _over(here: Here, order: Order, wish: Wish) -> Order:
    placed = [wish.target, wish.datastore, wish.compute, wish.pool, wish.folder, wish.networks, wish.same_identity]
    if any(placed):
        raise BadInput("--over-original writes to the VM where it is: it takes no place, network or identity")
    here_now = _known(here, order.source, wish.site)
    if here_now is None:
        raise NotFound(
            f"the original VM {order.vm} ({order.source}) is in no vCenter any more; restore it to a new VM: "
            f"--to {order.vm} --same-identity"
        )
    if here_now.identity.instance_uuid in {pair.replica for pair in here.catalogue.pairs()}:
        raise Refused(f"{here_now.identity.name} is a replica; `understudy rollback` brings it to an older point")
    return order.model_copy(update={"site": here_now.identity.site, "name": here_now.identity.name})


def _known(here: Here, uuid: str, site: str = "") -> KnownVm | None:
    vms = here.catalogue.inventory(site or None)
    return next((vm for vm in vms if vm.identity.instance_uuid == uuid and vm.gone_since is None), None)


def _beside(here: Here, order: Order, wish: Wish, point: RestorePoint) -> Order:
    """A new VM: at the recovery target, at the named place, or where the source was."""
    if wish.target and wish.target not in here.settings.targets:
        known = ", ".join(sorted(here.settings.targets)) or "none"
        raise NotFound(f"there is no recovery target {wish.target!r}; configured: {known}")
    target = here.settings.targets[wish.target] if wish.target else None
    site = wish.site or (target.site if target else point.vm.site)
    if target is not None and site != target.site:
        raise BadInput(f"the recovery target {wish.target} is at the site {target.site}, not at {site}")
    named.site(here, site)
    datastore = wish.datastore or (target.datastore if target else "")
    if not datastore:
        if site != point.vm.site:
            raise BadInput(f"say where at {site} the VM goes: --target NAME, or --datastore NAME")
        datastore = point.config.disks[0].file.partition("]")[0].removeprefix("[") if point.config.disks else ""
    mounted = here.settings.site(site).datastores
    if not here.settings.site(site).reaches(datastore):
        raise ConfigError(
            f"the workers of {site} have no datastore {datastore!r}: name another one with --datastore, or add it to "
            f"sites.{site}.datastores (configured: {', '.join(sorted(mounted)) or 'none'})"
        )
    if wish.same_identity and (there := _known(here, order.source)) is not None:
        raise Refused(
            f"the original VM {there.identity.name} is still at {there.identity.site}: two VMs of one identity would "
            "be taken for one another. Restore without --same-identity, or --over-original"
        )
    return order.model_copy(
        update={
            "site": site,
            "datastore": datastore,
            "compute": wish.compute or (target.compute if target else ""),
            "pool": wish.pool or (target.pool if target else ""),
            "folder": wish.folder or (target.folder if target else ""),
            "networks": {**(target.networks if target else {}), **wish.networks},
            "provisioning": target.provisioning if target else "thin",
        }
    )
