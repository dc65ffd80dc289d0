r"""How a record lies in a row of PostgreSQL, and how changes travel there, as bytes and without a parser.

Fields, their deadlines and labels are packed alike: entries of JSON text, each between two tabs.

    \t"user":48213,\t"theme":"dark",\t

Compact JSON holds no tab, and no string of it goes on behind its closing quote, so ``\t"theme":`` stands where the
entry of that key begins and nowhere else. So the server can find, replace and remove an entry with a search for bytes,
and what it sends is a JSON object once the tabs are taken out. Bytes also keep NUL, which no text in PostgreSQL can.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from struct import error as struct_error
from typing import Any, Final

import orjson

from ...records import (
    FORM,
    NOTHING,
    Content,
    Json,
    Record,
    as_value,
    check_form,
    check_proof,
    too_wide,
    unpacked,
)
from .connection import OIDS, Result

__all__ = [
    "COLUMNS",
    "Values",
    "array",
    "bigint",
    "bigints",
    "entry_of",
    "is_text",
    "label_of",
    "lock_of",
    "marker_of",
    "record_of",
    "row_of",
    "texts",
]

COLUMNS: Final = (
    "ROW(form, version, created, absolute, own, idle, seen, authenticated, grace, proof),"
    " about, fields, previous, labels, deadlines"
)
"""What ``record_of`` reads: the numbers and the proof in one value, since each value costs a call."""

LONGEST: Final = 400
"""How long a name or a value of a label may be in the index, which takes a third of a page; longer ones are hashed."""

_HEAD: Final = Struct(">4x" + "8xq" * 9 + "8x32s")
_FORM: Final = Struct(">12xq")
_NUMBER: Final = Struct(">q")
_ARRAY: Final = Struct(">iiiii")
_LENGTH: Final = Struct(">i")
_NULL: Final = b"\xff\xff\xff\xff"

bigint: Final = _NUMBER.pack
"""An integer as a parameter."""

Values = Sequence[bytes | None]
"""The parameters of a statement."""


# -- records --------------------------------------------------------------------------------


def record_of(result: Result, row: int, handle: str | None = None) -> Record | None:
    """Return the record of a row that was read with ``COLUMNS``, and its handle behind them if it is not known.

    Garbage is None; a newer release's form is StoreUnavailable.
    """
    value = result.get_value
    head, about, fields, previous = value(row, 0), value(row, 1), value(row, 2), value(row, 3)
    labels, deadlines = value(row, 4), value(row, 5)
    if handle is None:
        handle = (value(row, 6) or b"").decode()
    if head is None or about is None or previous is None:
        return None
    try:
        form, version, created, absolute, own, idle, seen, authenticated, grace, proof = _HEAD.unpack(head)
        if form != FORM:
            check_form(form)
        path, agent, address = _described(about)
        labelled = "" if labels is None else _object(labels).decode()
    except struct_error:  # the proof has another length, which a newer release may have given it
        check_form(*_FORM.unpack_from(head))
        return None
    except ValueError:
        return None
    if fields is None:
        return None
    packed = _object(fields)
    if deadlines is not None:
        packed = b"\n".join((packed, _object(deadlines)))
    return tuple.__new__(  # As _make() does, without a frame of its own.
        Record,
        (handle, path, created, absolute, own, idle, proof, seen, version, authenticated, previous, grace,
         labelled, agent, address, packed, form),
    )  # fmt: skip


def row_of(record: Record) -> list[bytes | None]:
    """Return the parameters of a row; raise UsageError for a proof that is not 32 bytes, and for too large numbers.

    Fields that are no JSON object are NULL: garbage is no record, whoever wrote it.
    """
    check_proof(record.proof)
    fields: bytes | None = None
    deadlines: Mapping[str, int] = NOTHING
    try:
        values, deadlines = unpacked(record.fields)
        fields = _packed(values)
    except ValueError:
        pass
    try:
        numbers = [
            bigint(record.form), bigint(record.version), bigint(record.created), bigint(record.absolute),
            bigint(record.own), bigint(record.idle), bigint(record.seen), bigint(record.authenticated),
            bigint(record.grace),
        ]  # fmt: skip
    except struct_error as error:
        raise too_wide(error) from error
    return [
        record.handle.encode(), *numbers, record.proof, record.previous,
        orjson.dumps([record.path, record.agent, record.address]),
        _packed(record.label) if record.labels else None, fields, _packed(deadlines) if deadlines else None,
    ]  # fmt: skip


@lru_cache(1024)
def _described(about: bytes) -> list[str]:
    """Return path, agent and address, which are the same in every request of a session; ValueError for garbage."""
    found: list[str] = orjson.loads(about)
    if not isinstance(found, list) or [type(each) for each in found] != [str, str, str]:
        raise ValueError(about)
    return found


def _object(packed: bytes) -> bytes:
    """Return packed entries as a JSON object."""
    return b"{" + packed.replace(b"\t", b"")[:-1] + b"}"


def _packed(values: Mapping[str, Any]) -> bytes:
    return b"\t" + b"".join([orjson.dumps({key: value})[1:-1] + b",\t" for key, value in values.items()])


# -- entries --------------------------------------------------------------------------------


def marker_of(key: str) -> bytes:
    """Return what the entry of a key begins with."""
    return b"\t" + orjson.dumps(key) + b":"


def entry_of(key: str, content: Content) -> bytes:
    """Return the entry of a key, with the tab behind it."""
    written: bytes = content
    if content.__class__ is not Json:
        written = orjson.dumps(as_value(content))
    elif b"\t" in written or b"\n" in written:  # JSON of somebody else's making, with blanks
        written = orjson.dumps(orjson.loads(written))
    return b"%b:%b,\t" % (orjson.dumps(key), written)


def is_text(*texts: str) -> bool:
    """Tell whether these can lie in a database: half a surrogate pair cannot, and NUL ends a text there."""
    joined = "".join(texts)
    if joined.isascii():
        return "\0" not in joined
    try:
        joined.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in joined


# -- labels ---------------------------------------------------------------------------------


def label_of(text: str) -> bytes | None:
    """Return what the index has for a name or a value; None for what no label can be: half a surrogate pair."""
    try:
        written = orjson.dumps(text)
    except TypeError:
        return None
    # No JSON text of a str begins like the name of the hash.
    return written if len(written) <= LONGEST else b"sha256:" + sha256(written).hexdigest().encode()


def lock_of(schema: str, name: bytes, value: bytes) -> int:
    """Return the number of the advisory lock that whoever gives this label takes."""
    return int.from_bytes(sha256(b"\n".join((schema.encode(), name, value))).digest()[:8], signed=True)


# -- arrays ---------------------------------------------------------------------------------


def array(items: Iterable[bytes | None], of: int = OIDS["bytea"]) -> bytes:
    """Return an array as a parameter."""
    parts = [_NULL if item is None else _LENGTH.pack(len(item)) + item for item in items]
    if not parts:
        return _ARRAY.pack(0, 0, of, 0, 0)[:12]
    return b"".join((_ARRAY.pack(1, _NULL in parts, of, len(parts), 1), *parts))


def texts(items: Iterable[bytes | None]) -> bytes:
    """Return an array of text as a parameter."""
    return array(items, OIDS["text"])


def bigints(items: Iterable[int]) -> bytes:
    """Return an array of integers as a parameter."""
    return array(map(bigint, items), OIDS["bigint"])
