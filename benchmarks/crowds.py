"""What one subject's sessions cost among a thousand to a million in a server: ``python -m benchmarks.crowds redis``.

Or ``postgres``. It starts a server of its own, fills it through the store's own verbs, which takes minutes, and then
lists, counts and ends the sessions of single subjects, and sweeps a thousand expired sessions out from among the rest.
"""

import argparse
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter_ns

from benchmarks import harness, subjects
from benchmarks.harness import Spread, collector_off, table
from benchmarks.machine import machine
from benchmarks.made import records
from benchmarks.subjects import EACH, Column, Crowd
from sessiontree.stores import Store, open_store

SUBJECTS = (5, 50, 500, 5_000)
"""How many there are, with a hundred sessions each, and as many visitors' sessions above them: a million in all."""

EXPIRED = 1_000
SWEEPS = 5
ROUNDS = 40


@dataclass(frozen=True)
class Swept:
    """What it takes to sweep one expired session out from among so many others."""

    title: str
    us: Spread


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill a server, measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowds", description=__doc__)
    parser.add_argument("engine", choices=("redis", "postgres"))
    parser.add_argument("--share", type=int, default=1, metavar="N", help="an Nth of the sessions")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each case is run ({ROUNDS})")
    options = parser.parse_args(arguments)
    print("\n".join(machine(harness.pin(), ()).values()))
    counts = sorted({max(2, count // options.share) for count in SUBJECTS})
    with ExitStack() as stack:
        places = _places(options.engine, stack)
        columns = {options.engine: [_column(count, next(places)) for count in counts]}
        samples = subjects.reads(columns, options.rounds) | subjects.deaths(columns, max(3, options.rounds // 4))
        results = list(subjects.judged(columns, samples))
        print(subjects.table_of(f"One subject's sessions in {options.engine}", results))
        swept = [_swept(column) for column in columns[options.engine]]
    rows = [(each.title, str(each.us)) for each in swept]
    print(table(f"sweep() of {EXPIRED:,} expired sessions among so many others", ("", "us for one"), rows))


def _places(engine: str, stack: ExitStack) -> Iterator[Store]:
    """Yield stores on one server that know nothing of each other."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    if engine == "redis":
        from servers.valkey import Valkey

        server = Valkey()
        server.start()
        stack.callback(server.remove)
        while True:
            yield stack.enter_context(closing(open_store(server.url, prefix=secrets.token_hex(4), timeout=60)))
    from servers import postgres

    url = postgres.server("wheel 16").url
    while True:
        store = stack.enter_context(closing(open_store(url, schema=f"b{secrets.token_hex(4)}", timeout=60)))
        store.create_schema()
        yield store


def _column(count: int, store: Store) -> Column:
    """Fill a store; all log in once, and then all again, so that one's sessions lie far apart."""
    names = [f"user {number}" for number in range(count)]
    crowd, made = Crowd(store), records(count * EACH)
    with collector_off():
        for turn in range(EACH):
            for name, visitor in zip(names, islice(made, count), strict=True):
                store.create(visitor)
                crowd.bind(name, [visitor.handle])
            if sys.stderr.isatty():
                print(f"\r{2 * count * (turn + 1):,}", end=" ", file=sys.stderr, flush=True)
    return Column(f"{2 * count * EACH:,}", crowd, names, EACH)


def _swept(column: Column) -> Swept:
    store, taken = column.crowd.store, list[float]()
    for turn in range(SWEEPS):
        for record in records(EXPIRED, expired=True, seed=turn + 100):
            store.create(record)
        start, removed = perf_counter_ns(), 0
        while removed < EXPIRED:
            removed += store.sweep(EXPIRED)
        taken.append((perf_counter_ns() - start) / 1000 / removed)
    return Swept(column.title, Spread.of(taken))


if __name__ == "__main__":
    main()
