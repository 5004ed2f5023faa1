"""The example configurations are right as they stand, but for the secrets and certificates that everybody adds."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.configurations import understudy
from tests.repository import ROOT
from workers import settings

EXAMPLES = sorted(path for path in (ROOT / "deploy" / "examples").iterdir() if path.is_dir())


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.name)
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy: what is beside the example on somebody's machine is no part of it."""
    copy = tmp_path / "understudy.d"
    shutil.copytree(request.param, copy, ignore=shutil.ignore_patterns("secrets", "ca"))
    return copy


def own_files(example: Path) -> set[str]:
    """What the example says that its user has to add, by the names in its TOML."""
    text = "\n".join(file.read_text() for file in example.glob("*.toml"))
    return set(re.findall(r'_file = "((?:secrets|ca)/[\w.-]+)"', text))


def test_it_is_right_as_it_stands(example: Path) -> None:
    said = understudy("--config", str(example), "config", "check")
    assert said.code == 0 and said.out.startswith("ok: "), said
    missing = {line.partition(f"{example}/")[2] for line in said.err.splitlines()}
    named = {path for path in own_files(example) if any(path in line for line in missing)}
    assert named == own_files(example) and len(missing) == len(named), said.err


def test_nothing_of_it_is_doubtful_once_these_files_are_there(example: Path) -> None:
    for name in own_files(example):
        file = example / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("redis://h:6379/0\n" if "redis" in name else "postgresql+psycopg://u@h/d\n")
        file.chmod(0o600)
    said = understudy("--config", str(example), "config", "check", "--strict")
    assert (said.code, said.err) == (0, ""), said


def test_its_readme_names_every_group_and_every_secret(example: Path) -> None:
    readme = (example / "README.md").read_text()
    for group in settings.load(example).groups:
        assert f"| {group} |" in readme
    for path in own_files(example):
        folder, _, name = path.partition("/")
        assert f"`{folder}/`" in readme and (folder == "ca" or f"`{name}`" in readme)
