"""Ranges of a disk, read and laid one after the other into one piece of memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workers.point import Filling, Reader


def gather(reader: Reader, ranges: Sequence[tuple[int, int]], into: NDArray[np.uint8]) -> int:
    """The ranges, one after the other in `into`; what lies beyond the disk is zeroes. Returns the bytes read."""
    inside = [(offset, min(length, reader.size - offset)) for offset, length in ranges if offset < reader.size]
    held = sum(length for _, length in inside)
    into[held:] = 0
    fill(reader, inside, into[:held].data)
    return held


def fill(reader: Reader, batch: Sequence[tuple[int, int]], into: memoryview) -> None:
    """All of them, in `into`, which has exactly their size."""
    if isinstance(reader, Filling):
        reader.fill(batch, into)
    else:
        spread_out(reader.read(batch), batch, batch, np.frombuffer(into, np.uint8))


def gather_some(
    reader: Reader, ranges: Sequence[tuple[int, int]], wanted: list[tuple[int, int]], into: NDArray[np.uint8]
) -> int:
    """As `gather`, only the `wanted` parts of the ranges; the rest of `into` stays."""
    inside = [(offset, min(length, reader.size - offset)) for offset, length in wanted if offset < reader.size]
    spread_out(reader.read(inside) if inside else [], inside, ranges, into)
    return sum(length for _, length in inside)


def spread_out(
    pieces: Sequence[tuple[int, int, memoryview | bytes | None]],
    asked: Sequence[tuple[int, int]],
    ranges: Sequence[tuple[int, int]],
    into: NDArray[np.uint8],
) -> None:
    """`pieces` must be exactly what was `asked`, in order: anything else would become wrong bytes."""
    target = iter(ranges)
    begin, length = next(target, (0, 0))
    position = 0
    wanted = iter(asked)
    offset, left = next(wanted, (0, 0))
    for piece in pieces:
        if piece[0] != offset or piece[1] > left:
            raise ValueError(f"the source was asked for {left} bytes at {offset} and gave {piece[1]} at {piece[0]}")
        while offset >= begin + length:
            position += length
            begin, length = next(target)
        at = position + offset - begin
        into[at : at + piece[1]] = 0 if piece[2] is None else np.frombuffer(piece[2], np.uint8)
        offset, left = offset + piece[1], left - piece[1]
        if not left:
            offset, left = next(wanted, (0, 0))
    if left:
        raise ValueError(f"the source was asked for bytes at {offset} and gave nothing")
