"""The public cookie jar: what a browser keeps, sends back, replaces and forgets (RFC 6265bis 5.6 to 5.8).

And the store that fails when a test says so.
"""

import string
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessiontree import StoreCorrupt, StoreUnavailable, UsageError
from sessiontree.records import Changes, Json, Record
from sessiontree.stores import Store
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import CookieJar, FakeClock, FaultyStore, StoredCookie

quick = settings(deadline=None, max_examples=100)

NOW = 1_893_456_000


def date(seconds: float) -> str:
    """Return the moment so many seconds from now, as it stands in Expires."""
    return f"{datetime.fromtimestamp(NOW + seconds, UTC):%a, %d %b %Y %H:%M:%S} GMT"


@pytest.fixture
def clock():
    return FakeClock(NOW)


@pytest.fixture
def jar(clock):
    return CookieJar(clock)


# -- the pair -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("a=b", "a", "b"), (" a = b ", "a", "b"), ("\ta\t=\tb\t", "a", "b"), ("a=", "a", ""), ("a=b=c", "a", "b=c"),
        ("=b", "", "b"), ("b", "", "b"), ('a="b"', "a", '"b"'), ("a=b c", "a", "b c"), ("a=b;", "a", "b"),
        ("a=b; nonsense; x=y", "a", "b"), ("a=é", "a", "é"), ("a=b,c", "a", "b,c"), ("a\tb=c", "a\tb", "c"),
    ],
)  # fmt: skip
def test_a_line_is_a_pair_up_to_the_first_semicolon(jar, line, name, value):
    assert jar.store(line)
    [cookie] = jar.cookies()
    assert (cookie.name, cookie.value) == (name, value)
    assert jar.header() == (f"{name}={value}" if name else value)
    assert jar.get(name) == value


@pytest.mark.parametrize("line", ["", ";", " ; Path=/", "=", " = ", "; a=b"])
def test_a_line_without_name_and_value_is_ignored(jar, line):
    assert not jar.store(line)
    assert jar.cookies() == []


@pytest.mark.parametrize("code", [*range(9), *range(10, 32), 127])
def test_a_control_character_anywhere_ignores_the_line(jar, code):
    for line in ("a{}=b", "a=b{}", "a=b; Path=/{}", "{}a=b"):
        assert not jar.store(line.format(chr(code)))
    assert jar.store("a=b; Path=/\tx")


@pytest.mark.parametrize(
    ("name", "value"), [("n" * 10, "v" * 4086), ("n" * 4096, ""), ("", "v" * 4096), ("n", "é" * 2047 + "v")]
)
def test_4096_octets_of_name_and_value_are_kept_and_one_more_is_not(jar, name, value):
    assert jar.store(f"{name}={value}")
    assert not CookieJar(FakeClock(NOW)).store(f"{name}={value}v")


def test_the_attributes_do_not_count(jar):
    assert jar.store(f"a={'v' * 4095}; Path=/{'p' * 1000}; Secure; HttpOnly; Max-Age=5")


def test_an_attribute_above_1024_octets_is_ignored_and_the_cookie_kept(jar):
    assert jar.store(f"a=b; Path=/{'p' * 1023}")
    assert jar.store(f"c=d; Path=/{'p' * 1024}")
    assert [len(cookie.path) for cookie in jar.cookies()] == [1024, 1]


# -- attributes -----------------------------------------------------------------------------------


def test_attribute_names_have_no_case(jar):
    assert jar.store("a=b; PATH=/x; secURE; httponly; samesite=STRICT; PARTITIONED; max-AGE=5")
    [cookie] = jar.cookies()
    assert cookie == StoredCookie(
        "a", "b", "example.org", path="/x", secure=True, http_only=True, same_site="Strict", partitioned=True,
        expires=NOW * 1000 + 5000, created=NOW * 1000, order=cookie.order,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "same_site"),
    [("Lax", "Lax"), ("lax", "Lax"), ("STRICT", "Strict"), ("none", "None"), ("", "Default"), ("Sometimes", "Default")],
)
def test_same_site_is_one_of_three_or_the_default(jar, text, same_site):
    jar.store(f"a=b; Secure; SameSite={text}")
    assert jar.cookies()[0].same_site == same_site


@pytest.mark.parametrize(
    ("attribute", "kept"),
    [
        ("Max-Age=5", 5), ("Max-Age=1", 1), ("Max-Age=34560000", 34_560_000), ("Max-Age=34560001", 34_560_000),
        ("Max-Age=" + "9" * 1000, 34_560_000), ("Max-Age=0005", 5),
        ("Max-Age=", None), ("Max-Age=+5", None), ("Max-Age=5.0", None), ("Max-Age=5s", None), ("Max-Age=x", None),
        ("Max-Age=-", None), ("Max-Age=\u0665", None), ("Max-Age", None), ("Max-Age=1e3", None), ("Max-Age=0x5", None),
        (f"Expires={date(60)}", 60), (f"Expires={date(34_560_000)}", 34_560_000),
        (f"Expires={date(40_000_000)}", 34_560_000),
        ("Expires=", None), ("Expires=soon", None), ("Expires", None), ("Expires=Fri, 99 Foo 2030", None),
        (f"Max-Age=5; Expires={date(60)}", 5), (f"Expires={date(60)}; Max-Age=5", 5),
        (f"Expires={date(-60)}; Max-Age=5", 5),
        (f"Max-Age=x; Expires={date(60)}", 60), (f"Expires={date(60)}; Max-Age=x", 60),
    ],
)  # fmt: skip
def test_max_age_wins_over_expires_and_both_end_at_400_days(jar, attribute, kept):
    assert jar.store(f"a=b; {attribute}")
    [cookie] = jar.cookies()
    assert cookie.expires == (None if kept is None else (NOW + kept) * 1000)


@pytest.mark.parametrize(
    "attribute",
    [
        "Max-Age=0",
        "Max-Age=-1",
        "Max-Age=-99999999999999999999",
        f"Expires={date(0)}",
        f"Expires={date(-1)}",
        "Expires=Thu, 01 Jan 1970 00:00:00 GMT",
        f"Max-Age=0; Expires={date(60)}",
    ],
)
def test_what_has_expired_is_not_kept_and_removes_what_was(jar, attribute):
    assert not jar.store(f"a=b; {attribute}")
    jar.store("a=old")
    jar.store("other=x")
    assert not jar.store(f"a=b; {attribute}")
    assert jar.header() == "other=x"


@pytest.mark.parametrize(
    "text",
    [
        "Tue, 01 Jan 2030 00:01:00 GMT",
        "Tuesday, 01-Jan-30 00:01:00 GMT",
        "Tue Jan  1 00:01:00 2030",
        "01 Jan 2030 00:01:00",
        "Tue, 01-Jan-2030 00:01:00 GMT",
    ],
)
def test_expires_is_utc_in_all_the_forms_that_http_knows(jar, text, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        jar.store(f"a=b; Expires={text}")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert jar.cookies()[0].expires == (NOW + 60) * 1000


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("Path=/a; Path=/b", {"path": "/b"}),
        ("Path=/a; Path=b", {"path": "/"}),
        ("Max-Age=5; Max-Age=7", {"expires": (NOW + 7) * 1000}),
        (f"Expires={date(5)}; Expires={date(7)}", {"expires": (NOW + 7) * 1000}),
        ("SameSite=Lax; SameSite=Strict", {"same_site": "Strict"}),
        ("SameSite=Lax; SameSite=x", {"same_site": "Default"}),
        ("Domain=example.org; Domain=www.example.org", {"domain": "www.example.org"}),
        ("Domain=evil.example; Domain=example.org", {"domain": "example.org"}),
    ],
)
def test_of_two_attributes_of_one_name_the_last_counts(jar, attributes, expected):
    assert jar.store(f"a=b; {attributes}", host="www.example.org")
    [cookie] = jar.cookies()
    assert {name: getattr(cookie, name) for name in expected} == expected


# -- domain and path ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "domain", "kept"),
    [
        ("example.org", "example.org", True), ("www.example.org", "example.org", True),
        ("www.example.org", ".example.org", True),
        ("WWW.Example.ORG", "EXAMPLE.org", True), ("example.org", "www.example.org", False),
        ("example.org", "xample.org", False),
        ("badexample.org", "example.org", False), ("example.org", "example.com", False),
        ("example.org.evil.example", "example.org", False),
    ],
)  # fmt: skip
def test_a_cookie_is_for_the_own_domain_or_one_above(jar, host, domain, kept):
    assert jar.store(f"a=b; Domain={domain}", host=host) is kept
    assert bool(jar.header(host)) is kept


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        ("example.org", True),
        ("www.example.org", True),
        ("a.b.example.org", True),
        ("org", False),
        ("xexample.org", False),
        ("EXAMPLE.ORG", True),
    ],
)
def test_a_domain_cookie_goes_to_the_domain_and_all_below(jar, host, sent):
    jar.store("a=b; Domain=example.org")
    assert jar.header(host) == ("a=b" if sent else "")


@pytest.mark.parametrize("host", ["www.example.org", "org", "xexample.org"])
def test_a_host_only_cookie_goes_to_that_host_only(jar, host):
    jar.store("a=b")
    assert jar.header() == "a=b"
    assert jar.header(host) == ""
    jar.store("c=d; Domain=")
    assert jar.header(host) == ""


@pytest.mark.parametrize("domain", ["0.0.1", "1", ".0.0.1"])
def test_an_address_has_no_domain_above_it(jar, domain):
    assert not jar.store(f"a=b; Domain={domain}", host="127.0.0.1")
    assert jar.store("a=b; Domain=127.0.0.1", host="127.0.0.1")


@pytest.mark.parametrize(
    ("path", "request_path", "sent"),
    [
        ("/", "/", True), ("/", "/a/b", True), ("/app", "/app", True), ("/app", "/app/", True),
        ("/app", "/app/x", True),
        ("/app", "/application", False), ("/app", "/", False), ("/app/", "/app/", True), ("/app/", "/app/x", True),
        ("/app/", "/app", False), ("/App", "/app", False), ("/a/b", "/a", False),
    ],
)  # fmt: skip
def test_a_cookie_goes_to_its_path_and_all_below(jar, path, request_path, sent):
    jar.store(f"a=b; Path={path}")
    assert bool(jar.header(path=request_path)) is sent


@pytest.mark.parametrize(
    ("request_path", "path"),
    [("/", "/"), ("/a", "/"), ("/a/", "/a"), ("/a/b", "/a"), ("/a/b/c", "/a/b"), ("", "/"), ("a/b", "/"), ("//", "/")],
)
@pytest.mark.parametrize("attribute", ["", "; Path", "; Path=", "; Path=x"])
def test_without_a_path_the_folder_of_the_request_counts(jar, request_path, path, attribute):
    jar.store(f"a=b{attribute}", path=request_path)
    assert jar.cookies()[0].path == path


# -- security -------------------------------------------------------------------------------------


def test_a_secure_cookie_is_neither_set_nor_sent_over_plain_http(jar):
    assert not jar.store("a=b; Secure", secure=False)
    assert jar.store("a=b; Secure")
    assert jar.header(secure=False) == ""
    assert jar.header() == "a=b"


@pytest.mark.parametrize("attribute", ["SameSite=None", "Partitioned", "SameSite=None; Partitioned"])
def test_same_site_none_and_partitioned_need_secure(jar, attribute):
    assert not jar.store(f"a=b; {attribute}")
    assert jar.store(f"a=b; Secure; {attribute}")


@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
@pytest.mark.parametrize(
    ("prefix", "attributes", "kept"),
    [
        ("__Secure-", "Secure", True), ("__Secure-", "", False),
        ("__Secure-", "Secure; Domain=example.org; Path=/x", True),
        ("__Host-", "Secure; Path=/", True), ("__Host-", "Path=/", False), ("__Host-", "Secure; Path=/x", False),
        ("__Host-", "Secure; Path=/; Domain=example.org", False), ("__Host-", "Secure; Path=/; HttpOnly", True),
        ("__Http-", "Secure; HttpOnly", True), ("__Http-", "Secure", False), ("__Http-", "HttpOnly", False),
        ("__Host-Http-", "Secure; Path=/; HttpOnly", True), ("__Host-Http-", "Secure; Path=/", False),
        ("__Host-Http-", "Secure; HttpOnly; Path=/x", False), ("__Hostess-", "", True), ("_Host-", "", True),
    ],
)  # fmt: skip
def test_a_prefix_is_kept_with_what_it_promises_only_and_counts_without_case(jar, spell, prefix, attributes, kept):
    assert jar.store(f"{spell(prefix)}a=b; {attributes}") is kept


@pytest.mark.parametrize("value", ["__Host-a", "__Secure-a", "__host-a=b", "__Http-a"])
def test_a_cookie_without_name_cannot_pretend_to_have_a_prefix(jar, value):
    assert not jar.store(f"={value}; Secure; Path=/; HttpOnly")
    assert not jar.store(f"={value}")


@pytest.mark.parametrize(
    ("old", "new", "host", "kept"),
    [
        ("a=secret; Secure; Path=/", "a=evil; Path=/", "example.org", False),
        ("a=secret; Secure; Path=/", "a=evil; Path=/login", "example.org", False),
        ("a=secret; Secure; Path=/login", "a=evil; Path=/login/en", "example.org", False),
        ("a=secret; Secure; Path=/login", "a=fine; Path=/", "example.org", True),
        ("a=secret; Secure; Path=/login", "a=fine; Path=/other", "example.org", True),
        ("a=secret; Secure; Domain=example.org; Path=/", "a=evil; Path=/", "www.example.org", False),
        ("a=secret; Secure; Path=/", "a=evil; Domain=example.org; Path=/", "www.example.org", False),
        ("a=secret; Secure; Path=/", "b=fine; Path=/", "example.org", True),
        ("a=old; Path=/", "a=new; Path=/", "example.org", True),
    ],
)
def test_plain_http_never_overlays_a_secure_cookie(jar, old, new, host, kept):
    """The old one is of example.org; the new one of this host, whose domain may lie above or below."""
    assert jar.store(old)
    assert jar.store(new, host=host, secure=False) is kept


def test_plain_http_cannot_delete_a_secure_cookie(jar):
    jar.store("a=secret; Secure; Path=/")
    jar.store("a=; Max-Age=0; Path=/", secure=False)
    assert jar.header() == "a=secret"


def test_plain_http_may_set_over_a_secure_cookie_of_a_domain_above_its_sibling(jar):
    jar.store("a=secret; Secure", host="one.example.org")
    assert jar.store("a=fine", host="other.example.org", secure=False)


def test_a_secure_cookie_at_a_domain_below_is_not_overlaid_from_above(jar):
    """Domains match in either direction (6265bis 5.7 step 16)."""
    jar.store("a=secret; Secure; Path=/", host="www.example.org")
    assert not jar.store("a=evil; Path=/; Domain=example.org", host="example.org", secure=False)


# -- keeping, replacing, forgetting ---------------------------------------------------------------


def test_a_cookie_of_one_name_domain_and_path_is_one_cookie(jar, clock):
    jar.store("a=1; Path=/")
    created = jar.cookies()[0].created
    clock.advance(5)
    jar.store("a=2; Path=/")
    [cookie] = jar.cookies()
    assert (cookie.value, cookie.created) == ("2", created)


@pytest.mark.parametrize("other", ["a=2; Path=/x", "a=2; Domain=example.org", "A=2", "b=2"])
def test_another_name_path_or_domain_is_another_cookie(jar, other):
    jar.store("a=1; Path=/")
    jar.store(other)
    assert len(jar.cookies()) == 2


def test_a_deletion_with_another_path_or_domain_deletes_nothing(jar):
    jar.store("a=1; Path=/app; Domain=example.org", path="/app")
    for line in (
        "a=; Path=/; Domain=example.org; Max-Age=0",
        "a=; Path=/app; Max-Age=0",
        "A=; Path=/app; Domain=example.org; Max-Age=0",
    ):
        jar.store(line)
        assert jar.get("a") == "1"
    jar.store("a=; Path=/app; Domain=example.org; Max-Age=0")
    assert jar.cookies() == []


def test_a_cookie_ends_at_its_deadline(jar, clock):
    jar.store("a=b; Max-Age=60")
    clock.advance(59.999)
    assert jar.header() == "a=b"
    clock.advance(0.001)
    assert jar.header() == ""
    assert jar.cookies() == []
    assert jar.get("a") is None


def test_closing_the_browser_forgets_what_has_no_deadline(jar):
    jar.store("a=b")
    jar.store("c=d; Max-Age=60")
    jar.close_browser()
    assert jar.header() == "c=d"


def test_longer_paths_come_first_then_older_cookies(jar, clock):
    for name, path in [("a", "/"), ("b", "/x/y"), ("c", "/x"), ("d", "/"), ("e", "/x/y")]:
        jar.store(f"{name}=1; Path={path}")
        clock.advance(1)
    jar.store("a=2; Path=/")
    assert jar.header(path="/x/y/z") == "b=1; e=1; c=1; a=2; d=1"


def test_cookies_set_in_one_moment_keep_their_order(jar):
    for name in "cab":
        jar.store(f"{name}=1")
    assert jar.header() == "c=1; a=1; b=1"


def test_beyond_180_cookies_of_a_host_the_oldest_goes(jar):
    for number in range(180):
        assert jar.store(f"c{number}=x; Secure")
    assert jar.get("c0") == "x"
    jar.store("more=x; Secure")
    assert len(jar.cookies()) == 180
    assert jar.get("c0") is None
    assert jar.get("c1") == "x"


def test_other_hosts_have_their_own_180(jar):
    jar.store("mine=x")
    for number in range(200):
        jar.store(f"c{number}=x", host="other.example")
    assert jar.get("mine") == "x"
    assert len(jar.cookies()) == 181


def test_what_has_expired_goes_before_what_lives(jar, clock):
    for number in range(170):
        jar.store(f"c{number}=x; Secure")
    for number in range(10):
        jar.store(f"short{number}=x; Secure; Max-Age=1")
    clock.advance(1)
    for number in range(10):
        jar.store(f"new{number}=x; Secure")
    assert jar.get("c0") == "x"


def test_what_is_not_secure_goes_before_what_is(jar):
    """A flood from plain http does not push the session out (6265bis 5.7)."""
    jar.store("session=x; Secure")
    for number in range(200):
        jar.store(f"c{number}=x", secure=False)
    assert jar.get("session") == "x"


def test_a_jar_reads_the_system_clock_by_default():
    jar = CookieJar()
    assert jar.store("a=b; Max-Age=60")
    assert timedelta(0) < timedelta(milliseconds=jar.cookies()[0].expires) - timedelta(seconds=NOW - 10**9)


# -- whatever comes -------------------------------------------------------------------------------

attribute = st.one_of(
    st.sampled_from(
        ["Secure", "HttpOnly", "Partitioned", "Path=/", "Path=/a", "Domain=example.org", "Domain=evil.example"]
    ),
    st.sampled_from(["SameSite=None", "SameSite=Lax", "Max-Age=5", "Max-Age=0", f"Expires={date(60)}", "Expires=x"]),
    st.text(max_size=12),
    st.text(string.digits + ": -,GMTJanMon", max_size=30).map("Expires={}".format),
    st.text(string.digits + "-+.e", max_size=30).map("Max-Age={}".format),
)
lines = st.one_of(st.text(), st.lists(attribute, max_size=5).map(lambda parts: "; ".join(["a=b", *parts])))


@quick
@given(lines, st.sampled_from(["example.org", "www.example.org", "127.0.0.1", ""]), st.text(max_size=8), st.booleans())
def test_no_line_is_an_exception_and_what_is_kept_is_sent(line, host, path, secure):
    jar = CookieJar(FakeClock(NOW))
    kept = jar.store(line, host=host, path=path, secure=secure)
    assert kept == bool(jar.cookies())
    for cookie in jar.cookies():
        assert cookie.path.startswith("/")
        sent = jar.header(host=host, path=cookie.path, secure=secure or cookie.secure)
        assert cookie.value in sent
        assert jar.header(host="other.example", path=cookie.path) == ""
        assert cookie.expires is None or NOW * 1000 < cookie.expires <= (NOW + 34_560_000) * 1000


# -- a store that fails ---------------------------------------------------------------------------

FAR = 1 << 60
ONE = Changes(sets={"a": (Json(b"1"), 0)})


@pytest.fixture
def inner(clock):
    store = MemoryStore(clock=clock)
    store.create(Record("h", "user", 0, FAR, FAR, FAR, b"p", 0, labels='{"subject":"bob"}'))
    return store


@pytest.fixture
def faulty(inner):
    return FaultyStore(inner)


VERBS = {
    "load": lambda store: store.load("h", ["a"]),
    "load_many": lambda store: store.load_many(["h"]),
    "create": lambda store: store.create(Record("new", "user", 0, FAR, FAR, FAR, b"p", 0)),
    "apply": lambda store: store.apply("h", b"p", ONE),
    "find": lambda store: store.find("subject", "bob", None, 5),
    "count": lambda store: store.count("subject", "bob", "eve"),
    "relabel": lambda store: store.relabel("subject", "bob", "eve"),
    "scan": lambda store: store.scan(None, 5),
    "sweep": lambda store: store.sweep(5),
    "sweep_idle": lambda store: store.sweep_idle(5, 6),
    "revoke": lambda store: store.revoke("h"),
    "revoke_where": lambda store: store.revoke_where("subject", "eve"),
}


def test_without_faults_every_call_goes_through(faulty, inner, clock):
    twin = MemoryStore(clock=clock)
    twin.create(inner.load("h"))
    for verb, call in VERBS.items():
        assert call(faulty) == call(twin), verb
    assert [verb for verb, _ in faulty.calls] == list(VERBS)
    assert [argument for _, argument in faulty.calls][:2] == ["h", ["h"]]
    assert isinstance(faulty, Store)
    assert (faulty.clock, faulty.largest, faulty.inner) == (clock, inner.largest, inner)
    heard = []
    stop = faulty.watch(heard.append)
    faulty.revoke("another")
    stop()
    assert isinstance(heard, list)


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_that_fails_does_not_reach_the_store(faulty, inner, verb):
    faulty.fail(verb=verb)
    before = (len(inner), inner.load("h"))
    with pytest.raises(StoreUnavailable):
        VERBS[verb](faulty)
    assert (len(inner), inner.load("h")) == before
    VERBS[verb](faulty)
    assert [called for called, _ in faulty.calls] == [verb] * 2


OPTIONAL = {
    "apply_many": lambda store: store.apply_many([("h", b"p", ONE)]),
    "reload": lambda store: store.reload("h"),
    "confirm": lambda store: store.confirm(),
}


class Able(MemoryStore):
    """Has every verb that a store may have."""

    def apply_many(self, writes):
        return [self.apply(*write) for write in writes]

    def reload(self, handle):
        return self.load(handle)

    def confirm(self):
        pass


@pytest.mark.parametrize("verb", OPTIONAL)
def test_an_optional_verb_is_there_if_the_store_has_it_and_fails_as_others_do(faulty, inner, verb, clock):
    able = FaultyStore(Able(clock=clock))
    able.inner.create(inner.load("h"))
    able.fail(verb=verb)
    with pytest.raises(StoreUnavailable):
        OPTIONAL[verb](able)
    assert able.inner.load("h").version == 1
    assert OPTIONAL[verb](able) == {"apply_many": [2], "reload": inner.load("h"), "confirm": None}[verb]
    assert [called for called, _ in able.calls] == [verb] * 2
    assert not hasattr(faulty, verb)
    with pytest.raises(ValueError, match="no verb"):
        faulty.fail(verb=verb)


def test_the_nth_call_from_now_fails_once(faulty):
    faulty.load("h")
    faulty.fail(3)
    faulty.load("h")
    faulty.count("subject", "bob")
    with pytest.raises(StoreUnavailable):
        faulty.load("h")
    assert faulty.load("h") is not None


def test_the_nth_call_of_one_verb_fails_with_the_error_given(faulty):
    error = StoreCorrupt("torn")
    faulty.fail(2, error, verb="load")
    for _ in range(3):
        faulty.count("subject", "bob")
    faulty.load("h")
    with pytest.raises(StoreCorrupt) as raised:
        faulty.load("h")
    assert raised.value is error


def test_a_lost_answer_is_an_error_after_the_work(faulty, inner):
    faulty.fail_after(1, verb="revoke")
    with pytest.raises(StoreUnavailable):
        faulty.revoke("h")
    assert inner.load("h") is None
    assert faulty.revoke("h") is False


def test_several_faults_wait_side_by_side(faulty):
    for call in (1, 3):
        faulty.fail(call)
    outcomes = []
    for _ in range(4):
        try:
            outcomes.append(faulty.count("subject", "bob"))
        except StoreUnavailable:
            outcomes.append(None)
    assert outcomes == [None, 1, None, 1]


def test_a_delay_waits_or_calls_before_the_work(faulty, inner):
    seen = []
    faulty.delay(1, lambda: seen.append(inner.load("h").version))
    assert faulty.apply("h", b"p", ONE) == 2
    assert seen == [1]
    faulty.delay(1, 0.002)
    begun = time.perf_counter()
    faulty.load("h")
    assert time.perf_counter() - begun >= 0.002


def test_a_delayed_call_holds_up_no_other(faulty):
    entered, go = threading.Event(), threading.Event()
    faulty.delay(1, lambda: entered.set() or go.wait(10), verb="load")
    slow = threading.Thread(target=faulty.load, args=("h",))
    slow.start()
    assert entered.wait(10)
    assert faulty.load("h") is not None
    go.set()
    slow.join(10)
    assert not slow.is_alive()


@pytest.mark.parametrize(
    ("verb", "records"),
    [
        ("load", lambda store: [store.load("h")]), ("load_many", lambda store: list(store.load_many(["h"]).values())),
        ("find", lambda store: store.find("subject", "bob").records), ("scan", lambda store: store.scan().records),
    ],
)  # fmt: skip
def test_a_corrupt_answer_has_fields_that_cannot_be_read(faulty, verb, records):
    faulty.corrupt(2, verb)
    assert records(faulty)[0].contents(0) == {}
    with pytest.raises(ValueError, match="."):  # noqa: RUF043 - whatever it says
        records(faulty)[0].contents(0)
    assert records(faulty)[0].contents(0) == {}


def test_nothing_is_not_corrupted(faulty):
    faulty.corrupt()
    assert faulty.load("missing") is None


def test_down_fails_every_call_until_up(faulty):
    faulty.down()
    for call in VERBS.values():
        with pytest.raises(StoreUnavailable):
            call(faulty)
    faulty.up()
    assert faulty.load("h").version == 1
    faulty.down(StoreCorrupt("torn"))
    with pytest.raises(StoreCorrupt):
        faulty.load("h")


def test_close_fails_only_if_it_is_named(faulty):
    faulty.fail(1, verb="close")
    faulty.fail(1)
    faulty.down()
    with pytest.raises(StoreUnavailable):
        faulty.close()
    faulty.close()
    faulty.up()
    with pytest.raises(StoreUnavailable):
        faulty.load("h")
    with pytest.raises(UsageError):
        faulty.load("h")


@pytest.mark.parametrize(
    "plan", [lambda f: f.fail(0), lambda f: f.fail(-1), lambda f: f.fail(1, verb="save"), lambda f: f.corrupt(verb="x")]
)
def test_a_fault_that_could_never_happen_is_refused(faulty, plan):
    with pytest.raises(ValueError, match=r"number 1|no verb"):
        plan(faulty)


def test_threads_count_each_call_once(faulty):
    for call in range(1, 41):
        faulty.fail(call)
    failed = []

    def load():
        for _ in range(10):
            try:
                faulty.load("h")
            except StoreUnavailable:
                failed.append(1)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(failed), len(faulty.calls)) == (40, 80)
