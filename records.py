r"""Records: what a store remembers of one session, and what can be changed in one.

A record's fields are one JSON object, packed, with the deadlines of those keys that have one behind a line
break, which compact JSON never holds:

    {"user":48213,"theme":"dark"}
    {"user":48213,"code":"7391"}\n{"code":1900000000000}

Plain values are read in one go that way, and a store keeps one small buffer. A content is bytes. One that is
JSON, as our serializer writes it, is marked as ``Json`` and lies in the object as it is; any other lies there
as ``{"$bytes": base64}``, which is how that serializer writes bytes.

A whole record packs into bytes as well, for engines that keep documents or rows:

    form, version, created, absolute, own, idle, seen, authenticated, grace, proof, size of the rest     99 bytes
    the rest: path, labels, agent, address and previous proof, as a JSON array
    the packed fields

``changed``, and ``changed_packed`` for fields alone, say what ``apply`` does to a record, for every engine that makes
its changes in Python. Redis's script and PostgreSQL's functions do the same where they lie, or hand back to ``changed``
what they cannot do exactly; tests compare them with it.
"""

import binascii
from collections.abc import Collection, Iterator, Mapping
from hmac import compare_digest
from struct import Struct
from struct import error as struct_error
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

import orjson

from .clock import FOREVER, SKEW_MS
from .errors import CompareFailed, Conflict, RecordTooLarge, SessionGone, StoreUnavailable, UsageError
from .serializer import LARGEST_INT, SMALLEST_INT

__all__ = [
    "FORM",
    "KEEP",
    "LARGEST",
    "NOTHING",
    "PROOF_BYTES",
    "Changes",
    "Content",
    "Field",
    "Json",
    "Page",
    "Record",
    "Version",
    "as_value",
    "changed",
    "changed_fields",
    "changed_packed",
    "check_form",
    "check_numbers",
    "check_proof",
    "check_size",
    "closed",
    "drop_expired",
    "gone",
    "label_changes",
    "narrowed",
    "pack",
    "packed",
    "reidentified",
    "relabelled",
    "split",
    "taken",
    "too_wide",
    "unpack",
    "unpacked",
]

FORM: Final = 1
"""The format of the records that this release writes. A higher one was written by a newer release."""

PROOF_BYTES: Final = 32
"""How many bytes a proof has: a SHA-256, or as many random bytes."""

LARGEST: Final = 1 << 20
"""How many bytes the fields of one record may take, unless its store says otherwise."""

KEEP: Final = -1
"""The deadline in ``Changes.sets`` of a key that keeps the one it has."""

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

_HEAD: Final = Struct(">Bqqqqqqqq32sH")
_NUMBERS: Final = Struct(">9q")
_LAST: Final = (1 << 63) - 1
"""The latest time that fits into 64 bits."""

_LONGEST_TAIL: Final = (1 << 16) - 1

_RAW: Final = "$bytes"
_NO_FIELDS: Final = b"{}"

Content = bytes
"""What a field holds: any bytes, or ``Json``."""

Field = tuple[Content, int]
"""A content and the key's own deadline in milliseconds since the epoch; 0 is none, and in changes there is ``KEEP``."""


class Json(bytes):
    """A content that is JSON, exactly as ``JsonSerializer.dumps`` writes it."""

    __slots__ = ()


class Version(int):
    """A record's version, an int that grows with every write; ``sums`` holds what increments came to."""

    sums: Mapping[str, int] = NOTHING

    @classmethod
    def of(cls, number: int, sums: Mapping[str, int]) -> Self:
        """Return the version of this number, with what increments came to."""
        version = cls(number)
        if sums:
            version.sums = sums
        return version


class Record(NamedTuple):
    """One session as a store keeps it; all times are milliseconds since the epoch, ``FOREVER`` for never."""

    handle: str
    """The public name, which locates the record."""

    path: str
    """The handler's path, such as "visitor/user"."""

    created: int
    absolute: int
    """The deadline that never moves."""

    own: int
    """The deadline of the session's own life, ``max_age``."""

    idle: int
    """The deadline that every touch moves."""

    proof: bytes
    """A hash of the id, or, of a server-only session, what was drawn at its birth: 32 bytes."""

    seen: int
    """When it was last touched or written to."""

    version: int = 1
    authenticated: int = 0
    """When ``bind()`` last tied it to a user; 0 is never."""

    previous: bytes = b""
    """The proof before the last renewal."""

    grace: int = 0
    """Until when the previous proof may still read."""

    labels: str = ""
    """The labels as a JSON object, or nothing."""

    agent: str = ""
    address: str = ""
    """The client that began the session."""

    fields: bytes = _NO_FIELDS
    """The packed fields."""

    form: int = FORM

    @property
    def ends(self) -> int:
        """The earliest of the three deadlines."""
        return min(self.absolute, self.own, self.idle)

    @property
    def label(self) -> Mapping[str, str]:
        """The labels by name."""
        return orjson.loads(self.labels) if self.labels else NOTHING

    def is_live(self, now: int) -> bool:
        """Tell whether no deadline has passed."""
        return now < self.absolute and now < self.own and now < self.idle

    def check_form(self) -> None:
        """Raise StoreUnavailable for a record of a newer release, so that a rolling deployment logs nobody out."""
        check_form(self.form)

    def admits(self, proof: bytes, now: int) -> bool:
        """Tell whether the proof may read: the current one, or in its grace the one before."""
        if compare_digest(self.proof, proof):
            return True
        # A clock that was set back to before the renewal gives the old proof no second grace.
        return self.seen - SKEW_MS <= now < self.grace and compare_digest(self.previous, proof)

    def written(self, fields: bytes, seen: int) -> "Record":
        """Return the record with other fields and the next version."""
        return self._replace(fields=fields, seen=seen, version=self.version + 1)

    def contents(self, now: int) -> dict[str, Field]:
        """Return the content and the deadline of every live key."""
        values, deadlines = unpacked(self.fields)
        return {
            key: (_content(value), deadlines.get(key, 0))
            for key, value in values.items()
            if now < deadlines.get(key, FOREVER)
        }

    def only(self, keys: Collection[str]) -> "Record":
        """Return the record with the fields of these keys alone."""
        values, deadlines = unpacked(self.fields)
        values = {key: value for key, value in values.items() if key in keys}
        return self._replace(fields=packed(values, {key: at for key, at in deadlines.items() if key in values}))


class Changes(NamedTuple):
    """What one ``apply`` does to a record, all of it or nothing. Deadlines are milliseconds since the epoch."""

    sets: Mapping[str, Field] = NOTHING
    """Keys to write: their content and their own deadline, 0 for none.

    ``KEEP`` leaves a key the deadline that it has by then, whoever gave it; a missing or expired one has none.
    """

    deletes: Collection[str] = ()
    """Keys to remove; a missing one is fine."""

    adds: Mapping[str, int] = NOTHING
    """Integers to add to keys that hold integers as JSON; a missing one begins at 0, a deadline stays."""

    expects: Mapping[str, Content | None] = NOTHING
    """Contents that keys must have, or None for a missing key; otherwise CompareFailed."""

    seen: int | None = None
    """When this happens, if not now."""

    own: int | None = None
    idle: int | None = None
    proof: bytes | None = None
    """The proof that replaces the current one."""

    grace: int = 0
    """Until when the replaced proof may still read; it can never write again."""

    authenticated: int | None = None
    labels: Mapping[str, str | None] = NOTHING
    """Labels to set, or with None to remove."""

    @property
    def is_data(self) -> bool:
        """Whether only fields change, which is what nearly every ``apply`` does."""
        return self[_FIRST_OF_IDENTITY:] == _SAME_IDENTITY

    @property
    def is_touch(self) -> bool:
        """Whether only deadlines move, so that the version stays."""
        return not (any(self[:_FIRST_OF_LIFE]) or self.labels) and self.proof is None and self.authenticated is None


_FIRST_OF_LIFE: Final = Changes._fields.index("seen")
_FIRST_OF_IDENTITY: Final = Changes._fields.index("own")
_SAME_IDENTITY: Final = Changes()[_FIRST_OF_IDENTITY:]


class Page(NamedTuple):
    """Some of many records, and where the next ones begin; None if these were the last."""

    records: list[Record]
    after: str | None


def packed(values: Mapping[str, Any], deadlines: Mapping[str, int] = NOTHING) -> bytes:
    """Return fields as a record holds them, in a buffer of exactly their size.

    What orjson returns keeps its whole work buffer of kilobytes alive, so it is copied once.
    """
    raw = orjson.dumps(values)
    if deadlines:
        return b"\n".join((raw, orjson.dumps(deadlines)))
    return raw[:-1] + b"}"


def unpacked(fields: bytes) -> tuple[dict[str, Any], dict[str, int]]:
    """Return values and deadlines of packed fields; raise ValueError if these are none."""
    raw, deadlines = split(fields)
    values = orjson.loads(raw)
    times = orjson.loads(deadlines) if deadlines else {}
    if values.__class__ is not dict or times.__class__ is not dict:
        raise ValueError("The fields of a record are a JSON object.")
    return values, times


def split(fields: bytes) -> tuple[bytes, bytes]:
    """Return packed fields as the JSON of the values and that of the deadlines, which is nothing if no key has one."""
    values, _, deadlines = fields.partition(b"\n")
    return values, deadlines


def narrowed(record: Record, keys: Collection[str] | None) -> Record | None:
    """Return the record with the fields of these keys alone, or as it is for None; garbage is no record: None."""
    try:
        return record if keys is None else record.only(keys)
    except ValueError:
        return None


def as_value(content: Content) -> Any:
    """Return a content as it lies among packed values."""
    if content.__class__ is Json:
        return orjson.Fragment(bytes(content))
    return {_RAW: binascii.b2a_base64(content, newline=False).decode("ascii")}


def _content(value: Any) -> Content:
    """Return the content that lies among packed values as this value."""
    if value.__class__ is dict and len(value) == 1 and value.get(_RAW).__class__ is str:
        return binascii.a2b_base64(value[_RAW])
    return Json(orjson.dumps(value))


def pack(record: Record) -> bytes:
    """Return all of a record but its handle as bytes.

    Raises UsageError for a proof that is not 32 bytes, for numbers of more than 64 bits, and for labels and a client
    that take more than 64 KiB together.
    """
    check_proof(record.proof)
    tail = orjson.dumps([record.path, record.labels, record.agent, record.address, record.previous.hex()])
    try:
        head = _HEAD.pack(
            record.form, record.version, record.created, record.absolute, record.own, record.idle, record.seen,
            record.authenticated, record.grace, record.proof, len(tail),
        )  # fmt: skip
    except struct_error as error:
        raise (too_wide(error) if len(tail) <= _LONGEST_TAIL else _too_long(len(tail))) from error
    return b"".join((head, tail, record.fields))


def _too_long(size: int) -> UsageError:
    return UsageError(
        f"A record's path, labels and client take {size} bytes, and {_LONGEST_TAIL} fit: keep long texts in its fields."
    )


def unpack(handle: str, raw: bytes) -> Record | None:
    """Return the record of a handle, or None for garbage; raise StoreUnavailable for a newer release's form."""
    try:
        form, version, created, absolute, own, idle, seen, authenticated, grace, proof, size = _HEAD.unpack_from(raw)
        if form != FORM:
            check_form(form)
        end = _HEAD.size + size
        path, labels, agent, address, previous = orjson.loads(raw[_HEAD.size : end])
        return tuple.__new__(  # As _make() does, without a frame of its own.
            Record,
            (handle, path, created, absolute, own, idle, proof, seen, version, authenticated,
             bytes.fromhex(previous) if previous else b"", grace, labels, agent, address, raw[end:], form),
        )  # fmt: skip
    except (struct_error, ValueError, TypeError):
        return None


def changed_packed(
    raw: bytes, proof: bytes, changes: Changes, now: int, largest: int = LARGEST
) -> tuple[bytes, int, Mapping[str, int]]:
    """Return a packed record with its fields changed, its version, and what each increment came to.

    This is ``changed`` for changes of fields alone, and raises the same; garbage is no record: SessionGone.
    """
    try:
        form, version, created, absolute, own, idle, seen, authenticated, grace, mine, size = _HEAD.unpack_from(raw)
    except (struct_error, TypeError) as error:
        raise gone() from error
    _check_writable(form, mine, proof, now < absolute and now < own and now < idle)
    end = _HEAD.size + size
    fields, sums = changed_fields(raw[end:], changes, now, largest)
    if changes.sets or changes.deletes or changes.adds or changes.expects:
        version += 1
    seen = _later(seen, changes, now)
    head = _HEAD.pack(form, version, created, absolute, own, idle, seen, authenticated, grace, mine, size)
    return b"".join((head, raw[_HEAD.size : end], fields)), version, sums


def changed(
    record: Record, proof: bytes, changes: Changes, now: int, largest: int = LARGEST
) -> tuple[Record, Mapping[str, int]]:
    """Return the record with the changes made, and what each increment came to.

    Raises SessionGone for a record that has expired or is not the proof's, CompareFailed, TypeError for an
    increment of what is no integer, RecordTooLarge, and UsageError for numbers of more than 64 bits. Then nothing may
    be written.
    """
    # All fields at once, for every write does it: one by one, each of them costs two or three times as much.
    (handle, path, created, absolute, own, idle, mine, seen, version, authenticated, previous, grace, labels, agent,
     address, before, form) = record  # fmt: skip
    _check_writable(form, mine, proof, now < absolute and now < own and now < idle)
    fields, sums = changed_fields(before, changes, now, largest)
    if fields is not before and changes[_FIRST_OF_IDENTITY:] == _SAME_IDENTITY:  # is_data, without its frame
        return tuple.__new__(
            Record,
            (handle, path, created, absolute, own, idle, mine, _later(seen, changes, now), version + 1, authenticated,
             previous, grace, labels, agent, address, fields, form),
        ), sums  # fmt: skip
    if not changes.is_touch:
        version += 1
    return reidentified(record, changes, now)._replace(fields=fields, version=version), sums


def reidentified(record: Record, changes: Changes, now: int) -> Record:
    """Return the record with all that the changes say but of its fields and its version: ``changed`` has those too.

    Raises UsageError for numbers of more than 64 bits.
    """
    record = record._replace(
        seen=_later(record.seen, changes, now),
        own=record.own if changes.own is None else changes.own,
        idle=record.idle if changes.idle is None else changes.idle,
        authenticated=record.authenticated if changes.authenticated is None else changes.authenticated,
    )
    if changes.proof is not None:
        record = record._replace(proof=changes.proof, previous=record.proof, grace=changes.grace)
    if changes.labels:
        record = record._replace(labels=relabelled(record.labels, changes.labels))
    check_numbers(record)
    return record


def _check_writable(form: int, mine: bytes, proof: bytes, is_live: bool) -> None:  # noqa: FBT001 - positional, for speed
    """Raise SessionGone unless the record is live and the proof is its own; StoreUnavailable for a newer form."""
    if form != FORM:
        check_form(form)
    if not is_live or not compare_digest(mine, proof):
        raise gone()


def gone() -> SessionGone:
    """Return what every late write is answered."""
    return SessionGone("The session was revoked, renewed or has expired meanwhile, so nothing was written: begin anew.")


def taken() -> Conflict:
    """Return what whoever creates a record is answered, if its handle lives."""
    return Conflict("A session of this handle exists already: load it, or take another handle.")


def closed() -> UsageError:
    """Return what every verb of a closed store is answered."""
    return UsageError("This store is closed: open a new one.")


def changed_fields(
    fields: bytes, changes: Changes, now: int, largest: int = LARGEST
) -> tuple[bytes, Mapping[str, int]]:
    """Return packed fields with the changes made and expired keys left out, and what each increment came to.

    Fields that no change names are returned as they are. Garbage is no record: SessionGone.
    """
    sets, deletes, adds, expects = changes.sets, changes.deletes, changes.adds, changes.expects
    if not (sets or deletes or adds or expects):
        return fields, NOTHING
    try:
        values, deadlines = unpacked(fields)
    except ValueError as error:
        raise gone() from error
    if deadlines:
        drop_expired(values, deadlines, now)
    if expects:
        _compare(values, expects)
    for key in deletes:
        values.pop(key, None)
        deadlines.pop(key, None)
    for key, (content, deadline) in sets.items():
        values[key] = as_value(content)
        if deadline and deadline != KEEP:
            deadlines[key] = deadline
        elif deadlines and not deadline:
            deadlines.pop(key, None)
    sums = _added(values, adds, sets) if adds else NOTHING
    result = packed(values, deadlines)
    if len(result) > largest:
        check_size(result, largest)
    return result, sums


def drop_expired(values: dict[str, Any], deadlines: dict[str, int], now: int) -> None:
    """Take the keys whose own deadline has passed out of both."""
    for key in [key for key, deadline in deadlines.items() if deadline <= now]:
        del deadlines[key]
        values.pop(key, None)


def _compare(values: Mapping[str, Any], expects: Mapping[str, Content | None]) -> None:
    """Raise CompareFailed unless the keys have these contents, of the same kind and to the byte."""
    for key, expected in expects.items():
        found = _content(values[key]) if key in values else None
        if found.__class__ is not expected.__class__ or found != expected:
            raise CompareFailed(f"The key {key!r} was changed meanwhile: read it again.")


def check_form(form: int) -> None:
    """Raise StoreUnavailable for the form of a newer release."""
    if form > FORM:
        raise StoreUnavailable(
            f"The record has the format {form}, which a newer release wrote: deploy that release here too."
        )


def check_proof(proof: bytes) -> None:
    """Raise UsageError for a proof that no engine with rows of bytes can keep."""
    if len(proof) != PROOF_BYTES:
        raise UsageError(f"A record's proof has {PROOF_BYTES} bytes, not {len(proof)}: hash what is longer.")


def check_numbers(record: Record) -> None:
    """Raise UsageError for a record whose numbers do not all fit into 64 bits, as ``pack`` does."""
    try:
        _NUMBERS.pack(
            record.form, record.version, record.created, record.absolute, record.own, record.idle, record.seen,
            record.authenticated, record.grace,
        )  # fmt: skip
    except struct_error as error:
        raise too_wide(error) from error


def too_wide(reason: object) -> UsageError:
    """Return what whoever writes a number of more than 64 bits is answered."""
    return UsageError(f"A record's numbers have 64 bits at most: {reason}.")


def check_size(fields: bytes, largest: int) -> None:
    """Raise RecordTooLarge if packed fields are larger than a store takes."""
    if len(fields) > largest:
        raise RecordTooLarge(
            f"The session's data takes {len(fields)} bytes and this store keeps {largest}: keep large things elsewhere."
        )


def relabelled(labels: str, changes: Mapping[str, str | None]) -> str:
    """Return labels with these set, or removed where None."""
    merged = {**(orjson.loads(labels) if labels else NOTHING), **changes}
    present = {name: value for name, value in merged.items() if value is not None}
    return orjson.dumps(present).decode() if present else ""


def label_changes(old: Record, new: Record) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield each label that differs between two records, with its value in the old one and in the new; None is none."""
    before, after = old.label, new.label
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            yield name, before.get(name), after.get(name)


def _added(values: dict[str, Any], adds: Mapping[str, int], sets: Mapping[str, Field]) -> dict[str, int]:
    """Add to the integers that the keys hold, or are set to in the same change; return the sums."""
    sums = {}
    for key, number in adds.items():
        value = _set_to(sets[key][0]) if key in sets else values.get(key, 0)
        if type(value) is not int:
            raise TypeError(f"incr() adds to integers, and the key {key!r} holds something else.")
        if not SMALLEST_INT <= value + number <= LARGEST_INT:
            raise TypeError(f"The key {key!r} would no longer fit into 64 bits: use a Decimal or a str.")
        values[key] = sums[key] = value + number
    return sums


def _set_to(content: Content) -> Any:
    """Return the value that a content is, or None for bytes that are none, however they look."""
    return orjson.loads(bytes(content)) if content.__class__ is Json else None


def _later(seen: int, changes: Changes, now: int) -> int:
    """Return when a record is last seen that was seen then, before these changes."""
    if changes.seen is None:
        return max(seen, now)
    if changes.seen > _LAST:
        raise too_wide(changes.seen)
    return max(seen, changes.seen)
