"""A RedisStore through Sentinels finds the new primary after a failover, and there what replicas had confirmed."""

import time
from contextlib import closing

import pytest
from redis.sentinel import Sentinel
from servers import valkey
from servers.process import READY_SECONDS, free_port

from sessiontree import StoreUnavailable
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import OTHER_PROOF, PROOF, TurningClock, contents, js, loaded, new
from sessiontree.stores.redis import RedisStore


class Watchman(valkey.Valkey):
    """A Sentinel, which watches one primary and decides alone."""

    def __init__(self, watched: int) -> None:
        super().__init__()
        port, config = free_port(), self.folder / "sentinel.conf"
        config.write_text(
            f"bind 127.0.0.1\nport {port}\nunixsocket {self.path}\ndir {self.folder}\n"
            f"sentinel monitor shop 127.0.0.1 {watched} 1\nsentinel down-after-milliseconds shop 300\n"
            "sentinel failover-timeout shop 2000\n"
        )
        self.argv, self.port = [self.argv[0], str(config), "--sentinel"], port


@pytest.fixture
def servers():
    primary = valkey.Valkey("valkey", "--repl-diskless-sync-delay", "0")
    replica = valkey.Valkey("valkey", "--replicaof", f"127.0.0.1 {primary.port}")
    started = []
    try:
        for server in (primary, replica, watchman := Watchman(primary.port)):
            started.append(server)
            server.start()
        until(lambda: replicas_of(watchman))
        until(lambda: "master_link_status:up" in valkey.asked(replica.port, "INFO replication"))
        yield primary, replica, watchman
    finally:
        for server in started:
            server.remove()


def replicas_of(watchman):
    return valkey.asked(watchman.port, "SENTINEL REPLICAS shop").startswith("*1")


def until(happened):
    deadline = time.monotonic() + READY_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def answers(store):
    try:
        new(store)
    except StoreUnavailable:
        return False
    return True


def test_after_a_failover_the_store_goes_on_and_what_replicas_confirmed_is_there(servers):
    primary, replica, watchman = servers
    sentinel = Sentinel([("127.0.0.1", watchman.port)], socket_timeout=1)
    client = sentinel.master_for("shop", socket_timeout=1)
    with closing(RedisStore(client, clock=TurningClock(), wait_replicas=1)) as store:
        records = [new(store, labels={"subject": "bob"}) for _ in range(3)]
        assert store.revoke(records[0].handle) is True
        store.apply(records[1].handle, PROOF, Changes(proof=OTHER_PROOF))
        primary.kill()
        with pytest.raises(StoreUnavailable, match="shop"):
            store.load(records[1].handle)
        address = "SENTINEL GET-MASTER-ADDR-BY-NAME shop"
        until(lambda: valkey.asked(watchman.port, address).endswith(f"\n{replica.port}"))
        until(lambda: answers(store))
        assert store.load(records[0].handle) is None
        assert loaded(store, records[1].handle).proof == OTHER_PROOF
        store.apply(records[2].handle, PROOF, Changes(adds={"n": 1}))  # which waits for no replica: there is none left
        assert contents(store, records[2].handle) == {"n": js(1)}
        assert store.count("subject", "bob") == 2
    client.close()
    for each in sentinel.sentinels:
        each.close()
