"""From when on copies must have been leased to be served: what one process knows of what it changed itself."""

import os
from collections import OrderedDict
from threading import Lock
from typing import Final
from weakref import WeakSet

__all__ = ["Floors"]

MOST_FLOORS: Final = 16_384
"""How many floors of single handles there are at most; with more, the oldest becomes one for all."""


class Floors:
    """From when on copies must have been leased to be served, for single handles and for all. Reading takes no lock.

    A floor is forgotten when nothing that was leased before it can be fresh any more.
    """

    def __init__(self, staleness: int) -> None:
        """Begin with no floor; a copy is fresh for so many milliseconds."""
        self.all = 0
        self._staleness = staleness
        self._by_handle: OrderedDict[str, int] = OrderedDict()
        self.begin_process()
        _FLOORS.add(self)

    def begin_process(self) -> None:
        """Take a lock that nobody holds, for after a fork a thread of the parent may hold the other one for ever."""
        self._lock = Lock()

    def of(self, handle: str) -> int:
        """Return the floor of a handle."""
        own = self._by_handle.get(handle, 0)
        return max(own, self.all)  # Read in this order: one becomes the floor of all before it is forgotten.

    def raise_to(self, now: int, handle: str | None, *, ahead: bool = False) -> None:
        """Have nothing served that was leased until now, of this handle, or for None of any.

        ``ahead`` is for a drop that failed: nothing is served that is leased while older copies may be fresh.
        """
        floor = now + self._staleness if ahead else now
        with self._lock:
            if handle is None:
                self.all = max(self.all, floor)
                return
            floors = self._by_handle
            floors[handle] = max(floor, floors.get(handle, 0))
            floors.move_to_end(handle)
            self._forget(now)

    def _forget(self, now: int) -> None:
        """Forget the oldest floors, if they are outdated or too many; in that case the oldest holds for all."""
        while self._by_handle:
            handle, floor = next(iter(self._by_handle.items()))
            if now < floor + self._staleness:
                if len(self._by_handle) <= MOST_FLOORS:
                    return
                self.all = max(self.all, floor)
            del self._by_handle[handle]


_FLOORS: Final[WeakSet[Floors]] = WeakSet()


def _after_fork() -> None:
    for floors in list(_FLOORS):
        floors.begin_process()


os.register_at_fork(after_in_child=_after_fork)
