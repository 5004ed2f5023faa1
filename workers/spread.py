"""How many workers a run is worth, and how its disks are cut for them. Pure.

Opening a replica costs a worker about a second (a login, half a dozen looks at the VM, the store's maps), and a slice
some 0.1 s (a lock, two looks, fdatasync, a checkpoint). At 145 MB/s, which is what one VDDK connection brings, 128 MiB
take 0.9 s and twice that 1.8 s: below a message costs more than it brings.
"""

from __future__ import annotations

#: parts of `tuning.slice_size`: smaller slices are not made, however many workers there are
PARTS = 8
#: slices for each worker: who is slower, or begins later, then ends at most a quarter of his share after the others
EACH = 4


def slice_bytes(total: int, *, most: int, workers: int) -> int:
    """How much work on a disk with `total` bytes to do makes one slice."""
    if workers < 2:
        return most
    return max(most // PARTS, min(most, -(-total // (workers * EACH))))


def worth(total: int, free: int, *, most: int, workers: int) -> int:
    """How many of `workers` should be at a run with `free` slices and `total` bytes to do; 1 = nobody else."""
    enough = 2 * (most // PARTS)
    return max(1, min(free, workers, total // max(1, enough)))
