"""How records come through caches: what a cache has is used, what it lacks is loaded and left with it.

And how caches hear what changed. Every change that is made through a store object, by whatever handler, reaches every
cache in front of that object before the verb returns; so when ``revoke()`` returns, no handler on it serves the
session.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, finalize, ref

from ..caches.kept import Kept, opened
from ..records import Record
from ..stores.following import DOUBTS, doubt, dropping, serves_beyond, why_doubted
from ..stores.protocol import Reloading, fits
from .breaker import breaker_of
from .events import emit

if TYPE_CHECKING:
    from ..caches.protocol import Cache
    from ..stores.protocol import Store
    from .handler import Handler

__all__ = ["Wanted", "at_hand", "attach", "fetch", "forget", "loaded_one", "reloaded", "stale"]


class Wanted(NamedTuple):
    """A record that a verified token asks for: whose it is, and the least version that the client has seen."""

    handler: "Handler"
    handle: str
    version: int = 0


def fetch(store: "Store", wanted: "Iterable[Wanted]", found: "dict[str, Record | None]") -> None:
    """Enter each wanted record, or None for one that is dead, in at most one trip to the store unless it lags.

    A cache that fails is as one that has nothing. A store that fails raises StoreError; what caches have is entered.
    """
    missing: list[tuple[Wanted, Any]] = []
    for each in wanted:
        known, record, lease = _looked_up(each)
        if known:
            found[each.handle] = record
        else:
            missing.append((each, lease))
    if missing:
        _load(store, [each for each, _ in missing], found)
    for each, lease in missing:
        if lease is not None:
            _fill(each, found[each.handle], lease)


def loaded_one(store: "Store", wanted: Wanted) -> "Record | None":
    """Return one record that is not at hand from the store, or None, and leave it with the cache."""
    known, lease = _leased(wanted)
    if known:
        return None
    handler, handle, version = wanted
    if handler.config.outage == "raise":
        record = _newest(store, handle, version)
    else:
        record = breaker_of(store).call(_newest, store, handle, version)
    if lease is not None:
        _fill(wanted, record, lease)
    return record


def _load(store: "Store", wanted: list[Wanted], found: "dict[str, Record | None]") -> None:
    """Enter what the store has; where a request can go on without it, by way of its breaker."""
    for each in wanted:
        if each.handler.config.outage != "raise":
            breaker_of(store).call(_ask, store, wanted, found)
            return
    _ask(store, wanted, found)


def _ask(store: "Store", wanted: list[Wanted], found: "dict[str, Record | None]") -> None:
    """Enter what the store has, in one trip, and in one more for each that is older than its client has seen.

    What needs no second trip is entered before the first of those.
    """
    if len(wanted) == 1:
        [(_, handle, version)] = wanted
        found[handle] = _newest(store, handle, version)
        return
    loaded = store.load_many([each.handle for each in wanted])
    older: list[Record] = []
    for _, handle, version in wanted:
        record = loaded.get(handle)
        if record is None or record.version >= version:
            found[handle] = record
        else:
            older.append(record)
    for record in older:
        found[record.handle] = reloaded(store, record)


def _newest(store: "Store", handle: str, version: int) -> "Record | None":
    """Return the record, in one trip, and in one more if it is older than its client has seen."""
    record = store.load(handle)
    return record if record is None or record.version >= version else reloaded(store, record)


def reloaded(store: "Store", record: Record) -> "Record | None":
    """Return a record that is older than its client has seen as it is now, if its store can answer older ones."""
    return store.reload(record.handle) if fits(store, Reloading) else record


def stale(wanted: Wanted) -> "Record | None":
    """Return a record that a cache may serve while the store is down, for as long as the handler allows."""
    handler = wanted.handler
    if handler.config.outage != "stale" or handler.cache is None:
        return None
    if DOUBTS and _is_doubted(handler, wanted.handle):
        return None
    try:
        kept = handler.cache.stale(wanted.handle, wanted.version, handler.config.stale_for / 1000)  # type: ignore[attr-defined]
        record = opened(kept)
    except Exception as error:  # noqa: BLE001 - whatever a cache fails at is a miss
        emit(handler, "cache", wanted.handle, type(error).__name__)
        return None
    return record if record is not None and record.is_live(handler.now()) else None


def at_hand(handler: "Handler", handle: str, version: int, now: int) -> "Record | None":
    """Return the live record that the handler's cache has: the whole way of nearly every request."""
    try:
        kept = handler.cache.get(handle, version)  # type: ignore[union-attr]
        if kept is None or (DOUBTS and _is_doubted(handler, handle)):
            return None
        record = kept.record() if isinstance(kept, Kept) else kept  # opened(), without its frame
    except Exception as error:  # noqa: BLE001 - as above
        emit(handler, "cache", handle, type(error).__name__)
        return None
    # What is_live() says, without its frame.
    return record if now < record.absolute and now < record.own and now < record.idle else None


def _is_doubted(handler: "Handler", handle: str) -> bool:
    """Tell, and say as an event, whether the cache failed to drop a record that it may still have."""
    reason = why_doubted(handler.cache, handle)  # type: ignore[arg-type]
    if reason is not None:
        emit(handler, "cache", handle, reason)
    return reason is not None


def _looked_up(wanted: Wanted) -> "tuple[bool, Record | None, Any]":
    """Return whether the cache knows, what it knows, and else a lease to fill it with what the store says."""
    handler = wanted.handler
    if handler.cache is None:
        return False, None, None
    record = at_hand(handler, wanted.handle, wanted.version, handler.now())
    if record is not None:
        return True, record, None
    known, lease = _leased(wanted)
    return known, None, lease


def _leased(wanted: Wanted) -> tuple[bool, Any]:
    """Return whether the cache knows that there is no such record, and else a lease to fill it."""
    cache, handle = wanted.handler.cache, wanted.handle
    if cache is None:
        return False, None
    try:
        if hasattr(cache, "is_absent") and cache.is_absent(handle) and not (DOUBTS and why_doubted(cache, handle)):
            return True, None
        return False, cache.lease(handle)
    except Exception as error:  # noqa: BLE001 - as above
        emit(wanted.handler, "cache", handle, type(error).__name__)
        return False, None


def _fill(wanted: Wanted, record: Record | None, lease: Any) -> None:
    cache: Cache = wanted.handler.cache  # type: ignore[assignment]
    try:
        if record is not None or hasattr(cache, "is_absent"):
            cache.put(wanted.handle, record, lease)
    except Exception as error:  # noqa: BLE001 - as above
        emit(wanted.handler, "cache", wanted.handle, type(error).__name__)


def forget(handler: "Handler", handle: str) -> None:
    """Have a handler's cache drop a record that the store turned out to have no longer, or not as it was."""
    if handler.cache is None:
        return
    try:
        handler.cache.drop(handle)
    except Exception as error:  # noqa: BLE001 - as above
        doubt(handler.cache, handle, error)
        emit(handler, "cache", handle, type(error).__name__)


# -- hearing what changed --------------------------------------------------------------------

_LISTENING: "Final[WeakKeyDictionary[Cache, WeakSet[Store]]]" = WeakKeyDictionary()
"""Which store objects a cache hears of; each once, however many handlers share both."""


def attach(cache: "Cache", store: "Store", stale_for: float = 0.0) -> None:
    """Have a cache hear of every change made through a store object, for as long as there is the cache.

    It may be asked for what is ``stale_for`` seconds older than it serves else.
    """
    serves_beyond(cache, stale_for)
    heard = _LISTENING.setdefault(cache, WeakSet())
    if store not in heard:
        heard.add(store)
        finalize(cache, store.listen(dropping(ref(cache))))  # type: ignore[attr-defined]
