"""`understudy config`: what was found, and every value with the table and the file that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks import show
from workers import configuration, dispatch, policy, settings
from workers.catalogue import Catalogue
from workers.destination import governing
from workers.errors import ConfigError, UnderstudyError
from workers.models import Model
from workers.policy import Setting
from workers.run import Here
from workers.settings import Loaded
from workers.settings.complaints import printable


class Findings(Model):
    """`in_force`: what is said of the workers' configurations, where the catalogue can be asked."""

    path: str
    files: tuple[str, ...] = ()
    ok: bool
    summary: str = ""
    mistakes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    in_force: tuple[str, ...] = ()


def findings() -> Findings:
    """Raises nothing for what is wrong with the configuration: that is what was asked for."""
    where = settings.find()
    try:
        loaded = settings.load_with_origins(where)
    except ConfigError as err:
        kept = configuration.last_in_force(where, err)
        if kept is not None:
            kept.catalogue.close()
        said = (kept.sentence,) if kept is not None else ()
        return Findings(path=str(where), ok=False, mistakes=tuple(str(err).splitlines()), in_force=said)
    found = [
        *configuration.remarks(loaded.settings),
        *configuration.exposed(loaded.settings),
    ]
    mistakes = _addresses(loaded)
    conf = loaded.settings
    return Findings(
        path=str(where),
        files=tuple(map(str, loaded.files)),
        ok=not mistakes,
        summary=f"{len(conf.sites)} sites, {len(conf.stores)} stores, {len(conf.targets)} recovery targets, "
        f"{len(conf.groups)} groups",
        mistakes=mistakes,
        warnings=tuple(printable(f"{loaded.file_of(remark.key)}: {remark.sentence}") for remark in found),
        in_force=() if mistakes else _in_force(loaded),
    )


def _addresses(loaded: Loaded) -> tuple[str, ...]:
    """What the catalogue says of its own address, without opening it. One that is not there yet is a warning."""
    conf = loaded.settings
    try:
        if conf.catalogue_given is not None:
            Catalogue(conf.catalogue)
    except ConfigError as err:
        return (printable(f"{loaded.file_of(('catalogue',))}: catalogue: {err}"),)
    return ()


def _in_force(loaded: Loaded) -> tuple[str, ...]:
    try:
        catalogue = Catalogue.open(loaded.settings.catalogue)
        try:
            return tuple(configuration.notices(catalogue))
        finally:
            catalogue.close()
    except UnderstudyError:  # `understudy check` says what is wrong with the catalogue
        return ()


def show_findings(found: Findings) -> None:
    for sentence in (*found.in_force, *found.mistakes):
        show.complain(f"understudy: {sentence}")
    for sentence in found.warnings:
        show.complain(f"warning: {sentence}")
    if found.ok:
        show.say(f"ok: {found.path}, {found.summary}")


def show_all(*, as_json: bool) -> None:
    loaded = settings.load_with_origins()
    values = policy.of_all(loaded.settings)
    if as_json:
        return show.as_json({"path": str(loaded.path), "values": [_plain(each, loaded) for each in values]})
    _table(values, loaded, title=None)


def show_policies(vms: Sequence[str], *, as_json: bool) -> None:
    """One policy per VM, group and recovery target. The inventory says which groups a VM is in."""
    loaded = settings.load_with_origins()
    here = Here(loaded.settings, Catalogue.open(loaded.settings.catalogue))
    try:
        found = [_policies(here, vm) for vm in dict.fromkeys(vms)]
    finally:
        here.catalogue.close()
    if as_json:
        said = [
            {"vm": vm, "group": group, "target": aim, "values": [_plain(each, loaded) for each in values]}
            for each_vm in found
            for vm, group, aim, values in each_vm
        ]
        return show.as_json(said)
    for each_vm in found:
        for vm, group, aim, values in each_vm:
            _table(values, loaded, title=f"{vm}: group {group}, " + (f"target {aim}" if aim else "backed up only"))
            show.say("")
        groups = list(dict.fromkeys(group for _, group, _, _ in each_vm))
        for store, sharing in policy.same_store(loaded.settings, groups).items():
            show.say(
                f"{each_vm[0][0]} has one chain of restore points in the store {store} for {', '.join(sharing)}: "
                "it is backed up when any of them says so, and keeps what any of them keeps"
            )
        for aim in dict.fromkeys(aim for _, _, aim, _ in each_vm if aim is not None):
            sharing = [group for _, group, target, _ in each_vm if target == aim]
            if len(sharing) > 1:
                first = governing(loaded.settings, sharing, each_vm[0][0], aim)
                show.say(
                    f"{each_vm[0][0]} has one replica at {aim} for {', '.join(sharing)}: where and how it is made says "
                    f"{first}"
                )


Policy = tuple[str, str, str | None, list[Setting]]


def _policies(here: Here, vm: str) -> list[Policy]:
    found: list[Policy] = []
    for member in dispatch.find(here, vm):
        name, aim = member.vm.identity.name, member.target
        found.append((name, member.name, aim, policy.of_vm(here.settings, member.name, name, aim)))
    return found


def _table(values: Sequence[Setting], loaded: Loaded, *, title: str | None) -> None:
    rows = show.table("key", "value", "from", "file", title=title)
    for each in values:
        file = _file(each, loaded)
        rows.add_row(
            *map(printable, (each.key, _shown(each.value), each.origin, file.name if file is not None else ""))
        )
    show.console().print(rows)


def _file(each: Setting, loaded: Loaded) -> Path | None:
    return loaded.file_of(each.table) if each.table else None


def _plain(each: Setting, loaded: Loaded) -> dict[str, Any]:
    file = _file(each, loaded)
    return {"key": each.key, "value": each.value, "from": each.origin, "file": str(file) if file is not None else None}


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "[]"
    return str(value) if value not in ("", {}) else '""' if value == "" else "{}"
