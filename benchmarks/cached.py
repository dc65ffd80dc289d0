"""What a cache costs: a hit beside dict.get, the memory of an entry, and a whole request that never asks the store."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cachetools

from benchmarks.footprint import traced
from benchmarks.harness import Call, Spread, Verdict, measure, ratios, table
from benchmarks.made import records
from benchmarks.payload import SIZES
from benchmarks.sessions import SECRET, bare, data_of, filled, reading, writing
from benchmarks.wsgi import request
from sessiontree import Handler, with_cache, with_store
from sessiontree.caches.local import LocalCache
from sessiontree.stores.memory import MemoryStore

ENTRIES = 1000
ASKED = 500
FOOTPRINT = 100_000
SESSIONS = 100
HOUR = 3600.0

HIT_BUDGET = 4.0
REQUEST_BUDGET_US = 4.0
ENTRY_BUDGET = 600

POLICIES: dict[str, Callable[[], Any]] = {
    "default, two generations": lambda: None,
    "cachetools.LRUCache": lambda: cachetools.LRUCache(2 * ENTRIES),
    "cachetools.LFUCache": lambda: cachetools.LFUCache(2 * ENTRIES),
    "cachetools.FIFOCache": lambda: cachetools.FIFOCache(2 * ENTRIES),
    "cachetools.RRCache": lambda: cachetools.RRCache(2 * ENTRIES),
    "cachetools.TTLCache": lambda: cachetools.TTLCache(2 * ENTRIES, HOUR),
}


@dataclass(frozen=True)
class Result:
    """One figure in its unit, and what it may be."""

    row: str
    figure: Spread
    unit: str
    verdict: Verdict | None = None


def run(rounds: int, scale: int) -> list[Result]:
    """Measure hits and requests, interleaved, and the memory of many entries."""
    return [*_hits(rounds), *_requests(rounds), _footprint(max(100, FOOTPRINT // scale))]


def _hits(rounds: int) -> Iterator[Result]:
    made = list(records(ENTRIES))
    handles = [record.handle for record in made][:ASKED]
    plain = {record.handle: record for record in made}
    cases: dict[str, Call] = {"dict": _asking(plain.get, handles)}
    for name, policy in POLICIES.items():
        cache = LocalCache(2 * ENTRIES, HOUR, policy())
        for record in made:
            cache.put(record.handle, record, cache.lease(record.handle))
        cases[name] = _asking(cache.get, handles)
    samples = measure(cases, rounds)
    under = samples["dict"]
    yield Result("dict.get", Spread.of([each / ASKED for each in under]), "ns")
    for name in POLICIES:
        ratio = Spread.of(ratios(samples[name], under))
        verdict = Verdict.of(ratio.median, HIT_BUDGET, "x dict.get") if name.startswith("default") else None
        yield Result(f"a hit alone: {name}", ratio, "x dict.get", verdict)


def _asking(get: Callable[[str], object], handles: Sequence[str]) -> Call:
    def ask() -> None:
        for handle in handles:
            get(handle)

    return ask


def _requests(rounds: int) -> Iterator[Result]:
    cases: dict[str, Call] = {}
    for size in SIZES:
        store = MemoryStore()
        handler = Handler("visitor", SECRET, with_store(store), with_cache(LocalCache(max_staleness=HOUR)))
        cookies = [filled([handler], data_of(size, on_top=True)) for _ in range(SESSIONS)]
        cases[f"{size} bare"] = request(bare, "/", *cookies)
        cases[f"{size}: hit, read 2"] = request(handler.link(reading(handler)), "/", *cookies)
        cases[f"{size}: read 2, write 1, which drops it"] = request(handler.link(writing(handler)), "/", *cookies)
    samples = measure(cases, rounds)
    for case in cases:
        if "bare" not in case:
            size = case.partition(":")[0]
            spread = Spread.of([each / 1000 for each in samples.net(case, f"{size} bare")])
            verdict = Verdict.of(spread.median, REQUEST_BUDGET_US, "us") if case.startswith("small: hit") else None
            yield Result(f"whole request, {case}", spread, "us", verdict)


def _footprint(count: int) -> Result:
    def fill() -> LocalCache:
        cache = LocalCache(4 * count, HOUR, max_bytes=1 << 32)
        for record in records(count):
            cache.put(record.handle, record, cache.lease(record.handle))
        return cache

    each = traced(fill) / count
    return Result(
        f"memory of an entry, of {count:,}", Spread(each, each, each), "bytes", Verdict.of(each, ENTRY_BUDGET, "bytes")
    )


def shown(results: Sequence[Result]) -> str:
    """Return the results as a table."""
    rows = [
        (each.row, str(each.figure), each.unit, *(("", "") if each.verdict is None else each.verdict.cells()))
        for each in results
    ]
    return table("A LocalCache", ("", "", "", "budget", ""), rows)
