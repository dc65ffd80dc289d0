"""A cache in this process's memory. A hit takes no lock: one look-up in a dict, one look at the clock.

Entries lie in two generations. New ones go into the young; when that is half of what there may be, it becomes the old
one, and what the old one held is forgotten, but for what was asked for meanwhile, which moved over to the young. That
is nearly what a least-recently-used list keeps, without the list, and so without a lock for those who read.

Any policy of cachetools may take the place of the generations; then every call takes the lock.
"""

import os
from collections.abc import Callable, MutableMapping
from threading import Lock
from typing import Any, Final
from weakref import WeakSet

from ..clock import Clock, Duration, SystemClock, milliseconds, stopwatch
from ..errors import ConfigError
from ..forks import Held
from ..records import Record
from .kept import Kept, opened
from .protocol import MAX_STALENESS, Lease
from .stats import Stats

__all__ = ["LocalCache"]

MAX_SESSIONS: Final = 100_000
MAX_BYTES: Final = 64 * 1024 * 1024
STRIPES: Final = 1024
"""How many counters of drops there are: a drop cancels the leases on its handle, and on one in so many others."""

MOST_ABSENT: Final = 4096
"""How many handles are remembered as absent; all are forgotten when there are more."""


class LocalCache(Held):
    """Keeps packed records in memory, up to so many and so many bytes of them; a forked process begins empty.

    ``policy`` may be any cachetools cache, empty, whose size then counts instead of ``max_sessions``. Raises
    ConfigError for sizes below 1, a negative staleness, or a policy that is no mapping.
    """

    def __init__(
        self,
        max_sessions: int = MAX_SESSIONS,
        max_staleness: Duration = MAX_STALENESS,
        policy: MutableMapping[str, Any] | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        clock: Clock | None = None,
    ) -> None:
        """Begin empty."""
        if type(max_sessions) is not int or type(max_bytes) is not int or max_sessions < 1 or max_bytes < 1:
            raise ConfigError("A LocalCache takes max_sessions and max_bytes as ints of 1 or more.")
        if policy is not None and (not isinstance(policy, MutableMapping) or len(policy)):
            raise ConfigError("The policy of a LocalCache is an empty cachetools cache, such as LRUCache(10_000).")
        staleness = milliseconds(max_staleness)
        if staleness < 0:
            raise ConfigError("max_staleness is 0 seconds or more.")
        self.clock: Clock = clock or SystemClock()
        self.max_staleness = staleness / 1000
        self._seconds = stopwatch(self.clock)
        super().__init__()
        self._drops = [0] * STRIPES
        self._epoch = 0
        self._cleared_at = 0.0  # When what clear_after() found here is to be gone.
        self._absent: dict[str, float] = {}
        self._refused = self._errors = 0
        self._closed = False
        self._table = Generations(max_sessions, max_bytes) if policy is None else Policy(policy)
        self.get: Callable[..., Kept | None] = self._reader()
        _CACHES.add(self)

    def stale(self, handle: str, min_version: int, beyond: float) -> Kept | None:
        """Return what is not much older than it may be, for whoever cannot ask the store."""
        with self._lock:
            kept, now = self._table.find(handle), self._seconds()
        if kept is None or kept.version < min_version or now >= kept.until + beyond:
            return None
        return None if kept.until <= self._cleared_at <= now else kept

    def is_absent(self, handle: str) -> bool:
        """Tell whether the store was found to have no such record a short while ago."""
        until = self._absent.get(handle)
        return until is not None and self._seconds() < until

    def lease(self, handle: str) -> Lease:
        """Return the right to fill the entry, as long as nobody drops it."""
        return self._seconds(), self._drops[hash(handle) % STRIPES], self._epoch

    def put(self, handle: str, record: Record | None, lease: Lease) -> bool:
        """Keep the record, or that there is none, unless the lease was cancelled."""
        leased, drops, epoch = lease
        until = leased + self.max_staleness
        now = self._seconds()
        kept = None
        if record is not None:
            kept = self._packed(record, min(until, now + (record.ends - self.clock.now()) / 1000))
            if kept is None:
                return False
        with self._lock:
            if self._closed or drops != self._drops[hash(handle) % STRIPES] or epoch != self._epoch:
                self._refused += 1
                return False
            if (until if kept is None else kept.until) <= now:
                return False
            if kept is None:
                return self._keep_absent(handle, until)
            self._absent.pop(handle, None)
            return self._table.put(handle, kept)

    def get_aged(self, handle: str, min_version: int = 0) -> tuple[Kept, float, float] | None:
        """Return what ``get`` does, how many seconds ago its lease was taken, and how many more it will be served."""
        kept = self.get(handle, min_version)
        if kept is None:
            return None
        left = kept.until - self._seconds()
        return (kept, self.max_staleness - left, left) if left > 0 else None

    def put_aged(self, handle: str, record: Record, lease: Lease, age: float) -> bool:
        """Do what ``put`` does, with a record that was so many seconds old when the lease was taken."""
        leased, drops, epoch = lease
        return self.put(handle, record, (leased - age, drops, epoch))

    def drop(self, handle: str) -> None:
        """Forget the record, and cancel every lease on the handle."""
        with self._lock:
            self._drops[hash(handle) % STRIPES] += 1
            self._absent.pop(handle, None)
            self._table.pop(handle)

    def clear(self) -> None:
        """Forget all, and cancel every lease."""
        with self._lock:
            self._forget_all()

    def _forget_all(self) -> None:
        self._epoch += 1
        self._absent.clear()
        self._table.clear()

    def clear_after(self, seconds: Duration) -> None:
        """Have what is cached now be gone that many seconds from now."""
        until = self._seconds() + max(0, milliseconds(seconds)) / 1000
        with self._lock:
            self._cleared_at = until
            for kept in self._table.all():
                kept.end(until)
            for handle, before in self._absent.items():
                self._absent[handle] = min(before, until)

    def stats(self) -> Stats:
        """Return what was counted."""
        table = self._table
        with self._lock:
            counts = table.hits, table.misses, table.stale, self._refused, table.evictions, self._errors
            return Stats(*counts, len(table), table.size())

    def close(self) -> None:
        """Forget all and keep nothing more."""
        with self._lock:
            self._closed = True
            self._forget_all()

    def _packed(self, record: Record, until: float) -> Kept | None:
        try:
            return Kept(opened(record) or record, until)
        except Exception:  # noqa: BLE001 - what cannot be packed is not kept, and whoever fills has the record
            self._errors += 1
            return None

    def _keep_absent(self, handle: str, until: float) -> bool:
        self._table.pop(handle)
        if len(self._absent) >= MOST_ABSENT:
            self._absent.clear()
        self._absent[handle] = until
        return True

    def _reader(self) -> Callable[..., Kept | None]:
        """Return ``get``. As a closure it reads no attribute of the cache, which is a quarter of its time."""
        table, seconds = self._table, self._seconds
        if isinstance(table, Policy):
            return self._get_in_turn

        def get(handle: str, min_version: int = 0) -> Kept | None:
            try:
                kept: Kept = table.young[handle]
            except KeyError:
                return self._get_older(handle, min_version)
            if seconds() < kept.until and kept.version >= min_version:
                table.hits += 1
                return kept
            table.missed(kept)
            return None

        return get

    def _get_older(self, handle: str, min_version: int) -> Kept | None:
        """Return what the old generation has, and move it to the young one, unless somebody has the lock."""
        table: Generations = self._table  # type: ignore[assignment]
        kept = table.old.get(handle)
        if kept is None or self._seconds() >= kept.until or kept.version < min_version:
            table.missed(kept)
            return None
        table.hits += 1
        if self._lock.acquire(blocking=False):
            try:
                if table.old.get(handle) is kept:  # Nobody has dropped or replaced it since.
                    table.put(handle, kept)
            finally:
                self._lock.release()
        return kept

    def _get_in_turn(self, handle: str, min_version: int = 0) -> Kept | None:
        """Return what a policy has, which may move things about even for those who read."""
        table = self._table
        with self._lock:
            kept = table.find(handle)
            if kept is not None and self._seconds() < kept.until and kept.version >= min_version:
                table.hits += 1
                return kept
            table.missed(kept)
            return None


class Table:
    """Entries by handle, and what is counted of them."""

    __slots__ = ("evictions", "hits", "misses", "stale")

    def __init__(self) -> None:
        """Count from zero."""
        self.evictions = self.hits = self.misses = self.stale = 0

    def missed(self, kept: Kept | None) -> None:
        """Count a miss, of an entry that was no use or of none."""
        self.misses += 1
        self.stale += kept is not None

    def find(self, handle: str) -> Kept | None:
        """Return the entry."""
        raise NotImplementedError

    def put(self, handle: str, kept: Kept) -> bool:
        """Keep an entry, with the lock held; return whether it was kept."""
        raise NotImplementedError

    def pop(self, handle: str) -> None:
        """Forget an entry, with the lock held."""
        raise NotImplementedError

    def all(self) -> list[Kept]:
        """Return every entry."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget all."""
        raise NotImplementedError

    def size(self) -> int:
        """Return how many bytes all entries have."""
        return sum(kept.size for kept in self.all())

    def __len__(self) -> int:
        """Return how many entries there are."""
        raise NotImplementedError


class Generations(Table):
    """The default: a young and an old dict, each with at most half of what there may be."""

    __slots__ = ("_most", "_most_bytes", "_young_bytes", "old", "young")

    def __init__(self, sessions: int, size: int) -> None:
        """Hold at most so many entries and so many bytes of them."""
        super().__init__()
        self.young: dict[str, Kept] = {}
        self.old: dict[str, Kept] = {}
        self._most = max(1, sessions // 2)
        self._most_bytes = max(1, size // 2)
        self._young_bytes = 0

    def find(self, handle: str) -> Kept | None:
        """Return the entry."""
        kept = self.young.get(handle)
        return self.old.get(handle) if kept is None else kept

    def put(self, handle: str, kept: Kept) -> bool:
        """Keep an entry among the young."""
        size, present = kept.size, self.find(handle)
        if size > self._most_bytes or (present is not None and present.version > kept.version):
            return False
        self.pop(handle)
        if len(self.young) >= self._most or self._young_bytes + size > self._most_bytes:
            self._grow_old()
        self.young[handle] = kept
        self._young_bytes += size
        return True

    def _grow_old(self) -> None:
        self.evictions += len(self.old)
        self._young_bytes = 0
        self.old, self.young = self.young, {}

    def pop(self, handle: str) -> None:
        """Forget an entry."""
        kept = self.young.pop(handle, None)
        if kept is not None:
            self._young_bytes -= kept.size
        self.old.pop(handle, None)

    def all(self) -> list[Kept]:
        """Return every entry."""
        return [*self.young.values(), *self.old.values()]

    def clear(self) -> None:
        """Forget all."""
        self.young, self.old = {}, {}
        self._young_bytes = 0

    def __len__(self) -> int:
        """Return how many entries there are."""
        return len(self.young) + len(self.old)


class Policy(Table):
    """Entries in a cache of cachetools, which decides what gives way."""

    __slots__ = ("_entries",)

    def __init__(self, entries: MutableMapping[str, Kept]) -> None:
        """Keep entries in this mapping."""
        super().__init__()
        self._entries = entries

    def find(self, handle: str) -> Kept | None:
        """Return the entry."""
        return self._entries.get(handle)

    def put(self, handle: str, kept: Kept) -> bool:
        """Keep an entry, if the policy takes it."""
        present = self._entries.get(handle)
        if present is not None and present.version > kept.version:
            return False
        before = len(self._entries) + (present is None)
        try:
            self._entries[handle] = kept
        except ValueError:  # So cachetools says that it is larger than all there may be.
            return False
        self.evictions += before - len(self._entries)
        return handle in self._entries

    def pop(self, handle: str) -> None:
        """Forget an entry."""
        self._entries.pop(handle, None)

    def all(self) -> list[Kept]:
        """Return every entry."""
        return list(self._entries.values())

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()

    def __len__(self) -> int:
        """Return how many entries there are."""
        return len(self._entries)


_CACHES: Final[WeakSet[LocalCache]] = WeakSet()


def _begin_anew() -> None:
    """In a forked child: nobody holds the parent's locks here, and nobody tells us of its drops."""
    for cache in list(_CACHES):
        cache._lock = Lock()  # noqa: SLF001 - our own
        cache.clear()


os.register_at_fork(after_in_child=_begin_anew)
