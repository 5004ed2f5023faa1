"""Extents against plain sets of bytes."""

from hypothesis import given
from hypothesis import strategies as st

from workers.extents import EMPTY, Extents

N = 80
ranges = st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, 12)), max_size=8)


def model(pairs: list[tuple[int, int]]) -> set[int]:
    return {x for offset, length in pairs for x in range(offset, offset + length)}


def bytes_of(extents: Extents) -> set[int]:
    found = [x for offset, length in extents for x in range(offset, offset + length)]
    assert len(found) == len(set(found)) == extents.total
    return set(found)


@given(ranges, ranges)
def test_set_operations(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    x, y = Extents.of(a), Extents.of(b)
    assert bytes_of(x) == model(a)
    assert bytes_of(x | y) == model(a) | model(b)
    assert bytes_of(x & y) == model(a) & model(b)
    assert bytes_of(x - y) == model(a) - model(b)
    assert (x == y) == (model(a) == model(b))


@given(ranges, st.integers(0, N), st.integers(0, N))
def test_clip_and_complement(a: list[tuple[int, int]], start: int, end: int) -> None:
    x = Extents.of(a)
    assert bytes_of(x.clip(start, end)) == {v for v in model(a) if start <= v < end}
    assert bytes_of(x.complement(N)) == set(range(N)) - model(a)


@given(ranges, st.integers(1, 9))
def test_align_widens_to_the_grain(a: list[tuple[int, int]], grain: int) -> None:
    size = max(N, Extents.of(a).end)
    wanted = {v for x in model(a) for v in range(x // grain * grain, min(size, (x // grain + 1) * grain))}
    assert bytes_of(Extents.of(a).align(grain, size)) == wanted


@given(ranges, st.integers(1, 9), st.integers(1, 3))
def test_batches_cover_everything_once_in_order(a: list[tuple[int, int]], size: int, most: int) -> None:
    batches = list(Extents.of(a).batches(size, most))
    flat = [part for batch in batches for part in batch]
    assert flat == sorted(flat)
    assert model(flat) == model(a)
    assert sum(n for _, n in flat) == len(model(a))
    for batch in batches:
        assert 0 < sum(n for _, n in batch) <= size
        assert len(batch) <= most


def test_empty_is_false_and_ends_at_zero() -> None:
    assert not EMPTY
    assert EMPTY.end == EMPTY.total == 0
    assert not Extents.of([(5, 0)])
