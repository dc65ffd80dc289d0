"""The verbs of a store by themselves, beside the sqlite3 calls that do the same with a blob."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from time import perf_counter_ns

import orjson

from benchmarks.floor import nothing
from benchmarks.harness import Call, Samples, Spread, Verdict, collector_off, measure, ratios, table
from benchmarks.made import records
from benchmarks.payload import COUNTER, SIZES, next_count
from benchmarks.raw_sqlite import DELETE, INSERT, Raw
from benchmarks.sessions import data_of
from benchmarks.stored import SESSIONS, STINT_NS, engines, rows_of
from sessiontree.records import Changes, Json, Record, packed
from sessiontree.stores import Store

BUDGET = 1.5
"""Times the bare sqlite3 calls, for SqliteStore."""

BATCH = 100
"""How many records are created, and then revoked, in one round."""

LOAD, PARSE, APPLY, BOTH = "load", "load, and parse", "apply of one key, not loaded lately", "load, apply of one key"
CREATE, REVOKE = "create", "revoke"
CALLS = {
    LOAD: "SELECT",
    PARSE: "SELECT, loads",
    APPLY: "SELECT, loads, dumps, UPDATE",
    BOTH: "SELECT, loads, dumps, UPDATE",
    CREATE: "INSERT",
    REVOKE: "DELETE, synchronous FULL",
}
"""What each verb is held against. A revocation is on the disk before it returns, so its floor waits for that too."""

Lives = Mapping[str, tuple[Callable[[Record], object], Callable[[Record], object]]]
"""What creates a record and what revokes it, by case."""


@dataclass(frozen=True)
class Result:
    """Microseconds of one verb, and how many times the bare sqlite3 calls."""

    row: str
    us: Spread
    ratio: Spread
    calls: str
    verdict: Verdict | None


def run(rounds: int, folder: Path, crowd: int) -> list[Result]:
    """Measure both engines and the bare calls, interleaved."""
    file = folder / "raw.db"
    raw = Raw(file, [(record.handle, record.fields) for record in records(crowd)])
    durable = Raw(file, synchronous="FULL")
    stores = engines(folder)
    cases: dict[str, Call] = {"nothing": nothing}
    lives = {"nothing": (_nothing, _nothing), "raw": _raw_life(raw, durable)}
    for seed, size in enumerate(SIZES, start=2):
        cases |= {f"raw {size} {verb}": call for verb, call in _raw_verbs(raw, size, seed)}
    for name, store in stores.items():
        for record in records(crowd):
            store.create(record)
        for seed, size in enumerate(SIZES, start=2):
            cases |= {f"{name} {size} {verb}": call for verb, call in _verbs(store, size, seed)}
        lives[name] = (store.create, lambda record, revoke=store.revoke: revoke(record.handle))
    samples = measure(cases, rounds, stint=STINT_NS)
    for size in SIZES:
        samples.update(births_and_deaths(lives, size, rounds))
    for engine in (durable, raw, *stores.values()):
        engine.close()
    return list(_results(samples, stores))


def _nothing(_record: Record) -> None:
    """Do nothing: the price of the loop and the call."""


def _raw_verbs(raw: Raw, size: str, seed: int) -> Iterator[tuple[str, Call]]:
    handles = raw.add(rows_of(data_of(size, on_top=True), seed, SESSIONS))
    yield LOAD, raw.select(handles)
    yield PARSE, raw.read(handles)
    yield APPLY, raw.write(handles)
    yield BOTH, raw.write(handles)


def _raw_life(raw: Raw, durable: Raw) -> tuple[Callable[[Record], object], Callable[[Record], object]]:
    insert, delete = raw.cursor.execute, durable.cursor.execute
    return (
        lambda record: insert(INSERT, (record.handle, record.fields)),
        lambda record: delete(DELETE, (record.handle,)),
    )


def _verbs(store: Store, size: str, seed: int) -> Iterator[tuple[str, Call]]:
    fields = packed(data_of(size, on_top=True))
    mine = [record._replace(fields=fields) for record in records(SESSIONS, seed=seed)]
    for record in mine:
        store.create(record)
    load, apply, loads = store.load, store.apply, orjson.loads
    next_handle = cycle([record.handle for record in mine]).__next__
    next_proven = cycle([(record.handle, record.proof) for record in mine]).__next__

    def parse() -> None:
        loads(load(next_handle()).fields)  # type: ignore[union-attr]

    def change() -> None:
        apply(*next_proven(), Changes(sets={COUNTER: (Json(b"%d" % next_count()), 0)}))

    def both() -> None:
        handle, proof = next_proven()
        load(handle)
        apply(handle, proof, Changes(sets={COUNTER: (Json(b"%d" % next_count()), 0)}))

    yield LOAD, lambda: load(next_handle())
    yield PARSE, parse
    yield APPLY, change
    yield BOTH, both


def births_and_deaths(lives: Lives, size: str, rounds: int) -> Samples:
    """Create a batch of records and then revoke it, in every round and case, so that nothing grows meanwhile."""
    fields = packed(data_of(size, on_top=True))
    batch = [record._replace(fields=fields) for record in records(BATCH, seed=9)]
    samples = Samples({f"{name} {size} {verb}": [] for name in lives for verb in (CREATE, REVOKE)})
    order, dice = list(lives), Random(rounds)
    with collector_off():
        for _ in range(rounds):
            dice.shuffle(order)
            for name in order:
                for verb, step in zip((CREATE, REVOKE), lives[name], strict=True):
                    start = perf_counter_ns()
                    for record in batch:
                        step(record)
                    samples[f"{name} {size} {verb}"].append((perf_counter_ns() - start) / BATCH)
    return samples


def _results(samples: Samples, stores: Mapping[str, Store]) -> Iterator[Result]:
    def net(name: str, size: str, verb: str) -> list[float]:
        empty = f"nothing {size} {verb}"
        return samples.net(f"{name} {size} {verb}", empty if empty in samples else "nothing")

    for name in ("raw", *stores):
        for size in SIZES:
            for verb, calls in CALLS.items():
                taken, bare = net(name, size, verb), net("raw", size, verb)
                ratio = Spread.of(ratios(taken, bare))
                # That the verb parses nothing is no reason to judge it twice.
                judged = name == "SQLite" and verb != PARSE
                row = f"bare sqlite3 {size}: {calls}" if name == "raw" else f"{name} {size}: {verb}"
                verdict = Verdict.of(ratio.median, BUDGET, "x") if judged else None
                yield Result(row, _us(taken), ratio, calls, verdict)


def _us(nanoseconds: Sequence[float]) -> Spread:
    return Spread.of([value / 1000 for value in nanoseconds])


def shown(results: Sequence[Result]) -> str:
    """Return the results as a table."""
    head = ("one verb", "us", "times", "of bare sqlite3", "budget", "")
    return table("Verbs of the stores", head, [_cells(result) for result in results])


def _cells(result: Result) -> tuple[str, ...]:
    budget = ("", "") if result.verdict is None else result.verdict.cells()
    return (result.row, str(result.us), str(result.ratio), result.calls, *budget)
