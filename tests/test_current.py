"""The configuration in force: what a changed, half-written, wrong or mended one does to a process that goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers import settings
from workers.settings.current import QUIET, Current, Refused, Taken, successor

BASE = """\
redis = "redis://h:1/0"
catalogue = "sqlite:///catalogue.db"
stores.main.path = "store"
[sites.prod]
vcenter = "v"
user = "u"
password_env = "P"
[sites.dr]
vcenter = "v"
user = "u"
password_env = "P"
"""
TUNED = BASE + "[tuning]\nthreads = 7\n"
WRONG = BASE + "[tuning]\nthreads = 0\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "understudy.toml", BASE)


def written(file: Path, text: str, *, age: float = 10 * QUIET) -> Path:
    """As a file that was written so many seconds ago; each time by another inode, as editors do."""
    other = file.with_name(".new")
    other.write_text(text)
    then = (moment := other.stat().st_mtime) - age
    assert moment > then or age <= 0
    os.utime(other, (then, then))
    other.replace(file)
    return file


def current(file: Path, **more: str) -> Current:
    return Current(settings.load_with_origins(file), **more)


def test_nothing_new_is_a_stat_and_no_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = current(file)
    monkeypatch.setattr("workers.settings.current.load_with_origins", lambda path: pytest.fail("it was read"))
    assert mine.look() is None and mine.look() is None


def test_a_changed_one_is_taken(file: Path) -> None:
    mine = current(file)
    written(file, TUNED)
    change = mine.look()
    assert isinstance(change, Taken) and change.waits == ""
    assert mine.settings.tuning.threads == 7
    assert mine.look() is None


def test_a_touched_one_is_the_same(file: Path) -> None:
    mine = current(file)
    before = mine.settings
    written(file, BASE, age=500)
    assert mine.look() is None and mine.settings is before


def test_a_wrong_one_is_refused_once_and_the_old_stays(file: Path) -> None:
    mine = current(file)
    written(file, TUNED)
    mine.look()
    written(file, WRONG)
    change = mine.look()
    assert isinstance(change, Refused) and "tuning.threads = 0" in change.sentence
    assert mine.settings.tuning.threads == 7 and mine.refused == change
    assert mine.look() is None and mine.refused == change
    written(file, WRONG + "attempts = 0\n")
    again = mine.look()
    assert isinstance(again, Refused) and "tuning.attempts" in again.sentence and again.mark != change.mark


@pytest.mark.parametrize("mended", [BASE, TUNED], ids=["as before", "in another way"])
def test_a_mended_one_is_taken(mended: str, file: Path) -> None:
    mine = current(file)
    written(file, WRONG)
    assert isinstance(mine.look(), Refused)
    written(file, mended)
    assert isinstance(mine.look(), Taken)
    assert mine.refused is None and mine.settings.tuning.threads == (7 if mended == TUNED else 3)


def test_an_absent_one_is_refused_until_it_is_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = current(file)
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])  # seconds that nobody need wait
    file.rename(file.with_suffix(".away"))
    assert mine.look() is None, "a moment without a file may be how it is written"
    clock[0] = QUIET
    change = mine.look()
    assert isinstance(change, Refused) and "cannot be read: No such file" in change.sentence
    file.with_suffix(".away").rename(file)
    assert isinstance(mine.look(), Taken) and mine.refused is None


def test_a_file_that_is_being_written_is_not_judged(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither taken, for the first half of a file may be a right one in which groups are missing, nor refused."""
    mine = current(file)
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])  # seconds that nobody need wait
    for text in (TUNED[:-12], WRONG, TUNED):
        written(file, text, age=0)
        clock[0] += QUIET * 0.9
        assert mine.look() is None
    clock[0] += QUIET
    assert isinstance(mine.look(), Taken) and mine.settings.tuning.threads == 7


def test_a_file_from_the_future_is_judged_by_our_own_clock(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = current(file)
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])  # seconds that nobody need wait
    written(file, TUNED, age=-100_000)
    assert mine.look() is None
    clock[0] = QUIET
    assert isinstance(mine.look(), Taken)


def test_what_changes_while_it_is_read_is_looked_at_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = current(file)
    written(file, WRONG)
    real = settings.load_with_origins

    def reading(path: Path) -> settings.Loaded:
        monkeypatch.undo()
        try:
            return real(path)
        finally:
            written(file, TUNED)

    monkeypatch.setattr("workers.settings.current.load_with_origins", reading)  # that very moment
    assert mine.look() is None and mine.refused is None
    assert isinstance(mine.look(), Taken) and mine.settings.tuning.threads == 7


def test_a_file_that_leaves_or_joins_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])  # seconds that nobody need wait
    folder = tmp_path / "d"
    folder.mkdir()
    written(folder / "a.toml", BASE)
    mine = current(folder)
    for tuning, threads in (("[tuning]\nthreads = 5\n", 5), (None, 3)):
        if tuning is None:
            (folder / "b.toml").unlink()
        else:
            written(folder / "b.toml", tuning)
        assert mine.look() is None, "the folder itself has just changed"
        clock[0] += QUIET
        assert isinstance(mine.look(), Taken) and mine.settings.tuning.threads == threads


def test_a_workers_own_site_can_not_go(file: Path) -> None:
    mine, other = current(file, site="prod"), current(file, site="dr")
    written(file, BASE.replace("sites.prod", "sites.third"))
    change = mine.look()
    assert isinstance(change, Refused) and "stop the workers of prod first, or add sites.prod again" in change.sentence
    assert "prod" in mine.settings.sites
    assert isinstance(other.look(), Taken) and "prod" not in other.settings.sites


@pytest.mark.parametrize(
    ("change", "waiting"),
    [
        pytest.param(("redis://h:1/0", "redis://other:1/0"), "redis changed: ", id="redis"),
        pytest.param(('redis = "redis://h:1/0"', 'redis_env = "R"'), "redis changed: ", id="redis from elsewhere"),
        pytest.param(("catalogue.db", "other.db"), "catalogue changed: ", id="catalogue"),
        pytest.param(("[sites.prod]", '[tuning]\nslice_time = "9m"\n[sites.prod]'), "tuning.slice_time", id="slices"),
        pytest.param(("[sites.prod]", '[tuning]\nreap_every = "9m"\n[sites.prod]'), "tuning.reap_every", id="Beat"),
    ],
)
def test_what_needs_a_restart_stays_and_is_said(change: tuple[str, str], waiting: str, file: Path) -> None:
    mine = current(file)
    before = mine.settings
    written(file, TUNED.replace("[tuning]\nthreads = 7\n", "").replace(*change) + "[stores.two]\npath = 'two'\n")
    found = mine.look()
    assert isinstance(found, Taken) and found.waits.startswith(waiting) and "started again" in found.waits
    assert "two" in mine.settings.stores
    assert (mine.settings.redis, mine.settings.catalogue) == (before.redis, before.catalogue)
    assert mine.settings.tuning == before.tuning
    written(file, BASE)
    back = mine.look()
    assert isinstance(back, Taken) and back.waits == "", "nothing waits when it was changed back"


def test_successor_takes_all_that_needs_no_restart(file: Path) -> None:
    old = settings.load(file)
    assert successor(old, old) == (old, "")
    new = settings.load(written(file, TUNED))
    assert successor(old, new) == (new, "")
