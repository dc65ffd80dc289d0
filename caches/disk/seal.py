"""How values lie on disk: sealed, each for its kind, database and handle, under the hash of the handle."""

import hashlib
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...clock import Clock
from ...keys import derived

__all__ = ["ABSENT", "HASH_BYTES", "MARK", "RECORD", "Seal", "raw_handle"]

RECORD: Final = b"r"
ABSENT: Final = b"a"
MARK: Final = b"m"

HASH_BYTES: Final = 20
HOUR_BYTES: Final = 4
NONCE_BYTES: Final = 12
HOUR_MS: Final = 3_600_000
KEPT_HOURS: Final = 64


class Seal:
    """Seals values with AES-256-GCM, each for its kind, database and handle, and hashes handles to keys of rows.

    A random nonce of 96 bits is safe for about 2^32 messages under one key (NIST SP 800-38D), so every hour has a key
    of its own.
    """

    __slots__ = ("_ciphers", "_clock", "_hash", "_master")

    def __init__(self, key: bytes, clock: Clock) -> None:
        """Take a sub-key, and the clock that tells the hour."""
        self._hash, self._master = derived(key, "handle"), derived(key, "value")
        self._clock = clock
        self._ciphers: dict[bytes, AESGCM] = {}

    def key(self, handle: str) -> bytes:
        """Return the key of a handle's row, which tells nobody the handle."""
        return hashlib.blake2b(raw_handle(handle), digest_size=HASH_BYTES, key=self._hash).digest()

    def seal(self, content: bytes, kind: bytes, name: str, handle: str) -> bytes:
        """Return the content sealed."""
        hour = max(0, self._clock.now() // HOUR_MS).to_bytes(HOUR_BYTES, "big")
        cipher, nonce = self._cipher(hour), os.urandom(NONCE_BYTES)
        self._keep(hour, cipher)
        return b"".join((hour, nonce, cipher.encrypt(nonce, content, _bound(kind, name, handle))))

    def open(self, sealed: bytes, kind: bytes, name: str, handle: str) -> bytes | None:
        """Return the content, or None for what was not sealed for this."""
        hour, nonce = sealed[:HOUR_BYTES], sealed[HOUR_BYTES : HOUR_BYTES + NONCE_BYTES]
        cipher = self._cipher(hour)
        try:
            content = cipher.decrypt(nonce, sealed[HOUR_BYTES + NONCE_BYTES :], _bound(kind, name, handle))
        except (InvalidTag, ValueError):
            return None
        self._keep(hour, cipher)
        return content

    def _cipher(self, hour: bytes) -> AESGCM:
        return self._ciphers.get(hour) or AESGCM(derived(self._master, hour.hex()))

    def _keep(self, hour: bytes, cipher: AESGCM) -> None:
        """Keep a key that fitted; one that did not is not kept, so that forged hours push nothing out."""
        if hour not in self._ciphers:
            if len(self._ciphers) >= KEPT_HOURS:
                self._ciphers.clear()
            self._ciphers[hour] = cipher


def _bound(kind: bytes, name: str, handle: str) -> bytes:
    return b"".join((kind, name.encode(), raw_handle(handle)))  # The first two always have one length.


def raw_handle(handle: str) -> bytes:
    """Return any handle as bytes, half a surrogate pair too."""
    return handle.encode("utf-8", "surrogatepass")
