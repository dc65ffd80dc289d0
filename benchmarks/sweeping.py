"""How long a sweep keeps others waiting: who writes, by the store's lock, and who reads, by the interpreter's."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType

from benchmarks.harness import Verdict, collector_off, table, unpinned
from benchmarks.made import records
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.stores.sqlite.store import SWEPT

SESSIONS = 1_000_000
EXPIRED = 100_000
ON_DISK = 10
"""A file gets so many times fewer, for it is filled a transaction at a time."""

BUDGET_MS = 10.0
READERS = 2
LOADS = 20
NAP_S = 0.0002
"""A reader sleeps, as a server's thread does between requests, and then loads some records in a row."""

SWEEP = 1000
QUIET_S = 0.2
KNOWN = 1000


@dataclass(frozen=True)
class Hold:
    """The longest time that something was kept to itself, in milliseconds."""

    row: str
    removed: int
    longest_ms: float
    verdict: Verdict | None


@dataclass(frozen=True)
class Reads:
    """How long the loads of the readers took, in microseconds."""

    row: str
    loads: int
    p50_us: float
    p99_us: float
    p999_us: float
    longest_us: float


class TimedLock:
    """A lock that remembers the longest time it was held."""

    def __init__(self, lock: threading.Lock) -> None:
        """Wrap the lock."""
        self._lock = lock
        self._since = 0
        self.longest_ns = 0

    def __enter__(self) -> None:
        """Wait for the lock; the wait does not count."""
        self._lock.acquire()
        self._since = perf_counter_ns()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let it go."""
        self.longest_ns = max(self.longest_ns, perf_counter_ns() - self._since)
        self._lock.release()


def run(folder: Path, divisor: int) -> tuple[list[Hold], list[Reads]]:
    """Sweep one half of the expired alone, the other half beside readers, and then a file."""
    sessions, expired = SESSIONS // divisor, EXPIRED // divisor
    holds, reads = _in_memory(sessions, expired)
    return [*holds, _in_file(folder, sessions // ON_DISK, expired // ON_DISK)], reads


def _in_memory(sessions: int, expired: int) -> tuple[list[Hold], list[Reads]]:
    store, known = MemoryStore(), []
    with collector_off():
        for record in records(sessions - expired):
            store.create(record)
            if len(known) < KNOWN:
                known.append(record.handle)
        for record in records(expired, expired=True, seed=2):
            store.create(record)
    lock = TimedLock(store._lock)  # noqa: SLF001 - nothing else knows how long it is held
    store._lock = lock  # type: ignore[assignment]  # noqa: SLF001 - as above
    holds = []
    with unpinned(), collector_off():
        removed = swept(store, expired // 2)
        holds.append(_hold(f"memory, {sessions:,} sessions: the lock, nobody reading", removed, lock.longest_ns))
        lock.longest_ns = 0
        with readers(store, known) as beside:
            removed = swept(store, expired - removed)
        holds.append(_hold(f"memory: the lock, beside {READERS} threads that read", removed, lock.longest_ns))
        with readers(store, known) as alone:
            time.sleep(QUIET_S)
    store.close()
    return holds, [_reads("load() while nothing else runs", alone), _reads("load() during a sweep", beside)]


def swept(store: MemoryStore, most: int) -> int:
    """Sweep as a sweeper does, batch after batch, until this many are gone or none is left."""
    removed = 0
    while batch := store.sweep(min(SWEEP, most - removed)):
        removed += batch
    return removed


def _hold(row: str, removed: int, longest_ns: int) -> Hold:
    return Hold(row, removed, longest_ns / 1e6, Verdict.of(longest_ns / 1e6, BUDGET_MS, "ms"))


@contextmanager
def readers(store: MemoryStore, handles: Sequence[str]) -> Iterator[list[int]]:
    """Let threads load records; give the nanoseconds of each load, which are there at the end."""
    samples: list[int] = []
    done = threading.Event()

    def read(start: int) -> None:
        mine: list[int] = []
        next_handle = cycle(islice(cycle(handles), start, start + len(handles))).__next__
        while not done.is_set():
            time.sleep(NAP_S)
            for _ in range(LOADS):
                before = perf_counter_ns()
                store.load(next_handle())
                mine.append(perf_counter_ns() - before)
        samples.extend(mine)

    threads = [threading.Thread(target=read, args=(number * 17,)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    try:
        yield samples
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _reads(row: str, samples: Sequence[int]) -> Reads:
    if len(samples) < 2:
        return Reads(row, len(samples), 0, 0, 0, 0)
    per_mille = statistics.quantiles(samples, n=1000, method="inclusive")
    return Reads(row, len(samples), *(per_mille[part - 1] / 1000 for part in (500, 990, 999)), max(samples) / 1000)


def _in_file(folder: Path, sessions: int, expired: int) -> Hold:
    store = SqliteStore(folder / "swept.db")
    for record in records(sessions - expired):
        store.create(record)
    for record in records(expired, expired=True, seed=2):
        store.create(record)
    longest, removed = _batches(lambda: store.sweep(SWEPT))
    store.close()
    # Now and then one has to write the log back into the file, and waits for the disk.
    return Hold(f"SQLite, {sessions:,} sessions: a transaction of {SWEPT}", removed, longest / 1e6, None)


def _batches(sweep: Callable[[], int]) -> tuple[int, int]:
    """Return the longest nanoseconds of one batch, and how many records all of them removed."""
    longest = removed = 0
    while True:
        start = perf_counter_ns()
        batch = sweep()
        longest = max(longest, perf_counter_ns() - start)
        removed += batch
        if not batch:
            return longest, removed


def shown(holds: Sequence[Hold], reads: Sequence[Reads]) -> str:
    """Return the results as two tables."""
    held = [
        (hold.row, f"{hold.removed:,}", f"{hold.longest_ms:.2f}", *(hold.verdict.cells() if hold.verdict else ("", "")))
        for hold in holds
    ]
    figures = [
        (each.row, f"{each.loads:,}", *map("{:.1f}".format, (each.p50_us, each.p99_us, each.p999_us, each.longest_us)))
        for each in reads
    ]
    return "\n".join(
        [
            table("Sweeping: what is held at once", ("", "removed", "longest ms", "budget", ""), held),
            table("Readers", (f"{READERS} threads, us", "loads", "p50", "p99", "p99.9", "longest"), figures),
        ]
    )
