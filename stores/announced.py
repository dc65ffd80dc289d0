"""A store of anyone's making that tells listeners of every change made through it, as our own engines do."""

from collections.abc import Callable, Collection, Sequence
from typing import Final
from weakref import WeakValueDictionary

from ..clock import Duration
from ..errors import NotImplementedByStore
from ..forks import Held
from ..records import Changes, Page, Record, Version
from .announcing import Announcing
from .protocol import PAGE, Confirming, Pipelining, Reloading, Store, Write, fits

__all__ = ["Announced", "announced"]


class Announced(Announcing):
    """Stands in front of a store and announces what every verb has changed, or may have changed when it fails.

    It has the optional verbs that the store has, and no others.
    """

    def __init__(self, store: Store) -> None:
        """Stand in front of this store."""
        super().__init__()
        self.inner = store
        self.clock = store.clock
        self.largest = store.largest
        if fits(store, Reloading):
            self.reload = store.reload
        if fits(store, Confirming):
            self.confirm = store.confirm

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record | None:
        """As the store does."""
        return self.inner.load(handle, keys)

    def load_many(self, handles: Sequence[str]) -> dict[str, Record]:
        """As the store does."""
        return self.inner.load_many(handles)

    def create(self, record: Record) -> None:
        """As the store does."""
        try:
            self.inner.create(record)
        finally:
            self.announce(record.handle)

    def apply(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """As the store does."""
        try:
            return self.inner.apply(handle, proof, changes)
        finally:
            self.announce(handle)

    def revoke(self, handle: str) -> bool:
        """As the store does."""
        try:
            return self.inner.revoke(handle)
        finally:
            self.announce(handle)

    def find(self, label: str, value: str, after: str | None = None, limit: int = PAGE) -> Page:
        """As the store does."""
        return self.inner.find(label, value, after, limit)

    def count(self, label: str, *values: str) -> int:
        """As the store does."""
        return self.inner.count(label, *values)

    def relabel(self, label: str, old: str, new: str) -> int:
        """As the store does."""
        try:
            return self.inner.relabel(label, old, new)
        finally:
            self.announce(None)

    def revoke_where(self, label: str, value: str) -> int:
        """As the store does."""
        try:
            return self.inner.revoke_where(label, value)
        finally:
            self.announce(None)

    def scan(self, after: str | None = None, limit: int = PAGE) -> Page:
        """As the store does."""
        return self.inner.scan(after, limit)

    def sweep(self, limit: int = 1000) -> int:
        """As the store does; what has expired needs no announcement, for caches see that themselves."""
        return self.inner.sweep(limit)

    def sweep_idle(self, older_than: Duration, limit: int = 1000) -> int:
        """As the store does."""
        try:
            return self.inner.sweep_idle(older_than, limit)
        finally:
            self.announce(None)

    def watch(self, on_change: Callable[[str | None], object]) -> Callable[[], None]:
        """As the store does, if it has a feed."""
        if not hasattr(self.inner, "watch"):
            kind = type(self.inner).__name__
            raise NotImplementedByStore(f"{kind} has no feed: caches are right after max_staleness.")
        return self.inner.watch(on_change)

    def close(self) -> None:
        """As the store does."""
        self.inner.close()


class AnnouncedPipelining(Announced):
    """The same for a store that makes several writes in one trip."""

    inner: Pipelining

    def apply_many(self, writes: Sequence[Write]) -> list[Version | Exception]:
        """As the store does."""
        try:
            return self.inner.apply_many(writes)
        finally:
            self.announce_all(handle for handle, _, _ in writes)


class Known(Held):
    """The one object in front of each store, by the store's identity; it holds the store, so that is not used again."""

    def __init__(self) -> None:
        """Know none yet."""
        super().__init__()
        self._by_identity: WeakValueDictionary[int, Announced] = WeakValueDictionary()

    def of(self, store: Store) -> Announced:
        """Return the one object, which all threads get."""
        known = self._by_identity.get(id(store))
        if known is not None:
            return known
        made = AnnouncedPipelining(store) if fits(store, Pipelining) else Announced(store)
        with self._lock:
            return self._by_identity.setdefault(id(store), made)


_KNOWN: Final = Known()


def announced(store: Store) -> Store:
    """Return the store if it announces its changes by itself, else the one object in front of it that does."""
    return store if hasattr(store, "listen") else _KNOWN.of(store)
