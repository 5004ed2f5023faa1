"""Disk to disk over two NBD sockets: our reader and writer through the copy that every sync uses, beside nbdcopy.

python -m benchmarks.bench_nbd SOURCE TARGET [--threads 4]     sockets that something serves; prints the seconds

nbdkit's file plugin stands in for VMware's library: what is measured is the client.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.disks.libnbd import Connection
from workers.disks.nbd import NbdReader, NbdWriter, Opened
from workers.transfer import copy

#: As many as nbdcopy has connections: they wait for the server, not for a core.
THREADS = 4
#: seconds until nbdkit must listen
_START = 30.0


class Socket:
    """A server that somebody else started; `Opened` needs no more of it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def client(self, connect: Callable[[str], Connection]) -> Connection:
        return connect(self._path)

    def error(self, why: str) -> Exception:
        return OSError(f"{self._path}: {why}")

    def close(self, *, served: bool = False) -> None:
        """It goes on."""


@contextmanager
def served(disk: Path, *options: str) -> Iterator[str]:
    """The socket where nbdkit serves the file until the end."""
    folder = Path(tempfile.mkdtemp(prefix="bench-nbd-"))  # a socket's path is short
    path = folder / "socket"
    command = ["nbdkit", "--foreground", "--exit-with-parent", *options, "--unix", str(path), "file", f"file={disk}"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + _START
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise OSError(f"`{' '.join(command)}` does not listen: {process.communicate()[1][-600:]}")
            time.sleep(0.01)
        yield str(path)
    finally:
        process.terminate()
        process.communicate()
        shutil.rmtree(folder)


@contextmanager
def pair(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    """Sockets of a disk and of a new one of its size, which is all holes."""
    with open(target, "wb") as file:
        os.truncate(file.fileno(), source.stat().st_size)
    with served(source, "--readonly") as one, served(target) as other:
        yield one, other


def carry(source: str, target: str, threads: int) -> None:
    reader, writer = NbdReader(Opened(Socket(source))), NbdWriter(opened := Opened(Socket(target)))
    copy(reader, writer, reader.allocated(), threads=threads)
    writer.flush()
    opened.close()
    reader.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--threads", type=int, default=THREADS)
    args = parser.parse_args()
    began = time.perf_counter()
    carry(args.source, args.target, args.threads)
    print(json.dumps({"seconds": round(time.perf_counter() - began, 3)}))


if __name__ == "__main__":
    main()
