"""Several sessions of a request are written in one trip where the store can, and nobody can tell but by counting."""

import gc

import pytest
from support import SECRET, Site

from sessiontree import (
    ConfigError,
    Handler,
    NotImplementedByStore,
    SessionError,
    StoreUnavailable,
    with_clock,
    with_encryption,
    with_events,
    with_idle_timeout,
    with_max_sessions,
    with_store,
)
from sessiontree.handlers.loading import Batch
from sessiontree.records import Changes
from sessiontree.stores.announced import announced
from sessiontree.stores.conformance import StoreConformance
from sessiontree.stores.conformance.tools import js
from sessiontree.stores.layered import LayeredStore
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.protocol import Confirming, Pipelining, Reloading
from sessiontree.testing import FakeClock, FaultyStore


class Pipelined(MemoryStore):
    """A store that makes several writes in one trip, and counts trips."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.trips: list[int] = []
        self.before = self.after = lambda: None

    def apply(self, handle, proof, changes):
        self.trips.append(1)
        return super().apply(handle, proof, changes)

    def apply_many(self, writes):
        self.before()
        self.trips.append(len(writes))
        outcomes = [self._outcome(*write) for write in writes]
        self.after()
        return outcomes

    def _outcome(self, *write):
        try:
            return MemoryStore.apply(self, *write)
        except (SessionError, TypeError) as error:
            return error


class TestPipelined(StoreConformance):
    def make_store(self, clock):
        return Pipelined(clock=clock)


class TestALayeredStoreOverOne(StoreConformance):
    def make_store(self, clock):
        return LayeredStore(Pipelined(clock=clock), MemoryStore(clock=clock))


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(clock):
    return Pipelined(clock=clock)


@pytest.fixture
def events():
    return []


@pytest.fixture
def site(store, clock, events):
    visitor = Handler("visitor", SECRET, with_clock(clock), with_store(store), with_events(events.append))
    user = visitor.spawn("user")
    made = Site(visitor, user, user.spawn("job"))
    made.visit(lambda *sessions: [session.update(n=1) for session in sessions])
    store.trips.clear()
    events.clear()
    return made


def everywhere(*sessions):
    for session in sessions:
        session["n"] += 1


def numbers(*sessions):
    return [session["n"] for session in sessions]


def test_three_sessions_are_written_in_one_trip(site, store):
    site.visit(everywhere)
    assert (site.answer.code, store.trips) == (200, [3])
    assert site.visit(numbers) == [2, 2, 2]


def test_one_session_is_written_by_itself(site, store):
    site.visit(lambda visitor, user, job: user.update(n=7))
    assert store.trips == [1]
    assert site.visit(numbers) == [1, 7, 1]


def test_what_is_more_than_keys_is_written_by_itself(site, store):
    site.visit(lambda visitor, user, job: (everywhere(visitor, user, job), user.bind("ann")))
    assert store.trips == [1, 1, 1]  # the login may be refused, and then nothing behind it is written
    assert site.visit(numbers) == [2, 2, 2]


def test_after_a_5xx_nothing_is_written(site, store):
    site.status = "500 Oops"
    site.visit(everywhere)
    assert store.trips == []


def test_a_session_that_is_gone_meanwhile_is_a_conflict_and_sets_no_cookie(site, store, events):
    gone = site.visit(lambda visitor, user, job: user.handle)
    store.before = lambda: store.revoke(gone)
    site.visit(everywhere)
    assert (site.answer.code, site.answer.cookies, store.trips) == (409, [], [3])
    assert [event.kind for event in events] == ["conflict"]
    assert site.visit(lambda visitor, user, job: (visitor["n"], dict(user), dict(job))) == (2, {}, {})


def test_an_outage_is_one_trip_and_503(site, store, events):
    def fail():
        raise StoreUnavailable("The store is away: try again.")

    store.before = fail
    site.visit(everywhere)
    assert (site.answer.code, site.answer.cookies, store.trips) == (503, [], [])
    store.before = lambda: None
    assert site.visit(numbers) == [1, 1, 1]


def test_two_commits_write_once(site, store):
    def action(*sessions):
        everywhere(*sessions)
        sessions[0].commit()
        sessions[1]["n"] += 1

    site.visit(action)
    assert site.visit(numbers) == [2, 3, 2]


def test_what_changed_in_place_is_written_too(site, store):
    site.visit(lambda *sessions: [session.update(items=[]) for session in sessions])
    store.trips.clear()
    site.visit(lambda *sessions: [session["items"].append(1) for session in sessions])
    assert store.trips == [3]
    assert site.visit(lambda *sessions: [session["items"] for session in sessions]) == [[1], [1], [1]]


def test_sessions_are_kept_awake_in_one_trip(store, clock):
    visitor = Handler("visitor", SECRET, with_clock(clock), with_store(store), with_idle_timeout(600))
    s = Site(visitor, visitor.spawn("user", with_idle_timeout(600)))
    s.visit(lambda *sessions: [session.update(n=1) for session in sessions])
    store.trips.clear()
    for _ in range(5):
        clock.advance(500)
        assert s.visit(numbers) == [1, 1]
    assert store.trips == [2] * 5


def test_a_value_that_cannot_be_written_stops_all_before_any_is(site, store):
    def action(visitor, user, job):
        visitor["n"] = 5
        job["bad"] = []
        job["bad"].append(object())

    with pytest.raises(TypeError):
        site.visit(action)
    assert store.trips == []
    assert site.visit(numbers) == [1, 1, 1]


@pytest.mark.parametrize("ends", ["conflict", "outage"])
def test_a_commit_that_fails_leaves_no_garbage(site, store, events, ends):
    gone = site.visit(lambda visitor, user, job: user.handle)

    def fail():
        raise StoreUnavailable("The store is away: try again.")

    store.before = fail if ends == "outage" else lambda: store.revoke(gone)
    header = site.browser.jar.header()
    for _ in range(2):  # the first one imports and remembers
        gc.collect()
        gc.disable()
        try:
            site.visit(everywhere, HTTP_COOKIE=header)
            site.result = None
            events.clear()
            left = gc.collect()
        finally:
            gc.enable()
        if ends == "conflict":
            break
    assert left == 0


def test_what_is_refused_lets_nothing_be_written_behind_it(store, clock):
    visitor = Handler("visitor", SECRET, with_clock(clock), with_store(store))
    user = visitor.spawn("user", with_max_sessions(1, "refuse"))
    job, other = user.spawn("job"), visitor.spawn("other")
    s = Site(visitor, user, job, other)
    taken = s.another_browser()
    s.visit(lambda v, u, j, o: (v.update(n=1), u.bind("ann")), taken)
    s.visit(lambda *sessions: [session.update(n=1) for session in sessions])
    s.visit(lambda v, u, j, o: (u.bind("ann"), j.update(n=2), o.update(n=2)))
    assert s.answer.code == 409
    assert s.visit(lambda v, u, j, o: (j.get("n"), o["n"])) == (1, 1)


def test_a_flash_message_is_written_once(site, store):
    site.visit(lambda visitor, user, job: (visitor.flash("hello"), job.update(n=5)))
    assert store.trips == [2]
    assert site.visit(lambda visitor, user, job: visitor.flashes()) == [("message", "hello")]


def test_sealed_fields_are_written_once(store, clock):
    visitor = Handler("visitor", SECRET, with_clock(clock), with_store(store), with_encryption())
    s = Site(visitor, visitor.spawn("user"))
    s.visit(lambda *sessions: [session.update(n=1) for session in sessions])
    store.trips.clear()
    s.visit(everywhere)
    assert store.trips == [2]
    assert s.visit(numbers) == [2, 2]


def test_what_came_of_one_commit_is_not_told_in_the_next(site, store):
    gone = site.visit(lambda visitor, user, job: visitor.handle)
    user_handle = site.visit(lambda visitor, user, job: user.handle)
    batch = Batch(store, [])
    write = (user_handle, store.load(user_handle).proof, Changes(sets={"n": (js(3), 0)}))
    batch.write([write, (gone, b"x" * 32, Changes(sets={"n": (js(3), 0)}))])
    assert batch.made(user_handle) is write[2]
    batch.forget_written()
    assert batch.made(user_handle) is None
    batch.write([write, (gone, b"x" * 32, Changes(sets={"n": (js(3), 0)}))])
    batch.write([])
    assert batch.made(user_handle) is None
    trips = len(store.trips)
    assert batch.apply(*write) == store.load(user_handle).version
    assert len(store.trips) == trips + 1


# -- a store of anyone's making, which announces nothing by itself ---------------------------------


class Silent(Pipelined):
    """Has what a store must have and ``apply_many``, but no ``listen``."""

    @property
    def listen(self):
        raise AttributeError("listen")


class Careful(Silent):
    """Has the other two verbs that a store may have, and counts their calls."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.reloaded, self.confirmed = [], 0

    def reload(self, handle):
        self.reloaded.append(handle)
        return super().load(handle)

    def confirm(self):
        self.confirmed += 1


def test_a_store_that_announces_nothing_is_written_in_one_trip_too_and_caches_hear_of_each(clock):
    store, heard = Silent(clock=clock), []
    visitor = Handler("visitor", SECRET, with_clock(clock), with_store(store))
    user = visitor.spawn("user")
    site = Site(visitor, user)
    handles = site.visit(lambda *sessions: [(session.update(n=1), session.handle)[1] for session in sessions])
    store.trips.clear()
    stop = announced(store).listen(heard.append)
    site.visit(everywhere)
    stop()
    assert (store.trips, sorted(heard)) == ([2], sorted(handles))


def test_a_store_is_asked_by_the_optional_verbs_that_it_has_and_by_no_others(clock):
    careful, silent = Careful(clock=clock), Silent(clock=clock)
    for store in (careful, silent):
        handler = Handler("user", SECRET, with_clock(clock), with_store(store))
        assert handler.revoke("nobodys") is False
        assert handler.revoke_all("nobody") == 0
    assert (careful.reloaded, careful.confirmed) == (["nobodys"], 2)
    assert not isinstance(announced(silent), Reloading | Confirming)
    assert not isinstance(announced(MemoryStore(clock=clock)), Pipelining)


def test_there_is_one_object_in_front_of_a_store_also_for_two_who_ask_at_once(clock):
    """Caches hear of what the other changes."""
    others = []

    class Asking(Careful):
        @property
        def confirm(self):
            if not others:
                others.append(None)
                others[0] = announced(self)  # As another thread may, just before the first is done.
            raise AttributeError("confirm")

    store = Asking(clock=clock)
    first = announced(store)
    assert [first] == others == [announced(store)]


class Behind:
    """Somebody's proxy, which has nothing of its own."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_a_store_may_stand_behind_a_proxy(clock):
    store = Careful(clock=clock)
    handler = Handler("user", SECRET, with_clock(clock), with_store(Behind(store)))
    assert handler.revoke("nobodys") is False
    assert (store.reloaded, store.confirmed) == (["nobodys"], 1)
    with pytest.raises(ConfigError, match="takes a store"):
        with_store(MemoryStore)


class WithoutAFeed(Silent):
    """Has not even ``watch``."""

    @property
    def watch(self):
        raise AttributeError("watch")


def test_a_store_without_a_feed_is_written_in_one_trip_and_says_that_it_has_none(clock):
    store = WithoutAFeed(clock=clock)
    visitor = Handler("visitor", SECRET, with_clock(clock), with_store(store))
    site = Site(visitor, visitor.spawn("user"))
    site.visit(lambda *sessions: [session.update(n=1) for session in sessions])
    store.trips.clear()
    site.visit(everywhere)
    assert store.trips == [2]
    for each in (announced(store), FaultyStore(store)):
        with pytest.raises(NotImplementedByStore, match="has no feed"):
            each.watch(print)
    assert LayeredStore(store, MemoryStore(clock=clock)).count("subject", "ann") == 0
