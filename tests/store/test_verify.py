"""A flipped bit anywhere in a store is found and named, or it is one that nobody needs."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.store.disks import VM, MemoryDisk, assert_content, backup, noise
from tests.store.test_damage import files_of, small, use
from workers.errors import StoreDamaged, UnderstudyError
from workers.store import Store

MIB = 1 << 20


@pytest.fixture(scope="module")
def living(kind_of_store: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[MemoryDisk]]:
    """A store with all kinds of files: points, a retired one, a pin, a tombstone that waits for a run, an index."""
    store = Store.create(tmp_path_factory.mktemp("living") / "store")
    disk, states = small(), []
    for i in range(4):
        disk.put(i * 40960, noise(8192, 10 + i))
        states.append(disk.copy())
        backup(store, disk)
    points = store.points(VM)
    store.pin(VM, points[1].id, "replica")
    store.retire(VM, points[0].id)
    with store.writer("unfinished"):
        store.prune()
    store.close()
    assert Store.open(store.path).verify(deep=True) == []
    return store.path, states[1:]


def verified(path: Path) -> list[str]:
    try:
        return Store.open(path).verify(deep=True)
    except UnderstudyError as err:
        return [str(err)]


def harmless(path: Path, states: list[MemoryDisk]) -> bool:
    try:
        use(path, states)
    except UnderstudyError:
        return False
    return True


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_a_random_bit_of_a_random_file(living: tuple[Path, list[MemoryDisk]], tmp_path: Path, seed: int) -> None:
    """Found and named by `verify`, or all that can be read is read as it was."""
    source, states = living
    path = tmp_path / "store"
    shutil.copytree(source, path)
    dice = random.Random(seed)
    every = [file for file in sorted(path.rglob("*")) if file.is_file() and file.stat().st_size]
    kinds = {file.relative_to(path).parts[0] for file in every}
    assert kinds >= {"store.json", "packs", "maps", "points", "index"}
    found = missed = 0
    for kind in sorted(kinds) * 9:
        file = dice.choice([each for each in every if each.relative_to(path).parts[0] == kind])
        data = file.read_bytes()
        bad = bytearray(data)
        bad[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        file.write_bytes(bad)
        problems = verified(path)
        if problems:
            found += 1
            assert any(file.name in each for each in problems), f"{problems} do not name {file}"
        else:
            missed += 1
            assert harmless(path, states), f"{file}: neither found nor harmless"
        file.write_bytes(data)
        shutil.rmtree(path / "suspects", ignore_errors=True)  # or the next one would not be new
    assert found > 20
    assert verified(path) == []


def broken_pack(store: Store) -> tuple[Path, int]:
    """A bit of the biggest blob of the biggest pack."""
    path = max((store.path / "packs").iterdir(), key=lambda each: each.stat().st_size)
    pack = store._packs.get(int(path.stem, 16))
    slot = max(range(len(pack)), key=lambda each: int(pack.stored[each]))
    offset = int(pack.offsets[slot])
    data = bytearray(path.read_bytes())
    data[offset + 100] ^= 2
    path.write_bytes(data)
    return path, offset


def test_a_damaged_blob_is_named_with_its_offset_and_all_that_need_it(store: Store) -> None:
    disk = small()
    mine = [backup(store, disk)[0] for _ in range(2)]
    other = backup(store, disk, vm="other-vm")[0]
    disk.put(0, noise(MIB, 77))  # what it needed of the old blobs is gone from the newest point
    disk.put(2 * MIB, noise(MIB, 78))
    disk.put(4 * MIB, noise(4096, 79))
    free = backup(store, disk)[0]
    pack, offset = broken_pack(Store.open(store.path))
    (sentence,) = Store.open(store.path).verify(deep=True)
    assert str(pack) in sentence and f"at byte {offset} " in sentence
    named = {each.id for each in (*mine, other, free) if each.id in sentence}
    needing = set()
    for each in (*mine, other, free):
        fresh = Store.open(store.path)
        try:
            list(fresh.reader(each, "disk-1").read([(0, disk.size)]))
        except StoreDamaged:
            needing.add(each.id)
    assert named == needing != set()


def test_what_is_damaged_is_stored_anew(store: Store, tmp_path: Path) -> None:
    """Marked by `verify`, no backup refers to it again, not even by the dedup index; a full makes up for it."""
    disk = small()
    backup(store, disk)
    shutil.copy2(max((store.path / "packs").iterdir(), key=lambda each: each.stat().st_size), tmp_path / "copy")
    pack, _ = broken_pack(Store.open(store.path))
    point = store.newest(VM)
    assert point is not None and not Store.open(store.path).suspect(point, "disk-1"), "nobody has looked yet"
    assert len(Store.open(store.path).verify(deep=True)) == 1
    fresh = Store.open(store.path)
    assert fresh.suspect(point, "disk-1")
    healed, made = backup(fresh, disk, vm="other-vm")
    assert made[0].stored > MIB // 2 and not fresh.suspect(healed, "disk-1")
    assert_content(Store.open(store.path), healed, disk)
    shutil.copy2(tmp_path / "copy", pack)
    assert Store.open(store.path).verify(deep=True) == [], "the file was put back"
    assert not Store.open(store.path).suspect(point, "disk-1")


def test_a_blob_that_nothing_needs_is_checked_as_well(store: Store) -> None:
    """Else the dedup index gives it to the next backup of that content."""
    disk = small()
    backup(store, disk)
    later = MemoryDisk(disk.size)
    later.put(7 * MIB, noise(300_000, 9))
    backup(store, later, later.differs(disk))
    first = store.points(VM)[0]
    store.retire(VM, first.id)
    pack, offset = broken_pack(Store.open(store.path))
    (sentence,) = Store.open(store.path).verify(deep=True)
    assert pack.name in sentence and f"at byte {offset} " in sentence and "No restore point needs it" in sentence


def test_the_id_of_a_store_is_not_taken_for_another(store: Store) -> None:
    """Every cursor of a replica names it: another one would have all of them compared from end to end."""
    file = store.path / "store.json"
    data = file.read_bytes()
    caught = 0
    for spot in range(len(data)):
        file.write_bytes(data[:spot] + bytes([data[spot] ^ 1]) + data[spot + 1 :])
        try:
            assert Store.open(store.path).id == store.id
        except UnderstudyError as err:
            assert str(file) in str(err)
            caught += 1
    assert caught > 32, "at least each digit of the id"


def test_a_damaged_manifest_is_told_apart(store: Store) -> None:
    """What the sentence says helps: moved away, the others can be used, and a backup goes on from them."""
    disk = small()
    first, _ = backup(store, disk)
    backup(store, disk)
    file = files_of(store.path)[-1]
    assert file.suffix == ".json"
    data = bytearray(file.read_bytes())
    data[200] ^= 1
    file.write_bytes(data)
    (sentence,) = Store.open(store.path).verify()
    assert str(file) in sentence and "moved out of the store" in sentence
    file.unlink()
    fresh = Store.open(store.path)
    assert fresh.verify(deep=True) == [] and fresh.newest(VM) == first
    again, _ = backup(fresh, disk, disk.differs(disk))
    assert_content(fresh, again, disk)
