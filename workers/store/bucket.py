"""A store's files as the objects of an S3-compatible bucket: what `place.Remote` asks for, by conditional requests.

boto3, not obstore: the second gives no list of unfinished uploads, takes no CA of one's own, and hides the time of the
server's answers.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import pathlib
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.config
import botocore.exceptions

from workers.errors import ConfigError, Conflict, LoginFailed, Refused, UnderstudyError
from workers.settings import BucketSettings
from workers.store import bucket_errors
from workers.store.bucket_cache import Cache
from workers.store.bucket_errors import Unmet
from workers.store.bucket_io import Ends, Upload
from workers.store.place import Fd, Opened, Remote

#: attempts of a request before its failure is told; the pauses between grow to some 20 s
ATTEMPTS = 6
#: seconds without an answer
CONNECT, ANSWER = 10, 60
#: tries of a write that met another one, a tenth of a second apart: the other is one request, so more means that the
#: endpoint is not well
MEETINGS = 100
#: an upload that was begun so long ago is nobody's any more: a pack is full, or flushed, within minutes
STALE_UPLOAD = 2 * 86400.0
#: what of a store is kept on this machine whole: read often, small beside the packs, and never changed
KEPT = (".maps", ".idx")


class Bucket:
    """The connection. A process that was forked makes its own."""

    def __init__(self, settings: BucketSettings, cache: Cache) -> None:
        self.settings = settings
        self.cache = cache
        prefix = settings.prefix.strip("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._client: tuple[int, Any] | None = None
        #: folder -> names, of folders for which `exists` may be answered from a list
        self.listed: dict[str, set[str] | None] = {}
        self.proven = False

    def __str__(self) -> str:
        return f"s3://{self.settings.bucket}/{self.prefix}".rstrip("/")

    def call(self, operation: str, key: str = "", **more: Any) -> dict[str, Any]:
        """FileNotFoundError for what is not there, `Unmet` for a condition that does not hold, else our errors."""
        if key:
            more["Key"] = self.prefix + key
        where = f"{self}/{key}" if key else str(self)
        try:
            answer: dict[str, Any] = getattr(self._connected(), operation)(Bucket=self.settings.bucket, **more)
        # ValueError: of an endpoint that is no address
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError, ValueError) as err:
            raise bucket_errors.told(err, where, self.settings) from None  # theirs may show what was sent
        return answer

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                self._client = (os.getpid(), self._connect())
            return self._client[1]

    def _connect(self) -> Any:
        mine = self.settings
        config = botocore.config.Config(
            region_name=mine.region or None,
            connect_timeout=CONNECT,
            read_timeout=ANSWER,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            max_pool_connections=32,
            # what is stored has digests of its own, and not every endpoint knows these
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if mine.endpoint else "auto"},
        )
        login = mine.login()
        if mine.ca_file is not None and not mine.ca_file.is_file():
            raise ConfigError(f"{mine.ca_file} (ca_file of the bucket {mine.bucket}) is not there: name the CA's file")
        return boto3.session.Session(
            aws_access_key_id=login.key if login else None,
            aws_secret_access_key=login.secret if login else None,
            aws_session_token=login.token or None if login else None,
        ).client(
            "s3",
            endpoint_url=mine.endpoint,
            verify=str(mine.ca_file) if mine.ca_file is not None else None,
            config=config,
        )

    def listing(self, folder: str, *, deep: bool = False) -> Iterator[tuple[list[dict[str, Any]], list[str], float]]:
        """Pages: objects, names of folders, the server's time."""
        start = f"{self.prefix}{folder}/" if folder else self.prefix
        more: dict[str, Any] = {"Prefix": start} if deep else {"Prefix": start, "Delimiter": "/"}
        while True:
            page = self.call("list_objects_v2", **more)
            objects = [{**each, "name": each["Key"][len(start) :]} for each in page.get("Contents", ())]
            folders = [each["Prefix"][len(start) : -1] for each in page.get("CommonPrefixes", ())]
            yield [each for each in objects if each["name"] and not each["name"].endswith("/")], folders, clock(page)
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    def prove(self) -> None:
        """Conditional writes are honoured: without them two writers could publish the same number."""
        if self.proven:
            return
        probe = BucketPath(self, f"writers/.probe-{secrets.token_hex(8)}")
        try:
            honoured = _honoured(probe)
        except LoginFailed:
            return  # who may only read; a write will say so
        finally:
            with contextlib.suppress(UnderstudyError):  # the first error is to be told, a probe harms nobody
                probe.remove()
        if not honoured:
            raise Refused(
                f"{self}: this endpoint does not honour conditional writes (If-None-Match and If-Match of PutObject), "
                f"so two workers could overwrite each other's restore points. Use one that does (AWS S3 and MinIO do, "
                f"for example), or a store in a folder"
            )
        self.proven = True


def _honoured(probe: BucketPath) -> bool:
    try:
        probe.create(b"1")
        with contextlib.suppress(FileExistsError):
            probe.create(b"2")
            return False
        tag = probe.get()[1]
        probe.put_if(b"3", IfMatch=tag)
        with contextlib.suppress(Unmet):
            probe.put_if(b"4", IfMatch=tag)
            return False
    except (Unmet, FileExistsError):
        return False
    return probe.read_bytes() == b"3"


class BucketPath(Remote):
    """One name in the bucket, below the store's prefix."""

    def __init__(self, bucket: Bucket, key: str = "", *, direct: bool = False) -> None:
        self.bucket = bucket
        self.key = key
        self.direct = direct

    def __truediv__(self, name: str) -> BucketPath:
        return self._at(f"{self.key}/{name}" if self.key else name)

    def _at(self, key: str) -> BucketPath:
        return BucketPath(self.bucket, key, direct=self.direct)

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}" if self.key else str(self.bucket)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> BucketPath:
        return self._at(self.key.rpartition("/")[0])

    def with_name(self, name: str) -> BucketPath:
        return self.parent / name

    def exists(self) -> bool:
        folder = self.parent.key
        if folder in self.bucket.listed:
            known = self.bucket.listed[folder]
            if known is None:
                known = self.bucket.listed[folder] = set(self.parent.names(""))
            return self.name in known
        try:
            return self.length() >= 0
        except FileNotFoundError:
            return False

    def look_anew(self) -> None:
        self.bucket.listed[self.key] = None

    # --- reading --------------------------------------------------------------------------------------------

    def get(self, part: str = "") -> tuple[bytes, str, int]:
        """Content, tag and whole length."""
        answer = self.bucket.call("get_object", self.key, **({"Range": f"bytes={part}"} if part else {}))
        try:
            data: bytes = answer["Body"].read()
        except (botocore.exceptions.BotoCoreError, OSError) as err:
            raise bucket_errors.told(err, str(self), self.bucket.settings) from None
        whole = answer.get("ContentRange", "").rpartition("/")[2]
        return data, answer["ETag"], int(whole) if whole else len(data)

    def read_bytes(self) -> bytes:
        return self.get()[0]

    def length(self) -> int:
        return int(self.bucket.call("head_object", self.key)["ContentLength"])

    def open(self) -> Fd:
        if self.name.endswith(KEPT):
            if self.direct:
                return self.bucket.cache.unnamed(self._fetch)
            return self.bucket.cache.open(self.key, self._fetch)
        return Ends.open(self, self.bucket.cache if not self.direct else None)

    def local(self) -> pathlib.Path:
        return self.bucket.cache.path(self.key, self._fetch, anew=self.direct)

    def _fetch(self, into: pathlib.Path) -> None:
        answer = self.bucket.call("get_object", self.key)
        try:
            with open(into, "wb") as out:
                for part in answer["Body"].iter_chunks(4 << 20):
                    out.write(part)
        except botocore.exceptions.BotoCoreError as err:
            raise bucket_errors.told(err, str(self), self.bucket.settings) from None

    def names(self, suffix: str) -> list[str]:
        found: list[str] = []
        for objects, folders, _ in self.bucket.listing(self.key):
            found += [each["name"] for each in objects] + folders
        return sorted(name for name in found if name.endswith(suffix) and not name.startswith("."))

    def sizes(self, suffix: str) -> dict[str, int]:
        pages = [each for objects, _, _ in self.bucket.listing(self.key) for each in objects]
        return {each["name"]: each["Size"] for each in pages if each["name"].endswith(suffix)}

    def ages(self) -> dict[str, float]:
        return {
            each["name"]: now - each["LastModified"].timestamp()
            for objects, _, now in self.bucket.listing(self.key)
            for each in objects
        }

    # --- writing --------------------------------------------------------------------------------------------

    def put_if(self, data: bytes, **condition: str) -> None:
        """Raises `Unmet`."""
        for _ in range(MEETINGS):
            try:
                self.bucket.call("put_object", self.key, Body=data, **condition)
                return self._known(True)
            except Unmet as err:
                if not err.retry:
                    raise
            time.sleep(0.1)
        raise bucket_errors.busy(str(self), self.bucket.settings)

    def create(self, data: bytes) -> None:
        try:
            self.put_if(data, IfNoneMatch="*")
        except Unmet as err:
            if err.repeated and self.read_bytes() == data:
                return  # it was us, and the answer was lost
            raise FileExistsError(str(self)) from err

    def put(self, data: bytes) -> None:
        self.put_if(data)

    def swap(self, was: bytes, data: bytes) -> None:
        try:
            there, tag, _ = self.get()
            if there == was:
                return self.put_if(data, IfMatch=tag)
        except (Unmet, FileNotFoundError):
            pass
        with contextlib.suppress(FileNotFoundError):
            if self.read_bytes() == data:
                return  # by us: the answer was lost
        raise Conflict(f"{self} was changed by somebody else meanwhile; it is looked at again")

    def remove(self) -> bool:
        try:
            self.bucket.call("head_object", self.key)
            self.bucket.call("delete_object", self.key)
        except FileNotFoundError:
            return False
        self._known(False)
        return True

    def _known(self, there: bool) -> None:
        known = self.bucket.listed.get(self.parent.key)
        if known is not None:
            (known.add if there else known.discard)(self.name)

    def begin(self) -> Opened:
        return Upload(self, lambda: self._known(True))

    @contextlib.contextmanager
    def draft(self) -> Iterator[pathlib.Path]:
        with self.bucket.cache.draft() as fresh:
            yield fresh
            upload = self.begin()
            try:
                with open(fresh, "rb") as file:
                    at = 0
                    while block := file.read(4 << 20):
                        upload.write(block, at)
                        at += len(block)
                upload.finish()
            finally:
                upload.close()

    # --- the place ------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        more: dict[str, Any] = {"Prefix": f"{self.bucket.prefix}{self.key}/"}
        while True:
            page = self.bucket.call("list_multipart_uploads", **more)
            now = clock(page)
            for each in page.get("Uploads", ()):
                if now - each["Initiated"].timestamp() > STALE_UPLOAD:
                    key = each["Key"][len(self.bucket.prefix) :]
                    with contextlib.suppress(FileNotFoundError):
                        self.bucket.call("abort_multipart_upload", key, UploadId=each["UploadId"])
            if not page.get("IsTruncated"):
                return
            more |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def prove(self) -> None:
        self.bucket.prove()

    def free(self) -> int | None:
        return None

    def fresh(self) -> BucketPath:
        return BucketPath(self.bucket, self.key, direct=True)


def clock(answer: dict[str, Any]) -> float:
    """The server's time, of its answer."""
    return email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()


_open: dict[str, Bucket] = {}
_opening = threading.Lock()


def at(settings: BucketSettings, cache: pathlib.Path | None, most: int) -> BucketPath:
    """One connection a process, however often the store is opened."""
    key = json.dumps([settings.model_dump(mode="json"), str(cache), most])
    with _opening:
        found = _open.get(key)
        if found is None:
            name = f"{settings.endpoint or ''} {settings.bucket} {settings.prefix}"
            found = _open[key] = Bucket(settings, Cache(cache, name, most))
    return BucketPath(found)
