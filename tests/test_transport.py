"""How a token travels: in a cookie or in a header, and what a header's name may be."""

from wsgiref.util import is_hop_by_hop

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SECRET, Site, clocked, environ, plain_app, run

from sessiontree import ConfigError, CookiePolicy, Handler, chain, with_cookie, with_events, with_header
from sessiontree.handlers.transport import CookieTransport, HeaderTransport, checked_header

quick = settings(deadline=None, max_examples=100)


# -- cookies --------------------------------------------------------------------------------------


def test_a_cookie_transport_reads_the_cookies_of_its_name():
    transport = CookieTransport(CookiePolicy(), "sid")
    assert transport.tokens("a=1; sid=x; sid=y") == ["x", "y"]
    assert (transport.key, transport.vary, transport.response_header) == ("HTTP_COOKIE", "Cookie", "Set-Cookie")


@pytest.mark.parametrize(
    ("name", "strict"),
    [("__Host-sid", True), ("__Host-Http-sid", True), ("__Secure-sid", False), ("__Http-sid", False), ("sid", False)],
)
def test_rq_5_only_the_host_itself_can_set_a_host_cookie(name, strict):
    assert CookieTransport(CookiePolicy(name=name), name).strict is strict


# -- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("token", ["token"]), ("  token\t", ["token"]), ("", []), ("   ", []), ("Bearer token", ["Bearer token"]),
        ("a, b", ["a, b"]), ("a b", ["a b"]), ('"token"', ['"token"']),
    ],
)  # fmt: skip
def test_a_header_holds_the_token_and_nothing_else(source, expected):
    assert HeaderTransport("X-Session").tokens(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Bearer token", ["token"]), ("bearer token", ["token"]), ("BEARER token", ["token"]),
        ("  Bearer   token  ", ["token"]),
        ("token", []), ("Bearer", []), ("Bearer ", []), ("Bearertoken", []), ("Basic token", []), ("", []),
        ("Basic Bearer token", []), ("Digest Bearer token", []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
def test_authorization_means_bearer_whatever_its_case(name, source, expected):
    transport = HeaderTransport(name)
    assert transport.tokens(source) == expected
    assert transport.key == "HTTP_AUTHORIZATION"


@quick
@given(st.text())
def test_a_header_of_any_text_gives_at_most_one_token(source):
    for name in ("X-Session", "Authorization"):
        found = HeaderTransport(name).tokens(source)
        assert len(found) <= 1
        assert all(token and token == token.strip(" \t") for token in found)


@pytest.mark.parametrize("name", ["X-Session", "Session", "Authorization", "X-My-Own-Session-2", "a"])
def test_a_header_of_this_name_can_carry_tokens(name):
    assert checked_header(name) == name
    assert HeaderTransport(name).key == "HTTP_" + name.upper().replace("-", "_")


@pytest.mark.parametrize(
    "name",
    [
        "", " X-Session", "X-Session ", "X Session", "X_Session", "X-Session:", "X-Session\r\n", "X-Session\n",
        "X-Séssion",
        "X-Session\0", "2X", "-X", "X" * 64, "X-Session; a", "X\u212a", 5, None, b"X-Session", ["X-Session"],
    ],
)  # fmt: skip
def test_rq_8_what_is_no_header_name_is_refused(name):
    with pytest.raises(ConfigError):
        with_header(name)


TAKEN = ["Cookie", "SET-COOKIE", "content-type", "Content-Length", "Host", "Vary", "Cache-Control"]
HOP_BY_HOP = [
    "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "TE", "Trailers", "Transfer-Encoding",
    "Upgrade",
]  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_a_header_that_has_a_meaning_of_its_own_is_refused(name):
    with pytest.raises(ConfigError, match="a meaning of its own"):
        with_header(name)


@pytest.mark.parametrize("name", [*HOP_BY_HOP, "Status"])
def test_a_header_that_no_wsgi_application_may_send_is_refused(name):
    """PEP 3333: hop-by-hop headers are a fatal error, and at the first write rather than when the handler is built."""
    assert is_hop_by_hop(name) or name == "Status"
    with pytest.raises(ConfigError):
        with_header(name)


# -- headers in requests --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["X-Session", "Authorization"])
def test_a_new_token_returns_in_the_header_of_the_same_name(name):
    events = []
    site = Site(clocked("visitor", with_header(name), with_events(events.append))[0])
    site.visit(lambda session: session.update(a=1))
    value = site.answer.get(name)
    assert value.startswith("Bearer v1." if name == "Authorization" else "v1.")
    assert site.answer.cookies == []
    assert site.answer.get("Vary") == name
    assert site.answer.get("Cache-Control") == "no-store"
    key = HeaderTransport(name).key
    assert site.visit(dict, **{key: value}) == {"a": 1}
    assert site.answer.get(name) is None
    assert site.answer.get("Vary") == name
    assert site.visit(dict) == {}
    assert site.visit(dict, **{key: f"{value}, {value}"}) == {}
    assert [event.kind for event in events] == ["created", "refused"]


def test_a_revoked_session_returns_the_empty_header():
    site = Site(clocked("visitor", with_header("X-Session"))[0])
    site.visit(lambda session: session.update(a=1))
    token = site.answer.get("X-Session")
    site.visit(lambda session: session.revoke(), HTTP_X_SESSION=token)
    assert site.answer.get("X-Session") == ""


def test_rq_9_with_a_header_the_cookie_counts_for_nothing():
    handler, _ = clocked("visitor", with_header("X-Session"))
    site = Site(handler)
    site.visit(lambda session: session.update(a=1))
    token = site.answer.get("X-Session")
    assert site.visit(dict, HTTP_COOKIE=f"__Host-visitor={token}; X-Session={token}") == {}
    assert site.visit(dict, HTTP_X_SESSION=token, HTTP_COOKIE="__Host-visitor=x; __Host-visitor=y") == {"a": 1}


def test_a_cookies_token_is_good_in_a_header_for_it_is_the_same_handler():
    handler, _ = clocked()
    site = Site(handler)
    site.visit(lambda session: session.update(a=1))
    token = site.browser.jar.get("__Host-visitor")
    assert Site(handler.configure(with_header("X-Session"))).visit(dict, HTTP_X_SESSION=token) == {"a": 1}


@pytest.mark.parametrize(("one", "other"), [("X-Session", "x-session"), ("Authorization", "AUTHORIZATION")])
def test_ck_14_two_handlers_of_one_header_are_a_config_error(one, other):
    pair = [Handler("a", SECRET, with_header(one)), Handler("b", SECRET, with_header(other))]
    with pytest.raises(ConfigError, match="header"):
        chain(*pair)(plain_app(len))


def test_a_cookie_and_a_header_of_one_name_do_not_clash():
    pair = [Handler("a", SECRET, with_header("sid")), Handler("b", SECRET, with_cookie(CookiePolicy(name="sid")))]
    app = chain(*pair)(plain_app(lambda request: [handler.session(request).update(a=1) for handler in pair]))
    answer = run(app, environ())
    assert answer.get("sid").startswith("v1.")
    assert answer.get("Set-Cookie").startswith("sid=v1.")
    assert answer.get("Vary") == "sid, Cookie"
