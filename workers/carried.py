"""The disks of one VM at a site, each by the carrier that was chosen for it: how they are read, held and written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property

import structlog

from workers import carriers
from workers.carriers import CARRIERS, Choice
from workers.disks import hotadd as attached
from workers.disks import libnbd, nbdkit
from workers.disks.carrier import Carrier
from workers.disks.described import Described
from workers.disks.file import Descriptor, datastore_file
from workers.disks.mounted import Mounted
from workers.disks.nbd import Nbd
from workers.disks.nbdkit import Export, Library
from workers.errors import CarrierFailed, ConfigError, DiskBusy, LoginFailed, NotFound
from workers.models import Disk, VmState
from workers.run import Live
from workers.settings import Site
from workers.settings.places import CarrierName
from workers.vsphere import files, hotadd
from workers.vsphere.session import Session
from workers.vsphere.transport import address

log = structlog.get_logger()


def library(site: Site) -> Library:
    assert site.vddk is not None
    vddk = site.vddk
    return Library(vddk.libdir, vddk.plugin, vddk.transports, vddk.compression, vddk.to_write)


def content_id(session: Session, file: str) -> str:
    """A disk's content id by its descriptor: where it is mounted, else through vCenter."""
    return _descriptor(session, file).cid


def capacity(session: Session, file: str) -> int:
    return _descriptor(session, file).size


def _descriptor(session: Session, file: str) -> Descriptor | Described:
    try:
        path = datastore_file(session.site.datastores, file)
    except ConfigError:
        return Described(files.DatastoreFile(session, file))
    return Descriptor(path)


def obstacles(session: Session, disk: Disk, *, reads: bool) -> dict[CarrierName, str | None]:
    """Why each carrier can not reach this disk from this worker; None where it can. `reads`: from a snapshot."""
    name, site = session.name, session.site
    return {
        "file": _no_file(name, site, disk, chain=reads and disk.parent is not None),
        "nbd": _no_nbd(name, site, reads),
        "hotadd": _no_hotadd(session),
    }


def _no_hotadd(session: Session) -> str | None:
    """Asked only where it is wanted: it is a question to vCenter."""
    if "hotadd" not in session.site.carriers:
        return f"sites.{session.name}.carriers does not name it"
    try:
        own_vm(session)
    except ConfigError as err:
        return str(err)
    return None


def own_vm(session: Session) -> str:
    """The moref of the VM that this worker is. Raises `ConfigError`."""
    return hotadd.own_vm(session, session.site.hotadd.vm or hotadd.own_uuid())


def detach_left_behind(session: Session) -> list[str]:
    """Of what this worker's VM has attached, what dead processes left there. Before a snapshot goes, its disks must."""
    if "hotadd" not in session.site.carriers:
        return []
    moref = own_vm(session)
    return attached.detach_left_behind(session.name, lambda file: hotadd.OwnVm(session, moref, file))


def _no_file(name: str, site: Site, disk: Disk, *, chain: bool) -> str | None:
    try:
        datastore_file(site.datastores, disk.file)
    except ConfigError:
        datastore = disk.file.partition("]")[0].removeprefix("[")
        return f"the datastore {datastore} is not among sites.{name}.datastores"
    if chain:
        return "it stands on another snapshot of the VM, and only a base disk can be read as a file"
    return None


def _no_nbd(name: str, site: Site, reads: bool) -> str | None:
    if site.vddk is None:
        return f"sites.{name}.vddk does not say where VMware's library is"
    if not reads and not site.vddk.to_write:
        return (
            f"sites.{name}.vddk.transports names san alone, by which VMware's library writes no disk that has no "
            "snapshot: add nbdssl"
        )
    try:
        libnbd.library()
    except ConfigError as err:
        return str(err)
    return nbdkit.missing(library(site))


class Carried:
    """Of one VM, for one run. What was chosen once holds for the run: `remembered` is what it remembers of that."""

    def __init__(
        self,
        session: Session,
        moref: str,
        *,
        run: str = "",
        remembered: str | None = None,
        over: Callable[[str], bool] = lambda run: False,
    ) -> None:
        """`over`: whether a run is known to have ended, so that what it left on this machine goes first."""
        self.session = session
        self.site = session.site
        self.moref = moref
        self.run = run
        self._over: Callable[[str], bool] | None = over
        self._before = carriers.restored(remembered)
        self._chosen: dict[str, CarrierName] = dict(self._before)
        #: what trying nbd gave: "" = it works
        self._nbd: str | None = None

    def choose(self, disks: Iterable[Disk], *, reads: bool, snapshot: str | None = None) -> dict[str, Choice]:
        """The choice for each disk. `reads`: from a snapshot (of the VM itself where it is off); else the disks
        themselves, to be written."""
        found = {}
        for disk in disks:
            why_not = obstacles(self.session, disk, reads=reads)
            before = self._before.get(disk.id)
            if before is None:
                self._try_nbd(disk, why_not, snapshot)
            found[disk.id] = carriers.choose(f"{disk.label} ({disk.file})", self.site.carriers, why_not, before=before)
            self._chosen[disk.id] = found[disk.id].carrier
        return found

    def _try_nbd(self, disk: Disk, why_not: dict[CarrierName, str | None], snapshot: str | None) -> None:
        """Where nbd comes first and there is another way, it is opened to be read once: that a host's port is closed to
        this worker, or that the library refuses, is seen by nothing else, and each run would fail for it."""
        possible = [name for name in self.site.carriers if why_not[name] is None]
        if possible[:1] != ["nbd"] or len(possible) < 2:
            return
        if self._nbd is None:
            self._chosen[disk.id], self._nbd = "nbd", ""
            try:
                self.of(disk, snapshot=snapshot).reader().close()
            except (CarrierFailed, ConfigError, LoginFailed) as err:
                self._nbd = f"it was tried: {err}"
            except (DiskBusy, NotFound):  # of this disk; whoever works with it meets that too
                self._nbd = None
        why_not["nbd"] = self._nbd or None

    def knows(self, disk: Disk) -> bool:
        return disk.id in self._chosen

    def of(self, disk: Disk, *, snapshot: str | None = None, file: str | None = None) -> Carrier:
        """The way to a disk, by the carrier that `choose` gave it; `file` = another file of it than the live one, on
        which the live one stands; `snapshot`: the one by which it is reached. Neither is ever opened to be written.
        """
        name = self._chosen[disk.id]
        path = file or disk.file
        frozen = snapshot is not None or path != disk.file
        if name == "nbd":
            if self._over is not None:
                for sentence in nbdkit.end_left_behind(self._over):
                    log.warning(sentence, run=self.run)
                self._over = None
            return Nbd(self._export(path, snapshot), files.DatastoreFile(self.session, path), frozen=frozen)
        if name == "hotadd":
            slot = hotadd.OwnVm(self.session, self._own_vm, path)
            text = files.DatastoreFile(self.session, path)
            site, devices = self.session.name, self.site.hotadd.devices
            return attached.Hotadd(slot, text, site=site, devices=devices, frozen=frozen)
        return Mounted(datastore_file(self.site.datastores, path))

    def _export(self, file: str, snapshot: str | None) -> Export:
        to = address(self.site.vcenter)
        return Export(
            library=library(self.site),
            server=to.host,
            port=to.port,
            user=self.site.user,
            password=self.site.password,
            thumbprint=self._thumbprint,
            vm=self.moref,
            snapshot=snapshot,
            file=file,
            run=self.run,
        )

    @cached_property
    def _own_vm(self) -> str:
        for sentence in detach_left_behind(self.session):
            log.warning(sentence, run=self.run)
        return own_vm(self.session)

    @cached_property
    def _thumbprint(self) -> str:
        return files.sha1(self.session)


class Ways:
    """The disks of a VM that a run writes: each by one carrier in all of the run, whoever goes on with it."""

    def __init__(self, live: Live, session: Session) -> None:
        self._live = live
        self._session = session
        self._carried: Carried | None = None

    def of(self, state: VmState, disk: Disk, file: str | None = None, *, snapshot: str | None = None) -> Carrier:
        """The way to a disk, or to another file of it than the live one."""
        moref = state.identity.moref
        if self._carried is None or self._carried.moref != moref:
            before, run = self._live.recall(CARRIERS), self._live.run.id
            self._carried = Carried(self._session, moref, run=run, remembered=before, over=self._live.over)
        if not self._carried.knows(disk):
            self._carried.choose([disk], reads=False)
        return self._carried.of(disk, snapshot=snapshot, file=file)

    def remember(self, state: VmState, disks: Collection[Disk]) -> None:
        """What is chosen becomes the run's, and its reasons too."""
        before = self._live.recall(CARRIERS)
        if not disks or carriers.restored(before).keys() >= {disk.id for disk in disks}:
            return
        self.of(state, next(iter(disks)))
        assert self._carried is not None
        choices = self._carried.choose(disks, reads=False)
        self._live.remember(**{CARRIERS: carriers.stored(choices)})
        self._live.note(*words(disks, choices))


def under(state: VmState, disk: Disk) -> tuple[str, str | None]:
    """The file of a disk under the newest snapshot, and that snapshot; the live file where none stands."""
    if disk.parent is None:
        return disk.file, None
    return disk.parent, state.snapshots[-1].moref if state.snapshots else None


def words(disks: Iterable[Disk], choices: Mapping[str, Choice]) -> list[str]:
    """The choices as reasons of a run."""
    return carriers.in_words((disk.label, choices[disk.id]) for disk in disks if disk.id in choices)
