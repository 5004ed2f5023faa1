"""A tick's questions look at each target's latest rows, however long the history is."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.catalogue import some
from workers.catalogue import Catalogue
from workers.models import RunKind, RunState, Trigger


def plans(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How SQLite goes about what a tick asks, a line for each table."""
    asked: list[tuple[str, object]] = []
    engine = catalogue.engine

    def note(conn: object, cursor: object, text: str, parameters: object, *more: object) -> None:
        asked.append((text, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    catalogue.used_slots(RunKind.SYNC)
    catalogue.latest_sync_points()
    catalogue.latest_ended()
    sa.event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as conn:
        found = []
        for text, parameters in asked:
            if text.startswith("SELECT"):
                found += [row[3] for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", parameters)]
    return found


def test_no_question_of_a_tick_reads_the_whole_history(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    if catalogue.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL chooses by statistics; benchmarks/bench_scale.py has its figures")
    said = plans(catalogue, monkeypatch)
    assert said and not [line for line in said if line.startswith(("SCAN runs", "SCAN sync_points"))], said


def test_the_latest_slot_of_a_schedule_among_others(catalogue: Catalogue) -> None:
    slots = [
        (Trigger.SCHEDULE, "2026-03-01T12:00:00Z"),
        (Trigger.SCHEDULE, "2026-03-01T12:15:00Z"),
        (Trigger.AFTER_BACKUP, "point 00000009-abc"),
        (Trigger.PROBE, "after 00aa"),
        (Trigger.AD_HOC, None),
    ]
    for trigger, slot in slots:
        run = some.claimed(catalogue, "pair:1", trigger=trigger, slot=slot, kind=RunKind.SYNC)
        catalogue.finish(run.id, "a", RunState.SUCCEEDED)
    some.request(catalogue, "pair:2", trigger=Trigger.AFTER_BACKUP, slot="point 00000009-abc", kind=RunKind.SYNC)
    assert catalogue.used_slots(RunKind.SYNC) == {"pair:1": "2026-03-01T12:15:00Z"}
    assert catalogue.used_slots(RunKind.BACKUP) == {}
    assert catalogue.used_slot("pair:1", RunKind.SYNC) == "2026-03-01T12:15:00Z"
