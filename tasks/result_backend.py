"""Celery's result backend in the catalogue's database: results as JSON, bad ends as failures.

    app.conf.update(
        result_backend="tasks.result_backend:CatalogueBackend",
        database_url=settings.catalogue,  # not in `result_backend`: Celery's reports hide this one's password
    )

What a run has reached is in the runs and sync points, which its task writes; a result only shows it. But when a task
is ended by a time limit, is revoked, loses its process or fails in a way nobody expected, there is nobody left to
write a failure: then this does, in one transaction with the result. Run and VM are the task's keyword arguments
`run_id` (or `run`) and `vm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from celery import states
from celery.backends.database import DatabaseBackend
from celery.exceptions import (
    ImproperlyConfigured,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.result import result_from_tuple
from pydantic import BaseModel

from workers.catalogue import failures, schema
from workers.catalogue.database import LOCK_WAIT, Database, now, upsert
from workers.errors import Transient, UnderstudyError
from workers.models import Failure

T = schema.task_results.c
G = schema.task_groups.c

#: How often a result is offered to a database that does not take it, unless result_backend_max_retries says otherwise.
#: The pauses grow to 10 s: some five minutes, within a task's time limit.
MAX_RETRIES = 30

_REPORTED = ("name", "args", "kwargs", "worker", "retries", "queue")


@lru_cache(maxsize=8)
def _shared(url: str, lock_wait: float) -> Database:
    """Celery makes a backend per thread; their database is one."""
    return Database(url, lock_wait=lock_wait)


class CatalogueBackend(DatabaseBackend):  # type: ignore[misc]  # Celery has no types
    """Its tables are made by the catalogue's migrations, never by Celery."""

    lock_wait: float = LOCK_WAIT

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.serializer != "json":
            raise ImproperlyConfigured(
                f"result_serializer = {self.serializer!r}: the catalogue keeps results as JSON; set it to 'json'"
            )
        # A finished task must not become a failed one because its result could not be told at once.
        self.always_retry = True
        self.max_retries: float = MAX_RETRIES if self.max_retries == float("inf") else self.max_retries

    @property
    def database(self) -> Database:
        return _shared(self.url, self.lock_wait)

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, Transient)

    def on_backend_retryable_error(self, exc: BaseException) -> None:
        """Nothing to reset: the engine replaces dead connections by itself."""

    def prepare_value(self, result: Any) -> Any:
        return result.model_dump(mode="json") if isinstance(result, BaseModel) else super().prepare_value(result)

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        failed = state in (states.FAILURE, states.REVOKED) and isinstance(result, BaseException)
        outcome = result if failed else None
        return super().store_result(task_id, result, state, traceback, request=request, outcome=outcome, **kwargs)

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        outcome: BaseException | None = None,
        **_kwargs: Any,
    ) -> None:
        meta = self._get_result_meta(result=result, state=state, traceback=None, request=request, format_date=False)
        line: dict[str, Any] = {name: meta.get(name) for name in _REPORTED}
        for name in ("args", "kwargs"):
            line[name] = None if line[name] is None else self.encode(line[name])
        line |= {"task_id": task_id, "status": state, "result": self.encode(result)}
        line["traceback"] = None if traceback is None else str(traceback)
        with self.database.write() as conn:
            line["date_done"] = now(conn) if state in states.READY_STATES else None
            known = conn.execute(sa.select(T.status).where(T.task_id == task_id).with_for_update()).scalar_one_or_none()
            if known != states.SUCCESS:  # as in Celery's other backends: a copy of the message does not undo it
                told = ("status", "result", "traceback", "date_done")
                upsert(conn, schema.task_results, [line], update=told if request is None else (*told, *_REPORTED))
            if outcome is not None and _is_final(outcome, request):
                _record(conn, task_id, outcome, request)

    def _get_task_meta_for(self, task_id: str) -> Any:
        with self.database.read() as conn:
            row = conn.execute(sa.select(schema.task_results).where(T.task_id == task_id)).one_or_none()
        if row is None:
            return {"task_id": task_id, "status": states.PENDING, "result": None, "traceback": None, "date_done": None}
        meta = dict(row._mapping)
        for name in ("result", "args", "kwargs"):
            meta[name] = None if meta[name] is None else self.decode(meta[name])
        return self.meta_from_decoded(meta)

    def _forget(self, task_id: str) -> None:
        with self.database.write() as conn:
            conn.execute(sa.delete(schema.task_results).where(T.task_id == task_id))

    def _save_group(self, group_id: str, result: Any) -> Any:
        with self.database.write() as conn:
            line = {"taskset_id": group_id, "result": self.encode(result.as_tuple()), "date_done": now(conn)}
            upsert(conn, schema.task_groups, [line], update=("result", "date_done"))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        with self.database.read() as conn:
            row = conn.execute(sa.select(schema.task_groups).where(G.taskset_id == group_id)).one_or_none()
        if row is None:
            return None
        return dict(row._mapping) | {"result": result_from_tuple(self.decode(row.result), self.app)}

    def _delete_group(self, group_id: str) -> None:
        with self.database.write() as conn:
            conn.execute(sa.delete(schema.task_groups).where(G.taskset_id == group_id))

    def cleanup(self) -> None:
        """Forget the results older than result_expires. Failures stay."""
        if not self.expires:
            return
        with self.database.write() as conn:
            old = now(conn) - self.expires
            conn.execute(sa.delete(schema.task_results).where(T.date_done < old))
            conn.execute(sa.delete(schema.task_groups).where(G.date_done < old))

    def _create_tables(self) -> None:
        """Left to `understudy init`."""


def _is_final(outcome: BaseException, request: Any) -> bool:
    """Whether the task ends so. A call to revoke is first noted by every worker that hears it, the task not at hand;
    the one that has the task tells it again, or the task runs on to its own end.
    """
    return request is not None or not isinstance(outcome, TaskRevokedError)


def _record(conn: sa.Connection, task_id: str, outcome: BaseException, request: Any) -> None:
    given = getattr(request, "kwargs", None)
    kwargs: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    run_id = _text(kwargs.get("run_id") or kwargs.get("run"))
    if run_id is None and isinstance(outcome, TaskRevokedError) and "expired" in outcome.args:
        return  # a tick that came too late; the next one does its work
    run = conn.execute(sa.select(schema.runs.c.kind, schema.runs.c.vm).where(schema.runs.c.id == run_id)).one_or_none()
    name = getattr(request, "task", None) or "unknown task"
    vm = _text(kwargs.get("vm")) or (run.vm if run is not None else None)
    family, message = _told(f"the task {name}" + (f" for {vm}" if vm else ""), outcome)
    failures.insert(
        conn,
        Failure(
            at=now(conn),
            run=run_id,
            task=task_id,
            vm=vm,
            kind=run.kind if run is not None else name,
            family=family,
            message=message,
        ),
    )


def _text(value: Any) -> str | None:
    """What a message says may be of any type; a failure that can not be written would leave its caller waiting."""
    return value if isinstance(value, str) else None


def _told(what: str, outcome: BaseException) -> tuple[str, str]:
    """The family and the sentence of a task's end."""
    if isinstance(outcome, UnderstudyError):
        return outcome.family, str(outcome)
    goes_on = "a run that it worked on goes on from its last checkpoint when the lease has run out"
    if isinstance(outcome, TimeLimitExceeded):
        limit = outcome.args[0] if outcome.args else "?"
        return "time limit", f"{what} was ended by its time limit of {limit} s; {goes_on}"
    if isinstance(outcome, SoftTimeLimitExceeded):
        return "time limit", f"{what} did not come to a checkpoint within its soft time limit; {goes_on}"
    if isinstance(outcome, WorkerLostError):
        return "worker lost", f"{what} lost its process ({outcome}); {goes_on}"
    if isinstance(outcome, TaskRevokedError):
        return "revoked", f"{what} was called off ({outcome}); {goes_on}"
    kind = type(outcome).__name__
    return "fault", f"{what} failed: {kind}: {outcome}. This is a fault of this program; please report it with its log"
