"""A store in one SQLite file: durable, shared by all processes of one machine, no server.

One row is one session, its columns in the order of a ``Record``. Readers never wait; writers wait for each other, at
most ``timeout`` seconds. A change to fields alone, which nearly every ``apply`` is, is one UPDATE that calls back into
``records.changed_fields`` while it holds the write lock: two thirds of the cost of BEGIN, SELECT, UPDATE and COMMIT,
and nobody's Python runs between its parts. Whatever a power cut takes of the last moments, it never takes a
revocation or a renewal back: these alone wait for the disk.

Connections lie in a pool and are used by one verb at a time, so no thread ever meets another's transaction.
"""

import os
import sqlite3
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from hmac import compare_digest
from os import getpid
from threading import Event
from typing import Any, Final, TypeVar, TypeVarTuple
from urllib.parse import quote
from weakref import WeakSet

from ..clock import Clock, Duration, SystemClock, milliseconds
from ..errors import (
    ConfigError,
    Conflict,
    NotImplementedByStore,
    SessionError,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from ..records import (
    FORM,
    LARGEST,
    NOTHING,
    Changes,
    Page,
    Record,
    Version,
    changed,
    changed_fields,
    check_size,
    check_writable,
    gone,
)
from .protocol import PAGE, SWEEP_MARGIN_MS

__all__ = ["SqliteStore"]

BATCH: Final = 500
"""How many rows one transaction touches at most, so that no writer waits long."""

APPLICATION: Final = int.from_bytes(b"sTre")
"""What the file's header says whose it is."""

_NO_CHANGES: Final = Changes()
_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# A rowid table, though its key is a text: WITHOUT ROWID, a row of 2 KB takes four times as long to write.
# The trigger makes every deletion one statement, and so one transaction.
STEPS: Final = (
    (
        """CREATE TABLE sessions (
            handle TEXT NOT NULL PRIMARY KEY, path TEXT NOT NULL, created INTEGER NOT NULL,
            absolute INTEGER NOT NULL, own INTEGER NOT NULL, idle INTEGER NOT NULL,
            proof BLOB NOT NULL, seen INTEGER NOT NULL, version INTEGER NOT NULL, authenticated INTEGER NOT NULL,
            previous BLOB NOT NULL, grace INTEGER NOT NULL, labels TEXT NOT NULL,
            agent TEXT NOT NULL, address TEXT NOT NULL, fields BLOB NOT NULL, form INTEGER NOT NULL)""",
        "CREATE INDEX sessions_ends ON sessions (min(absolute, own, idle))",
        """CREATE TABLE labels (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, value TEXT NOT NULL, handle TEXT NOT NULL)""",
        "CREATE INDEX labels_value ON labels (name, value, seq)",
        "CREATE UNIQUE INDEX labels_handle ON labels (handle, name)",
        """CREATE TRIGGER sessions_gone AFTER DELETE ON sessions
            BEGIN DELETE FROM labels WHERE handle = old.handle; END""",
    ),
)
"""What leads from each version of the schema to the next. A release may add steps, and never changes one."""

_COLUMNS: Final = ", ".join(f"sessions.{name}" for name in Record._fields)
_TYPES: Final = [*map(type, Record("", "", 0, 0, 0, 0, b"", 0))]
_MERGED_TYPES: Final = [int, bytes, int, int, int, int, bytes]
_CHANGING: Final = (
    "own", "idle", "proof", "seen", "version", "authenticated", "previous", "grace", "labels", "fields",
)  # fmt: skip

# The plus keeps the planner from walking through the index of deadlines, which is there to find what has passed.
_LIVE: Final = "+min(absolute, own, idle) > ?"
_LOAD: Final = f"SELECT {_COLUMNS} FROM sessions WHERE handle = ?"  # noqa: S608 - our own columns
_INSERT: Final = "INSERT INTO sessions VALUES (" + ", ".join("?" * len(_TYPES)) + ") ON CONFLICT DO NOTHING"  # noqa: S608
_UPDATE: Final = f"UPDATE sessions SET {' = ?, '.join(_CHANGING)} = ? WHERE handle = ?"  # noqa: S608 - as above
_MERGE: Final = """UPDATE sessions SET version = version + 1, seen = max(seen, ?),
    fields = sessiontree_merge(version, proof, absolute, own, idle, form, fields) WHERE handle = ?"""
_DELETE: Final = "DELETE FROM sessions WHERE handle = ?"
_DELETE_SAME: Final = _DELETE + " AND version = ? AND absolute = ? AND own = ? AND idle = ?"
_DELETE_DEAD: Final = _DELETE + " AND min(absolute, own, idle) <= ?"
_REVOKE: Final = _DELETE + " RETURNING min(absolute, own, idle)"
_REVOKE_WHERE: Final = """DELETE FROM sessions WHERE handle IN (SELECT handle FROM labels CROSS JOIN sessions
    USING (handle) WHERE name = ? AND value = ? LIMIT ?) RETURNING min(absolute, own, idle)"""
_LABEL: Final = "INSERT INTO labels (name, value, handle) VALUES (?, ?, ?)"
_UNLABEL: Final = "DELETE FROM labels WHERE handle = ? AND name = ?"
_LABELLED: Final = f"labels CROSS JOIN sessions USING (handle) WHERE name = ? AND value = ? AND seq > ? AND {_LIVE}"
_FIND: Final = f"SELECT seq, {_COLUMNS} FROM {_LABELLED} ORDER BY seq LIMIT ?"  # noqa: S608 - as above
_COUNT: Final = f"SELECT count(*) FROM {_LABELLED}"  # noqa: S608 - as above
_SCAN: Final = f"SELECT handle, {_COLUMNS} FROM sessions WHERE handle > ? AND {_LIVE} ORDER BY handle LIMIT ?"  # noqa: S608
_SWEEP: Final = """DELETE FROM sessions WHERE handle IN (SELECT handle FROM sessions
    WHERE min(absolute, own, idle) <= ? ORDER BY min(absolute, own, idle) LIMIT ?)"""
_SEEN: Final = "SELECT handle, seen FROM sessions WHERE handle > ? ORDER BY handle LIMIT ?"
_DELETE_UNSEEN: Final = _DELETE + " AND seen < ?"

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "is locked by another process: try again",
    sqlite3.SQLITE_LOCKED: "is locked: try again",
    sqlite3.SQLITE_FULL: "cannot grow: make room on its disk",
    sqlite3.SQLITE_IOERR: "cannot be read or written: look at its disk, which may be full or failing",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: look whether it exists and whether this user may write to its folder",
    sqlite3.SQLITE_READONLY: "cannot be written: let this user write to the file and its folder",
    sqlite3.SQLITE_PERM: "may not be used: give this user access to it",
}
_DAMAGE: Final = {
    sqlite3.SQLITE_CORRUPT: "is damaged: restore it from a backup",
    sqlite3.SQLITE_NOTADB: "is no SQLite database: restore it from a backup, or choose another path",
    sqlite3.SQLITE_ERROR: "lacks what this release put into it: restore it from a backup",
}


class _Merge:
    """What SQL calls ``sessiontree_merge``: the change under way on one connection, which it must not refer to."""

    __slots__ = ("_largest", "_now", "changes", "error", "expired", "proof", "sums", "version")

    def __init__(self, now: Callable[[], int], largest: int) -> None:
        self._now, self._largest = now, largest
        self.begin(b"", _NO_CHANGES)

    def begin(self, proof: bytes, changes: Changes) -> None:
        self.proof, self.changes = proof, changes
        self.version, self.sums = 0, NOTHING
        self.error: BaseException | None = None
        self.expired: tuple[int, ...] | None = None

    def run(self, *row: Any) -> bytes:
        """Return the new fields of the row that these belong to."""
        try:
            return self._merged(*row)
        except BaseException as error:
            self.error = error  # SQLite reports that something was raised, and drops what
            raise

    def _merged(self, *row: Any) -> bytes:
        if [*map(type, row)] != _MERGED_TYPES:
            raise gone()
        version, proof, absolute, own, idle, form, fields = row
        now = self._now()
        if form > FORM:
            _newer(form)
        if not (now < absolute and now < own and now < idle):
            self.expired = (version, absolute, own, idle)
            raise gone()
        if not compare_digest(proof, self.proof):
            raise gone()
        merged, self.sums = changed_fields(fields, self.changes, now, self._largest)
        self.version = version + 1
        return merged


class _Engine:
    """One connection, with what is prepared for it."""

    __slots__ = ("connection", "cursor", "merge")

    def __init__(self, connection: sqlite3.Connection, merge: _Merge) -> None:
        self.connection, self.merge = connection, merge
        self.cursor = connection.cursor()
        connection.create_function("sessiontree_merge", 7, merge.run)


class SqliteStore:
    """Keeps records in a SQLite file, which it makes, readable by its owner alone, if there is none."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        largest: int = LARGEST,
        timeout: float = 5.0,
    ) -> None:
        """Open the file; ``timeout`` is how many seconds a verb waits for other writers.

        Raises ConfigError for a path that cannot be right, a file that others may read or write, and a database of
        another application; StoreUnavailable and StoreCorrupt as every verb does.
        """
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
            raise ConfigError(f"A SqliteStore waits for a number of seconds, not {timeout!r}: pass for example 5.0.")
        self.clock: Clock = clock or SystemClock()
        self.largest = largest
        self.path = _admitted(path)
        self._uri = f"file:{quote(os.fsencode(self.path))}?mode=rw"
        self._timeout = timeout
        self._now = self.clock.now
        self._idle: list[_Engine] = []
        self._pid = getpid()
        self._closed = False
        try:
            self._do(self._prepare)
        except BaseException:
            self.close()
            raise
        _STORES.add(self)

    # -- the verbs -------------------------------------------------------------------------

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record | None:
        """Return the live record or None."""
        try:
            row = self._do(_one, _LOAD, (handle,))
        except UnicodeEncodeError:  # half a surrogate pair, which no text in a database can be
            return None
        record = _record(row)
        if record is None or not self._admits(record):
            return None
        if keys is None:
            return record
        try:
            return record.only(keys)
        except ValueError:
            return None

    def load_many(self, handles: Sequence[str]) -> dict[str, Record]:
        """Return the live records among these, with one statement for each few hundred."""
        wanted = [handle for handle in dict.fromkeys(handles) if _is_text(handle)]
        found: dict[str, Record] = {}
        for start in range(0, len(wanted), BATCH):
            chunk = wanted[start : start + BATCH]
            size = 1 << (len(chunk) - 1).bit_length()  # few different statements, so that they stay prepared
            sql = f"{_LOAD.removesuffix('= ?')}IN ({', '.join('?' * size)})"
            rows = self._do(_all, sql, (*chunk, *chunk[-1:] * (size - len(chunk))))
            found.update((record.handle, record) for record in map(_record, rows) if record is not None)
        return {handle: found[handle] for handle in wanted if handle in found and self._admits(found[handle])}

    def create(self, record: Record) -> None:
        """Insert the record; raise Conflict if its handle lives."""
        check_size(record.fields, self.largest)
        if not _is_text(record.handle):
            raise UsageError("A handle is text that UTF-8 can write: half a surrogate pair is none.")
        if record.labels or not self._do(_count, _INSERT, record):
            self._do(self._create, record)

    def apply(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """Make all the changes or none."""
        try:
            if changes.is_data:
                return self._do(self._merge, handle, proof, changes)
            if changes.proof is None:
                return self._do(self._apply, handle, proof, changes)
            return self._do(_durably, self._apply, handle, proof, changes)
        except ValueError as error:  # the fields of the row are garbage, or the handle is no text
            raise gone() from error

    def revoke(self, handle: str) -> bool:
        """End the session; return whether it was live."""
        row = self._do(_durably, _one, _REVOKE, (handle,)) if _is_text(handle) else None
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
        return sum(self._do(_all, _COUNT, (label, value, 0, self._now()))[0][0] for value in asked)

    def relabel(self, label: str, old: str, new: str) -> int:
        """Give every live record of the old value the new one, a batch at a time."""
        self._check_open()
        moved, start = 0, 0 if _is_text(label, old) else None
        while start is not None:
            count, start = self._do(self._relabel, label, old, new, start)
            moved += count
        return moved

    def revoke_where(self, label: str, value: str) -> int:
        """Revoke every record that has the label, a batch at a time."""
        self._check_open()
        live, now, more = 0, self._now(), _is_text(label, value)
        while more:
            rows = self._do(_durably, _all, _REVOKE_WHERE, (label, value, BATCH))
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
            batch = min(BATCH, limit - removed)
            count = self._do(_count, _SWEEP, (horizon, batch))
            removed += count
            if count < batch:
                break
        return removed

    def sweep_idle(self, older_than: Duration, limit: int = 1000) -> int:
        """Remove records that were last seen longer ago than this many seconds.

        When a session was seen is in no index, for every request would have to write to it: this goes through all.
        """
        self._check_open()
        horizon, removed, start = self._now() - milliseconds(older_than), 0, ""
        while removed < limit:
            rows = self._do(_all, _SEEN, (start, BATCH))
            doomed = [(handle, horizon) for handle, seen in rows if seen < horizon][: limit - removed]
            if doomed:
                removed += self._do(_many, _DELETE_UNSEEN, doomed)
            if len(rows) < BATCH:
                break
            start = rows[-1][0]
        return removed

    def watch(self, on_change: Callable[[str | None], object]) -> Callable[[], None]:  # noqa: ARG002 - the protocol's
        """Raise NotImplementedByStore."""
        raise NotImplementedByStore("A SqliteStore announces no changes yet.")

    def close(self) -> None:
        """Close every connection; those in use close with the verb that uses them."""
        self._closed = True
        self._drain()

    # -- what verbs do on a connection -----------------------------------------------------

    def _merge(self, engine: _Engine, handle: str, proof: bytes, changes: Changes) -> Version:
        """Change fields alone, in one statement, which takes the write lock before it reads."""
        merge = engine.merge
        merge.begin(proof, changes)
        seen = self._now() if changes.seen is None else changes.seen
        try:
            engine.cursor.execute(_MERGE, (seen, handle))
        except sqlite3.OperationalError as error:
            if merge.expired is not None:
                engine.cursor.execute(_DELETE_SAME, (handle, *merge.expired))
            if merge.error is not None:
                raise merge.error from None
            if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # a signal's handler raised before run() could catch it
                raise StoreUnavailable("The write was interrupted, and nothing was written: try again.") from error
            raise
        finally:
            merge.changes = _NO_CHANGES  # a pooled connection keeps nobody's data
        if not merge.version:
            raise gone()
        version = Version(merge.version)
        if merge.sums:
            version.sums = merge.sums
        return version

    def _apply(self, engine: _Engine, handle: str, proof: bytes, changes: Changes) -> Version:
        execute = engine.cursor.execute
        execute("BEGIN IMMEDIATE")
        old, now = _record(execute(_LOAD, (handle,)).fetchone()), self._now()
        if old is not None:
            old.check_form()
            if not old.is_live(now):
                execute(_DELETE, (handle,))
                execute("COMMIT")
        check_writable(old, proof, now)
        assert old is not None  # noqa: S101 - for the type checker: None is not writable
        record, sums = changed(old, proof, changes, now, self.largest)
        _replace(engine, old, record)
        execute("COMMIT")
        version = Version(record.version)
        if sums:
            version.sums = sums
        return version

    def _create(self, engine: _Engine, record: Record) -> None:
        cursor = engine.cursor
        cursor.execute("BEGIN IMMEDIATE")
        cursor.execute(_DELETE_DEAD, (record.handle, self._now()))
        if not _count(engine, _INSERT, record):
            raise Conflict("A session of this handle exists already: load it, or take another handle.")
        cursor.executemany(_LABEL, [(name, value, record.handle) for name, value in record.label.items()])
        cursor.execute("COMMIT")

    def _relabel(self, engine: _Engine, label: str, old: str, new: str, start: int) -> tuple[int, int | None]:
        """Relabel one batch; return how many that were and where the next one begins, None if this was the last."""
        changes, now, moved = Changes(labels={label: new}), self._now(), 0
        engine.cursor.execute("BEGIN IMMEDIATE")
        rows = _all(engine, _FIND, (label, old, start, now, BATCH))
        for _, *row in rows:
            record = _record(tuple(row))
            if record is not None:
                _replace(engine, record, changed(record, record.proof, changes, now, self.largest)[0])
                moved += 1
        engine.cursor.execute("COMMIT")
        return moved, rows[-1][0] if len(rows) == BATCH else None

    def _page(self, sql: str, key: tuple[str, ...], start: Any, limit: int) -> Page:
        page: list[Record] = []
        while True:
            asked = max(1, min(BATCH, limit - len(page) + 1))
            rows = self._do(_all, sql, (*key, start, self._now(), asked))
            for row in rows:
                if len(page) >= limit:
                    return Page(page, str(start))
                record, start = _record(row[1:]), row[0]
                if record is not None:
                    page.append(record)
            if len(rows) < asked:
                return Page(page, None)

    def _admits(self, record: Record) -> bool:
        """Tell whether the record is live; remove it if not, and if that can be done."""
        if record.form != FORM:
            record.check_form()
        now = self._now()
        if now < record.absolute and now < record.own and now < record.idle:
            return True
        with suppress(StoreError):
            same = (record.handle, record.version, record.absolute, record.own, record.idle)
            self._do(_count, _DELETE_SAME, same)
        return False

    # -- connections -----------------------------------------------------------------------

    def _do(self, verb: Callable[[_Engine, *_Ts], _T], *arguments: *_Ts) -> _T:
        """Return what the verb returns, with a connection of its own; here alone SQLite's errors become ours."""
        if self._pid != getpid():
            self._leave_to_parent()
        try:
            engine = self._idle.pop()
        except IndexError:
            engine = self._open()
        try:
            result = verb(engine, *arguments)
        except BaseException as error:
            self._settle(engine, error)
            if isinstance(error, sqlite3.Error):
                raise self._ours(error) from error
            raise
        self._idle.append(engine)
        if self._closed:
            self._drain()
        return result

    def _open(self) -> _Engine:
        self._check_open()
        connection = None
        try:
            connection = sqlite3.connect(
                self._uri, self._timeout, isolation_level=None, check_same_thread=False, cached_statements=128, uri=True
            )
            # No mmap_size: it saves a tenth of a read, and a file that shrinks kills the process then.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA journal_size_limit=16777216")
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            raise self._ours(error) from error
        return _Engine(connection, _Merge(self._now, self.largest))

    def _settle(self, engine: _Engine, error: BaseException) -> None:
        """Roll back. A connection that was torn out of its work, or cannot roll back, is not used again."""
        if isinstance(error, _ORDINARY):
            try:
                if engine.connection.in_transaction:
                    engine.connection.rollback()
                engine.cursor.execute("PRAGMA synchronous=NORMAL")
            except sqlite3.Error:
                _discard(engine)
            else:
                self._idle.append(engine)
        else:
            _discard(engine)
        if self._closed:
            self._drain()

    def _drain(self) -> None:
        while self._idle:
            with suppress(IndexError):  # another thread took the last one
                _discard(self._idle.pop())

    def _leave_to_parent(self) -> None:
        """Drop what was inherited through a fork, without closing it."""
        inherited, self._idle = self._idle, []
        self._pid = getpid()
        _INHERITED.append(inherited)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("This store is closed: open a new one.")

    def _ours(self, error: sqlite3.Error) -> SessionError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_INTERNAL) & 0xFF
        if code in _DAMAGE:
            return StoreCorrupt(f"The session store {self.path!r} {_DAMAGE[code]} ({error}).")
        return StoreUnavailable(f"The session store {self.path!r} {_ADVICE.get(code, 'did not answer')} ({error}).")

    def _prepare(self, engine: _Engine) -> None:
        """Bring the file to this release's schema."""
        if self._schema(engine) == len(STEPS):
            return
        self._set_wal(engine)
        execute = engine.cursor.execute
        execute("BEGIN IMMEDIATE")
        for number in range(self._schema(engine), len(STEPS)):
            for statement in STEPS[number]:
                execute(statement)
        execute(f"PRAGMA application_id={APPLICATION}")
        execute(f"PRAGMA user_version={len(STEPS)}")
        execute("COMMIT")

    def _schema(self, engine: _Engine) -> int:
        """Return the file's schema version, 0 for an empty file; raise for what is not ours to change."""
        ((application,),) = _all(engine, "PRAGMA application_id", ())
        ((version,),) = _all(engine, "PRAGMA user_version", ())
        ((tables,),) = _all(engine, "SELECT count(*) FROM sqlite_master", ())
        if application != APPLICATION:
            if application or version or tables:
                raise ConfigError(f"{self.path!r} is a database of another application: choose another path.")
            return 0
        if version > len(STEPS):
            raise StoreUnavailable(
                f"The session store {self.path!r} has the schema {version}, and this release knows {len(STEPS)}: "
                "deploy the newer release here too."
            )
        return int(version)

    def _set_wal(self, engine: _Engine) -> None:
        """Switch to the write-ahead log, which stays so in the file. SQLite does not wait here by itself."""
        for attempt in range(int(self._timeout * 100), -1, -1):
            try:
                engine.cursor.execute("PRAGMA journal_mode=WAL").fetchall()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or not attempt:
                    raise
                Event().wait(0.01)
            else:
                return


_ORDINARY: Final = (sqlite3.Error, SessionError, ValueError, TypeError)
"""What a verb raises when every statement of it has ended."""


def _one(engine: _Engine, sql: str, arguments: Sequence[Any]) -> Any:
    return engine.cursor.execute(sql, arguments).fetchone()


def _all(engine: _Engine, sql: str, arguments: Sequence[Any]) -> list[Any]:
    return engine.cursor.execute(sql, arguments).fetchall()


def _count(engine: _Engine, sql: str, arguments: Sequence[Any]) -> int:
    return engine.cursor.execute(sql, arguments).rowcount


def _many(engine: _Engine, sql: str, arguments: Iterable[Sequence[Any]]) -> int:
    engine.cursor.execute("BEGIN IMMEDIATE")
    count = engine.cursor.executemany(sql, arguments).rowcount
    engine.cursor.execute("COMMIT")
    return count


def _durably(engine: _Engine, verb: Callable[[_Engine, *_Ts], _T], *arguments: *_Ts) -> _T:
    """Run the verb so that it returns when the disk has what it wrote; after an error ``_settle`` goes on."""
    engine.cursor.execute("PRAGMA synchronous=FULL")
    result = verb(engine, *arguments)
    engine.cursor.execute("PRAGMA synchronous=NORMAL")
    return result


def _replace(engine: _Engine, old: Record, record: Record) -> None:
    """Write the record in place of the old one, and what differs of its labels."""
    values = [getattr(record, name) for name in _CHANGING]
    engine.cursor.execute(_UPDATE, (*values, record.handle))
    if old.labels == record.labels:
        return
    before, after = old.label, record.label
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            engine.cursor.execute(_UNLABEL, (record.handle, name))
            if name in after:
                engine.cursor.execute(_LABEL, (name, after[name], record.handle))


def _record(row: tuple[Any, ...] | None) -> Record | None:
    """Return the row as a record, None for garbage."""
    if row is None or [*map(type, row)] != _TYPES:
        return None
    return Record._make(row)


def _is_later(row: tuple[Any, ...], now: int) -> bool:
    return isinstance(row[0], int) and row[0] > now


def _is_text(*texts: str) -> bool:
    """Tell whether these can lie in a database: half a surrogate pair cannot."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _newer(form: int) -> None:
    """Raise what a record of a newer release is answered."""
    Record("", "", 0, 0, 0, 0, b"", 0, form=form).check_form()


def _discard(engine: _Engine) -> None:
    with suppress(sqlite3.Error):
        engine.connection.close()


def _admitted(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of the file, which is made if there is none; raise ConfigError for a wrong one."""
    named = os.fspath(path)
    if not isinstance(named, str) or not named or named == ":memory:" or "\0" in named:
        raise ConfigError(f"A SqliteStore needs the path of a file, not {named!r}: for memory take a MemoryStore.")
    absolute = os.path.abspath(named)  # noqa: PTH100 - resolves no link, and a later chdir() changes nothing
    try:
        descriptor = os.open(absolute, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        _check_private(absolute)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"The folder of {absolute!r} does not exist: create it.") from error
    except OSError as error:
        raise StoreUnavailable(f"{absolute!r} cannot be made: let this user write to its folder ({error}).") from error
    else:
        # SQLite gives its two other files the mode of this one, and no umask may take the owner's rights either.
        os.fchmod(descriptor, 0o600)
        os.close(descriptor)
    return absolute


def _check_private(path: str) -> None:
    """Raise ConfigError for a file that is none, or is not the owner's alone.

    It is not opened for that: closing it would drop the locks of every other connection in this process.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - one system call and no more
    except OSError as error:
        raise StoreUnavailable(f"{path!r} cannot be looked at: let this user into its folder ({error}).") from error
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path!r} is no file: choose another path.")
    if mode & 0o077:
        raise ConfigError(f"Others may use {path!r}, which holds sessions: run chmod 600 on it.")


_STORES: Final[WeakSet[SqliteStore]] = WeakSet()
_INHERITED: Final[list[list[_Engine]]] = []
"""Connections of a parent process, kept so that nothing closes them here."""


def _before_fork() -> None:
    """Close what is not in use, for a child that inherits an open connection holds no locks of its own.

    SQLite keeps count of a process's locks in its memory, which the child inherits without the locks: what the child
    opens then counts as locked, is not, and another process takes the log away under it.
    """
    for store in list(_STORES):
        store._drain()  # noqa: SLF001 - of this module


os.register_at_fork(before=_before_fork)
