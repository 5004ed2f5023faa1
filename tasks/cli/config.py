"""The configuration: is it right, what does it say, what may it say."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks import show
from tasks.cli.application import Json, app

config = typer.Typer(help="The configuration: check it, show what it means, describe what it may hold.")
app.add_typer(config, name="config", no_args_is_help=True)


@config.command()
def check(
    strict: Annotated[bool, typer.Option("--strict", help="Fail for warnings, too.")] = False, json: Json = False
) -> None:
    """Is the configuration right? "ok", or one sentence per mistake. Asks no vCenter, Redis or store: that is `check`.

    Example: understudy config check
    """
    from tasks import configuration

    found = configuration.findings()
    show.answer(found, configuration.show_findings, in_json=json)
    if found.mistakes or (strict and found.warnings):
        raise typer.Exit(1)


@config.command("show")
def show_policy(
    vms: Annotated[list[str] | None, typer.Argument(metavar="[VM]...", help="Names of VMs; none = all of it.")] = None,
    json: Json = False,
) -> None:
    """Every value and where it comes from: of the whole configuration, or of VMs with all that applies to them.

    Example: understudy config show web-01
    """
    from tasks import configuration

    if vms:
        configuration.show_policies(vms, as_json=json)
    else:
        configuration.show_all(as_json=json)


@config.command()
def schema() -> None:
    """The configuration's JSON Schema, for editors.

    Example: understudy config schema
    """
    from workers.settings import manual

    show.as_json(manual.schema())
