"""Caches that fail at dropping what they were told to drop: nobody believes what they may still hold."""

import gc

import pytest
from support import SECRET, Site

from sessiontree import (
    Handler,
    SessionGone,
    StoreUnavailable,
    with_cache,
    with_clock,
    with_events,
    with_outage,
    with_store,
)
from sessiontree.caches.local import LocalCache
from sessiontree.stores import follow
from sessiontree.stores.following import DOUBTS, MOST_DOUBTS, doubt, why_doubted
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore


class Stubborn(LocalCache):
    """A third party's cache, which does not hear when it is down."""

    is_down = False

    def drop(self, handle):
        if self.is_down:
            raise ConnectionError("The cache is down.")
        super().drop(handle)

    def clear(self):
        if self.is_down:
            raise ConnectionError("The cache is down.")
        super().clear()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(clock):
    return FaultyStore(MemoryStore(clock=clock))


def logged_in(store, *options, **of_the_cache):
    """Return a site where Ann is logged in and her session is cached, its cache, and her cookies."""
    cache = Stubborn(clock=store.clock, **of_the_cache)
    s = Site(Handler("visitor", SECRET, with_clock(store.clock), with_store(store), with_cache(cache), *options))
    s.visit(lambda session: (session.bind("ann"), session.update(n=1)))
    s.visit(dict)
    return s, cache, s.browser.jar.header()


def is_live(s, cookies):
    return s.visit(lambda session: session.is_live(), s.another_browser(), HTTP_COOKIE=cookies)


ENDS = {
    "revoke": lambda s: s.visit(lambda session: session.revoke()),
    "renew": lambda s: s.visit(lambda session: session.renew()),
    "generate": lambda s: s.visit(lambda session: session.regenerate()),
    "handler.revoke": lambda s: s.handler.revoke(s.handler.sessions("ann")[0].handle),
    "revoke_all": lambda s: s.handler.revoke_all("ann"),
    "revoke_where": lambda s: s.handler.store.revoke_where("subject", "ann"),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_a_cache_could_not_drop_it_does_not_keep_alive(store, clock, end):
    told = []
    s, cache, cookies = logged_in(store, with_events(told.append), max_staleness=7)
    assert is_live(s, cookies)
    cache.is_down = True
    ENDS[end](s)
    cache.is_down = False
    told.clear()
    assert not is_live(s, cookies)
    assert ("cache", "ConnectionError") in [(event.kind, event.reason) for event in told]
    clock.advance(7)
    assert not is_live(s, cookies)


def test_a_cache_is_believed_again_once_what_it_held_is_too_old(store, clock):
    s, cache, _ = logged_in(store, max_staleness=7)
    cache.is_down = True
    s.visit(lambda session: session.update(n=2))
    cache.is_down = False

    def trips():
        store.calls.clear()
        assert s.visit(dict) == {"n": 2}
        return [verb for verb, _ in store.calls]

    assert (trips(), trips()) == (["load"], ["load"])
    clock.advance(6.999)
    assert trips() == ["load"]
    clock.advance(0.001)
    assert (trips(), trips()) == ([], [])  # it was filled meanwhile
    assert DOUBTS == {}  # so that a hit is again what it was


def test_other_sessions_are_served_meanwhile(store):
    s, cache, _ = logged_in(store)
    other = s.another_browser()
    s.visit(lambda session: session.update(n=3), other)
    s.visit(dict, other)
    cache.is_down = True
    s.visit(lambda session: session.revoke())
    store.calls.clear()
    assert s.visit(dict, other) == {"n": 3}
    assert store.calls == []


def test_a_cache_that_fails_to_clear_is_doubted_as_a_whole_and_no_other_is(store):
    s, cache, cookies = logged_in(store)
    cache.is_down = True
    store.inner.announce(None)
    store.calls.clear()
    assert is_live(s, cookies)
    assert store.calls
    assert why_doubted(cache, "any") == "ConnectionError"
    assert why_doubted(LocalCache(clock=store.clock), "any") is None


def test_a_store_that_is_down_lets_nobody_in_through_a_cache_that_did_not_drop(store, clock):
    s, cache, cookies = logged_in(store, with_outage("stale", stale_for=100))
    cache.is_down = True
    s.handler.revoke_all("ann")
    cache.is_down = False
    store.down()
    for passed in (0, 50, 54):  # max_staleness and stale_for are 105 seconds
        clock.advance(passed)
        assert s.visit(lambda session: _outcome(session), HTTP_COOKIE=cookies) == "StoreUnavailable"
    store.up()
    assert not is_live(s, cookies)


def _outcome(session):
    try:
        return session.is_live()
    except StoreUnavailable as error:
        return type(error).__name__


def test_a_record_that_a_refused_write_proved_old_is_doubted_too(store, clock):
    s, cache, cookies = logged_in(store)
    elsewhere = store.inner  # as another process: its changes are announced to nobody here
    handle = s.handler.sessions("ann")[0].handle
    cache.is_down = True
    elsewhere.revoke(handle)
    DOUBTS.clear()

    def refused(session):
        with pytest.raises(SessionGone):
            session.incr("n")

    s.visit(refused, HTTP_COOKIE=cookies)
    cache.is_down = False
    assert not is_live(s, cookies)


def test_of_several_caches_that_follow_all_hear_though_the_first_fails(store):
    first, second = Stubborn(clock=store.clock), LocalCache(clock=store.clock)
    s, _, _ = logged_in(store)
    record = store.inner.scan().records[0]
    lost = []
    stop = follow(store.inner, first, second, on_loss=lambda: lost.append(True))
    for cache in (first, second):
        cache.put(record.handle, record, cache.lease(record.handle))
    first.is_down = True
    s.visit(lambda session: session.update(n=2))
    assert second.get(record.handle) is None
    assert why_doubted(first, record.handle) == "ConnectionError"
    stop()


def test_a_cache_without_a_readable_staleness_is_doubted_for_the_default(clock):
    class Bare:
        clock = None

    cache = Bare()
    cache.clock = clock
    doubt(cache, "h", OSError())
    clock.advance(4.999)
    assert why_doubted(cache, "h") == "OSError"
    clock.advance(0.001)
    assert why_doubted(cache, "h") is None


def test_doubts_are_bounded_and_go_with_their_cache(clock):
    cache = LocalCache(clock=clock)
    for number in range(MOST_DOUBTS + 10):
        doubt(cache, f"{number}", OSError())
    assert len(DOUBTS) <= MOST_DOUBTS + 1
    assert why_doubted(cache, f"{MOST_DOUBTS + 5}") == "OSError"
    del cache
    gc.collect()
    other = LocalCache(clock=clock)
    for _ in range(MOST_DOUBTS + 1):
        assert why_doubted(other, "5") is None
    assert DOUBTS == {}


def test_a_doubt_that_is_renewed_is_there_all_the_time():
    seen = []

    class Looking(FakeClock):
        def now(self):
            if DOUBTS:
                seen.append((id(cache), "h") in DOUBTS)
            return super().now()

    cache = LocalCache(clock=Looking())
    for _ in range(3):
        doubt(cache, "h", OSError())
    assert seen
    assert all(seen)
    assert why_doubted(cache, "h") == "OSError"
    cache.clock.advance(3600)
    assert why_doubted(cache, "h") is None
    assert (id(cache), "h") not in DOUBTS
