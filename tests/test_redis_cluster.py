"""A RedisStore keeps the whole contract on a cluster of three nodes, while slots move and when a node is away."""

import itertools
import os
import re
from contextlib import closing
from pathlib import Path
from threading import Event, Thread

import pytest
from redis import Redis
from redis.cluster import RedisCluster
from servers import valkey
from support import SOAK

from sessiontree import NotImplementedByStore, StoreUnavailable
from sessiontree.records import Changes
from sessiontree.stores.conformance import StoreConformance
from sessiontree.stores.conformance.tools import (
    PROOF,
    TurningClock,
    all_pages,
    contents,
    fields,
    handles_of,
    js,
    new,
)
from sessiontree.stores.redis import RedisStore
from sessiontree.stores.redis.link import Link

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module", params=["valkey", "redis"] if SOAK > 1 else ["valkey"])
def cluster(request):
    made = valkey.Cluster(request.param)
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def client(cluster):
    with RedisCluster(host="127.0.0.1", port=cluster.port, socket_timeout=5) as made:
        yield made


@pytest.fixture
def prefix():
    return f"cluster-{os.getpid()}-{next(NUMBERS)}"


@pytest.fixture
def clock():
    return TurningClock()


@pytest.fixture
def store(client, prefix, clock):
    with closing(RedisStore(client, prefix=prefix, clock=clock)) as made:
        yield made


class TestRedisClusterStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _cluster(self, client, prefix):
        self.client, self.prefix = client, prefix

    def make_store(self, clock):
        return RedisStore(self.client, prefix=self.prefix, clock=clock)

    def reopen(self, store):
        return self.make_store(store.clock)


def test_sessions_lie_on_every_node_and_one_look_at_many_asks_all_of_them(store, client):
    handles = [new(store, labels={"subject": "bob"}).handle for _ in range(60)]
    nodes = {client.nodes_manager.get_node_from_slot(client.keyslot(store._key(handle))).name for handle in handles}
    assert len(nodes) == 3
    assert store.load_many(handles).keys() == set(handles)
    assert handles_of(store.find("subject", "bob")) == handles
    assert sorted(all_pages(store.scan, 7)) == sorted(handles)
    assert store.relabel("subject", "bob", "eve") == store.count("subject", "eve") == 60
    assert store.revoke_where("subject", "eve") == 60
    assert store.scan().records == []


def test_a_cluster_has_no_feed(store):
    with pytest.raises(NotImplementedByStore):
        store.watch(print)
    told = []
    store.listen(told.append)
    handle = new(store).handle
    assert told == [handle]


@pytest.mark.parametrize("dies_at", ["the record", "the number"])
def test_who_dies_while_giving_a_label_leaves_a_record_that_is_found_or_no_entry(
    store, client, prefix, monkeypatch, dies_at
):
    run = Link.run

    def stopping(link, script, *arguments):
        text = script.text.decode("latin-1")
        if dies_at == "the number" and "until_" in text:
            raise KeyboardInterrupt
        if dies_at == "the record" and "'HSET', KEYS[1], 'h', head" in text:
            raise KeyboardInterrupt
        return run(link, script, *arguments)

    monkeypatch.setattr(Link, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        new(store, labels={"subject": "bob"})
    monkeypatch.undo()
    [index] = client.keys(f"{prefix}:i:*", target_nodes=RedisCluster.PRIMARIES)
    found = handles_of(store.find("subject", "bob"))
    assert len(found) == store.count("subject", "bob") == (dies_at == "the number")
    monkeypatch.setattr("sessiontree.stores.redis.apart.AGE", 0)
    assert handles_of(store.find("subject", "bob")) == found
    assert client.zcard(index) == 2 * len(found), "What was under way is gone, and what is numbered stays."


def moving(cluster, slot, source, target):
    """Move a slot with all that is in it, one key at a time."""
    ids = [valkey.asked(node.port, "CLUSTER MYID").split()[-1] for node in (source, target)]
    valkey.asked(target.port, f"CLUSTER SETSLOT {slot} IMPORTING {ids[0]}")
    valkey.asked(source.port, f"CLUSTER SETSLOT {slot} MIGRATING {ids[1]}")
    with Redis(port=source.port) as plain:
        while keys := plain.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
            plain.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            yield
    for node in (target, source, *cluster.nodes):
        valkey.asked(node.port, f"CLUSTER SETSLOT {slot} NODE {ids[1]}")
    yield


def test_while_slots_move_nothing_is_lost_and_nothing_done_twice(cluster, store, client):
    records = [new(store, labels={"subject": "bob"}, fields=fields(n=js(0))) for _ in range(30)]
    done, counted, failures = Event(), dict.fromkeys((each.handle for each in records), 0), []

    def count():
        while not done.is_set():
            for record in records:
                try:
                    sums = store.apply(record.handle, PROOF, Changes(adds={"n": 1})).sums
                    counted[record.handle] += 1
                    assert sums["n"] == counted[record.handle]
                except Exception as error:  # noqa: BLE001 - the test judges it
                    failures.append(error)

    thread = Thread(target=count)
    thread.start()
    try:
        for _ in range(SOAK):
            for record in records[:6]:
                key = store._key(record.handle)
                owner = client.nodes_manager.get_node_from_slot(client.keyslot(key)).port
                source = next(node for node in cluster.nodes if node.port == owner)
                target = next(node for node in cluster.nodes if node.port != owner)
                for _ in moving(cluster, client.keyslot(key), source, target):
                    assert store.load_many([each.handle for each in records]).keys() == counted.keys()
                    assert store.count("subject", "bob") == 30
    finally:
        done.set()
        thread.join()
    assert failures == []
    assert min(counted.values()) > 0
    for record in records:
        assert contents(store, record.handle) == {"n": js(counted[record.handle])}


def test_a_node_that_is_away_is_unavailable_and_the_others_go_on(cluster, prefix, clock):
    with RedisCluster(host="127.0.0.1", port=cluster.port, socket_timeout=0.3, require_full_coverage=False) as client:
        store = RedisStore(client, prefix=prefix, clock=clock)
        records = [new(store) for _ in range(30)]
        node = cluster.nodes[2]
        node.pause()
        unavailable = 0
        try:
            away = [each for each in records if client.nodes_manager.get_node_from_slot(
                client.keyslot(store._key(each.handle))).port == node.port]  # fmt: skip
            assert away
            for verb in (store.load, store.revoke, lambda handle: store.load_many([handle, records[0].handle])):
                with pytest.raises(StoreUnavailable):
                    verb(away[0].handle)
                unavailable += 1
        finally:
            node.go_on()
            cluster.settle()
        assert unavailable == 3
        store.close()


def test_the_pages_example_of_a_cluster_runs(cluster, monkeypatch):
    page = Path(__file__).resolve().parents[1] / "docs/redis.md"
    monkeypatch.setenv("REDIS_CLUSTER_URL", f"redis://127.0.0.1:{cluster.port}")
    [block] = [
        each for each in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) if "RedisCluster" in each
    ]
    scope = {"os": os, "RedisStore": RedisStore}
    exec(compile(block, str(page), "exec"), scope)  # noqa: S102 - it is our own
    assert scope["store"].revoke(new(scope["store"]).handle) is True
    scope["store"].close()
    scope["cluster"].close()


def test_a_sweep_goes_on_where_the_last_one_ended(store, clock, monkeypatch):
    for _ in range(300):
        new(store, idle=clock.now() + 1)
    live = [new(store).handle for _ in range(50)]
    clock.advance(7200)
    monkeypatch.setattr("sessiontree.stores.redis.scan.BATCH", 20)
    monkeypatch.setattr("sessiontree.stores.redis.scan.MOST", 3)
    removed = [store.sweep() for _ in range(2000)]
    assert sum(removed) == 300
    assert max(removed) <= 300
    assert len(store.load_many(live)) == 50
