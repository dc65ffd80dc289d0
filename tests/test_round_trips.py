"""How often a whole request asks a real server, counted by a relay in front of its socket."""

from contextlib import closing

import pytest
from servers import postgres, valkey
from servers.relay import Relay
from support import SECRET, Site

from sessiontree import Handler, with_store
from sessiontree.stores import open_store


class Redis:
    """A store on Valkey through a relay, and a look at the commands that the server was given."""

    def __init__(self):
        server = valkey.started("valkey")
        self.relay = Relay(("127.0.0.1", server.port))
        self.store = open_store(f"redis://127.0.0.1:{self.relay.port}/0")
        self._beside = pytest.importorskip("redis").Redis(unix_socket_path=str(server.path))

    def reset(self):
        self.relay.reset()
        self._beside.config_resetstat()

    def commands(self):
        """Return how often each command was called since ``reset``, our own looks left out."""
        stats = self._beside.info("commandstats")
        called = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
        return {name: calls for name, calls in called.items() if name not in {"info", "config|resetstat"}}

    def close(self):
        self.store.close()
        self._beside.close()
        self.relay.close()


class Postgres:
    """A store on PostgreSQL through a relay."""

    def __init__(self):
        server = postgres.server("wheel 16")
        host, port = server.tcp_url.rpartition("@")[2].partition("/")[0].split(":")
        self.relay = Relay((host, int(port)))
        self.store = open_store(server.tcp_url.replace(f":{port}/", f":{self.relay.port}/"), schema="trips")
        self.store.create_schema()

    def reset(self):
        self.relay.reset()

    def close(self):
        self.store.close()
        self.relay.close()


@pytest.fixture(params=[Redis, Postgres], ids=["redis", "postgres"])
def place(request):
    with closing(request.param()) as made:
        yield made


def untouched(*sessions):
    """Look at nothing."""


def read(visitor, user, job):
    return job["n"], user["n"], visitor["n"]


def read_and_write(visitor, user, job):
    job["n"] += 1
    return job["n"]


@pytest.fixture
def site(place):
    """Three handlers in a row, each with a live session in the site's browser."""
    visitor = Handler("visitor", SECRET, with_store(place.store))
    user = visitor.spawn("user")
    made = Site(visitor, user, user.spawn("job"))
    made.visit(lambda *sessions: [session.update(n=1, list=[]) for session in sessions])
    made.visit(read_and_write)  # so that the server knows the script, and every connection what it prepares
    place.reset()
    return made


def write_all(*sessions):
    for session in sessions:
        session["n"] += 1


ACTIONS = {"untouched": (untouched, 0), "read": (read, 1), "write": (read_and_write, 2), "write all": (write_all, 2)}


@pytest.mark.parametrize(("action", "trips"), ACTIONS.values(), ids=ACTIONS)
def test_a_chain_of_three_asks_as_rarely_as_can_be(site, place, action, trips):
    """A server may answer the first of several statements while the last is on its way, which is another turn at times.

    What has to wait for an answer is always one, so the fewest turns of several requests are the trips.
    """
    turns = []
    while len(turns) < 10 or (min(turns) > trips and len(turns) < 200):  # a busy machine needs more of them
        place.reset()
        site.visit(action)
        assert site.answer.code == 200
        turns.append(place.relay.counts.turns)
    assert min(turns) == trips


@pytest.mark.parametrize("place", [Redis], indirect=True)
def test_a_chain_of_three_is_read_with_four_commands_at_most_and_writes_nothing(site, place):
    place.reset()
    site.visit(read)
    commands = place.commands()
    assert sum(commands.values()) <= 4
    assert set(commands) <= {"hgetall", "hmget", "hget", "get", "mget"}


def test_a_revoked_cookie_costs_one_read(site, place):
    cookies = site.browser.jar.header()
    site.visit(lambda visitor, user, job: visitor.revoke())
    place.reset()
    assert site.visit(lambda visitor, user, job: dict(job), site.another_browser(), HTTP_COOKIE=cookies) == {}
    assert place.relay.counts.turns == 1


def test_what_goes_over_the_wire_is_what_changed(site, place):
    site.visit(lambda visitor, user, job: job.update(big="x" * 100_000))
    place.reset()
    site.visit(lambda visitor, user, job: job.put("n", 7))
    assert place.relay.counts.sent < 2000
