"""What a pool process does around its tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery.signals import task_postrun

from tasks import app
from workers.store import Store


def test_a_pool_process_reads_no_store_between_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it goes on as a reader while it is idle, for whom every prune waits."""
    store = Store.create(tmp_path / "store")
    assert store.points("vm") == []
    task_postrun.send(sender=None)
    assert len(list((store.path / "readers").iterdir())) == 1, "a program that is no pool process is left alone"
    monkeypatch.setattr(app, "_in_pool", True)
    task_postrun.send(sender=None)
    assert list((store.path / "readers").iterdir()) == []
