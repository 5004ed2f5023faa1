"""Where a new VM goes: compute, pool, folder, datastore and networks by name, with a sentence when one is missing."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from pyVmomi import vim

from workers.errors import BadInput, NotFound, Transient
from workers.vsphere.refusals import refused_to
from workers.vsphere.session import Found, Session

_PATHS: dict[Any, tuple[str, ...]] = {
    vim.ComputeResource: ("name", "parent", "host", "datastore", "resourcePool", "environmentBrowser"),
    vim.HostSystem: (
        "name",
        "parent",
        "runtime.connectionState",
        "runtime.inMaintenanceMode",
        "datastore",
        "network",
    ),
    vim.ResourcePool: ("name", "parent"),
    vim.Datastore: ("name", "summary.accessible"),
    vim.Network: ("name",),
    vim.dvs.DistributedVirtualPortgroup: ("name", "key", "config.distributedVirtualSwitch"),
    vim.OpaqueNetwork: ("name", "summary"),
    vim.Datacenter: ("name", "parent", "vmFolder"),
    vim.Folder: ("name", "parent"),
}


class Place(NamedTuple):
    folder: Any
    pool: Any
    host: Any
    datastore: str
    #: network name -> the backing of a card in it, of those that were asked for and of the wished ones that are there
    networks: dict[str, Any]
    #: for a card that is connected to nothing, which vCenter builds in some network all the same; None = there is none
    spare: tuple[str, Any] | None
    #: the newest hardware version that can be built there, e.g. 'vmx-19'; "" when vCenter does not say
    newest_hardware: str


class _Map:
    """One reading of the inventory, by kind and by reference."""

    def __init__(self, found: Iterable[Found]) -> None:
        self.by_ref = {str(f.ref): f for f in found}

    def of(self, kind: Any) -> list[Found]:
        return [f for f in self.by_ref.values() if isinstance(f.ref, kind)]

    def get(self, refs: Iterable[Any]) -> list[Found]:
        return [self.by_ref[str(r)] for r in refs if str(r) in self.by_ref]

    def name(self, found: Found) -> str:
        return unquote(found.values["name"])

    def parent(self, found: Found) -> Found | None:
        return self.by_ref.get(str(found.values.get("parent")))


def find_place(
    s: Session,
    *,
    name: str,
    datastore: str,
    compute: str = "",
    pool: str = "",
    folder: str = "",
    networks: Sequence[str] = (),
    wished: Sequence[str] = (),
    datastores: Sequence[str] = (),
) -> Place:
    """`name` of the new VM only spreads VMs over hosts. `NotFound` says what there is instead.

    `networks` must be there, `wished` ones may be missing. `datastore` is for the VM's own files, `datastores` are
    others that its disks need.
    """
    with refused_to(f"say where {name!r} can be built ({s})"):
        inventory = _Map(s.read_all(_PATHS))
        cluster, hosts = _compute(s, inventory, compute)
        stores = tuple(dict.fromkeys((datastore, *datastores)))
        for each in stores:
            _usable_datastore(s, inventory, cluster, each)
        host = _host(s, inventory, hosts, name=name, datastores=stores, networks=networks, wished=wished)
        reachable = {inventory.name(n): n for n in inventory.get(host.values.get("network") or ())}
        taken = [*networks, *(each for each in wished if each in reachable)]
        spare = min(reachable, default=None)
        return Place(
            folder=_folder(s, inventory, _datacenter(inventory, cluster), folder),
            pool=_pool(s, inventory, cluster, pool),
            host=host.ref,
            datastore=datastore,
            networks={wanted: _backing(s, wanted, reachable[wanted]) for wanted in dict.fromkeys(taken)},
            spare=(spare, _backing(s, spare, reachable[spare])) if spare is not None else None,
            newest_hardware=_newest_hardware(cluster, host),
        )


def _compute(s: Session, inventory: _Map, name: str) -> tuple[Found, list[Found]]:
    """A cluster (or the like) and those of its hosts that may be used."""
    clusters = inventory.of(vim.ComputeResource)
    if not name and len(clusters) == 1:
        return clusters[0], inventory.get(clusters[0].values.get("host") or ())
    names = sorted(inventory.name(c) for c in clusters)
    if not name:
        raise BadInput(f"{s} has {len(clusters)} clusters or hosts: say which in `compute` ({', '.join(names)})")
    for cluster in clusters:
        if inventory.name(cluster) == name:
            return cluster, inventory.get(cluster.values.get("host") or ())
    for host in inventory.of(vim.HostSystem):
        if inventory.name(host) == name and (cluster := inventory.parent(host)) is not None:  # type: ignore[assignment]
            return cluster, [host]
    raise NotFound(f"there is no cluster or host {name!r} at {s}; it has {', '.join(names) or 'none'}")


def _usable_datastore(s: Session, inventory: _Map, cluster: Found, name: str) -> None:
    stores = {inventory.name(d): d for d in inventory.get(cluster.values.get("datastore") or ())}
    if name not in stores:
        raise NotFound(
            f"{inventory.name(cluster)} at {s} has no datastore {name!r}; it has {', '.join(sorted(stores)) or 'none'}"
        )
    if not stores[name].values.get("summary.accessible", True):
        raise Transient(f"the datastore {name} at {s} is out of reach at the moment")


def _host(
    s: Session,
    inventory: _Map,
    hosts: list[Found],
    *,
    name: str,
    datastores: Sequence[str],
    networks: Sequence[str],
    wished: Sequence[str],
) -> Found:
    """Of the hosts that have what is needed and most of what is wished, always the same one for the same VM name."""
    reasons = []
    fit = []
    for host in sorted(hosts, key=inventory.name):
        values = host.values
        has = {inventory.name(n) for n in inventory.get(values.get("network") or ())}
        lacking = set(networks) - has
        without = set(datastores) - {inventory.name(d) for d in inventory.get(values.get("datastore") or ())}
        if values.get("runtime.connectionState") != "connected":
            reasons.append(f"{inventory.name(host)} is {values.get('runtime.connectionState')}")
        elif values.get("runtime.inMaintenanceMode"):
            reasons.append(f"{inventory.name(host)} is in maintenance mode")
        elif without:
            reasons.append(f"{inventory.name(host)} does not have the datastore {', '.join(sorted(without))}")
        elif lacking:
            reasons.append(f"{inventory.name(host)} does not have the network {', '.join(sorted(lacking))}")
        else:
            fit.append((len(set(wished) - has), host))
    if not fit:
        raise NotFound(f"no host at {s} can take {name}: {'; '.join(reasons) or 'there are none'}")
    best = [host for missing, host in fit if missing == min(missing for missing, _ in fit)]
    return best[zlib.crc32(name.encode()) % len(best)]


def _datacenter(inventory: _Map, found: Found) -> Found:
    at: Found | None = found
    while at is not None and not isinstance(at.ref, vim.Datacenter):
        at = inventory.parent(at)
    if at is None:
        raise BadInput(f"{inventory.name(found)} is in no datacenter that the site's user may see")
    return at


def _folder(s: Session, inventory: _Map, datacenter: Found, path: str) -> Any:
    """'Replicas/Prod' below the datacenter; its own name in front is fine."""
    at = datacenter.values["vmFolder"]
    names = [part for part in path.split("/") if part]
    if names and names[0] == inventory.name(datacenter):
        names = names[1:]
    for name in names:
        children = {inventory.name(f): f.ref for f in inventory.of(vim.Folder) if f.values.get("parent") == at}
        if name not in children:
            raise NotFound(
                f"there is no folder {name!r} of {path!r} in {inventory.name(datacenter)} at {s}; "
                f"there is {', '.join(sorted(children)) or 'none'}"
            )
        at = children[name]
    return at


def _pool(s: Session, inventory: _Map, cluster: Found, path: str) -> Any:
    at = cluster.values["resourcePool"]
    for name in (part for part in path.split("/") if part):
        children = {inventory.name(p): p.ref for p in inventory.of(vim.ResourcePool) if p.values.get("parent") == at}
        if name not in children:
            raise NotFound(
                f"there is no resource pool {name!r} of {path!r} in {inventory.name(cluster)} at {s}; "
                f"there is {', '.join(sorted(children)) or 'none'}"
            )
        at = children[name]
    return at


def _backing(s: Session, name: str, network: Found) -> Any:
    card = vim.vm.device.VirtualEthernetCard
    if isinstance(network.ref, vim.dvs.DistributedVirtualPortgroup):
        switch = s.read(network.values["config.distributedVirtualSwitch"], "uuid")["uuid"]
        port = vim.dvs.PortConnection(portgroupKey=network.values["key"], switchUuid=switch)
        return card.DistributedVirtualPortBackingInfo(port=port)
    if isinstance(network.ref, vim.OpaqueNetwork):
        summary = network.values["summary"]
        return card.OpaqueNetworkBackingInfo(
            opaqueNetworkId=summary.opaqueNetworkId, opaqueNetworkType=summary.opaqueNetworkType
        )
    return card.NetworkBackingInfo(deviceName=name, network=network.ref)


def _newest_hardware(cluster: Found, host: Found) -> str:
    browser = cluster.values.get("environmentBrowser")
    versions = []
    for option in (browser.QueryConfigOptionDescriptor() or ()) if browser is not None else ():
        here = not option.host or host.ref in option.host
        if here and option.createSupported is not False and option.key.startswith("vmx-"):
            versions.append(option.key)
    return max(versions, key=lambda key: int(key.removeprefix("vmx-")), default="")
