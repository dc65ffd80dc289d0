"""A RedisStore keeps the whole contract on a cluster of three nodes, while slots move and when a node is away."""

import itertools
import os
import re
from contextlib import closing, contextmanager, nullcontext
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
    OTHER_PROOF,
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
from sessiontree.stores.redis.pool import Pool
from sessiontree.stores.redis.record import digest_of, pair_of

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
    run = Pool.run

    def stopping(pool, script, *arguments):
        text = script.text.decode("latin-1")
        if dies_at == "the number" and "until_" in text:
            raise KeyboardInterrupt
        if dies_at == "the record" and "'HSET', KEYS[1], 'h', head" in text:
            raise KeyboardInterrupt
        return run(pool, script, *arguments)

    monkeypatch.setattr(Pool, "run", stopping)
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


# -- indexes, which lie elsewhere -----------------------------------------------------------------


@contextmanager
def without_numbers():
    """Have the index's node be away between two of the trips: entries stay under way."""
    run = Pool.run

    def failing(pool, script, *arguments):
        if b"until_" in script.text:
            raise StoreUnavailable("The node is away.")
        return run(pool, script, *arguments)

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(Pool, "run", failing)
        yield


def index_of(store, label, value):
    return store._index + digest_of(pair_of(label, value))


@pytest.mark.parametrize("given", ["create", "apply", "in Python", "relabel"])
def test_an_index_lives_as_long_as_its_session_though_the_number_was_never_written(store, client, given):
    days = 30 * 86_400_000
    before = {"create": {"subject": "bob"}, "relabel": {"subject": "guest"}}.get(given, {})
    with without_numbers() if given == "create" else nullcontext():
        absolute = store.clock.now() + days
        record = new(store, absolute=absolute, labels=before, fields=b'{"huge":9007199254740993}')
    if given != "create":
        assert handles_of(store.find("subject", "guest")) == ([record.handle] if given == "relabel" else [])
        with pytest.MonkeyPatch.context() as patching, without_numbers():
            patching.setattr(RedisStore, "_settle", lambda *_: None)
            if given == "relabel":
                assert store.relabel("subject", "guest", "bob") == 1
            else:
                adds = {"huge": 1} if given == "in Python" else {}
                store.apply(record.handle, PROOF, Changes(labels={"subject": "bob"}, adds=adds))
    assert days - 60_000 < client.pttl(index_of(store, "subject", "bob")) <= days + 60_000
    assert store.revoke_where("subject", "bob") == 1
    assert store.load(record.handle) is None


def test_whatever_is_under_way_is_found_counted_and_revoked(store, monkeypatch):
    monkeypatch.setattr("sessiontree.stores.redis.apart.BATCH", 20)
    with without_numbers():
        handles = [new(store, labels={"worker": "w"}).handle for _ in range(70)]
    assert store.count("worker", "w") == 70
    with without_numbers():
        handles += [new(store, labels={"worker": "w"}).handle for _ in range(45)]
    found = all_pages(lambda after, limit: store.find("worker", "w", after, limit), 30)
    assert sorted(found) == sorted(handles)
    assert set(found[:70]) == set(handles[:70]), "What was given its number first comes first."
    with without_numbers():
        handles += [new(store, labels={"worker": "w"}).handle for _ in range(45)]
    assert store.revoke_where("worker", "w") == 160
    assert store.scan().records == []


def test_entries_under_way_of_one_moment_are_all_settled(store, client, monkeypatch):
    """As many as one relabelling writes have one and the same number."""
    handles = [new(store, labels={"worker": "1"}).handle for _ in range(90)]
    assert store.count("worker", "1") == 90
    with without_numbers(), pytest.MonkeyPatch.context() as patching:
        patching.setattr(RedisStore, "_settle", lambda *_: None)
        assert store.relabel("worker", "1", "2") == 90
    assert len({score for _, score in client.zrange(index_of(store, "worker", "2"), 0, -1, withscores=True)}) == 1
    monkeypatch.setattr("sessiontree.stores.redis.apart.BATCH", 20)
    assert store.count("worker", "2") == 90
    assert sorted(handles_of(store.find("worker", "2"))) == sorted(handles)


def test_an_index_forgets_what_the_server_took_away_though_nobody_asks(store, client):
    lasting = [new(store, labels={"subject": "bob"}).handle for _ in range(5)]
    index = index_of(store, "subject", "bob")
    sizes = []
    for _ in range(400):
        client.delete(store._key(new(store, labels={"subject": "bob"}).handle))
        sizes.append(client.zcard(index))
    assert max(sizes) < 80
    assert handles_of(store.find("subject", "bob")) == lasting


# -- nodes, each for itself -----------------------------------------------------------------------


def port_of(client, key):
    return client.nodes_manager.get_node_from_slot(client.keyslot(key)).port


def test_a_node_that_forgot_the_scripts_needs_no_other_node(cluster, prefix, clock):
    with RedisCluster(host="127.0.0.1", port=cluster.port, socket_timeout=0.5, require_full_coverage=False) as client:
        store = RedisStore(client, prefix=prefix, clock=clock)
        node = cluster.nodes[1]
        records = [new(store) for _ in range(30)]
        record = next(each for each in records if port_of(client, store._key(each.handle)) == node.port)
        cluster.nodes[2].pause()
        try:
            valkey.asked(node.port, "SCRIPT FLUSH")
            assert store.apply(record.handle, PROOF, Changes(proof=OTHER_PROOF)) == 2
        finally:
            cluster.nodes[2].go_on()
            cluster.settle()
        store.close()


def calls_of(node, command):
    with Redis(port=node.port) as plain:
        return plain.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)


def test_revoking_by_label_asks_the_replicas_of_every_primary_though_nothing_is_found(cluster, prefix, clock):
    """The last time may have revoked what lies on any of them, and was not confirmed."""
    client = RedisCluster(host="127.0.0.1", port=cluster.port, socket_timeout=0.5)
    store = RedisStore(client, prefix=prefix, clock=clock, wait_replicas=1)
    before = [calls_of(node, "wait") for node in cluster.nodes]
    with pytest.raises(StoreUnavailable, match="of 1 replicas"):
        store.revoke_where("subject", "nobody")
    for node, count in zip(cluster.nodes, before, strict=True):  # the first that does not confirm is enough to raise
        assert any(calls_of(node, "wait") > count for _ in range(1000))
    store.close()
    client.close()


@pytest.mark.parametrize("odd", ["", "a{b}c", "{", "}", "{}"])
def test_each_primary_has_a_name_of_ours_for_itself_unless_all_that_is_ours_lies_on_one(store, client, prefix, odd):
    names = store._pool.spread(f"{prefix}{odd}:i:w".encode())
    ports = [port_of(client, name) for name in names]
    assert len(names) == len(set(ports)) == (1 if odd == "a{b}c" else 3)


# -- who may do what ------------------------------------------------------------------------------


@pytest.fixture
def rights(cluster):
    """A function that gives a user the rights of the page, less some, on every node."""
    page = (Path(__file__).resolve().parents[1] / "docs/redis.md").read_text()
    [block] = re.findall(r"\n    ACL SETUSER shop (.*?)\n\n", page, re.DOTALL)

    def give(*, without=()):
        for node in cluster.nodes:
            with Redis(port=node.port) as plain:
                is_old = plain.info()["redis_version"].startswith("7.0")
                left_out = [*without, "+client|setinfo"] if is_old else without
                words = [word for word in block.split() if word not in left_out]
                plain.execute_command("ACL", "SETUSER", "shop", "reset", *words)
        return RedisCluster(host="127.0.0.1", port=cluster.port, username="shop", password="password", socket_timeout=1)

    yield give
    for node in cluster.nodes:
        with Redis(port=node.port) as plain:
            plain.execute_command("ACL", "DELUSER", "shop")


def looked_at_on_the_move(cluster, store, client, record):
    """Return what a look at the record gives while its slot is between two nodes."""
    slot = client.keyslot(store._key(record.handle))
    owner = port_of(client, store._key(record.handle))
    source = next(node for node in cluster.nodes if node.port == owner)
    target = next(node for node in cluster.nodes if node.port != owner)
    steps = moving(cluster, slot, source, target)
    with Redis(port=source.port) as plain:
        for _ in range(plain.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot)):  # others may have left keys there
            next(steps)
    try:
        return store.load(record.handle)
    finally:
        for _ in steps:
            pass


def test_a_user_with_the_rights_of_the_page_can_do_all_on_a_cluster(cluster, rights, clock):
    client = rights()
    with closing(RedisStore(client, prefix="shop", clock=clock)) as store:
        records = [new(store, labels={"subject": "bob"}) for _ in range(20)]
        assert store.apply(records[0].handle, PROOF, Changes(labels={"worker": "1"}, adds={"n": 1})) == 2
        assert handles_of(store.find("subject", "bob")) == [each.handle for each in records]
        assert store.relabel("worker", "1", "2") == store.count("worker", "2") == 1
        assert len(store.scan().records) == 20
        assert store.sweep() == 0
        assert looked_at_on_the_move(cluster, store, client, records[0]) is not None
        assert store.revoke_where("subject", "bob") == 20
    client.close()


def test_a_user_who_may_not_ask_for_what_is_on_the_move_is_told_so(cluster, rights, clock):
    client = rights(without=["+asking"])
    with closing(RedisStore(client, prefix="shop", clock=clock)) as store:
        record = new(store)
        with pytest.raises(StoreUnavailable, match="'asking'"):
            looked_at_on_the_move(cluster, store, client, record)
        store.revoke(record.handle)
    client.close()


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
