"""Base64 for tokens, and the randomness of nonces: two primitives chosen for busy threaded servers.

Both must never wait for another thread. ``binascii`` keeps the interpreter lock, so a
request beside a busy thread takes hardly longer than alone. ``pybase64`` (the ``speed`` extra)
is several times faster on large tokens but gives the lock up and may then wait for it, 5 ms
at a time. So it is used only where ``SESSIONTREE_BASE64=pybase64`` says so, never because it
happens to be installed.
"""

import binascii
import os
from collections.abc import Callable
from typing import Final, TypeAlias

from ..errors import ConfigError
from ..forks import mark

__all__ = ["decode", "encode", "nonce"]

NONCE_BYTES: Final = 12
POOLED: Final = 256


Encoder: TypeAlias = Callable[[bytes], str]
Decoder: TypeAlias = Callable[[str], bytes]


# Functions of our own: a ``partial`` with a keyword takes a quarter longer to call than these with what is in them.
def _binascii() -> tuple[Encoder, Decoder]:
    b2a, a2b = binascii.b2a_base64, binascii.a2b_base64

    def encode(raw: bytes) -> str:
        return b2a(raw, newline=False).decode()

    def decode(text: str) -> bytes:
        return a2b(text, strict_mode=True)

    return encode, decode


def _pybase64() -> tuple[Encoder, Decoder]:
    try:
        import pybase64  # noqa: PLC0415 - an extra, imported only where it was asked for
    except ImportError:
        raise ConfigError(
            "SESSIONTREE_BASE64=pybase64 needs the speed extra: pip install 'sessiontree[speed]'."
        ) from None
    to_bytes = pybase64.b64decode

    def decode(text: str) -> bytes:
        return to_bytes(text, validate=True)

    return pybase64.b64encode_as_string, decode


def _chosen() -> tuple[Encoder, Decoder]:
    name = os.environ.get("SESSIONTREE_BASE64", "binascii")
    if name == "binascii":
        return _binascii()
    if name == "pybase64":
        return _pybase64()
    raise ConfigError(f"SESSIONTREE_BASE64 must be binascii or pybase64, not {name!r}.")


encode, decode = _chosen()

_nonces: list[bytes] = []
_mark = mark()


def nonce() -> bytes:
    """Return 12 random bytes that no other call returns, in this process or a forked one.

    They come from a pool, because the system call behind each read of randomness gives the
    interpreter lock up. ``list.pop`` is atomic, so threads share the pool without a lock.
    """
    global _mark  # noqa: PLW0603 - of the process that drew the pool
    if not _mark[0]:  # A server that forks in C runs no hooks of Python's.
        here = mark()  # Made before: if this process is forked just now, the child finds it false.
        _nonces.clear()
        _mark = here
    try:
        return _nonces.pop()
    except IndexError:
        raw = os.urandom(NONCE_BYTES * POOLED)
        fresh = [raw[start : start + NONCE_BYTES] for start in range(0, len(raw), NONCE_BYTES)]
        mine = fresh.pop()
        _nonces.extend(fresh)
        return mine
