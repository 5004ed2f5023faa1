"""A lock in a bucket, over a way on which answers get lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.conftest import objects
from tests.store.objects import ObjectPath
from workers.errors import Conflict, StoreUnreachable
from workers.store import presence


def test_a_renewal_whose_answer_is_lost_keeps_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be nobody's, and taken, for a quarter of an hour: no prune meanwhile."""
    lock = objects(tmp_path) / "prune.lock"
    held, real = presence._Held(lock), ObjectPath.swap
    assert held.taken() and not presence._Held(lock).taken()

    def swap(self: ObjectPath, was: bytes, data: bytes) -> None:
        real(self, was, data)
        raise StoreUnreachable("the answer is lost")

    with monkeypatch.context() as lossy:
        lossy.setattr(ObjectPath, "swap", swap)
        for _ in range(3):
            with pytest.raises(StoreUnreachable):
                held.renew()
    held.renew()
    held.release()
    other = presence._Held(lock)
    assert other.taken()
    with pytest.raises(Conflict):
        held.renew()
