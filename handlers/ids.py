"""Identifiers: the secret id that proves ownership, and the public handle that names a session.

An id is 32 bytes of the operating system's randomness, a handle 20, both unpooled
(OWASP ASVS 7.2.3). An id generator of the user's own may replace the first, never the second.
"""

import base64
import re
import secrets
import uuid
from collections.abc import Callable
from hashlib import sha256
from typing import Final, TypeAlias

from ..clock import SystemClock
from ..errors import NoID, NoSession
from ..keys import joined

__all__ = [
    "REVOKED_SESSION",
    "IdGenerator",
    "checked_id",
    "generated_id",
    "handle_bytes",
    "handle_text",
    "named_handle",
    "new_birth",
    "new_handle",
    "new_id",
    "proof_of",
    "revoked_mark",
    "uuid4",
    "uuid7",
]

REVOKED_SESSION: Final = b"revoked session"
"""What a mark on a list of revocations says; it is in the mark's name, so it must stay as it is."""

IdGenerator: TypeAlias = Callable[[], str]
"""A source of session ids: no argument, a new non-empty str of at most 255 UTF-8 bytes at each call."""

ID_BYTES: Final = 32
HANDLE_BYTES: Final = 20
LONGEST_ID: Final = 255

_looks_like_a_handle: Final = re.compile("[a-z2-7]{32}").fullmatch
_DIGITS: Final = str.maketrans("abcdefghijklmnopqrstuvwxyz234567", "0123456789abcdefghijklmnopqrstuv")
"""From base32 (RFC 4648) to the digits that ``int`` knows."""


def new_id() -> str:
    """Return 32 random bytes as 43 characters of base64url: the default id generator."""
    return base64.urlsafe_b64encode(secrets.token_bytes(ID_BYTES))[:-1].decode()


def uuid4() -> str:
    """Return a random UUID (RFC 9562 version 4) as text: 122 random bits."""
    return str(uuid.uuid4())


def uuid7() -> str:
    """Return a time-ordered UUID (RFC 9562 version 7) as text: 48 bits of milliseconds, 74 random bits."""
    stamp = SystemClock().now() & ((1 << 48) - 1)
    value = stamp << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def new_handle() -> bytes:
    """Return the 20 random bytes of a new session's public name."""
    return secrets.token_bytes(HANDLE_BYTES)


def handle_text(handle: bytes) -> str:
    """Return a handle as it is shown and stored: 32 characters of lower-case base32."""
    return base64.b32encode(handle).decode().lower()


def handle_bytes(text: str) -> bytes:
    """Return the 20 bytes of a handle as it is shown; raise NoSession if no handle looks like that."""
    if not isinstance(text, str) or not _looks_like_a_handle(text):
        raise NoSession("A handle has 32 characters of lower-case base32: take it from session.handle.")
    # 32 digits of five bits are the 160 bits exactly, so no two texts are one handle; several times faster than base64.
    return int(text.translate(_DIGITS), 32).to_bytes(HANDLE_BYTES, "big")


def named_handle(*parts: bytes) -> bytes:
    """Return the handle of what has no random one: a hash of its parts, each with its length in front."""
    return sha256(joined(parts)).digest()[:HANDLE_BYTES]


def revoked_mark(handle: str) -> str:
    """Return the handle of the record that, on a list of revocations, says that the session of this handle is dead."""
    return handle_text(named_handle(REVOKED_SESSION, handle_bytes(handle), b""))


def proof_of(handle: bytes, session_id: bytes) -> bytes:
    """Return what a store holds in place of an id: a hash, from which no id can be had.

    A plain one will do for 32 random bytes (ASVS 6.5.2); the handle in it makes each session's another function.
    """
    return sha256(handle + session_id).digest()


def new_birth() -> bytes:
    """Return the 32 random bytes that tell one life of a server-only session from the next."""
    return secrets.token_bytes(ID_BYTES)


def generated_id(generator: IdGenerator) -> str:
    """Return a new id from the generator; raise NoID for one that cannot be an id."""
    return checked_id(generator())


def checked_id(value: object) -> str:
    """Return the id if it can be one; raise NoID if it is empty, too long, not text or not a str."""
    if type(value) is not str or not value:
        raise NoID("A session id must be a non-empty str: pass text, or mend the id generator.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise NoID("A session id must be valid Unicode text: mend what made it.") from None
    if size > LONGEST_ID:
        raise NoID(f"A session id has at most {LONGEST_ID} UTF-8 bytes, not {size}: shorten it.")
    return value
