"""What a store's files are sealed with and its digests keyed: AES-256-GCM and BLAKE3. `PLAIN` does neither.

data key   32 random bytes, made with the store; store.json holds it, sealed with the operator's key (keyring.py)
file key   32 random bytes for each pack, file of maps, file of moves and manifest; it stands in the file's head, sealed
           with a key that is derived from the data key, and seals each part of that file once
digests    BLAKE3 with another key derived from the data key: equal content has other digests in another store
"""

from __future__ import annotations

import os
import struct

import numpy as np
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

Data = bytes | memoryview | NDArray[np.uint8]

#: bytes of a key
KEY = 32
#: what sealing adds: GCM's tag
TAG = 16
#: a key that was sealed: nonce, key, tag
NONCE = 12
WRAPPED = NONCE + KEY + TAG

#: the parts of a file: with a part's number they make its nonce, so no two may share both
BLOB = 0  # number: its slot
HEAD = 1
TRAILER = 2
ORIGIN = 3  # of a map segment, number: its offset in the file
STEPS = 4
BODY = 5  # of a manifest

_NONCE = struct.Struct("<IQ")


class Broken(Exception):
    """What was to be opened is not what was sealed here, or was sealed with another key."""


def wrap(with_key: bytes, key: bytes, context: bytes) -> bytes:
    """`key`, sealed; `context` must be the same for `unwrap`.

    The nonce is random: of 2^32 keys that are sealed with one, two share a nonce with a probability of 2^-33.
    """
    nonce = os.urandom(NONCE)
    return nonce + AESGCM(with_key).encrypt(nonce, key, context)


def unwrap(with_key: bytes, wrapped: bytes, context: bytes) -> bytes:
    """Raises `Broken`."""
    try:
        return AESGCM(with_key).decrypt(wrapped[:NONCE], wrapped[NONCE:], context)
    except (InvalidTag, ValueError) as err:
        raise Broken from err


class FileKey:
    """Seals the parts of one file. Its key is used for nothing else, so counters are nonces that never repeat."""

    def __init__(self, key: bytes, wrapped: bytes) -> None:
        self._aes = AESGCM(key)
        #: for the file's head
        self.wrapped = wrapped

    def seal(self, data: bytes | memoryview, part: int, number: int = 0, also: bytes | None = None) -> bytes:
        """`TAG` bytes longer. To be called once for each part and number; `also` is not hidden, but vouched for."""
        return self._aes.encrypt(_NONCE.pack(part, number), data, also)

    def open(self, data: bytes | memoryview, part: int, number: int = 0, also: bytes | None = None) -> bytes:
        """Raises `Broken`."""
        try:
            return self._aes.decrypt(_NONCE.pack(part, number), data, also)
        except InvalidTag as err:
            raise Broken from err


class Keys:
    """A store's: made from its data key, or from nothing where the store is not encrypted."""

    def __init__(self, data_key: bytes | None = None) -> None:
        self._digests = _derived(data_key, "digests") if data_key is not None else None
        self._files = _derived(data_key, "files") if data_key is not None else None

    @property
    def sealing(self) -> bool:
        return self._files is not None

    @property
    def room(self) -> int:
        """How much longer a blob gets by sealing."""
        return TAG if self.sealing else 0

    def digest(self, data: Data) -> bytes:
        """BLAKE3-256, keyed where the store is encrypted."""
        raw = data.data if isinstance(data, np.ndarray) else data
        return (blake3(raw) if self._digests is None else blake3(raw, key=self._digests)).digest()

    def new_file(self, context: bytes) -> FileKey | None:
        """A fresh key; `context` says which file it is for. None where nothing is sealed."""
        if self._files is None:
            return None
        key = os.urandom(KEY)
        return FileKey(key, wrap(self._files, key, context))

    def file(self, wrapped: bytes, context: bytes) -> FileKey:
        """Raises `Broken`."""
        assert self._files is not None
        return FileKey(unwrap(self._files, wrapped, context), wrapped)


def _derived(data_key: bytes, what: str) -> bytes:
    return blake3(data_key, derive_key_context=f"Understudy, a store's {what}, 1").digest()


#: of a store that is not encrypted
PLAIN = Keys()
