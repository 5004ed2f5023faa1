"""The decisions, as tables: which way to bring a replica up, what makes a backup compare, which blocks are sampled."""

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import plan
from workers.errors import Foreign, Refused, Touched
from workers.extents import Extents
from workers.models import (
    Cursor,
    Disk,
    PointDisk,
    RestorePoint,
    SnapshotNode,
    VmConfig,
    VmIdentity,
    VmState,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REALM, PAIR, SOURCE = "realm-0000", "pair-00000", "source-uuid"


def identity(name: str = "web-01", uuid: str = SOURCE) -> VmIdentity:
    return VmIdentity(site="prod", vcenter="vc", instance_uuid=uuid, bios_uuid="b", moref="vm-1", name=name)


def disk(key: str = "d1", capacity: int = 100 << 20, **more: object) -> Disk:
    return Disk.model_validate(
        {
            "id": key,
            "key": 2000,
            "label": f"Hard disk {key}",
            "capacity": capacity,
            "controller": 1000,
            "unit": 0,
            "file": f"[ds] web-01/{key}.vmdk",
            **more,
        }
    )


def config(*disks: Disk) -> VmConfig:
    return VmConfig(
        name="web-01", guest_id="otherGuest64", hardware_version="vmx-19", cpus=1, memory_mib=64, disks=disks
    )


def point(seq: int, *disks: Disk, **more: object) -> RestorePoint:
    disks = disks or (disk(),)
    return RestorePoint.model_validate(
        {
            "realm": REALM,
            "id": f"{seq:08d}-aa",
            "seq": seq,
            "parent": None,
            "vm": identity(),
            "run": f"run-{seq}",
            "fence": seq,
            "created": NOW,
            "data_time": NOW,
            "consistency": "quiesced",
            "snapshot": "snapshot-1",
            "config": config(*disks),
            "disks": [
                PointDisk(disk=d, segments=("",), segment_size=1 << 30, mode="full", reason="first") for d in disks
            ],
            **more,
        }
    )


def cursor(
    state: str = "committed", base: str | None = "00000001-aa", targets: tuple[str, ...] = (), **more: object
) -> Cursor:
    return Cursor.model_validate(
        {
            "realm": REALM,
            "pair": PAIR,
            "fence": 3,
            "state": state,
            "base": base,
            "targets": targets,
            "run": "r",
            "nonce": "n",
            "store": "S",
            "source": SOURCE,
            "vcenter": "vc",
            "vm": "replica-uuid",
            "disks": "x",
            "content": "E",
            **more,
        }
    )


ONE, TWO, THREE = point(1), point(2), point(3)


@pytest.mark.parametrize(
    ("held", "points", "mode", "since"),
    [
        pytest.param(None, [], "nothing", (), id="no-point-yet"),
        pytest.param(None, [ONE], "build", (None,), id="no-replica"),
        pytest.param(cursor(), [ONE], "nothing", (), id="in-sync"),
        pytest.param(cursor(), [ONE, TWO, THREE], "delta", (ONE.id,), id="to-the-newest-in-one-step"),
        pytest.param(cursor("applying", ONE.id, (TWO.id,)), [ONE, TWO], "delta", (ONE.id, TWO.id), id="resume"),
        pytest.param(
            cursor("applying", ONE.id, (TWO.id,)),
            [ONE, TWO, THREE],
            "delta",
            (ONE.id, TWO.id),
            id="half-done-run-counts",
        ),
        pytest.param(cursor("applying", None, (ONE.id,)), [ONE, TWO], "delta", (None, ONE.id), id="half-built"),
        pytest.param(cursor(base="00000001-zz"), [ONE, TWO], "compare", (), id="base-not-in-the-store"),
        pytest.param(
            cursor("applying", ONE.id, ("00000002-zz",)), [ONE, THREE], "compare", (), id="target-not-in-store"
        ),
        pytest.param(cursor(store="other"), [ONE, TWO], "compare", (), id="another-store"),
        pytest.param(
            cursor("applying", ONE.id, (TWO.id,), compare="why"), [ONE, TWO], "compare", (), id="compare-sticks"
        ),
    ],
)
def test_which_way(held: Cursor | None, points: list[RestorePoint], mode: str, since: tuple[str | None, ...]) -> None:
    decision = plan.decide(held, points, store="S")
    assert (decision.mode, decision.since) == (mode, since)
    assert decision.reason


def test_hole_16_newer_is_a_matter_of_sequence_never_of_the_clock() -> None:
    """The worker's clock stepped back: the newer point carries an older time."""
    late = point(2, created=datetime(2020, 1, 1, tzinfo=UTC), data_time=datetime(2020, 1, 1, tzinfo=UTC))
    decision = plan.decide(cursor(), [ONE, late], store="S")
    assert (decision.mode, decision.since) == ("delta", (ONE.id,))


def test_a_replica_ahead_of_the_store_is_left_alone() -> None:
    with pytest.raises(Refused, match="newer than the store's newest"):
        plan.decide(cursor(base=TWO.id), [TWO, ONE], store="S")


def state(**more: object) -> VmState:
    return VmState.model_validate(
        {
            "identity": identity("web-01_replica", "replica-uuid"),
            "config": config(disk()),
            "power": "poweredOff",
            "change_version": "1",
            "change_tracking": False,
            "consolidation_needed": False,
            **more,
        }
    )


@pytest.mark.parametrize(
    ("held", "words"),
    [
        pytest.param(cursor(realm="other-realm"), "another realm", id="realm"),
        pytest.param(cursor(vm="clone"), "clone", id="clone"),
        pytest.param(cursor(vcenter="other"), "clone", id="vcenter"),
        pytest.param(cursor(pair="other"), "another recovery target", id="pair"),
        pytest.param(cursor(source="other"), "created again under the same name", id="source-re-created"),
    ],
)
def test_whose_replica_it_is(held: Cursor, words: str) -> None:
    with pytest.raises(Foreign, match=words):
        plan.check_ours(held, state(), realm=REALM, pair=PAIR, source=SOURCE)
    plan.check_ours(cursor(), state(), realm=REALM, pair=PAIR, source=SOURCE)


def seal(name: str) -> SnapshotNode:
    return SnapshotNode(moref=f"snapshot-{name}", name=name)


SEAL = seal(plan.seal_name(REALM, PAIR, ONE.id))


@pytest.mark.parametrize(
    ("held", "now", "evidence", "error"),
    [
        pytest.param(cursor(), {"power": "poweredOn", "snapshots": (SEAL,)}, "E", Touched, id="running"),
        pytest.param(cursor(), {"power": "suspended", "snapshots": (SEAL,)}, "E", Touched, id="suspended"),
        pytest.param(cursor(), {"snapshots": (SEAL,)}, "other", Touched, id="written"),
        pytest.param(cursor(content=""), {"snapshots": (SEAL,)}, "", Touched, id="no-evidence-is-not-equal-evidence"),
        pytest.param(cursor(), {"snapshots": (seal("users"), SEAL)}, "E", Refused, id="foreign-snapshot"),
        pytest.param(cursor(base=TWO.id), {"snapshots": (SEAL,)}, "E", Touched, id="seal-of-another-point"),
        pytest.param(cursor("applying", ONE.id, (TWO.id,)), {}, "other", Touched, id="written-while-applying"),
        pytest.param(cursor(), {"snapshots": (SEAL,)}, "E", None, id="sealed"),
        pytest.param(cursor(), {}, "E", None, id="committed-but-unsealed"),
        pytest.param(cursor("applying", ONE.id, (TWO.id,)), {"snapshots": (SEAL,)}, "E", None, id="before-unsealing"),
        pytest.param(cursor("applying", ONE.id, (TWO.id,)), {}, "E", None, id="applying"),
    ],
)
def test_touched(held: Cursor, now: dict[str, object], evidence: str, error: type[Exception] | None) -> None:
    if error is None:
        assert plan.check_untouched(held, state(**now), evidence, {}, discard=False) is None
    else:
        with pytest.raises(error):
            plan.check_untouched(held, state(**now), evidence, {}, discard=False)


def test_giving_the_changes_up_means_compare() -> None:
    reason = plan.check_untouched(cursor(), state(snapshots=(SEAL,)), "other", {}, discard=True)
    assert reason is not None and "given up on request" in reason
    assert plan.decide(cursor(), [ONE], store="S", compare=reason).mode == "compare"


def test_a_running_replica_is_not_touched_even_on_request() -> None:
    with pytest.raises(Touched):
        plan.check_untouched(cursor(), state(power="poweredOn"), "E", {}, discard=True)


def test_stopped_before_taking_over_what_it_built_means_compare_without_asking() -> None:
    held = cursor("applying", None, (TWO.id,), content="")
    assert plan.check_untouched(held, state(), "any", {}, discard=False)


def test_hole_7_a_boot_while_the_content_ids_were_renewed_is_noticed() -> None:
    """The run died with one disk renewed and one not, or with one added: nothing else may have another content id."""
    old, renewed, added = (disk(f"d{n}", content_id=f"c{n}") for n in range(3))
    taken = plan.taking("5eed5eed", (old, renewed))
    held = cursor("applying", ONE.id, (TWO.id,), content="", taking=taken)
    renewed = renewed.model_copy(update={"content_id": "given"})
    cids = {"d0": "beef0000", "d1": plan.new_cid(taken, "d1"), "d2": "beef0002"}

    def look(*disks: Disk, discard: bool = False) -> str | None:
        return plan.check_untouched(held, state(config=config(*disks)), "any", cids, discard=discard)

    assert look(old, renewed, added) is None
    booted = old.model_copy(update={"content_id": "booted"})
    with pytest.raises(Touched, match="Hard disk d0 has another content id"):
        look(booted, renewed, added)
    assert look(booted, renewed, added, discard=True)
    cids["d1"] = "beef0001"
    with pytest.raises(Touched, match="Hard disk d1 has"):
        look(old, renewed, added)


def test_the_largest_cursor_fits() -> None:
    disks = [disk(f"6000c29f-{n:04d}-4d0c-9d3a-2f6d7c1f0a{n:02x}", content_id=f"{n:032x}") for n in range(256)]
    targets = tuple(f"{n:08d}-9f86d081" for n in range(plan.MOST_TARGETS))
    largest = cursor("applying", "00000001-9f86d081", targets, compare="w" * 300, content="",
                     taking=plan.taking("5eed5eed", disks), realm="r" * 36, pair="p" * 36, vcenter="v" * 36,
                     vm="m" * 36, source="s" * 36, store="t" * 32, run="u" * 16, disks="d" * 32)  # fmt: skip
    assert len(largest.model_dump_json(exclude_defaults=True)) <= 4096


MIB = 1 << 20


@pytest.mark.parametrize(
    ("held", "wanted", "changes"),
    [
        pytest.param({"d1": 100 * MIB}, [disk()], [], id="same"),
        pytest.param({}, [disk()], [("add disk", "d1")], id="added"),
        pytest.param({"d1": 100 * MIB, "d2": MIB}, [disk()], [("remove disk", "d2")], id="removed"),
        pytest.param({"d1": 50 * MIB}, [disk()], [("grow disk", "d1")], id="grown"),
        pytest.param({"d1": 200 * MIB}, [disk()], [("remove disk", "d1"), ("add disk", "d1")], id="back-before-growth"),
    ],
)
def test_hardware_follows_the_point(held: dict[str, int], wanted: list[Disk], changes: list[tuple[str, str]]) -> None:
    assert [(c.kind, c.disk) for c in plan.hardware(point(1, *wanted), held, ())] == changes


def test_excluded_disks_are_not_on_the_replica() -> None:
    both = point(1, disk("d1"), disk("d2"))
    assert [c.disk for c in plan.hardware(both, {}, ("Hard disk d2",))] == ["d1"]
    assert [c.disk for c in plan.hardware(both, {}, ("d1",))] == ["d2"]


def test_hole_21_a_disk_that_a_dead_run_added_goes_again() -> None:
    assert [c.kind for c in plan.hardware(ONE, {"d1": 100 * MIB, "d9": MIB}, ())] == ["remove disk"]


TRACKED = {"change_id": "52 aa/3"}


@pytest.mark.parametrize(
    ("before", "now", "more", "words"),
    [
        pytest.param({}, TRACKED, {}, "no change id", id="parent-untracked"),
        pytest.param(TRACKED, {}, {}, "no change id", id="now-untracked"),
        pytest.param(TRACKED, {"change_id": "53 bb/1"}, {}, "reset", id="reset"),
        pytest.param(TRACKED, {**TRACKED, "capacity": 200 * MIB}, {}, "size changed", id="grown"),
        pytest.param(TRACKED, {**TRACKED, "file": "[ds2] web-01/d1.vmdk"}, {}, "moved", id="storage-vmotion"),
        pytest.param(TRACKED, TRACKED, {"hardware": "vmx-20"}, "virtual hardware", id="hardware"),
        pytest.param(TRACKED, TRACKED, {"host_build": "2"}, "host's build", id="host"),
        pytest.param(TRACKED, TRACKED, {"tree": "snapshot-7"}, "snapshots", id="tree"),
        pytest.param(TRACKED, {"change_id": "52 aa/4"}, {}, None, id="usual"),
    ],
)
def test_anything_unusual_means_compare(
    before: dict[str, object], now: dict[str, object], more: dict[str, str], words: str | None
) -> None:
    parent = point(1, disk(**before), host_build="1")
    facts = {"host_build": "1", "hardware": "vmx-19", "tree": "", **more}
    reason = plan.distrust(parent, parent.disks[0], disk(**now), **facts)
    if words is None:
        assert reason is None
    else:
        assert reason is not None and words in reason


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), max_size=8),
    st.integers(1, 40_000_000),
    st.integers(0, 5),
)
def test_the_sample_lies_outside_the_answer(ranges: list[tuple[int, int]], size: int, seed: int) -> None:
    answer = Extents.of([(o * plan.CBT_GRAIN, n * 1000) for o, n in ranges]).clip(0, size)
    picked = plan.sample(answer, size, 0.01, str(seed))
    assert not (picked & answer)
    assert picked.end <= size
    outside = answer.align(plan.CBT_GRAIN, size).complement(size)
    blocks = -(-outside.total // plan.CBT_GRAIN)
    assert (picked.total + plan.CBT_GRAIN - 1) // plan.CBT_GRAIN == min(
        blocks, max(plan.SAMPLE_LEAST, round(blocks * 0.01))
    )


def test_only_what_is_finer_than_vspheres_grain_is_known_to_the_granule() -> None:
    size = 10 * plan.CBT_GRAIN + 4096
    coarse = [(0, plan.CBT_GRAIN), (4 * plan.CBT_GRAIN, 3 * plan.CBT_GRAIN), (10 * plan.CBT_GRAIN, 4096)]
    assert not plan.exact(Extents.of(coarse), size)
    fine = (2 * plan.CBT_GRAIN + 4096, 8192)
    assert plan.exact(Extents.of([*coarse, fine]), size) == Extents.of([fine])


def test_another_run_samples_other_blocks() -> None:
    nothing = Extents.of([])
    assert plan.sample(nothing, 1 << 30, 0.001, "a") != plan.sample(nothing, 1 << 30, 0.001, "b")
    assert not plan.sample(nothing, 1 << 30, 0, "a")


@pytest.mark.parametrize(("wrong", "promised"), [(38, 0.90), (16, 0.64)])
def test_hole_28_the_sample_finds_what_the_manual_promises(wrong: int, promised: float) -> None:
    """A miss of k among n blocks is found with 1 - (1 - k/n)^1024: here n = 16,384, a GiB; 0.23 % and 0.1 % of it."""
    size, blocks = 1 << 30, (1 << 30) // plan.CBT_GRAIN
    assert 1 - (1 - wrong / blocks) ** plan.SAMPLE_MOST == pytest.approx(promised, abs=0.01)
    dice, found, rounds = random.Random(28), 0, 60
    for number in range(rounds):
        missed = {each * plan.CBT_GRAIN for each in dice.sample(range(blocks), wrong)}
        picked = plan.sample(Extents.of([]), size, 0.5, f"run-{number}/disk")
        assert picked.total == plan.SAMPLE_MOST * plan.CBT_GRAIN
        found += any(start in missed for start, _ in picked.cut(plan.CBT_GRAIN))
    assert found / rounds == pytest.approx(promised, abs=0.1)  # the dice are fixed


def test_a_cursor_does_not_grow_for_ever() -> None:
    """It has 4 KiB: after so many half-done syncs every block is compared, and the list is cut."""
    points = [point(seq) for seq in range(1, plan.MOST_TARGETS + 3)]
    ids = [p.id for p in points]
    few = cursor(state="applying", base=ids[0], targets=tuple(ids[1 : plan.MOST_TARGETS]))
    assert plan.decide(few, points, store="S").mode == "delta"
    many = cursor(state="applying", base=ids[0], targets=tuple(ids[1 : plan.MOST_TARGETS + 1]))
    assert plan.decide(many, points, store="S").mode == "compare"
    # a run that has begun keeps its way
    assert plan.decide(many, points[: plan.MOST_TARGETS + 1], store="S").mode == "delta"


# --- to a point that a person names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "base", "targets", "back_to", "wanted"),
    [
        pytest.param("committed", 3, (), 1, ("delta", (3,)), id="backwards"),
        pytest.param("committed", 1, (), 3, ("delta", (1,)), id="forwards"),
        pytest.param("committed", 2, (), 2, ("nothing", ()), id="there already"),
        pytest.param("applying", 1, (3,), 2, ("delta", (1, 3)), id="between two that are half applied"),
        pytest.param("applying", 2, (3,), 2, ("delta", (2, 3)), id="back to where a dead run began"),
        pytest.param("committed", 9, (), 2, ("compare", ()), id="what it holds is gone"),
    ],
)
def test_a_named_point_is_gone_to_in_either_direction(
    state: str, base: int, targets: tuple[int, ...], back_to: int, wanted: tuple[str, tuple[int, ...]]
) -> None:
    points = [point(n) for n in (1, 2, 3)]
    ids = {n: f"{n:08d}-aa" for n in range(1, 10)}
    held = cursor(state=state, base=ids[base], targets=tuple(ids[n] for n in targets))
    found = plan.decide(held, points, store="S", back_to=ids[back_to])
    assert (found.mode, found.since) == (wanted[0], tuple(ids[n] for n in wanted[1]))


def test_a_vm_that_was_restored_over_is_compared() -> None:
    before = point(1)
    found = plan.distrust(before, before.disks[0], before.disks[0].disk, "", "vmx-19", "", "run-7")
    assert found is not None and "restored" in found
