"""What people say about pairs and backups, as tasks: `understudy.pause`, `resume`, `disable` and `enable`.

Adopting and forgetting stay with the command: they give up data, and it shows first what would be given up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tasks.app import app, here
from tasks.dispatch import only_known
from workers import holding
from workers.errors import BadInput, UnderstudyError

#: who asked, where the request does not say it: Flower does not pass on whom it let in
SOMEBODY = "a request by Celery"


@app.task(name="understudy.pause", throws=(BadInput,))
def pause(vm: Any = None, *more: Any, **given: Any) -> list[dict[str, Any]]:
    """Skip the schedules of this VM's or group's replicas (or backups) until they are resumed."""
    return _asked("pause", holding.pause, vm, more, given, says=True)


@app.task(name="understudy.disable", throws=(BadInput,))
def disable(vm: Any = None, *more: Any, **given: Any) -> list[dict[str, Any]]:
    """Switch this VM's or group's replicas (or backups) off until they are enabled."""
    return _asked("disable", holding.disable, vm, more, given, says=True)


@app.task(name="understudy.resume", throws=(BadInput,))
def resume(vm: Any = None, *more: Any, **given: Any) -> list[dict[str, Any]]:
    """End pauses and quarantines of this VM or group, of replicas and backups alike."""
    return _asked("resume", holding.resume, vm, more, given, says=False)


@app.task(name="understudy.enable", throws=(BadInput,))
def enable(vm: Any = None, *more: Any, **given: Any) -> list[dict[str, Any]]:
    """Switch on again what was disabled of this VM or group. A pair that was forgotten begins anew."""
    return _asked("enable", holding.enable, vm, more, given, says=False)


def _asked(
    verb: str,
    does: Callable[..., holding.Answer],
    vm: Any,
    more: tuple[Any, ...],
    given: Mapping[str, Any],
    *,
    says: bool,
) -> list[dict[str, Any]]:
    """`says`: whether the verb keeps who asked and why, and may stop what runs."""
    texts, truths = ["group", "target", *(["reason", "who"] if says else [])], ["backups", *(["now"] if says else [])]
    takes = f"understudy.{verb} takes vm (a VM's name), {', '.join(texts)} and {' and '.join(truths)} (true or false)"
    only_known(takes, more, {key: value for key, value in given.items() if key not in (*texts, *truths)})
    for name, value in (("vm", vm), *((name, given.get(name)) for name in texts)):
        if value is not None and (not isinstance(value, str) or not value):
            raise BadInput(f"{name} is a text, not {value!r}; nothing was done")
    for name in truths:
        if not isinstance(given.get(name, False), bool):  # "false" is true to Python
            raise BadInput(f"{name} is true or false, not {given[name]!r}; nothing was done")
    which: holding.Which = "backups" if given.get("backups") else "replicas" if says else "both"
    meant = holding.subjects(
        here(), _list(vm), groups=_list(given.get("group")), targets=_list(given.get("target")), which=which
    )
    said: dict[str, Any] = {}
    if says:
        said = {"who": given.get("who") or SOMEBODY, "reason": given.get("reason") or "no reason given"}
        said["now"] = given.get("now", False)
    return [_answer(subject, does, said).model_dump(mode="json") for subject in meant]


def _answer(subject: holding.Subject, does: Callable[..., holding.Answer], said: Mapping[str, Any]) -> holding.Answer:
    """One that is refused does not keep the others from their answers."""
    try:
        return does(here(), subject, **said)
    except UnderstudyError as err:
        return holding.refused(subject, err)


def _list(value: str | None) -> list[str]:
    return [] if value is None else [value]
