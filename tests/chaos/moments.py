"""The log of a guest: every state that its disks ever had, by number. The judge of restore points and replicas.

A guest writes one thing after the other, and a snapshot is atomic: so what a restore point or a replica holds must be
one of these states, on all disks the same one. The simulator's files are read for what is judged, never for the log.
"""

from __future__ import annotations

import random
import threading
import urllib.error
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import blake3

from tests.integration.world import MIB, World

#: disk id -> digest of what is on it
Digests = Mapping[str, bytes]


def digest(data: bytes | bytearray) -> bytes:
    return blake3.blake3(data).digest()


class Moment(NamedTuple):
    number: int
    #: when it was asked for, and when the simulator had answered
    begun: datetime
    done: datetime
    disks: dict[str, bytes]


class Guest:
    """A VM with a running guest, and all it has ever written."""

    def __init__(self, world: World, name: str, *sizes: int, seed: int) -> None:
        self.world, self.name = world, name
        self.rng = random.Random(seed)
        #: held while the disks change: by a write, or by who changes the hardware
        self.lock = threading.RLock()
        world.make_vm(name, *sizes)
        self.uuid = world.state(name).identity.instance_uuid
        self.disks: dict[str, bytearray] = {}
        self.moments: list[Moment] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.hardware(lambda: None)
        for _ in self.disks:
            self.write()

    # --- writing ------------------------------------------------------------------------------------------------

    def start(self, pause: float) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, args=(pause,), name=f"guest {self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self, pause: float) -> None:
        while not self._stop.wait(self.rng.random() * 2 * pause):
            self.write()

    def write(self) -> None:
        """One write, which is repeated until the simulator has answered: nothing else is written meanwhile."""
        with self.lock:
            number = self.rng.randrange(len(self.disks))
            disk = list(self.disks)[number]
            length = self.rng.choice([512, 4096, 65536, 131072])
            offset = self.rng.randrange(0, (len(self.disks[disk]) - length) // 512) * 512
            data = self.rng.randbytes(length)
            begun = datetime.now(UTC)
            self._repeat(lambda: self._write(number, offset, data))
            self.disks[disk][offset : offset + length] = data
            self._add(begun, {**self.moments[-1].disks, disk: digest(self.disks[disk])})

    def _write(self, disk: int, offset: int, data: bytes) -> None:
        order = {"VM": self.name, "Disk": disk, "Offset": offset, "Hex": data.hex()}
        self.world.prod.control(guestWrite=order)

    def _repeat(self, act: Callable[[], Any]) -> None:
        while True:
            try:
                return act()
            except urllib.error.HTTPError as err:
                raise AssertionError(f"{self.name}: {err.read().decode()}") from err
            except OSError:
                self._stop.wait(0.1)  # the simulator is being killed; a write to a file has happened or not

    def hardware(self, change: Callable[[], object]) -> None:
        """Do something to the VM's disks: the log follows, new bytes are zeroes."""
        with self.lock:
            begun = datetime.now(UTC)
            change()
            now = self.world.disks(self.name)
            kept = {disk.id: self.disks.get(disk.id, bytearray()) for disk in now}
            for disk in now:
                kept[disk.id].extend(bytes(disk.capacity - len(kept[disk.id])))
            if kept.keys() != self.disks.keys() or not self.moments:
                self.disks = kept
                self._add(begun, {key: digest(data) for key, data in kept.items()})

    def _add(self, begun: datetime, disks: dict[str, bytes]) -> None:
        self.moments.append(Moment(len(self.moments), begun, datetime.now(UTC), disks))

    # --- judging ------------------------------------------------------------------------------------------------

    def moment_of(self, found: Digests, *, what: str, after: datetime, before: datetime) -> int:
        """Which state this is. It must be one that there was between two times: all that was written before a backup
        was asked for is in it, nothing that was written after its end."""
        moments = list(self.moments)
        same = [moment.number for moment in moments if moment.disks == found]
        assert same, f"{what} is no state that {self.name} ever had: {self._mixture(found, moments)}"
        fits = [
            number
            for number in same
            if moments[number].begun <= before and (number + 1 == len(moments) or moments[number + 1].done >= after)
        ]
        assert fits, (
            f"{what} holds what {self.name} held at moment {same[-1]} ({moments[same[-1]].done}), which is not between "
            f"{after} and {before}"
        )
        return fits[-1]

    @staticmethod
    def _mixture(found: Digests, moments: list[Moment]) -> str:
        """Of each disk, the states in which it was so."""
        said = []
        for disk, data in found.items():
            when = [moment.number for moment in moments if moment.disks.get(disk) == data]
            said.append(f"{disk}: {f'moments {when[0]} to {when[-1]}' if when else 'never so'}")
        wanted = sorted(moments[-1].disks)
        return f"{'; '.join(said)}; now it has {wanted} and is at moment {len(moments) - 1}"


SIZES = (4 * MIB, 2 * MIB)
