"""What a cache promises. Each sentence here is a case of ``sessiontree.caches.conformance``.

A cache may forget anything at any time, and it never says that a session is dead: what it does not have, what is too
old, and what it fails at are all misses, and the store is asked. It is used by any number of threads at once.

A fill can never undo a revocation. Whoever fills takes a lease before it reads the store, and gives it back with the
record; whoever writes drops the handle after the store has confirmed it, and that cancels every lease on it:

    a reader                 a writer
    lease(handle)
    store.load(handle)
                             store.revoke(handle)
                             drop(handle)
    put(handle, ..., lease)  refused: the lease is older than the drop
"""

from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from ..clock import Clock, Duration
from ..records import Record
from .kept import Kept
from .stats import Stats

__all__ = ["MAX_STALENESS", "OPTIONAL", "Cache", "Cached", "Lease", "Lingering"]

MAX_STALENESS: Final = 5.0
"""How many seconds an entry may be served for, unless the cache says otherwise, counted from its lease."""

OPTIONAL: Final = frozenset({"clock", "close", "is_absent", "max_staleness"})
"""What a handler's cache may go without.

Without ``is_absent`` it is never told that a store has no such record; without a ``clock`` nobody can check that it
tells the time as the handler does; without ``max_staleness`` five seconds are taken for it.
"""

Lease: TypeAlias = Any
"""What ``lease`` returns and ``put`` takes: the cache's own business."""

Cached: TypeAlias = Record | Kept
"""What a cache returns: a record, or one that is still packed and is unpacked when it is used."""


@runtime_checkable
class Cache(Protocol):
    """Remembers some records for a while."""

    clock: Clock
    """What decides how old an entry is, and whether its record has expired."""

    max_staleness: float
    """How many seconds after its lease an entry is served for at most."""

    def get(self, handle: str, min_version: int = 0) -> Cached | None:
        """Return the record, or None: a miss.

        What is older than ``max_staleness``, of a version before ``min_version``, or past one of its deadlines, is a
        miss. Whatever goes wrong is a miss too, counted in ``stats().errors``; nothing is raised.
        """
        ...

    def is_absent(self, handle: str) -> bool:
        """Tell whether the store was found to have no such record, at most ``max_staleness`` seconds ago.

        Only a negative ``put`` says so. These entries are apart from the others and few, so that no number of them
        takes a record's place.
        """
        ...

    def lease(self, handle: str) -> Lease:
        """Return what ``put`` takes: the right to fill the entry with what the store is asked for after this."""
        ...

    def put(self, handle: str, record: Record | None, lease: Lease) -> bool:
        """Keep the record, or, for None, that the store has none; return whether it was kept.

        It is refused if the handle was dropped, or the cache cleared, since the lease. Its age counts from the lease.
        A record of a lower version never takes the place of a higher one. A record that is expired is not kept.
        """
        ...

    def drop(self, handle: str) -> None:
        """Forget the record and cancel every lease on the handle: after this returns no earlier fill is served.

        Where the cache is shared and does not answer, it serves the handle to nobody in this process until whatever it
        may still hold is older than ``max_staleness``.
        """
        ...

    def clear(self) -> None:
        """Forget all, and cancel every lease."""
        ...

    def clear_after(self, seconds: Duration) -> None:
        """Have what is cached now be gone that many seconds from now; what is filled later stays. No thread is used."""
        ...

    def stats(self) -> Stats:
        """Return what was counted since the beginning, and what there is now."""
        ...

    def close(self) -> None:
        """Let go of whatever the cache holds. Closing again is fine; a closed cache misses everything."""
        ...


@runtime_checkable
class Lingering(Cache, Protocol):
    """A cache that can also be asked for what is too old, which ``with_outage("stale")`` needs."""

    def stale(self, handle: str, min_version: int, beyond: float) -> Cached | None:
        """Return the record if it is at most ``beyond`` seconds older than ``max_staleness``, else None.

        For whoever cannot ask the store. What was dropped or cleared is never returned; whether the record has expired
        is for the caller to say.
        """
        ...
