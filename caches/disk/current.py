"""The database in use, as this process has it open: opened when it is wanted, and left when it is no use any more.

It is no use when another has taken its place, when it is damaged, and after a fork. A disk that was slow to fail, or
where no database can be opened or begun, is left alone for a while.
"""

from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import Any, Final, TypeVar

from ...breaker import Breaker
from ...clock import Clock, stopwatch
from ...forks import SHUT, Gate, mark
from .databases import Databases, FailedError, OthersError, Place
from .rows import Rows

__all__ = ["Current"]

DAMAGE: Final = 10.0
"""Within how many seconds a second damage is no accident, and no third database is begun."""

_T = TypeVar("_T")


class Current:
    """Does work with the database in use, whichever that is by then."""

    def __init__(self, databases: Databases, clock: Clock) -> None:
        """Have nothing open yet."""
        self._databases = databases
        self._seconds = stopwatch(clock)
        self._breaker = Breaker(1, clock)
        self._damaged_at = self._others_at = -DAMAGE
        self._evicted = 0
        self.given_way = 0  # How many databases of other keys were in use here.
        self.rows: Rows | None = None
        self.is_closed = False
        self._mark = mark()
        self._gate = Gate(self._rest, databases.files)  # after what it rests: a fork may come at once

    @property
    def evicted(self) -> int:
        """How many records gave way to others, in all databases that this process has used."""
        return self._evicted + (0 if self.rows is None else self.rows.evicted)

    def close(self) -> None:
        """Close every connection; those in use close with the work that uses them."""
        self.is_closed = True
        with self._gate:
            if self.rows is not None:
                self.rows.shut()

    def do(self, work: Callable[..., _T], *arguments: Any, forgets: bool = False) -> _T:
        """Return what the work returns, given a database and its place; raise FailedError whatever goes wrong.

        What forgets has nothing to do where there is no database, and is done even while the disk is left alone.
        """
        if not self._mark[0]:
            self._leave_to_parent()
        began = self._breaker.begin()
        if self.is_closed or (began is None and not forgets):
            raise FailedError
        inside, me = self._gate.inside, get_ident()
        try:
            inside.append(me)
            if SHUT:
                self._gate.wait(me)
            return self._done(began, work, arguments, forgets=forgets)
        finally:
            inside.remove(me)
            if self._databases.unsaid:
                self._databases.say()

    def _done(self, began: float | None, work: Callable[..., _T], arguments: tuple[Any, ...], *, forgets: bool) -> _T:
        rows = self.rows
        try:
            place = self._databases.place()
            if place is None and forgets:
                return None  # type: ignore[return-value]
            if place is None or rows is None or rows.name != place.name:
                place, rows = self._opened(rests=began is None)
            result = rows.use(work, place, *arguments)
        except Exception as error:
            self._settle(error, rows, began)
            raise FailedError from error
        if began is not None:
            self._breaker.close()
        return result

    def _settle(self, error: Exception, rows: Rows | None, began: float | None) -> None:
        """Leave a damaged database for a new one, and a slow disk alone for a moment."""
        self._databases.log("The cache in %s failed, which is a miss, and may go on to, unheard: %r", error)
        if began is not None:
            self._breaker.count(began)
        with suppress(OSError):
            place = self._databases.place()
            # What is no longer in use may fail in any way.
            if place is None or rows is None or rows.name != place.name or not rows.is_damaged_by(error):
                return
            now = self._seconds()
            if now - self._damaged_at < DAMAGE:
                self._breaker.open(DAMAGE)
            self._damaged_at = now
            self._databases.set_aside(rows.name, error)

    def _opened(self, *, rests: bool) -> tuple[Place, Rows]:
        """Open the database in use, or begin one."""
        try:
            with self._databases.locked():
                place, rows = self._databases.place(), self.rows
                if place is not None and (rows is None or rows.name != place.name):
                    rows = self._adopted(place.name, rests=rests)
                if place is None or rows is None:
                    place, rows = self._databases.begun()
                before, self.rows = self.rows, rows
        except BaseException:
            if not rests:
                self._breaker.open()
            raise
        if before is not None and before is not rows:
            self._evicted += before.evicted
            before.shut()
        return place, rows

    def _adopted(self, name: str, *, rests: bool) -> Rows | None:
        """Open the database in use; None if it is not to be used.

        One of other keys makes way for ours once. If theirs is back soon, they are at work here too, and the two are
        not to replace each other's database with every call: ours rests for a while. What it drops meanwhile takes the
        others' database away, for the rings may have a key in common, and what was dropped is served by nobody.
        """
        try:
            return self._databases.adopted(name)
        except OthersError as error:
            if rests:  # Only what forgets comes here then.
                self._databases.forget(name)
                raise
            now = self._seconds()
            before, self._others_at = self._others_at, now
            if now - before < DAMAGE:
                self._breaker.open(DAMAGE)
                raise
            self.given_way += 1
            self._databases.give_way(name, error)
            return None

    def _leave_to_parent(self) -> None:
        """Begin anew in a forked process.

        A connection that came through the fork cannot be closed here, and SQLite believes that this process has its
        locks. No other file is concerned by that, so another database is what helps.
        """
        with self._gate, self._gate.leaving:
            if self._mark[0]:
                return
            here = mark()
            rows, self.rows = self.rows, None
            if rows is not None and rows.is_open:
                _INHERITED.append(rows)
                with suppress(OSError):
                    self._databases.forget(rows.name)
            self._mark = here

    def _rest(self) -> None:
        """Close what is not in use, before a fork."""
        if self.rows is not None:
            self.rows.rest()


_INHERITED: Final[list[Rows]] = []
"""Databases that a parent process has open, kept so that nothing closes them here."""
