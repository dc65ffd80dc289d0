"""Forks, and what must not go through one: connections to a file of SQLite.

A child that inherits one believes that it has locks which its parent alone has, and shares that belief with every
connection that it opens to the same file: when the parent closes its last one, it removes the log that the child writes
to. And a mutex that another thread held at that moment is held in the child for ever.

So whatever works with such connections does it within a ``Gate``. A fork shuts all gates, waits until nobody is inside,
closes every connection, and opens the gates in both processes. It cannot wait for work that the forking thread itself
is in the midst of, and does not wait longer than ``PATIENCE`` for others. The child remembers which files these
concern, and is told so by ``is_inherited``: it must not open them. What starts programs (``subprocess``) concerns none.
"""

import mmap
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Event, Lock, get_ident
from typing import Final, TypeAlias
from weakref import WeakMethod, ref

from .clock import SystemClock, stopwatch

__all__ = ["SHUT", "Gate", "Held", "Mark", "identity", "inherit", "is_inherited", "mark"]

PATIENCE: Final = 6.0
"""How many seconds a fork waits for work to end: longer than work waits for others, where nothing else is set."""

BRIEF: Final = 0.05
"""The same, where the forking thread is at work itself. The others may be waiting for that, and most are not."""

TICK: Final = 0.0002
"""How many seconds lie between two looks."""

SHUT: Final[list[Event]] = []
"""Every fork that is under way, and rings when it is over. Whoever closes nothing of his own accord looks here."""

_WIPE_ON_FORK: Final = 18
"""Linux's MADV_WIPEONFORK, which the ``mmap`` module does not name."""

_NO_ADVICE: Final = -1


class Gate:
    """Who is at work with the connections of one owner. A thread may enter again, and those of others meanwhile.

    ``with gate:`` is to be inside. What has no time for that does the same with ``inside``, ``SHUT`` and ``wait``.
    """

    __slots__ = ("__weakref__", "_files", "_rest", "inside", "leaving")

    def __init__(self, rest: Callable[[], object], files: Callable[[], Iterable[str | os.PathLike[str]]]) -> None:
        """``rest`` is a method that closes what is not in use, and ``files`` names the files; neither may raise.

        The owner of the method is not held; ``files`` is.
        """
        self.inside: list[int] = []
        """The threads that are inside, as often as they entered. A forked process gets another list."""
        self.leaving = Lock()
        """For those inside who leave to a parent what is its own, which one of them does. A child has another one."""
        self._rest = WeakMethod(rest)
        self._files = files
        _GATES.add(ref(self, _GATES.discard))

    def __enter__(self) -> None:
        """Be inside, when no fork is under way."""
        me = get_ident()
        self.inside.append(me)
        if SHUT:
            try:
                self.wait(me)
            except BaseException:
                self.inside.remove(me)
                raise

    def __exit__(self, *error: object) -> None:
        """Be outside again."""
        with suppress(ValueError):  # a child that was forked inside
            self.inside.remove(get_ident())

    def wait(self, me: int) -> None:
        """Stand outside while a fork is under way, and be inside again.

        Who forks goes on at once, as does who is inside elsewhere, or deeper: that is what the fork waits for.
        """
        while SHUT and me not in _forking and sum(gate.inside.count(me) for gate in _gates()) == 1:
            self.inside.remove(me)
            try:
                with suppress(IndexError):  # it is over
                    SHUT[0].wait()
            finally:
                self.inside.append(me)

    def rest(self) -> None:
        """Have closed what is not in use."""
        rest = self._rest()
        if rest is not None:
            rest()

    def inherit(self) -> None:
        """Have nobody inside, in a child; remember the files, if somebody was."""
        if self.inside:
            self.inside, self.leaving = [], Lock()
            for path in self._files():
                inherit(path)


class Held:
    """Has a lock that each fork takes, so that no child inherits half of a change, or a lock that nobody releases.

    Who works with it must not wait long. Where it cannot be had in time, for the forking thread itself may have it, the
    child gets another one.
    """

    def __init__(self) -> None:
        """Begin with the lock free."""
        super().__init__()
        self._lock = Lock()
        _HELD.add(ref(self, _HELD.discard))

    def _take(self, seconds: float) -> bool:
        """Take the lock before a fork; return False if it is not to be had in this time."""
        return self._lock.acquire(timeout=seconds)

    def _release(self) -> None:
        """Go on after a fork that has the lock."""
        self._lock.release()

    def _begin_child(self, *, is_taken: bool) -> None:
        """Go on in the child."""
        if is_taken:
            self._lock.release()
        else:
            self._lock = Lock()


class _Asking:
    """A mark where no page can be one: it asks the system who this is, each time."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        """Be of this process."""
        self._pid = os.getpid()

    def __getitem__(self, _: int) -> bool:
        """Tell whether this is still the process that made it."""
        return self._pid == os.getpid()


Mark: TypeAlias = mmap.mmap | _Asking
"""What is true at ``[0]`` in the process that made it, and false in every child, however that was forked."""


def mark() -> Mark:
    """Return a mark of this process; whoever finds his false makes a new one, and only then begins anew himself.

    Linux hands children this page as zeros (since 4.14): a look at it takes a fifth of the time of a system call.
    """
    if sys.platform == "linux":  # elsewhere the advice may mean anything
        with suppress(OSError):
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_WIPE_ON_FORK)
            if _is_advised(page):
                page[0] = 1
                return page
    return _Asking()


def _is_advised(page: mmap.mmap) -> bool:
    """Tell whether advice about this page is followed: an emulator that nods at what is none follows none."""
    try:
        page.madvise(_NO_ADVICE)
    except OSError:
        return True
    return False


def inherit(path: str | os.PathLike[str]) -> None:
    """Remember that a connection to this file came through a fork."""
    with suppress(OSError):
        found = identity(path)
        if found is not None:  # a file that was removed is not found again, either
            _inherited.add(found)


def is_inherited(path: str | os.PathLike[str]) -> bool:
    """Tell whether a connection to this file came through a fork, so that this process must not open it."""
    with suppress(OSError):
        return bool(_inherited) and identity(path) in _inherited
    return False


def identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Tell one file from another that takes its place, as SQLite does; None while there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - one system call and no more
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


_GATES: Final[set[ref[Gate]]] = set()
_HELD: Final[set[ref[Held]]] = set()
_taken: Final[dict[int, list[Held]]] = {}
"""Whose locks each forking thread has: two may fork at once."""

_forking: Final[dict[int, Event]] = {}
_inherited: Final[set[tuple[int, int]]] = set()


def _gates() -> list[Gate]:
    return [gate for each in list(_GATES) if (gate := each()) is not None]


def _all_held() -> list[Held]:
    """Return whose locks a fork takes, in the order that all forks keep."""
    return sorted((held for each in list(_HELD) if (held := each()) is not None), key=id)


def _before() -> None:
    """Take the locks; shut the gates, wait until nobody is inside, and have every connection closed."""
    _take_locks(_taken.setdefault(get_ident(), []))
    _shut_gates()


def _take_locks(taken: list[Held]) -> None:
    seconds = stopwatch(SystemClock())
    until = seconds() + PATIENCE
    taken.extend(held for held in _all_held() if held._take(max(0.0, until - seconds())))  # noqa: SLF001 - of this module


def _shut_gates() -> None:
    me, seconds, over = get_ident(), stopwatch(SystemClock()), Event()
    _forking[me] = over
    SHUT.append(over)
    gates = _gates()
    until = seconds() + (BRIEF if any(me in gate.inside for gate in gates) else PATIENCE)
    for gate in gates:
        while any(other != me for other in gate.inside.copy()) and seconds() < until:
            Event().wait(TICK)
        gate.rest()


def _after_in_parent() -> None:
    over = _forking.pop(get_ident(), None)
    if over is not None:
        SHUT.remove(over)
        over.set()
    for held in _taken.pop(get_ident(), ()):
        held._release()  # noqa: SLF001 - of this module


def _after_in_child() -> None:
    taken = _taken.pop(get_ident(), None)
    _taken.clear()
    SHUT.clear()
    _forking.clear()
    for gate in _gates():
        gate.inherit()
    if taken is not None:  # None where a server forks without asking Python first.
        for held in _all_held():
            held._begin_child(is_taken=held in taken)  # noqa: SLF001 - of this module


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
