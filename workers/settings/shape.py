"""What is at a key: the models' annotations walked, so that paths, messages and masks need no lists of their own."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from workers.models import Model

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


def dotted(key: Sequence[int | str]) -> str:
    """A key as TOML writes it."""
    return ".".join(part if _PLAIN.fullmatch(part) else json.dumps(part, ensure_ascii=False) for part in map(str, key))


@cache
def keys(model: type[Model]) -> Mapping[str, FieldInfo]:
    """A model's fields by the names that a file gives them. Remembered: dispatch asks it for each VM of thousands."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def is_secret(field: FieldInfo) -> bool:
    """What may hold a password is never shown: such a field has no `repr` either."""
    return not field.repr


def alternatives(annotation: Any) -> Iterator[Any]:
    """`A | None` -> A, None; without Annotated's remarks."""
    if get_origin(annotation) is Annotated:
        yield from alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from alternatives(part)
    else:
        yield annotation


def model_of(annotation: Any) -> type[Model] | None:
    return next((part for part in alternatives(annotation) if isinstance(part, type) and issubclass(part, Model)), None)


def at(annotation: Any, loc: Sequence[int | str]) -> Any:
    """The annotation of what is at `loc` below; None when nothing can be there."""
    for key in loc:
        annotation = next(_below(annotation, key), None)
    return annotation


def field_at(root: type[Model], loc: Sequence[int | str]) -> FieldInfo | None:
    model = model_of(at(root, loc[:-1])) if loc else None
    return keys(model).get(str(loc[-1])) if model is not None else None


def _below(annotation: Any, key: int | str) -> Iterator[Any]:
    for part in alternatives(annotation):
        if isinstance(part, type) and issubclass(part, Model):
            if key in (fields := keys(part)):
                yield fields[str(key)].annotation
        elif get_origin(part) is dict:
            yield get_args(part)[1]
        elif get_origin(part) in (tuple, list) and isinstance(key, int):
            yield get_args(part)[0]


def absolute(annotation: Any, value: Any, folder: Path) -> Any:
    """The value with every path in it made absolute: a relative one starts at `folder`."""
    for part in alternatives(annotation):
        if part is Path and isinstance(value, str):
            return str(folder / value)
        if isinstance(value, dict) and isinstance(part, type) and issubclass(part, Model):
            fields = keys(part)
            return {k: absolute(fields[k].annotation, v, folder) if k in fields else v for k, v in value.items()}
        if isinstance(value, dict) and get_origin(part) is dict:
            return {k: absolute(get_args(part)[1], v, folder) for k, v in value.items()}
        if isinstance(value, list) and get_origin(part) in (tuple, list):
            return [absolute(get_args(part)[0], item, folder) for item in value]
    return value
