"""What a pool process does around its tasks, and which Redis is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery.signals import task_postrun

from tasks import app, diagnose
from tests.command import forgetting
from tests.configurations import ONE_STORE
from tests.services import Redis
from workers.store import Store


def test_a_pool_process_reads_no_store_between_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it goes on as a reader while it is idle, for whom every prune waits."""
    store = Store.create(tmp_path / "store")
    assert store.points("vm") == []
    task_postrun.send(sender=None)
    assert len(list((store.path / "readers").iterdir())) == 1, "a program that is no pool process is left alone"
    monkeypatch.setattr(app, "_in_pool", True)  # what the pool's own signal does
    task_postrun.send(sender=None)
    assert list((store.path / "readers").iterdir()) == []


def test_each_configuration_has_its_own_redis_also_within_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests that share a process asked the first one's, which was gone: now and then `check` failed."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with Redis() as redis, forgetting():
            Path("understudy.toml").write_text(ONE_STORE.replace("redis://127.0.0.1:1/0", redis.url))
            assert f":{redis.port}/0, version" in diagnose._redis()
            assert app.app.control.inspect(timeout=0.01).active_queues() is None
            assert app.app.conf.broker_url == redis.url
