"""Caches that follow a store: they drop what the store says has changed, and where one could not, nobody believes it.

A cache may forget anything, but what it was told to forget it must not remember. One whose ``drop`` or ``clear`` fails
is doubted until whatever it may still hold is too old for it to serve.
"""

import os
from collections.abc import Callable
from threading import RLock
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary, ref

from ..caches.protocol import MAX_STALENESS, Cache
from ..clock import Clock, SystemClock, stopwatch
from ..errors import NotImplementedByStore
from .protocol import Store

__all__ = ["DOUBTS", "doubt", "dropping", "follow", "serves_beyond", "why_doubted"]

MOST_DOUBTS: Final = 10_000
"""How many handles are doubted one by one; with more, a cache that fails is doubted as a whole."""


def follow(store: Store, *caches: Cache, on_loss: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """Have caches drop what other processes change, as soon as the store's feed tells; return what stops it.

    Without it they serve that for their ``max_staleness``; so they do while the feed is lost, after they have dropped
    all. ``on_loss`` is called then, from the feed's thread. Raises NotImplementedByStore for a store without a feed.
    """
    if not hasattr(store, "watch"):
        raise NotImplementedByStore(f"{type(store).__name__} has no feed: caches are right after max_staleness.")
    changed = [dropping(ref(cache)) for cache in caches]

    def tell(handle: str | None) -> None:
        failed = None
        for each in changed:
            try:
                each(handle)
            except Exception as error:  # noqa: BLE001 - one cache that fails keeps none of the others from hearing
                failed = error
        if handle is None:
            on_loss()
        if failed is not None:
            raise failed

    return store.watch(tell)


def dropping(cache: "ref[Cache]") -> Callable[[str | None], None]:
    """Return what a store calls with the handle of a record that changed, or with None for any; it holds no cache.

    It raises what the cache raises, which is doubted from then on.
    """

    def changed(handle: str | None) -> None:
        there = cache()
        if there is None:
            return
        try:
            if handle is None:
                there.clear()
            else:
                there.drop(handle)
        except BaseException as error:
            doubt(there, handle, error)
            raise

    return changed


# -- caches that did not drop what they were to ----------------------------------------------


class Doubt(NamedTuple):
    """Until when a cache is not believed, by which stopwatch, and the class of the error it failed with."""

    cache: "ref[Cache]"
    seconds: Callable[[], float]
    until: float
    reason: str

    def holds(self, cache: Cache | None) -> bool:
        """Tell whether it is not over yet, and of this cache: another may have its identity by now."""
        return cache is not None and self.cache() is cache and self.seconds() < self.until


DOUBTS: Final[dict[tuple[int, str | None], Doubt]] = {}
"""What caches may still hold though they were to drop it: by the cache's identity and the handle, None for all.

It is nearly always empty, and then a hit pays one look for that. Reading takes no lock.
"""

_changing = RLock()
"""Whoever writes to them has this, so that nobody forgets a doubt that was renewed just now."""

_BEYOND: Final[WeakKeyDictionary[Cache, float]] = WeakKeyDictionary()


def serves_beyond(cache: Cache, seconds: float) -> None:
    """Note that a cache may be asked for what is so much older than its ``max_staleness``, while its store is down."""
    if seconds > _BEYOND.get(cache, 0.0):
        _BEYOND[cache] = seconds


def doubt(cache: Cache, handle: str | None, error: BaseException) -> None:
    """Believe the cache nothing about a handle, or None for any, until all that it may hold of it is too old."""
    clock, staleness = getattr(cache, "clock", None), getattr(cache, "max_staleness", None)
    seconds = stopwatch(clock if isinstance(clock, Clock) else SystemClock())
    lasting = staleness if isinstance(staleness, int | float) else MAX_STALENESS
    key = id(cache), handle if len(DOUBTS) < MOST_DOUBTS else None
    made = Doubt(ref(cache), seconds, seconds() + lasting + _BEYOND.get(cache, 0.0), type(error).__name__)
    with _changing:
        DOUBTS[key] = made  # In one step: a reader finds the old one or this.


def why_doubted(cache: Cache, handle: str) -> str | None:
    """Return the class of the error for which a cache is not believed about a handle, or None if it is."""
    for key in ((id(cache), handle), (id(cache), None)):
        doubt = DOUBTS.get(key)
        if doubt is not None and doubt.holds(cache):
            return doubt.reason
    _forget_the_oldest()
    return None


def _forget_the_oldest() -> None:
    """Forget the oldest doubt if it is over: each look takes one, so that soon there are none."""
    if not _changing.acquire(blocking=False):
        return  # Another look does it.
    try:
        key = next(iter(DOUBTS), None)
        if key is not None and not DOUBTS[key].holds(DOUBTS[key].cache()):
            del DOUBTS[key]
    finally:
        _changing.release()


def _after_in_child() -> None:
    """Take a lock that no thread of the parent has."""
    global _changing  # noqa: PLW0603 - this process's own
    _changing = RLock()


os.register_at_fork(after_in_child=_after_in_child)
