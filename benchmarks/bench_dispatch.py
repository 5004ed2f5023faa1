"""The control plane with thousands of VMs at 15 minutes: a tick of dispatch, messages on Redis, rows a day, pruning.

python -m benchmarks.bench_dispatch [--vms 5000]      SQLite, then PostgreSQL, then Redis; no vCenter is asked
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import sqlalchemy as sa
import structlog

from benchmarks.ours import peak_mib
from tests.paired import PLACES, seen
from tests.services import Postgres, Redis
from workers import dispatch, settings
from workers.catalogue import Catalogue
from workers.models import RunKind, RunState
from workers.run import Here

#: four runs an hour
A_DAY = 96
#: runs of each target that the history of the second measurement holds: a fifth of a day
HISTORY = 20
POLICY = """
[targets.far]
site = "dr"
datastore = "ds"
[groups.all]
source = "prod"
vms = ["vm-*"]
store = "main"
target = "far"
backup = { every = "15m" }
scrub = 0
"""


class Count:
    """Statements and transactions of an engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self.statements = self.transactions = 0
        sa.event.listen(engine, "before_cursor_execute", self._statement)
        sa.event.listen(engine, "commit", self._commit)

    def _statement(self, *_: Any) -> None:
        self.statements += 1

    def _commit(self, *_: Any) -> None:
        self.transactions += 1

    @contextmanager
    def during(self) -> Iterator[list[float]]:
        """[seconds, this process's CPU seconds, statements, transactions] when the block has ended."""
        found: list[float] = []
        before, began, worked = (self.statements, self.transactions), time.perf_counter(), time.process_time()
        yield found
        found += [time.perf_counter() - began, time.process_time() - worked]
        found += [self.statements - before[0], self.transactions - before[1]]


def of_catalogue(folder: Path, url: str, vms: int) -> tuple[list[str], Here]:
    places = PLACES.replace("sqlite:///catalogue.db", url)
    (folder / "understudy.toml").write_text(places + POLICY)
    conf = settings.load(folder / "understudy.toml")
    here = Here(conf, Catalogue.create(conf.catalogue))
    seen(here, *(f"vm-{number:05d}" for number in range(vms)))
    count, lines = Count(here.catalogue.engine), []

    def line(what: str, found: list[float], times: int = 1) -> None:
        seconds, busy, statements, transactions = found
        lines.append(f"| {what} | {seconds:.2f} | {busy:.2f} | {statements / times:.4g} | {transactions / times:.4g} |")

    now = here.catalogue.now()
    with count.during() as found:
        first = dispatch.dispatch(here, now)
    line(f"a tick that makes {len(first)} runs (and all pairs)", found)
    with count.during() as found:
        assert not dispatch.dispatch(here, now)
    line("a tick in which nothing is due", found)
    some = first[: max(1, vms // 50)]
    with count.during() as found:
        for run in some:
            _lived(here, run.id)
    line(f"claim, plan, a slice, end: each of {len(some)} runs", found, len(some))
    before = _size(here)
    rows = _history(here, vms)
    grown = _size(here) - before
    lines.append(f"| {rows} older runs with a slice each: {grown / rows:.0f} bytes a run, indexes included | | | | |")
    with count.during() as found:
        dispatch.dispatch(here, here.catalogue.now())
    line("a tick in which nothing is due, with that history", found)
    with count.during() as found:
        dropped = here.catalogue.drop_history(1.0)
    line(f"dropping {dropped.runs} runs that are too old", found)
    return lines, here


def _lived(here: Here, run: str) -> None:
    """What a worker writes of a run with one slice, in its order."""
    from workers.models import Slice

    catalogue, owner = here.catalogue, "bench"
    claimed = catalogue.claim(run, owner, 60)
    assert claimed is not None
    part = Slice(run=run, disk="d", start=0, end=1 << 30, done=0)
    catalogue.remember(run, owner, parent="p")
    catalogue.drop_slices(run, owner=owner)
    catalogue.add_slices(run, [part], owner=owner)
    catalogue.remember(run, owner, planned="x")
    assert catalogue.claim_slice(run, owner, 60, fence=claimed.fence, plan="x", tries=5) is not None
    catalogue.checkpoint(run, claimed.fence, part.model_copy(update={"done": part.end}), owner=owner)
    assert catalogue.claim_slice(run, owner, 60, fence=claimed.fence, plan="x", tries=5) is None
    catalogue.finish(run, owner, RunState.SUCCEEDED)


def _history(here: Here, vms: int) -> int:
    """Ended runs of every chain, copied from its live one by the database itself."""
    engine, made = here.catalogue.engine, 0
    ago = "created" if engine.dialect.name == "postgresql" else "'2026-01-01 00:00:00'"
    old = f"{ago} - interval '1 day'" if engine.dialect.name == "postgresql" else ago
    with engine.begin() as conn:
        for number in range(1, HISTORY + 1):
            conn.exec_driver_sql("UPDATE targets SET fence = fence + 1")
            done = conn.exec_driver_sql(
                "INSERT INTO runs (id, kind, target, vm, site, trigger, slot, state, fence, attempts, memory, reasons, "
                "created, sent, started, ended, read, written, stored) "
                f"SELECT id || '-{number:02d}', kind, target, vm, site, trigger, '2025-01-{number:02d}T00:00:00Z', "
                f'\'succeeded\', -{number}, 1, \'{{"parent": "00000001-0123abcd", "planned": "0123abcd"}}\', '
                f"'[\"Hard disk 1: delta, change tracking since 00000001-0123abcd\"]', {old}, {old}, {old}, {old}, "
                "0, 0, 0 FROM runs WHERE fence = 1"
            )
            made += done.rowcount
        conn.exec_driver_sql(
            'INSERT INTO slices (run, disk, start, "end", done, made, read, written, stored) SELECT id, '
            "'6000C293-0123-4567-89ab-0123456789ab', 0, 1073741824, 1073741824, "
            "'0123456789abcdef0123456789abcdef-0123456789abcdef-1000-c000', 0, 0, 0 FROM runs WHERE fence < 0"
        )
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql("VACUUM ANALYZE")
    return made


def _size(here: Here) -> int:
    with here.catalogue.engine.connect() as conn:
        if conn.dialect.name == "postgresql":
            return int(conn.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
        pages, size = (conn.exec_driver_sql(f"PRAGMA {what}").scalar_one() for what in ("page_count", "page_size"))
        return int(pages) * int(size)


def of_redis(here: Here, folder: Path, address: str) -> list[str]:
    """The first tick's messages, as dispatch sends them."""
    file = folder / "understudy.toml"
    file.write_text(file.read_text().replace("redis://127.0.0.1:1/0", address))
    os.environ["UNDERSTUDY_CONFIG"] = str(file)
    from tasks import app as celery_app
    from tasks import current
    from tasks.dispatch import send
    from tasks.waiting import runs_in

    current.forget()
    client = redis.Redis.from_url(address)
    runs = [run for run in here.catalogue.live_runs() if run.kind is RunKind.BACKUP]
    before, began = client.info("memory")["used_memory"], time.perf_counter()
    send(runs)
    sent, began = time.perf_counter() - began, time.perf_counter()
    used = (client.info("memory")["used_memory"] - before) / len(runs)
    found = runs_in({celery_app.data_queue("prod")})
    looked = time.perf_counter() - began
    assert found == {run.id for run in runs}
    return [
        f"{len(runs)} messages: {len(runs) / sent:.0f} a second ({60 * len(runs) / sent:.0f} a minute), "
        f"{used:.0f} bytes of Redis each; the reaper's look at all of them takes {looked:.2f} s.",
    ]


def measure(vms: int) -> str:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    lines = [f"## {vms} VMs at 15 minutes", ""]
    with tempfile.TemporaryDirectory() as name, Postgres() as server, Redis() as broker:
        for kind, url in (("SQLite", "sqlite:///catalogue.db"), ("PostgreSQL", server.database())):
            folder = Path(name) / kind
            folder.mkdir()
            found, here = of_catalogue(folder, url, vms)
            lines += [f"| {kind} | s | CPU of this process, s | statements | transactions |", "|---|---|---|---|---|"]
            lines += [*found, ""]
            if kind == "SQLite":
                lines += [*of_redis(here, folder, broker.url), ""]
            here.catalogue.close()
    lines.append(f"Memory of this process at its worst: {peak_mib():.0f} MiB.")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=5000)
    print(measure(parser.parse_args().vms))
