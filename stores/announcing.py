"""How a store object tells what was changed through it, so that caches in front of it drop that at once.

Listeners are called in the writer's thread, after the engine has confirmed the change and before the writer hears of
it. What may have been changed counts too: a verb that failed announces what it was about, for to drop what a cache
holds is always safe. While nobody listens, a verb costs one look at an empty dict more.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from types import MethodType
from typing import Final, TypeAlias
from weakref import WeakMethod

from ..errors import UsageError
from .log import logger

__all__ = ["Announcing", "OnChange", "Stop", "both"]

OnChange: TypeAlias = Callable[[str | None], object]
"""What is told the handle of a record that changed, or None: it may be any."""

Stop: TypeAlias = Callable[[], None]

_FAILED: Final = "%r failed when it was told of a change in the store. This is said once."


class Announcing:
    """What has listeners, and announces changes to them.

    There is no lock: each step is one of a dict, which no thread, no collector and no fork finds half done. So a
    listener can be stopped from anywhere, a finalizer too.
    """

    def __init__(self) -> None:
        """Begin with nobody who listens."""
        self._listeners: dict[_Listener, None] = {}

    def listen(self, on_change: OnChange) -> Stop:
        """Call ``on_change(handle)`` for each change made through this object; return what stops it, again is fine.

        A bound method is held weakly: it is called for as long as somebody else holds its object. A function is
        held until it is stopped. What it raises is logged, the first time, and hinders nobody. Raises UsageError for
        what cannot be called.
        """
        if not callable(on_change):
            raise UsageError(f"on_change is a function of a handle or None, not a {type(on_change).__name__}.")
        return _added(self._listeners, on_change)

    def announce(self, handle: str | None) -> None:
        """Tell every listener that this record has changed, or, for None, that any may have.

        What a signal raises meanwhile is raised when all have been told.
        """
        torn = None
        for listener in self._listeners.copy():
            try:
                listener.tell(handle)
            except BaseException as error:  # noqa: BLE001 - as above
                torn = error
        if torn is not None:
            raise torn

    def announce_all(self, handles: Iterable[str | None]) -> None:
        """Tell every listener of each of these records, if there is one."""
        if self._listeners:
            for handle in handles:
                self.announce(handle)


def both(first: Stop, second: Stop) -> Stop:
    """Return what stops one and then the other."""

    def stop() -> None:
        first()
        second()

    return stop


class _Listener:
    """One function that listens, held weakly if it is a method."""

    __slots__ = ("_found", "_has_failed")

    def __init__(self, on_change: OnChange, lost: Callable[["_Listener"], object]) -> None:
        """Hold the function; ``lost`` is called when its object is collected."""
        self._found: Callable[[], OnChange | None] = lambda: on_change
        self._has_failed = False
        if isinstance(on_change, MethodType):
            with suppress(TypeError):  # there are objects that nothing can refer to weakly
                self._found = WeakMethod(on_change, lambda _: lost(self))

    def tell(self, handle: str | None) -> None:
        """Call the function, unless its object is gone."""
        on_change = self._found()
        if on_change is None:
            return
        try:
            on_change(handle)
        except Exception as error:  # noqa: BLE001 - whoever listens, the verb has done its work
            if not self._has_failed:
                self._has_failed = True
                logger().error(_FAILED, on_change, exc_info=error)


def _added(listeners: dict[_Listener, None], on_change: OnChange) -> Stop:
    """Add a listener; return what takes it away. Neither holds the object that announces."""

    def remove(listener: _Listener) -> None:
        listeners.pop(listener, None)

    added: Final = _Listener(on_change, remove)
    listeners[added] = None
    return lambda: remove(added)
