"""The only reader of the configuration file and the environment. What is wrong with it is said in sentences."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workers.errors import ConfigError
from workers.models import Model
from workers.settings.model import Settings, Tuning
from workers.settings.places import Flower, RecoveryTarget, Site, StoreSettings
from workers.settings.policy import Group, ReplicaOverride, ReplicateWhen, Schedule, VmOverride

#: Where the configuration is looked for, first hit wins: --config, UNDERSTUDY_CONFIG, these.
DEFAULT_PATHS = (Path("understudy.toml"), Path("/etc/understudy/understudy.toml"))


def find(path: Path | None = None) -> Path:
    """The configuration file to use. Raises `ConfigError` when there is none."""
    named = path or (Path(os.environ["UNDERSTUDY_CONFIG"]) if os.environ.get("UNDERSTUDY_CONFIG") else None)
    if named is not None:
        return named
    for candidate in DEFAULT_PATHS:
        if candidate.exists():
            return candidate
    raise ConfigError(
        "no configuration found: pass --config FILE, set UNDERSTUDY_CONFIG, or run `understudy init` to write one here"
    )


def load(path: Path | None = None) -> Settings:
    """Read and check the configuration; its relative paths start at its folder.

    Raises `ConfigError`, one sentence per mistake.
    """
    file = find(path)
    try:
        data = tomllib.loads(file.read_text())
    except OSError as err:
        raise ConfigError(f"the configuration {file} cannot be read: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"{file} is not valid TOML: {err}") from err
    try:
        return Settings.model_validate(_absolute(data, file.resolve().parent))
    except ValidationError as err:
        raise ConfigError("\n".join(f"{file}: {line}" for line in _sentences(err))) from None


def _absolute(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths of the file's own folder, made absolute before validation."""

    def fix(table: Any, *keys: str) -> None:
        for key in keys:
            if isinstance(table, dict) and isinstance(table.get(key), str):
                table[key] = str(folder / table[key])

    for site in _tables(data.get("sites")):
        fix(site, "password_file", "ca_file")
        if isinstance(site.get("datastores"), dict):
            fix(site["datastores"], *site["datastores"])
    fix(data.get("flower"), "password_file")
    for store in _tables(data.get("stores")):
        fix(store, "path")
    url = data.get("catalogue")
    if isinstance(url, str) and url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        data["catalogue"] = f"sqlite:///{folder / url.removeprefix('sqlite:///')}"
    return data


def _tables(value: Any) -> list[dict[str, Any]]:
    return [t for t in value.values() if isinstance(t, dict)] if isinstance(value, dict) else []


def _sentences(err: ValidationError) -> list[str]:
    lines = []
    for problem in err.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key} is not a key that is known here{_did_you_mean(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(problem["input"], dict) or not key else f"{key} = {problem['input']!r}: "
            lines.append(f"{shown}{message}" if shown or not key else f"{key}: {message}")
    return lines


def _did_you_mean(loc: tuple[int | str, ...]) -> str:
    model = _model_at(loc[:-1])
    if model is None:
        return ""
    allowed = sorted(model.model_fields)
    close = difflib.get_close_matches(str(loc[-1]), allowed, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f" (allowed: {', '.join(allowed)}){hint}"


def _model_at(loc: tuple[int | str, ...]) -> type[Model] | None:
    tops: dict[str, type[Model]] = {
        "sites": Site,
        "stores": StoreSettings,
        "targets": RecoveryTarget,
        "groups": Group,
    }
    if not loc:
        return Settings
    if loc[0] in ("tuning", "flower"):
        return Tuning if loc[0] == "tuning" else Flower
    inner: dict[str, type[Model]] = {"backup": Schedule, "schedule": Schedule, "replicate": ReplicateWhen}
    if len(loc) >= 3 and loc[2] == "overrides":
        return ReplicaOverride if len(loc) > 4 and loc[4] == "targets" else VmOverride
    return inner.get(str(loc[-1])) or tops.get(str(loc[0]))
