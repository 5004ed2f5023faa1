"""The backup store: plain files, no server. The only place that knows the format (docs/store-format.md).

granule     4 KiB, the unit of everything that is compared, stored and diffed
block       256 KiB of a disk, at a multiple of that
blob        bytes stored once in a pack, compressed, named by their BLAKE3: a *chunk* (what is stored of one block,
            found again by the dedup index) or *scraps* (small changes of many blocks, packed together)
pack        an append-only file of blobs with a trailer of their digests, written by one run
segment     the map of 1 GiB of a disk: which granules are where in which pack. Immutable, shared between points
point       a manifest: the VM and the names of its disks' segments. Complete in itself: no chain is merged to read it
pin         a file that keeps a point
tombstone   a file that lists what prune will delete once every run and reader that may refer to it has ended
compaction  moves what is in use of packs that are mostly dead into new ones; the points' content stays as it is
"""

from workers.store.compact import CompactReport
from workers.store.intake import Brought, Intake
from workers.store.prune import PruneReport
from workers.store.read import DiskReader
from workers.store.segment import Segment
from workers.store.stats import Figures
from workers.store.store import Store
from workers.store.write import StoreWriter

__all__ = [
    "Brought",
    "CompactReport",
    "DiskReader",
    "Figures",
    "Intake",
    "PruneReport",
    "Segment",
    "Store",
    "StoreWriter",
]
