"""What the files of commands share: the application itself, and options that mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="understudy",
    help="Keep a warm copy of every VMware VM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Log one JSON object per line.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the runs until they have ended; fail if one fails.")]
Vms = Annotated[list[str], typer.Argument(metavar="VM...", help="Names of VMs.")]
Folder = Annotated[Path, typer.Option("--dir", help="The lab's folder.")]
