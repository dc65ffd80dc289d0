"""Sessions that a store remembers, in one handler and in trees, while requests overlap, fail and come too late."""

import base64
import gc
import math
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from uuid import UUID

import pytest
from engines import ENGINES, opened
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support import OTHER_SECRET, SECRET, SOAK, Browser, Site, environ, run

from sessiontree import (
    BadCookie,
    BadSession,
    ConfigError,
    Csrf,
    Enforcer,
    Expired,
    Handler,
    HeadersSent,
    KeyNotFound,
    KeyRing,
    NoCookie,
    ParentInvalid,
    RecordTooLarge,
    SessionGone,
    StoreUnavailable,
    chain,
    fixed_id,
    server_only,
    with_absolute_timeout,
    with_clock,
    with_eager,
    with_encryption,
    with_events,
    with_header,
    with_id_generator,
    with_idle_timeout,
    with_max_age,
    with_outage,
    with_revocations,
    with_serializer,
    with_store,
)
from sessiontree.handlers.claim import claim_tokens, written
from sessiontree.handlers.ids import handle_bytes, new_id, uuid4, uuid7
from sessiontree.records import FORM, Changes
from sessiontree.serializer import LARGEST_INT, JsonSerializer
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore

OK = [("Content-Type", "text/plain")]
DAY = 86_400
YEAR = 365 * DAY


class Reversed:
    """A serializer of somebody's own."""

    def __init__(self):
        self._inner = JsonSerializer()

    def dumps(self, value):
        return self._inner.dumps(value)[::-1]

    def loads(self, raw):
        return self._inner.loads(raw[::-1])


KINDS = {"plain": (), "sealed": (with_encryption(),), "custom": (with_serializer(Reversed()),)}


def maker(kind):
    """Return a function that opens an empty store of this kind, which the end of the test closes."""

    def make(folder, clock, **more):
        OPENED.append(opened(kind, folder, clock, **more))
        return OPENED[-1]

    return make


OPENED = []


@pytest.fixture(autouse=True)
def everything_opened_is_closed():
    yield
    while OPENED:
        OPENED.pop().close()


MAKERS = [pytest.param(maker(kind), id=kind) for kind in ENGINES]


@pytest.fixture(params=MAKERS)
def store(request, tmp_path):
    faulty = FaultyStore(request.param(tmp_path, FakeClock()))
    yield faulty
    faulty.close()


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request):
    """The options of a handler that writes values in its own way."""
    return request.param


def handler_on(store, *options, name="visitor", keys=SECRET):
    return Handler(name, keys, with_clock(store.clock), with_store(store), *options)


def site_on(store, *options):
    return Site(handler_on(store, *options))


def family_on(store, *options):
    """Return a site with a visitor, a user and an admin in one store, all logged in."""
    visitor = handler_on(store, *options)
    user = visitor.spawn("user", *options)
    s = Site(visitor, user, user.spawn("admin", *options))
    s.visit(lambda *all_: [session.update(n=1) for session in all_])
    return s


def noted(store, *options):
    """Return a site and the list of its events."""
    events = []
    return site_on(store, with_events(events.append), *options), events


@contextmanager
def counted(store):
    """Yield a Counter of the verbs that the store was asked for meanwhile."""
    before, verbs = len(store.calls), Counter()
    yield verbs
    verbs.update(verb for verb, _ in store.calls[before:])


def records(store):
    return store.inner.scan(limit=1000).records


def begun(s, **values):
    """Begin a session and return the Cookie header that the browser holds then."""
    s.visit(lambda session: session.update(values or {"n": 1}))
    return s.browser.jar.header()


def refused(s, cookie, error=BadSession):
    """Tell whether a kept cookie opens nothing, for the reason that is expected."""

    def act(session, *others):
        with pytest.raises(error):
            session.require()
        return dict(session)

    return s.visit(act, s.another_browser(), HTTP_COOKIE=cookie) == {}


def streaming(handler, before=lambda session: None, after=lambda session: None):
    """Return an application that does one thing before its headers and another after them."""

    def app(request, start_response):
        session = handler.session(request)
        before(session)
        start_response("200 OK", list(OK))
        yield b"one"
        after(session)
        yield b"two"

    return chain(handler)(app)


def answering(*steps):
    """Return an application that calls start_response once for each (action, status), all but the first as errors."""

    def app(request, start_response):
        for number, (act, status) in enumerate(steps):
            act(request)
            error = ValueError("failed on the way")
            start_response(status, list(OK), *([(ValueError, error, None)] if number else []))
        return [b"done"]

    return app


# -- what costs nothing, and what costs how much --------------------------------------------------------


def test_st_16_looks_bots_and_logouts_of_nobody_create_no_record(store):
    s = site_on(store)
    forged = handler_on(store, keys=OTHER_SECRET)
    other = Site(forged)
    begun(other)
    stranger = other.browser.jar.header()
    before = len(records(store))
    actions = (dict, lambda session: session.revoke(), lambda session: session.clear(), lambda session: session.id)
    with counted(store) as verbs:
        for number in range(40 * SOAK):
            s.status = ("200 OK", "404 Not Found")[number % 2]
            cookie = ("__Host-visitor=junk" + str(number), stranger, "")[number % 3]
            s.visit(actions[number % 4], s.another_browser(), HTTP_COOKIE=cookie)
            assert s.answer.cookies == []
    assert len(records(store)) == before
    assert not verbs


def test_an_untouched_session_costs_no_call_and_no_header(store):
    s = site_on(store)
    begun(s)
    s.action = lambda session: None
    with counted(store) as verbs:
        answer = s.browser.get()
    assert not verbs
    assert answer.headers == OK


def test_a_read_costs_one_load_and_a_write_one_apply_of_what_changed(store):
    s = site_on(store)
    begun(s, a=1, b=2, c=3)
    with counted(store) as verbs:
        assert s.visit(lambda session: (session["a"], session["b"], len(session))) == (1, 2, 3)
    assert verbs == {"load": 1}
    assert s.answer.cookies == []
    assert s.answer.get("Vary") == "Cookie"
    seen = []
    apply = store.inner.apply
    store.inner.apply = lambda handle, proof, changes: seen.append(changes) or apply(handle, proof, changes)
    with counted(store) as verbs:
        s.visit(lambda session: (session.update(a=5), session.delete("b")))
    assert verbs == {"load": 1, "apply": 1}
    assert s.answer.cookies == []
    assert ([*seen[0].sets], [*seen[0].deletes]) == (["a"], ["b"])


def test_a_chain_of_three_is_read_in_one_trip(store):
    s = family_on(store)
    with counted(store) as verbs:
        assert s.visit(lambda v, u, a: a["n"]) == 1
    assert verbs == {"load_many": 1}
    with counted(store) as verbs:
        assert s.visit(lambda v, u, a: (v["n"], a["n"], u["n"])) == (1, 1, 1)
    assert verbs == {"load_many": 1}
    with counted(store) as verbs:
        s.visit(lambda v, u, a: a.update(n=2))
    assert verbs == {"load_many": 1, "apply": 1}


def test_nothing_is_written_by_changes_that_change_nothing(store):
    s = site_on(store)
    begun(s, items=[1])
    with counted(store) as verbs:
        s.visit(lambda session: (session["items"], session.delete("missing"), session.pop("no", None), session.ttl))
    assert verbs == {"load": 1}


@pytest.mark.parametrize(
    ("options", "act", "sent"),
    [
        ((), lambda session: session.update(x=1), False),
        ((), lambda session: session.incr("n"), False),
        ((), lambda session: session.clear(), False),
        ((), lambda session: session.flash("hello"), False),
        ((), lambda session: session.touch(), False),
        ((), lambda session: session.renew(), True),
        ((), lambda session: session.bind("ann"), True),
        ((), lambda session: session.bind(None), False),
        ((), lambda session: session.touch(max_age=60), True),
        ((with_max_age(600),), lambda session: session.touch(max_age=None), True),
        ((), lambda session: session.revoke(), True),
        ((with_idle_timeout(100),), dict, False),
        ((with_idle_timeout(100), with_max_age(600)), dict, True),
    ],
)
def test_the_cookie_is_set_only_when_the_client_must_be_told(store, options, act, sent):
    s = site_on(store, *options)
    begun(s)
    store.clock.advance(50)
    s.visit(act)
    assert len(s.answer.cookies) == sent
    assert (s.answer.get("Cache-Control") == "no-store") == sent


def test_a_header_carries_the_token_as_well(store):
    s = site_on(store, with_header("X-Session"))
    s.visit(lambda session: session.update(n=1))
    token = s.answer.get("X-Session")
    assert s.visit(lambda session: session["n"], HTTP_X_SESSION=token) == 1
    s.visit(lambda session: session.renew(), HTTP_X_SESSION=token)
    assert s.visit(dict, HTTP_X_SESSION=token) == {}
    assert s.visit(dict, HTTP_X_SESSION=s.answer.get("X-Session") or "") == {}


def test_an_eager_handler_creates_a_session_for_every_request_that_has_none(store):
    s = site_on(store, with_eager())
    s.action = lambda session: None
    s.answer = s.browser.get()
    assert len(records(store)) == len(s.answer.cookies) == 1
    s.answer = s.browser.get()
    assert len(records(store)) == 1
    assert s.answer.cookies == []


def test_the_first_request_sets_a_cookie_and_a_forged_one_is_replaced_by_a_new_session(store):
    s = site_on(store, with_max_age(600))
    cookie = begun(s)
    line = s.answer.cookies[0]
    assert line.startswith("__Host-visitor=")
    assert {"; Path=/", "; Secure", "; HttpOnly", "; Max-Age=600"} <= {f"; {part}" for part in line.split("; ")[1:]}
    first = s.visit(lambda session: session.id)
    s.visit(lambda session: session.update(n=2), HTTP_COOKIE=cookie[:-4] + "AAAA")
    assert s.answer.cookies[0].split("; ")[1:] == line.split("; ")[1:]
    assert s.visit(lambda session: session.id) != first
    assert s.visit(dict, s.another_browser(), HTTP_COOKIE=cookie) == {"n": 1}


# -- values and keys -------------------------------------------------------------------------------------

VALUES = {
    "none": None,
    "bool": True,
    "int": -(1 << 63),
    "large": (1 << 63) - 1,
    "float": -0.0,
    "tiny": 5e-324,
    "str": "snowman \N{SNOWMAN} \N{GRINNING FACE} \0",
    "bytes": b"\x00\xff",
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    "date": date(2026, 1, 2),
    "timedelta": timedelta(days=-1, microseconds=7),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=5),
    "set": {1, "a"},
    "tuple": (1, ("x",)),
    "list": [1, [2, (3,)]],
    "dict": {"$bytes": "not a tag", "deep": {"$x": 1}, "": 0},
    "tagged": {"$bytes": "AAAA"},
    "sealed": {"$sealed": "AAAA"},
}
ODD_KEYS = ["", "\0", "\0f", "\0\0", "$bytes", "$sealed", "$custom", "__proto__", "a\nb", '"', "\\u0000", "é", "e", "s"]


def test_every_kept_type_comes_back_exactly(store, kind):
    s = site_on(store, *kind)
    s.visit(lambda session: session.update(VALUES))
    s.visit(lambda session: session.update(later=1))
    back = s.visit(dict)
    del back["later"]
    assert back == VALUES
    assert {key: type(value) for key, value in back.items()} == {key: type(value) for key, value in VALUES.items()}
    assert math.copysign(1, back["float"]) == -1


@pytest.mark.parametrize("value", [1, "AAAA", b"raw", {"$bytes": "AAAA"}])
@pytest.mark.parametrize("key", ODD_KEYS)
def test_un_1_no_key_is_reserved(key, value, kind):
    store = FaultyStore(MemoryStore(clock=FakeClock()))
    s = site_on(store, *kind)
    s.visit(lambda session: session.update({key: value}))
    assert s.visit(dict) == {key: value}
    s.visit(lambda session: (session.flash("hello"), session.put(key, value, 60)))
    assert s.visit(lambda session: (session[key], session.ttl(key))) == (value, 60.0)
    s.visit(lambda session: session.update_key(key, lambda old: [old]))
    assert s.visit(lambda session: (dict(session), session.flashes())) == ({key: [value]}, [("message", "hello")])
    s.visit(lambda session: session.delete(key))
    assert s.visit(dict) == {}


def test_odd_keys_live_side_by_side(store, kind):
    s = site_on(store, *kind)
    values = {key: number for number, key in enumerate(ODD_KEYS)}
    s.visit(lambda session: session.update(values))
    s.visit(lambda session: [session.incr(key) for key in ODD_KEYS])
    assert s.visit(dict) == {key: number + 1 for key, number in values.items()}
    s.visit(lambda session: session.clear())
    assert s.visit(lambda session: (dict(session), session.new)) == ({}, False)


def test_a_change_in_place_is_noticed_and_written(store, kind):
    s = site_on(store, *kind)
    begun(s, items=[1], deep={"a": {"b": [1]}}, other=1)
    s.visit(lambda session: (session["items"].append(2), session["deep"]["a"]["b"].append(2)))
    assert s.visit(dict) == {"items": [1, 2], "deep": {"a": {"b": [1, 2]}}, "other": 1}

    def write_then_change(session):
        session["late"] = late = []
        late.append(1)
        session.get("items").clear()

    s.visit(write_then_change)
    assert s.visit(lambda session: (session["late"], session["items"])) == ([1], [])


def test_what_update_key_returned_is_the_value_itself_and_a_change_in_it_is_noticed(store, kind):
    s = site_on(store, *kind)
    begun(s)
    s.visit(lambda session: session.update_key("items", lambda items: [*items, 1], []).append(2))
    assert s.visit(lambda session: session["items"]) == [1, 2]
    s.visit(lambda session: (session.update_key("items", lambda items: [*items, 3]), session["items"].append(4)))
    assert s.visit(lambda session: session["items"]) == [1, 2, 3, 4]


def test_what_one_request_mutates_no_other_sees(store):
    s = site_on(store)
    begun(s, items=[1])

    def act(session):
        session["items"].append(2)
        return s.visit(lambda inner: list(inner["items"]))

    assert s.visit(act) == [1]


@pytest.mark.parametrize("value", [object(), math.nan, 1 << 64, {1: 2}, "\ud800", [{"deep": math.inf}]])
def test_what_would_not_come_back_is_a_type_error_and_nothing_is_written(store, value, kind):
    s = site_on(store, *kind)
    begun(s)
    s.action = lambda session: session.update(x=value)
    with pytest.raises((TypeError, UnicodeError)):
        s.browser.get()
    s.action = lambda session: session.update_key("n", lambda _: value)
    with pytest.raises((TypeError, UnicodeError)):
        s.browser.get()
    assert s.visit(dict) == {"n": 1}


def test_keys_expire_on_their_own(store, kind):
    s = site_on(store, *kind)
    s.visit(lambda session: (session.put("code", "7391", 10), session.put("gone", 1, -1), session.update(stay=1)))
    assert s.visit(lambda session: (dict(session), session.ttl("code"), session.ttl("stay"))) == (
        {"code": "7391", "stay": 1},
        10.0,
        None,
    )
    store.clock.advance(4)
    s.visit(lambda session: session.update(stay=2))
    assert s.visit(lambda session: session.ttl("code")) == 6.0
    store.clock.advance(6)
    assert s.visit(dict) == {"stay": 2}
    s.visit(lambda session: session.put("code", "new", 10))
    s.visit(lambda session: session.update(code="kept"))
    store.clock.advance(11)
    assert s.visit(lambda session: (session["code"], session.ttl("code"))) == ("kept", None)


def test_a_key_is_read_as_gone_the_moment_it_expires_within_a_request(store):
    s = site_on(store)
    s.visit(lambda session: session.put("code", 1, 10))

    def act(session):
        assert session["code"] == 1
        store.clock.advance(10)
        with pytest.raises(KeyNotFound):
            session["code"]
        return session.incr("code"), session.ttl("code")

    assert s.visit(act) == (1, None)
    assert s.visit(lambda session: (session["code"], session.ttl("code"))) == (1, None)


def test_changes_in_place_and_atomic_ones_keep_the_expiry(store, kind):
    s = site_on(store, *kind)
    s.visit(lambda session: [session.put(key, value, 10) for key, value in {"l": [1], "n": 1, "u": 1}.items()])
    s.visit(lambda session: (session["l"].append(2), session.incr("n"), session.update_key("u", lambda u: u + 1)))
    assert s.visit(lambda session: {key: (session[key], session.ttl(key)) for key in session}) == {
        "l": ([1, 2], 10.0),
        "n": (2, 10.0),
        "u": (2, 10.0),
    }
    store.clock.advance(10)
    assert s.visit(dict) == {}


def test_a_key_never_outlives_its_session(store):
    s = site_on(store, with_absolute_timeout(100))
    s.visit(lambda session: session.put("k", 1, 500))
    store.clock.advance(40)
    assert s.visit(lambda session: session.ttl("k")) == 60.0


def test_st_5_a_record_that_is_too_large_is_refused_whole(tmp_path):
    for kind in ENGINES:
        store = FaultyStore(maker(kind)(tmp_path, FakeClock(), largest=1000))
        s = site_on(store)
        begun(s)
        for act in (
            lambda session: session.update(m=1, x="x" * 1000),
            lambda session: session.update_key("x", lambda _: "x" * 1000),
        ):
            s.action = act
            with pytest.raises(RecordTooLarge):
                s.browser.get()
            assert s.visit(dict) == {"n": 1}
        s.action = lambda session: session.update(x="x" * 1000)
        with pytest.raises(RecordTooLarge):
            s.another_browser().get()
        assert len(records(store)) == 1


def test_after_record_too_large_an_application_may_make_room_and_answer_with_all_the_rest():
    store = FaultyStore(MemoryStore(clock=FakeClock(), largest=1000))
    s = site_on(store)
    begun(s)

    def app(request, start_response):
        session = s.handler.session(request)
        session["x"] = "x" * 1000
        session["m"] = 1
        session.flash("too much")
        with pytest.raises(RecordTooLarge):
            start_response("200 OK", list(OK))
        del session["x"]
        start_response("200 OK", list(OK))
        return [b""]

    run(s.handler.link(app), environ(HTTP_COOKIE=s.browser.jar.header()))
    assert s.visit(lambda session: (dict(session), session.flashes())) == (
        {"n": 1, "m": 1},
        [("message", "too much")],
    )


# -- requests that overlap -------------------------------------------------------------------------------


def test_two_overlapping_requests_that_write_different_keys_both_survive(store, kind):
    s = site_on(store, *kind)
    begun(s, a=0, b=0, gone=1)
    s.visit(
        lambda session: (session.update(a=1), s.visit(lambda inner: (inner.update(b=2, c=3), inner.delete("gone"))))
    )
    assert s.visit(dict) == {"a": 1, "b": 2, "c": 3}


def test_of_two_overlapping_requests_that_write_one_key_the_last_commit_wins(store, kind):
    s = site_on(store, *kind)
    begun(s, a=0)
    s.visit(lambda session: (session.update(a="outer"), s.visit(lambda inner: inner.update(a="inner"))))
    assert s.visit(dict) == {"a": "outer"}


def test_clear_removes_what_it_saw_and_nothing_that_came_meanwhile(store):
    s = site_on(store)
    begun(s, a=1, b=2)
    s.visit(lambda session: (session.clear(), s.visit(lambda inner: inner.update(c=3))))
    assert s.visit(dict) == {"c": 3}


def test_flash_messages_of_overlapping_requests_all_arrive_once_and_in_order(store, kind):
    s = site_on(store, *kind)
    begun(s)

    def act(session):
        session.flash("outer", "error")
        session.flash({"n": (1, 2)})
        s.visit(lambda inner: inner.flash("inner"))

    s.visit(act)
    store.clock.advance(1)
    s.visit(lambda session: session.flash("later"))
    got = s.visit(lambda session: (session.flashes(), dict(session)))
    assert sorted(map(str, got[0][:-1])) == sorted(
        map(str, [("message", "inner"), ("error", "outer"), ("message", {"n": (1, 2)})])
    )
    assert got[0].index(("error", "outer")) < got[0].index(("message", {"n": (1, 2)}))
    assert got[0][-1] == ("message", "later")
    assert got[1] == {"n": 1}
    assert s.visit(lambda session: session.flashes()) == []


def test_a_flash_that_was_taken_while_another_came_leaves_the_other(store):
    s = site_on(store)
    s.visit(lambda session: session.flash("old"))
    s.visit(lambda session: (session.flashes(), s.visit(lambda inner: inner.flash("new"))))
    assert s.visit(lambda session: session.flashes()) == [("message", "new")]


@pytest.mark.parametrize(
    "add",
    [lambda session: session.incr("n", 2), lambda session: session.update_key("n", lambda n: n + 2, 0)],
    ids=["incr", "update_key"],
)
def test_atomic_changes_are_seen_by_others_at_once_and_none_is_lost(store, kind, add):
    s = site_on(store, *kind)
    begun(s, other=1)

    def act(session):
        before = session.get("n")
        mine = add(session)
        theirs = s.visit(lambda inner: (inner["n"], add(inner)))
        return before, mine, theirs, add(session), session["n"]

    assert s.visit(act) == (None, 2, (2, 4), 6, 6)
    assert s.visit(dict) == {"other": 1, "n": 6}


def test_atomic_changes_of_racing_threads_all_count(store, kind):
    s = site_on(store, *kind)
    cookie = begun(s, log=[])
    handler, rounds, failures = s.handler, 5 * SOAK, []

    def race(name):
        try:
            for number in range(rounds):
                session = handler.session(environ(HTTP_COOKIE=cookie))
                session.incr("n")
                session.update_key("log", lambda log, entry=(name, number): [*log, entry])
                session[f"own {name}"] = number
                session.commit()
        except Exception as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [Thread(target=race, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    values = s.visit(dict)
    assert values["n"] == 4 * rounds
    assert sorted(values["log"]) == sorted((name, number) for name in range(4) for number in range(rounds))
    assert [values[f"own {name}"] for name in range(4)] == [rounds - 1] * 4


def test_atomic_changes_of_what_is_not_written_yet_build_on_it(store, kind):
    s = site_on(store, *kind)
    assert s.visit(lambda session: (session.incr("n"), session.incr("n", -3), session.update_key("l", list, "ab"))) == (
        1,
        -2,
        ["a", "b"],
    )
    s.visit(lambda session: (session.update(n=10), session.incr("n"), session["l"].append("c")))
    s.visit(lambda session: (session["l"].append("d"), session.update_key("l", lambda items: [*items, "e"])))
    s.visit(lambda session: (session.delete("n"), session.incr("n", 5)))
    assert s.visit(dict) == {"n": 5, "l": ["a", "b", "c", "d", "e"]}


@pytest.mark.parametrize(("had", "given"), [(None, 10), (10, None), (10, 500), (500, 10)])
@pytest.mark.parametrize("is_late", [False, True])
def test_update_key_leaves_the_life_that_another_request_gave_the_key_meanwhile(store, kind, had, given, *, is_late):
    s = site_on(store, *kind)
    begun(s)
    s.visit(lambda session: session.put("k", "v", max_age=had))

    def give_it():
        s.visit(lambda session: session.put("k", "v", max_age=given))

    def act(session):
        assert session.ttl("k") == had
        if not is_late:
            give_it()
        calls = []

        def change(value):
            if is_late and not calls:
                give_it()
            calls.append(value)
            return value + "!"

        return session.update_key("k", change)

    assert s.visit(act) == "v!"
    assert s.visit(lambda session: (session["k"], session.ttl("k"))) == ("v!", given)
    store.clock.advance(11)
    assert s.visit(lambda session: session.get("k")) == (None if given == 10 else "v!")


def test_update_key_shows_the_life_that_it_read_again(store, kind):
    s = site_on(store, *kind)
    begun(s)

    def change(value):
        if value is None:
            s.visit(lambda session: session.put("k", "theirs", max_age=10))
        return str(value)

    assert s.visit(lambda session: (session.update_key("k", change), session.ttl("k"))) == ("theirs", 10)
    s.visit(lambda session: session.put("k", "later", max_age=10))

    def clear(value):
        if value == "later":
            s.visit(lambda session: session.update(k="cleared"))
        return value + "!"

    assert s.visit(lambda session: (session.update_key("k", clear), session.ttl("k"))) == ("cleared!", None)
    assert s.visit(lambda session: (session["k"], session.ttl("k"))) == ("cleared!", None)


def test_a_key_that_update_key_kept_the_life_of_is_gone_at_its_end_in_a_long_request_too(store, kind):
    s = site_on(store, *kind)
    begun(s)
    s.visit(lambda session: session.put("k", 0, max_age=10))

    def act(session):
        for number in range(40):
            session.update_key("k", lambda value: value + 1)
            session.update_key("other", lambda _, number=number: number)
        before = session.ttl("k")
        store.clock.advance(10)
        return before, "k" in session, session.update_key("k", lambda value: value + 1, 0), session.ttl("k")

    assert s.visit(act) == (10, False, 1, None)
    assert s.visit(lambda session: (session["k"], session.ttl("k"))) == (1, None)


@pytest.mark.parametrize("held", ["text", True, 1.0, None, [1]])
def test_incr_of_what_is_no_integer_is_a_type_error(store, kind, held):
    s = site_on(store, *kind)
    begun(s, n=held)

    def act(session):
        for n in (1, True, 1.0, "1"):
            with pytest.raises(TypeError):
                session.incr("n", n)
        with pytest.raises(TypeError):
            session.incr("fresh", True)
        return dict(session)

    assert s.visit(act) == {"n": held}
    assert s.visit(dict) == {"n": held}


def test_incr_past_64_bits_is_a_type_error_and_changes_nothing(store, kind):
    s = site_on(store, *kind)
    begun(s, n=LARGEST_INT)

    def act(session):
        with pytest.raises(TypeError):
            session.incr("n")
        return session["n"]

    assert s.visit(act) == s.visit(lambda session: session["n"]) == LARGEST_INT


def test_a_default_is_not_changed_by_attempts_that_others_overtook(store):
    s = site_on(store)
    begun(s)
    calls = []

    def append(items):
        calls.append(len(items))
        if len(calls) == 1:
            s.visit(lambda inner: inner.update(items=["theirs"]))
        items.append("mine")
        return items

    assert s.visit(lambda session: session.update_key("items", append, [])) == ["theirs", "mine"]
    assert s.visit(lambda session: session["items"]) == ["theirs", "mine"]
    assert calls == [0, 1]


# -- lives -----------------------------------------------------------------------------------------------


def test_lc_3_looks_prolong_the_idle_life_with_one_touch_per_interval(store):
    s = site_on(store, with_idle_timeout(600))
    cookie = begun(s)
    version = records(store)[0].version
    with counted(store) as verbs:
        for _ in range(50 * SOAK):
            store.clock.advance(30)
            assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}
            assert s.answer.cookies == []
    assert verbs == {"load": 50 * SOAK, "apply": 25 * SOAK}
    assert records(store)[0].version == version
    store.clock.advance(599.999 - 60)
    assert s.visit(dict) == {"n": 1}
    store.clock.advance(600)
    assert s.visit(dict) == {}
    assert "Max-Age=0" in s.answer.cookies[0]
    assert records(store) == []


@pytest.mark.parametrize("idle", [5, 100, 7200])
def test_lc_3_the_idle_life_ends_never_late_and_early_by_the_interval_at_most(store, idle):
    s = site_on(store, with_idle_timeout(idle))
    interval = min(60, idle / 10)
    begun(s)
    store.clock.advance(interval - 0.001)
    s.visit(dict)
    store.clock.advance(idle - interval)
    assert s.visit(dict) == {"n": 1}
    store.clock.advance(idle)
    assert s.visit(dict) == {}


def test_lc_3_a_request_that_fails_is_no_activity(store):
    s = site_on(store, with_idle_timeout(100))
    begun(s)
    s.status = "500 Internal Server Error"
    for _ in range(9):
        store.clock.advance(11)
        assert s.visit(dict) == {"n": 1}
    s.status = "200 OK"
    store.clock.advance(1)
    assert s.visit(dict) == {}


def test_a_look_at_a_child_is_a_look_at_its_ancestors(store):
    s = family_on(store, with_idle_timeout(100))
    for _ in range(5):
        store.clock.advance(60)
        assert s.visit(lambda v, u, a: a["n"]) == 1
    assert s.visit(lambda v, u, a: (v["n"], u["n"])) == (1, 1)


def test_lc_4_nothing_prolongs_the_absolute_life(store):
    s = site_on(store, with_absolute_timeout(1000), with_idle_timeout(200), with_max_age(900))
    cookie = begun(s)
    for act in (
        dict,
        lambda x: x.touch(),
        lambda x: x.renew(),
        lambda x: x.touch(max_age=DAY),
        lambda x: x.bind("ann"),
    ):
        store.clock.advance(150)
        s.visit(act)
        cookie = s.browser.jar.header()
    store.clock.advance(199.999)
    assert s.visit(dict) == {"n": 1}
    assert s.visit(lambda session: session.expires_in) == 50.001
    store.clock.advance(50.001)
    assert s.visit(dict, HTTP_COOKIE=cookie) == {}


def test_remember_me_gives_a_life_of_its_own_and_takes_it_back(store):
    s = site_on(store)
    cookie = begun(s)
    assert "Max-Age" not in s.answer.cookies[0]
    s.visit(lambda session: session.touch(max_age=100))
    assert "; Max-Age=100" in s.answer.cookies[0]
    store.clock.advance(40)
    assert s.visit(lambda session: session.expires_in) == 60.0
    assert s.answer.cookies == []
    s.visit(lambda session: session.touch(max_age=0))
    assert "Max-Age" not in s.answer.cookies[0]
    assert "Expires" not in s.answer.cookies[0]
    store.clock.advance(1000)
    assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}
    s.visit(lambda session: session.touch(max_age=100))
    store.clock.advance(100)
    assert s.visit(dict, HTTP_COOKIE=cookie) == {}


def test_touch_with_a_negative_life_ends_the_session(store):
    s = site_on(store)
    cookie = begun(s)
    s.visit(lambda session: session.touch(max_age=-1))
    assert records(store) == []
    assert refused(s, cookie)


def test_a_touch_creates_nothing_and_revives_nothing(store):
    s = site_on(store, with_max_age(10))
    s.visit(lambda session: (session.touch(), session.touch(max_age=50)))
    assert records(store) == []
    cookie = begun(s)

    def act(session):
        assert session["n"] == 1
        store.clock.advance(10)
        session.touch(max_age=100)

    s.visit(act)
    assert s.visit(dict, HTTP_COOKIE=cookie) == {}


def test_a_handler_that_got_or_lost_its_idle_timeout_treats_old_records_as_its_new_ones(store):
    plain, idle = handler_on(store), handler_on(store, with_idle_timeout(100))
    s, later = Site(plain), Site(idle)
    cookie = begun(s)
    assert later.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}
    assert records(store)[0].idle == store.clock.now() + 100_000
    assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}
    store.clock.advance(200)
    assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}


# -- dead stays dead -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [(with_absolute_timeout(100),), (with_idle_timeout(100),), (with_max_age(100),)],
    ids=["absolute", "idle", "own"],
)
@pytest.mark.parametrize("away", [100, DAY, YEAR])
def test_tm_2_a_session_once_seen_expired_stays_dead_when_the_clock_goes_back(store, options, away):
    s = site_on(store, *options)
    cookie = begun(s)
    store.clock.advance(away)
    assert s.visit(dict, s.another_browser(), HTTP_COOKIE=cookie) == {}
    store.clock.advance(-away)
    assert s.visit(dict, s.another_browser(), HTTP_COOKIE=cookie) == {}
    assert records(store) == []


def test_lc_10_a_write_in_flight_at_logout_is_409_without_a_cookie_and_revives_nothing(store):
    s = site_on(store)
    cookie = begun(s)
    s.visit(lambda session: (session.update(n=2), s.visit(lambda inner: inner.revoke())))
    assert s.answer.code == 409
    assert s.answer.cookies == []
    assert records(store) == []
    assert refused(s, cookie)


@pytest.mark.parametrize(
    "act",
    [
        lambda session: session.update(n=2),
        lambda session: session["items"].append(1),
        lambda session: session.delete("n"),
        lambda session: session.flash("late"),
        lambda session: session.renew(),
        lambda session: session.bind("ann"),
        lambda session: session.touch(max_age=60),
        lambda session: session.clear(),
    ],
)
def test_lc_10_whatever_is_written_after_a_logout_raises_out_of_start_response(store, act):
    s = site_on(store)
    cookie = begun(s, n=1, items=[])
    raised = []

    def app(request, start_response):
        act(s.handler.session(request))
        s.visit(lambda inner: inner.revoke())
        try:
            start_response("200 OK", list(OK))
        except SessionGone as error:
            raised.append(error)
            start_response("409 Conflict", list(OK))
        return [b""]

    answer = run(s.handler.link(app), environ(HTTP_COOKIE=cookie))
    assert raised
    assert answer.cookies == []
    assert records(store) == []


@pytest.mark.parametrize("act", [lambda x: x.incr("n"), lambda x: x.update_key("n", lambda n: 5)])
def test_lc_10_atomic_changes_after_a_logout_raise_at_once_and_what_follows_too(store, kind, act):
    s = site_on(store, *kind)
    begun(s)

    def late(session):
        session.get("n")
        s.visit(lambda inner: inner.revoke())
        with pytest.raises(SessionGone):
            act(session)
        assert dict(session) == {}
        with pytest.raises(SessionGone):
            session["n"] = 3

    s.visit(late)
    assert s.answer.code == 200
    assert s.answer.cookies == []
    assert records(store) == []


def test_lc_10_a_generator_in_flight_at_logout_is_409_too(store):
    s = site_on(store)
    cookie = begun(s)
    app = streaming(s.handler, lambda session: (session.update(n=2), s.visit(lambda inner: inner.revoke())))
    answer = run(app, environ(HTTP_COOKIE=cookie))
    assert answer.code == 409
    assert answer.cookies == []
    assert refused(s, cookie)


def test_lc_10_a_reader_in_flight_at_logout_is_answered(store):
    s = site_on(store)
    begun(s)
    assert s.visit(lambda session: (session["n"], s.visit(lambda inner: inner.revoke()))) == (1, None)
    assert s.answer.code == 200
    assert s.answer.cookies == []


def test_lc_10_an_automatic_touch_in_flight_at_logout_fails_nobody_and_revives_nothing(store):
    s = site_on(store, with_idle_timeout(100), with_max_age(1000))
    cookie = begun(s)
    store.clock.advance(50)
    assert s.visit(lambda session: (session["n"], s.visit(lambda inner: inner.revoke()))) == (1, None)
    assert s.answer.code == 200
    assert s.answer.cookies == []
    assert refused(s, cookie)


def test_lc_8_a_logout_reaches_the_store_before_the_response_or_says_so(store):
    s = site_on(store)
    cookie = begun(s)

    def act(session):
        session.revoke()
        return records(store)

    store.fail(2)
    s.visit(act)
    assert s.answer.code == 503
    assert s.answer.cookies == []
    assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}
    assert s.visit(act, HTTP_COOKIE=cookie) == []
    assert "Max-Age=0" in s.answer.cookies[0]
    assert refused(s, cookie)


def test_lc_9_a_listener_that_fails_stops_no_logout(store):
    def failing(event):
        raise ValueError(event)

    s = site_on(store, with_events(failing))
    cookie = begun(s)
    s.visit(lambda session: session.revoke())
    assert refused(s, cookie)


def test_after_a_logout_reads_are_empty_writes_raise_and_generate_begins_anew(store):
    s = site_on(store)
    cookie = begun(s)

    def act(session):
        session.revoke()
        session.revoke()
        assert (dict(session), session.id, session.handle) == ({}, None, None)
        for write in (
            lambda: session.update(a=1),
            lambda: session.incr("n"),
            session.renew,
            lambda: session.flash("x"),
        ):
            with pytest.raises(SessionGone):
                write()

    s.visit(act)
    assert "Max-Age=0" in s.answer.cookies[0]
    s.visit(lambda session: (session.revoke(), session.regenerate(), session.update(b=2)), HTTP_COOKIE=cookie)
    assert s.visit(dict) == {"b": 2}
    assert refused(s, cookie)


def test_id_8_an_unknown_or_ended_id_is_never_adopted(store):
    s = site_on(store)
    cookie = begun(s)
    old = s.visit(lambda session: (session.id, session.handle))
    s.visit(lambda session: session.revoke())
    s.visit(lambda session: session.update(n=5), HTTP_COOKIE=cookie)
    new = s.visit(lambda session: (session.id, session.handle))
    assert not set(old) & set(new)
    assert refused(s, cookie)


def test_id_7_a_handle_that_exists_is_never_overwritten(store, monkeypatch):
    s = site_on(store)
    begun(s, mine=1)
    taken = handle_bytes(s.visit(lambda session: session.handle))
    drawn = iter([taken, taken, bytes(20)])
    monkeypatch.setattr("sessiontree.handlers.life.new_handle", lambda: next(drawn))
    other = s.another_browser()
    s.visit(lambda session: session.update(theirs=1), other)
    assert s.visit(lambda session: handle_bytes(session.handle), other) == bytes(20)
    assert (s.visit(dict), s.visit(dict, other)) == ({"mine": 1}, {"theirs": 1})


# -- renewal ---------------------------------------------------------------------------------------------


def test_lc_1_a_renewal_changes_the_id_and_keeps_all_else(store):
    s = family_on(store)
    cookie = s.browser.jar.header()
    before = s.visit(lambda v, u, a: (v.id, v.handle, u.handle))
    s.visit(lambda v, u, a: (v.put("k", 1, 60), v.renew()))
    after = s.visit(lambda v, u, a: (v.id, v.handle, u.handle))
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    assert s.visit(lambda v, u, a: (dict(v), v.ttl("k"), dict(a))) == ({"n": 1, "k": 1}, 60.0, {"n": 1})
    assert s.visit(lambda v, u, a: [dict(v), dict(u), dict(a)], HTTP_COOKIE=cookie) == [{}, {}, {}]
    assert s.answer.cookies == []


def test_lc_1_the_old_id_is_refused_at_once_and_its_cookie_is_not_cleared(store):
    s = site_on(store)
    cookie = begun(s)
    s.visit(lambda session: session.renew())
    assert refused(s, cookie)
    s.visit(dict, HTTP_COOKIE=cookie)
    assert s.answer.cookies == []
    assert s.visit(dict) == {"n": 1}


def test_lc_1_bind_renews_labels_and_stamps(store):
    s = site_on(store)
    cookie = begun(s)
    s.visit(lambda session: session.bind("ann"))
    assert refused(s, cookie)
    store.clock.advance(50)
    assert s.visit(lambda session: (session.subject, session.fresh_within(50), session.fresh_within(49))) == (
        "ann",
        True,
        False,
    )
    assert [info.subject for info in s.handler.sessions("ann")] == ["ann"]
    s.visit(lambda session: session.bind(None))
    assert s.handler.sessions("ann") == []
    assert s.visit(lambda session: (session.subject, session.fresh_within(DAY), dict(session))) == (
        None,
        False,
        {"n": 1},
    )


def test_lc_2_of_two_overlapping_renewals_one_wins_and_the_other_raises(store):
    s = site_on(store)
    begun(s)
    s.visit(lambda session: (session.renew(), s.visit(lambda inner: inner.renew())))
    assert s.answer.code == 409
    assert s.answer.cookies == []
    assert s.visit(dict) == {"n": 1}


def test_lc_2_a_write_in_flight_under_the_old_id_is_refused(store):
    s = site_on(store)
    begun(s)
    s.visit(lambda session: (session.update(n=2), s.visit(lambda inner: inner.renew())))
    assert s.answer.code == 409
    assert s.visit(dict) == {"n": 1}


def test_lc_2_in_its_grace_the_old_id_reads_and_never_writes(store):
    s = site_on(store)
    cookie = begun(s, n=1, items=[])
    s.visit(lambda session: session.renew(grace=30))
    store.clock.advance(29.999)
    assert s.visit(lambda session: session["n"], HTTP_COOKIE=cookie) == 1
    assert s.answer.cookies == []

    def act(session):
        assert session["items"] == []
        for write in (
            lambda: session.update(a=1),
            lambda: session.delete("n"),
            lambda: session.clear(),
            lambda: session.incr("n"),
            lambda: session.update_key("n", lambda n: n),
            lambda: session.flash("x"),
            lambda: session.renew(),
            lambda: session.touch(max_age=60),
            lambda: session.bind("eve"),
            lambda: session.revoke(),
        ):
            with pytest.raises(SessionGone):
                write()

    s.visit(act, HTTP_COOKIE=cookie)
    assert s.answer.cookies == []
    store.clock.advance(0.001)
    assert refused(s, cookie)
    s.visit(dict, HTTP_COOKIE=cookie)
    assert s.answer.cookies == []
    assert s.visit(dict) == {"n": 1, "items": []}


def test_lc_2_a_change_in_place_under_an_old_id_in_its_grace_is_never_written(store):
    s = site_on(store)
    cookie = begun(s, items=[1])
    s.visit(lambda session: session.renew(grace=30))
    s.visit(lambda session: session["items"].append(2), HTTP_COOKIE=cookie)
    assert s.visit(dict) == {"items": [1]}


@pytest.mark.parametrize("keys", [SECRET, KeyRing([OTHER_SECRET, SECRET])], ids=["one key", "rotated"])
def test_lc_2_an_old_id_in_its_grace_is_never_sent_over_the_new_one(store, keys):
    s = site_on(store, with_idle_timeout(100), with_max_age(1000))
    cookie = begun(s)
    store.clock.advance(9)
    s.visit(lambda session: session.renew(grace=60))
    store.clock.advance(3)
    other = Site(handler_on(store, with_idle_timeout(100), with_max_age(1000), keys=keys))
    assert other.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}
    assert other.answer.cookies == []


def test_a_new_session_in_place_of_an_old_id_in_its_grace_ends_nothing_of_the_renewed_one(store):
    s = site_on(store)
    cookie = begun(s)
    s.visit(lambda session: session.renew(grace=30))
    s.visit(lambda session: (session.regenerate(), session.update(other=1)), s.another_browser(), HTTP_COOKIE=cookie)
    assert s.visit(dict) == {"n": 1}


def test_a_session_that_is_renewed_twice_has_one_id(store):
    s = site_on(store)
    begun(s)
    ids = s.visit(lambda session: (session.renew(), session.id, session.renew(), session.id))
    assert s.visit(lambda session: session.id) == ids[3]
    s.visit(lambda session: (session.renew(), session.commit(), session.renew()))
    assert s.visit(dict) == {"n": 1}


def test_key_rotation_sends_a_new_token_once_and_changes_nothing_else(store):
    s = site_on(store)
    begun(s)
    rolled = Site(handler_on(store, keys=KeyRing([OTHER_SECRET, SECRET])))
    rolled.browser.jar = s.browser.jar
    with counted(store) as verbs:
        assert rolled.visit(dict) == {"n": 1}
        assert len(rolled.answer.cookies) == 1
        assert rolled.visit(dict) == {"n": 1}
        assert rolled.answer.cookies == []
    assert verbs == {"load": 2, "apply": 1}  # One, to see that the token is still the newest.
    only = Site(handler_on(store, keys=OTHER_SECRET))
    only.browser.jar = s.browser.jar
    assert only.visit(dict) == {"n": 1}
    assert s.visit(dict) == {}
    assert s.answer.cookies == []


# -- generate, merge, commit by hand ---------------------------------------------------------------------


def test_generate_revokes_the_old_record_at_the_commit(store):
    s = site_on(store)
    cookie = begun(s)

    def act(session):
        session.regenerate()
        session["m"] = 1
        return s.visit(dict, HTTP_COOKIE=cookie)

    assert s.visit(act) == {"n": 1}
    assert s.visit(dict) == {"m": 1}
    assert refused(s, cookie)
    assert len(records(store)) == 1


def test_ws_2_generate_in_a_response_that_fails_changes_nothing(store):
    s = site_on(store)
    begun(s)
    s.status = "500 Internal Server Error"
    s.visit(lambda session: (session.regenerate(), session.update(m=1)))
    s.status = "200 OK"
    assert s.answer.cookies == []
    assert s.visit(dict) == {"n": 1}
    assert len(records(store)) == 1


def test_a_session_that_was_replaced_and_then_revoked_is_dead_even_if_the_response_fails(store):
    s = site_on(store)
    cookie = begun(s)
    s.status = "500 Internal Server Error"
    s.visit(lambda session: (session.regenerate(), session.revoke()))
    assert refused(s, cookie)


def test_generate_committed_by_hand_revokes_the_old_record_too(store):
    s = site_on(store)
    cookie = begun(s)
    request = environ(HTTP_COOKIE=cookie)
    session = s.handler.generate(request)
    session["m"] = 1
    assert [name for name, _ in session.commit()] == ["Set-Cookie"]
    assert refused(s, cookie)


def test_merge_overlays_and_revokes_the_other(store):
    visitor, cart = handler_on(store), handler_on(store, name="cart")
    s = Site(visitor, cart)
    s.visit(lambda v, c: (v.update(a=1, b=1), c.put("b", 2, 60), c.flash("moved")))
    kept = s.browser.jar.header()
    s.visit(lambda v, c: v.merge(c))
    assert s.visit(lambda v, c: (dict(v), v.ttl("b"), v.flashes(), dict(c))) == (
        {"a": 1, "b": 2},
        60.0,
        [("message", "moved")],
        {},
    )
    assert s.visit(lambda v, c: dict(c), HTTP_COOKIE=kept) == {}


def test_commit_by_hand_writes_the_parents_first_and_is_idempotent(store):
    visitor = handler_on(store)
    user = visitor.spawn("user")
    request = environ()
    visitor.session(request)["v"] = 1
    session = user.session(request)
    session["u"] = 1
    with counted(store) as verbs:
        headers = session.commit()
        assert session.commit() == headers
        assert request["sessiontree"].commit() == headers
    assert verbs == {"create": 2}
    assert [value.split("=")[0] for _, value in headers] == ["__Host-visitor", "__Host-user"]
    browser = Browser(None, store.clock)
    for _, value in headers:
        browser.jar.store(value)
    later = environ(HTTP_COOKIE=browser.jar.header())
    assert (dict(visitor.session(later)), dict(user.session(later))) == ({"v": 1}, {"u": 1})


# -- statuses, failures, streaming -----------------------------------------------------------------------


def test_ws_2_a_5xx_drops_data_and_keeps_revocation_renewal_and_incr(store):
    s = site_on(store)
    cookie = begun(s)
    s.status = "503 Service Unavailable"
    s.visit(lambda session: (session.incr("n"), session.update(dropped=1), session.flash("no"), session.put("k", 1, 5)))
    assert s.visit(lambda session: (dict(session), session.flashes())) == ({"n": 2}, [])
    assert s.answer.cookies == []
    s.visit(lambda session: (session.update(dropped=1), session.renew()))
    assert len(s.answer.cookies) == 1
    assert refused(s, cookie)
    assert s.visit(dict) == {"n": 2}
    s.visit(lambda session: session.revoke())
    assert "Max-Age=0" in s.answer.cookies[0]
    assert records(store) == []
    s.visit(lambda session: session.update(n=1))
    assert s.answer.cookies == records(store) == []


def test_ws_2_an_exception_that_escapes_saves_nothing_and_renews_nothing(store):
    s = site_on(store)
    begun(s)

    def act(session):
        session.incr("n")
        session.update(dropped=1)
        session.renew()
        raise ZeroDivisionError

    s.action = act
    with pytest.raises(ZeroDivisionError):
        s.browser.get()
    assert s.visit(dict) == {"n": 2}
    s.action = lambda session: (session.update(x=1), 1 // 0)
    with pytest.raises(ZeroDivisionError):
        s.another_browser().get()
    assert len(records(store)) == 1


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 Internal Server Error"])
@pytest.mark.parametrize(
    "act",
    [lambda session: session.renew(), lambda session: session.bind("ann"), lambda session: session.regenerate()],
    ids=["renew", "bind", "generate"],
)
def test_a_second_answer_repeats_the_cookies_of_what_was_committed(store, act, status):
    s = site_on(store)
    begun(s)
    steps = (
        (lambda r: (act(s.handler.session(r)), s.handler.session(r).update(m=1)), "200 OK"),
        (lambda r: None, status),
    )
    s.browser.app = s.handler.link(answering(*steps))
    answer = s.browser.get()
    assert answer.get("Vary") == "Cookie"
    assert len(answer.cookies) == 1
    s.browser.app = s.app
    assert s.visit(lambda session: session["m"]) == 1


def test_a_second_answer_repeats_the_deletion_of_a_revoked_session(store):
    s = site_on(store)
    begun(s)
    steps = ((lambda r: s.handler.session(r).revoke(), "200 OK"), (lambda r: None, "500 Internal Server Error"))
    s.browser.app = s.handler.link(answering(*steps))
    assert "Max-Age=0" in s.browser.get().cookies[0]


def test_ws_3_what_is_written_while_streaming_lands_at_close(store, kind):
    s = site_on(store, *kind)
    cookie = begun(s, old=1)

    def after(session):
        session["late"] = 1
        session.put("k", 1, 60)
        session.delete("old")
        session.flash("late")

    with counted(store) as verbs:
        run(streaming(s.handler, lambda session: None, after), environ(HTTP_COOKIE=cookie))
    assert verbs == {"load": 1, "apply": 1}
    assert s.visit(lambda session: (dict(session), session.ttl("k"), session.flashes())) == (
        {"late": 1, "k": 1},
        60.0,
        [("message", "late")],
    )


def test_ws_3_a_change_in_place_while_streaming_lands_at_close_too(store):
    s = site_on(store)
    cookie = begun(s, items=[1])
    run(streaming(s.handler, after=lambda session: session["items"].append(2)), environ(HTTP_COOKIE=cookie))
    assert s.visit(dict) == {"items": [1, 2]}
    run(
        streaming(s.handler, lambda session: session["items"], lambda session: session["items"].append(3)),
        environ(HTTP_COOKIE=cookie),
    )
    assert s.visit(dict) == {"items": [1, 2, 3]}


def test_ws_3_what_a_list_body_writes_after_the_headers_lands_too(store):
    s = site_on(store)
    cookie = begun(s)

    def app(request, start_response):
        start_response("200 OK", list(OK))
        s.handler.session(request)["late"] = 1
        return [b""]

    run(s.handler.link(app), environ(HTTP_COOKIE=cookie))
    assert s.visit(dict) == {"n": 1, "late": 1}


def test_ws_3_a_session_begun_before_the_headers_takes_writes_after_them(store):
    s = site_on(store)
    s.browser.app = streaming(s.handler, lambda session: session.update(a=1), lambda session: session.update(b=2))
    s.browser.get()
    s.browser.app = s.app
    assert s.visit(dict) == {"a": 1, "b": 2}


def test_ws_3_beginning_replacing_and_renewing_after_the_headers_is_headers_sent(store):
    s = site_on(store)
    cookie = begun(s)
    raised = []

    def after(session):
        for write in (session.renew, session.regenerate, lambda: session.bind("ann"), lambda: session.update(a=1)):
            try:
                write()
            except HeadersSent as error:
                raised.append(error)

    run(streaming(s.handler, dict, after), environ(HTTP_COOKIE=cookie))
    assert len(raised) == 3
    assert s.visit(dict) == {"n": 1, "a": 1}
    raised.clear()
    run(streaming(s.handler, after=after), environ())
    assert len(raised) >= 3
    assert len(records(store)) == 1


def test_ws_3_a_logout_and_atomic_changes_work_while_streaming(store):
    s = site_on(store)
    cookie = begun(s)
    run(streaming(s.handler, after=lambda session: session.incr("n")), environ(HTTP_COOKIE=cookie))
    assert s.visit(dict) == {"n": 2}
    run(streaming(s.handler, after=lambda session: session.revoke()), environ(HTTP_COOKIE=cookie))
    assert records(store) == []


def spoilt_by_logout(s, store):
    s.visit(lambda inner: inner.revoke())


def spoilt_by_outage(s, store):
    store.fail(1)


def too_large(session):
    session["x"] = "x" * 2_000_000


def unwritable(session):
    session["items"] = items = []
    items.append(object())


@pytest.mark.parametrize(
    ("write", "spoil"),
    [
        (lambda session: session.update(a=1), spoilt_by_logout),
        (lambda session: session.update(a=1), spoilt_by_outage),
        (too_large, lambda s, store: None),
        (unwritable, lambda s, store: None),
    ],
    ids=["logout", "outage", "too large", "unwritable"],
)
def test_ws_3_a_late_write_that_fails_is_an_event_and_no_exception(store, write, spoil):
    s, events = noted(store)
    cookie = begun(s)

    def after(session):
        assert session["n"] == 1
        write(session)
        spoil(s, store)
        events.clear()

    answer = run(streaming(s.handler, after=after), environ(HTTP_COOKIE=cookie))
    assert answer.body == b"onetwo"
    assert events
    assert s.visit(dict) in ({}, {"n": 1})


def test_ws_3_a_late_write_that_fails_takes_no_other_session_along(store):
    visitor = handler_on(store)
    other = handler_on(store, name="other")
    s = Site(visitor, other)
    s.visit(lambda v, o: (v.update(n=1), o.update(n=1)))

    def app(request, start_response):
        start_response("200 OK", list(OK))
        yield b""
        too_large(visitor.session(request))
        other.session(request)["n"] = 2

    run(chain(visitor, other)(app), environ(HTTP_COOKIE=s.browser.jar.header()))
    assert s.visit(lambda v, o: (dict(v), dict(o))) == ({"n": 1}, {"n": 2})


def test_ws_2_what_a_5xx_dropped_stays_dropped_when_its_body_writes_again(store):
    s = site_on(store)
    cookie = begun(s)

    def app(request, start_response):
        session = s.handler.session(request)
        session["dropped"] = 1
        session.flash("dropped")
        start_response("500 Internal Server Error", list(OK))
        yield b""
        session["late"] = 1

    run(s.handler.link(app), environ(HTTP_COOKIE=cookie))
    assert s.visit(lambda session: ("dropped" in session, session.flashes())) == (False, [])


def test_several_commits_by_hand_write_what_came_between_them(store):
    s = site_on(store)

    def act(session):
        session.update(n=1, items=[1])
        session.flash("a")
        session.commit()
        session["items"].append(2)
        session.flash("b")
        session.commit()
        session.incr("n")
        session.put("k", 1, 60)
        session.commit()
        del session["k"]
        return session.flashes()

    assert s.visit(act) == [("message", "a"), ("message", "b")]
    assert s.visit(lambda session: (dict(session), session.flashes())) == ({"n": 2, "items": [1, 2]}, [])


def test_a_body_that_fails_while_streaming_saves_nothing_of_its_own(store):
    s = site_on(store)
    cookie = begun(s)

    def after(session):
        session["late"] = 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(streaming(s.handler, after=after), environ(HTTP_COOKIE=cookie))
    assert s.visit(dict) == {"n": 1}


def test_no_cyclic_garbage_is_left_by_a_thousand_requests_in_store_mode(store):
    visitor = handler_on(store, with_idle_timeout(100))
    user = visitor.spawn("user", with_encryption())

    def act(request):
        path = request["PATH_INFO"]
        if path != "/untouched":
            visitor.session(request).incr("n")
            user.session(request)["items"] = [1]
            visitor.session(request).flash("hello")
            user.session(request).flashes()
        if path == "/renewed":
            visitor.session(request).renew(grace=1)
        if path == "/logout":
            visitor.session(request).revoke()

    def plain(request, start_response):
        act(request)
        start_response("200 OK", list(OK))
        return [b"x"]

    def stream(request, start_response):
        act(request)
        start_response("200 OK", list(OK))
        yield b"x"

    for app in (plain, stream):
        browser = Browser(chain(visitor, user)(app), store.clock)
        browser.get("/")
        cookie = browser.jar.header()
        gc.collect()
        gc.disable()
        try:
            for number in range(500):
                path = ("/", "/untouched", "/renewed", "/logout", "/junk")[number % 5]
                run(
                    browser.app,
                    environ(path, HTTP_COOKIE="__Host-visitor=junk" * (path == "/junk") or cookie),
                    validate=False,
                )
            assert gc.collect() == 0
        finally:
            gc.enable()


# -- who: lists, ends, children --------------------------------------------------------------------------


def logins(s, *subjects):
    """Log each subject in with a browser of its own, and return the browsers."""
    browsers = []
    for subject in subjects:
        browsers.append(s.another_browser())
        s.visit(lambda session, subject=subject: (session.update(n=1), session.bind(subject)), browsers[-1])
        s.clock.advance(1)
    return browsers


def alive(s, browsers):
    return [bool(s.visit(dict, browser)) for browser in browsers]


def test_lc_12_sessions_are_listed_by_public_handle_newest_first(store):
    s = site_on(store, with_max_age(DAY))
    browsers = logins(s, "ann", "bob", "ann")
    ids = [s.visit(lambda session: (session.id, session.handle), browser) for browser in browsers]
    listed = s.handler.sessions("ann")
    assert [info.handle for info in listed] == [ids[2][1], ids[0][1]]
    info = listed[0]
    assert (info.handler, info.subject, info.metadata.user_agent, info.metadata.ip_address) == (
        "visitor",
        "ann",
        "Test/1",
        "192.0.2.7",
    )
    assert info.expires_at - info.created == timedelta(days=1)
    shown = repr(listed)
    raw = [base64.urlsafe_b64decode(session_id + "=") for session_id, _ in ids]
    assert not any(text in shown for text in [*(i for i, _ in ids), *(r.hex() for r in raw), *map(repr, raw)])
    assert s.handler.sessions("nobody") == []
    for browser in browsers:
        assert s.visit(dict, HTTP_COOKIE=f"__Host-visitor={listed[0].handle}") == {}
        assert s.visit(dict, browser) == {"n": 1}


def test_lc_12_a_session_is_ended_by_its_handle_and_only_by_its_owner(store):
    s = site_on(store)
    other = handler_on(store, name="other")
    browsers = logins(s, "ann", "bob")
    handle = s.handler.sessions("ann")[0].handle
    assert not s.handler.revoke(handle, "bob")
    assert not other.revoke(handle)
    assert not any(s.handler.revoke(junk) for junk in ("", "junk", "a" * 32, None, 5, handle.upper()))
    assert alive(s, browsers) == [True, True]
    assert s.handler.revoke(handle, "ann")
    assert not s.handler.revoke(handle, "ann")
    assert alive(s, browsers) == [False, True]


def test_lc_11_a_user_is_logged_out_everywhere_but_here(store):
    s = site_on(store)
    browsers = logins(s, "ann", "ann", "bob", "ann", "ann")
    keep = s.visit(lambda session: session.handle, browsers[1])
    assert s.handler.revoke_all("ann", keep=keep) == 3
    assert alive(s, browsers) == [False, True, True, False, False]
    browsers += logins(s, "ann")
    assert s.visit(lambda session: session.handler.revoke_all("ann", keep=session), browsers[1]) == 1
    assert s.visit(dict, browsers[1]) == {"n": 1}
    assert s.handler.revoke_all("ann") == 1
    assert s.handler.revoke_all("ann") == 0
    assert alive(s, browsers) == [False, False, True, False, False, False]


def test_lc_11_hundreds_of_sessions_end_and_those_of_other_handlers_stay(store):
    s, other = site_on(store), Site(handler_on(store, name="other"))
    logins(other, "ann")
    logins(s, *["ann"] * 120)
    assert len(s.handler.sessions("ann")) == 120
    assert s.handler.revoke_all("ann") == 120
    assert len(other.handler.sessions("ann")) == 1


def test_lc_11_a_login_in_flight_at_its_start_does_not_survive_revoke_all(store):
    s = site_on(store)
    browser, second = logins(s, "ann", "ann")
    s.clock.advance(-10)  # The clock of a login may lag: what is bound at or before the start dies.

    def act(session):
        session["n"] = 2
        assert session.handler.revoke_all("nobody") == 0
        s.clock.advance(10)
        return session.handler.revoke_all("ann")

    assert s.visit(act, browser) == 2
    assert s.answer.code == 409
    assert alive(s, [browser, second]) == [False, False]


def test_children_are_listed_and_a_dead_parent_takes_them_out_of_every_list(store):
    s = family_on(store)
    visitor, user, admin = s.handlers
    s.visit(lambda v, u, a: (u.bind("ann"), a.bind("ann")))
    listed = s.visit(lambda v, u, a: (v.children(), u.children(), a.children(), u.handle, a.handle))
    assert [[info.handle for info in infos] for infos in listed[:3]] == [[listed[3]], [listed[4]], []]
    assert [info.handler for info in user.sessions("ann")] == ["visitor/user"]
    cookie = s.browser.jar.header()
    s.visit(lambda v, u, a: v.revoke())
    assert s.visit(lambda v, u, a: [dict(v), dict(u), dict(a)], HTTP_COOKIE=cookie) == [{}, {}, {}]
    assert user.sessions("ann") == []
    assert admin.sessions("ann") == []
    assert visitor.sessions("ann") == []


def test_lists_need_a_store(store):
    plain = Handler("visitor", SECRET, with_clock(store.clock))
    for call in (
        lambda: plain.sessions("ann"),
        lambda: plain.revoke_all("ann"),
        lambda: plain.revoke("a" * 32),
        lambda: plain.sweep(),
        lambda: plain.session(environ()).children(),
    ):
        with pytest.raises(ConfigError):
            call()


def test_sweep_removes_what_expired_an_hour_ago(store):
    s = site_on(store, with_max_age(100))
    begun(s)
    store.clock.advance(100)
    assert s.handler.sweep() == 0
    store.clock.advance(3600)
    assert s.handler.sweep() == 1
    assert s.handler.sweep() == 0


# -- trees -----------------------------------------------------------------------------------------------


def test_lc_16_revoking_a_parent_is_one_write_and_takes_all_descendants_along(store):
    s = family_on(store)
    with counted(store) as verbs:
        s.visit(lambda v, u, a: v.revoke())
    assert verbs["revoke"] == 1
    assert verbs["apply"] == 0
    assert len(s.answer.cookies) == 3
    assert s.browser.jar.cookies() == []


def test_lc_16_a_child_in_flight_at_the_logout_of_its_parent_does_not_live_on(store):
    s = family_on(store)
    cookie = s.browser.jar.header()
    s.visit(lambda v, u, a: (u.update(n=2), s.visit(lambda v, u, a: v.revoke())))
    assert s.visit(lambda v, u, a: [dict(v), dict(u), dict(a)], HTTP_COOKIE=cookie) == [{}, {}, {}]


def test_lc_16_a_child_that_begins_while_its_parent_ends_never_lives(store):
    visitor = handler_on(store)
    s = Site(visitor, visitor.spawn("user"))
    s.visit(lambda v, u: v.update(n=1))
    cookie = s.browser.jar.get("__Host-visitor")
    s.visit(lambda v, u: (u.update(n=1), s.visit(lambda v, u: v.revoke())))
    both = f"__Host-visitor={cookie}; __Host-user={s.browser.jar.get('__Host-user')}"
    assert s.visit(lambda v, u: (dict(v), dict(u)), HTTP_COOKIE=both) == ({}, {})


@pytest.mark.parametrize("options", [(), (with_store(None),)], ids=["stored", "carried"])
def test_lc_16_children_of_an_ended_server_only_parent_stay_dead_when_its_id_is_used_again(store, options):
    room = handler_on(store, server_only, fixed_id("room"), name="room")
    s = Site(room, room.spawn("guest", *options))
    s.visit(lambda r, g: (r.update(n=1), g.update(n=1)))
    cookie = s.browser.jar.header()
    assert s.visit(lambda r, g: dict(g)) == {"n": 1}
    s.visit(lambda r, g: r.revoke())
    s.visit(lambda r, g: r.update(n=2), s.another_browser())
    assert s.visit(lambda r, g: (dict(r), dict(g)), s.another_browser(), HTTP_COOKIE=cookie) == ({"n": 2}, {})


def test_two_stores_cost_one_trip_each(store):
    second = FaultyStore(MemoryStore(clock=store.clock))
    visitor = handler_on(store)
    user = visitor.spawn("user", with_store(second))
    s = Site(visitor, user, user.spawn("admin"))
    s.visit(lambda *all_: [session.update(n=1) for session in all_])
    with counted(store) as verbs, counted(second) as others:
        assert s.visit(lambda v, u, a: a["n"]) == 1
    assert (verbs, others) == ({"load": 1}, {"load_many": 1})


def test_a_child_cannot_begin_without_its_parent(store):
    visitor = handler_on(store)
    user = visitor.spawn("user")
    s = Site(visitor, user)

    def act(v, u):
        with pytest.raises(ParentInvalid):
            u["n"] = 1
        v["n"] = 1
        u["n"] = 1

    s.visit(act)
    assert s.visit(lambda v, u: (dict(v), dict(u))) == ({"n": 1}, {"n": 1})


def test_lc_16_a_childs_cookie_fits_under_its_own_parent_only(store):
    s = family_on(store)
    first, second = s.browser, s.another_browser()
    s.visit(lambda *all_: [session.update(n=2) for session in all_], second)
    mixed = f"__Host-visitor={first.jar.get('__Host-visitor')}; __Host-user={second.jar.get('__Host-user')}"
    assert s.visit(lambda v, u, a: (dict(v), dict(u)), HTTP_COOKIE=mixed) == ({"n": 1}, {})
    assert s.answer.cookies == []


@pytest.mark.parametrize("stored_child", [True, False], ids=["child stored", "parent stored"])
def test_a_parent_and_a_child_may_be_kept_in_different_places(store, stored_child):
    visitor = Handler("visitor", SECRET, with_clock(store.clock), with_store(None if stored_child else store))
    user = visitor.spawn("user", with_store(store if stored_child else None))
    s = Site(visitor, user)
    s.visit(lambda v, u: (v.update(n=1), u.update(n=1)))
    cookie = s.browser.jar.header()
    assert len(records(store)) == 1
    assert s.visit(lambda v, u: (dict(u), u.parent is v)) == ({"n": 1}, True)
    s.visit(lambda v, u: u.update(n=2))
    s.visit(lambda v, u: v.renew())
    assert s.visit(lambda v, u: dict(u)) == {"n": 2}
    user_only = f"__Host-user={s.browser.jar.get('__Host-user')}"
    assert s.visit(lambda v, u: dict(u), HTTP_COOKIE=user_only) == {}
    s.visit(lambda v, u: (v.regenerate(), v.update(n=3)))
    assert s.visit(lambda v, u: (dict(v), dict(u))) == ({"n": 3}, {})
    s.visit(lambda v, u: u.update(n=4))
    s.visit(lambda v, u: v.revoke())
    assert s.browser.jar.cookies() == []
    if not stored_child:
        assert s.visit(lambda v, u: (dict(v), dict(u)), HTTP_COOKIE=cookie) == ({}, {})


def test_a_cookie_child_of_a_stored_parent_is_answered_by_one_load(store):
    visitor = handler_on(store)
    user = visitor.spawn("user", with_store(None))
    s = Site(visitor, user)
    s.visit(lambda v, u: (v.update(n=1), u.update(n=1)))
    with counted(store) as verbs:
        assert s.visit(lambda v, u: u["n"]) == 1
    assert verbs == {"load": 1}


# -- what is bound to whom -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["other", "visitor2"])
def test_cx_2_a_cookie_of_one_handler_opens_nothing_at_another_on_the_same_store(store, name):
    s = site_on(store)
    begun(s)
    token = s.browser.jar.get("__Host-visitor")
    other = Site(handler_on(store, name=name))
    with counted(store) as verbs:
        assert refused(other, f"__Host-{name}={token}", BadCookie)
    assert not verbs


def test_cx_2_a_record_of_one_path_never_loads_for_another(store):
    a, b = handler_on(store, name="a"), handler_on(store, name="b")
    s = Site(a)
    s.visit(lambda session: session.update(n=1))
    record, session_id = records(store)[0], s.visit(lambda session: session.id)
    claim = written(record.absolute, 1, handle_bytes(record.handle), session_id)
    forged = claim_tokens(b.config.keys, "b").seal(claim)
    assert refused(Site(b), f"__Host-b={forged}")
    child = b.spawn("a")
    assert not child.revoke(record.handle)


def test_cx_7_a_store_that_answers_with_another_record_shows_nobody_elses_data(store):
    s = site_on(store)
    begun(s, secret="hers")
    hers = records(store)[0]
    other = s.another_browser()
    s.visit(lambda session: session.update(mine=1), other)
    inner = store.inner.load
    store.inner.load = lambda handle, keys=None: hers
    assert s.visit(dict, other) == {}
    store.inner.load = inner
    assert s.visit(dict, other) == {"mine": 1}


def encodings(raw):
    """Yield what the bytes may look like anywhere."""
    yield raw
    for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.b32encode, base64.b16encode):
        text = encode(raw).rstrip(b"=")
        yield from (text, text.lower()) if encode in (base64.b32encode, base64.b16encode) else (text,)


@pytest.mark.parametrize("generator", [new_id, uuid4, uuid7])
def test_id_5_the_files_of_a_store_hold_no_cookie_id_in_any_encoding(tmp_path, generator):
    store = FaultyStore(maker("sqlite")(tmp_path, FakeClock()))
    visitor = handler_on(store, with_id_generator(generator), with_idle_timeout(100))
    s = Site(visitor, visitor.spawn("user"))
    ids = set()
    actions = (
        lambda v, u: (v.update(n=1), u.update(n=1)),
        lambda v, u: (v.incr("n"), v.renew(grace=30), u.bind("ann")),
        lambda v, u: (v.incr("n"), u.flash("hello"), v.put("k", "x" * 200, 10)),
        lambda v, u: (v.incr("n"), u.regenerate(), u.update(n=2)),
        lambda v, u: u.revoke(),
    )
    for number in range(20 * SOAK):
        s.visit(actions[number % 5], browser := s.browser if number % 7 else s.another_browser())
        ids |= set(s.visit(lambda v, u: (v.id, u.id), browser)) - {None}
        store.clock.advance(7)
    files = list(tmp_path.glob("s.db*"))
    content = b"".join(path.read_bytes() for path in files)
    assert len(content) > 1000
    assert "s.db-wal" in {path.name for path in files}
    assert b"visitor/user" in content
    for session_id in ids:
        raw = base64.urlsafe_b64decode(session_id + "=") if generator is new_id else UUID(session_id).bytes
        texts = [session_id.encode(), *encodings(raw), *encodings(session_id.encode())]
        assert not [text for text in texts if text in content]


def test_id_6_nothing_that_a_store_holds_is_accepted_as_a_cookie(store):
    s = site_on(store)
    begun(s)
    s.visit(lambda session: (session.renew(grace=60), session.bind("ann")))
    record = records(store)[0]
    held = [record.handle.encode(), handle_bytes(record.handle), record.proof, record.previous, record.fields]
    held += [b"".join((handle_bytes(record.handle), record.proof)), repr(tuple(record)).encode()]
    texts = {text.decode("latin-1") for raw in held if raw for text in encodings(raw)}
    texts = {text for text in texts if text.isascii() and text.isprintable() and not set(text) & set(' ",;\\')}
    forger = claim_tokens(KeyRing(OTHER_SECRET), "visitor")
    ours = claim_tokens(s.handler.config.keys, "visitor")
    shaped = []
    for text in texts:
        if len(text) < 256:
            claim = written(record.absolute, record.version, handle_bytes(record.handle), text)
            # Even signed by us: the proof is a hash of the id, and no id.
            shaped += [forger.seal(claim), ours.seal(claim)]
    real = s.browser.jar.get("__Host-visitor")
    prefix = ".".join(real.split(".")[:2])
    for token in [*texts, *shaped, *(f"{prefix}.{text}" for text in texts)]:
        assert s.visit(dict, s.another_browser(), HTTP_COOKIE=f"__Host-visitor={token}") == {}
        assert s.answer.cookies == []
    assert s.visit(dict) == {"n": 1}


# -- records that are not as they should be --------------------------------------------------------------

CANARY = "canary-7f3a"


def test_st_19_an_encrypted_record_shows_nothing_of_its_values(store):
    s = site_on(store, with_encryption())

    def act(session):
        session.update(text=CANARY, deep={"a": [CANARY]}, raw=CANARY.encode())
        session.put("code", CANARY, 60)
        session.flash(CANARY)

    s.visit(act)
    s.visit(lambda session: session.update_key("text", lambda text: text + CANARY))
    raw = CANARY.encode()
    shown = repr(tuple(records(store)[0])).encode()
    texts = [*encodings(raw), *(base64.b64encode(b" " * shift + raw)[2:-4] for shift in (1, 2))]
    assert not [text for text in texts if text in shown]
    assert s.visit(lambda session: (session["text"], session["raw"], session.flashes())) == (
        CANARY * 2,
        raw,
        [("message", CANARY)],
    )


def fields_of(record):
    return {field: content for field, (content, _) in record.contents(0).items()}


def rewrite(store, record, contents):
    store.inner.apply(record.handle, record.proof, Changes(sets={name: (raw, 0) for name, raw in contents.items()}))


def stays_absent(s, events, browser=None):
    """Tell whether the session is absent, with an event, while its cookie is left alone."""
    events.clear()
    assert s.visit(dict, browser) == {}
    return s.answer.code == 200 and s.answer.cookies == [] and bool(events)


def test_st_7_a_sealed_field_fits_its_own_key_and_session_only(store):
    s, events = noted(store, with_encryption())
    begun(s, a="one", b="two")
    original = records(store)[0]
    mine = fields_of(original)
    rewrite(store, original, {"a": mine["b"], "b": mine["a"]})
    assert stays_absent(s, events)
    rewrite(store, original, mine)
    assert s.visit(dict) == {"a": "one", "b": "two"}
    other = s.another_browser()
    s.visit(lambda session: session.update(a="theirs"), other)
    theirs = next(record for record in records(store) if record.handle != original.handle)
    rewrite(store, original, {"a": fields_of(theirs)["a"]})
    assert stays_absent(s, events)
    assert s.visit(dict, other) == {"a": "theirs"}


@pytest.mark.parametrize("value", ["text", 5, None, [1], {"$bytes": "x"}, b"raw"])
@pytest.mark.parametrize("written", KINDS)
@pytest.mark.parametrize("reading", KINDS)
def test_a_record_of_other_settings_is_absent_and_its_cookie_stays(written, reading, value):
    store = FaultyStore(MemoryStore(clock=FakeClock()))
    writer, (reader, events) = site_on(store, *KINDS[written]), noted(store, *KINDS[reading])
    begun(writer, a=value)
    reader.browser.jar = writer.browser.jar
    if written == reading:
        assert reader.visit(dict) == {"a": value}
    else:
        assert stays_absent(reader, events)
        assert writer.visit(dict) == {"a": value}


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"a":1}\n[]',
    b'{"a":1}\n{"a":"x"}',
    b'{"a":{"$bytes":5}}',
    b'{"\\u0000fx":5}',
    b"\xff",
]


KEEP_FIELDS_WHOLE = pytest.mark.parametrize("store", [maker("memory"), maker("sqlite")], indirect=True)
"""Where fields are one text, which may be broken; the others keep them apart, and their own tests break them."""


@KEEP_FIELDS_WHOLE
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("fields", BROKEN)
def test_st_6_a_record_that_cannot_be_read_is_absent_with_an_event_and_its_cookie_stays(store, fields, kind):
    s, events = noted(store, *kind)
    begun(s)
    record = records(store)[0]
    store.inner.revoke(record.handle)
    store.inner.create(record._replace(fields=fields))
    assert stays_absent(s, events)
    s.visit(lambda session: session.update(anew=1))
    assert s.visit(dict) == {"anew": 1}


@KEEP_FIELDS_WHOLE
def test_st_6_a_record_that_is_cut_off_anywhere_is_absent(store):
    s, events = noted(store)
    begun(s, text="snowman \N{SNOWMAN}", n=5)
    record = records(store)[0]
    for size in range(len(record.fields)):
        store.inner.revoke(record.handle)
        store.inner.create(record._replace(fields=record.fields[:size]))
        assert stays_absent(s, events)


def test_a_record_of_a_newer_release_is_an_outage_and_logs_nobody_out(store):
    s = site_on(store)
    cookie = begun(s)
    record = records(store)[0]
    store.inner.revoke(record.handle)
    store.inner.create(record._replace(form=FORM + 1))
    s.visit(dict)
    assert s.answer.code == 503
    assert s.answer.cookies == []
    assert s.browser.jar.header() == cookie


def test_a_token_of_a_form_that_is_not_known_is_refused(store):
    s = site_on(store)
    begun(s)
    junk = s.handler.codec._tokens.seal(b"\x7f" + bytes(60))
    for token in (junk, s.handler.codec._tokens.seal(b""), s.handler.codec._tokens.seal(b"\x20")):
        assert refused(s, f"__Host-visitor={token}", BadCookie)


# -- outages ---------------------------------------------------------------------------------------------


def test_an_outage_is_503_with_retry_after_and_touches_no_cookie(store):
    s = site_on(store)
    cookie = begun(s)
    store.down()
    for act in (dict, lambda x: x.update(a=1), lambda x: x.incr("n"), lambda x: x.revoke(), lambda x: x.regenerate()):
        s.visit(act)
        assert (s.answer.code, s.answer.cookies) == (503, [])
        assert int(s.answer.get("Retry-After") or 0) > 0
    s.visit(lambda session: session.update(a=1), browser := s.another_browser())
    assert (s.answer.code, s.answer.cookies) == (503, [])
    store.up()
    assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}
    assert s.visit(dict, browser) == {}
    assert len(records(store)) == 1


def test_a_second_look_during_an_outage_is_as_uncertain_as_the_first(store):
    s = site_on(store)
    begun(s)

    def act(session):
        store.down()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                session.get("n")
        store.up()
        return session["n"]

    assert s.visit(act) == 1


def behind(request, start_response):
    start_response("200 OK", list(OK))
    return [b"in"]


def guarded_by(s, *links):
    """Return a browser with the site's cookies before an application behind these links."""
    browser = s.another_browser()
    browser.jar = s.browser.jar
    browser.app = chain(*s.handlers, *links)(behind)
    return browser


@pytest.mark.parametrize("outage", ["raise", "anonymous"])
def test_an_outage_is_503_at_the_enforcer_and_at_csrf_and_never_401(store, outage):
    visitor = handler_on(store, with_outage(outage))
    user = visitor.spawn("user")
    carried = visitor.spawn("carried", with_store(None))
    s = Site(visitor, user, carried)
    s.visit(lambda *all_: [session.update(n=1) for session in all_])
    kept = s.browser.jar.header()
    store.down()
    for handler in s.handlers:
        for link in (Enforcer(handler), Csrf(handler), Enforcer.any_of(handler), Enforcer.highest(handler, visitor)):
            answer = guarded_by(s, link).request(method="POST")
            assert (answer.code, answer.cookies) == (503, [])
    assert s.browser.jar.header() == kept
    store.up()
    assert guarded_by(s, Enforcer(user)).get().body == b"in"


def test_an_anonymous_outage_is_empty_and_read_only(store):
    visitor = handler_on(store, with_outage("anonymous"))
    user = visitor.spawn("user")
    carried = visitor.spawn("carried", with_store(None))
    s = Site(visitor, user, carried)

    def begin(*sessions):
        for session in sessions:
            session.update(n=1)
            session.bind("ann")
            session.flash("hello")

    s.visit(begin)
    cookie = s.browser.jar.header()
    store.down()

    def act(*sessions):
        for session in sessions:
            assert (dict(session), session.id, session.subject, session.flashes()) == ({}, None, None, [])
            assert not session.fresh_within(60), "Nobody knows whether who logged in still is."
            for write in (
                lambda session=session: session.update(a=1),
                lambda session=session: session.incr("n"),
                lambda session=session: session.update_key("n", str),
                lambda session=session: session.delete("n"),
                lambda session=session: session.clear(),
                lambda session=session: session.flash("x"),
                lambda session=session: session.bind("ann"),
                lambda session=session: session.renew(),
                lambda session=session: session.regenerate(),
            ):
                with pytest.raises(StoreUnavailable):
                    write()
            with pytest.raises(StoreUnavailable):
                session.require()
        return True

    assert s.visit(act)
    assert (s.answer.code, s.answer.cookies) == (200, [])
    store.up()
    assert s.visit(lambda *all_: [dict(session) for session in all_], HTTP_COOKIE=cookie) == [{"n": 1}] * 3


@pytest.mark.parametrize("options", [(), (with_store(None),)], ids=["stored", "carried"])
def test_beginning_a_child_during_an_anonymous_outage_of_its_parent_is_unavailable_and_no_refusal(store, options):
    visitor = handler_on(store, with_outage("anonymous"))
    user = visitor.spawn("user", *options)
    s = Site(visitor, user)
    s.visit(lambda v, u: v.update(n=1))
    store.down()

    def act(v, u):
        for write in (lambda: u.update(a=1), u.regenerate, lambda: u.bind("ann")):
            with pytest.raises(StoreUnavailable):
                write()
        return True

    assert s.visit(act)


def test_logging_out_during_an_anonymous_outage_is_an_error_and_no_silence(store):
    s = site_on(store, with_outage("anonymous"))
    begun(s)
    store.down()

    def act(session):
        with pytest.raises(StoreUnavailable):
            session.revoke()

    s.visit(act)
    assert s.answer.cookies == []


def test_an_outage_at_the_commit_is_503_and_not_retried_at_close(store):
    s = site_on(store)
    cookie = begun(s)
    for app in (s.app, streaming(s.handler, lambda session: session.update(a=1))):
        s.action = lambda session: session.update(a=1)
        store.fail(1, verb="apply")
        with counted(store) as verbs:
            answer = run(app, environ(HTTP_COOKIE=cookie))
        assert (answer.code, answer.cookies) == (503, [])
        assert verbs == {"load": 1, "apply": 1}
    store.fail(1, verb="create")
    s.visit(lambda session: session.update(a=1), s.another_browser())
    assert (s.answer.code, s.answer.cookies) == (503, [])
    assert s.visit(dict) == {"n": 1}


@pytest.mark.parametrize("act", [lambda x: x.renew(), lambda x: x.bind("ann"), lambda x: x.touch(max_age=60)])
def test_a_renewal_that_meets_an_outage_leaves_the_old_id_alive(store, act):
    s = site_on(store)
    cookie = begun(s)
    store.fail(1, verb="apply")
    s.visit(act)
    assert (s.answer.code, s.answer.cookies) == (503, [])
    assert s.visit(dict, HTTP_COOKIE=cookie) == {"n": 1}


def test_an_outage_in_the_middle_of_a_commit_logs_nobody_out(store):
    visitor = handler_on(store)
    s = Site(visitor, visitor.spawn("user"))
    s.visit(lambda v, u: (v.update(n=1), u.update(n=1)))
    store.fail(2, verb="apply")
    s.visit(lambda v, u: (v.renew(), u.update(n=2)))
    assert s.answer.code == 503
    assert s.visit(lambda v, u: dict(v)) == {"n": 1}


def test_a_touch_that_meets_an_outage_costs_no_reader_its_answer(store):
    s = site_on(store, with_idle_timeout(100))
    cookie = begun(s)
    store.clock.advance(50)
    store.fail(1, verb="apply")
    read = []
    app = streaming(s.handler, dict, lambda session: read.append(dict(session)))
    answer = run(app, environ(HTTP_COOKIE=cookie))
    assert (answer.code, answer.body) == (200, b"onetwo")
    assert read == [{"n": 1}]


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        lambda store: (server_only,),
        lambda store: (server_only(),),
        lambda store: (fixed_id("x"),),
        lambda store: (with_store(store), fixed_id("x")),
        lambda store: (with_store(store), server_only, with_eager()),
        lambda store: (with_revocations(store), with_absolute_timeout(None)),
        lambda store: (with_store(MemoryStore()),),
        lambda store: (with_revocations(MemoryStore()),),
        lambda store: (with_store(store), with_clock(FakeClock())),
        lambda store: (with_store(MemoryStore),),
        lambda store: (with_store("memory:"),),
        lambda store: (with_revocations({}),),
        lambda store: (with_outage("ignore"),),
        lambda store: (with_outage(None),),
    ],
)
def test_settings_that_contradict_each_other_are_a_config_error(store, options):
    with pytest.raises(ConfigError, match=r"\w{3,}.*\w"):
        Handler("visitor", SECRET, with_clock(store.clock), *options(store))


def test_options_change_a_copy_and_never_the_original(store):
    plain = Handler("visitor", SECRET, with_clock(store.clock))
    stored = plain.configure(with_store(store))
    before = hash(plain), hash(stored), plain.config, stored.config
    options = (
        with_store(None),
        with_store(MemoryStore(clock=store.clock)),
        with_outage("anonymous"),
        with_revocations(store),
        with_encryption(),
        server_only,
        with_idle_timeout(5),
    )
    copies = [stored.configure(option) for option in options] + [option(stored) for option in options]
    copies += [stored.configure(server_only, fixed_id("x")), stored.spawn("user"), stored.spawn("u", with_store(None))]
    assert (hash(plain), hash(stored), plain.config, stored.config) == before
    assert all(copy != stored for copy in copies)
    assert len({*copies, stored}) == len(options) + 4
    s = Site(plain)
    s.visit(lambda session: session.update(n=1))
    assert records(store) == []


def test_a_child_inherits_the_store_but_not_being_server_only(store):
    visitor = handler_on(store, with_outage("anonymous"), with_encryption(), server_only, fixed_id("x"))
    config = visitor.spawn("user").config
    assert (config.store, config.outage, config.encrypted) == (store, "anonymous", True)
    assert (config.server_only, config.fixed_id, config.eager) == (False, None, False)
    assert visitor.spawn("user", with_store(None)).config.store is None


def test_a_handler_of_another_clock_than_its_stores_is_refused_whatever_the_order(store):
    with pytest.raises(ConfigError):
        Handler("visitor", SECRET, with_store(store))
    assert Handler("visitor", SECRET, with_store(store), with_clock(store.clock)).config.store is store


def test_the_errors_of_load_tell_the_reasons_apart(store):
    s = site_on(store)
    cookie = begun(s)
    assert refused(s, "", NoCookie)
    assert refused(s, cookie[:-4] + "AAAA", BadCookie)
    s.visit(lambda session: session.revoke())
    assert refused(s, cookie, BadSession)
    store.clock.advance(31 * DAY)
    assert refused(s, cookie, Expired)


# -- a random walk through it all ------------------------------------------------------------------------

IDLE, SPAN = 3600, 30 * DAY
KEYS = st.sampled_from("abc")


class Kept:
    """What the model knows of one session."""

    def __init__(self, now):
        self.created = self.seen = now
        self.data = {}
        self.certain = True
        self.ended = False


class Walk(RuleBasedStateMachine):
    """Cookies are kept for ever and played back at any time, while the clock jumps by years in both directions."""

    maker = staticmethod(maker("memory"))

    @initialize()
    def begin_empty(self):
        self.folder = TemporaryDirectory()
        self.clock = FakeClock()
        self.store = FaultyStore(self.maker(Path(self.folder.name), self.clock))
        self.site = site_on(self.store, with_idle_timeout(IDLE), with_absolute_timeout(SPAN))
        self.cookies = {}
        self.dead = set()

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()

    def now(self):
        return self.clock.now() / 1000

    def play(self, cookie, act):
        """Act in a session, if its cookie is live, and check what the model knows; return what came of it."""
        kept = self.cookies[cookie]
        browser = self.site.another_browser()

        def acting(session):
            if session.new:
                return None
            assert dict(session) == kept.data
            return (act(session),)

        result = self.site.visit(acting, browser, HTTP_COOKIE=cookie)
        if result is None:
            likely = not kept.ended and kept.certain and cookie not in self.dead
            assert not (likely and self.now() < min(kept.seen + IDLE - 60, kept.created + SPAN))
            self.dead.add(cookie)
            return None
        assert cookie not in self.dead
        assert not kept.ended
        kept.seen = max(kept.seen, self.now())
        return result, browser.jar.header()

    @rule(key=KEYS, value=st.integers(0, 9))
    def begin(self, key, value):
        browser = self.site.another_browser()
        self.site.visit(lambda session: session.update({key: value}), browser)
        kept = self.cookies[browser.jar.header()] = Kept(self.now())
        kept.data[key] = value

    @precondition(lambda self: self.cookies)
    @rule(pick=st.randoms(use_true_random=False), key=KEYS, value=st.integers(0, 9))
    def write(self, pick, key, value):
        cookie = pick.choice(list(self.cookies))
        if self.play(cookie, lambda session: session.update({key: value})):
            self.cookies[cookie].data[key] = value

    @precondition(lambda self: self.cookies)
    @rule(pick=st.randoms(use_true_random=False), key=KEYS)
    def add_and_delete(self, pick, key):
        cookie = pick.choice(list(self.cookies))
        if self.play(cookie, lambda session: (session.delete(key), session.incr("n"))):
            kept = self.cookies[cookie]
            kept.data.pop(key, None)
            kept.data["n"] = kept.data.get("n", 0) + 1

    @precondition(lambda self: self.cookies)
    @rule(pick=st.randoms(use_true_random=False))
    def look(self, pick):
        self.play(pick.choice(list(self.cookies)), lambda session: None)

    @precondition(lambda self: self.cookies)
    @rule(pick=st.randoms(use_true_random=False))
    def renew(self, pick):
        cookie = pick.choice(list(self.cookies))
        done = self.play(cookie, lambda session: session.renew())
        if done:
            self.dead.add(cookie)
            self.cookies[done[1]] = self.cookies[cookie]

    @precondition(lambda self: self.cookies)
    @rule(pick=st.randoms(use_true_random=False))
    def revoke(self, pick):
        cookie = pick.choice(list(self.cookies))
        if self.play(cookie, lambda session: session.revoke()):
            self.cookies[cookie].ended = True

    @rule(seconds=st.integers(0, 1000))
    def pass_time(self, seconds):
        self.clock.advance(seconds)

    @rule(days=st.sampled_from([-365, -31, -1, 1, 31, 365]))
    def jump(self, days):
        self.clock.advance(days * DAY)
        for kept in self.cookies.values():
            kept.certain = False

    @rule()
    def sweep(self):
        self.store.sweep()

    @precondition(lambda self: self.cookies)
    @rule(days=st.sampled_from([365, 31]), pick=st.randoms(use_true_random=False))
    def look_from_afar_and_back(self, days, pick):
        cookie = pick.choice(list(self.cookies))
        for step in (days, -days):
            self.jump(step)
            self.play(cookie, lambda session: None)


class WalkOverSqlite(Walk):
    maker = staticmethod(maker("sqlite"))


class WalkOverRedis(Walk):
    maker = staticmethod(maker("redis"))


class WalkOverPostgres(Walk):
    maker = staticmethod(maker("postgres"))


WALKED = settings(
    max_examples=25 * SOAK, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestTm2DeadStaysDeadInMemory(Walk.TestCase):
    settings = WALKED


class TestTm2DeadStaysDeadInSqlite(WalkOverSqlite.TestCase):
    settings = settings(WALKED, max_examples=12 * SOAK)


class TestTm2DeadStaysDeadInRedis(WalkOverRedis.TestCase):
    settings = settings(WALKED, max_examples=12 * SOAK)


class TestTm2DeadStaysDeadInPostgres(WalkOverPostgres.TestCase):
    settings = settings(WALKED, max_examples=12 * SOAK)
