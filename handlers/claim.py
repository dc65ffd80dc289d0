"""What the token of a stored session says: which record it means, and the proof that it may.

form, absolute deadline, version, handle, size of the id     1 + 8 + 8 + 20 + 1 bytes
the id
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final

from ..errors import BadCookie
from ..keys import KeyRing
from .codec import SignedTokens
from .ids import HANDLE_BYTES, handle_text, proof_of
from .remembered import Remembered

__all__ = ["Claim", "claim_tokens", "written"]

_HEAD: Final = Struct(f">BQQ{HANDLE_BYTES}sB")
_FORM: Final = 0x20
_FORM_BYTE: Final = bytes((_FORM,))


@dataclass(slots=True)  # not frozen, which would make a token that is new cost a microsecond more
class Claim:
    """A verified token, parsed; the deadline is milliseconds since the epoch."""

    absolute: int
    version: int
    raw_handle: bytes
    handle: str
    proof: bytes
    id: str


def written(absolute: int, version: int, handle: bytes, session_id: str) -> bytes:
    """Return what the token of this record says."""
    raw = session_id.encode()
    return _HEAD.pack(_FORM, absolute, version, handle, len(raw)) + raw


def claim_tokens(keys: KeyRing, path: str) -> Remembered[Claim]:
    """Return the signed tokens of one handler's stored sessions, each of whose ids is hashed once."""
    return Remembered(SignedTokens(keys, "stored session", path), _read)


def _read(content: bytes) -> Claim:
    """Return the claim that a verified token makes; raise BadCookie for one of another form."""
    if content[:1] != _FORM_BYTE or len(content) < _HEAD.size:
        raise BadCookie("The token is of a form that this release does not know.")
    _, absolute, version, handle, size = _HEAD.unpack_from(content)
    raw = content[_HEAD.size : _HEAD.size + size]
    return Claim(absolute, version, handle, handle_text(handle), proof_of(handle, raw), raw.decode(errors="replace"))
