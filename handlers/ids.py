"""Identifiers: the secret id that proves ownership, and the public handle that names a session.

An id is 32 bytes of the operating system's randomness, a handle 20, both unpooled
(OWASP ASVS 7.2.3). An id generator of the user's own may replace the first, never the second.
"""

import base64
import secrets
import uuid
from collections.abc import Callable
from typing import Final, TypeAlias

from ..clock import SystemClock
from ..errors import NoID

__all__ = ["IdGenerator", "generated_id", "handle_text", "new_handle", "new_id", "uuid4", "uuid7"]

IdGenerator: TypeAlias = Callable[[], str]
"""A source of session ids: no argument, a new non-empty str of at most 255 UTF-8 bytes at each call."""

ID_BYTES: Final = 32
HANDLE_BYTES: Final = 20
LONGEST_ID: Final = 255


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


def generated_id(generator: IdGenerator) -> str:
    """Return a new id from the generator; raise NoID for one that cannot be an id."""
    return checked_id(generator())


def checked_id(value: object) -> str:
    """Return the id if it can be one; raise NoID if it is empty, too long, not text or not a str."""
    if type(value) is not str or not value:
        raise NoID("A session id must be a non-empty str: mend the id generator.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise NoID("A session id must be valid Unicode text: mend the id generator.") from None
    if size > LONGEST_ID:
        raise NoID(f"A session id has at most {LONGEST_ID} UTF-8 bytes, not {size}: mend the id generator.")
    return value
