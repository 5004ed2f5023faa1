"""A Celery app whose tasks end in every way there is; test_result_backend.py starts a worker of it."""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime
from typing import Any

from celery import Celery

from workers.errors import NoSpace
from workers.models import RunReport, SyncPoint

SETTINGS = {
    "result_backend": "tasks.result_backend:CatalogueBackend",
    "result_extended": True,
    "task_track_started": True,
    "worker_prefetch_multiplier": 1,
}

app = Celery("results_app")
app.conf.update(
    SETTINGS,
    broker_url=os.environ.get("TEST_REDIS", "memory://"),
    database_url=os.environ.get("TEST_CATALOGUE", "sqlite:////nonexistent/catalogue.db"),
)

REPORT = RunReport(
    run="r1",
    vm="web-01",
    outcome="succeeded",
    reason="12 ranges changed",
    written=4096,
    sync_point=SyncPoint(
        run="r1",
        pair="p1",
        vm="web-01",
        replica="uuid",
        point="00000001-x",
        parent=None,
        fence=3,
        data_time=datetime(2026, 3, 1, 12, tzinfo=UTC),
        committed=datetime(2026, 3, 1, 12, 5, tzinfo=UTC),
        mode="delta",
        change_ids={"d": None},
        written=4096,
    ),
)


@app.task
def report(*, vm: str) -> RunReport:
    return REPORT


@app.task
def report_as_dict(*, vm: str) -> dict[str, Any]:
    return REPORT.model_dump(mode="json")


@app.task
def fault(*, run_id: str, vm: str | None = None) -> None:
    raise ValueError("the third brace is missing")


@app.task
def full(*, run_id: str) -> None:
    raise NoSpace("the store main is full; make room")


@app.task(time_limit=1)
def too_long(*, run_id: str, vm: str) -> None:
    time.sleep(60)


@app.task(soft_time_limit=1)
def no_checkpoint(*, run_id: str, vm: str) -> None:
    time.sleep(60)


@app.task
def killed(*, run_id: str, vm: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def endless(*, run_id: str, vm: str) -> None:
    time.sleep(600)
