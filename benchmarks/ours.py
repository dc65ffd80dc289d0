"""What a session of ours adds to a request, as a multiple of FLOOR and beside its budget."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.floor import floor_cases
from benchmarks.harness import Call, Samples, Spread, Verdict, measure, ratios, table
from benchmarks.payload import SIZES
from benchmarks.sessions import KINDS, TOKENS, bare, data_of, filled, handler, reading, renewed, three, writing
from benchmarks.wsgi import App, request
from sessiontree import Handler, chain

UNTOUCHED_US = 0.6
CHAIN = 3.0
READ = {("signed", "small"): 1.3, ("signed", "big"): 1.6, ("sealed", "small"): 1.45, ("sealed", "big"): 1.6}
WRITE = {("signed", "small"): 1.7, ("signed", "big"): 2.1, ("sealed", "small"): 1.85, ("sealed", "big"): 2.1}
WRITE_SPEED = {("signed", "small"): 1.45, ("signed", "big"): 1.25, ("sealed", "small"): 1.6, ("sealed", "big"): 1.25}
"""Multiples of FLOOR: with the standard library's base64 and, where it differs, with pybase64."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a request, the row or case it is a multiple of, and the design's budget for it.

    The budget is a multiple of the unit too, or a number of microseconds.
    """

    name: str
    app: App
    cookies: Sequence[str]
    unit: str
    budget: float | None
    in_us: bool = False

    def cases(self) -> dict[str, Call]:
        """Return the request, and the same request to the bare application."""
        return {
            self.name: request(self.app, "/", *self.cookies),
            f"{self.name}, bare": request(bare, "/", *self.cookies),
        }


@dataclass(frozen=True)
class Result:
    """What a row came to: microseconds over its bare application, and how many times its unit."""

    row: str
    us: Spread
    unit: str
    ratio: Spread
    verdict: Verdict | None


def rows(kind: str, *, speed: bool) -> Iterator[Row]:
    """Return every row of one kind of cookie; ``speed`` says that pybase64 is in use."""
    writes = WRITE_SPEED if speed else WRITE
    for size in SIZES:
        ours = handler(kind)
        name, cookie = f"{kind} {size}", [filled([ours], data_of(size))]
        yield Row(f"{name}: untouched", ours.link(bare), cookie, f"floor {size}", UNTOUCHED_US, in_us=True)
        yield _reads(name, size, ours, cookie, READ[kind, size])
        yield _writes(name, size, ours, cookie, writes[kind, size])
    for size in SIZES:
        # The application's JSON alone has the size of FLOOR's, so that nobody can say the choice flatters.
        ours = handler(kind)
        name, cookie = f"{kind} {size}, envelope on top", [filled([ours], data_of(size, on_top=True))]
        yield _reads(name, size, ours, cookie)
        yield _writes(name, size, ours, cookie)
    for size in SIZES:
        # No request shows a token that was seen lately, as after a write; the two rows share none.
        ours = handler(kind)
        cookies = renewed(ours, filled([ours], data_of(size)), 2 * TOKENS)
        name = f"{kind} {size}, token not seen lately"
        yield _reads(name, size, ours, cookies[:TOKENS])
        yield _writes(name, size, ours, cookies[TOKENS:])
    if kind == "signed":
        yield from map(_chain, SIZES)


def _reads(name: str, size: str, ours: Handler, cookies: Sequence[str], budget: float | None = None) -> Row:
    return Row(f"{name}: read 2", ours.link(reading(ours)), cookies, f"floor {size}", budget)


def _writes(name: str, size: str, ours: Handler, cookies: Sequence[str], budget: float | None = None) -> Row:
    return Row(f"{name}: read 2, write 1", ours.link(writing(ours)), cookies, f"floor {size}", budget)


def _chain(size: str) -> Row:
    """Read in the last of three sessions, each the child of the one before."""
    line = three(handler("signed"))
    app, cookies = chain(*line)(reading(line[2])), [filled(line, data_of(size))]
    return Row(f"signed {size}: chain of 3, read 2 in the last", app, cookies, f"signed {size}: read 2", CHAIN)


def run(rounds: int, *, speed: bool) -> list[Result]:
    """Measure every row and the floors, interleaved.

    Signed and sealed have turns of their own, as a server has one of them: the interpreter adapts
    its bytecode to the types it meets, and would have to change its mind every millisecond.
    """
    results: list[Result] = []
    for kind in KINDS:
        lines = list(rows(kind, speed=speed))
        cases = floor_cases()
        for row in lines:
            cases.update(row.cases())
        samples = measure(cases, rounds)
        results += [] if results else _floors(samples)
        results += [_result(row, samples) for row in lines]
    return results


def _floors(samples: Samples) -> Iterator[Result]:
    for size in SIZES:
        unit = samples.net(f"floor {size}", "nothing")
        yield Result(f"FLOOR {size}", _us(unit), f"floor {size}", Spread.of(ratios(unit, unit)), None)
        hard = samples.net(f"hard floor {size}", "nothing")
        yield Result(f"hard floor {size}", _us(hard), f"floor {size}", Spread.of(ratios(hard, unit)), None)


def _result(row: Row, samples: Samples) -> Result:
    net = samples.net(row.name, f"{row.name}, bare")
    under = "nothing" if row.unit.startswith("floor") else f"{row.unit}, bare"
    us, ratio = _us(net), Spread.of(ratios(net, samples.net(row.unit, under)))
    verdict = None
    if row.budget is not None:
        verdict = Verdict.of((us if row.in_us else ratio).median, row.budget, "us" if row.in_us else "x")
    return Result(row.name, us, row.unit, ratio, verdict)


def _us(nanoseconds: Sequence[float]) -> Spread:
    return Spread.of([value / 1000 for value in nanoseconds])


def shown(title: str, results: Sequence[Result]) -> str:
    """Return the results as a table."""
    head = ("whole request, over its bare app", "us", "times", "of", "budget", "")
    return table(title, head, [_cells(result) for result in results])


def _cells(result: Result) -> tuple[str, ...]:
    budget = ("", "") if result.verdict is None else result.verdict.cells()
    return (result.row, str(result.us), str(result.ratio), result.unit, *budget)
