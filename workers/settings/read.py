"""The only reader of the configuration's files and the environment. What is wrong with them is said in sentences."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from workers.errors import ConfigError
from workers.settings import complaints, shape
from workers.settings.model import Settings

#: Where the configuration is looked for, first hit wins: --config, UNDERSTUDY_CONFIG, these. A folder means all its
#: *.toml.
DEFAULT_PATHS = (
    Path("understudy.toml"),
    Path("understudy.d"),
    Path("/etc/understudy/understudy.toml"),
    Path("/etc/understudy/understudy.d"),
)

#: keys by which Redis and the catalogue are found
ADDRESSES = frozenset(f"{key}{whence}" for key in ("redis", "catalogue") for whence in ("", "_file", "_env"))


class Seen(NamedTuple):
    """What a stat says of a file or a folder: another one means that it may have been written since."""

    path: str
    changed_ns: int
    size: int
    inode: int


class Loaded(NamedTuple):
    """A configuration that was read and is in order."""

    settings: Settings
    path: Path
    files: tuple[Path, ...]
    #: key (of one or two parts: top-level keys, and names in sections) -> the file that it came from
    origins: Mapping[tuple[str, ...], Path]
    #: merged, with absolute paths, before the models
    data: dict[str, Any]
    digest: str
    seen: tuple[Seen, ...]

    def file_of(self, key: Sequence[int | str]) -> Path:
        return file_of(self.origins, key) or self.path


def find(path: Path | None = None) -> Path:
    """The configuration to use: a file, or a folder of files. Raises `ConfigError` when there is none."""
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
    """The checked configuration. Raises `ConfigError`, one sentence per mistake."""
    return load_with_origins(path).settings


def load_with_origins(path: Path | None = None) -> Loaded:
    """The checked configuration, and where each part of it came from.

    Files of a folder are merged table by table; a relative path starts at the folder of the file that it is in.
    Raises `ConfigError`, one sentence per mistake.
    """
    where = find(path)
    seen = look(where)
    texts = {file: _text(file) for file in files(where)}
    digest = hashlib.sha256()
    for file, text in texts.items():
        digest.update(f"{file.name}\0{len(text)}\0".encode(errors="surrogateescape") + text)
    tables = {file: _parsed(file, text) for file, text in texts.items()}
    try:
        data, origins = _merged({file: _absolute(table, file) for file, table in tables.items()})
        settings = Settings.model_validate(data)
    except ValidationError as err:
        raise ConfigError(
            "\n".join(
                complaints.printable(f"{file_of(origins, key) or where}: {sentence}")
                for key, sentence in complaints.sentences(err, data)
            )
        ) from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply") from None
    return Loaded(settings, where, tuple(texts), origins, data, digest.hexdigest(), seen)


def files(where: Path) -> list[Path]:
    """The file itself, or a folder's *.toml by name; hidden ones are an editor's."""
    try:
        if not where.is_dir():
            return [where]
        found = sorted(file for file in where.iterdir() if file.suffix == ".toml" and not file.name.startswith("."))
    except (OSError, ValueError) as err:
        raise ConfigError(complaints.printable(f"the configuration {where} cannot be read: {_reason(err)}")) from err
    if not found:
        raise ConfigError(f"the folder {where} has no *.toml; run `understudy init` to write an example configuration")
    return found


def look(where: Path) -> tuple[Seen, ...]:
    """What a stat says of the configuration's files, and of its folder. Nothing of what is not there."""
    found = []
    try:
        paths = [where, *files(where)] if where.is_dir() else [where]
    except (ConfigError, OSError, ValueError):
        paths = [where]
    for path in paths:
        try:
            stat = path.stat()
        except (OSError, ValueError):
            continue
        found.append(Seen(str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(found)


def addresses(where: Path) -> dict[str, Any]:
    """What can be made out of `redis` and `catalogue` (and their _file, _env) in files that are wrong otherwise."""
    found: dict[str, Any] = {}
    with suppress(ConfigError):
        for file in files(where):
            with suppress(ConfigError):
                found |= _absolute(_addresses(_text(file)), file)
    return found


def _addresses(text: bytes) -> dict[str, Any]:
    """Of a file that is no TOML: the lines above its first table, each for itself."""
    table: dict[str, Any] = {}
    try:
        table = tomllib.loads(text.decode())
    except (ValueError, RecursionError):
        for line in text.decode(errors="replace").splitlines():
            if line.lstrip().startswith("["):
                break
            with suppress(ValueError, RecursionError):
                table |= tomllib.loads(line)
    return {key: value for key, value in table.items() if key in ADDRESSES and isinstance(value, str)}


def file_of(origins: Mapping[tuple[str, ...], Path], key: Sequence[int | str]) -> Path | None:
    names = tuple(str(part) for part in key[:2])
    return origins.get(names) or origins.get(names[:1])


def _text(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except (OSError, ValueError) as err:
        raise ConfigError(complaints.printable(f"the configuration {file} cannot be read: {_reason(err)}")) from err


def _reason(err: Exception) -> str:
    return str(err.strerror) if isinstance(err, OSError) else str(err)


def _parsed(file: Path, text: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as err:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        why = "it is nested too deeply" if isinstance(err, RecursionError) else str(err)
        raise ConfigError(complaints.printable(f"{file} is not valid TOML: {why}")) from err


def _absolute(data: dict[str, Any], file: Path) -> dict[str, Any]:
    """Paths of the file's own folder, made absolute before files are merged."""
    folder = file.resolve().parent
    found: dict[str, Any] = shape.absolute(Settings, data, folder)
    url = found.get("catalogue")
    if isinstance(url, str) and url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
        found["catalogue"] = f"sqlite:///{folder / url.removeprefix('sqlite:///')}"
    return found


def _merged(tables: Mapping[Path, dict[str, Any]]) -> tuple[dict[str, Any], dict[tuple[str, ...], Path]]:
    """All files as one. A section may be spread over files; what is in a section has one home."""
    data: dict[str, Any] = {}
    origins: dict[tuple[str, ...], Path] = {}
    twice = []
    for file, table in tables.items():
        for key, name, value in _entries(table):
            place: tuple[str, ...] = (key,) if name is None else (key, name)
            clash: tuple[str, ...] | None = place if place in origins else (key,) if (key,) in origins else None
            if name is None and clash is None:
                clash = next((other for other in origins if other[0] == key), None)
            if clash is not None:
                twice.append(f"{shape.dotted(place)} is in {origins[clash]} and in {file}; it may be in one file only")
                continue
            origins[place] = file
            if name is None:
                data[key] = value
            else:
                data.setdefault(key, {})[name] = value
    if twice:
        raise ConfigError("\n".join(map(complaints.printable, twice)))
    return data, origins


def _entries(table: dict[str, Any]) -> Iterator[tuple[str, str | None, Any]]:
    """(section, name, value); an empty section and what is no section have no name."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield key, name, inner
        else:
            yield key, None, value
