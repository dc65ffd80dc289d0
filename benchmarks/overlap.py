"""Whether requests that overlap lose each other's writes: two threads, each writing its own key of one session."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.frameworks import Pair
from benchmarks.harness import table, unpinned
from benchmarks.peers import Uses
from benchmarks.store_peers import MEMORY, SQLITE, pairs

REQUESTS = 200
KEYS = ("left", "right")
START = "begin"
THINKING_S = 0.002
"""How long a request takes at most between what it reads and what it writes, and a client between two requests."""

SWITCH_S = 0.0001


@dataclass(frozen=True)
class Result:
    """What became of the writes: those that the next request of the same thread did not find are lost."""

    library: str
    requests: int
    lost: int
    failed: int


class Writer:
    """What one thread does in each request: look for what it wrote last, think, and write the next number."""

    def __init__(self, key: str) -> None:
        """Begin at zero, which the first request of all has put there."""
        self.key = key
        self.written: int | None = 0
        self.lost = self.failed = 0
        self._dice = Random(key)

    def __call__(self, session: MutableMapping[str, Any]) -> None:
        """Be one request."""
        found = session[self.key]
        if self.written is not None and found != self.written:
            self.lost += 1
        self._think()
        self.written = found + 1
        session[self.key] = self.written

    def run(self, request: Callable[[], object], times: int) -> None:
        """Make the requests, one after the other."""
        for _ in range(times):
            try:
                request()
            except Exception:  # noqa: BLE001 - an answer of 500 is a write that nobody was promised
                self.failed += 1
                self.written = None
            self._think()

    def _think(self) -> None:
        time.sleep(self._dice.uniform(0, THINKING_S))


def run(folder: Path, requests: int) -> tuple[list[Result], list[str]]:
    """Try ours and every peer; also return a line for each peer that is missing."""
    logging.getLogger("django").addHandler(logging.NullHandler())
    uses = Uses(on_top=True)
    found, missing = pairs(uses, folder)
    with unpinned(), _quick_switches():
        return [_result(name, pair, uses, requests) for name, pair in found.items()], missing


def _result(name: str, pair: Pair, uses: Uses, requests: int) -> Result:
    writers = [Writer(key) for key in KEYS]
    uses[START] = lambda session: session.update(dict.fromkeys(KEYS, 0))
    uses.update({writer.key: writer for writer in writers})
    cookie = pair.client.cookies_set(pair.app, f"/{START}")

    def asking(writer: Writer) -> Callable[[], object]:
        return lambda: pair.client.cookies_set(pair.app, f"/{writer.key}", cookie)

    threads = [threading.Thread(target=writer.run, args=(asking(writer), requests)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers:  # One more each, alone: it looks for the last write.
        writer.run(asking(writer), 1)
    lost, failed = (sum(counts) for counts in zip(*((each.lost, each.failed) for each in writers), strict=True))
    return Result(name, requests * len(KEYS), lost, failed)


@contextmanager
def _quick_switches() -> Iterator[None]:
    """Let the interpreter change threads often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def shown(results: list[Result]) -> str:
    """Return the results as a table, and our own losses in one line."""
    head = ("two threads, each its own key of one session", "requests", "lost", "failed")
    rows = [(each.library, str(each.requests), str(each.lost), str(each.failed)) for each in results]
    return f"{table('Overlapping requests', head, rows)}\nlost updates: {ours_lost(results)}\n"


def ours_lost(results: list[Result]) -> int:
    """Return how many writes ours lost or refused."""
    return sum(each.lost + each.failed for each in results if each.library in {MEMORY, SQLITE})
