"""Two caches as one: a small fast one in front of a larger or shared one.

Both tiers keep the protocol by themselves, so all there is to prove is that nothing is copied from the second into the
first that should be gone. The copy takes a lease of the first before it reads the second; ``drop`` drops the second,
then the first:

    a reader                        a writer
    l1.lease(handle)
    l2.get(handle)
                                    l2.drop(handle)
                                    l1.drop(handle)
    l1.put(handle, ..., lease)      refused

Whoever still found the record in the second tier read it before that tier was dropped, so its lease is older than the
drop of the first, which refuses the copy or takes it away again. The other way round a lease taken between the two
drops would be good for what the second tier still held. ``clear`` is the same for all handles.

No copy begins a new life: it is as old as what it was copied from, and is served no longer than that one.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeAlias, TypeVar, runtime_checkable

from ..breaker import Breaker
from ..clock import Clock, Duration, milliseconds, stopwatch
from ..errors import ConfigError
from ..records import Record
from .kept import opened
from .protocol import Cache, Cached, Lease, Lingering
from .stats import Stats

__all__ = ["Aging", "TieredCache"]

MOST_SLOW: Final = 3
"""After how many slow answers in a row the second tier is left alone: a store would have given them meanwhile."""

NO_LEASE: Final = object()
"""In place of a lease of a second tier that gave none."""

_T = TypeVar("_T")
_Aged: TypeAlias = tuple[Cached, float, float] | None


@runtime_checkable
class Aging(Cache, Protocol):
    """A cache that says how old an entry is, and takes one that is not new: either tier must, for copies upward."""

    def get_aged(self, handle: str, min_version: int = 0) -> tuple[Cached, float, float] | None:
        """Return what ``get`` does, how many seconds ago its lease was taken, and how many more it will be served."""
        ...

    def put_aged(self, handle: str, record: Record, lease: Lease, age: float) -> bool:
        """Do what ``put`` does, with a record that was so many seconds old when the lease was taken."""
        ...


class TieredCache:
    """Reads the first tier, then the second, and copies upward what it finds there, if both are ``Aging``.

    An entry is served for as long as the tier it lies in serves it; ``max_staleness`` is the longer of both. A second
    tier that fails or is slow is a miss, counted among the errors. Raises ConfigError for two tiers on two clocks.
    """

    def __init__(self, l1: Cache, l2: Cache) -> None:
        """Put one cache in front of another."""
        if l1.clock != l2.clock:
            raise ConfigError("Both tiers of a TieredCache tell the time by one clock: pass the same clock= to both.")
        self.l1: Final = l1
        self.l2: Final = l2
        self.clock: Clock = l1.clock
        self.max_staleness = max(l1.max_staleness, l2.max_staleness)
        self._seconds = stopwatch(self.clock)
        self._copies = _tells_ages(l1) and _tells_ages(l2)
        self._shut_until = -1.0  # Until when a second tier that failed to forget is not asked.
        self._breaker = Breaker(MOST_SLOW)
        self._clearings = 0
        self._has_failed = False
        self._hits = self._misses = self._errors = 0

    def get(self, handle: str, min_version: int = 0) -> Cached | None:
        """Return the record from the first tier that has it."""
        found = self.l1.get(handle, min_version)
        if found is None:
            found = self._ask(None, self._copied if self._copies else self.l2.get, handle, min_version)
        self._count(found)
        return found

    def get_aged(self, handle: str, min_version: int = 0) -> tuple[Cached, float, float] | None:
        """Return what ``get`` does and how old it is, if the tiers can say so."""
        if not self._copies:
            return None
        found: _Aged = self.l1.get_aged(handle, min_version)  # type: ignore[attr-defined]
        if found is None:
            found = self._ask(None, self.l2.get_aged, handle, min_version)  # type: ignore[attr-defined]
        self._count(found)
        return found

    def stale(self, handle: str, min_version: int, beyond: float) -> Cached | None:
        """Return what a tier has that is not much older than it may be; a tier that cannot say so has nothing."""
        found = self.l1.stale(handle, min_version, beyond) if isinstance(self.l1, Lingering) else None
        # What once failed to forget may hold for ever what it should not have.
        if found is None and isinstance(self.l2, Lingering) and self._shut_until < 0:
            found = self._ask(None, self.l2.stale, handle, min_version, beyond)
        return found

    def is_absent(self, handle: str) -> bool:
        """Tell whether a tier knows that there is no such record."""
        return self.l1.is_absent(handle) or self._ask(False, self.l2.is_absent, handle)  # noqa: FBT003 - the answer

    def lease(self, handle: str) -> Lease:
        """Return a lease of each tier."""
        return self.l1.lease(handle), self._ask(NO_LEASE, self.l2.lease, handle)

    def put(self, handle: str, record: Record | None, lease: Lease) -> bool:
        """Keep the record, or that there is none, in both tiers; return whether one of them did."""
        first, second = lease
        kept = second is not NO_LEASE and self._ask(False, self.l2.put, handle, record, second)  # noqa: FBT003 - as above
        return self.l1.put(handle, record, first) or kept

    def put_aged(self, handle: str, record: Record, lease: Lease, age: float) -> bool:
        """Keep a record that is not new, if the tiers can."""
        if not self._copies:
            return False
        first, second = lease
        put: Any = self.l2.put_aged  # type: ignore[attr-defined]
        kept = second is not NO_LEASE and self._ask(False, put, handle, record, second, age)  # noqa: FBT003 - as above
        return self.l1.put_aged(handle, record, first, age) or kept  # type: ignore[attr-defined]

    def drop(self, handle: str) -> None:
        """Have the second tier forget the record, then the first."""
        try:
            self._forget(self.l2.drop, handle)
        finally:
            self.l1.drop(handle)

    def clear(self) -> None:
        """Have the second tier forget all, then the first."""
        try:
            self._forget(self.l2.clear)
        finally:
            self.l1.clear()

    def clear_after(self, seconds: Duration) -> None:
        """Have both tiers forget later what they hold now."""
        milliseconds(seconds)  # A wrong one is the caller's fault, and no tier's.
        try:
            self._forget(self.l2.clear_after, seconds)
        finally:
            # A copy of what was read before this either lies in the first tier now or notices the change.
            self._clearings += 1
            self.l1.clear_after(seconds)

    def stats(self) -> Stats:
        """Return the hits and misses of both together, and the sum of what else there is: what both hold counts twice.

        How many misses were stale is what the worse tier says.
        """
        one, two = self.l1.stats(), self.l2.stats()
        return Stats(
            hits=self._hits,
            misses=self._misses,
            stale=min(self._misses, max(one.stale, two.stale)),
            refused=one.refused + two.refused,
            evictions=one.evictions + two.evictions,
            errors=one.errors + two.errors + self._errors,
            sessions=one.sessions + two.sessions,
            bytes=one.bytes + two.bytes,
        )

    def close(self) -> None:
        """Close both tiers."""
        try:
            self.l2.close()
        finally:
            self.l1.close()

    def _copied(self, handle: str, min_version: int) -> Cached | None:
        """Return what the second tier has, and leave a copy of the same age in the first."""
        clearings = self._clearings
        lease = self.l1.lease(handle)
        found = self.l2.get_aged(handle, min_version)  # type: ignore[attr-defined]
        if found is None:
            return None
        cached, age, left = found
        record = opened(cached)
        age = max(age, self.l1.max_staleness - left)  # So that the copy does not outlive what it was copied from.
        self.l1.put_aged(handle, record, lease, age)  # type: ignore[attr-defined]
        if clearings != self._clearings:  # What was read may be what clear_after() ends, and the copy is later than it.
            self.l1.drop(handle)
        return record

    def _ask(self, otherwise: _T, verb: Callable[..., _T], *arguments: Any) -> _T:
        """Return what the second tier answers; if it fails or is left alone, what it is to be instead."""
        began = None if self._seconds() < self._shut_until else self._breaker.begin()
        if began is None:
            self._errors += 1
            return otherwise
        try:
            return verb(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a tier fails at is a miss
            self._failed(error)
            return otherwise
        finally:
            if not self._breaker.count(began):  # Whatever came of it: a slow answer is as good as none.
                self._breaker.close()

    def _forget(self, verb: Callable[..., object], *arguments: Any) -> None:
        """Have the second tier forget. If it fails, it is asked nothing until all it holds now is too old."""
        try:
            verb(*arguments)
        except BaseException as error:
            self._failed(error)
            self._shut_until = self._seconds() + self.l2.max_staleness
            if not isinstance(error, Exception):
                raise

    def _failed(self, error: BaseException) -> None:
        self._errors += 1
        if not self._has_failed:
            self._has_failed = True
            _log(self.l2, error)

    def _count(self, found: object) -> None:
        self._hits += found is not None
        self._misses += found is None


def _tells_ages(cache: Cache) -> bool:
    """Tell whether ages can be had of a cache; of two tiers, if they can be had of both."""
    return cache._copies if isinstance(cache, TieredCache) else isinstance(cache, Aging)  # noqa: SLF001 - our own


def _log(cache: Cache, error: BaseException) -> None:
    import logging  # noqa: PLC0415 - it takes longer to import than a cache, and is needed when something is wrong

    logging.getLogger("sessiontree.caches").warning(
        "The second tier %r failed, which is a miss, and may go on to, unheard: %r", cache, error
    )
