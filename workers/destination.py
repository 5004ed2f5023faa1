"""Where a pair's replica goes and how it begins: the recovery target and what is different for one VM, made one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import Field

from workers import policy
from workers.errors import BadInput, ConfigError, Refused
from workers.models import Disk, Model, Nic, Pair, Provisioning, VmConfig
from workers.settings import RecoveryTarget, Settings, VmOverride


class Destination(Model):
    """The effective values for one pair: a VM's override for this target, its override, the target, the default."""

    name: str
    datastore: str
    datastores: dict[str, str] = Field(default_factory=dict)
    compute: str = ""
    pool: str = ""
    folder: str = ""
    networks: dict[str, str] = Field(default_factory=dict)
    provisioning: Provisioning = "thin"
    keep_macs: bool | None = None
    excluded_disks: tuple[str, ...] = ()
    existing: str | None = None
    overwrite_existing: bool = False
    seed: str | None = None
    disks: dict[str, str] = Field(default_factory=dict)


def destination(target: RecoveryTarget, override: VmOverride, target_name: str, vm: str) -> Destination:
    """As `understudy config show` has it: workers/policy.py decides which value counts."""
    layers = [*policy.override_layers(override, target_name), policy.Layer((), target)]
    chosen = policy.resolved(layers)
    found = {key: chosen[key][0] for key in Destination.model_fields if key in chosen}
    return Destination.model_validate({**found, "name": policy.replica_name(layers, vm)[0]})


def of_member(settings: Settings, group: str, vm: str, target: str) -> Destination:
    """Of a VM under a group's policy."""
    override = settings.groups[group].overrides.get(vm, VmOverride())
    return destination(settings.targets[target], override, target, vm)


def governing(settings: Settings, groups: Iterable[str], vm: str, target: str) -> str | None:
    """Whose overrides count for the replica of a VM that several groups replicate to one target: there is one replica.

    The first in the configuration that has an override for this VM, else the first.
    """
    covering = [name for name in groups if name in settings.groups and target in settings.groups[name].targets]
    return next((name for name in covering if vm in settings.groups[name].overrides), next(iter(covering), None))


def name_of_member(settings: Settings, group: str, vm: str, target: str) -> str:
    """What the VM's replica is called: `of_member` has it too, at twenty times the price."""
    override = settings.groups[group].overrides.get(vm, VmOverride())
    layers = [*policy.override_layers(override, target), policy.Layer((), settings.targets[target])]
    return policy.replica_name(layers, vm)[0]


def of_pair(settings: Settings, pair: Pair, groups: Iterable[str]) -> Destination:
    """Of a pair, which may be older than the configuration, whose source is or was in `groups`.

    Raises `ConfigError` when its target is gone.
    """
    aim = pair.recovery_target
    if aim not in settings.targets:
        raise ConfigError(
            f"the recovery target {aim} of {pair.vm} is not configured any more; "
            f"add targets.{aim} again (configured: {', '.join(sorted(settings.targets)) or 'none'})"
        )
    group = governing(settings, groups, pair.vm, aim)
    if group is not None:
        return of_member(settings, group, pair.vm, aim)
    return destination(settings.targets[aim], VmOverride(), aim, pair.vm)


def datastore_of(file: str) -> str:
    """'[ds1] vm/disk.vmdk' -> 'ds1'."""
    return file.partition("]")[0].removeprefix("[")


def datastore_for(disk: Disk, datastores: Mapping[str, str]) -> str:
    """The datastore that a source disk is mapped to; "" = where the VM's own files are."""
    return datastores.get(datastore_of(disk.file)) or datastores.get("*") or ""


def macs(nics: Iterable[Nic], place: Destination, *, same_vcenter: bool) -> Iterator[Nic]:
    """The cards with the addresses that they keep; an empty one is generated.

    Within one vCenter two cards with one address on one network break both VMs' connections as soon as both run.
    """
    keep = place.keep_macs if place.keep_macs is not None else not same_vcenter
    for nic in nics:
        there = place.networks.get(nic.network, place.networks.get("*", nic.network))
        clash = same_vcenter and there == nic.network
        yield nic if keep and not clash else nic.model_copy(update={"mac": ""})


# --- how a replica begins that is not built from nothing ------------------------------------------------------------


def match_disks(
    wanted: Sequence[Disk], have: Sequence[Disk], named: Mapping[str, str], *, where: str, key: str
) -> dict[str, Disk]:
    """Source disk id -> the disk that is there for it: first as `named`, then by equal size, in the order of both.

    Raises `BadInput` for a name that is no disk, `Refused` when a disk that is there remains without a counterpart.
    """
    left = list(have)
    found: dict[str, Disk] = {}
    for source, there in named.items():
        one = _named(wanted, source, f"{key}.disks names {source!r}, which is no disk of the restore point", "it has")
        other = _named(left, there, f"{key}.disks names {there!r}, which is no disk of {where}", "still free")
        if other.capacity > one.capacity:
            raise Refused(
                f"{_words(other)} of {where} is larger than {_words(one)} of the source, and a disk can not be made "
                f"smaller; nothing was written. Name another disk in {key}.disks, or leave it out to have one made"
            )
        found[one.id] = other
        left.remove(other)
    for disk in wanted:
        same = next((other for other in left if other.capacity == disk.capacity), None)
        if disk.id not in found and same is not None:
            found[disk.id] = same
            left.remove(same)
    if left:
        missing = ", ".join(_words(disk) for disk in wanted if disk.id not in found) or "none"
        raise Refused(
            f"{where} has {', '.join(map(_words, left))}, which fits no disk of the source by its size (without a "
            f"counterpart on the source's side: {missing}); nothing was written. Say in {key}.disks which belongs to "
            "which, or remove it there"
        )
    return found


def match_seeds(
    wanted: Sequence[Disk], files: Mapping[str, int], named: Mapping[str, str], *, folder: str, key: str
) -> dict[str, str]:
    """Source disk id -> the seed's file, of `files` (file -> capacity): as `named`, then by equal size, in order.

    Every disk needs one: a missing seed is never replaced by a full copy. Raises `BadInput` or `Refused`.
    """
    found: dict[str, str] = {}
    for source, name in named.items():
        disk = _named(wanted, source, f"{key}.disks names {source!r}, which is no disk of the restore point", "it has")
        file = name if name.startswith("[") else f"{folder.rstrip('/')}/{name}"
        if file not in files:
            raise BadInput(
                f"{key}.disks names {name!r}; the seed {folder} has {', '.join(sorted(files)) or 'no disks'}"
            )
        if files[file] != disk.capacity:
            raise Refused(
                f"the seed {file} has {files[file]} bytes, {_words(disk)} needs exactly {disk.capacity}; "
                "nothing was written. Copy the right disk there, or have the replica built without a seed"
            )
        found[disk.id] = file
    left = [file for file in sorted(files) if file not in found.values()]
    for disk in wanted:
        if disk.id in found:
            continue
        same = next((file for file in left if files[file] == disk.capacity), None)
        if same is None:
            there = ", ".join(f"{file} ({files[file]} bytes)" for file in left) or "none"
            raise Refused(
                f"the seed {folder} has no disk of {disk.capacity} bytes for {_words(disk)} (not taken: {there}); "
                f"nothing was written. Copy it there, or remove {key}.seed to have every disk sent in full"
            )
        found[disk.id] = same
        left.remove(same)
    return found


def _named(disks: Sequence[Disk], name: str, sentence: str, has: str) -> Disk:
    for disk in disks:
        if name in (disk.id, disk.label):
            return disk
    raise BadInput(f"{sentence} ({has}: {', '.join(disk.label for disk in disks) or 'none'}); nothing was written")


def _words(disk: Disk) -> str:
    return f"{disk.label} ({disk.capacity} bytes)"


# --- what a change of the configuration does not do to a replica that is there --------------------------------------


def differences(place: Destination, point: VmConfig, replica: VmConfig, copies: Mapping[str, Disk]) -> Iterator[str]:
    """What differs and a sync leaves as it is, in sentences. `copies`: source disk id -> the replica's disk."""
    rebuilt = (
        "A sync does not change that: change it on the replica in vCenter, or remove the replica to have it built anew"
    )
    for what, wanted, has in (
        ("CPUs", point.cpus, replica.cpus),
        ("MiB of memory", point.memory_mib, replica.memory_mib),
        ("network cards", len(point.nics), len(replica.nics)),
    ):
        if wanted != has:
            yield (
                f"the source has {wanted} {what}, the replica {has}: a sync changes disks only. Change it on the "
                "replica in vCenter, or remove the replica to have it built anew"
            )
    if point.firmware != replica.firmware:
        yield f"the source starts by {point.firmware}, the replica by {replica.firmware}: it will not start. {rebuilt}"
    for disk in point.disks:
        copy = copies.get(disk.id)
        if copy is None:
            continue
        there = datastore_for(disk, place.datastores)
        if there and datastore_of(copy.file) != there:
            yield (
                f"{disk.label} is on {datastore_of(copy.file)}, the configuration says {there}. A sync does not move "
                "it: move it with vCenter (storage migration), or remove the replica to have it built anew"
            )
        if (wanted_kind := provisioned(disk, place.provisioning)) != provisioned(copy, "original"):
            yield (
                f"{disk.label} of the replica is {provisioned(copy, 'original')}, the configuration says "
                f"{wanted_kind}: that holds for disks that are added from now on. {rebuilt}"
            )
    if len(point.nics) == len(replica.nics):
        yield from _networks(place, point.nics, replica.nics, rebuilt)


def provisioned(disk: Disk, how: Provisioning) -> Provisioning:
    """How this disk is made on the replica: never "original"."""
    if how != "original":
        return how
    return "thin" if disk.thin else "eager" if disk.eager else "thick"


def _networks(place: Destination, source: Iterable[Nic], replica: Iterable[Nic], rebuilt: str) -> Iterator[str]:
    for one, other in zip(_by_key(source), _by_key(replica), strict=True):
        wanted = place.networks.get(one.network, place.networks.get("*"))
        if wanted and wanted != other.network:
            yield f"a card of {one.network} is in {other.network} there, the configuration says {wanted}. {rebuilt}"


def _by_key(nics: Iterable[Nic]) -> list[Nic]:
    return sorted(nics, key=lambda nic: nic.key)
