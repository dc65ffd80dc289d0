"""A RedisStore whose server's name leads to another server from one moment to the next, as behind a load balancer."""

from contextlib import closing, contextmanager

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import OutOfMemoryError, ResponseError
from servers import valkey
from servers.relay import Relay

from sessiontree import StoreUnavailable
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import OTHER_PROOF, PROOF, new
from sessiontree.stores.redis import RedisStore
from sessiontree.stores.redis.pool import ours


def replicated(client):
    """Return when the replica has all that was written."""
    client.set("the last", 1)
    while not client.execute_command("WAIT", 1, 100):
        pass


class Pair:
    """A primary and its replica, and the name that leads to the primary."""

    def __init__(self, primary, replica):
        self.primary, self.replica = primary, replica
        self.relay = Relay(("127.0.0.1", primary.port))
        self.url = f"redis://127.0.0.1:{self.relay.port}/0"

    def fail_over(self):
        """Have the replica be the primary and the other way round, as an operator would; no connection breaks."""
        with Redis(port=self.primary.port) as old, Redis(port=self.replica.port) as fresh:
            replicated(old)
            fresh.execute_command("REPLICAOF", "NO", "ONE")
            old.execute_command("REPLICAOF", "127.0.0.1", self.replica.port)
        self.relay.address = ("127.0.0.1", self.replica.port)


@contextmanager
def started(*options, kind="valkey"):
    server = valkey.Valkey(kind, *options)
    server.start()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(params=["valkey", "redis"])
def pair(request):
    with (
        started("--repl-diskless-sync-delay", "0", kind=request.param) as primary,
        started("--replicaof", f"127.0.0.1 {primary.port}", kind=request.param) as replica,
    ):
        made = Pair(primary, replica)
        try:
            yield made
        finally:
            made.relay.close()


WRITES = {
    "one": lambda store, record: store.apply(record.handle, PROOF, Changes(adds={"n": 1})),
    "of many": lambda store, record: store.apply(record.handle, PROOF, Changes(proof=OTHER_PROOF)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_after_a_failover_behind_one_name_the_next_write_finds_the_primary(pair, write):
    with closing(RedisStore.from_url(pair.url)) as store, closing(RedisStore.from_url(pair.url)) as other:
        record = new(store)
        used, idle = store._pool._take(), store._pool._take()
        for connection in (used, idle):
            connection.prepare(reads=True)
        store._pool._put(idle)
        pair.fail_over()
        with pytest.raises(StoreUnavailable, match="is a replica"):
            write(store, record)
        assert write(store, record) == 2
        store._pool._put(used)
        assert used.driver._sock is None, "What was in use is made anew too."
        later = new(other)
        assert all(store.load(later.handle) for _ in range(3))
        with Redis(port=pair.primary.port) as old:
            assert [each for each in old.client_list() if each["cmd"] == "hgetall"] == [], "Nobody reads there."


def test_a_name_that_leads_to_a_replica_for_good_stays_unavailable_and_readable(pair):
    with (
        closing(RedisStore.from_url(pair.primary.url)) as primary,
        closing(RedisStore.from_url(f"redis://127.0.0.1:{pair.replica.port}/0")) as store,
    ):
        record = new(primary)
        with Redis(port=pair.primary.port) as client:
            replicated(client)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="is a replica"):
                store.revoke(record.handle)
            assert store.load(record.handle) is not None


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ResponseError("unknown command 'HGETALL', with args beginning with: 'a' "), "lacks a command"),
        (ResponseError("Unknown Redis command called from script script: a, on @user_script:1."), "lacks a command"),
        (Disconnected("Error -2 connecting to redis-unknown:6379. Name or service not known."), "did not answer"),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "give it more ("),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_advice_is_about_what_failed(error, advice):
    text = str(ours(error, "a server"))
    assert advice in text
    assert "evict" not in text
