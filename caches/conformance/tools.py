"""What the conformance cases share: fixtures, records, threads, and a clock at which something else gets in between."""

import base64
import secrets
from collections.abc import Callable, Iterator
from threading import Barrier, Thread
from typing import Any, Final

import pytest

from ...clock import FOREVER, FakeClock
from ...records import Record, packed
from ..kept import opened
from ..protocol import Cache

__all__ = [
    "DEADLINES",
    "MOMENT",
    "PROOF",
    "CacheCases",
    "InterruptedClock",
    "a_record",
    "at_once",
    "fresh_handle",
    "look",
    "opened",
    "put",
    "served",
]

PROOF: Final = b"p" * 32
DEADLINES: Final = ("absolute", "own", "idle")

MOMENT: Final = 0.001
"""The least that any clock here tells apart, in seconds."""

WAIT: Final = 0.02
"""How many seconds a cache that asks for the time waits for what comes between; with a lock held it would for ever."""


class CacheCases:
    """The fixtures of every case; a case that needs no second cache has the arguments ``cache`` and ``clock``."""

    keeps: bool = True
    """Whether a record that was put is there a moment later; False for a cache that keeps nothing."""

    def make_cache(self, clock: FakeClock) -> Cache:
        """Return a fresh, empty cache on this clock, with ``max_staleness`` of 1 to 100; called once for each case."""
        raise NotImplementedError("Define make_cache(self, clock) in your subclass of CacheConformance.")

    def reopen(self, cache: Cache) -> Cache | None:  # noqa: ARG002 - for a subclass to use
        """Return a second cache on the entries and the clock of this one; None if nobody shares its entries."""
        return None

    @pytest.fixture
    def clock(self) -> FakeClock:
        """Return the clock of the case, at 2030-01-01."""
        return InterruptedClock()

    @pytest.fixture
    def cache(self, clock: FakeClock) -> Iterator[Cache]:
        """Make the cache, and close it at the end."""
        cache = self.make_cache(clock)
        yield cache
        cache.close()

    @pytest.fixture
    def other(self, cache: Cache) -> Iterator[Cache]:
        """Open the entries a second time, or take the same cache where that cannot be."""
        other = self.reopen(cache)
        yield cache if other is None else other
        if other is not None:
            other.close()

    def filled(self, cache: Cache, handle: str | None = None, /, **more: Any) -> Record:
        """Fill an entry, see that it is served, and return its record."""
        record = a_record(cache, handle, **more)
        assert put(cache, record) is self.keeps
        assert served(cache, record.handle) == (record if self.keeps else None)
        return record


class InterruptedClock(FakeClock):
    """A clock at which another thread does something in the moment in which a cache asks for the time."""

    def __init__(self) -> None:
        """Start with nothing to do."""
        super().__init__()
        self._then: Thread | None = None
        self._left = 0

    def meanwhile(self, act: Callable[[], object], after: int) -> None:
        """Have a thread do this once the time was asked for so often; who asks waits for it, though not for long."""
        self._then, self._left = Thread(target=act), after

    def settle(self) -> None:
        """Wait for the thread, which begins now if it has not begun."""
        then, self._then = self._then, None
        if then is not None:
            self._left = 0
            if then.ident is None:
                then.start()
            then.join()

    def now(self) -> int:
        """Have done what is to be done, and return the time after it."""
        then = self._then
        if then is not None and then.ident is None:
            self._left -= 1
            if self._left < 0:
                then.start()
                then.join(WAIT)
        return super().now()


def fresh_handle() -> str:
    """Return a handle as sessions have them: 20 random bytes in base32."""
    return base64.b32encode(secrets.token_bytes(20)).decode().lower()


def a_record(cache: Cache, handle: str | None = None, /, **more: Any) -> Record:
    """Return a record that never expires, unless told otherwise."""
    now = cache.clock.now()
    plain = {"path": "user", "created": now, "absolute": FOREVER, "own": FOREVER, "idle": FOREVER, "proof": PROOF}
    fields = packed({"theme": "dark"})
    return Record(**{"handle": handle or fresh_handle(), "seen": now, "fields": fields, **plain, **more})


def look(cache: Cache, *handles: str) -> None:
    """Ask for something that is there and for something that is not, so that every tier looks at the clock."""
    for handle in (*handles, fresh_handle()):
        cache.get(handle)
        cache.is_absent(handle)
    cache.lease(fresh_handle())


def put(cache: Cache, record: Record) -> bool:
    """Fill an entry with a lease that is taken now."""
    return cache.put(record.handle, record, cache.lease(record.handle))


def served(cache: Cache, handle: str, min_version: int = 0) -> Record | None:
    """Return the record that a cache serves."""
    return opened(cache.get(handle, min_version))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call these in threads that begin together, and return what each returned or raised."""
    barrier = Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(place: int, call: Callable[[], Any]) -> None:
        barrier.wait(30)
        try:
            results[place] = call()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the case judges it
            results[place] = error

    threads = [Thread(target=run, args=(place, call)) for place, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "A call of the cache never returns."
    return results
