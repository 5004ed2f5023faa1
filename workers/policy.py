"""What applies to a VM, and where each value comes from: its overrides, its group, the recovery target, the defaults.

Pure, and the only place that layers them: what the workers do and what `understudy config show` says is one decision.
A key belongs to the layers whose models have it; the most specific layer that sets it wins. A mapping (networks) is
layered entry by entry. So a key that is added to a model is layered, shown and explained without being named here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from workers.models import Model
from workers.settings import RecoveryTarget, Settings, VmOverride, shape
from workers.settings.values import masked

#: the table of a value that nobody wrote
DEFAULT: tuple[str, ...] = ()

#: keys of a group that say whom its policy is for, and are no policy themselves
WHOM = frozenset({"vms", "members", "overrides", "targets"})


class Setting(NamedTuple):
    """One value that is in force. `table` is the table of the configuration that says it."""

    key: str
    value: Any
    table: tuple[str, ...]

    @property
    def origin(self) -> str:
        return shape.dotted(self.table) or "default"


class Layer(NamedTuple):
    """`table`: where it is in the configuration, as ("groups", "web")."""

    table: tuple[str, ...]
    model: Model


def of_vm(settings: Settings, group: str, vm: str | None, target: str | None) -> list[Setting]:
    """The whole policy of a VM in a group towards a target; of the group itself without a VM."""
    found: list[Setting] = []
    for key, (value, origins) in resolved(layers(settings, group, vm, target)).items():
        if key == "target":
            value = target
        if key not in WHOM and key != "name":
            found += _settings(key, value, origins)
    if vm is not None and target is not None:
        found.append(Setting("name", *replica_name(layers(settings, group, vm, target), vm)))
    return found


def of_all(settings: Settings) -> list[Setting]:
    """Every value of the configuration, secrets masked."""
    return list(_flat((), settings, None))


def layers(settings: Settings, group: str | None, vm: str | None, target: str | None) -> list[Layer]:
    """The most specific first."""
    found = []
    if group is not None:
        overrides = settings.groups[group].overrides
        if vm is not None and vm in overrides:
            found += override_layers(overrides[vm], target, ("groups", group, "overrides", vm))
        found.append(Layer(("groups", group), settings.groups[group]))
    if target is not None:
        found.append(Layer(("targets", target), settings.targets[target]))
    return found


def override_layers(override: VmOverride, target: str | None, table: tuple[str, ...] = ()) -> list[Layer]:
    """What is different for one VM, for this recovery target alone first.

    What that says of the beginning (an existing VM, a seed) replaces what the override says of it.
    """
    alone = override.targets.get(target) if target is not None else None
    if alone is None:
        return [Layer(table, override)]
    replaced = {"existing": None} if alone.seed is not None else {"seed": None} if alone.existing is not None else {}
    assert target is not None
    return [Layer((*table, "targets", target), alone), Layer(table, override.model_copy(update=replaced))]


#: a value, and whence: of a mapping each entry has its own origin, of anything else there is one, under ""
Chosen = tuple[Any, dict[str, tuple[str, ...]]]


def resolved(found: Sequence[Layer]) -> dict[str, Chosen]:
    """Each key of these layers: its value in force."""
    chosen: dict[str, Chosen] = {}
    for key in dict.fromkeys(key for layer in reversed(found) for key in shape.keys(type(layer.model))):
        chosen[key] = _chosen(key, [layer for layer in found if key in shape.keys(type(layer.model))])
    return chosen


def _chosen(key: str, holding: Sequence[Layer]) -> Chosen:
    saying = [layer for layer in holding if _says(layer.model, key)]
    if not saying:
        return _value(holding[-1].model, key), {"": DEFAULT}
    value = _value(saying[0].model, key)
    if not isinstance(value, dict):
        return value, {"": saying[0].table}
    merged: dict[str, Any] = {}
    origins: dict[str, tuple[str, ...]] = {}
    for layer in reversed(saying):
        merged |= _value(layer.model, key)
        origins |= dict.fromkeys(_value(layer.model, key), layer.table)
    return merged, {"": saying[0].table, **origins}


@cache
def _field(model: type[Model], key: str) -> str:
    return next(name for name, field in model.model_fields.items() if (field.alias or name) == key)


def _value(model: Model, key: str) -> Any:
    return getattr(model, _field(type(model), key))


def _says(model: Model, key: str) -> bool:
    """Whether somebody wrote it there: a default says nothing."""
    return _field(type(model), key) in model.model_fields_set and _value(model, key) is not None


def replica_name(found: Sequence[Layer], vm: str) -> tuple[str, tuple[str, ...]]:
    """What the replica is called, and whence. A VM that becomes one keeps its name (given as a UUID at first)."""
    for key in ("existing", "name"):  # these alone: a tick of dispatch asks it of each VM
        holding = [layer for layer in found if key in shape.keys(type(layer.model))]
        value, origins = _chosen(key, holding) if holding else (None, {"": DEFAULT})
        if value is not None:
            return value, origins[""]
    aim = next(layer for layer in found if isinstance(layer.model, RecoveryTarget))
    assert isinstance(aim.model, RecoveryTarget)
    written = aim.model.model_fields_set & {"prefix", "suffix"}
    return f"{aim.model.prefix}{vm}{aim.model.suffix}", aim.table if written else DEFAULT


def _settings(key: str, value: Any, origins: dict[str, tuple[str, ...]]) -> Iterator[Setting]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat((key, name), inner, origins.get(name, origins[""]))
    else:
        yield from _flat((key,), value, origins[""])


def _flat(key: tuple[str, ...], value: Any, table: tuple[str, ...] | None) -> Iterator[Setting]:
    """A table as its values. What is in one and was not written comes from the defaults, whoever wrote the rest.

    `table` None: of the whole configuration, where a value's table is the beginning of its own key.
    """
    if isinstance(value, Model):
        for name, field in shape.keys(type(value)).items():
            inner = _value(value, name)
            if shape.is_secret(field) and isinstance(inner, str):
                inner = masked(inner)
            yield from _flat((*key, name), inner, table if table != DEFAULT and _says(value, name) else DEFAULT)
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat((*key, name), inner, table)
    else:
        yield Setting(shape.dotted(key), _plain(value), key[:2] if table is None else table)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Model):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def same_store(settings: Settings, groups: Iterable[str]) -> dict[str, list[str]]:
    """Store -> those of these groups that share a chain of restore points in it, where it is more than one."""
    sharing: dict[str, list[str]] = {}
    for name in groups:
        sharing.setdefault(settings.groups[name].store, []).append(name)
    return {store: names for store, names in sharing.items() if len(names) > 1}
