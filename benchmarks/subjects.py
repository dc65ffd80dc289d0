"""What it costs to list and to end the sessions of one subject, beside a thousand to a million of other sessions."""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random
from time import perf_counter_ns

import orjson

from benchmarks.harness import Call, Samples, Spread, Verdict, collector_off, measure, ratios, table
from benchmarks.made import records
from benchmarks.stored import STINT_NS, handler
from sessiontree.handlers.info import PARENT, SUBJECT
from sessiontree.records import Record, pack
from sessiontree.stores import Store
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore

EACH = 100
"""How many sessions every subject has. Each has a visitor's session above it, which lies in the same store."""

SUBJECTS = (10, 100, 1_000, 10_000)
"""How many there are in each store. With the visitors' sessions the largest takes 4 GB of memory, and 1.4 on disk."""

MANY = (100, 1_000, 10_000)
"""How many sessions the three subjects of the last table have, all of them in one store."""

SCANNED = 1_000
SCANS = 3
SOME = 10
"""How many sessions are ended one by one in one round."""

FEW = 5
"""How often all sessions of those who have many are ended: it takes seconds."""

TWICE, HALF_MORE, THE_SAME = 2.0, 1.5, 1.1
"""How many times the first column is flat: among more sessions of others, for more of one's own, and in steps."""

PLACES = 3
"""Where a session that is listed is looked for: in the index, its record, and its parent's record."""

ON_DISK = "SQLite"
LIST, COUNT, LOAD = "sessions()", "count()", "load() of each by its handle"
REVOKE_ALL, REVOKE, SCAN = "revoke_all()", "revoke(handle, subject)", "contrast: scan() of everything"
LIST_AGAIN, COUNT_AGAIN = f"{LIST}, the same subject again", f"{COUNT}, the same subject again"
JUDGED = (LIST, LIST_AGAIN, COUNT, COUNT_AGAIN, REVOKE_ALL, REVOKE)
OPERATIONS = (*JUDGED, LOAD, SCAN)

UNITS = {"us": 1000, "steps": 1}

LEGEND = """\
Of another subject each time, but where it says again. A search tree of a million takes twice the comparisons of one of
a thousand, so twice the first column is flat; half more where it is the subject that grows, and not the store. But one
of many also lies further away: no longer in the processor's caches, nor among the 2 MB that a connection to SQLite
keeps. load() shows what that adds to one look-up. A listed session takes three; what grows by no more us than three
times load() is said to grow as that does. The steps of SQLite's machine are counted, and no cache changes them.
"""

Columns = Mapping[str, Sequence["Column"]]
"""What is compared with each other, by engine; the smallest first."""


@dataclass(frozen=True)
class Result:
    """What one session of the subject costs in each column, how many times the first the last is, and what that is."""

    row: str
    each: dict[str, Spread]
    ratio: Spread
    verdict: Verdict | None
    finding: str


class Crowd:
    """A store full of users' sessions and, by subject, the handles of these and of the visitors' above them."""

    def __init__(self, store: Store) -> None:
        """Take a store, and know of nobody in it."""
        self.store = store
        self.handler = handler(store).spawn("user")
        self.visitors: defaultdict[str, list[str]] = defaultdict(list)
        self.users: defaultdict[str, list[str]] = defaultdict(list)
        self._made = records(1 << 40, seed=2)

    def note(self, subject: str, visitor: str, user: str) -> None:
        """Know of one more session."""
        self.visitors[subject].append(visitor)
        self.users[subject].append(user)

    def bind(self, subject: str, visitors: Iterable[str]) -> None:
        """Give the subject a new session below each of these."""
        for visitor in visitors:
            record = _of_user(next(self._made), subject, visitor)
            self.store.create(record)
            self.note(subject, visitor, record.handle)

    def renew(self, subject: str) -> None:
        """Give the subject, all of whose sessions were ended, as many new ones."""
        del self.users[subject]
        self.bind(subject, self.visitors.pop(subject))

    def pop(self, subject: str, place: int) -> tuple[str, str]:
        """Forget one session; return the visitor's handle and its own."""
        return self.visitors[subject].pop(place), self.users[subject].pop(place)


@dataclass(frozen=True)
class Column:
    """Subjects who have the same number of sessions, in one store."""

    title: str
    crowd: Crowd
    subjects: list[str]
    each: int


def run(rounds: int, folder: Path, divisor: int) -> tuple[list[Result], list[Result], list[Result]]:
    """Measure among fewer and more sessions of others, also in steps, and then subjects who have fewer and more."""
    with ExitStack() as stack:
        columns = by_store(folder, _scaled(SUBJECTS, divisor), stack)
        samples = reads(columns, rounds) | deaths(columns, max(3, rounds // 4)) | scans(columns)
        among = list(_results(columns, samples, TWICE, "us"))
        work = list(_results({ON_DISK: columns[ON_DISK]}, steps(columns[ON_DISK]), THE_SAME, "steps"))
    with ExitStack() as stack:
        columns = by_subject(folder, _scaled(MANY, divisor), stack)
        samples = reads(columns, max(3, rounds // 8)) | deaths(columns, FEW)
        return among, work, list(_results(columns, samples, HALF_MORE, "us"))


def _scaled(counts: Sequence[int], divisor: int) -> list[int]:
    return sorted({max(2, count // divisor) for count in counts})


# -- stores ----------------------------------------------------------------------------------


def by_store(folder: Path, counts: Sequence[int], stack: ExitStack) -> Columns:
    """Return a store of each engine for each number of subjects."""
    columns: defaultdict[str, list[Column]] = defaultdict(list)
    for count in counts:
        names = [f"user {number}" for number in range(count)]
        # All log in once, and then all again, so that one's sessions lie as far apart as the store is large.
        for engine, crowd in filled(folder / f"{count}.db", names * EACH, stack).items():
            columns[engine].append(Column(f"{count * EACH:,}", crowd, names, EACH))
    return columns


def by_subject(folder: Path, sizes: Sequence[int], stack: ExitStack) -> Columns:
    """Return one store of each engine, with a subject for each number of sessions."""
    names = {size: f"user with {size}" for size in sizes}
    logins = [name for size, name in names.items() for _ in range(size)]
    Random(1).shuffle(logins)
    return {
        engine: [Column(f"{size:,}", crowd, [name], size) for size, name in names.items()]
        for engine, crowd in filled(folder / "subjects.db", logins, stack).items()
    }


def filled(file: Path, logins: Iterable[str], stack: ExitStack) -> dict[str, Crowd]:
    """Return a crowd in memory and one in the file, the same, where each of these subjects has logged in once."""
    memory = Crowd(stack.enter_context(closing(MemoryStore())))
    made, trees = records(1 << 40), []

    def rows() -> Iterator[tuple[str, int, bytes]]:
        for subject, visitor, record in zip(logins, made, made, strict=False):
            user = _of_user(record, subject, visitor.handle)
            trees.append((subject, visitor.handle, user.handle))
            for each in (visitor, user):
                memory.store.create(each)
                yield each.handle, each.ends, pack(each)

    def labels() -> Iterator[tuple[str, str, str]]:
        for subject, visitor, user in trees:
            yield from ((PARENT, visitor, user), (SUBJECT, subject, user))

    with collector_off():
        _write(file, rows(), labels())
    on_disk = Crowd(stack.enter_context(closing(SqliteStore(file))))
    for tree in trees:
        memory.note(*tree)
        on_disk.note(*tree)
    return {"memory": memory, ON_DISK: on_disk}


def _of_user(record: Record, subject: str, visitor: str) -> Record:
    labels = orjson.dumps({PARENT: visitor, SUBJECT: subject}).decode()
    return record._replace(path=f"{record.path}/user", authenticated=record.created, labels=labels)


def _write(file: Path, rows: Iterable[tuple[str, int, bytes]], labels: Iterable[tuple[str, str, str]]) -> None:
    """Make the file of a SqliteStore in one transaction, without a log, and the indexes last.

    Through the store's own verbs a million takes several minutes.
    """
    SqliteStore(file).close()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        execute = connection.execute
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000"):
            execute(f"PRAGMA {pragma}").fetchall()
        indexes = execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
        execute("BEGIN")
        for name, _ in indexes:
            execute(f"DROP INDEX {name}")
        connection.executemany("INSERT INTO sessions VALUES (?, ?, ?)", rows)
        connection.executemany("INSERT INTO labels (name, value, handle) VALUES (?, ?, ?)", labels)
        for _, sql in indexes:
            execute(sql)
        execute("COMMIT")
        execute("PRAGMA journal_mode=WAL").fetchall()


# -- measuring -------------------------------------------------------------------------------


def reads(columns: Columns, rounds: int) -> Samples:
    """Return the nanoseconds that looking at all sessions of one subject takes."""
    cases: dict[str, Call] = {}
    for engine, column in _pairs(columns):
        cases |= {_key(engine, column, operation): call for operation, call in _reading(column)}
    return measure(cases, rounds, stint=STINT_NS)


def _reading(column: Column) -> Iterator[tuple[str, Call]]:
    crowd, subjects = column.crowd, column.subjects.copy()
    sessions, count, load = crowd.handler.sessions, crowd.store.count, crowd.store.load
    Random(3).shuffle(subjects)
    same, next_subject = subjects[0], cycle(subjects).__next__
    if not len(sessions(same)) == count(SUBJECT, same) == column.each:
        raise RuntimeError(f"{same!r} does not have {column.each} sessions: nothing here would mean anything.")

    def load_each() -> None:
        for handle in crowd.users[next_subject()]:
            load(handle)

    yield LIST, lambda: sessions(next_subject())
    yield COUNT, lambda: count(SUBJECT, next_subject())
    yield LOAD, load_each
    if len(subjects) > 1:
        yield LIST_AGAIN, lambda: sessions(same)
        yield COUNT_AGAIN, lambda: count(SUBJECT, same)


def deaths(columns: Columns, rounds: int) -> Samples:
    """Return the nanoseconds that ending all sessions of one subject takes, and some; there are always as many."""
    places = _pairs(columns)
    samples = Samples({_key(*place, verb): [] for place in places for verb in (REVOKE_ALL, REVOKE)})
    dice = Random(rounds)
    with collector_off():
        for _ in range(rounds):
            dice.shuffle(places)
            for engine, column in places:
                samples[_key(engine, column, REVOKE_ALL)].append(_end_all(column, dice.choice(column.subjects)))
                samples[_key(engine, column, REVOKE)].append(_end_some(column, dice))
    return samples


def _end_all(column: Column, subject: str) -> int:
    start = perf_counter_ns()
    ended = column.crowd.handler.revoke_all(subject)
    taken = perf_counter_ns() - start
    if ended != column.each:
        raise RuntimeError(f"{ended} of {column.each} sessions were ended: nothing here would mean anything.")
    column.crowd.renew(subject)
    return taken


def _end_some(column: Column, dice: Random) -> int:
    crowd, taken = column.crowd, 0
    for _ in range(SOME):
        subject = dice.choice(column.subjects)
        visitor, handle = crowd.pop(subject, dice.randrange(column.each))
        start = perf_counter_ns()
        crowd.handler.revoke(handle, subject)
        taken += perf_counter_ns() - start
        crowd.bind(subject, [visitor])
    return taken


def scans(columns: Columns) -> Samples:
    """Return the nanoseconds that finding all sessions of one subject among everybody's takes."""
    cases = {
        _key(engine, column, SCAN): partial(_scan, column.crowd.store, column.subjects[0])
        for engine, column in _pairs(columns)
        if len(column.subjects) <= SCANNED
    }
    return measure(cases, SCANS)


def _scan(store: Store, subject: str) -> list[Record]:
    found: list[Record] = []
    page = store.scan()
    while True:
        found += [record for record in page.records if record.label.get(SUBJECT) == subject]
        if page.after is None:
            return found
        page = store.scan(page.after)


def steps(compared: Sequence[Column]) -> Samples:
    """Return how many steps SQLite's machine takes for all sessions of one subject."""
    samples = Samples()
    for column in compared:
        subject, crowd = column.subjects[-1], column.crowd
        calls = {
            LIST: partial(crowd.handler.sessions, subject),
            COUNT: partial(crowd.store.count, SUBJECT, subject),
            REVOKE_ALL: partial(crowd.handler.revoke_all, subject),
        }
        for operation, call in calls.items():
            samples[_key(ON_DISK, column, operation)] = [_steps(crowd.store, call)]
        crowd.renew(subject)
    return samples


def _steps(store: SqliteStore, call: Call) -> int:
    taken = 0

    def step() -> int:
        nonlocal taken
        taken += 1
        return 0

    connection = store._idle[-1].driver  # noqa: SLF001 - the one that every verb takes while nobody else does
    connection.set_progress_handler(step, 1)
    call()
    connection.set_progress_handler(None, 0)
    return taken


def _pairs(columns: Columns) -> list[tuple[str, Column]]:
    return [(engine, column) for engine, compared in columns.items() for column in compared]


def _key(engine: str, column: Column, operation: str) -> str:
    return f"{engine}, {column.title}: {operation}"


# -- judging and showing ---------------------------------------------------------------------


def judged(columns: Columns, samples: Samples) -> Iterator[Result]:
    """Return what was measured among fewer and more sessions of others, and whether it is flat."""
    return _results(columns, samples, TWICE, "us")


def table_of(title: str, results: Sequence[Result]) -> str:
    """Return results among fewer and more sessions of others as a table."""
    return _table(title, f"us for one; {EACH} of each, of so many", results)


def _results(columns: Columns, samples: Samples, factor: float, unit: str) -> Iterator[Result]:
    for engine, compared in columns.items():
        taken = {operation: _taken(engine, compared, operation, samples, unit) for operation in OPERATIONS}
        spreads = {
            operation: {title: Spread.of(values) for title, values in each.items()}
            for operation, each in taken.items()
            if each
        }
        away = _growth(spreads[LOAD]) if LOAD in spreads else 0.0
        for operation, each in spreads.items():
            first, *_, last = taken[operation].values()
            ratio = Spread.of(ratios(last, first))
            verdict = Verdict.of(ratio.median, factor, "x") if operation in JUDGED else None
            finding = _finding(verdict, _growth(each), PLACES * away)
            yield Result(f"{engine}: {operation}", each, ratio, verdict, finding)


def _finding(verdict: Verdict | None, growth: float, allowed: float) -> str:
    if verdict is None:
        return ""
    if verdict.met:
        return "flat"
    return "as load()" if growth <= allowed else "GROWS"


def _taken(
    engine: str, compared: Sequence[Column], operation: str, samples: Samples, unit: str
) -> dict[str, list[float]]:
    """Return what one session took in each round, by column."""
    keys = {column.title: _key(engine, column, operation) for column in compared}
    number = {column.title: SOME if operation == REVOKE else column.each for column in compared}
    return {
        title: [value / UNITS[unit] / number[title] for value in samples[key]]
        for title, key in keys.items()
        if key in samples
    }


def _growth(each: Mapping[str, Spread]) -> float:
    first, *_, last = each.values()
    return last.median - first.median


def shown(among: Sequence[Result], work: Sequence[Result], many: Sequence[Result]) -> str:
    """Return the results as three tables."""
    return "\n".join(
        [
            LEGEND,
            table_of("One subject's sessions among those of others", among),
            _table("One subject's sessions, in steps of SQLite", f"steps for one; {EACH} of each, of so many", work),
            _table("A subject with many sessions", "us for one, of so many", many),
        ]
    )


def _table(title: str, unit: str, results: Sequence[Result]) -> str:
    titles = max((result.each for result in results), key=len)
    head = (unit, *titles, "last / first", "flat", "")
    return table(title, head, [_cells(result, titles) for result in results])


def _cells(result: Result, titles: Iterable[str]) -> tuple[str, ...]:
    each = [f"{result.each[title].median:.2f}" if title in result.each else "" for title in titles]
    bound = "" if result.verdict is None else result.verdict.cells()[0]
    return (result.row, *each, str(result.ratio), bound, result.finding)
