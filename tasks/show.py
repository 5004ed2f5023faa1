"""How things look on a terminal: sentences, sizes, times, and values as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from workers.models import Model

T = TypeVar("T")


def console(*, stderr: bool = False) -> Console:
    """No markup: a datastore's `[name]` is not a style. In a pipe nothing is cut at 80 columns."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        width=None if stream.isatty() else 250,
        soft_wrap=False,
    )


def say(text: str) -> None:
    """A sentence on standard output, as it is."""
    console().print(text, soft_wrap=True)


def complain(text: str) -> None:
    """A sentence on standard error, as it is."""
    console(stderr=True).print(text, soft_wrap=True)


def as_json(value: Any) -> None:
    console().print(json.dumps(plain(value), indent=2, ensure_ascii=False), soft_wrap=True)


def answer(value: T, table: Callable[[T], object], *, in_json: bool) -> None:
    """What a command found: as JSON, or as its table."""
    if in_json:
        as_json(value)
    else:
        table(value)


def plain(value: Any) -> Any:
    """Models, sets and times as what JSON knows."""
    if isinstance(value, Model):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def size(count: int) -> str:
    """1536 -> '1.5 KiB'."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1023.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} PiB"


def age(seconds: float | None) -> str:
    """5400 -> '1 h 30 min': two units at most."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def moment(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def table(*columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made
