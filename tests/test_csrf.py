"""Csrf: state-changing requests need a token of the very session they come with."""

import base64
from urllib.parse import urlencode

import pytest
from support import OTHER_SECRET, SECRET, Browser, clocked, environ, plain_app, run

from sessiontree import ConfigError, Csrf, Handler, ParentInvalid, chain, with_clock


class Shop:
    """A page that gives out tokens and counts the changes that got through."""

    def __init__(self):
        self.visitor, self.clock = clocked("visitor")
        self.csrf = Csrf(self.visitor)
        self.changes = []
        self.app = chain(self.visitor, self.csrf)(plain_app(self.page))
        self.browser = Browser(self.app, self.clock)

    def page(self, request):
        if request["REQUEST_METHOD"] in {"GET", "HEAD", "OPTIONS", "TRACE"}:
            return self.csrf.token(request)
        size = int(request.get("CONTENT_LENGTH") or 0)
        self.changes.append(request["wsgi.input"].read(size))
        return "changed"

    def token(self, browser=None):
        return (browser or self.browser).get().text.strip("'")

    def post(self, token=None, browser=None, body=b"", **more):
        if token is not None and "HTTP_X_CSRF_TOKEN" not in more and not body:
            body = urlencode({"a": "1", "csrf_token": token}).encode()
        before = len(self.changes)
        answer = (browser or self.browser).request(method=more.pop("method", "POST"), body=body, **more)
        assert (len(self.changes) > before) == (answer.code == 200)
        return answer.code


@pytest.fixture
def shop():
    return Shop()


def test_a_form_with_the_token_passes_and_the_application_reads_its_body(shop):
    token = shop.token()
    assert shop.post(token) == 200
    assert shop.changes == [urlencode({"a": "1", "csrf_token": token}).encode()]


def test_a_script_sends_the_token_in_a_header(shop):
    token = shop.token()
    assert shop.post(HTTP_X_CSRF_TOKEN=token) == 200
    assert shop.post(HTTP_X_CSRF_TOKEN=token, body=b"{}", CONTENT_TYPE="application/json") == 200
    assert shop.changes[1] == b"{}"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_without_a_token_every_changing_method_is_403(shop, method):
    shop.token()
    assert shop.post(method=method) == 403


@pytest.mark.parametrize("method", ["BREW", "post", "get", ""])
def test_an_unknown_method_counts_as_changing(shop, method):
    shop.token()
    assert run(shop.app, environ(method=method, HTTP_COOKIE=shop.browser.jar.header()), validate=False).code == 403


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
def test_safe_methods_pass(shop, method):
    assert shop.browser.request(method=method).code == 200


def test_a_post_without_a_session_is_403_and_begins_none(shop):
    answer = shop.browser.request(method="POST")
    assert (answer.code, answer.cookies, answer.get("Cache-Control")) == (403, [], "no-store")
    assert answer.body == b"403 Forbidden\n"


def test_cs_1_tokens_differ_every_time_and_all_stay_good(shop):
    tokens = [shop.token() for _ in range(5)]
    assert len(set(tokens)) == 5
    assert [shop.post(token) for token in tokens] == [200] * 5


def test_cs_1_a_token_fits_its_own_session_only(shop):
    other = Browser(shop.app, shop.clock)
    theirs = shop.token(other)
    shop.token()
    assert shop.post(theirs) == 403
    assert shop.post(theirs, browser=other) == 200


def test_cs_1_a_token_dies_when_the_session_is_renewed(shop):
    token = shop.token()
    request = environ(HTTP_COOKIE=shop.browser.jar.header())
    shop.visitor.session(request).renew()
    for _, value in request["sessiontree"].commit():
        shop.browser.jar.store(value)
    assert shop.post(token) == 403
    assert shop.post(shop.token()) == 200


def test_cs_1_a_copy_in_a_cookie_counts_for_nothing(shop):
    token = shop.token()
    shop.browser.jar.store(f"csrf_token={token}; Secure; Path=/")
    shop.browser.jar.store(f"X-CSRF-Token={token}; Secure; Path=/")
    assert shop.post() == 403


def test_cs_1_a_token_of_another_handler_or_secret_is_refused(shop):
    shop.token()
    for other in (
        Handler("other", SECRET, with_clock(shop.clock)),
        Handler("visitor", OTHER_SECRET, with_clock(shop.clock)),
        shop.visitor.spawn("user"),
    ):
        request = environ(HTTP_COOKIE=shop.browser.jar.header())
        shop.visitor.session(request).touch()
        foreign = Csrf(other).token(request) if other.parent is None and other.name != "visitor" else "x"
        assert shop.post(foreign) == 403


def test_cs_2_no_token_can_be_planted_or_derived(shop):
    """A masked token is nonce and MAC: without the key no other nonce can be given its MAC."""
    name, _, text = shop.token().partition(".")
    raw = bytearray(base64.urlsafe_b64decode(text))
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1
        assert shop.post(f"{name}.{base64.urlsafe_b64encode(changed).decode()}") == 403
    assert shop.post("my own token") == 403


@pytest.mark.parametrize(
    "junk",
    ["", ".", "x.y", "ü", "\N{SNOWMAN}.AAAA", "a" * 10_000, "%00", "=", "v1..", "AAAA." + "A" * 64, "\r\n"],
)
def test_junk_tokens_are_403(shop, junk):
    name = shop.token().partition(".")[0]
    assert shop.post(junk or " ") == 403
    assert shop.post(f"{name}.{junk}") == 403
    if junk.isascii():
        assert shop.post(HTTP_X_CSRF_TOKEN=junk) == 403


def test_a_rolled_key_still_verifies_its_tokens():
    old, new = bytes(range(40)), bytes(range(100, 140))
    visitor, clock = Handler("visitor", [old]), None
    page = {}

    def act(request):
        if request["REQUEST_METHOD"] == "GET":
            page["token"] = Csrf(visitor).token(request)

    browser = Browser(chain(visitor, Csrf(visitor))(plain_app(act)), clock)
    browser.get()
    rolled = Handler("visitor", [new, old])
    after = Browser(chain(rolled, Csrf(rolled))(plain_app(lambda r: None)), clock)
    after.jar = browser.jar
    assert after.request(method="POST", HTTP_X_CSRF_TOKEN=page["token"]).code == 200


@pytest.mark.parametrize(("size", "code"), [(64 * 1024, 200), (64 * 1024 + 1, 403)])
def test_a_form_is_read_up_to_64_kib(shop, size, code):
    token = shop.token()
    head = urlencode({"csrf_token": token}).encode() + b"&pad="
    assert shop.post(body=head + b"x" * (size - len(head))) == code


@pytest.mark.parametrize("length", ["", "-1", "abc", "999999999999999999999", "1.5"])
def test_a_senseless_content_length_is_403(shop, length):
    shop.token()
    request = environ(method="POST", HTTP_COOKIE=shop.browser.jar.header(), CONTENT_LENGTH=length)
    request["CONTENT_TYPE"] = "application/x-www-form-urlencoded"
    assert run(shop.app, request, validate=False).code == 403


def test_multipart_needs_the_header(shop):
    token = shop.token()
    body = f'--x\r\nContent-Disposition: form-data; name="csrf_token"\r\n\r\n{token}\r\n--x--'.encode()
    kind = "multipart/form-data; boundary=x"
    assert shop.post(body=body, CONTENT_TYPE=kind) == 403
    assert shop.post(body=body, CONTENT_TYPE=kind, HTTP_X_CSRF_TOKEN=token) == 200
    assert shop.changes == [body]


def test_the_header_wins_over_the_field(shop):
    token = shop.token()
    body = urlencode({"csrf_token": token}).encode()
    assert shop.post(body=body, HTTP_X_CSRF_TOKEN="wrong") == 403


def test_a_token_of_a_child_needs_its_parent():
    visitor, clock = clocked("visitor")
    user = visitor.spawn("user", with_clock(clock))
    csrf = Csrf(user)

    def act(request):
        with pytest.raises(ParentInvalid):
            csrf.token(request)
        visitor.generate(request)
        return csrf.token(request)

    answer = Browser(chain(visitor, user, csrf)(plain_app(act))).get()
    assert len(answer.cookies) == 2


def test_csrf_takes_a_handler():
    with pytest.raises(ConfigError):
        Csrf("visitor")
