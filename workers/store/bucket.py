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
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.exceptions
import urllib3.exceptions

from workers.errors import BadInput, ConfigError, Conflict, LoginFailed, Refused, UnderstudyError
from workers.settings import BucketSettings
from workers.store import bucket_errors
from workers.store.bucket_cache import Cache, Listed
from workers.store.bucket_errors import Beyond, Unmet
from workers.store.bucket_io import Ends, Upload
from workers.store.bucket_probe import PROBES, honoured
from workers.store.place import Fd, Opened, Remote

T = TypeVar("T")

#: attempts of a request before its failure is told; the pauses between grow to some 20 s
ATTEMPTS = 6
#: seconds without an answer
CONNECT, ANSWER = 10, 60
#: an upload, or a trial object, that was begun so long ago is nobody's any more: a pack is full, or flushed, in minutes
STALE = 2 * 86400.0
#: writes of one object that meet another write of it, one after the other, before that is told: some 10 s
MEETINGS = 50
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
        #: folder -> its names as they were listed; one list for each `look_anew`
        self.listed: dict[str, Listed] = {}
        self.proven = False

    def __str__(self) -> str:
        return f"s3://{self.settings.bucket}/{self.prefix}".rstrip("/")

    def call(self, operation: str, key: str = "", **more: Any) -> dict[str, Any]:
        """FileNotFoundError for what is not there, `Unmet` for a condition that does not hold, `Beyond` for a range
        behind the end, else our errors."""
        if key:
            more["Key"] = self.prefix + key
        where = f"{self}/{key}" if key else str(self)
        try:
            answer: dict[str, Any] = getattr(self._connected(), operation)(Bucket=self.settings.bucket, **more)
        # ValueError: of an endpoint that is no address
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError, ValueError) as err:
            told = bucket_errors.told(err, where, self.settings)
            if isinstance(told, Unmet) and not more.keys() & {"IfMatch", "IfNoneMatch"}:
                told = bucket_errors.busy(where, self.settings, told.code)
            if isinstance(told, LoginFailed):
                with self._lock:
                    self._client = None  # the next request reads the key again: it may have been renewed
            raise told from None  # theirs may show what was sent
        return answer

    def body(self, key: str, use: Callable[[Any], T], **more: Any) -> T:
        """What `use` makes of an object. Of one that breaks off on its way it is asked anew: the library tries again
        only what fails before the first byte."""
        for left in reversed(range(ATTEMPTS)):
            answer = self.call("get_object", key, **more)
            try:
                return use(answer)
            except (botocore.exceptions.BotoCoreError, urllib3.exceptions.HTTPError) as err:
                if not left:
                    raise bucket_errors.told(err, f"{self}/{key}", self.settings) from None
            time.sleep(0.2 * random.random())
        raise AssertionError

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
            files = [each for each in objects if each["name"] and not each["name"].endswith("/")]
            yield files, [name for name in folders if name], clock(page)
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    def prove(self) -> None:
        """Conditional writes are honoured: without them two writers could publish the same number."""
        if self.proven:
            return
        probe = BucketPath(self, f"{PROBES}/.probe-{secrets.token_hex(8)}")
        try:
            good = honoured(probe)
        except LoginFailed:
            return  # who may only read; a write will say so
        finally:
            with contextlib.suppress(UnderstudyError):  # the first error is to be told, a probe harms nobody
                probe.remove()
        if not good:
            raise Refused(
                f"{self}: this endpoint does not honour conditional writes (If-None-Match and If-Match of PutObject), "
                f"so two workers could overwrite each other's restore points. Use one that does (AWS S3 and MinIO do, "
                f"for example), or a store in a folder"
            )
        self.proven = True


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
        try:
            return self.length() >= 0
        except FileNotFoundError:
            return False

    def listed(self) -> bool:
        known = self.bucket.listed.get(self.parent.key)
        return self.exists() if known is None else known.has(self.name, self.exists, lambda: self.parent.names(""))

    def look_anew(self) -> None:
        self.bucket.listed[self.key] = Listed(self.bucket.listed.get(self.key))

    # --- reading --------------------------------------------------------------------------------------------

    def get(self, part: str = "") -> tuple[bytes, str, int]:
        """Content, tag and whole length."""

        def read(answer: dict[str, Any]) -> tuple[bytes, str, int]:
            data: bytes = answer["Body"].read()
            whole = answer.get("ContentRange", "").rpartition("/")[2]
            return data, answer["ETag"], int(whole) if whole else len(data)

        try:
            return self.bucket.body(self.key, read, **({"Range": f"bytes={part}"} if part else {}))
        except Beyond:
            return b"", "", 0

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
        def write(answer: dict[str, Any]) -> None:
            with open(into, "wb") as out:
                for part in answer["Body"].iter_chunks(4 << 20):
                    out.write(part)

        self.bucket.body(self.key, write)

    def names(self, suffix: str) -> list[str]:
        found: list[str] = []
        for objects, folders, _ in self.bucket.listing(self.key):
            found += [each["name"] for each in objects] + folders
        return sorted(name for name in found if name.endswith(suffix) and not name.startswith("."))

    def folders(self) -> list[str]:
        found = [name for _, folders, _ in self.bucket.listing(self.key) for name in folders]
        return sorted(name for name in found if not name.startswith("."))

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
            time.sleep(0.4 * random.random())
        raise bucket_errors.contended(str(self), self.bucket.settings)

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
            known.changed(self.name, there)

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
        for name, age in self.ages().items() if self.key == PROBES else ():
            if name.startswith(".probe-") and age > STALE:
                (self / name).remove()
        more: dict[str, Any] = {"Prefix": f"{self.bucket.prefix}{self.key}/"}
        # Rights of their own, and not every endpoint has them: nothing depends on it, a rule of the bucket does it too.
        with contextlib.suppress(BadInput):
            while True:
                page = self.bucket.call("list_multipart_uploads", **more)
                now = clock(page)
                for each in page.get("Uploads", ()):
                    if now - each["Initiated"].timestamp() > STALE:
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
