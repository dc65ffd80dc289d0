"""Whatever comes from outside is refused in the documented way: nothing else escapes, and nobody is let in."""

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SECRET, SOAK, Site, environ, plain_app, run

import sessiontree
from sessiontree import BadCookie, ConfigError, CookiePolicy, Handler, KeyRing, with_clock, with_encryption, with_header
from sessiontree.handlers import CookieCodec
from sessiontree.handlers.codec import token_codec
from sessiontree.handlers.cookie import cookie_values
from sessiontree.testing import FakeClock

FUZZER = Path(__file__).parent / "fuzz" / "fuzz_tokens.py"
TARGETS = ["header", "tokens", "codec", "keys", "policy"]

quick = settings(deadline=None, max_examples=100 * SOAK)

CLOCK = FakeClock()
HANDLERS = [
    Handler("visitor", SECRET, with_clock(CLOCK)),
    Handler("visitor", SECRET, with_clock(CLOCK), with_encryption()),
]
PREFIX = f"v1.{KeyRing(SECRET).ids[0]}."
NAME = "__Host-visitor"

latin = st.text(st.characters(max_codepoint=255))
base64 = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=", max_size=99)
token_like = st.one_of(st.text(), latin, base64, base64.map(PREFIX.__add__), st.text().map(PREFIX.__add__))


# -- text from clients ------------------------------------------------------------------------------


@quick
@given(
    st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("latin-1"))), st.sampled_from(["sid", NAME, "a", "="])
)
def test_the_scan_of_a_cookie_header_takes_any_text(header, name):
    found = cookie_values(name=name, header=header)
    assert all(type(value) is str and value in header for value in found)


@quick
@given(token_like)
def test_no_made_up_text_is_a_token(text):
    for sealed in (False, True):
        codec = token_codec(KeyRing(SECRET), "session", "visitor", sealed=sealed, clock=CLOCK)
        with pytest.raises(BadCookie):
            codec.open(text)
        with pytest.raises(BadCookie):
            CookieCodec("prefs", SECRET, encrypted=sealed).decode(text)


@quick
@given(st.one_of(token_like.map(f"{NAME}={{}}".format), latin, st.lists(token_like).map(f"; {NAME}=".join)))
def test_a_request_with_any_cookie_header_is_anonymous(header):
    for handler in HANDLERS:
        app = handler.link(
            plain_app(lambda request, handler=handler: (dict(handler.session(request)), handler.loaded(request)))
        )
        answer = run(app, environ(HTTP_COOKIE=header))
        assert (answer.code, answer.text) == (200, "({}, False)")
        assert answer.cookies == []


@quick
@given(st.one_of(token_like, token_like.map("Bearer {}".format), latin))
def test_a_request_with_any_session_header_is_anonymous(value):
    for name, key in (("X-Session", "HTTP_X_SESSION"), ("Authorization", "HTTP_AUTHORIZATION")):
        handler = Handler("visitor", SECRET, with_header(name))
        answer = run(handler.link(plain_app(handler.loaded)), environ(**{key: value}))
        assert (answer.code, answer.text) == (200, "False")
        assert answer.get(name) is None


# -- content that verifies --------------------------------------------------------------------------

VALUES = b'{"a":1}'


def genuine(handler: Handler) -> tuple[Site, dict[str, str]]:
    """Return a site of a handler and its child, and the tokens of live sessions of both."""
    site = Site(handler, handler.spawn("user"))
    site.visit(lambda *sessions: [session.update(a=1) for session in sessions])
    return site, {one.name: site.browser.jar.get(f"__Host-{one.name}") for one in site.handlers}


FAMILIES = [genuine(handler) for handler in HANDLERS]
HEADS = [
    one.codec.open(tokens[one.name]).content.rstrip(b" ").removesuffix(VALUES)
    for site, tokens in FAMILIES
    for one in site.handlers
]
heads = st.one_of(
    st.sampled_from(HEADS),
    st.builds(
        lambda head, place, byte: head[: place % len(head)] + bytes([byte]) + head[place % len(head) + 1 :],
        st.sampled_from(HEADS),
        st.integers(0, 200),
        st.integers(0, 255),
    ),
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.one_of(st.sampled_from(["e", "s", "a", "f", "$tuple", "$bytes", "$x"]), st.text(max_size=2)),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)
values = plain.map(lambda value: json.dumps(value).encode())
rest = st.one_of(
    st.binary(max_size=30),
    values,
    st.builds(lambda extras, values: b"\0" + len(extras).to_bytes(2, "big") + extras + values, values, values),
)


def use(session):
    """Look at everything and write to it."""
    _ = [dict(session), session.id, session.handle, session.subject, session.new, session.expires_in, session.metadata]
    _ = [
        session.flashes(),
        session.fresh_within(9),
        session.get("k"),
        "k" in session,
        [session.ttl(key) for key in session],
    ]
    session["k"] = 1
    session.bind("zoe")
    return True


@settings(deadline=None, max_examples=300 * SOAK)
@given(st.one_of(st.binary(), st.builds(bytes.__add__, heads, rest)))
def test_st_2_any_content_that_verifies_is_a_session_or_none_and_never_an_exception(content):
    """Another release, or another serializer under the same keys, may have written it."""
    for site, tokens in FAMILIES:
        for handler in site.handlers:
            offered = {**tokens, handler.name: handler.codec.seal(content)}
            header = "; ".join(f"__Host-{name}={token}" for name, token in offered.items())
            assert site.visit(lambda *sessions: all(map(use, sessions)), HTTP_COOKIE=header)
            assert site.answer.code == 200


# -- settings ---------------------------------------------------------------------------------------

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 1e308, -1e308, float("nan"), float("inf"), 5e-324]),
    st.floats(),
    st.text(),
    st.sampled_from(
        ["\ud800", "a\r\nb", "a;b", "__Host-x", "/", "example.org", "Lax", "x" * 5000, "user", "X-Session"]
    ),
    st.binary(),
    st.lists(st.text(), max_size=3),
    st.lists(st.binary(min_size=32, max_size=40), max_size=3),
    st.dictionaries(st.text(), st.text(), max_size=2),
    st.timedeltas(),
    st.sampled_from([timedelta.max, timedelta.min, object(), int, len, print, json]),
    st.sampled_from([FakeClock(), CookiePolicy(), KeyRing(SECRET)]),
)
OPTIONS = sorted(
    name
    for name in sessiontree.__all__
    if name.startswith("with_") and inspect.signature(getattr(sessiontree, name)).parameters
)


@pytest.mark.parametrize("name", OPTIONS)
@settings(deadline=None, max_examples=60 * SOAK)
@given(value=anything)
def test_an_option_takes_a_value_or_raises_a_config_error(name, value):
    with warnings.catch_warnings(), suppress(ConfigError):
        warnings.simplefilter("ignore")
        Handler("visitor", SECRET, getattr(sessiontree, name)(value))


@pytest.mark.parametrize(
    "field", ["name", "domain", "path", "secure", "http_only", "same_site", "partitioned", "insecure_dev"]
)
@settings(deadline=None, max_examples=60 * SOAK)
@given(value=anything)
def test_a_policy_takes_a_value_or_raises_a_config_error(field, value):
    with suppress(ConfigError):
        policy = CookiePolicy(**{field: value})
        assert policy.name_for("visitor").isascii()


@quick
@given(st.one_of(anything, st.lists(anything, max_size=3), st.tuples(anything)), st.one_of(st.just(""), anything))
def test_a_ring_takes_secrets_or_raises_a_config_error(secrets, realm):
    with suppress(ConfigError):
        ring = KeyRing(secrets, realm=realm)
        assert ring.verify("data", ring.sign("data", "fuzz"), "fuzz")


@quick
@given(anything, anything)
def test_a_handler_is_built_or_raises_a_config_error(name, other):
    with suppress(ConfigError):
        assert Handler(name, SECRET).name == name
    with suppress(ConfigError):
        assert Handler("visitor", SECRET).spawn(name).name == name
    with suppress(ConfigError):
        Handler(name, other)
    with suppress(ConfigError):
        Handler("visitor", SECRET).spawned(other)


@quick
@given(anything.filter(lambda value: not callable(value)))
def test_what_is_no_option_is_a_config_error(value):
    with pytest.raises(ConfigError):
        Handler("visitor", SECRET, value)
    with pytest.raises(ConfigError):
        Handler("visitor", SECRET).configure(value)


@quick
@given(anything, anything)
def test_a_codec_is_built_or_raises_a_type_or_value_error(name, keys):
    with suppress(TypeError, ValueError):
        CookieCodec(name, SECRET)
    with suppress(ConfigError):
        CookieCodec("prefs", keys)


@pytest.mark.parametrize("clock", [FakeClock, datetime, type("Words", (), {"now": lambda self: "noon"})()])
def test_a_clock_that_tells_no_milliseconds_is_refused_when_the_handler_is_built(clock):
    """A forgotten pair of parentheses must not wait for the first request."""
    with pytest.raises(ConfigError):
        Handler("visitor", SECRET, with_clock(clock))


# -- coverage-guided --------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
@pytest.mark.parametrize("target", TARGETS)
def test_coverage_guided_fuzzing_finds_nothing(target, tmp_path):
    done = subprocess.run(
        [sys.executable, str(FUZZER), target, f"-max_total_time={SOAK}", "-max_len=4200"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60 + 10 * SOAK,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"^Done [1-9]\d\d+ runs", done.stderr, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("sessiontree-fuzz-")] == []


def test_the_fuzzer_has_the_targets_that_are_run():
    source = FUZZER.read_text()
    for target in TARGETS:
        assert f'"{target}": {target},' in source
