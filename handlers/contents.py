"""What a stored session's fields hold: its values, and, under names that no key has, its flash messages.

A key is its field's name. Names that begin with NUL are ours; a key that does gets one more in front, so
none is reserved.
"""

from binascii import a2b_base64, b2a_base64
from functools import lru_cache, partial
from operator import itemgetter
from secrets import token_hex
from typing import Any, Final, NamedTuple, Protocol

import orjson

from ..records import Content, Json, Record, drop_expired, split, unpacked
from ..serializer import CustomFields, JsonSerializer
from .codec import FieldSealer

__all__ = ["CachedContents", "Contents", "Loaded", "OpaqueContents", "PlainContents", "field_of", "flash_field"]

MOST_REMEMBERED: Final = 1024
"""How many records' values are kept, which takes about as many kilobytes."""

LONGEST_REMEMBERED: Final = 4096
"""How many bytes of fields a record may have whose values are kept."""

_NUL: Final = "\0"
_FLASH: Final = "\0f"
_MARK: Final = b'"\\u0000'
"""How the JSON of a name begins that is no key as it stands."""

_ADMITTED: Final = frozenset({str, int, float, bool})
"""The types that a session has checked, and that JSON has, when it writes them."""

Flash = tuple[str, tuple[str, Any]]
"""The name of a flash message's field, and (category, message)."""


class Loaded(NamedTuple):
    """A record's fields as a session wants them."""

    data: dict[str, Any]
    deadlines: dict[str, int]
    flashes: list[Flash]


class Contents(Protocol):
    """Turns values into contents of fields and back."""

    adds: bool
    """Whether a store can add to an integer where it lies."""

    def read(self, record: Record, now: int) -> "dict[str, Any] | Loaded":
        """Return the live fields, as a dict if there is nothing but keys that last.

        Raises ValueError, or what the serializer raises, for what cannot be read back.
        """
        ...

    def write(self, handle: str, field: str, value: Any) -> Content:
        """Return the content of a session's field; raise TypeError for a value that would not come back exactly."""
        ...


class PlainContents:
    """Contents as our serializer writes them: JSON, all read in one go."""

    __slots__ = ("_serializer",)

    adds: bool = True

    def __init__(self, serializer: JsonSerializer) -> None:
        """Use this serializer."""
        self._serializer = serializer

    def read(self, record: Record, now: int) -> dict[str, Any] | Loaded:
        """Return the live fields."""
        raw, _, times = record.fields.partition(b"\n")  # split(), without its frame
        data, _ = self._serializer.unpack(raw)
        if not times and raw.find(_MARK) < 0:  # Several times faster than "in", which takes bytes for a number first.
            return data
        deadlines = orjson.loads(times) if times else {}
        drop_expired(data, deadlines, now)
        return _sorted_out(data, deadlines)

    def write(self, handle: str, field: str, value: Any) -> Content:  # noqa: ARG002 - what is not sealed fits anywhere
        """Return the value as JSON."""
        if value.__class__ in _ADMITTED:
            return Json(orjson.dumps(value))
        return Json(self._serializer.dumps(value))


class CachedContents(PlainContents):
    """The same of records that come through a cache, and so again and again: their values are read once.

    Of records that are small, and none of whose values can change in place; every request copies these.
    """

    __slots__ = ("_shared",)

    def __init__(self, serializer: JsonSerializer) -> None:
        """Use this serializer."""
        super().__init__(serializer)
        self._shared = lru_cache(MOST_REMEMBERED)(partial(_shared_values, serializer))

    def read(self, record: Record, now: int) -> dict[str, Any] | Loaded:
        """Return the live fields."""
        fields = record.fields
        values = self._shared(fields) if len(fields) <= LONGEST_REMEMBERED else None
        return super().read(record, now) if values is None else values.copy()


class OpaqueContents:
    """Contents that nobody but us can read: of a serializer of the user's, or sealed.

    They lie in the record under a tag, so that a handler of other settings finds a record that it cannot read,
    and never bytes that it takes for a value.
    """

    __slots__ = ("_sealer", "_serializer", "_tag")

    adds: bool = False

    def __init__(self, serializer: JsonSerializer | CustomFields, sealer: FieldSealer | None) -> None:
        """Use this serializer and, if there is one, this sealer."""
        self._serializer = serializer
        self._sealer = sealer
        self._tag = "$custom" if sealer is None else "$sealed"

    def read(self, record: Record, now: int) -> Loaded:
        """Return the live fields."""
        values, deadlines = unpacked(record.fields)
        drop_expired(values, deadlines, now)
        return _sorted_out({name: self._read(record.handle, name, value) for name, value in values.items()}, deadlines)

    def write(self, handle: str, field: str, value: Any) -> Content:
        """Return the value serialised and, if we seal, sealed for this field."""
        raw = bytes(self._serializer.dumps(value))
        if self._sealer is not None:
            raw = self._sealer.seal(raw, handle, field)
        return Json(orjson.dumps({self._tag: b2a_base64(raw, newline=False).decode("ascii")}))

    def _read(self, handle: str, field: str, value: dict[str, str]) -> Any:
        if set(value) != {self._tag}:
            raise ValueError("The field was written by a handler of other settings.")
        raw = a2b_base64(value[self._tag])
        return self._serializer.loads(raw if self._sealer is None else self._sealer.open(raw, handle, field))


def _shared_values(serializer: JsonSerializer, fields: bytes) -> dict[str, Any] | None:
    """Return the values that every request may copy; None if some could change in place, expire, or are no keys."""
    raw, times = split(fields)
    return None if times or raw.find(_MARK) >= 0 else serializer.shared(raw)


def field_of(key: str) -> str:
    """Return the name of the field that holds a key."""
    return _NUL + key if key.startswith(_NUL) else key


def flash_field(now: int, place: int) -> str:
    """Return a new name for a flash message: names sort by time, then by place, and no two are the same."""
    return f"{_FLASH}{now:013x}{place:04x}{token_hex(6)}"


def _sorted_out(data: dict[str, Any], deadlines: dict[str, int]) -> Loaded:
    """Tell keys from our own fields; those of a later release are left alone."""
    flashes: list[Flash] = []
    for field in [field for field in data if field.startswith(_NUL)]:
        value = data.pop(field)
        if field.startswith(_NUL * 2):
            data[field[1:]] = value
            if field in deadlines:
                deadlines[field[1:]] = deadlines.pop(field)
        elif field.startswith(_FLASH):
            category, message = value
            flashes.append((field, (category, message)))
    return Loaded(data, deadlines, sorted(flashes, key=itemgetter(0)))
