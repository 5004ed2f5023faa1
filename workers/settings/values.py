"""What values of the configuration look like: times, sizes, cron lines, time zones, addresses."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, WithJsonSchema

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SIZES = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

#: The longest interval, in seconds: a hundred years. Python's own times end in the year 9999.
LONGEST = 100 * 366 * 86400
#: what of an address may be a password: the login, and parameters that are called so
_LOGIN = re.compile(r"://.*@")
_PASSWORD = re.compile(r"://([^:@/]*):.*@")
_PARAMETER = re.compile(r"([?&][^=&]*(?:pass|secret|key|token)[^=&]*=)[^&]*", re.IGNORECASE)
_NUMBER = re.compile(r"0*[1-9][0-9]{0,14}")


def seconds(text: str) -> int:
    """'90s', '15m', '4h', '1d', '1w' -> seconds."""
    if _NUMBER.fullmatch(text[:-1]) and text[-1:] in UNITS:
        found = int(text[:-1]) * UNITS[text[-1]]
        if found > LONGEST:
            raise ValueError("a hundred years at most")
        return found
    raise ValueError("a number and a unit: 90s, 15m, 4h, 1d or 1w")


def size(text: str) -> int:
    """'500GB', '20 GiB' -> bytes."""
    for unit, factor in SIZES.items():
        number = text.removesuffix(unit).rstrip()
        if text.endswith(unit) and _NUMBER.fullmatch(number):
            return int(number) * factor
    raise ValueError("a number and a unit: 500MB, 20GB, 2TB, 512MiB, 20GiB or 2TiB")


def masked(address: str) -> str:
    """An address without its password; of Redis' whole login, which is often nothing but the password."""
    if address.startswith("redis"):
        address = _LOGIN.sub("://***@", address)
    elif not address.startswith("sqlite"):
        address = _PASSWORD.sub(r"://\1:***@", address)
    return _PARAMETER.sub(r"\1***", address)


def one_of(*keys: str) -> dict[str, Any]:
    """For the JSON Schema: exactly one of these keys."""
    return {"oneOf": [{"required": [key]} for key in keys]}


def _interval(text: str) -> str:
    seconds(text)
    return text


def _size(text: str) -> str:
    size(text)
    return text


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError) as err:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError("a time zone name such as UTC or Europe/Berlin") from err
    return name


def _cron(text: str) -> str:
    allowed = "a cron line of five fields that comes at some time, e.g. '30 1 * * *'"
    if len(text.split()) != 5:
        raise ValueError(allowed)
    try:
        CronSim(text, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as err:  # also for a day that no month has: such a schedule would never be due
        raise ValueError(f"{allowed} ({err})") from err
    return text


Interval = Annotated[
    str, AfterValidator(_interval), WithJsonSchema({"type": "string", "pattern": "^0*[1-9][0-9]*[smhdw]$"})
]
Size = Annotated[
    str,
    AfterValidator(_size),
    WithJsonSchema({"type": "string", "pattern": "^0*[1-9][0-9]* *([MGT]B|[MGT]iB)$"}),
]
Cron = Annotated[str, AfterValidator(_cron)]
Zone = Annotated[str, AfterValidator(_zone)]
