"""The command `understudy` as a person meets it: help, first steps, sentences instead of tracebacks, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from tasks import app as celery_app
from tasks import cli, init
from tests import services
from tests.command import forgetting, run
from workers import settings
from workers.catalogue import Catalogue
from workers.models import Model, VmIdentity, VmSummary
from workers.settings import shape
from workers.store import Store

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """
redis = "redis://127.0.0.1:{port}/0"
catalogue = "sqlite:///catalogue.db"
[sites.prod]
vcenter = "127.0.0.1:{port}"
user = "u"
password_file = "password"
[stores.main]
path = "store"
[groups.web]
source = "prod"
vms = ["web-*"]
store = "main"
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder, with nothing configured and nothing remembered of the test before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_CONFIG", "")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # Python keeps its first answer
    with forgetting():
        yield


def configured(folder: Path) -> Path:
    """A realm without a vCenter, without Redis: both addresses are a port that nobody listens on."""
    (folder / "password").write_text("hunter2\n")
    file = folder / "understudy.toml"
    file.write_text(CONFIG.format(port=services.free_port()))
    return file


def ready(folder: Path) -> settings.Settings:
    conf = settings.load(configured(folder))
    Store.create(conf.stores["main"].path)
    with_one = Catalogue.create(conf.catalogue)
    identity = VmIdentity(site="prod", vcenter="v", instance_uuid="u-1", bios_uuid="b", moref="vm-1", name="web-1")
    with_one.record_inventory("prod", [VmSummary(identity=identity, power="poweredOn", template=False, folder="")])
    with_one.close()
    return conf


# --- help and usage ---------------------------------------------------------------------------------------------------


def verbs() -> list[str]:
    root = typer.main.get_command(cli.app)
    found = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        found += [f"{name} {below}" for below in _below(command)] or [name]
    return found


def _below(command: object) -> list[str]:
    found = list[str]()
    for name, inner in getattr(command, "commands", {}).items():
        found += [f"{name} {below}" for below in _below(inner)] or [name]
    return found


def test_the_verbs() -> None:
    assert set(verbs()) >= {"init", "check", "backup", "sync", "status", "points", "runs", "show", "worker", "beat"}


@pytest.mark.parametrize("verb", verbs())
def test_help_has_an_example_that_is_real(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*verb.split(), "--help") == 0
    text = capsys.readouterr().out
    assert f"Example: understudy {verb}" in text
    example = text.split("Example: understudy ")[1].splitlines()[0].split()
    options = {word for word in example if word.startswith("--")}
    assert all(option in text.split("Options:")[1] for option in options)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("bakcup", "web-1"), id="no such command"),
        pytest.param(("backup",), id="no VM"),
        pytest.param(("runs", "--limit", "many"), id="not a number"),
        pytest.param(("runs", "--limit", "0"), id="out of range"),
        pytest.param(("worker",), id="neither site nor control"),
        pytest.param(("worker", "--site", "prod", "--control"), id="both"),
        pytest.param(("status", "--jsn"), id="no such option"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


# --- first steps ------------------------------------------------------------------------------------------------------


def test_init_writes_an_example_then_makes_what_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init") == 0
    file = tmp_path / "understudy.toml"
    assert file.read_text() == init.EXAMPLE and file.stat().st_mode & 0o077 == 0
    assert "wrote the example configuration" in capsys.readouterr().out
    assert not (tmp_path / "catalogue.db").exists()

    assert run("init") == 0
    first = capsys.readouterr().out
    assert "made" in first and Store.open(tmp_path / "store").vms() == []
    realm = Catalogue.open(f"sqlite:///{tmp_path}/catalogue.db").realm
    assert realm in first

    assert run("init") == 0
    again = capsys.readouterr().out
    assert "is there" in again and "made" not in again.replace("made, or", "") and realm in again
    assert file.read_text() == init.EXAMPLE


def test_init_in_another_folder(tmp_path: Path) -> None:
    assert run("init", "--dir", "etc/understudy") == 0
    assert run("--config", "etc/understudy/understudy.toml", "init") == 0
    assert (tmp_path / "etc/understudy/catalogue.db").exists()


def test_init_of_a_folder_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc" / "understudy.d").mkdir(parents=True)
    configured(tmp_path).rename(tmp_path / "etc" / "understudy.d" / "all.toml")
    assert run("init", "--dir", "etc") == 0
    assert "configuration " in capsys.readouterr().out
    assert (tmp_path / "etc" / "understudy.d" / "catalogue.db").exists()
    assert not (tmp_path / "etc" / "understudy.toml").exists()


def test_the_example_says_what_settings_know() -> None:
    settings.Settings.model_validate(tomllib.loads(init.EXAMPLE))
    uncommented = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and ("=" in line or "[" in line[:4]) else line
        for line in init.EXAMPLE.splitlines()
        if not line.startswith(("# ---", "# Relative", "# several"))
    )
    assert uncommented.count("[groups.web.overrides.db-01]") == 1
    settings.Settings.model_validate(tomllib.loads(uncommented.replace("# compute", "compute")))


def test_every_setting_is_in_the_manual() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    settings_models = [
        value
        for value in vars(settings).values()
        if isinstance(value, type) and issubclass(value, Model) and value.__module__.startswith(settings.__name__)
    ]
    assert len(settings_models) >= 9
    keys = {(model.__name__, key) for model in settings_models for key in shape.keys(model)}
    shown = {key for _, key in keys if re.search(rf"`(?:\w+\.)?{key}[`.]|{{ .*\b{key} =|`\[{key}[.\]]", manual)}
    assert sorted(key for key in keys if key[1] not in shown) == []


def test_the_manual_has_the_real_defaults() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    for key, field in settings.Tuning.model_fields.items():
        assert f"\n| `{key}` | {field.default} |" in manual


# --- errors are sentences ---------------------------------------------------------------------------------------------

GOOD = CONFIG.format(port=1)
BAD = {
    "empty": "",
    "not TOML": "redis = ",
    "not text": "\udcff\udcfe",
    "no redis": GOOD.replace("redis =", "rediss ="),
    "a list for redis": GOOD.replace('redis = "redis://127.0.0.1:1/0"', "redis = [1]"),
    "unknown section": GOOD + "\n[store.main]\npath = 'x'\n",
    "unknown key": GOOD.replace("password_file", "pasword_file"),
    "no password": GOOD.replace('password_file = "password"', ""),
    "two passwords": GOOD.replace('password_file = "password"', 'password_file = "p"\npassword_env = "P"'),
    "unknown store": GOOD.replace('store = "main"', 'store = "mian"'),
    "unknown source": GOOD.replace('source = "prod"', 'source = "dev"'),
    "unknown target": GOOD + 'target = "nowhere"\n',
    "a number for a name": GOOD.replace('store = "main"', "store = 7"),
    "names and a rule": GOOD + 'members = { name = "web-*" }\n',
    "a rule that says nothing": GOOD.replace('vms = ["web-*"]', "members = {}"),
    "a VM instead of a list": GOOD.replace('vms = ["web-*"]', 'vms = "web"'),
    "bad interval": GOOD + 'backup = { every = "soon" }\n',
    "no interval": GOOD + "backup = {}\n",
    "both kinds of schedule": GOOD + 'backup = { every = "1h", cron = "0 1 * * *" }\n',
    "bad cron": GOOD + 'backup = { cron = "61 * * * *" }\n',
    "bad zone": GOOD + 'backup = { cron = "0 1 * * *", timezone = "Mars/Base" }\n',
    "keeps nothing": GOOD + "keep = { last = 0 }\n",
    "keeps less than nothing": GOOD + "keep = { daily = -1 }\n",
    "keeps by a key that was renamed": GOOD + "keep_last = 3\n",
    "a site is a string": GOOD.replace("[sites.prod]", 'sites = "prod"\n[x]'),
    "no site at all": 'redis = "redis://127.0.0.1:1/0"\ncatalogue = "sqlite:///c.db"\n',
    "tuning out of range": GOOD + "\n[tuning]\nsample = 2.0\n",
    "tuning with a typing mistake": GOOD + "\n[tuning]\nthread = 2\n",
    "catalogue of another kind": GOOD.replace("sqlite:///catalogue.db", "mysql://u:hunter2@h/db"),
    "catalogue that is no address": GOOD.replace("sqlite:///catalogue.db", "hunter2 catalogue"),
    "catalogue in memory": GOOD.replace("sqlite:///catalogue.db", "sqlite://"),
    "catalogue that is absent": GOOD,
    "catalogue out of reach": GOOD.replace("sqlite:///catalogue.db", "postgresql+psycopg://u:hunter2@127.0.0.1:1/db"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("verb", ["status", "worker --site prod"])
def test_a_bad_configuration_is_sentences(
    name: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(BAD[name].encode(errors="surrogateescape"))
    assert run("--config", str(file), *verb.split()) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("understudy: ") and len(said.err.strip()) > 20
    assert "Traceback" not in said.err and "unexpected" not in said.err
    assert "hunter2" not in said.err
    assert not list(tmp_path.glob("understudy-error-*"))


@pytest.mark.parametrize(
    "verb", ["check", "backup a", "sync a", "sync a --plan", "points a", "runs", "show a", "beat", "flower"]
)
def test_every_verb_says_the_sentence(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text(BAD["unknown key"])
    assert run("--config", "bad.toml", *verb.split()) == 1
    said = capsys.readouterr()
    assert said.out == "" and "did you mean 'password_file'?" in said.err and "Traceback" not in said.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown key", "did you mean 'password_file'?"),
        ("unknown store", "allowed: main"),
        ("catalogue that is absent", "understudy init"),
        ("no interval", "either 'every' or 'cron'"),
    ],
)
def test_the_sentence_says_what_to_do(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text(BAD[name])
    assert run("--config", "bad.toml", "runs") == 1
    assert words in capsys.readouterr().err


def test_no_configuration_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status") == 1
    assert "understudy init" in capsys.readouterr().err
    assert run("--config", "absent.toml", "status") == 1
    assert "absent.toml cannot be read" in capsys.readouterr().err
    assert run("--config", str(tmp_path), "status") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_an_unexpected_error_leaves_its_traceback_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise KeyError("nobody thought of this")

    monkeypatch.setattr(celery_app, "here", broken)  # nothing is known that a user could do to get there
    assert run("runs") == 1
    said = capsys.readouterr().err
    assert "unexpected KeyError" in said and "Traceback" not in said
    (details,) = tmp_path.glob("understudy-error-*.txt")
    assert str(details) in said.replace("\n", "") and "in broken" in details.read_text()
    assert details.stat().st_mode & 0o077 == 0

    assert run("--debug", "runs") == 1
    assert "in broken" in capsys.readouterr().err
    assert len(list(tmp_path.glob("understudy-error-*.txt"))) == 1


def test_a_site_that_is_not_configured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ready(tmp_path)
    for verb in (["worker", "--site", "pord"], ["check", "--site", "pord"]):
        assert run(*verb) == 1
        assert "no site 'pord' in the configuration; it has prod" in capsys.readouterr().err


def test_check_says_all_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured(tmp_path)
    assert run("check", "--json") == 1
    found = {each["what"]: each for each in json.loads(capsys.readouterr().out)}
    wanted = {"configuration": "ok", "redis": "failed", "catalogue": "failed", "store main": "failed"}
    assert {what: each["result"] for what, each in found.items()} == {**wanted, "site prod": "failed"}
    assert "understudy init" in found["catalogue"]["sentence"]
    assert run("check") == 1
    assert "does not answer" in capsys.readouterr().out


# --- in processes of their own ----------------------------------------------------------------------------------------


def understudy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tasks.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_without_redis_the_run_waits_in_the_catalogue(tmp_path: Path) -> None:
    conf = ready(tmp_path)
    done = understudy(tmp_path, "backup", "web-1")
    assert done.returncode == 1 and done.stdout == ""
    assert "does not answer" in done.stderr and "stay queued in the catalogue" in done.stderr
    assert "Traceback" not in done.stderr
    (waiting,) = Catalogue.open(conf.catalogue).live_runs()
    assert waiting.vm == "web-1"


def test_without_redis_an_unknown_vm_is_not_called_unknown(tmp_path: Path) -> None:
    ready(tmp_path)
    done = understudy(tmp_path, "sync", "web-9")
    assert done.returncode == 1
    assert "can not be asked for it: Redis does not answer" in done.stderr


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    ready(tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tasks.cli", "status", "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert b"Traceback" not in done.stderr and b"unexpected" not in done.stderr


def test_json_is_json_and_nothing_else(tmp_path: Path) -> None:
    ready(tmp_path)
    for verb in (["status"], ["points", "web-1"], ["runs"]):
        done = understudy(tmp_path, *verb, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert isinstance(json.loads(done.stdout), list)
