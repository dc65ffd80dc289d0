"""Sessions on a server: ours beside the round trips that they need, and beside other libraries on the same server."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.floor import nothing
from benchmarks.frameworks import Pair
from benchmarks.harness import Call, Samples, Spread, Verdict, measure, ratios, table
from benchmarks.machine import machine
from benchmarks.made import records
from benchmarks.payload import SIZES, application_data
from benchmarks.peers import Uses, working_cookie
from benchmarks.store_peers import ours, working
from sessiontree.records import Record, packed
from sessiontree.stores import Store

TESTS = Path(__file__).parents[1] / "tests"
"""Where the servers are that the tests start."""

OURS = "sessiontree"
BY_HAND = "the same commands by hand"
OPERATIONS = {"read": "read 2", "write": "read 2, write 1"}
SESSIONS = 50
CROWD = 20_000
ROUNDS = 150
STINT_NS = 3_000_000
AHEAD = 2.5
"""How many times what ours takes every peer takes at least."""


@dataclass(frozen=True)
class Engine:
    """A server, a store on it, what nobody can do without, and what others make of it."""

    name: str
    store: Store
    floor: Mapping[str, Call]
    """By operation: the bare calls that a request of it is held against."""
    what: str
    """What these calls are."""
    budgets: Mapping[str, float]
    """By operation: how many times the floor it may take."""
    peers: Mapping[str, Callable[[Uses], Pair]]
    by_hand: Callable[[Sequence[Record]], Mapping[str, Call]] | None = None
    """By operation: what sends the commands that we send for these records, and takes in the answers."""


@dataclass(frozen=True)
class Row:
    """What a library adds to a request, in microseconds, times the floor and times ours."""

    library: str
    size: str
    operation: str
    us: Spread
    floors: Spread
    times: Spread
    verdict: Verdict | None


def main(build: Callable[[ExitStack], Engine], packages: Sequence[str], doc: str | None) -> None:
    """Start the server, measure, and print."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each case is run ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds and of the sessions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    parser.add_argument("--apart", action="store_true", help="give the server a core of its own, as it has in service")
    options = parser.parse_args()
    share = 10 if options.quick else 1
    about = machine(harness.pin(), packages)
    print("\n".join(about.values()))
    with ExitStack() as stack:
        engine = build(stack)  # on the same core, for it inherits that we are pinned
        if options.apart:
            about["apart"] = harness.move_apart()
            print(about["apart"])
        for record in records(CROWD // share):
            engine.store.create(record)
        rows, missing = measured(engine, max(3, options.rounds // share), max(2, SESSIONS // share))
    print(shown(engine, rows), *missing, sep="\n")
    if options.json is not None:
        harness.save(options.json, {"machine": about, "rows": rows, "missing": missing})


def measured(engine: Engine, rounds: int, sessions: int) -> tuple[list[Row], list[str]]:
    """Measure ours and every peer, interleaved; also return a line for each peer that is missing."""
    uses = Uses(on_top=True)
    builders = {OURS: lambda: ours(engine.store, uses)} | {
        name: lambda build=build: build(uses) for name, build in engine.peers.items()
    }
    found, missing = working(builders, uses, {OURS})
    cases: dict[str, Call] = {f"floor {operation}": call for operation, call in engine.floor.items()}
    for name, pair in found.items():
        cases.update(_cases(name, pair, uses, sessions))
    cases.update(_by_hand(engine, sessions))
    samples = measure(cases, rounds, stint=STINT_NS)
    names = [OURS, *([] if engine.by_hand is None else [BY_HAND]), *(name for name in found if name != OURS)]
    keys = [(name, size, operation) for name in names for size in SIZES for operation in OPERATIONS]
    return [_row(engine, samples, *key) for key in keys], missing


def _by_hand(engine: Engine, sessions: int) -> Iterator[tuple[str, Call]]:
    """Yield what is left of our requests without us: no application, no session, no connection that may fail."""
    if engine.by_hand is None:
        return
    for seed, (size, (length, keys)) in enumerate(SIZES.items(), 2):
        fields = packed(application_data(length, keys))
        held = [record._replace(fields=fields) for record in records(sessions, seed=seed)]
        for record in held:
            engine.store.create(record)
        yield f"{BY_HAND} {size} bare", nothing
        for operation, call in engine.by_hand(held).items():
            yield f"{BY_HAND} {size} {operation}", call


def _cases(name: str, pair: Pair, uses: Uses, sessions: int) -> Iterator[tuple[str, Call]]:
    for size in SIZES:
        cookies = [working_cookie(name, pair, uses, size) for _ in range(sessions)]
        uses.shown.clear()
        yield f"{name} {size} bare", pair.client.request(pair.bare, f"/{size}-untouched", *cookies)
        for operation in OPERATIONS:
            yield f"{name} {size} {operation}", pair.client.request(pair.app, f"/{size}-{operation}", *cookies)


def _row(engine: Engine, samples: Samples, name: str, size: str, operation: str) -> Row:
    def net(library: str) -> list[float]:
        return samples.net(f"{library} {size} {operation}", f"{library} {size} bare")

    taken = net(name)
    floors = Spread.of(ratios(taken, samples[f"floor {operation}"]))
    times = Spread.of(ratios(taken, net(OURS)))
    verdict = None
    if name == OURS:
        verdict = Verdict.of(floors.median, engine.budgets[operation], "x the floor")
    elif name != BY_HAND:
        verdict = Verdict.of(1 / times.median, 1 / AHEAD, "of it")
    return Row(name, size, OPERATIONS[operation], Spread.of([value / 1000 for value in taken]), floors, times, verdict)


def shown(engine: Engine, rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    title = f"{engine.name}: over the bare application; the floor is {engine.what}; every peer is to take {AHEAD}x ours"
    head = ("", "us", "times the floor", "times ours", "budget", "")
    return table(title, head, [_row_cells(row) for row in rows])


def _row_cells(row: Row) -> tuple[Any, ...]:
    return (
        f"{row.library} {row.size}: {row.operation}",
        str(row.us),
        str(row.floors),
        str(row.times),
        *(("", "") if row.verdict is None else row.verdict.cells()),
    )
