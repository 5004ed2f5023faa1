"""The processes that stay: Celery's worker, Beat and Flower, started in this very process with our queues and logs."""

from __future__ import annotations

import logging
import os
import socket
from datetime import UTC, datetime
from typing import Any

from tasks import logs
from workers.errors import NotFound


def worker(*, site: str | None, concurrency: int, as_json: bool) -> None:
    """Work on a site's runs, or with `site` None on the control queue. Returns when it was told to end."""
    # Read when Celery is imported: SIGTERM then gives what runs worker_soft_shutdown_timeout to come to the end of its
    # slice, and puts the rest back, instead of waiting for slices of minutes.
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
    from tasks import current
    from tasks.app import CONTROL, adhoc_queue, configured, data_queue, here

    sites = configured().sites
    if site is not None and site not in sites:
        raise NotFound(f"there is no site {site!r} in the configuration; it has {', '.join(sorted(sites)) or 'none'}")
    # An absent or older catalogue is a sentence now, not an error per task later.
    current.begin(site, here().catalogue)
    # In this order: what a person asked for before what was scheduled.
    queues = [CONTROL] if site is None else [adhoc_queue(site), data_queue(site)]
    _start(
        "worker",
        *("--queues", ",".join(queues)),
        *("--concurrency", str(concurrency)),
        *("--hostname", f"{site or CONTROL}@{socket.gethostname()}-{os.getpid()}"),
        # Chatter between workers that nothing here needs: at hundreds of workers it is Redis' main load.
        *("--without-gossip", "--without-mingle"),
        "--task-events",
        as_json=as_json,
    )


def beat(*, as_json: bool) -> None:
    """Send the ticks. Several Beats do no harm."""
    from celery import beat as celery_beat

    from tasks.app import app, here

    class AtOnce(celery_beat.Scheduler):  # type: ignore[misc]
        """In memory, for the entries never change; no file is left anywhere. All is due when it starts: a Beat that is
        often started again would else never come to what is due once an hour."""

        def setup_schedule(self) -> None:
            super().setup_schedule()
            for entry in self.schedule.values():
                entry.last_run_at = datetime(1970, 1, 1, tzinfo=UTC)

    here()
    _log(as_json)
    app.Beat(scheduler_cls=AtOnce, loglevel="INFO", quiet=True).run()


def flower(*, port: int, address: str) -> None:
    """Show workers and tasks in a browser; with a login configured, people may enqueue and revoke there, too."""
    from tasks.app import configured, here

    here()
    login = configured().flower
    if login is not None:  # by the environment: a password in the arguments is everybody's to read
        os.environ["FLOWER_BASIC_AUTH"] = f"{login.user}:{login.password()}"
    _start(
        "flower",
        # Flower runs a flowerconfig.py of the current folder as code: not one that happens to lie there.
        f"--conf={os.devnull}",
        f"--port={port}",
        f"--address={address}",
        "--tasks_columns=name,uuid,state,kwargs,result,received,started,runtime,worker",
        *(() if login is not None else ("--read_only",)),
        as_json=False,
    )


def _start(command: str, *arguments: str, as_json: bool) -> None:
    from tasks.app import app

    _log(as_json)
    # Quiet: no banner, which would show addresses with what is in them.
    app.start(["--quiet", command, *arguments])


def _log(as_json: bool) -> None:
    """Our logging instead of Celery's: connected, so that Celery leaves it alone."""
    from celery.signals import setup_logging

    def configure(**_: Any) -> None:
        logs.configure(logging.INFO, as_json=as_json)

    setup_logging.connect(configure, weak=False)
    configure()
