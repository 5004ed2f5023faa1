"""Another key for an encrypted store in a bucket: it dies anywhere, it meets another one, it disturbs nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.conftest import objects
from tests.store.disks import VM, MemoryDisk, assert_content, backup, noise
from tests.store.objects import ObjectPath
from tests.store.test_encrypted import KEY, MIB, OTHER, THIRD, opens
from workers.errors import WrongKey
from workers.store import Store, files, keyring


class Died(BaseException):
    """So that no handler of ours takes it for an answer."""


@pytest.fixture
def path(tmp_path: Path) -> ObjectPath:
    found = objects(tmp_path)
    Store.create(found, KEY).close()
    return found


def test_a_rotation_that_dies_at_any_request_leaves_a_key_that_opens(path: ObjectPath) -> None:
    before, died = path.objects.before, 0
    whole = dict(path.objects.held)
    while True:
        path.objects.held = dict(whole)
        left, added = [died], False

        def at(verb: str, key: str, left: list[int] = left) -> None:
            if not left[0]:
                raise Died
            left[0] -= 1

        path.objects.before = at
        try:
            keyring.add(path, KEY, OTHER)
            added = True
            keyring.keep_only(path, OTHER)
        except Died:
            path.objects.before = before
            assert opens(path, OTHER if added else KEY)
            died += 1
            continue
        break
    path.objects.before = before
    assert died == 2 and opens(path, OTHER) and not opens(path, KEY)
    with pytest.raises(WrongKey):
        Store.open(path, KEY)


def test_two_rotations_at_once_lose_no_key(path: ObjectPath) -> None:
    """The one that comes second at the file reads it again."""
    others = [THIRD]

    def at(verb: str, key: str) -> None:
        if others:
            keyring.add(path, KEY, others.pop())

    path.objects.before = at
    keyring.add(path, KEY, OTHER)
    assert all(opens(path, key) for key in (KEY, OTHER, THIRD))
    others = [KEY]
    assert set(keyring.keep_only(path, OTHER)) == {keyring.key_id(KEY), keyring.key_id(THIRD)}
    assert opens(path, OTHER) and not opens(path, KEY) and not opens(path, THIRD)


def test_a_file_that_a_person_laid_out_otherwise_is_exchanged_too(path: ObjectPath) -> None:
    file = path / "store.json"
    file.write_bytes(file.read_bytes().replace(b"\n", b" "))
    assert len(keyring.add(path, KEY, OTHER)) == 2 and opens(path, OTHER)


def test_who_reads_and_writes_meanwhile_notices_nothing(path: ObjectPath) -> None:
    store, disk = Store.open(path, KEY), MemoryDisk(8 * MIB)
    disk.put(0, noise(MIB, 1))
    first, _ = backup(store, disk)
    old = {key: held for key, held in path.objects.held.items() if key.startswith(("packs", "maps"))}
    keyring.add(path, KEY, OTHER)
    assert_content(store, first, disk)
    keyring.keep_only(path, OTHER)
    before = disk.copy()
    disk.put(MIB, noise(MIB, 2))
    second, _ = backup(store, disk)
    store.close()
    again = Store.open(path, OTHER)
    assert_content(again, again.point(VM, first.id), before)
    assert_content(again, again.point(VM, second.id), disk)
    assert again.verify(deep=True) == [] and files.names(path / "writers") == []
    assert path.objects.held.items() >= old.items()
    again.close()
