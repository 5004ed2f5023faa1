"""Reading and writing that give way to overloaded storage, and say so in their run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from workers.disks.gentle import GentleReader, GentleWriter, Pace
from workers.disks.saving import ReadWriter
from workers.errors import UnderstudyError
from workers.models import Disk
from workers.point import Reader, Writer
from workers.run import Live

#: what this process has seen of a datastore by one carrier, reading or writing: two of each datastore and carrier
_paces: dict[tuple[str, ...], Pace] = {}


def gentle(held: ReadWriter, live: Live, site: str, disk: Disk, carrier: str) -> tuple[Reader, Writer]:
    """A slice's disk as who reads and who writes it. That it gave way is said once in the run."""
    writer = GentleWriter(held, _pace(live, site, disk, carrier, "write"), _said(live, "written"))
    return gentle_reader(held, live, site, disk, carrier), writer


def gentle_reader(reader: Reader, live: Live, site: str, disk: Disk, carrier: str) -> Reader:
    """The reader of a disk: others live on the same storage."""
    return GentleReader(reader, _pace(live, site, disk, carrier, "read"), _said(live, "read"))


def _pace(live: Live, site: str, disk: Disk, carrier: str, verb: str) -> Pace:
    datastore = disk.file.partition("]")[0].removeprefix("[")
    return _paces.setdefault((live.here.catalogue.realm, site, datastore, carrier, verb), Pace())


def _said(live: Live, done: str) -> Callable[[], None]:
    def said() -> None:
        with suppress(UnderstudyError):  # it must not end what goes well
            live.note(
                f"the storage answered much more slowly than before: less was {done} at a time until it recovered"
            )

    return said
