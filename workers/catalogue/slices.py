"""Slices: how far each part of a run's disk work has come. What is recorded as done is on stable storage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from workers.catalogue import fences, leases, rows, schema
from workers.catalogue.database import Database
from workers.errors import Conflict, NotFound
from workers.models import Slice

S = schema.slices.c


def add_slices(db: Database, run_id: str, slices: Sequence[Slice], *, owner: str) -> None:
    """Record the run's plan. Telling the same plan again changes nothing, what is done stays done.

    Raises `Conflict` when there is another plan (`drop_slices` first), `FencedOut` when the run is not the owner's.
    """
    with db.write() as conn:
        leases.held(conn, run_id, owner)
        planned = {_place(slice_): slice_.end for slice_ in slices}
        if any(slice_.run != run_id for slice_ in slices):
            raise ValueError(f"a slice of another run was given for {run_id}")
        known = {(row.disk, row.start): row.end for row in conn.execute(_select(run_id))}
        if known and known != planned:
            raise Conflict(f"the run {run_id} has a plan of {len(known)} slices already, and it is another one")
        if not known and slices:
            conn.execute(sa.insert(schema.slices), [slice_.model_dump() for slice_ in slices])


def slices(db: Database, run_id: str) -> list[Slice]:
    """By disk and offset."""
    with db.read() as conn:
        return [rows.read(row, Slice) for row in conn.execute(_select(run_id))]


def checkpoint(db: Database, run_id: str, fence: int, slice_: Slice, *, owner: str) -> None:
    """Record how far a slice has come. Raises `FencedOut` when the fence or the run is another's by now.

    Both are asked: after the loss of a snapshot the same run, under the same fence, starts again with new slices, and
    an execution that slept through it must not report the old snapshot's data into them.
    """
    with db.write() as conn:
        run = leases.held(conn, run_id, owner)
        fences.demand(conn, run.target, fence)
        here = (S.run == run_id) & (S.disk == slice_.disk) & (S.start == slice_.start)
        row = conn.execute(sa.select(*rows.fields(schema.slices, Slice)).where(here)).one_or_none()
        if row is None:
            raise NotFound(f"the run {run_id} has no slice of {slice_.disk} at {slice_.start}; its plan was dropped")
        if slice_.end != row.end or not row.done <= slice_.done <= row.end:
            raise Conflict(
                f"the slice of {slice_.disk} at {slice_.start} is recorded up to {row.done} of {row.end}; "
                f"it cannot become {slice_.done} of {slice_.end}"
            )
        conn.execute(sa.update(schema.slices).where(here).values(**slice_.model_dump(exclude={"run", "disk", "start"})))


def drop_slices(db: Database, run_id: str, *, owner: str) -> None:
    """Forget the plan. Raises `FencedOut` when the run is not the owner's."""
    with db.write() as conn:
        leases.held(conn, run_id, owner)
        conn.execute(sa.delete(schema.slices).where(S.run == run_id))


def _place(slice_: Slice) -> tuple[str, int]:
    return slice_.disk, slice_.start


def _select(run_id: str) -> sa.Select[Any]:
    columns = rows.fields(schema.slices, Slice)
    return sa.select(*columns).where(S.run == run_id).order_by(S.disk, S.start)
