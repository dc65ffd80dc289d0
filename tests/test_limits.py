"""How many sessions a user may have: one after the other, in every interleaving, in threads and in processes.

The order that counts is the one in which the store's engine bound the sessions. In the interleavings it is read from
the schedule, step by step, so who has to stay is known without asking the library. This file is also the program of
the worker processes, each with a handler and a store of its own.
"""

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import combinations_with_replacement, product
from threading import Barrier, Lock
from typing import NamedTuple

import pytest
from engines import ENGINES, opened
from scheduler import Scenario, Scheduler
from support import SECRET, SOAK, Site, environ, run
from test_interleavings import OperationClock, cookie_of, is_deletion, told
from test_tree_races import Stores, every_processor

from sessiontree import (
    ConfigError,
    Handler,
    LimitReached,
    chain,
    server_only,
    with_absolute_timeout,
    with_clock,
    with_events,
    with_idle_timeout,
    with_max_age,
    with_max_sessions,
    with_revocations,
    with_store,
)
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.testing import FakeClock, FaultyStore

ANN, BOB = "ann", "bob"
REFUSE, OLDEST = "refuse", "oldest"
REQUEST = environ()
WAIT = 60
LOGINS = 100
LIMIT = 3


@pytest.fixture(params=ENGINES)
def store(request, tmp_path):
    clock = FakeClock()
    faulty = FaultyStore(opened(request.param, tmp_path, clock))
    yield faulty
    faulty.close()


@pytest.fixture(params=[REFUSE, OLDEST])
def policy(request):
    return request.param


def handler_on(store, most=1, policy=REFUSE, *options, name="user"):
    return Handler(name, SECRET, with_clock(store.clock), with_store(store), with_max_sessions(most, policy), *options)


def site_on(store, most=1, policy=REFUSE, *options):
    return Site(handler_on(store, most, policy, *options))


def log_in(session, subject=ANN):
    session["in"] = True
    session.bind(subject)
    return session.handle


def login(site, browser=None, subject=ANN):
    """Log in, in a browser of its own unless one is given; return the browser, the status and the handle."""
    browser = browser or site.another_browser()
    handle = site.visit(lambda session: log_in(session, subject), browser)
    return browser, site.answer.code, handle


def bound(handler, subject=ANN):
    """Return the handles of a subject's sessions, the one that was bound first at the head."""
    return [info.handle for info in handler.sessions(subject)][::-1]


def data(site, browser):
    return site.visit(dict, browser)


def records(store):
    return store.inner.scan(limit=1000).records


# -- building -------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, -1, True, 1.0, "3", None])
def test_a_limit_is_an_int_of_one_or_more(most):
    with pytest.raises(ConfigError, match="1 or more"):
        with_max_sessions(most, REFUSE)


@pytest.mark.parametrize("policy", ["newest", "", "Refuse", None, 1])
def test_there_are_two_policies(policy):
    with pytest.raises(ConfigError, match="refuse"):
        with_max_sessions(1, policy)


@pytest.mark.parametrize("options", [(), (with_revocations(MemoryStore()),)], ids=["carried", "listed"])
def test_a_limit_without_a_store_is_found_when_the_handler_is_built(policy, options):
    with pytest.raises(ConfigError, match="with_store"):
        Handler("user", SECRET, *options, with_max_sessions(1, policy))
    with pytest.raises(ConfigError, match="with_store"):
        Handler("user", SECRET, with_store(MemoryStore()), with_max_sessions(1, policy)).configure(with_store(None))


def test_a_child_does_not_inherit_the_limit_and_a_copy_keeps_it(store):
    visitor = handler_on(store, name="visitor")
    visitor.spawn("plain", with_store(None))
    s = Site(visitor, visitor.spawn("user"))
    assert s.visit(lambda v, u: (v.update(n=1), log_in(u))[1])
    for _ in range(2):
        s.visit(lambda v, u: (v.update(n=1), log_in(u)), s.another_browser())
        assert s.answer.code == 200
    assert len(bound(s.handlers[1])) == 3
    copy = Site(handler_on(store, name="other").configure(with_idle_timeout(60)))
    assert [login(copy)[1] for _ in range(2)] == [200, 409]


# -- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 5])
def test_above_the_limit_a_login_is_answered_409_without_a_cookie_and_nothing_of_it_lasts(store, most):
    s = site_on(store, most)
    logged_in = [login(s) for _ in range(most)]
    assert [code for _, code, _ in logged_in] == [200] * most
    before = sorted(records(store))
    refused, code, handle = login(s)
    assert (code, s.answer.cookies, refused.jar.cookies()) == (409, [], [])
    assert sorted(records(store)) == before
    assert bound(s.handler) == [handle for _, _, handle in logged_in]
    assert store.inner.load(handle) is None
    assert [data(s, browser) for browser, _, _ in logged_in] == [{"in": True}] * most


@pytest.mark.parametrize("end", ["revoke", "bind to nobody", "bind to another", "handler.revoke", "handler.revoke_all"])
def test_who_goes_makes_room(store, end):
    s = site_on(store)
    browser, _, handle = login(s)
    assert login(s)[1] == 409
    ends = {
        "revoke": lambda session: session.revoke(),
        "bind to nobody": lambda session: session.bind(None),
        "bind to another": lambda session: session.bind(BOB),
        "handler.revoke": lambda session: s.handler.revoke(handle),
        "handler.revoke_all": lambda session: s.handler.revoke_all(ANN),
    }
    s.visit(ends[end], browser)
    assert s.answer.code == 200
    assert login(s)[1] == 200
    assert login(s)[1] == 409


def test_a_session_that_was_there_before_stays_with_all_it_had_and_belongs_to_nobody(store):
    s = site_on(store, 1, REFUSE, with_absolute_timeout(1000))
    login(s)
    other = s.another_browser()
    s.visit(
        lambda session: (session.update(cart=[1], gone="no"), session.put("code", 7, 60), session.flash("hi")), other
    )
    old = other.jar.header()
    handle = s.visit(lambda session: session.handle, other)

    def attempt(session):
        session["cart"].append(2)
        session["late"] = True
        session.delete("gone")
        session.put("code", 8)
        session.flash("welcome")
        session.touch(max_age=500)
        log_in(session)

    s.visit(attempt, other)
    assert s.answer.code == 409
    (line,) = s.answer.cookies
    assert not is_deletion(line)

    def seen(session):
        return session.handle, session.subject, dict(session), session.ttl("code"), session.expires_in

    assert s.visit(seen, other) == (handle, None, {"cart": [1], "gone": "no", "code": 7}, 60.0, 1000.0)
    assert s.visit(lambda session: (session.fresh_within(60), session.flashes()), other) == (
        False,
        [("message", "hi")],
    )
    assert s.visit(lambda session: session.handle, s.another_browser(), HTTP_COOKIE=old) is None
    assert len(bound(s.handler)) == 1


@pytest.mark.parametrize("had", [None, 800], ids=["browser session", "remembered"])
def test_the_new_id_of_who_is_refused_comes_in_a_cookie_of_the_life_it_had(store, had):
    s = site_on(store, 1, REFUSE, with_max_age(had))
    login(s)
    other = s.another_browser()
    s.visit(lambda session: session.update(cart=1), other)
    s.visit(lambda session: (session.touch(max_age=None if had else 500), log_in(session)), other)
    assert s.answer.code == 409
    (line,) = s.answer.cookies
    assert ("; Max-Age=800;" in line) == ("Max-Age" in line) == bool(had)


def test_who_is_refused_can_log_in_with_the_same_session_once_there_is_room(store):
    s = site_on(store)
    first, _, _ = login(s)
    other = s.another_browser()
    s.visit(lambda session: session.update(cart=1), other)
    assert login(s, other)[1] == 409
    s.visit(lambda session: session.revoke(), first)
    assert login(s, other)[1] == 200
    assert s.visit(lambda session: (session.subject, dict(session)), other) == (ANN, {"cart": 1, "in": True})


def test_a_commit_by_hand_raises_in_the_view_which_then_answers_as_it_likes(store):
    s = site_on(store)
    _, _, handle = login(s)

    def view(session):
        log_in(session)
        with pytest.raises(LimitReached):
            session.commit()
        return bound(s.handler)

    fresh = s.another_browser()
    assert s.visit(view, fresh) == [handle]
    assert (s.answer.code, s.answer.cookies) == (200, [])
    there = s.another_browser()
    s.visit(lambda session: session.update(cart=1), there)
    assert s.visit(view, there) == [handle]
    assert (s.answer.code, len(s.answer.cookies)) == (200, 1)
    assert s.visit(lambda session: (session.subject, dict(session)), there) == (None, {"cart": 1})
    assert bound(s.handler) == [handle]


def test_what_is_written_after_a_refusal_in_the_view_lasts(store):
    s = site_on(store)
    login(s)
    other = s.another_browser()
    s.visit(lambda session: session.update(cart=1), other)

    def view(session):
        log_in(session)
        with pytest.raises(LimitReached):
            session.commit()
        session["told"] = True

    s.visit(view, other)
    assert s.answer.code == 200
    assert s.visit(lambda session: (session.subject, dict(session)), other) == (None, {"cart": 1, "told": True})


def test_a_browser_that_replaces_its_own_session_is_let_in_at_the_full_number(store, policy):
    s = site_on(store, 2, policy)
    first, _, _ = login(s)
    _, _, kept = login(s)
    old = first.jar.header()
    handle = s.visit(anew, first)
    assert s.answer.code == 200
    assert bound(s.handler) == [kept, handle]
    assert data(s, first) == {"in": True}
    assert s.visit(lambda session: session.handle, s.another_browser(), HTTP_COOKIE=old) is None


# -- the oldest give way --------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 5])
def test_above_the_limit_the_session_that_was_bound_first_is_ended(store, most):
    events = []
    s = site_on(store, most, OLDEST, with_events(events.append))
    logged_in = []
    for number in range(most + 3):
        logged_in.append(login(s))
        ended = [event for event in events if event.kind == "revoked"]
        assert [(event.handle, event.reason) for event in ended] == [
            (handle, "limit") for _, _, handle in logged_in[: max(0, number + 1 - most)]
        ]
    assert [code for _, code, _ in logged_in] == [200] * (most + 3)
    assert bound(s.handler) == [handle for _, _, handle in logged_in[3:]]
    assert [data(s, browser) for browser, _, _ in logged_in] == [{}] * 3 + [{"in": True}] * most


def test_a_limit_that_was_lowered_ends_all_but_the_newest_at_the_next_login_and_refuses_without_ending(store):
    s = site_on(store, 4)
    handles = [login(s)[2] for _ in range(4)]
    refusing = Site(handler_on(store, 2))
    assert login(refusing)[1] == 409
    assert bound(refusing.handler) == handles
    ending = Site(handler_on(store, 2, OLDEST))
    handle = login(ending)[2]
    assert bound(ending.handler) == [handles[3], handle]


def test_a_parent_that_gives_way_takes_its_children_along(store):
    visitor = handler_on(store, 1, OLDEST, name="visitor")
    s = Site(visitor, visitor.spawn("user"))
    s.visit(lambda v, u: (log_in(v), u.update(n=1)))
    s.visit(lambda v, u: log_in(v), s.another_browser())
    assert s.visit(lambda v, u: (dict(v), dict(u))) == ({}, {})


# -- who counts -----------------------------------------------------------------------------------


def test_subjects_and_handlers_do_not_disturb_each_other(store, policy):
    s = site_on(store, 2, policy)
    other = Site(handler_on(store, 1, policy, name="admin"))
    handles = [login(s)[2] for _ in range(2)]
    theirs = [login(s, subject=BOB)[2] for _ in range(2)]
    (admin,) = [login(other)[2]]
    assert s.answer.code == other.answer.code == 200
    assert (bound(s.handler), bound(s.handler, BOB), bound(other.handler)) == (handles, theirs, [admin])
    login(s)
    assert len(bound(s.handler)) == 2
    assert (bound(s.handler, BOB), bound(other.handler)) == (theirs, [admin])


def test_one_name_under_two_parents_is_two_handlers(store):
    sites = [Site(parent, parent.spawn("user", with_max_sessions(1, REFUSE))) for parent in (
        handler_on(store, name="visitor"), handler_on(store, name="guest"),
    )]  # fmt: skip
    for s in sites:
        s.visit(lambda v, u: (v.update(n=1), log_in(u)))
        assert s.answer.code == 200
        s.visit(lambda v, u: (v.update(n=1), log_in(u)), s.another_browser())
        assert s.answer.code == 409


def test_sessions_of_nobody_do_not_count(store, policy):
    s = site_on(store, 1, policy)
    anonymous = [s.another_browser() for _ in range(3)]
    for browser in anonymous:
        s.visit(lambda session: session.update(n=1), browser)
    assert login(s)[1] == 200
    assert [data(s, browser) for browser in anonymous] == [{"n": 1}] * 3


@pytest.mark.parametrize(
    "life", [with_absolute_timeout(100), with_max_age(100), with_idle_timeout(100)], ids=["absolute", "own", "idle"]
)
def test_the_expired_do_not_count(store, life):
    s = site_on(store, 1, REFUSE, life)
    login(s)
    store.clock.advance(99)
    assert login(s)[1] == 409
    store.clock.advance(1)
    assert login(s)[1] == 200
    assert login(s)[1] == 409


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("end", ["revoke", "expire", "replace"])
def test_those_whose_ancestors_are_dead_do_not_count(store, end, depth):
    line = [Handler("level0", SECRET, with_clock(store.clock), with_store(store), with_absolute_timeout(100))]
    while len(line) <= depth:
        line.append(
            line[-1].spawn(f"level{len(line)}", *([with_max_sessions(1, REFUSE)] if len(line) == depth else []))
        )
    s = Site(*line)

    def enter(*sessions):
        for session in sessions[:-1]:
            session.update(n=1)
        return log_in(sessions[-1])

    s.visit(enter)
    if end == "expire":
        store.clock.advance(50)
    other = s.another_browser()
    s.visit(enter, other)
    assert s.answer.code == 409
    if end == "expire":
        store.clock.advance(50)
    else:
        s.visit(lambda root, *rest: root.revoke() if end == "revoke" else root.regenerate() or root.update(n=2))
    handle = s.visit(enter, other)
    assert s.answer.code == 200
    assert bound(line[-1]) == [handle]


def test_the_oldest_of_those_that_live_gives_way_and_no_dead_one_takes_its_turn(store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store))
    s = Site(visitor, visitor.spawn("user", with_max_sessions(2, OLDEST)))

    def enter(v, u):
        v["n"] = 1
        return log_in(u)

    browsers = [s.another_browser() for _ in range(4)]
    handles = [s.visit(enter, browser) for browser in browsers[:2]]
    s.visit(lambda v, u: v.revoke(), browsers[1])
    handles += [s.visit(enter, browser) for browser in browsers[2:]]
    assert bound(s.handlers[1]) == handles[2:]
    s.visit(lambda v, u: v.revoke(), browsers[2])
    assert s.visit(enter, browsers[0]) is not None
    assert bound(s.handlers[1])[0] == handles[3]


@pytest.mark.parametrize("renewed", [False, True])
def test_to_bind_to_the_same_subject_again_costs_nothing_and_changes_nothing(store, policy, renewed):
    s = site_on(store, 2, policy)
    first, _, handle = login(s)
    _, _, second = login(s)
    if renewed:
        s.visit(lambda session: session.renew(), first)
    store.clock.advance(10)
    before = len(store.calls)
    s.visit(lambda session: log_in(session), first)
    assert s.answer.code == 200
    assert Counter(verb for verb, _ in store.calls[before:]) == {"load": 1, "apply": 1}
    assert bound(s.handler) == [handle, second]
    assert s.visit(lambda session: session.fresh_within(1), first)
    if policy == OLDEST:
        _, _, third = login(s)
        assert bound(s.handler) == [second, third]


def test_an_unlimited_handler_lists_nothing_at_a_login(store):
    s = Site(Handler("user", SECRET, with_clock(store.clock), with_store(store)))
    s.visit(log_in)
    assert Counter(verb for verb, _ in store.calls) == {"create": 1}


def test_a_clock_that_runs_backwards_between_logins_changes_nothing(store, policy):
    s = site_on(store, 2, policy)
    logged_in = []
    for seconds in (0, -3600, 7200, -86_400):
        store.clock.advance(seconds)
        logged_in.append(login(s))
    handles = [handle for _, _, handle in logged_in]
    if policy == REFUSE:
        assert [code for _, code, _ in logged_in] == [200, 200, 409, 409]
        assert bound(s.handler) == handles[:2]
    else:
        assert [code for _, code, _ in logged_in] == [200] * 4
        assert bound(s.handler) == handles[2:]


def test_who_leaves_and_comes_back_stands_at_the_end_of_the_line(store):
    s = site_on(store, 2, OLDEST)
    first, _, one = login(s)
    _, _, two = login(s)
    s.visit(lambda session: session.bind(None), first)
    s.visit(log_in, first)
    assert bound(s.handler) == [two, one]
    _, _, three = login(s)
    assert bound(s.handler) == [one, three]


def test_sessions_by_an_id_of_the_applications_own_are_limited_too(store):
    jobs = handler_on(store, 1, REFUSE, server_only, name="job")
    first, second = jobs.generate_by_id("first"), jobs.generate_by_id("second")
    log_in(first)
    first.commit()
    log_in(second)
    with pytest.raises(LimitReached):
        second.commit()
    assert bound(jobs) == [first.handle]
    again = jobs.load_by_id("second")
    assert (again.subject, dict(again)) == (None, {})


# -- a store that fails ---------------------------------------------------------------------------


def failing(store, verb, *, lost):
    (store.fail_after if lost else store.fail)(1, verb=verb)


@pytest.mark.parametrize("lost", [False, True], ids=["not reached", "answer lost"])
def test_a_login_that_cannot_be_counted_is_answered_503_without_a_cookie_and_does_not_last(store, policy, lost):
    s = site_on(store, 2, policy)
    browser, _, handle = login(s)
    failing(store, "find", lost=lost)
    _, code, _ = login(s)
    assert (code, s.answer.cookies) == (503, [])
    assert [record.handle for record in records(store)] == [handle]
    assert data(s, browser) == {"in": True}
    assert [login(s)[1] for _ in range(2)] == ([200, 409] if policy == REFUSE else [200, 200])


def test_a_login_whose_ancestors_cannot_be_counted_does_not_last_either(store, policy):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store))
    s = Site(visitor, visitor.spawn("user", with_max_sessions(1, policy)))
    s.visit(lambda v, u: (v.update(n=1), log_in(u)))
    other = s.another_browser()
    s.visit(lambda v, u: v.update(n=1), other)
    store.fail(1, verb="load_many")
    s.visit(lambda v, u: log_in(u), other)
    assert (s.answer.code, s.answer.cookies) == (503, [])
    assert len(bound(s.handlers[1])) == 1
    assert s.visit(lambda v, u: (dict(v), dict(u)), other) == ({"n": 1}, {})
    assert s.visit(lambda v, u: dict(u)) == {"in": True}


def test_a_session_that_was_there_before_and_cannot_be_counted_belongs_to_nobody(store, policy):
    s = site_on(store, 1, policy)
    browser = s.another_browser()
    s.visit(lambda session: session.update(cart=1), browser)
    store.fail(1, verb="find")
    s.visit(log_in, browser)
    assert s.answer.code == 503
    assert s.visit(lambda session: (session.subject, dict(session)), browser) == (None, {"cart": 1})
    assert bound(s.handler) == []
    assert login(s, browser)[1] == 200


@pytest.mark.parametrize("nth", [1, 2])
def test_a_login_in_a_session_that_was_there_before_happens_whole_or_not_at_all(store, policy, nth):
    """Nobody is logged in without what the login wrote beside it: a role, or that a second factor is missing."""
    s = site_on(store, 1, policy)
    browser = s.another_browser()
    s.visit(lambda session: session.update(cart=1), browser)
    store.fail(nth, verb="apply")
    _, code, _ = login(s, browser)
    expected = (None, {"cart": 1}) if code == 503 else (ANN, {"cart": 1, "in": True})
    assert s.visit(lambda session: (session.subject, dict(session)), browser) == expected


@pytest.mark.parametrize("lost", [False, True], ids=["not reached", "answer lost"])
def test_when_the_oldest_cannot_be_ended_the_login_does_not_last(store, lost):
    s = site_on(store, 1, OLDEST)
    _, _, handle = login(s)
    failing(store, "revoke", lost=lost)
    _, code, _ = login(s)
    assert (code, s.answer.cookies) == (503, [])
    assert bound(s.handler) == ([] if lost else [handle])
    assert len(records(store)) == (not lost)
    assert login(s)[1] == 200


def test_a_login_whose_writing_lost_its_answer_takes_nobodys_place(store, policy):
    """Nobody has a cookie of it, so nobody could ever log it out."""
    s = site_on(store, 1, policy)
    store.fail_after(1, verb="create")
    _, code, _ = login(s)
    assert (code, s.answer.cookies) == (503, [])
    assert bound(s.handler) == []
    assert login(s)[1] == 200


def test_a_parent_whose_child_is_refused_in_the_same_login_takes_nobodys_place(store):
    """Nobody has a cookie of the parent, so nobody could ever log it out."""
    user = handler_on(store, 2)
    s = Site(user, user.spawn("admin", with_max_sessions(1, REFUSE)))
    handle = s.visit(lambda u, a: (log_in(u), log_in(a))[0])
    s.visit(lambda u, a: (log_in(u), log_in(a)), s.another_browser())
    assert (s.answer.code, s.answer.cookies) == (409, [])
    assert bound(user) == [handle]


# -- every interleaving ---------------------------------------------------------------------------

MOST_PREEMPTIONS = 2 if SOAK == 1 else 3
OPEN = 2


def anew(session):
    session.regenerate()
    return log_in(session)


ACTS = {
    "fresh": lambda *sessions: log_in(sessions[-1]),
    "known": lambda *sessions: log_in(sessions[-1]),
    "again": lambda *sessions: anew(sessions[-1]),
    "logout": lambda *sessions: sessions[-1].revoke(),
    "end-parent": lambda *sessions: sessions[0].revoke(),
}
"""``fresh`` comes without a session, ``known`` with one of nobody; the others with the first that is logged in."""

COMING = ("fresh", "known", "again")
GOING = ("again", "logout", "end-parent")


class Reply(NamedTuple):
    """What came of one request."""

    code: int
    cookies: tuple[str, ...]
    handle: str | None

    @property
    def given(self):
        """The cookies that this sends, as a browser sends them back."""
        return [cookie_of(line) for line in self.cookies if not is_deletion(line)]


class Client(NamedTuple):
    """A browser: the handle of its session, if it has one, and the cookies of its session and of the parent's."""

    handle: str | None
    cookie: str
    above: str

    @property
    def cookies(self):
        return "; ".join(filter(None, (self.above, self.cookie)))


class Door:
    """An application with a limit: clients who come for the first time, who come back, and who are logged in."""

    def __init__(self, stores, clock, kind, is_child):
        self.store, self.kind, self.is_child = stores[kind], kind, is_child
        self._above = Handler("visitor", SECRET, with_clock(clock), with_store(self.store))
        self.limit()
        self.fresh = [self._client(None) for _ in range(3)]
        self.known = [
            self._client(lambda *sessions: sessions[-1].update(cart=1) or sessions[-1].handle) for _ in range(3)
        ]
        self.open = [self._client(ACTS["fresh"]) for _ in range(OPEN)]
        bound_first = [client.handle for client in self.open]
        kept = {record.handle: record for record in self.store.inner.scan().records}
        self._bound = [kept.pop(handle) for handle in bound_first]
        self._others = list(kept.values())

    def limit(self, *options):
        if self.is_child:
            self.handlers = (self._above, self._above.spawn("user", *options))
        else:
            self.handlers = (self._above.configure(*options),)
        self._app = chain(*self.handlers)(self._answer)

    def _client(self, act):
        above = ""
        if self.is_child:
            (above,) = self.ask("", lambda visitor, user: visitor.update(n=1)).given
        if act is None:
            return Client(None, "", above)
        reply = self.ask(above, act)
        return Client(reply.handle, *reply.given, above)

    def _answer(self, request, start_response):
        request["test.seen"] = request["test.act"](*(handler.session(request) for handler in self.handlers))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    def ask(self, cookies, act):
        request = REQUEST | {"HTTP_COOKIE": cookies, "test.act": act, "test.seen": None}
        answer = run(self._app, request, validate=False)
        return Reply(answer.code, tuple(answer.cookies), request["test.seen"])

    def reset(self, case):
        """Have the limit of a case, and as many sessions that are logged in as it has."""
        self.most, self.refuses, self.opened = case.most, case.policy == REFUSE, case.opened
        self.limit(with_max_sessions(case.most, case.policy))
        self.store.kept = [*self._bound[: case.opened], *self._others]
        self.store.reset()

    def client(self, name, number):
        return {"fresh": self.fresh, "known": self.known}.get(name, [self.open[0]] * 3)[number]

    def operate(self, name, number):
        return self.ask(self.client(name, number).cookies, ACTS[name])

    def bound(self):
        return bound(self.handlers[-1])

    def seen(self, client, given):
        """Return the handle, the user and the data that a client with this cookie of ours sees."""
        return self.ask(
            "; ".join(filter(None, (client.above, given))),
            lambda *sessions: (sessions[-1].handle, sessions[-1].subject, dict(sessions[-1])),
        )


class Queue:
    """Who was bound when, as the schedule tells it: the order of those who live, and whom each login had before it.

    The numbers of the operations stand for their sessions, and negative ones for those that were there before.
    """

    def __init__(self, door, run, names):
        self.order = list(range(-door.opened, 0))
        self.before = {}
        self.everybody = list(self.order)
        self._first = -door.opened
        self._refused = {number for number in range(len(names)) if run.results[number].code == 409}
        self._orphans = set()
        for number, label in run.steps:
            if label.startswith("before "):
                self._note(label.removeprefix("before "), number, names[number])

    def _note(self, verb, number, name):
        is_bound = number in self.everybody
        if verb == "create" or (verb == "apply" and not is_bound):
            self.order.append(number)
            self.everybody.append(number)
        elif verb == "revoke" and name in GOING and not is_bound:
            self._leave(self._first, is_orphan=name == "end-parent")
        elif verb in {"revoke", "apply"} and number in self._refused:
            self._leave(number)
        elif verb == "find" and is_bound:
            self.before[number] = self.order[: self.order.index(number)] if number in self.order else []
        elif verb == "load_many" and number in self.before:
            self.before[number] = [one for one in self.before[number] if one not in self._orphans]

    def _leave(self, number, *, is_orphan=False):
        self._orphans |= {number} if is_orphan else set()
        if number in self.order:
            self.order.remove(number)


class Verdict:
    """What is found after a schedule, and what should be."""

    def __init__(self, door, run, names):
        self.door, self.names = door, names
        self.queue = Queue(door, run, names)
        self.replies = [run.results[number] for number in range(len(names))]
        self.coming = [number for number, name in enumerate(names) if name in COMING]
        self.is_calm = not set(names) & set(GOING)

    def handle_of(self, number):
        return self.door.open[number + self.door.opened].handle if number < 0 else self.replies[number].handle

    def check(self):
        self.check_numbers()
        if self.door.refuses:
            self.check_refused()
        else:
            self.check_oldest()
        self.check_cookies()

    def check_numbers(self):
        """Never more than the limit are left, and never fewer if nobody left."""
        live, most = len(self.door.bound()), self.door.most
        assert live <= most
        if self.is_calm:
            assert live == min(most, self.door.opened + len(self.coming))

    def check_refused(self):
        """A login is refused if and only if the full number was bound before it and live when it looked."""
        for number in self.coming:
            is_full = len(self.queue.before[number]) >= self.door.most
            assert self.replies[number].code == (409 if is_full else 200)
        assert self.door.bound() == [self.handle_of(number) for number in self.queue.order]
        if self.is_calm:
            assert self.queue.order == self.queue.everybody[: self.door.most]

    def check_oldest(self):
        """Those who were bound last are live, in the order in which they were bound."""
        gone = {-self.door.opened} if not self.is_calm else set()
        expected = [number for number in self.queue.everybody if number not in gone][-self.door.most :]
        assert self.door.bound() == [self.handle_of(number) for number in expected]
        for number in self.coming:
            assert self.replies[number].code == 200 or (self.names[number] == "known" and number not in expected)

    def check_cookies(self):
        """A session's cookie loads it while it is live; who is refused gets none, or the new id of what it had."""
        live = self.door.bound()
        for number in self.coming:
            reply, client = self.replies[number], self.door.client(self.names[number], number)
            is_known = self.names[number] == "known"
            had = {"cart": 1} if is_known else {}
            if reply.code == 409 and not is_known:
                assert reply.cookies == ()
                assert self.door.store.inner.load(reply.handle) is None
            elif reply.code == 409 and not self.door.refuses:
                assert reply.cookies == ()
            else:
                (given,) = reply.given
                seen = self.door.seen(client, given)
                if reply.code == 409:
                    assert seen.handle == (client.handle, None, had)
                elif reply.handle in live:
                    assert seen.handle == (reply.handle, ANN, {"in": True, **had})
                else:
                    assert seen.handle == (None, None, {})
            if client.cookie and self.names[number] != "logout":
                assert self.door.seen(client, client.cookie).handle == (None, None, {})


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler() as made:
        yield made


@pytest.fixture(scope="module")
def clock(scheduler):
    return OperationClock(scheduler)


@pytest.fixture(scope="module")
def door(request, scheduler, clock, tmp_path_factory):
    kind, _, child = request.param.partition(", ")
    stores = Stores(scheduler, clock, tmp_path_factory.mktemp("stores"))
    yield Door(stores, clock, kind, bool(child))
    stores.close()


class Case(NamedTuple):
    """Who comes and goes, what the limit is, and how many sessions are logged in before."""

    names: tuple[str, ...]
    most: int
    policy: str
    opened: int


def at_once(door, case):
    def scenario():
        door.reset(case)
        acts = [partial(door.operate, name, number) for number, name in enumerate(case.names)]
        return Scenario(acts, lambda run: Verdict(door, run, case.names).check())

    return scenario


PAIRS = [
    *combinations_with_replacement(("fresh", "known"), 2),
    *((going, coming) for going in GOING for coming in ("fresh", "known")),
]
TRIPLES = [
    *combinations_with_replacement(("fresh", "known"), 3),
    *((going, "fresh", coming) for going in GOING for coming in ("fresh", "known")),
]
ENDING_PARENTS = [("end-parent", "fresh"), ("end-parent", "known"), ("logout", "fresh")]


def cases(kind, groups, limits=(1, 2)):
    """Return each group at a door with each limit, with nobody logged in before and with the full number."""
    return [
        pytest.param(kind, case, id="-".join((kind, *case.names, str(case.most), case.policy, str(case.opened))))
        for names, most, policy in product(groups, limits, (REFUSE, OLDEST))
        if kind == "memory, child" or "end-parent" not in names
        for opened in ([most] if set(names) & set(GOING) else [0, most])
        for case in [Case(names, most, policy, opened)]
    ]


TWO = [
    *cases("memory", PAIRS),
    *cases("sqlite", [pair for pair in PAIRS if "fresh" in pair], [1]),
    *cases("memory, child", ENDING_PARENTS, [1]),
]
THREE = [
    *cases("memory", [("fresh", "fresh", "fresh")]),
    *cases("memory", [("fresh", "fresh", "known"), ("logout", "fresh", "fresh")], [2]),
    *cases("sqlite", [("fresh", "fresh", "fresh")], [1]),
]
if SOAK > 1:
    TWO = [each for kind in ("memory", "sqlite", "memory, child") for each in cases(kind, PAIRS)]
    THREE = [
        *cases("memory", TRIPLES),
        *cases("sqlite", TRIPLES, [1]),
        *cases("memory, child", [("end-parent", "fresh", "fresh")]),
    ]


@pytest.mark.parametrize(("door", "case"), TWO, indirect=["door"])
def test_in_every_interleaving_of_two_logins_exactly_the_limit_stays(scheduler, door, case):
    told(door.kind, case.names, scheduler.explore(at_once(door, case)))


@pytest.mark.parametrize(("door", "case"), THREE, indirect=["door"])
def test_of_three_logins_with_few_preemptions_exactly_the_limit_stays(scheduler, door, case):
    told(door.kind, case.names, scheduler.explore(at_once(door, case), MOST_PREEMPTIONS))


# -- real threads ---------------------------------------------------------------------------------


@pytest.fixture(params=ENGINES)
def shared(request, tmp_path):
    """A store on the clock of the system."""
    made = opened(request.param, tmp_path)
    yield made
    made.close()


def app_on(store, most, policy):
    """Return a handler, and an application behind it that logs in, or does what the environ says."""
    handler = handler_on(store, most, policy, name=policy)

    def app(request, start_response):
        session = handler.session(request)
        result = request.get("test.act", log_in)(session)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [repr(result).encode()]

    return handler, handler.link(app)


def visit(app, cookie="", act=log_in):
    return run(app, REQUEST | {"HTTP_COOKIE": cookie, "test.act": act}, validate=False)


def at_one_moment(calls):
    """Make the calls in threads that all begin together; return what they returned, in their order."""
    barrier = Barrier(len(calls), timeout=WAIT)

    def call(each):
        barrier.wait()
        return each()

    with every_processor(), ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(WAIT) for future in [pool.submit(call, each) for each in calls]]


def living(app, cookies):
    """Return those cookies that load a session of ann."""
    return [cookie for cookie in cookies if visit(app, cookie, lambda session: session.subject).text == repr(ANN)]


def given_by(answers):
    return [cookie_of(line) for answer in answers for line in answer.cookies]


@pytest.mark.parametrize("coming", ["fresh", "known"])
def test_of_a_hundred_logins_at_once_exactly_three_stay(shared, policy, coming):
    """Or of twenty in sessions that were there before, each of which writes twice and stays."""
    handler, app = app_on(shared, LIMIT, policy)
    count = LOGINS if coming == "fresh" or SOAK > 1 else LOGINS // 5
    cookies = [""] * count
    if coming == "known":
        begun = [visit(app, act=lambda session: session.update(cart=1)) for _ in cookies]
        cookies = [cookie_of(answer.cookies[0]) for answer in begun]
    answers = at_one_moment([partial(visit, app, cookie) for cookie in cookies])
    codes = Counter(answer.code for answer in answers)
    assert len(bound(handler)) == len(living(app, given_by(answers))) == LIMIT
    if policy == REFUSE:
        assert codes == {200: LIMIT, 409: count - LIMIT}
    else:
        assert codes[200] + codes[409] == count
    refused = [answer for answer in answers if answer.code == 409]
    if coming == "fresh":
        assert not any(answer.cookies for answer in refused)
        assert len(shared.scan(limit=1000).records) == LIMIT
    elif policy == REFUSE:
        assert {visit(app, cookie_of(answer.cookies[0]), dict).text for answer in refused} == {"{'cart': 1}"}
    else:
        assert not any(answer.cookies for answer in refused)


def test_logins_beside_logouts_in_threads_never_let_one_more_in(shared):
    """Who was answered 200 and has not begun to leave is in; of these there are never more than the limit."""
    handler, app = app_on(shared, LIMIT, REFUSE)
    lock, inside, most_inside = Lock(), 0, 0

    def come_and_go():
        nonlocal inside, most_inside
        let_in = 0
        for _ in range(10 * SOAK):
            answer = visit(app)
            if answer.code == 409:
                continue
            assert answer.code == 200
            with lock:
                inside, let_in = inside + 1, let_in + 1
                most_inside = max(inside, most_inside)
            with lock:
                inside -= 1
            assert visit(app, cookie_of(answer.cookies[0]), lambda session: session.revoke()).code == 200
        return let_in

    assert sum(at_one_moment([come_and_go] * 8)) >= LIMIT
    assert 0 < most_inside <= LIMIT
    assert bound(handler) == []
    assert [visit(app).code for _ in range(LIMIT + 1)] == [200] * LIMIT + [409]


def test_logins_beside_logouts_in_threads_leave_the_limit_at_the_most(shared):
    handler, app = app_on(shared, LIMIT, OLDEST)

    def come_and_go(number):
        for turn in range(10 * SOAK):
            answer = visit(app)
            assert answer.code == 200
            if (turn + number) % 2:
                assert visit(app, cookie_of(answer.cookies[0]), lambda session: session.revoke()).code == 200

    at_one_moment([partial(come_and_go, number) for number in range(8)])
    assert len(bound(handler)) <= LIMIT
    answers = [visit(app) for _ in range(LIMIT)]
    assert len(bound(handler)) == len(living(app, given_by(answers))) == LIMIT


# -- processes ------------------------------------------------------------------------------------

PROCESSES = 4


def tell(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def work(path):
    """Log in again and again once told to go on, and print each answer's status and cookie, then ``done``."""
    store = SqliteStore(path, timeout=WAIT)
    doors = [app_on(store, LIMIT, policy) for policy in (REFUSE, OLDEST)]
    tell("ready")
    sys.stdin.readline()
    for _, (handler, app) in product(range(LOGINS // PROCESSES), doors):
        answer = visit(app)
        tell(f"{handler.name} {answer.code} {' '.join(map(cookie_of, answer.cookies))}")
    tell("done")
    store.close()


class Worker:
    """A process that logs in; ``with`` ends it, whatever happened."""

    def __init__(self, path):
        command = [sys.executable, __file__, str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hears(self):
        return self._process.stdout.readline().strip()

    def go_on(self):
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def answers(self):
        """Yield the policy, the status and the cookies of each answer."""
        for line in iter(self.hears, "done"):
            policy, code, *cookies = line.split(" ", 2)
            yield policy, code, cookies

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        if raised[0] is not None:
            self._process.kill()
        self._process.communicate(timeout=WAIT)
        assert raised[0] is not None or self._process.returncode == 0


def test_of_a_hundred_logins_from_four_processes_exactly_three_stay(tmp_path):
    """Each process logs in by turns at a handler that refuses and at one where the oldest give way."""
    path = tmp_path / "s.db"
    store = SqliteStore(path, timeout=WAIT)
    with every_processor(), ExitStack() as stack:
        workers = [stack.enter_context(Worker(path)) for _ in range(PROCESSES)]
        assert [worker.hears() for worker in workers] == ["ready"] * PROCESSES
        for worker in workers:
            worker.go_on()
        answers = [answer for worker in workers for answer in worker.answers()]
    for policy in (REFUSE, OLDEST):
        handler, app = app_on(store, LIMIT, policy)
        codes = Counter(code for asked, code, _ in answers if asked == policy)
        cookies = [cookie for asked, _, given in answers if asked == policy for cookie in given]
        assert codes == ({"200": LIMIT, "409": LOGINS - LIMIT} if policy == REFUSE else {"200": LOGINS})
        assert len(cookies) == codes["200"]
        assert len(bound(handler)) == len(living(app, cookies)) == LIMIT
    assert len(store.scan(limit=1000).records) == 2 * LIMIT
    store.close()


if __name__ == "__main__":
    work(*sys.argv[1:])
