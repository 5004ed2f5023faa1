"""The command `understudy` inside the test's own process: quicker than one of its own, for what only looks."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import kombu.pools
import structlog

from tasks import app as celery_app
from tasks import cli, current


def run(*arguments: str) -> int:
    """Its exit code; what it prints goes where this process prints."""
    try:
        cli.main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@contextmanager
def forgetting() -> Iterator[None]:
    """Nothing that was configured before is known inside, nor afterwards what was configured inside."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    named = os.environ.get("UNDERSTUDY_CONFIG")
    _forget()
    try:
        yield
    finally:
        _forget()
        os.environ.pop("UNDERSTUDY_CONFIG", None)  # --config sets it
        if named is not None:
            os.environ["UNDERSTUDY_CONFIG"] = named
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


def _forget() -> None:
    for here in celery_app._here.values():
        here.catalogue.close()
    celery_app._here.clear()
    current.forget()
    _forget_celerys()


def _forget_celerys() -> None:
    """Celery reads its configuration once: the Redis of an earlier test, which is gone, would be asked for ever."""
    app = celery_app.app
    if not app.configured:
        return
    kombu.pools.reset()
    app._conf, app.configured = None, False
    app._pool = app._backend_cache = None
    app._local = threading.local()
    for made in ("amqp", "control", "events"):
        app.__dict__.pop(made, None)
    app.add_defaults(lambda: celery_app.configuration(celery_app.configured()))
