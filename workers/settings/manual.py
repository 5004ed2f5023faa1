"""The configuration's JSON Schema, whose descriptions are the models' comments: the manual is written once."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from typing import Any, get_args

from workers.models import Model
from workers.settings import shape
from workers.settings.model import Settings


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the whole configuration. What holds between keys of different tables is not in it."""
    made = _without_null(Settings.model_json_schema(by_alias=True))
    known = made.pop("$defs", {})
    for model in models():
        table = made if model is Settings else known.get(model.__name__)
        if table is None:
            continue
        table["description"] = inspect.cleandoc(model.__doc__ or "")
        for key, described in table.get("properties", {}).items():
            described.pop("title", None)
            if text := comment(model, key):
                described["description"] = text
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "The configuration of Understudy",
        "$defs": known,
    }


def _without_null(part: Any) -> Any:
    """TOML has no null: a key that may be absent is left out."""
    if isinstance(part, list):
        return [_without_null(each) for each in part]
    if not isinstance(part, dict):
        return part
    kept = {key: _without_null(each) for key, each in part.items() if not (key == "default" and each is None)}
    if "anyOf" in kept:
        kinds = [each for each in kept.pop("anyOf") if each != {"type": "null"}]
        kept |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return kept


def models() -> list[type[Model]]:
    """Every model of the configuration, the whole first."""
    found: list[type[Model]] = []

    def add(annotation: Any) -> None:
        for part in shape.alternatives(annotation):
            if isinstance(part, type) and issubclass(part, Model):
                if part not in found:
                    found.append(part)
                    for field in shape.keys(part).values():
                        add(field.annotation)
            else:
                for inner in get_args(part):
                    add(inner)

    add(Settings)
    return found


def comment(model: type[Model], key: str) -> str:
    """What stands above the field as `#: ...`; empty when nothing does."""
    field = shape.keys(model)[key]
    name = next(name for name, each in model.model_fields.items() if each is field)
    for kind in model.__mro__:
        if name in inspect.get_annotations(kind):
            return field.description or _comments(kind).get(name, "")
    return field.description or ""


@cache
def _comments(kind: type) -> dict[str, str]:
    lines = inspect.getsource(kind).splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    body = ast.parse("\n".join(line[indent:] for line in lines)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            at = node.lineno - 2
            while at >= 0 and lines[at].strip().startswith("#:"):
                above.insert(0, lines[at].strip().removeprefix("#:").strip())
                at -= 1
            found[node.target.id] = " ".join(above)
    return found
