"""The catalogue: what was asked for, who works on it, how far it has come, what was committed, what failed.

`Catalogue` is the one name to import. Its methods are plain functions of the files here, one file per subject; each
takes the database first and is one transaction. Every one may be called again when its answer was lost.

Who decides what, at the same time:

| call          | holds until it is committed  | so that                                                          |
|---------------|------------------------------|------------------------------------------------------------------|
| request_run   | the target                   | a target has one live run, a slot one run, a fence one run       |
| claim         | the run                      | a run has one owner; a second message for it gets None           |
| claim_slice   | the run                      | a slice has one owner, and is of the plan that its owner knows   |
| checkpoint    | the run                      | only the present owner's work counts                             |
| share_run     | the run                      | whoever sees the last slice end also sees that the run is free   |
| commit_sync   | the target, then the run     | no newer run can start between the fence's check and the commit  |
| hold, release | the target                   | what a person said is in force before the next run starts        |
| raise_fence   | the target, then the run     | the same                                                         |

On SQLite each of these holds the whole file. Leases, slots and ages are measured by the database's clock alone.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

from workers.catalogue import configurations as _configurations
from workers.catalogue import ended as _ended
from workers.catalogue import failures as _failures
from workers.catalogue import fences as _fences
from workers.catalogue import half_applied as _half_applied
from workers.catalogue import history as _history
from workers.catalogue import holds as _holds
from workers.catalogue import inventory as _inventory
from workers.catalogue import leases as _leases
from workers.catalogue import memberships as _memberships
from workers.catalogue import pairs as _pairs
from workers.catalogue import places as _places
from workers.catalogue import points as _points
from workers.catalogue import rebuilding as _rebuilding
from workers.catalogue import runs as _runs
from workers.catalogue import schema, version
from workers.catalogue import scrubs as _scrubs
from workers.catalogue import slices as _slices
from workers.catalogue import sync_points as _sync_points
from workers.catalogue.configurations import InForce
from workers.catalogue.database import LOCK_WAIT, Database, now
from workers.catalogue.ended import Ended
from workers.catalogue.half_applied import HalfApplied
from workers.catalogue.history import Dropped
from workers.catalogue.holds import ENDS, Hold, HoldKind
from workers.catalogue.inventory import Inventory, KnownVm
from workers.catalogue.leases import STOP
from workers.catalogue.memberships import Membership
from workers.catalogue.places import Full
from workers.catalogue.points import PointSummary
from workers.catalogue.scrubs import Damage, Scrub
from workers.catalogue.slices import CONDEMNED, PLAN, Short, SliceState
from workers.errors import ConfigError

__all__ = [
    "CONDEMNED",
    "ENDS",
    "PLAN",
    "STOP",
    "Catalogue",
    "Damage",
    "Dropped",
    "Ended",
    "Full",
    "HalfApplied",
    "Hold",
    "HoldKind",
    "InForce",
    "Inventory",
    "KnownVm",
    "Membership",
    "PointSummary",
    "Scrub",
    "Short",
    "SliceState",
]


class Catalogue(Database):
    """An open catalogue. Threads may share it, and it may be carried over a fork."""

    def __init__(self, url: str, *, lock_wait: float = LOCK_WAIT) -> None:
        """Opens nothing yet, and checks nothing: use `create` or `open`."""
        super().__init__(url, lock_wait=lock_wait)
        self._realm: str | None = None

    @classmethod
    def create(cls, url: str, *, lock_wait: float = LOCK_WAIT) -> Catalogue:
        """Make the catalogue, or bring the tables of an older one up to this version. Its realm's id is made once."""
        from workers.catalogue.migrations import upgrade  # brings Alembic: see version.py

        made = cls(url, lock_wait=lock_wait)
        file = made.file
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                # For its owner alone; SQLite gives the files that it makes beside it the same rights.
                with suppress(FileExistsError):
                    os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            except OSError as err:
                raise ConfigError(f"the catalogue {file} cannot be made: {err.strerror}") from err
        with made.write() as conn:
            upgrade(conn, str(made))
            if conn.execute(sa.select(schema.realm.c.id)).first() is None:
                conn.execute(sa.insert(schema.realm).values(id=str(uuid.uuid4()), created=now(conn)))
        return made

    @classmethod
    def open(cls, url: str, *, lock_wait: float = LOCK_WAIT) -> Catalogue:
        """Raises `ConfigError` when there is none, or its tables are of an older or a newer version."""
        opened = cls(url, lock_wait=lock_wait)
        file = opened.file
        if file is not None and not file.exists():
            raise ConfigError(f"there is no catalogue at {file}; run `understudy init` to make one")
        with opened.read() as conn:
            version.demand_head(conn, str(opened))
        return opened

    @property
    def file(self) -> Path | None:
        return Path(self._address.database or "") if self.is_sqlite else None

    @property
    def realm(self) -> str:
        """The id of this installation."""
        if self._realm is None:
            with self.read() as conn:
                self._realm = conn.execute(sa.select(schema.realm.c.id)).scalar_one()
        return self._realm

    def take_over_realm(self, realm: str) -> None:
        """See workers/catalogue/rebuilding.py. Other processes that have this catalogue open must be started again."""
        _rebuilding.take_over_realm(self, realm)
        self._realm = None

    record_inventory = _inventory.record_inventory
    inventory = _inventory.inventory
    sightings = _inventory.sightings
    inventory_failed = _inventory.inventory_failed
    inventories = _inventory.inventories

    memberships = _memberships.memberships
    join_group = _memberships.join_group
    hold_in_group = _memberships.hold_in_group
    leave_group = _memberships.leave_group
    drop_memberships = _memberships.drop_memberships

    ensure_pair = _pairs.ensure_pair
    pair = _pairs.pair
    pairs = _pairs.pairs
    replicas_being_built = _pairs.replicas_being_built
    set_replica = _pairs.set_replica
    pause = _pairs.pause
    disown = _pairs.disown
    forget_pair = _pairs.forget_pair
    set_failover = _pairs.set_failover
    bump_generation = _pairs.bump_generation

    hold = _holds.hold
    release = _holds.release
    holds = _holds.holds
    forgive = _holds.forgive

    request_run = _runs.request_run
    run = _runs.run
    runs = _runs.runs
    find_run = _runs.find_run
    live_runs = _runs.live_runs
    latest_ended = _ended.latest_ended
    lost_runs = _runs.lost_runs
    mark_sent = _runs.mark_sent
    used_slot = _runs.used_slot
    used_slots = _runs.used_slots
    unclean_runs = _runs.unclean_runs
    cleaned = _runs.cleaned

    claim = _leases.claim
    renew = _leases.renew
    yield_run = _leases.yield_run
    check_claim = _leases.check_claim
    refence = _leases.refence
    remember = _leases.remember
    note = _leases.note
    finish = _leases.finish
    ask_to_stop = _leases.ask_to_stop
    share_run = _leases.share_run

    fence = _fences.fence
    check_fence = _fences.check_fence
    raise_fence = _fences.raise_fence

    add_slices = _slices.add_slices
    slices = _slices.slices
    claim_slice = _slices.claim_slice
    renew_slices = _slices.renew_slices
    check_slice = _slices.check_slice
    checkpoint = _slices.checkpoint
    release_slices = _slices.release_slices
    slice_failed = _slices.slice_failed
    give_up_plan = _slices.give_up_plan
    condemn = _slices.condemn
    short_of_workers = _slices.short_of_workers
    drop_slices = _slices.drop_slices

    scrubs = _scrubs.scrubs
    scrubbed = _scrubs.scrubbed
    damages = _scrubs.damages
    compared = _scrubs.compared
    mended = _scrubs.mended
    latest_verifications = _scrubs.latest_verifications

    commit_sync = _sync_points.commit_sync
    adopt_sync_point = _sync_points.adopt_sync_point
    latest_sync_points = _sync_points.latest_sync_points
    sync_point = _sync_points.sync_point
    sync_points = _sync_points.sync_points

    applying = _half_applied.applying
    applied = _half_applied.applied
    half_applied = _half_applied.half_applied

    take_places = _places.take_places
    keep_places = _places.keep_places
    leave_places = _places.leave_places
    places = _places.places
    share = _places.share

    record_point = _points.record_point
    points = _points.points
    newest_points = _points.newest_points
    drop_point = _points.drop_point

    is_new = _rebuilding.is_new
    keep_fence = _rebuilding.keep_fence
    adopt_points = _rebuilding.adopt_points
    adopt_pair = _rebuilding.adopt_pair
    adopt_lost_run = _rebuilding.adopt_lost_run

    record_failure = _failures.record_failure
    failures = _failures.failures

    configuration_taken = _configurations.configuration_taken
    configuration_refused = _configurations.configuration_refused
    configuration_seen = _configurations.configuration_seen
    configurations = _configurations.configurations
    drop_history = _history.drop_history
