"""What keeps everything tidy: the reaper's tick, and the pruning of stores."""

from __future__ import annotations

from typing import Any

from tasks.app import app, data_queue, here
from tasks.dispatch import call_helpers, queue_of, send
from tasks.waiting import runs_in
from workers import grace, reaper
from workers import prune as retention
from workers.copies import keeper
from workers.settings import seconds


@app.task(name="understudy.reap", ignore_result=True)
def reap() -> None:
    """Runs whose worker or message vanished get a new message, those that lost helpers new ones; a worker of their
    site cleans failed backups up.

    A message that still waits is not lost, its queue is merely long. Without that look a night's backlog of 5,000 runs
    would get another 5,000 messages every half minute, and Redis would be full by the morning.
    """
    found = reaper.reap(here())
    runs = [*found.lost, *(run for run, _ in found.short)]
    queues = {*map(queue_of, runs), *(data_queue(run.site) for run in found.unclean)}
    waiting = runs_in(queues) if queues else set()
    here().catalogue.mark_sent(run.id for run in runs if run.id in waiting)
    send([run for run in found.lost if run.id not in waiting])
    for run, count in found.short:
        if run.id not in waiting:
            call_helpers(run, count)
    for run in found.unclean:
        if run.id not in waiting:
            app.send_task(
                "understudy.backup.clean", kwargs={"run": run.id, "vm": run.vm}, queue=data_queue(run.site), expires=600
            )


@app.task(name="understudy.prune", ignore_result=True)
def prune() -> None:
    """Have each store pruned by a worker of a site that backs up to it; drop what of the history is too old."""
    grace.forget_strangers(here(), here().catalogue.now())
    for store in here().settings.stores:
        if (site := keeper(here().settings, store)) is None:
            continue
        prune_store.apply_async(kwargs={"store": store}, queue=data_queue(site), expires=3600)
    here().catalogue.drop_history(seconds(here().settings.tuning.keep_history))


@app.task(name="understudy.prune.store")
def prune_store(store: str) -> dict[str, Any]:
    """Retention, also for VMs whose backups stand still; then free what no restore point needs, for a slice at most."""
    retired = retention.store(here(), store)
    freed = retention.free(here(), store, seconds=seconds(here().settings.tuning.slice_time))
    gone = {each.name: list(each.points) for each in retired if each.points}
    troubles = [sentence for each in retired for sentence in each.troubles]
    return {"retired": gone, "troubles": troubles, **freed.model_dump(mode="json")}
