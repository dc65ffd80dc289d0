"""A cache on this machine's disk, shared by its processes: diskcache, kept from all that makes it dangerous.

diskcache does what a row says: it unpickles, it reads and removes files by name, it puts settings into PRAGMAs. So
whoever can write to its folder runs code. Here nothing in a row is believed (SECURITY.md, appendix A):

* keys and values are bytes in the row itself, and what is anything else is a miss; no file is ever named;
* every value is sealed, and bound to its handle and to this database; a key is a keyed hash of the handle;
* settings are constants, and the connections are ours;
* the schema and the settings of a file that another process made are compared with what that process sealed.

The folder holds ``current``, a link whose text names the database in use, and that database in a folder of its own:

    key                                  made by the first, unless keys were given
    lock                                 held while a database is begun
    current -> 3f9c...e1.0.0.0           its name, and what clear_after() has to say
    3f9c...e1/cache.db                   with its log beside it

Every call reads the link, which costs a microsecond. To forget everything is to remove it: each process that misses it
begins a new database, and a lease or a value of another database is good for nothing. A database is never replaced
under its name, for SQLite, where it still has the old file open, would later remove the log of the new one.

Age is measured by the monotonic clock, which all processes of one boot share. What is from before the boot is removed:
a power cut may bring back rows that had been deleted, so there is nothing to be gained by waiting for the disk either.
"""

import errno
import hashlib
import os
import re
import secrets
import sqlite3
import stat
from binascii import crc32
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path
from struct import Struct
from threading import Event
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote
from weakref import WeakSet, finalize

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..clock import Clock, Duration, SystemClock, milliseconds, stopwatch
from ..errors import ConfigError, SessionError
from ..keys import KeyRing, Keys, derived
from ..records import Record, pack, unpack
from .protocol import MAX_STALENESS, Lease
from .stats import Stats

try:
    from diskcache import ENOVAL, Cache, Disk  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError("DiskCache needs the disk extra: pip install 'sessiontree[disk]'.") from error

__all__ = ["DiskCache"]

MAX_BYTES: Final = 256 * 1024 * 1024
FEWEST_BYTES: Final = 1024 * 1024
SHARE: Final = 8
"""A record may take this part of all there may be, so that no few records push all others out."""

STRIPES: Final = 4096
"""How many counters of drops there are: a drop cancels the leases on its handle, and on one in so many others."""

ABSENT_SLOTS: Final = 256
"""How many handles can be remembered as absent; each has one place, where the last one stays."""

MOST_BLOCKED: Final = 1024
"""How many handles are remembered whose drop is in doubt; with more, all that is older than the last is in doubt."""

BEGINNING: Final = 0.5
"""How many seconds a process waits for another one that begins a database."""

SLOW: Final = 0.05
REST_MS: Final = 1000
"""For how long the disk is left alone after a failure that took ``SLOW`` seconds, or to begin a database."""

DAMAGE_MS: Final = 10_000
"""Within how long a second damage is no accident, and no third database is begun."""

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_T = TypeVar("_T")


# -- files --------------------------------------------------------------------------------------

FILES: Final = ("cache.db", "cache.db-wal", "cache.db-shm")
LEFT_OVER: Final = re.compile(r"[0-9a-f]{32}")
TEMPORARY: Final = re.compile(r"(current|key)\.[0-9a-f]{16}")
KEY_BYTES: Final = 32


def _private_folder(directory: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder that is ours alone, made if there is none (SECURITY.md, ST-9)."""
    named = os.fspath(directory)
    if not isinstance(named, str) or not named or "\0" in named:
        raise ConfigError(f"A DiskCache needs the path of a folder, not {named!r}.")
    path = Path(os.path.abspath(named))  # noqa: PTH100 - resolves no link, and a later chdir() changes nothing
    try:
        with suppress(FileExistsError):
            path.mkdir(0o700)
            path.chmod(0o700)  # No umask may take the owner's rights.
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"The folder {path} cannot be made or looked at: let this user do it ({error}).") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path} is a link or a file: give a DiskCache a folder of its own.")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"The folder {path} belongs to another user: give a DiskCache a folder of its own.")
    if found.st_mode & 0o077:
        raise ConfigError(f"Others may use {path}, where sessions are to lie: run chmod 700 on it.")
    return path


def _private_key(path: Path) -> bytes:
    """Return the key in a file that is ours alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        is_private = _is_private_file(os.fstat(descriptor))
        key = os.read(descriptor, KEY_BYTES + 1) if is_private else b""
    finally:
        os.close(descriptor)
    if len(key) != KEY_BYTES:
        raise ConfigError(f"The key {path} is damaged or not this user's alone: remove it, and a new one is made.")
    return key


def _check_private(path: Path) -> None:
    """Raise _ForeignError for a database that another may have put there, or that lies elsewhere."""
    try:
        folder, file = path.parent.lstat(), path.lstat()
    except FileNotFoundError:
        raise _ForeignError from None
    if not stat.S_ISDIR(folder.st_mode) or not _is_ours(folder) or not _is_private_file(file):
        raise _ForeignError


def _is_private_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and _is_ours(found) and found.st_nlink == 1


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _make(path: Path, content: bytes) -> None:
    """Make a file that is ours alone."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder with a database, and nothing that is not of it; a link goes without what it names."""
    with suppress(OSError):
        if not stat.S_ISDIR(folder.lstat().st_mode):
            folder.unlink()
            return
        for name in FILES:
            with suppress(OSError):
                (folder / name).unlink()
        folder.rmdir()


def _boot() -> bytes:
    """Return what names this boot of the machine, or nothing where there is no such thing."""
    try:
        return BOOT_ID.read_bytes().strip()
    except OSError:
        return b""


# -- sealing ------------------------------------------------------------------------------------

RECORD: Final = b"r"
ABSENT: Final = b"a"
MARK: Final = b"m"

HASH_BYTES: Final = 20
HOUR_BYTES: Final = 4
NONCE_BYTES: Final = 12
HOUR_MS: Final = 3_600_000
KEPT_HOURS: Final = 64


class _Seal:
    """Seals values with AES-256-GCM, each for its kind, database and handle, and hashes handles to keys of rows.

    A random nonce of 96 bits is safe for about 2^32 messages under one key (NIST SP 800-38D), so every hour has a key
    of its own.
    """

    __slots__ = ("_ciphers", "_clock", "_hash", "_master")

    def __init__(self, key: bytes, clock: Clock) -> None:
        """Take a sub-key, and the clock that tells the hour."""
        self._hash, self._master = derived(key, "handle"), derived(key, "value")
        self._clock = clock
        self._ciphers: dict[bytes, AESGCM] = {}

    def key(self, handle: str) -> bytes:
        """Return the key of a handle's row, which tells nobody the handle."""
        return hashlib.blake2b(_raw(handle), digest_size=HASH_BYTES, key=self._hash).digest()

    def seal(self, content: bytes, kind: bytes, name: str, handle: str) -> bytes:
        """Return the content sealed."""
        hour = max(0, self._clock.now() // HOUR_MS).to_bytes(HOUR_BYTES, "big")
        cipher, nonce = self._cipher(hour), os.urandom(NONCE_BYTES)
        self._keep(hour, cipher)
        return b"".join((hour, nonce, cipher.encrypt(nonce, content, _bound(kind, name, handle))))

    def open(self, sealed: bytes, kind: bytes, name: str, handle: str) -> bytes | None:
        """Return the content, or None for what was not sealed for this."""
        hour, nonce = sealed[:HOUR_BYTES], sealed[HOUR_BYTES : HOUR_BYTES + NONCE_BYTES]
        cipher = self._cipher(hour)
        try:
            content = cipher.decrypt(nonce, sealed[HOUR_BYTES + NONCE_BYTES :], _bound(kind, name, handle))
        except (InvalidTag, ValueError):
            return None
        self._keep(hour, cipher)
        return content

    def _cipher(self, hour: bytes) -> AESGCM:
        return self._ciphers.get(hour) or AESGCM(derived(self._master, hour.hex()))

    def _keep(self, hour: bytes, cipher: AESGCM) -> None:
        """Keep a key that fitted; one that did not is not kept, so that forged hours push nothing out."""
        if hour not in self._ciphers:
            if len(self._ciphers) >= KEPT_HOURS:
                self._ciphers.clear()
            self._ciphers[hour] = cipher


def _bound(kind: bytes, name: str, handle: str) -> bytes:
    return b"".join((kind, name.encode(), _raw(handle)))  # The first two always have one length.


def _raw(handle: str) -> bytes:
    return handle.encode("utf-8", "surrogatepass")


# -- diskcache ----------------------------------------------------------------------------------

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
_SCHEMA: Final = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
_SETTINGS: Final = """SELECT quote(key), quote(value) FROM Settings
    WHERE key NOT IN ('count', 'size', 'hits', 'misses') ORDER BY 1, 2"""

_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG)


class _ForeignError(Exception):
    """A database is not as one of ours made it."""


class _Disk(Disk):  # type: ignore[misc]
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


class _Rows(Cache):  # type: ignore[misc]
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
        try:
            # A path of ours would be searched for "$" and "~" there; and no file is opened but by _con.
            super().__init__(os.sep, disk=_Disk, **SETTINGS)
        finally:
            self.close()  # What it leaves open is in no pool.
        finalize(self, _drain, self._idle)

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
        if self._shut:
            _drain(self._idle)
        return result

    def execute(self, sql: str, *arguments: Any) -> list[Any]:
        """Return every row of a statement."""
        return self._con.execute(sql, arguments).fetchall()

    def rest(self) -> None:
        """Close every connection that is not in use."""
        _drain(self._idle)

    def shut(self) -> None:
        """Close every connection; those in use close with the work that uses them."""
        self._shut = True
        _drain(self._idle)

    @property
    def is_open(self) -> bool:
        """Whether there are connections."""
        return bool(self._idle or self._used)

    def is_damaged_by(self, error: Exception) -> bool:
        """Tell whether the database is at fault for an error, and not the moment."""
        return _is_damage(error) or (_code(error) == sqlite3.SQLITE_CANTOPEN and not self._path.exists())

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
        return _connected(self._path, self._patience)

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


def _connected(path: Path, timeout: float) -> sqlite3.Connection:
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


def _is_damage(error: Exception) -> bool:
    return isinstance(error, _ForeignError | TypeError | ValueError) or _code(error) in _DAMAGE


def _code(error: BaseException) -> int:
    """Return what SQLite says; if it is that nothing can be rolled back any more, what it said before."""
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF
    before = error.__context__
    return _code(before) if code == sqlite3.SQLITE_ERROR and isinstance(before, sqlite3.Error) else code


def _digest(schema: list[Any], settings: list[Any]) -> bytes:
    """Return a hash of a database's schema and of diskcache's settings in it."""
    return hashlib.sha256(repr((schema, settings)).encode()).digest()


# -- the cache ----------------------------------------------------------------------------------

PLACE: Final = re.compile(r"([0-9a-f]{32})\.([0-9]{1,18})\.([0-9]{1,18})\.([0-9]{1,18})")

_MARK: Final = "CREATE TABLE Mark (mark BLOB NOT NULL)"
_DROPS: Final = "CREATE TABLE Drops (stripe INTEGER PRIMARY KEY, number INTEGER NOT NULL)"
_NUMBER: Final = "SELECT coalesce((SELECT number FROM Drops WHERE stripe = ?), 0)"
_BUMP: Final = "INSERT INTO Drops VALUES (?, 1) ON CONFLICT DO UPDATE SET number = number + 1"
_DELETE: Final = "DELETE FROM Cache WHERE key = ? AND raw = 1"
_COUNT: Final = "SELECT count(*) FROM Cache WHERE key = ? AND raw = 1"
_SIZES: Final = "SELECT count(*), coalesce(sum(length(value)), 0) FROM Cache WHERE length(key) = ?"

_ENTRY: Final = Struct(">qqq")


class _FailedError(Exception):
    """The disk did not do what it was asked: to the caller a miss."""


class _Place(NamedTuple):
    """What ``current`` says: the database's name, and which of its entries are gone.

    An entry holds the era in which it was filled, and each ``clear_after`` begins a new one. Those of an era before
    ``floor`` are gone, and those of one before ``era`` are at this time.
    """

    name: str
    floor: int = 0
    era: int = 0
    at: int = 0


class _Entry(NamedTuple):
    """What a sealed value holds: its lease's time, its era, the record's version, and the record, packed."""

    since: int
    era: int
    version: int
    body: bytes


class _Fill(NamedTuple):
    """What is to be kept, and the lease that allows it."""

    handle: str
    kind: bytes
    since: int
    version: int
    body: bytes
    drops: tuple[str, int]


class DiskCache:
    """Keeps sealed records in a folder of this machine, for all processes that share the folder and the keys.

    The folder is made, for its owner alone; its parent must exist. ``keys`` are a handler's keys, or None for random
    ones that lie in the folder; then whoever reads the folder reads the sessions. ``max_bytes`` bounds the database,
    beside which a log of a few megabytes lies; what was filled first gives way. ``timeout`` is how many seconds a call
    waits for other writers. Raises ConfigError for a folder that is a link, not ours or open to others, for sizes below
    1 MiB, and for durations below 0.
    """

    def __init__(  # noqa: PLR0913 - each setting is a keyword, and all have a default
        self,
        directory: str | os.PathLike[str],
        keys: Keys | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        max_staleness: Duration = MAX_STALENESS,
        clock: Clock | None = None,
        timeout: Duration = 0.25,
    ) -> None:
        """Open the cache of this folder, or begin it; if that fails, it is tried again later."""
        if type(max_bytes) is not int or max_bytes < FEWEST_BYTES:
            raise ConfigError(f"A DiskCache takes max_bytes as an int of {FEWEST_BYTES} or more.")
        self._staleness, self._timeout = milliseconds(max_staleness), milliseconds(timeout) / 1000
        if self._staleness < 0 or self._timeout < 0:
            raise ConfigError("max_staleness and timeout are 0 seconds or more.")
        self.clock: Clock = clock or SystemClock()
        self.max_staleness = self._staleness / 1000
        self._seconds, self._waited = stopwatch(self.clock), stopwatch(SystemClock())
        self._folder = _private_folder(directory)
        self._link = self._folder / "current"
        self._seals = [_Seal(key, self.clock) for _, key in self._ring(keys).subkeys("cache/disk")]
        self._room, self._largest = max_bytes, min(max_bytes // SHARE, WIDEST - HEADROOM)
        self._known = ("", _Place(""))
        self._rows: _Rows | None = None
        self._pid = os.getpid()
        self._closed = False
        self._rest_until = self._damaged_at = -DAMAGE_MS
        self._floor = -1  # What was leased until then is served to nobody here, for a clear or many drops are in doubt.
        self._floors: dict[str, int] = {}
        self._logged: set[str] = set()
        self._hits = self._misses = self._stale = self._refused = self._errors = self._evicted = 0
        self._boot = _boot()
        if not self._boot:
            self.clear()  # Nobody can tell whether what is here is from before.
        with suppress(_FailedError):
            self._do(_nothing)
        _CACHES.add(self)

    # -- what every cache does -------------------------------------------------------------

    def get(self, handle: str, min_version: int = 0) -> Record | None:
        """Return the record, or None: a miss."""
        found = self.get_aged(handle, min_version)
        return None if found is None else found[0]

    def get_aged(self, handle: str, min_version: int = 0) -> tuple[Record, float, float] | None:
        """Return the record, how many seconds ago its lease was taken, and how many more it will be served."""
        entry, left = self._read(handle, RECORD)
        record = self._record(handle, entry, left, min_version)
        if entry is None or record is None or not record.is_live(self.clock.now()):
            self._misses += 1
            self._stale += entry is not None
            return None
        self._hits += 1
        return record, (self._now() - entry.since) / 1000, left / 1000

    def stale(self, handle: str, min_version: int, beyond: float) -> Record | None:
        """Return what is not much older than it may be, for who cannot ask the store."""
        entry, left = self._read(handle, RECORD, milliseconds(beyond))
        return self._record(handle, entry, left, min_version)

    def is_absent(self, handle: str) -> bool:
        """Tell whether the store was found to have no such record a short while ago."""
        return self._read(handle, ABSENT)[1] > 0

    def lease(self, handle: str) -> Lease:
        """Return when it is, and how often which database has dropped the handle, or another of its stripe."""
        since = self._now()
        try:
            return since, self._do(_drops, handle)
        except _FailedError:
            self._errors += 1
            return since, ("", 0)  # No database has this name, so it is good for nothing.

    def put(self, handle: str, record: Record | None, lease: Lease) -> bool:
        """Keep the record, or that there is none, unless the lease was cancelled."""
        return self.put_aged(handle, record, lease, 0)

    def put_aged(self, handle: str, record: Record | None, lease: Lease, age: float) -> bool:
        """Keep a record that was so many seconds old when the lease was taken."""
        since, drops = lease
        since -= milliseconds(max(0, age))
        if not since <= self._now() < since + self._staleness:
            return False
        if record is not None and not record.is_live(self.clock.now()):
            return False
        try:
            kind, version, body = (ABSENT, 0, b"") if record is None else (RECORD, record.version, pack(record))
            if len(body) > self._largest:
                return False
            fill = _Fill(handle, kind, since, version, body, drops)
            kept = None if self._is_in_doubt(handle, since) else self._do(self._fill, fill)
        except Exception:  # noqa: BLE001 - what cannot be packed is not kept, and whoever fills has the record
            self._errors += 1
            return False
        self._refused += kept is None
        return bool(kept)

    def drop(self, handle: str) -> None:
        """Forget the record, and cancel every lease on the handle, in every process."""
        if self._closed:
            return
        try:
            self._do(self._drop, handle, forgets=True)
        except BaseException as error:
            self._errors += 1
            self._doubt(handle)
            if not isinstance(error, _FailedError):
                raise

    def clear(self) -> None:
        """Forget all, and cancel every lease, in every process."""
        if self._closed:
            return
        try:
            self._forget()
        except BaseException as error:
            self._errors += 1
            self._doubt_all()
            if not isinstance(error, OSError):
                raise

    def clear_after(self, seconds: Duration) -> None:
        """Have what is cached now be gone that many seconds from now."""
        wait = max(0, milliseconds(seconds))
        if self._closed:
            return
        try:
            with self._locked():
                place, now = self._place(), self._now()
                if place is not None:
                    is_over = now >= place.at
                    at = now + wait if is_over else min(place.at, now + wait)  # One time for all is soon enough.
                    self._point(_Place(place.name, place.era if is_over else place.floor, place.era + 1, at))
        except (_FailedError, OSError):
            self._errors += 1
            self.clear()

    def stats(self) -> Stats:
        """Return what was counted in this process, and what the folder holds for all."""
        try:
            sessions, size = self._do(_sizes)
        except _FailedError:
            sessions = size = 0
        evicted = self._evicted + (0 if self._rows is None else self._rows.evicted)
        return Stats(self._hits, self._misses, self._stale, self._refused, evicted, self._errors, sessions, size)

    def close(self) -> None:
        """Close every connection; those in use close with the call that uses them."""
        self._closed = True
        if self._rows is not None:
            self._rows.shut()

    # -- entries -----------------------------------------------------------------------------

    def _now(self) -> int:
        return round(self._seconds() * 1000)

    def _read(self, handle: str, kind: bytes, beyond: int = 0) -> tuple[_Entry | None, int]:
        """Return an entry, and how many milliseconds longer it may be served."""
        try:
            value, place = self._do(_value, self._key(handle, kind))
        except _FailedError:
            self._errors += 1
            return None, 0
        entry = self._entry(handle, kind, place, value)
        if entry is None:
            if value is not None and kind == RECORD:  # Where an absence lies, that of another handle may lie too.
                self._errors += 1
                self._log("An entry of the cache in %s does not open: who else can write there?")
            return None, 0
        return entry, self._left(handle, entry, place, beyond)

    def _record(self, handle: str, entry: _Entry | None, left: int, min_version: int) -> Record | None:
        if entry is None or left <= 0 or entry.version < min_version:
            return None
        try:
            return unpack(handle, entry.body)
        except SessionError:  # A newer release has left it here.
            return None

    def _left(self, handle: str, entry: _Entry, place: _Place, beyond: int = 0) -> int:
        now = self._now()
        if entry.since > now or entry.era < place.floor or self._is_in_doubt(handle, entry.since):
            return 0
        until = entry.since + self._staleness + beyond
        return (until if entry.era == place.era else min(until, place.at)) - now

    def _key(self, handle: str, kind: bytes) -> bytes:
        return self._seals[0].key(handle) if kind == RECORD else _absent_key(handle)

    def _entry(self, handle: str, kind: bytes, place: _Place, value: bytes | None) -> _Entry | None:
        content = None if value is None else self._seals[0].open(value, kind, place.name, handle)
        if content is None:
            return None
        since, era, version = _ENTRY.unpack_from(content)
        return _Entry(since, era, version, content[_ENTRY.size :])

    def _fill(self, rows: _Rows, place: _Place, fill: _Fill) -> bool | None:
        """Keep what fills the entry; return whether it was kept, or None if the lease was cancelled."""
        content = _ENTRY.pack(fill.since, place.era, fill.version) + fill.body
        sealed = self._seals[0].seal(content, fill.kind, place.name, fill.handle)
        key = self._key(fill.handle, fill.kind)
        with rows.transact():
            if _drops(rows, place, fill.handle) != fill.drops:
                return None
            present = self._entry(fill.handle, fill.kind, place, rows.get(key))
            if present and present.version > fill.version and self._left(fill.handle, present, place) > 0:
                return False
            rows.set(key, sealed)
            rows.execute(_DELETE, self._key(fill.handle, ABSENT if fill.kind == RECORD else RECORD))
        return True

    def _drop(self, rows: _Rows, place: _Place, handle: str) -> None:
        """Delete what there is under any key of the ring, and see that it is gone."""
        keys = [_absent_key(handle), *(seal.key(handle) for seal in self._seals)]
        with rows.transact():
            _, before = _drops(rows, place, handle)
            rows.execute(_BUMP, _stripe(handle))
            for key in keys:
                rows.execute(_DELETE, key)
            _, after = _drops(rows, place, handle)
            if after != before + 1 or any(rows.execute(_COUNT, key) != [(0,)] for key in keys):
                raise _ForeignError

    # -- what is in doubt --------------------------------------------------------------------

    def _is_in_doubt(self, handle: str, since: int) -> bool:
        """Tell whether what was leased then may be what a drop failed to take away."""
        return since <= self._floor or since <= self._floors.get(handle, -1)

    def _doubt(self, handle: str) -> None:
        if len(self._floors) >= MOST_BLOCKED:
            self._doubt_all()
        self._floors[handle] = self._now()

    def _doubt_all(self) -> None:
        self._floor = self._now()
        self._floors = {}

    # -- the database in use -----------------------------------------------------------------

    def _do(self, work: Callable[..., _T], *arguments: Any, forgets: bool = False) -> _T:
        """Return what the work returns, given a database and its place; raise _FailedError whatever goes wrong.

        For what forgets there is nothing to do where there is no database, and no rest.
        """
        if self._pid != os.getpid():
            self._leave_to_parent()
        if self._closed or (self._now() < self._rest_until and not forgets):
            raise _FailedError
        began, rows = self._waited(), self._rows
        try:
            place = self._place()
            if place is None and forgets:
                return None  # type: ignore[return-value]
            if place is None or rows is None or rows.name != place.name:
                place, rows = self._opened()
            return rows.use(work, place, *arguments)
        except Exception as error:
            self._settle(error, rows, self._waited() - began)
            raise _FailedError from error

    def _settle(self, error: Exception, rows: _Rows | None, waited: float) -> None:
        """Leave a damaged database for a new one, and a slow disk alone for a moment."""
        self._log("The cache in %s failed, which is a miss, and may go on to, unheard: %r", error)
        now = self._now()
        if waited >= SLOW:
            self._rest_until = now + REST_MS
        with suppress(OSError):
            place = self._place()
            # What is no longer in use may fail in any way.
            if place is None or rows is None or rows.name != place.name or not rows.is_damaged_by(error):
                return
            if now - self._damaged_at < DAMAGE_MS:
                self._rest_until = now + DAMAGE_MS
            self._damaged_at = now
            self._set_aside(rows.name, error)

    def _place(self) -> _Place | None:
        """Return what is in use; None if nothing is, or nothing that we would have written."""
        try:
            text = os.readlink(self._link)  # noqa: PTH115 - half the time
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINVAL}:
                return None
            raise
        known, place = self._known
        if text != known:
            match = PLACE.fullmatch(text)
            if match is None:
                return None
            place = _Place(match[1], int(match[2]), int(match[3]), int(match[4]))
            self._known = text, place
        return place

    def _point(self, place: _Place) -> None:
        """Say what is in use from now on."""
        temporary = self._folder / f"current.{secrets.token_hex(8)}"
        temporary.symlink_to(".".join(map(str, place)))
        temporary.replace(self._link)

    def _forget(self, name: str | None = None, *, keeps: bool = False) -> None:
        """Have nothing in use, or not the database of this name; then take it away, or set it aside."""
        place = self._place()
        if place is None or name not in {None, place.name}:
            return
        self._link.unlink(missing_ok=True)
        folder = self._folder / place.name
        if keeps:
            aside = self._folder / "damaged"
            _remove(aside)
            with suppress(OSError):
                folder.rename(aside)
        _remove(folder)

    def _set_aside(self, name: str, error: Exception) -> None:
        self._log("The cache in %s was damaged, and is begun anew; the old one lies in its folder damaged: %r", error)
        self._forget(name, keeps=True)

    def _log(self, message: str, *details: object) -> None:
        """Log what went wrong, each kind of it once."""
        if message not in self._logged:
            self._logged.add(message)
            import logging  # noqa: PLC0415 - it takes longer to import than a cache, and is rarely needed

            logging.getLogger("sessiontree.caches").warning(message, self._folder, *details)

    def _opened(self) -> tuple[_Place, _Rows]:
        """Open the database in use, or begin one."""
        try:
            with self._locked():
                place, rows = self._place(), self._rows
                if place is not None and (rows is None or rows.name != place.name):
                    rows = self._adopted(place.name)
                if place is None or rows is None:
                    place, rows = self._begun()
                before, self._rows = self._rows, rows
        except BaseException:
            self._rest_until = self._now() + REST_MS
            raise
        if before is not None and before is not rows:
            self._evicted += before.evicted
            before.shut()
        return place, rows

    def _adopted(self, name: str) -> _Rows | None:
        """Open a database that another process began, or an earlier one; None if it is not to be used."""
        path = self._folder / name / FILES[0]
        try:
            _check_private(path)
            if self._checked(path) == self._boot:
                return self._rows_of(path)
            self._forget(name)
        except Exception as error:
            if not _is_damage(error):
                raise
            self._set_aside(name, error)
        return None

    def _checked(self, path: Path) -> bytes:
        """Return in which boot a database was begun; raise _ForeignError if it is not as it was made."""
        connection = _connected(path, self._timeout)
        try:
            schema = connection.execute(_SCHEMA).fetchall()
            if ("table", "Mark", "Mark", _MARK) not in schema or any(row[0] == "view" for row in schema):
                raise _ForeignError
            ((mark,),) = connection.execute("SELECT CAST(mark AS BLOB) FROM Mark LIMIT 2").fetchall()
            opened = (seal.open(mark, MARK, path.parent.name, "") for seal in self._seals)
            content = next((each for each in opened if each is not None), b"")
            if content[:KEY_BYTES] != _digest(schema, connection.execute(_SETTINGS).fetchall()):
                raise _ForeignError
        finally:
            connection.close()
        return content[KEY_BYTES:]

    def _begun(self) -> tuple[_Place, _Rows]:
        """Begin a database, and have it in use."""
        self._sweep()
        place = _Place(secrets.token_hex(16))
        folder = self._folder / place.name
        folder.mkdir(0o700)
        try:
            folder.chmod(0o700)
            _make(folder / FILES[0], b"")
            rows = self._rows_of(folder / FILES[0])
            rows.use(self._mark, place)
            self._point(place)
        except BaseException:
            _remove(folder)
            raise
        return place, rows

    def _rows_of(self, path: Path) -> _Rows:
        return _Rows(path, self._room, self._timeout)

    def _mark(self, rows: _Rows, place: _Place) -> None:
        """Add what is ours, and seal what the database is."""
        with rows.transact():
            rows.execute(_MARK)
            rows.execute(_DROPS)
            content = _digest(rows.execute(_SCHEMA), rows.execute(_SETTINGS)) + self._boot
            rows.execute("INSERT INTO Mark VALUES (?)", self._seals[0].seal(content, MARK, place.name, ""))

    def _sweep(self) -> None:
        """Remove what processes left behind that were killed while they began something. Only with the lock."""
        for path in self._folder.iterdir():
            if LEFT_OVER.fullmatch(path.name):
                _remove(path)
            elif TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let no other thread or process begin a database or a key meanwhile; raise _FailedError if one never ends."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._folder / "lock", flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            until = self._waited() + BEGINNING
            while not _is_taken(descriptor):
                if self._waited() >= until:
                    raise _FailedError
                Event().wait(0.002)
            yield
        finally:
            # A process that was forked meanwhile has the lock too, and only this takes it from both.
            flock(descriptor, LOCK_UN)
            os.close(descriptor)

    def _ring(self, keys: Keys | None) -> KeyRing:
        """Return the ring of these keys, or of the key in the folder, which is made if there is none."""
        if keys is not None:
            return KeyRing.of(keys)
        path = self._folder / "key"
        try:
            with self._locked():
                if not os.path.lexists(path):
                    temporary = self._folder / f"key.{secrets.token_hex(8)}"
                    _make(temporary, secrets.token_bytes(KEY_BYTES))
                    temporary.rename(path)
            return KeyRing(_private_key(path))
        except (OSError, _FailedError) as error:
            raise ConfigError(f"The key {path} cannot be read or made: let this user do it ({error!r}).") from error

    def _leave_to_parent(self) -> None:
        """Begin anew in a forked process.

        A connection that came through the fork cannot be closed here, and SQLite believes that this process has its
        locks. No other file is concerned by that, so another database is what helps.
        """
        rows, self._rows = self._rows, None
        if rows is not None and rows.is_open:
            _INHERITED.append(rows)
            with suppress(OSError):
                self._forget(rows.name)
        self._pid = os.getpid()


# -- work: what is done with a database ---------------------------------------------------------


def _nothing(rows: _Rows, place: _Place) -> None:
    """Have the database opened."""


def _value(rows: _Rows, place: _Place, key: bytes) -> tuple[bytes | None, _Place]:
    """Return the value of a key."""
    return rows.get(key), place


def _drops(rows: _Rows, place: _Place, handle: str) -> tuple[str, int]:
    """Return how often something of the handle's stripe was dropped, and in which database."""
    ((number,),) = rows.execute(_NUMBER, _stripe(handle))
    if type(number) is not int:
        raise _ForeignError
    return place.name, number


def _sizes(rows: _Rows, place: _Place) -> tuple[int, int]:  # noqa: ARG001 - as all work takes it
    """Return how many records there are, and their bytes."""
    ((sessions, size),) = rows.execute(_SIZES, HASH_BYTES)
    return sessions, size


def _stripe(handle: str) -> int:
    return crc32(_raw(handle)) % STRIPES


def _absent_key(handle: str) -> bytes:
    return b"-%d" % (crc32(_raw(handle)) % ABSENT_SLOTS)


def _is_taken(descriptor: int) -> bool:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


_CACHES: Final[WeakSet[DiskCache]] = WeakSet()
_INHERITED: Final[list[_Rows]] = []
"""Databases that a parent process has open, kept so that nothing closes them here."""


def _before_fork() -> None:
    """Close what is not in use, so that a child inherits nothing that stands in its way."""
    for cache in list(_CACHES):
        if cache._rows is not None:  # noqa: SLF001 - of this module
            cache._rows.rest()  # noqa: SLF001


os.register_at_fork(before=_before_fork)
