"""What a session in a store of ours adds to a request, beside the sqlite3 calls that it cannot do without."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.floor import nothing
from benchmarks.harness import Call, Samples, Spread, Verdict, measure, ratios, table
from benchmarks.made import records
from benchmarks.payload import SIZES
from benchmarks.raw_sqlite import Raw
from benchmarks.sessions import SECRET, bare, data_of, filled, reading, writing
from benchmarks.wsgi import request
from sessiontree import Handler, with_store
from sessiontree.stores import Store
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore

OPERATIONS = {"read": "read 2", "write": "read 2, write 1"}
BUDGETS = {"read": 2.5, "write": 2.2}
"""Multiples of the bare sqlite3 calls, for SqliteStore."""

SESSIONS = 100
"""How many the requests show in turn."""

CROWD = 20_000
"""How many other sessions lie in the same store."""

STINT_NS = 3_000_000
"""Longer than for cookies: a write to a file is slow, and a checkpoint falls due now and then."""


@dataclass(frozen=True)
class Result:
    """What a row came to: microseconds over its bare application, and how many times the bare sqlite3 calls."""

    row: str
    us: Spread
    ratio: Spread
    verdict: Verdict | None


def engines(folder: Path) -> dict[str, Store]:
    """Return the stores under measurement."""
    return {"memory": MemoryStore(), "SQLite": SqliteStore(folder / "ours.db")}


def handler(store: Store) -> Handler:
    """Return a handler whose sessions lie in the store."""
    return Handler("visitor", SECRET, with_store(store))


def rows_of(data: dict[str, Any], seed: int, sessions: int) -> list[tuple[str, bytes]]:
    """Return the rows of sessions that all hold the data, for the bare calls."""
    return [(record.handle, orjson.dumps(data)) for record in records(sessions, seed=seed)]


def run(rounds: int, folder: Path, sessions: int, crowd: int) -> list[Result]:
    """Measure both engines and the bare calls, interleaved."""
    raw = Raw(folder / "raw.db", [(record.handle, record.fields) for record in records(crowd)])
    cases: dict[str, Call] = {"nothing": nothing}
    for seed, size in enumerate(SIZES, start=2):
        handles = raw.add(rows_of(data_of(size, on_top=True), seed, sessions))
        cases |= {f"raw {size} read": raw.read(handles), f"raw {size} write": raw.write(handles)}
    stores = engines(folder)
    for name, store in stores.items():
        for record in records(crowd):
            store.create(record)
        cases.update(_our_cases(name, handler(store), sessions))
    samples = measure(cases, rounds, stint=STINT_NS)
    for engine in (raw, *stores.values()):
        engine.close()
    return [*_floors(samples), *(_result(samples, *key) for key in _keys(stores))]


def _keys(stores: dict[str, Store]) -> Iterator[tuple[str, str, str]]:
    return ((name, size, operation) for name in stores for size in SIZES for operation in OPERATIONS)


def _our_cases(name: str, ours: Handler, sessions: int) -> Iterator[tuple[str, Call]]:
    for size in SIZES:
        data = data_of(size, on_top=True)
        cookies = [filled([ours], data) for _ in range(sessions)]
        yield f"{name} {size} bare", request(bare, "/", *cookies)
        for operation, app in (("read", reading(ours)), ("write", writing(ours))):
            yield f"{name} {size} {operation}", request(ours.link(app), "/", *cookies)


def _floors(samples: Samples) -> Iterator[Result]:
    for size in SIZES:
        for operation, does in (("read", "SELECT, loads"), ("write", "SELECT, loads, dumps, UPDATE")):
            net = samples.net(f"raw {size} {operation}", "nothing")
            yield Result(f"bare sqlite3 {size}: {does}", _us(net), Spread.of(ratios(net, net)), None)


def _result(samples: Samples, name: str, size: str, operation: str) -> Result:
    net = samples.net(f"{name} {size} {operation}", f"{name} {size} bare")
    ratio = Spread.of(ratios(net, samples.net(f"raw {size} {operation}", "nothing")))
    verdict = Verdict.of(ratio.median, BUDGETS[operation], "x") if name == "SQLite" else None
    return Result(f"{name} {size}: {OPERATIONS[operation]}", _us(net), ratio, verdict)


def _us(nanoseconds: Sequence[float]) -> Spread:
    return Spread.of([value / 1000 for value in nanoseconds])


def shown(results: Sequence[Result]) -> str:
    """Return the results as a table."""
    head = ("whole request, over its bare app", "us", "times bare sqlite3", "budget", "")
    return table("Ours, sessions in a store", head, [_cells(result) for result in results])


def _cells(result: Result) -> tuple[str, ...]:
    budget = ("", "") if result.verdict is None else result.verdict.cells()
    return (result.row, str(result.us), str(result.ratio), *budget)
