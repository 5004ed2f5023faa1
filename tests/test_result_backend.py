"""The result backend under a real worker and a real Redis, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery import Celery
from celery.exceptions import ImproperlyConfigured, TaskRevokedError
from celery.result import AsyncResult, GroupResult

from tasks.result_backend import CatalogueBackend
from tests import results_app
from tests.services import Postgres, Program, Redis, wait_for
from workers.catalogue import Catalogue, fences, schema
from workers.errors import CatalogueUnreachable, NoSpace
from workers.models import Failure, RunKind, RunReport, Trigger


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def catalogue(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalogue]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('catalogue')}/catalogue.db"
    else:
        url = request.getfixturevalue("postgres").database()
    made = Catalogue.create(url)
    yield made
    made.close()


@contextmanager
def connected(catalogue: Catalogue, broker: str) -> Iterator[Celery]:
    """The app of the tasks, as a client of this broker and catalogue."""
    client = Celery("client", set_as_current=False)
    client.conf.update(results_app.SETTINGS, broker_url=broker, database_url=catalogue.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def worker(catalogue: Catalogue, redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Celery]:
    root = Path(__file__).parent.parent
    env = os.environ | {"TEST_REDIS": redis.url, "TEST_CATALOGUE": catalogue.url, "PYTHONPATH": str(root)}
    command = [*(sys.executable, "-m", "celery", "-A", "tests.results_app", "worker", "-c", "2", "--loglevel", "INFO")]
    command += ["--without-gossip", "--without-mingle"]
    program = Program(command, tmp_path_factory.mktemp("worker") / "log", env=env, cwd=root)
    try:
        wait_for(lambda: program.said("ready."), "the worker's start", timeout=60)
        with connected(catalogue, redis.url) as client:
            yield client
    finally:
        program.stop()


def send(client: Celery, task: str, **kwargs: Any) -> AsyncResult:
    return client.send_task(f"tests.results_app.{task}", kwargs=kwargs)


def ended(result: AsyncResult) -> AsyncResult:
    wait_for(result.ready, "the task's end", timeout=60)
    return result


def requested(catalogue: Catalogue, target: str) -> str:
    run, _ = catalogue.request_run(RunKind.SYNC, target, vm="db-01", site="dr", trigger=Trigger.AD_HOC)
    return run.id


@pytest.mark.parametrize("task", ["report", "report_as_dict"])
def test_a_report_is_readable_by_celery_and_by_sql(worker: Celery, catalogue: Catalogue, task: str) -> None:
    result = ended(send(worker, task, vm="web-01"))
    assert result.state == "SUCCESS"
    assert RunReport.model_validate(result.result) == results_app.REPORT
    assert result.name == f"tests.results_app.{task}" and result.kwargs == {"vm": "web-01"}
    with catalogue.read() as conn:
        row = conn.execute(sa.select(schema.task_results).where(schema.task_results.c.task_id == result.id)).one()
    assert json.loads(row.result) == results_app.REPORT.model_dump(mode="json")
    assert abs((catalogue.now() - row.date_done).total_seconds()) < 120
    assert catalogue.failures(vm="web-01") == []


def failure_of(catalogue: Catalogue, run_id: str) -> Failure:
    (failure,) = catalogue.failures(run=run_id)
    return failure


def test_an_unexpected_exception_is_a_failure_of_its_run_and_vm(worker: Celery, catalogue: Catalogue) -> None:
    run_id = requested(catalogue, "t-fault")
    result = ended(send(worker, "fault", run_id=run_id))
    assert result.state == "FAILURE" and "the third brace is missing" in str(result.traceback)
    failure = failure_of(catalogue, run_id)
    assert (failure.task, failure.vm, failure.kind, failure.family) == (result.id, "db-01", "sync", "fault")
    assert failure.message.startswith(
        "the task tests.results_app.fault for db-01 failed: ValueError: the third brace is missing."
    )


def test_an_error_of_ours_keeps_its_sentence_and_family(worker: Celery, catalogue: Catalogue) -> None:
    result = ended(send(worker, "full", run_id="unknown-run"))
    failure = failure_of(catalogue, "unknown-run")
    assert (failure.vm, failure.kind, failure.family) == (None, "tests.results_app.full", "no space")
    assert failure.message == "the store main is full; make room"
    assert isinstance(result.result, NoSpace)


@pytest.mark.parametrize(
    ("task", "family", "words"),
    [
        pytest.param("too_long", "time limit", "was ended by its time limit of 1 s", id="time limit"),
        pytest.param("no_checkpoint", "time limit", "within its soft time limit", id="soft time limit"),
        pytest.param("killed", "worker lost", "lost its process", id="killed process"),
    ],
)
def test_what_celery_ends_is_a_failure(
    worker: Celery, catalogue: Catalogue, task: str, family: str, words: str
) -> None:
    result = ended(send(worker, task, run_id=f"run-{task}", vm="web-02"))
    assert result.state == "FAILURE"
    failure = wait_for(lambda: catalogue.failures(run=f"run-{task}"), "the failure row")[0]
    assert (failure.task, failure.vm, failure.family) == (result.id, "web-02", family)
    assert words in failure.message


def test_a_revoked_task_is_a_failure(worker: Celery, catalogue: Catalogue) -> None:
    result = send(worker, "endless", run_id="run-endless", vm="web-03")
    wait_for(lambda: result.state == "STARTED", "the task's start")
    worker.control.revoke(result.id, terminate=True)
    ended(result)
    assert result.state == "REVOKED" and isinstance(result.result, TaskRevokedError)
    wait_for(lambda: catalogue.failures(run="run-endless"), "the word of the worker that had the task")
    failure = failure_of(catalogue, "run-endless")
    assert [told.message for told in catalogue.failures() if told.task == result.id] == [failure.message]
    assert (failure.vm, failure.family) == ("web-03", "revoked") and "called off (terminated)" in failure.message


def test_a_task_that_expired_is_a_failure_only_of_a_run(worker: Celery, catalogue: Catalogue) -> None:
    ticks = [
        worker.send_task("tests.results_app.report", kwargs={"vm": "tick"}, expires=-1),
        worker.send_task("tests.results_app.fault", kwargs={"run_id": "run-expired", "vm": "web-04"}, expires=-1),
    ]
    assert [ended(tick).state for tick in ticks] == ["REVOKED", "REVOKED"]
    assert catalogue.failures(vm="tick") == []
    assert "called off (expired)" in failure_of(catalogue, "run-expired").message


class Impatient(CatalogueBackend):
    """Hears of a locked database after a moment, so that it is the retries which are tried."""

    lock_wait = 0.1


@pytest.fixture
def backend(catalogue: Catalogue) -> Iterator[CatalogueBackend]:
    with connected(catalogue, "memory://") as client:
        yield Impatient(app=client)


def test_a_locked_catalogue_is_tried_again(catalogue: Catalogue, backend: CatalogueBackend) -> None:
    tries: list[BaseException] = []
    backend.on_backend_retryable_error = tries.append
    backend.store_result("locked", "before", "STARTED")
    storing = threading.Thread(target=backend.store_result, args=("locked", {"a": 1}, "SUCCESS"))
    with catalogue.write() as conn:
        fences.lock(conn, "x")
        conn.execute(sa.update(schema.task_results).values(worker="locked"))
        storing.start()
        wait_for(lambda: len(tries) >= 2, "two tries")
    storing.join(60)
    assert all(isinstance(err, CatalogueUnreachable) for err in tries)
    assert backend.get_result("locked") == {"a": 1}


def test_a_lock_that_stays_is_given_up_with_a_sentence(catalogue: Catalogue, backend: CatalogueBackend) -> None:
    backend.max_retries = 1
    backend.store_result("stuck", "before", "STARTED")
    with catalogue.write() as conn:
        conn.execute(sa.update(schema.task_results).values(worker="locked"))
        with pytest.raises(Exception, match="failed to store result") as caught:
            backend.store_result("stuck", 1, "SUCCESS")
    assert isinstance(caught.value.__cause__, CatalogueUnreachable)


def test_the_same_outcome_told_twice_is_one_failure(catalogue: Catalogue, backend: CatalogueBackend) -> None:
    for _ in range(2):
        backend.mark_as_failure("task-twice", NoSpace("full again; make room"))
    assert [failure.task for failure in catalogue.failures() if failure.message == "full again; make room"] == [
        "task-twice"
    ]


def test_a_result_is_not_undone_by_a_late_revoke(catalogue: Catalogue, backend: CatalogueBackend) -> None:
    backend.mark_as_done("done", {"a": 1})
    backend.mark_as_revoked("done", "revoked")
    assert (backend.get_state("done"), backend.get_result("done")) == ("SUCCESS", {"a": 1})
    assert [failure for failure in catalogue.failures() if failure.task == "done"] == []


def test_old_results_are_forgotten_and_failures_are_not(catalogue: Catalogue, backend: CatalogueBackend) -> None:
    backend.mark_as_failure("old", NoSpace("old and full"))
    backend.mark_as_done("young", 1)
    backend.mark_as_started("running")
    with catalogue.write() as conn:
        long_ago = catalogue.now() - timedelta(days=400)
        conn.execute(
            sa.update(schema.task_results).where(schema.task_results.c.task_id == "old").values(date_done=long_ago)
        )
    backend.cleanup()
    assert [backend.get_state(name) for name in ("old", "young", "running")] == ["PENDING", "SUCCESS", "STARTED"]
    assert any(failure.message == "old and full" for failure in catalogue.failures())
    backend.forget("young")
    assert backend.get_state("young") == "PENDING"


def test_groups_are_kept(backend: CatalogueBackend) -> None:
    group = GroupResult("g1", [AsyncResult("t1", app=backend.app, backend=backend)], app=backend.app)
    backend.save_group("g1", group)
    restored = backend.restore_group("g1")
    assert restored == group
    backend.delete_group("g1")
    assert backend.restore_group("g1") is None


def test_pickle_is_refused(catalogue: Catalogue) -> None:
    with connected(catalogue, "memory://") as client, pytest.raises(ImproperlyConfigured, match="set it to 'json'"):
        client.conf.result_serializer = "pickle"
        CatalogueBackend(app=client)


def test_celery_makes_no_tables_of_its_own(worker: Celery, catalogue: Catalogue) -> None:
    with catalogue.read() as conn:
        assert set(sa.inspect(conn).get_table_names()) == {*schema.metadata.tables, "alembic_version"}


def test_a_server_that_comes_back_gets_the_result(postgres: Postgres) -> None:
    catalogue = Catalogue.create(postgres.database())
    with connected(catalogue, "memory://") as client:
        backend = CatalogueBackend(app=client)
        tries: list[BaseException] = []
        backend.on_backend_retryable_error = tries.append  # type: ignore[method-assign]
        backend.store_result("t", 1, "STARTED")
        postgres.stop()
        storing = threading.Thread(target=backend.store_result, args=("t", 2, "SUCCESS"))
        try:
            storing.start()
            wait_for(lambda: len(tries) >= 2, "two tries")
        finally:
            postgres.start()
        storing.join(60)
        assert backend.get_result("t") == 2
    catalogue.close()
