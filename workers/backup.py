"""Back a VM up: from a snapshot of it (the point) to its chain of restore points in a store (the target)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import structlog

from workers import helper, prune, template_point
from workers.backup_target import Chain, committed, groups
from workers.errors import (
    Conflict,
    FencedOut,
    Refused,
    SnapshotLost,
    Transient,
    UnderstudyError,
)
from workers.links import toll, turn
from workers.models import RunKind, RunReport, RunState
from workers.run import Here, Live, NotYet, OutOfTime, Shared, execute, storage_in_words
from workers.snapshot_point import remove_snapshots
from workers.store import Store
from workers.sync import bring_over, sync
from workers.vsphere.session import Session, connect

log = structlog.get_logger()

#: times that a backup begins anew because its snapshot was taken away
AGAIN = 3


def target_of(store: str, vm: str) -> str:
    """What a backup run fences: the VM's chain in one store."""
    return f"chain:{store}:{vm}"


def run(here: Here, run_id: str) -> RunReport:
    """Do, or go on with, a backup run."""
    return execute(here, run_id, RunKind.BACKUP, _backup)


def _backup(live: Live) -> RunReport:
    settings = live.here.settings
    _, store_name, uuid = live.run.target.split(":", 2)
    store = Store.at(settings.store(store_name))
    newest = store.newest(uuid)
    _take_turns(live, uuid)
    if live.recall("snapshot") is None:  # who has one must come to its end
        turn(live, store_name)
    session = connect(live.run.site, settings.site(live.run.site))
    if newest is not None and newest.run == live.run.id:  # stopped between the manifest and the catalogue
        store.abandon(live.run.id)  # perhaps also before its farewell to the store, for which prune would wait
        report = committed(live, store_name, session, newest)
        _retire(live, store, store_name, uuid)
        return report
    parent = newest.id if newest is not None else ""
    if live.planned and live.recall("parent") != parent:
        live.forget_slices()
        live.note("the checkpoints of this run are given up: the store's newest restore point is another one now")
    live.remember(parent=parent)
    while True:
        point = template_point.take(live, session, uuid, quiesce=all(group.quiesce for group in groups(live)))
        if newest is not None and (reason := point.unchanged_since(newest)) is not None:
            store.abandon(live.run.id)  # an earlier message may have registered it
            live.note(reason)
            return live.finish(RunState.NOTHING_NEW, live.report("nothing new", reason))
        try:
            with (
                store.writer(live.run.id, toll(live, store_name)) as writer,
                _given_up(live, store, session, uuid),
                closing(point),
            ):
                report = sync(point, Chain(live, store, store_name, writer, point, newest), live)
            break
        except SnapshotLost as err:
            _start_again(live, err)
        except Conflict:
            live.forget_slices()  # they build on something that is another by now
            raise
    _retire(live, store, store_name, uuid)
    return report


def help_out(here: Here, run_id: str) -> RunReport:
    """Work on free slices of a backup that another worker began."""
    return helper.help_out(here, run_id, RunKind.BACKUP, _help, run)


def _help(live: helper.Helper) -> None:
    _, store_name, uuid = live.run.target.split(":", 2)
    store = Store.at(live.here.settings.store(store_name))
    newest = store.newest(uuid)
    if live.recall("parent") != (newest.id if newest is not None else ""):
        raise helper.NotAsLeft
    turn(live, store_name)
    session = connect(live.run.site, live.here.settings.site(live.run.site))
    point = template_point.take(live, session, uuid, quiesce=False)  # the one that is there: a helper makes none
    try:
        with store.writer(live.run.id, toll(live, store_name)) as writer, closing(point):
            chain = Chain(live, store, store_name, writer, point, newest)
            bring_over(point, chain, live, chain.take())
    finally:
        if not live.here.catalogue.run(live.run.id).live:
            store.abandon(live.run.id)  # it ended before we registered: prune would wait for us


def _start_again(live: Live, err: SnapshotLost) -> None:
    """Once per disk that has to be compared after all, and a few times more: not for ever."""
    again = int(live.recall("again") or 0) + 1
    if again > AGAIN and live.recall("modes") == live.recall("modes before"):
        raise Refused(
            f"the backup of {live.run.vm} was started again {AGAIN} times and its snapshot was lost each time ({err}); "
            "find out who removes snapshots whose names begin with understudy/, e.g. a clean-up script"
        ) from err
    live.note(f"started again from a new snapshot: {err}")
    live.forget_slices()
    live.remember(**{"snapshot": None, "again": str(again), "modes before": live.recall("modes")})


def _take_turns(live: Live, uuid: str) -> None:
    """A VM has one snapshot of ours at a time: backups of it to several stores go one after the other.

    The older run goes first, so that they never wait for each other.
    """
    for store in live.here.settings.stores:
        for other in live.here.catalogue.runs(target=target_of(store, uuid), limit=1):
            if other.live and (other.created, other.id) < (live.run.created, live.run.id):
                raise NotYet(f"waits for the backup of this VM to the store {store} (run {other.id})")


@contextmanager
def _given_up(live: Live, store: Store, session: Session, uuid: str) -> Iterator[None]:
    """After an error that ends the run, remove its snapshot; the first error stays the one that is raised."""
    try:
        yield
    except (OutOfTime, Shared, Transient, Conflict, FencedOut, SnapshotLost, OSError):
        raise  # the run goes on, or is not ours any more
    except Exception:
        try:
            remove_snapshots(live, session, uuid)
        except UnderstudyError as second:
            log.warning(f"clean-up is left to the reaper: {second}", run=live.run.id, vm=live.run.vm)
        raise


def _retire(live: Live, store: Store, store_name: str, uuid: str) -> None:
    """Retention. The run itself has ended well."""
    try:
        with storage_in_words():
            rules = prune.rules_of(live.here, store_name, uuid)
            for trouble in prune.retire(live.here, store_name, store, uuid, rules).troubles:
                live.note(trouble)
    except UnderstudyError as err:
        live.note(f"old restore points are kept until the next backup: {err}")
