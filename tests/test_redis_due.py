"""The index of deadlines of a RedisStore: a sweep costs what is due, and the index ends with what lives."""

import itertools
import os
from contextlib import closing

import pytest
from redis import Redis
from servers import valkey

from sessiontree import SessionGone
from sessiontree.clock import FOREVER
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import PROOF, new
from sessiontree.stores.redis import RedisStore
from sessiontree.testing import FakeClock

NUMBERS = itertools.count(1)
HOUR = 3_600_000


@pytest.fixture(params=["valkey", "redis"])
def server(request):
    """A server of its own, since what it counts is looked at."""
    made = valkey.Valkey(request.param)
    made.start()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def client(server):
    with Redis.from_url(server.url) as made:
        yield made


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(server, clock):
    with closing(RedisStore.from_url(server.url, prefix=f"due-{os.getpid()}-{next(NUMBERS)}", clock=clock)) as made:
        yield made


def due(store, client):
    """Return when each record is to be looked at."""
    return {handle.decode(): score for handle, score in client.zrange(store._due, 0, -1, withscores=True)}


def test_a_sweep_asks_for_what_is_due_alone(store, client, clock):
    for _ in range(2000):
        new(store, idle=clock.now() + 10 * HOUR)
    for _ in range(10):
        new(store, idle=clock.now() + 1)
    clock.advance(7200)
    client.config_resetstat()
    assert (store.sweep(), store.sweep()) == (10, 0)
    calls = {name: counted["calls"] for name, counted in client.info("commandstats").items()}
    assert "cmdstat_scan" not in calls
    assert calls["cmdstat_evalsha"] <= 2
    assert sum(calls.values()) < 100, f"Ten records, and so many commands: {calls}."


def test_a_sweep_of_more_than_one_step_takes_all_of_them(store, clock):
    for _ in range(250):
        new(store, idle=clock.now() + 1, labels={"subject": "bob"})
    clock.advance(7200)
    assert (store.sweep(), store.sweep()) == (250, 0)


def test_what_was_prolonged_is_looked_at_again_when_it_ends(store, client, clock):
    record = new(store, idle=clock.now() + 1000)
    store.apply(record.handle, PROOF, Changes(idle=clock.now() + 5 * HOUR))
    clock.advance(2 * 3600)
    assert store.sweep() == 0
    assert due(store, client) == {record.handle: clock.now() + 3 * HOUR}
    clock.advance(5 * 3600)
    assert store.sweep() == 1
    assert due(store, client) == {}


@pytest.mark.parametrize("name", ["own", "idle"])
@pytest.mark.parametrize("adds", [{}, {"huge": 1}], ids=["in the script", "in Python"])
def test_a_deadline_that_comes_nearer_is_looked_at_then(store, client, clock, name, adds):
    ends = {"idle": clock.now() + 10 * HOUR, name: clock.now() + 10 * HOUR}
    record = new(store, fields=b'{"huge":9007199254740993}', **ends)
    store.apply(record.handle, PROOF, Changes(adds=adds, **{name: clock.now() + 2 * HOUR}))
    assert due(store, client) == {record.handle: clock.now() + 2 * HOUR}
    clock.advance(3 * 3600 + 1)
    assert store.sweep() == 1


@pytest.mark.parametrize("end", ["revoke", "revoke_where", "load", "apply", "sweep_idle"])
def test_the_index_goes_with_the_last_record(store, client, clock, end):
    record = new(store, idle=clock.now() + 1000, labels={"subject": "bob"})
    assert due(store, client) == {record.handle: record.idle}
    if end in ("load", "apply", "sweep_idle"):
        clock.advance(10)
    if end == "apply":
        with pytest.raises(SessionGone):
            store.apply(record.handle, PROOF, Changes(seen=clock.now()))
    elif end == "revoke_where":
        store.revoke_where("subject", "bob")
    elif end == "sweep_idle":
        assert store.sweep_idle(1) == 1
    else:
        getattr(store, end)(record.handle)
    assert client.keys("*") == []


def test_a_record_that_never_ends_is_never_due(store, client, clock):
    record = new(store)
    assert client.keys("*:due") == []
    store.apply(record.handle, PROOF, Changes(own=clock.now() + 1000))
    assert due(store, client) == {record.handle: clock.now() + 1000}
    store.apply(record.handle, PROOF, Changes(own=FOREVER))
    clock.advance(7200)
    assert store.sweep() == 0
    assert store.load(record.handle) is not None


def test_what_the_server_removed_by_itself_is_forgotten_though_nobody_sweeps(store, client, clock):
    handles = [new(store, idle=clock.now() + 1000).handle for _ in range(100)]
    lasting = new(store, idle=clock.now() + 1000).handle
    store.apply(lasting, PROOF, Changes(idle=clock.now() + 10 * HOUR))
    client.delete(*map(store._key, handles))
    clock.advance(3600)
    later = {new(store, idle=clock.now() + HOUR).handle for _ in range(51)}
    assert set(due(store, client)) == {lasting, *later}


def test_the_index_itself_ends_a_day_after_what_it_names(store, client, clock):
    day = 86_400_000
    new(store, idle=clock.now() + HOUR)
    assert HOUR + day - 10_000 < client.pttl(store._due) <= HOUR + day
    new(store, idle=clock.now() + 9 * HOUR)
    new(store, idle=clock.now() + HOUR)
    assert 9 * HOUR + day - 10_000 < client.pttl(store._due) <= 9 * HOUR + day


@pytest.mark.parametrize("adds", [{}, {"huge": 1}], ids=["in the script", "in Python"])
def test_the_index_does_not_end_before_a_record_that_was_prolonged(store, client, clock, adds):
    day = 86_400_000
    record = new(store, idle=clock.now() + HOUR, fields=b'{"huge":9007199254740993}')
    store.apply(record.handle, PROOF, Changes(adds=adds, idle=clock.now() + 100 * HOUR))
    assert 100 * HOUR + day - 10_000 < client.pttl(store._due) <= 100 * HOUR + day
    store.apply(record.handle, PROOF, Changes(adds=adds, idle=FOREVER))
    assert client.pttl(store._due) != -1


@pytest.mark.parametrize("looks", ["sweep", "create"])
def test_who_enters_a_record_anew_prolongs_the_index_too(store, client, clock, looks):
    record = new(store, idle=clock.now() + HOUR)
    store.apply(record.handle, PROOF, Changes(idle=clock.now() + 100 * HOUR))
    client.pexpire(store._due, HOUR)
    clock.advance(3 * 3600)
    if looks == "sweep":
        assert store.sweep() == 0
    else:
        new(store)
    assert due(store, client) == {record.handle: clock.now() + 97 * HOUR}
    assert client.pttl(store._due) > 97 * HOUR + 86_400_000 - 10_000


def test_what_is_not_ours_and_what_a_newer_release_wrote_stays(store, client, clock):
    records = [new(store, idle=clock.now() + 1) for _ in range(3)]
    client.hset(store._key(records[0].handle), "h", b"\x02" + b"newer")
    client.delete(store._key(records[1].handle))
    client.set(store._key(records[1].handle), "another's")
    clock.advance(7200)
    assert store.sweep() == 1
    assert client.get(store._key(records[1].handle)) == b"another's"
    assert client.exists(store._key(records[0].handle))
    assert set(due(store, client)) == {records[0].handle}


def test_a_server_without_memory_is_swept(store, client, clock):
    lasting = new(store, idle=clock.now() + 1000)
    store.apply(lasting.handle, PROOF, Changes(idle=clock.now() + 10 * HOUR))
    for _ in range(5):
        new(store, idle=clock.now() + 1000)
    clock.advance(7200)
    client.config_set("maxmemory", 1000)
    assert (store.sweep(), store.sweep()) == (5, 0)
    client.config_set("maxmemory", 0)
    assert store.load(lasting.handle) is not None
