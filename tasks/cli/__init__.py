"""The command `understudy`: what a person asks for. One file per subject, in the order of --help.

Celery, pyVmomi and the like are imported in the commands that need them, so that --help and a usage error are quick.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer

from tasks import logs, show
from tasks.cli.application import app
from workers.errors import UnderstudyError

# The files of commands, in the order of --help: importing one makes its commands known.
# isort: off
from tasks.cli import (  # noqa: F401
    first,
    config,
    work,
    verify,
    copy,
    restore,
    pairs,
    look,
    group,
    store,
    store_key,
    processes,
    lab,
)
# isort: on

#: shown by --debug instead of being written to a file
_debug = False


@app.callback()
def common(
    file: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="The configuration.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Log everything, and show where errors come from.")] = False,
) -> None:
    """Keep a warm copy of every VMware VM."""
    global _debug
    _debug = debug
    if file is not None:
        # For this process and the children of its workers: they must all read the same.
        os.environ["UNDERSTUDY_CONFIG"] = str(file.absolute())
    logs.configure(logging.DEBUG if debug else logging.WARNING)


def main(arguments: list[str] | None = None) -> None:
    """The console script. Exit codes: 0 done, 1 an error (one sentence on stderr), 2 wrong usage, 130 Ctrl-C."""
    try:
        app(args=arguments)
    except UnderstudyError as err:
        _show_traceback()
        show.complain(f"understudy: {err}")
        sys.exit(1)
    except Exception as err:
        show.complain(f"understudy: unexpected {type(err).__name__}: {_first_line(err)}\n{_details()}")
        sys.exit(1)


def _show_traceback() -> None:
    if _debug:
        traceback.print_exc()


def _details() -> str:
    """Where the traceback is: it is for a report, not for whoever only wanted a backup."""
    if _debug:
        traceback.print_exc()
        return "This is a fault of the program; please report it."
    try:
        with tempfile.NamedTemporaryFile("w", prefix="understudy-error-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        return f"This is a fault of the program; please report it with {file.name}"
    except OSError:
        return "This is a fault of the program; `understudy --debug ...` shows where it comes from."


def _first_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return lines[0] if lines else "(no message)"
