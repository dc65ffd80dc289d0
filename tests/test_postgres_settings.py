"""What an address, a role, an application's pool or a standby makes of the PostgreSQL store."""

import os
import signal
import subprocess
import threading
import traceback
from contextlib import ExitStack, closing
from urllib.parse import quote

import pytest
from servers import postgres as servers
from servers.postgres import KINDS, connected, run_sql, server, started
from servers.process import Process, free_port, private_folder

pytest.importorskip("psycopg_pool")

import psycopg
from psycopg import RawCursor
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row, namedtuple_row, scalar_row
from psycopg_pool import ConnectionPool

from sessiontree import ConfigError, StoreUnavailable
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import PROOF, at_once, contents, fields, js, new
from sessiontree.stores.conformance.watching import Heard
from sessiontree.stores.postgres import PostgresStore
from sessiontree.stores.postgres.connection import Connection

SCHEMA = "settings"


@pytest.fixture(scope="module")
def url():
    found = server(KINDS[0]).url
    with closing(PostgresStore.from_url(found, schema=SCHEMA)) as store:
        store.create_schema()
    yield found
    run_sql(found, f"DROP SCHEMA {SCHEMA} CASCADE")


@pytest.fixture
def bare(url):
    """A schema name that nobody has used."""
    yield "unused"
    run_sql(url, "DROP SCHEMA IF EXISTS unused CASCADE")


@pytest.fixture
def store(url):
    run_sql(url, f"DELETE FROM {SCHEMA}.sessions")  # noqa: S608 - a name of ours
    with closing(PostgresStore.from_url(url, schema=SCHEMA)) as store:
        yield store


def with_option(url, option):
    return f"{url}&options={quote('-c ' + option)}"


# -- the schema -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made", [{"row_factory": dict_row}, {"row_factory": scalar_row}, {"row_factory": namedtuple_row},
             {"cursor_factory": RawCursor}], ids=lambda made: next(iter(made.values())).__name__
)  # fmt: skip
def test_the_rows_and_cursors_that_an_applications_pool_makes_are_its_own_matter(url, bare, made):
    with ConnectionPool(url, kwargs=made, min_size=1, max_size=1, open=True) as pool:
        store = PostgresStore(pool, schema=bare)
        store.create_schema()
        store.create_schema()
        assert store.load(new(store).handle) is not None


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_many_create_the_schema_at_once_whatever_the_roles_isolation_level(url, bare, level):
    isolated = with_option(url, "default_transaction_isolation=" + level.replace(" ", "\\ "))
    with ExitStack() as stack:
        stores = [stack.enter_context(closing(PostgresStore.from_url(isolated, schema=bare))) for _ in range(6)]
        assert at_once(*(store.create_schema for store in stores)) == [None] * 6


@pytest.mark.parametrize(
    "theirs",
    [
        ("CREATE TABLE unused.steps (version int)",),
        ("CREATE TABLE unused.steps (version int)", "CREATE TABLE unused.sessions (proof int)"),
        ("CREATE FUNCTION unused.edited(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT $1'",),
        ("CREATE DOMAIN unused.handle AS text",),
    ],
    ids=["steps", "steps and sessions", "a function", "a type"],
)
def test_a_schema_that_looks_like_ours_and_is_not_is_left_alone(url, bare, theirs):
    run_sql(url, "CREATE SCHEMA unused", *theirs)
    everything = "SELECT (SELECT count(*) FROM pg_class) + (SELECT count(*) FROM pg_proc)"
    before = run_sql(url, everything)
    with closing(PostgresStore.from_url(url, schema=bare)) as store, pytest.raises(ConfigError, match="another one"):
        store.create_schema()
    assert run_sql(url, everything) == before


# -- settings of a role and of the environment ------------------------------------------------


@pytest.mark.parametrize(
    "option",
    ["standard_conforming_strings=off", "bytea_output=escape", "search_path=", "array_nulls=off",
     "plpgsql.variable_conflict=error", "quote_all_identifiers=on"],
)  # fmt: skip
def test_what_a_role_sets_does_not_change_what_the_statements_mean(url, store, option):
    with closing(PostgresStore.from_url(with_option(url, option), schema=SCHEMA)) as other:
        record = new(other, labels={"subject": "josé"}, fields=fields(a=js("x"), n=js(1)))
        assert other.apply(record.handle, PROOF, Changes(adds={"n": 1, "m": 5})).sums == {"n": 2, "m": 5}
        other.apply(record.handle, PROOF, Changes(sets={"a": (js("y"), 1 << 60)}, deletes=("m",)))
        other.apply(record.handle, PROOF, Changes(adds={"n": 1}, labels={"worker": "é"}))
        assert contents(store, record.handle) == {"n": js(3), "a": js("y")}
        assert store.count("worker", "é") == store.revoke_where("subject", "josé") == 1


def test_another_encoding_in_the_environment_hides_no_session(store, url, monkeypatch):
    new(store, labels={"subject": "josé"})
    monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    with closing(PostgresStore.from_url(url, schema=SCHEMA)) as job:
        assert job.revoke_where("subject", "josé") == 1


def test_connections_of_another_encoding_are_refused_and_say_what_to_set(url):
    with ConnectionPool(url, kwargs={"client_encoding": "latin1"}, open=True) as pool:
        store = PostgresStore(pool, schema=SCHEMA)
        for verb in (lambda: store.load("x"), store.create_schema):
            with pytest.raises(StoreUnavailable, match="client_encoding=utf8"):
                verb()
    for encoding in ("utf-8", "Unicode"):
        with ConnectionPool(url, kwargs={"client_encoding": encoding}, open=True) as pool:
            assert PostgresStore(pool, schema=SCHEMA).load("x") is None


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["shop:sEcReT%ss@db/shop", "shop:sEcReT@[::1]x/shop", "shop:sEcReT@db/x?no=1"])
def test_an_address_that_is_none_is_refused_without_telling_the_password(url, address):
    address = f"postgresql://{address}"
    for make in (
        lambda: PostgresStore.from_url(address),
        lambda: PostgresStore.from_url(url, prepared=False, listen_url=address),
    ):
        with pytest.raises(ConfigError, match="%25") as raised:
            make()
        assert "sEcReT" not in str(raised.value)
        assert "sEcReT" not in "".join(traceback.format_exception_only(raised.value))
        assert raised.value.__suppress_context__


def test_what_an_address_says_itself_stays(url):
    own = f"{url}&target_session_attrs=any&client_encoding=unicode&connect_timeout=7&application_name=shop"
    with closing(PostgresStore.from_url(own, schema=SCHEMA)) as store:
        assert store.load("x") is None
        [connection] = store._idle
        said = conninfo_to_dict(store._pool.conninfo)
        assert [said[name] for name in ("target_session_attrs", "client_encoding", "connect_timeout")] == [
            "any", "unicode", "7",
        ]  # fmt: skip
        assert connection.driver.execute("SHOW application_name").fetchone() == ("shop",)


class Knowing(psycopg.Connection):
    """A connection that knows by itself who it is, as those do that fetch a token for a password."""

    @classmethod
    def connect(cls, conninfo="", **options):
        return super().connect(conninfo, **{**options, "user": "postgres"})


def test_a_pools_class_of_connections_makes_the_one_that_listens_too(url, store):
    if not url.startswith("postgresql://postgres@"):
        pytest.skip("The role of this server has another name.")
    unknown, heard = url.replace("postgres@", "nobody_such@", 1), Heard()
    with ConnectionPool(unknown, connection_class=Knowing, open=True) as pool:
        shared = PostgresStore(pool, schema=SCHEMA)
        stop = shared.watch(heard.on_change)
        assert heard.has(new(store).handle)
        stop()
        shared.close()


# -- a standby --------------------------------------------------------------------------------


def standby_of(primary):
    """Start a server that follows this one; return its process and its port."""
    binaries, options = servers._binaries(primary.kind), servers._unprivileged()
    folder, port = private_folder("pg"), free_port()
    if options.get("user"):
        os.chown(folder, options["user"], options["group"])
    options["env"] = {"PATH": f"{binaries}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    data = folder / "data"
    copy = [binaries / "pg_basebackup", "-R", "-D", data, "-d", primary.tcp_url, "-c", "fast", "-X", "stream", "-N"]
    subprocess.run(copy, check=True, capture_output=True, **options)
    argv = [binaries / "postgres", "-D", data, "-p", port, "-h", "127.0.0.1", "-k", folder]
    argv += [f"-c{name}={value}" for name, value in servers.SETTINGS.items()]
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    process = Process(list(map(str, argv)), folder, lambda: servers._answers(url), **options)
    process.start()
    return process, port


@pytest.fixture(scope="module")
def pair():
    """A primary with a schema, and the address of a standby that no longer follows."""
    primary = started(KINDS[0], wal_level="replica", max_wal_senders="4")
    with closing(PostgresStore.from_url(primary.tcp_url)) as store:
        store.create_schema()
    process, port = standby_of(primary)
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    run_sql(url, "SELECT pg_wal_replay_pause()")
    yield primary.tcp_url, url
    process.remove(signal.SIGINT)
    primary.process.remove(signal.SIGINT)


def test_of_several_servers_the_primary_is_found_though_the_address_names_a_standby_first(pair):
    primary, standby = pair
    hosts = [each.split("@")[1].split("/")[0] for each in (standby, primary)]
    with closing(PostgresStore.from_url(f"postgresql://postgres@{','.join(hosts)}/postgres")) as store:
        record = new(store)
        assert store.load(record.handle) == record
        assert store.revoke(record.handle) is True
        assert store.load(record.handle) is None


@pytest.mark.parametrize("own_pool", [True, False])
def test_a_standby_does_not_serve(pair, own_pool):
    primary, standby = pair
    with closing(PostgresStore.from_url(primary)) as store:
        record = new(store)
    if own_pool:
        with closing(PostgresStore.from_url(standby, timeout=2)) as late, pytest.raises(StoreUnavailable):
            late.load(record.handle)
    else:
        with ConnectionPool(standby, open=True) as pool:
            late = PostgresStore(pool)
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="standby"):
                    late.load(record.handle)


# -- time -------------------------------------------------------------------------------------

TIMEOUT = 0.2


def test_several_writes_have_one_time_out_together(url, store):
    records = [new(store) for _ in range(6)]
    writes = [(record.handle, PROOF, Changes(adds={"n": 1})) for record in records]
    with connected(url) as stranger, stranger.transaction():
        stranger.execute(f"SELECT FROM {SCHEMA}.sessions FOR UPDATE")
        with closing(PostgresStore.from_url(url, schema=SCHEMA, timeout=TIMEOUT)) as few:
            with pytest.raises(StoreUnavailable, match=r"within 0\.2 s"):
                few.apply_many(writes)
            assert few.load("x") is None


@pytest.mark.parametrize("way", ["url", "tcp_url"])
def test_of_several_writes_that_were_given_up_none_is_begun_any_more(url, store, way):
    records = [new(store) for _ in range(4)]
    address = f"{getattr(server(KINDS[0]), way)}{'&' if way == 'url' else '?'}application_name=hasty"
    running = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hasty'"
    with connected(url) as stranger, stranger.transaction():
        blocked = [record.handle for record in records[:2]]
        stranger.execute(f"SELECT FROM {SCHEMA}.sessions WHERE handle = ANY (%s) FOR UPDATE", [blocked])
        hasty = PostgresStore.from_url(address, schema=SCHEMA, timeout=TIMEOUT)
        with closing(hasty), pytest.raises(StoreUnavailable):
            hasty.apply_many([(record.handle, PROOF, Changes(adds={"n": 1})) for record in records])
        for _ in range(500):
            if run_sql(url, running) == [(0,)]:
                break
            threading.Event().wait(0.02)
    assert [contents(store, record.handle) for record in records] == [{}] * 4


def test_several_writes_that_are_looked_at_one_by_one_have_one_time_out_too(url, store, monkeypatch):
    records = [new(store) for _ in range(6)]
    odd = Changes(sets={"a": (js(1), 0)}, expects={"a": js({"$bytes": "AA=="})})
    begun, run = [], Connection.run
    monkeypatch.setattr(
        Connection,
        "run",
        lambda connection, statement, values=(): begun.append(statement.sql[:5]) or run(connection, statement, values),
    )
    with connected(url) as stranger, stranger.transaction():
        stranger.execute(f"SELECT FROM {SCHEMA}.sessions FOR UPDATE")
        with closing(PostgresStore.from_url(url, schema=SCHEMA, timeout=TIMEOUT)) as few:
            found = few.apply_many([(record.handle, PROOF, odd) for record in records])
    assert [type(each) for each in found] == [StoreUnavailable] * 6
    assert begun.count(b"BEGIN") <= 2


def test_several_writes_behind_a_pooler_have_one_time_out_too(url, store, monkeypatch):
    records = [new(store) for _ in range(6)]
    sent, run = [], Connection.run
    monkeypatch.setattr(
        Connection,
        "run",
        lambda connection, statement, values=(): sent.append(statement) or run(connection, statement, values),
    )
    with connected(url) as stranger, stranger.transaction():
        stranger.execute(f"SELECT FROM {SCHEMA}.sessions FOR UPDATE")
        pooled = PostgresStore.from_url(url, schema=SCHEMA, timeout=TIMEOUT, prepared=False)
        with closing(pooled):
            found = pooled.apply_many([(record.handle, PROOF, Changes(adds={"n": 1})) for record in records])
    assert [type(each) for each in found] == [StoreUnavailable] * 6
    assert len(sent) == 1


def test_a_connection_that_was_closed_is_not_kept_for_the_next_verb(url, store):
    records = [new(store) for _ in range(2)]
    odd = Changes(sets={"a": (js(1), 0)}, expects={"a": js({"$bytes": "AA=="})})
    patient = with_option(url, "statement_timeout=20s")
    with connected(url) as stranger, closing(PostgresStore.from_url(patient, schema=SCHEMA, timeout=TIMEOUT)) as few:
        with stranger.transaction():
            stranger.execute(f"SELECT FROM {SCHEMA}.sessions WHERE handle = '{records[0].handle}' FOR UPDATE")
            found = few.apply_many(
                [(records[0].handle, PROOF, odd), (records[1].handle, PROOF, Changes(adds={"n": 1}))]
            )
        assert [type(found[0]), found[1]] == [StoreUnavailable, 2]
        assert [connection.driver.closed for connection in few._idle] in ([], [False])
        assert few.load(records[1].handle) is not None
