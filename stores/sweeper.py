"""A thread that removes expired records from a store, a batch at a time, for as long as a process lives.

Nothing depends on it but the store's size: every verb judges expiry by itself. Any number of processes may sweep
one store at once; the jitter keeps them from doing so in step.
"""

import logging
import math
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from threading import TIMEOUT_MAX, Event, Lock, Thread, current_thread
from typing import Final, Protocol, Self

from ..clock import Clock, Duration, milliseconds
from ..errors import ConfigError, StoreError, UsageError

__all__ = ["SweepReport", "Sweepable", "Sweeper", "pause"]

LONGEST_BACKOFF: Final = 5
"""How often the wait doubles, at most, while passes fail."""

_STEPS: Final = 10_000
_LOG: Final = logging.getLogger("sessiontree.sweeper")


class Sweepable(Protocol):
    """The one verb of a store that a sweeper needs."""

    def sweep(self, limit: int = 1000) -> int:
        """Remove at most this many records and return how many."""
        ...


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What one pass did."""

    scanned: int
    """How many records the store was asked for: the batches times the limit. A store says only what it removed."""

    deleted: int
    errors: int
    """How many batches failed; a failed batch ends the pass."""

    batches: int = 0


class Sweeper:
    """Sweeps a store every ``interval`` seconds, from ``start()`` to ``stop()`` or as a context manager.

    ``interval`` 0 or None turns it off. ``jitter`` is the part of the interval by which a wait is longer or shorter
    at random. ``on_report`` gets the SweepReport of each pass, in the sweeper's thread. While passes fail, the waits
    double, up to 32 intervals. A forked process has no sweeper until it calls ``start()`` too. Raises ConfigError for
    a setting that makes no sense.
    """

    _pid: int
    _lock: Lock
    _stopping: Event
    _thread: Thread | None

    def __init__(
        self,
        store: Sweepable,
        interval: Duration | None = 60.0,
        *,
        limit: int = 1000,
        jitter: float = 0.1,
        on_report: Callable[[SweepReport], object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Check the settings; nothing runs before ``start()``.

        What has expired is decided by the store's own clock, so a ``clock`` given here must be that one.
        """
        if not callable(getattr(store, "sweep", None)):
            raise ConfigError(f"A Sweeper takes a store, and a {type(store).__name__} has no sweep().")
        if on_report is not None and not callable(on_report):
            raise ConfigError("on_report must be a function of one SweepReport, or None.")
        if clock is not None and clock != getattr(store, "clock", None):
            raise ConfigError("A Sweeper goes by its store's clock: pass the clock to the store.")
        self._store = store
        self._interval = _checked_interval(interval)
        self._limit = _checked_limit(limit)
        self._jitter = _checked_jitter(jitter)
        self._on_report = on_report
        self._begin_process()

    def start(self) -> None:
        """Start the thread; do nothing if it runs already or the interval turns it off."""
        self._notice_fork()
        with self._lock:
            if not self._interval or (self.running and not self._stopping.is_set()):
                return
            # An event of its own for each thread: an old one, told to stop, never takes the new one's as its own.
            self._stopping = Event()
            self._thread = Thread(target=self._run, args=(self._stopping,), name="sessiontree-sweeper", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Tell the thread to stop and wait for it; called from the thread itself, only tell.

        Stopping again, or before the start, is fine. A batch that has begun is finished first.
        """
        self._notice_fork()
        with self._lock:
            thread = self._thread
            self._stopping.set()
        if thread is not None and thread is not current_thread():
            thread.join()

    @property
    def running(self) -> bool:
        """Whether this process has the thread."""
        return self._pid == os.getpid() and self._thread is not None and self._thread.is_alive()

    def sweep_once(self) -> SweepReport:
        """Sweep batch after batch until one is not full, here and now; count failures instead of raising them.

        Only a closed store raises, UsageError.
        """
        return self._pass(Event())

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def _begin_process(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._stopping, self._thread = Event(), None

    def _notice_fork(self) -> None:
        """Begin anew in a forked process: it has no thread, and may have a lock that nobody will ever release."""
        if self._pid != os.getpid():
            self._begin_process()

    def _run(self, stopping: Event) -> None:
        failures = 0
        while not stopping.is_set():
            try:
                report = self._pass(stopping)
            except UsageError as error:
                _LOG.error("The sweeper stops: %s", error)
                return
            self._tell(report)
            failures = failures + 1 if report.errors else 0
            stopping.wait(pause(self._interval, self._jitter, failures))

    def _pass(self, stopping: Event) -> SweepReport:
        """Sweep until a batch is not full, fails, or the end is near; a closed store alone raises, for it stays so."""
        deleted = batches = errors = 0
        removed = self._limit
        while removed >= self._limit and not stopping.is_set():
            batches += 1
            try:
                removed = self._store.sweep(self._limit)
            except UsageError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever an engine raises, the next pass may succeed
                errors, removed = 1, 0
                _LOG.warning("A sweep failed: %s", error, exc_info=None if isinstance(error, StoreError) else error)
            deleted += removed
        return SweepReport(batches * self._limit, deleted, errors, batches)

    def _tell(self, report: SweepReport) -> None:
        if self._on_report is None:
            return
        try:
            self._on_report(report)
        except Exception:  # noqa: BLE001 - what listens must not end what sweeps
            _LOG.exception("The sweeper's on_report failed.")


def pause(interval: float, jitter: float = 0.1, failures: int = 0) -> float:
    """Return how many seconds to wait for the next pass, after so many failed ones."""
    spread = 2 * secrets.randbelow(_STEPS + 1) / _STEPS - 1
    return min(interval * (1 << min(failures, LONGEST_BACKOFF)) * (1 + jitter * spread), TIMEOUT_MAX)


def _checked_interval(interval: Duration | None) -> float:
    """Return the interval in seconds, 0 for off."""
    length = 0 if interval is None else milliseconds(interval)
    if length < 0:
        raise ConfigError("The interval of a Sweeper cannot be negative: 0 or None turns it off.")
    return length / 1000


def _checked_limit(limit: int) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"The limit of a Sweeper is how many records a batch removes, 1 or more, not {limit!r}.")
    return limit


def _checked_jitter(jitter: float) -> float:
    if isinstance(jitter, bool) or not isinstance(jitter, int | float) or math.isnan(jitter) or not 0 <= jitter < 1:
        raise ConfigError(f"The jitter of a Sweeper is a part of its interval, from 0 to below 1, not {jitter!r}.")
    return float(jitter)
