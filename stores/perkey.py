"""The four verbs of a store of keys: get, put, delete and time to expiry, by handle and key."""

from collections.abc import Collection
from typing import Final

from ..caches.kept import opened
from ..caches.protocol import Cache
from ..clock import FOREVER, Clock, Duration, SystemClock, milliseconds
from ..errors import BadSession, KeyNotFound, SessionGone
from ..records import PROOF_BYTES, Changes, Record, changed_fields
from .protocol import Store, fits

__all__ = ["PerKey"]

_ATTEMPTS: Final = 8

_PLACE: Final = "keys/"
"""What stands before a handle in a cache; no handle has a slash."""


class PerKey:
    """A store's fields one by one, as bytes: for tools, and for code that came with such an interface.

    Every call is one or two round trips and atomic. Whoever holds the store may read and write any session,
    so nothing here asks for an id. A session writes bytes as bytes; anything else it wrote comes as JSON.

    Over a cache it sees what was put through it and nothing else. That lies apart, under a name that no handler asks
    for: nothing here changes what a handler finds, and no write to a session or end of one changes what is found here.
    There are no sessions that must exist: what is put is kept for as long as the cache keeps anything, and two who put
    into one session at once may lose one of both.
    """

    __slots__ = ("_store",)

    def __init__(self, store_or_cache: Store | Cache) -> None:
        """Look at this store or cache."""
        self._store: Store | _OverCache = _over(store_or_cache)

    def get(self, handle: str, key: str) -> bytes | None:
        """Return the content of the key, or None if there is no such session or key."""
        record = self._store.load(handle, [key])
        if record is None:
            return None
        content, _ = record.contents(self._store.clock.now()).get(key, (None, 0))
        return None if content is None else bytes(content)

    def put(self, handle: str, key: str, content: bytes, max_age: Duration | None = None) -> None:
        """Write the content with a life of its own, in seconds.

        0 or None gives the key no expiry of its own, a negative life expires it now. Raises BadSession if there is
        no such session: nothing here creates one.
        """
        if not isinstance(content, bytes):
            raise TypeError(f"PerKey keeps bytes, not {type(content).__name__}: encode it first.")
        life = 0 if max_age is None else milliseconds(max_age)
        if life < 0:
            self.delete(handle, key)
            return
        deadline = self._store.clock.now() + life if life else 0
        self._apply(handle, Changes(sets={key: (content, deadline)}))

    def delete(self, handle: str, key: str) -> None:
        """Remove the key; a missing one is fine. Raises BadSession if there is no such session."""
        self._apply(handle, Changes(deletes=(key,)))

    def time_to_expiry(self, handle: str, key: str) -> float | None:
        """Return the seconds that the key has left, capped by its session's; None if neither ever expires.

        Raises BadSession if there is no such session, KeyNotFound if it has no such key.
        """
        record, now = self._loaded(handle, key), self._store.clock.now()
        fields = record.contents(now)
        if key not in fields:
            raise KeyNotFound(f"The session has no key {key!r}.")
        deadline = fields[key][1]
        ends = min(deadline, record.ends) if deadline else record.ends
        return None if ends >= FOREVER else (ends - now) / 1000

    def _loaded(self, handle: str, key: str) -> Record:
        record = self._store.load(handle, [key])
        if record is None:
            raise BadSession("There is no session of this handle.")
        return record

    def _apply(self, handle: str, changes: Changes) -> None:
        """Apply with the proof of the moment; a renewal in between is no reason to fail."""
        for attempt in range(1, _ATTEMPTS + 1):
            record = self._loaded(handle, "")
            try:
                self._store.apply(handle, record.proof, changes)
            except SessionGone:
                if attempt == _ATTEMPTS:
                    raise
            else:
                return


def _over(kept: Store | Cache) -> "Store | _OverCache":
    return kept if fits(kept, Store) else _OverCache(kept)  # type: ignore[arg-type]


class _OverCache:
    """The two verbs that PerKey needs, over a cache: every session exists there, and is empty at first.

    A record of ours in a session's own place would be believed by handlers, which find no session in it.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.clock: Clock = getattr(cache, "clock", None) or SystemClock()

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record:
        place = _PLACE + handle
        record, now = opened(self._cache.get(place)), self.clock.now()
        if record is None:
            return Record(place, "", now, FOREVER, FOREVER, FOREVER, bytes(PROOF_BYTES), now)
        return record if keys is None else record.only(keys)

    def apply(self, handle: str, _proof: bytes, changes: Changes) -> None:
        lease, now = self._cache.lease(_PLACE + handle), self.clock.now()
        record = self.load(handle)
        fields, _ = changed_fields(record.fields, changes, now)
        self._cache.put(_PLACE + handle, record.written(fields, now), lease)
