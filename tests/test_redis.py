"""A RedisStore keeps the whole contract, on Valkey and on Debian's Redis, and what it has of its own."""

import ctypes
import gc
import itertools
import os
import re
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import redis.asyncio
import redis.sentinel
from redis import BlockingConnectionPool, ConnectionPool, Redis
from servers import valkey

from sessiontree import ConfigError, SessionGone, StoreUnavailable, UsageError
from sessiontree.clock import FOREVER
from sessiontree.records import Changes
from sessiontree.stores import open_store
from sessiontree.stores.conformance import StoreConformance
from sessiontree.stores.conformance.tools import (
    OTHER_PROOF,
    PROOF,
    TurningClock,
    all_pages,
    contents,
    fields,
    fresh_handle,
    handles_of,
    js,
    loaded,
    new,
)
from sessiontree.stores.conformance.watching import Heard
from sessiontree.stores.layered import LayeredStore
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.redis import RedisStore
from sessiontree.stores.redis.pool import Pool, packed

NUMBERS = itertools.count(1)
KINDS = ["valkey", "redis", *(["given"] if valkey.given_url() else [])]


@pytest.fixture(params=KINDS, scope="module")
def url(request):
    """The URL of a server; ``given`` is the one that SESSIONTREE_TEST_REDIS_URL names."""
    return valkey.given_url() if request.param == "given" else valkey.started(request.param).url


@pytest.fixture
def prefix():
    return f"test-{os.getpid()}-{next(NUMBERS)}"


@pytest.fixture
def clock():
    return TurningClock()


@pytest.fixture
def store(url, prefix, clock):
    with closing(RedisStore.from_url(url, prefix=prefix, clock=clock)) as made:
        yield made


@pytest.fixture
def client(url):
    with Redis.from_url(url) as made:
        yield made


@contextmanager
def own_server(*options, kind="valkey"):
    """A server for one test, which may be killed, paused and filled."""
    server = valkey.Valkey(kind, *options)
    server.start()
    try:
        yield server
    finally:
        server.remove()


class TestRedisStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _server(self, url, prefix):
        self.url, self.prefix = url, prefix

    def make_store(self, clock):
        return RedisStore.from_url(self.url, prefix=self.prefix, clock=clock)

    def reopen(self, store):
        return self.make_store(store.clock)


class TestLayeredOverRedis(StoreConformance):
    """A Redis in front of another store is a cache that all processes share."""

    @pytest.fixture(autouse=True)
    def _prefix(self, prefix):
        self.prefix = prefix

    def make_store(self, clock):
        front = RedisStore.from_url(valkey.started("valkey").url, prefix=self.prefix, clock=clock)
        return LayeredStore(MemoryStore(clock=clock), front, max_staleness=5, name="test")


# -- names ----------------------------------------------------------------------------------------

ODD_PREFIXES = ["[prod]", "a*", "a?b", "a\\", "{", "}", "a{b}c", "{}", "é", " ", "\n", "a^b", "[a-z]", "x" * 300]


@pytest.mark.parametrize("odd", ODD_PREFIXES, ids=ascii)
def test_a_prefix_is_no_pattern_and_no_other_store_is_met_through_it(url, prefix, clock, odd):
    """An unescaped prefix would miss its own sessions and sweep away those of others."""
    names = [f"{prefix}{odd}", f"{prefix}p", f"{prefix}ab", f"{prefix}axb", f"{prefix}a"]
    stores = [RedisStore.from_url(url, prefix=name, clock=clock) for name in names]
    handles = [new(each, idle=clock.now() + 1, labels={"subject": "bob"}).handle for each in stores]
    for each, handle in zip(stores, handles, strict=True):
        assert handles_of(each.scan()) == handles_of(each.find("subject", "bob")) == [handle]
    clock.advance(7200)
    assert stores[0].sweep() == 1
    clock.advance(-7200)
    assert [each.load(handle) is None for each, handle in zip(stores, handles, strict=True)] == [True, *[False] * 4]
    for each in stores:
        each.revoke_where("subject", "bob")
        each.close()


@pytest.mark.parametrize("bad", ["", None, b"bytes", 7])
def test_a_prefix_is_a_text_that_is_not_empty(client, bad):
    with pytest.raises(ConfigError):
        RedisStore(client, prefix=bad)


@pytest.mark.parametrize(
    "settings", [{"timeout": 0}, {"timeout": -1}, {"timeout": None}, {"timeout": True}, {"timeout": float("inf")},
                 {"timeout": float("nan")}, {"timeout": 1e300}, {"timeout": 90_000}, {"timeout": timedelta()},
                 {"wait_replicas": -1}, {"wait_replicas": 1.5}, {"wait_replicas": True}],
)  # fmt: skip
def test_settings_that_cannot_be_right_are_refused(url, settings):
    with pytest.raises(ConfigError):
        RedisStore.from_url(url, **settings)


@pytest.mark.parametrize("timeout", [2, 0.25, timedelta(seconds=3), 86_400])
def test_a_timeout_is_a_duration(url, client, timeout):
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    with (
        closing(RedisStore.from_url(url, timeout=timeout)) as store,
        closing(RedisStore(client, timeout=timeout)) as own,
    ):
        assert store.load("a") is own.load("a") is None
        assert store._pool._idle[0].driver.socket_timeout == own._pool.timeout == seconds


CLIENTS_OF_OTHERS = {
    "none": lambda: None,
    "a URL": lambda: "redis://user:very-secret@localhost/0",
    "of asyncio": lambda: redis.asyncio.Redis(),
    "a pool": ConnectionPool,
    "a Sentinel": lambda: redis.sentinel.Sentinel([]),
    "of another library": lambda: SimpleNamespace(connection_pool=ConnectionPool()),
}


@pytest.mark.parametrize("made", CLIENTS_OF_OTHERS.values(), ids=CLIENTS_OF_OTHERS)
def test_a_client_that_is_none_of_redis_py_is_refused(made):
    with pytest.raises(
        ConfigError, match=r"redis\.Redis or a redis\.cluster\.RedisCluster.*RedisStore\.from_url"
    ) as caught:
        RedisStore(made())
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [None, 7, "http://localhost", "redis://localhost:x", "redis://localhost?socket_timeout=x"]
)
def test_a_url_that_is_none_is_a_config_error(bad):
    with pytest.raises(ConfigError):
        RedisStore.from_url(bad)


def test_open_store_opens_it(url, prefix, clock):
    with closing(open_store(url, prefix=prefix, clock=clock)) as store:
        assert isinstance(store, RedisStore)
        assert loaded(store, new(store).handle)


# -- what goes over the wire ----------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch):
    """How many bytes each send has."""
    sends = []

    def noting(ask):
        def asked(pool, commands, **named):
            flat = [commands] if isinstance(commands[0], bytes) else commands
            sends.append(sum(len(packed(command)) for command in flat))
            return ask(pool, commands, **named)

        return asked

    monkeypatch.setattr(Pool, "ask", noting(Pool.ask))
    monkeypatch.setattr(Pool, "ask_many", noting(Pool.ask_many))
    return sends


LARGE = fields(a=js(1), n=js(1), **{f"key{number}": js("x" * 1000) for number in range(100)})
USUAL = {
    "load": lambda store, handle: store.load(handle),
    "load keys": lambda store, handle: store.load(handle, ["a"]),
    "load many": lambda store, handle: store.load_many([handle, "other"]),
    "a touch": lambda store, handle: store.apply(handle, PROOF, Changes(idle=FOREVER - 1, seen=store.clock.now())),
    "a write": lambda store, handle: store.apply(handle, PROOF, Changes(sets={"a": (js(2), FOREVER)})),
    "an increment": lambda store, handle: store.apply(handle, PROOF, Changes(adds={"n": 1})),
    "a comparison": lambda store, handle: store.apply(
        handle, PROOF, Changes(sets={"a": (js(2), 0)}, expects={"a": js(1)})
    ),
    "a renewal": lambda store, handle: store.apply(handle, PROOF, Changes(proof=OTHER_PROOF, grace=FOREVER)),
    "a login": lambda store, handle: store.apply(
        handle, PROOF, Changes(labels={"subject": "eve"}, authenticated=1, proof=OTHER_PROOF)
    ),
    "revoke": lambda store, handle: store.revoke(handle),
}


@pytest.mark.parametrize("what", USUAL)
def test_a_verb_is_one_trip_and_sends_what_changes(store, sent, what):
    record = new(store, labels={"subject": "bob"}, fields=LARGE)
    USUAL[what](store, new(store, fields=LARGE).handle)
    sent.clear()
    USUAL[what](store, record.handle)
    assert len(sent) == 1
    assert sent[0] < 700


def test_creating_is_one_trip(store, sent):
    new(store, labels={"subject": "bob", "parent": "x"})
    sent.clear()
    new(store, labels={"subject": "bob", "parent": "x"})
    assert len(sent) == 1


def test_a_server_that_forgot_the_scripts_is_told_them_again(store, client):
    records = [new(store, labels={"worker": "1"}) for _ in range(3)]
    client.script_flush()
    store.apply(records[0].handle, PROOF, Changes(adds={"n": 1}))
    client.script_flush()
    assert store.relabel("worker", "1", "2") == 3
    client.script_flush()
    assert store.revoke_where("worker", "2") == 3


CLIENTS = {
    "decoding": lambda url: Redis.from_url(url, decode_responses=True),
    "protocol 2": lambda url: Redis.from_url(url, protocol=2),
    "protocol 3": lambda url: Redis.from_url(url, protocol=3),
    "health checks": lambda url: Redis.from_url(url, health_check_interval=1),
    "one connection": lambda url: Redis.from_url(url, max_connections=1),
    "a blocking pool": lambda url: Redis(connection_pool=BlockingConnectionPool.from_url(url)),
    "a pool": lambda url: Redis(connection_pool=ConnectionPool.from_url(url)),
    "another charset": lambda url: Redis.from_url(url, encoding="latin-1", decode_responses=True),
}


@pytest.mark.parametrize("kind", CLIENTS)
def test_any_client_will_do(url, prefix, clock, kind):
    client = CLIENTS[kind](url)
    with closing(RedisStore(client, prefix=prefix, clock=clock)) as store:
        record = new(store, labels={"subject": "é"}, fields=fields(a=js("é"), b=(b"\xff", FOREVER)))
        assert dict(store.apply(record.handle, PROOF, Changes(adds={"n": 1})).sums) == {"n": 1}
        assert contents(store, record.handle) == {"a": js("é"), "b": b"\xff", "n": js(1)}
        assert handles_of(store.find("subject", "é")) == handles_of(store.scan()) == [record.handle]
        assert store.load_many([record.handle]).keys() == {record.handle}
        assert store.relabel("subject", "é", "eve") == store.count("subject", "eve") == 1
        store.watch(print)()
        assert store.revoke(record.handle)
    client.close()


# -- the server's own expiry ----------------------------------------------------------------------


def left(client, key):
    return client.pttl(key) / 1000


def test_the_server_takes_away_what_is_over_a_minute_later_by_its_own_clock(store, client, clock):
    record = new(store, idle=clock.now() + 100_000)
    key = store._key(record.handle)
    assert 150 < left(client, key) <= 160
    store.apply(record.handle, PROOF, Changes(idle=clock.now() + 1_000_000))
    assert 1050 < left(client, key) <= 1060
    store.apply(record.handle, PROOF, Changes(own=clock.now() + 10_000))
    assert 60 < left(client, key) <= 70, "The earliest of the deadlines counts."
    store.apply(record.handle, PROOF, Changes(own=FOREVER, idle=FOREVER))
    assert client.pttl(key) == -1
    store.apply(record.handle, PROOF, Changes(idle=clock.now() - 5))
    assert 50 < left(client, key) <= 60


def test_a_write_moves_no_expiry(store, client, clock):
    record = new(store, idle=clock.now() + 100_000)
    client.pexpire(store._key(record.handle), 5_000_000)
    for change in (Changes(sets={"a": (js(1), 0)}), Changes(labels={"subject": "bob"}), Changes(seen=clock.now() + 1)):
        store.apply(record.handle, PROOF, change)
    assert left(client, store._key(record.handle)) > 4000


def test_an_index_goes_when_the_last_of_its_records_must_have(store, client, clock, prefix):
    new(store, absolute=clock.now() + 100_000, labels={"subject": "bob"})
    [index] = set(client.keys(f"{prefix}:i:*")) - {store._due}
    assert 150 < left(client, index) <= 160
    new(store, absolute=clock.now() + 500_000, labels={"subject": "bob"})
    assert 550 < left(client, index) <= 560
    new(store, absolute=clock.now() + 100_000, labels={"subject": "bob"})
    assert 550 < left(client, index) <= 560
    new(store, labels={"subject": "bob"})
    new(store, absolute=clock.now() + 100_000, labels={"subject": "bob"})
    assert client.pttl(index) == -1
    store.revoke_where("subject", "bob")
    assert client.keys(f"{prefix}:*") == [], "Nothing is left."


def test_an_entry_whose_record_the_server_took_away_leaves_the_index(store, client, prefix):
    handles = [new(store, labels={"subject": "bob"}).handle for _ in range(3)]
    client.delete(*map(store._key, handles[:2]))
    assert store.count("subject", "bob") == 1
    [index] = client.keys(f"{prefix}:i:*")
    assert client.zcard(index) == 4
    assert handles_of(store.find("subject", "bob")) == handles[2:]
    assert client.zcard(index) == 2, "The last one and the last number."
    client.delete(store._key(handles[2]))
    assert store.revoke_where("subject", "bob") == 0
    assert client.keys(f"{prefix}:*") == []


def test_a_page_goes_on_behind_an_index_that_was_empty_in_between(store):
    first = [new(store, labels={"subject": "bob"}).handle for _ in range(3)]
    page = store.find("subject", "bob", None, 2)
    store.revoke_where("subject", "bob")
    again = new(store, labels={"subject": "bob"}).handle
    assert handles_of(page) == first[:2]
    assert handles_of(store.find("subject", "bob", page.after, 2)) == [again]


# -- what lies there that is not ours -------------------------------------------------------------


def test_what_is_not_ours_under_our_name_is_no_record(store, client, prefix):
    kinds = {
        "text": lambda key: client.set(key, "x"),
        "hash": lambda key: client.hset(key, "h", "x"),
        "empty hash": lambda key: client.hset(key, "x", "x"),
        "list": lambda key: client.rpush(key, "x"),
    }
    for put in kinds.values():
        handle = fresh_handle()
        put(store._key(handle))
        assert store.load(handle) is None
        assert store.load(handle, ["a"]) is None
        assert store.load_many([handle]) == {}
    assert store.scan() == ([], None)
    assert store.count("subject", "bob") == 0
    assert store.sweep() == store.sweep_idle(0) == 0


def test_a_foreign_name_that_is_no_text_is_passed_by(store, client, clock, prefix):
    heard = Heard()
    stop = store.watch(heard.on_change)
    client.hset(prefix.encode() + b":{\xff}", "h", "x")
    record = new(store)
    with closing(RedisStore(client, prefix=prefix, clock=clock)) as other:
        marker = new(other).handle
        assert heard.has(marker)
    stop()
    assert None not in heard.forget(), "The feed is not lost over it."
    assert sorted(handles_of(store.scan())) == sorted([record.handle, marker])
    clock.advance(2)
    assert store.sweep_idle(1) == 2
    assert store.sweep_idle(1) == 0


def foreign(store, client):
    """Return a handle under whose name something else lies."""
    handle = fresh_handle()
    client.set(store._key(handle), "another's")
    return handle


@pytest.mark.parametrize("labels", [{}, {"worker": "1"}], ids=["in one trip", "one by one"])
def test_of_many_writes_the_one_that_the_server_refuses_hinders_no_other(store, client, labels):
    first, last = (new(store) for _ in range(2))
    writes = [
        (first.handle, PROOF, Changes(sets={"a": (js(1), 0)}, labels=labels)),
        (foreign(store, client), PROOF, Changes(sets={"a": (js(1), 0)})),
        (fresh_handle(), PROOF, Changes(sets={"a": (js(1), 0)})),
        (last.handle, PROOF, Changes(adds={"n": 1})),
    ]
    outcomes = store.apply_many(writes)
    assert [each if isinstance(each, int) else type(each) for each in outcomes] == [2, StoreUnavailable, SessionGone, 2]
    assert "something else under a name of ours" in str(outcomes[1])
    assert contents(store, first.handle) == {"a": js(1)}
    assert contents(store, last.handle) == {"n": js(1)}


def test_of_many_writes_that_nobody_answers_nobody_can_say_what_was_done(clock):
    with own_server() as server:
        store = RedisStore.from_url(server.url, clock=clock)
        writes = [(new(store).handle, PROOF, Changes(adds={"n": 1}, labels=labels)) for labels in ({}, {"worker": "1"})]
        server.kill()
        for several in (writes, writes[:1] * 2):
            with pytest.raises(StoreUnavailable):
                store.apply_many(several)
        store.close()


def test_a_closed_store_says_so_though_nothing_is_asked_of_it(store):
    store.close()
    for verb in (store.load_many, store.apply_many):
        with pytest.raises(UsageError):
            verb([])


@pytest.mark.parametrize("cut", [0, 1, 56, 80, 112])
def test_a_damaged_head_is_no_record_and_can_be_replaced(store, client, cut):
    record = new(store, labels={"subject": "bob"})
    head = client.hget(store._key(record.handle), "h")
    client.hset(store._key(record.handle), "h", head[:cut])
    assert store.load(record.handle) is None
    with pytest.raises(SessionGone):
        store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
    assert store.count("subject", "bob") == 0
    new(store, record.handle)
    assert loaded(store, record.handle).label == {}
    client.hset(store._key(record.handle), "h", head[:cut])
    assert store.revoke(record.handle) is False


# -- failures -------------------------------------------------------------------------------------

VERBS = {
    "load": lambda store, record: store.load(record.handle),
    "load_many": lambda store, record: store.load_many([record.handle]),
    "create": lambda store, record: new(store),
    "apply": lambda store, record: store.apply(record.handle, PROOF, Changes(adds={"n": 1})),
    "revoke": lambda store, record: store.revoke(record.handle),
    "find": lambda store, record: store.find("subject", "bob"),
    "count": lambda store, record: store.count("subject", "bob"),
    "relabel": lambda store, record: store.relabel("subject", "bob", "eve"),
    "revoke_where": lambda store, record: store.revoke_where("subject", "bob"),
    "scan": lambda store, record: store.scan(),
    "sweep": lambda store, record: store.sweep(),
    "sweep_idle": lambda store, record: store.sweep_idle(1),
    "watch": lambda store, record: store.watch(lambda _: None),
}


def test_while_the_server_is_away_every_verb_is_unavailable_and_then_all_is_well(clock):
    with own_server("--appendonly", "yes", "--appendfsync", "always") as server:
        store = RedisStore.from_url(server.url, clock=clock)
        record = new(store, labels={"subject": "bob"})
        server.kill()
        for name, verb in VERBS.items():
            with pytest.raises(StoreUnavailable) as caught:
                verb(store, record)
            assert caught.value.__cause__ is not None, name
            assert str(server.path) in str(caught.value)
        server.start()
        assert store.apply(record.handle, PROOF, Changes(adds={"n": 1})).sums == {"n": 1}
        assert store.revoke(record.handle) is True
        server.kill()
        server.start()
        assert store.load(record.handle) is None, "A revocation that the disk has survives."
        store.close()


def test_a_write_after_a_restart_succeeds_at_once(clock):
    """What lies in the pool is looked at before a write, which is never sent twice."""
    with own_server() as server:
        store = RedisStore.from_url(server.url, clock=clock)
        for verb in (
            lambda: new(store),
            lambda: store.revoke("a"),
            lambda: store.load("a"),
            lambda: store.find("a", "b"),
        ):
            new(store)
            server.kill()
            server.start()
            verb()
        store.close()


def test_a_server_that_hangs_is_unavailable_and_its_late_answers_are_nobodys(clock):
    with own_server() as server:
        store = RedisStore.from_url(server.url, clock=clock, timeout=0.1)
        record, other = (new(store, fields=fields(n=js(number))) for number in (1, 100))
        server.pause()
        for verb in VERBS.values():
            with pytest.raises(StoreUnavailable):
                verb(store, record)
        server.go_on()
        assert contents(store, other.handle) == {"n": js(100)}
        assert store.apply(other.handle, PROOF, Changes(adds={"n": 1})).sums == {"n": 101}
        store.close()


def test_a_client_without_a_timeout_gets_ours(clock):
    with own_server() as server:
        client = Redis(unix_socket_path=str(server.path), socket_timeout=None, socket_connect_timeout=None)
        store = RedisStore(client, clock=clock, timeout=0.1)
        record = new(store)
        server.pause()
        with pytest.raises(StoreUnavailable, match="in time"):
            store.load(record.handle)
        server.go_on()
        store.close()
        client.close()


def fill(store):
    for _ in range(100):
        new(store, fields=fields(a=js("x" * 100_000)))


def test_a_server_without_memory_changes_nothing_and_says_so(clock):
    with own_server("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        store = RedisStore.from_url(server.url, clock=clock)
        record = new(store, labels={"subject": "bob"}, fields=fields(a=js(1), b=js(2)))
        before = loaded(store, record.handle)
        with pytest.raises(StoreUnavailable, match="no memory left"):
            fill(store)
        with Redis.from_url(server.url) as client:
            client.config_set("maxmemory", 1000)
            with pytest.raises(StoreUnavailable, match="no memory left"):
                store.apply(
                    record.handle, PROOF, Changes(sets={"c": (js(3), 0)}, deletes=("a",), labels={"subject": "eve"})
                )
            assert loaded(store, record.handle) == before
            assert store.revoke(record.handle) is True, "What takes no memory goes on."
            careful = RedisStore(client, clock=clock, wait_replicas=1)
            with pytest.raises(StoreUnavailable, match="no memory left"):
                careful.revoke(record.handle)  # what replicas are to confirm must be written, as the page says
            careful.close()
        store.close()


def test_a_change_that_never_gets_through_gives_up(store, monkeypatch):
    record = new(store, fields=fields(n=js((1 << 63) - 5)))
    monkeypatch.setattr("sessiontree.stores.redis.store.PAUSE", 0)
    monkeypatch.setattr(RedisStore, "_swap", lambda *_: False)
    with pytest.raises(StoreUnavailable, match="again and again"):
        store.apply(record.handle, PROOF, Changes(adds={"n": 1}))


def test_slow_changes_at_once_are_all_made(store):
    """These increments are beyond a script, so they are made in Python, beside each other."""
    record = new(store, fields=fields(n=js(1 << 62)))
    sums = []

    def add():
        for _ in range(20):
            while True:
                try:
                    sums.append(store.apply(record.handle, PROOF, Changes(adds={"n": 1})).sums["n"])
                except StoreUnavailable:
                    continue
                break

    threads = [Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == list(range((1 << 62) + 1, (1 << 62) + 81))


def test_an_error_shows_no_password():
    store = RedisStore.from_url("redis://user:very-secret@127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable) as caught:
        store.load("a")
    assert "very-secret" not in str(caught.value)
    assert "127.0.0.1:1" in str(caught.value)


def test_what_the_client_does_while_a_node_moves_is_not_kept(prefix, clock):
    """redis-py takes it back when the move is over, from connections of its own alone."""
    moves = pytest.importorskip("redis.maint_notifications", reason="This redis-py knows of no moves.")
    with closing(Redis.from_url(valkey.started("valkey").tcp_url, protocol=3, socket_timeout=3)) as client:
        known = client.connection_pool.connection_kwargs
        moved = moves.NodeMovingNotification(1, "moved.invalid", 6379, 30)
        known.update(moves._build_moving_connection_kwargs(moved, known["maint_notifications_config"]))
        assert known["host"] == "moved.invalid"
        with closing(RedisStore(client, prefix=prefix, clock=clock)) as store:
            new(store)
            driver = store._pool._idle[-1].driver
            assert (driver.host, driver.socket_timeout) == ("127.0.0.1", 3)


# -- processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["Python", "C"])
def test_a_forked_child_has_connections_of_its_own(store, fork):
    """Some servers fork in C, and no hook of Python's runs."""
    record = new(store)

    def count(who):
        for number in range(1, 201):
            assert store.apply(record.handle, PROOF, Changes(adds={who: 1})).sums == {who: number}
            assert contents(store, record.handle)[who] == js(number)
            assert store.load_many([record.handle])[record.handle].handle == record.handle

    child = fork()
    if not child:
        try:
            count("child")
        except BaseException:  # noqa: BLE001 - the parent sees the status
            os._exit(1)
        os._exit(0)
    count("parent")
    assert os.waitpid(child, 0)[1] == 0
    assert contents(store, record.handle) == {"parent": js(200), "child": js(200)}


def test_answers_that_are_errors_are_no_garbage(store, client, prefix):
    client.set(f"{prefix}:text", "not ours")
    ask = partial(store._pool.read_many, [(b"HGETALL", f"{prefix}:text".encode())] * 3)
    assert ask() == [None] * 3
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            ask()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_connections_are_used_again(store, client):
    for _ in range(50):
        store.load("a")
    assert len(store._pool._idle) == 1


def test_a_store_that_nobody_holds_takes_its_connections_along(url, prefix, client):
    store = RedisStore.from_url(url, prefix=prefix)
    store.load("a")
    before = len(client.client_list())
    del store
    gc.collect()
    assert len(client.client_list()) == before - 1


# -- a great many ---------------------------------------------------------------------------------


def test_a_scan_of_many_is_whole_at_any_page_size(store):
    expected = sorted(new(store).handle for _ in range(1500))
    for limit in (7, 1000):
        found, after = [], None
        while True:
            page = store.scan(after, limit)
            found += handles_of(page)
            after = page.after
            if after is None:
                break
        assert sorted(found) == expected


def test_many_are_found_counted_and_relabelled(store):
    handles = [new(store, labels={"worker": "1"}).handle for _ in range(1200)]
    assert all_pages(lambda after, limit: store.find("worker", "1", after, limit), 999)[:5] == handles[:5]
    assert store.count("worker", "1") == 1200
    assert store.relabel("worker", "1", "2") == 1200
    assert (store.count("worker", "1"), store.count("worker", "2")) == (0, 1200)


# -- replicas -------------------------------------------------------------------------------------


def test_a_revocation_waits_for_replicas_and_says_if_they_do_not_have_it(clock):
    with (
        own_server("--repl-diskless-sync-delay", "0") as primary,
        own_server("--replicaof", f"127.0.0.1 {primary.port}") as replica,
    ):
        store = RedisStore.from_url(primary.url, clock=clock, wait_replicas=1, timeout=5)
        reader = RedisStore.from_url(replica.url, clock=clock)
        with Redis.from_url(primary.url) as client:
            while not client.execute_command("WAIT", 1, 100):
                pass
        records = [new(store, labels={"subject": "bob"}) for _ in range(4)]
        assert store.revoke(records[0].handle) is True
        assert reader.load(records[0].handle) is None
        store.apply(records[1].handle, PROOF, Changes(proof=OTHER_PROOF))
        assert loaded(reader, records[1].handle).proof == OTHER_PROOF
        assert store.revoke_where("subject", "bob") == 3
        last = new(store)
        with pytest.raises(StoreUnavailable, match="is a replica"):
            reader.revoke(last.handle)
        replica.kill()
        impatient = RedisStore.from_url(primary.url, clock=clock, wait_replicas=1, timeout=0.5)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
                impatient.revoke(last.handle)
        assert store.load(last.handle) is None, "It is done on the primary."
        for each in (store, reader, impatient):
            each.close()


# -- who may do what ------------------------------------------------------------------------------

RIGHTS = """
    on >secret resetchannels &__redis__:invalidate ~app:* -@all
    +hget +hmget +hgetall +hset +hdel +del +exists +pexpire +pttl +persist +time
    +zadd +zrem +zcard +zscore +zrangebyscore +zrandmember +scan +eval +evalsha +wait
    +ping +select +hello +auth +client|setinfo +client|id +client|tracking +subscribe
    +cluster|slots +command +asking
"""
"""What a user needs, in the server's words; docs/redis.md has the same."""


def test_a_user_with_the_least_rights_can_do_all(clock):
    """The list in docs/redis.md."""
    with own_server() as server:
        with Redis.from_url(server.url) as client:
            client.execute_command("ACL", "SETUSER", "app", *RIGHTS.split())
        url = server.tcp_url.replace("redis://", "redis://app:secret@")
        store = RedisStore.from_url(url, prefix="app", clock=clock)
        for name, verb in VERBS.items():
            record = new(store, labels={"subject": "bob"})
            stop = verb(store, record)
            if name == "watch":
                stop()
        store.apply(new(store).handle, PROOF, Changes(adds={"n": 1 << 62}))
        store.close()
        stranger = RedisStore.from_url(url, prefix="other", clock=clock)
        with pytest.raises(StoreUnavailable, match="does not let this user"):
            stranger.load("a")
        wrong = RedisStore.from_url(url.replace("secret", "wrong"), prefix="app", clock=clock)
        with pytest.raises(StoreUnavailable, match="refuses the password"):
            wrong.load("a")
        for each in (stranger, wrong):
            each.close()


# -- the page about it ----------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[1] / "docs/redis.md"


def test_every_example_of_the_page_runs(url, monkeypatch):
    monkeypatch.setenv("REDIS_URL", url)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if "RedisCluster" not in block:
            exec(compile(block, str(PAGE), "exec"), scope)  # noqa: S102 - it is our own
    handle = new(scope["shared"]).handle
    assert scope["store"].load(handle) is not None
    assert scope["careful"].revoke(handle) is True
    for name in ("store", "shared", "careful", "client"):
        scope[name].close()


def test_the_page_lists_the_rights_that_are_enough():
    [block] = re.findall(r"\n    ACL SETUSER shop (.*?)\n\n", PAGE.read_text(), re.DOTALL)
    assert sorted(block.replace("shop", "app").replace("password", "secret").split()) == sorted(RIGHTS.split())


def test_a_revocation_that_no_replica_confirms_is_made_though_the_script_was_not_known(clock):
    with (
        own_server() as lone,
        closing(RedisStore.from_url(lone.url, clock=clock, wait_replicas=1, timeout=0.4)) as store,
    ):
        for end in (lambda handle: store.revoke(handle), lambda handle: store.revoke_where("subject", "bob")):
            record = new(store, labels={"subject": "bob"})
            store._pool.read(b"SCRIPT", b"FLUSH")
            with pytest.raises(StoreUnavailable, match="0 of 1"):
                end(record.handle)
            assert store.load(record.handle) is None


def test_a_revocation_of_many_is_not_done_until_replicas_confirm_it_however_often_it_is_asked_for(clock):
    with (
        own_server() as lone,
        closing(RedisStore.from_url(lone.url, clock=clock, wait_replicas=1, timeout=0.4)) as store,
    ):
        record = new(store, labels={"subject": "bob"})
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="0 of 1"):
                store.revoke_where("subject", "bob")
        assert store.load(record.handle) is None


def test_what_did_nothing_waits_for_no_replica(clock):
    with (
        own_server() as lone,
        closing(RedisStore.from_url(lone.url, clock=clock, wait_replicas=1, timeout=0.4)) as store,
    ):
        record = new(store)
        with pytest.raises(SessionGone):
            store.apply(record.handle, OTHER_PROOF, Changes(proof=OTHER_PROOF))
        assert loaded(store, record.handle).proof == PROOF
