"""What the PostgreSQL store does when its server is stopped, killed, started again or out of reach."""

import os
import signal
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest
from servers.postgres import KINDS, run_sql, started
from support import SECRET, Site

pytest.importorskip("psycopg_pool")

from psycopg_pool import ConnectionPool

from sessiontree import Handler, StoreUnavailable, UsageError, with_clock, with_store
from sessiontree.clock import FakeClock
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import PROOF, at_once, contents, js, new
from sessiontree.stores.postgres import PostgresStore

TIMEOUT = 0.2
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sessiontree'"


@pytest.fixture(scope="module")
def own():
    """A server of this file's own, to be maltreated."""
    found = started(KINDS[0], synchronous_commit="on")
    with closing(PostgresStore.from_url(found.url)) as store:
        store.create_schema()
    yield found
    found.process.remove(signal.SIGINT)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=["socket", "tcp"])
def store(request, own, clock):
    url = own.url if request.param == "socket" else own.tcp_url
    run_sql(own.url, "DELETE FROM sessiontree.sessions")
    with closing(PostgresStore.from_url(url, clock=clock, timeout=TIMEOUT)) as store:
        yield store


@pytest.fixture
def paused(own):
    """A function that stops the server in the middle of whatever it does; it goes on afterwards."""
    pids = []

    def pause():
        pids[:] = [own.process.pid]  # first, so that nobody is born meanwhile
        signal_to(own.process.pid, signal.SIGSTOP)
        pids.extend(children_of(own.process.pid))
        for pid in pids:
            signal_to(pid, signal.SIGSTOP)
        return go_on

    def go_on():
        for pid in pids:
            signal_to(pid, signal.SIGCONT)

    yield pause
    go_on()


def crash(own):
    """End the server and its children without a word; killed alone, it would leave those behind for a while."""
    own.process.stop(signal.SIGQUIT)


def children_of(parent):
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, _, rest = stat.read_text().partition(" ")
            if int(rest.rpartition(")")[2].split()[1]) == parent:
                yield int(pid)


def signal_to(pid, what):
    with suppress(ProcessLookupError):
        os.kill(pid, what)


def soon(call):
    """Return what the call returns once the server answers; before that it must say so and nothing else."""
    for _ in range(200):
        try:
            return call()
        except StoreUnavailable:
            threading.Event().wait(0.02)
    raise AssertionError("The store never came back.")


def verbs_on(store, record):
    return [
        lambda: store.load(record.handle),
        lambda: store.load_many([record.handle, "b"]),
        lambda: new(store, labels={"subject": "bob"}),
        lambda: store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)})),
        lambda: store.apply(record.handle, PROOF, Changes(adds={"n": 1})),
        lambda: store.revoke(record.handle),
        lambda: store.find("subject", "bob"),
        lambda: store.count("subject", "bob"),
        lambda: store.relabel("subject", "bob", "eve"),
        lambda: store.revoke_where("subject", "bob"),
        store.scan,
        store.sweep,
        lambda: store.sweep_idle(1),
    ]


def test_a_server_that_stands_still_is_an_outage_for_every_verb_and_none_hangs(store, paused):
    record = new(store, labels={"subject": "bob"})
    at_once(*[lambda: store.load(record.handle)] * 4)
    paused()
    results = at_once(*verbs_on(store, record))
    assert [type(result) for result in results] == [StoreUnavailable] * len(results), results
    assert isinstance(at_once(lambda: store.load(record.handle))[0], StoreUnavailable)


def test_a_large_write_to_a_server_that_stands_still_does_not_hang_either(store, paused):
    record = new(store)
    paused()
    large = Changes(sets={"a": (js("x" * 1_000_000), 0)})
    for _ in range(2):
        [result] = at_once(lambda: store.apply(record.handle, PROOF, large))
        assert isinstance(result, StoreUnavailable)


def test_a_server_that_goes_on_is_used_again(store, paused):
    record = new(store)
    go_on = paused()
    assert isinstance(at_once(lambda: store.load(record.handle))[0], StoreUnavailable)
    go_on()
    assert soon(lambda: store.load(record.handle)) == record


def test_a_server_that_was_killed_and_started_again_is_used_again(store, own):
    record = new(store)
    at_once(*[lambda: store.load(record.handle)] * 4)
    crash(own)
    with pytest.raises(StoreUnavailable):
        store.load(record.handle)
    own.process.start()
    assert soon(lambda: store.load(record.handle)) == record
    for _ in range(6):  # one failure tells of all connections
        store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
    assert contents(store, record.handle) == {"n": js(6)}


def test_a_restart_between_two_requests_is_not_noticed(store, own, monkeypatch):
    monkeypatch.setattr("sessiontree.stores.postgres.server.FRESH", 0.0)
    record = new(store)
    at_once(*[lambda: store.load(record.handle)] * 4)
    own.process.stop(signal.SIGINT)
    own.process.start()
    for _ in range(6):
        assert store.load(record.handle) == record


@pytest.mark.parametrize("terminated", [1, 4])
def test_connections_that_an_operator_ended_are_replaced(store, own, monkeypatch, terminated):
    monkeypatch.setattr("sessiontree.stores.postgres.server.FRESH", 0.0)
    record = new(store)
    at_once(*[lambda: store.load(record.handle)] * terminated)
    run_sql(own.url, TERMINATE.replace("pid)", "pid, 5000)"))
    for number in range(1, 7):
        assert store.apply(record.handle, PROOF, Changes(adds={"n": 1})).sums == {"n": number}


def test_a_store_may_be_made_before_its_server_runs(own, clock):
    own.process.stop(signal.SIGINT)
    with closing(PostgresStore.from_url(own.url, clock=clock, timeout=TIMEOUT)) as store:
        with pytest.raises(StoreUnavailable):
            store.load("x")
        own.process.start()
        assert soon(lambda: store.load("x")) is None


def test_a_write_whose_answer_is_lost_was_made_once_or_not_at_all(store, own):
    record = new(store)
    sums = []

    def write():
        for _ in range(60):
            try:
                sums.append(store.apply(record.handle, PROOF, Changes(adds={"n": 1})).sums["n"])
            except StoreUnavailable:
                sums.append(None)

    def disturb():
        for _ in range(10):
            run_sql(own.url, TERMINATE)

    assert at_once(write, write, disturb) == [None] * 3
    acknowledged = [each for each in sums if each is not None]
    assert len(acknowledged) == len(set(acknowledged))
    [found] = soon(lambda: contents(store, record.handle)).values() if acknowledged else [b"0"]
    assert len(acknowledged) <= int(found) <= len(sums)


def test_an_outage_is_503_and_sends_no_cookie(store, own):
    handler = Handler("visitor", SECRET, with_clock(store.clock), with_store(store))
    site = Site(handler)
    site.visit(lambda session: session.update(n=1))
    crash(own)
    site.visit(lambda session: session.get("n"))
    assert (site.answer.code, site.answer.cookies) == (503, [])
    own.process.start()
    for _ in range(200):
        store.clock.advance(1)
        if site.visit(lambda session: session.get("n")) == 1:
            return
        threading.Event().wait(0.02)
    raise AssertionError("The session never came back.")


def test_a_pool_that_cannot_connect_is_an_outage_and_a_closed_store_a_mistake():
    with ConnectionPool("postgresql://x@127.0.0.1:1/x", min_size=0, max_size=1, open=True) as pool:
        store = PostgresStore(pool, timeout=TIMEOUT)
        with pytest.raises(StoreUnavailable, match=r"psycopg\.pool"):
            store.load("x")
        store.close()
        with pytest.raises(UsageError):
            store.load("x")
