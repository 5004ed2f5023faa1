"""Pins: pins/<vm>/<point>/<holder> keeps a restore point. Made and checked so that no retirement slips between.

pin:    writes its file, syncs it, then looks whether the point is there and nobody is retiring it.
retire: writes an intent, syncs it, then looks for pins.
Whichever looks last sees the other: never does `pin` return for a point that goes.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator

from workers import faults
from workers.errors import Conflict, NotFound, Refused
from workers.store import files, publishing
from workers.store.layout import safe
from workers.store.place import Path, Remote
from workers.store.points import Points

#: how the name of a file begins that says which point is being retired
INTENT = ".retiring-"


class Pins:
    def __init__(self, root: Path, points: Points) -> None:
        self._root = root
        self._points = points

    def pin(self, vm: str, point_id: str, holder: str) -> None:
        """Raises `NotFound` when the point is gone or going; then nothing is left of this call."""
        seq = self._points.get(vm, point_id).seq
        folder = self._folder(vm, point_id)
        file = folder / safe(holder, "a pin's holder")
        _make(folder)
        mine = True
        faults.at("store.pinning")
        try:
            files.write_new(file, b"")
        except FileExistsError:
            mine = False
        except FileNotFoundError as err:
            raise _going(vm, point_id) from err
        files.sync_folder(folder)
        faults.at("store.pinned")
        try:
            self._points.get(vm, point_id)
            if self._being_retired(vm, point_id, seq):
                raise _going(vm, point_id)
        except NotFound:
            # A pin that was there before is not ours to remove: the retirement may yet see and respect it.
            if mine:
                files.remove(file)
            raise

    def unpin(self, vm: str, point_id: str, holder: str) -> None:
        """Also when it was not pinned."""
        folder = self._folder(vm, point_id)
        if files.remove(folder / safe(holder, "a pin's holder")):
            files.sync_folder(folder)

    def of(self, vm: str) -> dict[str, set[str]]:
        try:
            folders = files.names(self._root / safe(vm, "a VM's id"))
        except FileNotFoundError:
            return {}
        found = {point_id: self.holders(vm, point_id) for point_id in folders}
        return {point_id: holders for point_id, holders in found.items() if holders}

    def holders(self, vm: str, point_id: str) -> set[str]:
        try:
            return set(files.names(self._folder(vm, point_id)))
        except FileNotFoundError:
            return set()

    def retire(self, vm: str, point_id: str) -> None:
        """Safe to repeat after a crash anywhere."""
        if not isinstance(self._root, Remote):
            return self._retire(vm, point_id)
        for _ in range(publishing.TRIES):  # a pin, or a compaction, came between; the next look sees which
            with contextlib.suppress(Conflict):
                return self._retire(vm, point_id)
        raise Refused(f"restore point {point_id} of VM {vm} is pinned and unpinned all the time: try it later")

    def _retire(self, vm: str, point_id: str) -> None:
        point = self._points.get(vm, point_id)
        with self._intent(vm, point_id, point.seq) as was:
            self._points.check_not_newest(vm, point.seq)
            faults.at("store.retiring")
            if holders := self.holders(vm, point_id):
                raise Refused(
                    f"restore point {point_id} of VM {vm} is pinned by {', '.join(sorted(holders))}: a replica or a "
                    f"run needs it. It can be retired once that has moved on or was removed"
                )
            self._points.retire(vm, point.seq, point_id, was)
        files.remove_folder(self._folder(vm, point_id))

    @contextlib.contextmanager
    def _intent(self, vm: str, point_id: str, seq: int) -> Iterator[bytes | None]:
        """A file that is locked for as long as we live: one that is not locked was left by a crash.

        Where there are no such locks, a mark on the manifest, which a pin takes off: what is in the object then.
        """
        target = self._points.path(vm, seq)
        if isinstance(target, Remote):
            with _marked(target, vm, point_id) as was:
                yield was
            return
        while True:
            path = self._intents(vm, point_id)
            path = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                if files.locked(fd) and path.exists():
                    files.sync_folder(path.parent)
                    try:
                        yield None
                    finally:
                        files.remove(path)
                    return
                # A pin looked between our two calls and took it for left over: once more.
                files.remove(path)
            finally:
                os.close(fd)

    def sweep(self) -> None:
        """Removes what retirements left that were killed: of a point that is gone nobody would look for them."""
        if isinstance(self._root, Remote):
            return  # there an intent is a mark on the manifest itself
        for vm in self._points.vms():
            folder = self._points.path(vm, 0).parent
            assert isinstance(folder, pathlib.Path)
            for path in folder.glob(f"{INTENT}*"):
                _live(path)

    def _being_retired(self, vm: str, point_id: str, seq: int) -> bool:
        target = self._points.path(vm, seq)
        if isinstance(target, Remote):
            publishing.spare(target)
            return self._points.retired(vm, seq)
        prefix = self._intents(vm, point_id)
        return any([_live(path) for path in prefix.parent.glob(f"{prefix.name}.*")])

    def _folder(self, vm: str, point_id: str) -> Path:
        return self._root / safe(vm, "a VM's id") / safe(point_id, "a restore point's id")

    def _intents(self, vm: str, point_id: str) -> pathlib.Path:
        folder = self._points.path(vm, 0).parent
        assert isinstance(folder, pathlib.Path)
        return folder / f"{INTENT}{safe(point_id, 'a restore point')}"


@contextlib.contextmanager
def _marked(target: Remote, vm: str, point_id: str) -> Iterator[bytes]:
    try:
        marked, _ = publishing.mark(target)
    except FileNotFoundError as err:
        raise _going(vm, point_id) from err
    try:
        yield marked
    except BaseException:
        publishing.unmark(target, marked)
        raise


def _live(intent: pathlib.Path) -> bool:
    """Whether somebody is retiring. An intent that nobody holds is removed."""
    try:
        fd = os.open(intent, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not files.locked(fd):
            return True
        files.remove(intent)
        return False
    finally:
        os.close(fd)


def _going(vm: str, point_id: str) -> NotFound:
    return NotFound(f"restore point {point_id} of VM {vm} is being retired: use a newer one")


def _make(folder: Path) -> None:
    """The folder of a point and that of its VM, each name synced."""
    for path in (folder.parent, folder):
        files.make_folder(path)
        files.sync_folder(path.parent)
