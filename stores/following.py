"""Caches that follow a store: they drop what the store says has changed."""

from collections.abc import Callable
from weakref import ref

from ..caches.protocol import Cache
from .protocol import Store

__all__ = ["dropping", "follow"]


def follow(store: Store, *caches: Cache, on_loss: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """Have caches drop what other processes change, as soon as the store's feed tells; return what stops it.

    Without it they serve that for their ``max_staleness``; so they do while the feed is lost, after they have dropped
    all. ``on_loss`` is called then, from the feed's thread. Raises NotImplementedByStore for a store without a feed.
    """
    changed = [dropping(ref(cache)) for cache in caches]

    def tell(handle: str | None) -> None:
        for each in changed:
            each(handle)
        if handle is None:
            on_loss()

    return store.watch(tell)


def dropping(cache: "ref[Cache]") -> Callable[[str | None], None]:
    """Return what a store calls with the handle of a record that changed, or with None for any; it holds no cache."""

    def changed(handle: str | None) -> None:
        there = cache()
        if there is None:
            return
        if handle is None:
            there.clear()
        else:
            there.drop(handle)

    return changed
