"""The file of a SqliteStore: how it is made and opened, its schema, its connections, and what its errors mean.

Connections lie in a pool and are used by one verb at a time, so no thread ever meets another's transaction, and code
that runs within a verb, such as a clock or a signal's handler, gets a connection of its own.
"""

import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import suppress
from threading import Event, get_ident
from typing import Final, TypeVar, TypeVarTuple
from urllib.parse import quote
from weakref import finalize

from ...clock import LONGEST_WAIT_MS, Clock, Duration, SystemClock, waiting
from ...errors import ConfigError, SessionError, StoreCorrupt, StoreUnavailable
from ...forks import SHUT, Gate, Mark, is_inherited, mark
from ...records import LARGEST, closed
from .connection import Connection, connected, every_row

__all__ = ["APPLICATION", "STEPS", "SqliteFile"]

APPLICATION: Final = int.from_bytes(b"sTre")
"""What the file's header says whose it is."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# A rowid table, though its key is a text: WITHOUT ROWID, a row of 2 KB takes four times as long to write.
# The trigger makes every deletion one statement, and so one transaction.
STEPS: Final = (
    (
        "CREATE TABLE sessions (handle TEXT NOT NULL PRIMARY KEY, ends INTEGER NOT NULL, record BLOB NOT NULL)",
        "CREATE INDEX sessions_ends ON sessions (ends)",
        """CREATE TABLE labels (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, value TEXT NOT NULL, handle TEXT NOT NULL)""",
        "CREATE INDEX labels_value ON labels (name, value, seq)",
        "CREATE UNIQUE INDEX labels_handle ON labels (handle, name)",
        """CREATE TRIGGER sessions_gone AFTER DELETE ON sessions
            BEGIN DELETE FROM labels WHERE handle = old.handle; END""",
    ),
)
"""What leads from each version of the schema to the next. A release may add steps, and never changes one."""

_ADVICE: Final = {
    sqlite3.SQLITE_BUSY: "is locked by another process: try again",
    sqlite3.SQLITE_LOCKED: "is locked: try again",
    sqlite3.SQLITE_FULL: "cannot grow: make room on its disk",
    sqlite3.SQLITE_IOERR: "cannot be read or written: look at its disk, which may be full or failing",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: look whether it exists and whether this user may write to its folder",
    sqlite3.SQLITE_READONLY: "cannot be written: let this user write to the file and its folder",
    sqlite3.SQLITE_PERM: "may not be used: give this user access to it",
    sqlite3.SQLITE_NOMEM: "finds no memory left: give this process more",
    sqlite3.SQLITE_INTERNAL: "did not answer",
}
_DAMAGE: Final = {
    sqlite3.SQLITE_CORRUPT: "is damaged: restore it from a backup",
    sqlite3.SQLITE_NOTADB: "is no SQLite database: restore it from a backup, or choose another path",
    sqlite3.SQLITE_ERROR: "lacks what this release put into it: restore it from a backup",
}


class SqliteFile:
    """A database file, which is made, readable by its owner alone, if there is none."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        largest: int = LARGEST,
        timeout: Duration = 5.0,
    ) -> None:
        """Open the file; ``timeout``, seconds or a timedelta up to a day, is how long a verb waits for other writers.

        Raises ConfigError for a path that cannot be right, a file that others may read or write, and a database of
        another application; StoreUnavailable and StoreCorrupt as every verb does.
        """
        self._timeout = waiting(timeout, LONGEST_WAIT_MS, "SqliteStore", shortest=0)
        super().__init__()
        self.clock: Clock = clock or SystemClock()
        self.largest = largest
        self.path = _admitted(path)
        self._uri = f"file:{quote(os.fsencode(self.path))}?mode=rw"
        self._now = self.clock.now
        files = (self.path,)
        self._idle: list[Connection] = []
        self._mark = mark()
        self._gate = Gate(self._drain, lambda: files)  # after what it drains: a fork may come at once
        self._begin_process()
        self._closed = False
        try:
            self._do(self._prepare)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every connection; those in use close with the verb that uses them."""
        self._closed = True
        with self._gate:
            self._drain()

    # -- connections -----------------------------------------------------------------------

    def _do(self, verb: Callable[[Connection, *_Ts], _T], *arguments: *_Ts) -> _T:
        """Return what the verb returns, with a connection of its own; here alone SQLite's errors become ours."""
        if not self._mark[0]:
            self._leave_to_parent()
        gate, idle, me = self._gate, self._idle, get_ident()
        inside = gate.inside
        try:
            inside.append(me)
            if SHUT:
                gate.wait(me)
            try:
                connection = idle.pop()
            except IndexError:
                connection = self._open()
            try:
                result = verb(connection, *arguments)
            except BaseException as error:
                if inside is gate.inside:
                    self._settle(connection, error)
                else:  # This is a child that was forked within the verb: the connection is its parent's.
                    idle.append(connection)
                if isinstance(error, sqlite3.Error):
                    raise self._ours(error) from error
                raise
            idle.append(connection)
            if self._closed or SHUT:
                self._drain()
            return result
        finally:
            inside.remove(me)

    def _open(self) -> Connection:
        self._check_open()
        if is_inherited(self.path):
            raise StoreUnavailable(
                f"The session store {self.path!r} was in use at the moment when this process was forked, and no forked "
                "process can use it then: fork while no verb runs, or open the store in a process that is started anew."
            )
        try:
            return connected(self._uri, self._timeout)
        except sqlite3.Error as error:
            raise self._ours(error) from error

    def _settle(self, connection: Connection, error: BaseException) -> None:
        """Roll back. A connection that was torn out of its work, or cannot roll back, is not used again."""
        connection.last = ("", b"")
        if isinstance(error, _ORDINARY):
            try:
                if connection.driver.in_transaction:
                    connection.driver.rollback()
                connection.cursor.execute("PRAGMA synchronous=NORMAL")
            except sqlite3.Error:
                connection.close()
            else:
                self._idle.append(connection)
        else:
            connection.close()
        if self._closed or SHUT:
            self._drain()

    def _drain(self) -> None:
        if self._mark[0]:
            _close_all(self._idle)

    def _leave_to_parent(self) -> None:
        """Drop what was inherited through a fork, without closing it."""
        with self._gate, self._gate.leaving:
            if not self._mark[0]:
                self._end.detach()
                _INHERITED.append(self._idle)
                self._begin_process()

    def _begin_process(self) -> None:
        mine = mark()
        self._idle = []
        self._end = finalize(self, _end, self._gate, self._idle, mine)
        self._mark = mine

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    def _ours(self, error: sqlite3.Error) -> SessionError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_INTERNAL) & 0xFF
        if code in _DAMAGE:
            return StoreCorrupt(f"The session store {self.path!r} {_DAMAGE[code]} ({error}).")
        advice = _ADVICE.get(code, "refused a statement")
        return StoreUnavailable(f"The session store {self.path!r} {advice} ({error}).")

    def _prepare(self, connection: Connection) -> None:
        """Bring the file to this release's schema."""
        execute = connection.cursor.execute
        execute("BEGIN")  # What is read about the file is read of one moment: others may be making it just now.
        version = self._schema(connection)
        execute("COMMIT")
        if version == len(STEPS):
            return
        self._set_wal(connection)
        execute("BEGIN IMMEDIATE")
        for number in range(self._schema(connection), len(STEPS)):
            for statement in STEPS[number]:
                execute(statement)
        execute(f"PRAGMA application_id={APPLICATION}")
        execute(f"PRAGMA user_version={len(STEPS)}")
        execute("COMMIT")

    def _schema(self, connection: Connection) -> int:
        """Return the file's schema version, 0 for an empty file; raise for what is not ours to change."""
        ((application,),) = every_row(connection, "PRAGMA application_id", ())
        ((version,),) = every_row(connection, "PRAGMA user_version", ())
        ((tables,),) = every_row(connection, "SELECT count(*) FROM sqlite_master", ())
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

    def _set_wal(self, connection: Connection) -> None:
        """Switch to the write-ahead log, which stays so in the file. SQLite does not wait here by itself."""
        for attempt in range(int(self._timeout * 100), -1, -1):
            try:
                connection.cursor.execute("PRAGMA journal_mode=WAL").fetchall()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or not attempt:
                    raise
                Event().wait(0.01)
            else:
                return


_ORDINARY: Final = (sqlite3.Error, SessionError, ValueError, TypeError)
"""What a verb raises when every statement of it has ended."""


def _close_all(idle: list[Connection]) -> None:
    while idle:
        with suppress(IndexError):  # another thread took the last one
            idle.pop().close()


def _end(gate: Gate, idle: list[Connection], mine: Mark) -> None:
    """Close what a file of this process had that nobody closed."""
    if mine[0]:
        with gate:
            _close_all(idle)


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


_INHERITED: Final[list[list[Connection]]] = []
"""Connections of a parent process, kept so that nothing closes them here."""
