"""Whether an endpoint honours conditional writes, by a trial object that nobody else has."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from workers.store.bucket_errors import Unmet

if TYPE_CHECKING:
    from workers.store.bucket import BucketPath

#: the folder of trial objects
PROBES = "writers"


def honoured(probe: BucketPath) -> bool:
    try:
        probe.create(b"1")
        with contextlib.suppress(FileExistsError):
            probe.create(b"2")
            return False
        tag = probe.get()[1]
        probe.put_if(b"3", IfMatch=tag)
        with contextlib.suppress(Unmet):
            probe.put_if(b"4", IfMatch=tag)
            return False
    except (Unmet, FileExistsError):
        return False
    return probe.read_bytes() == b"3"
