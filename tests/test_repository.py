"""What holds for the repository as a whole: sizes of files, nothing of one machine, documents that are true."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import repository
from tests.repository import ROOT

#: a file of more lines has two subjects
LONGEST = 400
#: file -> why it may be longer
LONGER: dict[str, str] = {}


def text(path: Path) -> str:
    return path.read_text(errors="replace")


# --- files ------------------------------------------------------------------------------------------------------


def test_no_file_is_too_long() -> None:
    lines = {
        repository.name(path): len(text(path).splitlines()) for path in repository.files(".py", ".go", ".sh", ".c")
    }
    too_long = {name: count for name, count in lines.items() if count > LONGEST and name not in LONGER}
    assert too_long == {}, f"longer than {LONGEST} lines: split by subject, or give the reason in LONGER"
    assert [name for name in LONGER if lines.get(name, 0) <= LONGEST] == [], "no longer needs its exception"


@pytest.mark.parametrize("path", repository.files(".sh"), ids=repository.name)
def test_shell_scripts_can_be_run(path: Path) -> None:
    assert os.access(path, os.X_OK), f"{path} is not executable"
    shell = "bash" if "bash" in text(path).splitlines()[0] else "sh"
    assert subprocess.run([shell, "-n", path]).returncode == 0


def test_the_build_server_runs_make_test_and_nothing_else() -> None:
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    commands = [line for line in text(run).splitlines() if line and not line.startswith("#")]
    assert commands == ['cd "$(dirname "$0")/.." && CI=true exec make test']


# --- nothing of one machine ---------------------------------------------------------------------------------------


def package_hosts() -> set[str]:
    """Hosts of the package registries that this machine is configured with. None is named here, on purpose."""
    said = "\n".join(
        [
            _output(sys.executable, "-m", "pip", "config", "list"),
            _output(sys.executable, "-c", "from pip._internal.models.index import PyPI as p; "
                    "print(p.url, 'https://' + p.file_storage_domain)"),
            _output("npm", "config", "get", "registry"),
            _output("go", "env", "GOPROXY", "GOSUMDB"),
            *(text(path) for path in _apt_sources()),
        ]
    )  # fmt: skip
    hosts = {host.lower() for host in re.findall(r"https?://(?:[^@/\s'\"]*@)?([\w.-]+)", said)}
    return {host for host in hosts if "." in host and not host.startswith("127.")}


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""


def _apt_sources() -> Iterator[Path]:
    apt = Path("/etc/apt")
    candidates = [apt / "sources.list", *apt.glob("sources.list.d/*")]
    return (path for path in candidates if path.is_file() and os.access(path, os.R_OK))


def test_no_package_registry_is_named() -> None:
    """People install from where their machines are configured to; a name here would be wrong for some of them."""
    hosts = package_hosts()
    assert hosts, "not even pip's default was found, so this test would prove nothing"
    pattern = re.compile("|".join(rf"(?<![\w.-]){re.escape(host)}(?![\w-])" for host in sorted(hosts)), re.IGNORECASE)
    named = [repository.name(path) for path in repository.files() if pattern.search(text(path))]
    assert named == []


def test_no_path_of_one_machine() -> None:
    homes = "|".join(("/ho" + "me/", "/Us" + "ers/", "/ro" + "ot/"))
    patterns = [rf"(?<![\w./-])(?:{homes})[\w.]"]
    if len(ROOT.parts) > 3:  # a checkout in /src says nothing: others mean their own /src
        patterns.append(re.escape(str(ROOT)) + r"\b")
    pattern = re.compile("|".join(patterns))
    named = {
        repository.name(path): found[0]
        for path in repository.files()
        if (found := pattern.search(text(path))) is not None
    }
    assert named == {}


# --- the lock -----------------------------------------------------------------------------------------------------


def locked() -> dict[str, str]:
    """Project name -> its lines in requirements.lock."""
    blocks = re.split(r"\n(?=\S)", text(ROOT / "requirements.lock"))
    return {re.split(r"[=\s]", block)[0]: block for block in blocks if block and not block.startswith("#")}


def test_the_lock_pins_with_hashes_and_names_no_address() -> None:
    for name, block in locked().items():
        assert re.match(r"[a-z0-9-]+==[\w.]+", block), f"{name} has no version"
        assert "--hash=sha256:" in block, f"{name} has no hash"
    assert "://" not in text(ROOT / "requirements.lock") and "--index" not in text(ROOT / "requirements.lock")


def test_the_lock_covers_what_is_asked_for() -> None:
    project = repository.metadata()["project"]
    asked = [*project["dependencies"], *(each for group in project["optional-dependencies"].values() for each in group)]
    names = {re.sub(r"[._]", "-", re.split(r"[\s<>=!~;\[]", each)[0].lower()) for each in asked} - {project["name"]}
    assert names - set(locked()) == set(), "run `make lock`"


# --- documents ----------------------------------------------------------------------------------------------------


def documented() -> list[tuple[str, str]]:
    """(document, command) for each `make ...` and `understudy ...` in a code block."""
    found = set()
    for path in repository.files(".md"):
        if repository.name(path).startswith("CHANGELOG"):
            continue
        fenced = "".join(re.findall(r"^```(?:sh|shell|console|bash|)\n(.*?)^```", text(path), re.MULTILINE | re.DOTALL))
        indented = "\n".join(line for line in text(path).splitlines() if line.startswith("    "))
        for line in f"{fenced}\n{indented}".splitlines():
            command = re.match(r"\s*(?:[$#] )?(?:sudo )?((?:make|understudy)(?: .*)?)$", line.split("  #")[0].rstrip())
            if command is not None:
                found.add((repository.name(path), command[1]))
    return sorted(found)


def make_targets() -> dict[str, bool]:
    """Target -> whether `make help` shows it."""
    lines = re.findall(r"^([a-z][a-z-]*):(?!=)(.*)$", text(ROOT / "Makefile"), re.MULTILINE)
    return {target: "## " in rest for target, rest in lines}


def test_documents_exist_and_have_commands() -> None:
    assert {document for document, _ in documented()} >= {"README.md", "CONTRIBUTING.md"}


@pytest.mark.parametrize(("document", "command"), documented())
def test_documented_commands_are_real(document: str, command: str) -> None:
    program, *words = command.split()
    if program == "make":
        targets = [word for word in words if "=" not in word and not word.startswith("-")]
        assert set(targets) <= set(make_targets()), f"{document} says `{command}`"
        return
    verbs = []
    for word in words:
        if not re.fullmatch(r"[a-z][a-z-]*", word):
            break
        verbs.append(word)
    # Words after the verb may be arguments (a VM's name): the longest prefix that the program knows must not be empty.
    asked = [sys.executable, "-m", "tasks.cli", *verbs[:1], "--help"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{document} says `{command}`: {done.stderr}"


def named_in_sentences() -> list[tuple[str, str]]:
    """(file, verb) for each `understudy VERB` that a sentence of the program or of a document tells people to run."""
    found = set()
    for path in repository.files(".py", ".md"):
        name = repository.name(path)
        if name.startswith(("workers/", "tasks/", "docs/", "README")):
            joined = re.sub(r'"\n\s+f?"', "", text(path))
            found |= {(name, verb) for verb in re.findall(r"`understudy ([a-z]+)", joined)}
    return sorted(found)


def test_sentences_name_commands_that_exist() -> None:
    from tests.test_cli import verbs

    known = {verb.split()[0] for verb in verbs()}
    assert [(name, verb) for name, verb in named_in_sentences() if verb not in known] == []
    assert len(named_in_sentences()) > 20


def test_make_help_shows_every_target() -> None:
    assert [target for target, shown in make_targets().items() if not shown] == []


def test_make_runs_modules_that_exist() -> None:
    modules = set(re.findall(r"\$\(PY\) -m ([\w.]+)", text(ROOT / "Makefile")))
    assert {"tasks.cli", "pytest"} <= modules
    assert [module for module in sorted(modules) if importlib.util.find_spec(module) is None] == []


def test_the_licence_is_apache_2() -> None:
    licence = text(ROOT / "LICENSE")
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", licence)
    assert "END OF TERMS AND CONDITIONS" in licence and len(licence.split()) > 1500
    assert repository.metadata()["project"]["license"] == "Apache-2.0"


def test_the_changelog_has_this_version() -> None:
    version = repository.metadata()["project"]["version"]
    assert re.search(rf"^## {re.escape(version)}\b", text(ROOT / "CHANGELOG.md"), re.MULTILINE)
