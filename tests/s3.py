"""A real S3 server in a process of its own (moto), on loopback: one request at a time, with faults on demand."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import botocore.config

KEY, SECRET = "AKIATESTTESTTESTTEST", "the-secret-of-the-tests"


class Faults:
    """Around the server's application: what matches a fault is refused, cut off or delayed, so many times."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._faults: list[dict[str, Any]] = []
        self._seen: list[str] = []
        #: bucket -> bytes of contents that came, bytes of answers that went
        self._carried: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], answer: Any) -> Iterable[bytes]:
        what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        if environ["PATH_INFO"] == "/-faults":
            self._faults = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            seen, self._seen = self._seen, []
            answer("200 OK", [])
            return [json.dumps(seen).encode()]
        if environ["PATH_INFO"] == "/-carried":
            carried, self._carried = self._carried, {}
            answer("200 OK", [])
            return [json.dumps(carried).encode()]
        self._seen.append(what)
        how = self._how(what)
        if how.startswith("slow "):
            time.sleep(float(how[5:]))
        if re.fullmatch(r"\d\d\d \w+", how):
            answer(f"{how[:3]} Refused", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{how[4:]}</Code><Message>no</Message></Error>".encode()]
        if how == "drop":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        if how == "unconditional":
            environ.pop("HTTP_IF_MATCH", None)
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with self._lock:  # moto looks at a condition and writes in two steps
            whole = list(self._app(environ, answer if how != "answer lost" else lambda *_: None))
        if how == "answer lost":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        self._count(environ, sum(map(len, whole)))
        return self._half(environ, b"".join(whole)) if how == "cut" else whole

    def _count(self, environ: dict[str, Any], out: int) -> None:
        with self._lock:
            sums = self._carried.setdefault(environ["PATH_INFO"].split("/")[1], [0, 0])
            sums[0] += int(environ.get("CONTENT_LENGTH") or 0)
            sums[1] += out

    @staticmethod
    def _half(environ: dict[str, Any], whole: bytes) -> Iterator[bytes]:
        yield whole[: len(whole) // 2]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

    def _how(self, what: str) -> str:
        for fault in self._faults:
            if fault["times"] and re.search(fault["match"], what):
                fault["times"] -= 1
                return str(fault["how"])
        return ""


def serve() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, Faults(DomainDispatcherApplication(create_backend_app)), threaded=True)
    print(server.server_port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server.serve_forever()


class S3:
    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=botocore.config.Config(s3={"addressing_style": "path"}),
        )
        self._count = 0

    def bucket(self) -> str:
        self._count += 1
        name = f"bucket-{self._count}"
        self.client.create_bucket(Bucket=name)
        return name

    def fault(self, match: str = "", how: str = "", times: int = 1) -> list[str]:
        """Refuse (`503 SlowDown`), `drop`, `answer lost`, `cut` (in the middle of the answer), `slow SECONDS`,
        `unconditional`; returns what was asked since the last call. Without arguments faults end."""
        body = json.dumps([{"match": match, "how": how, "times": times}] if match else []).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/-faults", body), timeout=10) as answer:
            seen: list[str] = json.loads(answer.read())
        return seen

    def carried(self) -> dict[str, list[int]]:
        """By bucket the bytes of contents that came, and of answers that went, since the last call."""
        with urllib.request.urlopen(f"{self.endpoint}/-carried", timeout=10) as answer:
            carried: dict[str, list[int]] = json.loads(answer.read())
        return carried

    def keys(self, bucket: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [each["Key"] for page in pages for each in page.get("Contents", ())]


@contextmanager
def running() -> Iterator[S3]:
    command = [sys.executable, "-c", "from tests import s3; s3.serve()"]
    quiet = {"stdout": subprocess.PIPE, "stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **quiet) as process:  # type: ignore[call-overload]
        try:
            yield S3(f"http://127.0.0.1:{process.stdout.readline().strip()}")
        finally:
            process.kill()
