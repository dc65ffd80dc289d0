"""How a SqliteStore hears what other objects and other processes change in its file, within a few milliseconds.

While somebody watches, triggers write the handle of each changed row into a table, in the writer's transaction, whoever
the writer is, an older release too; and a thread reads what is new there, by one SELECT on a connection of its own,
which has ended before the thread rests. The numbers in the table follow each other without a gap, so the row that was
read last says, by being there, that nothing was lost.

``PRAGMA data_version`` alone says that something changed and not what, and every write would empty every cache. A table
that is always written makes every write dearer for those who do not watch. So the triggers look at a lease first, and
it counts changes, not seconds: no more are written down than somebody promised to read. A watcher that was killed
leaves nothing to clean up, no clock is asked, and whoever comes too late finds a gap and is told so. Such a write takes
about a third longer, for a second page goes to the log with it; one that finds no lease takes a tenth longer, and when
the file is opened next the triggers go.

To read every few milliseconds costs some hundredths of a core for nothing, since each waking of a thread finds cold
caches. So the thread sleeps until the log of the file is written to, where the system rings a bell for that (Linux),
and reads a few times after it. The bell only makes it cheap: without one the thread reads every ``SHORT`` seconds, and
one that fails to ring costs ``LONG`` seconds.
"""

import os
import select
import sqlite3
from contextlib import suppress
from os import getpid
from threading import Event, Thread
from typing import Final, NamedTuple
from weakref import ref

from ...errors import StoreUnavailable
from ...forks import Held, identity, inherit, is_inherited
from ..announcing import Announcing, OnChange, Stop
from ..log import logger
from .connection import Connection, connected
from .file import SqliteFile

__all__ = ["LEASE", "LONG", "LONGEST", "SHORT", "Bell", "Feed", "Place", "renewed", "tidied"]

FIRST: Final = 0.001
"""How many seconds after the bell the table is read. A writer rings before the disk has what it wrote, and only then
its transaction can be seen, so there are further readings; the rests between them double up to ``SHORT``."""

SHORT: Final = 0.004
"""How many seconds the thread rests between two readings, where there is no bell, or something may be under way."""

LOOKS: Final = 16
"""After how many readings in a row without news the thread stops reading and waits for the bell."""

LONG: Final = 0.128
"""How many seconds it waits for the bell then, before it reads all the same."""

LONGEST: Final = 1.0
"""How many seconds it rests at most while the file cannot be read; these rests double, too."""

PATIENCE: Final = 0.05
"""How many seconds a renewal of the lease waits for other writers; there is another chance soon."""

LEASE: Final = 4096
"""How many changes are written down after the last time that somebody said he reads them, and are kept for readers."""

MOST: Final = 1000
"""How many changes are read at once."""

_EVENTS: Final = (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old"))
_IS_LEASED: Final = "(SELECT until FROM changes_lease) > (SELECT max(seq) FROM changes)"
_OBJECTS: Final = (
    "CREATE TABLE IF NOT EXISTS changes (seq INTEGER PRIMARY KEY, handle TEXT)",
    "CREATE TABLE IF NOT EXISTS changes_lease (id INTEGER PRIMARY KEY, until INTEGER NOT NULL)",
    *(
        f"""CREATE TRIGGER IF NOT EXISTS changes_{event.lower()} AFTER {event} ON sessions WHEN {_IS_LEASED}
            BEGIN INSERT INTO changes (handle) VALUES ({row}.handle); END"""  # noqa: S608 - our own names
        for event, row in _EVENTS
    ),
)
"""What lies in a file that was ever watched. It is no step of the schema, so that releases without it use the file too.

A step that makes ``sessions`` anew has to empty ``changes``: everybody finds the gap then, and these are made anew too.
"""

_PLACE: Final = "SELECT coalesce(max(seq), 0), coalesce((SELECT until FROM changes_lease), 0) FROM changes"
_NEWS: Final = "SELECT seq, handle FROM changes WHERE seq >= ? ORDER BY seq LIMIT ?"
_MARK: Final = "INSERT INTO changes (handle) VALUES (NULL)"
_RENEW: Final = "INSERT OR REPLACE INTO changes_lease VALUES (1, ?)"
_TRIM: Final = "DELETE FROM changes WHERE seq <= ?"

_IN_MODIFY: Final = 2


class Place(NamedTuple):
    """Up to where a reader has read, and up to where changes are written down."""

    seq: int
    until: int


def renewed(connection: Connection) -> Place:
    """Renew the lease if half of it is over, and return where the next change will be behind.

    If there was none, so that changes may not have been written down, a row without a handle tells every reader.
    """
    execute = connection.cursor.execute
    execute("BEGIN IMMEDIATE")
    for statement in _OBJECTS:
        execute(statement)
    [(seq, until)] = execute(_PLACE).fetchall()
    if not seq or seq >= until:
        execute(_MARK)
        seq += 1
    if until - seq <= LEASE // 2:
        until = seq + LEASE
        execute(_RENEW, (until,))
        execute(_TRIM, (seq - LEASE,))
    execute("COMMIT")
    return Place(seq, until)


def tidied(connection: Connection) -> None:
    """Take away the triggers if there is no lease; whoever comes back to his finds a row that says so."""
    execute = connection.cursor.execute
    if not execute("SELECT 1 FROM sqlite_master WHERE name = 'changes_insert'").fetchall():
        return
    execute("BEGIN IMMEDIATE")
    [(seq, until)] = execute(_PLACE).fetchall()
    if seq >= until:
        for event, _ in _EVENTS:
            execute(f"DROP TRIGGER IF EXISTS changes_{event.lower()}")
        execute(_TRIM, (seq - 1,))
    execute("COMMIT")


class Bell:
    """Rings when a file is written to, if the system can tell; it is used by one thread."""

    def __init__(self) -> None:
        """Hang nowhere yet."""
        self._rest = Event().wait
        self._descriptor = -1

    def hang(self, path: str) -> None:
        """Ring for this file from now on, or never, if the system does not tell or has no more bells to give."""
        self.close()
        if hasattr(select, "poll"):  # what replaces threads may take it away
            self._descriptor = _inotify(os.fsencode(path))

    def rest(self, seconds: float) -> bool:
        """Rest that long, or less: until shortly after a ring, which is True, or ``SHORT`` if there is none."""
        if seconds <= SHORT or self._descriptor < 0:
            self._rest(min(seconds, SHORT))
            return False
        ready = select.poll()
        ready.register(self._descriptor, select.POLLIN)
        if not ready.poll(seconds * 1000):
            return False
        with suppress(BlockingIOError):
            os.read(self._descriptor, 1 << 16)
        self._rest(FIRST)
        return True

    def close(self) -> None:
        """Hang nowhere."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _inotify(path: bytes) -> int:
    """Return a descriptor that can be read when the file was written to; -1 where there is no such thing."""
    try:
        import ctypes  # noqa: PLC0415 - for those alone who watch, and not every Python has it

        system = ctypes.CDLL(None)
        descriptor: int = system.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor >= 0 and system.inotify_add_watch(descriptor, path, _IN_MODIFY) < 0:
            os.close(descriptor)
            return -1
    except (ImportError, OSError, AttributeError):
        return -1
    return descriptor


class Feed(Held, Announcing):
    """Announces what anybody changes in one file, from a thread that runs for as long as somebody listens."""

    def __init__(self, file: SqliteFile, uri: str) -> None:
        """Begin with nobody who listens, and no thread; the file's object is not held."""
        self._file = ref(file)
        self._path = file.path
        self._uri = uri
        self._pid = getpid()
        self._bell = Bell()
        self._thread: Thread | None = None
        self._connection: Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._place: Place | None = None
        """Up to where was read; None if that is lost."""
        super().__init__()  # Last, for a fork may come at once.

    def watch(self, on_change: OnChange, place: Place) -> Stop:
        """Announce what is changed behind this place or later."""
        with self._lock:
            if self._thread is None:
                self._place, self._identity = place, identity(self._path)
                self._start()
            return self.listen(on_change)

    def end(self) -> None:
        """Tell everybody that the feed is over. The connection closes now, and the thread ends soon."""
        self.announce(None)
        self._listeners.clear()
        with self._lock:
            self._disconnect()

    # -- forks -----------------------------------------------------------------------------

    def _take(self, seconds: float) -> bool:
        """Have no connection, for the reason that ``forks`` gives, and let no thread open one."""
        is_taken = super()._take(seconds)
        if is_taken:
            self._disconnect()
        return is_taken

    def _begin_child(self, *, is_taken: bool) -> None:
        """Go on in a forked process, which has no thread yet, and no use for its parent's bell and connection."""
        super()._begin_child(is_taken=is_taken)
        if is_taken:
            self._bell.close()
            return
        connection, self._connection = self._connection, None
        if connection is not None:
            _INHERITED.append(connection)
        inherit(self._path)

    def begin_process(self) -> None:
        """Start a thread in a forked process, for those who listened in the parent."""
        try:
            with self._lock:
                if self._pid == getpid():
                    return
                self._pid, self._thread, self._place = getpid(), None, None
                if self._listeners:
                    self._start()
        except RuntimeError as error:  # the process may have no more threads; its verbs need none
            logger().warning("Nobody watches %r: %s", self._path, error)  # without the lock: a fork may have logging's

    # -- the thread ------------------------------------------------------------------------

    def _start(self) -> None:
        self._bell = Bell()
        thread = Thread(target=self._run, name="sessiontree-watch", daemon=True)
        thread.start()
        self._thread = thread

    def _run(self) -> None:
        bell, pause, looks, failures = self._bell, FIRST, 0, 0
        while self._is_wanted():
            try:
                if bell.rest(pause):
                    pause, looks = FIRST, 0
                news = self._read(bell)
                self.announce_all(news)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the feed must not end in silence
                failures += 1
                bell.close()
                self._lose(error, failures)
            else:
                failures, looks = 0, 0 if news else looks + 1
                pause = min(2 * pause, SHORT) if looks < LOOKS else LONG
        bell.close()
        self.announce(None)

    def _is_wanted(self) -> bool:
        """Tell whether anybody listens; if not, this is no longer the thread that does the work."""
        with self._lock:
            if self._listeners and self._file() is not None:
                return True
            self._thread = None
            self._disconnect()
            return False

    def _read(self, bell: Bell) -> list[str | None]:
        """Return the handles of what was changed since the last time, or None among them if that is not known."""
        with self._lock:
            if not self._listeners:
                return []
            connection, place = self._connected(bell), self._place
            rows = [] if place is None else connection.cursor.execute(_NEWS, (place.seq, MOST)).fetchall()
            if place is None or not rows or rows[0][0] != place.seq:
                self._place = renewed(connection)
                return [None]
            self._place = _kept(connection, Place(rows[-1][0], place.until))
            return list(dict.fromkeys(handle for _, handle in rows[1:]))

    def _lose(self, error: BaseException, failures: int) -> None:
        """Say once that the feed is lost, and rest before the next try."""
        with self._lock:
            self._place = None
            self._disconnect()
        if failures == 1:
            logger().warning("What is changed in %r is not heard of for now: %s", self._path, error)
            with suppress(BaseException):
                self.announce(None)
        Event().wait(min(SHORT * 2 ** min(failures, 10), LONGEST))

    def _connected(self, bell: Bell) -> Connection:
        """Return a connection to the file that is at the path now; another one than before begins anew."""
        found = identity(self._path)
        if found != self._identity:
            self._disconnect()
            self._place, self._identity = None, found
        if self._connection is None:
            if is_inherited(self._path):
                raise StoreUnavailable("a thread used it when this process was forked")
            self._connection = connected(self._uri, PATIENCE)
            self._connection.cursor.execute("PRAGMA schema_version").fetchall()  # the log is there from now on
            bell.hang(os.path.realpath(self._path) + "-wal")  # where SQLite has it, though the path be a link
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _kept(connection: Connection, place: Place) -> Place:
    """Return the place with the lease renewed in time; while somebody else writes, next time is early enough."""
    if place.until - place.seq > LEASE // 2:
        return place
    try:
        return Place(place.seq, renewed(connection).until)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return place


_INHERITED: Final[list[Connection]] = []
"""Connections of a parent process, kept so that nothing closes them here."""
