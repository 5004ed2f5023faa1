"""Read a store again on a worker: all of it, or the part of a round that is due; what is damaged is kept and said.

Parts are a VM's manifests and maps, or a pack. A round goes over them in the order of their names, and what it finds
stays on record until the same part is read without a fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from workers import copies, faults, scrub
from workers.catalogue import Damage, PointSummary, Scrub
from workers.errors import NotFound, StoreDamaged
from workers.links import toll
from workers.models import Run, RunKind, RunReport, RunState, Trigger
from workers.run import Here, Live, OutOfTime
from workers.store import Store

#: keys of a run's memory: the share of everything that is due a day (none: all of it, now), the next part
SHARE, AT = "share", "at"
#: findings that a sentence quotes; all are counted
MOST_NAMED = 3
#: the name of a part that comes after all others
END = "~"


def target_of(store: str) -> str:
    return f"store:{store}"


def request(
    here: Here, store: str, *, share: float | None = None, slot: str | None = None, late: datetime | None = None
) -> tuple[Run, bool]:
    """The live run over this store, or a new one: of all of it, or of what is due with so much `share` a day.
    `late`: it was due at that time, and is so late that its message waits behind no other."""
    here.settings.store(store)
    site = copies.keeper(here.settings, store)
    if site is None:
        raise NotFound(f"no group backs up to the store {store}, so there is no worker that is known to reach it")
    return here.catalogue.request_run(
        RunKind.VERIFY,
        target_of(store),
        vm=f"store {store}",
        site=site,
        trigger=Trigger.AD_HOC if share is None else Trigger.SCHEDULE,
        slot=slot,
        memory={} if share is None else {SHARE: str(share), **({scrub.LATE: late.isoformat()} if late else {})},
    )


def due(here: Here, now: datetime) -> list[Run]:
    """A run for each store of which a part is due."""
    known, fresh = here.catalogue.scrubs(), []
    live = {run.target for run in here.catalogue.live_runs()}
    for name, part_due in parts_due(here, known, here.catalogue.newest_points(), now).items():
        target = target_of(name)
        if target in live:
            continue
        slot, last = scrub.slot(known.get(target), target, now), here.catalogue.used_slot(target, RunKind.VERIFY)
        if slot == last:
            continue
        late = part_due if scrub.goes_first(part_due, last, target, now) else None
        run, made = request(here, name, share=here.settings.stores[name].scrub, slot=slot, late=late)
        fresh += [run] if made else []
    return fresh


def parts_due(
    here: Here, known: Mapping[str, Scrub], newest: Iterable[PointSummary], now: datetime
) -> dict[str, datetime]:
    """The stores of which a part is to be read, and since when. `newest`: of each VM and store the newest point."""
    groups = here.settings.groups.values()
    used = {group.store for group in groups} | {group.copying.to for group in groups if group.copying is not None}
    since: dict[str, datetime] = {}
    for point in newest:
        since[point.store] = min(point.created, since.get(point.store, point.created))
    found = {}
    for name, configured in here.settings.stores.items():
        if name not in used or name not in since:
            continue
        target = target_of(name)
        part_due = scrub.due_since(configured.scrub, known.get(target), since[name], target, now)
        if part_due is not None:
            found[name] = part_due
    return found


def concerns(here: Here) -> list[str]:
    """What is known to be damaged, in a sentence for each store."""
    found: dict[str, list[Damage]] = {}
    for each in here.catalogue.damages():
        if each.target.startswith("store:"):
            found.setdefault(each.target.removeprefix("store:"), []).append(each)
    return [_said(name, each) for name, each in found.items()]


def _said(name: str, found: list[Damage]) -> str:
    some = " | ".join(each.label for each in found[:MOST_NAMED])
    more = f" | and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return f"the store {name} is damaged in {len(found)} place{'s' if len(found) != 1 else ''}: {some}{more}"


def work(live: Live) -> RunReport:
    """For `execute`: part after part, each recorded when it has been read."""
    name = live.run.target.removeprefix("store:")
    store = Store.at(live.here.settings.store(name))
    parts = _parts(store)
    reader = _Reader(live, store, parts)
    try:
        for part in reader.wanted():
            reader.read(part)
            faults.at("scrub.read")
            live.spend()
    except OutOfTime:
        if live.recall(SHARE) is None:
            raise
        live.note("its time was up; the rest of this part is read later")
    found = live.here.catalogue.damages(live.run.target)
    if found:
        raise StoreDamaged(_said(name, found))
    why = f"what was read of the store {name} is as it was written"
    live.note(why)
    return live.finish(RunState.SUCCEEDED, live.report("verified", why))


def _parts(store: Store) -> dict[str, int]:
    """Name -> bytes, in the order in which they are read."""
    return dict(sorted({f"maps {vm}": size for vm, size in store.manifest_sizes().items()}.items())) | dict(
        sorted({f"pack {pack:016x}": size for pack, size in store.pack_sizes().items()}.items())
    )


class _Reader:
    """One message's work on a round, or on all of a store."""

    def __init__(self, live: Live, store: Store, parts: dict[str, int]) -> None:
        self._live, self._parts = live, parts
        self._verifier = store.verifier()
        self._toll = toll(live, live.run.target.removeprefix("store:"))
        catalogue = live.here.catalogue
        self._known = catalogue.scrubs(live.run.target).get(live.run.target)
        self._running = self._known if self._known is not None and self._known.ended is None else None
        self._began = live.run.created
        if live.recall(SHARE) is not None:
            self._began = self._running.began if self._running is not None else catalogue.now()

    def wanted(self) -> list[str]:
        share = self._live.recall(SHARE)
        if share is None:
            at = self._live.recall(AT) or ""
            return [part for part in self._parts if part > at]
        known, now = self._running, self._live.here.catalogue.now()
        part = scrub.share_due(float(share), self._began, self._live.run.target, now)
        chosen, _, _ = scrub.scope(list(self._parts.items()), known, part)
        return list(chosen)

    def read(self, part: str) -> None:
        kind, _, name = part.partition(" ")
        self._live.check()
        found = self._of_vm(name) if kind == "maps" else self._of_pack(int(name, 16))
        run, owner = self._live.run, self._live.owner
        damages = [
            Damage(
                target=run.target, disk=part, start=number, end=number + 1, granules=1, label=sentence, point="",
                run=run.id, found=run.created,
            )
            for number, sentence in enumerate(found)
        ]  # fmt: skip
        for sentence in damages[:MOST_NAMED]:
            self._live.note(sentence.label)
        self._live.here.catalogue.compared(run.id, owner, part, 0, 1 << 62, damages)
        self._record(part)

    def _of_vm(self, vm: str) -> Iterable[str]:
        self._toll(self._parts[f"maps {vm}"])
        return self._verifier.of_vm(vm)

    def _of_pack(self, pack: int) -> Iterable[str]:
        return self._verifier.of_pack(pack, (), deep=True, carried=self._toll)

    def _record(self, part: str) -> None:
        """The round stands behind this part; with the last one it ends, and what is gone by now is no finding."""
        catalogue, run, owner = self._live.here.catalogue, self._live.run, self._live.owner
        last = part == max(self._parts)
        whole = self._live.recall(SHARE) is None
        if whole:
            self._live.remember(**{AT: part})
        if last:
            for each in catalogue.damages(run.target):
                if each.disk not in self._parts:
                    catalogue.compared(run.id, owner, each.disk, 0, 1 << 62, [])
        if whole and not last:
            return
        now, total = catalogue.now(), sum(self._parts.values())
        covered = sum(size for name, size in self._parts.items() if name <= part)
        base = self._known or Scrub(target=run.target, round=0, began=self._began)
        behind = next((name for name in self._parts if name > part), END)
        changed = base.model_copy(
            update={
                "round": base.round if self._running is not None else base.round + 1,
                "began": self._began,
                "ended": now if last else None,
                "part": behind,
                "offset": 0,
                "covered": covered,
                "total": total,
                **({"whole_began": self._began, "whole_ended": now} if last else {}),
            }
        )
        catalogue.scrubbed(run.id, owner, changed)
        self._known = self._running = changed
