"""merge(): one session's data goes into another, and the first ends once the other is written."""

import gc

import pytest
from support import SECRET, Site, environ

from sessiontree import (
    Handler,
    SessionGone,
    server_only,
    with_absolute_timeout,
    with_clock,
    with_events,
    with_revocations,
    with_store,
)
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore

KINDS = ["stored", "carried", "revocable"]


def option(kind, store):
    return {"stored": with_store, "revocable": with_revocations}.get(kind, lambda _: with_store(None))(store)


class Pair(Site):
    """Two handlers of any kinds on one store, with events; the browser has a session of each."""

    def __init__(self, ours, theirs):
        clock = FakeClock()
        self.store = FaultyStore(MemoryStore(clock=clock))
        self.events = []
        options = [with_clock(clock), with_events(self.events.append)]
        target = Handler("target", SECRET, option(ours, self.store), *options)
        source = Handler("source", SECRET, option(theirs, self.store), *options)
        child = source.spawn("child")
        super().__init__(target, source, child)
        self.visit(lambda a, b, c: (a.update(x=1, y=1), b.update(y=2, z=3), c.update(c=4)))
        self.events.clear()

    def _application(self, request, start_response):
        self.request = request
        return super()._application(request, start_response)

    def kinds(self):
        return [(event.kind, event.handler, event.reason) for event in self.events]


@pytest.fixture(params=[(ours, theirs) for ours in KINDS for theirs in KINDS], ids=" from ".join)
def pair(request):
    return Pair(*request.param)


def seen(a, b, c):
    return dict(a), dict(b), dict(c)


BEFORE = ({"x": 1, "y": 1}, {"y": 2, "z": 3}, {"c": 4})
AFTER = ({"x": 1, "y": 2, "z": 3}, {}, {})


def test_the_other_session_ends_with_its_descendants_and_its_cookie(pair):
    kept = pair.browser.jar.header()
    assert pair.visit(lambda a, b, c: (a.merge(b), seen(a, b, c), b.is_live(), c.is_live()))[1:] == (
        AFTER,
        False,
        False,
    )
    assert [name.split("=")[0] for name in pair.browser.jar.header().split("; ")] == ["__Host-target"]
    assert pair.visit(seen) == AFTER
    if pair.handlers[1].store is not None:
        assert pair.visit(seen, HTTP_COOKIE=kept)[1:] == AFTER[1:]
    assert ("revoked", "source", "merged") in pair.kinds()


def test_writes_to_it_raise_and_generate_begins_anew(pair):
    def act(a, b, c):
        a.merge(b)
        for write in (lambda: b.update(n=1), lambda: b.incr("n"), b.renew, lambda: b.bind("ann")):
            with pytest.raises(SessionGone):
                write()
        assert b.handle is None
        b.handler.generate(pair.request)["new"] = 1

    pair.visit(act)
    assert pair.visit(seen) == (AFTER[0], {"new": 1}, {})


def test_after_a_5xx_both_are_as_before(pair):
    pair.status = "500 Oops"
    assert pair.visit(lambda a, b, c: (a.merge(b), seen(a, b, c))[1]) == AFTER
    assert pair.answer.cookies == []
    pair.status = "200 OK"
    assert pair.visit(seen) == BEFORE
    assert ("revoked", "source", "merged") not in pair.kinds()


def test_after_an_exception_both_are_as_before(pair):
    def act(a, b, c):
        a.merge(b)
        raise RuntimeError("the application's own")

    with pytest.raises(RuntimeError):
        pair.visit(act)
    assert pair.visit(seen) == BEFORE


def test_if_ours_cannot_be_written_the_other_lives_on():
    pair = Pair("stored", "stored")
    pair.store.fail(verb="apply")
    pair.visit(lambda a, b, c: a.merge(b))
    assert (pair.answer.code, pair.answer.cookies) == (503, [])
    assert pair.visit(seen) == BEFORE


def test_if_ours_was_ended_meanwhile_the_other_lives_on():
    pair = Pair("stored", "stored")
    pair.visit(lambda a, b, c: (a.merge(b), a.handler.revoke(a.handle)))
    assert (pair.answer.code, pair.answer.cookies) == (409, [])
    assert pair.visit(seen)[1:] == BEFORE[1:]


def test_an_explicit_revoke_after_the_merge_lasts_after_a_5xx(pair):
    pair.status = "500 Oops"
    pair.visit(lambda a, b, c: (a.merge(b), b.revoke()))
    pair.status = "200 OK"
    assert pair.visit(seen) == (BEFORE[0], {}, {})


def test_a_commit_by_hand_ends_the_other_and_forgets_its_cookie(pair):
    request = environ(HTTP_COOKIE=pair.browser.jar.header())
    target, source, _ = (handler.session(request) for handler in pair.handlers)
    target.merge(source)
    headers = target.commit()
    assert [value.partition("=")[0] for _, value in headers] == ["__Host-target", "__Host-source"][-len(headers) :]
    assert "Max-Age=0" in headers[-1][1]
    for _, value in headers:
        pair.browser.jar.store(value)
    assert pair.visit(seen) == AFTER


def test_several_merges_in_a_row_all_end(pair):
    target, source, _ = pair.handlers
    third = Handler("third", SECRET, *[with_store(source.config.store)] * (source.config.store is not None),
                    with_revocations(source.config.revocations), with_clock(pair.clock))  # fmt: skip
    site = Site(target, source, third, clock=pair.clock)
    site.browser.jar = pair.browser.jar
    site.visit(lambda a, b, c: c.update(third=3))
    site.visit(lambda a, b, c: (b.merge(c), a.merge(b)))
    assert site.visit(lambda a, b, c: (dict(a), dict(b), dict(c))) == ({**AFTER[0], "third": 3}, {}, {})


def test_a_merged_child_leaves_no_garbage():
    pair = Pair("stored", "stored")
    parent = pair.handlers[1]
    header = pair.browser.jar.header()
    gc.collect()
    gc.disable()
    try:
        for status in ("200 OK", "500 Oops"):
            pair.status = status
            pair.visit(lambda a, b, c: b.merge(c), HTTP_COOKIE=header)
            pair.result = None
            assert gc.collect() == 0
    finally:
        gc.enable()
    assert parent.name == "source"


def test_an_id_that_was_renewed_away_merges_nothing():
    pair = Pair("stored", "stored")
    old = pair.browser.jar.header()
    pair.visit(lambda a, b, c: b.renew(grace=30))

    def act(a, b, c):
        with pytest.raises(SessionGone):
            a.merge(b)
        return dict(a)

    assert pair.visit(act, HTTP_COOKIE=old) == BEFORE[0]
    assert pair.visit(seen) == BEFORE


@pytest.mark.parametrize("kind", ["carried", "revocable"])
def test_who_runs_out_before_the_commit_takes_no_other_session_along(kind):
    store = FaultyStore(MemoryStore(clock=FakeClock()))
    options = [with_clock(store.clock), option(kind, store)]
    target = Handler("target", SECRET, *options, with_absolute_timeout(60))
    s = Site(target, Handler("source", SECRET, *options))
    s.visit(lambda a, b: (a.update(x=1), b.update(z=3)))
    s.visit(lambda a, b: (a.merge(b), store.clock.advance(61)))
    assert (s.answer.code, s.answer.cookies) == (409, [])
    assert s.visit(lambda a, b: (dict(a), dict(b))) == ({}, {"z": 3})


@pytest.mark.parametrize("kind", KINDS)
def test_what_began_in_this_request_and_was_merged_can_be_revoked_too(kind):
    store = FaultyStore(MemoryStore(clock=FakeClock()))
    options = [with_clock(store.clock), option(kind, store)]
    s = Site(Handler("target", SECRET, *options), Handler("source", SECRET, *options))
    s.visit(lambda a, b: (b.update(z=3), a.merge(b), b.revoke()))
    assert s.visit(lambda a, b: (dict(a), dict(b))) == ({"z": 3}, {})


def test_a_session_of_nobodys_outlives_a_merge_into_one_that_expired():
    store = MemoryStore(clock=FakeClock())
    target = Handler("target", SECRET, with_clock(store.clock), with_absolute_timeout(60))
    job = Handler("job", SECRET, with_clock(store.clock), with_store(store), server_only())
    session = job.generate_by_id("x")
    session["z"] = 3
    session.commit()
    s = Site(target)
    s.visit(lambda a: a.update(x=1))
    s.visit(lambda a: (a.merge(job.load_by_id("x")), store.clock.advance(61)))
    assert s.answer.code == 409
    assert dict(job.load_by_id("x")) == {"z": 3}


def test_a_commit_by_hand_ends_what_was_merged_into_what_is_merged():
    store = MemoryStore(clock=FakeClock())
    handlers = [Handler(name, SECRET, with_clock(store.clock), with_store(store)) for name in ("one", "two", "three")]
    s = Site(*handlers)
    s.visit(lambda *sessions: [session.update(x=1) for session in sessions])

    def act(one, two, three):
        two.merge(three)
        one.merge(two)
        one.commit()

    s.visit(act)
    assert len(store) == 1
