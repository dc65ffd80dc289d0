"""A circuit breaker: after a few time-outs in a row a store is left alone for a moment, then tried by one request.

It spares requests that can go on without the store the wait for its time-out; a store that refuses at once costs nobody
anything and is always asked. There is one breaker for each store object.
"""

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

from ..clock import SystemClock, stopwatch
from ..errors import StoreUnavailable

if TYPE_CHECKING:
    from ..stores.protocol import Store

__all__ = ["Breaker", "breaker_of"]

MOST_FAILURES: Final = 3
SLOW: Final = 0.05
"""How many seconds a failure takes that counts."""

PAUSE: Final = 1.0
"""For how many seconds nobody asks a store that has failed so often and so slowly."""

_T = TypeVar("_T")


class Breaker:
    """Counts the slow failures of one store, by the machine's own clock, for waiting is what it spares."""

    def __init__(self) -> None:
        """Begin closed: every call goes through."""
        self._seconds = stopwatch(SystemClock())
        self._lock = Lock()
        self._failures = 0
        self._again = 0.0  # When the next call may go through, while open.

    def call(self, verb: Callable[..., _T], *arguments: Any) -> _T:
        """Ask the store, or raise StoreUnavailable at once while it is left alone."""
        if self._failures >= MOST_FAILURES:
            self._take_turn()
        began = self._seconds()
        try:
            result = verb(*arguments)
        except StoreUnavailable:
            self._count(self._seconds() - began)
            raise
        self._failures = 0
        return result

    def _count(self, waited: float) -> None:
        if waited >= SLOW:
            with self._lock:
                self._failures += 1
                self._again = self._seconds() + PAUSE

    def _take_turn(self) -> None:
        """Let one call through after each pause; raise StoreUnavailable for the others."""
        with self._lock:
            now = self._seconds()
            if self._failures >= MOST_FAILURES and now < self._again:
                raise StoreUnavailable(
                    "The store of this session failed several times in a row: try again in a moment."
                )
            self._again = now + PAUSE


_BREAKERS: "Final[WeakKeyDictionary[Store, Breaker]]" = WeakKeyDictionary()


def breaker_of(store: "Store") -> Breaker:
    """Return the breaker of a store object."""
    breaker = _BREAKERS.get(store)
    return _BREAKERS.setdefault(store, Breaker()) if breaker is None else breaker
