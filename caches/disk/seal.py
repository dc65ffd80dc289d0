"""How values lie on disk: sealed, each for its kind, database and handle, under the hash of the handle."""

import hashlib
import os
from typing import Final

from cryptography.exceptions import InvalidTag

from ...clock import Clock
from ...keys import EPOCH_BYTES, HourlyKeys, derived

__all__ = ["ABSENT", "HASH_BYTES", "MARK", "RECORD", "Seal", "raw_handle"]

RECORD: Final = b"r"
ABSENT: Final = b"a"
MARK: Final = b"m"

HASH_BYTES: Final = 20
NONCE_BYTES: Final = 12
HEADER_BYTES: Final = EPOCH_BYTES + NONCE_BYTES


class Seal:
    """Seals values with AES-256-GCM, each for its kind, database and handle, and hashes handles to keys of rows.

    A sealed value is an epoch, a nonce and the ciphertext. One whose epoch lies ahead is opened all the same, for
    our own do once the clock was set back.
    """

    __slots__ = ("_hash", "_keys")

    def __init__(self, key: bytes, clock: Clock) -> None:
        """Take a sub-key, and the clock that tells the epoch."""
        self._hash = derived(key, "handle")
        self._keys = HourlyKeys(derived(key, "value"), clock)

    def key(self, handle: str) -> bytes:
        """Return the key of a handle's row, which tells nobody the handle."""
        return hashlib.blake2b(raw_handle(handle), digest_size=HASH_BYTES, key=self._hash).digest()

    def seal(self, content: bytes, kind: bytes, name: str, handle: str) -> bytes:
        """Return the content sealed."""
        _, epoch, cipher = self._keys.latest()
        nonce = os.urandom(NONCE_BYTES)
        return b"".join((epoch, nonce, cipher.encrypt(nonce, content, _bound(kind, name, handle))))

    def open(self, sealed: bytes, kind: bytes, name: str, handle: str) -> bytes | None:
        """Return the content, or None for what was not sealed for this."""
        epoch, nonce = sealed[:EPOCH_BYTES], sealed[EPOCH_BYTES:HEADER_BYTES]
        cipher = self._keys.known(epoch) or self._keys.derive(epoch)
        try:
            content = cipher.decrypt(nonce, sealed[HEADER_BYTES:], _bound(kind, name, handle))
        except (InvalidTag, ValueError):
            return None
        self._keys.keep(epoch, cipher)
        return content


def _bound(kind: bytes, name: str, handle: str) -> bytes:
    return b"".join((kind, name.encode(), raw_handle(handle)))  # The first two always have one length.


def raw_handle(handle: str) -> bytes:
    """Return any handle as bytes, half a surrogate pair too."""
    return handle.encode("utf-8", "surrogatepass")
