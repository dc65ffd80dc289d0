"""diskcache made safe: its table and its statements, and nothing that a row says is believed (CVE-2025-69872)."""

import hashlib
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote
from weakref import finalize

from ...forks import SHUT, Gate, Mark, mark
from .files import ForeignError

try:
    from diskcache import ENOVAL, Cache, Disk  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError("DiskCache needs the disk extra: pip install 'sessiontree[disk]'.") from error

__all__ = ["HEADROOM", "SCHEMA", "SETTINGS_HELD", "WIDEST", "Rows", "connected", "digest", "is_damage"]

_T = TypeVar("_T")

RAW: Final = 1
"""What diskcache calls the mode of a value that lies in its row as it is."""

WIDEST: Final = 16 * 1024 * 1024
"""How many bytes a row may have; one of more is none of ours, and is not read."""

HEADROOM: Final = 4096
"""How many bytes a row is longer than its record, at most."""

SETTINGS: Final[dict[str, Any]] = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "least-recently-stored",
    "size_limit": 0,
    "cull_limit": 0,
    "sqlite_auto_vacuum": 0,
    "sqlite_cache_size": 0,
    "sqlite_journal_mode": "wal",
    "sqlite_mmap_size": 0,
    "sqlite_synchronous": 0,
    "disk_min_file_size": 0,
    "disk_pickle_protocol": 0,
}
"""What diskcache finds as its settings. Sizes, and those of SQLite and of the disk, mean nothing here."""

PRAGMAS: Final = (
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
    # Memory that is mapped would kill the process when somebody cuts the file short.
    "PRAGMA mmap_size=0",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=OFF",
    "PRAGMA journal_size_limit=4194304",
)

_OLDEST: Final = "SELECT rowid, length(value) FROM Cache ORDER BY store_time, rowid LIMIT 64"
SCHEMA: Final = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
SETTINGS_HELD: Final = """SELECT quote(key), quote(value) FROM Settings
    WHERE key NOT IN ('count', 'size', 'hits', 'misses') ORDER BY 1, 2"""

_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG)


class ExactBytes(Disk):  # type: ignore[misc]
    """Turns keys and values into columns and back: bytes as they are, and nothing else ever."""

    def __init__(self, directory: str, **settings: Any) -> None:
        """Need no directory, and no settings."""

    def put(self, key: Any) -> tuple[bytes, bool]:
        """Return a key as it is."""
        return _exact(key), True

    def store(self, value: Any, read: Any, key: Any = None) -> tuple[int, int, None, bytes]:  # noqa: ARG002
        """Return size, mode, file name and value."""
        return 0, RAW, None, _exact(value)

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> bytes | None:
        """Return a value that lies in its row as bytes; whatever else a row says, there is none."""
        return value if mode == RAW and filename is None and type(value) is bytes and not read else None

    def remove(self, file_path: str) -> None:
        """Remove nothing: no row of ours names a file."""

    def hash(self, key: Any) -> int:
        """Refuse."""
        raise NotImplementedError

    def get(self, key: Any, raw: Any) -> Any:
        """Refuse: keys are never listed."""
        raise NotImplementedError

    def filename(self, key: Any = None, value: Any = None) -> tuple[str, str]:
        """Refuse: no value lies in a file."""
        raise NotImplementedError


def _exact(given: Any) -> bytes:
    if type(given) is not bytes:
        raise TypeError("Only bytes are kept on disk.")
    return given


class Rows(Cache):  # type: ignore[misc]
    """One database: diskcache's table and its statements, on connections and with settings of our own.

    diskcache has a connection for each thread. Here they lie in a pool, so that none outlives its thread, and they can
    be closed before a fork.
    """

    def __init__(self, path: Path, room: int, timeout: float) -> None:
        """Open the file, and create in it what diskcache needs."""
        self.name = path.parent.name
        self.evicted = 0
        self._path, self._room, self._patience = path, room, timeout
        self._idle: list[sqlite3.Connection] = []
        self._used: set[sqlite3.Connection] = set()
        self._shut = False
        self._mark = mark()
        try:
            # A path of ours would be searched for "$" and "~" there; and no file is opened but by _con.
            super().__init__(os.sep, disk=ExactBytes, **SETTINGS)
        finally:
            self.close()  # What it leaves open is in no pool.
        finalize(self, _end, Gate(self.rest, lambda: (path,)), self._idle, self._mark)

    def use(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Return what the work returns, which has a connection to itself; what fails takes its connection with it."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connected()
        before = getattr(self._local, "con", None)
        self._local.con = connection
        self._used.add(connection)
        try:
            result = work(self, *arguments)
        except BaseException:
            connection.close()
            raise
        else:
            self._idle.append(connection)
        finally:
            self._used.discard(connection)
            self._local.con = before
        if self._shut or SHUT:
            _drain(self._idle)
        return result

    def execute(self, sql: str, *arguments: Any) -> list[Any]:
        """Return every row of a statement."""
        return self._con.execute(sql, arguments).fetchall()

    def rest(self) -> None:
        """Close every connection that is not in use, unless it is a parent process's."""
        if self._mark[0]:
            _drain(self._idle)

    def shut(self) -> None:
        """Close every connection, as ``rest`` does; those in use close with the work that uses them."""
        self._shut = True
        self.rest()

    @property
    def is_open(self) -> bool:
        """Whether there are connections."""
        return bool(self._idle or self._used)

    def is_damaged_by(self, error: Exception) -> bool:
        """Tell whether the database is at fault for an error, and not the moment."""
        return is_damage(error) or (_code(error) == sqlite3.SQLITE_CANTOPEN and not self._path.exists())

    def reset(self, key: str, value: Any = ENOVAL, update: Any = True) -> Any:  # noqa: ARG002, FBT002
        """Have a setting be what it is here, whatever a row says; the original would run it as a PRAGMA."""
        if key in SETTINGS:
            setattr(self, key, SETTINGS[key])
        return SETTINGS.get(key, 0)

    def volume(self) -> int:
        """Return how many bytes are in use; what was freed waits in the file to be used again."""
        ((pages,),) = self.execute("PRAGMA page_count")
        ((free,),) = self.execute("PRAGMA freelist_count")
        return int((pages - free) * self._page_size)

    @property
    def _con(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "con", None)
        if connection is None:  # Only while diskcache opens the file, after which it closes it.
            connection = self._local.con = self._connected()
        return connection

    @property
    def _sql_retry(self) -> Any:
        return self._con.execute  # The original tries for a minute.

    def _connected(self) -> sqlite3.Connection:
        return connected(self._path, self._patience)

    def _cull(self, now: float, sql: Any, cleanup: Any, limit: int | None = None) -> None:  # noqa: ARG002
        """Make room for what was just written. The original takes ten rows, however large or few they are."""
        while (excess := self.volume() - self._room) > 0:
            oldest = self.execute(_OLDEST)
            if not oldest:
                return
            for rowid, size in oldest:
                sql("DELETE FROM Cache WHERE rowid = ?", (rowid,))
                self.evicted += 1
                excess -= size or 0
                if excess <= 0:  # Though bytes come free in pages: look again.
                    break


def connected(path: Path, timeout: float) -> sqlite3.Connection:
    """Return a connection to a file that there is."""
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
    )
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, WIDEST)
        for pragma in PRAGMAS:
            connection.execute(pragma).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _drain(idle: list[sqlite3.Connection]) -> None:
    while idle:
        with suppress(IndexError, sqlite3.Error):  # another thread took the last one
            idle.pop().close()


def _end(gate: Gate, idle: list[sqlite3.Connection], mine: Mark) -> None:
    """Close what a database of this process had that nobody closed."""
    if mine[0]:
        with gate:
            _drain(idle)


def is_damage(error: Exception) -> bool:
    """Tell whether an error says that a database is not what one of ours is."""
    return isinstance(error, ForeignError | TypeError | ValueError) or _code(error) in _DAMAGE


def _code(error: BaseException) -> int:
    """Return what SQLite says; if it is that nothing can be rolled back any more, what it said before."""
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF
    before = error.__context__
    return _code(before) if code == sqlite3.SQLITE_ERROR and isinstance(before, sqlite3.Error) else code


def digest(schema: list[Any], settings: list[Any]) -> bytes:
    """Return a hash of a database's schema and of diskcache's settings in it."""
    return hashlib.sha256(repr((schema, settings)).encode()).digest()
