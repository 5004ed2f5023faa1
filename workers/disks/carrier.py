"""What a carrier gives of one disk: it is read, held against every other writer, written; and it has a content id.

A carrier is chosen per disk (workers/carriers.py). One contract suite holds for all: tests/disks/test_carriers.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import ClassVar, Protocol

from workers.disks.saving import ReadWriter
from workers.point import Reader
from workers.settings.places import CarrierName


class Held(Protocol):
    """A disk, or a range of it, that nobody else writes until it is let go."""

    def writer(self, *, holes: bool) -> ReadWriter:
        """`holes`: zeroes may give their space back. Refuses a disk that stands on a snapshot, or one stands on it."""


class Carrier(Protocol):
    """One disk. Nothing is opened before it is asked for; each method may be called again."""

    #: as the site's `carriers` names it
    name: ClassVar[CarrierName]
    #: whether whoever holds a range holds the whole disk, so that a disk is the work of one worker at a time
    whole: ClassVar[bool]

    def reader(self, *, fresh: bool = False) -> Reader:
        """What the disk holds. `fresh`: as the storage has it, not this machine's memory of it."""

    def hold(self, offset: int, length: int, *, wait: float) -> AbstractContextManager[Held]:
        """Keep other writers out of a range; `length` 0 = to the disk's end. `DiskBusy` after `wait` seconds."""

    def unwritten(self, offset: int, length: int, *, wait: float) -> AbstractContextManager[None]:
        """Keep writers out of a range that is read meanwhile, where reading alone does not keep them out."""

    def still(self, *, wait: float) -> AbstractContextManager[None]:
        """No writer that held any part before is at work, and whoever comes later must check its fence once more.

        vCenter may work on the disk meanwhile: a carrier by whose lock it would be kept out lets go of it at once. Of a
        disk under a snapshot this needs no right to write it: on vVols and on vSAN nobody has that.
        """

    def content_id(self) -> str:
        """The disk's content id (CID), by its descriptor."""

    def renew(self, fresh: str) -> None:
        """Give the disk the content id `fresh` (8 hex digits)."""

    def capacity(self) -> int:
        """Bytes, by its descriptor."""
