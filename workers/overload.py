"""Writing that gives way to overloaded storage, and says so in its run."""

from __future__ import annotations

from contextlib import suppress

from workers.disks.gentle import GentleWriter
from workers.errors import UnderstudyError
from workers.point import Writer
from workers.run import Live


def gentle(writer: Writer, live: Live) -> Writer:
    """The writer of a slice. That it gave way is said once in the run."""

    def said() -> None:
        with suppress(UnderstudyError):  # it must not end what goes well
            live.note(
                "the storage answered much more slowly than before: less was written at a time until it recovered"
            )

    return GentleWriter(writer, said)
