"""What is left of a commit that cannot be made, or is followed by a refusal, or writes to what may only be read."""

import copy
import os
import pickle
import sys
from contextlib import suppress

import orjson
import pytest
from support import SECRET, Browser, Site, environ

from sessiontree import (
    CookieTooLarge,
    Handler,
    NoSession,
    RecordTooLarge,
    Session,
    SessionGone,
    StoreUnavailable,
    UsageError,
    server_only,
    with_absolute_timeout,
    with_cache,
    with_clock,
    with_idle_timeout,
    with_outage,
    with_revocations,
    with_serializer,
    with_store,
)
from sessiontree.caches.local import LocalCache
from sessiontree.stores.layered import LayeredStore
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore

TEXT = [("Content-Type", "text/plain")]


@pytest.fixture
def store():
    return FaultyStore(MemoryStore(clock=FakeClock(), largest=20_000))


def on(store, *options, name="visitor"):
    return Handler(name, SECRET, with_clock(store.clock), with_store(store), *options)


def listed(store, name="visitor"):
    return Handler(name, SECRET, with_clock(store.clock), with_revocations(store))


def begun(site):
    site.visit(lambda *sessions: [session.update(n=1, l=[1]) for session in sessions])
    return site.browser.jar.header()


def read(*sessions):
    return [dict(session) for session in sessions]


# -- an exception that escapes saves nothing -------------------------------------------------------------

UNWRITABLE = {
    "no data": (lambda session: session["l"].append(object()), TypeError),
    "too large for a record": (lambda session: session.update(big="x" * 50_000), RecordTooLarge),
    "too large for a cookie": (lambda session: session.update(big="x" * 5_000), CookieTooLarge),
}
ENDINGS = {
    "renew": lambda session: session.renew(),
    "bind": lambda session: session.bind("ann"),
    "generate": lambda session: session.regenerate(),
    "write": lambda session: session.update(n=2),
}


def pair(store, kind, other):
    """Return two handlers, the second of them beneath the first or beside it, whose session cannot be written."""
    if kind == "too large for a cookie":
        visitor = on(store)
        return (visitor, visitor.spawn("user", with_store(None))) if other == "beneath" else (
            listed(store), listed(store, "user"),
        )  # fmt: skip
    visitor = on(store)
    return visitor, visitor.spawn("user") if other == "beneath" else on(store, name="lone")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", UNWRITABLE)
@pytest.mark.parametrize("other", ["beneath", "beside"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["linked", "by hand"])
def test_what_one_session_cannot_write_logs_nobody_out_and_saves_nothing_of_another(
    store, kind, ending, other, by_hand
):
    spoil, error = UNWRITABLE[kind]
    first, second = pair(store, kind, other)
    s = Site(first, second, clock=store.clock)
    kept = begun(s)

    def act(one, two):
        ENDINGS[ending](one)
        if ending == "generate" and other == "beneath":
            two.update(n=2, l=[1])
        spoil(two)

    def commit():
        if not by_hand:
            s.visit(act)
            return
        request = environ(HTTP_COOKIE=kept)
        act(first.session(request), second.session(request))
        (request["sessiontree"] if other == "beside" else second.session(request)).commit()

    with pytest.raises(error):
        commit()
    assert s.browser.jar.header() == kept
    assert s.visit(read) == [{"n": 1, "l": [1]}] * 2, "The client's cookies are as good as before."


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("spoiled", ["no data", "too large for a cookie"])
def test_a_listed_session_that_cannot_be_written_stays_as_it_was(store, ending, spoiled):
    spoil, error = UNWRITABLE[spoiled]
    s = Site(listed(store), clock=store.clock)
    kept = begun(s)

    def act(session):
        ENDINGS[ending](session)
        session["l"] = [1]
        spoil(session)

    with pytest.raises(error):
        s.visit(act)
    assert s.visit(read, HTTP_COOKIE=kept) == [{"n": 1, "l": [1]}]


def test_what_may_only_be_read_ends_nothing_else_when_it_is_changed_in_place(store):
    for reading in (on(store, name="reading"), listed(store, "reading")):
        s = Site(on(store), reading, clock=store.clock)
        old = begun(s)
        s.visit(lambda one, two: two.renew(grace=30), s.another_browser(), HTTP_COOKIE=old)
        for change in (lambda one: one.regenerate(), lambda one: one.update(n=2)):
            s.visit(
                lambda one, two, change=change: (change(one), two["l"].append(2)), s.another_browser(), HTTP_COOKIE=old
            )
            assert s.answer.code == 409
            assert s.visit(read, s.another_browser(), HTTP_COOKIE=old) == [{"n": 1, "l": [1]}] * 2


class Together(MemoryStore):
    """A memory that takes several writes at once, as a server does."""

    def apply_many(self, writes):
        return [self._outcome(*write) for write in writes]

    def _outcome(self, *write):
        try:
            return self.apply(*write)
        except SessionGone as error:
            return error


@pytest.mark.parametrize("key", ["l", "n"])
@pytest.mark.parametrize("is_apart", [False, True])
def test_activity_that_cannot_be_counted_costs_nobody_a_read_whatever_else_is_written(key, is_apart):
    clock = FakeClock()
    one = Together(clock=clock)
    first, second = on(one), on(Together(clock=clock) if is_apart else one, with_idle_timeout(600), name="second")
    s = Site(first, second, clock=clock)
    kept = begun(s)
    clock.advance(120)

    def read_while_it_is_renewed(writing, reading):
        writing.update(n=2)
        found = reading[key]
        request = environ(HTTP_COOKIE=kept)
        second.session(request).renew()
        request["sessiontree"].commit()
        return found

    assert s.visit(read_while_it_is_renewed, HTTP_COOKIE=kept) in ([1], 1)
    assert s.answer.code == 200
    assert dict(first.session(environ(HTTP_COOKIE=kept)))["n"] == 2


# -- a renewal whose answer is lost ----------------------------------------------------------------------


@pytest.mark.parametrize("renewing", [lambda session: session.renew(), lambda session: session.bind("ann")])
def test_a_renewal_that_was_listed_though_its_answer_was_lost_is_made(store, renewing):
    s = Site(listed(store), clock=store.clock)
    old = begun(s)
    store.fail_after(1, verb="create")
    s.visit(renewing)
    assert s.answer.code == 200
    assert s.visit(read) == [{"n": 1, "l": [1]}]
    assert s.visit(read, HTTP_COOKIE=old) == [{}]


def test_a_renewal_of_which_nobody_can_say_whether_it_was_listed_logs_nobody_out(store):
    s = Site(listed(store), clock=store.clock)
    begun(s)

    def renew(session):
        session.update(n=2)
        session.renew()
        store.fail_after(1, verb="create")
        store.fail(1, verb="load")

    s.visit(renew)
    assert s.answer.code == 503
    assert s.visit(read) == [{"n": 1, "l": [1]}]


@pytest.mark.parametrize("is_down", [False, True], ids=["fails once", "is down for a while"])
def test_of_two_renewals_of_one_id_one_is_made(store, is_down):
    handler = listed(store)
    s = Site(handler, clock=store.clock)
    old = begun(s)
    requests = [environ(HTTP_COOKIE=old) for _ in range(2)]
    for request in requests:
        handler.session(request).renew()

    def committed(request):
        try:
            return [value.partition(";")[0] for _, value in request["sessiontree"].commit()]
        except (SessionGone, StoreUnavailable) as error:
            return type(error)

    if is_down:
        store.down()
        assert committed(requests[1]) is StoreUnavailable
        store.up()
        [first] = committed(requests[0])
    else:
        [first] = committed(requests[0])
        store.fail(1, verb="create")
    assert committed(requests[1]) is SessionGone
    assert s.visit(read, HTTP_COOKIE=first) == [{"n": 1, "l": [1]}]
    assert s.visit(read, HTTP_COOKIE=old) == [{}]


def test_a_login_that_is_tried_again_after_an_outage_is_made(store):
    handler = listed(store)
    s = Site(handler, clock=store.clock)
    old = begun(s)
    request = environ(HTTP_COOKIE=old)
    handler.session(request).bind("ann")
    store.fail_after(1, verb="create")
    store.fail(1, verb="load")
    with pytest.raises(StoreUnavailable):
        request["sessiontree"].commit()
    handler.session(request).bind("ann")
    [(_, value)] = request["sessiontree"].commit()
    assert s.visit(lambda session: session.subject, HTTP_COOKIE=value.partition(";")[0]) == "ann"


@pytest.mark.parametrize("key", ["l", "n"])
def test_what_a_look_does_for_new_settings_costs_nobody_a_read(store, key):
    s = Site(on(store, with_idle_timeout(600)), clock=store.clock)
    kept = begun(s)
    later = on(store)
    s = Site(later, clock=store.clock)

    def read_while_it_is_renewed(session):
        found = session[key]
        request = environ(HTTP_COOKIE=kept)
        later.session(request).renew()
        request["sessiontree"].commit()
        return found

    assert s.visit(read_while_it_is_renewed, HTTP_COOKIE=kept) in ([1], 1)
    assert s.answer.code == 200


# -- an ending that was not confirmed --------------------------------------------------------------------


class Confirming(MemoryStore):
    """A store that is sure of what it wrote as soon as it is asked."""

    def confirm(self):
        """Be sure."""


def calls_of(store, verb, act):
    """Return how often the store was asked for this meanwhile."""
    store.calls.clear()
    act()
    return [called for called, _ in store.calls].count(verb)


def test_a_logout_that_the_store_did_not_confirm_is_asked_for_again(store):
    s = Site(on(store), clock=store.clock)
    kept = begun(s)
    store.fail_after(1, verb="revoke")
    s.visit(lambda session: session.revoke())
    assert (s.answer.code, s.browser.jar.header()) == (503, kept)
    assert calls_of(store, "revoke", lambda: s.visit(lambda session: session.revoke())) == 1
    assert (s.answer.code, s.browser.jar.header()) == (200, "")


@pytest.mark.parametrize("name", ["revoke", "revoke_all"])
def test_ending_sessions_again_has_the_store_confirm_that_they_ended(name):
    store = FaultyStore(Confirming(clock=FakeClock()))
    handler = on(store)
    s = Site(handler, clock=store.clock)
    handle = s.visit(lambda session: (session.bind("ann"), session.handle)[1])
    end = {"revoke": lambda: handler.revoke(handle), "revoke_all": lambda: handler.revoke_all("ann")}[name]
    store.fail_after(1, verb="revoke")
    with pytest.raises(StoreUnavailable):
        end()
    assert calls_of(store, "confirm", end) == 1
    store.fail(1, verb="confirm")
    with pytest.raises(StoreUnavailable):
        end()


def test_an_old_token_beside_a_strangers_dead_parent_ends_nothing(store):
    visitor = on(store)
    user = visitor.spawn("user", with_store(MemoryStore(clock=store.clock)))
    s = Site(visitor, user, clock=store.clock)
    begun(s)
    old = dict(pair.split("=", 1) for pair in s.browser.jar.header().split("; "))["__Host-user"]
    s.visit(lambda _, session: session.renew())
    stranger = s.another_browser()
    s.visit(lambda session, _: session.update(n=1), stranger)
    dead = stranger.jar.header()
    s.visit(lambda session, _: session.revoke(), stranger)
    s.visit(lambda _, session: session.revoke(), s.another_browser(), HTTP_COOKIE=f"{dead}; __Host-user={old}")
    assert s.visit(read) == [{"n": 1, "l": [1]}] * 2


def test_asking_again_ends_nothing_that_began_since():
    store = FaultyStore(Confirming(clock=FakeClock()))
    job, user = on(store, server_only(), name="job"), on(store, name="user")
    first = job.generate_by_id("nightly")
    first.commit()
    handle = first.handle
    first.revoke()

    def begin_again():
        job.generate_by_id("nightly").commit()

    store.delay(1, begin_again, verb="confirm")
    assert user.revoke(handle, "ann") is False
    assert job.load_by_id("nightly").handle == handle


# -- a response that is refused after the commit ---------------------------------------------------------


@pytest.mark.parametrize("how", ["in a generator", "in the application", "by the application itself"])
def test_a_refusal_after_the_commit_repeats_what_the_commit_wrote(store, how):
    handler = on(store)

    def late(session):
        store.down()
        session.incr("n")

    def streamed(session):
        late(session)
        yield b""

    def app(request, start_response):
        session = handler.generate(request)
        session["n"] = 1
        start_response("200 OK", TEXT)
        if how == "in a generator":
            return streamed(session)
        if how == "in the application":
            late(session)
        with suppress(StoreUnavailable):
            try:
                late(session)
            except StoreUnavailable:
                start_response("503 Service Unavailable", TEXT, sys.exc_info())
                raise
        return [b"sorry"]

    browser = Browser(handler.link(app), store.clock)
    answer = browser.get()
    store.up()
    assert (answer.code, len(answer.cookies)) == (503, 1)
    request = environ(HTTP_COOKIE=browser.jar.header())
    assert dict(handler.session(request)) == {"n": 1}


def test_a_body_that_cannot_be_iterated_is_closed(store):
    closed = []

    class Body:
        def __iter__(self):
            raise RuntimeError("no")

        def close(self):
            closed.append(True)

    def app(request, start_response):
        start_response("200 OK", TEXT)
        return Body()

    with pytest.raises(RuntimeError, match="no"):
        on(store).link(app)(environ(), lambda *_: None)
    assert closed == [True]


# -- what may only be read -------------------------------------------------------------------------------


def in_its_grace(store, handler):
    s = Site(handler, clock=store.clock)
    old = begun(s)
    s.visit(lambda session: session.flash("hello"))
    s.visit(lambda session: session.renew(grace=30))
    return s, lambda action: s.visit(action, s.another_browser(), HTTP_COOKIE=old), 409


def in_an_outage(store, handler):
    s = Site(handler, clock=store.clock)
    begun(s)
    s.visit(lambda session: session.flash("hello"))
    s.visit(dict)
    store.clock.advance(6)
    store.down()
    return s, s.visit, 503


@pytest.mark.parametrize("state", [in_its_grace, in_an_outage])
def test_a_change_in_place_of_what_may_only_be_read_is_refused_as_any_write(store, state):
    cache = LocalCache(clock=store.clock)
    s, visit, refused = state(store, on(store, with_cache(cache), with_outage("stale", stale_for=60)))
    assert visit(lambda session: session["l"]) == [1]
    assert s.answer.code == 200
    visit(lambda session: session["l"].append(2))
    assert (s.answer.code, s.answer.cookies) == (refused, [])
    visit(lambda session: session["l"].__setitem__(0, True))
    assert (s.answer.code, s.answer.cookies) == (refused, [])
    assert visit(lambda session: (session.flashes(), session.flashes())) == ([("message", "hello")],) * 2
    assert (s.answer.code, s.answer.cookies) == (200, [])
    store.up()
    assert s.visit(lambda session: (session["l"], session.flashes())) == ([1], [("message", "hello")])


def test_a_serializer_that_writes_the_same_in_other_bytes_changes_nothing(store):
    class Salted:
        def dumps(self, value):
            return os.urandom(4) + orjson.dumps(value)

        def loads(self, data):
            return orjson.loads(data[4:])

    s, visit, refused = in_its_grace(store, on(store, with_serializer(Salted())))
    assert visit(lambda session: session["l"]) == [1]
    assert s.answer.code == 200
    visit(lambda session: session["l"].append(2))
    assert s.answer.code == refused


# -- a front that did not take a drop --------------------------------------------------------------------


def test_a_login_that_a_front_does_not_know_of_yet_is_no_reason_to_begin_anew(store):
    front = MemoryStore(clock=store.clock)

    def node():
        layers = LayeredStore(store.inner, FaultyStore(front), keys=SECRET)
        return Site(on(layers), clock=store.clock)

    here, there = node(), node()
    browser = here.browser

    def sent(site, action):
        browser.app = site.app
        return site.visit(action, browser)

    sent(here, lambda session: session.update(basket=[1]))
    store.clock.advance(120)
    assert sent(there, dict) == {"basket": [1]}
    here.handler.config.store.front.down()
    sent(here, lambda session: session.bind("bob"))
    assert sent(there, lambda session: (dict(session), session.subject)) == ({"basket": [1]}, "bob")
    sent(there, lambda session: session.update(hello=1))
    assert sent(there, lambda session: (dict(session), session.subject)) == ({"basket": [1], "hello": 1}, "bob")


def test_a_session_that_a_front_does_not_know_of_yet_is_ended_all_the_same(store):
    def node():
        layers = LayeredStore(store.inner, MemoryStore(clock=store.clock), max_staleness=5)
        return on(layers, server_only(), name="job")

    here, there = node(), node()
    with pytest.raises(NoSession):
        there.load_by_id("nightly")
    session = here.generate_by_id("nightly")
    session.commit()
    assert there.revoke(session.handle) is True
    assert store.inner.load(session.handle) is None


# -- settings, and names -------------------------------------------------------------------------------


def test_a_child_that_cannot_be_cached_raises_in_an_outage_whatever_its_parent_does(store):
    parent = on(store, with_cache(LocalCache(clock=store.clock)), with_outage("stale", stale_for=60))
    for child in (parent.spawn("job", server_only()), parent.spawn("carried", with_store(None))):
        assert (child.config.outage, child.config.stale_for, child.config.cache) == ("raise", 0, None)
    anonymous = on(store, with_outage("anonymous")).spawn("job", server_only())
    assert anonymous.config.outage == "anonymous"


@pytest.mark.parametrize("subject", ["x" * 1025, "\U0001f36a" * 257])
def test_a_subject_that_no_index_would_take_is_refused_at_once(store, subject):
    for handler in (on(store), Handler("carried", SECRET)):
        session = handler.session(environ())
        with pytest.raises(UsageError, match="1024 bytes"):
            session.bind(subject)
        session.bind(subject[:256])
        assert session.subject == subject[:256]


def test_the_list_of_a_carried_session_is_swept(store):
    handler = Handler("visitor", SECRET, with_clock(store.clock), with_revocations(store), with_absolute_timeout(60))
    s = Site(handler, clock=store.clock)
    begun(s)
    s.visit(lambda session: session.revoke())
    assert handler.sweep() == 0
    store.clock.advance(3700)
    assert handler.sweep() == 1


@pytest.mark.parametrize("looked_at_before", [False, True])
def test_children_kept_apart_are_listed_whoever_looked_at_the_parent_first(store, looked_at_before):
    visitor = on(store)
    user = visitor.spawn("user", with_store(None))
    found = []

    def app(request, start_response):
        found[:] = [info.handler for info in visitor.session(request).children()]
        start_response("200 OK", TEXT)
        return [b""]

    s = Site(visitor, user, clock=store.clock)
    begun(s)
    linked = visitor.link(user.link(app))
    request = environ(HTTP_COOKIE=s.browser.jar.header())
    if looked_at_before:
        visitor.session(request).is_live()
    linked(request, lambda *_: None)
    assert found == ["visitor/user"]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("is_kept", [False, True], ids=["carried", "kept"])
def test_a_session_is_not_copied(store, copied, is_kept):
    handler = on(store) if is_kept else Handler("visitor", SECRET)
    session = handler.session(environ())
    session["n"] = 1
    with pytest.raises(TypeError, match=r"dict\(session\)"):
        copied(session)
    assert copy.copy(dict(session)) == {"n": 1}


# -- a commit by hand ------------------------------------------------------------------------------------


def generated_by_hand(store):
    """Return what the store was asked for when a written parent and a replaced child are committed by hand."""
    visitor = on(store)
    user = visitor.spawn("user")
    s = Site(visitor, user, clock=store.clock)
    begun(s)
    request = {"HTTP_COOKIE": s.browser.jar.header()}
    visitor.session(request)["n"] = 2
    session = user.generate(request)
    session["n"] = 3
    store.calls.clear()
    return session, store.calls


def test_a_commit_by_hand_ends_what_was_replaced_before_it_writes_anything(store):
    session, calls = generated_by_hand(store)
    session.commit()
    assert [verb for verb, _ in calls] == ["revoke", "apply", "create"]


def test_a_commit_by_hand_writes_nothing_if_what_was_replaced_cannot_be_ended(store):
    session, calls = generated_by_hand(store)
    store.fail(1, verb="revoke")
    with pytest.raises(StoreUnavailable):
        session.commit()
    assert [verb for verb, _ in calls] == ["revoke"]


def test_a_commit_by_hand_of_a_deep_line_rehearses_each_session_once(monkeypatch):
    line, rehearsed = [Handler("a", SECRET)], []
    line += [line[-1].spawn(name) for name in "b"]
    line += [line[-1].spawn(name) for name in "c"]
    request = environ()
    for handler in line:
        handler.session(request)["n"] = 1
    monkeypatch.setattr(Session, "rehearse", lambda session, _: rehearsed.append(session.handler.name))
    assert len(line[-1].session(request).commit()) == 3
    assert rehearsed == ["a", "b", "c"]  # and not the first of them once for each below
