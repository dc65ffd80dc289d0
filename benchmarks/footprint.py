"""How much memory a MemoryStore takes for each session, by what the interpreter's allocators hand out."""

import random
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from benchmarks.harness import Verdict, collector_off, table
from benchmarks.made import records, values
from sessiontree.records import packed
from sessiontree.stores.memory import MemoryStore

SESSIONS = (1_000, 100_000, 1_000_000)
BUDGET_KB = 1.2
BUFFERS = 1_000


@dataclass(frozen=True)
class Result:
    """Bytes of one session, with everything that is there because of it."""

    row: str
    bytes_each: float
    verdict: Verdict | None


def run(divisor: int) -> list[Result]:
    """Fill a store of each size, and compare what a session's data alone takes."""
    results = [_of_store(max(10, count // divisor)) for count in SESSIONS]
    exact = traced(lambda: _buffers(packed))
    kept = traced(lambda: _buffers(orjson.dumps))
    return [
        *results,
        Result("contrast: the fields alone, as records hold them", exact / BUFFERS, None),
        Result("contrast: the fields alone, had what orjson returns been kept", kept / BUFFERS, None),
    ]


def _of_store(count: int) -> Result:
    each = traced(lambda: _filled(count)) / count
    return Result(f"MemoryStore of {count:,} sessions", each, Verdict.of(each / 1000, BUDGET_KB, "KB"))


def traced(make: Callable[[], object]) -> int:
    """Return the bytes that are still allocated for what ``make`` returned."""
    with collector_off():
        tracemalloc.start()
        try:
            made = make()
            size, _ = tracemalloc.get_traced_memory()
            del made
        finally:
            tracemalloc.stop()
    return size


def _filled(count: int) -> MemoryStore:
    store = MemoryStore()
    for record in records(count):
        store.create(record)
    return store


def _buffers(dumps: Callable[[object], bytes]) -> list[bytes]:
    dice = random.Random(1)
    return [dumps(values(dice)) for _ in range(BUFFERS)]


def shown(results: Sequence[Result]) -> str:
    """Return the results as a table."""
    rows = [
        (each.row, f"{each.bytes_each:,.0f}", *(("", "") if each.verdict is None else each.verdict.cells()))
        for each in results
    ]
    head = ("by tracemalloc; five keys, agent of 110 characters, address", "bytes each", "budget", "")
    return table("Memory of a session", head, rows)
