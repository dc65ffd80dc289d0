"""Whether a write that was confirmed is ever missing: several workers, a few sessions, every request writes twice.

Each request increments one counter that all workers share, and writes a key that is the worker's own, on top of what
the others write meanwhile. It first looks for what the same worker wrote last, as a browser would that sends the
cookie of its last response. At the end a fresh look at the store says what is there.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from random import Random
from threading import Event, Thread
from typing import Any, Final

from ...handlers.options import with_cache
from .client import USE, ask, kept
from .stack import Stack

__all__ = ["COUNTER", "SESSIONS", "Written", "missing", "write_over"]

SESSIONS: Final = 4
COUNTER: Final = "count"
SWITCH_S: Final = 0.0001
"""How often threads take turns meanwhile: fifty times more often than usually."""


@dataclass
class Written:
    """What one worker was told is written, by the number of the session."""

    worker: str
    counted: list[int] = field(default_factory=lambda: [0] * SESSIONS)
    last: list[int | None] = field(default_factory=lambda: [None] * SESSIONS)
    """What its own key holds; None where it wrote nothing, or was not told whether it did."""

    requests: int = 0
    unseen: int = 0
    """How often its last write was not there when it looked."""

    failed: int = 0


def write_over(stack: Stack, who: str, workers: int, requests: int, stopped: Event) -> list[dict[str, Any]]:
    """Let so many threads make so many requests each, to the first few sessions; return what each has written."""
    made = [_Worker(stack, f"{who}.{number}", stopped) for number in range(workers)]
    threads = [Thread(target=worker.run, args=(requests,), daemon=True) for worker in made]
    with _quick_switches():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [asdict(worker.written) for worker in made]


def missing(stack: Stack, written: Iterable[Written]) -> int:
    """Return how many of the writes are not in the store, and how many were not seen on the way."""
    workers = list(written)
    # No cache may answer: what counts is what the store has.
    handler = stack.handler.configure(with_cache(None))
    lost = sum(worker.unseen for worker in workers)
    for number, cookie in enumerate(stack.cookies[:SESSIONS]):
        found = dict(handler.session({"HTTP_COOKIE": cookie.decode("latin-1"), USE: None}))
        lost += max(0, sum(worker.counted[number] for worker in workers) - found.get(COUNTER, 0))
        lost += sum(
            worker.last[number] is not None and found.get(worker.worker) != worker.last[number] for worker in workers
        )
    return lost


class _Worker:
    """One client, with a cookie jar of its own."""

    def __init__(self, stack: Stack, name: str, stopped: Event) -> None:
        self.written = Written(name)
        self._stack = stack
        self._cookies = stack.cookies[:SESSIONS]
        self._stopped = stopped
        self._dice = Random(f"{stack.plan.seed}/{name}")

    def run(self, requests: int) -> None:
        """Make so many requests."""
        for number in range(requests):
            if self._stopped.is_set():
                return
            self._ask(self._dice.randrange(len(self._cookies)), number)

    def _ask(self, place: int, value: int) -> None:
        written = self.written
        written.requests += 1
        before = written.last[place]

        def use(session: Any) -> None:
            if before is not None and session.get(written.worker) != before:
                written.unseen += 1
            session.incr(COUNTER)
            session[written.worker] = value

        try:
            answer = ask(self._stack.app, self._cookies[place], use)
            succeeded = answer.succeeded
        except Exception:  # noqa: BLE001 - whatever it is, nobody was promised this write
            succeeded = False
        if not succeeded:
            written.failed += 1
            written.last[place] = None
            return
        self._cookies[place] = kept(answer, self._cookies[place])
        written.counted[place] += 1
        written.last[place] = value


@contextmanager
def _quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
