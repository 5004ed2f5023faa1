"""What is kept of a replica while it is brought up to another point: its disks' old content, how they hung, its NVRAM.

It lies beside the replica's disks, on the datastores that surely live where the replica does: a file that says what is
kept, and one with old content per disk (disks/undo_file.py). The cursor names the first of them from its first
`applying` to the commit. A disk that the point no longer has is taken off the replica meanwhile, but its files stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

from blake3 import blake3

from workers import faults, nvram
from workers.destination import datastore_of
from workers.disks import undo_file
from workers.disks.file import Descriptor, FileWriter, check_unowned, datastore_file
from workers.disks.saving import ReadWriter, Saving
from workers.disks.undo_file import UndoFile
from workers.errors import ConfigError, NotFound, StoreDamaged, UnderstudyError
from workers.extents import Extents
from workers.models import Disk, Model, Pair, Slice, VmConfig, VmState
from workers.settings import Settings
from workers.vsphere.building import disk_map
from workers.vsphere.session import Session

Mounts = Mapping[str, Path]


class KeptDisk(Model):
    """A disk of the replica as it was: `disk` is the replica's own, `source` the id of the disk that it copies."""

    source: str
    disk: Disk
    #: "[datastore] folder/file" with its old content
    undo: str


class Kept(Model):
    """How the replica was when it held `base`."""

    v: Literal[1] = 1
    realm: str
    pair: str
    #: instance UUID of the replica
    vm: str
    base: str
    config: VmConfig
    #: base64, where it could be read
    nvram: str | None
    disks: tuple[KeptDisk, ...]

    def of(self, disk: Disk) -> KeptDisk | None:
        """What is kept of this disk of the replica; None for one that was added since. A disk may have been moved."""
        return next((k for k in self.disks if disk.id == k.disk.id or disk.file == k.disk.file), None)

    def source_config(self) -> VmConfig:
        """The configuration with the disks called as on their source, as a point's is."""
        disks = tuple(kept.disk.model_copy(update={"id": kept.source}) for kept in self.disks)
        return self.config.model_copy(update={"disks": disks})


def reason(settings: Settings, pair: Pair, store: str) -> str | None:
    """Why old content is kept for this pair, which is brought up from that store; None where it is not."""
    wanted = settings.targets[pair.recovery_target].undo
    if wanted == "always":
        return 'its recovery target says undo = "always"'
    stands = settings.store(store).site
    if wanted == "auto" and stands not in ("", pair.site):
        return f"the store {store} stands at {stands}, where {pair.site} may not reach it on the day it counts"
    return None


def prefix(realm: str, pair: str) -> str:
    """How the names of all files begin that belong to this pair."""
    return f"understudy-undo-{realm[:8]}-{pair}-"


# --- beginning ----------------------------------------------------------------------------------------------------


def begin(session: Session, mounts: Mounts, state: VmState, *, realm: str, pair: str, base: str, run: str) -> str:
    """Keep what the replica is like now, on stable storage; "[datastore] folder/file" for the cursor. Repeatable.

    Of its disks nothing is kept yet: that is done as they are overwritten.
    """
    name = prefix(realm, pair) + run
    disks = []
    for number, (source, disk) in enumerate(sorted(disk_map(state).items())):
        bottom = disk.model_copy(update={"file": disk.parent or disk.file, "parent": None})
        undo = f"{_folder(bottom.file)}{name}-{number}.undo"
        undo_file.create(datastore_file(mounts, undo), bottom.capacity)
        disks.append(KeptDisk(source=source, disk=bottom, undo=undo))
    kept = Kept(
        realm=realm,
        pair=pair,
        vm=state.identity.instance_uuid,
        base=base,
        config=state.config,
        nvram=nvram.read(session, state.identity.moref, mounts, lambda _: None),
        disks=tuple(disks),
    )
    file = f"{_folder(state.vmx)}{name}.json"
    text = kept.model_dump_json().encode()
    undo_file.replace(datastore_file(mounts, file), blake3(text).hexdigest().encode() + b"\n" + text)
    faults.at("undo.begun")
    return file


def _folder(file: str) -> str:
    """'[ds1] vm/vm.vmx' -> '[ds1] vm/'."""
    head, slash, _ = file.rpartition("/")
    return head + slash if slash else f"[{datastore_of(file)}] "


def load(mounts: Mounts, file: str) -> Kept:
    """Raises `NotFound` or `StoreDamaged`."""
    path = datastore_file(mounts, file)
    try:
        said, _, text = path.read_bytes().partition(b"\n")
        if said.decode("latin-1") != blake3(text).hexdigest():
            raise ValueError("the digest is wrong")
        return Kept.model_validate_json(text)
    except FileNotFoundError as err:
        raise NotFound(f"what was kept of the replica is not there any more: {path} is gone") from err
    except ValueError as err:
        raise StoreDamaged(f"{path} is damaged, so what was kept of the replica can not be had") from err


# --- while it is written ------------------------------------------------------------------------------------------


def saving(mounts: Mounts, kept: Kept | None, disk: Disk, writer: FileWriter, part: Slice, wait: float) -> ReadWriter:
    """The disk, which keeps what is overwritten from now on. The caller has the lock on the slice's range."""
    of = kept.of(disk) if kept is not None else None
    if of is None:
        return writer
    return Saving(writer, UndoFile(datastore_file(mounts, of.undo), wait=wait), part.start, part.end)


def removable(kept: Kept | None, disks: Mapping[str, Disk]) -> set[str]:
    """Of the replica's disks, by source id, those whose files must stay when they are removed."""
    return {source for source, disk in disks.items() if kept is not None and kept.of(disk) is not None}


def saved(mounts: Mounts, kept: Kept) -> dict[str, Extents]:
    """Source disk id -> what of it was overwritten. Raises `NotFound` or `StoreDamaged` when not all is there."""
    found = {}
    for part in kept.disks:
        with closing(UndoFile(datastore_file(mounts, part.undo))) as undo:
            found[part.source] = undo.covered
    return found


def lost(mounts: Mounts, state: VmState, file: str) -> str | None:
    """Why nothing can come back from what the cursor names, so that keeping more is in vain; None when all is there.

    Where the disks themselves are not there either a datastore is not mounted, and nothing is lost.
    """
    if not all(datastore_file(mounts, disk.parent or disk.file).exists() for disk in state.config.disks):
        return None
    try:
        if file:
            saved(mounts, load(mounts, file))
    except (NotFound, StoreDamaged) as err:
        return str(err)
    return None


# --- when it is over ----------------------------------------------------------------------------------------------


def clear(mounts: Mounts, state: VmState, *, realm: str, pair: str, disks: bool = True) -> Iterator[str]:
    """Remove all that was ever kept for the pair, in sentences. Only where nobody will want to go back to it.

    `disks`: with the files of the disks that were taken off. Repeatable: what says which these are goes last.
    """
    mine = prefix(realm, pair)
    folders = _folders(mounts, state)
    # Listed before anything goes: whoever sleeps here must not find what a newer run keeps by the time it wakes up.
    there = [path for folder in folders for end in ("undo", "tmp") for path in folder.glob(f"{mine}*.{end}")]
    for said in sorted(path for folder in folders for path in folder.glob(f"{mine}*.json")):
        try:
            text = said.read_bytes().partition(b"\n")[2]
            kept = Kept.model_validate_json(text)
            if (kept.realm, kept.pair) != (realm, pair):
                continue  # another realm whose id begins alike
        except ValueError:
            yield f"{said} can not be read: if a disk was taken off the replica, its files stay; remove them by hand"
        else:
            folders |= {path.parent for k in kept.disks if (path := _path(mounts, k.undo)) is not None}
            yield from _remove_detached(mounts, kept, state, disks)
        taken = _remove(path for folder in folders for path in folder.glob(f"{said.stem}-*.undo"))
        faults.at("undo.clearing")
        said.unlink(missing_ok=True)
        yield f"what was kept of the replica's older content is removed ({taken} bytes)"
    _remove(there)  # what is left of a beginning that was cut off


def clear_gone(mounts: Mounts, file: str, *, realm: str, pair: str) -> Iterator[str]:
    """Remove what was kept beside the disks of a replica that is gone, in sentences. `file`: what its cursor named.

    Only where vCenter has deleted the VM: as long as any of its disks' files is there, somebody may register it again.
    """
    path = _path(mounts, file)
    if path is None or not path.name.startswith(prefix(realm, pair)) or not path.exists():
        return
    try:
        kept = load(mounts, file)
    except StoreDamaged as err:
        yield f"what was kept of a replica that is gone stays: {err}; remove it by hand"
        return
    if (kept.realm, kept.pair) != (realm, pair):
        return
    there = [part.disk.file for part in kept.disks if (disk := _path(mounts, part.disk.file)) and disk.exists()]
    if there:
        yield (
            f"what was kept of a replica that is gone stays at {file}, for a disk of that VM is still there "
            f"({there[0]}); when nobody needs it any more, remove both by hand"
        )
        return
    folders = {path.parent, *(undo.parent for part in kept.disks if (undo := _path(mounts, part.undo)) is not None)}
    taken = _remove(undo for folder in folders for undo in folder.glob(f"{path.stem}-*.undo"))
    path.unlink(missing_ok=True)
    yield f"what was kept of a replica that is gone is removed ({taken} bytes)"


def _folders(mounts: Mounts, state: VmState) -> set[Path]:
    files = [state.vmx, *(disk.parent or disk.file for disk in state.config.disks)]
    return {path.parent for file in files if (path := _path(mounts, file)) is not None}


def _path(mounts: Mounts, file: str) -> Path | None:
    """None on a datastore that is not mounted here (any more)."""
    try:
        return datastore_file(mounts, file)
    except ConfigError:
        return None


def _remove(paths: Iterable[Path]) -> int:
    """Bytes that are free now."""
    taken = 0
    for path in paths:
        with suppress(FileNotFoundError):
            taken += path.stat().st_blocks * 512
            path.unlink()
    return taken


def _remove_detached(mounts: Mounts, kept: Kept, state: VmState, disks: bool) -> Iterator[str]:
    """The files of disks that the replica has no more. Never of one that hangs on it, or that somebody uses."""
    used = {file for disk in state.config.disks for file in (disk.id, disk.file, disk.parent)}
    for part in kept.disks:
        path = _path(mounts, part.disk.file)
        if part.disk.id in used or part.disk.file in used or path is None or not path.exists():
            continue
        try:
            check_unowned(path)
            found = Descriptor(path)
            if not disks or found.children():
                raise UnderstudyError("a snapshot stands on it" if disks else "they are left to you")
        except UnderstudyError as err:
            yield f"the files of {part.disk.label}, which the replica has no more, stay at {part.disk.file}: {err}"
            continue
        found.flat.unlink(missing_ok=True)
        path.unlink()
        yield f"the files of {part.disk.label}, which the replica has no more, are removed ({part.disk.file})"
