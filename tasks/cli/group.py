"""Groups: who is in one and why, who left, and letting go those of whom somebody has to decide."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks import show
from tasks.cli.application import Json, app

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Groups: who is in one and why, who left.")
app.add_typer(group, name="group")

Name = Annotated[str, typer.Argument(metavar="GROUP", help="A group's name.")]


@group.command("list")
def group_list(json: Json = False) -> None:
    """Every group: its rule, how many are in it, how many left.

    Example: understudy group list
    """
    from tasks import group_tables
    from tasks.app import here
    from workers import group as groups

    found = groups.overview(here())
    show.answer(found, group_tables.groups, in_json=json)


@group.command("show")
def group_show(name: Name, json: Json = False) -> None:
    """Who is in a group and why, who left and until when what is kept of them stays.

    Example: understudy group show web
    """
    from tasks import group_tables
    from tasks.app import here
    from workers import group as groups

    found = groups.show(here(), name)
    show.answer(found, group_tables.group, in_json=json)


@group.command("why")
def group_why(
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or instance UUID of a VM.")], json: Json = False
) -> None:
    """Why a VM is in the groups that it is in, and why not in the others.

    Example: understudy group why web-01
    """
    from tasks import group_tables
    from tasks.app import here
    from workers import group as groups

    found = groups.why(here(), vm)
    show.answer(found, group_tables.answers, in_json=json)


@group.command("unprotected")
def group_unprotected(json: Json = False) -> None:
    """The VMs that are in no group, and why each group leaves them out.

    Example: understudy group unprotected
    """
    from tasks import group_tables
    from tasks.app import here
    from workers import group as groups

    found = groups.unprotected(here())
    show.answer(found, group_tables.unprotected, in_json=json)


@group.command("accept")
def group_accept(name: Name, json: Json = False) -> None:
    """Let those leave a group who were held because they are so many.

    Example: understudy group accept web
    """
    from tasks.app import here
    from workers import group as groups

    gone = groups.accept(here(), name)
    if json:
        return show.as_json(gone)
    for each in gone:
        show.say(f"{each.vm} left the group {name}: {each.why}")
    show.say(f"`understudy group show {name}` says until when what is kept of them stays")
