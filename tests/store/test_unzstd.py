"""Both ways to decompress give the same bytes, and refuse the same frames."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.store.disks import noise
from workers.store import unzstd

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdCompressor, ZstdError
else:
    from backports.zstd import ZstdCompressor, ZstdError


@pytest.fixture(params=["libzstd", "without"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unzstd.library() is not None, "libzstd1 is part of every Debian"
    if request.param == "without":
        monkeypatch.setattr(unzstd, "library", lambda: None)


@pytest.mark.usefixtures("_way")
def test_frames() -> None:
    contents = [noise(700, 1) * 300, noise(4096, 2), b"x", b"abc" * 90_000]
    codec = ZstdCompressor(level=1)
    frames = [codec.compress(content, ZstdCompressor.FLUSH_FRAME) for content in contents]

    def decoded(_: int) -> list[bytes]:
        made = [unzstd.decompress(memoryview(f), len(c)) for f, c in zip(frames, contents, strict=True)]
        assert all(each.readonly for each in made)
        return [bytes(each) for each in made]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(decoded, range(9))) == [contents] * 9


@pytest.mark.usefixtures("_way")
def test_beginnings() -> None:
    """Of three blocks of a frame, and of a frame after another one that was left in the middle."""
    contents = [noise(700, 1) * 550, b"abc" * 90_000, noise(4096, 2), b"x"]
    codec = ZstdCompressor(level=1)
    frames = [codec.compress(content, ZstdCompressor.FLUSH_FRAME) for content in contents]
    for share in (0.01, 0.4, 0.5, 0.51, 0.9, 1):
        for content, frame in zip(contents, frames, strict=True):
            wanted = max(1, int(len(content) * share))
            assert bytes(unzstd.beginning(memoryview(frame), len(content), wanted)[:wanted]) == content[:wanted]
            assert bytes(unzstd.decompress(memoryview(frame), len(content))) == content
    with pytest.raises(ZstdError):
        unzstd.beginning(memoryview(b"no frame" + frames[0]), len(contents[0]), 10)
    assert len(unzstd.beginning(memoryview(frames[0])[:40], len(contents[0]), 1000)) < 1000, "cut off: fewer bytes"


@pytest.mark.usefixtures("_way")
def test_what_is_damaged_is_refused_or_not_what_it_was() -> None:
    content = noise(500, 3) * 400
    frame = bytearray(ZstdCompressor(level=1).compress(content, ZstdCompressor.FLUSH_FRAME))
    with pytest.raises(ZstdError):
        unzstd.decompress(memoryview(b"no frame" + bytes(frame)), len(content))
    for at in range(0, len(frame), 97):
        broken = bytearray(frame)
        broken[at] ^= 0x40
        try:
            found = bytes(unzstd.decompress(memoryview(broken), len(content)))
        except ZstdError:
            continue
        assert len(found) <= len(content)
    try:
        assert bytes(unzstd.decompress(memoryview(frame)[:-9], len(content))) != content
    except ZstdError:
        pass
