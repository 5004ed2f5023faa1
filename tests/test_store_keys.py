"""`understudy store key`, and a key in the configuration: what is done, what is said, what is never shown."""

from __future__ import annotations

import base64
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import forgetting, run
from tests.configurations import ONE_STORE
from tests.store.disks import VM, MemoryDisk, assert_content, backup, noise
from workers import settings, store_keys
from workers.errors import ConfigError, NoSpace, WrongKey
from workers.settings import StoreSettings
from workers.store import Store, keyring

CONFIG = f"""{ONE_STORE}key_file = "key"
[stores.open]
path = "open"
[groups.web]
source = "a"
vms = ["web"]
store = "main"
"""
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A realm whose store is encrypted, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("understudy.toml").write_text(CONFIG)
    store_keys.new(Path("key"))
    with forgetting():
        assert run("init") == 0
        yield tmp_path


def test_a_new_key_is_its_owners_alone_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("store", "key", "new", "key") == 0
    text, said = Path("key").read_text(), capsys.readouterr()
    assert Path("key").stat().st_mode & 0o777 == 0o600 and len(bytes.fromhex(text)) == 32
    assert text.strip() not in said.out + said.err and keyring.key_id(bytes.fromhex(text)) in said.out
    assert run("store", "key", "new", "key") == 1
    assert "is not overwritten" in capsys.readouterr().err and Path("key").read_text() == text
    assert run("store", "key", "new", "nowhere/key") == 1
    assert "nowhere/key cannot be made: No such file" in capsys.readouterr().err


def test_a_key_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    """Half a key would be taken for the only copy of a whole one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
    try:
        with pytest.raises(NoSpace, match="nothing is left there"):
            store_keys.new(tmp_path / "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("form", [bytes.hex, lambda key: base64.b64encode(key).decode(), lambda key: key.hex().upper()])
def test_forms_of_a_key(form: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = bytes(range(7, 39))
    (tmp_path / "key").write_text(f" {form(key)}\n")  # type: ignore[operator]
    monkeypatch.setenv("STORE_KEY", form(key))  # type: ignore[operator]
    assert StoreSettings(path=tmp_path, key_file=tmp_path / "key").key() == key
    assert StoreSettings(path=tmp_path, key_env="STORE_KEY").key() == key
    assert StoreSettings(path=tmp_path).key() is None


@pytest.mark.parametrize("text", ["", "hunter2-hunter2", "ab" * 31, "ab" * 33, "é" * 32, "QUJD"])
def test_what_is_no_key_is_said_and_not_shown(text: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(text + "\n")
    with pytest.raises(ConfigError, match=r"key.*64 hexadecimal digits or in Base64") as caught:
        StoreSettings(path=tmp_path, key_file=tmp_path / "key").key()
    assert not text or text not in str(caught.value)


def test_a_realm_with_an_encrypted_store(here: Path, capsys: Captured) -> None:
    conf = settings.load(here / "understudy.toml")
    shutil.rmtree(here / "store")
    assert run("init") == 0 and f"store main {here / 'store'}: made, encrypted\n" in capsys.readouterr().out
    store, disk = Store.at(conf.stores["main"]), MemoryDisk(1 << 20)
    disk.put(0, noise(300_000, 1))
    point, _ = backup(store, disk)
    store.close()
    assert store.encrypted and not Store.at(conf.stores["open"]).encrypted
    assert run("store", "verify", "main", "--deep") == 0 and "nothing is damaged" in capsys.readouterr().out
    (here / "other").write_text("11" * 32)
    text = (here / "understudy.toml").read_text()
    (here / "understudy.toml").write_text(text.replace('"key"', '"other"'))
    with forgetting():
        assert run("store", "stats", "main") == 1
        assert "does not open it" in capsys.readouterr().err
        assert run("store", "list", "--json") == 0
        (main, plain) = json.loads(capsys.readouterr().out)
        assert "does not open it" in main["trouble"] and plain["trouble"] is None
        assert run("store", "key", "list") == 0
        assert "the key that is configured here" in capsys.readouterr().out
    assert_content(Store.open(conf.stores["main"].path, bytes.fromhex((here / "key").read_text())), point, disk)


def test_another_key_step_by_step(here: Path, capsys: Captured) -> None:
    """As the manual says it."""
    path = here / "store"
    old, new = ((here / "key").read_text(), store_keys.new(here / "key-2"))
    assert run("store", "key", "rotate", "main", "--new-key-file", "key-2") == 0
    assert "Set stores.main.key_file to the new key" in capsys.readouterr().out
    for name in ("key", "key-2"):
        assert Store.open(path, bytes.fromhex((here / name).read_text())).vms() == []
    text = (here / "understudy.toml").read_text()
    (here / "understudy.toml").write_text(text.replace('"key"', '"key-2"'))
    with forgetting():
        assert run("store", "key", "list", "main", "--json") == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert found["configured"] == new and len(found["keys"]) == 2
        assert run("store", "key", "rotate", "main", "--finish", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["keys"] == [new] and found["ended"] == [keyring.key_id(bytes.fromhex(old))]
    with pytest.raises(WrongKey):
        Store.open(path, bytes.fromhex(old))


def test_rotations_that_cannot_be(here: Path, capsys: Captured) -> None:
    before = (here / "store" / "store.json").read_bytes()
    for arguments, words in {
        "main": "either --new-key-file",
        "main --finish --new-key-file key": "either --new-key-file",
        "open --finish": "no key is configured for the store 'open'",
        "main --new-key-file missing": "cannot be read",
        "nobody --finish": "there is no store 'nobody'",
    }.items():
        capsys.readouterr()
        assert run("store", "key", "rotate", *arguments.split()) == 1
        assert words in capsys.readouterr().err
    assert (here / "store" / "store.json").read_bytes() == before


def test_no_key_is_written_anywhere_but_into_its_file(here: Path, capsys: Captured) -> None:
    """Output, the catalogue, logs, the store, and the configuration as it is shown and kept."""
    key = bytes.fromhex((here / "key").read_text())
    backup(Store.open(here / "store", key), MemoryDisk(1 << 20))
    for command in ("config show", "check", "store stats", "store key list"):
        run("--debug", *command.split())
    said = capsys.readouterr()
    shown = {str(file): file.read_bytes() for file in here.rglob("*") if file.is_file() and file.name != "key"}
    shown |= {"stdout": said.out.encode(), "stderr": said.err.encode()}
    for form in (key, key.hex().encode(), base64.b64encode(key), repr(key)[2:-1].encode()):
        assert [name for name, text in shown.items() if form in text] == []


def test_of_two_places_for_a_key_there_can_be_one(here: Path, capsys: Captured) -> None:
    text = (here / "understudy.toml").read_text()
    (here / "understudy.toml").write_text(text.replace('key_file = "key"', 'key_file = "key"\nkey_env = "K"'))
    with forgetting():
        assert run("config", "check") == 1
    assert "either 'key_file' or 'key_env', not both" in "".join(capsys.readouterr())


def test_vms_are_found_again(here: Path) -> None:
    """Names of folders are no secret: what a listing shows is the same in both kinds of stores."""
    conf = settings.load(here / "understudy.toml")
    for name in ("main", "open"):
        backup(Store.at(conf.stores[name]), MemoryDisk(1 << 20))
        assert Store.at(conf.stores[name]).vms() == [VM]
