"""Beat's tick and the sending of runs: one message per run, to the queue of the site that has to do the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kombu.exceptions import KombuError

from tasks.app import adhoc_queue, app, data_queue, here
from workers import dispatch
from workers.errors import BadInput, BrokerUnreachable
from workers.models import Run, RunKind, RunReport, Trigger
from workers.replica_held import BACK_TO
from workers.run import Here
from workers.scrub import LATE
from workers.undo import SYNC_POINT

WORK = {
    RunKind.BACKUP: "understudy.backup.run",
    RunKind.SYNC: "understudy.sync.run",
    RunKind.RESTORE: "understudy.restore.run",
    RunKind.VERIFY: "understudy.verify.run",
    RunKind.COPY: "understudy.copy.run",
    RunKind.ADOPT: "understudy.adopt.run",
    RunKind.FORGET: "understudy.forget.run",
}

#: what helps with a run: the same, for its free slices only. Others (a verification reads gently) have one worker
HELP = {
    RunKind.BACKUP: "understudy.backup.slice",
    RunKind.SYNC: "understudy.sync.slice",
    RunKind.RESTORE: "understudy.restore.slice",
    RunKind.COPY: "understudy.copy.slice",
}


#: of a message that waits behind all others of its queue; kombu on Redis counts down from 0
LAST = 9


@app.task(name="understudy.dispatch", ignore_result=True)
def tick() -> None:
    """Request and send what is due. May come twice, late or never: the next tick finds what is due, once."""
    send(dispatch.dispatch(here(), here().catalogue.now()))


@app.task(name="understudy.inventory", ignore_result=True)
def inventories() -> None:
    """Have each site's inventory read by a worker that can reach it."""
    for site in here().settings.sites:
        discover.apply_async(kwargs={"site": site}, queue=data_queue(site), expires=600)


@app.task(name="understudy.discover")
def discover(site: str) -> str:
    """Read one site's inventory into the catalogue."""
    return f"{dispatch.discover(here(), site)} VMs at {site}"


def send(runs: Sequence[Run], countdown: float | None = None) -> None:
    """A message for each run, published in batches (1,800 to 2,900/s measured, one by one 600 to 1,400).

    Raises `BrokerUnreachable`: the runs stay in the catalogue and the reaper sends them when Redis is back.
    """
    _publish([(WORK[run.kind], run) for run in runs], countdown)


def call_helpers(run: Run, count: int) -> None:
    """Messages for so many more workers of the run's site. Whoever takes one looks what is left to do.

    What undoes from what was kept reads that in one order: nobody can help.
    """
    if run.kind in HELP and run.memory.get(BACK_TO) != SYNC_POINT:
        _publish([(HELP[run.kind], run)] * count)


def with_helpers() -> Here:
    """What a worker has at hand, and whom it asks for help."""
    return replace(here(), call_helpers=call_helpers)


def _publish(messages: Sequence[tuple[str, Run]], countdown: float | None = None) -> None:
    if not messages:
        return
    try:
        with app.producer_or_acquire() as producer, producer.batch(1000):
            for task, run in messages:
                _send(task, run, producer, countdown)
    except (KombuError, OSError, AttributeError) as err:  # kombu's channel may be without its connection just then
        raise BrokerUnreachable(
            f"Redis at {_address()} does not answer ({_short(err)}); {len(messages)} runs stay queued in the catalogue "
            "and go on by themselves when it is back"
        ) from err
    here().catalogue.mark_sent({run.id for _, run in messages})


def _send(task: str, run: Run, producer: Any, countdown: float | None) -> None:
    late = LATE in run.memory
    app.send_task(
        task,
        kwargs={"run": run.id, "vm": run.vm},
        kwargsrepr=f"vm={run.vm} run={run.id} trigger={run.trigger}",
        queue=queue_of(run),
        countdown=countdown,
        producer=producer,
        # a scrub: whatever else is due at the site goes first, unless that has gone on for too long
        priority=LAST if run.kind is RunKind.VERIFY and run.trigger is Trigger.SCHEDULE and not late else None,
    )


def queue_of(run: Run) -> str:
    return adhoc_queue(run.site) if run.trigger is Trigger.AD_HOC else data_queue(run.site)


def done(report: RunReport) -> dict[str, Any]:
    """What a task that worked on a run answers. What follows from it is queued now; the reaper would do it, later."""
    if report.outcome == "helps":
        call_helpers(here().catalogue.run(report.run), 1)
    if report.outcome in ("continues", "waiting"):
        run = here().catalogue.run(report.run)
        pause = (run.not_before - here().catalogue.now()).total_seconds() if run.not_before else 0.0
        send([run], countdown=pause + 0.1 if pause > 0 else None)
    if report.outcome == "succeeded" and report.point is not None:
        run = here().catalogue.run(report.run)
        if run.kind in (RunKind.BACKUP, RunKind.COPY):
            _, store, uuid = run.target.split(":", 2)
            send(dispatch.after_backup(here(), uuid, store, report.point))
    return report.model_dump(mode="json")


def send_requested(requested: Iterable[tuple[Run, bool]]) -> list[dict[str, Any]]:
    """Send those that were made now; say of each what became of the request."""
    requested = list(requested)
    send([run for run, created in requested if created])
    return [
        {"run": run.id, "vm": run.vm, "kind": run.kind, "site": run.site, "joined": not created, "state": run.state}
        for run, created in requested
    ]


def only_known(takes: str, more: Sequence[Any], unknown: Mapping[str, Any]) -> None:
    """Refuse arguments that a task does not know. The tasks that people enqueue take any, so that a mistake is a
    sentence in the result: when Celery checks, Flower's API answers with an internal server error.
    """
    if more or unknown:
        wrong = ", ".join([*unknown, *map(repr, more)])
        raise BadInput(f"{takes}, not {wrong}; nothing was requested")


def _address() -> str:
    return str(app.connection().as_uri())


def _short(err: Exception) -> str:
    return str(err).splitlines()[0] if str(err) else type(err).__name__
