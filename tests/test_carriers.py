"""Which carrier a disk goes by, and why: a table."""

from __future__ import annotations

import pytest

from workers.carriers import Choice, choose, hosts_lock, in_words, one_writer, restored, stored
from workers.errors import ConfigError
from workers.models import Run, RunKind
from workers.settings.places import CarrierName

NO_FILE: dict[CarrierName, str | None] = {"file": "not mounted", "nbd": None, "hotadd": None}
NOTHING: dict[CarrierName, str | None] = {"file": "not mounted", "nbd": "no library", "hotadd": "no VM"}


@pytest.mark.parametrize(
    ("preferred", "obstacles", "carrier", "reason"),
    [
        (("file", "nbd"), {"file": None, "nbd": None}, "file", "which its site prefers"),
        (("file", "nbd"), NO_FILE, "nbd", "not by file: not mounted"),
        (("file", "hotadd", "nbd"), NO_FILE, "hotadd", "not by file: not mounted"),
        (
            ("file", "nbd", "hotadd"),
            {**NOTHING, "hotadd": None},
            "hotadd",
            "not by file: not mounted; not by nbd: no lib",
        ),
        (("nbd",), NO_FILE, "nbd", "which its site prefers"),
    ],
)
def test_the_first_that_is_preferred_and_possible(
    preferred: tuple[CarrierName, ...], obstacles: dict[CarrierName, str | None], carrier: str, reason: str
) -> None:
    found = choose("Hard disk 1", preferred, obstacles)
    assert found.carrier == carrier and found.reason.startswith(reason)


def test_no_way_at_all_names_each() -> None:
    with pytest.raises(ConfigError, match="Not by file: not mounted; not by nbd: no library"):
        choose("Hard disk 1", ("file", "nbd"), NOTHING)


def test_what_a_run_began_with_stays_or_is_an_error() -> None:
    both: dict[CarrierName, str | None] = {"file": None, "nbd": None}
    assert choose("Hard disk 1", ("file", "nbd"), both, before="nbd").carrier == "nbd"
    with pytest.raises(ConfigError, match="goes by file in this run, which is not possible here: not"):
        choose("Hard disk 1", ("nbd",), NO_FILE, before="file")


def test_who_writes_a_vm_by_its_hosts_writes_alone() -> None:
    run = Run.model_construct(kind=RunKind.SYNC)
    assert one_writer(run, "nbd u1\nfile u2") and not one_writer(run, "file u1") and not one_writer(run, None)
    assert not one_writer(Run.model_construct(kind=RunKind.BACKUP), "nbd u1"), "a snapshot is read by many"


def test_a_run_remembers_and_tells_what_was_chosen() -> None:
    chosen = {"uuid 2": Choice("nbd", "why"), "uuid-1": Choice("file", "so"), "uuid-3": Choice("nbd", "why")}
    assert restored(stored(chosen)) == {"uuid-1": "file", "uuid 2": "nbd", "uuid-3": "nbd"}
    assert hosts_lock(stored(chosen)) and not hosts_lock(None) and not hosts_lock("file uuid-1")
    told = in_words([("Hard disk 1", chosen["uuid-1"]), ("Hard disk 2", chosen["uuid 2"]), ("D3", chosen["uuid-3"])])
    assert told == ["Hard disk 1 goes by file, so", "Hard disk 2, D3 go by nbd, why"]
