"""Rows as models: a model's fields are columns of the same name."""

from __future__ import annotations

from typing import Any, TypeVar

import sqlalchemy as sa

from workers.models import Model

M = TypeVar("M", bound=Model)


def fields(table: sa.Table, model: type[Model]) -> list[sa.Column[Any]]:
    return [table.c[name] for name in model.model_fields]


def read(row: sa.Row[Any], model: type[M]) -> M:
    return model.model_validate(dict(row._mapping))
