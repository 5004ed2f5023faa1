"""An encrypted store shows nothing of its content, opens with its keys alone, and changes them while it is in use."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import threading
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.store.crashing import Died, Machine
from tests.store.disks import VM, MemoryDisk, assert_content, backup, noise
from tests.store.living import compacted, scribble
from workers.errors import BadInput, NotFound, StoreDamaged, StoreTooNew, WrongKey
from workers.extents import GRANULE
from workers.models import RestorePoint
from workers.store import Store, crypt, index, keyring, layout
from workers.store.crypt import PLAIN
from workers.store.packs import pack_ids

MIB = 1 << 20
KEY, OTHER, THIRD = (bytes([seed]) * 32 for seed in (0x5A, 0xA7, 0x3C))
SECRET = b"the guest's secret, many times over; "


class Made(NamedTuple):
    path: Path
    disk: MemoryDisk
    point: RestorePoint


def disk_of(seed: int) -> MemoryDisk:
    disk = MemoryDisk(8 * MIB)
    disk.put(0, noise(MIB, seed))
    disk.put(2 * MIB, SECRET * 10_000)
    for block in range(8):
        disk.put(4 * MIB + block * 256 * 1024, noise(GRANULE, seed * 100 + block))
    return disk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    store = Store.create(tmp_path_factory.mktemp("encrypted") / "store", KEY)
    disk = disk_of(1)
    backup(store, disk)
    disk.put(0, noise(GRANULE, 9))
    point, _ = backup(store, disk)
    store.close()
    return Made(store.path, disk, point)


def everything(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_nothing_of_a_guest_is_readable_in_any_file(made: Made) -> None:
    plain = Store.create(made.path.parent / "plain")
    backup(plain, made.disk)
    chunk = made.disk.content(layout.BLOCK, layout.BLOCK)
    telling = {
        "content": chunk[:64],
        "content that was compressed": SECRET[:24],
        "a digest without a key": layout.digest(chunk)[:8],
        "the VM's name": b'"web"',
        "its configuration": b"guest_id",
        "its disk": b"[ds] web/web.vmdk",
    }
    for what, text in telling.items():
        assert not [file for file, data in everything(made.path).items() if text in data], what
        assert any(text in data for data in everything(plain.path).values()), f"{what}: this test would find nothing"
    key = everything(made.path)[made.path / "store.json"]
    assert KEY.hex().encode() not in key and base64.b64encode(KEY) not in key


def test_equal_content_is_not_recognised_in_another_store(made: Made) -> None:
    """Though the operator's key is the same."""
    other = Store.create(made.path.parent / "other", KEY)
    backup(other, made.disk)

    def keys(path: Path) -> set[int]:
        return {key for run in index.open_runs(path / "index") for key in run.keys.tolist()}

    assert keys(made.path) and keys(other.path) and not keys(made.path) & keys(other.path)


def test_a_key_that_is_wrong_missing_or_not_wanted_is_said(made: Made, tmp_path: Path) -> None:
    plain = Store.create(tmp_path / "plain")
    for path, key, words in [
        (made.path, None, "is encrypted, and no key is configured"),
        (made.path, OTHER, f"{keyring.key_id(OTHER)}, and the store is sealed with {keyring.key_id(KEY)}"),
        (plain.path, KEY, "is not encrypted, and a key is configured"),
    ]:
        for attempt in (Store.open, Store.create):
            with pytest.raises(WrongKey, match=words) as caught:
                attempt(path, key)
            assert_silent(str(caught.value))
    with pytest.raises(WrongKey, match="has no key that could be exchanged"):
        keyring.add(plain.path, KEY, OTHER)


def assert_silent(text: str) -> None:
    for key in (KEY, OTHER, THIRD):
        for shown in (key.hex(), base64.b64encode(key).decode(), repr(key), repr(key)[2:-1]):
            assert shown not in text


def test_no_key_is_shown_by_what_holds_one(made: Made) -> None:
    store = Store.open(made.path, KEY)
    keys = store._packs.keys
    pack = store._packs.get(pack_ids(store._packs.folder)[0])
    for each in (store, keys, pack, keys.new_file(b"x"), keyring.read(made.path)):
        assert_silent(repr(each) + str(each))


@pytest.mark.parametrize("damage", ["sealed", "id"])
def test_a_damaged_key_in_the_store_is_damage(made: Made, tmp_path: Path, damage: str) -> None:
    shutil.copytree(made.path, tmp_path / "store")
    file = tmp_path / "store" / "store.json"
    text = file.read_text()
    ((known, sealed),) = json.loads(text)["encryption"]["keys"].items()
    old = known if damage == "id" else sealed
    file.write_text(text.replace(old, ("1" if old[0] == "0" else "0") + old[1:]))
    with pytest.raises(StoreDamaged, match=r"store\.json"):
        Store.open(tmp_path / "store", KEY)


def test_a_part_is_never_sealed_twice_with_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two messages under one key and nonce give both away: by backups in threads, compactions, manifests."""
    real, seen, twice = crypt.FileKey.seal, set[tuple[bytes, int, int]](), list[tuple[bytes, int, int]]()

    def seal(self: crypt.FileKey, data: bytes, part: int, number: int = 0, also: bytes | None = None) -> bytes:
        used = (self.wrapped, part, number)
        if used in seen:
            twice.append(used)
        seen.add(used)
        return real(self, data, part, number, also)

    monkeypatch.setattr(crypt.FileKey, "seal", seal)  # listened to; it seals as ever
    monkeypatch.setattr(layout, "PACK", MIB)  # else one pack has all of it
    store, disk = Store.create(tmp_path / "store", KEY), disk_of(3)
    for seed in range(4):
        scribble(disk, seed)
        point, _ = backup(store, disk, threads=3)
    for old in store.points(VM)[:-1]:
        store.retire(VM, old.id)
    store.prune()
    store.close()
    compacted(store)
    assert_content(store, store.points(VM)[-1], disk)
    assert not twice and {part for _, part, _ in seen} == set(range(6)) and point.seq == 4


# --- versions ------------------------------------------------------------------------------------------------------


def test_a_plain_store_is_what_older_versions_read(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    backup(store, disk_of(1))
    assert json.loads((store.path / "store.json").read_bytes()).keys() == {"format", "id", "check", "created"}
    for file, data in everything(store.path).items():
        if file.suffix in (".pack", ".maps", ".idx"):
            assert struct.unpack_from("<I", data, 8) == (1,), file
        elif file.suffix == ".json":
            assert json.loads(data)["format"] == 1, file


def test_older_versions_are_told_that_it_is_too_new_for_them(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they look at: the format, and before that the id's checksum."""
    found = json.loads((made.path / "store.json").read_bytes())
    assert found["format"] == 2 and found["check"] == PLAIN.digest(found["id"].encode())[:8].hex()
    monkeypatch.setattr(layout, "SEALED", 1)  # such a version
    with pytest.raises(StoreTooNew, match="format 2, this program reads up to 1: use the version of Understudy that"):
        Store.open(made.path, KEY)


def test_a_store_by_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as newer:
        newer.setattr(layout, "SEALED", 3)
        whole = Store.create(tmp_path / "whole", KEY)
        backup(Store.create(tmp_path / "files", KEY), disk_of(1))
        fresh = json.loads((tmp_path / "files" / "store.json").read_bytes())
        (tmp_path / "files" / "store.json").write_text(json.dumps(fresh | {"format": 2}))
    with pytest.raises(StoreTooNew, match="format 3, this program reads up to 2"):
        Store.open(whole.path, KEY)
    store = Store.open(tmp_path / "files", KEY)
    with pytest.raises(StoreTooNew, match="format 3"):
        assert_content(store, store.points(VM)[0], disk_of(1))


def test_files_of_the_other_kind_are_damage(made: Made, tmp_path: Path) -> None:
    """A plain pack in an encrypted store is not taken for one of it: somebody put it there."""
    plain = Store.create(tmp_path / "plain")
    backup(plain, made.disk)
    (pack,) = (plain.path / "packs").iterdir()
    for path, key in ((made.path, KEY), (plain.path, None)):
        here = tmp_path / path.name / "again"
        shutil.copytree(path, here)
        mine = max((here / "packs").iterdir(), key=lambda file: file.stat().st_size)
        other = pack if key else max((made.path / "packs").iterdir(), key=lambda file: file.stat().st_size)
        shutil.copy(other, mine)
        assert any("encrypted" in sentence for sentence in Store.open(here, key).verify(deep=True))


# --- other keys ----------------------------------------------------------------------------------------------------


def test_from_one_key_to_another_while_the_store_is_in_use(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copytree(made.path, path)
    before, disk = Store.open(path, KEY), made.disk.copy()
    data = {file: text for file, text in everything(path).items() if file.name != "store.json"}
    assert keyring.add(path, KEY, OTHER) == tuple(sorted(map(keyring.key_id, (KEY, OTHER))))
    assert keyring.add(path, KEY, OTHER) == keyring.add(path, OTHER, KEY), "repeated, it changes nothing"
    for key in (KEY, OTHER):
        assert_content(Store.open(path, key), made.point, made.disk)
    assert keyring.keep_only(path, OTHER) == (keyring.key_id(KEY),)
    assert keyring.keep_only(path, OTHER) == ()
    with pytest.raises(WrongKey):
        Store.open(path, KEY)
    assert everything(path).items() >= data.items(), "nothing but store.json was written"
    disk.put(MIB, noise(GRANULE, 5))
    point, _ = backup(before, disk)  # by a worker that had it open all the time
    assert_content(Store.open(path, OTHER), point, disk)
    with pytest.raises(WrongKey, match="does not open it"):
        keyring.keep_only(path, THIRD)


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
def test_a_crash_while_keys_are_exchanged_leaves_a_key_that_opens(made: Made, tmp_path: Path, power: bool) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(made.path / "store.json", bare)
    for die_at in range(100):
        here = tmp_path / str(die_at)
        shutil.copytree(bare, here / "store")
        machine, added = Machine(here / "store", here / "attic", die_at), False
        with pytest.MonkeyPatch.context() as patch:
            machine.install(patch)
            try:
                keyring.add(here / "store", KEY, OTHER)
                added = True
                keyring.keep_only(here / "store", OTHER)
                died = False
            except Died:
                died = True
        if power:
            machine.lose_power()
        assert opens(here / "store", OTHER if added else KEY)
        if not died:
            assert die_at > 5 and not opens(here / "store", KEY)
            return
    pytest.fail("it never came to its end")


def opens(path: Path, key: bytes) -> bool:
    try:
        found = keyring.read(path)
        keyring.keys(path, found, key)
    except WrongKey:
        return False
    return True


def test_where_nothing_can_be_written_that_is_said(made: Made, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no store at"):
        keyring.add(tmp_path, KEY, OTHER)
    assert not list(tmp_path.iterdir())
    (tmp_path / "store" / "key.lock").mkdir(parents=True)
    shutil.copy(made.path / "store.json", tmp_path / "store")
    with pytest.raises(BadInput, match="by the workers' user"):
        keyring.add(tmp_path / "store", KEY, OTHER)


def test_two_who_add_keys_at_once_lose_none(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    path.mkdir()
    shutil.copy(made.path / "store.json", path)
    real, others = keyring._write, list[threading.Thread]()

    def write(store: Path, found: keyring.Found, sealed: dict[str, str]) -> None:
        if not others:  # between reading and writing somebody else begins: he has to wait
            others.append(threading.Thread(target=keyring.add, args=(path, KEY, THIRD)))
            others[0].start()
            others[0].join(0.2)
        real(store, found, sealed)

    monkeypatch.setattr(keyring, "_write", write)
    keyring.add(path, KEY, OTHER)
    others[0].join(60)
    assert all(opens(path, key) for key in (KEY, OTHER, THIRD))
