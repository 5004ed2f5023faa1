"""What the commands about stores ask, and how their answers look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks import show
from workers import named
from workers.errors import NotFound, UnderstudyError
from workers.prune import Freed, Retired
from workers.run import Here, storage_in_words
from workers.store import CompactReport, Figures, PruneReport, Store
from workers.store_keys import KeyReport


def chosen(here: Here, names: Sequence[str] | None) -> list[str]:
    """The stores that were named, or all. `BadInput` for one that is not configured."""
    for name in names or ():
        named.store(here, name)
    return list(dict.fromkeys(names or here.settings.stores))


def opened(here: Here, name: str) -> Store:
    return Store.at(here.settings.store(name))


def below(here: Here, name: str) -> float:
    return here.settings.store(name).compact_below


def verified(here: Here, name: str, *, deep: bool, vm: str | None) -> list[str]:
    """Damage in sentences."""
    store = opened(here, name)
    with storage_in_words():
        if vm is None:
            return store.verify(deep=deep)
        return [each for uuid in _uuids(here, store, vm) for each in store.verify(deep=deep, vm=uuid)]


def _uuids(here: Here, store: Store, vm: str) -> list[str]:
    """By name, as the inventory or the newest restore point has it, or by instance UUID."""
    there = store.vms()
    known = {each.identity.instance_uuid for each in here.catalogue.inventory() if each.identity.name == vm}
    known |= {point.vm for point in here.catalogue.newest_points() if point.name == vm}
    found = [uuid for uuid in there if uuid == vm or uuid in known]
    if not found:
        raise NotFound(f"no VM {vm!r} has a restore point in the store {store.path}; it has those of {len(there)} VMs")
    return found


def reachable(here: Here) -> list[dict[str, Any]]:
    found = []
    for name, configured in here.settings.stores.items():
        line: dict[str, Any] = {"store": name, "path": configured.where, "vms": None, "free": None, "trouble": None}
        try:
            with storage_in_words():
                store = opened(here, name)
                line |= {"vms": len(store.vms()), "free": store.free()}
        except UnderstudyError as err:
            line["trouble"] = str(err)
        found.append(line)
    return found


def listed(found: Sequence[dict[str, Any]]) -> None:
    rows = show.table("store", "path", "VMs", "free", right=("VMs", "free"))
    for line in found:
        vms = "-" if line["vms"] is None else str(line["vms"])
        free = "-" if line["free"] is None else show.size(line["free"])
        rows.add_row(line["store"], line["path"], vms, free)
    show.console().print(rows)
    for line in found:
        if line["trouble"]:
            show.say(f"{line['store']}: {line['trouble']}")


def opened_by(found: Sequence[KeyReport]) -> None:
    for each in found:
        mine = [f"{key} (configured here)" if key == each.configured else key for key in each.keys]
        text = f"opened by {', '.join(mine)}" if mine else "not encrypted"
        if each.configured not in (*each.keys, None):
            text += f"; the key that is configured here, {each.configured}, is not one of its own"
        elif mine and each.configured is None:
            text += "; no key is configured here"
        show.say(f"{each.store}: {text}")


def as_plain(found: Figures) -> dict[str, Any]:
    return found.model_dump(mode="json") | {"dedup": found.dedup, "compression": found.compression}


def figures(name: str, found: Figures) -> None:
    ratio = f"{found.dedup:.1f} times" if found.dedup else "-"
    rows = show.table("", "")
    rows.show_header = False
    rows.title = f"{name} ({found.path})"
    rows.add_row("restore points", f"{found.points} of {len(found.vms)} VMs")
    rows.add_row(
        "their content", f"{show.size(found.logical)} if each were a full copy; held once: {show.size(found.content)}"
    )
    rows.add_row("deduplicated", ratio)
    rows.add_row(
        "compressed", f"{found.compression:.2f} times, to {show.size(found.stored)}" if found.compression else "-"
    )
    rows.add_row("packs", f"{found.packs}, {show.size(found.pack_bytes)}")
    rows.add_row("maps", f"{found.maps}, {show.size(found.map_bytes)}")
    rows.add_row(
        "packs by fill", ", ".join(f"{10 * i}-{10 * i + 10} %: {n}" for i, n in enumerate(found.fill) if n) or "-"
    )
    rows.add_row("freed by a prune", show.size(found.prunable))
    rows.add_row(
        "freed by a compaction", f"{show.size(found.compactable)} of {show.size(found.dead)} that are dead in packs"
    )
    rows.add_row("free on the file system", show.size(found.free) if found.free is not None else "not known")
    last = list(found.grown.items())[-7:]
    rows.add_row("grown by day", ", ".join(f"{day}: {show.size(count)}" for day, count in last) or "-")
    show.console().print(rows)
    if any(vm.exclusive is not None for vm in found.vms):
        table = show.table(
            "VM", "points", "if full copies", "alone", "shared", right=("points", "if full copies", "alone", "shared")
        )
        for vm in found.vms:
            table.add_row(
                vm.name, str(vm.points), show.size(vm.logical), show.size(vm.exclusive or 0), show.size(vm.shared or 0)
            )
        show.console().print(table)


def retired(found: Sequence[Retired], *, dry_run: bool) -> None:
    would = "would be retired" if dry_run else "retired"
    for each in found:
        if each.points:
            show.say(
                f"{each.store}: {each.name}: {len(each.points)} {would}, {each.kept} kept: {', '.join(each.points)}"
            )
        for sentence in each.troubles:
            show.complain(f"{each.store}: {each.name}: {sentence}")
    if not any(each.points for each in found):
        show.say(f"nothing {would}: every restore point is kept by a rule, a replica or a pin (`understudy points VM`)")


def freed(found: Sequence[Freed]) -> None:
    for each in found:
        show.say(f"{each.store}: {pruned(each.pruned)}")
        if each.compacted is not None:
            show.say(f"{each.store}: {compacted(each.compacted)}")
            for sentence in each.compacted.damaged:
                show.complain(f"{each.store}: {sentence}")


def pruned(report: PruneReport) -> str:
    if report.busy:
        return "another prune or a compaction is at work here; nothing was done"
    text = f"{show.size(report.freed)} freed ({report.packs} packs, {report.maps} files of maps)"
    if report.waiting:
        text += f"; {report.waiting} more files wait for {_whom(report.runs, report.readers)}"
    return text


def compacted(report: CompactReport) -> str:
    job = f"{report.packs} packs and {report.maps} files of maps"
    now = f"{show.size(report.moved)} moved, {report.points} restore points follow"
    return {
        "nothing to do": "nothing is worth a compaction",
        "busy": "another prune or a compaction is at work here; nothing was compacted",
        "waits": f"the compaction of {job} waits for {_whom(report.runs, report.readers)} ({now}); a later one goes on",
        "goes on": f"the compaction of {job} has used its time ({now}); a later one goes on",
        "done": f"{job} compacted: {now}",
    }[report.state]


def _whom(runs: Sequence[str], readers: Sequence[str]) -> str:
    who = [*(f"run {run}" for run in runs), *(f"a reader (process {reader.partition('-')[0]})" for reader in readers)]
    return ", ".join(who) or "others"
