"""What a caller hears when the database is locked, full, gone or back again; and that a fork carries nothing over."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from tests.catalogue.some import LONG, claimed, request
from tests.services import Postgres
from workers.catalogue import Catalogue
from workers.errors import BadInput, CatalogueUnreachable, ConfigError, FencedOut, LoginFailed, NoSpace, UnderstudyError
from workers.models import RunState

#: Another process: takes the locks that a run's start takes, says so, and keeps them until its input ends.
HOLDER = """
import sys
from workers.catalogue import Catalogue, fences
with Catalogue.open(sys.argv[1]).write() as conn:
    fences.lock(conn, sys.argv[2])
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(catalogue: Catalogue, target: str) -> Iterator[subprocess.Popen[bytes]]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, catalogue.url, target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


def test_a_locked_catalogue_is_waited_for(catalogue: Catalogue) -> None:
    with held(catalogue, "t") as holder:
        answer: list[bool] = []
        asking = threading.Thread(target=lambda: answer.append(request(catalogue, "t")[1]))
        asking.start()
        asking.join(0.5)
        assert asking.is_alive() and not answer  # it waits
        assert catalogue.runs() == []  # readers do not
        assert holder.stdin is not None
        holder.stdin.close()
        asking.join(20)
        assert answer == [True]


def test_a_catalogue_that_stays_locked_is_a_sentence(catalogue: Catalogue) -> None:
    impatient = Catalogue.open(catalogue.url, lock_wait=0.3)
    with held(catalogue, "t"), pytest.raises(CatalogueUnreachable, match=r"is locked: another .* more than 0\.3 s"):
        request(impatient, "t")
    assert request(impatient, "t")[1]
    impatient.close()


def test_a_holder_that_is_killed_leaves_nothing_behind(catalogue: Catalogue) -> None:
    with held(catalogue, "t") as holder:
        holder.kill()
        holder.wait()
        run, created = request(catalogue, "t")
    assert created and run.fence == 1


def test_a_full_disk_is_a_sentence_and_half_of_nothing_is_kept(catalogue: Catalogue) -> None:
    run = claimed(catalogue)
    with pytest.raises(NoSpace, match="make room, the work then goes on by itself"):
        _fill(catalogue, run.id)
    assert catalogue.run(run.id).reasons == ()
    catalogue.note(run.id, "there is room again")


def _fill(catalogue: Catalogue, run_id: str) -> None:
    """Run into the database's own answer to a full disk; a smaller file system would need root."""
    if not catalogue.is_sqlite:
        with catalogue.write() as conn:
            conn.exec_driver_sql(f"UPDATE runs SET reasons = '[\"half\"]' WHERE id = '{run_id}'")
            conn.exec_driver_sql("DO $$ BEGIN RAISE 'could not extend file' USING ERRCODE = 'disk_full'; END $$")

    @sa.event.listens_for(catalogue.engine, "begin")
    def limit(conn: sa.Connection) -> None:
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
        conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    try:
        catalogue.note(run_id, *(f"{n} " + "x" * 4000 for n in range(10)))
    finally:
        sa.event.remove(catalogue.engine, "begin", limit)
        catalogue.close()


def test_a_server_that_is_gone_is_a_sentence_and_back_is_back(postgres: Postgres) -> None:
    catalogue = Catalogue.create(postgres.database())
    run = claimed(catalogue)
    postgres.stop()
    try:
        for _ in range(2):  # on the pool's dead connection, and on none
            with pytest.raises(CatalogueUnreachable, match=r"does not answer .* will be tried again"):
                catalogue.renew(run.id, "a", LONG)
    finally:
        postgres.start()
    assert catalogue.renew(run.id, "a", LONG)
    catalogue.close()


def test_a_server_that_nobody_runs_is_a_sentence() -> None:
    with pytest.raises(CatalogueUnreachable, match="Is the server running and reachable") as caught:
        Catalogue.open("postgresql+psycopg://u:secret@127.0.0.1:1/d")
    assert "secret" not in str(caught.value)


def test_a_session_that_was_ended_inside_a_transaction_is_a_sentence(postgres: Postgres) -> None:
    catalogue = Catalogue.create(postgres.database())
    with pytest.raises(CatalogueUnreachable, match="will be tried again"), catalogue.write() as conn:
        mine = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with catalogue.write() as other:
            other.exec_driver_sql(f"SELECT pg_terminate_backend({mine}, 10000)")
        conn.exec_driver_sql("SELECT 1")
    assert catalogue.runs() == []
    catalogue.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("40P01", CatalogueUnreachable),
        ("57P01", CatalogueUnreachable),
        ("53300", CatalogueUnreachable),
        ("28P01", LoginFailed),
        ("42501", ConfigError),
        ("22012", UnderstudyError),
    ],
)
def test_what_a_server_may_say(postgres: Postgres, code: str, kind: type[UnderstudyError]) -> None:
    catalogue = Catalogue(postgres.url())
    with pytest.raises(kind) as caught, catalogue.write() as conn:
        conn.exec_driver_sql(f"DO $$ BEGIN RAISE 'as the server says' USING ERRCODE = '{code}'; END $$")
    assert type(caught.value) is kind and isinstance(caught.value.__cause__, sa.exc.DBAPIError)
    catalogue.close()


def test_tables_that_are_missing_are_a_sentence(catalogue: Catalogue) -> None:
    with catalogue.write() as conn:
        conn.exec_driver_sql("DROP TABLE failures")
    with pytest.raises(ConfigError, match="run `understudy init`"):
        catalogue.failures()


def test_an_error_of_ours_undoes_the_transaction(catalogue: Catalogue) -> None:
    with pytest.raises(FencedOut), catalogue.write() as conn:
        conn.exec_driver_sql("INSERT INTO targets (target, fence) VALUES ('t', 9)")
        raise FencedOut("a newer run owns it")
    assert catalogue.fence("t") == 0


def test_a_fork_in_the_middle_of_a_transaction(catalogue: Catalogue) -> None:
    """PostgreSQL: the child has connections of its own. SQLite: it is told that it has none. The parent goes on."""
    fork = multiprocessing.get_context("fork")
    readings = fork.Queue()
    with catalogue.write() as conn:
        conn.exec_driver_sql("INSERT INTO targets (target, fence) VALUES ('parent', 7)")
        child = fork.Process(target=_read, args=(catalogue, readings))
        child.start()
        heard = readings.get(timeout=30)
        child.join(30)
    assert heard == ("start it again" if catalogue.is_sqlite else 0)
    assert child.exitcode == 0
    assert catalogue.fence("parent") == 7


def _read(catalogue: Catalogue, readings: Any) -> None:
    try:
        readings.put(catalogue.fence("parent"))
    except CatalogueUnreachable as err:
        readings.put(str(err)[-len("start it again") :])


def test_a_fork_while_threads_work(catalogue: Catalogue) -> None:
    fork = multiprocessing.get_context("fork")
    stop = threading.Event()
    trouble: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                run, _ = request(catalogue, f"t{number}")
                if catalogue.claim(run.id, "thread", LONG):
                    catalogue.finish(run.id, "thread", RunState.NOTHING_NEW)
                time.sleep(0.002)
        except BaseException as err:
            trouble.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        children = [fork.Process(target=_use, args=(catalogue, number)) for number in range(5)]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert [child.exitcode for child in children] == [0] * 5
    assert trouble == []
    with catalogue.read() as conn:
        if catalogue.is_sqlite:
            assert conn.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"


def _use(catalogue: Catalogue, number: int) -> None:
    for n in range(5):
        assert request(catalogue, f"child-{number}-{n}")[1]


def test_a_text_that_no_database_takes_is_the_askers_fault(catalogue: Catalogue) -> None:
    """PostgreSQL has no NUL in a text. It was said to be away, and the request to be tried again."""
    try:
        assert catalogue.pairs("web\0") == []
    except BadInput as err:
        assert "NUL" in str(err) and catalogue.url.startswith("postgresql")
