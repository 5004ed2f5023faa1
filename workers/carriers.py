"""Which carrier a disk goes by: the first that its site prefers and that is possible, with the reason. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from workers.errors import ConfigError
from workers.models import Run, RunKind
from workers.settings.places import CarrierName

#: in a run's memory: by which carrier each disk goes
CARRIERS = "carriers"


class Choice(NamedTuple):
    carrier: CarrierName
    #: why this one and none that is preferred to it; completes "Hard disk 1 goes by nbd, "
    reason: str


def choose(
    what: str,
    preferred: Sequence[CarrierName],
    obstacles: Mapping[CarrierName, str | None],
    *,
    before: CarrierName | None = None,
) -> Choice:
    """The carrier of one disk.

    `obstacles` says of each carrier why it is not possible here (None: it is); `before` is what the run began with: a
    disk has one carrier in a run, whichever worker goes on. Raises `ConfigError` with each reason when there is none.
    """
    if before is not None:
        if (why := obstacles.get(before)) is not None:
            raise ConfigError(
                f"{what} goes by {before} in this run, which is not possible here: {why}. All workers of a "
                "site must be set up alike; mend this one, or stop the run and start it again"
            )
        return Choice(before, "as this run began")
    passed: list[str] = []
    for carrier in preferred:
        why = obstacles.get(carrier)
        if why is None:
            reason = f"not by {'; not by '.join(passed)}" if passed else "which its site prefers"
            return Choice(carrier, reason)
        passed.append(f"{carrier}: {why}")
    raise ConfigError(f"there is no way to the bytes of {what}. Not by {'; not by '.join(passed)}")


def in_words(choices: Iterable[tuple[str, Choice]]) -> list[str]:
    """One sentence for all disks that go the same way for the same reason."""
    alike: dict[Choice, list[str]] = {}
    for label, choice in choices:
        alike.setdefault(choice, []).append(label)
    return [
        f"{', '.join(labels)} {'go' if len(labels) > 1 else 'goes'} by {choice.carrier}, {choice.reason}"
        for choice, labels in alike.items()
    ]


def stored(choices: Mapping[str, Choice]) -> str:
    """As a run remembers them, by the disk's id."""
    return "\n".join(f"{choice.carrier} {disk}" for disk, choice in sorted(choices.items()))


def hosts_lock(text: str | None) -> bool:
    """Whether any disk goes by a carrier whose locks are the hosts'. So is what a killed worker leaves locked."""
    return any(name != "file" for name in restored(text).values())


def one_writer(run: Run, text: str | None) -> bool:
    """Whether more workers are of no use to the run: it writes a VM, and not as files. Snapshots are read by many."""
    return run.kind is not RunKind.BACKUP and hosts_lock(text)


def restored(text: str | None) -> dict[str, CarrierName]:
    found: dict[str, CarrierName] = {}
    for line in (text or "").splitlines():
        name, _, disk = line.partition(" ")
        found[disk] = name  # type: ignore[assignment]
    return found
