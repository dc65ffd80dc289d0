"""Measure sessions in PostgreSQL: ``python -m benchmarks.postgres``, from the root of the checkout.

It starts a server of its own, or takes ``--url``, and prints what a session in it adds to a whole request, beside the
libpq calls that it cannot do without, psycopg's cursors, and other libraries on the same server. Nothing fails for
being slow.
"""

import argparse
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import orjson
import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks import harness, remote, store_peers
from benchmarks.floor import nothing
from benchmarks.frameworks import Pair
from benchmarks.harness import Call, Samples, Spread, Verdict, measure, ratios, table
from benchmarks.machine import machine
from benchmarks.made import records
from benchmarks.payload import COUNTER, SIZES, next_count
from benchmarks.peers import Uses
from benchmarks.sessions import SECRET, bare, data_of, filled, reading, three, writing
from benchmarks.wsgi import App, request
from sessiontree import Handler, chain, with_store
from sessiontree.records import Changes, Json
from sessiontree.stores.postgres import PostgresStore

ROUNDS = 200
QUICK = 20
SESSIONS = 100
CROWD = 5_000
STINT_NS = 4_000_000
BUDGET = 1.6
SAME = {"load": "libpq: the statement of load", "apply, one key": "libpq: the statement of apply"}
PACKAGES = ("psycopg", "psycopg-binary", "psycopg-pool", "django", "beaker", "flask-session", "sqlalchemy")
OPERATIONS = {"read": "read 2", "write": "read 2, write 1"}

LEGEND = """\
Bare libpq is exec_prepared of psycopg.pq: a SELECT of one blob by its key and orjson.loads; for a write then
orjson.dumps and an UPDATE of the row. It blocks, knows no time-out, no expiry, no proof, no other writer and no errors.
Client and server are on one core, unless --url names one that runs already; fsync is off. Data is JSON of 200 bytes
(small) or 2500 (big). The same by libpq is the very statement of the verb, prepared and executed by the same call.
In brackets the quartiles; "times" is the median of the ratios within each round. Budgets are for a quiet machine.
"""


class Bare:
    """A table of blobs by handle, and the calls without which there is no store on this server."""

    def __init__(self, url: str, schema: str) -> None:
        """Create the table, and prepare."""
        self.connection = psycopg.connect(url, autocommit=True)
        execute = self.connection.execute
        execute(
            f'CREATE TABLE {schema}.blobs (handle text COLLATE "C" PRIMARY KEY, fields bytea) WITH (fillfactor = 70)'
        )
        execute(f"ALTER TABLE {schema}.blobs ALTER fields SET STORAGE EXTERNAL, SET (toast_tuple_target = 8160)")
        self.select = f"SELECT fields FROM {schema}.blobs WHERE handle = %s"  # noqa: S608 - a name of ours
        self.update = f"UPDATE {schema}.blobs SET fields = %s WHERE handle = %s"  # noqa: S608 - as above
        self.insert = f"INSERT INTO {schema}.blobs (fields, handle) VALUES (%s, %s)"  # noqa: S608 - as above
        for name, sql in ((b"select", self.select.replace("%s", "$1")), (b"update", numbered(self.update))):
            self.connection.pgconn.prepare(name, sql.encode())

    def add(self, rows: Sequence[tuple[str, bytes]]) -> list[str]:
        """Insert the rows and return their handles."""
        with self.connection.cursor() as cursor:
            cursor.executemany(self.insert, [(fields, handle) for handle, fields in rows])
        return [handle for handle, _ in rows]

    def read(self, handles: Sequence[str]) -> Call:
        """Return a call that reads the next row and parses it."""
        ask, next_handle, loads = self.connection.pgconn.exec_prepared, _in_turn(handles), orjson.loads

        def call() -> None:
            loads(ask(b"select", [next_handle()], [1], 1).get_value(0, 0))

        return call

    def write(self, handles: Sequence[str]) -> Call:
        """Return a call that reads the next row, changes one key and writes the row."""
        ask, next_handle, loads, dumps = (
            self.connection.pgconn.exec_prepared,
            _in_turn(handles),
            orjson.loads,
            orjson.dumps,
        )

        def call() -> None:
            handle = next_handle()
            data = loads(ask(b"select", [handle], [1], 1).get_value(0, 0))
            data[COUNTER] = next_count()
            ask(b"update", [dumps(data), handle], [1, 1], 1)

        return call

    def read_by_cursor(self, handles: Sequence[str]) -> Call:
        """Return the same as psycopg's users write it."""
        execute, next_handle, loads = self.connection.execute, cycle(handles).__next__, orjson.loads

        def call() -> None:
            loads(execute(self.select, [next_handle()], binary=True).fetchone()[0])

        return call

    def write_by_cursor(self, handles: Sequence[str]) -> Call:
        """Return the same as psycopg's users write it."""
        execute, next_handle, loads, dumps = (
            self.connection.execute,
            cycle(handles).__next__,
            orjson.loads,
            orjson.dumps,
        )

        def call() -> None:
            handle = next_handle()
            data = loads(execute(self.select, [handle], binary=True).fetchone()[0])
            data[COUNTER] = next_count()
            execute(self.update, [dumps(data), handle])

        return call


def numbered(sql: str) -> str:
    """Return a statement with libpq's placeholders for psycopg's."""
    return sql.replace("%s", "$1", 1).replace("%s", "$2", 1)


def _in_turn(handles: Sequence[str]) -> Callable[[], bytes]:
    return cycle([handle.encode() for handle in handles]).__next__


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.postgres", description=__doc__)
    parser.add_argument("--url", help="a server that runs already; a schema is made in it, and dropped")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each case is run ({ROUNDS})")
    quick = f"a {QUICK}th of the rounds and of the sessions: does it run at all?"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--apart", action="store_true", help="give the server a core of its own, as it has in service")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    options = parser.parse_args(arguments)
    scale = QUICK if options.quick else 1
    rounds = max(3, options.rounds // scale)
    about = machine(harness.pin(), PACKAGES)
    with ExitStack() as stack:
        url, schema = options.url or _own_server(), f"bench_{secrets.token_hex(4)}"
        stack.callback(_dropped, url, schema)
        if options.apart:
            about["apart"] = harness.move_apart()
        store = stack.enter_context(closing(PostgresStore.from_url(url, schema=schema, timeout=10)))
        store.create_schema()
        raw = Bare(url, schema)
        stack.callback(raw.connection.close)
        [(version,)] = raw.connection.execute("SHOW server_version").fetchall()
        print(*about.values(), f"PostgreSQL {version}; {rounds} rounds", "", LEGEND, sep="\n")
        samples = _requests(raw, store, rounds, scale)
        verbs = measure(dict(_verbs(raw, store)), rounds, stint=STINT_NS)
        print(_shown_requests(samples), _shown_verbs(verbs), sep="\n")
        engine = _beside_others(raw, store, url)
        rows, missing = remote.measured(engine, max(3, rounds // 2), max(2, remote.SESSIONS // scale))
    print(remote.shown(engine, rows), *missing, sep="\n")
    if options.json is not None:
        harness.save(options.json, {"machine": about, "requests": samples, "verbs": verbs, "peers": rows})


def _own_server() -> str:
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from servers import postgres

    return postgres.server("wheel 16").url


def _dropped(url: str, schema: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


# -- whole requests -------------------------------------------------------------------------------


def _requests(raw: Bare, store: PostgresStore, rounds: int, scale: int) -> Samples:
    for record in records(CROWD // scale):
        store.create(record)
    raw.add([(record.handle, record.fields) for record in records(CROWD // scale, seed=9)])
    handler = Handler("visitor", SECRET, with_store(store))
    cases: dict[str, Call] = {"nothing": nothing}
    for seed, size in enumerate(SIZES, start=2):
        rows = [(record.handle, orjson.dumps(data_of(size, on_top=True))) for record in records(SESSIONS, seed=seed)]
        handles = raw.add(rows)
        cases |= {
            f"bare libpq {size} read": raw.read(handles),
            f"bare libpq {size} write": raw.write(handles),
            f"psycopg cursor {size} read": raw.read_by_cursor(handles),
            f"psycopg cursor {size} write": raw.write_by_cursor(handles),
        }
        cases |= dict(_our_cases(handler, size))
    return measure(cases, rounds, stint=STINT_NS)


def _our_cases(ours: Handler, size: str) -> Iterator[tuple[str, Call]]:
    data = data_of(size, on_top=True)
    cookies = [filled([ours], data) for _ in range(SESSIONS)]
    yield f"bare {size}", request(bare, "/", *cookies)
    for operation, app in (("read", reading(ours)), ("write", writing(ours))):
        yield f"sessiontree {size} {operation}", request(ours.link(app), "/", *cookies)
    if size == "small":
        line = three(ours)
        crumbs = [filled(line, data) for _ in range(SESSIONS)]
        yield "three read", request(chain(*line)(reading(line[-1])), "/", *crumbs)
        yield "three write", request(chain(*line)(_writing_all(line)), "/", *crumbs)


def _writing_all(line: Sequence[Handler]) -> App:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        for each in line:
            each.session(environ)[COUNTER] = next_count()
        start_response("200 OK", [])
        return [b"ok"]

    return app


def _shown_requests(samples: Samples) -> str:
    rows = []
    for size in SIZES:
        for operation, does in OPERATIONS.items():
            floor = samples.net(f"bare libpq {size} {operation}", "nothing")
            for name in ("bare libpq", "psycopg cursor", "sessiontree"):
                under = f"bare {size}" if name == "sessiontree" else "nothing"
                net = samples.net(f"{name} {size} {operation}", under)
                rows.append(_row(f"{name} {size}: {does}", net, floor))
    for operation in OPERATIONS:
        floor = samples.net(f"bare libpq small {operation}", "nothing")
        does = "a chain of three, read in the last" if operation == "read" else "a chain of three, all written"
        rows.append(_row(f"sessiontree small: {does}", samples.net(f"three {operation}", "bare small"), floor))
    return table("A session in PostgreSQL", ("whole request, over its bare app", "us", "times bare libpq"), rows)


def _row(title: str, net: Sequence[float], floor: Sequence[float]) -> tuple[str, ...]:
    return (title, str(Spread.of([each / 1000 for each in net])), str(Spread.of(ratios(net, floor))))


# -- other libraries --------------------------------------------------------------------------------


def _beside_others(raw: Bare, store: PostgresStore, url: str) -> remote.Engine:
    made = [(record.handle, orjson.dumps(data_of("small", on_top=True))) for record in records(SESSIONS, seed=11)]
    handles = raw.add(made)
    return remote.Engine(
        name="PostgreSQL",
        store=store,
        floor={"read": raw.read(handles), "write": raw.write(handles)},
        what="bare libpq, small",
        budgets={"read": BUDGET, "write": BUDGET},
        peers={
            "Django, db": partial(_django, url),
            "Beaker, ext:database": partial(_beaker, url),
            "Flask-Session, SQLAlchemy": partial(_flask_session, url),
        },
    )


def _django(url: str, uses: Uses) -> Pair:
    place = conninfo_to_dict(url)
    database = {
        "ENGINE": "django.db.backends.postgresql", "NAME": place["dbname"], "USER": place["user"],
        "HOST": place["host"], "PORT": place["port"], "CONN_MAX_AGE": None,
    }  # fmt: skip
    store_peers.configure_django({"BACKEND": "django.core.cache.backends.dummy.DummyCache"}, database)
    store_peers.make_table()
    return store_peers.django_in("db", uses)


def _for_sqlalchemy(url: str) -> str:
    place = conninfo_to_dict(url)
    return f"postgresql+psycopg://{place['user']}@/{place['dbname']}?host={place['host']}&port={place['port']}"


def _beaker(url: str, uses: Uses) -> Pair:
    options = {"session.type": "ext:database", "session.url": _for_sqlalchemy(url), "session.table_name": "beaker"}
    return store_peers.beaker_in(options, uses)


def _flask_session(url: str, uses: Uses) -> Pair:
    from flask_sqlalchemy import SQLAlchemy

    settings = {
        "SESSION_TYPE": "sqlalchemy", "SESSION_SQLALCHEMY": SQLAlchemy(),
        "SQLALCHEMY_DATABASE_URI": _for_sqlalchemy(url),
    }  # fmt: skip
    return store_peers.flask_session_in(settings, uses)


# -- verbs ----------------------------------------------------------------------------------------


def _verbs(raw: Bare, store: PostgresStore) -> Iterator[tuple[str, Call]]:
    made = list(records(SESSIONS, seed=7))
    for record in made:
        store.create(record)
    raw.add([(record.handle, record.fields) for record in made])
    loads, edit = store._statements.load, store._statements.data[1]  # noqa: SLF001 - what is compared with
    pgconn, turn = raw.connection.pgconn, cycle(made).__next__
    for statement in (loads, edit):
        pgconn.prepare(statement.name, statement.sql, statement.oids)

    def same_load() -> None:
        pgconn.exec_prepared(loads.name, [turn().handle.encode()], loads.formats, 1)

    asked = [store._asked(each.handle.encode(), each.proof, _change()) for each in made]  # noqa: SLF001 - as above
    next_asked = cycle([values for _, values in filter(None, asked)]).__next__

    def same_apply() -> None:
        pgconn.exec_prepared(edit.name, next_asked(), edit.formats, 1)

    def several() -> None:
        store.apply_many([(record.handle, record.proof, _change()) for record in (turn(), turn(), turn())])

    yield "libpq: the statement of load", same_load
    yield "load", lambda: store.load(turn().handle)
    yield "load_many of 3", lambda: store.load_many([turn().handle, turn().handle, turn().handle])
    yield "libpq: the statement of apply", same_apply
    yield "apply, one key", lambda: store.apply((record := turn()).handle, record.proof, _change())
    yield "apply_many of 3, one key each", several
    yield (
        "apply, a deadline",
        lambda: store.apply((record := turn()).handle, record.proof, Changes(idle=record.idle - next_count())),
    )
    yield "apply, one increment", lambda: store.apply((record := turn()).handle, record.proof, Changes(adds={"n": 1}))


def _change() -> Changes:
    return Changes(sets={COUNTER: (Json(b"%d" % next_count()), 0)})


def _shown_verbs(samples: Samples) -> str:
    rows: list[tuple[str, ...]] = []
    for name, spent in samples.items():
        ratio: tuple[str, ...] = ("", "", "")
        if name in SAME:
            spread = Spread.of(ratios(spent, samples[SAME[name]]))
            ratio = (str(spread), *(Verdict.of(spread.median, BUDGET, "x").cells() if name == "load" else ("", "")))
        rows.append((name, str(Spread.of([each / 1000 for each in spent])), *ratio))
    both = ratios(
        [sum(pair) for pair in zip(*(samples[name] for name in SAME), strict=True)],
        [sum(pair) for pair in zip(*(samples[name] for name in SAME.values()), strict=True)],
    )
    rows.append(("load and apply", "", str(Spread.of(both)), *Verdict.of(Spread.of(both).median, BUDGET, "x").cells()))
    return table("Verbs alone", ("", "us", "times the same by libpq", "budget", ""), rows)


if __name__ == "__main__":
    main()
