"""When a store is left alone: after a few time-outs in a row, by requests that can go on without it.

There is one breaker for each store object.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

from ..breaker import Breaker
from ..errors import StoreUnavailable

if TYPE_CHECKING:
    from ..stores.protocol import Store

__all__ = ["StoreBreaker", "breaker_of"]

MOST_FAILURES: Final = 3

_T = TypeVar("_T")


class StoreBreaker(Breaker):
    """The breaker of one store, by the machine's own clock, for waiting is what it spares."""

    def __init__(self) -> None:
        """Begin closed: every call goes through."""
        super().__init__(MOST_FAILURES)

    def call(self, verb: Callable[..., _T], *arguments: Any) -> _T:
        """Ask the store, or raise StoreUnavailable at once while it is left alone."""
        began = self.begin()
        if began is None:
            raise StoreUnavailable("The store of this session failed several times in a row: try again in a moment.")
        try:
            result = verb(*arguments)
        except StoreUnavailable:
            self.count(began)
            raise
        self.close()
        return result


_BREAKERS: "Final[WeakKeyDictionary[Store, StoreBreaker]]" = WeakKeyDictionary()


def breaker_of(store: "Store") -> StoreBreaker:
    """Return the breaker of a store object."""
    breaker = _BREAKERS.get(store)
    return _BREAKERS.setdefault(store, StoreBreaker()) if breaker is None else breaker
