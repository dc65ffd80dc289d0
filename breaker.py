"""A circuit breaker: what keeps its callers waiting is left alone for a moment, and then tried by one of them.

It spares those who can go on without an answer the wait for a time-out. What refuses at once costs nobody anything, and
neither opens a breaker nor closes it.
"""

from typing import Final

from .clock import Clock, SystemClock, stopwatch

__all__ = ["PAUSE", "SLOW", "Breaker"]

SLOW: Final = 0.05
"""How many seconds a call takes that counts as slow."""

PAUSE: Final = 1.0
"""For how many seconds nobody calls what was slow too often."""


class Breaker:
    """Opens after so many slow calls without an answer in between; while it is open, one call a pause goes through.

    The caller says what is no answer: most often a failure. There is no lock, for a race costs at most one call.
    """

    def __init__(self, most: int, clock: Clock | None = None) -> None:
        """Begin closed, and open at this many slow calls, by this clock or the machine's."""
        self._most = most
        self._seconds = stopwatch(clock or SystemClock())
        self._slow = 0
        self._again = 0.0  # When the next call may go through, while open.

    def begin(self) -> float | None:
        """Return when a call begins, or None if it may not: the breaker is open."""
        began = self._seconds()
        if self._slow >= self._most:
            if began < self._again:
                return None
            self._again = began + PAUSE  # One tries; the others wait for what it finds.
        return began

    def count(self, began: float) -> bool:
        """Count a call without an answer if it was slow; return whether it was."""
        is_slow = self._seconds() - began >= SLOW
        if is_slow:
            self._slow += 1
            self._delay(PAUSE)
        return is_slow

    def close(self) -> None:
        """Have every call go through, for there was an answer."""
        self._slow = 0

    def open(self, seconds: float = PAUSE) -> None:
        """Let no call through for so many seconds, however few were slow."""
        self._slow = self._most
        self._delay(seconds)

    def _delay(self, seconds: float) -> None:
        self._again = max(self._again, self._seconds() + seconds)
