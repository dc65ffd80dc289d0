"""Stores that four processes use while their servers are killed, paused and cut off lose nothing and revive nobody.

Run with ``-s`` to see how much was done, and how long the slowest verb took to fail.
"""

import signal
import time
from contextlib import closing
from functools import partial

import pytest
from chaos.history import FAILED, GONE, OK, Step, broken_promises
from chaos.troubles import run
from servers import postgres, valkey
from servers.relay import Relay
from support import SOAK

from sessiontree.stores import open_store

SECONDS = 20.0 if SOAK == 1 else 600.0
TIMEOUT = 0.5
SLOWEST = 4 * TIMEOUT + 1.0
"""How many seconds a verb may take to fail: to connect and to wait, twice, on a busy machine."""

STALENESS = 2.0
"""For how many seconds a front may serve a copy."""

# -- the checker -------------------------------------------------------------------------------


def steps(*given):
    """Return steps of process 0 one after the other, each (verb, value, outcome) or (verb, value, outcome, by)."""
    return [
        Step((*each, 0)[3], each[0], "h", each[1], number, number + 0.5, each[2]) for number, each in enumerate(given)
    ]


HONEST = {
    "a write is read": [("write", ["w0", 1], OK), ("read", {"w0": 1}, OK)],
    "a failed write may be there": [("write", ["w0", 1], FAILED), ("read", {"w0": 1}, OK)],
    "or not": [("write", ["w0", 1], FAILED), ("read", {}, OK)],
    "a sum": [("add", None, OK), ("add", None, FAILED), ("read", {"sum": 2}, OK)],
    "the dead are dead": [("revoke", None, OK), ("read", None, GONE), ("write", ["w0", 1], GONE)],
    "a failed revocation": [("revoke", None, FAILED), ("read", {}, OK), ("read", None, GONE)],
    "a list": [("create", None, OK), ("list", ["h"], OK), ("revoke", None, OK), ("list", [], OK)],
}
LIES = {
    "a write is lost": [("write", ["w0", 1], OK), ("read", {}, OK)],
    "an older write": [("write", ["w0", 1], OK), ("write", ["w0", 2], OK), ("read", {"w0": 1}, OK)],
    "a write of nobody": [("read", {"w0": 7}, OK)],
    "a write too early": [("read", {"w0": 1}, OK), ("write", ["w0", 1], OK)],
    "an increment is lost": [("add", None, OK), ("read", {"sum": 0}, OK)],
    "an increment twice": [("add", None, OK), ("read", {"sum": 2}, OK)],
    "the dead are read": [("revoke", None, OK), ("read", {}, OK)],
    "the dead are written": [("revoke", None, OK), ("write", ["w0", 1], OK)],
    "the dead come back": [("revoke", None, FAILED), ("read", None, GONE), ("read", {}, OK)],
    "a session is lost": [("create", None, OK), ("read", None, GONE)],
    "the dead are listed": [("create", None, OK), ("revoke", None, OK), ("list", ["h"], OK)],
    "the living are not listed": [("create", None, OK), ("list", [], OK)],
    "a session is listed twice": [("create", None, OK), ("list", ["h", "h"], OK)],
}


@pytest.mark.parametrize("told", HONEST.values(), ids=HONEST)
def test_an_honest_history_breaks_no_promise(told):
    assert broken_promises(steps(*told)) == []


@pytest.mark.parametrize("told", LIES.values(), ids=LIES)
def test_a_lie_is_found(told):
    assert broken_promises(steps(*told)) != []


def test_a_copy_may_be_as_old_as_it_says_and_never_past_its_own_revocation():
    told = steps(("revoke", None, OK, 1), ("read", {}, OK, 0))
    assert broken_promises(told, staleness=2) == []
    assert broken_promises(told, staleness=0.2) != []
    own = steps(("revoke", None, OK, 0), ("read", {}, OK, 0))
    assert broken_promises(own, staleness=2) != []


def test_steps_that_overlap_may_have_happened_in_any_order():
    write, read = Step(0, "write", "h", ["w0", 1], 0, 2, OK), Step(1, "read", "h", {}, 1, 3, OK)
    assert broken_promises([write, read]) == broken_promises([write, read._replace(value={"w0": 1})]) == []


# -- servers -----------------------------------------------------------------------------------


def restarted(server, away=0.3):
    """Kill a server as a power cut does, and start it again a moment later."""
    server.kill()
    time.sleep(away)
    server.start()


def paused(server, seconds):
    """Let a server answer nothing for so long, its connections open."""
    server.pause()
    time.sleep(seconds)
    server.go_on()


@pytest.fixture
def at_the_end():
    """Functions to call at the end, the last one first."""
    calls = []
    yield calls.append
    while calls:
        calls.pop()()


def settled(came):
    """Check what came of a run, and that it had enough of everything to mean anything."""
    print(came.told())  # noqa: T201 - for -s
    assert came.wrong == []
    assert came.slowest_failure < SLOWEST
    outcomes = [step.outcome for step in came.steps]
    assert outcomes.count(OK) > 1000
    assert outcomes.count(FAILED) > 0
    assert outcomes.count(GONE) > 0


@pytest.fixture
def redis(at_the_end):
    """A Valkey that writes every change to its disk before it answers, and a relay in front of it."""
    server = valkey.Valkey("valkey", "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    at_the_end(server.remove)
    relay = Relay(("127.0.0.1", server.port))
    at_the_end(relay.close)
    return server, relay, f"redis://127.0.0.1:{relay.port}/0"


@pytest.fixture
def pg(at_the_end):
    """A PostgreSQL that waits for its disk, and a relay in front of it."""
    server = postgres.started("wheel 16", fsync="on", synchronous_commit="on", full_page_writes="on")
    at_the_end(partial(server.process.remove, signal.SIGINT))
    port = int(server.tcp_url.rpartition(":")[2].partition("/")[0])
    relay = Relay(("127.0.0.1", port))
    at_the_end(relay.close)
    url = server.tcp_url.replace(f":{port}/", f":{relay.port}/")
    with closing(open_store(server.tcp_url)) as store:
        store.create_schema()
    return server.process, relay, url


def troubles_of(server, relay):
    return [partial(restarted, server), partial(paused, server, 5.0), partial(relay.cut, 20), partial(relay.cut, 3)]


def test_redis_loses_nothing_that_it_acknowledged(redis, tmp_path):
    server, relay, url = redis
    settled(run(tmp_path, {"url": url}, SECONDS, troubles_of(server, relay)))


def test_postgres_loses_nothing_that_it_acknowledged(pg, tmp_path):
    server, relay, url = pg
    settled(run(tmp_path, {"url": url}, SECONDS, troubles_of(server, relay)))


def test_postgres_behind_redis_loses_nothing_and_serves_nobody_for_longer_than_it_says(pg, tmp_path, at_the_end):
    server, relay, url = pg
    front = valkey.Valkey("valkey")
    front.start()
    at_the_end(front.remove)
    before_it = Relay(("127.0.0.1", front.port))
    at_the_end(before_it.close)
    flushing = pytest.importorskip("redis").Redis(unix_socket_path=str(front.path))
    at_the_end(flushing.close)
    troubles = [
        *troubles_of(server, relay),
        partial(restarted, front),  # which has forgotten all, as another one would that takes its place
        partial(paused, front, 1.5),
        flushing.flushall,
        partial(before_it.cut, 20),
    ]
    settings = {"url": url, "front": f"redis://127.0.0.1:{before_it.port}/0", "staleness": STALENESS}
    settled(run(tmp_path, settings, SECONDS * 1.5, troubles, pause=0.7))
