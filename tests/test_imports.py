"""Who may import whom: the table of docs/architecture.md, checked over every file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import repository

#: what every part of workers/ shares; they know only one another
SHARED = {"models", "errors", "extents", "point", "gather", "settings", "faults"}
#: decide, and do nothing: `now` and everything else are arguments
PURE = {
    "plan", "policy", "retention", "due", "extents", "membership", "destination", "quarantine", "approval", "state",
    "spread", "copies", "sources", "bandwidth", "carriers",
}  # fmt: skip
#: of our own modules, what a pure one may know; of settings only the models, see READERS
PURE_OWN = {"models", "errors", "extents", "point", "settings"} | PURE
#: what of settings reads the file or the environment
READERS = {
    f"workers.settings.{name}"
    for name in ("load", "load_with_origins", "find", "FAULT", "read", "secrets", "current", "manual")
}
#: of everybody else's
PURE_OTHERS = {
    "__future__", "array", "base64", "bisect", "collections", "cronsim", "dataclasses", "datetime", "enum", "fnmatch",
    "functools", "hashlib", "heapq", "itertools", "math", "numpy", "operator", "pydantic", "random", "re",
    "typing", "zoneinfo",
}  # fmt: skip
#: library -> the places that may import it (a folder ends with a slash)
ONLY_IN = {
    "celery": ("tasks/",),
    "kombu": ("tasks/",),
    "flower": ("tasks/", "deploy/flower/"),
    "pyVmomi": ("workers/vsphere/",),
    "pyVim": ("workers/vsphere/",),
    "vmware": ("workers/vsphere/",),
    "boto3": ("workers/store/",),
    "botocore": ("workers/store/",),
    "sqlalchemy": ("workers/catalogue/", "tasks/result_backend.py"),
    "alembic": ("workers/catalogue/",),
}
#: our top-level names
OURS = {"workers", "tasks", "beat_schedule", "tests", "benchmarks", "deploy"}


def imports(name: str, source: str) -> set[str]:
    """Dotted names of all that the module imports, wherever the statement stands; `from a import b` gives a and a.b."""
    package = name.removesuffix(".py").split("/")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def violations(name: str, source: str) -> list[str]:
    """Each rule that the file `name` breaks, as a sentence."""
    found = imports(name, source)
    ours = {tuple(module.split(".")) for module in found if module.split(".")[0] in OURS}
    others = {module.split(".")[0] for module in found} - OURS
    where = name.removesuffix(".py").split("/")
    problems = [f"{name}: imports everything with *" for module in found if module.endswith(".*")]
    for library, places in ONLY_IN.items():
        if library in others and not name.startswith(places):
            problems.append(f"{name}: imports {library}; only {', '.join(places)} may")
    if where[0] == "beat_schedule":
        problems += [f"{name}: imports {'.'.join(module)}; it may import nothing of ours" for module in ours]
    if where[0] != "workers":
        outside = ours if where[0] == "tasks" else set()
        allowed = {"workers", "tasks", "beat_schedule"}
        return problems + [f"{name}: imports {'.'.join(module)}" for module in outside if module[0] not in allowed]
    problems += [f"{name}: imports {'.'.join(m)}; workers/ may import only workers" for m in ours if m[0] != "workers"]
    parts = {module[1] for module in ours if module[0] == "workers" and len(module) > 1}
    if len(where) > 2:
        allowed = SHARED | {where[1]}
        problems += [f"{name}: imports workers.{part}; a folder may not" for part in sorted(parts - allowed)]
    elif where[1] in SHARED:
        problems += [f"{name}: imports workers.{part}; what all share may not" for part in sorted(parts - SHARED)]
    if len(where) == 2 and where[1] in PURE:
        problems += [f"{name}: imports workers.{part}; what decides may not" for part in sorted(parts - PURE_OWN)]
        problems += [f"{name}: imports {library}; what decides does no I/O" for library in sorted(others - PURE_OTHERS)]
        problems += [f"{name}: imports {reader}; what decides is told" for reader in sorted(found & READERS)]
        if "workers.settings" in found and not any(module.startswith("workers.settings.") for module in found):
            problems.append(f"{name}: imports all of workers.settings; only its models may")
        problems += _calls_of_a_pure_module(name, source)
    return problems


def _calls_of_a_pure_module(name: str, source: str) -> list[str]:
    problems = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr in {"now", "utcnow", "today"}:
                problems.append(f"{name}:{node.lineno}: asks the clock; `now` is an argument")
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "random":
                if called.attr != "Random" or not node.args:
                    problems.append(f"{name}:{node.lineno}: throws dice without a seed")
            if isinstance(called, ast.Name) and called.id in {"open", "print", "input"}:
                problems.append(f"{name}:{node.lineno}: calls {called.id}()")
    return problems


def judged() -> list[Path]:
    return [
        path
        for path in repository.files(".py")
        if repository.name(path).split("/")[0] in {"workers", "tasks", "beat_schedule.py", "deploy"}
    ]


@pytest.mark.parametrize("path", judged(), ids=repository.name)
def test_imports_follow_the_table(path: Path) -> None:
    assert violations(repository.name(path), path.read_text()) == []


@pytest.mark.parametrize("path", judged(), ids=repository.name)
def test_the_environment_has_one_reader(path: Path) -> None:
    """Configuration is read in workers/settings/ alone. tasks/ may pass its environment on to child processes."""
    name = repository.name(path)
    if name.startswith("workers/settings/") or not name.startswith("workers/"):
        return
    asked = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
    ]
    assert asked == [], f"{name} reads the environment in line {asked}; workers/settings/ is the place"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        pytest.param("workers/sync.py", "def f():\n    import celery.app", id="celery in workers, inside a function"),
        pytest.param("tasks/backup.py", "from pyVmomi import vim", id="pyVmomi in tasks"),
        pytest.param("workers/store/packs.py", "from sqlalchemy.orm import Session", id="SQLAlchemy in the store"),
        pytest.param("tasks/cli.py", "import sqlalchemy", id="SQLAlchemy in tasks"),
        pytest.param("workers/store/packs.py", "from workers.vsphere.session import Session", id="folder to folder"),
        pytest.param("workers/store/packs.py", "from ..vsphere import session", id="folder to folder, relative"),
        pytest.param("workers/store/packs.py", "from workers import catalogue", id="folder to folder, by its parent"),
        pytest.param("workers/store/packs.py", "from workers.sync import sync", id="folder to feature"),
        pytest.param("workers/models.py", "from workers.store import Store", id="shared to folder"),
        pytest.param("workers/sync.py", "from tasks.app import app", id="workers to tasks"),
        pytest.param("tasks/app.py", "from tests.lab import x", id="tasks to tests"),
        pytest.param("workers/plan.py", "import os", id="I/O in a pure module"),
        pytest.param(
            "workers/due.py", "from datetime import datetime\nx = datetime.now()", id="clock in a pure module"
        ),
        pytest.param("workers/due.py", "x = open('f')", id="file in a pure module"),
        pytest.param("workers/plan.py", "from workers.settings import load", id="reading settings in a pure module"),
        pytest.param("workers/plan.py", "from workers import settings", id="all of settings in a pure module"),
        pytest.param("workers/plan.py", "import random\nx = random.random()", id="dice in a pure module"),
        pytest.param("workers/plan.py", "import random\nx = random.Random()", id="unseeded dice in a pure module"),
        pytest.param("beat_schedule.py", "from workers.models import Run", id="beat_schedule of ours"),
        pytest.param("workers/sync.py", "from workers.models import *", id="star"),
    ],
)
def test_the_table_catches(name: str, source: str) -> None:
    assert len(violations(name, source)) >= 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        pytest.param("workers/store/packs.py", "from workers.store.layout import Trailer", id="within a folder"),
        pytest.param("workers/store/packs.py", "from . import layout", id="within a folder, relative"),
        pytest.param("workers/sync.py", "from workers.store import Store\nfrom workers.plan import plan", id="feature"),
        pytest.param("tasks/sync.py", "from celery import shared_task\nfrom workers.sync import sync", id="task"),
        pytest.param("tasks/result_backend.py", "import sqlalchemy", id="result backend"),
        pytest.param("workers/plan.py", "from workers.models import Run\nimport math", id="pure"),
        pytest.param("workers/due.py", "from workers.settings import Schedule", id="pure, a model of settings"),
        pytest.param("workers/plan.py", "import random\nx = random.Random(7).random()", id="pure, seeded dice"),
        pytest.param("tasks/app.py", "import beat_schedule", id="the app has the schedule"),
    ],
)
def test_the_table_allows(name: str, source: str) -> None:
    assert violations(name, source) == []
