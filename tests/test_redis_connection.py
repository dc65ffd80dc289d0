"""A RedisStore talks on the socket itself or in redis-py's way, and in both what fails and what arrives is the same."""

import itertools
import os
import signal
import socket
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest
from redis import Redis
from redis._parsers import _RESP2Parser
from redis.connection import UnixDomainSocketConnection
from redis.exceptions import RedisError
from servers import valkey
from servers.relay import Relay

from sessiontree import StoreUnavailable
from sessiontree.clock import FOREVER
from sessiontree.records import Changes
from sessiontree.stores.conformance import StoreConformance
from sessiontree.stores.conformance.tools import PROOF, TurningClock, contents, fields, js, loaded, new
from sessiontree.stores.redis import RedisStore, connection, pool
from sessiontree.stores.redis.connection import CHUNK

NUMBERS = itertools.count(1)
WAYS = {"direct": {}, "driven": {"health_check_interval": 3600}, "without hiredis": {"parser_class": _RESP2Parser}}
"""Settings of a client that is talked with on the socket itself, and of two that redis-py must talk with."""


class Piecemeal(Relay):
    """Passes answers on in single bytes."""

    def _pass(self, link, come):
        try:
            if come is link.client:
                self._pass_on(link.client.recv(CHUNK), link.server, CHUNK)
            else:
                self._pass_on(link.server.recv(CHUNK), link.client, 1)
        except OSError:
            self._end(link)

    def _pass_on(self, data, target, size):
        if not data:
            raise ConnectionError
        for place in range(0, len(data), size):
            target.sendall(data[place : place + size])


def is_direct(store):
    """Tell whether the connection that is used next is talked on by us."""
    return store._pool._idle[-1].driver._sock.gettimeout() == 0


@contextmanager
def own_server():
    server = valkey.Valkey("valkey")
    server.start()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def clock():
    return TurningClock()


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


@pytest.fixture
def opened(way, clock, monkeypatch):
    """A function that opens a store at a URL."""
    made = []
    if way == "without hiredis":
        monkeypatch.setattr(pool, "packed", pool._packed)

    def open_one(url, timeout=20, **settings):
        client = Redis.from_url(url, socket_timeout=timeout, socket_connect_timeout=timeout, **WAYS[way] | settings)
        store = RedisStore(client, prefix=f"talk-{os.getpid()}-{next(NUMBERS)}", clock=clock)
        made.extend((store, client))
        record = new(store)
        assert loaded(store, record.handle)
        assert is_direct(store) == (way == "direct")
        return store

    yield open_one
    for each in made:
        each.close()


@contextmanager
def relayed(kind=Relay):
    """A relay in front of a server, and the URL of that."""
    with closing(kind(("127.0.0.1", valkey.started("valkey").port))) as relay:
        yield relay, f"redis://127.0.0.1:{relay.port}/0"


@contextmanager
def alarmed(handler, seconds=0.02, again=0.0):
    """Have a signal soon, and again and again if so."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds, again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class TestDrivenRedisStore(StoreConformance):
    """The whole contract is kept in redis-py's way too."""

    @pytest.fixture(autouse=True)
    def _prefix(self):
        self.prefix = f"talk-{os.getpid()}-{next(NUMBERS)}"

    def make_store(self, clock):
        client = Redis.from_url(valkey.started("valkey").url, socket_timeout=20, **WAYS["driven"])
        return RedisStore(client, prefix=self.prefix, clock=clock)

    def reopen(self, store):
        return self.make_store(store.clock)


# -- which way ------------------------------------------------------------------------------------


class Noting(UnixDomainSocketConnection):
    """Somebody's own connection."""

    def send_packed_command(self, command, **named):
        return super().send_packed_command(command, **named)


class Receiving(socket.socket):
    """Somebody's own socket."""

    def recv_into(self, *arguments):
        return super().recv_into(*arguments)


class Sending(socket.socket):
    def sendall(self, *arguments):
        return super().sendall(*arguments)


def on(kind):
    class Made(UnixDomainSocketConnection):
        def _connect(self):
            made = kind(socket.AF_UNIX)
            made.connect(self.path)
            made.settimeout(self.socket_timeout)
            return made

    return Made


@pytest.mark.parametrize("kind", [Noting, on(Receiving), on(Sending)])
def test_a_connection_or_a_socket_of_others_is_used_in_its_own_way(clock, kind):
    server = valkey.started("valkey")
    with closing(Redis.from_url(server.url, socket_timeout=20)) as client:
        client.connection_pool.connection_class = kind
        with closing(RedisStore(client, prefix=f"talk-{os.getpid()}-{next(NUMBERS)}", clock=clock)) as store:
            assert contents(store, new(store, fields=fields(n=js(1))).handle) == {"n": js(1)}
            assert not is_direct(store)


@pytest.mark.parametrize("lacking", ["reader", "poll"])
def test_what_is_missing_is_done_without(clock, monkeypatch, lacking):
    if lacking == "reader":
        monkeypatch.setattr(connection, "Reader", None)
    else:
        monkeypatch.setattr(connection, "select", SimpleNamespace())
    with own_server() as server, closing(RedisStore.from_url(server.url, clock=clock)) as store:
        record = new(store, fields=fields(n=js(1)))
        assert store.apply(record.handle, PROOF, Changes(adds={"n": 1})).sums == {"n": 2}
        assert contents(store, record.handle) == {"n": js(2)}
        assert not is_direct(store)
        server.kill()
        server.start()
        new(store)


def test_a_connection_that_is_to_be_looked_after_is_looked_after(clock):
    """An idle one is asked by redis-py before it is used, as the client's settings say."""
    with own_server() as server, closing(Redis.from_url(server.url, health_check_interval=1e-9)) as client:
        store = RedisStore(client, clock=clock)
        record = new(store)
        client.config_resetstat()
        assert store.load(record.handle)
        assert store.load_many([record.handle])
        assert client.info("commandstats")["cmdstat_ping"]["calls"] >= 2
        store.close()


# -- what fails -----------------------------------------------------------------------------------

HUNG = {
    "load": lambda store, handle: store.load(handle),
    "load keys": lambda store, handle: store.load(handle, ["a"]),
    "load many": lambda store, handle: store.load_many([handle, "other"]),
    "apply": lambda store, handle: store.apply(handle, PROOF, Changes(adds={"n": 1})),
    "apply many": lambda store, handle: store.apply_many([(handle, PROOF, Changes(adds={"n": 1}))]),
    "revoke": lambda store, handle: store.revoke(handle),
}


@pytest.mark.parametrize("by", ["url", "tcp_url"])
def test_a_server_that_hangs_fails_every_verb_in_time_and_its_late_answers_are_nobodys(opened, by):
    with own_server() as server:
        store = opened(getattr(server, by), timeout=0.1)
        record, other = (new(store, fields=fields(n=js(number))) for number in (1, 100))
        assert store.load(record.handle)
        for verb in HUNG.values():
            server.pause()
            with pytest.raises(StoreUnavailable, match="did not answer in time"):
                verb(store, record.handle)
            server.go_on()
            assert contents(store, other.handle) == {"n": js(100)}
        assert store.apply(other.handle, PROOF, Changes(adds={"n": 1})).sums == {"n": 101}


def test_what_a_server_that_hangs_has_no_room_for_fails_in_time(opened):
    """It fills what the system keeps for it, so it is sent in part, and never done."""
    with own_server() as server:
        store = opened(server.url, timeout=0.1)
        record = new(store, fields=fields(n=js(1)))
        large = Changes(sets={"n": (js("x" * 1_000_000), 0)})
        server.pause()
        with pytest.raises(StoreUnavailable, match=r"did not answer in time .*writing"):
            store.apply(record.handle, PROOF, large)
        server.go_on()
        assert contents(store, record.handle) == {"n": js(1)}
        assert store.apply(record.handle, PROOF, large) == 2
        assert contents(store, record.handle) == {"n": js("x" * 1_000_000)}


def test_a_new_connection_is_told_the_time_out_too(opened, way):
    with own_server() as server:
        store = opened(server.url, timeout=0.1)
        record = new(store)
        server.kill()
        server.start()
        new(store)
        assert is_direct(store) == (way == "direct")
        server.pause()
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            store.load(record.handle)
        server.go_on()


@pytest.mark.parametrize("verb", ["load", "load many", "apply", "apply many"])
def test_a_server_that_is_not_there_is_unavailable_and_used_again_when_it_is(opened, verb):
    with own_server() as server:
        store = opened(server.url)
        record = new(store)
        server.kill()
        with pytest.raises(StoreUnavailable, match="did not answer"):
            HUNG[verb](store, record.handle)
        server.start()
        assert contents(store, new(store, fields=fields(n=js(1))).handle) == {"n": js(1)}


def test_a_write_whose_answer_is_cut_is_not_sent_again(opened):
    with relayed() as (relay, url):
        store = opened(url)
        record, other = (new(store, fields=fields(n=js(number))) for number in (1, 100))
        for count, verb in enumerate(("apply", "apply many"), 2):
            relay.cut()
            with pytest.raises(StoreUnavailable, match=r"did not answer \("):
                HUNG[verb](store, record.handle)
            assert contents(store, other.handle) == {"n": js(100)}
            assert contents(store, record.handle) == {"n": js(count)}


def test_a_look_whose_answer_is_cut_is_made_once_more(opened):
    with relayed() as (relay, url):
        store = opened(url)
        record = new(store, fields=fields(n=js(1)))
        for look in (contents, lambda store, handle: store.load_many([handle])):
            relay.cut()
            assert look(store, record.handle)
            relay.cut(2)
            with pytest.raises(StoreUnavailable, match=r"did not answer \("):
                look(store, record.handle)
            assert look(store, record.handle)


def test_a_signal_in_the_middle_of_an_answer_leaves_no_half_of_it(opened):
    def interrupt(*_):
        raise KeyboardInterrupt

    with own_server() as server:
        store = opened(server.url)
        records = [new(store, fields=fields(n=js(number))) for number in range(2)]
        for verb in ("load", "apply", "load many"):
            server.pause()
            with pytest.raises(KeyboardInterrupt), alarmed(interrupt):
                HUNG[verb](store, records[0].handle)
            server.go_on()
            assert contents(store, records[1].handle) == {"n": js(1)}


def test_a_signal_that_raises_nothing_does_not_end_the_wait(opened):
    with own_server() as server:
        store = opened(server.url)
        record = new(store, fields=fields(n=js(1)))
        large = Changes(sets={"n": (js("x" * 1_000_000), 0)})
        verbs = (
            lambda: contents(store, record.handle) == {"n": js(1)},
            lambda: store.apply(record.handle, PROOF, large) == 2,
            lambda: contents(store, record.handle) == {"n": js("x" * 1_000_000)},
        )
        for verb in verbs:
            server.pause()
            with alarmed(lambda *_: server.go_on()):
                assert verb()


def test_signals_that_keep_coming_do_not_prolong_the_wait(opened):
    come = itertools.count()

    def note(*_):
        assert next(come) < 500, "It waits for ever."

    with own_server() as server:
        store = opened(server.url, timeout=0.2)
        record = new(store)
        for verb in HUNG.values():
            server.pause()
            with pytest.raises(StoreUnavailable, match="in time"), alarmed(note, again=0.02):
                verb(store, record.handle)
            server.go_on()


SAID = [
    "ERR something", "ERR max number of clients reached", "ERR invalid password", "ERR", "", "sth odd",
    "WRONGTYPE Operation against a key", "NOSCRIPT No matching script.", "READONLY You can't write against a replica.",
    "LOADING Redis is loading the dataset in memory", "NOAUTH Authentication required.", "NOPERM no right",
    "WRONGPASS invalid", "OOM command not allowed", "MOVED 3999 127.0.0.1:6381", "ASK 3999 127.0.0.1:6381",
    "TRYAGAIN Multiple keys", "CLUSTERDOWN Hash slot not served", "CROSSSLOT Keys", "MASTERDOWN Link with MASTER",
    "MISCONF Redis is configured", "NOREPLICAS Not enough", "EXECABORT discarded", "BUSY Redis is busy", "\xe9",
]  # fmt: skip


@pytest.mark.parametrize("said", SAID, ids=ascii)
def test_an_error_is_what_redis_py_makes_of_it(clock, said):
    """Its class decides what becomes of it, and its text what is advised."""
    server = valkey.started("valkey")
    outcomes = []
    command = (b"EVAL", b"return {err=ARGV[1]}", 0, said.encode())
    for settings in WAYS.values():
        with closing(Redis.from_url(server.url, socket_timeout=20, **settings)) as client:
            store = RedisStore(client, clock=clock)
            for reads in (True, False):
                with pytest.raises(RedisError) as caught:
                    store._pool.ask(command, reads=reads)
                outcomes.append((type(caught.value), str(caught.value)))
                with pytest.raises(StoreUnavailable) as told:
                    store._pool.run_many(Said, [(said.encode(),)])
                outcomes.append(str(told.value))
                assert store.load("a") is None
            store.close()
    assert outcomes[:4] == outcomes[4:8] == outcomes[8:]


class Said:
    """A script that says what it is told."""

    text = b"return {err=KEYS[1]}"
    name = b"0" * 40


# -- what arrives ---------------------------------------------------------------------------------


def test_answers_that_come_in_single_bytes_are_whole(opened):
    with relayed(Piecemeal) as (_, url):
        store = opened(url)
        wanted = {"a": js("x" * 100), "b": js("\r\n$5\r\n"), "n": js(1)}
        records = [new(store, fields=fields(**wanted)) for _ in range(3)]
        for record in records:
            assert contents(store, record.handle) == wanted
            assert store.apply(record.handle, PROOF, Changes(sets={"b": (js(2), FOREVER)}, adds={"n": 1})).sums == {
                "n": 2
            }
        assert len(store.load_many([each.handle for each in records] + ["other"])) == 3


@pytest.mark.parametrize("size", [CHUNK - 200, CHUNK, 2 * CHUNK - 200, 900_000])
@pytest.mark.parametrize("by", ["url", "tcp_url"])
def test_large_commands_and_answers_are_whole(opened, by, size):
    store = opened(getattr(valkey.started("valkey"), by))
    record = new(store)
    for step in range(-3, 300, 50):
        content = js("x" * (size + step))
        store.apply(record.handle, PROOF, Changes(sets={"a": (content, 0)}))
        assert contents(store, record.handle) == {"a": content}
    assert len(store.load_many([record.handle, new(store).handle])) == 2


def test_many_small_answers_in_one_part_are_told_apart(opened):
    store = opened(valkey.started("valkey").url)
    records = [new(store, fields=fields(n=js(number))) for number in range(1200)]
    handles = [each.handle for each in records]
    found = store.load_many(handles)
    assert [found[each].fields for each in handles] == [each.fields for each in records]
    versions = store.apply_many([(each, PROOF, Changes(adds={"n": 1})) for each in handles])
    assert [each.sums["n"] for each in versions] == list(range(1, 1201))
