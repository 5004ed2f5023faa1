"""Who writes: writers/<run>/ exists from a run's first writer until it commits or is abandoned.

As long as it exists, prune deletes nothing that the run may refer to. Each writer has a note in it, which becomes the
manifest at the commit. Ending a run takes the notes away, so a process that was stopped cannot wake up and publish, not
even when somebody has registered the same run again.
"""

from __future__ import annotations

import datetime
import os
import pathlib
import secrets
import shutil
import socket

from workers import faults
from workers.store import files, publishing
from workers.store.layout import FORMAT, safe
from workers.store.place import Path, Remote

#: how the run of a compaction begins
COMPACTION = "compaction-"


class Writers:
    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, run: str) -> Path:
        return self._root / safe(run, "a run's id")

    def register(self, run: str) -> Path:
        """Durable before anything of the run is written. Joining a run that is there is fine.

        Returns the writer's note: until its commit it says, for people, who joined.
        """
        folder = self.folder(run)
        note = folder / f"{os.getpid()}-{secrets.token_hex(8)}.json"
        while True:
            try:
                if isinstance(folder, Remote):
                    assert isinstance(note, Remote)
                    publishing.register(folder, note, files.to_json(myself(run)))
                    return note
                files.make_folder(folder)
                files.sync_folder(self._root)
                files.write_new(note, files.to_json(myself(run)))
            except FileNotFoundError:
                continue  # the run was ended in between: register it anew
            return note

    def leave(self, note: Path) -> None:
        """A writer goes; its run stays registered."""
        if isinstance(note, Remote):
            publishing.leave(note)
        else:
            files.remove(note)

    def live(self) -> list[str]:
        return files.folders(self._root)

    def waited_for(self) -> set[str]:
        """Those that may refer to what no point does: all but a compaction, which takes what it writes from points."""
        return {run for run in self.live() if not run.startswith(COMPACTION)}

    def end(self, run: str) -> bool:
        """Whether it was there. From here on nothing staged by the run can be published."""
        folder, gone = self.folder(run), self._root / f".ended-{secrets.token_hex(8)}"
        if isinstance(folder, Remote):
            points = self._root.parent / "points"
            assert isinstance(points, Remote)
            return publishing.end(folder, points)
        try:
            assert isinstance(gone, pathlib.Path)
            os.rename(folder, gone)
        except FileNotFoundError:
            return False
        faults.at("store.leaving")
        files.sync_folder(self._root)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def sweep(self) -> None:
        """Removes what `end` left when it was killed."""
        if isinstance(self._root, Remote):
            return self._root.sweep()
        with os.scandir(self._root) as entries:
            left = [entry.path for entry in entries if entry.name.startswith(".ended-")]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)


def myself(run: str) -> dict[str, object]:
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "format": FORMAT, "run": run, "host": socket.gethostname(), "pid": os.getpid(), "boot": boot, "started": now
    }  # fmt: skip
