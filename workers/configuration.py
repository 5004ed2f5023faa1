"""What is to be said of a configuration: what of it is probably not meant, and which one is in force at the workers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from workers.catalogue import Catalogue, InForce
from workers.destination import of_member
from workers.errors import ConfigError, UnderstudyError
from workers.membership import may_cover
from workers.settings import Group, Settings, read, seconds, secrets, shape
from workers.settings.values import masked

#: a worker that has not been seen for so long is gone, and what it refused with it
GONE = timedelta(days=1)

#: top-level keys that may hold a password
ADDRESSES = ("redis", "catalogue")

Key = tuple[str, ...]


class Remark(NamedTuple):
    """Something that is allowed and probably not meant. `key` says where, for the file's name."""

    key: Key
    sentence: str


# --- what is probably not meant -----------------------------------------------------------------------------------


def remarks(settings: Settings) -> list[Remark]:
    """By the configuration alone."""
    found = [*_unused(settings), *_timing(settings), *_places(settings), *_twice(settings)]
    for name, group in settings.groups.items():
        found += _group(name, group)
    for key in ADDRESSES:
        given = getattr(settings, f"{key}_given")
        if given is not None and masked(given) != given:
            said = f"{key} holds a login: {key}_file or {key}_env keeps its password out of this file"
            found.append(Remark((key,), said))
    return found


def _unused(settings: Settings) -> Iterator[Remark]:
    groups = settings.groups.values()
    aims = {aim for group in groups for aim in group.targets}
    copies = {group.copying.to for group in groups if group.copying is not None}
    used = {
        "targets": (aims, "no group has this recovery target: nothing is replicated to it"),
        "stores": ({group.store for group in groups} | copies, "no group has this store: nothing is backed up to it"),
        "sites": (
            {group.source for group in groups} | {target.site for target in settings.targets.values()},
            "no group and no recovery target has this site",
        ),
    }
    for section, (names, sentence) in used.items():
        for name in getattr(settings, section):
            if name not in names:
                yield Remark((section, name), f"{shape.dotted((section, name))}: {sentence}")


def _timing(settings: Settings) -> Iterator[Remark]:
    tuning = settings.tuning
    if seconds(tuning.vcenter_wait) >= seconds(tuning.slice_time):
        sentence = f"vcenter_wait ({tuning.vcenter_wait}) should be below slice_time ({tuning.slice_time})"
        yield Remark(("tuning", "vcenter_wait"), f"tuning: {sentence}")


def _places(settings: Settings) -> Iterator[Remark]:
    """Datastores of which nobody says where they are mounted, for the target's own and for the overrides'."""
    for name, target in settings.targets.items():
        yield from _mounted(settings, ("targets", name), target.site, target.datastore)
    for name, group in settings.groups.items():
        for vm in group.overrides:
            for aim in group.targets:
                target, place = settings.targets[aim], of_member(settings, name, vm, aim)
                if place.datastore != target.datastore:
                    yield from _mounted(settings, ("groups", name, "overrides", vm), target.site, place.datastore)


def _twice(settings: Settings) -> Iterator[Remark]:
    """Overrides for one VM in two groups with the same recovery target: it has one replica there."""
    first: dict[tuple[str, str], str] = {}
    for name, group in settings.groups.items():
        for vm in group.overrides:
            for aim in group.targets:
                other = first.setdefault((vm, aim), name)
                if other != name and settings.groups[other].source == group.source:
                    key = ("groups", name)
                    yield Remark(
                        key,
                        f"{shape.dotted((*key, 'overrides', vm))}: groups.{other} is before it and has an override for "
                        f"a VM of this name and the target {aim}, too: for a VM in both groups only that one counts",
                    )


def _mounted(settings: Settings, key: Key, site: str, datastore: str) -> Iterator[Remark]:
    known = settings.sites[site].datastores
    if not settings.sites[site].reaches(datastore):
        allowed = ", ".join(sorted(known)) or "none"
        yield Remark(
            key,
            f"{shape.dotted(key)}.datastore = {datastore!r}: sites.{site}.datastores does not say where it is mounted "
            f"(it has {allowed})",
        )


def _group(name: str, group: Group) -> Iterator[Remark]:
    key = ("groups", name)
    dotted = shape.dotted(key)
    if not group.targets and "replicate" in group.model_fields_set:
        yield Remark(key, f"{dotted}.replicate: the group has no target, so nothing is replicated")
    for vm in group.overrides:
        if not may_cover(group.rule, vm):
            yield Remark(key, f"{dotted}.overrides.{shape.dotted((vm,))}: the group does not cover a VM of that name")


def exposed(settings: Settings) -> list[Remark]:
    """By what this machine has: files and variables that should hold a secret and do not, or show it to others; CAs."""
    found = []
    for key, file, variable in _secrets(settings):
        if (sentence := secrets.trouble(file, variable)) is not None:
            named = (*key[:-1], f"{key[-1]}_{'env' if file is None else 'file'}")
            found.append(Remark(named, f"{shape.dotted(named)}: {sentence}"))
    for name, site in settings.sites.items():
        if site.ca_file is not None and not os.path.isfile(site.ca_file):
            named = ("sites", name, "ca_file")
            found.append(Remark(named, f"{shape.dotted(named)}: {site.ca_file} is not there, or is not a file"))
    for name, store in settings.stores.items():
        if store.s3 is not None and store.s3.ca_file is not None and not os.path.isfile(store.s3.ca_file):
            named = ("stores", name, "s3", "ca_file")
            found.append(Remark(named, f"{shape.dotted(named)}: {store.s3.ca_file} is not there, or is not a file"))
    return found


def _secrets(settings: Settings) -> Iterator[tuple[Key, Path | None, str | None]]:
    yield ("redis",), settings.redis_file, settings.redis_env
    yield ("catalogue",), settings.catalogue_file, settings.catalogue_env
    for name, site in settings.sites.items():
        yield ("sites", name, "password"), site.password_file, site.password_env
    for name, store in settings.stores.items():
        yield ("stores", name, "key"), store.key_file, store.key_env
        if store.s3 is not None:
            yield ("stores", name, "s3", "access_key"), store.s3.access_key_file, store.s3.access_key_env
    if settings.flower is not None:
        yield ("flower", "password"), settings.flower.password_file, settings.flower.password_env


# --- what is in force at the workers ------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What the workers work by while the files are wrong, for those who only look. `sentence` says so."""

    settings: Settings
    catalogue: Catalogue
    sentence: str


def notices(catalogue: Catalogue) -> list[str]:
    """What people must know of the configurations in force: a newer one is refused, or waits for a restart."""
    now = catalogue.now()
    present = [known for known in catalogue.configurations() if now - known.seen < GONE]
    found = []
    for sentence in dict.fromkeys(known.refused for known in present if known.refused):
        those = [known for known in present if known.refused == sentence]
        found.append(_refused(those, sentence))
    for sentence in dict.fromkeys(known.waits for known in present if known.waits):
        those = [known for known in present if known.waits == sentence]
        found.append(f"configuration at {_workers(those)}: {sentence}")
    return found


def last_in_force(where: Path, why: ConfigError) -> Kept | None:
    """What was in force last, by the catalogue, when the files at `where` are refused; None when nobody knows."""
    try:
        addresses = read.addresses(where)
        nothing = {"sites": {}, "stores": {}, "redis": "redis://unknown"}
        catalogue = Catalogue.open(Settings.model_validate(_with(nothing, addresses)).catalogue)
        known = catalogue.configurations()
        newest = next((each for each in known if each.path == str(where.absolute())), known[0] if known else None)
        if newest is None:
            catalogue.close()
            return None
        kept = Settings.model_validate(_with(newest.data, addresses))
    except (UnderstudyError, ValidationError):
        return None
    return Kept(kept, catalogue, _refused([newest], str(why)))


def restored(known: InForce, like: Settings) -> Settings:
    """A recorded configuration as settings, with the addresses of those that this process has."""
    addresses = like.model_dump(by_alias=True, include=_ADDRESS_FIELDS, exclude_none=True)
    return Settings.model_validate(_with(known.data, addresses))


def _with(data: Mapping[str, Any], addresses: Mapping[str, Any]) -> dict[str, Any]:
    """The data with these addresses instead of its own."""
    data = dict(data)
    for key in ADDRESSES:
        given = {name: addresses[name] for name in (key, f"{key}_file", f"{key}_env") if name in addresses}
        if given:
            data = {name: value for name, value in data.items() if name not in (key, f"{key}_file", f"{key}_env")}
            data |= given
    return data


def without_secrets(data: Mapping[str, Any]) -> dict[str, Any]:
    """For the catalogue. Passwords are not in a configuration, but an address may hold one."""
    return {key: masked(value) if key in ADDRESSES else value for key, value in data.items()}


_ADDRESS_FIELDS = {f"{key}_{whence}" for key in ADDRESSES for whence in ("given", "file", "env")}


def _refused(those: Iterable[InForce], sentence: str) -> str:
    those = list(those)
    since = min(known.since for known in those)
    first, *more = sentence.splitlines()
    rest = f" (and {len(more)} more; `understudy config check` has all)" if more else ""
    return (
        f"the configuration in force at {_workers(those)} is that of {since:%Y-%m-%d %H:%M:%S} UTC; "
        f"the newer one is refused: {first}{rest}"
    )


def _workers(those: Iterable[InForce]) -> str:
    return ", ".join(sorted(known.worker for known in those))
