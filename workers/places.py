"""Places on what bears few at a time: a host, a datastore, a vCenter. Who finds none free goes back to the queue."""

from __future__ import annotations

from collections.abc import Iterable

from workers.models import VmState
from workers.run import Live, NotYet
from workers.settings import Limits, seconds

#: Leases that a run waits like all others before it stands in line: with 30 s each, five minutes. Most find a place
#: sooner, and a place that is kept for one lies idle until all of its others are free.
PATIENCE = 10


def demand(live: Live, site: str, state: VmState | None, datastores: Iterable[str] = ()) -> None:
    """A place for this worker on each that the VM, or what is to become one, lies on: all of them, or `NotYet`.

    They are let go with the message, but kept for the next one of a run whose time was up. Repeatable.
    """
    wanted = wanted_of(live.here.settings.limits, site, state, datastores)
    lease = seconds(live.here.settings.tuning.lease)
    full = live.here.catalogue.take_places(
        live.place_holder, wanted, 2 * lease, since=live.waits_since, patience_s=PATIENCE * lease
    )
    if full is not None:
        sentence = f"waits for a place on the {full.resource}: all {wanted[full.resource]} are taken"
        raise NotYet(f"{sentence} or kept for who has waited longer", pause(lease, full.ahead))
    live.placed = True


def pause(lease: float, ahead: int | None) -> float:
    """Seconds until a run looks again: the first of a line do soon, for what is kept for them lies idle meanwhile."""
    return lease if ahead is None else lease * min(1.0, (ahead + 1) / 8)


def wanted_of(limits: Limits, site: str, state: VmState | None, datastores: Iterable[str] = ()) -> dict[str, int]:
    """How many places there are of each that is needed; what has no limit is left out."""
    on = set(datastores)
    if state is not None:
        on |= {disk.file.partition("]")[0].removeprefix("[") for disk in state.config.disks}
    wanted = {f"vcenter of {site}": limits.vcenter}
    if state is not None and state.host:
        wanted[f"host {state.host} of {site}"] = limits.host
    wanted |= {f"datastore {name} of {site}": limits.datastore for name in sorted(on)}
    return {name: most for name, most in wanted.items() if most}
