"""Cookies: the policy's rules, the Set-Cookie line, our scan of the Cookie header, and both in whole requests."""

import copy
import dataclasses
import pickle
import re
import string
import warnings
from contextlib import suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from itertools import product

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from support import OTHER_SECRET, SECRET, Browser, Site, clocked, environ, plain_app, run
from werkzeug.http import parse_cookie

from sessiontree import (
    ConfigError,
    CookiePolicy,
    CookieTooLarge,
    Handler,
    ParentInvalid,
    SessionGone,
    chain,
    with_absolute_timeout,
    with_clock,
    with_cookie,
    with_encryption,
    with_events,
    with_idle_timeout,
    with_max_age,
)
from sessiontree.handlers.cookie import (
    LARGEST_HEADER,
    LARGEST_SET_COOKIE,
    LONGEST_COOKIE_LIFE,
    MOST_DUPLICATES,
    CookieWriter,
    cookie_values,
    lasting,
)
from sessiontree.testing import CookieJar, FakeClock

quick = settings(deadline=None, max_examples=100)

NAME = "__Host-visitor"
PREFIXES = ["", "__Secure-", "__Host-", "__Http-", "__Host-Http-"]
COOKIE_OCTETS = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '",;\\')
TOKEN_LETTERS = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
# Nothing of this may reach a header, wherever it stands.
HOSTILE = [
    *map(chr, range(0x21)), "\x7f", ";", ",", "\r\n", "\r\nSet-Cookie: evil=1", "; Domain=evil.example", "\x80", "\xa0",
    "\xff", "é", "\u2028", "\uff1b", "\u0130", "\ud800", "\U0001f36a",
]  # fmt: skip


def dev_policy(**settings_) -> CookiePolicy:
    return CookiePolicy(insecure_dev=True, **settings_)


def line_of(policy: CookiePolicy, name: str = "sid", seconds: int | None = None, now: int = 0) -> str:
    """Return the line that sets this cookie to ``token``."""
    writer = CookieWriter(policy, name)
    return f"{writer.before}token{writer.after}{'' if seconds is None else lasting(seconds, now)}"


def erasure_of(policy: CookiePolicy, name: str = "sid") -> str:
    """Return the line that deletes this cookie."""
    return CookieWriter(policy, name).erasure


def attributes(line: str) -> dict[str, str | None]:
    """Return the attributes of a Set-Cookie value; none may stand there twice."""
    parts = [part.partition("=") for part in line.split("; ")[1:]]
    assert len({name for name, _, _ in parts}) == len(parts), line
    return {name: value if equals else None for name, equals, value in parts}


def written(site: Site, **values) -> str:
    """Write to the session and return the Set-Cookie line that came of it."""
    site.visit(lambda session: session.update(values or {"a": 1}))
    [line] = site.answer.cookies
    return line


@st.composite
def policies(draw) -> CookiePolicy:
    """Draw any policy that the constructor takes."""
    prefix = draw(st.sampled_from(PREFIXES))
    name = draw(st.one_of(st.none(), st.text(TOKEN_LETTERS, min_size=1, max_size=8).map(lambda rest: prefix + rest)))
    try:
        return CookiePolicy(
            name=name,
            domain=draw(st.sampled_from([None, "example.org", "www.example.org", "org.example", "Example.ORG"])),
            path=draw(st.sampled_from(["/", "/app", "/app/", "/a/b", "/a%20b~'"])),
            http_only=draw(st.booleans()),
            same_site=draw(st.sampled_from(["Strict", "Lax", "None"])),
            partitioned=draw(st.booleans()),
            insecure_dev=draw(st.booleans()),
        )
    except ConfigError:
        reject()


def sites(policy: CookiePolicy) -> Site:
    """Return a site whose cookie has this policy; reject what no handler can use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            handler, _ = clocked("visitor", with_cookie(policy))
        except ConfigError:
            reject()
    return Site(handler)


# -- CK-1, CK-2, CK-3, CK-11: the defaults ----------------------------------------------------------


def test_a_default_policy_is_the_strictest_that_follows_links():
    line = written(Site(clocked()[0]))
    assert re.fullmatch(r"__Host-visitor=[^;]+; Path=/; Secure; HttpOnly; SameSite=Lax", line)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_ck_1_secure_stands_whatever_the_scheme_of_the_request(scheme):
    handler, _ = clocked()
    request = environ()
    request["wsgi.url_scheme"] = scheme
    answer = run(handler.link(plain_app(lambda request: handler.session(request).update(a=1))), request)
    assert "Secure" in attributes(answer.get("Set-Cookie"))


def test_ck_1_secure_is_turned_off_by_insecure_dev_only_and_with_a_warning():
    with pytest.raises(ConfigError, match="insecure_dev=True"):
        CookiePolicy(secure=False)
    for secure in (True, False):
        with pytest.warns(UserWarning, match="never deploy"):
            option = with_cookie(CookiePolicy(secure=secure, insecure_dev=True))
        line = written(Site(clocked("visitor", option)[0]))
        assert line.startswith("visitor=")
        assert "Secure" not in attributes(line)


def test_ck_1_a_secure_policy_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_cookie(CookiePolicy())


@pytest.mark.parametrize("sealed", [False, True])
def test_ck_2_the_id_is_in_the_set_cookie_header_only(sealed):
    site = Site(clocked("visitor", with_encryption(sealed))[0])
    for action in (lambda session: session.update(a=1), lambda session: session.renew(), dict):
        secret = site.visit(lambda session, action=action: (action(session), session.id)[1])
        token = site.browser.jar.get(NAME)
        rest = repr([header for header in site.answer.headers if header[0] != "Set-Cookie"]) + site.answer.text
        assert secret not in rest + site.answer.status
        assert token not in rest


def test_ck_2_http_only_is_the_default_and_can_be_turned_off():
    assert "HttpOnly" in attributes(written(Site(clocked()[0])))
    readable = with_cookie(CookiePolicy(http_only=False))
    assert "HttpOnly" not in attributes(written(Site(clocked("visitor", readable)[0])))


@pytest.mark.parametrize("same_site", ["Strict", "Lax", "None"])
def test_ck_3_same_site_is_always_written(same_site):
    site = Site(clocked("visitor", with_cookie(CookiePolicy(same_site=same_site)))[0])
    assert attributes(written(site))["SameSite"] == same_site
    site.visit(lambda session: session.revoke())
    assert attributes(site.answer.get("Set-Cookie"))["SameSite"] == same_site


@pytest.mark.parametrize("same_site", ["lax", "STRICT", "none", "", None, True, 0, "Lax ", "Lax; Domain=x", b"Lax", []])
def test_ck_3_any_other_same_site_is_refused(same_site):
    with pytest.raises(ConfigError, match="same_site"):
        CookiePolicy(same_site=same_site)


def test_ck_3_same_site_none_needs_secure():
    with pytest.raises(ConfigError, match="needs Secure"):
        dev_policy(same_site="None")


def test_ck_11_the_default_is_a_browser_session_cookie():
    line = written(Site(clocked()[0]))
    assert not {"Max-Age", "Expires"} & attributes(line).keys()


# -- CK-4, CK-5, CK-6, CK-7, CK-8: what the constructor takes ---------------------------------------


def browsers_refuse(name, *, secure, domain, path, http_only) -> bool:
    """Say what 6265bis 5.7 does with a cookie of this name, whose prefix counts without case."""
    lower = name.lower()
    if lower.startswith(("__secure-", "__host-", "__http-")) and not secure:
        return True
    if lower.startswith("__host-") and (domain is not None or path != "/"):
        return True
    return lower.startswith(("__http-", "__host-http-")) and not http_only


@pytest.mark.parametrize("prefix", PREFIXES)
def test_ck_4_ck_6_the_constructor_raises_exactly_for_what_browsers_refuse(prefix):
    for insecure, domain, path, http_only in product(
        [False, True], [None, "example.org"], ["/", "/app"], [False, True]
    ):
        name = f"{prefix}sid"
        settings_ = {"domain": domain, "path": path, "http_only": http_only}
        refusal = browsers_refuse(name, secure=not insecure, **settings_)
        line = line_of(CookiePolicy(insecure_dev=insecure, **settings_), name)
        assert CookieJar(FakeClock()).store(line, path="/app/page", secure=not insecure) is not refusal
        try:
            CookiePolicy(name=name, insecure_dev=insecure, **settings_)
        except ConfigError:
            assert refusal, (name, insecure, settings_)
        else:
            assert not refusal, (name, insecure, settings_)


def test_ck_4_the_default_name_is_host_prefixed_and_contradictions_are_found_when_the_handler_is_built():
    assert CookiePolicy().name_for("visitor") == NAME
    assert dev_policy().name_for("visitor") == "visitor"
    for policy in (CookiePolicy(domain="example.org"), CookiePolicy(path="/app")):
        with pytest.raises(ConfigError, match="__Host-"):
            Handler("visitor", SECRET, with_cookie(policy))
    assert Handler("visitor", SECRET, with_cookie(CookiePolicy(name="__Secure-sid", domain="example.org")))


@pytest.mark.parametrize("name", ["__HOST-visitor", "__host-visitor", "__hOST-visitor", "__Host_visitor", "visitor"])
def test_ck_5_another_spelling_of_our_name_in_a_request_is_not_our_cookie(name):
    site = Site(clocked()[0])
    written(site)
    token = site.browser.jar.get(NAME)
    assert site.visit(dict, HTTP_COOKIE=f"{name}={token}") == {}
    assert site.visit(dict, HTTP_COOKIE=f"{name}=x; {NAME}={token}; {name}=y") == {"a": 1}


@pytest.mark.parametrize(
    "name",
    ["__HOST-x", "__host-x", "__SECURE-x", "__secure-x", "__HTTP-x", "__http-x", "__Host-HTTP-x", "__host-Http-x"],
)
def test_ck_5_a_miscapitalised_prefix_is_refused(name):
    with pytest.raises(ConfigError, match="must spell its prefix"):
        CookiePolicy(name=name)


@pytest.mark.parametrize("handler", ["Http-x", "http-x"])
def test_ck_6_a_handlers_own_name_may_complete_a_prefix_and_is_judged_too(handler):
    if handler == "Http-x":
        assert Handler(handler, SECRET)
    else:
        with pytest.raises(ConfigError, match="must spell its prefix"):
            Handler(handler, SECRET)
    with pytest.raises(ConfigError):
        Handler(handler, SECRET, with_cookie(CookiePolicy(http_only=False)))


@pytest.mark.parametrize(
    "domain",
    [
        "", ".", ".example.org", "example.org.", "example..org", "-example.org", "example-.org", "exa mple.org",
        "example.org:8000", "http://example.org", "example.org/", "*.example.org", "_dmarc.example.org", "exämple.org",
        "[::1]", "a" * 64 + ".org", ".".join(["a" * 63] * 4) + ".org", "example.org\n", 5, b"example.org", [""],
        "example.org; Path=/x", "example.org,evil.example", "\u212aelvin.org",
    ],
)  # fmt: skip
def test_ck_7_what_is_no_host_name_is_refused_as_domain(domain):
    with pytest.raises(ConfigError, match="domain"):
        CookiePolicy(domain=domain)


@pytest.mark.parametrize(
    "domain", ["example.org", "EXAMPLE.org", "a.b.c.d", "xn--exmple-cua.org", "a-b.org", "127.0.0.1", "localhost"]
)
def test_ck_7_a_host_name_is_a_domain(domain):
    assert f"; Domain={domain};" in line_of(CookiePolicy(domain=domain), "__Secure-x")


def test_ck_7_there_is_no_domain_by_default():
    assert "Domain" not in attributes(written(Site(clocked()[0])))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "app",
        " /app",
        "/a;b",
        "/a b",
        "/a\tb",
        "/a\nb",
        "/ä",
        "/\x7f",
        "/" + "a" * 1024,
        5,
        None,
        b"/app",
        "?x",
        "*",
    ],
)
def test_ck_7_what_is_no_path_is_refused(path):
    with pytest.raises(ConfigError, match="path"):
        CookiePolicy(path=path)


@pytest.mark.parametrize("path", ["/", "/app", "/app/", "/a%20b", "/~x/!$&'()*+", "/" + "a" * 1023])
def test_ck_7_a_path_is_written_as_it_is(path):
    line = line_of(CookiePolicy(path=path))
    assert attributes(line)["Path"] == path
    jar = CookieJar(FakeClock())
    assert jar.store(line)
    assert jar.cookies()[0].path == path


@pytest.mark.parametrize("same_site", ["Lax", "None", "Strict"])
def test_ck_8_partitioned_is_written_and_repeated_by_the_deletion(same_site):
    policy = CookiePolicy(partitioned=True, same_site=same_site)
    site = Site(clocked("visitor", with_cookie(policy))[0])
    assert "Partitioned" in attributes(written(site))
    assert site.browser.jar.cookies()[0].partitioned
    site.visit(lambda session: session.revoke())
    assert "Partitioned" in attributes(site.answer.get("Set-Cookie"))


def test_ck_8_partitioned_needs_secure():
    with pytest.raises(ConfigError, match="Partitioned needs Secure"):
        dev_policy(partitioned=True)


@pytest.mark.parametrize("flag", ["secure", "http_only", "partitioned", "insecure_dev"])
@pytest.mark.parametrize("value", [None, 0, 1, "yes", "False", [], object()])
def test_flags_are_true_or_false_and_nothing_like_it(flag, value):
    with pytest.raises(ConfigError, match=flag):
        CookiePolicy(**{flag: value})


@pytest.mark.parametrize(
    "name",
    [
        "s;id",
        "s id",
        "sid=",
        "",
        "sïd",
        "sid,",
        '"sid"',
        "s\\id",
        "(sid)",
        "<sid>",
        "s@id",
        "s/id",
        "s[id]",
        "s?id",
        "s:id",
        "s{id}",
        5,
        b"sid",
        ["sid"],
    ],
)
def test_ck_13_what_is_no_token_is_refused_as_name(name):
    with pytest.raises(ConfigError, match="name"):
        CookiePolicy(name=name)


def test_ck_13_any_token_is_a_name():
    assert CookiePolicy(name=TOKEN_LETTERS).name_for("x") == TOKEN_LETTERS
    assert CookiePolicy(name="a" * 256)
    with pytest.raises(ConfigError):
        CookiePolicy(name="a" * 257)


# -- RQ-8: nothing gets into a header ---------------------------------------------------------------


@pytest.mark.parametrize("bad", HOSTILE, ids=ascii)
@pytest.mark.parametrize("field", ["name", "domain", "path"])
@pytest.mark.parametrize("shape", ["{}x", "x{}y", "x{}"])
def test_rq_8_no_setting_carries_a_control_character_a_separator_or_non_ascii(field, shape, bad):
    text = {"name": shape, "domain": f"{shape}.org", "path": f"/{shape}"}[field].format(bad)
    with pytest.raises(ConfigError):
        CookiePolicy(**{field: text})
    with pytest.raises(ConfigError):
        dataclasses.replace(CookiePolicy(name="sid"), **{field: text})


def test_rq_8_a_comma_in_the_path_is_refused():
    """Some servers join several Set-Cookie headers with commas."""
    with pytest.raises(ConfigError):
        CookiePolicy(path="/a,b")


@pytest.mark.parametrize("bad", HOSTILE, ids=ascii)
def test_rq_8_no_handler_name_carries_it_into_the_cookie_name(bad):
    for name in (f"visitor{bad}", f"{bad}visitor", f"visi{bad}tor"):
        with pytest.raises(ConfigError):
            Handler(name, SECRET)


def test_rq_8_a_policy_is_frozen_and_its_copies_are_equal():
    policy = CookiePolicy(name="__Secure-sid", domain="example.org", path="/app", same_site="None", partitioned=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.name = "evil\r\n"
    for twin in (copy.copy(policy), copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):  # noqa: S301 - our own
        assert twin == policy
        assert hash(twin) == hash(policy)


PRINTABLE = st.characters(exclude_categories=("C", "Z"))


@quick
@given(
    policies(),
    st.dictionaries(st.text(PRINTABLE, max_size=4), st.text(PRINTABLE, max_size=9), max_size=3),
)
def test_ck_13_rq_8_every_line_we_emit_has_the_grammar_of_6265bis(policy, values):
    """A name that is a token, a value of cookie-octets, attributes of visible ASCII; nothing quoted."""
    site = sites(policy)
    line = written(site, **values)
    name, _, rest = line.partition("=")
    value = rest.partition("; ")[0]
    assert re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name, re.ASCII)
    assert re.fullmatch(r"[A-Za-z0-9+/.]+", value, re.ASCII)
    assert set(value) <= set(COOKIE_OCTETS)
    assert re.fullmatch(r"[ -:<-~]+(?:; [ -:<-~]+)*", line, re.ASCII)
    attributes(line)
    site.visit(lambda session: session.revoke())
    assert all(re.fullmatch(r"[ -~]+", other, re.ASCII) for other in site.answer.cookies)


# -- CK-9, CK-10: lives ------------------------------------------------------------------------------


@quick
@given(policies(), st.integers(1, 1 << 40), st.integers(0, 1 << 34))
def test_ck_9_max_age_and_expires_say_the_same_and_at_most_400_days(policy, seconds, now):
    line = line_of(policy, "sid", seconds, now)
    found = attributes(line)
    assert int(found["Max-Age"]) == min(seconds, 34_560_000)
    assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", found["Expires"])
    assert parsedate_to_datetime(found["Expires"]).timestamp() == now + int(found["Max-Age"])


def test_ck_9_the_longest_life_is_400_days():
    assert timedelta(seconds=LONGEST_COOKIE_LIFE) == timedelta(days=400)
    for seconds, expected in [
        (34_559_999, 34_559_999),
        (34_560_000, 34_560_000),
        (34_560_001, 34_560_000),
        (2**63, 34_560_000),
    ]:
        assert attributes(line_of(CookiePolicy(), "sid", seconds))["Max-Age"] == str(expected)


@pytest.mark.parametrize(
    ("max_age", "expected"),
    [
        (3600, 3600),
        (0.001, 1),
        (1.5, 2),
        (timedelta(days=14), 1_209_600),
        (timedelta(days=401), 34_560_000),
        (10**10, 34_560_000),
    ],
)
def test_ck_9_a_handlers_max_age_reaches_the_cookie(max_age, expected):
    handler, clock = clocked("visitor", with_max_age(max_age), with_absolute_timeout(None))
    found = attributes(written(Site(handler)))
    assert found["Max-Age"] == str(expected)
    assert parsedate_to_datetime(found["Expires"]).timestamp() == clock.now() / 1000 + expected


@pytest.mark.parametrize(
    "max_age", [-1, -0.001, float("nan"), float("inf"), True, False, "60", 2**63, timedelta.max, [], 1e308]
)
def test_ck_9_what_is_no_life_is_refused(max_age):
    with pytest.raises(ConfigError):
        with_max_age(max_age)


@pytest.mark.parametrize("max_age", [0, None, 0.0, timedelta()])
def test_ck_11_no_life_is_a_browser_session_cookie(max_age):
    found = attributes(written(Site(clocked("visitor", with_max_age(max_age))[0])))
    assert not {"Max-Age", "Expires"} & found.keys()


def test_ck_9_a_cookie_never_outlives_its_session():
    handler, _ = clocked("visitor", with_max_age(timedelta(days=60)))
    assert attributes(written(Site(handler)))["Max-Age"] == str(30 * 86_400)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    ("options", "life"),
    [((with_max_age(60),), 60), ((with_absolute_timeout(60),), 60), ((with_idle_timeout(60),), 60), ((), 30 * 86_400)],
)
def test_ck_10_the_server_refuses_a_cookie_that_the_client_kept_too_long(options, life, sealed):
    handler, clock = clocked("visitor", with_encryption(sealed), *options)
    site = Site(handler)
    written(site)
    kept = f"{NAME}={site.browser.jar.get(NAME)}"
    clock.advance(life - 0.001)
    assert site.visit(dict, HTTP_COOKIE=kept) == {"a": 1}
    clock.advance(0.001)
    assert site.visit(dict, HTTP_COOKIE=kept) == {}


# -- CK-12: size -------------------------------------------------------------------------------------


def line_or_size(site: Site, size: int) -> int:
    """Return the octets of the line that sets a session of this much data, negative if it was refused."""
    try:
        return len(written(Site(site.handler), text="x" * size).encode())
    except CookieTooLarge as error:
        return -int(re.search(r"would have (\d+) octets", str(error))[1])


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("options", [(), (with_max_age(60),)])
def test_ck_12_4093_octets_with_attributes_are_sent_and_4094_are_refused(sealed, options):
    """Tokens grow by four; names of four lengths make every length of the line."""
    sent, refused = set(), set()
    for extra in ("", "a", "ab", "abc"):
        handler, _ = clocked(
            "visitor", with_encryption(sealed), with_cookie(CookiePolicy(name=f"__Host-x{extra}")), *options
        )
        site = Site(handler)
        low, high = 2000, 3100
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if line_or_size(site, middle) > 0 else (low, middle)
        sent.add(line_or_size(site, low))
        refused.add(-line_or_size(site, high))
    assert max(sent) == LARGEST_SET_COOKIE == 4093
    assert min(refused) == 4094


def test_ck_12_the_error_names_the_heaviest_keys_and_nothing_is_sent():
    site = Site(clocked()[0])
    with pytest.raises(CookieTooLarge, match=r"Heaviest keys: 'big' \(3902 bytes\), 'small'"):
        site.visit(lambda session: session.update(small="y" * 300, big="x" * 3900))
    assert not hasattr(site, "answer")


@pytest.mark.parametrize("name", ["n" * 256, "__Host-" + "n" * 249])
@pytest.mark.parametrize("text", ["x", "é", "\U0001f36a", "\0"])
def test_ck_12_whatever_is_sent_is_kept_by_the_browser(name, text):
    site = Site(clocked("visitor", with_cookie(CookiePolicy(name=name)))[0])
    for size in (1, 200, 400, 700, 1400, 2600, 2800):
        try:
            line = written(site, text=text * size)
        except CookieTooLarge:
            continue
        assert len(line.encode()) <= 4093
        assert site.visit(dict) == {"text": text * size}


# -- CK-14, CK-15, CK-16: one cookie, its deletion, and when ----------------------------------------

OPERATIONS = {
    "write": lambda session: session.update(a=1),
    "delete": lambda session: session.delete("a"),
    "clear": lambda session: session.clear(),
    "renew": lambda session: session.renew(),
    "bind": lambda session: session.bind("zoe"),
    "touch": lambda session: session.touch(),
    "prolong": lambda session: session.touch(max_age=60),
    "revoke": lambda session: session.revoke(),
    "end": lambda session: session.touch(max_age=-1),
    "flash": lambda session: session.flash("hi"),
    "commit": lambda session: session.commit(),
    "look": dict,
}


@quick
@given(st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=6), st.booleans())
def test_ck_14_a_response_sets_a_cookie_once_whatever_was_done(names, has_session):
    visitor, _ = clocked()
    site = Site(visitor, visitor.spawn("user"))
    if has_session:
        site.visit(lambda *sessions: [session.update(a=0) for session in sessions])

    def act(*sessions):
        for number, name in enumerate(names):
            for session in sessions[: 1 + number % 2]:
                with suppress(SessionGone, ParentInvalid):  # After an end, writes are refused; that is not the point.
                    OPERATIONS[name](session)

    site.headers = [("Content-Type", "text/plain"), ("Set-Cookie", "other=1"), ("set-cookie", f"{NAME}=theirs; Path=/")]
    site.visit(act)
    names_set = [line.partition("=")[0] for line in site.answer.cookies]
    assert len(names_set) == len(set(names_set))
    assert "other" in names_set
    for line in site.answer.cookies:
        attributes(line)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Handler("a", SECRET), Handler("a", OTHER_SECRET)),
        (Handler("a", SECRET), Handler("b", SECRET, with_cookie(CookiePolicy(name="__Host-a")))),
    ],
)
def test_ck_14_two_handlers_of_one_cookie_name_are_a_config_error(one, other):
    with pytest.raises(ConfigError):
        chain(one, other)(plain_app(len))
    with pytest.raises(ConfigError):
        other.link(one.link(plain_app(len)))


@quick
@given(
    policies(),
    st.sampled_from(["example.org", "www.example.org", "deep.www.example.org"]),
    st.booleans(),
    st.integers(1, 10**6),
)
def test_ck_15_the_deletion_empties_the_jar_under_every_policy(policy, host, lasting, seconds):
    clock = FakeClock()
    jar = CookieJar(clock)
    name = policy.name or "sid"
    where = {"host": host, "path": "/app/page", "secure": not policy.insecure_dev}
    if not jar.store(line_of(policy, name, seconds if lasting else None, clock.now() // 1000), **where):
        reject()  # The cookie's domain is not this host's.
    assert jar.get(name) == "token"
    assert not jar.store(erasure_of(policy, name), **where)
    assert jar.cookies() == []


@quick
@given(policies())
def test_ck_15_the_deletion_repeats_every_attribute_with_both_ways_to_expire(policy):
    erasure = attributes(erasure_of(policy))
    assert erasure.pop("Max-Age") == "0"
    assert parsedate_to_datetime(erasure.pop("Expires")).timestamp() == 0
    assert erasure == attributes(line_of(policy))
    assert erasure_of(policy).startswith("sid=;")


@quick
@given(policies())
def test_ck_15_a_logout_empties_the_browser(policy):
    site = sites(policy)
    browser = Browser(site.app, site.clock, secure=not policy.insecure_dev)
    site.visit(lambda session: session.update(a=1), browser)
    kept = browser.jar.cookies()
    site.visit(
        lambda session: session.revoke(),
        browser,
        HTTP_COOKIE=f"{policy.name_for('visitor')}={kept[0].value}" if kept else "",
    )
    assert browser.jar.cookies() == []


def dead_and_bad_tokens():
    """Return (handler, what a dead session's token is, tokens that do not verify)."""
    clock = FakeClock()
    handler = Handler("visitor", SECRET, with_clock(clock), with_absolute_timeout(60))
    site = Site(handler)
    written(site)
    token = site.browser.jar.get(NAME)
    other = Site(Handler("visitor", OTHER_SECRET, with_clock(clock)))
    written(other)
    clock.advance(60)
    return site, token, [token[:-4], token + "AAAA", "junk", "", "deleted", other.browser.jar.get(NAME), "\xe9"]


def test_ck_16_a_token_that_verified_and_is_dead_is_cleared_once():
    site, token, _ = dead_and_bad_tokens()
    browser = site.another_browser()
    browser.jar.store(f"{NAME}={token}; Path=/; Secure")
    site.visit(dict, browser)
    [line] = site.answer.cookies
    assert attributes(line)["Max-Age"] == "0"
    assert browser.jar.cookies() == []
    site.visit(dict, browser)
    assert site.answer.cookies == []


def test_ck_16_a_token_that_does_not_verify_is_left_alone():
    """A node with an older key ring would log people out."""
    site, _, bad = dead_and_bad_tokens()
    for value in bad:
        assert site.visit(dict, site.another_browser(), HTTP_COOKIE=f"{NAME}={value}") == {}
        assert site.answer.cookies == []


def test_ck_16_a_client_that_sent_no_cookie_is_sent_none():
    site, token, _ = dead_and_bad_tokens()
    for action in (
        dict,
        lambda session: session.revoke(),
        lambda session: session.clear(),
        lambda session: session.touch(),
    ):
        site.visit(action, site.another_browser())
        assert site.answer.cookies == []
    site.visit(lambda session: None, HTTP_COOKIE=f"{NAME}={token}")
    assert site.answer.cookies == []


def test_ck_16_a_childs_cookie_goes_with_its_parents():
    visitor, _ = clocked()
    site = Site(visitor, visitor.spawn("user"))
    site.visit(lambda *sessions: [session.update(a=1) for session in sessions])
    site.visit(lambda visitor, user: visitor.revoke())
    assert [line.partition("=")[0] for line in site.answer.cookies] == [NAME, "__Host-user"]
    assert site.browser.jar.cookies() == []


# -- RQ-1 to RQ-4, RQ-7: our scan of the Cookie header -----------------------------------------------

SCANNED = "sid"
bits = st.sampled_from(
    [
        "sid", "sid=", "sid=x", "=", ";", "; ", " ", "\t", '"', ",", "\\", "%", "a=b", "SID=y", "sidx=1", "xsid=2",
        "$Path",
        "é", "\n", "\xa0", "s", "id",
    ]
)  # fmt: skip
headers = st.one_of(st.lists(bits, max_size=14).map("".join), st.text(), st.text('sid=; \t"x', max_size=30))


def scan(header: str, name: str = SCANNED) -> list[str]:
    return cookie_values(name=name, header=header)


def transcribed(header: str, name: str = SCANNED) -> list[str]:
    """Split a Cookie header as 6265bis does a Set-Cookie: pairs by ``;``, the first ``=``, blanks trimmed."""
    pairs = [pair.partition("=") for pair in header.split(";")]
    return [value.strip(" \t") for key, equals, value in pairs if equals and key.strip(" \t") == name]


@settings(deadline=None, max_examples=500)
@given(headers)
def test_rq_1_the_scan_is_that_of_6265bis(header):
    assert scan(header) == transcribed(header)[:MOST_DUPLICATES]


well_formed = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(["sid", "SID", "sidx", "id"]), st.text(TOKEN_LETTERS, min_size=1, max_size=5)),
        st.text(COOKIE_OCTETS, max_size=6),
    ),
    max_size=7,
)  # fmt: skip


@quick
@given(well_formed)
def test_rq_1_on_well_formed_headers_werkzeug_finds_the_same(pairs):
    header = "; ".join(f"{name}={value}" for name, value in pairs)
    assert scan(header) == parse_cookie(header).getlist(SCANNED)


@quick
@given(headers.filter(lambda junk: not transcribed(junk)), st.text(COOKIE_OCTETS, min_size=1))
def test_rq_1_no_neighbour_hides_our_cookie(junk, value):
    for header in (f"{junk}; sid={value}", f"sid={value}; {junk}", f"{junk};sid={value};{junk}"):
        assert scan(header) == [value]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("sid=x", ["x"]), ("sid=", [""]), ("sid", []), ("", []), (";", []), ("=", []), ("=x", []), ("==", []),
        ("  sid  =  x  ", ["x"]), ("\tsid\t=\tx\t", ["x"]), ("sid==x=", ["=x="]), ("a=1;sid=x;b=2", ["x"]),
        ("a; sid=x; b", ["x"]), ("sid=x; Y\n", ["x"]), ("sid=x;;;", ["x"]), ("\n sid=x", []), ("\xa0sid=x", []),
        ("sid=x y", ["x y"]), ("asid=1; sid=2; sidb=3", ["2"]), ("sid-=1; sid=2", ["2"]), ("a=sid=3", []),
        ("a=sid; sid=3", ["3"]), ("Sid=1; SID=2", []), ("sid=1; sid=2", ["1", "2"]), ("sid=1; sid=1", ["1", "1"]),
        ("sid;sid=1", ["1"]), ("sid =1;sid= 2", ["1", "2"]), ("x sid=1", []), ("sid x=1", []), ("$sid=1; sid=2", ["2"]),
    ],
)  # fmt: skip
def test_rq_1_a_pair_ends_at_a_semicolon_and_nowhere_else(header, expected):
    assert scan(header) == expected


@pytest.mark.parametrize(
    "header", ["=__Host-sid=bad", "; =__Host-sid=bad", " = __Host-sid=bad", "==__Host-sid=bad", "a==__Host-sid=bad"]
)
def test_rq_2_a_pair_without_name_is_never_split_again(header):
    assert scan(header, "__Host-sid") == []
    assert scan(f"{header}; __Host-sid=good", "__Host-sid") == ["good"]


@pytest.mark.parametrize(
    "name",
    [
        "%5F_Host-sid",
        '"__Host-sid"',
        "__Host%2Dsid",
        "__Host-sid%20",
        "__Host-sid\0",
        "\\_\\_Host-sid",
        "__HOST-sid",
        "_\u200b_Host-sid",
        "\uff3f_Host-sid",
        "__Host-s\u0131d",
    ],
)
def test_rq_3_names_are_not_decoded(name):
    assert scan(f"{name}=bad", "__Host-sid") == []


@pytest.mark.parametrize("value", ['"x"', "%78", "x%3B", "\\x", '"x', "x\\073"])
def test_rq_3_values_are_not_decoded(value):
    assert scan(f"a=1; sid={value}; b=2") == [value]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('a="b; sid=evil; c=d"', ["evil"]),
        ('a="b; sid=good', ["good"]),
        ('a="; sid=good; b="', ["good"]),
        ('sid="x; y"', ['"x']),
        ('a="\\"; sid=good', ["good"]),
        ("a='b; sid=good; c'", ["good"]),
        ("a={b; sid=good; c}", ["good"]),
    ],
)
def test_rq_4_a_quote_swallows_no_semicolon(header, expected):
    """A neighbour that can write any value can add a pair of our name; then it is a duplicate, see RQ-5."""
    assert scan(header) == expected


class Counted(str):
    """A str that counts how many of its characters were looked at."""

    __slots__ = ("looks",)

    def find(self, sub, start=0, *end):
        place = super().find(sub, start, *end)
        self.looks += (place if place >= 0 else len(self)) - start + 1
        return place

    def __getitem__(self, key):
        part = super().__getitem__(key)
        self.looks += len(part) + 1
        return part


def looks(header: str) -> int:
    counted = Counted(header)
    counted.looks = 0
    scan(counted)
    return counted.looks


PATTERNS = [
    "a=;",
    "\\",
    "sid",
    "sid ",
    "sid=;",
    "; ",
    " ",
    "\t",
    ";sid",
    " sid",
    'a="',
    "sid;",
    "sid =",
    "x sid ",
    "=",
    "sid\t \t",
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=ascii)
@pytest.mark.parametrize("shape", ["{}", "{}sid=x", "sid{}=x", "sid=x{}", "a=1;{}; sid=x", "a=1;{}sid{}=x"])
def test_rq_7_the_scan_is_linear(pattern, shape):
    costs = []
    for size in (900, 1800, 3600):
        filler = (pattern * size)[:size]
        costs.append(looks(shape.replace("{}", filler)))
    assert costs[1] <= 2.2 * costs[0] + 50
    assert costs[2] <= 2.2 * costs[1] + 50


def test_rq_7_a_header_above_16_kib_counts_as_empty():
    cookie = "; sid=x"
    fits = "a" * (LARGEST_HEADER - len(cookie)) + cookie
    assert LARGEST_HEADER == 16_384
    assert scan(fits) == ["x"]
    assert scan("a" + fits) == []


def test_rq_7_no_more_than_eight_values_are_looked_at():
    assert scan("sid=x; " * 500) == ["x"] * 8


def test_rq_7_a_value_longer_than_any_token_is_refused_before_it_is_decoded(monkeypatch):
    decoded = []
    monkeypatch.setattr("sessiontree.handlers.codec.decode", lambda text: decoded.append(text) or b"")
    site = Site(clocked()[0])
    token_start = site.handler.codec.current
    assert site.visit(dict, HTTP_COOKIE=f"{NAME}={token_start}{'A' * 4096}") == {}
    assert decoded == []


# -- RQ-5, RQ-6, RQ-9, RQ-10, RQ-11: whole requests ---------------------------------------------------


def two_tokens(*options):
    """Return a site, its events, and the tokens of two live sessions of it."""
    events = []
    handler, _ = clocked("visitor", with_events(events.append), *options)
    site = Site(handler)
    found = []
    for number in (1, 2):
        browser = site.another_browser()
        site.visit(lambda session, number=number: session.update(a=number), browser)
        found.append(browser.jar.cookies()[0].value)
    events.clear()
    return site, events, found


@pytest.mark.parametrize("name", [NAME, "__Host-Http-visitor"])
def test_rq_5_a_host_cookie_that_is_there_twice_is_an_attack(name):
    site, events, (one, other) = two_tokens(with_cookie(CookiePolicy(name=name)))
    for values in (
        [one, other],
        [one, one],
        [one, "junk"],
        ["junk", one],
        [one, ""],
        ["", one],
        ["junk", "junk"],
        [one] * 20,
    ):
        events.clear()
        header = "; ".join(f"{name}={value}" for value in values)
        assert site.visit(dict, HTTP_COOKIE=header) == {}
        assert site.answer.cookies == []
        assert {event.kind for event in events} == {"duplicate", "refused"}


@pytest.mark.parametrize("name", ["__Secure-visitor", "visitor", "__Http-visitor"])
def test_rq_5_elsewhere_the_one_that_verifies_counts_and_two_that_do_refuse_all(name):
    site, events, (one, other) = two_tokens(with_cookie(CookiePolicy(name=name)))
    for values in ([one, "junk"], ["junk", one], [one, one], ["", one, "x"], [one, one[:-4]]):
        header = "; ".join(f"{name}={value}" for value in values)
        assert site.visit(dict, HTTP_COOKIE=header) == {"a": 1}, values
        assert events == []
    for values in ([one, other], [other, one], [one, "junk", other], ["junk", "more"]):
        events.clear()
        header = "; ".join(f"{name}={value}" for value in values)
        assert site.visit(dict, HTTP_COOKIE=header) == {}, values
        assert site.answer.cookies == []
        assert {event.kind for event in events} == {"duplicate", "refused"}


def test_rq_5_no_event_tells_a_token():
    site, events, (one, other) = two_tokens()
    site.visit(dict, HTTP_COOKIE=f"{NAME}={one}; {NAME}={other}")
    assert events
    assert one not in repr(events)
    assert other not in repr(events)


@pytest.mark.parametrize("joint", ["; ", ";", ", ", ",", " ; ", ";\t"])
def test_rq_6_joined_cookie_headers_never_give_another_session(joint):
    """Servers join two headers with ``; `` or with a comma; the comma may cost the session, never confuse it."""
    site, _, (one, other) = two_tokens()
    for header in (f"a=1{joint}{NAME}={one}", f"{NAME}={one}{joint}b=2"):
        found = site.visit(dict, HTTP_COOKIE=header)
        assert found in ([{"a": 1}] if ";" in joint else [{"a": 1}, {}])
        assert site.answer.cookies == []
    assert site.visit(dict, HTTP_COOKIE=f"{NAME}={one}{joint}{NAME}={other}") == {}


def test_rq_9_a_token_is_taken_from_the_cookie_only():
    site, _, (one, _) = two_tokens()
    body = f"{NAME}={one}&visitor={one}&sid={one}".encode()
    for place in (
        {"QUERY_STRING": f"{NAME}={one}&visitor={one}"},
        {"path": f"/{one}"},
        {"path": f"/page;{NAME}={one}"},
        {"method": "POST", "body": body},
        {"HTTP_X_SESSION": one},
        {"HTTP_AUTHORIZATION": f"Bearer {one}"},
        {"HTTP_COOKIE2": f"{NAME}={one}"},
        {"HTTP_SET_COOKIE": f"{NAME}={one}"},
        {"HTTP_REFERER": f"https://example.org/?{NAME}={one}"},
        {"REMOTE_USER": one},
    ):
        site.action = dict
        answer = site.another_browser().request(**place)
        assert site.result == {}, place
        assert answer.cookies == []
    assert site.visit(dict, HTTP_COOKIE=f"{NAME}={one}") == {"a": 1}


def test_rq_10_a_session_whose_cookie_was_pushed_out_is_anonymous():
    """180 cookies per host is all that browsers keep; a neighbour can fill them."""
    site = Site(clocked()[0])
    written(site)
    jar = site.browser.jar
    for number in range(170):
        jar.store(f"bomb{number}=x; Secure")
    assert site.visit(dict) == {"a": 1}
    for number in range(170, 190):
        jar.store(f"bomb{number}=x; Secure")
    assert site.visit(dict) == {}
    assert site.answer.code == 200
    assert site.answer.cookies == []


def test_rq_10_a_handler_has_one_cookie_however_often_it_is_written():
    visitor, _ = clocked()
    site = Site(visitor, visitor.spawn("user"))
    for number in range(5):
        site.visit(lambda *sessions, number=number: [session.update({str(number): number}) for session in sessions])
        assert len(site.answer.cookies) == 2
    assert len(site.browser.jar.cookies()) == 2


@pytest.mark.parametrize("filler", [";" * 20_000, "a=" + "b" * 17_000, "a=b; " * 4000])
def test_rq_10_a_header_of_any_size_is_an_anonymous_request(filler):
    site, _, (one, _) = two_tokens()
    assert site.visit(dict, HTTP_COOKIE=f"{filler}; {NAME}={one}") == {}
    assert site.answer.code == 200
    assert site.answer.cookies == []


@pytest.mark.parametrize("code", range(0x80, 0x100))
def test_rq_11_a_value_with_an_octet_beyond_ascii_is_refused(code):
    site, _, (one, _) = two_tokens()
    letter = chr(code)
    for value in (one + letter, letter + one, one[:30] + letter + one[31:], one[:30] + letter + one[30:]):
        assert site.visit(dict, HTTP_COOKIE=f"{NAME}={value}") == {}
    assert site.visit(dict, HTTP_COOKIE=f"{letter}={letter}; {NAME}={one}; x={letter}") == {"a": 1}
