"""The Celery app: its settings, each with its reason, and what a worker process has at hand.

`celery -A tasks.app` and the command `understudy` use the same. The configuration is the one that UNDERSTUDY_CONFIG or
the current directory names (workers/settings/).
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import task_postrun, task_prerun, worker_process_init
from kombu.entity import Queue

import beat_schedule
from tasks import current
from workers import configuration as in_words
from workers import settings
from workers.catalogue import Catalogue
from workers.errors import ConfigError
from workers.run import Here
from workers.settings import Settings, Tuning, seconds
from workers.store import Store

CONTROL = "control"


def configured() -> Settings:
    """The configuration that is in force in this process; a pool's children look for a newer one before each task."""
    return current.current().settings


_here: dict[int, Here] = {}
_in_pool = False


def here() -> Here:
    """Settings and catalogue of this process; a forked child opens its own."""
    if os.getpid() not in _here:
        _here.clear()
        _here[os.getpid()] = Here(configured(), Catalogue.open(configured().catalogue))
    return _here[os.getpid()]


def looking() -> tuple[Here, list[str]]:
    """For what only looks: here, and what must be said first. With files that are wrong it is what is in force at the
    workers; raises `ConfigError` when nobody knows that.
    """
    try:
        configured()
    except ConfigError as err:
        kept = in_words.last_in_force(settings.find(), err)
        if kept is None:
            raise
        return Here(kept.settings, kept.catalogue), [kept.sentence]
    return here(), in_words.notices(here().catalogue)


def data_queue(site: str) -> str:
    return f"data.{site}"


def adhoc_queue(site: str) -> str:
    return f"adhoc.{site}"


def task_limit(tuning: Tuning) -> int:
    """A slice, and what must still be waited for at its ends: vCenter is not quicker because slices are short."""
    work = seconds(tuning.slice_time)
    return max(work * 5 // 2, work + 4 * seconds(tuning.vcenter_wait))


def configuration(conf: Settings) -> dict[str, Any]:
    """Celery's settings. What Celery on Redis really loses was measured: see docs/architecture.md, "Celery"."""
    tuning, limit = conf.tuning, task_limit(conf.tuning)
    queues = [CONTROL, *(q for site in conf.sites for q in (adhoc_queue(site), data_queue(site)))]
    return {
        "broker_url": conf.redis,
        "result_backend": "tasks.result_backend:CatalogueBackend",
        # not in `result_backend`: Celery's reports hide the password of this one
        "database_url": conf.catalogue,
        # JSON only: a message or result must never be code
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # A message is acknowledged when its work is done, and goes back when its process dies; one at a time
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_track_started": True,
        # A task works for slice_time, then queues the rest. One that hangs loses its process, and its run goes on from
        # the last checkpoint. No soft limit: its exception may come between a request to vCenter and the answer, which
        # the next task on that connection would then take for its own.
        "task_time_limit": limit,
        "worker_soft_shutdown_timeout": 30,
        # Killing a writer because Redis dropped buys nothing: writes are idempotent and fenced
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "broker_transport_options": {
            # counted from delivery and never renewed: well above the hard limit, or a running task is delivered again
            "visibility_timeout": max(1800, 3 * limit),
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            # ad hoc before scheduled: queues in the order in which a worker names them
            "queue_order_strategy": "priority",
            "health_check_interval": 25,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "global_keyprefix": "understudy:",
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "result_backend_always_retry": True,
        "result_backend_max_retries": 60,
        "result_expires": 7 * 86400,
        "result_extended": True,
        # Flower reads these events
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        "timezone": "UTC",
        "task_default_queue": CONTROL,
        "task_create_missing_queues": False,
        "task_queues": [Queue(name, routing_key=name) for name in queues],  # type: ignore[no-untyped-call]
        "beat_schedule": beat_schedule.entries(
            dispatch=seconds(tuning.dispatch_every),
            reap=seconds(tuning.reap_every),
            inventory=seconds(tuning.inventory_every),
            prune=seconds(tuning.prune_every),
        ),
        "imports": [
            "tasks.backup",
            "tasks.replicate",
            "tasks.restore",
            "tasks.pairs",
            "tasks.holds",
            "tasks.verify",
            "tasks.copy",
            "tasks.dispatch",
            "tasks.maintenance",
        ],
    }


app = Celery("understudy", set_as_current=True)
app.add_defaults(lambda: configuration(configured()))


@worker_process_init.connect
def _fresh(**_: Any) -> None:
    """A pool child shares no database connection with its parent."""
    global _in_pool
    _in_pool = True
    _here.clear()


@task_prerun.connect
def _up_to_date(**_: Any) -> None:
    """A task begins with the newest configuration that is in order, and keeps it to its end."""
    if _in_pool and current.refresh(here().catalogue):
        _here[os.getpid()] = Here(configured(), here().catalogue)
        for site in configured().sites:
            for name in (adhoc_queue(site), data_queue(site)):  # of sites that were not there when this worker started
                if name not in app.amqp.queues:
                    app.amqp.queues.add(Queue(name, routing_key=name))  # type: ignore[no-untyped-call]


@task_postrun.connect
def _let_go(**_: Any) -> None:
    """An idle worker reads no store, whatever the last task's errors still hold."""
    if _in_pool:
        Store.close_all()
