"""The tables of `understudy`: status, points, runs, plans, findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.text import Text

from tasks import show
from workers.catalogue import SliceState
from workers.check import Finding
from workers.models import Failure, Run, RunState, SyncPlan
from workers.restore_points import Kept
from workers.state import State
from workers.status import Protected, kind_of

COLOURS = {
    State.IN_SYNC: "green",
    State.BACKED_UP: "green",
    State.NEEDS_SYNC: "yellow",
    State.NEVER_SYNCED: "yellow",
    State.NEVER_BACKED_UP: "yellow",
    State.PAUSED: "yellow",
    State.DISABLED: "yellow",
    State.RPO_BREACHED: "bold red",
    State.APPROVAL_NEEDED: "bold red",
    State.QUARANTINED: "bold red",
    State.VALIDATION_FAILED: "bold red",
    State.REVERT_FAILED: "bold red",
    State.QUEUED: "cyan",
    State.STARTING: "cyan",
    State.IN_PROGRESS: "cyan",
    State.TOUCHED: "bold red",
    State.FAILED: "bold red",
    RunState.QUEUED: "cyan",
    RunState.RUNNING: "cyan",
    RunState.SUCCEEDED: "green",
    RunState.NOTHING_NEW: "green",
    RunState.NEEDS_APPROVAL: "bold red",
    RunState.STOPPED: "yellow",
    RunState.FAILED: "bold red",
}


def coloured(state: State | RunState) -> Text:
    return Text(str(state), style=COLOURS.get(state, ""))


def status(lines: Sequence[Protected], *, everything: bool = True) -> None:
    """One row per line, and below them every sentence that explains one. `everything`: nothing was left out."""
    if not lines and not everything:
        return
    if not lines:
        return show.say("no VM is protected yet; name some in groups.<name>.vms, then run `understudy check`")
    rows = show.table(
        *("VM", "status", "replica", "newest restore point", "sync point", "lag", "last run", "bytes", "took"),
        right=("lag", "bytes", "took"),
    )
    for line in lines:
        run = _latest(line)
        rows.add_row(
            line.vm,
            coloured(line.state),
            f"{line.pair.site}/{line.pair.replica_name}" if line.pair else line.recovery_target or "-",
            line.newest.id if line.newest else "-",
            line.sync_point.point if line.sync_point else "-",
            show.age((line.sync or line.backup).lag),
            f"{kind_of(run)} {run.state}" if run else "-",
            show.size(run.stored if kind_of(run) == "backup" else run.written) if run else "-",
            show.age(took(run)) if run else "-",
        )
    show.console().print(rows)
    for line in lines:
        for trouble in line.troubles:
            show.say(f"{line.vm}: {trouble}")


def compared(lines: Sequence[Protected]) -> None:
    """When all of each replica was compared with its sync point, and how far the present round has come."""
    for line in lines:
        if line.pair is None or line.sync_point is None:
            continue
        known = line.scrub
        text = "not every byte of the replica has been compared with a restore point yet"
        if known is not None and known.whole_began is not None:
            between = f"{show.moment(known.whole_began)} and {show.moment(known.whole_ended)} UTC"
            text = f"every byte of the replica was compared with its restore point between {between}"
        if known is not None and known.ended is None and known.total:
            share = f"{100 * known.covered / known.total:.0f} %"
            text += f"; the round that began at {show.moment(known.began)} UTC has come to {share}"
        if line.scrub_late is not None:
            text += f"; its next part has been due for {show.age(line.scrub_late)}"
        show.say(f"{line.vm}: {text}")


def _latest(line: Protected) -> Run | None:
    """What ended last for this line: a failed backup is not hidden behind an older sync."""
    ended = [e.run for e in (line.last_backup, line.last_sync) if e is not None and e.run.ended is not None]
    return max(ended, key=lambda run: run.ended or run.created, default=None)


def took(run: Run) -> float | None:
    """Seconds from its start to its end; None while there are not both."""
    return (run.ended - run.started).total_seconds() if run.started is not None and run.ended is not None else None


def runs(found: Sequence[Run]) -> None:
    if not found:
        return show.say("no run yet")
    rows = show.table(
        *("run", "VM", "kind", "state", "trigger", "created (UTC)", "took", "read", "written", "stored", "why"),
        right=("took", "read", "written", "stored"),
    )
    for run in found:
        rows.add_row(
            run.id,
            run.vm,
            kind_of(run),
            coloured(run.state),
            run.trigger,
            show.moment(run.created),
            show.age(took(run)),
            show.size(run.read),
            show.size(run.written),
            show.size(run.stored),
            run.error or _some(run.reasons),
        )
    show.console().print(rows)


def _some(reasons: Sequence[str]) -> str:
    """The first; `understudy show` has them all."""
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}" if reasons else ""


def run(one: Run, slices: Sequence[SliceState], failures: Sequence[Failure]) -> None:
    """Everything that is known about a run."""
    facts = show.table("", "")
    facts.show_header = False
    for name, value in one.model_dump().items():
        if name not in ("reasons", "memory"):
            facts.add_row(name, _fact(name, value))
    for key, value in sorted(one.memory.items()):
        facts.add_row(f"remembers {key}", value)
    show.console().print(facts)
    _list("reasons", one.reasons)
    if slices:
        show.console().print("")
        sizes, work = ("from", "to", "done", "read", "written", "stored"), ("worker", "began", "ended", "made", "error")
        rows = show.table("disk", *sizes, *work, title="slices")
        for part in slices:
            done = "all" if part.finished else show.size(part.done - part.start)
            rows.add_row(
                *(part.disk, show.size(part.start), show.size(part.end), done),
                *(show.size(part.read), show.size(part.written), show.size(part.stored), part.owner or "-"),
                *(_clock(part.began), _clock(part.ended), part.made or "-", part.error or "-"),
            )
        show.console().print(rows)
    _list("failures", [f"{show.moment(f.at)} {f.family} ({f.kind}): {f.message}" for f in failures])


def _clock(at: datetime | None) -> str:
    """To a millisecond, so that it shows who worked at the same time."""
    return "-" if at is None else f"{at:%H:%M:%S.%f}"[:-3]


def _fact(name: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return f"{show.moment(value)} UTC"
    return show.size(value) if name in ("read", "written", "stored") else str(value)


def _list(title: str, sentences: Iterable[str]) -> None:
    sentences = list(sentences)
    if sentences:
        show.say(f"\n{title}")
        for sentence in sentences:
            show.say(f"  {sentence}")


def plan(made: SyncPlan, replica: str) -> None:
    """What a sync would do. Nothing was asked for."""
    show.say(f"{made.vm} -> {replica}: {made.reason}")
    if made.nothing_new:
        return
    show.say(
        f"to restore point {made.point}, from {made.base or 'nothing'}; {show.size(made.bytes)} to look at or to write"
    )
    if made.build_replica:
        show.say("the replica is built new")
    rows = show.table("disk", "mode", "bytes", "ranges", "why", right=("bytes", "ranges"))
    for disk in made.disks:
        rows.add_row(disk.label, disk.mode, show.size(disk.bytes), str(disk.ranges), disk.reason)
    show.console().print(rows)
    for change in made.hardware:
        show.say(f"hardware: {change.kind} {change.label or change.disk} ({show.size(change.capacity)})")


def points(found: Sequence[Kept]) -> None:
    """A VM's restore points, and the sentences that belong to them."""
    if not found:
        return show.say("no restore point yet; `understudy backup VM` makes one")
    rows = show.table(
        *("store", "point", "time of data (UTC)", "consistency", "disks", "read", "changed", "stored", "kept as"),
        right=("read", "changed", "stored"),
    )
    several = len({point.source for point in found}) > 1
    for point in found:
        rows.add_row(
            f"{point.store}, VM {point.source}" if several else point.store,
            *(point.id, show.moment(point.data_time), point.consistency),
            ", ".join(f"{disk.label}: {disk.mode}" for disk in point.disks) or "-",
            *(
                show.size(point.read),
                show.size(point.changed),
                show.size(point.stored),
                ", ".join(point.kept_as) or ("not known here" if point.remark else "goes at the next prune"),
            ),
        )
    show.console().print(rows)
    for remark in dict.fromkeys(point.remark for point in found if point.remark):
        show.say(remark)


RESULTS = {"ok": "green", "note": "yellow", "failed": "bold red"}


def findings(found: Sequence[Finding]) -> None:
    rows = show.table("what", "", "")
    for finding in found:
        rows.add_row(finding.what, Text(finding.result, style=RESULTS[finding.result]), finding.sentence)
    show.console().print(rows)
