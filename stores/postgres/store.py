"""A store in PostgreSQL, through psycopg 3: durable, shared by any number of machines, one round trip for each verb.

One row is one session. What a request does, changing a few keys and moving a deadline, is one UPDATE that names the
row by its handle, its proof and that it lives; every other change is one call of a function that ``create_schema()``
made. Either way the server edits the row where it lies, and what travels is what changes: see ``apply``.

Each statement is a transaction of its own at READ COMMITTED, and that is enough, for what one writes never follows from
what another one read: an UPDATE that waited for a row looks at its new version again, by the same conditions, and the
functions lock the row before they look at it.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Final, Self

import orjson
import psycopg

from ...clock import FOREVER, Duration, milliseconds
from ...errors import NotImplementedByStore, SessionError, StoreError, StoreUnavailable, UsageError
from ...records import Changes, Json, Page, Record, Version, check_size, gone, narrowed, taken
from ..announcing import Announcing, OnChange, Stop, both
from ..protocol import PAGE, SWEEP_MARGIN_MS, Write
from .apply import YES, PostgresRows, is_watched
from .connection import FAILURES, Connection, Result, Statement, seconds
from .rows import (
    Values,
    bigint,
    bigints,
    entry_of,
    is_text,
    label_of,
    lock_of,
    marker_of,
    record_of,
    row_of,
    texts,
)
from .server import checked, connector, pool_of
from .watch import Feed, Source, tidied

__all__ = ["PostgresStore"]

BATCH: Final = 500
"""How many rows one statement touches at most, so that no writer waits long."""

LONGEST: Final = 2000
"""How many bytes a handle may have, which the index takes a third of a page for."""

_FIRST: Final[bytes | None] = b"\0" * 8
"""The number in front of every label's."""


class PostgresStore(PostgresRows, Announcing):
    """Keeps records in a schema of a PostgreSQL database, which ``create_schema()`` creates."""

    _feed: Feed | None = None
    _is_child = False

    @classmethod
    def from_url(
        cls, url: str, *, connections: int = 16, timeout: Duration = 0.5, prepared: bool = True, **settings: Any
    ) -> Self:
        """Return a store with a pool of its own, of at most so many connections, which its first verb opens."""
        pool = pool_of(url, checked(timeout), connections, is_direct=prepared)
        store = cls(pool, timeout=timeout, prepared=prepared, **settings)
        store._owns_pool = True
        return store

    @cached_property
    def _source(self) -> Source:
        return Source(connector(self._pool, self._listen_url), self.schema, self._channel.decode(), self._timeout)

    # -- the verbs -------------------------------------------------------------------------

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record | None:
        """Return the live record or None."""
        if not (handle.isalnum() or is_text(handle)):
            self._check_open()
            return None
        result = self._do(Connection.run, self._statements.load, (handle.encode(),))
        record = record_of(result, 0, handle) if result.ntuples else None
        if record is None:
            return None
        now = self._now()
        if not (now < record.absolute and now < record.own and now < record.idle):  # is_live(), without its frame
            self._remove_if_same(record)
            return None
        return record if keys is None else narrowed(record, keys)

    def load_many(self, handles: Sequence[str]) -> dict[str, Record]:
        """Return the live records among these, with one statement for each few hundred."""
        self._check_open()
        wanted = [handle for handle in dict.fromkeys(handles) if is_text(handle)]
        found: dict[str, Record] = {}
        for start in range(0, len(wanted), BATCH):
            chunk = [handle.encode() for handle in wanted[start : start + BATCH]]
            size = 1 << (len(chunk) - 1).bit_length()  # few different statements, so that they stay prepared
            chunk += chunk[-1:] * (size - len(chunk))
            result = self._do(Connection.run, self._statements.load_many(size), chunk)
            for row in range(result.ntuples):
                record = record_of(result, row)
                if record is None:
                    continue
                if record.is_live(self._now()):
                    found[record.handle] = record
                else:
                    self._remove_if_same(record)
        return {handle: found[handle] for handle in wanted if handle in found}

    def create(self, record: Record) -> None:
        """Insert the record; raise Conflict if its handle lives."""
        check_size(record.fields, self.largest)
        if not is_text(record.handle) or len(record.handle.encode()) > LONGEST:
            raise UsageError(f"A handle is at most {LONGEST} bytes of UTF-8 without NUL or half a surrogate pair.")
        try:
            self._do(self._create, record)
        finally:
            if self._listeners:
                self.announce(record.handle)

    def apply(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """Make all the changes or none."""
        try:
            if not (handle.isalnum() or is_text(handle)):
                self._check_open()
                raise gone()
            return self._do(self._apply, handle.encode(), proof, changes)
        finally:
            if self._listeners:
                self.announce(handle)

    def apply_many(self, writes: Sequence[Write]) -> list[Version | Exception]:
        """Do what as many calls of ``apply`` do, in one round trip if they are about different records."""
        self._check_open()
        handles = [handle for handle, _, _ in writes]
        try:
            if not self._prepared or len(set(handles)) < len(handles) or not is_text(*handles):
                return self._apply_each(writes)
            return self._do(self._apply_all, [(handle.encode(), proof, changes) for handle, proof, changes in writes])
        finally:
            self.announce_all(handles)

    def revoke(self, handle: str) -> bool:
        """End the session; return whether it was live."""
        ends = None
        try:
            self._check_open()
            if is_text(handle):
                ends = self._do(self._revoke, handle.encode())
        finally:
            if self._listeners:
                self.announce(handle)
        return ends is not None and int.from_bytes(ends, signed=True) > self._now()

    def find(self, label: str, value: str, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records that have the label, in the order in which they got it."""
        self._check_open()
        pair = label_of(label), label_of(value)
        if pair[0] is None or pair[1] is None:
            return Page([], None)
        return self._page(self._statements.find, pair, bigint(max(0, min(int(after or 0), FOREVER))), limit)

    def count(self, label: str, *values: str) -> int:
        """Return how many live records have the label with any of these values."""
        self._check_open()
        name, asked = label_of(label), {written for written in map(label_of, values) if written is not None}
        if name is None or not asked:
            return 0
        result = self._do(Connection.run, self._statements.count, (name, texts(asked), bigint(self._now())))
        return int.from_bytes(result.get_value(0, 0) or b"")

    def relabel(self, label: str, old: str, new: str) -> int:
        """Give every live record of the old value the new one, a batch at a time."""
        self._check_open()
        name, before, after = label_of(label), label_of(old), label_of(new)
        if name is None or before is None:
            return 0
        [old_entry, new_entry] = (entry_of(label, Json(orjson.dumps(value))) for value in (old, new))
        moved, start = 0, _FIRST
        while start is not None:
            values = (
                name, before, after, marker_of(label), old_entry, new_entry, bigint(self._now()), start, bigint(BATCH),
                bigints([lock_of(self.schema, name, after or b"")]),
            )  # fmt: skip
            start, rows = self._batch(self._statements.relabel, values)
            moved += len(rows)
        return moved

    def revoke_where(self, label: str, value: str) -> int:
        """Revoke every record that has the label, a batch at a time."""
        self._check_open()
        name, written = label_of(label), label_of(value)
        if name is None or written is None:
            return 0
        live, now, start = 0, self._now(), _FIRST
        while start is not None:
            start, rows = self._batch(self._statements.revoke_where, (name, written, start, bigint(BATCH)))
            live += sum(int.from_bytes(row[3], signed=True) > now for row in rows)
        return live

    def scan(self, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records from behind a handle on, in the order of their handles."""
        return self._page(self._statements.scan, (), (after or "").encode(), limit)

    def sweep(self, limit: int = 1000) -> int:
        """Remove records that expired an hour ago or more, the earliest first, and watchers that are gone."""
        self._check_open()
        self._do(Connection.run, tidied(self._source))
        horizon, removed = bigint(self._now() - SWEEP_MARGIN_MS), 0
        while removed < limit:
            size = min(BATCH, limit - removed)
            swept = self._do(self._removed, self._statements.sweep, (horizon, bigint(size)))
            self.announce_all(swept)
            removed += len(swept)
            if len(swept) < size:
                break
        return removed

    def sweep_idle(self, older_than: Duration, limit: int = 1000) -> int:
        """Remove records that were last seen longer ago than this many seconds.

        When a session was seen is in no index, for every request would have to write to it: this goes through all.
        """
        self._check_open()
        horizon, removed, start = self._now() - milliseconds(older_than), 0, b""
        while removed < limit:
            rows = _rows(self._do(Connection.run, self._statements.page, (start, bigint(BATCH))))
            doomed = [row[0] for row in rows if int.from_bytes(row[1], signed=True) < horizon][: limit - removed]
            if doomed:
                statement = self._statements.sweep_idle
                told: Sequence[str | None] = (None,)  # who it would have been is not known, if this fails
                try:
                    told = self._do(self._removed, statement, (texts(doomed), bigint(horizon)))
                finally:
                    self.announce_all(told)
                removed += len(told)
            if len(rows) < BATCH:
                break
            start = rows[-1][0]
        return removed

    def watch(self, on_change: OnChange) -> Stop:
        """Call ``on_change(handle)`` for each change: of this object before its verb returns, of others soon after.

        A daemon thread with a connection of its own hears what others changed, and again what this object did; it is
        one for all who watch, and ends when the last of them stops or the store closes. A forked process gets one when
        it first uses the store, and then ``on_change(None)`` comes first. Raises NotImplementedByStore for a pooler in
        between, which LISTEN cannot go through, if no ``listen_url`` was given.
        """
        self._check_open()
        if not self._prepared and self._listen_url is None:
            raise NotImplementedByStore("LISTEN needs the server itself: pass listen_url= beside prepared=False.")
        feed = self.__dict__.setdefault("_feed", Feed(self, self._source))  # in one step: two threads get one feed
        try:
            stop_others = feed.watch(on_change)
        except FAILURES as error:
            raise self._ours(error) from error
        return both(self.listen(on_change), stop_others)

    def close(self) -> None:
        """Close the connections, if ``from_url`` made them, and tell who watches that it is over."""
        super().close()
        if self._feed is not None:
            self._feed.end()
        self._listeners.clear()

    def _leave_to_parent(self) -> None:
        self._is_child = True
        if self._feed is not None:
            self._feed.leave_to_parent()
        super()._leave_to_parent()  # last, for then it is done

    def _taken_driver(self) -> psycopg.Connection[Any]:
        if self._is_child and self._feed is not None:
            self._is_child = False
            self._feed.begin_process()
        return super()._taken_driver()

    # -- what verbs do on a connection -----------------------------------------------------

    def _apply_each(self, writes: Sequence[Write]) -> list[Version | Exception]:
        """Make changes one after the other; when the time is over, an outage is everybody's."""
        until, found = seconds() + self._timeout, []
        outcome: Version | Exception | None = None
        for handle, proof, changes in writes:
            if not isinstance(outcome, StoreUnavailable) or seconds() < until:
                outcome = self._tried(handle, proof, changes)
            found.append(outcome)
        return found

    def _tried(self, handle: str, proof: bytes, changes: Changes) -> Version | Exception:
        try:
            return self._do(self._apply, handle.encode(), proof, changes) if is_text(handle) else gone()
        except (SessionError, TypeError, ValueError) as error:
            return error

    def _create(self, connection: Connection, record: Record) -> None:
        names, values = self._indexed(record.label)
        row = (*row_of(record), bigint(self._now()), texts(names), texts(values), self._locks(names, values))
        result = self._write(connection, self._statements.create, row, record.handle.encode())
        if result.get_value(0, 0) != YES:
            raise taken()

    def _revoke(self, connection: Connection, handle: bytes) -> bytes | None:
        return self._write(connection, self._statements.revoke, (handle,), handle).get_value(0, 0)

    def _removed(self, connection: Connection, statement: Statement, values: Values) -> list[str]:
        """Return the handles of what a statement removed."""
        result = connection.run(statement, values)
        handles = [result.get_value(row, 0) or b"" for row in range(result.ntuples)]
        if is_watched(result):
            self._tell(connection, handles)
        return [handle.decode() for handle in handles]

    def _batch(self, statement: Statement, values: Values) -> tuple[bytes | None, list[list[Any]]]:
        """Do one batch of many, and return where the next one begins and what was changed."""
        told: Sequence[str | None] = (None,)  # who it would have been is not known, if this fails
        try:
            start, rows = self._do(self._batched, statement, values)
            told = [row[2].decode() for row in rows]
        finally:
            self.announce_all(told)
        return start, rows

    def _batched(
        self, connection: Connection, statement: Statement, values: Values
    ) -> tuple[bytes | None, list[list[Any]]]:
        result = connection.run(statement, values)
        rows = [row for row in _rows(result) if row[2] is not None]
        if rows and is_watched(result):
            self._tell(connection, [row[2] for row in rows])
        return result.get_value(0, 0), rows

    def _page(self, statement: Statement, key: tuple[bytes | None, ...], start: bytes, limit: int) -> Page:
        page: list[Record] = []
        while True:
            asked = max(1, min(BATCH, limit - len(page) + 1))
            result = self._do(Connection.run, statement, (*key, start, bigint(self._now()), bigint(asked)))
            for row in range(result.ntuples):
                if len(page) >= limit:
                    return Page(page, _cursor(start, is_number=bool(key)))
                record, start = record_of(result, row), result.get_value(row, 7 if key else 6) or b""
                if record is not None:
                    page.append(record)
            if result.ntuples < asked:
                return Page(page, None)

    def _remove_if_same(self, record: Record) -> None:
        """Remove what was found expired, unless it was prolonged since, if that can be done at all."""
        numbers = map(bigint, (record.version, record.absolute, record.own, record.idle))
        values = (record.handle.encode(), *numbers, record.proof)
        with suppress(StoreError):
            self._do(self._removed, self._statements.delete_same, values)
        self.announce_all((record.handle,))


def _rows(result: Result) -> list[list[Any]]:
    return [[result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)]


def _cursor(start: bytes, *, is_number: bool) -> str:
    return str(int.from_bytes(start)) if is_number else start.decode()
