"""Time: durations come in as seconds, deadlines are integer milliseconds since the epoch.

This is the only module that reads the wall clock. Everything that needs the time takes a
``Clock``; tests pass a ``FakeClock`` and never sleep.
"""

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final, Protocol, runtime_checkable

from .errors import ConfigError

__all__ = [
    "FOREVER",
    "LONGEST",
    "LONGEST_WAIT_MS",
    "SKEW_MS",
    "Clock",
    "Duration",
    "FakeClock",
    "SystemClock",
    "milliseconds",
    "stopwatch",
    "waiting",
]

Duration = int | float | timedelta
"""A duration as callers give it: seconds, or a timedelta."""

LONGEST: Final = 10_000 * 365 * 86_400_000
"""The longest duration taken, in milliseconds: ten thousand years, so that no sum overflows."""

FOREVER: Final = 1 << 62
"""The deadline of what never expires, in milliseconds: later than any real one, and it fits 64 bits."""

SKEW_MS: Final = 60_000
"""How far apart the clocks of two machines may be, in milliseconds."""

LONGEST_WAIT_MS: Final = 86_400_000
"""The longest time-out that our stores take, in milliseconds: a day. Timers of operating systems end after 24."""

LEAP_MS: Final = 1000 * 365 * 86_400_000
"""How far a stopwatch leaps when its clock is set back, in milliseconds."""

_ONE_MS: Final = timedelta(milliseconds=1)


@runtime_checkable
class Clock(Protocol):
    """Whatever tells the time in milliseconds since the epoch, UTC."""

    def now(self) -> int:
        """Return the current time in integer milliseconds since the epoch."""
        ...


class SystemClock:
    """The machine's wall clock. All its instances are equal."""

    __slots__ = ()

    def now(self, _nanoseconds: Callable[[], int] = time.time_ns) -> int:
        """Return the current time in integer milliseconds since the epoch."""
        return _nanoseconds() // 1_000_000

    def __eq__(self, other: object) -> bool:
        """Tell whether the other is a system clock too."""
        return isinstance(other, SystemClock)

    def __hash__(self) -> int:
        """Hash alike, as all system clocks are equal."""
        return hash(SystemClock)

    def __repr__(self) -> str:
        """Show the constructor call."""
        return "SystemClock()"


class FakeClock:
    """A clock that stands still until it is told to move, for tests.

    It starts at the given time in seconds since the epoch (2030-01-01 UTC by default).
    """

    __slots__ = ("_now",)

    def __init__(self, start: float = 1_893_456_000) -> None:
        """Start at this many seconds since the epoch."""
        self._now = milliseconds(start)

    def now(self) -> int:
        """Return the current time in integer milliseconds since the epoch."""
        return self._now

    def advance(self, duration: Duration) -> None:
        """Move forward, or back if the duration is negative."""
        self._now += milliseconds(duration)

    def __repr__(self) -> str:
        """Show the time in seconds since the epoch."""
        return f"FakeClock({self._now / 1000})"


def stopwatch(clock: Clock) -> Callable[[], float]:
    """Return what measures how time passes by a clock, in seconds; it never goes back.

    For the machine's clock it is the monotonic one. Another clock that is set back makes it leap ahead by a thousand
    years, for nobody knows how much time has passed: what was to last for a while is over.

    >>> fake = FakeClock()
    >>> seconds = stopwatch(fake)
    >>> start = seconds()
    >>> fake.advance(5)
    >>> seconds() - start
    5.0
    """
    if isinstance(clock, SystemClock):
        return time.monotonic
    last, ahead = clock.now(), 0

    def seconds() -> float:
        nonlocal last, ahead
        now = clock.now()
        if now < last:
            ahead += LEAP_MS
        last = now
        return (now + ahead) / 1000

    return seconds


def milliseconds(duration: Duration) -> int:
    """Return a duration as integer milliseconds, rounded away from zero to 1 ms.

    A tiny positive life is thus never "no life", and a tiny negative one stays negative.
    Raises ConfigError for a bool, NaN, infinity, another type, or more than ten thousand years.

    >>> milliseconds(1.5), milliseconds(timedelta(microseconds=1)), milliseconds(-0.0001)
    (1500, 1, -1)
    """
    if isinstance(duration, timedelta):
        whole, part = divmod(duration, _ONE_MS)
        result = whole + 1 if part and duration > timedelta() else whole
    elif isinstance(duration, bool) or not isinstance(duration, int | float):
        raise ConfigError(
            f"A duration must be seconds (int or float) or a timedelta, not {type(duration).__name__}: "
            "pass for example 60 or timedelta(minutes=1)."
        )
    else:
        result = duration * 1000 if isinstance(duration, int) else _from_float(duration)
    if abs(result) > LONGEST:
        raise ConfigError("A duration must be at most ten thousand years: pass None for no limit.")
    return result


def waiting(timeout: Duration, longest: int, name: str, *, shortest: int = 1) -> float:
    """Return a time-out as seconds, rounded up to 1 ms; ``name`` is the class that waits, and the bounds are in ms.

    Raises ConfigError for a time outside the bounds, and for what is no duration.

    >>> waiting(timedelta(minutes=1), LONGEST_WAIT_MS, "RedisStore")
    60.0
    """
    wait = milliseconds(timeout)
    if not shortest <= wait <= longest:
        raise ConfigError(
            f"A {name} waits from {shortest / 1000:g} to {longest / 1000:g} seconds, not {timeout!r}: pass for "
            "example 0.5."
        )
    return wait / 1000


def _from_float(seconds: float) -> int:
    if not math.isfinite(seconds):
        raise ConfigError(f"A duration must be finite, not {seconds!r}: pass seconds.")
    if abs(seconds) * 1000 > 2 * LONGEST:
        return 2 * LONGEST
    # Six decimals of a millisecond hide the binary noise of 16.1 * 1000 == 16100.000000000002.
    exact = round(abs(seconds) * 1000, 6)
    whole = max(math.ceil(exact), 1 if seconds else 0)
    return whole if seconds > 0 else -whole
