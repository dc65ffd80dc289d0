r"""How a RedisStore lays out a session: one hash, so that a key is read and written without the others.

    h            the head: form, version, created, seen, authenticated, grace, soon, absolute, own, idle, two sizes,
                 proof and previous proof, in big-endian bytes at fixed places, which a script can patch
    t            the tail, which never changes: path, agent and address, as a JSON array
    l            the labels, one ``"name":"value"`` to a line; absent if there are none
    "user":      the content of the key ``user``, as it lies among packed fields; behind a line break its own deadline
    "code":      "7391"\n1900000000000

So the packed fields of a record are one join, and only those with deadlines are looked at one by one. The two sizes
are what contents and deadlines take when they are packed, and ``soon`` is no later than the earliest deadline of a
key: a script knows by them, without going through all keys, whether a write fits and whether keys have expired.
"""

import re
import struct
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha1
from operator import add
from typing import Any, Final, NamedTuple

import orjson

from ...clock import FOREVER
from ...records import (
    FORM,
    KEEP,
    NOTHING,
    PROOF_BYTES,
    Changes,
    Content,
    Field,
    Json,
    Record,
    as_value,
    check_form,
    check_proof,
    too_wide,
    unpacked,
)

__all__ = [
    "EXACT",
    "MOST_FIELDS",
    "Hash",
    "absolute_of",
    "arguments_of",
    "difference",
    "digest_of",
    "ends_of",
    "hash_of",
    "name_of",
    "pair_of",
    "partial_record_of",
    "record_of",
    "seen_of",
]

EXACT: Final = 1 << 53
"""From here on a script's numbers are no longer exact."""

MOST_FIELDS: Final = 1000
"""How many fields one call of a script names at most."""

GARBAGE: Final = (1 << 32) - 1
"""The size of contents that are no packed fields."""

_HEAD: Final = struct.Struct(">BqqqqqqqqqII32s")
_CALL: Final = struct.Struct(">32sqqIBHHHHHBIIq")
_IDENTITY: Final = struct.Struct(">qqq32sq")
_SEEN: Final = 3
_DEADLINES: Final = slice(7, 10)
_SIZE: Final = 10
"""Where a head has when the session was seen, its three deadlines, and the size of the contents."""

_NAME: Final = re.compile(rb'"(?:[^"\\]|\\.)*":').match
_ANYTHING: Final = b"?"
"""The name of a field that holds what could not be parsed: no key has it."""


class Hash(NamedTuple):
    """The fields of one hash."""

    head: bytes
    tail: bytes
    labels: bytes
    contents: dict[bytes, bytes]

    def items(self) -> list[bytes]:
        """Return names and values in turn, all but the head and the labels."""
        flat = [b"t", self.tail]
        for item in self.contents.items():
            flat += item
        return flat


def name_of(key: str) -> bytes:
    """Return the name of a key's field; raise TypeError for what no JSON can hold."""
    return orjson.dumps(key) + b":"


def pair_of(label: str, value: str) -> bytes:
    """Return a label as a line of the labels; raise TypeError for what no JSON can hold."""
    return orjson.dumps(label) + b":" + orjson.dumps(value)


def hash_of(record: Record) -> Hash:
    """Return the hash of a record; raise UsageError for a record that no store can keep."""
    check_proof(record.proof)
    contents, size, deadlines_size, soon = _contents_of(record.fields)
    try:
        head = _HEAD.pack(
            record.form, record.version, record.created, record.seen, record.authenticated, record.grace, soon,
            record.absolute, record.own, record.idle, size, deadlines_size, record.proof,
        )  # fmt: skip
    except struct.error as error:
        raise too_wide(error) from error
    tail = orjson.dumps([record.path, record.agent, record.address])
    return Hash(head + record.previous, tail, _lines_of(record.label), contents)


def record_of(handle: str, reply: Sequence[bytes]) -> tuple[Record, bytes] | None:
    """Return the record of a hash's names and values in turn, and its head; None for nothing and for garbage.

    Raises StoreUnavailable for a record that a newer release wrote.
    """
    return _record_of(handle, sorted(map(add, reply[::2], reply[1::2])))


def partial_record_of(handle: str, names: Sequence[bytes], values: Sequence[bytes | None]) -> Any:
    """Return what ``record_of`` does, of these fields alone, behind head, tail and labels."""
    found = zip((b"h", b"t", b"l", *names), values, strict=True)
    record = _record_of(handle, sorted([name + value for name, value in found if value is not None]))
    return None if record is None or _HEAD.unpack_from(record[1])[_SIZE] == GARBAGE else record


def _record_of(handle: str, texts: list[bytes]) -> tuple[Record, bytes] | None:
    """Return the record whose fields, each with its name, these are in their order.

    Head, labels and tail are the last ones, for the name of a key begins with a quotation mark.
    """
    try:
        tail = texts.pop()
        labels = "{" + texts.pop()[1:].decode().replace("\n", ",") + "}" if texts[-1].startswith(b"l") else ""
        head = texts.pop()
        if not (tail.startswith(b"t") and head.startswith(b"h")):
            return None
        head = head[1:]
        (form, version, created, seen, authenticated, grace, _, absolute, own, idle, _, deadlines_size,
         proof) = _HEAD.unpack_from(head)  # fmt: skip
        if form != FORM:
            check_form(form)
        path, agent, address = orjson.loads(tail[1:])
        fields = _with_deadlines(texts) if deadlines_size else b"{" + b",".join(texts) + b"}"
    except (struct.error, LookupError, ValueError, TypeError):
        return None
    record = tuple.__new__(  # As _make() does, without a frame of its own.
        Record,
        (handle, path, created, absolute, own, idle, proof, seen, version, authenticated, head[_HEAD.size :], grace,
         labels, agent, address, fields, form),
    )  # fmt: skip
    return record, head


def ends_of(head: Any) -> int:
    """Return the earliest deadline of a head, 0 for what is none."""
    return min(_deadlines_of(head))


def absolute_of(head: Any) -> int:
    """Return the deadline in a head that never moves, 0 for what is none."""
    return _deadlines_of(head)[0]


def seen_of(head: bytes) -> int:
    """Return when a session was last seen; what is no head is not swept."""
    return int(_HEAD.unpack_from(head)[_SEEN]) if len(head) >= _HEAD.size else FOREVER


def arguments_of(proof: bytes, changes: Changes, now: int, largest: int) -> list[bytes] | None:
    """Return the arguments of the script that makes these changes; None for changes that it cannot make exactly."""
    sets, deletes, adds, expects = changes.sets, changes.deletes, changes.adds, changes.expects
    seen = now if changes.seen is None else changes.seen
    if len(proof) != PROOF_BYTES or not (-EXACT < now < EXACT and -EXACT < seen < EXACT):
        return None
    if (deletes or adds) and not _are_apart(sets, deletes, adds):
        return None
    try:
        size, deadlines_size, soon, names, values = _written(sets)
        if deletes or adds or expects:
            names = [*map(name_of, expects), *names, *map(name_of, deletes), *map(name_of, adds)]
            values = [*map(_expected, expects.values()), *values, *(b"%d" % number for number in adds.values())]
        if len(names) > MOST_FIELDS:
            return None
        flags, identity, is_write = 0, b"", bool(names)
        if not changes.is_data:
            flags, identity = _identity_of(changes)
            is_write = not changes.is_touch
            for label, value in changes.labels.items():
                values += (name_of(label), b"" if value is None else orjson.dumps(value))
        call = _CALL.pack(
            proof, now, seen, min(largest, GARBAGE), is_write, len(expects), len(sets), len(deletes), len(adds),
            len(changes.labels), flags, size, deadlines_size, soon,
        )  # fmt: skip
    except (TypeError, ValueError, struct.error):
        return None
    return [call + identity, *names, *values]


def difference(old: Hash, new: Hash) -> tuple[list[bytes], list[bytes]]:
    """Return the names of the fields that are gone, and names and values in turn of those that differ."""
    gone = [name for name in old.contents if name not in new.contents]
    written: list[bytes] = []
    for item in new.contents.items():
        if old.contents.get(item[0]) != item[1]:
            written += item
    return gone, written


def digest_of(pair: bytes) -> bytes:
    """Return what names the index of a label: the scripts of a server have this hash and no other."""
    return sha1(pair, usedforsecurity=False).hexdigest().encode()


# -- within ------------------------------------------------------------------------------------


def _deadlines_of(head: Any) -> tuple[int, ...]:
    try:
        return _HEAD.unpack_from(head)[_DEADLINES]
    except (struct.error, TypeError):
        return (0,)


def _contents_of(fields: bytes) -> tuple[dict[bytes, bytes], int, int, int]:
    """Return packed fields one by one, what contents and deadlines take, and the earliest deadline."""
    try:
        values, deadlines = unpacked(fields)
        contents = {name_of(key): orjson.dumps(value) for key, value in values.items()}
        sizes = {key: len(name_of(key)) + len(b"%d" % at) + 1 for key, at in deadlines.items() if key in values}
    except (ValueError, TypeError):
        return {_ANYTHING: fields}, GARBAGE, 0, FOREVER
    size = sum(len(name) + len(text) + 1 for name, text in contents.items())
    for key in sizes:
        contents[name_of(key)] += b"\n%d" % deadlines[key]
    return contents, size, sum(sizes.values()), min(map(deadlines.__getitem__, sizes), default=FOREVER)


def _with_deadlines(texts: list[bytes]) -> bytes:
    """Return fields as a record has them, with the deadlines of those that have one behind all of them."""
    values, deadlines = list[bytes](), list[bytes]()
    for each in texts:
        text, _, deadline = each.partition(b"\n")
        values.append(text)
        if deadline and (name := _NAME(text)):
            deadlines.append(name[0] + deadline)
    return b"{" + b",".join(values) + b"}" + (b"\n{" + b",".join(deadlines) + b"}" if deadlines else b"")


def _lines_of(labels: Mapping[str, str]) -> bytes:
    return b"\n".join(pair_of(*label) for label in labels.items()) if labels is not NOTHING else b""


def _written(sets: Mapping[str, Field]) -> tuple[int, int, int, list[bytes], list[bytes]]:
    """Return what contents and deadlines take, the earliest deadline, and names and values of keys to write.

    A value that ends with the line break keeps the deadline that its key has: the script adds that, and counts it.
    """
    size, deadlines_size, soon, names, values = 0, 0, FOREVER, list[bytes](), list[bytes]()
    for key, (content, deadline) in sets.items():
        name = orjson.dumps(key) + b":"
        text = _text_of(content)
        size += len(name) + len(text) + 1
        if deadline and deadline != KEEP:
            digits = b"%d" % deadline
            deadlines_size += len(name) + len(digits) + 1
            soon = min(soon, deadline)
            text += b"\n" + digits
        elif deadline:
            text += b"\n"
        names.append(name)
        values.append(text)
    return size, deadlines_size, soon, names, values


def _text_of(content: Content) -> bytes:
    """Return a content as it lies among packed fields."""
    return bytes(content) if content.__class__ is Json else orjson.dumps(as_value(content))


def _expected(content: Content | None) -> bytes:
    """Return what the field of an expected content holds; nothing for a missing one."""
    if content is None:
        return b""
    if content.__class__ is Json and content.startswith(b'{"$bytes":'):
        raise ValueError("It lies there as bytes would.")
    return _text_of(content)


def _are_apart(sets: Mapping[str, Any], deletes: Collection[str], adds: Mapping[str, int]) -> bool:
    """Tell whether no key is named twice, and every increment is one that a script can make."""
    named = {*sets, *deletes, *adds}
    return len(named) == len(sets) + len(deletes) + len(adds) and all(-EXACT < each < EXACT for each in adds.values())


def _identity_of(changes: Changes) -> tuple[int, bytes]:
    """Return which deadlines and proofs are replaced, and what replaces them."""
    flags = (
        (changes.own is not None)
        | (changes.idle is not None) << 1
        | (changes.authenticated is not None) << 2
        | (changes.proof is not None) << 3
    )
    if changes.proof is not None and len(changes.proof) != PROOF_BYTES:
        raise ValueError("A proof of another length.")
    return flags, _IDENTITY.pack(
        changes.own or 0, changes.idle or 0, changes.authenticated or 0, changes.proof or b"", changes.grace
    )
