"""What the token of a cookie session says: who it is, when it ends, and all of its data.

    form, created, ends, handle, size of the id     1 + 8 + 8 + 20 + 1 bytes
    absolute, own, idle                             3 x 8 bytes, only if ``ends``, the earliest, is not all there is
    the parent's handle                             20 bytes, only in a child
    the id
    the values                                      one JSON object, by the handler's serializer

Extras (keys that expire, a subject, flash messages) stand before the values, which then do not begin
with their own brace. A request that changes only data copies the identity's bytes as they came.

What a token says is the same for every request that brings it, so it is read once and remembered with the token.
Values that could change in place are read anew, for they are each request's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from struct import error as struct_error
from typing import Any, Final, NamedTuple, TypeAlias

from ..clock import FOREVER
from ..errors import BadCookie, CookieTooLarge
from ..serializer import JsonSerializer
from .ids import HANDLE_BYTES
from .remembered import Remembered, TokenCodec

__all__ = [
    "HANDLE",
    "JSON",
    "SEPARATE",
    "Carried",
    "Extras",
    "Identity",
    "carried_tokens",
    "write_rest",
]

Unpack: TypeAlias = Callable[[bytes], tuple[dict[str, Any], bool]]
Shared: TypeAlias = Callable[[bytes], dict[str, Any] | None]

_HEAD: Final = Struct(">BQQ20sB")
_LIVES: Final = Struct(">BQQ")
_SEPARATE_LIVES: Final = Struct(">QQQ")
_FRAME: Final = Struct(">BH")
LARGEST_EXTRAS: Final = 0xFFFF
_FORM: Final = 0x10
SEPARATE: Final = 0x01
"""The bit of the form that says: the earliest deadline is not all there is to know."""

_CHILD: Final = 0x02
HANDLE: Final = slice(_LIVES.size, _LIVES.size + HANDLE_BYTES)
"""Where the session's own handle stands."""

JSON: Final = JsonSerializer()
"""Writes the extras, whatever the handler's serializer, and says what keys, subjects and flash messages may be."""

_BRACE: Final = ord("{")
"""The first byte of values that no extras precede."""

_ID_SIZE_AT: Final = _HEAD.size - 1

_ID_START: Final = {
    _FORM | separate | child: _HEAD.size + (_SEPARATE_LIVES.size if separate else 0) + (HANDLE_BYTES if child else 0)
    for separate in (0, SEPARATE)
    for child in (0, _CHILD)
}
"""Where the id stands, by form."""


def _parent_handle(content: bytes) -> bytes:
    """Return the parent's handle in the content of a child's token."""
    start = _ID_START[content[0]]
    return content[start - HANDLE_BYTES : start]


class Identity(NamedTuple):
    """Who a session is and when it ends; all times are milliseconds since the epoch, ``FOREVER`` for never."""

    created: int
    absolute: int
    own: int
    idle: int
    handle: bytes
    parent: bytes
    id: str

    @property
    def ends(self) -> int:
        """The earliest of the three deadlines."""
        return min(self.absolute, self.own, self.idle)

    @classmethod
    def read(cls, content: bytes) -> "Identity":
        """Return the identity that a token's content begins with."""
        form, created, ends = _LIVES.unpack_from(content)
        start = _ID_START[form]
        absolute, own, idle = ends, FOREVER, FOREVER
        if form & SEPARATE:
            absolute, own, idle = _SEPARATE_LIVES.unpack_from(content, _HEAD.size)
        parent = _parent_handle(content) if form & _CHILD else b""
        session_id = content[start : start + content[_ID_SIZE_AT]].decode(errors="replace")
        return cls(created, absolute, own, idle, content[HANDLE], parent, session_id)

    def write(self) -> bytes:
        """Return the start of a token's content."""
        raw = self.id.encode()
        separate = self.own != FOREVER or self.idle != FOREVER
        form = _FORM | (SEPARATE if separate else 0) | (_CHILD if self.parent else 0)
        head = _HEAD.pack(form, self.created, self.ends, self.handle, len(raw))
        lives = _SEPARATE_LIVES.pack(self.absolute, self.own, self.idle) if separate else b""
        return b"".join((head, lives, self.parent, raw))


class Extras:
    """What few sessions have: keys with a life of their own, a subject, flash messages."""

    __slots__ = ("authenticated", "deadlines", "flashes", "subject")

    def __init__(self) -> None:
        """Begin empty."""
        self.deadlines: dict[str, int] = {}
        self.subject: str | None = None
        self.authenticated = 0
        self.flashes: list[tuple[str, Any]] = []

    @classmethod
    def read(cls, raw: bytes) -> "Extras":
        """Return what ``write`` wrote."""
        extras = cls()
        fields: Any = JSON.loads(raw)
        extras.deadlines = fields.get("e", {})
        extras.subject = fields.get("s")
        extras.authenticated = fields.get("a", 0)
        extras.flashes = [(category, message) for category, message in fields.get("f", ())]
        times = [extras.authenticated, *extras.deadlines.values()]
        if any(type(time) is not int for time in times) or not isinstance(extras.subject, str | None):
            raise ValueError("The extras are of another shape.")
        return extras

    def write(self) -> bytes:
        """Return JSON of what there is, or nothing."""
        fields = {"e": self.deadlines, "s": self.subject, "a": self.authenticated, "f": [*map(list, self.flashes)]}
        present = {name: value for name, value in fields.items() if value}
        return JSON.dumps(present) if present else b""


@dataclass(slots=True)  # not frozen, which would make a token that is new cost a microsecond more
class Carried:
    """What a verified token says; the times are milliseconds since the epoch."""

    content: bytes
    form: int
    created: int
    ends: int
    handle: bytes
    under: bytes
    """The parent's handle; empty in a session of a root handler."""

    rest: int
    """Where in the content the data begins, behind identity and id."""

    values: dict[str, Any] | None
    """Values none of which can change in place, for each request to copy; None if there may be others, or extras."""

    def read(self, unpack: Unpack) -> tuple[Extras | None, dict[str, Any], bool]:
        """Return the extras, the values, and whether these are plain JSON, as the request's own."""
        extras, raw = None, self.content[self.rest :]
        if raw[0] != _BRACE:
            extras, raw = _read_rest(raw)
        return extras, *unpack(raw)


def carried_tokens(tokens: TokenCodec, shared: Shared) -> Remembered[Carried]:
    """Return tokens that hold a whole session; ``shared`` returns the values that requests may share, or None."""

    def carried(content: bytes) -> Carried:
        try:
            form, created, ends, handle, size = _HEAD.unpack_from(content)
            under = _parent_handle(content) if form & _CHILD else b""
            rest = _ID_START[form] + size
            values = shared(content[rest:]) if content[rest] == _BRACE else None
        except (struct_error, KeyError, IndexError) as error:
            raise BadCookie("The token is of a form that this release does not know.") from error
        return Carried(content, form, created, ends, handle, under, rest, values)

    return Remembered(tokens, carried)


def write_rest(extras: Extras | None, values: bytes) -> bytes:
    """Return what follows identity and id in a token's content."""
    raw = b"" if extras is None else extras.write()
    if len(raw) > LARGEST_EXTRAS:
        raise CookieTooLarge(f"Flash messages, subject and expiries take {len(raw)} bytes: keep fewer or shorter ones.")
    return b"".join((_FRAME.pack(0, len(raw)), raw, values)) if raw else values


def _read_rest(raw: bytes) -> tuple[Extras, bytes]:
    """Return the extras and the values behind them, where the data does not begin with a brace."""
    _, length = _FRAME.unpack_from(raw)
    end = _FRAME.size + length
    return Extras.read(raw[_FRAME.size : end]), raw[end:]
