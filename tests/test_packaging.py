"""The wheel holds what it should: automatic discovery once dropped tasks/ and beat_schedule.py without a word."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import repository

#: imported where they are unpacked, far from the checkout; -P keeps the current folder out
IMPORT_ALL = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
for top in ("workers", "tasks"):
    for file in sorted((root / top).rglob("*.py")):
        if file.name not in ("__main__.py", "env.py"):  # the one runs, the other is run by Alembic
            name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            module = importlib.import_module(name)
            assert str(root) in module.__file__, module.__file__
import beat_schedule
assert str(root) in beat_schedule.__file__
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy of what is kept in version control: building leaves folders in the source."""
    source = tmp_path_factory.mktemp("source")
    for path in repository.files():
        target = source / path.relative_to(repository.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    out = tmp_path_factory.mktemp("wheel")
    # No isolation: what builds is pinned in requirements.lock, and nothing is downloaded.
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file)


def test_top_level_is_exactly_what_is_meant(wheel: zipfile.ZipFile) -> None:
    version = repository.metadata()["project"]["version"]
    assert {name.split("/")[0] for name in wheel.namelist()} == {
        "workers",
        "tasks",
        "beat_schedule.py",
        f"understudy-{version}.dist-info",
    }


def test_every_file_of_the_packages_is_in_it(wheel: zipfile.ZipFile) -> None:
    """Python files of a package that nobody listed, migrations, templates: all of them."""
    kept = {
        repository.name(path) for path in repository.files() if repository.name(path).startswith(("workers/", "tasks/"))
    }
    assert kept - set(wheel.namelist()) == set(), "list it in pyproject.toml (packages or package-data)"


def test_licence_and_command_are_declared(wheel: zipfile.ZipFile) -> None:
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "understudy = tasks.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_every_module_can_be_imported_from_it(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "unpacked")
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_ALL, tmp_path / "unpacked"],
        capture_output=True, text=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
