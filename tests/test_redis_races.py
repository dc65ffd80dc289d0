"""Every interleaving of verbs on a server, stopped before each command; the tree over it; and its lookups by label.

The server makes one command or one script at a time, so to stop before each is to try all that can happen. The
scenarios and what must hold are those of ``test_interleavings`` and ``test_tree_races``.
"""

import itertools
from contextlib import contextmanager
from functools import partial
from itertools import combinations, combinations_with_replacement

import pytest
import test_tree_races
from hypothesis import HealthCheck, Phase, settings
from redis import Redis
from scheduler import Scenario, Scheduler
from servers import valkey
from support import SOAK
from test_interleavings import (
    ACTIONS,
    ASKED,
    DANGEROUS,
    GONE,
    HANDLE,
    MOST_PREEMPTIONS,
    PAIRS,
    PROOF,
    OperationClock,
    Server,
    fresh,
    requests_at_once,
    told,
    verbs_at_once,
)
from test_tree_model import Walk
from test_tree_races import OPERATIONS, SteppingStore, Stores, World

from sessiontree import SessionGone
from sessiontree.records import Changes
from sessiontree.stores.redis import RedisStore
from sessiontree.stores.redis.pool import Pool
from sessiontree.stores.redis.scripts import APPLY, CREATE, FORGET, NUMBER, PEND, REAP, REMOVE, REVOKE, SWAP, SWEEP

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def server():
    return valkey.started("valkey")


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler() as made:
        yield made


@pytest.fixture
def clock(scheduler):
    return OperationClock(scheduler)


class SteppingPool(Pool):
    """A pool that may be stopped before each command, also of many that are sent at once."""

    def __init__(self, pool, scheduler):
        super().__init__(pool, 60)
        self._scheduler = scheduler

    def ask(self, command, *, reads):
        self._scheduler.point(str(command[0]))
        return super().ask(command, reads=reads)

    def ask_many(self, commands, *, reads, replicas=0):
        answers = []
        for command in commands:
            self._scheduler.point(str(command[0]))
            answers += super().ask_many([command], reads=reads)
        return answers


@contextmanager
def emptied(server, clock, scheduler=None, *, is_apart=False):
    """Give what empties the one store; it has a database of the server for itself."""
    client = Redis(unix_socket_path=str(server.path), db=1)
    store = RedisStore(client, clock=clock)
    if scheduler is not None:
        store._pool = SteppingPool(client.connection_pool, scheduler)
    if is_apart:
        store._pool.is_apart, store._inline = True, b""

    def made():
        client.flushdb()
        store._swept_to, store._entered = "", 0
        return store

    for script in (APPLY, CREATE, FORGET, NUMBER, PEND, REAP, REMOVE, REVOKE, SWAP, SWEEP):
        client.script_load(script.text)
    made()
    yield made
    store.close()
    client.close()


@pytest.fixture
def make_store(server, scheduler, clock):
    with emptied(server, clock, scheduler) as made:
        yield made


# -- verbs, and whole requests --------------------------------------------------------------------

TRIPLES = list(combinations_with_replacement(ASKED if SOAK > 1 else ("revoke", "apply", "renew", "load"), 3))


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_every_interleaving_of_two_verbs_keeps_the_promises(make_store, scheduler, clock, names):
    count = told("redis", names, scheduler.explore(verbs_at_once(make_store, clock, names)))
    if set(names) <= {"revoke", "apply", "renew", "touch"}:
        assert count == 2, "Each of these is one command."


@pytest.mark.parametrize("names", TRIPLES, ids="-".join)
def test_three_verbs_keep_the_promises_with_few_preemptions(make_store, scheduler, clock, names):
    told("redis", names, scheduler.explore(verbs_at_once(make_store, clock, names), MOST_PREEMPTIONS))


@pytest.fixture
def stopping_server(server, scheduler, clock):
    """An application whose store is stopped around its verbs, never in them."""
    with emptied(server, clock) as made:
        yield Server(made, scheduler, clock)


REQUESTS = list(combinations_with_replacement(ACTIONS, 2)) if SOAK > 1 else list(combinations(DANGEROUS, 2))


@pytest.mark.parametrize("names", REQUESTS, ids="-".join)
def test_every_interleaving_of_two_requests_keeps_the_promises(stopping_server, scheduler, clock, names):
    told("redis", names, scheduler.explore(requests_at_once(stopping_server, clock, names)))


# -- lookups by label -----------------------------------------------------------------------------


def labelling(value):
    def label(store, number):
        try:
            return store.apply(HANDLE, PROOF, Changes(labels={"subject": value}))
        except SessionGone:
            return GONE

    return label


LABELLING = {
    "bind": labelling("bob"),
    "unbind": labelling(None),
    "find": lambda store, number: [record.handle for record in store.find("subject", "ann").records],
    "count": lambda store, number: store.count("subject", "ann"),
    "relabel": lambda store, number: store.relabel("subject", "ann", "bob"),
    "relabel back": lambda store, number: store.relabel("subject", "bob", "ann"),
    "revoke where": lambda store, number: store.revoke_where("subject", "ann"),
    "revoke": lambda store, number: store.revoke(HANDLE),
    "begin anew": lambda store, number: (store.revoke(HANDLE), store.create(fresh())),
}


def labelled_at_once(make_store, clock, names, *, is_lost=False):
    """``is_lost``: the server took the record away by itself, and its entry is left."""

    def scenario():
        store = make_store()
        store.create(fresh())
        clock.times = {}
        if is_lost:
            Redis(unix_socket_path=store._pool.name, db=1).delete(store._key(HANDLE))

        def check(run):
            record = store.load(HANDLE)
            label = None if record is None else record.label.get("subject")
            for value in ("ann", "bob"):
                found = [each.handle for each in store.find("subject", value).records]
                assert found == ([HANDLE] if label == value else []), (label, value)
                assert store.count("subject", value) == len(found)

        return Scenario([partial(LABELLING[name], store, number) for number, name in enumerate(names)], check)

    return scenario


@pytest.mark.parametrize("names", list(combinations_with_replacement(LABELLING, 2)), ids="-".join)
@pytest.mark.parametrize("is_lost", [False, True])
def test_whatever_happens_at_once_a_live_record_is_found_by_its_label(make_store, scheduler, clock, names, is_lost):
    if names.count("begin anew") == 2:
        pytest.skip("The second of them finds the handle taken, as it should.")
    told("redis", names, scheduler.explore(labelled_at_once(make_store, clock, names, is_lost=is_lost)))


AMONG = ("bind", "find", "begin anew", "revoke")


@pytest.mark.parametrize("names", list(combinations(LABELLING if SOAK > 1 else AMONG, 3)), ids="-".join)
def test_of_three_at_once_a_live_record_is_found_by_its_label(make_store, scheduler, clock, names):
    told("redis", names, scheduler.explore(labelled_at_once(make_store, clock, names, is_lost=True), MOST_PREEMPTIONS))


@pytest.fixture
def make_apart(server, scheduler, clock, monkeypatch):
    """A store that believes the indexes to lie elsewhere, as on a cluster; each writer looks for what is lost."""
    monkeypatch.setattr("sessiontree.stores.redis.apart.SELDOM", 1)
    with emptied(server, clock, scheduler, is_apart=True) as made:
        yield made


PAIRED = [
    *combinations_with_replacement(LABELLING, 2),
    *(("bind", "relabel back", third) for third in ("find", "unbind", "revoke where")),
]


@pytest.mark.parametrize("names", PAIRED if SOAK > 1 else PAIRED[::4], ids="-".join)
def test_on_a_cluster_too_a_live_record_is_found_by_its_label(make_apart, scheduler, clock, names):
    if names.count("begin anew") == 2:
        pytest.skip("The second of them finds the handle taken, as it should.")
    told("cluster", names, scheduler.explore(labelled_at_once(make_apart, clock, names), MOST_PREEMPTIONS))


LOSING = list(
    combinations(LABELLING, 2) if SOAK > 1 else combinations(("begin anew", "bind", "find", "relabel back"), 2)
)


@pytest.mark.parametrize("names", LOSING, ids="-".join)
def test_on_a_cluster_who_looks_for_what_is_lost_forgets_nothing_that_lives(make_apart, scheduler, clock, names):
    scenarios = labelled_at_once(make_apart, clock, names, is_lost=True)
    told("cluster", names, scheduler.explore(scenarios, MOST_PREEMPTIONS))


# -- the tree -------------------------------------------------------------------------------------


class RedisStores(Stores):
    """The stores of a world whose scenarios know two kinds; here the second is on a server."""

    def __init__(self, scheduler, clock, made):
        super().__init__(scheduler, clock, None)
        self._empty = made

    def __getitem__(self, kind):
        if kind == "sqlite" and kind not in self.made:
            self.made[kind] = SteppingStore(self._empty, self._scheduler)
        return super().__getitem__(kind)


@pytest.fixture(scope="module", params=["sqlite", "memory, sqlite"], ids=["redis", "memory, redis"])
def world(request, server, scheduler):
    clock = OperationClock(scheduler)
    with emptied(server, clock) as made:
        yield World(RedisStores(scheduler, clock, made), clock, request.param)


TREE = combinations_with_replacement(OPERATIONS, 2) if SOAK > 1 else (
    ("create-child", name) for name in OPERATIONS
)  # fmt: skip


@pytest.mark.parametrize("names", list(TREE), ids="-".join)
def test_lc_16_in_every_interleaving_of_two_operations_no_child_outlives_its_parent(scheduler, world, names):
    told("redis", names, scheduler.explore(test_tree_races.at_once(world, names)))


class WalkOverRedis(Walk):
    """The same walk as over memory, over a server that other processes use."""

    def opened(self):
        if self.store:
            self.store.close()
        else:
            self.prefix = f"walk-{next(NUMBERS)}"
        return RedisStore.from_url(valkey.started("valkey").url, prefix=self.prefix, clock=self.clock)


TestLc16TheTreeHoldsInRedis = WalkOverRedis.TestCase
TestLc16TheTreeHoldsInRedis.settings = settings(
    max_examples=4 * SOAK,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[each for each in Phase if each is not Phase.shrink],
)
