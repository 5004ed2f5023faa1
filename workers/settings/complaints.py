"""What pydantic says of a configuration, as sentences: the key, its value unless it may be secret, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from workers.settings import shape
from workers.settings.model import Mistakes, Settings

#: characters of a wrong value that are shown
SHOWN = 80

Key = tuple[int | str, ...]


def sentences(err: ValidationError, data: dict[str, Any]) -> Iterator[tuple[Key, str]]:
    """(key, sentence) for each mistake. A value that several kinds are allowed for is one mistake, not one per kind."""
    told: dict[Key, list[str]] = {}
    for problem in err.errors():
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, Mistakes):
            yield from cause.found
            continue
        told.setdefault(_real(problem, data), []).append(_sentence(problem, data))
    for key, found in told.items():
        unique = list(dict.fromkeys(found))
        yield key, unique[0] if len(unique) == 1 else _together(key, unique)


def printable(line: str) -> str:
    """Names come from a file: nothing in them may command the terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _real(problem: ErrorDetails, data: dict[str, Any]) -> Key:
    """The key without what pydantic adds to tell a union's kinds apart. An absent or unknown key is its last part."""
    loc = problem["loc"]
    real: list[int | str] = []
    value: Any = data
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(value, dict) and part in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif not (last and problem["type"] in ("missing", "extra_forbidden")):
            continue
        real.append(part)
    return tuple(real)


def _sentence(problem: ErrorDetails, data: dict[str, Any]) -> str:
    key = _real(problem, data)
    name = shape.dotted(key)
    if problem["type"] == "extra_forbidden":
        return f"{name} is not a key that is known here{_did_you_mean(key)}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    field = shape.field_at(Settings, key)
    if not key:
        return message
    if isinstance(problem["input"], dict) or (field is not None and shape.is_secret(field)):
        return f"{name}: {message}"
    return f"{name} = {_shown(problem['input'])}: {message}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _together(key: Key, found: list[str]) -> str:
    """Sentences about one key, whose beginnings are the same."""
    start = found[0]
    for other in found[1:]:
        while not other.startswith(start):
            start = start[: start.rfind(": ")] if ": " in start else ""
    if start:
        return f"{start}: {' or '.join(each.removeprefix(f'{start}: ') for each in found)}"
    return "; or ".join(found)


def _did_you_mean(key: Key) -> str:
    model = shape.model_of(shape.at(Settings, key[:-1]))
    if model is None:
        return ""
    allowed = sorted(shape.keys(model))
    close = difflib.get_close_matches(str(key[-1]), allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f" (allowed: {', '.join(allowed)}){hint}"
