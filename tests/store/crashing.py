"""A machine that dies at its n-th file operation: nothing runs after that, and what was not synced may be lost."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Died(BaseException):
    """Not an Exception: no clean-up of the program may catch it."""


class Machine:
    """Counts what changes files under `root`. `die_at` = the number of the operation that is not done any more."""

    CHANGES = ("pwrite", "fsync", "fdatasync", "link", "rename", "unlink", "mkdir", "rmdir")

    def __init__(self, root: Path, attic: Path, die_at: int) -> None:
        self.root = str(root)
        self.attic = attic
        self.die_at = die_at
        self.done = 0
        self._lock = threading.Lock()
        self._real: dict[str, Callable[..., Any]] = {}
        #: what a power loss would undo: folder -> steps back, and file -> it was written to
        self._undo: dict[str, list[Callable[[], None]]] = {}
        self._dirty: dict[str, None] = {}
        attic.mkdir()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in self.CHANGES:
            self._real[name] = getattr(os, name)
            patch.setattr(os, name, self._wrapped(name))
        self._real["open"] = os.open
        patch.setattr(os, "open", self._open)

    def lose_power(self) -> None:
        """Undoes every name that was not synced, and cuts every file that was not."""
        for path in self._dirty:
            if os.path.exists(path):
                os.truncate(path, os.path.getsize(path) // 2)
        for steps in self._undo.values():
            for step in reversed(steps):
                step()

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            with self._lock:
                path = self._path(args[0], more.get("dir_fd"))
                if not path.startswith(self.root):
                    return self._real[name](*args, **more)
                self._tick()
                self._note(name, path, args, more)
                return self._real[name](*args, **more)

        return call

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with self._lock:
            full = self._path(path, dir_fd)
            if full.startswith(self.root) and flags & os.O_CREAT and not os.path.exists(full):
                self._tick()
                self._forget_name(full)
            return int(self._real["open"](path, flags, mode, dir_fd=dir_fd))

    def _tick(self) -> None:
        if self.done >= self.die_at:
            raise Died
        self.done += 1

    @staticmethod
    def _path(where: Any, dir_fd: int | None) -> str:
        if isinstance(where, int):
            return os.readlink(f"/proc/self/fd/{where}")
        if dir_fd is not None and not os.path.isabs(where):
            return os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), where)
        return os.path.abspath(where)

    def _note(self, name: str, path: str, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        if name == "pwrite":
            self._dirty[path] = None
        elif name in ("fsync", "fdatasync"):
            self._dirty.pop(path, None)
            self._undo.pop(path, None)
        elif name == "mkdir":
            if not os.path.exists(path):
                self._forget_name(path)
        elif name == "link":
            if not os.path.exists(self._path(args[1], None)):
                self._forget_name(self._path(args[1], None))
        elif name == "unlink":
            kept = self._keep(path)
            self._step(
                path, lambda: os.path.lexists(path) or (os.path.exists(os.path.dirname(path)) and os.link(kept, path))
            )
        elif name == "rename":
            target = self._path(args[1], None)
            old = self._keep(target) if os.path.isfile(target) else None
            if path in self._dirty:
                self._dirty[target] = self._dirty.pop(path)

            def back() -> None:
                if os.path.exists(target):
                    self._real["rename"](target, path)
                if old is not None:
                    os.link(old, target)

            self._step(target, back)

    def _keep(self, path: str) -> str:
        kept = str(self.attic / f"{self.done}")
        if os.path.isfile(path):
            self._real["link"](path, kept)
        return kept

    def _forget_name(self, path: str) -> None:
        def gone() -> None:
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                self._real["unlink"](path)

        self._step(path, gone)

    def _step(self, path: str, step: Callable[[], Any]) -> None:
        self._undo.setdefault(os.path.dirname(path), []).append(step)
