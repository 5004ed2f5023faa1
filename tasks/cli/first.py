"""Setting up: the first configuration, and whether everything that it names is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tasks import show
from tasks.cli.application import Json, app
from workers import settings
from workers.errors import ConfigError


@app.command()
def init(
    folder: Annotated[Path, typer.Option("--dir", help="Where to write the example configuration.")] = Path("."),
) -> None:
    """Write an example configuration; once there is one, make the catalogue and the stores that it names.

    May be repeated: what is there stays, an older catalogue is brought up to this version.

    Example: understudy init --dir /etc/understudy
    """
    from tasks import init as first_steps

    config = _config_of(folder)
    if not config.exists():
        return show.say(first_steps.write_example(config))
    for line in first_steps.prepare(config):
        show.say(line)


def _config_of(folder: Path) -> Path:
    """The configuration that is meant: a named one, the folder's, or one that is found; else where to write it."""
    named = os.environ.get("UNDERSTUDY_CONFIG")
    if named:
        return Path(named)
    if folder == Path("."):
        try:
            return settings.find().absolute()
        except ConfigError:
            pass  # there is none yet
    names = [path.name for path in settings.DEFAULT_PATHS[:2]]
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0]).absolute()


@app.command()
def check(
    site: Annotated[list[str] | None, typer.Option("--site", help="Only this site (and all that is of none).")] = None,
    json: Json = False,
) -> None:
    """Look at everything that the configuration names, from this machine; read the inventories. Fails if anything does.

    Example: understudy check
    """
    from tasks import diagnose, tables

    found = diagnose.findings(site or [])
    show.answer(found, tables.findings, in_json=json)
    if any(finding.result == "failed" for finding in found):
        raise typer.Exit(1)
