"""Restore points as files: points/<vm>/<seq>.json, claimed once by link(2), exchanged or retired in one step.

A retired point's file stays, without its content, until prune has seen every writer end: so a sequence number is never
claimed twice, and a listing that races with commits and retirements can be told from a quiet one.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pathlib
import re
import secrets
from collections.abc import Iterator

from pydantic import ValidationError

from workers.errors import Conflict, NotFound, Refused
from workers.models import RestorePoint
from workers.store import crypt, files, publishing
from workers.store.crypt import PLAIN, Keys
from workers.store.layout import FORMAT, SEALED, check_version, damaged, is_safe, safe, too_new
from workers.store.place import Path, Remote


class Points:
    def __init__(self, root: Path, keys: Keys = PLAIN) -> None:
        self.root = root
        self.keys = keys

    def vms(self) -> list[str]:
        """VMs with at least one point."""
        found = self.folders()
        return [vm for vm, some in zip(found, files.together(self.root, self._any, found), strict=True) if some]

    def folders(self) -> list[str]:
        """Of VMs, with or without points that are not retired. What no VM's id can be is not ours."""
        return [name for name in files.folders(self.root) if is_safe(name)]

    def _any(self, vm: str) -> bool:
        """The newest first: as a rule that is enough."""
        return any(not self.retired(vm, seq) for seq in reversed(self.sequences(vm)))

    def sequences(self, vm: str) -> list[int]:
        """All that was ever claimed and not yet forgotten, retired or not."""
        folder = self.root / safe(vm, "a VM's id")
        try:
            names = files.names(folder, ".json")
        except FileNotFoundError:
            return []
        for name in names:
            if not _NAME.fullmatch(name):  # a restore point that was renamed would be lost without a word
                raise damaged(folder / name, "no restore point is called so. If it is not Understudy's, move it away")
        return sorted(int(name.removesuffix(".json")) for name in names)

    def path(self, vm: str, seq: int) -> Path:
        return self.root / safe(vm, "a VM's id") / f"{seq:08d}.json"

    def read(self, vm: str, seq: int) -> RestorePoint | None:
        """None when it is retired (or was forgotten)."""
        path = self.path(vm, seq)
        data = self._content(path)
        return decode(path, data, self.keys) if data is not None else None

    @staticmethod
    def _content(path: Path) -> bytes | None:
        """None for what is not there, or only claimed."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        return publishing.content(data) if isinstance(path, Remote) else data

    def encode(self, point: RestorePoint) -> bytes:
        """The manifest, as it is written."""
        return encode(point, self.keys)

    def retired(self, vm: str, seq: int) -> bool:
        """Also what is not there, or only claimed: there is nothing to be read."""
        path = self.path(vm, seq)
        if isinstance(path, Remote):
            data = self._content(path)
            return data is None or data.startswith(_RETIRED)
        try:
            return files.beginning(path, len(_RETIRED)) == _RETIRED
        except FileNotFoundError:
            return True

    def _claimed(self, vm: str, seq: int) -> bool:
        """The number is not taken yet: somebody is about to, or died over it. In a folder that is one step."""
        path = self.path(vm, seq)
        return isinstance(path, Remote) and self._content(path) is None

    def mark(self, vm: str, seq: int) -> bool:
        """Whether the number is that of a retired point."""
        return self.retired(vm, seq) and not self._claimed(vm, seq)

    def all(self, vm: str) -> list[RestorePoint]:
        """Names of segments that several points have are held once: a GiB costs 8 bytes a point, not 120."""
        held: dict[str, str] = {}
        found = files.together(self.root, lambda seq: self.read(vm, seq), self.sequences(vm))
        return [_sharing(point, held) for point in found if point is not None]

    def newest(self, vm: str) -> RestorePoint | None:
        for seq in reversed(self.sequences(vm)):
            if (point := self.read(vm, seq)) is not None:
                return point
        return None

    def get(self, vm: str, point_id: str) -> RestorePoint:
        seq = _sequence(point_id)
        point = self.read(vm, seq) if seq is not None else None
        if point is not None and point.id == point_id:
            return point
        known = [p.id for p in self.all(vm)]
        there = f"it has {', '.join(known)}" if known else "it has none; run a backup first"
        raise NotFound(f"there is no restore point {point_id!r} of VM {vm} in {self.root.parent}: {there}")

    def check_next(self, point: RestorePoint) -> None:
        """`Conflict` unless `point` goes on top of all others of its VM."""
        vm = point.vm.instance_uuid
        taken = [seq for seq in self.sequences(vm) if seq >= point.seq and not self._claimed(vm, seq)]
        if taken:
            raise _taken(point, self.read(vm, taken[-1]))
        if point.parent is not None and not point.copied_from:  # of a copy the point before it may not be here
            parent = self.read(vm, point.seq - 1)
            if parent is None or parent.id != point.parent:
                raise Conflict(
                    f"restore point {point.id} of {point.vm.name} names {point.parent} as its parent, which is not "
                    f"the point before it in {self.root.parent}: read the newest point again and take a new backup"
                )

    def stage(self, note: Path, point: RestorePoint, beside: Path | None = None) -> None:
        """`note` holds the manifest, synced: a writer's own, or a new one `beside` that.

        FileNotFoundError when the run was ended, which takes its notes away.
        """
        data = self.encode(point)
        if isinstance(note, Remote):
            target = self.path(point.vm.instance_uuid, point.seq)
            assert isinstance(target, Remote) and not isinstance(beside, pathlib.Path)
            publishing.stage(note, target, data, beside)
        elif beside is not None:
            files.write_new(note, data)
        else:
            files.overwrite(note, data)

    def claim(self, staged: Path, point: RestorePoint) -> None:
        """Publishes what lies in `staged`, in one step and once. FileNotFoundError when `staged` was taken away."""
        vm = point.vm.instance_uuid
        folder, path = self.root / safe(vm, "a VM's id"), self.path(vm, point.seq)
        try:
            if isinstance(staged, Remote):
                assert isinstance(path, Remote)
                publishing.claim(staged, path)
                return
            if not files.there(folder):
                files.make_folder(folder)
                files.sync_folder(self.root)
            assert isinstance(path, pathlib.Path)
            os.link(staged, path)
        except FileExistsError as err:
            raise _taken(point, self.read(vm, point.seq)) from err
        files.sync_folder(folder)

    def retire(self, vm: str, seq: int, point_id: str, was: bytes | None = None) -> None:
        """Exchanges the manifest for a mark. The caller has checked pins; `was` is what `retiring` gave."""
        with self.exclusive(vm):
            data = _RETIRED + json.dumps(point_id).encode() + b"}\n"
            files.replace(self.path(vm, seq), data, secrets.token_hex(4), was)

    @contextlib.contextmanager
    def exclusive(self, vm: str) -> Iterator[None]:
        """Retirement and compaction exchange a manifest one after the other: else a retired point might come back."""
        lock = self.root / safe(vm, "a VM's id") / ".exchange"
        if isinstance(lock, Remote):  # there a manifest is exchanged only for what it still is
            yield
            return
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def exchange(self, staged: Path, point: RestorePoint, fresh: RestorePoint) -> bool:
        """`staged`, the point with other names of segments, takes its place in one step. Within `exclusive`.

        FileNotFoundError when `staged` was taken away; False when the point is not that any more. The folder is not
        synced: either form is good.
        """
        path = self.path(fresh.vm.instance_uuid, fresh.seq)
        if isinstance(staged, Remote):
            assert isinstance(path, Remote)
            done = publishing.exchange(staged, path, lambda data: decode(path, data, self.keys) == point)
            files.remove(staged)
            return done
        assert isinstance(path, pathlib.Path)
        os.rename(staged, path)
        return True

    def check_not_newest(self, vm: str, seq: int) -> None:
        if all(self.retired(vm, later) for later in reversed(self.sequences(vm)) if later > seq):
            raise Refused(
                f"restore point {seq:08d} of VM {vm} is its newest: the next backup and every replica need it. "
                f"It can be retired once there is a newer one"
            )

    def forget(self, vm: str, seq: int) -> None:
        """Drops the mark of a retired point. For prune, when nobody can claim the number any more."""
        files.remove(self.path(vm, seq))


_NAME = re.compile(r"\d{8,}\.json")
_RETIRED = b'{"format":1,"retired":'
_LAST = b"\n}\n"
#: what a sealed manifest's key is for
_CONTEXT = b"restore point"


def encode(point: RestorePoint, keys: Keys = PLAIN) -> bytes:
    """Readable JSON; the digest covers the bytes of the point between the first and the last line break.

    Sealed, these are what was sealed, in Base64, and the file's key stands in place of the digest.
    """
    text = point.model_dump_json().encode()
    file = keys.new_file(_CONTEXT)
    if file is None:
        return b'{"format":%d,"blake3":"%s","point":\n%s%s' % (FORMAT, keys.digest(text).hex().encode(), text, _LAST)
    sealed = base64.b64encode(file.seal(text, crypt.BODY))
    return b'{"format":%d,"key":"%s","sealed":\n"%s"%s' % (SEALED, file.wrapped.hex().encode(), sealed, _LAST)


def decode(path: Path, data: bytes, keys: Keys = PLAIN) -> RestorePoint | None:
    """None for a retired point's mark."""
    if data.startswith(_RETIRED):
        return None
    first, _, rest = data.partition(b"\n")
    try:
        head = json.loads(first + b"null}")
        version = head["format"]
        if not isinstance(version, int):
            raise ValueError("its format is no number")
        check_version(path, version, keys)
        vouches = bytes.fromhex(head["key" if keys.sealing else "blake3"])
    except (ValueError, KeyError, TypeError) as err:
        raise damaged(path, "its first line is not that of a restore point") from err
    text = rest.removesuffix(_LAST)
    if not rest.endswith(_LAST):
        raise damaged(path, "it was cut off, or something was added to it")
    if keys.sealing:
        text = _unsealed(path, text, vouches, keys)
    elif keys.digest(text) != vouches:
        raise damaged(path, "its digest does not match")
    try:
        point = RestorePoint.model_validate_json(text)
    except ValidationError as err:
        raise damaged(path, f"it does not say what a restore point must say ({err.error_count()} mistakes)") from err
    if point.format > FORMAT:
        raise too_new(path, point.format)
    if path.name != f"{point.seq:08d}.json" or path.parent.name != point.vm.instance_uuid:
        raise damaged(
            path, f"it is restore point {point.id} of VM {point.vm.instance_uuid}: it was moved or copied here"
        )
    return point


def _sharing(point: RestorePoint, held: dict[str, str]) -> RestorePoint:
    disks = (
        disk.model_copy(update={"segments": tuple(held.setdefault(name, name) for name in disk.segments)})
        for disk in point.disks
    )
    return point.model_copy(update={"disks": tuple(disks)})


def _unsealed(path: Path, text: bytes, wrapped: bytes, keys: Keys) -> bytes:
    try:
        if text[:1] + text[-1:] != b'""':
            raise ValueError("no quotes")
        return keys.file(wrapped, _CONTEXT).open(base64.b64decode(text[1:-1], validate=True), crypt.BODY)
    except (crypt.Broken, ValueError) as err:
        raise damaged(path, "it is not what was sealed with this store's key") from err


def _sequence(point_id: str) -> int | None:
    head = point_id.partition("-")[0]
    return int(head) if head.isascii() and head.isdigit() else None


def _taken(point: RestorePoint, other: RestorePoint | None) -> Conflict:
    by = f"run {other.run} committed {other.id}" if other is not None else "another run was there first"
    return Conflict(
        f"restore point {point.id} of {point.vm.name} comes too late: {by}. "
        f"Read the newest point again; if that is this run's own, it is done"
    )
