"""A cache on this machine's disk, shared by its processes: diskcache, kept from all that makes it dangerous.

diskcache does what a row says: it unpickles, it reads and removes files by name, it puts settings into PRAGMAs. So
whoever can write to its folder runs code (CVE-2025-69872). Here nothing in a row is believed:

* keys and values are bytes in the row itself, and what is anything else is a miss; no file is ever named;
* every value is sealed, and bound to its handle and to this database; a key is a keyed hash of the handle;
* settings are constants, and the connections are ours;
* the schema and the settings of a file that another process made are compared with what that process sealed.

The folder holds ``current``, a link whose text names the database in use, and that database in a folder of its own:

    key                                  made by the first, unless keys were given
    lock                                 held while a database is begun
    current -> 3f9c...e1.0.0.0           its name, and which of its entries are gone
    3f9c...e1/cache.db                   with its log beside it

Every call reads the link, which costs a microsecond. To forget everything is to remove it: each process that misses it
begins a new database, and a lease or a value of another database is good for nothing (``databases``).

Age is measured by the monotonic clock, which all processes of one boot share. What is from before the boot is removed:
a power cut may bring back rows that had been deleted, so there is nothing to be gained by waiting for the disk either.
"""

import os
from binascii import crc32
from contextlib import suppress
from struct import Struct
from typing import Final, NamedTuple

from ...clock import LONGEST_WAIT_MS, Clock, Duration, SystemClock, milliseconds, stopwatch, waiting
from ...errors import ConfigError, SessionError
from ...keys import Keys
from ...records import Record, pack, unpack
from ..protocol import MAX_STALENESS, Lease
from ..stats import Stats
from .current import Current
from .databases import Databases, FailedError, Place
from .files import ForeignError, private_folder
from .rows import HEADROOM, WIDEST, Rows
from .seal import ABSENT, HASH_BYTES, RECORD, raw_handle

__all__ = ["DiskCache"]

MAX_BYTES: Final = 256 * 1024 * 1024
FEWEST_BYTES: Final = 1024 * 1024
SHARE: Final = 8
"""A record takes at most one part in so many of ``max_bytes``, so that no few records push all others out."""

STRIPES: Final = 4096
"""How many counters of drops there are: a drop cancels the leases on its handle, and on one in so many others."""

ABSENT_SLOTS: Final = 256
"""How many handles can be remembered as absent; each has one place, where the last one stays."""

MOST_IN_DOUBT: Final = 1024
"""How many handles are remembered whose drop is in doubt; with more, all that is older than the last is in doubt."""

_NUMBER: Final = "SELECT coalesce((SELECT number FROM Drops WHERE stripe = ?), 0)"
_BUMP: Final = "INSERT INTO Drops VALUES (?, 1) ON CONFLICT DO UPDATE SET number = number + 1"
_DELETE: Final = "DELETE FROM Cache WHERE key = ? AND raw = 1"
_COUNT: Final = "SELECT count(*) FROM Cache WHERE key = ? AND raw = 1"
# The keys of absences are shorter.
_SIZES: Final = "SELECT count(*), coalesce(sum(length(value)), 0) FROM Cache WHERE length(key) = ?"

_ENTRY: Final = Struct(">qqq")


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
    waits for other writers, a day at most. Raises ConfigError for a folder that is a link, not ours or open to others,
    for sizes below 1 MiB, and for durations below 0 or above that day.
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
        self._staleness, wait = milliseconds(max_staleness), waiting(timeout, LONGEST_WAIT_MS, "DiskCache", shortest=0)
        if self._staleness < 0:
            raise ConfigError("max_staleness is 0 seconds or more.")
        self.clock: Clock = clock or SystemClock()
        self.max_staleness = self._staleness / 1000
        self._seconds = stopwatch(self.clock)
        self._databases = Databases(private_folder(directory), keys, self.clock, max_bytes, wait)
        self._largest = min(max_bytes // SHARE, WIDEST - HEADROOM)
        self._current = Current(self._databases, self.clock)
        self._floor = -1  # What was leased until then is served to nobody here, for a clear or many drops are in doubt.
        self._floors: dict[str, int] = {}
        self._hits = self._misses = self._stale = self._refused = self._errors = 0
        if not self._databases.boot:
            self.clear()  # Nobody can tell whether what is here is from before.
        with suppress(FailedError):
            self._current.do(_nothing)

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
        """Return what is not much older than it may be, for whoever cannot ask the store."""
        entry, left = self._read(handle, RECORD, milliseconds(beyond))
        return self._record(handle, entry, left, min_version)

    def is_absent(self, handle: str) -> bool:
        """Tell whether the store was found to have no such record a short while ago."""
        return self._read(handle, ABSENT)[1] > 0

    def lease(self, handle: str) -> Lease:
        """Return the time, and which database has dropped the handle, or another of its stripe, how often."""
        since = self._now()
        try:
            return since, self._current.do(_drops, handle)
        except FailedError:
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
            kept = None if self._is_in_doubt(handle, since) else self._current.do(self._fill, fill)
        except Exception:  # noqa: BLE001 - what cannot be packed is not kept, and whoever fills has the record
            self._errors += 1
            return False
        self._refused += kept is None
        return bool(kept)

    def drop(self, handle: str) -> None:
        """Forget the record, and cancel every lease on the handle, in every process."""
        if self._current.is_closed:
            return
        try:
            self._current.do(self._drop, handle, forgets=True)
        except BaseException as error:
            self._errors += 1
            self._doubt(handle)
            if not isinstance(error, FailedError):
                raise

    def clear(self) -> None:
        """Forget all, and cancel every lease, in every process."""
        if self._current.is_closed:
            return
        try:
            self._databases.forget()
        except BaseException as error:
            self._errors += 1
            self._doubt_all()
            if not isinstance(error, OSError):
                raise

    def clear_after(self, seconds: Duration) -> None:
        """Have what is cached now be gone that many seconds from now."""
        wait = max(0, milliseconds(seconds))
        if self._current.is_closed:
            return
        try:
            with self._databases.locked():
                place, now = self._databases.place(), self._now()
                if place is not None:
                    is_over = now >= place.at
                    at = now + wait if is_over else min(place.at, now + wait)  # One time for all is soon enough.
                    self._databases.point(Place(place.name, place.era if is_over else place.floor, place.era + 1, at))
        except (FailedError, OSError):
            self._errors += 1
            self.clear()

    def stats(self) -> Stats:
        """Return what was counted in this process, and what the folder holds for all."""
        try:
            sessions, size = self._current.do(_sizes)
        except FailedError:
            sessions = size = 0
        errors = self._errors + self._current.given_way
        counts = self._hits, self._misses, self._stale, self._refused, self._current.evicted, errors
        return Stats(*counts, sessions, size)

    def close(self) -> None:
        """Close every connection; those in use close with the call that uses them."""
        self._current.close()

    # -- entries -----------------------------------------------------------------------------

    def _now(self) -> int:
        return round(self._seconds() * 1000)

    def _read(self, handle: str, kind: bytes, beyond: int = 0) -> tuple[_Entry | None, int]:
        """Return an entry, and how many milliseconds longer it may be served."""
        try:
            value, place = self._current.do(_value, self._key(handle, kind))
        except FailedError:
            self._errors += 1
            return None, 0
        entry = self._entry(handle, kind, place, value)
        if entry is None:
            if value is not None and kind == RECORD:  # Where an absence lies, that of another handle may lie too.
                self._errors += 1
                self._databases.log("An entry of the cache in %s does not open: who else can write there?")
            return None, 0
        return entry, self._left(handle, entry, place, beyond)

    def _record(self, handle: str, entry: _Entry | None, left: int, min_version: int) -> Record | None:
        if entry is None or left <= 0 or entry.version < min_version:
            return None
        try:
            return unpack(handle, entry.body)
        except SessionError:  # A newer release has left it here.
            return None

    def _left(self, handle: str, entry: _Entry, place: Place, beyond: int = 0) -> int:
        now = self._now()
        if entry.since > now or entry.era < place.floor or self._is_in_doubt(handle, entry.since):
            return 0
        until = entry.since + self._staleness + beyond
        return (until if entry.era == place.era else min(until, place.at)) - now

    def _key(self, handle: str, kind: bytes) -> bytes:
        return self._databases.seals[0].key(handle) if kind == RECORD else _absent_key(handle)

    def _entry(self, handle: str, kind: bytes, place: Place, value: bytes | None) -> _Entry | None:
        content = None if value is None else self._databases.seals[0].open(value, kind, place.name, handle)
        if content is None:
            return None
        since, era, version = _ENTRY.unpack_from(content)
        return _Entry(since, era, version, content[_ENTRY.size :])

    def _fill(self, rows: Rows, place: Place, fill: _Fill) -> bool | None:
        """Keep what fills the entry; return whether it was kept, or None if the lease was cancelled."""
        content = _ENTRY.pack(fill.since, place.era, fill.version) + fill.body
        sealed = self._databases.seals[0].seal(content, fill.kind, place.name, fill.handle)
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

    def _drop(self, rows: Rows, place: Place, handle: str) -> None:
        """Delete what there is under any key of the ring, and see that it is gone."""
        keys = [_absent_key(handle), *(seal.key(handle) for seal in self._databases.seals)]
        with rows.transact():
            _, before = _drops(rows, place, handle)
            rows.execute(_BUMP, _stripe(handle))
            for key in keys:
                rows.execute(_DELETE, key)
            _, after = _drops(rows, place, handle)
            if after != before + 1 or any(rows.execute(_COUNT, key) != [(0,)] for key in keys):
                raise ForeignError

    # -- what is in doubt --------------------------------------------------------------------

    def _is_in_doubt(self, handle: str, since: int) -> bool:
        """Tell whether what was leased then may be what a drop failed to take away."""
        return since <= self._floor or since <= self._floors.get(handle, -1)

    def _doubt(self, handle: str) -> None:
        if len(self._floors) >= MOST_IN_DOUBT:
            self._doubt_all()
        self._floors[handle] = self._now()

    def _doubt_all(self) -> None:
        self._floor = self._now()
        self._floors = {}


# -- work: what is done with a database ---------------------------------------------------------


def _nothing(rows: Rows, place: Place) -> None:
    """Have the database opened."""


def _value(rows: Rows, place: Place, key: bytes) -> tuple[bytes | None, Place]:
    """Return the value of a key."""
    return rows.get(key), place


def _drops(rows: Rows, place: Place, handle: str) -> tuple[str, int]:
    """Return how often something of the handle's stripe was dropped, and in which database."""
    ((number,),) = rows.execute(_NUMBER, _stripe(handle))
    if type(number) is not int:
        raise ForeignError
    return place.name, number


def _sizes(rows: Rows, place: Place) -> tuple[int, int]:  # noqa: ARG001 - as all work takes it
    """Return how many records there are, and their bytes."""
    ((sessions, size),) = rows.execute(_SIZES, HASH_BYTES)
    return sessions, size


def _stripe(handle: str) -> int:
    return crc32(raw_handle(handle)) % STRIPES


def _absent_key(handle: str) -> bytes:
    return b"-%d" % (crc32(raw_handle(handle)) % ABSENT_SLOTS)
