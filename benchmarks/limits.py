"""What the machine allows, measured in the same run: the codec alone, the way to a disk alone, read and hash alone.

python -m benchmarks.limits WHAT DISK [--out FILE] [--threads 2]      prints the seconds
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from blake3 import blake3

from benchmarks.ours import descriptor
from workers.disks.file import FileReader
from workers.extents import Extents
from workers.point import BATCH
from workers.store.layout import BLOCK
from workers.store.unzstd import decompress

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor
else:
    from backports.zstd import ZstdCompressor


def shared(work: Iterable[object], do: Callable[[object], None], threads: int) -> float:
    """Seconds that so many threads take for all of it."""
    todo, turn = iter(work), threading.Lock()

    def run() -> None:
        while True:
            with turn:
                part = next(todo, None)
            if part is None:
                return
            do(part)

    helpers = [threading.Thread(target=run) for _ in range(threads)]
    began = time.perf_counter()
    for helper in helpers:
        helper.start()
    for helper in helpers:
        helper.join()
    return time.perf_counter() - began


def read_whole(disk: Path) -> list[tuple[int, bytes]]:
    """What is allocated of the disk, in memory, in the blocks that the store has."""
    reader = FileReader(descriptor(disk))
    return [(piece.offset, bytes(piece.data or b"")) for part in reader.allocated().batches(BATCH)
            for piece in reader.read(list(Extents.of(part).cut(BLOCK)))]  # fmt: skip


def zstd(disk: Path, threads: int) -> float:
    """Compression of all blocks, which are in memory before and after."""
    blocks = read_whole(disk)
    own = threading.local()

    def compress(part: object) -> None:
        if not hasattr(own, "codec"):
            own.codec = ZstdCompressor(level=1)
        assert isinstance(part, tuple)
        own.codec.compress(part[1], ZstdCompressor.FLUSH_FRAME)

    return shared(blocks, compress, threads)


def restore(disk: Path, out: Path, threads: int) -> float:
    """Decompression, a digest and a write past the page cache of all blocks, whose frames are in memory; synced."""
    codec, frames = ZstdCompressor(level=1), []
    size = disk.stat().st_size
    for offset, data in read_whole(disk):
        frames.append((offset, codec.compress(data, ZstdCompressor.FLUSH_FRAME), blake3(data).digest()))
    batches = [frames[i : i + BATCH // BLOCK] for i in range(0, len(frames), BATCH // BLOCK)]
    own = threading.local()
    began = time.perf_counter()
    fd = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
    os.ftruncate(fd, size)

    def bring(part: object) -> None:
        if not hasattr(own, "memory"):
            own.memory = memoryview(mmap.mmap(-1, BATCH))
        assert isinstance(part, list)
        start, end, filled = part[0][0], part[0][0], 0
        for offset, frame, digest in part:
            data = decompress(memoryview(frame), BLOCK)
            assert blake3(data).digest() == digest
            if offset != end:
                os.pwrite(fd, own.memory[:filled], start)
                start, end, filled = offset, offset, 0
            own.memory[filled : filled + len(data)] = data
            filled, end = filled + len(data), end + len(data)
        os.pwrite(fd, own.memory[:filled], start)

    shared(batches, bring, threads)
    os.fdatasync(fd)
    return time.perf_counter() - began


def scan(disk: Path, threads: int) -> float:
    """Reading and hashing what is allocated, in the store's blocks."""
    reader = FileReader(descriptor(disk))

    def look(part: object) -> None:
        assert isinstance(part, list)
        for piece in reader.read(part):
            view = memoryview(piece.data or b"")
            for start in range(0, len(view), BLOCK):
                blake3(view[start : start + BLOCK]).digest()

    return shared(reader.allocated().batches(BATCH), look, threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("what", choices=["zstd", "restore", "scan"])
    parser.add_argument("disk", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.what == "restore":
        seconds = restore(args.disk, args.out, args.threads)
    else:
        seconds = {"zstd": zstd, "scan": scan}[args.what](args.disk, args.threads)
    print(json.dumps({"seconds": round(seconds, 3)}))


if __name__ == "__main__":
    main()
