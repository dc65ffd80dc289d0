"""The label indexes of a RedisStore: they forget what ended though nobody asks, and live as long as what they name."""

import itertools
import os
from contextlib import closing

import pytest
from redis import Redis
from servers import valkey

from sessiontree import Handler, with_absolute_timeout, with_clock, with_idle_timeout, with_store
from sessiontree.clock import FOREVER
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import PROOF, handles_of, new
from sessiontree.stores.redis import RedisStore
from sessiontree.testing import FakeClock

NUMBERS = itertools.count(1)
HOUR = 3_600_000
KEY = b"q8ZrT5vXw2LmN9cB4hJkD7sGfP3yE6uA"


@pytest.fixture(params=["valkey", "redis"])
def server(request):
    return valkey.started(request.param)


@pytest.fixture
def client(server):
    with Redis.from_url(server.url) as made:
        yield made


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(server, clock):
    with closing(RedisStore.from_url(server.url, prefix=f"index-{os.getpid()}-{next(NUMBERS)}", clock=clock)) as made:
        yield made


def index_of(store, client):
    """Return the name of the one index of a label."""
    [index] = set(client.keys(store._index + b"*")) - {store._due}
    return index


def left(client, key):
    return client.pttl(key) / 1000


@pytest.mark.parametrize("how", ["create", "apply", "relabel", "in Python"])
def test_an_index_forgets_what_the_server_took_away_though_nobody_asks(store, client, how):
    """Old sessions that live on stand before all others, and hide nothing."""
    lasting = [new(store, labels={"subject": "bob"}).handle for _ in range(5)]
    sizes = []
    for number in range(300):
        if how == "create":
            record = new(store, labels={"subject": "bob"})
        elif how == "relabel":
            record = new(store, labels={"subject": f"guest {number}"})
            assert store.relabel("subject", f"guest {number}", "bob") == 1
        else:
            record = new(store, fields=b'{"n":9007199254740993}')
            adds = {"n": 1} if how == "in Python" else {}
            store.apply(record.handle, PROOF, Changes(labels={"subject": "bob"}, adds=adds))
        client.delete(store._key(record.handle))
        sizes.append(client.zcard(index_of(store, client)))
    assert max(sizes) < 60
    assert handles_of(store.find("subject", "bob")) == lasting


def test_what_a_page_begins_behind_may_be_forgotten(store, client):
    handles = [new(store, labels={"subject": "bob"}).handle for _ in range(6)]
    page = store.find("subject", "bob", None, 3)
    client.delete(*map(store._key, handles[:3]))
    for _ in range(50):
        client.delete(store._key(new(store, labels={"subject": "bob"}).handle))
    assert handles_of(store.find("subject", "bob", page.after)) == handles[3:]


@pytest.mark.parametrize("moved", ["own", "idle"])
@pytest.mark.parametrize("adds", [{}, {"huge": 1}], ids=["in the script", "in Python"])
def test_an_index_ends_with_its_session_whose_absolute_deadline_never_comes(store, client, clock, moved, adds):
    ends = {moved: clock.now() + 100_000}
    record = new(store, labels={"subject": "bob", "worker": "1"}, fields=b'{"huge":9007199254740993}', **ends)
    indexes = set(client.keys(store._index + b"*")) - {store._due}
    assert len(indexes) == 2
    for after in (1000, 50, 5000):
        store.apply(record.handle, PROOF, Changes(adds=adds, **{moved: clock.now() + after * 1000}))
        longest = max(after, 1000)
        for index in indexes:
            assert longest + 50 < left(client, index) <= longest + 60
    store.apply(record.handle, PROOF, Changes(**{moved: FOREVER}))
    assert {client.pttl(index) for index in indexes} == {-1}


def test_a_label_that_is_given_later_is_kept_as_long_as_its_session_may_live_then(store, client, clock):
    record = new(store, idle=clock.now() + 100_000)
    store.apply(record.handle, PROOF, Changes(labels={"subject": "bob"}, idle=clock.now() + 500_000))
    assert 550 < left(client, index_of(store, client)) <= 560
    store.apply(record.handle, PROOF, Changes(labels={"worker": "1"}))
    assert {round(left(client, key), -1) for key in client.keys(store._index + b"*") if key != store._due} == {560}


def test_lookups_by_label_end_with_the_sessions_of_a_handler_without_an_absolute_timeout(store, client, clock):
    visitor = Handler(
        "visitor", KEY, with_store(store), with_absolute_timeout(None), with_idle_timeout(600), with_clock(clock)
    )
    session = visitor.session({"REQUEST_METHOD": "GET"})
    session["a"] = 1
    session.bind("bob")
    session.commit()
    assert 600 < left(client, index_of(store, client)) <= 660
