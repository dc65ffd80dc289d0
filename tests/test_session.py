"""One session in one handler: the mapping, the keys' own lives, the session's three lives, and its end."""

import math
from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SECRET, Browser, Site, clocked, environ

from sessiontree import (
    ConfigError,
    CookiePolicy,
    CookieTooLarge,
    Expired,
    Handler,
    HeadersSent,
    KeyNotFound,
    NoCookie,
    NoID,
    SessionGone,
    UsageError,
    with_absolute_timeout,
    with_clock,
    with_cookie,
    with_eager,
    with_encryption,
    with_header,
    with_id_generator,
    with_idle_timeout,
    with_max_age,
    with_serializer,
)
from sessiontree.handlers.ids import uuid4, uuid7
from sessiontree.serializer import JsonSerializer

VALUES = {
    "none": None,
    "bool": True,
    "int": -(1 << 63),
    "float": -0.0,
    "str": "snowman \N{SNOWMAN} \0",
    "bytes": b"\x00\xff",
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    "date": date(2026, 1, 2),
    "timedelta": timedelta(days=-1, microseconds=7),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=5),
    "set": {1, "a"},
    "tuple": (1, ("x",)),
    "list": [1, [2, (3,)]],
    "dict": {"$bytes": "not a tag", "deep": {"$x": 1}},
    "$set": [1],
}


def site(*options, name="visitor"):
    handler, _ = clocked(name, *options)
    return Site(handler)


# -- the mapping ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), (with_encryption(),), (with_header("X-Session"),)])
def test_every_kept_type_comes_back_exactly_in_a_later_request(options):
    s = site(*options)
    s.visit(lambda session: session.update(VALUES))
    token = s.answer.get("X-Session") or ""
    back = s.visit(dict, HTTP_X_SESSION=token)
    assert back == VALUES
    assert [type(value) for value in back.values()] == [type(value) for value in VALUES.values()]
    assert math.copysign(1, back["float"]) == -1


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        math.nan, math.inf, 1 << 64, -(1 << 63) - 1, "\ud800", Text("x"), OrderedDict(), object(), {1: 2},
        {"a": [math.nan]}, frozenset(), bytearray(b"x"), 1j, print,
    ],
)  # fmt: skip
def test_what_would_not_come_back_is_a_type_error_at_the_write(value):
    s = site()

    def act(session):
        with pytest.raises(TypeError):
            session["k"] = value
        assert "k" not in session

    s.visit(act)
    assert dict(s.visit(dict)) == {}


@pytest.mark.parametrize("key", [1, None, b"k", "\ud800"])
def test_keys_are_valid_text(key):
    def act(session):
        with pytest.raises(TypeError):
            session[key] = 1

    site().visit(act)


def test_a_value_made_unfit_after_its_write_is_a_type_error_at_the_commit():
    s = site()

    def act(session):
        session["list"] = []
        session["list"].append(object())

    with pytest.raises(TypeError, match="cannot keep"):
        s.visit(act)


def test_a_missing_key_is_key_not_found_which_is_a_key_error():
    def act(session):
        for look in (lambda: session["k"], lambda: session.ttl("k"), lambda: session.pop("k")):
            with pytest.raises(KeyNotFound, match="no key 'k'"):
                look()
        with pytest.raises(KeyError):
            del session["k"]
        assert session.get("k") is None
        assert session.get("k", 5) == 5
        assert session.pop("k", 6) == 6

    s = site()
    s.visit(act)
    assert s.answer.cookies == []


def test_the_session_is_a_full_mutable_mapping():
    def act(session):
        session["a"] = 1
        session.update(b=2, c=3)
        session |= {"d": 4}
        assert session | {"e": 5} == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
        assert {"a": 0} | session == {"a": 1, "b": 2, "c": 3, "d": 4}
        assert list(session) == ["a", "b", "c", "d"]
        assert len(session) == 4
        assert "a" in session
        assert "z" not in session
        assert session == {"a": 1, "b": 2, "c": 3, "d": 4}
        assert next(iter(session.items())) == ("a", 1)
        assert sorted(session.values()) == [1, 2, 3, 4]
        assert session.setdefault("a", 9) == 1
        assert session.setdefault("f", []) == []
        assert session.pop("f") == []
        assert session.popitem() == ("a", 1)
        del session["b"]
        session.delete("c")
        session.delete("c")
        assert {**session} == {"d": 4}
        session.clear()
        assert not session

    site().visit(act)


def test_no_key_is_reserved():
    names = ["id", "_flash", "csrf", "__proto__", "exp", "auth_time", "$dict", "e", "", "\0", "a b;c=d"]
    s = site()
    s.visit(lambda session: (session.update({name: name for name in names}), session.flash("hi"), session.bind("bob")))
    assert s.visit(dict) == {name: name for name in names}


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.binary() | st.booleans()))
@settings(max_examples=60, deadline=None)
def test_un_1_keys_and_values_come_back_untouched_or_are_refused(data):
    s = site()
    try:
        s.visit(lambda session: session.update(data))
    except (TypeError, CookieTooLarge):
        return
    assert s.visit(dict) == data


# -- laziness, and changes in place ---------------------------------------------------------------


def test_an_untouched_session_leaves_no_trace():
    s = site()
    s.visit(lambda session: None)
    assert s.answer.headers == [("Content-Type", "text/plain")]


def test_reading_writes_nothing():
    s = site()
    s.visit(lambda session: session.update(n=1, items=[1]))
    s.visit(lambda session: (session["n"], session["items"], session.get("zz"), dict(session), session.id))
    assert s.answer.cookies == []
    assert s.answer.get("Vary") == "Cookie"


def test_looking_at_nothing_begins_nothing():
    s = site()

    def act(session):
        assert session.id is None
        assert session.handle is None
        assert session.new
        assert session.expires_in is None
        assert session.flashes() == []
        session.clear()
        session.touch()
        session.renew()
        session.revoke()
        session.bind(None)
        session.delete("x")
        assert not session.modified

    s.visit(act)
    assert s.answer.cookies == []


def test_the_first_write_fixes_id_and_handle():
    s = site()

    def first(session):
        session["a"] = 1
        return session.id, session.handle

    came = s.visit(first)
    assert s.visit(lambda session: (session.id, session.handle)) == came
    assert len(came[0]) == 43
    assert len(came[1]) == 32


@pytest.mark.parametrize(
    ("first", "change", "after"),
    [
        ({"k": [1]}, lambda s: s["k"].append(2), [1, 2]),
        ({"k": {"a": {"b": 1}}}, lambda s: s["k"]["a"].update(b=2), {"a": {"b": 2}}),
        ({"k": {1}}, lambda s: s["k"].add(2), {1, 2}),
        ({"k": ([],)}, lambda s: s["k"][0].append(1), ([1],)),
        ({"k": [1]}, lambda s: s.get("k").append(2), [1, 2]),
        ({"k": [1]}, lambda s: next(iter(s.values())).append(2), [1, 2]),
        ({"k": [1]}, lambda s: s["k"].append((1, b"x")), [1, (1, b"x")]),
    ],
)
def test_a_change_in_place_is_noticed(first, change, after):
    s = site()
    s.visit(lambda session: session.update(first))

    def act(session):
        assert not session.modified
        change(session)
        assert session.modified

    s.visit(act)
    assert s.visit(dict) == {"k": after}


def test_a_change_in_place_after_the_write_is_kept():
    s = site()

    def act(session):
        session["k"] = basket = []
        basket.append("apple")

    s.visit(act)
    assert s.visit(dict) == {"k": ["apple"]}


def test_a_change_in_place_that_was_undone_is_none():
    s = site()
    s.visit(lambda session: session.update(k=[1]))
    s.visit(lambda session: (session["k"].append(2), session["k"].pop()))
    assert s.answer.cookies == []


# -- keys with a life of their own -----------------------------------------------------------------


@pytest.mark.parametrize("life", [10, 10.0, timedelta(seconds=10)])
def test_a_key_lives_as_long_as_it_was_given(life):
    s = site()
    s.visit(lambda session: session.put("k", "v", life))
    assert s.visit(lambda session: session.ttl("k")) == 10.0
    s.clock.advance(9.999)
    assert s.visit(lambda session: session["k"]) == "v"
    s.clock.advance(0.001)
    assert s.visit(lambda session: (dict(session), "k" in session, len(session))) == ({}, False, 0)


@pytest.mark.parametrize("life", [0, None, 0.0])
def test_a_key_without_a_life_of_its_own_lives_with_the_session(life):
    s = site()
    s.visit(lambda session: session.put("k", "v", life))
    s.clock.advance(29 * 86_400)
    assert s.visit(lambda session: (session["k"], session.ttl("k"))) == ("v", None)


@pytest.mark.parametrize("life", [-1, -0.0001, timedelta(days=-1)])
def test_a_negative_life_expires_the_key_now(life):
    s = site()
    s.visit(lambda session: session.put("k", "old"))
    s.visit(lambda session: session.put("k", "v", life))
    assert s.visit(dict) == {}


@pytest.mark.parametrize("life", [True, math.nan, math.inf, "10", 1e300])
def test_a_life_that_is_no_duration_is_refused_and_nothing_is_lost(life):
    s = site()

    def act(session):
        session["k"] = "kept"
        with pytest.raises(ConfigError):
            session.put("k", "v", life)
        assert session["k"] == "kept"

    s.visit(act)


def test_a_plain_write_clears_the_expiry_and_other_writes_keep_it():
    s = site()

    def act(session):
        for key in ("plain", "incr", "update", "inplace"):
            session.put(key, 1, 10)
        session.put("inplace", [1], 10)

    s.visit(act)

    def write(session):
        session["plain"] = 2
        session.incr("incr")
        session.update_key("update", lambda n: n + 1)
        session["inplace"].append(2)

    s.visit(write)
    assert s.visit(lambda x: [x.ttl(k) for k in ("plain", "incr", "update", "inplace")]) == [None, 10.0, 10.0, 10.0]
    s.clock.advance(10)
    assert s.visit(dict) == {"plain": 2}


def test_a_key_never_outlives_its_session():
    s = site(with_absolute_timeout(60))
    s.visit(lambda session: session.put("k", "v", 3600))
    assert s.visit(lambda session: session.ttl("k")) == 60.0


def test_a_key_expires_within_a_request_too():
    s = site()

    def act(session):
        session.put("k", 1, 5)
        assert "k" in session
        s.clock.advance(5)
        assert "k" not in session
        assert session.get("k") is None
        assert list(session) == []

    s.visit(act)


def test_incr_counts_and_update_key_applies_a_function():
    s = site()
    assert s.visit(lambda x: (x.incr("n"), x.incr("n", 5), x.incr("n", -2))) == (1, 6, 4)
    assert s.visit(lambda x: (x.update_key("m", lambda v: v * 2, default=21), x["n"])) == (42, 4)

    def wrong(session):
        session["text"] = "1"
        for call in (lambda: session.incr("text"), lambda: session.incr("n", 1.5), lambda: session.incr("n", True)):
            with pytest.raises(TypeError):
                call()

    s.visit(wrong)


# -- the session's three lives -----------------------------------------------------------------------


def test_lc_4_the_absolute_timeout_ends_a_session_however_busy_it_is():
    s = site(with_absolute_timeout(100))
    s.visit(lambda session: session.update(n=0))
    for _ in range(9):
        s.clock.advance(10)
        s.visit(lambda session: (session.incr("n"), session.touch(), session.renew()))
    s.clock.advance(9.999)
    assert s.visit(lambda session: session.expires_in) == 0.001
    s.clock.advance(0.001)
    assert s.visit(dict) == {}


def test_the_absolute_timeout_is_30_days_unless_it_is_turned_off():
    s = site()
    s.visit(lambda session: session.update(n=0))
    assert s.visit(lambda session: session.expires_in) == 30 * 86_400
    s = site(with_absolute_timeout(None))
    s.visit(lambda session: session.update(n=0))
    s.clock.advance(400 * 86_400)
    assert s.visit(lambda session: (session.expires_in, dict(session))) == (None, {"n": 0})


def test_lc_3_the_idle_timeout_counts_from_the_last_look_and_touches_are_throttled():
    s = site(with_idle_timeout(1000))
    s.visit(lambda session: session.update(n=0))
    s.clock.advance(59)
    s.visit(dict)
    assert s.answer.cookies == [], "60 s have not passed since the last touch"
    s.clock.advance(1)
    s.visit(dict)
    assert len(s.answer.cookies) == 1
    s.clock.advance(999.999)
    assert s.visit(dict) == {"n": 0}
    s.clock.advance(1000)
    assert s.visit(dict) == {}


def test_a_short_idle_timeout_is_touched_at_a_tenth_of_it():
    s = site(with_idle_timeout(50))
    s.visit(lambda session: session.update(n=0))
    s.clock.advance(4.999)
    s.visit(dict)
    assert s.answer.cookies == []
    s.clock.advance(0.001)
    s.visit(dict)
    assert len(s.answer.cookies) == 1


def test_lc_3_a_request_that_fails_is_no_activity():
    s = site(with_idle_timeout(100))
    s.visit(lambda session: session.update(n=0))
    s.clock.advance(90)
    s.status = "500 Oops"
    s.visit(dict)
    assert s.answer.cookies == []
    s.status = "200 OK"
    s.clock.advance(10)
    assert s.visit(dict) == {}


def test_an_untouched_session_is_not_activity_and_an_idle_timeout_can_be_turned_on_and_off():
    handler, clock = clocked()
    s = Site(handler)
    s.visit(lambda session: session.update(n=1))
    idle = Site(handler.configure(with_idle_timeout(100)))
    idle.browser.jar = s.browser.jar
    assert idle.visit(lambda session: session["n"]) == 1
    assert len(idle.answer.cookies) == 1, "the session gets its idle deadline at the first look"
    s.visit(lambda session: session["n"])
    assert len(s.answer.cookies) == 1, "and loses it again"
    clock.advance(1000)
    assert s.visit(dict) == {"n": 1}


def test_max_age_is_the_sessions_own_life_and_the_cookies():
    s = site(with_max_age(3600))
    s.visit(lambda session: session.update(n=1))
    [cookie] = s.answer.cookies
    assert "; Max-Age=3600; Expires=" in cookie
    s.clock.advance(3599.999)
    jar = s.browser.jar
    assert s.visit(lambda session: (dict(session), session.expires_in)) == ({"n": 1}, 0.001)
    token = jar.header()
    s.clock.advance(0.001)
    assert jar.header() == "", "the browser has dropped it"
    assert s.visit(dict, HTTP_COOKIE=token) == {}, "and so has the server"


def test_a_browser_session_cookie_has_no_lifetime():
    for options in ((), (with_max_age(0),), (with_max_age(None),)):
        s = site(*options)
        s.visit(lambda session: session.update(n=1))
        assert "max-age" not in s.answer.cookies[0].lower()
        assert "expires" not in s.answer.cookies[0].lower()


def test_remember_me_gives_a_session_its_own_life_and_leaves_the_keys_alone():
    s = site()
    s.visit(lambda session: (session.put("k", 1, 100), session.touch(max_age=86_400)))
    assert "; Max-Age=86400" in s.answer.cookies[0]
    assert s.visit(lambda session: (session.ttl("k"), session.expires_in)) == (100.0, 86_400.0)
    s.visit(lambda session: session.touch(max_age=None))
    assert "Max-Age" not in s.answer.cookies[0]
    assert s.visit(lambda session: session.expires_in) == 30 * 86_400
    s.visit(lambda session: session.touch(max_age=-1))
    assert "Max-Age=0" in s.answer.cookies[0]
    assert s.visit(dict) == {}


def test_the_own_life_stays_within_the_absolute_timeout():
    s = site(with_absolute_timeout(100), with_max_age(1000))
    s.visit(lambda session: session.update(n=1))
    assert "; Max-Age=100;" in s.answer.cookies[0]


def test_a_persistent_cookie_is_issued_again_with_each_touch():
    s = site(with_max_age(86_400), with_idle_timeout(3600))
    s.visit(lambda session: session.update(n=1))
    s.clock.advance(100)
    s.visit(dict)
    assert "; Max-Age=86300;" in s.answer.cookies[0]


def test_expired_is_final_and_the_cookie_is_deleted_once():
    s = site(with_absolute_timeout(10))
    s.visit(lambda session: session.update(n=1))
    s.clock.advance(10)
    assert s.visit(dict) == {}
    [cookie] = s.answer.cookies
    assert "Max-Age=0" in cookie
    s.visit(dict)
    assert s.answer.cookies == []


# -- renewing, ending, beginning anew -----------------------------------------------------------------


def test_renew_changes_the_id_and_nothing_else():
    s = site()
    before = s.visit(lambda session: (session.update(n=1), session.id, session.handle)[1:])
    during = s.visit(lambda session: (session.renew(), session.id, session.handle)[1:])
    after = s.visit(lambda session: (session.id, session.handle))
    assert during == after
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert s.visit(dict) == {"n": 1}


def test_a_negative_grace_is_refused():
    def act(session):
        session["n"] = 1
        with pytest.raises(ConfigError):
            session.renew(grace=-1)

    site().visit(act)


def test_revoke_ends_the_session_at_once_and_deletes_the_cookie():
    s = site()
    s.visit(lambda session: session.update(n=1))

    def act(session):
        session.revoke()
        assert dict(session) == {}
        assert session.id is None
        assert session.expires_in is None
        writes = [
            lambda: session.update(a=1), lambda: session.put("a", 1), lambda: session.incr("a"),
            lambda: session.update_key("a", len), lambda: session.flash("x"), lambda: session.bind("u"),
            lambda: session.touch(), lambda: session.renew(), lambda: session.clear(), lambda: session.delete("a"),
        ]  # fmt: skip
        for write in writes:
            with pytest.raises(SessionGone):
                write()
        session.revoke()

    s.visit(act)
    assert "Max-Age=0" in s.answer.cookies[0]
    assert s.browser.jar.cookies() == []
    assert s.visit(dict) == {}


def test_ending_a_session_that_never_left_the_server_sends_nothing():
    s = site()
    s.visit(lambda session: (session.update(n=1), session.revoke()))
    assert s.answer.cookies == []


def test_generate_begins_anew_even_after_revoke():
    handler, _ = clocked()
    s = Site(handler)
    old = s.visit(lambda session: (session.update(n=1), session.id, session.handle))

    def act(session):
        session.revoke()
        again = handler.generate(request)
        assert again is session
        session["m"] = 2
        return session.id, session.handle

    request = environ(HTTP_COOKIE=s.browser.jar.header())
    session = handler.session(request)
    new = act(session)
    [(name, value)] = request["sessiontree"].commit()
    assert (name, new[0] != old[1], new[1] != old[2]) == ("Set-Cookie", True, True)
    s.browser.jar.store(value)
    assert s.visit(dict) == {"m": 2}


def test_clear_removes_the_data_and_keeps_the_session():
    s = site()
    before = s.visit(lambda session: (session.put("a", 1, 50), session.update(n=1), session.handle)[2])
    s.visit(lambda session: session.clear())
    assert s.visit(lambda session: (dict(session), session.handle)) == ({}, before)


def test_merge_lays_the_other_sessions_keys_over_ours_and_revokes_it():
    ours, clock = clocked("ours")
    theirs = Handler("theirs", SECRET, with_clock(clock))
    s = Site(ours, theirs)
    s.visit(lambda a, b: (a.update(x=1, y=1), b.update(y=2), b.put("z", [3], 50)))
    deadline = s.visit(lambda a, b: a.expires_in)
    s.visit(lambda a, b: a.merge(b))
    assert s.visit(lambda a, b: (dict(a), dict(b), a.ttl("z"), a.expires_in)) == (
        {"x": 1, "y": 2, "z": [3]}, {}, 50.0, deadline,
    )  # fmt: skip
    s.visit(lambda a, b: a.merge(b))
    assert s.answer.code == 409, "a session that is not live cannot be merged"
    with pytest.raises(UsageError):
        s.visit(lambda a, b: a.merge(a))


# -- who ----------------------------------------------------------------------------------------------


def test_lc_1_bind_renews_an_existing_session_and_stamps_the_time():
    s = site()
    before = s.visit(lambda session: (session.update(n=1), session.id, session.handle)[1:])
    s.visit(lambda session: session.bind("alice"))
    after = s.visit(lambda session: (session.id, session.handle, session.subject, session.fresh_within(60)))
    assert after[0] != before[0]
    assert after[1:] == (before[1], "alice", True)
    s.clock.advance(61)
    assert s.visit(lambda session: (session.fresh_within(60), session.fresh_within(62))) == (False, True)
    s.visit(lambda session: session.bind(None))
    assert s.visit(lambda session: (session.subject, session.fresh_within(10**6), session["n"])) == (None, False, 1)


@pytest.mark.parametrize("subject", ["", 5, b"x", True])
def test_a_subject_is_a_non_empty_str(subject):
    def act(session):
        with pytest.raises(UsageError):
            session.bind(subject)

    s = site()
    s.visit(act)
    assert s.answer.cookies == []


@pytest.mark.parametrize("generator", [uuid4, uuid7, lambda: "fixed text ü"])
def test_ids_come_from_the_generator(generator):
    s = site(with_id_generator(generator))
    given = s.visit(lambda session: (session.update(n=1), session.id)[1])
    assert s.visit(lambda session: session.id) == given


@pytest.mark.parametrize("bad", ["", None, 5, b"x", "\ud800", "x" * 256])
def test_a_generator_that_gives_no_id_is_an_error_and_nothing_is_begun(bad):
    s = site(with_id_generator(lambda: bad))

    def act(session):
        with pytest.raises(NoID):
            session["n"] = 1
        assert session.id is None

    s.visit(act)
    assert s.answer.cookies == []


def test_metadata_is_the_sessions_start_with_this_requests_client():
    s = site()
    start = datetime.fromtimestamp(s.clock.now() / 1000, UTC)
    s.visit(lambda session: session.update(n=1))
    s.clock.advance(100)
    metadata = s.visit(lambda session: session.metadata)
    assert (metadata.start, metadata.user_agent, metadata.ip_address) == (start, "Test/1", "192.0.2.7")
    assert metadata.to_json() == ('{"start":"2030-01-01T00:00:00.000Z","user_agent":"Test/1","ip_address":"192.0.2.7"}')


def test_listing_needs_a_store():
    handler, _ = clocked()
    for call in (lambda: handler.sessions("u"), lambda: handler.revoke_all("u")):
        with pytest.raises(ConfigError, match="needs a store"):
            call()
    with pytest.raises(ConfigError, match="needs a store"):
        Site(handler).visit(lambda session: session.children())


# -- flash messages -----------------------------------------------------------------------------------


def test_flashes_come_once_and_in_order():
    s = site()
    assert s.visit(lambda session: session.flashes()) == []
    s.visit(lambda session: (session.flash("foo"), session.flash(("bar", b"x"), "warning")))
    assert s.visit(lambda session: dict(session)) == {}
    assert s.visit(lambda session: session.flashes()) == [("message", "foo"), ("warning", ("bar", b"x"))]
    assert s.visit(lambda session: session.flashes()) == []
    assert s.answer.cookies == []


def test_a_flash_that_cannot_be_kept_is_refused():
    def act(session):
        with pytest.raises(TypeError):
            session.flash(object())
        with pytest.raises(TypeError):
            session.flash("x", category=5)

    s = site()
    s.visit(act)
    assert s.answer.cookies == []


# -- loading ------------------------------------------------------------------------------------------


def test_load_says_why_there_is_no_session():
    handler, clock = clocked("visitor", with_absolute_timeout(10))
    with pytest.raises(NoCookie):
        handler.load(environ())
    s = Site(handler)
    s.visit(lambda session: session.update(n=1))
    request = environ(HTTP_COOKIE=s.browser.jar.header())
    assert handler.load(request)["n"] == 1
    assert handler.loaded(request)
    assert not handler.loaded(environ())
    clock.advance(10)
    assert not handler.loaded(request), "expiry is seen within a request too"
    with pytest.raises(Expired):
        handler.load(environ(HTTP_COOKIE=s.browser.jar.header()))


def test_eager_begins_a_session_for_everyone():
    s = site(with_eager())
    s.visit(lambda session: None)
    [cookie] = s.answer.cookies
    first = s.visit(lambda session: (session.id, session.new))
    assert s.answer.cookies == []
    assert first[0]
    assert not first[1]
    assert cookie.startswith("__Host-visitor=v1.")


def test_commit_can_be_called_by_hand_and_twice():
    handler, _ = clocked()
    request = environ()
    handler.session(request)["n"] = 1
    headers = handler.session(request).commit()
    assert handler.session(request).commit() != []
    assert [name for name, _ in headers] == ["Set-Cookie"]
    assert len(request["sessiontree"].commit()) == 1
    assert len(request["sessiontree"].commit()) == 1
    with pytest.raises(HeadersSent):
        handler.session(request)["n"] = 2


def test_headers_returned_by_hand_are_not_sent_twice():
    handler, _ = clocked()

    def app(request, start_response):
        session = handler.session(request)
        session["n"] = 1
        start_response("200 OK", [("Content-Type", "text/plain"), *session.commit()])
        return [b""]

    answer = Browser(handler.link(app)).get()
    assert len(answer.cookies) == 1


def test_a_serializer_of_ones_own_is_used():
    class Reversed:
        def dumps(self, value):
            return repr(value)[::-1].encode()

        def loads(self, data):
            import ast  # noqa: PLC0415

            return ast.literal_eval(data.decode()[::-1])

    s = site(with_serializer(Reversed()))
    s.visit(lambda session: session.update(n=1 + 2j, items=[1]))
    s.visit(lambda session: session["items"].append(3))
    assert s.visit(dict) == {"n": 1 + 2j, "items": [1, 3]}
    plain = Site(s.handler.configure(with_serializer(JsonSerializer())))
    plain.browser.jar = s.browser.jar
    assert plain.visit(dict) == {}, "what the other serializer wrote is refused, not raised"


def test_ck_12_a_cookie_that_browsers_would_drop_is_refused_with_the_heaviest_keys_named():
    s = site()

    def act(session):
        session.update(small=1, big="x" * 3000, huge="y" * 4000)

    with pytest.raises(CookieTooLarge, match=r"'huge' \(4002 bytes\), 'big' \(3002 bytes\), 'small'"):
        s.visit(act)
    assert s.browser.jar.cookies() == []


def test_ck_12_the_largest_cookie_is_4093_octets_and_comes_back():
    handler, _ = clocked()
    sizes = []
    for size in range(2800, 2900):
        s = Site(handler)
        try:
            s.visit(lambda session, size=size: session.update(k="x" * size))
        except CookieTooLarge:
            break
        sizes.append(len(s.answer.cookies[0]))
        assert s.visit(lambda session: len(session["k"])) == size
    assert 4089 <= max(sizes) <= 4093


# -- corners -------------------------------------------------------------------------------------------


def test_too_many_flash_messages_are_a_cookie_too_large_that_says_so():
    for size in (5000, 70_000):
        with pytest.raises(CookieTooLarge, match=r"[Ff]lash messages"):
            site().visit(lambda session, size=size: session.flash("x" * size))


def test_a_refused_first_write_begins_nothing():
    s = site()

    def act(session):
        for write in (
            lambda: session.update(a=object()), lambda: session.put("a", object(), 5), lambda: session.incr("a", "x"),
            lambda: session.flash(object()),
        ):  # fmt: skip
            with pytest.raises(TypeError):
                write()
        assert session.id is None

    s.visit(act)
    assert s.answer.cookies == []


def test_what_update_key_changes_in_place_before_it_fails_is_noticed():
    s = site()
    s.visit(lambda session: session.update(items=[1]))

    def fail(items):
        items.append(date(2030, 1, 1))
        raise ZeroDivisionError

    def act(session):
        with pytest.raises(ZeroDivisionError):
            session.update_key("items", fail)
        session["other"] = 1

    s.visit(act)
    assert s.visit(dict) == {"items": [1, date(2030, 1, 1)], "other": 1}


def test_the_idle_touch_never_revives_what_ran_out_during_the_request():
    s = site(with_idle_timeout(10))
    s.visit(lambda session: session.update(x=1))
    s.visit(lambda session: (session.get("x"), s.clock.advance(11)))
    assert s.answer.cookies == []
    assert s.visit(dict) == {}


def test_a_shortened_idle_timeout_holds_from_the_next_look_on():
    handler, clock = clocked("visitor", with_idle_timeout(3600))
    s = Site(handler)
    s.visit(lambda session: session.update(n=1))
    short = Site(handler.configure(with_idle_timeout(60)))
    short.browser.jar = s.browser.jar
    short.visit(lambda session: session["n"])
    clock.advance(61)
    assert short.visit(dict) == {}


def test_after_a_failure_the_cookie_lives_as_long_as_the_token_says():
    s = site(with_max_age(7200))
    s.visit(lambda session: session.update(n=1))
    s.status = "500 Oops"
    s.visit(lambda session: (session.renew(), session.touch(max_age=None)))
    assert "; Max-Age=7200" in s.answer.cookies[0]
    s = site(with_idle_timeout(7200))
    s.visit(lambda session: session.update(n=1))
    s.status = "500 Oops"
    s.visit(lambda session: (session.renew(), session.touch(max_age=60)))
    assert "Max-Age" not in s.answer.cookies[0]


def test_a_session_may_change_while_it_is_iterated():
    s = site()

    def act(session):
        session.update(a=1, b=2, c=3)
        for key in session:
            session.delete(key)
        assert len(session) == 0
        with pytest.raises(KeyNotFound):
            session.popitem()

    s.visit(act)


def test_the_last_of_cookie_and_header_counts():
    handler, _ = clocked("visitor", with_header("X-Session"))
    s = Site(handler, handler.spawn("user", with_cookie(CookiePolicy())))
    s.visit(lambda v, u: (v.update(a=1), u.update(b=2)))
    assert s.answer.get("X-Session").startswith("v1.")
    assert s.answer.get("Set-Cookie").startswith("__Host-user=")
    assert s.answer.get("Vary") == "X-Session, Cookie"


def test_a_serializer_derived_from_ours_is_used_as_it_is():
    class WithComplex(JsonSerializer):
        def dumps(self, value):
            return super().dumps({k: [v.real, v.imag] for k, v in value.items()} if isinstance(value, dict) else 0)

        def loads(self, data):
            return {k: complex(*v) for k, v in super().loads(data).items()}

    s = site(with_serializer(WithComplex()))
    assert s.handler != Handler("visitor", SECRET, with_clock(s.clock))
    s.visit(lambda session: session.update(z=1 + 2j))
    assert s.visit(dict) == {"z": 1 + 2j}


def test_merge_brings_the_flash_messages_along():
    ours, clock = clocked("ours")
    s = Site(ours, Handler("theirs", SECRET, with_clock(clock)))
    s.visit(lambda a, b: (a.flash("first"), b.flash("second", "warning")))
    s.visit(lambda a, b: a.merge(b))
    assert s.visit(lambda a, b: a.flashes()) == [("message", "first"), ("warning", "second")]


def test_touch_revives_nothing_that_ran_out_during_the_request():
    s = site(with_max_age(10))
    s.visit(lambda session: session.update(n=1))
    token = s.browser.jar.header()
    s.visit(lambda session: (session.get("n"), s.clock.advance(11), session.touch(max_age=3600)))
    assert s.answer.cookies == []
    assert s.visit(dict, HTTP_COOKIE=token) == {}


@pytest.mark.parametrize("status", ["200 OK", "500 Oops"])
def test_an_expired_session_is_forgotten_whatever_the_response_says(status):
    s = site(with_absolute_timeout(10))
    s.visit(lambda session: session.update(n=1))
    s.clock.advance(10)
    s.status = status
    s.visit(dict)
    assert "Max-Age=0" in s.answer.cookies[0]
