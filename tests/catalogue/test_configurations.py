"""Which configuration is in force where: the first process that says so counts, and a refusal is one failure."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from tests.catalogue.races import race
from workers.catalogue import Catalogue, schema

WORKER, PATH = "control@host", "/etc/understudy"
C = schema.configurations.c


def taken(catalogue: Catalogue, digest: str = "one", waits: str = "", worker: str = WORKER) -> None:
    catalogue.configuration_taken(worker, PATH, digest=digest, data={"groups": {"web": {}}}, waits=waits)


def test_what_is_in_force_is_known(catalogue: Catalogue) -> None:
    taken(catalogue, waits="something waits")
    (known,) = catalogue.configurations()
    assert (known.worker, known.path, known.digest, known.data) == (WORKER, PATH, "one", {"groups": {"web": {}}})
    assert (known.waits, known.refused) == ("something waits", "")
    assert known.since == known.seen and abs((catalogue.now() - known.since).total_seconds()) < 60


def test_the_same_again_keeps_its_time(catalogue: Catalogue) -> None:
    taken(catalogue)
    (first,) = catalogue.configurations()
    taken(catalogue)
    (again,) = catalogue.configurations()
    assert again.since == first.since <= again.seen
    taken(catalogue, "two")
    (other,) = catalogue.configurations()
    assert other.since >= again.seen and other.digest == "two"


def test_a_refusal_is_told_once_and_ends_when_it_is_mended(catalogue: Catalogue) -> None:
    taken(catalogue)
    assert catalogue.configuration_refused(WORKER, PATH, mark="m1", sentence="threads = 0")
    assert not catalogue.configuration_refused(WORKER, PATH, mark="m1", sentence="threads = 0")
    (known,) = catalogue.configurations()
    assert (known.digest, known.refused) == ("one", "threads = 0")
    assert catalogue.configuration_refused(WORKER, PATH, mark="m2", sentence="threads = -1")
    failures = catalogue.failures()
    assert [(each.kind, each.family) for each in failures] == [("configuration", "configuration")] * 2
    assert "control@host: the new configuration /etc/understudy is refused" in failures[0].message
    taken(catalogue, "two")
    (known,) = catalogue.configurations()
    assert (known.digest, known.refused, known.mark) == ("two", "", "")


def test_each_worker_has_its_own(catalogue: Catalogue) -> None:
    taken(catalogue)
    taken(catalogue, worker="prod@other")
    catalogue.configuration_refused("prod@other", PATH, mark="m", sentence="no")
    assert {known.worker: known.refused for known in catalogue.configurations()} == {WORKER: "", "prod@other": "no"}


def test_eight_processes_refuse_once(catalogue: Catalogue) -> None:
    taken(catalogue)
    assert sorted(race(8, _refuse, catalogue)) == [False] * 7 + [True]
    assert len(catalogue.failures()) == 1


def _refuse(_number: int, catalogue: Catalogue) -> bool:
    return catalogue.configuration_refused(WORKER, PATH, mark="m", sentence="no")


def test_being_seen_changes_nothing_else(catalogue: Catalogue) -> None:
    taken(catalogue)
    (before,) = catalogue.configurations()
    _age(catalogue, 1)
    catalogue.configuration_seen(WORKER, PATH)
    (after,) = catalogue.configurations()
    assert after.model_copy(update={"seen": before.seen}) == before and after.seen >= before.seen


def test_a_worker_that_is_no_more_is_forgotten(catalogue: Catalogue) -> None:
    taken(catalogue, worker="prod@gone")
    _age(catalogue, 91)
    taken(catalogue)
    assert [known.worker for known in catalogue.configurations()] == [WORKER]


def _age(catalogue: Catalogue, days: int) -> None:
    with catalogue.write() as conn:
        for seen, worker in conn.execute(sa.select(C.seen, C.worker)).all():
            conn.execute(
                sa.update(schema.configurations).where(C.worker == worker).values(seen=seen - timedelta(days=days))
            )
