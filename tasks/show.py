"""How things look on a terminal: sizes, times, tables; and the same as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workers.models import Failure, Model, Run, RunState, Slice, SyncPlan
from workers.status import Protected, State, kind_of

COLOURS = {
    State.IN_SYNC: "green",
    State.BACKED_UP: "green",
    State.NEEDS_SYNC: "yellow",
    State.NEVER_SYNCED: "yellow",
    State.NEVER_BACKED_UP: "yellow",
    State.PAUSED: "yellow",
    State.QUEUED: "cyan",
    State.STARTING: "cyan",
    State.IN_PROGRESS: "cyan",
    State.TOUCHED: "bold red",
    State.FAILED: "bold red",
    RunState.QUEUED: "cyan",
    RunState.RUNNING: "cyan",
    RunState.SUCCEEDED: "green",
    RunState.NOTHING_NEW: "green",
    RunState.FAILED: "bold red",
}


def console(*, stderr: bool = False) -> Console:
    """No markup: a datastore's `[name]` is not a style. In a pipe nothing is cut at 80 columns."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr, markup=False, emoji=False, highlight=False, width=None if stream.isatty() else 250, soft_wrap=False
    )


def say(text: str) -> None:
    """A sentence on standard output, as it is."""
    console().print(text, soft_wrap=True)


def complain(text: str) -> None:
    """A sentence on standard error, as it is."""
    console(stderr=True).print(text, soft_wrap=True)


def as_json(value: Any) -> None:
    console().print(json.dumps(plain(value), indent=2, ensure_ascii=False), soft_wrap=True)


def plain(value: Any) -> Any:
    """Models, sets and times as what JSON knows."""
    if isinstance(value, Model):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def size(count: int) -> str:
    """1536 -> '1.5 KiB'."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1023.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} PiB"


def age(seconds: float | None) -> str:
    """5400 -> '1 h 30 min': two units at most."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def moment(at: datetime | None) -> str:
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def coloured(state: State | RunState) -> Text:
    return Text(str(state), style=COLOURS.get(state, ""))


def table(*columns: str, title: str | None = None, right: Sequence[str] = ()) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def status(lines: Sequence[Protected]) -> None:
    """One row per line, and below them every sentence that explains one."""
    if not lines:
        return say("no VM is protected yet; name some in groups.<name>.vms, then run `understudy check`")
    rows = table(
        *("VM", "status", "replica", "newest restore point", "sync point", "lag", "last run", "bytes", "took"),
        right=("lag", "bytes", "took"),
    )
    for line in lines:
        run = _latest(line)
        rows.add_row(
            line.vm,
            coloured(line.state),
            f"{line.pair.site}/{line.pair.replica_name}" if line.pair else line.recovery_target or "-",
            f"{line.newest.id} in {line.store}" if line.newest else "-",
            line.sync_point.point if line.sync_point else "-",
            age((line.sync or line.backup).lag),
            f"{kind_of(run)} {run.state}" if run else "-",
            size(run.stored if kind_of(run) == "backup" else run.written) if run else "-",
            age(took(run)) if run else "-",
        )
    console().print(rows)
    for line in lines:
        for trouble in line.troubles:
            say(f"{line.vm}: {trouble}")


def _latest(line: Protected) -> Run | None:
    """What ended last for this line: a failed backup is not hidden behind an older sync."""
    ended = [e.run for e in (line.last_backup, line.last_sync) if e is not None and e.run.ended is not None]
    return max(ended, key=lambda run: run.ended or run.created, default=None)


def took(run: Run) -> float | None:
    """Seconds from its start to its end; None while there are not both."""
    return (run.ended - run.started).total_seconds() if run.started is not None and run.ended is not None else None


def runs(found: Sequence[Run]) -> None:
    if not found:
        return say("no run yet")
    rows = table(
        *("run", "VM", "kind", "state", "trigger", "created (UTC)", "took", "read", "written", "stored", "why"),
        right=("took", "read", "written", "stored"),
    )
    for run in found:
        rows.add_row(
            *(run.id, run.vm, kind_of(run), coloured(run.state), str(run.trigger), moment(run.created), age(took(run))),
            *(size(run.read), size(run.written), size(run.stored), run.error or (run.reasons[-1] if run.reasons else "")),
        )
    console().print(rows)


def run(one: Run, slices: Sequence[Slice], failures: Sequence[Failure]) -> None:
    """Everything that is known about a run."""
    facts = table("", "")
    facts.show_header = False
    for name, value in one.model_dump().items():
        if name not in ("reasons", "memory"):
            facts.add_row(name, _fact(name, value))
    for key, value in sorted(one.memory.items()):
        facts.add_row(f"remembers {key}", value)
    console().print(facts)
    _list("reasons", one.reasons)
    if slices:
        console().print("")
        rows = table("disk", "from", "to", "done", "read", "written", "stored", "made", title="slices")
        for part in slices:
            done = "all" if part.finished else size(part.done - part.start)
            rows.add_row(
                *(part.disk, size(part.start), size(part.end), done),
                *(size(part.read), size(part.written), size(part.stored), part.made or "-"),
            )
        console().print(rows)
    _list("failures", [f"{moment(f.at)} {f.family} ({f.kind}): {f.message}" for f in failures])


def _fact(name: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return f"{moment(value)} UTC"
    return size(value) if name in ("read", "written", "stored") else str(value)


def _list(title: str, sentences: Iterable[str]) -> None:
    sentences = list(sentences)
    if sentences:
        say(f"\n{title}")
        for sentence in sentences:
            say(f"  {sentence}")


def plan(made: SyncPlan, replica: str) -> None:
    """What a sync would do. Nothing was asked for."""
    say(f"{made.vm} -> {replica}: {made.reason}")
    if made.nothing_new:
        return
    say(f"to restore point {made.point}, from {made.base or 'nothing'}; {size(made.bytes)} to look at or to write")
    if made.build_replica:
        say("the replica is built new")
    rows = table("disk", "mode", "bytes", "ranges", "why", right=("bytes", "ranges"))
    for disk in made.disks:
        rows.add_row(disk.label, disk.mode, size(disk.bytes), str(disk.ranges), disk.reason)
    console().print(rows)
    for change in made.hardware:
        say(f"hardware: {change.kind} {change.label or change.disk} ({size(change.capacity)})")
