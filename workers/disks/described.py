"""A disk's descriptor where its datastore is not mounted: its text, fetched and put back by whoever can.

The same rules as for a mounted one (disks/file.py): nothing that stands on a snapshot is written.
"""

from __future__ import annotations

import re
from typing import Protocol

from workers.errors import Refused


class Text(Protocol):
    """The descriptor's file."""

    #: as vCenter names it
    file: str

    def get(self) -> str: ...

    def put(self, text: str) -> None: ...


class Described:
    """What the descriptor says now."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self.said = text.get()

    @property
    def file(self) -> str:
        return self._text.file

    def _field(self, name: str) -> str:
        match = re.search(rf"^{name}=(\w+)", self.said, re.MULTILINE)
        return match.group(1).lower() if match else ""

    @property
    def cid(self) -> str:
        return self._field("CID")

    @property
    def size(self) -> int:
        return sum(int(sectors) * 512 for sectors in re.findall(r"^RW (\d+) ", self.said, re.MULTILINE))

    def check_base(self) -> None:
        """Raise `Refused` for a disk that stands on a snapshot: only the base of a chain is written."""
        if self._field("parentCID") not in ("", "ffffffff"):
            raise Refused(f"{self.file} stands on a snapshot and is not written: remove the VM's snapshots first")

    def renew(self, fresh: str) -> None:
        changed, count = re.subn(r"^CID=\w{8}", f"CID={fresh}", self.said, count=1, flags=re.MULTILINE)
        if not count:
            raise Refused(f"the descriptor {self.file} has no CID line; it is left alone")
        self._text.put(changed)
        self.said = changed
