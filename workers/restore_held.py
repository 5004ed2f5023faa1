"""A VM in the hands of a restore: its mark by compare-and-set, its disks, their locks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

from workers import plan
from workers.carried import Ways
from workers.disks.carrier import Carrier
from workers.errors import FencedOut, Foreign, NotFound
from workers.extents import Extents
from workers.models import Disk, Model, PointDisk, VmState
from workers.point import Piece, Reader
from workers.replica_held import nonce
from workers.restore_order import Order
from workers.run import Live
from workers.settings import seconds
from workers.store import Store
from workers.vsphere import inventory, replica, restoring
from workers.vsphere.building import disk_map
from workers.vsphere.session import connect


class Marker(Model):
    """On a half restored VM (extraConfig `understudy.restore`). It binds to the VM: on a clone it is foreign."""

    v: Literal[1] = 1
    realm: str
    run: str
    fence: int
    point: str
    source: str
    vm: str
    #: the VM was built for the restore, and holds nothing else
    built: bool
    #: digest of the disks' content ids that our writing began with; "" = not begun
    content: str = ""
    nonce: str


class HeldVm:
    """What every step of a restore needs. Nothing here may be used by a worker that does not hold the run."""

    def __init__(self, live: Live, order: Order) -> None:
        self.live = live
        self.order = order
        self.site = live.here.settings.site(order.site)
        self.session = connect(order.site, self.site)
        self.ways = Ways(live, self.session)
        self.store = Store.at(live.here.settings.store(order.store))
        self.point = self.store.point(order.source, order.point)
        self.parts: dict[str, PointDisk] = {d.disk.id: d for d in plan.protected(self.point, order.excluded)}
        self.state = self._find()
        self.marker = self._read()
        #: this message begins it: nobody can have written to the VM's new disks before
        self._begins = self.marker is None

    def _find(self) -> VmState | None:
        uuid = self.order.source if self.order.over else self.live.recall("made")
        found = inventory.find_uuid(self.session, uuid) if uuid is not None else None
        if found is not None:
            return inventory.vm_state(self.session, found.identity.moref)
        if self.order.over:
            raise NotFound(
                f"the original VM {self.order.vm} ({self.order.source}) is not at {self.order.site} any more; nothing "
                f"was written. Restore it to a new VM: --to {self.order.vm} --same-identity"
            )
        return None

    def _read(self) -> Marker | None:
        """Our mark; `Foreign` when another installation, or another VM's restore, left it."""
        text = self.state.notes.get(restoring.MARKER) if self.state is not None else None
        if not text:
            return None
        assert self.state is not None
        found = read_marker(self.state.identity.name, text)
        realm = self.live.here.catalogue.realm
        if (found.realm, found.vm) != (realm, self.state.identity.instance_uuid):
            raise Foreign(
                f"{self.state.identity.name} carries the mark of a restore that is not ours (realm {found.realm[:8]}, "
                f"VM {found.vm}): it is a clone, or another installation is at work. Nothing was written; if neither "
                f"is so, remove {restoring.MARKER} from its advanced settings"
            )
        return found

    def _new_marker(self, vm: str, *, built: bool) -> Marker:
        return Marker(
            realm=self.live.here.catalogue.realm,
            run=self.live.run.id,
            fence=self.live.run.fence,
            point=self.order.point,
            source=self.order.source,
            vm=vm,
            built=built,
            nonce=nonce(),
        )

    def _write(self, marker: Marker) -> None:
        """Compare-and-set by the VM's changeVersion. A lower fence never replaces a higher one."""
        assert self.state is not None
        self.live.check()
        before = self._read()
        if before is not None and before.fence > marker.fence:
            raise FencedOut(f"the mark on {self._name} carries fence {before.fence}, this run's is {marker.fence}")
        replica.write_cursor(
            self.session,
            self.moref,
            restoring.MARKER,
            marker.model_dump_json(),
            self.state.change_version,
            wait=self._patience(),
        )
        self.marker = marker
        self._reread()

    def _reread(self, moref: str | None = None) -> None:
        self.state = inventory.vm_state(self.session, moref or self.moref)
        self.marker = self._read()

    @property
    def moref(self) -> str:
        assert self.state is not None
        return self.state.identity.moref

    @property
    def _name(self) -> str:
        return self.state.identity.name if self.state is not None else self.order.name

    def _disks(self) -> dict[str, Disk]:
        """Disk id of the point -> the VM's disk."""
        assert self.state is not None
        return {key: disk for key, disk in disk_map(self.state).items() if key in self.parts}

    def _way(self, disk: Disk) -> Carrier:
        assert self.state is not None
        return self.ways.of(self.state, disk)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The whole-disk lock on every disk that is written, in one order."""
        with ExitStack() as stack:
            for disk in sorted(self._disks().values(), key=lambda disk: disk.file):
                stack.enter_context(self._way(disk).still(wait=self._wait()))
            yield

    def _patience(self) -> float:
        return float(seconds(self.live.here.settings.tuning.vcenter_wait))

    def _wait(self) -> float:
        return float(seconds(self.live.here.settings.tuning.lock_wait))


class Longer:
    """A reader with zeroes behind its end."""

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader = reader
        self._end = reader.size
        self.size = size

    def allocated(self, start: int = 0, end: int | None = None) -> Extents:
        return self._reader.allocated(start, end)

    def read(self, batch: Sequence[tuple[int, int]]) -> list[Piece]:
        pieces: list[Piece] = []
        for offset, length in batch:
            inside = max(0, min(length, self._end - offset))
            if inside:
                pieces += self._reader.read([(offset, inside)])
            if inside < length:
                pieces.append(Piece(offset + inside, length - inside, None))
        return pieces

    def close(self) -> None:
        self._reader.close()


def holder(realm: str, run: str) -> str:
    """Of the pin that keeps the point until the run has ended."""
    return f"{realm}:restore-{run}"


def read_marker(name: str, text: str) -> Marker:
    try:
        return Marker.model_validate_json(text)
    except ValueError as err:
        raise Foreign(
            f"the mark of a restore on {name} can not be read ({text[:80]!r}); nothing was written. It may come from a "
            f"newer Understudy; else remove {restoring.MARKER} from the VM's advanced settings"
        ) from err
