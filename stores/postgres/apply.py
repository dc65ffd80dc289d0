"""The three ways in which a PostgresStore changes a record.

The plain way is an UPDATE: one that edits the packed fields once for each key, for the changes of nearly every request,
and one that compares what a key holds first, for ``update_key``. The function ``applied`` takes all others. Where none
of these finds a row that it may change, nothing has changed, and the slow way locks the row and asks
``records.changed``.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from struct import error as struct_error
from typing import Final, TypeAlias

import orjson
from psycopg import Error

from ...errors import SessionError
from ...records import KEEP, PROOF_BYTES, Changes, Content, Json, Record, Version, changed, gone, label_changes
from ..log import logger
from .connection import FAILURES, Connection, Result, Statement, seconds
from .rows import (
    Values,
    array,
    bigint,
    bigints,
    entry_of,
    label_of,
    lock_of,
    marker_of,
    record_of,
    row_of,
    texts,
)
from .server import PostgresServer
from .sql import EDITS, Statements

__all__ = ["YES", "PostgresRows", "is_watched"]

YES: Final = b"\1"
"""How the server says so."""

Asked: TypeAlias = tuple[Statement, Values]
"""A statement and its parameters."""

_BYTES: Final = b'{"$bytes":'

WIDEST: Final = 65
"""How many bits an increment has at most that leads from one 64-bit integer to another."""

LONGEST: Final = 8000
"""How many bytes a notification has at most; an empty one says that any record may have changed."""


class PostgresRows(PostgresServer):
    """The rows of a schema: how one is changed, and who is told."""

    @cached_property
    def _statements(self) -> Statements:
        return Statements(self.schema)

    @cached_property
    def _channel(self) -> bytes:
        return f"sessiontree_{self.schema}".encode()

    _is_watched = False
    """Whether somebody watched when this object wrote last."""

    _is_mute = False
    """Whether those who watch could not be told last, which the log says once."""

    def _apply(self, connection: Connection, handle: bytes, proof: bytes, changes: Changes) -> Version:
        """Make all the changes or none."""
        asked = self._asked(handle, proof, changes)
        version = None if asked is None else _answered(self._write(connection, *asked, handle), changes)
        return self._apply_slowly(connection, handle, proof, changes) if version is None else version

    def _apply_all(
        self, connection: Connection, writes: Sequence[tuple[bytes, bytes, Changes]]
    ) -> list[Version | Exception]:
        """Make changes to different records, in one trip if none of them needs to be looked at."""
        until = seconds() + self._timeout
        asked = [self._asked_or_why_not(*write) for write in writes]
        handles = [write[0] for write, each in zip(writes, asked, strict=True) if isinstance(each, tuple)]
        results = iter(self._write_all(connection, [each for each in asked if isinstance(each, tuple)], handles))
        return [
            self._settled(connection, until, next(results) if isinstance(each, tuple) else each, *write)
            for write, each in zip(writes, asked, strict=True)
        ]

    def _write(self, connection: Connection, statement: Statement, values: Values, handle: bytes) -> Result:
        """Run a statement that changes a record, and tell those who watch."""
        if self._is_watched and self._prepared:
            [result] = self._write_all(connection, [(statement, values)], [handle])
            if isinstance(result, Error):
                raise result
            return result
        result = connection.run(statement, values)
        self._is_watched = is_watched(result)
        if self._is_watched:
            self._tell(connection, [handle])
        return result

    def _write_all(self, connection: Connection, asked: Sequence[Asked], handles: list[bytes]) -> list[Result | Error]:
        """Run statements that each change a record; who watched last time is told in the same trip, whatever came."""
        is_told = self._is_watched  # read once: other threads write it while this one waits
        if is_told:
            *results, told = connection.run_many([*asked, self._notification(handles)])
            is_told = not isinstance(told, Error)
            self._is_mute = self._is_mute and not is_told
        else:
            results = connection.run_many(asked)
        seen = [is_watched(result) for result in results if not isinstance(result, Error) and result.ntuples]
        if seen:
            self._is_watched = any(seen)
            if any(seen) and not is_told:
                self._tell(connection, handles)
        return results

    def _asked_or_why_not(self, *write: *tuple[bytes, bytes, Changes]) -> Asked | TypeError | None:
        try:
            return self._asked(*write)
        except TypeError as error:
            return error

    def _settled(
        self,
        connection: Connection,
        until: float,
        result: Result | Exception | None,
        *write: *tuple[bytes, bytes, Changes],
    ) -> Version | Exception:
        """Return what came of one of several; nothing may be repeated here, for the others have been made."""
        try:
            if isinstance(result, Error):
                self._recover(connection, result)
                result = None
            elif isinstance(result, Exception):
                return result
            version = None if result is None else _answered(result, write[2])
            if version is None and seconds() > until:
                raise TimeoutError  # all of them together have one
            return self._apply_slowly(connection, *write) if version is None else version
        except FAILURES as error:
            self._settle(connection, error)
            return self._ours(error)
        except (SessionError, TypeError, ValueError) as error:
            self._settle(connection, error)
            return error

    def _asked(self, handle: bytes, proof: bytes, changes: Changes) -> Asked | None:
        """Return what to ask the server to do, the plain way if that will do; None for what is to be looked at."""
        now = self._now()
        try:
            if is_plain(changes):
                return self._asked_plainly(handle, proof, changes, now)
            if is_exchange(changes):
                return self._asked_to_exchange(handle, proof, changes, now)
            return None if is_odd(changes) else self._asked_of_function(handle, proof, changes, now)
        except struct_error:  # a number of more than 64 bits
            return None

    def _asked_of_function(self, handle: bytes, proof: bytes, changes: Changes, now: int) -> Asked:
        edits, adds, expects = list(_edits(changes)), changes.adds, changes.expects
        names, values = self._indexed(changes.labels)
        return self._statements.apply, (
            handle, proof, bigint(now), bigint(self.largest), bigint(not changes.is_touch),
            array(marker for marker, _, _ in edits), array(entry for _, entry, _ in edits),
            array(time for _, _, time in edits),
            array(map(marker_of, adds)), texts(str(number).encode() for number in adds.values()),
            array(map(marker_of, expects)),
            array(None if content is None else entry_of(key, content) for key, content in expects.items()),
            bigint(now if changes.seen is None else changes.seen), _number(changes.own), _number(changes.idle),
            changes.proof, bigint(changes.grace), _number(changes.authenticated),
            array(map(marker_of, changes.labels)), array(label_entries(changes.labels)),
            texts(names), texts(values), self._locks(names, values),
        )  # fmt: skip

    def _asked_plainly(self, handle: bytes, proof: bytes, changes: Changes, now: int) -> Asked:
        sets, seen, own, idle = changes.sets, changes.seen, changes.own, changes.idle
        values: list[bytes | None] = [
            handle, proof, bigint(now), bigint(now if seen is None else seen), None if own is None else bigint(own),
            None if idle is None else bigint(idle),
        ]  # fmt: skip
        if not (sets or changes.deletes):
            return self._statements.touch, values
        room = self.largest
        values.append(None)
        for marker, entry, _ in _edits(changes):
            room -= len(entry)
            values += (marker, entry)
        values[6] = bigint(room)
        return self._statements.data[(len(values) - 7) // 2], values

    def _asked_to_exchange(self, handle: bytes, proof: bytes, changes: Changes, now: int) -> Asked:
        [(key, expected)], [(marker, entry, _)] = changes.expects.items(), _edits(changes)
        seen, own, idle = changes.seen, changes.own, changes.idle
        return self._statements.exchange, (
            handle, proof, bigint(now), bigint(now if seen is None else seen), _number(own), _number(idle),
            bigint(self.largest - len(entry)), marker, entry, None if expected is None else entry_of(key, expected),
        )  # fmt: skip

    def _apply_slowly(self, connection: Connection, handle: bytes, proof: bytes, changes: Changes) -> Version:
        """Change the record while nobody else can, or raise what hinders it."""
        statements = self._statements
        connection.run(statements.begin)
        if changes.labels:
            connection.run(statements.lock, [self._locks(*self._indexed(changes.labels))])
        result, now = connection.run(statements.load_locked, [handle]), self._now()
        old = record_of(result, 0, handle.decode()) if result.ntuples else None
        if old is None:
            raise gone()
        if not old.is_live(now):
            connection.run(statements.delete, [handle])
            connection.run(statements.commit)
            raise gone()
        record, sums = changed(old, proof, changes, now, self.largest)
        if changes.proof is not None:
            connection.run(statements.durably)
        result = connection.run(statements.replace, row_of(record))
        self._relabel_row(connection, handle, old, record)
        connection.run(statements.commit)
        if is_watched(result):
            self._tell(connection, [handle])
        return Version.of(record.version, sums)

    def _relabel_row(self, connection: Connection, handle: bytes, old: Record, record: Record) -> None:
        for name, _, value in label_changes(old, record):
            connection.run(self._statements.unlabel, (handle, _indexable(name)))
            if value is not None:
                connection.run(self._statements.label, (handle, _indexable(name), _indexable(value)))

    def _indexed(self, labels: Mapping[str, str | None]) -> tuple[list[bytes], list[bytes | None]]:
        """Return names and values of labels as the index has them."""
        values = [None if value is None else _indexable(value) for value in labels.values()]
        return [_indexable(name) for name in labels], values

    def _locks(self, names: list[bytes], values: list[bytes | None]) -> bytes:
        """Return the locks to take before labels are given, in the order that everybody keeps."""
        pairs = zip(names, values, strict=True)
        return bigints(sorted({lock_of(self.schema, name, value) for name, value in pairs if value is not None}))

    def _tell(self, connection: Connection, handles: list[bytes]) -> None:
        """Tell those who watch of what was done.

        This is a transaction of its own: within one that writes, NOTIFY holds a lock of the whole server's until the
        disk has everything. If it fails, the change is made all the same, and watchers are told too little, as when
        this process is killed just now: caches are bounded by their ``max_staleness``.
        """
        notification = self._notification(handles)
        try:
            try:
                connection.run(*notification)
            except Error as error:
                self._repeated(error, connection, Connection.run, *notification)
        except FAILURES as error:
            self._settle(connection, error)
            if not self._is_mute:
                self._is_mute = True
                logger().warning(
                    "Who watches the schema %r is not told for now of what changes: %r", self.schema, error
                )
        else:
            self._is_mute = False

    def _notification(self, handles: list[bytes]) -> Asked:
        told = [handle if len(handle) < LONGEST else b"" for handle in handles]
        return self._statements.notify, (self._channel, texts(told))


def is_plain(changes: Changes) -> bool:
    """Tell whether an UPDATE alone can do it: keys without deadlines are set or removed, and deadlines moved."""
    return (
        changes.proof is None
        and changes.authenticated is None
        and not (changes.adds or changes.expects or changes.labels)
        and len(changes.sets) + len(changes.deletes) <= EDITS
        and not any(deadline for _, deadline in changes.sets.values())
    )


def is_exchange(changes: Changes) -> bool:
    """Tell whether an UPDATE alone can do it: one key gets a content for the expected one and keeps its deadline."""
    return (
        len(changes.sets) == 1
        and all(deadline == KEEP for _, deadline in changes.sets.values())
        and changes.expects.keys() == changes.sets.keys()
        and changes.proof is None
        and changes.authenticated is None
        and not (changes.deletes or changes.adds or changes.labels)
        and not any(map(_is_ambiguous, changes.expects.values()))
    )


def is_odd(changes: Changes) -> bool:
    """Tell whether the function on the server would see this otherwise than ``records.changed``."""
    return bool(
        (changes.proof is not None and len(changes.proof) != PROOF_BYTES)
        or any(type(number) is not int or number.bit_length() > WIDEST for number in changes.adds.values())
        or any(map(_is_ambiguous, changes.expects.values()))
        or any(deadline == KEEP for _, deadline in changes.sets.values())
    )


def _is_ambiguous(content: Content | None) -> bool:
    """Tell whether a content is, as JSON, what bytes lie there as: the two are not the same."""
    return content.__class__ is Json and content.startswith(_BYTES)


def is_watched(result: Result) -> bool:
    """Tell whether somebody watches what a statement has changed."""
    return bool(result.ntuples) and result.get_value(0, 1) == YES


def _answered(result: Result, changes: Changes) -> Version | None:
    """Return the new version, or None if nothing was changed."""
    number = result.get_value(0, 0) if result.ntuples else None
    if number is None:
        return None
    if not changes.adds:
        return Version.from_bytes(number)
    sums = map(int, (result.get_value(0, 2) or b"").split(b","))
    return Version.of(int.from_bytes(number), dict(zip(changes.adds, sums, strict=True)))


def label_entries(labels: Mapping[str, str | None]) -> list[bytes]:
    """Return what the labels of a record are edited to; nothing removes one."""
    return [b"" if value is None else entry_of(name, Json(orjson.dumps(value))) for name, value in labels.items()]


def _edits(changes: Changes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield marker, entry and entry of the deadline of each key that is set or removed; a set wins."""
    for key in dict.fromkeys(changes.deletes):
        if key not in changes.sets:
            yield marker_of(key), b"", b""
    for key, (content, deadline) in changes.sets.items():
        marker = marker_of(key)
        yield marker, entry_of(key, content), b"%b%d,\t" % (marker[1:], deadline) if deadline else b""


def _indexable(text: str) -> bytes:
    """Return what the index of labels has for a name or a value; raise TypeError for half a surrogate pair."""
    written = label_of(text)
    if written is None:
        raise TypeError("A label is text that UTF-8 can write: half a surrogate pair is none.")
    return written


def _number(number: int | None) -> bytes | None:
    return None if number is None else bigint(number)
