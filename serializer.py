"""Values to bytes and back: JSON, plus the Python types that JSON lacks, exactly or not at all.

Plain JSON passes straight through orjson. A value that JSON lacks is written as an object
with one key that starts with ``$``; a user's own dict that looks like such a tag is
wrapped in a ``$dict`` tag, so no data can be mistaken for a tag. What would not come back
exactly as it was is a TypeError when it is written, never a surprise when it is read.
"""

import binascii
import math
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson

from .errors import TooLarge

__all__ = ["IMMUTABLE", "JsonSerializer", "Serializer"]

DEEPEST: Final = 32
LARGEST: Final = 1 << 20
SMALLEST_INT: Final = -(1 << 63)
LARGEST_INT: Final = (1 << 64) - 1
MOST_SHARED: Final = 32
"""How many fields may be kept parsed: a small token would take a multiple of its size with more."""

TAG: Final = b'{"$'
_STRICT: Final = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS

IMMUTABLE: Final = frozenset(
    {str, int, bool, float, type(None), bytes, datetime, date, timedelta, Decimal, UUID},
)
"""The types whose values cannot change in place, so that a handed-out one needs no second look."""

_Encoder: TypeAlias = Callable[[Any, int], Any]


@runtime_checkable
class Serializer(Protocol):
    """What ``with_serializer`` takes. ``loads(dumps(value))`` must equal the value, or ``dumps`` raise."""

    def dumps(self, value: object) -> bytes:
        """Return the value as bytes; raise TypeError for what would not come back exactly."""
        ...

    def loads(self, data: bytes) -> object:
        """Return the value that ``dumps`` was given."""
        ...


class JsonSerializer:
    """The default serializer: orjson, with tags for what JSON lacks.

    It takes None, bool, int of up to 64 bits, finite float, str, list and dict with str keys,
    and bytes, datetime, date, timedelta, Decimal, UUID, set and tuple. All its instances are equal.

    >>> JsonSerializer().dumps({"when": date(2026, 11, 21), "who": ("bob", 7)})
    b'{"when":{"$date":"2026-11-21"},"who":{"$tuple":["bob",7]}}'
    """

    __slots__ = ()

    def dumps(self, value: object) -> bytes:
        """Return the value as JSON.

        Raises TypeError for what would not come back exactly, and TooLarge above 1 MiB.
        """
        return _sized(orjson.dumps(_tagged(value, 0)))

    def loads(self, data: bytes) -> object:
        """Return the value that ``dumps`` was given; raises ValueError if these are not such bytes."""
        value = orjson.loads(data)
        return value if data.find(TAG) < 0 else _decoded(value)

    def admit(self, value: object) -> bool:
        """Tell whether the value is plain JSON, which needs no tags; raise TypeError if it cannot be kept."""
        kind = type(value)
        if kind is str:
            return value.isascii() or _text(value) is value  # type: ignore[attr-defined, arg-type]
        if kind is bool or value is None or (kind is int and -(1 << 31) < value < 1 << 31):  # type: ignore[operator]
            return True
        if kind in _SCALARS:
            return _SCALARS[kind](value, 0) is value
        return TAG not in self.dumps(value)

    def pack(self, fields: dict[str, Any], plain: bool) -> bytes:  # noqa: FBT001 - positional, for speed
        """Return all the fields of a session as one JSON object.

        ``plain`` promises that ``admit`` found every value to be plain JSON; that is the fast way.
        """
        if not plain:
            fields = {key: _tagged(value, 0) for key, value in fields.items()}
        raw = orjson.dumps(fields, option=_STRICT)
        return raw if len(raw) <= LARGEST else _sized(raw)

    def unpack(self, data: bytes) -> tuple[dict[str, Any], bool]:
        """Return the fields that ``pack`` was given, and whether they are plain JSON."""
        fields = orjson.loads(data)
        if fields.__class__ is not dict:
            raise ValueError("The data of a session is an object.")
        if data.find(TAG) < 0:  # Several times faster than "in", which takes bytes for a number first.
            return fields, True
        return {key: _decoded(value) for key, value in fields.items()}, False

    def shared(self, data: bytes) -> dict[str, Any] | None:
        """Return the fields that ``pack`` was given if they are few and none could change in place; otherwise None.

        So many requests may copy what was read once.
        """
        if data.find(b"[") >= 0 or data.find(b"{", 1) > 0:  # A list, a dict, a tag, or text that looks so.
            return None
        try:
            fields = orjson.loads(data)
        except ValueError:
            return None
        return fields if fields.__class__ is dict and len(fields) <= MOST_SHARED else None

    def __eq__(self, other: object) -> bool:
        """Tell whether the other is of the same class."""
        return type(other) is type(self)

    def __hash__(self) -> int:
        """Hash alike, as all instances are equal."""
        return hash(type(self))


class CustomFields:
    """The same calls over a serializer of the user's, which knows only ``dumps`` and ``loads``."""

    __slots__ = ("_serializer", "dumps", "loads")

    def __init__(self, serializer: Serializer) -> None:
        """Wrap the serializer."""
        self._serializer = serializer
        self.dumps = serializer.dumps
        self.loads = serializer.loads

    def admit(self, value: object) -> bool:
        """Let the serializer raise now rather than at the end of the request."""
        self.dumps(value)
        return False

    def pack(self, fields: dict[str, Any], plain: bool) -> bytes:  # noqa: ARG002, FBT001 - as in JsonSerializer
        """Return all the fields as one value, in braces as JSON's are, so that blanks may follow it."""
        return b"".join((b"{", self.dumps(fields), b"}"))

    def unpack(self, data: bytes) -> tuple[dict[str, Any], bool]:
        """Return the fields that ``pack`` was given."""
        fields = self.loads(data.rstrip(b" ")[1:-1])
        if not isinstance(fields, dict):
            raise TypeError(f"The serializer gave back a {type(fields).__name__} for a dict: mend its loads().")
        return fields, False

    def shared(self, data: bytes) -> None:
        """Share nothing: what the serializer makes may change in place."""


def _sized(raw: bytes) -> bytes:
    if len(raw) > LARGEST:
        raise TooLarge(f"The data takes {len(raw)} bytes as JSON and may take {LARGEST}: keep large things elsewhere.")
    return raw


def _tagged(value: object, depth: int) -> Any:
    """Return the value as plain JSON types, with tags; a plain scalar is returned as it is."""
    encode = _ENCODERS.get(type(value))
    if encode is None:
        raise TypeError(_unfit(value))
    if depth > DEEPEST:
        raise TypeError(f"A session value nests deeper than {DEEPEST} levels, or holds itself: flatten it.")
    return encode(value, depth + 1)


def _unfit(value: object) -> str:
    kind = type(value)
    parents = [base.__name__ for base in kind.__mro__[1:-1] if base in _ENCODERS]
    hint = f"convert it to a plain {parents[0]}" if parents else "convert it to a JSON type first"
    return f"A session cannot keep a {kind.__qualname__} exactly: {hint}."


def _itself(value: Any, _depth: int) -> Any:
    return value


def _text(value: str, _depth: int = 0) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TypeError("A session cannot keep text with a lone surrogate: it is not valid Unicode.") from None
    return value


def _integer(value: int, _depth: int) -> int:
    if SMALLEST_INT <= value <= LARGEST_INT:
        return value
    raise TypeError("A session keeps integers of at most 64 bits: use a Decimal or a str.")


def _float(value: float, _depth: int) -> float:
    if math.isfinite(value):
        return value
    raise TypeError(f"A session cannot keep {value!r}: JSON has no such number.")


def _decimal(value: Decimal, _depth: int) -> dict[str, str]:
    if value.is_finite():
        return {"$decimal": str(value)}
    raise TypeError(f"A session cannot keep Decimal({str(value)!r}): only finite numbers come back equal.")


def _datetime(value: datetime, _depth: int) -> dict[str, Any]:
    """Write the wall time with its offset, its fold, and the zone's name if it has one."""
    zone, name = value.tzinfo, None
    if type(zone) is ZoneInfo and zone.key:
        name = zone.key
    elif zone is not None and not (type(zone) is timezone and _is_readable(zone)):
        raise TypeError(
            "A session keeps datetimes without a zone, in UTC, at a fixed offset without a name, or in a ZoneInfo."
        )
    return {"$datetime": [value.isoformat(), value.fold, name]}


def _is_readable(zone: timezone) -> bool:
    """Tell whether the zone is its offset and nothing else, and one that ``fromisoformat`` does not take for UTC."""
    offset = zone.utcoffset(None)
    return repr(zone) == repr(timezone(offset)) and (not offset or abs(offset) >= timedelta(seconds=1))


def _datetime_back(parts: list[Any]) -> datetime:
    text, fold, name = parts
    value = datetime.fromisoformat(text).replace(fold=fold)
    if name is None:
        return value
    try:
        return value.replace(tzinfo=ZoneInfo(name))
    except (KeyError, ValueError, OSError):
        return value  # This machine lacks the zone: the fixed offset is the same instant.


def _timedelta(value: timedelta, _depth: int) -> dict[str, list[int]]:
    return {"$timedelta": [value.days, value.seconds, value.microseconds]}


def _bytes(value: bytes, _depth: int) -> dict[str, str]:
    return {"$bytes": binascii.b2a_base64(value, newline=False).decode()}


def _list(value: list[Any], depth: int) -> list[Any]:
    return [_tagged(item, depth) for item in value]


def _tuple(value: tuple[Any, ...], depth: int) -> dict[str, Any]:
    return {"$tuple": _list(list(value), depth)}


def _set(value: set[Any], depth: int) -> dict[str, Any]:
    # Sorted by their JSON, so that equal sets give equal bytes whatever their history.
    return {"$set": sorted(_list(list(value), depth), key=orjson.dumps)}


def _dict(value: dict[Any, Any], depth: int) -> dict[str, Any]:
    for key in value:
        if key.__class__ is not str:
            raise TypeError(f"A session keeps dicts with str keys only, not {type(key).__name__}: convert the keys.")
        _text(key)
    plain = {key: _tagged(item, depth) for key, item in value.items()}
    return {"$dict": plain} if _looks_tagged(plain) else plain


def _looks_tagged(value: dict[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)).startswith("$")


def _decoded(value: Any) -> Any:
    """Return what ``_tagged`` was given, or raise ValueError if it was given nothing of the kind."""
    try:
        return _untagged(value)
    except (TypeError, AttributeError, ArithmeticError, LookupError, RecursionError) as error:
        raise ValueError("The data holds a tag with content that does not fit.") from error


def _untagged(value: Any, depth: int = 0) -> Any:
    """Return what ``_tagged`` was given; a tag and its content count as one level, as they do there."""
    if depth > DEEPEST:
        raise ValueError("The data nests deeper than anything that is written.")
    if value.__class__ is list:
        return [_untagged(item, depth + 1) for item in value]
    if value.__class__ is not dict:
        return value
    if not _looks_tagged(value):
        return {key: _untagged(item, depth + 1) for key, item in value.items()}
    [(tag, content)] = value.items()
    if tag not in _DECODERS:
        raise ValueError(f"The data holds the unknown tag {tag!r}: it was written by a newer release.")
    return _DECODERS[tag](content, depth + 1)


_SCALARS: Final[dict[type, _Encoder]] = {
    str: _text,
    int: _integer,
    float: _float,
    bytes: _bytes,
    datetime: _datetime,
    date: lambda value, _: {"$date": value.isoformat()},
    timedelta: _timedelta,
    Decimal: _decimal,
    UUID: lambda value, _: {"$uuid": value.hex},
}
_ENCODERS: Final[dict[type, _Encoder]] = {
    bool: _itself,
    type(None): _itself,
    **_SCALARS,
    list: _list,
    dict: _dict,
    tuple: _tuple,
    set: _set,
}
_DECODERS: Final[dict[str, Callable[[Any, int], Any]]] = {
    "$bytes": lambda text, _: binascii.a2b_base64(text),
    "$datetime": lambda parts, _: _datetime_back(parts),
    "$date": lambda text, _: date.fromisoformat(text),
    "$timedelta": lambda parts, _: timedelta(*parts),
    "$decimal": lambda text, _: Decimal(text),
    "$uuid": lambda text, _: UUID(text),
    "$tuple": lambda items, depth: tuple([_untagged(item, depth) for item in items]),
    "$set": lambda items, depth: {_untagged(item, depth) for item in items},
    "$dict": lambda plain, depth: {key: _untagged(item, depth) for key, item in plain.items()},
}
