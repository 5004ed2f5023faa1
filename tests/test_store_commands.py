"""`understudy prune` and `understudy store`: what they do, what they say, in words and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import forgetting, run
from tests.configurations import ONE_STORE
from tests.store.disks import VM, MemoryDisk, assert_content, backup, noise
from tests.store.living import MIB, History, assert_as_before, scribble
from workers import settings
from workers.catalogue import Catalogue
from workers.models import RestorePoint, VmIdentity, VmSummary
from workers.store import Store

CONFIG = f"""{ONE_STORE}compact_below = 0.9
compact_rate = "500MB"
[groups.web]
source = "a"
vms = ["web"]
store = "main"
keep = {{ last = 3 }}
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store under a policy; the configuration is in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "understudy.toml").write_text(CONFIG)
    conf = settings.load(tmp_path / "understudy.toml")
    made = Catalogue.create(conf.catalogue)
    identity = VmIdentity(site="a", vcenter="vc", instance_uuid=VM, bios_uuid="b", moref="vm-1", name="web")
    made.record_inventory("a", [VmSummary(identity=identity, power="poweredOn", template=False, folder="")])
    made.close()
    with forgetting():
        yield Store.create(conf.stores["main"].path)


def backed_up(store: Store, count: int, vm: str = VM) -> History:
    disk, history = MemoryDisk(8 * MIB), list[tuple[RestorePoint, MemoryDisk]]()
    disk.put(0, noise(2 * MIB, 7))
    for seed in range(count):
        scribble(disk, seed)
        history.append((backup(store, disk, vm=vm)[0], disk.copy()))
    store.close()
    return history


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run(*arguments, "--json") == code
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)


def test_prune_shows_first_and_then_does_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    history = backed_up(store, 6)
    store.pin(VM, history[0][0].id, "somebody")
    ids = [point.id for point, _ in history]
    would = answer(capsys, "prune", "--dry-run")
    assert [each["points"] for each in would["retired"]] == [ids[1:3]] and would["freed"] == []
    assert [point.id for point in store.points(VM)] == ids
    store.close()
    assert run("prune", "main") == 0
    assert "web: 2 retired, 4 kept" in capsys.readouterr().out
    assert [point.id for point in store.points(VM)] == [ids[0], *ids[3:]]
    store.close()
    why = {each["id"]: each["kept_as"] for each in answer(capsys, "points", "web")}
    assert why[ids[0]] == ["pinned by somebody"] and why[ids[5]] == ["the newest", "one of the last 3"]
    assert run("prune") == 0
    assert "every restore point is kept" in capsys.readouterr().out
    assert_as_before(store, [history[0], *history[3:]])


def test_a_vm_that_no_group_names_keeps_everything(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    history = backed_up(store, 4)
    file = store.path.parent / "understudy.toml"
    file.write_text(file.read_text().replace('vms = ["web"]', 'vms = ["other"]'))
    assert answer(capsys, "prune")["retired"][0]["points"] == []
    assert [point.id for point in store.points(VM)] == [point.id for point, _ in history]


def test_the_catalogue_follows_a_prune(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    history = backed_up(store, 5)
    assert run("prune") == 0
    capsys.readouterr()
    known = Catalogue.open(settings.load().catalogue)
    assert [point.id for point in known.points(VM)] == [point.id for point, _ in history[2:]]
    known.close()


def test_compact_frees_what_prune_can_not(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    history = backed_up(store, 9)
    assert run("prune") == 0
    before = answer(capsys_cleared(capsys), "store", "stats")["main"]
    assert before["compactable"] > 0 and before["points"] == 3
    assert run("store", "compact") == 0
    assert "compacted:" in capsys.readouterr().out
    after = answer(capsys, "store", "stats")["main"]
    assert after["pack_bytes"] < before["pack_bytes"] - before["compactable"] // 2
    assert after["compactable"] == 0 and after["stored"] <= before["stored"] * 1.1
    assert (after["logical"], after["content"]) == (before["logical"], before["content"])
    assert run("store", "compact") == 0
    assert "nothing is worth a compaction" in capsys.readouterr().out
    assert_as_before(store, history[6:])


def capsys_cleared(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    capsys.readouterr()
    return capsys


def test_the_figures_of_a_store_are_those_of_its_content(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted by hand from the disks: two VMs, of which half a disk is the same."""
    one, two = MemoryDisk(8 * MIB), MemoryDisk(8 * MIB)
    for disk, seed in ((one, 1), (two, 2)):
        disk.put(0, noise(2 * MIB, 9))
        disk.put(4 * MIB, noise(MIB, seed))
    backup(store, one)
    one.put(6 * MIB, bytes(MIB // 2).replace(b"\0", b"x"))
    backup(store, one)
    backup(store, two, vm="another-vm")
    store.close()
    found = answer(capsys, "store", "stats", "main", "--by-vm")["main"]
    assert found["logical"] == (3 * MIB) + (3 * MIB + MIB // 2) + (3 * MIB)
    # 512 KiB of x are two equal blocks, and are held once
    assert found["content"] == 2 * MIB + MIB + MIB // 4 + MIB
    assert found["points"] == 3 and found["prunable"] == 0 and found["dead"] == 0
    assert found["dedup"] == pytest.approx(9.5 / 4.25)
    assert found["compression"] == pytest.approx(4.25 * MIB / found["stored"])
    by_vm = {each["vm"]: each for each in found["vms"]}
    assert by_vm[VM]["points"] == 2
    assert by_vm[VM]["shared"] == by_vm["another-vm"]["shared"] == pytest.approx(2 * MIB, rel=0.01)
    assert by_vm["another-vm"]["exclusive"] == pytest.approx(MIB, rel=0.01)
    alone = by_vm[VM]["exclusive"] + by_vm["another-vm"]["exclusive"]
    assert alone + by_vm[VM]["shared"] == pytest.approx(found["stored"], rel=0.01)
    assert run("store", "stats", "--by-vm") == 0
    assert "freed by a compaction" in capsys.readouterr().out


def test_verify_names_the_damage(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    history = backed_up(store, 1)
    backup(store, history[0][1], vm="another-vm")
    store.close()
    assert answer(capsys, "store", "verify", "--deep") == {"main": []}
    pack = max((store.path / "packs").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[200_000] ^= 1
    pack.write_bytes(data)
    assert answer(capsys, "store", "verify") == {"main": []}, "quick: no blob is read"
    assert pack.name in answer(capsys, "store", "verify", "--deep", code=1)["main"][0]
    manifest = store.path / "points" / "another-vm" / "00000001.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"web", b"wab"))
    assert answer(capsys, "store", "verify", "--vm", "another-vm", code=1)["main"]
    assert answer(capsys, "store", "verify", "--vm", "web") == {"main": []}


def test_list_says_what_can_be_read_from_here(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    backed_up(store, 1)
    file = store.path.parent / "understudy.toml"
    file.write_text(file.read_text().replace("[groups.web]", '[stores.far]\npath = "nowhere"\n[groups.web]'))
    found = {each["store"]: each for each in answer(capsys, "store", "list")}
    assert found["main"]["vms"] == 1 and "mounted" in found["far"]["trouble"]
    assert run("store", "list") == 0
    assert "far: there is no store at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["store", "stats", "other"], "there is no store 'other'; configured are: main"),
        (["prune", "mian"], "there is no store 'mian'; configured are: main; did you mean main?"),
        (["copy", "web", "--from", "main", "--to", "far"], "there is no store 'far'; configured are: main"),
        (
            ["restore", "web", "--to", "n", "--store", "maim"],
            "there is no store 'maim'; configured are: main; did you mean main?",
        ),
        (["store", "verify", "--vm", "nobody"], "no VM 'nobody' has a restore point"),
    ],
)
def test_what_is_not_there_is_a_sentence(
    arguments: list[str], words: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 1
    said = capsys.readouterr()
    assert words in said.err and "Traceback" not in said.err and said.out == ""


def test_the_tick_retires_frees_and_compacts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a VM whose backups stand still: nothing but the policy has changed since."""
    from tasks import maintenance
    from workers import prune

    history = backed_up(store, 8)
    monkeypatch.setattr(prune, "WORTH", 0)  # a test's store is too small to be worth it
    said = maintenance.prune_store("main")
    assert said["retired"] == {"web": [point.id for point, _ in history[:5]]} and said["troubles"] == []
    for point, truth in history[5:]:
        assert_content(store, store.point(VM, point.id), truth)
