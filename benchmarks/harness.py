"""Interleaved measuring: every case in every round, medians, and ratios within one round.

A machine is never quiet, but what disturbs it disturbs neighbours alike. So each round runs every
case once, in an order of its own, and whatever is compared is compared within the round.
"""

import gc
import json
import os
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from time import perf_counter_ns

Call = Callable[[], object]
Timer = Callable[[], int]

STINT_NS = 1_000_000
"""How long a case runs in one round, in nanoseconds: long for the timer, short for the noise."""

LONGEST_SEARCH = 1 << 20
TRIES = 3

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
"""The cores this process may use, before it is pinned to one."""


def calls_for(call: Call, timer: Timer = perf_counter_ns, stint: int = STINT_NS) -> int:
    """Return how many calls fill one stint."""
    number = 1
    while number < LONGEST_SEARCH:
        # The best of a few: a database that tidies up just now would leave the stint with one call or two.
        spent = min(timed(call, number, timer) for _ in range(TRIES)) * number
        if spent * 4 >= stint:
            return max(1, round(number * stint / spent))
        number *= 2
    return number


def timed(call: Call, number: int, timer: Timer = perf_counter_ns) -> float:
    """Return the mean nanoseconds of one call, out of this many in a row."""
    start = timer()
    for _ in repeat(None, number):
        call()
    return (timer() - start) / number


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep the garbage collector out, and what exists already out of its sight."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class Samples(dict[str, list[float]]):
    """Nanoseconds of one call, by case and round."""

    def net(self, case: str, bare: str) -> list[float]:
        """Return, round by round, what the case takes beyond its bare form."""
        return [whole - empty for whole, empty in zip(self[case], self[bare], strict=True)]


def measure(cases: Mapping[str, Call], rounds: int, timer: Timer = perf_counter_ns, stint: int = STINT_NS) -> Samples:
    """Run every case in every round and return what each took; the garbage between stints is not counted."""
    numbers = {name: calls_for(call, timer, stint) for name, call in cases.items()}
    samples = Samples({name: [] for name in cases})
    order, dice = list(cases), random.Random(rounds)
    with collector_off():
        for _ in range(rounds):
            dice.shuffle(order)
            for name in order:
                samples[name].append(timed(cases[name], numbers[name], timer))
                gc.collect()
    return samples


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [above / below for above, below in zip(over, under, strict=True)]


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one or more values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        """Show the median and, in brackets, the quartiles."""
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Verdict:
    """Whether a figure keeps its budget: printed, never asserted."""

    budget: float
    unit: str
    met: bool

    @classmethod
    def of(cls, figure: float, budget: float, unit: str) -> "Verdict":
        """Hold the figure against the budget, which is in the same unit."""
        return cls(budget, unit, figure <= budget)

    def cells(self) -> tuple[str, str]:
        """Return the budget and one word, for a table."""
        return f"<= {self.budget:g} {self.unit}", "met" if self.met else "MISSED"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as text: the first column to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join([title, *(_line(line, widths) for line in lines), ""])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.ljust(width) if place == 0 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *rest]).rstrip()


def pin() -> str:
    """Keep this process, and what it starts, on one core where the system can, and say what was done."""
    if not CORES:
        return "not pinned: this system cannot keep a process on one core"
    core = max(CORES)
    os.sched_setaffinity(0, {core})
    return f"pinned to core {core}"


def move_apart() -> str:
    """Leave what this process started on its core, go on on another one if there is one, and say what was done."""
    if len(CORES) < 2:
        return "there is no second core"
    os.sched_setaffinity(0, {min(CORES)})
    return f"the server stays there, and who asks it goes on on core {min(CORES)}"


@contextmanager
def unpinned() -> Iterator[None]:
    """Let threads run on every core again for a while."""
    if not CORES:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def save(path: Path, results: Mapping[str, object]) -> None:
    """Write the results as JSON; dataclasses become objects."""
    path.write_text(json.dumps(results, default=asdict, indent=1) + "\n")  # type: ignore[arg-type]
