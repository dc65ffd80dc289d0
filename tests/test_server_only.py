"""Server-only sessions: found by an id of the application's own, inside and outside requests, told to no client."""

from collections import Counter
from contextlib import contextmanager
from threading import Barrier, Thread

import pytest
from engines import ENGINES, opened
from support import OTHER_SECRET, SECRET, SOAK, Site, environ, run

from sessiontree import (
    ConfigError,
    Enforcer,
    Handler,
    KeyRing,
    NoID,
    NoSession,
    ParentInvalid,
    RejectedError,
    SessionGone,
    StoreUnavailable,
    UsageError,
    chain,
    fixed_id,
    server_only,
    with_absolute_timeout,
    with_cache,
    with_clock,
    with_eager,
    with_encryption,
    with_events,
    with_idle_timeout,
    with_outage,
    with_store,
)
from sessiontree.caches.local import LocalCache
from sessiontree.testing import FakeClock, FaultyStore

OK = [("Content-Type", "text/plain")]


@pytest.fixture(params=ENGINES)
def store(request, tmp_path):
    clock = FakeClock()
    faulty = FaultyStore(opened(request.param, tmp_path, clock))
    yield faulty
    faulty.close()


def jobs_on(store, *options, name="job", keys=SECRET):
    return Handler(name, keys, with_clock(store.clock), with_store(store), server_only, *options)


def fixed_on(store, *options):
    return jobs_on(store, fixed_id("the one"), *options)


def records(store):
    return store.inner.scan(limit=1000).records


@contextmanager
def counted(store):
    """Yield a Counter of the verbs that the store was asked for meanwhile."""
    before, verbs = len(store.calls), Counter()
    yield verbs
    verbs.update(verb for verb, _ in store.calls[before:])


def raced(number, act):
    """Let so many threads do the same thing at the same moment, and return what came of it in each."""
    barrier, results = Barrier(number), []

    def race(place):
        barrier.wait()
        try:
            results.append(act(place))
        except Exception as error:  # noqa: BLE001 - told to the test
            results.append(error)

    threads = [Thread(target=race, args=(place,)) for place in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# -- by id -----------------------------------------------------------------------------------------------


def test_a_session_is_created_once_and_loaded_after_that(store):
    jobs = jobs_on(store)
    with pytest.raises(NoSession):
        jobs.load_by_id("import 7")
    first = jobs.generate_by_id("import 7")
    assert (first.new, first.id, dict(first), len(records(store))) == (True, "import 7", {}, 1)
    first["n"] = 1
    assert first.commit() == []
    for call in (jobs.load_by_id, jobs.generate_by_id):
        again = call("import 7")
        assert (again.new, again.handle, dict(again)) == (False, first.handle, {"n": 1})
    with pytest.raises(NoSession):
        jobs.load_by_id("import 8")
    assert len(records(store)) == 1


def test_creating_costs_one_load_and_one_create_and_loading_one_load(store):
    jobs = jobs_on(store)
    with counted(store) as verbs:
        session = jobs.generate_by_id("x")
    assert verbs == {"load": 1, "create": 1}
    with counted(store) as verbs:
        session["n"] = 1
        session.commit()
        session.commit()
    assert verbs == {"apply": 1}
    with counted(store) as verbs:
        assert jobs.load_by_id("x")["n"] == 1
    assert verbs == {"load": 1}


@pytest.mark.parametrize("bad", ["", None, 5, b"x", "\ud800", "x" * 256])
def test_what_cannot_be_an_id_is_no_id(store, bad):
    jobs = jobs_on(store)
    for call in (jobs.load_by_id, jobs.generate_by_id, fixed_id):
        with pytest.raises(NoID):
            call(bad)
    assert records(store) == []


@pytest.mark.parametrize("session_id", ["x" * 255, "\0", "snowman \N{SNOWMAN}", "../../etc", "a/b", "'; --", " "])
def test_any_other_text_is_an_id_of_its_own(store, session_id):
    jobs = jobs_on(store)
    jobs.generate_by_id("other")
    session = jobs.generate_by_id(session_id)
    session["n"] = 1
    session.commit()
    assert dict(jobs.load_by_id(session_id)) == {"n": 1}
    assert dict(jobs.load_by_id("other")) == {}


def test_the_calls_by_id_work_inside_a_request_and_tell_the_client_nothing(store):
    jobs, visitor = jobs_on(store), Handler("visitor", SECRET, with_clock(store.clock))
    s = Site(visitor)

    def act(_):
        session = jobs.generate_by_id("x")
        session.incr("n")
        session.commit()
        return dict(session)

    assert s.visit(act) == {"n": 1}
    assert s.answer.headers == OK
    assert s.visit(act) == {"n": 2}


def test_clients_sessions_have_no_calls_by_id(store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store))
    for call in (visitor.load_by_id, visitor.generate_by_id):
        with pytest.raises(UsageError):
            call("x")


@pytest.mark.parametrize("options", [(), (with_encryption(),)], ids=["plain", "sealed"])
def test_key_rotation_loses_nothing(store, options):
    session = jobs_on(store, *options).generate_by_id("x")
    session["n"] = 1
    session.commit()
    rolled = jobs_on(store, *options, keys=KeyRing([OTHER_SECRET, SECRET]))
    assert dict(rolled.load_by_id("x")) == {"n": 1}
    if not options:
        assert dict(jobs_on(store, keys=OTHER_SECRET).load_by_id("x")) == {"n": 1}


def test_cx_2_one_id_names_another_session_in_every_handler(store):
    one, two = jobs_on(store, name="one"), jobs_on(store, name="two")
    session = one.generate_by_id("x")
    session["n"] = 1
    session.commit()
    with pytest.raises(NoSession):
        two.load_by_id("x")
    assert dict(two.generate_by_id("x")) == {}
    assert not two.revoke(session.handle)


def test_a_race_of_creators_has_one_birth_and_loses_nothing(store):
    jobs = jobs_on(store)

    def act(place):
        session = jobs.generate_by_id("x")
        session[f"mine {place}"] = place
        session.incr("n")
        session.commit()
        return session.handle

    for _ in range(3 * SOAK):
        handles = raced(6, act)
        assert len(set(handles)) == 1
        assert dict(jobs.load_by_id("x")) == {"n": 6} | {f"mine {place}": place for place in range(6)}
        assert len(records(store)) == 1
        jobs.load_by_id("x").revoke()


def test_lc_10_a_late_write_of_an_earlier_life_is_refused(store):
    jobs = jobs_on(store)
    early = jobs.generate_by_id("x")
    early["n"] = 1
    early.commit()
    late = [jobs.load_by_id("x") for _ in range(3)]
    jobs.load_by_id("x").revoke()
    with pytest.raises(NoSession):
        jobs.load_by_id("x")
    again = jobs.generate_by_id("x")
    assert (again.handle, dict(again)) == (early.handle, {})
    early["n"] = late[0]["n"] = 2
    for write in (
        early.commit,
        late[0].commit,
        lambda: late[1].incr("n"),
        lambda: late[2].update_key("n", lambda n: n),
    ):
        with pytest.raises(SessionGone):
            write()
    assert dict(jobs.load_by_id("x")) == {}


@pytest.mark.parametrize("option", [with_absolute_timeout(100), with_idle_timeout(100)])
def test_a_session_expires_and_the_next_one_is_a_new_life(store, option):
    jobs = jobs_on(store, option)
    session = jobs.generate_by_id("x")
    session["n"] = 1
    session.commit()
    store.clock.advance(100)
    with pytest.raises(NoSession):
        jobs.load_by_id("x")
    assert dict(jobs.generate_by_id("x")) == {}
    session["n"] = 2
    with pytest.raises((SessionGone, RejectedError)):
        session.commit()
    assert dict(jobs.load_by_id("x")) == {}


@pytest.mark.parametrize("use", [dict, lambda session: session.incr("n"), lambda session: None])
@pytest.mark.parametrize("within", ["a request", "none"])
def test_it_does_not_expire_while_it_is_asked_for(store, use, within):
    jobs = jobs_on(store, with_idle_timeout(100))
    jobs.generate_by_id("read")["n"] = 1
    jobs.generate_by_id("made")
    site = Site(Handler("visitor", SECRET, with_clock(store.clock)))
    for _ in range(3):
        store.clock.advance(80)
        for ask in (lambda _: use(jobs.load_by_id("read")), lambda _: use(jobs.generate_by_id("made"))):
            ask(None) if within == "none" else site.visit(ask)
    assert not jobs.load_by_id("read").new
    store.clock.advance(100)
    with pytest.raises(NoSession):
        jobs.load_by_id("read")


def test_to_ask_for_it_costs_one_touch_in_an_interval(store):
    jobs = jobs_on(store, with_idle_timeout(100))
    held = jobs.generate_by_id("x")
    store.clock.advance(9.999)
    with counted(store) as verbs:
        jobs.load_by_id("x")
        jobs.generate_by_id("x")
    assert verbs == {"load": 2}
    store.clock.advance(0.001)
    with counted(store) as verbs:
        for _ in range(4):
            jobs.load_by_id("x")
            store.clock.advance(1)
    assert verbs == {"load": 4, "apply": 1}
    store.clock.advance(50)
    with counted(store) as verbs:
        for _ in range(9):
            held.commit()
            store.clock.advance(1)
    assert verbs == {"apply": 1}


def test_what_was_written_and_not_committed_is_not_written_by_the_touch(store):
    jobs = jobs_on(store, with_idle_timeout(100))
    steps = jobs.spawn("step", server_only)
    above = jobs.generate_by_id("x")
    steps.generate_by_id("s", parent=above)
    above["n"] = 1
    for _ in range(3):
        store.clock.advance(80)
        steps.load_by_id("s", parent=above)
    assert dict(jobs.load_by_id("x")) == {}
    above.commit()
    assert dict(jobs.load_by_id("x")) == {"n": 1}


def test_a_look_at_a_child_keeps_what_is_above_it_by_handle_too(store):
    users = Handler("user", SECRET, with_clock(store.clock), with_store(store), with_idle_timeout(100))
    jobs = users.spawn("job", server_only, with_idle_timeout(1000))
    site = Site(users)
    handle = site.visit(lambda session: (session.update(n=1), session.handle)[1])
    for number in range(3):
        store.clock.advance(80)
        jobs.generate_by_id(f"{number}", parent=handle)
        store.clock.advance(80)
        jobs.load_by_id(f"{number}", parent=handle)
    assert site.visit(dict) == {"n": 1}


def test_a_touch_that_fails_costs_nobody_the_session(store):
    told = []
    jobs = jobs_on(store, with_idle_timeout(100), with_events(told.append))
    jobs.generate_by_id("x")
    told.clear()
    store.clock.advance(50)
    store.fail(1, verb="apply")
    session = jobs.load_by_id("x")
    assert [(event.kind, event.handle, event.reason) for event in told] == [
        ("untouched", session.handle, "StoreUnavailable")
    ]
    assert session.expires_in == 50
    store.clock.advance(49)
    assert jobs.load_by_id("x").expires_in == 100


def test_an_idle_timeout_that_was_taken_away_ends_nothing_that_is_asked_for(store):
    jobs_on(store, with_idle_timeout(100)).generate_by_id("x")
    jobs = jobs_on(store)
    jobs.load_by_id("x")
    store.clock.advance(100)
    assert dict(jobs.load_by_id("x")) == {}


def test_renew_is_a_usage_error_and_bind_keeps_the_id(store):
    jobs = jobs_on(store)
    session = jobs.generate_by_id("x")
    with pytest.raises(UsageError):
        session.renew()
    session.bind("ann")
    session.commit()
    assert (jobs.load_by_id("x").subject, jobs.load_by_id("x").fresh_within(0)) == ("ann", True)
    assert [info.handle for info in jobs.sessions("ann")] == [session.handle]
    assert jobs.revoke_all("ann") == 1
    with pytest.raises(NoSession):
        jobs.load_by_id("x")


def test_a_session_by_its_class_lists_and_is_ended_by_handle(store):
    jobs = jobs_on(store)
    handle = jobs.generate_by_id("x").handle
    assert jobs.revoke(handle)
    assert not jobs.revoke(handle)
    with pytest.raises(NoSession):
        jobs.load_by_id("x")


def test_an_outage_is_unavailable_and_never_no_session(store):
    for jobs in (jobs_on(store), jobs_on(store, with_outage("anonymous"))):
        jobs.generate_by_id("x")
        store.down()
        for call in (jobs.load_by_id, jobs.generate_by_id):
            with pytest.raises(StoreUnavailable):
                call("x")
        store.up()
        store.fail(1, verb="create")
        with pytest.raises(StoreUnavailable):
            jobs.generate_by_id("y")
        with pytest.raises(NoSession):
            jobs.load_by_id("y")


# -- behind a cache of its own, while the store is down --------------------------------------------------


def outdated(store):
    """Return options for a cache that may serve what it has for a minute beyond its five seconds."""
    return with_cache(LocalCache(clock=store.clock)), with_outage("stale", stale_for=60)


def refused(*attempts):
    for attempt in attempts:
        with pytest.raises(StoreUnavailable):
            attempt()


@pytest.mark.parametrize("ask", ["load_by_id", "generate_by_id"])
def test_in_an_outage_what_a_cache_has_is_read_and_never_written(store, ask):
    jobs = jobs_on(store, with_idle_timeout(600), *outdated(store))
    first = jobs.generate_by_id("x")
    first["n"] = 1
    first.flash("done")
    first.commit()
    jobs.load_by_id("x")
    before, told = records(store), []
    jobs = jobs.configure(with_events(told.append))
    store.down()
    store.clock.advance(60)  # A touch is due.
    with counted(store) as asked:
        session = getattr(jobs, ask)("x")
        assert (dict(session), session.flashes()) == ({"n": 1}, [("message", "done")])
    assert (set(asked), [event.kind for event in told]) == ({"load"}, ["outage"])
    refused(
        lambda: session.update(n=2),
        lambda: session.incr("n"),
        lambda: session.update_key("n", str),
        lambda: session.incr("another"),
        session.revoke,
        session.regenerate,
        session.clear,
        lambda: session.bind("ann"),
        lambda: session.touch(max_age=60),
    )
    assert (dict(session), session.commit()) == ({"n": 1}, [])
    store.clock.advance(6)
    refused(lambda: getattr(jobs, ask)("x"), lambda: getattr(jobs, ask)("unknown"))
    store.up()
    assert records(store) == before
    assert getattr(jobs, ask)("x").incr("n") == 2


def test_in_an_outage_a_fixed_session_is_read_and_nothing_begins_in_its_place_or_under_it(store):
    handler = fixed_on(store, *outdated(store))
    child = handler.spawn("child")
    s = Site(handler, child)
    s.visit(lambda fixed, child: fixed.update(n=1))
    s.visit(dict_of_both := lambda fixed, child: (dict(fixed), dict(child)))
    store.down()
    store.clock.advance(10)
    assert s.visit(dict_of_both) == ({"n": 1}, {})
    assert s.visit(lambda fixed, child: refused(fixed.regenerate, lambda: child.update(n=1), fixed.revoke)) is None
    assert (s.answer.code, s.answer.cookies) == (200, [])
    s.visit(lambda fixed, child: fixed.update(n=2))
    assert s.answer.code == 503
    store.up()
    assert s.visit(dict_of_both) == ({"n": 1}, {})


def test_in_an_outage_a_job_is_read_under_a_parent_that_is_as_outdated(store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store), *outdated(store))
    cart = visitor.spawn("cart", server_only, fixed_id("cart"), with_idle_timeout(50), *outdated(store))
    s = Site(visitor, cart)
    s.visit(lambda v, c: [v.update(n=1), c.update(n=2)])
    assert s.visit(lambda v, c: (dict(v), dict(c))) == ({"n": 1}, {"n": 2})
    store.down()
    store.clock.advance(10)
    assert s.visit(lambda v, c: (dict(v), dict(c))) == ({"n": 1}, {"n": 2})
    assert (s.answer.code, s.answer.cookies) == (200, [])
    store.clock.advance(40)
    s.visit(lambda v, c: dict(c))  # It has expired since: a cache prolongs nothing.
    assert s.answer.code == 503


# -- under a parent --------------------------------------------------------------------------------------


@pytest.fixture
def tree(store):
    """A site with a stored visitor and user, both live, and the server-only jobs of users."""
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store))
    user = visitor.spawn("user")
    s = Site(visitor, user)
    s.visit(lambda v, u: (v.update(n=1), u.update(n=1)))
    s.jobs = user.spawn("job", server_only)
    return s


def test_a_parent_is_required_iff_the_handler_has_one(store, tree):
    handle = tree.visit(lambda v, u: u.handle)
    for call in (tree.jobs.load_by_id, tree.jobs.generate_by_id):
        with pytest.raises(UsageError):
            call("x")
    root = jobs_on(store, name="root")
    for call in (root.load_by_id, root.generate_by_id):
        with pytest.raises(UsageError):
            call("x", handle)
    with pytest.raises(UsageError):
        tree.visit(lambda v, u: tree.jobs.generate_by_id("x", v))


def test_the_parent_is_a_session_or_its_handle(tree):
    def act(v, u):
        session = tree.jobs.generate_by_id("x", u)
        session["n"] = 1
        session.commit()
        assert session.parent is u
        return u.handle, session.handle

    parent, handle = tree.visit(act)
    assert tree.answer.cookies == []
    by_handle = tree.jobs.load_by_id("x", parent)
    assert (by_handle.handle, dict(by_handle), by_handle.parent.handle) == (handle, {"n": 1}, parent)
    assert dict(by_handle.parent) == {"n": 1}
    assert tree.visit(lambda v, u: dict(tree.jobs.load_by_id("x", u))) == {"n": 1}
    assert tree.visit(lambda v, u: [info.handle for info in u.children()]) == [handle]


def test_one_id_under_two_parents_is_two_sessions(tree):
    first = tree.visit(lambda v, u: tree.jobs.generate_by_id("x", u).handle)
    other = tree.another_browser()
    tree.visit(lambda v, u: (v.update(n=2), u.update(n=2)), other)
    with pytest.raises(NoSession):
        tree.visit(lambda v, u: tree.jobs.load_by_id("x", u), other)
    assert tree.visit(lambda v, u: tree.jobs.generate_by_id("x", u).handle, other) != first


@pytest.mark.parametrize("end", ["visitor", "user"])
def test_lc_16_a_session_is_dead_with_any_of_its_ancestors(tree, end):
    parent = tree.visit(lambda v, u: (tree.jobs.generate_by_id("x", u), u.handle)[1])
    assert not tree.jobs.load_by_id("x", parent).new
    held = tree.jobs.load_by_id("x", parent)
    tree.visit(lambda v, u: {"visitor": v, "user": u}[end].revoke())
    for call in (tree.jobs.load_by_id, tree.jobs.generate_by_id):
        with pytest.raises(ParentInvalid):
            call("x", parent)
    assert held.handle is not None


@pytest.mark.parametrize("bad", ["a" * 32, "", "junk", "A" * 32])
def test_a_handle_that_names_no_live_parent_is_refused(tree, bad):
    for call in (tree.jobs.load_by_id, tree.jobs.generate_by_id):
        with pytest.raises(ParentInvalid):
            call("x", bad)


def test_a_handle_of_another_handlers_session_is_no_parent(tree):
    grandparent = tree.visit(lambda v, u: v.handle)
    with pytest.raises(ParentInvalid):
        tree.jobs.generate_by_id("x", grandparent)


def test_a_session_that_ended_in_this_request_is_no_parent(tree):
    def act(v, u):
        u.revoke()
        with pytest.raises(ParentInvalid):
            tree.jobs.generate_by_id("x", u)
        return True

    assert tree.visit(act)


def test_a_parent_that_clients_keep_is_given_as_a_session(store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock))
    jobs = visitor.spawn("job", with_store(store), server_only)
    s = Site(visitor)

    def act(v):
        v["n"] = 1
        jobs.generate_by_id("x", v)
        return v.handle

    handle = s.visit(act)
    assert s.visit(lambda v: jobs.load_by_id("x", v).new) is False
    with pytest.raises(UsageError):
        jobs.load_by_id("x", handle)


def test_jobs_under_jobs_die_with_them(store):
    jobs = jobs_on(store)
    steps = jobs.spawn("step", server_only)
    job = jobs.generate_by_id("j")
    step = steps.generate_by_id("s", job)
    step["n"] = 1
    step.commit()
    assert dict(steps.load_by_id("s", job.handle)) == {"n": 1}
    jobs.load_by_id("j").revoke()
    with pytest.raises(ParentInvalid):
        steps.load_by_id("s", job.handle)
    again = jobs.generate_by_id("j")
    with pytest.raises((NoSession, ParentInvalid)):
        steps.load_by_id("s", again)


# -- one fixed id ----------------------------------------------------------------------------------------


def test_a_fixed_session_is_created_at_the_first_write_and_told_to_no_client(store):
    s = Site(fixed_on(store))
    assert s.visit(lambda session: (dict(session), session.id, session.new)) == ({}, None, True)
    assert records(store) == []
    s.visit(lambda session: (session.update(n=1), session.flash("hello")))
    assert s.answer.headers == OK
    assert len(records(store)) == 1
    assert s.visit(lambda session: (dict(session), session.id, session.new), s.another_browser()) == (
        {"n": 1},
        "the one",
        False,
    )
    assert s.answer.headers == OK
    assert s.visit(lambda session: session.flashes()) == [("message", "hello")]
    s.visit(lambda session: session.revoke())
    assert s.answer.headers == OK
    assert records(store) == []
    assert dict(s.handler.generate_by_id("the one")) == {}


def test_a_fixed_session_costs_one_load_and_one_write(store):
    s = Site(fixed_on(store))
    s.visit(lambda session: session.update(n=1))
    with counted(store) as verbs:
        s.visit(lambda session: None)
    assert not verbs
    with counted(store) as verbs:
        s.visit(lambda session: (dict(session), session.get("n")))
    assert verbs == {"load": 1}
    with counted(store) as verbs:
        s.visit(lambda session: session.update(n=2))
    assert verbs == {"load": 1, "apply": 1}


def test_no_cookie_chooses_a_fixed_session(store):
    s = Site(fixed_on(store))
    s.visit(lambda session: session.update(n=1), HTTP_COOKIE="__Host-job=junk; job=other")
    assert s.visit(dict) == {"n": 1}


def test_without_a_fixed_id_no_request_has_a_session(store):
    jobs = jobs_on(store)
    for request in (environ(), environ(HTTP_COOKIE="__Host-job=x")):
        for call in (jobs.session, jobs.load, jobs.loaded, jobs.generate):
            with pytest.raises(UsageError):
                call(request)


def test_two_first_writers_that_overlap_both_survive(store):
    s = Site(fixed_on(store))

    def act(session):
        session["outer"] = 1
        session.flash("outer")
        s.visit(lambda inner: (inner.update(inner=1), inner.flash("inner")))

    s.visit(act)
    assert s.answer.code == 200
    assert s.visit(lambda session: (dict(session), sorted(session.flashes()))) == (
        {"outer": 1, "inner": 1},
        [("message", "inner"), ("message", "outer")],
    )


def test_two_first_writers_that_add_to_one_key_both_count(store):
    s = Site(fixed_on(store))
    s.visit(lambda session: (session.incr("n", 2), s.visit(lambda inner: inner.incr("n", 3))))
    assert s.visit(dict) == {"n": 5}
    s.visit(lambda session: session.revoke())

    def append(session, item):
        session.update_key("items", lambda items: [*items, item], [])

    s.visit(lambda session: (append(session, 1), s.visit(lambda inner: append(inner, 2))))
    assert sorted(s.visit(lambda session: session["items"])) == [1, 2]


def test_first_writers_that_race_all_survive(store):
    handler = fixed_on(store)

    def act(place):
        request = environ()
        session = handler.session(request)
        session[f"mine {place}"] = place
        return session.commit()

    for _ in range(3 * SOAK):
        assert raced(6, act) == [[]] * 6
        assert dict(handler.load_by_id("the one")) == {f"mine {place}": place for place in range(6)}
        handler.load_by_id("the one").revoke()


def test_a_first_writer_joins_with_its_expiries_and_its_subject(store):
    s = Site(fixed_on(store))
    s.visit(
        lambda session: (session.put("k", 1, 60), session.bind("ann"), s.visit(lambda inner: inner.update(inner=1)))
    )
    assert s.visit(lambda session: (dict(session), session.ttl("k"), session.subject)) == (
        {"k": 1, "inner": 1},
        60.0,
        "ann",
    )
    assert s.visit(lambda session: session.fresh_within(60))


def test_renewing_a_fixed_session_is_a_usage_error_and_generate_begins_a_new_life(store):
    s = Site(fixed_on(store))
    s.visit(lambda session: session.update(n=1))

    def act(session):
        with pytest.raises(UsageError):
            session.renew()
        return s.handler.generate

    s.visit(act)
    handle = s.visit(lambda session: session.handle)
    s.visit(lambda session: (session.regenerate(), session.update(m=1)))
    assert s.visit(lambda session: (dict(session), session.handle)) == ({"m": 1}, handle)
    assert len(records(store)) == 1


@pytest.mark.parametrize("streamed", [False, True], ids=["by hand", "while streaming"])
def test_generate_begins_a_new_life_however_it_is_committed(store, streamed):
    handler = fixed_on(store)
    Site(handler).visit(lambda session: session.update(old=1))

    def begin_anew(request):
        session = handler.generate(request)
        session["new"] = 1
        return session

    def app(request, start_response):
        start_response("200 OK", list(OK))
        yield b""
        begin_anew(request)

    if streamed:
        run(handler.link(app), environ())
    else:
        begin_anew(environ()).commit()
    assert dict(handler.load_by_id("the one")) == {"new": 1}


def test_ws_2_a_5xx_leaves_a_fixed_session_as_it_was(store):
    s = Site(fixed_on(store))
    s.status = "500 Internal Server Error"
    s.visit(lambda session: session.update(n=1))
    assert records(store) == []
    s.status = "200 OK"
    s.visit(lambda session: session.update(n=1))
    s.status = "500 Internal Server Error"
    s.visit(lambda session: (session.update(n=2), session.incr("m"), session.regenerate()))
    s.status = "200 OK"
    assert s.visit(dict) == {"n": 1, "m": 1}


def test_ws_3_a_fixed_session_is_written_while_streaming_and_even_begun(store):
    handler = fixed_on(store)

    def app(request, start_response):
        start_response("200 OK", list(OK))
        yield b""
        handler.session(request)["late"] = 1

    for _ in range(2):
        answer = run(handler.link(app), environ())
        assert answer.headers == OK
        assert dict(handler.load_by_id("the one")) == {"late": 1}


def test_lc_10_a_fixed_session_that_ended_meanwhile_refuses_what_was_in_flight(store):
    s = Site(fixed_on(store))
    s.visit(lambda session: session.update(n=1))

    def act(session):
        session["n"] += 1
        s.visit(lambda inner: inner.revoke())
        s.visit(lambda inner: inner.update(anew=1))

    s.visit(act)
    assert s.answer.code == 409
    assert s.visit(dict) == {"anew": 1}


def test_an_eager_fixed_session_is_there_for_every_request(store):
    s = Site(fixed_on(store, with_eager()))
    s.action = lambda session: None
    assert s.browser.get().headers == OK
    assert len(records(store)) == 1


def test_an_enforcer_lets_pass_while_a_fixed_session_lives(store):
    handler = fixed_on(store)

    def view(request, start_response):
        start_response("200 OK", list(OK))
        return [b"in"]

    app = chain(handler, Enforcer(handler))(view)
    assert run(app, environ()).code == 401
    handler.generate_by_id("the one")
    assert run(app, environ()).body == b"in"
    store.down()
    assert run(app, environ()).code == 503


def test_a_fixed_session_under_a_visitor_is_one_for_each_visitor(store):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(store))
    s = Site(visitor, visitor.spawn("cart", server_only, fixed_id("cart")))

    def begin_without_parent(v, c):
        with pytest.raises(ParentInvalid):
            c["n"] = 1
        v["n"] = 1
        c["n"] = 1

    s.visit(begin_without_parent)
    assert [line.split("=")[0] for line in s.answer.cookies] == ["__Host-visitor"]
    cookie = s.browser.jar.header()
    assert s.visit(lambda v, c: dict(c)) == {"n": 1}
    assert s.visit(lambda v, c: dict(c), s.another_browser()) == {}
    s.visit(lambda v, c: v.renew())
    assert s.visit(lambda v, c: (dict(c), c.new)) == ({"n": 1}, False)
    s.visit(lambda v, c: v.revoke())
    assert s.visit(lambda v, c: dict(c), HTTP_COOKIE=cookie) == {}


def test_server_only_needs_a_store_and_a_child_of_it_does_not_inherit_it(store):
    with pytest.raises(ConfigError):
        Handler("job", SECRET, server_only)
    with pytest.raises(ConfigError):
        jobs_on(store).configure(with_store(None))
    child = fixed_on(store).spawn("child")
    assert (child.config.server_only, child.config.fixed_id) == (False, None)


def test_a_fixed_id_is_the_only_one_that_can_be_asked_for(store):
    handler = fixed_on(store)
    for call in (handler.load_by_id, handler.generate_by_id):
        with pytest.raises(UsageError, match=r"'the one', by fixed_id\(\): ask for that one"):
            call("other")
        with pytest.raises(NoID):
            call("")
    assert records(store) == []
    made = handler.generate_by_id("the one")
    assert handler.load_by_id("the one").handle == made.handle
