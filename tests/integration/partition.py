"""A line to a server that can fall silent: nothing comes through, nobody is told, later the connections are gone."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType

from tests import services


class Line:
    """A port of its own that leads to another one on this machine."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._open = threading.Event()
        self._open.set()
        self._done = False
        for work in (self._accept, self._carry):
            threading.Thread(target=work, daemon=True).start()

    def fall_silent(self) -> None:
        """From here on nothing is carried, in either direction; new connections are made and hear nothing."""
        self._open.clear()

    def heal(self) -> None:
        """What was open meanwhile is reset, as a router does that has forgotten it; new connections work."""
        pairs, self._pairs = self._pairs, []
        for ends in pairs:
            for end in ends:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    end.close()
        self._open.set()

    def _accept(self) -> None:
        while not self._done:
            with contextlib.suppress(OSError):
                near, _ = self._listener.accept()
                self._pairs.append((near, socket.create_connection(("127.0.0.1", self._to))))

    def _carry(self) -> None:
        while not self._done:
            self._open.wait(1)
            ways = {a: b for near, far in list(self._pairs) for a, b in ((near, far), (far, near))}
            with contextlib.suppress(OSError, ValueError):
                ready, _, _ = select.select(list(ways), [], [], 0.02)
                for end in ready if self._open.is_set() else ():
                    self._pass_on(end, ways[end])

    def _pass_on(self, end: socket.socket, other: socket.socket) -> None:
        try:
            data = end.recv(1 << 16)
            if data:
                return other.sendall(data)
        except OSError:
            pass
        self._pairs = [pair for pair in self._pairs if end not in pair]
        end.close()
        other.close()

    def close(self) -> None:
        self._done = True
        self._open.set()
        self._listener.close()
        self.heal()


class FarRedis(services.Redis):
    """A Redis behind such a line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = Line(self.port)
        self.direct, self.url = self.url, f"redis://127.0.0.1:{self.line.port}/0"

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.line.close()
        super().__exit__(kind, err, tb)
