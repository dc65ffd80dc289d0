"""Cases of earlier session systems, ported in our words, and their flaws as tests that they stay away."""

import pytest
from engines import ENGINES, opened
from support import SECRET, Browser, Site, environ, plain_app, run

from sessiontree import (
    BadCookie,
    ConfigError,
    CookiePolicy,
    Csrf,
    Enforcer,
    Handler,
    KeyRing,
    chain,
    with_absolute_timeout,
    with_clock,
    with_cookie,
    with_idle_timeout,
    with_max_age,
    with_revocations,
    with_store,
)
from sessiontree.handlers.codec import CookieCodec
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock

KEEPING = {
    "carried": lambda clock, folder: [],
    "revocable": lambda clock, folder: [with_revocations(MemoryStore(clock=clock))],
    **{kind: lambda clock, folder, kind=kind: [with_store(opened(kind, folder, clock))] for kind in ENGINES},
}
"""Where the sessions of every case here are kept, one after the other."""


clocked = None
"""Set by ``kept``: a function that returns a handler, whose sessions are kept in each way in turn, and its clock."""


@pytest.fixture(autouse=True, params=KEEPING)
def kept(request, tmp_path, monkeypatch):
    opened = []

    def make(name="visitor", *options):
        clock = FakeClock()
        kept = KEEPING[request.param](clock, tmp_path)
        handler = Handler(name, SECRET, with_clock(clock), *kept, *options)
        opened.append(handler.config.store)
        return handler, clock

    monkeypatch.setitem(globals(), "clocked", make)
    yield
    for store in opened:
        if store is not None:
            store.close()


# -- Go handlers for sessions ---------------------------------------------------------------------------


def shop():
    """A handler that puts a value at the first visit and hands it out later, as the Go test has it."""
    handler, clock = clocked("goya", with_max_age(3600), with_cookie(CookiePolicy(name="GSID", path="/")))

    def page(request):
        session = handler.session(request)
        if session.new:
            session["test"] = "value"
        return session.id, session["test"]

    return handler, Browser(handler.link(plain_app(page)), clock)


def test_the_first_response_sets_the_configured_cookie():
    _, browser = shop()
    [cookie] = browser.get().cookies
    name, _, rest = cookie.partition("=")
    attributes = {part.strip().partition("=")[0] for part in rest.split(";")[1:]}
    assert name == "GSID"
    assert attributes >= {"Path", "HttpOnly", "Secure", "Max-Age"}
    assert "Max-Age=3600" in cookie


def test_the_second_request_loads_the_session_and_its_value():
    _, browser = shop()
    first = browser.get().text
    second = browser.get()
    assert second.text == first
    assert second.cookies == []


@pytest.mark.parametrize("forge", [lambda v: "hjfh:gjf", lambda v: v[:-4] + "AAAA", lambda v: v + "x", lambda v: ""])
def test_a_forged_cookie_is_replaced_by_a_session_with_another_id(forge):
    _, browser = shop()
    first = browser.get().text
    value = browser.jar.get("GSID")
    answer = browser.get(HTTP_COOKIE=f"GSID={forge(value)}")
    assert answer.text != first
    [cookie] = answer.cookies
    assert value not in cookie
    assert "Path=/" in cookie
    assert "HttpOnly" in cookie


def test_a_value_put_for_an_hour_lives_for_an_hour():
    """The seed took seconds for nanoseconds: its hour was over after 3.6 microseconds."""
    handler, clock = clocked("goya", with_max_age(3600))
    s = Site(handler)
    s.visit(lambda session: session.put("k", "v", 3600))
    clock.advance(3599)
    assert s.visit(lambda session: session["k"]) == "v"


def test_configuring_a_copy_leaves_the_original_alone():
    handler = Handler("goya", SECRET)
    handler.configure(with_max_age(99))
    assert handler.config.max_age == 0


def test_one_revoke_does_not_delete_everybodys_cookies():
    handler, clock = clocked("goya")
    s = Site(handler)
    other = s.another_browser()
    for browser in (s.browser, other):
        s.visit(lambda session: session.update(n=1), browser=browser)
    s.visit(lambda session: session.revoke())
    assert s.visit(lambda session: session["n"], browser=other) == 1
    assert clock.now()


def test_a_spawned_session_follows_its_parent():
    handler, clock = clocked("goya")
    child = handler.spawned(Handler("child", SECRET, with_clock(clock)))
    s = Site(handler, child)
    s.visit(lambda a, b: (a.update(n=1), b.update(n=2)))
    assert s.visit(lambda a, b: (a["n"], b["n"])) == (1, 2)


def test_an_enforcer_short_circuits():
    handler, _ = clocked("goya")
    ran = []
    app = chain(handler, Enforcer(handler))(plain_app(lambda request: ran.append(1) or "SECRET"))
    answer = run(app, environ())
    assert (answer.code, ran, b"SECRET" in answer.body) == (401, [], False)


def test_a_cookie_of_one_handler_is_refused_by_another_of_the_same_secret():
    a, clock = clocked("a")
    b = Handler("b", SECRET, with_clock(clock))
    s = Site(a)
    s.visit(lambda session: session.update(n=1))
    token = s.browser.jar.get("__Host-a")
    with pytest.raises(BadCookie):
        b.load(environ(HTTP_COOKIE=f"__Host-b={token}"))


def test_csrf_as_the_go_test_has_it():
    handler, clock = clocked("goya")
    csrf = Csrf(handler)
    app = chain(handler, csrf)(plain_app(lambda r: csrf.token(r) if r["REQUEST_METHOD"] == "GET" else "passed"))
    browser = Browser(app, clock)
    assert browser.request(method="POST").code == 403, "no cookie"
    token = browser.get().text.strip("'")
    assert browser.request(method="POST", HTTP_X_CSRF_TOKEN=token).text == "'passed'"
    assert browser.get().text.strip("'") != token, "the token is another text each time"
    assert browser.request(method="POST", HTTP_X_CSRF_TOKEN="wrong").code == 403
    stranger = Browser(app, clock)
    assert stranger.request(method="POST", HTTP_X_CSRF_TOKEN=token).code == 403, "the header without the cookie"


def test_its_helpers_have_a_home():
    ring = KeyRing(SECRET)
    signature = ring.sign(b"message", "mail")
    assert ring.verify(b"message", signature, "mail")
    assert not ring.verify(b"massage", signature, "mail")
    codec = CookieCodec("goya", SECRET)
    text = codec.encode({"a": 1}, {"a": 1_893_456_000_000})
    assert codec.decode(text) == ({"a": 1}, {"a": 1_893_456_000_000})


# -- scs ------------------------------------------------------------------------------------------------


def test_put_then_get_across_requests_and_reading_sets_no_cookie():
    s = Site(clocked("session")[0])
    s.visit(lambda session: session.update(foo="bar"))
    before = s.visit(lambda session: session.id)
    assert s.visit(lambda session: session["foo"]) == "bar"
    assert s.answer.cookies == []
    s.visit(lambda session: session.update(foo="baz"))
    assert s.visit(lambda session: session.id) == before, "a second put keeps the id"


def test_a_lifetime_of_half_a_second():
    s = Site(clocked("session", with_absolute_timeout(0.5))[0])
    s.visit(lambda session: session.update(foo="bar"))
    assert s.visit(lambda session: session.get("foo")) == "bar"
    s.clock.advance(1)
    assert s.visit(lambda session: session.get("foo")) is None


def test_idle_200_ms_is_kept_alive_by_hits():
    s = Site(clocked("session", with_idle_timeout(0.2), with_absolute_timeout(1))[0])
    s.visit(lambda session: session.update(foo="bar"))
    for wait in (0.1, 0.15):
        s.clock.advance(wait)
        assert s.visit(lambda session: session.get("foo")) == "bar"
    s.clock.advance(0.2)
    assert s.visit(lambda session: session.get("foo")) is None


def test_destroy_deletes_the_cookie_as_browsers_understand_it():
    s = Site(clocked("session")[0])
    s.visit(lambda session: session.update(foo="bar"))
    s.visit(lambda session: session.revoke())
    [cookie] = s.answer.cookies
    assert cookie.startswith("__Host-session=;")
    assert "Expires=Thu, 01 Jan 1970" in cookie
    assert "Max-Age=0" in cookie


def test_renewing_the_token_keeps_the_data():
    s = Site(clocked("session")[0])
    s.visit(lambda session: session.update(foo="bar"))
    token = s.browser.jar.header()
    s.visit(lambda session: session.renew())
    assert s.browser.jar.header() != token
    assert s.visit(lambda session: session["foo"]) == "bar"


def test_remember_me_makes_the_cookie_persist_and_is_no_key():
    s = Site(clocked("session")[0])
    s.visit(lambda session: session.update(foo="bar"))
    assert "Max-Age" not in s.answer.cookies[0]
    s.visit(lambda session: session.touch(max_age=3600))
    assert "Max-Age=3600" in s.answer.cookies[0]
    assert s.visit(list) == ["foo"]


def test_pop_remove_and_clear_of_nothing_change_nothing():
    s = Site(clocked("session")[0])
    s.visit(lambda session: (session.pop("x", None), session.delete("x"), session.clear(), session.modified))
    assert s.result[3] is False
    assert s.answer.cookies == []


# -- gorilla --------------------------------------------------------------------------------------------


def test_flashes_are_read_once_in_order_after_a_reload():
    s = Site(clocked("session")[0])
    assert s.visit(lambda session: session.flashes()) == []
    s.visit(lambda session: (session.flash("foo"), session.flash("bar"), session.flash("baz", "custom_key")))
    assert s.visit(lambda session: session.flashes()) == [("message", "foo"), ("message", "bar"), ("custom_key", "baz")]
    assert s.visit(lambda session: session.flashes()) == []


def test_a_bad_session_name_is_an_error_when_the_handler_is_built():
    with pytest.raises(ConfigError, match="session:key"):
        Handler("session:key", SECRET)


def test_the_cookie_carries_every_attribute():
    policy = CookiePolicy(
        name="c", domain="example.com", path="/bar", same_site="None", http_only=True, partitioned=True
    )
    s = Site(clocked("session", with_cookie(policy), with_max_age(3600))[0])
    s.visit(lambda session: session.update(n=1))
    for attribute in (
        "Domain=example.com",
        "Path=/bar",
        "Secure",
        "HttpOnly",
        "SameSite=None",
        "Partitioned",
        "Max-Age=3600",
    ):
        assert f"; {attribute}" in s.answer.cookies[0]


def test_a_changed_key_makes_clients_anonymous_and_never_fails():
    s = Site(clocked("session")[0])
    s.visit(lambda session: session.update(n=1))
    other = Handler("session", bytes(range(50)), with_clock(FakeClock()))
    changed = Site(other)
    changed.browser.jar = s.browser.jar
    assert changed.visit(dict) == {}
    assert changed.answer.cookies == [], "a node with another ring never deletes what it cannot read"


def test_keys_are_rotated_without_a_logout():
    old, new = bytes(range(40)), bytes(range(60, 120))
    clock = FakeClock()
    sites = [Site(Handler("session", keys, with_clock(clock))) for keys in ([old], [old, new], [new, old], [new])]
    for following in sites[1:]:
        following.browser.jar = sites[0].browser.jar
    sites[0].visit(lambda session: session.update(n=1))
    assert [s.visit(lambda session: session["n"]) for s in sites] == [1, 1, 1, 1]
    assert sites[0].visit(dict) == {}, "the new key's token is unknown to the old ring"


# -- gorilla/securecookie ---------------------------------------------------------------------------------


def test_text_for_one_name_never_decodes_for_another():
    text = CookieCodec("a", SECRET).encode({"n": 1})
    with pytest.raises(BadCookie):
        CookieCodec("b", SECRET).decode(text)
    with pytest.raises(BadCookie):
        CookieCodec("a", SECRET, encrypted=True).decode(text)
