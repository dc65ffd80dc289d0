"""Sessions that clients keep, with a list of those that ended before their deadline."""

import pytest
from engines import ENGINES, opened
from support import SECRET, SOAK, Site, clocked, environ, run

from sessiontree import (
    BadSession,
    ConfigError,
    Enforcer,
    Handler,
    SessionGone,
    StoreUnavailable,
    chain,
    with_absolute_timeout,
    with_clock,
    with_encryption,
    with_events,
    with_header,
    with_idle_timeout,
    with_max_age,
    with_outage,
    with_revocations,
    with_store,
)
from sessiontree.testing import FakeClock, FaultyStore

OK = [("Content-Type", "text/plain")]
DAY = 86_400


@pytest.fixture(params=ENGINES)
def store(request, tmp_path):
    clock = FakeClock()
    faulty = FaultyStore(opened(request.param, tmp_path, clock))
    yield faulty
    faulty.close()


def handler_on(store, *options, name="visitor"):
    return Handler(name, SECRET, with_clock(store.clock), with_revocations(store), *options)


def site_on(store, *options):
    return Site(handler_on(store, *options))


def begun(s, **values):
    """Begin a session and return the Cookie header that the browser holds then."""
    s.visit(lambda session: session.update(values or {"n": 1}))
    return s.browser.jar.header()


def refused(s, cookie):
    """Tell whether the store no longer has the session of a kept cookie."""

    def act(session, *others):
        with pytest.raises(BadSession):
            session.require()
        return dict(session)

    return s.visit(act, s.another_browser(), HTTP_COOKIE=cookie) == {}


def marks(store):
    return store.inner.scan(limit=1000).records


def test_data_lies_in_the_token_and_a_look_costs_one_lookup(store):
    s = site_on(store)
    begun(s, n=1, secret="canary")
    assert s.visit(dict) == {"n": 1, "secret": "canary"}
    assert [verb for verb, _ in store.calls] == ["load_many"]
    s.visit(lambda session: session.update(n=2))
    assert [verb for verb, _ in store.calls] == ["load_many"] * 2
    s.visit(lambda session: None)
    s.visit(dict, s.another_browser())
    s.visit(dict, s.another_browser(), HTTP_COOKIE="__Host-visitor=junk")
    assert len(store.calls) == 2
    assert marks(store) == []


@pytest.mark.parametrize("options", [(), (with_encryption(),)], ids=["signed", "sealed"])
def test_lc_7_a_cookie_that_somebody_kept_is_refused_after_the_logout(store, options):
    s = site_on(store, *options)
    kept = [begun(s)]
    s.visit(lambda session: session.update(n=2))
    kept.append(s.browser.jar.header())
    s.visit(lambda session: session.revoke())
    assert "Max-Age=0" in s.answer.cookies[0]
    assert all(refused(s, cookie) for cookie in kept)
    s.visit(dict, HTTP_COOKIE=kept[0])
    assert "Max-Age=0" in s.answer.cookies[0]
    assert len(marks(store)) == 1


def test_lc_7_the_list_holds_neither_data_nor_anything_that_works_as_a_cookie(store):
    s = site_on(store)
    begun(s, secret="canary")
    session_id, handle = s.visit(lambda session: (session.id, session.handle))
    s.visit(lambda session: session.renew())
    s.visit(lambda session: session.revoke())
    shown = repr([tuple(record) for record in marks(store)])
    assert not [text for text in ("canary", session_id, handle) if text in shown]


def test_id_8_a_revoked_token_is_never_adopted_and_a_write_begins_a_new_session(store):
    s = site_on(store)
    cookie = begun(s)
    old = s.visit(lambda session: (session.id, session.handle))
    s.visit(lambda session: session.revoke())
    s.visit(lambda session: session.update(anew=1), HTTP_COOKIE=cookie)
    assert s.visit(dict) == {"anew": 1}
    assert not set(old) & set(s.visit(lambda session: (session.id, session.handle)))
    assert refused(s, cookie)


def test_a_write_to_a_session_that_another_request_revoked_begins_anew_after_a_look_too(store):
    s = site_on(store, with_header("X-Session"))
    s.visit(lambda session: session.update(n=1))
    token = s.answer.get("X-Session")
    s.visit(lambda session: session.revoke(), HTTP_X_SESSION=token)
    s.visit(lambda session: (dict(session), session.put("a", 1, 60), session.flash("hello")), HTTP_X_SESSION=token)
    fresh = s.answer.get("X-Session") or ""
    assert s.visit(lambda session: (dict(session), session.flashes()), HTTP_X_SESSION=fresh) == (
        {"a": 1},
        [("message", "hello")],
    )


def test_lc_1_a_renewal_refuses_the_old_token_and_keeps_its_cookie(store):
    s = site_on(store)
    cookie = begun(s)
    s.visit(lambda session: session.renew())
    assert refused(s, cookie)
    s.visit(dict, HTTP_COOKIE=cookie)
    assert s.answer.cookies == []
    assert s.visit(dict) == {"n": 1}
    s.visit(lambda session: session.bind("ann"))
    assert s.visit(lambda session: session.subject) == "ann"


def test_lc_2_in_its_grace_the_old_token_reads_and_never_writes(store):
    s = site_on(store, with_idle_timeout(100), with_max_age(1000))
    cookie = begun(s, n=1, items=[1])
    store.clock.advance(9)
    s.visit(lambda session: session.renew(grace=30))
    store.clock.advance(29.999)

    def act(session):
        assert (session["n"], session["items"]) == (1, [1])
        for write in (
            lambda: session.update(a=1),
            lambda: session.incr("n"),
            lambda: session.flash("x"),
            lambda: session.renew(),
            lambda: session.clear(),
            lambda: session.delete("n"),
            lambda: session.touch(max_age=60),
            lambda: session.revoke(),
        ):
            with pytest.raises(SessionGone):
                write()
        return True

    assert s.visit(act, HTTP_COOKIE=cookie)
    assert s.answer.cookies == []
    s.visit(lambda session: session["items"].append(2), HTTP_COOKIE=cookie)
    assert s.answer.cookies == []
    store.clock.advance(0.001)
    assert refused(s, cookie)
    s.visit(dict, HTTP_COOKIE=cookie)
    assert s.answer.cookies == []
    assert s.visit(dict) == {"n": 1, "items": [1]}


def test_lc_2_of_two_overlapping_renewals_one_has_a_successor(store):
    s = site_on(store)
    begun(s)
    s.visit(lambda session: (session.renew(), s.visit(lambda inner: inner.renew())))
    assert (s.answer.code, s.answer.cookies) == (409, [])
    assert s.visit(dict) == {"n": 1}


def test_lc_10_a_request_in_flight_at_the_logout_revives_nothing(store):
    s = site_on(store)
    cookie = begun(s)
    s.visit(lambda session: (session.update(n=2), s.visit(lambda inner: inner.revoke())))
    for line in s.answer.cookies:
        s.browser.jar.store(line)
    assert s.visit(dict) == {}
    assert refused(s, cookie)


def test_generate_revokes_what_it_replaces_at_the_commit(store):
    s = site_on(store)
    cookie = begun(s)
    s.visit(lambda session: (session.regenerate(), session.update(m=1)))
    assert s.visit(dict) == {"m": 1}
    assert refused(s, cookie)


def test_ws_2_generate_in_a_response_that_fails_revokes_nothing(store):
    s = site_on(store)
    cookie = begun(s)
    s.status = "500 Internal Server Error"
    s.visit(lambda session: (session.regenerate(), session.update(m=1)))
    s.status = "200 OK"
    assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}
    assert marks(store) == []


def test_a_session_that_was_replaced_and_then_revoked_is_dead_even_if_the_response_fails(store):
    s = site_on(store)
    cookie = begun(s)
    s.status = "500 Internal Server Error"
    s.visit(lambda session: (session.regenerate(), session.revoke()))
    assert refused(s, cookie)


@pytest.mark.parametrize("act", [lambda x: x.renew(), lambda x: x.regenerate(), lambda x: x.bind("ann")])
def test_what_is_committed_by_hand_refuses_the_old_token_too(store, act):
    s = site_on(store)
    cookie = begun(s)
    session = s.handler.session(environ(HTTP_COOKIE=cookie))
    act(session)
    session["m"] = 1
    headers = session.commit()
    assert session.commit() == headers
    assert refused(s, cookie)
    for _, line in headers:
        s.browser.jar.store(line)
    assert s.visit(lambda again: again["m"]) == 1


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
def test_a_second_answer_leaves_the_renewed_session_alive(store, status):
    s = site_on(store)
    cookie = begun(s)

    def app(request, start_response):
        s.handler.session(request).renew()
        start_response("200 OK", list(OK))
        error = ValueError("failed on the way")
        start_response(status, list(OK), (ValueError, error, None))
        return [b""]

    answer = run(s.handler.link(app), environ(HTTP_COOKIE=cookie))
    assert len(answer.cookies) == 1
    s.browser.jar.store(answer.cookies[0])
    assert refused(s, cookie)
    assert s.visit(dict) == {"n": 1}


def test_ws_2_a_renewal_and_a_logout_outlive_a_response_that_fails(store):
    s = site_on(store)
    cookie = begun(s)
    s.status = "500 Internal Server Error"
    s.visit(lambda session: (session.update(n=2), session.renew()))
    assert refused(s, cookie)
    assert s.visit(dict) == {"n": 1}
    cookie = s.browser.jar.header()
    s.visit(lambda session: session.revoke())
    assert refused(s, cookie)


def test_an_exception_that_escapes_renews_nothing(store):
    s = site_on(store)
    begun(s)
    s.action = lambda session: (session.renew(), 1 // 0)
    with pytest.raises(ZeroDivisionError):
        s.browser.get()
    assert marks(store) == []
    assert s.visit(dict) == {"n": 1}


# -- trees -----------------------------------------------------------------------------------------------


def family_on(store, *options):
    visitor = handler_on(store, *options)
    user = visitor.spawn("user")
    s = Site(visitor, user, user.spawn("admin"))
    s.visit(lambda *all_: [session.update(n=1) for session in all_])
    return s


def test_a_chain_costs_one_lookup(store):
    s = family_on(store)
    assert s.visit(lambda v, u, a: (a["n"], u["n"], v["n"])) == (1, 1, 1)
    assert [verb for verb, _ in store.calls] == ["load_many"]


def test_lc_16_a_revoked_parent_takes_its_children_along_and_is_one_mark(store):
    s = family_on(store)
    cookie = s.browser.jar.header()
    s.visit(lambda v, u, a: v.revoke())
    assert s.browser.jar.cookies() == []
    assert s.visit(lambda v, u, a: [dict(v), dict(u), dict(a)], HTTP_COOKIE=cookie) == [{}, {}, {}]
    assert len(marks(store)) == 1


def test_lc_16_a_renewed_parent_keeps_its_children(store):
    s = family_on(store)
    s.visit(lambda v, u, a: v.renew())
    assert s.visit(lambda v, u, a: dict(a)) == {"n": 1}


def test_a_child_that_ends_leaves_its_parent(store):
    s = family_on(store)
    cookie = s.browser.jar.header()
    s.visit(lambda v, u, a: u.revoke())
    assert s.visit(lambda v, u, a: [dict(v), dict(u), dict(a)], HTTP_COOKIE=cookie) == [{"n": 1}, {}, {}]


def test_a_child_inherits_the_list_and_may_leave_it(store):
    visitor = handler_on(store)
    assert visitor.spawn("user").config.revocations is store
    assert visitor.spawn("user", with_revocations(None)).config.revocations is None


def test_a_cookie_child_of_a_stored_parent_has_a_list_of_its_own(store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store), with_revocations(store))
    s = Site(visitor, visitor.spawn("user", with_store(None)))
    s.visit(lambda v, u: (v.update(n=1), u.update(n=1)))
    store.calls.clear()
    assert s.visit(lambda v, u: u["n"]) == 1
    assert [verb for verb, _ in store.calls] == ["load_many"]
    cookie = s.browser.jar.header()
    s.visit(lambda v, u: u.revoke())
    assert s.visit(lambda v, u: (dict(v), dict(u)), HTTP_COOKIE=cookie) == ({"n": 1}, {})


# -- outages ---------------------------------------------------------------------------------------------


def test_an_outage_is_503_and_a_second_look_is_as_uncertain_as_the_first(store):
    s = site_on(store)
    cookie = begun(s)
    s.visit(lambda session: session.revoke())
    store.down()

    def act(session):
        for look in (lambda: session.get("n"), lambda: session["n"], lambda: dict(session), session.is_live):
            with pytest.raises(StoreUnavailable):
                look()
        with pytest.raises(StoreUnavailable):
            session["n"] = 2
        return True

    assert s.visit(act, HTTP_COOKIE=cookie)
    assert s.answer.cookies == []
    s.visit(dict, HTTP_COOKIE=cookie)
    assert (s.answer.code, s.answer.cookies) == (503, [])


@pytest.mark.parametrize("outage", ["raise", "anonymous"])
def test_an_enforcer_that_is_asked_twice_during_an_outage_lets_nobody_pass(store, outage):
    handler = handler_on(store, with_outage(outage))
    s = Site(handler)
    cookie = begun(s)
    s.visit(lambda session: session.revoke())
    store.down()

    def view(request, start_response):
        start_response("200 OK", list(OK))
        return [b"in"]

    app = chain(handler, Enforcer.any_of(handler, handler), Enforcer(handler))(view)
    assert run(app, environ(HTTP_COOKIE=cookie)).code == 503


def test_an_anonymous_outage_is_empty_and_read_only(store):
    s = site_on(store, with_outage("anonymous"))
    cookie = begun(s)
    store.down()

    def act(session):
        assert (dict(session), session.get("n"), session.id) == ({}, None, None)
        for write in (
            lambda: session.update(a=1),
            lambda: session.incr("n"),
            lambda: session.put("a", 1, 5),
            lambda: session.flash("x"),
            lambda: session.renew(),
            lambda: session.regenerate(),
            lambda: session.revoke(),
        ):
            with pytest.raises(StoreUnavailable):
                write()
        return True

    assert s.visit(act)
    assert (s.answer.code, s.answer.cookies) == (200, [])
    store.up()
    assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}


def test_lc_8_a_logout_that_the_list_did_not_confirm_is_an_error_and_ends_nothing(store):
    s = site_on(store)
    cookie = begun(s)

    def act(session):
        assert session["n"] == 1
        store.down()
        with pytest.raises(StoreUnavailable):
            session.revoke()
        return dict(session)

    assert s.visit(act) == {"n": 1}
    assert s.answer.cookies == []
    store.up()
    assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}


def test_a_renewal_that_the_list_did_not_confirm_is_503_and_changes_nothing(store):
    s = site_on(store)
    cookie = begun(s)
    store.fail(1, verb="create")
    s.visit(lambda session: session.renew())
    assert (s.answer.code, s.answer.cookies) == (503, [])
    assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}


# -- deadlines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [lambda x: x.revoke(), lambda x: x.renew(), lambda x: x.renew(grace=30)])
def test_a_mark_stays_until_the_tokens_deadline_and_is_swept_after_it(store, act):
    s = site_on(store, with_absolute_timeout(1000), with_idle_timeout(None))
    cookie = begun(s)
    store.clock.advance(500)
    s.visit(act)
    store.clock.advance(499.999)
    assert s.visit(dict, s.another_browser(), HTTP_COOKIE=cookie) == {}
    assert store.sweep() == 0
    store.clock.advance(3600.001)
    assert s.visit(dict, s.another_browser(), HTTP_COOKIE=cookie) == {}
    assert store.inner.sweep() <= 1
    assert marks(store) == []


def test_a_remembered_session_stays_revoked_for_its_whole_absolute_life(store):
    s = site_on(store, with_max_age(100))
    cookie = begun(s)
    s.visit(lambda session: session.touch(max_age=DAY))
    longer = s.browser.jar.header()
    s.visit(lambda session: session.revoke())
    store.clock.advance(DAY - 1)
    assert refused(s, longer)
    assert s.visit(dict, s.another_browser(), HTTP_COOKIE=cookie) == {}


def test_a_logout_is_an_event_and_a_list_needs_an_absolute_timeout(store):
    events = []
    s = site_on(store, with_events(events.append))
    begun(s)
    s.visit(lambda session: session.revoke())
    assert {"created", "revoked"} <= {event.kind for event in events}
    with pytest.raises(ConfigError):
        handler_on(store, with_absolute_timeout(None))
    for call in (lambda: s.handler.sessions("ann"), lambda: s.handler.revoke_all("ann")):
        with pytest.raises(ConfigError):
            call()


def test_without_a_list_nothing_of_this_holds_and_with_one_many_logouts_do(store):
    plain = Site(clocked()[0])
    cookie = begun(plain)
    plain.visit(lambda session: session.revoke())
    assert plain.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}
    s, kept = site_on(store), []
    for number in range(20 * SOAK):
        kept.append(begun(s))
        s.visit(lambda session, number=number: session.renew() if number % 2 else session.revoke())
        s.browser = s.another_browser()
    assert all(refused(s, cookie) for cookie in kept)
    assert len(marks(store)) == len(kept)
