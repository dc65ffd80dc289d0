"""Whether our requests ever wait for the interpreter lock, beside one thread that is busy with pure Python.

A thread that gives the lock up beside a busy one may get it back only after a whole switch interval
(5 ms). A request whose primitives never give it up runs as if it were alone, until the interpreter
itself takes the lock away because its slice is over, which befalls any code and is no library's doing.

To tell the two apart, the measuring thread sleeps, as a server's thread does between requests, and so
begins with a fresh slice of 5 ms. After one call to warm up it makes calls for 2 ms, each timed by
itself, and sleeps again. Whatever such a call loses, it gave away. Alone, the same is done without the
busy thread, in turns with it. Both run on all cores, unlike the other sections: on a single one
the busy thread is seldom quick enough to take the lock, which would flatter those who give it up.
"""

import hmac
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter_ns

import orjson

from benchmarks.floor import KEY, floor
from benchmarks.harness import Call, Timer, Verdict, collector_off, table, unpinned
from benchmarks.payload import SIZES, application_data
from benchmarks.sessions import KINDS, TOKENS, bare, data_of, filled, handler, reading, renewed, writing
from benchmarks.wsgi import request

CALLS = 3000
TURNS = 10
NAP_S = 0.0002
WINDOW_NS = 2_000_000
LOST_NS = 1_000_000
LEAST_LOST = 0.005

CONTRAST = "hmac.digest"
NO_PROOF = (
    "The rows of hmac.digest lost next to nothing: the busy thread had no core of its own, so this proves nothing. "
    "Run it again on a quieter machine."
)

BUDGET = 3.0
BUDGET_BIG_SEALED = 10.0


@dataclass(frozen=True)
class Result:
    """The mean of one call alone and beside a busy thread, in microseconds, and the share that lost 1 ms or more."""

    row: str
    quiet_us: float
    busy_us: float
    busy_median_us: float
    ratio: float
    lost: float
    verdict: Verdict | None


@contextmanager
def busy_thread() -> Iterator[None]:
    """Keep one thread busy with pure Python."""
    done = False

    def spin() -> None:
        while not done:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done = True
        thread.join()


def one_by_one(
    call: Call, calls: int, timer: Timer = perf_counter_ns, nap: Call = lambda: time.sleep(NAP_S)
) -> list[int]:
    """Return the nanoseconds of this many single calls, all of them early in a slice of the interpreter's time."""
    samples: list[int] = []
    while len(samples) < calls:
        nap()
        call()
        opened = start = timer()
        while start - opened < WINDOW_NS and len(samples) < calls:
            call()
            end = timer()
            samples.append(end - start)
            start = end
    return samples


def cases() -> tuple[dict[str, Call], dict[str, float]]:
    """Return ours and, for contrast, what waits; and the budgets of ours."""
    calls: dict[str, Call] = {"bare app": request(bare, "/", "")}
    budgets = {}
    for kind in KINDS:
        for size in SIZES:
            budget = BUDGET_BIG_SEALED if (kind, size) == ("sealed", "big") else BUDGET
            for name, call in _ours(kind, size):
                calls[name], budgets[name] = call, budget
    for size, (length, keys) in SIZES.items():
        payload = orjson.dumps(application_data(length, keys))
        calls[f"FLOOR {size} ({CONTRAST} twice)"] = floor(payload)
        calls[f"one {CONTRAST}, {size}"] = lambda payload=payload: hmac.digest(KEY, payload, "sha256")
    return calls, budgets


def _ours(kind: str, size: str) -> Iterator[tuple[str, Call]]:
    """Return requests that each show another token, so that every one of them is verified."""
    ours = handler(kind)
    cookies = renewed(ours, filled([ours], data_of(size)), 2 * TOKENS)
    yield f"{kind} {size}: untouched", request(ours.link(bare), "/", *cookies)
    yield f"{kind} {size}: read 2", request(ours.link(reading(ours)), "/", *cookies[:TOKENS])
    yield f"{kind} {size}: read 2, write 1", request(ours.link(writing(ours)), "/", *cookies[TOKENS:])


def run(calls: int = CALLS) -> list[Result]:
    """Measure every row alone and beside a busy thread, in turns."""
    measured, budgets = cases()
    quiet: dict[str, list[int]] = {name: [] for name in measured}
    busy: dict[str, list[int]] = {name: [] for name in measured}
    each = -(-calls // TURNS)
    with unpinned(), collector_off():
        for _ in range(TURNS):
            for name, call in measured.items():
                quiet[name] += one_by_one(call, each)
            with busy_thread():
                for name, call in measured.items():
                    busy[name] += one_by_one(call, each)
    return [_result(name, quiet[name], busy[name], budgets.get(name)) for name in measured]


def _result(name: str, quiet: list[int], busy: list[int], budget: float | None) -> Result:
    ratio = fmean(busy) / fmean(quiet)
    lost = sum(value >= LOST_NS for value in busy) / len(busy)
    verdict = None if budget is None else Verdict.of(ratio, budget, "x")
    return Result(name, fmean(quiet) / 1000, fmean(busy) / 1000, median(busy) / 1000, ratio, lost, verdict)


def shown(results: Sequence[Result]) -> str:
    """Return the results as a table, and a warning if the busy thread was too slow to do any harm."""
    head = (
        "one call beside one busy thread",
        "alone, mean us",
        "busy, mean us",
        "median",
        "times",
        "lost >= 1 ms",
        "budget",
        "",
    )
    title = f"Beside one CPU-bound thread on all cores, switch interval {sys.getswitchinterval() * 1000:g} ms"
    text = table(title, head, [_cells(result) for result in results])
    return text if proves_something(results) else f"{text}{NO_PROOF}\n"


def proves_something(results: Sequence[Result]) -> bool:
    """Tell whether what gives the lock up did lose it, so that it means something if ours did not."""
    return any(result.lost >= LEAST_LOST for result in results if CONTRAST in result.row)


def _cells(result: Result) -> tuple[str, ...]:
    figures = (f"{result.quiet_us:.1f}", f"{result.busy_us:.1f}", f"{result.busy_median_us:.1f}", f"{result.ratio:.1f}")
    budget = ("", "") if result.verdict is None else result.verdict.cells()
    return (result.row, *figures, f"{result.lost:.1%}", *budget)
