"""``sessiontree sweep``: remove a store's expired records, once or for ever."""

import signal
import sys
from contextlib import closing
from threading import Event
from types import FrameType
from typing import Final

from ..stores import Store, open_store
from ..stores.sweeper import Sweeper, SweepReport, pause

__all__ = ["sweep"]

WIDTH: Final = 20


def sweep(url: str, *, once: bool, interval: float, limit: int) -> int:
    """Sweep the store of this URL and return the exit code: 1 if it was to be once and failed.

    Ctrl-C and SIGTERM end it after the batch at hand, a second time at once. Raises StoreError and ConfigError if
    the store cannot be opened.
    """
    try:
        ending = _Ending()
        with closing(open_store(url)) as store:
            return _sweep(store, ending, once=once, interval=interval, limit=limit)
    except KeyboardInterrupt:
        return 0


def _sweep(store: Store, ending: "_Ending", *, once: bool, interval: float, limit: int) -> int:
    failures = 0
    while True:
        progress = _Progress(store, ending)
        report = Sweeper(progress, None, limit=limit).sweep_once()
        progress.clear()
        print(_summary(report), flush=True)
        failures = failures + 1 if report.errors else 0
        if once:
            return 1 if report.errors else 0
        ending.wait(pause(interval, failures=failures))


def _summary(report: SweepReport) -> str:
    batches = "1 batch" if report.batches == 1 else f"{report.batches} batches"
    errors = "1 error" if report.errors == 1 else f"{report.errors} errors"
    return f"swept: {report.deleted} removed in {batches}, {errors}"


class _Ending:
    """Ends a wait at once and a batch after it is done, for no engine likes to be left in the middle of one."""

    def __init__(self) -> None:
        self.asked = self._waiting = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._on_signal)

    def wait(self, seconds: float) -> None:
        """Wait, unless the end was asked for; then raise KeyboardInterrupt."""
        self._waiting = True  # Before the question, so that a signal in between is never lost.
        if self.asked:
            raise KeyboardInterrupt
        Event().wait(seconds)
        self._waiting = False

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        if self._waiting or self.asked:
            raise KeyboardInterrupt
        self.asked = True


class _Progress:
    """A store's sweep with a bar on stderr, if that is a terminal: how many records there are is not known."""

    def __init__(self, store: Store, ending: _Ending) -> None:
        self._store = store
        self._ending = ending
        self._shown = sys.stderr.isatty()
        self._batches = self._removed = self._wide = 0

    def sweep(self, limit: int = 1000) -> int:
        """Sweep one batch; none once the end was asked for."""
        if self._ending.asked:
            return 0
        removed = self._store.sweep(limit)
        self._batches += 1
        self._removed += removed
        self._show()
        return removed

    def clear(self) -> None:
        """Wipe the bar away."""
        if self._wide:
            sys.stderr.write(f"\r{' ' * self._wide}\r")
            sys.stderr.flush()

    def _show(self) -> None:
        if self._shown:
            bar = "#" * ((self._batches - 1) % WIDTH + 1)
            line = f"[{bar:<{WIDTH}}] {self._removed} removed"
            self._wide = len(line)
            sys.stderr.write(f"\r{line}")
            sys.stderr.flush()
