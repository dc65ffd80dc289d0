"""Sessions behind a cache: fewer trips to the store, and never a lie."""

from itertools import count

import pytest
from engines import ENGINES, opened
from support import SECRET, SOAK, Site, wait_until

from sessiontree import (
    ConfigError,
    Handler,
    KeyNotFound,
    NotImplementedByStore,
    StoreUnavailable,
    chain,
    server_only,
    with_cache,
    with_clock,
    with_events,
    with_idle_timeout,
    with_max_age,
    with_outage,
    with_store,
)
from sessiontree.breaker import SLOW
from sessiontree.caches.local import LocalCache
from sessiontree.handlers.breaker import MOST_FAILURES, breaker_of
from sessiontree.serializer import JsonSerializer
from sessiontree.stores import PerKey
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.testing import FakeClock, FaultyStore


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=ENGINES)
def store(request, clock, tmp_path):
    engine = opened(request.param, tmp_path, clock)
    yield FaultyStore(engine)
    engine.close()


def node_on(store, *options, name="visitor", **of_the_cache):
    """Return a handler with a cache of its own, as each process has."""
    cache = LocalCache(clock=store.clock, **of_the_cache)
    return Handler(name, SECRET, with_clock(store.clock), with_store(store), with_cache(cache), *options)


def begun(site):
    """Begin a session in the site's browser; return its cookies."""
    site.visit(lambda session, *more: [each.update(n=1) for each in (session, *more)])
    return site.browser.jar.header()


def trips(store, action):
    """Return what the store was asked for meanwhile."""
    store.calls.clear()
    action()
    return [verb for verb, _ in store.calls]


# -- trips -------------------------------------------------------------------------------------------------


def test_a_session_is_loaded_once_and_then_read_from_the_cache(store):
    s = Site(node_on(store))
    begun(s)
    for expected in (["load"], [], []):
        assert trips(store, lambda: s.visit(dict)) == expected
    assert s.result == {"n": 1}
    assert s.handler.config.cache.stats().hits == 2


def test_a_chain_asks_the_store_once_for_what_its_caches_lack(store):
    visitor = node_on(store)
    user = visitor.spawn("user")
    sudo = user.spawn("sudo")
    s = Site(visitor, user, sudo)
    begun(s)
    assert trips(store, lambda: s.visit(lambda v, u, a: dict(a))) == ["load_many"]
    assert trips(store, lambda: s.visit(lambda v, u, a: dict(a))) == []
    store.apply(*_proof(store, s), _set())
    assert trips(store, lambda: s.visit(lambda v, u, a: dict(u))) == ["load"]
    assert s.result == {"n": 1, "m": 2}


def _proof(store, site):
    """Return the handle and the proof of the second session of the site."""
    handle = site.visit(lambda first, second, *more: second.handle)
    return handle, store.load(handle).proof


def _set():
    from sessiontree.records import Changes, Json  # noqa: PLC0415 - for this alone

    return Changes(sets={"m": (Json(b"2"), 0)})


def test_a_revoked_cookie_costs_one_trip_and_then_none_for_a_while(store, clock):
    s = Site(node_on(store))
    kept = begun(s)
    s.handler.revoke(s.visit(lambda session: session.handle))
    for expected in (["load"], [], []):
        assert trips(store, lambda: s.visit(dict, HTTP_COOKIE=kept)) == expected
    clock.advance(6)
    assert trips(store, lambda: s.visit(dict, HTTP_COOKIE=kept)) == ["load"]
    assert s.result == {}


def test_an_untouched_session_asks_nobody(store):
    s = Site(node_on(store))
    kept = begun(s)
    assert trips(store, lambda: s.visit(lambda session: None, HTTP_COOKIE=kept)) == []
    assert s.handler.config.cache.stats().misses == 0


def test_garbage_and_forged_cookies_reach_no_cache(store):
    s = Site(node_on(store))
    cookie = begun(s)
    s.visit(dict)
    for number in range(1000 * SOAK):
        s.visit(dict, s.another_browser(), HTTP_COOKIE=f"{cookie[:-8]}{number:08d}")
    stats = s.handler.config.cache.stats()
    assert (stats.sessions, stats.misses) == (1, 1)


# -- never a lie -------------------------------------------------------------------------------------------

ENDINGS = {
    "session.revoke()": lambda site, handle: site.visit(lambda session: session.revoke()),
    "handler.revoke()": lambda site, handle: site.handler.revoke(handle),
    "revoke_all()": lambda site, handle: site.handler.revoke_all("ann"),
    "store.revoke()": lambda site, handle: site.handler.config.store.revoke(handle),
    "generate()": lambda site, handle: site.visit(lambda session: session.regenerate()),
    "renew()": lambda site, handle: site.visit(lambda session: session.renew()),
}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
def test_ca_1_after_it_returns_no_handler_on_the_store_object_serves_the_session(store, end):
    here, there = node_on(store), node_on(store)
    a, b = Site(here), Site(there)
    a.visit(lambda session: (session.update(n=1), session.bind("ann")))
    kept = a.browser.jar.header()
    for site in (a, b):
        assert [site.visit(dict, site.another_browser(), HTTP_COOKIE=kept) for _ in range(2)] == [{"n": 1}] * 2
    end(a, a.visit(lambda session: session.handle))
    for site in (a, b):
        assert site.visit(dict, site.another_browser(), HTTP_COOKIE=kept) == {}


def test_ca_1_another_process_refuses_within_the_stated_staleness(clock, tmp_path):
    stores = [SqliteStore(tmp_path / "s.db", clock=clock) for _ in range(2)]
    a, b = (Site(node_on(store, max_staleness=2)) for store in stores)
    kept = begun(a)
    assert b.visit(dict, HTTP_COOKIE=kept) == {"n": 1}
    a.visit(lambda session: session.revoke())
    clock.advance(1.999)
    assert b.visit(dict, HTTP_COOKIE=kept) == {"n": 1}, "this is the price of a cache, and it is stated"
    clock.advance(0.001)
    assert b.visit(dict, HTTP_COOKIE=kept) == {}
    for store in stores:
        store.close()


def test_a_write_is_seen_by_whoever_brings_its_cookie_on_any_process(clock, tmp_path):
    stores = [SqliteStore(tmp_path / "s.db", clock=clock) for _ in range(2)]
    sites = [Site(node_on(store)) for store in stores]
    browser = sites[0].another_browser()
    for number in range(500 * SOAK):
        writer, reader = sites[number % 2], sites[1 - number % 2]
        for site in sites:
            browser.app = site.app
            site.visit(dict, browser)  # Both have it in their caches.
        browser.app = writer.app
        writer.visit(lambda session, number=number: session.update(number=number), browser)
        browser.app = reader.app
        assert reader.visit(lambda session: session["number"], browser) == number
    for store in stores:
        store.close()


def test_a_handler_follows_its_store_and_tells_when_the_feed_is_lost(tmp_path):
    stores, events = [SqliteStore(tmp_path / "s.db") for _ in range(2)], []
    here, there = (node_on(store, with_events(events.append)) for store in stores)
    stop, site = there.follow(), Site(there)
    begun(site)
    kept = site.browser.jar.header()
    for n in (2, 3):
        assert site.visit(dict)["n"] == n - 1
        Site(here).visit(lambda session, n=n: session.update(n=n), HTTP_COOKIE=kept)
        wait_until(lambda n=n: site.visit(dict, HTTP_COOKIE=kept) == {"n": n})
    events.clear()
    stores[1]._feed._lose(OSError("The file is away."), 1)
    # Once for the loss, and once more when the feed is back: it does not know what it missed.
    assert {(event.kind, event.handler) for event in events} == {("feed", "visitor")}
    assert there.cache.stats().sessions == 0
    stop()
    for store in stores:
        store.close()


def test_only_what_has_a_cache_and_a_feed_can_follow(clock):
    with pytest.raises(ConfigError, match="with_cache"):
        Handler("visitor", SECRET, with_clock(clock), with_store(MemoryStore(clock=clock))).follow()

    class Mute(MemoryStore):
        def watch(self, on_change):
            raise NotImplementedByStore("There is no feed.")

    with pytest.raises(NotImplementedByStore):
        node_on(Mute(clock=clock)).follow()


WRITES = {
    "a key": lambda session: session.update(m=1),
    "a key that it had": lambda session: session.update(n=2),
    "delete": lambda session: session.delete("n"),
    "in place": lambda session: session["list"].append(1),
    "incr": lambda session: session.incr("count"),
    "update_key": lambda session: session.update_key("n", lambda n: n + 1),
    "flash": lambda session: session.flash("hello"),
    "expiry": lambda session: session.put("code", 1, 60),
    "bind": lambda session: session.bind("ann"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_every_write_sends_a_cookie_that_carries_its_version(store, write):
    s = Site(node_on(store))
    s.visit(lambda session: session.update(n=1, list=[], count=1))
    before = s.browser.jar.header()
    s.visit(write)
    assert s.browser.jar.header() != before
    s.visit(dict)
    assert s.answer.cookies == []


@pytest.mark.parametrize(("had", "given"), [(None, 10), (10, None), (10, 500)])
def test_update_key_undoes_no_life_that_a_stale_copy_lacks(clock, tmp_path, had, given):
    stores = [SqliteStore(tmp_path / "s.db", clock=clock) for _ in range(2)]
    here, there = (Site(node_on(store)) for store in stores)
    here.visit(lambda session: session.put("k", "v", max_age=had))
    kept = here.browser.jar.header()
    assert there.visit(lambda session: session.ttl("k"), HTTP_COOKIE=kept) == had
    here.visit(lambda session: session.put("k", "v", max_age=given))
    assert there.visit(lambda session: session.ttl("k"), HTTP_COOKIE=kept) == had, "The copy is fresh."
    assert there.visit(lambda session: session.update_key("k", str.upper), HTTP_COOKIE=kept) == "V"
    found = Site(Handler("visitor", SECRET, with_clock(clock), with_store(stores[0])))
    assert found.visit(lambda session: (session["k"], session.ttl("k")), HTTP_COOKIE=kept) == ("V", given)
    clock.advance(11)
    assert found.visit(lambda session: session.get("k"), HTTP_COOKIE=kept) == (None if given == 10 else "V")


def test_an_increment_stays_seen_after_a_5xx(store):
    s = Site(node_on(store))
    begun(s)
    s.status = "500 Oops"
    s.visit(lambda session: session.incr("n"))
    assert len(s.answer.cookies) == 1
    s.status = "200 OK"
    assert s.visit(dict) == {"n": 2}


def test_without_a_cache_a_write_sends_no_cookie(store):
    s = Site(Handler("visitor", SECRET, with_clock(store.clock), with_store(store)))
    begun(s)
    s.visit(lambda session: session.update(m=1))
    assert s.answer.cookies == []


def test_a_conflict_drops_what_the_cache_has(clock, tmp_path):
    stores = [SqliteStore(tmp_path / "s.db", clock=clock) for _ in range(2)]
    a, b = (Site(node_on(store)) for store in stores)
    kept = begun(a)
    assert b.visit(dict, HTTP_COOKIE=kept) == {"n": 1}
    a.visit(lambda session: session.revoke())
    b.visit(lambda session: session.update(m=1), HTTP_COOKIE=kept)
    assert (b.answer.code, b.answer.cookies) == (409, [])
    assert b.visit(dict, HTTP_COOKIE=kept) == {}
    for store in stores:
        store.close()


def test_a_revoked_parent_takes_its_children_along_in_every_cache(store):
    visitor = node_on(store)
    s = Site(visitor, visitor.spawn("user", with_cache(LocalCache(clock=store.clock))))
    kept = begun(s)
    assert s.visit(lambda v, u: dict(u), HTTP_COOKIE=kept) == {"n": 1}
    s.visit(lambda v, u: v.revoke())
    assert s.visit(lambda v, u: (dict(v), dict(u)), HTTP_COOKIE=kept) == ({}, {})


def test_what_one_request_changes_in_a_value_another_never_sees(store):
    s = Site(node_on(store))
    s.visit(lambda session: session.update(list=[1]))
    s.visit(dict)
    s.status = "500 Oops"
    s.visit(lambda session: session["list"].append(2))
    s.status = "200 OK"
    assert s.visit(lambda session: session["list"]) == [1]


@pytest.mark.parametrize(
    ("values", "read_each_time"),
    [
        ({"user": 7, "name": "zoe", "admin": None}, 0),
        ({"list": [1]}, 1),
        ({"text": "a" * 4096}, 1),
        ({f"k{number}": number for number in range(33)}, 1),
        ({"\0odd": 1}, 1),
    ],
    ids=["plain", "may change in place", "large", "many", "no names of keys"],
)
def test_values_that_cannot_change_in_place_are_read_once_for_all_hits(store, monkeypatch, values, read_each_time):
    s = Site(node_on(store))
    s.visit(lambda session: session.update(values))
    s.visit(dict)
    read, unpack = [], JsonSerializer.unpack
    monkeypatch.setattr(JsonSerializer, "unpack", lambda *given: read.append(1) or unpack(*given))
    assert [s.visit(dict) for _ in range(3)] == [values] * 3
    assert len(read) == 3 * read_each_time


def test_what_one_request_does_to_the_keys_of_a_cached_session_another_never_sees(store):
    s = Site(node_on(store))
    s.visit(lambda session: session.update(a=1, b=2))
    s.visit(dict)
    s.status = "500 Oops"
    for act in (dict.clear, lambda data: data.pop("a"), lambda data: data.update(a=3, c=4)):
        s.visit(lambda session, act=act: act(session._look()))
        s.visit(lambda session: (session.update(a=5, d=6), session.delete("b")))
    s.status = "200 OK"
    assert s.visit(dict) == {"a": 1, "b": 2}


# -- time --------------------------------------------------------------------------------------------------


def test_deadlines_and_expiries_mean_the_same_behind_a_cache(store, clock):
    s = Site(node_on(store, with_max_age(10), max_staleness=60))
    s.visit(lambda session: (session.update(n=1), session.put("code", 7, 5)))
    assert s.visit(dict) == {"n": 1, "code": 7}
    clock.advance(5)
    assert s.visit(dict) == {"n": 1}
    clock.advance(5)
    assert s.visit(dict, HTTP_COOKIE=s.browser.jar.header() or "x=y") == {}


def test_ca_9_activity_is_counted_though_reads_come_from_the_cache(store, clock):
    s = Site(node_on(store, with_idle_timeout(100), max_staleness=60))
    begun(s)
    for _ in range(30):
        clock.advance(9)
        assert s.visit(dict) == {"n": 1}
    clock.advance(101)
    assert s.visit(dict) == {}


def test_what_a_cache_thinks_expired_the_store_may_know_better(clock, tmp_path):
    stores = [SqliteStore(tmp_path / "s.db", clock=clock) for _ in range(2)]
    a, b = (Site(node_on(store, with_idle_timeout(100), max_staleness=3600)) for store in stores)
    kept = begun(a)
    assert b.visit(dict, HTTP_COOKIE=kept) == {"n": 1}
    clock.advance(60)
    a.visit(dict)
    clock.advance(60)
    assert b.visit(dict, HTTP_COOKIE=kept) == {"n": 1}
    for store in stores:
        store.close()


# -- failures ----------------------------------------------------------------------------------------------


class Broken(LocalCache):
    """Fails at every call."""

    def _fail(self, *_arguments):
        raise OSError("The cache is broken.")

    def __init__(self, **more):
        super().__init__(**more)
        self.get = self._fail

    is_absent = lease = put = drop = clear = _fail


def test_ca_5_a_cache_that_fails_costs_trips_and_nothing_else(store):
    events = []
    cache = Broken(clock=store.clock)
    handler = Handler(
        "visitor", SECRET, with_clock(store.clock), with_store(store), with_cache(cache), with_events(events.append)
    )
    s = Site(handler)
    begun(s)
    assert s.visit(lambda session: (session.incr("n"), dict(session))) == (2, {"n": 2})
    assert s.visit(lambda session: session.revoke()) is None
    assert s.visit(dict) == {}
    assert {(event.kind, event.reason) for event in events if event.kind == "cache"} == {("cache", "OSError")}


def stale_site(store, beyond=60):
    s = Site(node_on(store, with_outage("stale", stale_for=beyond)))
    begun(s)
    s.visit(dict)
    return s


def test_while_the_store_is_down_stale_sessions_are_read_and_nothing_else(store, clock):
    s = stale_site(store)
    cookie = s.browser.jar.header()
    store.down()
    clock.advance(50)
    assert s.visit(dict) == {"n": 1}
    assert s.answer.cookies == []

    def write(session):
        for attempt in (
            lambda: session.update(m=1),
            lambda: session.incr("n"),
            session.renew,
            session.revoke,
            session.regenerate,
            lambda: session.bind("ann"),
            session.clear,
            lambda: session.touch(max_age=60),
        ):
            with pytest.raises(StoreUnavailable):
                attempt()
        return dict(session)

    assert s.visit(write) == {"n": 1}
    assert (s.answer.code, s.answer.cookies, s.browser.jar.header()) == (200, [], cookie)
    s.visit(lambda session: session.update(m=1))
    assert (s.answer.code, s.answer.cookies) == (503, [])
    store.up()
    assert s.visit(lambda session: (session.update(m=1), dict(session))[1]) == {"n": 1, "m": 1}


def test_stale_has_an_end_and_never_serves_what_was_revoked_here_or_expired(store, clock):
    s = stale_site(store)
    store.down()
    clock.advance(66)
    s.visit(dict)
    assert (s.answer.code, s.answer.cookies) == (503, [])
    store.up()
    other = stale_site(store)
    kept = other.browser.jar.header()
    other.visit(lambda session: session.revoke())
    store.down()
    other.visit(dict, HTTP_COOKIE=kept)
    assert (other.answer.code, other.answer.cookies) == (503, [])


def test_a_stale_chain_is_stale_as_a_whole(store, clock):
    visitor = node_on(store, with_outage("stale", stale_for=60))
    s = Site(visitor, visitor.spawn("user"))
    begun(s)
    s.visit(lambda v, u: dict(u))
    store.down()
    clock.advance(10)
    assert s.visit(lambda v, u: (dict(v), dict(u))) == ({"n": 1}, {"n": 1})
    assert (s.answer.code, s.answer.cookies) == (200, [])


@pytest.mark.parametrize("reads_missing_first", [False, True])
def test_an_outage_denies_no_session_what_its_cache_has_for_the_sake_of_another_s(store, reads_missing_first):
    first, second = node_on(store), node_on(store, name="second")
    s = Site(first, second)
    s.visit(lambda one, two: (one.update(n=1), two.update(m=2)))
    s.visit(lambda one, two: (dict(one), dict(two)))
    s.visit(lambda one, two: second.config.cache.clear())
    store.down()

    def look(one, two):
        if reads_missing_first:
            with pytest.raises(StoreUnavailable):
                dict(two)
        found = dict(one)
        with pytest.raises(StoreUnavailable):
            dict(two)
        return found

    assert s.visit(look) == {"n": 1}
    assert s.answer.cookies == []


class Lagging(MemoryStore):
    """Loads what it was told to lag at, as a replica does, and reloads what is so."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.behind = {}

    def load(self, handle, keys=None):
        now = super().load(handle, keys)
        return now and self.behind.get(handle, now)

    def load_many(self, handles):
        return {handle: self.behind.get(handle, now) for handle, now in super().load_many(handles).items()}

    def reload(self, handle):
        return super().load(handle)


def lagging_site(store, *handlers):
    """Return a site whose cookies tell of later writes than its store loads; what its caches have is not fresh."""
    s = Site(*handlers)
    begun(s)
    handles = s.visit(lambda *sessions: [each.handle for each in sessions])
    store.inner.behind = {handle: store.inner.load(handle) for handle in handles}
    s.visit(lambda *sessions: [each.update(n=2) for each in sessions])
    s.visit(lambda *sessions: [dict(each) for each in sessions])
    store.clock.advance(10)
    return s


@pytest.fixture
def lagging(clock):
    return FaultyStore(Lagging(clock=clock))


def test_what_a_store_loads_too_old_is_reloaded_and_kept(lagging, clock):
    visitor = node_on(lagging)
    s = lagging_site(lagging, visitor, visitor.spawn("user"))
    assert trips(lagging, lambda: s.visit(lambda v, u: (dict(v), dict(u)))) == ["load_many", "reload", "reload"]
    assert s.result == ({"n": 2}, {"n": 2})
    assert trips(lagging, lambda: s.visit(lambda v, u: (dict(v), dict(u)))) == []


@pytest.mark.parametrize("others", [[], ["second"]], ids=["alone", "in a batch"])
def test_who_cannot_reload_serves_what_a_cache_has_as_who_cannot_load(lagging, others):
    answer = with_outage("stale", stale_for=60)
    s = lagging_site(lagging, node_on(lagging, answer), *(node_on(lagging, answer, name=name) for name in others))
    for broken in ("load_many" if others else "load", "reload"):
        lagging.fail(verb=broken)
        assert s.visit(lambda *sessions: [dict(each) for each in sessions]) == [{"n": 2}, *({"n": 2} for _ in others)]
        assert (s.answer.code, s.answer.cookies) == (200, []), broken
    s.visit(lambda *sessions: sessions[0].update(n=3))
    assert s.visit(lambda *sessions: dict(sessions[0])) == {"n": 3}


@pytest.mark.parametrize("options", [[], [with_cache(None)]])
def test_who_cannot_reload_is_refused_where_nothing_stale_may_be_served(lagging, options):
    s = lagging_site(lagging, node_on(lagging, *options))
    lagging.fail(verb="reload")
    s.visit(dict)
    assert (s.answer.code, s.answer.cookies) == (503, [])
    assert s.visit(dict) == {"n": 2}


def test_a_session_that_cannot_be_reloaded_costs_no_other_its_answer(lagging):
    first, second = node_on(lagging), node_on(lagging, name="second")
    s = lagging_site(lagging, first, second)
    lagging.inner.behind.popitem()
    lagging.fail(verb="reload")

    def look(one, two):
        with pytest.raises(StoreUnavailable):
            dict(one)
        return dict(two)

    assert s.visit(look) == {"n": 2}


def test_a_slow_reload_opens_the_breaker_as_a_slow_load_does(lagging):
    handler = node_on(lagging, with_outage("stale", stale_for=60))
    s, breaker = lagging_site(lagging, handler), breaker_of(handler.store)
    ticks = count()
    breaker._seconds = lambda: next(ticks) * 2 * SLOW
    for _ in range(MOST_FAILURES):
        lagging.fail(verb="reload")
        s.visit(dict)
        assert s.answer.code == 200
    assert breaker.begin() is None


# -- settings ----------------------------------------------------------------------------------------------


def test_contradictions_are_config_errors(store):
    cache = LocalCache(clock=store.clock)
    plain = [with_clock(store.clock), with_store(store)]
    for options in (
        [with_clock(store.clock), with_cache(cache)],
        [*plain, with_cache(LocalCache())],
        [*plain, with_outage("stale", stale_for=5)],
    ):
        with pytest.raises(ConfigError):
            Handler("visitor", SECRET, *options)
    for call in (
        lambda: with_cache(LocalCache),
        lambda: with_cache({}),
        lambda: with_outage("stale"),
        lambda: with_outage("raise", stale_for=5),
        lambda: with_outage("stale", stale_for=-1),
        lambda: LocalCache(0),
        lambda: LocalCache(max_bytes=0),
        lambda: LocalCache(max_staleness=-1),
        lambda: LocalCache(policy={"a": 1}),
        lambda: LocalCache(policy=5),
    ):
        with pytest.raises(ConfigError):
            call()


def test_children_inherit_a_cache_where_it_fits(store):
    visitor = node_on(store)
    cache = visitor.config.cache
    assert visitor.spawn("a").config.cache is cache
    assert visitor.spawn("a").spawn("b").config.cache is cache
    assert visitor.spawn("a", with_store(None)).config.cache is None
    assert visitor.spawn("a", server_only).config.cache is None
    assert visitor.spawn("a", with_cache(None)).config.cache is None
    assert visitor.configure(with_cache(None)).config.cache is None
    own = LocalCache(clock=store.clock)
    assert visitor.spawn("a", server_only, with_cache(own)).config.cache is own
    with pytest.raises(ConfigError):
        visitor.spawn("a", with_store(None), with_cache(own))
    assert chain(visitor, visitor.spawn("a"))


@pytest.mark.parametrize("without_cache", [server_only, with_store(None), with_cache(None)])
def test_an_answer_to_outages_that_needs_a_cache_is_dropped_with_it_only_where_it_was_inherited(store, without_cache):
    plain, stale = node_on(store), node_on(store, with_outage("stale", stale_for=60))
    child = stale.spawn("a", without_cache)
    assert (child.config.outage, child.config.stale_for) == ("raise", 0)
    assert stale.spawn("a").configure(without_cache).config == child.config
    assert stale.spawn("a", with_outage("anonymous"), without_cache).config.outage == "anonymous"
    chosen = with_outage("stale", stale_for=60)
    for build in (
        lambda: plain.spawn("a", without_cache, chosen),
        lambda: stale.spawn("a", chosen, without_cache),
        lambda: stale.spawn("a", chosen).configure(without_cache),
        lambda: child.configure(chosen),
        lambda: Handler("a", SECRET, with_clock(store.clock), with_store(store), chosen, without_cache),
    ):
        with pytest.raises(ConfigError, match="'a' has no cache that can serve stale sessions"):
            build()


def test_a_server_only_session_may_have_a_cache_of_its_own(store):
    jobs = node_on(store, server_only, name="jobs")
    jobs.generate_by_id("7").update(n=1)
    session = jobs.load_by_id("7")
    session["n"] = 1
    session.commit()
    jobs.load_by_id("7")
    assert trips(store, lambda: dict(jobs.load_by_id("7"))) == []
    session = jobs.load_by_id("7")
    session["n"] = 2
    session.commit()
    assert jobs.load_by_id("7")["n"] == 2


# -- four verbs --------------------------------------------------------------------------------------------


def test_a_cache_keeps_keys_for_a_while_too(clock):
    cache = LocalCache(max_staleness=60, clock=clock)
    keys = PerKey(cache)
    assert keys.get("ann", "a") is None
    keys.put("ann", "a", b"1", 10)
    keys.put("ann", "b", b"\xff")
    assert (keys.get("ann", "a"), keys.get("ann", "b"), keys.get("bob", "a")) == (b"1", b"\xff", None)
    assert (keys.time_to_expiry("ann", "a"), keys.time_to_expiry("ann", "b")) == (10.0, None)
    clock.advance(10)
    assert (keys.get("ann", "a"), keys.get("ann", "b")) == (None, b"\xff")
    keys.delete("ann", "b")
    keys.delete("ann", "never there")
    assert keys.get("ann", "b") is None
    with pytest.raises(KeyNotFound):
        keys.time_to_expiry("ann", "b")
    keys.put("ann", "c", b"3")
    cache.clear_after(5)
    clock.advance(4.999)
    assert keys.get("ann", "c") == b"3"
    clock.advance(0.001)
    assert keys.get("ann", "c") is None


@pytest.mark.parametrize("is_cached", [True, False])
def test_handlers_see_nothing_of_keys_that_are_put_into_their_cache_and_lose_nothing(store, is_cached):
    visitor = node_on(store)
    cache, s = visitor.config.cache, Site(visitor)
    cookies = begun(s)
    handle = s.visit(lambda session: session.handle)
    keys = PerKey(cache)
    if not is_cached:
        cache.clear()
    keys.put(handle, "ghost", b"x", 5)
    keys.delete(handle, "n")
    assert keys.get(handle, "n") is None
    for _ in range(2):
        assert s.visit(dict, HTTP_COOKIE=cookies) == {"n": 1}
        assert s.visit(lambda session: session.is_live(), HTTP_COOKIE=cookies)
    assert s.answer.cookies == []
    s.visit(lambda session: session.revoke())
    assert keys.get(handle, "ghost") == b"x"


def test_a_server_only_session_is_found_behind_keys_of_its_handle(store):
    cache = LocalCache(clock=store.clock)
    jobs = Handler("job", SECRET, with_clock(store.clock), with_store(store), with_cache(cache), server_only)
    made = jobs.generate_by_id("x")
    made["n"] = 1
    made.commit()
    PerKey(cache).put(made.handle, "k", b"v", 60)
    assert dict(jobs.load_by_id("x")) == {"n": 1}
