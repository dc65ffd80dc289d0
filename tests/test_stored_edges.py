"""Stored sessions where two things go wrong at once: outages, failures, renewals, late writes."""

import os
import threading
from contextlib import suppress

import pytest
from support import OTHER_SECRET, SECRET, Site, environ, run

from sessiontree import (
    ConfigError,
    Handler,
    HeadersSent,
    KeyRing,
    SessionGone,
    StoreUnavailable,
    UsageError,
    fixed_id,
    server_only,
    with_clock,
    with_idle_timeout,
    with_max_age,
    with_outage,
    with_store,
)
from sessiontree.stores import open_store
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore


@pytest.fixture
def store():
    return FaultyStore(MemoryStore(clock=FakeClock()))


def on(store, *options, name="visitor", keys=SECRET):
    return Handler(name, keys, with_clock(store.clock), with_store(store), *options)


def begun(site, **data):
    site.visit(lambda *sessions: [session.update(data or {"n": 1}) for session in sessions])
    return site.browser.jar.header()


def verbs_of(store, act):
    before = len(store.calls)
    act()
    return [verb for verb, _ in store.calls[before:]]


def failing(site, act):
    """Make a request that does this and answers 500."""
    site.status = "500 Oops"
    site.visit(act)
    site.status = "200 OK"


# -- after a 5xx ----------------------------------------------------------------------------------------


def test_a_failed_response_is_no_activity_even_if_a_list_was_read(store):
    s = Site(on(store, with_idle_timeout(600)))
    begun(s, items=[1])
    store.clock.advance(100)
    assert verbs_of(store, lambda: failing(s, lambda session: session["items"])) == ["load"]


def test_a_failed_response_begins_no_server_only_session_and_ends_none(store):
    s = Site(on(store, server_only, fixed_id("main"), name="job"))
    failing(s, lambda job: (job.update(items=[1]), job["items"]))
    assert s.visit(dict) == {}
    s.visit(lambda job: job.update(keep=1))
    failing(s, lambda job: (job.regenerate(), job.update(new=[1]), job["new"]))
    assert s.visit(dict) == {"keep": 1}


def test_what_was_changed_in_place_before_a_failure_is_not_written_after_it(store):
    handler = on(store)
    cookie = begun(Site(handler), items=[1])

    def app(request, start_response):
        session = handler.session(request)
        session["items"].append("dropped")
        start_response("500 Oops", [("Content-Type", "text/plain")])
        yield repr(dict(session)).encode()
        session["items"].append("after")

    assert run(handler.link(app), environ(HTTP_COOKIE=cookie)).text == "{'items': [1]}"
    assert dict(handler.load(environ(HTTP_COOKIE=cookie))) == {"items": [1, "after"]}


# -- what is known of the store ---------------------------------------------------------------------------


def test_update_key_begins_with_what_this_request_has_written(store):
    s = Site(on(store))
    begun(s)

    def act(session):
        seen = []
        assert session.incr("fresh") == 1
        session.update_key("fresh", lambda value: seen.append(value) or value + 1)
        session.update_key("fresh", lambda value: seen.append(value) or value + 1)
        return seen, session["fresh"]

    assert verbs_of(store, lambda: s.visit(act)) == ["load", "apply", "apply", "apply"]
    assert s.result == ([1, 2], 3)


def test_a_worker_goes_on_with_what_it_committed(store):
    job = on(store, server_only, name="job").generate_by_id("nightly")
    job["n"] = 4
    job.commit()
    assert job.update_key("n", lambda value: value + 1) == 5


# -- outages ----------------------------------------------------------------------------------------------


def test_an_increment_that_meets_an_outage_costs_no_other_data(store):
    s = Site(on(store))
    begun(s, user="ann")

    def act(session):
        session["cart"] = 1
        store.fail(1, verb="apply")
        with pytest.raises(StoreUnavailable):
            session.incr("hits")
        return session["user"], session.new

    assert s.visit(act) == ("ann", False)
    assert s.visit(dict) == {"user": "ann", "cart": 1}


def test_a_worker_may_try_a_commit_again(store):
    job = on(store, server_only, name="job").generate_by_id("nightly")
    job["n"] = 4
    store.fail(1, verb="apply")
    with pytest.raises(StoreUnavailable):
        job.commit()
    job.commit()
    assert on(store, server_only, name="job").load_by_id("nightly")["n"] == 4


def test_a_renewal_whose_answer_was_lost_logs_nobody_out(store):
    s = Site(on(store))
    begun(s)
    store.fail_after(1, verb="apply")
    s.visit(lambda session: session.bind("ann"))
    assert (s.answer.code, len(s.answer.cookies)) == (200, 1)
    assert s.visit(lambda session: session.subject) == "ann"


def test_a_request_waits_for_a_store_that_is_down_only_once(store):
    visitor = on(store, with_outage("anonymous"))
    user = visitor.spawn("user")
    s = Site(visitor, user, user.spawn("admin"))
    begun(s)
    store.down()
    assert len(verbs_of(store, lambda: s.visit(lambda *each: [dict(session) for session in each]))) == 1


def test_a_logout_does_not_ask_the_store_of_a_child(store):
    child_store = FaultyStore(MemoryStore(clock=store.clock))
    visitor = on(store)
    user = visitor.spawn("user", with_store(child_store))
    s = Site(visitor, user)
    begun(s)
    child_store.down()
    s.action = lambda v, u: v.revoke()
    assert s.visit(lambda v, u: v.revoke()) is None
    assert s.answer.code == 200
    assert s.browser.jar.cookies() == []


# -- renewals ---------------------------------------------------------------------------------------------


def test_signing_again_with_a_new_key_never_undoes_a_renewal(store):
    old, rolled = on(store), on(store, keys=KeyRing([OTHER_SECRET, SECRET]))
    cookie = begun(Site(old))

    def app(request, start_response):
        session = rolled.session(request)
        assert session["n"] == 1
        meanwhile = old.session(environ(HTTP_COOKIE=cookie))
        meanwhile.renew()
        meanwhile.commit()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    assert run(rolled.link(app), environ(HTTP_COOKIE=cookie)).cookies == []


def test_a_logout_that_lost_to_a_renewal_ends_the_session_all_the_same(store):
    handler = on(store)
    s = Site(handler)
    cookie = begun(s)

    def act(session):
        other = handler.session(environ(HTTP_COOKIE=cookie))
        assert session["n"] == 1
        other.renew()
        other.commit()
        with pytest.raises(SessionGone):
            session.incr("n")
        session.revoke()

    s.visit(act)
    assert store.scan().records == []


def test_an_old_id_in_its_grace_begins_no_child(store):
    visitor = on(store)
    user = visitor.spawn("user")
    s = Site(visitor, user)
    s.visit(lambda v, u: v.update(n=1))
    cookie = s.browser.jar.header()
    s.visit(lambda v, u: v.renew(grace=60))

    def act(v, u):
        assert v["n"] == 1
        with pytest.raises(SessionGone):
            u["a"] = 1

    s.visit(act, HTTP_COOKIE=cookie)
    assert s.answer.cookies == []


def test_a_session_that_was_loaded_by_its_handle_tells_no_client_anything(store):
    visitor = on(store, with_max_age(1000), with_idle_timeout(100))
    jobs = visitor.spawn("job", server_only)
    s = Site(visitor)
    begun(s)
    handle = s.visit(lambda v: v.handle)
    store.clock.advance(50)
    job = jobs.generate_by_id("j", handle)
    job["n"] = 1
    assert job.commit() == []
    with pytest.raises(UsageError):
        job.parent.renew()


# -- clocks and late writes -------------------------------------------------------------------------------


def test_a_clock_that_lags_shortens_no_idle_life(store):
    s = Site(on(store, with_idle_timeout(600)))
    begun(s)
    store.clock.advance(-180)
    assert s.visit(dict) == {"n": 1}
    store.clock.advance(180 + 430)
    assert s.visit(dict) == {"n": 1}


def test_lc_11_a_clock_that_was_ahead_at_login_saves_no_session(store):
    s = Site(on(store))
    s.visit(lambda session: session.bind("ann"))
    store.clock.advance(-1)
    assert s.handler.revoke_all("ann") == 1
    assert s.handler.sessions("ann") == []


def test_a_write_after_the_request_is_an_error_and_no_silence(store):
    s = Site(on(store))
    begun(s)
    kept = []
    s.visit(lambda session: (kept.append(session), dict(session)))
    with pytest.raises(HeadersSent):
        kept[0]["late"] = 1


def test_a_body_that_is_closed_before_it_began_writes_nothing(store):
    handler = on(store)
    cookie = begun(Site(handler))

    def app(request, start_response):
        handler.session(request)["n"] = [2]
        yield b"never"

    body = handler.link(app)(environ(HTTP_COOKIE=cookie), lambda *head: None)
    body.close()
    assert dict(handler.load(environ(HTTP_COOKIE=cookie))) == {"n": 1}


def test_a_touch_that_failed_is_not_tried_again(store):
    handler = on(store, with_idle_timeout(100))
    cookie = begun(Site(handler))
    store.clock.advance(50)
    session = handler.session(environ(HTTP_COOKIE=cookie))
    assert session["n"] == 1
    store.fail(1, verb="apply")
    assert session.commit() == []
    assert session.handler.loaded(environ(HTTP_COOKIE=cookie))


def test_no_child_process_waits_for_a_lock_that_nobody_holds():
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            store.sweep_idle(1)
            store.revoke("nobody")

    threads = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                with suppress(BaseException):
                    store.revoke("somebody")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("url", ["sqlite:///a.db?timeout=3", "sqlite:///a.db#x"])
def test_a_url_with_settings_names_no_file(url):
    with pytest.raises(ConfigError, match="arguments of open_store"):
        open_store(url)


def test_a_clock_is_a_clock_and_stale_needs_a_cache():
    with pytest.raises(ConfigError):
        open_store("memory:", clock=3)
    with pytest.raises(ConfigError, match="cache"):
        Handler("visitor", SECRET, with_store(MemoryStore()), with_outage("stale", stale_for=60))
