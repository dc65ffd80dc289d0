"""What the token of a stored session says: which record it means, and the proof that it may.

form, absolute deadline, version, handle, size of the id     1 + 8 + 8 + 20 + 1 bytes
the id
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from ..errors import BadCookie
from ..keys import KeyRing
from .codec import Remembering, SignedTokens
from .ids import HANDLE_BYTES, handle_text, proof_of

__all__ = ["Claim", "ClaimTokens", "written"]

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


class ClaimTokens(Remembering[Claim]):
    """Signed tokens of stored sessions. What one says is remembered with it, so its id is hashed once."""

    __slots__ = ("_tokens", "current")

    def __init__(self, keys: KeyRing, path: str) -> None:
        """Bind to a ring and a handler path."""
        super().__init__()
        self._tokens = SignedTokens(keys, "stored session", path)
        self.current = self._tokens.current

    def seal(self, absolute: int, version: int, handle: bytes, session_id: str) -> str:
        """Return the token that claims this record."""
        return self._tokens.seal(written(absolute, version, handle, session_id))

    def sealer(self, before: str = "", after: str = "") -> Callable[[bytes], str]:
        """Return a function that returns the token for what ``written`` returns, with this text around it."""
        return self._tokens.sealer(before, after)

    def verified(self, token: str) -> Claim:
        """Return the claim, verified anew; raise BadCookie for any text that is no such token."""
        content = self._tokens.verified(token)
        if content[:1] != _FORM_BYTE or len(content) < _HEAD.size:
            raise BadCookie("The token is of a form that this release does not know.")
        _, absolute, version, handle, size = _HEAD.unpack_from(content)
        raw = content[_HEAD.size : _HEAD.size + size]
        return Claim(
            absolute, version, handle, handle_text(handle), proof_of(handle, raw), raw.decode(errors="replace")
        )
