"""Following runs in the catalogue until they have ended. The runs do not know that anybody looks."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tasks import show
from workers.models import Run, RunState
from workers.run import Here
from workers.status import kind_of

#: seconds between two looks: a look is two small reads per run
LOOK = 0.5
#: seconds after which a run that nobody has taken is worth a sentence
PATIENCE = 15


def follow(here: Here, run_ids: Sequence[str], *, quiet: bool = False) -> list[Run]:
    """The runs as they ended, in the order given. `quiet` shows nothing. A Ctrl-C ends the looking, not the runs."""
    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
        console=show.console(stderr=True),
        disable=quiet or not show.console(stderr=True).is_terminal,
    )
    with display:
        rows = {run_id: _Row(here, display, here.catalogue.run(run_id), quiet=quiet) for run_id in run_ids}
        while waiting := [row for row in rows.values() if row.run.live]:
            time.sleep(LOOK)
            for row in waiting:
                row.look()
    return [rows[run_id].run for run_id in run_ids]


class _Row:
    """A run's line: a bar on a terminal, a sentence for each change elsewhere."""

    def __init__(self, here: Here, display: Progress, run: Run, *, quiet: bool) -> None:
        self.here, self.display, self.run, self.quiet = here, display, run, quiet
        self._name = f"{kind_of(run)} {run.vm} ({run.id})"
        self._bar = display.add_task(self._name, total=None, state="")
        self._since = time.monotonic()
        self._said = ""
        self._show()

    def look(self) -> None:
        self.run = self.here.catalogue.run(self.run.id)
        self._show()

    def _show(self) -> None:
        state = self._state()
        if self.display.disable:
            if state != self._said and not self.quiet:
                show.complain(f"{self._name}: {state}")
            self._said = state
            return
        parts = self.here.catalogue.slices(self.run.id)
        total = sum(part.end - part.start for part in parts)
        done = sum(part.done - part.start for part in parts)
        if not self.run.live:
            total, done = 1, int(self.run.state is not RunState.FAILED)
        self.display.update(self._bar, total=total or None, completed=done, state=state)

    def _state(self) -> str:
        if self.run.state is RunState.QUEUED:
            if self.run.error:
                return f"waiting for another try: {self.run.error}"
            if self.run.started is None and time.monotonic() - self._since > PATIENCE:
                return (
                    f"queued; no worker of site {self.run.site} has taken it yet. "
                    f"Is `understudy worker --site {self.run.site}` running, and not busy?"
                )
        return str(self.run.state)
