"""The project's own files, for the tests that judge them."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: made by tools, not kept; and what starts with a dot, but for these
MADE = {"build", "dist", "__pycache__"}
KEPT = {".ci", ".github", ".gitignore"}


def files(*suffixes: str) -> list[Path]:
    """What is kept in version control (and what would be, once added); all of them, or those with these suffixes."""
    listing = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True
    ) if (ROOT / ".git").exists() else None  # fmt: skip
    if listing is not None and listing.returncode == 0:
        found = [ROOT / name.decode() for name in listing.stdout.split(b"\0") if name]
    else:  # an archive without history
        found = [path for path in ROOT.rglob("*") if not any(map(_made, path.relative_to(ROOT).parts))]
    return sorted(path for path in found if path.is_file() and (not suffixes or path.suffix in suffixes))


def _made(part: str) -> bool:
    return part in MADE or part.endswith(".egg-info") or (part.startswith(".") and part not in KEPT)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def metadata() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
