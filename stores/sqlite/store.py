"""A store in one SQLite file: durable, shared by all processes of one machine, no server.

One row is one session: its handle, when it ends, and the packed record, for one column is read in two thirds of the
time of seventeen. Readers never wait; writers wait for each other, at most ``timeout`` seconds. A change of fields
alone, or of deadlines, is one UPDATE that compares the whole record with what this connection saw last, as it did a
moment ago when the request looked: half the cost of BEGIN, SELECT, UPDATE and COMMIT, which is what happens if it is
not the same. Whatever a power cut takes of the last moments, it never takes a revocation or a renewal back: these
alone wait for the disk. How other processes hear of changes is told in ``watch``.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, TypeVarTuple

from ...clock import Duration, milliseconds
from ...errors import SessionError, StoreError, UsageError
from ...records import (
    Changes,
    Page,
    Record,
    Version,
    changed,
    changed_packed,
    check_size,
    gone,
    label_changes,
    narrowed,
    pack,
    taken,
    unpack,
)
from ..announcing import Announcing, OnChange, Stop, both
from ..protocol import PAGE, SWEEP_MARGIN_MS
from .connection import Connection, every_row
from .file import SqliteFile
from .watch import Feed, renewed, tidied

__all__ = ["SqliteStore"]

BATCH: Final = 500
"""How many rows one transaction touches at most, so that no writer waits long."""

SWEPT: Final = 100
"""How many rows a sweep removes in one transaction, each from two trees: writers wait for it."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# The plus keeps the planner from walking through the index of deadlines, which is there to find what has passed.
_LIVE: Final = "+ends > ?"
_LOAD: Final = "SELECT record FROM sessions WHERE handle = ?"
_LOAD_MANY: Final = "SELECT handle, record FROM sessions WHERE handle IN (%s)"
_INSERT: Final = "INSERT INTO sessions VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_UPDATE: Final = "UPDATE sessions SET ends = ?, record = ? WHERE handle = ?"
_SWAP: Final = "UPDATE sessions SET record = ? WHERE handle = ? AND record = ?"
_SWAP_ALL: Final = "UPDATE sessions SET ends = ?, record = ? WHERE handle = ? AND record = ?"
_DELETE: Final = "DELETE FROM sessions WHERE handle = ?"
_DELETE_SAME: Final = _DELETE + " AND record = ?"
_DELETE_DEAD: Final = _DELETE + " AND ends <= ?"
_REVOKE: Final = _DELETE + " RETURNING ends"
_REVOKE_WHERE: Final = """DELETE FROM sessions WHERE handle IN (SELECT handle FROM labels CROSS JOIN sessions
    USING (handle) WHERE name = ? AND value = ? LIMIT ?) RETURNING ends, handle"""
_LABEL: Final = "INSERT INTO labels (name, value, handle) VALUES (?, ?, ?)"
_UNLABEL: Final = "DELETE FROM labels WHERE handle = ? AND name = ?"
_LABELLED: Final = f"labels CROSS JOIN sessions USING (handle) WHERE name = ? AND value = ? AND seq > ? AND {_LIVE}"
_FIND: Final = f"SELECT seq, handle, record FROM {_LABELLED} ORDER BY seq LIMIT ?"  # noqa: S608 - our own names
_COUNT: Final = f"""SELECT count(*) FROM labels CROSS JOIN sessions USING (handle)
    WHERE name = ? AND value IN (%s) AND {_LIVE}"""  # noqa: S608 - as above
_SCAN: Final = f"SELECT handle, handle, record FROM sessions WHERE handle > ? AND {_LIVE} ORDER BY handle LIMIT ?"  # noqa: S608
_SWEEP: Final = """DELETE FROM sessions WHERE handle IN (SELECT handle FROM sessions
    WHERE ends <= ? ORDER BY ends LIMIT ?) RETURNING handle"""
_ALL: Final = "SELECT handle, record FROM sessions WHERE handle > ? ORDER BY handle LIMIT ?"


class SqliteStore(SqliteFile, Announcing):
    """Keeps records in a SQLite file, which it makes, readable by its owner alone, if there is none."""

    _feed: Feed | None = None

    # -- the verbs -------------------------------------------------------------------------

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record | None:
        """Return the live record or None."""
        try:
            raw = self._do(self._load, handle)
        except UnicodeEncodeError:  # half a surrogate pair, which no text in a database can be
            return None
        record = None if raw is None else unpack(handle, raw)
        if raw is None or record is None:
            return None
        now = self._now()
        if not (now < record.absolute and now < record.own and now < record.idle):  # is_live(), without its frame
            self._remove_if_same(handle, raw)
            return None
        return record if keys is None else narrowed(record, keys)

    def load_many(self, handles: Sequence[str]) -> dict[str, Record]:
        """Return the live records among these, with one statement for each few hundred."""
        wanted = [handle for handle in dict.fromkeys(handles) if _is_text(handle)]
        found: dict[str, Record] = {}
        for start in range(0, len(wanted), BATCH):
            chunk = _padded(wanted[start : start + BATCH])
            for handle, raw in self._do(every_row, _LOAD_MANY % _marks(chunk), chunk):
                record = unpack(handle, raw)
                if record is None:
                    continue
                if record.is_live(self._now()):
                    found[handle] = record
                else:
                    self._remove_if_same(handle, raw)
        return {handle: found[handle] for handle in wanted if handle in found}

    def create(self, record: Record) -> None:
        """Insert the record; raise Conflict if its handle lives."""
        check_size(record.fields, self.largest)
        if not _is_text(record.handle):
            raise UsageError("A handle is text that UTF-8 can write: half a surrogate pair is none.")
        row = (record.handle, record.ends, pack(record))
        try:
            if record.labels or not self._do(_count, _INSERT, row):
                self._do(self._create, record, row)
        finally:
            if self._listeners:
                self.announce(record.handle)

    def apply(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """Make all the changes or none."""
        try:
            if changes.proof is None:
                return self._do(self._apply, handle, proof, changes)
            return self._do(_durably, self._apply, handle, proof, changes)
        except UnicodeEncodeError as error:  # half a surrogate pair: there is no such session
            raise gone() from error
        finally:
            if self._listeners:
                self.announce(handle)

    def revoke(self, handle: str) -> bool:
        """End the session; return whether it was live."""
        try:
            row = self._do(_durably, _one, _REVOKE, (handle,)) if _is_text(handle) else None
        finally:
            if self._listeners:
                self.announce(handle)
        return row is not None and _is_later(row, self._now())

    def find(self, label: str, value: str, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records that have the label, in the order in which they got it."""
        if not _is_text(label, value):
            self._check_open()
            return Page([], None)
        return self._page(_FIND, (label, value), int(after or 0), limit)

    def count(self, label: str, *values: str) -> int:
        """Return how many live records have the label with any of these values."""
        self._check_open()
        asked = [value for value in dict.fromkeys(values) if _is_text(label, value)]
        return self._do(_counted, label, asked, self._now())

    def relabel(self, label: str, old: str, new: str) -> int:
        """Give every live record of the old value the new one, a batch at a time."""
        self._check_open()
        moved, start = 0, 0 if _is_text(label, old) else None
        while start is not None:
            told: Sequence[str | None] = (None,)  # who it would have been is not known, if this fails
            try:
                told, start = self._do(self._relabel, label, old, new, start)
            finally:
                self.announce_all(told)
            moved += len(told)
        return moved

    def revoke_where(self, label: str, value: str) -> int:
        """Revoke every record that has the label, a batch at a time."""
        self._check_open()
        live, now, more = 0, self._now(), _is_text(label, value)
        while more:
            told: Sequence[str | None] = (None,)  # as above
            try:
                rows = self._do(_durably, every_row, _REVOKE_WHERE, (label, value, BATCH))
                told = [handle for _, handle in rows]
            finally:
                self.announce_all(told)
            live += sum(_is_later(row, now) for row in rows)
            more = len(rows) == BATCH
        return live

    def scan(self, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records from behind a handle on, in the order of their handles."""
        return self._page(_SCAN, (), after or "", limit)

    def sweep(self, limit: int = 1000) -> int:
        """Remove records that expired an hour ago or more, the earliest first."""
        self._check_open()
        horizon, removed = self._now() - SWEEP_MARGIN_MS, 0
        while removed < limit:
            batch = min(SWEPT, limit - removed)
            rows = self._do(every_row, _SWEEP, (horizon, batch))
            self.announce_all(handle for (handle,) in rows)
            removed += len(rows)
            if len(rows) < batch:
                break
        return removed

    def sweep_idle(self, older_than: Duration, limit: int = 1000) -> int:
        """Remove records that were last seen longer ago than this many seconds.

        When a session was seen is in no index, for every request would have to write to it: this goes through all.
        """
        self._check_open()
        horizon, removed, start = self._now() - milliseconds(older_than), 0, ""
        while removed < limit:
            rows = self._do(every_row, _ALL, (start, BATCH))
            doomed = [(handle, raw) for handle, raw in rows if _was_seen(raw, handle) < horizon][: limit - removed]
            if doomed:
                try:
                    removed += self._do(_many, _DELETE_SAME, doomed)
                finally:
                    self.announce_all(handle for handle, _ in doomed)
            if len(rows) < BATCH:
                break
            start = rows[-1][0]
        return removed

    def watch(self, on_change: OnChange) -> Stop:
        """Call ``on_change(handle)`` for each change: of this object before its verb returns, of others soon after.

        A daemon thread reads what others changed, and again what this object did; it is one for all who watch, and
        ends when the last of them stops or the store closes. A forked process gets one when it first uses the store,
        and then ``on_change(None)`` comes first.
        """
        self._check_open()
        feed = self.__dict__.setdefault("_feed", Feed(self, self._uri))  # in one step: two threads get one feed
        stop_others = feed.watch(on_change, self._do(renewed))
        return both(self.listen(on_change), stop_others)

    def close(self) -> None:
        """Close every connection, those in use with the verb that uses them, and tell who watches that it is over."""
        super().close()
        if self._feed is not None:
            self._feed.end()
        self._listeners.clear()

    def _prepare(self, connection: Connection) -> None:
        super()._prepare(connection)
        try:
            tidied(connection)
        except sqlite3.Error:  # somebody else writes, or nobody may: there will be another time
            if connection.driver.in_transaction:
                connection.driver.rollback()

    def _leave_to_parent(self) -> None:
        super()._leave_to_parent()
        if self._feed is not None:
            self._feed.begin_process()

    # -- what verbs do on a connection -----------------------------------------------------

    def _load(self, connection: Connection, handle: str) -> bytes | None:
        row = connection.cursor.execute(_LOAD, (handle,)).fetchone()
        if row is None:
            return None
        connection.last = handle, row[0]
        return row[0]  # type: ignore[no-any-return]

    def _swap(self, connection: Connection, handle: str, proof: bytes, changes: Changes) -> Version | None:
        """Change the record in one statement, if it still is what this connection saw last; return None if it is not.

        What the change raises on a record that may be outdated does not count.
        """
        if connection.last[0] != handle and self._load(connection, handle) is None:
            raise gone()
        raw = connection.last[1]
        now = self._now()
        try:
            if changes.is_data:
                after, number, sums = changed_packed(raw, proof, changes, now, self.largest)
                swapped = connection.cursor.execute(_SWAP, (after, handle, raw)).rowcount
            else:
                record, sums = changed(_readable(handle, raw), proof, changes, now, self.largest)
                number, after = record.version, pack(record)
                swapped = connection.cursor.execute(_SWAP_ALL, (record.ends, after, handle, raw)).rowcount
        except (SessionError, TypeError):
            return None
        if not swapped:
            return None
        connection.last = handle, after
        return Version.of(number, sums)

    def _apply(self, connection: Connection, handle: str, proof: bytes, changes: Changes) -> Version:
        version = None if changes.labels else self._swap(connection, handle, proof, changes)
        return self._apply_locked(connection, handle, proof, changes) if version is None else version

    def _apply_locked(self, connection: Connection, handle: str, proof: bytes, changes: Changes) -> Version:
        """Change the record while nobody else can."""
        execute = connection.cursor.execute
        execute("BEGIN IMMEDIATE")
        raw, now = self._load(connection, handle), self._now()
        if raw is None:
            raise gone()
        old = _readable(handle, raw)
        if not old.is_live(now):
            execute(_DELETE, (handle,))
            execute("COMMIT")
        record, sums = changed(old, proof, changes, now, self.largest)
        _replace(connection, old, record)
        execute("COMMIT")
        return Version.of(record.version, sums)

    def _create(self, connection: Connection, record: Record, row: tuple[str, int, bytes]) -> None:
        cursor = connection.cursor
        cursor.execute("BEGIN IMMEDIATE")
        cursor.execute(_DELETE_DEAD, (record.handle, self._now()))
        if not _count(connection, _INSERT, row):
            raise taken()
        cursor.executemany(_LABEL, [(name, value, record.handle) for name, value in record.label.items()])
        cursor.execute("COMMIT")

    def _relabel(
        self, connection: Connection, label: str, old: str, new: str, start: int
    ) -> tuple[list[str], int | None]:
        """Relabel one batch; return its handles and where the next one begins, None if this was the last."""
        changes, now, moved = Changes(labels={label: new}), self._now(), list[str]()
        connection.cursor.execute("BEGIN IMMEDIATE")
        rows = every_row(connection, _FIND, (label, old, start, now, BATCH))
        for _, handle, raw in rows:
            record = unpack(handle, raw)
            if record is not None:
                _replace(connection, record, changed(record, record.proof, changes, now, self.largest)[0])
                moved.append(handle)
        connection.cursor.execute("COMMIT")
        return moved, rows[-1][0] if len(rows) == BATCH else None

    def _page(self, sql: str, key: tuple[str, ...], start: Any, limit: int) -> Page:
        page: list[Record] = []
        while True:
            asked = max(1, min(BATCH, limit - len(page) + 1))
            rows = self._do(every_row, sql, (*key, start, self._now(), asked))
            for row in rows:
                if len(page) >= limit:
                    return Page(page, str(start))
                record, start = unpack(row[1], row[2]), row[0]
                if record is not None:
                    page.append(record)
            if len(rows) < asked:
                return Page(page, None)

    def _remove_if_same(self, handle: str, raw: bytes) -> None:
        """Remove what was found expired, unless it was prolonged since, if that can be done at all."""
        with suppress(StoreError):
            self._do(_count, _DELETE_SAME, (handle, raw))
        self.announce_all((handle,))


def _one(connection: Connection, sql: str, arguments: Sequence[Any]) -> Any:
    return connection.cursor.execute(sql, arguments).fetchone()


def _count(connection: Connection, sql: str, arguments: Sequence[Any]) -> int:
    return connection.cursor.execute(sql, arguments).rowcount


def _many(connection: Connection, sql: str, arguments: Iterable[Sequence[Any]]) -> int:
    connection.cursor.execute("BEGIN IMMEDIATE")
    count = connection.cursor.executemany(sql, arguments).rowcount
    connection.cursor.execute("COMMIT")
    return count


def _counted(connection: Connection, label: str, values: list[str], now: int) -> int:
    """Return how many live records have the label at one moment, so that who is relabelled meanwhile counts once."""
    count = 0
    connection.cursor.execute("BEGIN")
    for start in range(0, len(values), BATCH):
        chunk = _padded(values[start : start + BATCH])
        count += _one(connection, _COUNT % _marks(chunk), (label, *chunk, now))[0]
    connection.cursor.execute("COMMIT")
    return count


def _padded(values: list[str]) -> list[str]:
    """Return as many values as a power of two, the last one again and again: few statements, which stay prepared."""
    return values + values[-1:] * ((1 << (len(values) - 1).bit_length()) - len(values))


def _marks(values: list[str]) -> str:
    return ", ".join("?" * len(values))


def _durably(connection: Connection, verb: Callable[[Connection, *_Ts], _T], *arguments: *_Ts) -> _T:
    """Run the verb so that it returns when the disk has what it wrote; after an error ``_settle`` goes on."""
    connection.cursor.execute("PRAGMA synchronous=FULL")
    result = verb(connection, *arguments)
    connection.cursor.execute("PRAGMA synchronous=NORMAL")
    return result


def _replace(connection: Connection, old: Record, record: Record) -> None:
    """Write the record in place of the old one, and what differs of its labels."""
    raw = pack(record)
    connection.cursor.execute(_UPDATE, (record.ends, raw, record.handle))
    connection.last = record.handle, raw
    for name, _, value in label_changes(old, record):
        connection.cursor.execute(_UNLABEL, (record.handle, name))
        if value is not None:
            connection.cursor.execute(_LABEL, (name, value, record.handle))


def _readable(handle: str, raw: bytes) -> Record:
    """Return the record; garbage is none: SessionGone."""
    record = unpack(handle, raw)
    if record is None:
        raise gone()
    return record


def _was_seen(raw: bytes, handle: str) -> int:
    """Return when a session was last seen; what is garbage was never."""
    record = unpack(handle, raw)
    return 0 if record is None else record.seen


def _is_later(row: tuple[Any, ...], now: int) -> bool:
    return isinstance(row[0], int) and row[0] > now


def _is_text(*texts: str) -> bool:
    """Tell whether these can lie in a database: half a surrogate pair cannot."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
