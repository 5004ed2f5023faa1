"""Would it work? Each thing that the configuration names is looked at from this machine, and said to be well or not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

from workers import dispatch, membership
from workers.beginning import find_existing, seed_folder
from workers.carried import library, own_vm
from workers.catalogue import Catalogue
from workers.destination import destination
from workers.disks import libnbd, nbdkit
from workers.errors import NotFound, UnderstudyError
from workers.models import Model
from workers.run import Here
from workers.settings import RecoveryTarget, Settings, Site, StoreSettings, VmOverride, seconds
from workers.store import Store
from workers.vsphere import inventory
from workers.vsphere.placement import find_place
from workers.vsphere.session import connect


class Finding(Model):
    """`note`: worth knowing, but it may be meant so, or be well elsewhere."""

    what: str
    result: Literal["ok", "note", "failed"]
    sentence: str


#: of an override: what says where a replica goes, or what it begins with
_PLACES = {"datastore", "datastores", "compute", "pool", "folder", "networks", "existing", "seed"}


class _Note(UnderstudyError):
    """Raised by a look that found something worth knowing."""


def probe(what: str, look: Callable[[], str]) -> Finding:
    """What `look` says, or the error that it ends with: one failure must not hide what comes after it."""
    try:
        return Finding(what=what, result="ok", sentence=look())
    except _Note as note:
        return Finding(what=what, result="note", sentence=str(note))
    except UnderstudyError as err:
        return Finding(what=what, result="failed", sentence=str(err))
    except OSError as err:
        return Finding(what=what, result="failed", sentence=f"{err.filename or what}: {err.strerror or err}")


def catalogue(settings: Settings) -> tuple[Finding, Catalogue | None]:
    """The open catalogue, when there is one."""
    opened: list[Catalogue] = []

    def look() -> str:
        opened.append(Catalogue.open(settings.catalogue))
        return f"{opened[0]}, realm {opened[0].realm}"

    found = probe("catalogue", look)
    return found, opened[0] if found.result == "ok" else None


def stores(settings: Settings) -> Iterator[Finding]:
    for name, store in settings.stores.items():
        yield probe(f"store {name}", partial(_store, store))


def sites(settings: Settings, names: list[str], here: Here | None) -> Iterator[Finding]:
    """Log in at each, read its inventory (into the catalogue, where there is one), and look at its datastores."""
    for name in names:
        login = probe(f"site {name}", partial(_inventory, settings, name, here))
        yield login
        if settings.sites[name].vddk is not None and "nbd" in settings.sites[name].carriers:
            yield probe(f"carrier {name}/nbd", partial(_nbd, settings.sites[name]))
        if "hotadd" in settings.sites[name].carriers:
            yield probe(f"carrier {name}/hotadd", partial(_hotadd, name, settings.sites[name]))
        for datastore in settings.sites[name].datastores:
            look = partial(_datastore, settings, name, datastore, ask=login.result == "ok")
            yield probe(f"datastore {name}/{datastore}", look)


def targets(settings: Settings, names: list[str]) -> Iterator[Finding]:
    """That a VM could be built at each recovery target of these sites, and where a VM's override puts it instead."""
    for name, target in settings.targets.items():
        if target.site in names:
            yield probe(f"target {name}", partial(_target, settings, target, VmOverride(), name, "check"))
    for group in settings.groups.values():
        for vm, override in group.overrides.items():
            for name in group.targets:
                given = override.model_fields_set | override.targets.get(name, VmOverride()).model_fields_set
                if settings.targets[name].site in names and given & _PLACES:
                    look = partial(_target, settings, settings.targets[name], override, name, vm)
                    yield probe(f"overrides {vm} ({name})", look)


def groups(here: Here) -> Iterator[Finding]:
    """That each group covers something that the inventory knows."""
    covered: dict[str, set[str]] = {name: set() for name in here.settings.groups}
    for member in dispatch.members(here):
        covered[member.name].add(member.vm.identity.instance_uuid)
    for name, count in ((name, len(vms)) for name, vms in covered.items()):
        rule = membership.sentence(here.settings.groups[name].rule)
        if count:
            yield Finding(what=f"group {name}", result="ok", sentence=f"covers {count} VMs ({rule})")
        else:
            sentence = f"covers no VM at {here.settings.groups[name].source} that is known: {rule}"
            yield Finding(what=f"group {name}", result="note", sentence=sentence)


def _store(place: StoreSettings) -> str:
    store = Store.at(place)
    if place.path is not None and not os.access(place.path, os.W_OK):
        raise NotFound(f"the store {place.path} may not be written to by this user; check the rights on its folder")
    free = store.free()
    how = ", encrypted" if store.encrypted else ""
    return f"{place.where}{how}, {len(store.vms())} VMs" + (f", {_gib(free)} free" if free is not None else "")


def _inventory(settings: Settings, name: str, here: Here | None) -> str:
    site = settings.sites[name]
    if here is not None:
        return f"{site.vcenter}, {dispatch.discover(here, name)} VMs"
    return f"{site.vcenter}, {len(inventory.list_vms(connect(name, site)))} VMs (not recorded: there is no catalogue)"


def _nbd(site: Site) -> str:
    libnbd.library()
    found = library(site)
    said = f"VMware's library {nbdkit.loads(found)} in {found.libdir}"
    if not found.to_write:
        raise _Note(f"{said}; transports names san alone, so that it reads only: to write replicas add nbdssl")
    return said if found.to_write == found.transports else f"{said}; replicas are written by {found.to_write}"


def _hotadd(name: str, site: Site) -> str:
    return f"this worker is the VM {own_vm(connect(name, site))}"


def _datastore(settings: Settings, name: str, datastore: str, *, ask: bool) -> str:
    site = settings.sites[name]
    path = site.datastores[datastore]
    free = inventory.datastore_free(connect(name, site), datastore) if ask else None
    elsewhere = f"if site {name}'s workers are other machines, run `understudy check --site {name}` there"
    if not path.is_dir():
        raise NotFound(
            f"{path} (sites.{name}.datastores.{datastore}) is not a folder on this machine: mount it; {elsewhere}"
        )
    written = any(
        target.site == name and datastore in (target.datastore, *target.datastores.values())
        for target in settings.targets.values()
    )
    if not os.access(path, os.R_OK | os.X_OK | (os.W_OK if written else 0)):
        what = "read and written" if written else "read"
        raise NotFound(f"{path} may not be {what} by this user; check the rights and the export's options")
    if not any(path.iterdir()):
        raise _Note(f"{path} is empty: is the datastore {datastore} really mounted there?")
    return str(path) if free is None else f"{path}, {_gib(free)} free"


def _target(settings: Settings, target: RecoveryTarget, override: VmOverride, name: str, vm: str) -> str:
    site, place = settings.sites[target.site], destination(target, override, name, vm)
    used = sorted({place.datastore, *place.datastores.values()})
    for datastore in used:
        if not site.reaches(datastore):
            raise NotFound(
                f"the datastore {datastore} of this recovery target is not among sites.{target.site}.datastores "
                f"({', '.join(sorted(site.datastores)) or 'none'}); say where its workers have it mounted"
            )
    find_place(
        connect(target.site, site),
        name=place.name,
        datastore=place.datastore,
        datastores=used,
        compute=place.compute,
        pool=place.pool,
        folder=place.folder,
        networks=sorted({network for network in place.networks.values() if network}),
    )
    begins = ""
    if place.existing is not None:
        found = find_existing(connect(target.site, site), place.existing, vm)
        begins = f", begins with the VM {found.identity.name}"
    if place.seed is not None:
        begins = f", begins with the disks in {seed_folder(site.datastores, place.seed, vm)}"
    return f"{target.site}: {place.compute or 'the only cluster'}, datastore {', '.join(used)}{begins}"


def intervals(settings: Settings) -> Finding:
    """Settings that fit together badly."""
    tuning = settings.tuning
    if seconds(tuning.vcenter_wait) >= seconds(tuning.slice_time):
        sentence = f"vcenter_wait ({tuning.vcenter_wait}) should be below slice_time ({tuning.slice_time})"
        return Finding(what="configuration", result="note", sentence=sentence)
    names = f"{len(settings.sites)} sites, {len(settings.stores)} stores, {len(settings.groups)} groups"
    return Finding(what="configuration", result="ok", sentence=names)


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
