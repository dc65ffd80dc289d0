"""The PostgreSQL store keeps the contract on every server, and what it has of its own."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from servers.postgres import KINDS, bouncer, connected, run_sql, server
from support import SECRET, SOAK, Site

pytest.importorskip("psycopg_pool")

from psycopg_pool import ConnectionPool

from sessiontree import (
    CompareFailed,
    ConfigError,
    Conflict,
    Handler,
    SessionGone,
    StoreUnavailable,
    UsageError,
    with_clock,
    with_max_sessions,
    with_store,
)
from sessiontree.clock import FOREVER
from sessiontree.records import KEEP, Changes
from sessiontree.stores import open_store
from sessiontree.stores.conformance import StoreConformance
from sessiontree.stores.conformance.applying import Applying, Pipelines, Writing
from sessiontree.stores.conformance.ending import Revoking, Sweeping
from sessiontree.stores.conformance.listing import Labelling
from sessiontree.stores.conformance.loading import Creating, Loading
from sessiontree.stores.conformance.tools import (
    OTHER_PROOF,
    PROOF,
    TurningClock,
    at_once,
    contents,
    fields,
    fresh_handle,
    handles_of,
    js,
    loaded,
    new,
)
from sessiontree.stores.conformance.watching import Watching
from sessiontree.stores.postgres import PostgresStore
from sessiontree.stores.postgres import schema as postgres_schema
from sessiontree.stores.postgres.connection import Connection
from sessiontree.stores.postgres.store import BATCH

WHOLE = [kind for kind in KINDS if kind in {"wheel 16", "url"}]
"""Where the whole suite runs each time; a soak runs it everywhere."""

SCHEMA = "conformance"
OWN = "own_tests"
PAGE = Path(__file__).resolve().parent.parent / "docs/postgres.md"


@contextmanager
def schema_on(kind, name):
    """A server with a schema that is gone afterwards."""
    found = server(kind)
    with closing(PostgresStore.from_url(found.url, schema=name)) as store:
        store.create_schema()
    yield found
    run_sql(found.url, f"DROP SCHEMA IF EXISTS {name} CASCADE")


@pytest.fixture(scope="module")
def place(request):
    with schema_on(request.param, SCHEMA) as found:
        yield found


class OnAnyServer:
    @pytest.fixture(autouse=True)
    def _url(self, place):
        self.url = place.url

    def make_store(self, clock):
        run_sql(self.url, f"DELETE FROM {SCHEMA}.sessions")  # noqa: S608 - a name of ours
        return PostgresStore.from_url(self.url, schema=SCHEMA, clock=clock)

    def reopen(self, store):
        return PostgresStore.from_url(self.url, schema=SCHEMA, clock=store.clock)


@pytest.mark.parametrize("place", KINDS if SOAK > 1 else WHOLE, indirect=True)
class TestPostgresStore(OnAnyServer, StoreConformance):
    """The whole suite."""


@pytest.mark.parametrize("place", [kind for kind in KINDS if kind not in WHOLE], indirect=True)
class TestOnOtherServers(OnAnyServer, Loading, Creating, Revoking, Labelling, Sweeping, Writing, Pipelines):
    """What says most of a server."""


class TestBehindAPooler(Creating, Writing, Labelling, *([Applying, Revoking, Watching] if SOAK > 1 else [])):
    """One that gives each transaction another connection."""

    @pytest.fixture(autouse=True)
    def _urls(self, url, pooler):
        self.url, self.pooler = url, pooler

    def make_store(self, clock):
        run_sql(self.url, f"DELETE FROM {OWN}.sessions")  # noqa: S608 - a name of ours
        return self.opened(clock)

    def reopen(self, store):
        return self.opened(store.clock)

    def opened(self, clock):
        return PostgresStore.from_url(
            self.pooler, schema=OWN, clock=clock, prepared=False, listen_url=self.url, timeout=5
        )


def test_prepared_statements_that_a_pooler_loses_say_what_to_pass(url, pooler):
    with closing(PostgresStore.from_url(url, schema=OWN)) as store:
        records = [new(store) for _ in range(4)]
    kept = {"connect_timeout": 2, "autocommit": True}
    with ConnectionPool(pooler, kwargs=kept, min_size=4, max_size=4, open=True) as pool:
        store = PostgresStore(pool, schema=OWN)
        results = at_once(
            *[lambda: [store.apply(each.handle, PROOF, Changes(adds={"n": 1})) for each in records * 10]] * 4
        )
    lost = [result for result in results if isinstance(result, Exception)]
    assert all(type(error) is StoreUnavailable for error in lost)
    assert not lost or any("prepared=False" in str(error) for error in lost), lost


# -- the rest is the same on each -------------------------------------------------------------


@pytest.fixture(scope="module")
def url():
    with schema_on(KINDS[0], OWN) as found:
        yield found.url


@pytest.fixture(scope="module")
def pooler(url):
    return bouncer(server(KINDS[0]))


@pytest.fixture
def clock():
    return TurningClock()


@pytest.fixture
def store(url, clock):
    run_sql(url, f"DELETE FROM {OWN}.sessions")  # noqa: S608 - a name of ours
    with closing(PostgresStore.from_url(url, schema=OWN, clock=clock)) as store:
        yield store


@pytest.fixture
def other(url, clock):
    with closing(PostgresStore.from_url(url, schema=OWN, clock=clock)) as store:
        yield store


@pytest.fixture
def pool(url):
    with ConnectionPool(url, min_size=1, max_size=2, open=True) as pool:
        pool.wait()
        yield pool


@pytest.fixture
def sent(store, monkeypatch):
    """What is sent: the first words of each statement, and the bytes of its parameters."""
    statements, run = [], Connection.run

    def recording(connection, statement, values=()):
        statements.append((statement.sql[:6].decode(), sum(len(value or b"") for value in values)))
        return run(connection, statement, values)

    new(store)
    monkeypatch.setattr(Connection, "run", recording)
    return statements


def words(sent):
    found = [word for word, _ in sent]
    sent.clear()
    return found


# -- what a verb costs ------------------------------------------------------------------------


def test_every_verb_is_one_statement(store, sent, clock):
    record = new(store, labels={"subject": "bob"}, fields=fields(n=js(1), over=(js(1), clock.now() + 1)))
    assert words(sent) == ["SELECT"]
    clock.advance(1)
    verbs = [
        lambda: store.load(record.handle),
        lambda: store.load_many([record.handle, "other", record.handle, "third"]),
        lambda: store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0), "b": (b"x", 0)}, idle=FOREVER - 1)),
        lambda: store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), FOREVER - 1)})),
        lambda: store.apply(record.handle, PROOF, Changes(sets={"c": (js(1), 0)}, deletes=("b",))),
        lambda: store.apply(record.handle, PROOF, Changes(idle=FOREVER - 2)),
        lambda: store.apply(record.handle, PROOF, Changes(adds={"n": 1})),
        lambda: store.apply(record.handle, PROOF, Changes(sets={"n": (js(7), 0)}, expects={"n": js(2), "over": None})),
        lambda: store.apply(record.handle, PROOF, Changes(sets={"n": (js(8), KEEP)}, expects={"n": js(7)})),
        lambda: store.apply(record.handle, PROOF, Changes(sets={"over": (js(1), KEEP)}, expects={"over": None})),
        lambda: store.apply(record.handle, PROOF, Changes(sets={str(number): (js(number), 0) for number in range(40)})),
        lambda: store.apply(record.handle, PROOF, Changes(labels={"subject": "eve", "worker": "1"}, authenticated=5)),
        lambda: store.apply(record.handle, PROOF, Changes(proof=OTHER_PROOF, grace=FOREVER)),
        lambda: store.count("subject", "bob", "eve"),
        lambda: store.find("subject", "eve"),
        store.scan,
        lambda: store.relabel("subject", "eve", "bob"),
        lambda: store.revoke(record.handle),
        lambda: store.revoke_where("subject", "bob"),
    ]
    for place, verb in enumerate(verbs):
        verb()
        assert len(words(sent)) == 1, place


def test_several_writes_are_one_trip_and_each_is_what_it_would_be_alone(store, sent, clock, monkeypatch):
    trips, run_many = [], Connection.run_many
    monkeypatch.setattr(
        Connection, "run_many", lambda connection, asked: trips.append(len(asked)) or run_many(connection, asked)
    )
    records = [new(store, labels={"subject": "bob"}, fields=fields(n=js(1))) for _ in range(3)]
    sent.clear()
    changes = [
        Changes(sets={"a": (js(1), 0)}),
        Changes(adds={"n": 1}),
        Changes(labels={"subject": "eve"}, proof=OTHER_PROOF),
    ]
    writes = [(record.handle, PROOF, each) for record, each in zip(records, changes, strict=True)]
    found = store.apply_many(writes)
    assert (found, found[1].sums, trips, sent) == ([2, 2, 2], {"n": 2}, [3], [])
    over = new(store, idle=clock.now() + 1)
    clock.advance(1)
    unwritable = Changes(sets={"\ud800": (js(1), 0)})
    hopeless = store.apply_many([(over.handle, PROOF, unwritable), (fresh_handle(), PROOF, changes[0])])
    assert [type(each) for each in hopeless] == [TypeError, SessionGone]
    refused = store.apply_many(
        [
            (over.handle, PROOF, changes[0]),
            (records[0].handle, PROOF, Changes(adds={"a": 1}, expects={"n": js(2)})),
            *writes[1:],
        ]
    )
    assert [type(each) for each in refused[:2]] == [SessionGone, CompareFailed]
    assert (refused[2].sums, type(refused[3])) == ({"n": 3}, SessionGone)
    assert store.count("subject", "bob") == 2


def test_of_several_writes_only_what_waits_for_somebody_else_is_an_outage(store, url):
    records = [new(store) for _ in range(3)]
    with connected(url) as stranger, stranger.transaction():
        stranger.execute(f"SELECT FROM {OWN}.sessions WHERE handle = '{records[1].handle}' FOR UPDATE")
        with suppress(StoreUnavailable):
            store.apply_many([(record.handle, PROOF, Changes(adds={"n": 1})) for record in records])
    store.apply_many([(record.handle, PROOF, Changes(adds={"n": 1})) for record in records])
    counts = [contents(store, record.handle)["n"] for record in records]
    assert counts[1] == js(1), "It was not done meanwhile."
    assert set(counts) <= {js(1), js(2)}


def test_statements_that_are_lost_among_several_writes_are_prepared_again_and_nothing_is_made_twice(pool, clock):
    store = PostgresStore(pool, schema=OWN, clock=clock)
    records = [new(store) for _ in range(3)]
    writes = [(record.handle, PROOF, Changes(adds={"n": 1})) for record in records]
    for number in range(1, 4):
        assert [found.sums for found in store.apply_many(writes)] == [{"n": number}] * 3
        with pool.connection() as connection:
            connection.autocommit = True
            connection.execute("DEALLOCATE ALL")
            connection.autocommit = False


def test_a_write_sends_what_it_changes_however_large_the_record_is(store, sent):
    record = new(store, fields=fields(n=js(1), **{f"k{number}": js("x" * 1000) for number in range(300)}))
    sent.clear()
    for changes in (
        Changes(sets={"a": (js("y" * 100), 0)}),
        Changes(sets={"a": (js("y" * 100), FOREVER - 1)}, deletes=("k1",)),
        Changes(adds={"n": 1}),
        Changes(sets={"a": (js("z"), 0)}, expects={"a": js("y" * 100)}),
        Changes(sets={"a": (js("y"), KEEP)}, expects={"a": js("z")}),
        Changes(proof=OTHER_PROOF, labels={"subject": "bob"}),
    ):
        store.apply(record.handle, PROOF, changes)
    assert max(size for _, size in sent) < 1000
    assert len(contents(store, record.handle)) == 301


def test_a_record_is_replaced_where_it_lies_while_its_deadlines_stay(store, url):
    statistics = (
        f"SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = '{OWN}' AND relname = 'sessions'"  # noqa: S608 - a name of ours
    )
    record = new(store, fields=fields(a=js("x" * 300)))
    before = settled(url, statistics)
    for number in range(10):
        store.apply(record.handle, PROOF, Changes(sets={"a": (js(number), 0)}))
        store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
    store.close()
    after = settled(url, statistics)
    assert [now - then for now, then in zip(after, before, strict=True)] == [20, 20]


def settled(url, statistics):
    """Return statistics when the server has counted everything: those who wrote have told it when they are gone."""
    found = None
    for _ in range(100):
        last, found = found, run_sql(url, "SELECT pg_stat_force_next_flush()", statistics)[0]
        threading.Event().wait(0.02)
        if last == found:
            break
    return found


def test_every_statement_finds_its_rows_by_an_index(store, url):
    run_sql(
        url,
        f"""INSERT INTO {OWN}.sessions SELECT 'h' || n, 1, 1, 0, 5, 5, 5, 0, 0, 0, '', '', '["","",""]', NULL, '\\x09'
            FROM generate_series(1, 3000) n""",  # noqa: S608 - a name of ours
        f"INSERT INTO {OWN}.labels SELECT 'h' || n, '\"w\"', (n / 30)::text FROM generate_series(1, 3000) n",  # noqa: S608 - a name of ours
        f"ANALYZE {OWN}.sessions",
        f"ANALYZE {OWN}.labels",
    )
    statements = store._statements
    asked = {
        statements.load: "'h7'", statements.find: "'\"w\"', '7', 0, 1, 10", statements.count: "'\"w\"', '{7}', 1",
        statements.scan: "'h5', 1, 10", statements.sweep: "1, 10", statements.load_many(2): "'h7', 'h8'",
        statements.revoke_where: "'\"w\"', '777', 0, 10", statements.page: "'h5', 10",
    }  # fmt: skip
    with connected(url) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        for place, (statement, values) in enumerate(asked.items()):
            types = ", ".join({17: "bytea", 20: "bigint", 25: "text", 1009: "text[]"}[oid] for oid in statement.oids)
            connection.execute(f"PREPARE p{place} ({types}) AS {statement.sql.decode()}")
            plan = "\n".join(row for (row,) in connection.execute(f"EXPLAIN EXECUTE p{place} ({values})"))
            assert "Seq Scan on sessions" not in plan, plan
            assert "Seq Scan on labels" not in plan, plan


def test_no_statement_touches_more_rows_than_a_batch(store, clock):
    count = BATCH + 20
    for number in range(count):
        new(store, f"h{number:05}", labels={"subject": "bob"}, idle=clock.now() + 1000)
    assert store.relabel("subject", "bob", "eve") == store.count("subject", "eve") == count
    assert len(store.find("subject", "eve", limit=count).records) == len(store.scan(limit=count).records) == count
    assert len(store.load_many([f"h{number:05}" for number in range(count)])) == count
    clock.advance(2)
    assert store.sweep_idle(1, limit=10) == 10
    assert store.revoke_where("subject", "eve") == 0, "They have expired."
    assert store.scan().records == []
    for number in range(count):
        new(store, f"h{number:05}", labels={"subject": "bob"})
    assert store.revoke_where("subject", "bob") == count


# -- the schema -------------------------------------------------------------------------------


@pytest.fixture
def bare(url):
    """A schema name that nobody has used."""
    yield "bare"
    run_sql(url, "DROP SCHEMA IF EXISTS bare CASCADE")


def test_a_store_without_its_schema_says_what_to_call(url, bare):
    with closing(PostgresStore.from_url(url, schema=bare)) as store:
        for verb in (lambda: store.load("x"), lambda: new(store), lambda: store.revoke("x"), store.sweep):
            with pytest.raises(StoreUnavailable, match=r"create_schema\(\)"):
                verb()
        with pytest.raises(StoreUnavailable, match="create_schema"):
            store.watch(print)
        store.create_schema()
        assert store.load(new(store).handle) is not None


def test_many_create_the_schema_at_once_and_again(url, bare):
    stores = [PostgresStore.from_url(url, schema=bare) for _ in range(6)]
    assert at_once(*(store.create_schema for store in stores)) == [None] * 6
    records = [new(store) for store in stores]
    stores[0].create_schema()
    assert all(store.load(record.handle) == record for store, record in zip(stores, reversed(records), strict=True))
    for store in stores:
        store.close()


def test_steps_are_made_in_their_order_and_a_newer_schema_works(url, bare, monkeypatch):
    with closing(PostgresStore.from_url(url, schema=bare)) as store:
        store.create_schema()
        record = new(store)
        more = ("CREATE TABLE {s}.more (x int)", "INSERT INTO {s}.more VALUES (1)")
        steps = postgres_schema.STEPS
        monkeypatch.setattr(postgres_schema, "STEPS", (*steps, more))
        store.create_schema()
        store.create_schema()
        assert run_sql(url, "SELECT x FROM bare.more") == [(1,)]
        monkeypatch.setattr(postgres_schema, "STEPS", steps)
        store.create_schema()
        assert run_sql(url, "SELECT max(version) FROM bare.steps") == [(len(steps) + 1,)]
        assert store.load(record.handle) == record


def test_a_step_that_fails_leaves_the_schema_as_it_was(url, bare, monkeypatch):
    with closing(PostgresStore.from_url(url, schema=bare)) as store:
        store.create_schema()
        steps = postgres_schema.STEPS
        monkeypatch.setattr(postgres_schema, "STEPS", (*steps, ("CREATE TABLE {s}.more (x int)", "SELECT 1 / 0")))
        with pytest.raises(StoreUnavailable):
            store.create_schema()
        assert run_sql(url, "SELECT to_regclass('bare.more')") == [(None,)]
        assert store.load(new(store).handle) is not None


def test_a_schema_of_something_else_is_left_alone(url, bare):
    run_sql(url, "CREATE SCHEMA bare", "CREATE TABLE bare.theirs (x int)")
    with closing(PostgresStore.from_url(url, schema=bare)) as store, pytest.raises(ConfigError, match="another"):
        store.create_schema()
    assert run_sql(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'bare'") == [(1,)]


@pytest.mark.parametrize("name", ["", "A", "a b", 'a"; DROP TABLE x', "pg_x", "x" * 49, None, b"a", "é"])
def test_st_11_a_schema_has_a_plain_name(url, name):
    with pytest.raises(ConfigError):
        PostgresStore.from_url(url, schema=name)


def test_a_reserved_word_is_a_name_too(url):
    with closing(PostgresStore.from_url(url, schema="user")) as store:
        store.create_schema()
        assert store.load(new(store, labels={"subject": "bob"}).handle) is not None
    run_sql(url, 'DROP SCHEMA "user" CASCADE')


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, -1, True, "5", None, float("nan"), float("inf"), 86_401])
def test_a_timeout_is_seconds(pool, url, timeout):
    for make in (partial(PostgresStore, pool), partial(PostgresStore.from_url, url)):
        with pytest.raises(ConfigError, match="seconds"):
            make(timeout=timeout)


@pytest.mark.parametrize("timeout", [2, timedelta(seconds=2)])
def test_a_timeout_may_be_a_timedelta(pool, url, timeout):
    for make in (partial(PostgresStore, pool), partial(PostgresStore.from_url, url)):
        with closing(make(schema=OWN, timeout=timeout)) as store:
            store.create_schema()
            assert store.load("nobody") is None


@pytest.mark.parametrize("connections", [0, -1, True, "5", None])
def test_there_is_one_connection_or_more(url, connections):
    with pytest.raises(ConfigError, match="connections"):
        PostgresStore.from_url(url, connections=connections)


def test_what_is_no_pool_or_no_url_is_refused(url):
    with pytest.raises(ConfigError, match="ConnectionPool"):
        PostgresStore(url)
    with pytest.raises(ConfigError, match="postgresql://"):
        PostgresStore.from_url("postgresql://[::")


def test_a_store_opens_by_its_url_and_sends_nothing_before_its_first_verb(url, clock):
    threads = threading.active_count()
    store = open_store(url, clock=clock, schema=OWN)
    assert (type(store), store.clock) == (PostgresStore, clock)
    assert threading.active_count() == threads
    assert store.load(fresh_handle()) is None
    store.close()
    assert threading.active_count() == threads
    closed = open_store("postgresql://nobody@127.0.0.1:1/x", timeout=0.2)
    with pytest.raises(StoreUnavailable, match=r"within 0\.2 s"):
        closed.load("x")
    closed.close()


@pytest.mark.parametrize("handle", ["x" * 2001, "a\0b", "\ud800"])
def test_a_handle_that_cannot_be_kept_is_a_usage_error(store, handle):
    with pytest.raises(UsageError, match="handle"):
        new(store, handle)


def test_a_pool_of_the_applications_own_is_shared_and_stays_open(pool, clock):
    store = PostgresStore(pool, schema=OWN, clock=clock)
    record = new(store)
    with pool.connection() as connection, pool.connection() as second:
        assert connection.execute("SELECT 1").fetchone() == second.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(StoreUnavailable, match="connections enough"):
            store.load(record.handle)
    assert store.load(record.handle) == record
    store.close()
    with pytest.raises(UsageError, match="closed"):
        store.load(record.handle)
    with pool.connection() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_pool_that_is_closed_is_an_outage(url):
    pool = ConnectionPool(url, min_size=1, open=True)
    store = PostgresStore(pool, schema=OWN)
    assert store.load("x") is None
    pool.close()
    with pytest.raises(StoreUnavailable, match="open it"):
        store.load("x")


def test_more_threads_than_connections_take_turns(url, clock, store):
    record = new(store)
    with closing(PostgresStore.from_url(url, schema=OWN, clock=clock, connections=2, timeout=5)) as few:

        def write():
            for _ in range(40):
                few.apply(record.handle, PROOF, Changes(adds={"n": 1}))
                few.load(record.handle)

        assert at_once(*[write] * 8) == [None] * 8
        assert contents(few, record.handle) == {"n": js(320)}
        assert few._pool.get_stats()["pool_size"] <= 2


def test_a_connection_goes_back_to_its_pool_in_time_to_be_replaced(store, monkeypatch):
    monkeypatch.setattr("sessiontree.stores.postgres.server.HELD", -1.0)
    record = new(store)
    assert store.load(record.handle) == record
    assert store._idle == []
    assert store._pool.get_stats()["pool_available"] == 1


# -- transactions -----------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_another_isolation_level_loses_nothing(url, clock, level):
    kept = f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    with ConnectionPool(url, kwargs={"options": kept}, min_size=1, max_size=4, open=True) as pool:
        store = PostgresStore(pool, schema=OWN, clock=clock, timeout=5)
        record = new(store)
        add = Changes(adds={"n": 1})
        results = at_once(*[lambda: [store.apply(record.handle, PROOF, add) for _ in range(10)]] * 4)
        assert contents(store, record.handle) == {"n": js(40)}, results


def test_logins_that_give_their_labels_in_any_order_do_not_wait_for_each_other(store, other):
    records = [new(store, labels={"subject": "0", "worker": "0"}).handle for _ in range(6)]

    def login(each, handle, number):
        for round_ in range(15):
            value = str((round_ * number) % 3)
            labels = {"subject": value, "worker": value}
            each.apply(handle, PROOF, Changes(labels=dict(sorted(labels.items(), reverse=bool(number % 2)))))

    calls = [partial(login, (store, other)[place % 2], handle, place) for place, handle in enumerate(records)]
    assert at_once(*calls) == [None] * 6


def test_operators_that_move_and_end_the_same_sessions_do_not_wait_for_each_other(store, other):
    for _ in range(3 * SOAK):
        for number in range(30):
            new(store, labels={"subject": "bob", "worker": str(number % 2)})
        results = at_once(
            lambda: other.relabel("subject", "bob", "eve"),
            lambda: store.relabel("worker", "0", "1"),
            lambda: other.revoke_where("worker", "1"),
            lambda: store.revoke_where("subject", "eve"),
        )
        assert all(isinstance(result, int) for result in results), results
        store.revoke_where("worker", "0")
        store.revoke_where("worker", "1")
        assert store.scan().records == []


def test_whoever_has_a_label_was_there_before_all_that_come_behind(store, other):
    """With a limit, the first sessions stay: a place must never be taken in front of one that was seen."""
    done, seen = threading.Event(), []

    def login(each):
        for _ in range(25):
            new(each, labels={"subject": "bob"})

    def look():
        while not done.is_set():
            seen.append(handles_of(store.find("subject", "bob", limit=1000)))

    def login_all():
        try:
            return at_once(*(partial(login, each) for each in (store, other, store, other)))
        finally:
            done.set()

    assert at_once(look, login_all)[1] == [None] * 4
    final = handles_of(store.find("subject", "bob", limit=1000))
    assert len(final) == 100
    assert all(found == final[: len(found)] for found in seen)


def test_lc_13_of_logins_at_once_the_limit_stays(store, other, clock):
    handlers = [
        Handler("user", SECRET, with_clock(clock), with_store(each), with_max_sessions(3, "oldest"))
        for each in (store, other)
    ]
    sites = [Site(handlers[number % 2], clock=clock) for number in range(8)]
    at_once(*(partial(site.visit, lambda session: (session.update(n=1), session.bind("bob"))) for site in sites))
    assert len(handlers[0].sessions("bob")) == 3


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (Changes(expects={"a": js(9)}), CompareFailed),
        (Changes(adds={"a": 1}), TypeError),
        (Changes(proof=b"short"), UsageError),
        (Changes(labels={"\ud800": "x"}), TypeError),
        (Changes(sets={"\ud800": (js(1), 0)}), TypeError),
    ],
)
def test_what_fails_leaves_the_connection_fit_for_use(store, changes, error):
    record = new(store, fields=fields(a=js("text")))
    for _ in range(3):
        with pytest.raises(error):
            store.apply(record.handle, PROOF, changes)
        assert store.load(record.handle) == record
    assert len(store._idle) == 1
    assert store._pool.get_stats()["connections_num"] == 1


def test_a_verb_that_is_torn_out_of_its_work_leaves_nothing_behind(store, clock):
    record = new(store, idle=clock.now() + 10)

    def tear():
        raise KeyboardInterrupt

    # The slow way asks for the time while it holds the row.
    clock.then = lambda: setattr(clock, "then", tear)
    with pytest.raises(KeyboardInterrupt):
        store.apply(record.handle, PROOF, Changes(expects={"a": js(1)}))
    store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)}))
    assert contents(store, record.handle) == {"a": js(1)}


# -- other people on the same connections -----------------------------------------------------


@pytest.mark.parametrize("statement", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_statements_that_somebody_else_took_away_are_prepared_again(pool, clock, statement):
    store = PostgresStore(pool, schema=OWN, clock=clock)
    record = new(store)
    for _ in range(3):
        with pool.connection() as connection:
            connection.autocommit = True
            connection.execute(statement)
            connection.autocommit = False
        store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
        assert contents(store, record.handle)["n"]
    assert contents(store, record.handle) == {"n": js(3)}


def test_two_stores_share_the_connections_of_one_pool(pool, clock, url, bare):
    first, second = (PostgresStore(pool, schema=schema, clock=clock) for schema in (OWN, bare))
    second.create_schema()
    for each, others in ((first, second), (second, first)):
        record = new(each)
        assert each.load(record.handle) == record
        assert others.load(record.handle) is None


def test_two_stores_share_what_is_prepared_on_a_connection(pool, clock, monkeypatch):
    sent, run = [], Connection.run
    first, second = (PostgresStore(pool, schema=OWN, clock=clock) for _ in range(2))
    record = new(first)
    for each in (first, second):
        each.load(record.handle)
        each.apply_many([(record.handle, PROOF, Changes(adds={"n": 1}))])
    monkeypatch.setattr(
        Connection,
        "run",
        lambda connection, statement, values=(): sent.append(statement.sql) or run(connection, statement, values),
    )
    for _ in range(3):
        for each in (first, second):
            each.load(record.handle)
            each.apply_many([(record.handle, PROOF, Changes(adds={"n": 1}))])
    assert [sql[:6] for sql in sent] == [b"SELECT"] * 6, "Nobody took away what the other had prepared."
    assert contents(first, record.handle) == {"n": js(8)}


def test_a_database_that_takes_no_writes_says_so(url, clock):
    with ConnectionPool(url, kwargs={"options": "-c default_transaction_read_only=on"}, open=True) as pool:
        store = PostgresStore(pool, schema=OWN, clock=clock)
        assert store.load("x") is None
        with pytest.raises(StoreUnavailable, match="primary"):
            new(store)


def test_a_role_that_may_not_is_told_what_to_grant(url, clock):
    run_sql(url, "DROP ROLE IF EXISTS guest", "CREATE ROLE guest LOGIN")
    with ConnectionPool(url, kwargs={"user": "guest"}, open=True) as pool:
        store = PostgresStore(pool, schema=OWN, clock=clock)
        with pytest.raises(StoreUnavailable, match="grant"):
            store.load("x")


def test_a_server_that_says_no_is_not_told_as_one_that_says_nothing(url, store):
    record = new(store)
    run_sql(url, f"ALTER TABLE {OWN}.sessions ADD CONSTRAINT few CHECK (version < 2)")
    try:
        with pytest.raises(StoreUnavailable, match=r"refused a statement .*few"):
            store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)}))
    finally:
        run_sql(url, f"ALTER TABLE {OWN}.sessions DROP CONSTRAINT few")
    assert store.load(record.handle) == record


def test_a_row_that_waits_for_somebody_else_is_an_outage_and_not_a_hang(url, store):
    record = new(store)
    with connected(url) as stranger, stranger.transaction():
        stranger.execute(f"SELECT FROM {OWN}.sessions FOR UPDATE")
        with pytest.raises(StoreUnavailable):
            store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
        assert store.load(record.handle) == record
    assert store.apply(record.handle, PROOF, Changes(adds={"n": 1})).sums == {"n": 1}, "It was not done meanwhile."


@pytest.mark.parametrize(
    "garbage",
    ["fields = NULL", "proof = '\\x00'", "labels = '\\x09ff2c09'", "about = '\\xff'",
     *(f"about = '{about}'" for about in ("", "[]", "{}", "5", "null", '"abc"', "[1,2,3]", '["a","b"]', '{"a":1}'))],
)  # fmt: skip
def test_garbage_is_absent_and_can_be_revoked(url, store, garbage):
    record = new(store, labels={"subject": "bob"}, fields=fields(a=js(1)))
    run_sql(url, f"UPDATE {OWN}.sessions SET {garbage}")  # noqa: S608 - a name of ours
    assert store.load(record.handle) is None
    assert store.load_many([record.handle]) == {}
    assert store.find("subject", "bob").records == store.scan().records == []
    with pytest.raises(Conflict):
        store.create(record)
    assert store.revoke(record.handle) is True


@pytest.mark.parametrize("proof", ["repeat('p', 32)::bytea", "'longer or shorter'"])
def test_a_newer_releases_record_is_an_outage_whatever_its_proof_is_like(url, store, proof):
    record = new(store)
    run_sql(url, f"UPDATE {OWN}.sessions SET form = 2, proof = {proof}")  # noqa: S608 - a name of ours
    for verb in (partial(store.load, record.handle), partial(store.load_many, [record.handle]), store.scan):
        with pytest.raises(StoreUnavailable, match="newer release"):
            verb()


def test_numbers_that_no_database_keeps_are_what_they_are_in_memory(store):
    record = new(store, labels={"subject": "bob"}, fields=fields(n=js(1)))
    for number in (1 << 65, -(1 << 66), 10**5000):
        with pytest.raises(TypeError, match="64 bits"):
            store.apply(record.handle, PROOF, Changes(adds={"n": number}))
    for after in (2**63, 2**70):
        assert store.find("subject", "bob", after=str(after)).records == []
    for after in (0, -1, -(2**70)):
        assert store.find("subject", "bob", after=str(after)).records == [record]


@pytest.mark.parametrize("fields_", ["'\\x09ff2c09'", "'\\x0922226e'"])
def test_garbage_among_the_fields_is_its_readers_to_judge_and_none_of_the_engines(url, store, fields_):
    record = new(store, fields=fields(n=js(1)))
    run_sql(url, f"UPDATE {OWN}.sessions SET fields = {fields_}")  # noqa: S608 - a name of ours
    found = store.load(record.handle)
    if found is not None:
        with pytest.raises(ValueError, match=r"\w"):
            found.contents(0)
        assert store.load(record.handle, ["n"]) is None
    for changes in (Changes(adds={"n": 1}), Changes(sets={"n": (js(1), FOREVER)}, expects={"n": None})):
        with suppress(SessionGone, StoreUnavailable):
            store.apply(record.handle, PROOF, changes)
    assert store.revoke(record.handle) is True


# -- processes --------------------------------------------------------------------------------


def test_the_server_gives_up_too_what_a_process_that_was_stopped_holds(store, url):
    store.load("x")
    [connection] = store._idle
    asked = [connection.driver.execute(f"SHOW {name}").fetchone()[0] for name in
             ("statement_timeout", "idle_in_transaction_session_timeout", "application_name")]  # fmt: skip
    assert asked == ["450ms", "5s", "sessiontree"]
    with closing(PostgresStore.from_url(f"{url}&options=-c%20statement_timeout%3D7s", schema=OWN)) as own:
        own.load("x")
        assert own._idle[0].driver.execute("SHOW statement_timeout").fetchone() == ("7s",)


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["Python", "C"])
def test_a_forked_child_uses_connections_of_its_own(store, url, fork):
    """Some servers fork in C, and no hook of Python's runs."""
    record = new(store)
    backends = "SELECT count(DISTINCT pid) FROM pg_stat_activity WHERE application_name = 'sessiontree'"
    children = []
    for _ in range(3):
        pid = fork()
        if not pid:
            status = 1
            try:
                for _ in range(20):
                    store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
                status = 0 if store.load(record.handle) and len(store._idle) == 1 else 2
                store.close()
            finally:
                os._exit(status)
        children.append(pid)
        for _ in range(20):
            store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
    assert run_sql(url, backends)[0][0] >= 1
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 3
    assert contents(store, record.handle) == {"n": js(120)}
    assert store._pool.get_stats()["connections_num"] == 1, "No child has closed or used the parent's."


def test_a_child_that_was_forked_in_c_closes_no_pool_of_the_applications(url, clock):
    """The application opens its pool in the worker, as psycopg advises, before the store is used there."""
    pool = ConnectionPool(url, kwargs={"autocommit": True}, min_size=0, max_size=2, open=False)
    store = PostgresStore(pool, schema=OWN, clock=clock)
    pid = ctypes.PyDLL(None).fork()
    if not pid:
        status = 1
        try:
            signal.alarm(20)
            pool.open()
            store.load("a")
            with pool.connection() as connection:
                status = 0 if connection.execute("SELECT 1").fetchone() == (1,) else 2
            store.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_who_was_not_forked_takes_no_lock_that_a_child_could_inherit(store):
    store._leaving = None
    assert store.load(new(store).handle)
    store.close()


def test_a_child_of_a_pool_of_the_applications_own_takes_one_like_it(pool, clock):
    store = PostgresStore(pool, schema=OWN, clock=clock)
    record = new(store)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert contents(store, record.handle) == {"n": js(1)}
    with pool.connection() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


# -- what the page promises -------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["revoke", "renew", "revoke_where", "write"])
def test_what_must_never_come_back_waits_for_the_disk_whatever_the_setting(store, url, verb):
    new(store, "h", labels={"subject": "bob"})
    renewal = store._asked(b"h", PROOF, Changes(proof=OTHER_PROOF))
    write = store._asked(b"h", PROOF, Changes(sets={"a": (js(1), 0)}))
    statements = store._statements
    asked = {
        "revoke": (statements.revoke, [b"h"]),
        "renew": renewal,
        "revoke_where": (statements.revoke_where, [b'"subject"', b'"bob"', bytes(8), bytes(7) + b"\x09"]),
        "write": write,
    }
    with connected(url) as driver, driver.transaction():
        assert driver.execute("SHOW synchronous_commit").fetchone() == ("off",)
        assert Connection(driver, 5, prepared=False).run(*asked[verb]).ntuples == 1
        assert driver.execute("SHOW synchronous_commit").fetchone() == ("off" if verb == "write" else "on",)


def test_the_benchmark_runs_to_its_end(url):
    command = [sys.executable, "-m", "benchmarks.postgres", "--quick", "--rounds", "60", "--url", url]
    done = subprocess.run(command, cwd=PAGE.parent.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"load and apply +[0-9.]+ \([0-9.]+-[0-9.]+\)", done.stdout)


def test_the_rights_on_the_page_are_enough(url, clock, store):
    [grants] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    statements = grants.replace("sessiontree", OWN).split(";")[:-1]
    run_sql(url, "DROP ROLE IF EXISTS web", "CREATE ROLE web LOGIN", *statements)
    try:
        with ConnectionPool(url, kwargs={"user": "web"}, open=True) as pool:
            store.close()
            store = PostgresStore(pool, schema=OWN, clock=clock)
            record = new(store, labels={"subject": "bob"})
            stop = store.watch(lambda _: None)
            store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), FOREVER)}, labels={"subject": "eve"}))
            store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)}))
            assert store.relabel("subject", "eve", "bob") == store.count("subject", "bob") == 1
            assert handles_of(store.find("subject", "bob")) == [record.handle]
            assert store.load_many([record.handle])[record.handle] == loaded(store, record.handle)
            with pytest.raises(CompareFailed):
                store.apply(record.handle, PROOF, Changes(expects={"a": None}))
            assert (store.sweep(), store.sweep_idle(1000)) == (0, 0)
            assert store.revoke_where("subject", "bob") == 1
            stop()
            store.close()
    finally:
        run_sql(url, "DROP OWNED BY web", "DROP ROLE web")


def test_the_examples_on_the_page_run(url, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", url)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, "docs/postgres.md", "exec"), scope)  # noqa: S102 - it is our own
    s = Site(scope["visitor"])
    assert s.visit(lambda session: session.update(n=1) or session.handle) in scope["store"].load_many(
        [record.handle for record in scope["shared"].scan().records]
    )
    for each in ("store", "shared", "pooled", "pool"):
        scope[each].close()
    run_sql(url, "DROP SCHEMA sessiontree CASCADE")
