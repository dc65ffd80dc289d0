"""Requests and jobs that take long: what streams, what is held, what others change meanwhile."""

import pytest
from support import SECRET, Site, environ, run

from sessiontree import (
    Handler,
    LimitReached,
    StoreUnavailable,
    chain,
    fixed_id,
    server_only,
    with_clock,
    with_idle_timeout,
    with_max_sessions,
    with_store,
)
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(clock):
    return FaultyStore(MemoryStore(clock=clock))


def on(store, name, *options):
    return Handler(name, SECRET, with_clock(store.clock), with_store(store), *options)


# -- a merge behind the headers --------------------------------------------------------------------------


def streaming(act, status="200 OK"):
    def app(request, start_response):
        start_response(status, [("Content-Type", "text/plain")])
        yield b"x"
        act(request)
        yield b"y"

    return app


@pytest.mark.parametrize("options", [(), (server_only(), fixed_id("queue"))], ids=["a client's", "nobody's"])
@pytest.mark.parametrize("status", ["200 OK", "500 Oops"])
def test_what_is_merged_while_the_body_streams_ends_once_it_is_written(store, options, status):
    user, other = on(store, "user"), on(store, "other", *options)
    s = Site(user, other)
    s.visit(lambda one, two: (one.update(k=1), two.update(z=2)))
    app = chain(user, other)(streaming(lambda e: user.session(e).merge(other.session(e)), status))
    run(app, environ(HTTP_COOKIE=s.browser.jar.header()))
    assert s.visit(lambda one, two: (dict(one), dict(two))) == ({"k": 1, "z": 2}, {})


def test_what_was_merged_for_a_response_that_failed_lives_on_though_more_is_written_behind_it(store):
    user, other = on(store, "user"), on(store, "other")
    s = Site(user, other)
    s.visit(lambda one, two: (one.update(k=1), two.update(z=2)))

    def app(request, start_response):
        user.session(request).merge(other.session(request))
        start_response("500 Oops", [("Content-Type", "text/plain")])
        yield b"x"
        user.session(request)["late"] = 1

    run(chain(user, other)(app), environ(HTTP_COOKIE=s.browser.jar.header()))
    assert s.visit(lambda one, two: dict(two)) == {"z": 2}


# -- a session that is held ------------------------------------------------------------------------------


def test_a_session_that_is_held_long_does_not_grow(store):
    session = on(store, "job", server_only()).generate_by_id("import")
    for number in range(1000):
        session.incr("rows")
        session["last"] = number
        session.commit()
    assert len(session._applied) < 40
    assert session.update_key("state", lambda value: value, "done") == "done"
    assert dict(session) == {"rows": 1000, "last": 999, "state": "done"}
    assert session.handler.load_by_id("import") == {"rows": 1000, "last": 999, "state": "done"}


def test_what_was_folded_is_not_lost_where_a_login_follows(store):
    user = on(store, "user", with_max_sessions(1, "refuse"))
    taken = Site(user)
    taken.visit(lambda session: session.bind("ann"))
    s = Site(user)
    s.visit(lambda session: session.update(n=0))

    def act(session):
        for _ in range(50):
            session.incr("n")
        session.bind("ann")

    s.visit(act)
    assert s.answer.code == 409
    assert s.visit(dict) == {"n": 50}


@pytest.mark.parametrize("options", [(), ("store",)])
def test_a_session_that_begins_in_a_slow_request_counts_as_seen_at_its_end(store, clock, options):
    handler = (
        on(store, "user", with_idle_timeout(60))
        if options
        else Handler("user", SECRET, with_clock(clock), with_idle_timeout(60))
    )
    s = Site(handler)
    s.visit(lambda session: (session.update(a=1), clock.advance(50)))
    clock.advance(20)
    assert s.visit(dict) == {"a": 1}


# -- what others change meanwhile ------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "meanwhile", "left"), [(None, 10, 10), (50, None, None)])
def test_a_key_that_another_request_gave_or_took_a_life_has_that_life_here_too(store, before, meanwhile, left):
    handler = on(store, "user")
    s = Site(handler)
    s.visit(lambda session: session.put("k", [1], before))
    cookies = s.browser.jar.header()

    def act(session):
        session.get("nothing")
        elsewhere = handler.session(environ(HTTP_COOKIE=cookies))
        elsewhere.put("k", [1, 2], meanwhile)
        elsewhere.commit()
        assert session.update_key("k", lambda value: [*value, 3]) == [1, 2, 3]
        found = session.ttl("k")
        session["k"].append(4)
        return found

    assert s.visit(act) == left
    assert s.visit(lambda session: (session["k"], session.ttl("k"))) == ([1, 2, 3, 4], left)


@pytest.mark.parametrize("verb", ["incr", "update_key"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_key_that_is_no_text_is_a_type_error_in_every_mode(store, verb, begun):
    for handler in (on(store, "user"), Handler("user", SECRET)):
        s = Site(handler)
        if begun:
            s.visit(lambda session: session.update(a=1))
        call = {"incr": lambda session: session.incr(5), "update_key": lambda session: session.update_key(5, str)}
        with pytest.raises(TypeError, match="keys of a session"):
            s.visit(call[verb])


# -- a refused login that cannot be undone ---------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("failures", [1, 2])
def test_a_refused_login_that_cannot_be_undone_is_an_outage_and_one_that_can_at_the_second_try_is_none(
    store, known, failures
):
    user = on(store, "user", with_max_sessions(1, "refuse"))
    Site(user).visit(lambda session: session.bind("ann"))
    s = Site(user)
    if known:
        s.visit(lambda session: session.update(x=1))
    verb = "apply" if known else "revoke"
    for number in range(failures):
        store.fail((2 if known else 1) + number, verb=verb)
    s.visit(lambda session: session.bind("ann"))
    assert s.answer.code == (409 if failures == 1 else 503)
    if failures == 1:
        assert len(user.sessions("ann")) == 1
        assert s.visit(lambda session: session.subject) is None


def test_a_refused_login_of_a_job_takes_back_nothing_that_another_process_wrote(store, clock):
    job = on(store, "job", server_only(), with_max_sessions(1, "refuse"))
    one = job.generate_by_id("one")
    one.bind("ann")
    one.commit()
    two = job.generate_by_id("two")
    two["x"] = 0
    two.commit()
    mine = job.load_by_id("two")
    mine["x"] = 1
    mine.bind("ann")

    def another():
        theirs = on(store.inner, "job", server_only()).load_by_id("two")
        theirs["x"] = 2
        theirs.commit()

    store.delay(1, another, verb="find")
    with pytest.raises(LimitReached):
        mine.commit()
    assert (dict(job.load_by_id("two")), job.load_by_id("two").subject) == ({"x": 2}, None)


def test_a_job_that_may_be_bound_has_all_it_wrote(store):
    job = on(store, "job", server_only(), with_max_sessions(1, "refuse"))
    session = job.generate_by_id("one")
    session["x"] = 1
    session.commit()
    session["x"] = 2
    session.bind("ann")
    session.commit()
    again = job.load_by_id("one")
    assert (dict(again), again.subject, len(job.sessions("ann"))) == ({"x": 2}, "ann", 1)


def test_an_outage_while_the_limit_is_looked_up_is_one(store):
    user = on(store, "user", with_max_sessions(1, "refuse"))
    store.fail(1, StoreUnavailable("away"), verb="find")
    s = Site(user)
    s.visit(lambda session: session.bind("ann"))
    assert (s.answer.code, len(user.sessions("ann"))) == (503, 0)


# -- activity ------------------------------------------------------------------------------------------------


def test_a_request_that_only_reads_counts_as_activity_once_however_often_it_commits(store, clock):
    handler = on(store, "user", with_idle_timeout(600))
    s = Site(handler)
    s.visit(lambda session: session.update(a=1))
    clock.advance(100)
    store.calls.clear()

    def act(session):
        session.get("a")
        session.commit()
        clock.advance(0.002)

    s.visit(act)
    assert [verb for verb, _ in store.calls] == ["load", "apply"]


def test_a_touch_that_failed_prolonged_nothing(store, clock):
    handler = on(store, "user", with_idle_timeout(600))
    s = Site(handler)
    s.visit(lambda session: session.update(a=1))
    clock.advance(100)

    def act(session):
        session.get("a")
        store.fail(verb="apply")
        session.commit()
        return session.expires_in

    assert s.visit(act) == 500


def test_a_store_may_take_more_than_a_megabyte_and_its_sessions_know_of_it(clock):
    store = MemoryStore(clock=clock, largest=8 << 20)
    session = on(store, "job", server_only()).generate_by_id("import")
    for number in range(4):
        session[f"part{number}"] = "x" * (1 << 19)
    session.commit()
    for _ in range(40):
        session.incr("n")
    assert session.update_key("m", lambda value: value + 1, 0) == 1
    assert session["n"] == 40


def test_a_job_that_is_bound_and_nothing_else_is_written_once(store):
    job = on(store, "job", server_only(), with_max_sessions(1, "refuse"))
    session = job.generate_by_id("one")
    session["x"] = 1
    session.commit()
    store.calls.clear()
    session.bind("ann")
    session.commit()
    assert [verb for verb, _ in store.calls] == ["apply", "find"]
