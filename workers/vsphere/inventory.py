"""What vCenter knows: the list of VMs, one VM's state and configuration, free space. Complete, or an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from pyVmomi import vim, vmodl

from workers.errors import BadInput, NotFound, Refused, Transient
from workers.models import SnapshotNode, VmConfig, VmIdentity, VmState, VmSummary
from workers.vsphere.hardware import CONFIG_PATHS, notes_of, vm_config_of
from workers.vsphere.refusals import refused_to
from workers.vsphere.session import WITNESS, Found, Session

_collector = vmodl.query.PropertyCollector

_SUMMARY_PATHS = (
    "name",
    "parent",
    "datastore",
    "runtime.host",
    "runtime.powerState",
    "runtime.connectionState",
    "summary.config.instanceUuid",
    "summary.config.uuid",
    "summary.config.template",
)
_STATE_PATHS = (
    "name",
    "config.instanceUuid",
    "config.uuid",
    "config.changeVersion",
    "config.changeTrackingEnabled",
    "config.files.vmPathName",
    "runtime.powerState",
    "runtime.consolidationNeeded",
    "runtime.host",
    "snapshot",
    "customValue",
    "availableField",
    *(f"config.{path}" for path in CONFIG_PATHS),
)
_NETWORK_PATHS = {
    vim.Network: ("name",),
    vim.dvs.DistributedVirtualPortgroup: ("name", "key"),
    vim.OpaqueNetwork: ("name", "summary"),
}


def datastore_path(text: str) -> tuple[str, str]:
    """'[ds1] vm/disk.vmdk' -> ('ds1', 'vm/disk.vmdk')."""
    datastore, bracket, relative = text.partition("]")
    if not datastore.startswith("[") or not bracket or not relative.strip():
        raise BadInput(f"{text!r} is no path on a datastore; it should look like '[datastore] folder/file'")
    return datastore[1:], relative.strip()


#: what VMs are found in, on and under: their names are facts of the VMs
_PLACE_PATHS = {
    vim.Folder: ("name", "parent"),
    vim.Datacenter: ("name", "parent", "vmFolder"),
    vim.Datastore: ("name",),
    vim.ComputeResource: ("name",),
    vim.HostSystem: ("name", "parent"),
}


def list_vms(s: Session) -> list[VmSummary]:
    """Every VM and template. `Transient` when one of them cannot be identified: a partial list is never given."""
    with refused_to(f"list the VMs ({s})"):
        found = s.read_all({vim.VirtualMachine: _SUMMARY_PATHS, **_PLACE_PATHS})
    places = {str(f.ref): f for f in found if not isinstance(f.ref, vim.VirtualMachine)}
    roots = {str(f.values["vmFolder"]) for f in found if isinstance(f.ref, vim.Datacenter)}
    vms = [f for f in found if isinstance(f.ref, vim.VirtualMachine)]
    unknown = [f for f in vms if not f.values.get("summary.config.instanceUuid")]
    if unknown:
        names = ", ".join(f"{f.values.get('name', f.ref._GetMoId())} ({_reach(f)})" for f in unknown)
        raise Transient(
            f"{s} does not say which VM this is: {names}; until its host and datastore are back, or it is removed from "
            "vCenter's inventory, no VM is taken as gone"
        )
    return [
        _summary(
            s,
            vm,
            folder=_folder(vm.values.get("parent"), places, roots),
            datastores=_datastores(vm, places),
            cluster=_cluster(vm.values.get("runtime.host"), places),
        )
        for vm in vms
    ]


def _reach(found: Found) -> str:
    return str(found.values.get("runtime.connectionState", "unknown"))


def _folder(ref: Any, places: Mapping[str, Found], roots: Iterable[str]) -> str:
    """'datacenter/folder/folder'. The hidden folder `vm` of each datacenter is left out, as vSphere's client does."""
    names: list[str] = []
    while ref is not None and (place := places.get(str(ref))) is not None:
        if str(ref) not in roots:
            names.append(unquote(place.values["name"]))
        ref = place.values.get("parent")
    return "/".join(reversed(names))


def _datastores(vm: Found, places: Mapping[str, Found]) -> tuple[str, ...] | None:
    """The datastores that the VM uses; None when one of them is out of our sight."""
    names = [_name(places.get(str(ref))) for ref in vm.values.get("datastore") or ()]
    known = [name for name in names if name is not None]
    return tuple(sorted(known)) if len(known) == len(names) else None


def _cluster(host: Any, places: Mapping[str, Found]) -> str | None:
    """The cluster's name. A host without a cluster has a compute resource of its own, with the host's name."""
    at = places.get(str(host))
    return _name(places.get(str(at.values.get("parent")))) if at is not None else None


def _name(place: Found | None) -> str | None:
    return unquote(place.values["name"]) if place is not None and "name" in place.values else None


def _summary(
    s: Session, found: Found, folder: str, datastores: tuple[str, ...] | None = None, cluster: str | None = None
) -> VmSummary:
    values = found.values
    return VmSummary(
        identity=VmIdentity(
            site=s.name,
            vcenter=s.vcenter,
            instance_uuid=values["summary.config.instanceUuid"],
            bios_uuid=values.get("summary.config.uuid") or "",
            moref=found.ref._GetMoId(),
            name=unquote(values["name"]),
        ),
        power=str(values["runtime.powerState"]),
        template=bool(values.get("summary.config.template")),
        folder=folder,
        datastores=datastores,
        cluster=cluster,
    )


def marked(s: Session) -> list[VmState]:
    """Every VM with a note or a snapshot of ours: two paged reads, then one of each such VM."""
    with refused_to(f"look for what we have left on VMs ({s})"):
        found = s.read_all({vim.VirtualMachine: ("config.extraConfig", "snapshot")})
    ours = [
        each.ref._GetMoId()
        for each in found
        if notes_of(each.values.get("config.extraConfig"))
        or any(node.name.startswith("understudy/") for node in snapshot_nodes(each.values.get("snapshot")))
    ]
    return [vm_state(s, moref) for moref in ours]


def find_vm(s: Session, name: str) -> VmSummary:
    """The VM of this name. `NotFound` names the nearest, `Refused` lists all that share the name."""
    vms = list_vms(s)
    hits = [vm for vm in vms if vm.identity.name == name]
    if len(hits) == 1:
        return hits[0]
    if hits:
        where = "; ".join(f"{vm.folder or '(no folder)'}: {vm.identity.instance_uuid}" for vm in hits)
        raise Refused(f"{len(hits)} VMs at {s} are called {name!r}; say which by its instance UUID: {where}")
    near = difflib.get_close_matches(name, [vm.identity.name for vm in vms], n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {len(vms)} VMs, none with a similar name"
    raise NotFound(f"there is no VM {name!r} at {s}{hint}")


def find_uuid(s: Session, instance_uuid: str) -> VmSummary | None:
    """The VM of this identity, whatever it is called today and wherever it is. Its folder is not looked up."""
    with refused_to(f"look for the VM {instance_uuid} ({s})"):
        ref = s.content.searchIndex.FindByUuid(None, instance_uuid, True, True)
        if ref is None:
            return None
        try:
            values = s.read(ref, *_SUMMARY_PATHS)
        except vmodl.fault.ManagedObjectNotFound:
            return None
    if values.get("summary.config.instanceUuid") != instance_uuid:
        return None
    return _summary(s, Found(ref, values), "")


def vm_state(s: Session, moref: str) -> VmState:
    """One property read of the VM, its host and its networks. `NotFound` when the VM is gone."""
    vm = s.vm(moref)
    with refused_to(f"read the VM {moref} ({s})"):
        found = s.retrieve(
            [_collector.ObjectSpec(obj=vm, selectSet=[_walk("runtime.host"), _walk("network")])],
            {vim.VirtualMachine: _STATE_PATHS, vim.HostSystem: ("name", "summary.config.product"), **_NETWORK_PATHS},
        )
    values = next(f.values for f in found if f.ref._GetMoId() == moref and isinstance(f.ref, vim.VirtualMachine))
    if "config.hardware" not in values or "config.changeVersion" not in values:
        raise Transient(f"{s} has no configuration of the VM {moref} at the moment (being built, or out of reach)")
    host = next((f.values for f in found if isinstance(f.ref, vim.HostSystem)), {})
    product = host.get("summary.config.product")
    return VmState(
        identity=VmIdentity(
            site=s.name,
            vcenter=s.vcenter,
            instance_uuid=values["config.instanceUuid"],
            bios_uuid=values["config.uuid"],
            moref=moref,
            name=unquote(values["name"]),
        ),
        config=vm_config_of(_below_config(values), _network_names(found)),
        power=str(values["runtime.powerState"]),  # type: ignore[arg-type]
        change_version=values["config.changeVersion"],
        change_tracking=bool(values.get("config.changeTrackingEnabled")),
        consolidation_needed=bool(values.get("runtime.consolidationNeeded")),
        snapshots=tuple(snapshot_nodes(values.get("snapshot"))),
        notes=notes_of(values.get("config.extraConfig")),
        witness=_witness(values),
        host=host.get("name", ""),
        host_build=product.build if product is not None else "",
        vmx=values.get("config.files.vmPathName") or "",
    )


def vm_config(s: Session, moref: str, snapshot: str | None = None) -> VmConfig:
    """The VM's configuration, or the one frozen in a snapshot: its disks carry the change ids."""
    if snapshot is None:
        return vm_state(s, moref).config
    paths = tuple(f"config.{path}" for path in CONFIG_PATHS)
    with refused_to(f"read the snapshot {snapshot} of the VM {moref} ({s})"):
        values = s.read(s.object(vim.vm.Snapshot, snapshot), *paths)
        networks = s.retrieve(
            [_collector.ObjectSpec(obj=s.vm(moref), skip=True, selectSet=[_walk("network")])], _NETWORK_PATHS
        )
    return vm_config_of(_below_config(values), _network_names(networks))


def nvram_path(s: Session, moref: str) -> str | None:
    """'[datastore] folder/x.nvram' of a VM, None where it has none yet."""
    with refused_to(f"read the files of the VM {moref} ({s})"):
        values = s.read(s.vm(moref), "layoutEx.file", "config.files.vmPathName", "config.extraConfig")
    for file in values.get("layoutEx.file") or ():
        if file.type == "nvram":
            return str(file.name)
    name = next((str(o.value) for o in values.get("config.extraConfig") or () if o.key == "nvram" and o.value), None)
    folder = values["config.files.vmPathName"].rpartition("/")[0]
    return f"{folder}/{name}" if name and "/" not in name else None


def datastore_free(s: Session, name: str) -> int:
    """Bytes free on a datastore, as vCenter last saw them."""
    with refused_to(f"read the datastore {name} ({s})"):
        found = s.read_all({vim.Datastore: ("name", "summary.freeSpace", "summary.accessible")})
    by_name = {unquote(f.values["name"]): f.values for f in found}
    if name not in by_name:
        raise NotFound(f"there is no datastore {name!r} at {s}; it has {', '.join(sorted(by_name)) or 'none'}")
    if not by_name[name].get("summary.accessible", True):
        raise Transient(f"the datastore {name} at {s} is out of reach at the moment")
    return int(by_name[name]["summary.freeSpace"])


def users_of(s: Session, files: Iterable[str]) -> dict[str, str]:
    """Which of these files ("[datastore] folder/disk.vmdk") belong to a VM or its snapshots, and to which."""
    asked = set(files)
    with refused_to(f"look whose disks are in use ({s})"):
        found = s.read_all({vim.VirtualMachine: ("name", "layoutEx.file")})
    return {
        file.name: unquote(vm.values["name"])
        for vm in found
        for file in vm.values.get("layoutEx.file") or ()
        if file.name in asked
    }


def snapshot_nodes(tree: Any) -> Iterable[SnapshotNode]:
    """The whole tree, parents before children."""
    waiting = [(node, None) for node in (tree.rootSnapshotList if tree is not None else ())]
    while waiting:
        node, parent = waiting.pop(0)
        moref = node.snapshot._GetMoId()
        yield SnapshotNode(moref=moref, name=unquote(node.name), description=node.description or "", parent=parent)
        waiting += [(child, moref) for child in node.childSnapshotList or ()]


def _witness(values: Mapping[str, Any]) -> str:
    key = next((f.key for f in values.get("availableField") or () if f.name == WITNESS), None)
    # A value set twice may be listed twice; the last one holds.
    return next((str(v.value) for v in reversed(values.get("customValue") or ()) if v.key == key), "")


def _walk(path: str) -> Any:
    return _collector.TraversalSpec(name=path, type=vim.VirtualMachine, path=path, skip=False)


def _below_config(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("config."): value for key, value in values.items() if key.startswith("config.")}


def _network_names(found: Iterable[Found]) -> dict[str, str]:
    names: dict[str, str] = {}
    for ref, values in found:
        if isinstance(ref, vim.Network) and "name" in values:
            name = unquote(values["name"])
            opaque = getattr(values.get("summary"), "opaqueNetworkId", None)
            for key in (ref._GetMoId(), values.get("key"), opaque):
                if key:
                    names[key] = name
    return names
