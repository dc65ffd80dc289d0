"""The link and the commit as a WSGI server sees them: PEP 3333, failures, streaming, headers of caches."""

import gc
import io
import signal
import sys
from wsgiref.util import FileWrapper

import pytest
from support import SECRET, Browser, Site, clocked, environ, plain_app, run

from sessiontree import (
    ConfigError,
    CookieTooLarge,
    Csrf,
    Enforcer,
    Handler,
    HeadersSent,
    SessionGone,
    StoreUnavailable,
    UsageError,
    chain,
    with_cookie,
    with_encryption,
    with_events,
    with_header,
    with_serializer,
)
from sessiontree.handlers.cookie import CookiePolicy

OK = [("Content-Type", "text/plain")]


def visitor_of(app_of, *options):
    """Return a browser before an application that is made of its handler."""
    handler, clock = clocked("visitor", *options)
    return Browser(handler.link(app_of(handler)), clock), handler


class Closing:
    """A body that remembers whether it was closed."""

    def __init__(self, *chunks):
        self.chunks, self.closed = iter(chunks), 0

    def __iter__(self):
        return self.chunks

    def close(self):
        self.closed += 1


# -- WS-1: every shape of application ------------------------------------------------------------------


def listing(h):
    def app(request, start_response):
        h.session(request).incr("n")
        start_response("200 OK", list(OK))
        return [b"body"]

    return app


def generator(h):
    def app(request, start_response):
        h.session(request).incr("n")
        start_response("200 OK", list(OK))
        yield b"bo"
        yield b"dy"

    return app


def writer(h):
    def app(request, start_response):
        h.session(request).incr("n")
        start_response("200 OK", list(OK))(b"bo")
        return [b"dy"]

    return app


def object_(h):
    class App:
        def __init__(self, request, start_response):
            h.session(request).incr("n")
            start_response("200 OK", list(OK))

        def __iter__(self):
            return iter([b"bo", b"dy"])

    return App


def late_start(h):
    def app(request, start_response):
        def body():
            h.session(request).incr("n")
            start_response("200 OK", list(OK))
            yield b"body"

        return body()

    return app


@pytest.mark.parametrize("app_of", [listing, generator, writer, object_, late_start])
def test_ws_1_every_shape_of_application_gets_its_session(app_of):
    browser, handler = visitor_of(app_of)
    for expected in (1, 2, 3):
        answer = browser.get()
        assert answer.body == b"body"
        assert len(answer.cookies) == 1
        assert handler.session(environ(HTTP_COOKIE=browser.jar.header()))["n"] == expected


def test_ws_1_an_empty_body_and_head_requests_work():
    browser, _ = visitor_of(lambda h: plain_app(lambda r: h.session(r).incr("n")))
    assert len(browser.request(method="HEAD").cookies) == 1

    def empty(h):
        def app(request, start_response):
            h.session(request).incr("n")
            start_response("204 No Content", [])
            return []

        return app

    browser, _ = visitor_of(empty)
    assert len(browser.get().cookies) == 1


def test_ws_1_close_is_called_exactly_once_even_after_a_failure():
    def failing():
        yield b"a"
        raise RuntimeError

    for chunks in ((b"a",), failing()):
        body = Closing(*chunks) if isinstance(chunks, tuple) else Closing()
        if not isinstance(chunks, tuple):
            body.chunks = chunks

        def app_of(h, body=body):
            def app(request, start_response):
                start_response("200 OK", list(OK))
                return body

            return app

        browser, _ = visitor_of(app_of)
        try:
            browser.get()
        except RuntimeError:
            assert not isinstance(chunks, tuple)
        assert body.closed == 1


def test_ws_1_headers_are_native_latin_1_strings():
    browser, _ = visitor_of(listing)
    for name, value in browser.get().headers:
        assert type(name) is type(value) is str
        value.encode("latin-1")


def test_the_servers_own_file_wrapper_is_passed_through():
    wrapper = FileWrapper(io.BytesIO(b"file"))

    def app_of(h):
        def app(request, start_response):
            h.session(request).incr("n")
            start_response("200 OK", list(OK))
            return wrapper

        return app

    handler, _ = clocked()
    request = environ(**{"wsgi.file_wrapper": FileWrapper})
    started = []
    body = handler.link(app_of(handler))(request, lambda *head: started.append(head))
    assert body is wrapper
    assert len(started[0][1]) == 4


def test_the_applications_own_list_of_headers_is_left_alone():
    shared = [("Content-Type", "text/plain"), ("Cache-Control", "public")]

    def app_of(h):
        def app(request, start_response):
            h.session(request).incr("n")
            start_response("200 OK", shared)
            return [b""]

        return app

    browser, _ = visitor_of(app_of)
    browser.get()
    assert shared == [("Content-Type", "text/plain"), ("Cache-Control", "public")]


def test_an_environ_that_is_used_twice_is_two_requests():
    handler, _ = clocked()
    app = handler.link(listing(handler))
    request = environ()
    assert [len(run(app, request, validate=False).cookies) for _ in range(2)] == [1, 1]


# -- WS-2: what survives a failure -----------------------------------------------------------------------


@pytest.mark.parametrize("status", ["200 OK", "302 Found", "404 Not Found", "500 Oops", "503 Later"])
def test_ws_2_a_5xx_drops_the_data_and_keeps_endings_and_renewals(status):
    failed = status[0] == "5"
    s = Site(clocked()[0])
    s.visit(lambda session: session.update(n=1))
    s.status = status
    s.visit(lambda session: session.update(n=2))
    assert bool(s.answer.cookies) is not failed
    s.status = "200 OK"
    assert s.visit(lambda session: session["n"]) == (1 if failed else 2)
    before = s.visit(lambda session: session.id)
    s.status = status
    s.visit(lambda session: (session.renew(), session.update(n=3)))
    s.status = "200 OK"
    assert s.visit(lambda session: (session["n"], session.id != before)) == (1 if failed else 3, True)
    s.status = status
    s.visit(lambda session: session.revoke())
    assert s.browser.jar.cookies() == []


def test_ws_2_a_session_begun_in_a_failed_request_is_not_sent():
    s = Site(clocked()[0])
    s.status = "500 Oops"
    s.visit(lambda session: (session.update(n=1), session.renew()))
    assert s.answer.cookies == []


def test_ws_2_an_exception_that_escapes_saves_nothing_and_renews_nothing():
    def app_of(h):
        def app(request, start_response):
            h.session(request)["n"] = 1
            h.session(request).renew()
            raise LookupError

        return app

    browser, _ = visitor_of(app_of)
    with pytest.raises(LookupError):
        browser.get()


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [("200 OK", "500 Oops", False), ("200 OK", "404 Not Found", True), ("500 Oops", "200 OK", True)],
)
def test_a_second_start_response_commits_what_fits_its_status(first, second, kept):
    def app_of(h):
        def app(request, start_response):
            h.session(request)["n"] = 1
            start_response(first, list(OK))
            try:
                raise ValueError  # noqa: TRY301 - this is what an application's error handler sees
            except ValueError:
                start_response(second, list(OK), sys.exc_info())
            return [b""]

        return app

    browser, _ = visitor_of(app_of)
    answer = browser.get()
    assert (answer.status, bool(answer.cookies), answer.get("Vary")) == (second, kept, "Cookie")


def test_a_second_start_response_repeats_renewals_and_revocations():
    def app_of(h):
        def app(request, start_response):
            session = h.session(request)
            if request["PATH_INFO"] == "/begin":
                session["n"] = 1
            elif request["PATH_INFO"] == "/renew":
                session.renew()
                session["n"] = 2
            else:
                session.revoke()
            start_response("200 OK", list(OK))
            if request["PATH_INFO"] != "/begin":
                try:
                    raise ValueError  # noqa: TRY301
                except ValueError:
                    start_response("500 Oops", list(OK), sys.exc_info())
            return [b""]

        return app

    browser, handler = visitor_of(app_of)
    browser.get("/begin")
    before = handler.load(environ(HTTP_COOKIE=browser.jar.header())).id
    browser.get("/renew")
    after = handler.load(environ(HTTP_COOKIE=browser.jar.header()))
    assert (after["n"], after.id != before) == (1, True)
    assert "Max-Age=0" in browser.get("/end").cookies[0]


# -- WS-3: too late --------------------------------------------------------------------------------------


def test_ws_3_a_write_after_the_headers_is_refused():
    def app_of(h):
        def app(request, start_response):
            session = h.session(request)
            session["n"] = 1
            start_response("200 OK", list(OK))
            yield b"a"
            for late in (
                lambda: session.update(n=2), session.revoke, session.renew, lambda: session.flash("x"),
                lambda: session.bind("u"), lambda: h.generate(request), session.clear,
            ):  # fmt: skip
                with pytest.raises(HeadersSent):
                    late()
            yield b"b"

        return app

    browser, handler = visitor_of(app_of)
    assert browser.get().body == b"ab"
    assert handler.load(environ(HTTP_COOKIE=browser.jar.header()))["n"] == 1


def test_a_first_look_after_the_headers_works_and_is_an_event():
    events = []

    def app_of(h):
        def app(request, start_response):
            if request["PATH_INFO"] == "/write":
                h.session(request)["n"] = 1
            start_response("200 OK", list(OK))
            yield repr(h.session(request).get("n")).encode()

        return app

    browser, _ = visitor_of(app_of, with_events(events.append))
    browser.get("/write")
    answer = browser.get()
    assert (answer.body, answer.get("Vary")) == (b"1", None)
    assert [event.kind for event in events] == ["created", "late"]


# -- what we answer ourselves ----------------------------------------------------------------------------


class Failing:
    """A serializer behind which something does not answer."""

    error: Exception = StoreUnavailable("down")

    def dumps(self, value):
        raise self.error

    def loads(self, data):
        raise self.error


def lists(h, act):
    def app(request, start_response):
        act(h.session(request))
        start_response("200 OK", list(OK))
        return [b"never"]

    return app


def generates(h, act):
    def app(request, start_response):
        act(h.session(request))
        start_response("200 OK", list(OK))
        yield b"never"

    return app


def starts_first(h, act):
    def app(request, start_response):
        start_response("200 OK", list(OK))
        act(h.session(request))
        yield b"never"

    return app


def gone(session):
    raise SessionGone("gone meanwhile")


@pytest.mark.parametrize("shape", [lists, generates, starts_first])
def test_session_gone_that_escapes_is_a_clean_409_without_a_cookie(shape):
    browser, _ = visitor_of(lambda h: shape(h, gone))
    answer = browser.get()
    assert (answer.code, answer.cookies, answer.get("Cache-Control")) == (409, [], "no-store")
    assert answer.body == b"409 Conflict\n"


@pytest.mark.parametrize("shape", [lists, generates])
def test_a_commit_that_fails_is_a_clean_503_even_in_a_generator(shape):
    class AtCommit(Failing):
        def dumps(self, value):
            if isinstance(value, dict):
                raise self.error
            return b"0"

    browser, _ = visitor_of(lambda h: shape(h, lambda session: session.update(n=1)), with_serializer(AtCommit()))
    answer = browser.get()
    assert (answer.code, answer.cookies, answer.get("Retry-After")) == (503, [], "5")
    gone_at_commit = AtCommit()
    gone_at_commit.error = SessionGone("gone")
    browser, _ = visitor_of(lambda h: shape(h, lambda session: session.update(n=1)), with_serializer(gone_at_commit))
    answer = browser.get()
    assert (answer.code, answer.cookies, answer.body) == (409, [], b"409 Conflict\n")


def test_an_outage_in_the_application_is_503_and_a_head_request_gets_no_body():
    def down(session):
        raise StoreUnavailable("down")

    browser, _ = visitor_of(lambda h: lists(h, down))
    answer = browser.request(method="HEAD")
    assert (answer.code, answer.body) == (503, b"")


def test_a_failure_after_the_first_byte_is_the_servers_to_handle():
    def app_of(h):
        def app(request, start_response):
            start_response("200 OK", list(OK))
            yield b"some"
            raise SessionGone("too late")

        return app

    browser, _ = visitor_of(app_of)
    with pytest.raises(SessionGone):
        browser.get()


def test_a_cookie_that_is_too_large_is_raised_and_an_error_page_can_follow():
    def app_of(h):
        def app(request, start_response):
            h.session(request)["n"] = "x" * 5000
            try:
                start_response("200 OK", list(OK))
            except CookieTooLarge:
                start_response("500 Oops", list(OK), sys.exc_info())
            return [b""]

        return app

    browser, _ = visitor_of(app_of)
    answer = browser.get()
    assert (answer.code, answer.cookies) == (500, [])


def test_ws_5_a_token_whose_data_cannot_be_read_back_is_anonymous_and_an_event():
    events = []
    plain = Site(clocked()[0])
    plain.visit(lambda session: session.update(n=1))
    broken = Failing()
    broken.error = ZeroDivisionError()
    handler = plain.handler.configure(with_serializer(broken), with_events(events.append))
    assert dict(handler.session(environ(HTTP_COOKIE=plain.browser.jar.header()))) == {}
    assert [(event.kind, event.reason) for event in events] == [("refused", "BadCookie")]


# -- HC: caches --------------------------------------------------------------------------------------------


LOOKS = {
    "get": lambda s: s.get("a"), "in": lambda s: "a" in s, "len": len, "iter": list, "bool": bool,
    "eq": lambda s: s == {}, "keys": lambda s: list(s.keys()), "values": lambda s: list(s.values()),
    "items": lambda s: list(s.items()), "dict": dict, "unpack": lambda s: {**s}, "or": lambda s: s | {},
    "pop": lambda s: s.pop("a", None), "id": lambda s: s.id, "handle": lambda s: s.handle, "new": lambda s: s.new,
    "expires_in": lambda s: s.expires_in, "metadata": lambda s: s.metadata, "subject": lambda s: s.subject,
    "flashes": lambda s: s.flashes(), "fresh": lambda s: s.fresh_within(5), "touch": lambda s: s.touch(),
    "renew": lambda s: s.renew(), "revoke": lambda s: s.revoke(), "clear": lambda s: s.clear(),
    "delete": lambda s: s.delete("a"), "setdefault": lambda s: s.setdefault("a"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LOOKS))
def test_hc_1_every_look_varies_the_response_on_the_cookie(name):
    s = Site(clocked()[0])
    s.visit(LOOKS[name])
    assert s.answer.get("Vary") == "Cookie"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], "Cookie"), (["Accept"], "Accept, Cookie"), (["cookie"], "cookie"), (["*"], "*"),
        (["Accept, COOKIE"], "Accept, COOKIE"), (["Accept", "Origin"], "Accept, Origin, Cookie"), ([""], "Cookie"),
    ],
)  # fmt: skip
def test_hc_1_vary_joins_what_is_there(before, after):
    s = Site(clocked()[0])
    s.headers = [("Content-Type", "text/plain"), *(("vary", value) for value in before)]
    s.visit(len)
    assert s.answer.get("Vary") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["no-store"]), (["public, max-age=60"], ["no-store"]), (["s-maxage=5"], ["no-store"]),
        (["max-age=60"], ["no-store"]), (["private, max-age=60"], ["private, max-age=60"]),
        (["no-store"], ["no-store"]), (["Private"], ["Private"]), (["private", "public"], ["no-store"]),
    ],
)  # fmt: skip
def test_hc_2_a_response_that_sets_a_cookie_is_kept_by_no_shared_cache(before, after):
    s = Site(clocked()[0])
    s.headers = [("Content-Type", "text/plain"), *(("CACHE-CONTROL", value) for value in before)]
    s.visit(lambda session: session.update(n=1))
    assert s.answer.all("Cache-Control") == after
    s.visit(len)
    assert s.answer.all("Cache-Control") == before, "without Set-Cookie it is the application's business"


def test_hc_2_a_shared_cache_never_gives_one_clients_cookie_to_another():
    s = Site(clocked()[0])
    cache = {}

    def through_cache(browser):
        key = browser.jar.header()
        if key not in cache:
            answer = browser.get()
            control = answer.get("Cache-Control") or ""
            if "no-store" not in control and "private" not in control:
                cache[key] = answer
            return answer
        for line in cache[key].cookies:
            browser.jar.store(line)
        return cache[key]

    s.headers = [("Content-Type", "text/plain"), ("Cache-Control", "public, max-age=600")]
    s.action = lambda session: session.update(n=1)
    a, b = s.another_browser(), s.another_browser()
    through_cache(a)
    through_cache(b)
    assert a.jar.header() != b.jar.header()


def test_hc_3_an_untouched_response_is_byte_for_byte_the_applications():
    handler, _ = clocked()

    def app(request, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Cache-Control", "public")])
        return [b"static"]

    cookie = "__Host-visitor=v1.junk"
    assert run(handler.link(app), environ(HTTP_COOKIE=cookie)) == run(app, environ(HTTP_COOKIE=cookie))


# -- the header transport ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "key", "scheme"),
    [("X-Session", "HTTP_X_SESSION", ""), ("Authorization", "HTTP_AUTHORIZATION", "Bearer ")],
)
def test_tokens_travel_in_a_header_and_back(header, key, scheme):
    s = Site(clocked("visitor", with_header(header))[0])
    s.visit(lambda session: session.update(n=1))
    assert s.answer.cookies == []
    assert s.answer.get("Vary") == header
    assert s.answer.get("Cache-Control") == "no-store"
    value = s.answer.get(header)
    assert value.startswith(scheme + "v1.")
    assert s.visit(dict, **{key: value}) == {"n": 1}
    assert s.visit(dict, **{key: value.replace("Bearer", "bEARER")}) == {"n": 1}
    assert s.visit(dict, HTTP_COOKIE=f"__Host-visitor={value.removeprefix(scheme)}") == {}
    if scheme:
        assert s.visit(dict, **{key: value.removeprefix(scheme)}) == {}
    s.visit(lambda session: session.revoke(), **{key: value})
    assert s.answer.get(header) == "", "an empty header says: forget it"


def test_rq_9_no_id_is_taken_from_anywhere_else():
    s = Site(clocked()[0])
    s.visit(lambda session: session.update(n=1))
    token = s.browser.jar.get("__Host-visitor")
    elsewhere = {
        "QUERY_STRING": f"__Host-visitor={token}", "HTTP_AUTHORIZATION": f"Bearer {token}",
        "HTTP_X_SESSION": token, "HTTP_COOKIE": f"other={token}",
    }  # fmt: skip
    assert s.visit(dict, **elsewhere) == {}


# -- chains ------------------------------------------------------------------------------------------------


def test_a_chain_is_the_links_in_order_and_a_link_may_be_a_function():
    order = []

    def marking(name):
        def link(app):
            def marked(request, start_response):
                order.append(name)
                return app(request, start_response)

            return marked

        return link

    handler, _ = clocked()
    run(chain(marking("a"), handler, marking("b"))(plain_app(lambda r: handler.session(r).get("x"))), environ())
    assert order == ["a", "b"]
    with pytest.raises(ConfigError):
        chain(handler, "nonsense")


def test_handlers_that_clash_are_refused_when_the_chain_is_built():
    visitor, _ = clocked("visitor")
    user = visitor.spawn("user")
    app = plain_app(lambda request: None)

    def plain(app):
        return lambda request, start_response: app(request, start_response)

    same_cookie = Handler("other", SECRET, with_cookie(CookiePolicy(name="__Host-visitor")))
    for links, words in [
        ((visitor, visitor), "named"),
        ((visitor, visitor.configure(with_encryption())), "named"),
        ((visitor, same_cookie), "cookie name"),
        ((user, visitor), "outside its parent"),
        ((Enforcer(visitor), visitor), "outside its handler"),
        ((Csrf(visitor), visitor), "outside its handler"),
        ((Enforcer(visitor, user), visitor, user), "outside its handler"),
        ((user, plain, visitor), "outside its parent"),
        ((Enforcer(visitor), plain, visitor), "outside its handler"),
        ((visitor, plain, visitor), "named"),
        ((Handler("a", SECRET, with_header("X-S")), Handler("b", SECRET, with_header("x-s"))), "header"),
    ]:
        with pytest.raises(ConfigError, match=words):
            chain(*links)
    for outer, inner, words in [(visitor, visitor, "named"), (user, visitor, "outside its parent")]:
        with pytest.raises(ConfigError, match=words):
            chain(outer)(inner.link(app))


def test_a_link_of_somebody_elses_is_put_in_front_of_one_application_and_no_other():
    visitor, _ = clocked("visitor")
    seen = []

    def noting(app):
        seen.append(app)
        return app

    class Noting(Enforcer):
        def link(self, app):
            return noting(super().link(app))

    build = chain(visitor, noting, Noting(visitor))
    assert seen == []
    build(plain_app(lambda request: None))
    assert len(seen) == 2


@pytest.mark.parametrize("torn", ["sessiontree.handlers.context.Context", "sessiontree.handlers.looking.Looking"])
def test_a_request_that_a_signal_stops_at_its_first_look_ends_as_any_other(torn, monkeypatch):
    """A signal may come between any two steps; here it comes where a session or what sessions share is half made."""
    visitor, _ = clocked("visitor")
    user = visitor.spawn("user")
    errors = []

    def app(request, start_response):
        with monkeypatch.context() as patch:
            patch.setattr(f"{torn}.enter", lambda *_, **__: signal.raise_signal(signal.SIGINT))
            try:
                user.session(request)
            except KeyboardInterrupt as error:
                errors.append(error)
        if request["PATH_INFO"] == "/on":
            assert user.session(request).get("x") is None
            start_response("200 OK", list(OK))
            return [b"went on"]
        raise errors[0]

    linked = chain(visitor, user)(app)
    assert run(linked, environ("/on")).text == "went on"
    with pytest.raises(KeyboardInterrupt):
        run(linked, environ())
    bare = environ()
    with monkeypatch.context() as patch:
        patch.setattr(f"{torn}.enter", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            visitor.session(bare)
    assert bare["sessiontree"].commit() == []


def test_a_handler_that_is_not_linked_is_refused_and_an_equal_one_is_not():
    visitor, clock = clocked("visitor")
    other = Handler("other", SECRET)
    browser = Browser(visitor.link(plain_app(lambda request: other.session(request).get("x"))), clock)
    with pytest.raises(UsageError, match="not linked"):
        browser.get()
    changed = visitor.configure(with_encryption())
    browser = Browser(visitor.link(plain_app(lambda request: changed.session(request).get("x"))), clock)
    with pytest.raises(UsageError, match="not linked"):
        browser.get()
    equal = visitor.configure()
    browser = Browser(visitor.link(plain_app(lambda request: equal.session(request).incr("x"))), clock)
    assert len(browser.get().cookies) == 1


def test_links_that_cannot_see_each_other_share_one_registry_all_the_same():
    visitor, clock = clocked("visitor")
    user = visitor.spawn("user")
    seen = []

    def act(request):
        visitor.session(request).incr("v")
        seen.append(user.session(request).incr("u"))

    inner = user.link(plain_app(act))

    def opaque(request, start_response):
        return inner(request, start_response)

    browser = Browser(visitor.link(opaque), clock)
    assert len(browser.get().cookies) == 2
    browser.get()
    assert seen == [1, 2]


def test_chain_loads_each_session_once():
    visitor, _ = clocked("visitor")
    user = visitor.spawn("user")
    s = Site(visitor, user)
    s.visit(lambda v, u: (v.update(n=1), u.update(n=1)))
    opened = []

    class Counting:
        def __init__(self, tokens):
            self.tokens, self.current = tokens, tokens.current

        def open(self, token):
            opened.append(token)
            return self.tokens.open(token)

        def seal(self, content):
            return self.tokens.seal(content)

    for handler in (visitor, user):
        object.__setattr__(handler, "codec", Counting(handler.codec))
    app = chain(visitor, Enforcer(visitor), user)(plain_app(lambda r: (user.session(r)["n"], visitor.session(r)["n"])))
    assert run(app, environ(HTTP_COOKIE=s.browser.jar.header())).text == "(1, 1)"
    assert len(opened) == 2


def test_no_cyclic_garbage_is_left_by_a_thousand_requests():
    visitor, _ = clocked("visitor")
    user = visitor.spawn("user")
    csrf = Csrf(visitor)

    def act(request):
        path = request["PATH_INFO"]
        if path != "/untouched":
            visitor.session(request).incr("n")
            user.session(request)["items"] = [1]
            csrf.token(request)
        if path == "/logout":
            visitor.session(request).revoke()

    def streaming(request, start_response):
        act(request)
        start_response("200 OK", list(OK))
        yield b"x"

    for app in (plain_app(act), streaming):
        browser = Browser(chain(visitor, csrf, user)(app))
        browser.get("/")
        cookie = browser.jar.header()
        gc.collect()
        gc.disable()
        try:
            for number in range(1000):
                path = ("/", "/untouched", "/logout", "/junk")[number % 4]
                request = environ(path, HTTP_COOKIE="__Host-visitor=junk" if path == "/junk" else cookie)
                run(browser.app, request, validate=False)
                del request
            assert gc.collect() == 0
        finally:
            gc.enable()


def test_a_5xx_keeps_nothing_of_a_session_that_replaced_another():
    s = Site(clocked()[0])
    s.visit(lambda session: session.update(n=1))
    before = s.visit(lambda session: (session.id, session.handle))
    s.status = "500 Oops"
    s.visit(lambda session: (session.regenerate(), session.renew()))
    assert s.answer.cookies == []
    s.status = "200 OK"
    assert s.visit(lambda session: (session.id, session.handle)) == before


def test_an_outage_while_loading_leaves_the_session_unseen():
    s = Site(clocked()[0])
    s.visit(lambda session: session.update(n=1))
    request = environ(HTTP_COOKIE=s.browser.jar.header())
    tokens = s.handler.codec

    class Down:
        def open(self, token):
            raise StoreUnavailable("down")

    object.__setattr__(s.handler, "codec", Down())
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            s.handler.load(request)
    object.__setattr__(s.handler, "codec", tokens)
    assert s.handler.load(request)["n"] == 1


def test_a_look_outside_the_outermost_link_loses_nothing():
    handler, clock = clocked()
    linked = handler.link(plain_app(lambda request: handler.session(request).incr("n")))

    def outer(request, start_response):
        handler.loaded(request)
        return linked(request, start_response)

    browser = Browser(outer, clock)
    assert [browser.get().text for _ in range(3)] == ["1", "2", "3"]
    assert browser.get().get("Vary") == "Cookie"


def test_a_guard_around_its_own_handler_is_refused():
    handler, _ = clocked()
    with pytest.raises(ConfigError, match="outside its handler"):
        Enforcer(handler).guard(handler.link(plain_app(lambda request: None)))


def test_a_request_that_is_tried_again_after_an_exception_begins_afresh():
    handler, clock = clocked()
    failures = iter([True, False])

    def act(request):
        count = handler.session(request).incr("n")
        if next(failures):
            raise OSError
        return count

    linked = handler.link(plain_app(act))

    def retrying(request, start_response):
        try:
            return linked(request, start_response)
        except OSError:
            return linked(request, start_response)

    answer = Browser(retrying, clock).get()
    assert (answer.text, len(answer.cookies), answer.get("Vary")) == ("1", 1, "Cookie")


def test_two_chains_that_share_a_cookie_name_unseen_are_refused():
    a, clock = clocked("a", with_cookie(CookiePolicy(name="sid")))
    b = Handler("b", SECRET, with_cookie(CookiePolicy(name="sid")))
    inner = b.link(plain_app(lambda request: None))
    with pytest.raises(UsageError, match="both use"):
        Browser(a.link(lambda request, start_response: inner(request, start_response)), clock).get()


def test_an_application_header_of_our_name_gives_way():
    s = Site(clocked("visitor", with_header("X-Session"))[0])
    s.headers = [("Content-Type", "text/plain"), ("x-session", "theirs")]
    s.visit(lambda session: session.update(n=1))
    assert len(s.answer.all("X-Session")) == 1


def test_a_link_that_returns_no_application_is_refused():
    with pytest.raises(ConfigError, match="returned no application"):
        chain(lambda app: None)(plain_app(lambda request: None))


def test_a_registry_that_was_committed_by_hand_is_not_taken_over():
    handler, clock = clocked()
    linked = handler.link(plain_app(lambda request: handler.session(request).incr("n")))

    def outer(request, start_response):
        handler.session(request).get("n")
        request["sessiontree"].commit()
        return linked(request, start_response)

    browser = Browser(outer, clock)
    assert [browser.get().text for _ in range(2)] == ["1", "2"]


def test_a_write_after_a_commit_by_hand_that_had_something_to_say_is_refused():
    handler, clock = clocked()
    raised = []

    def act(request):
        try:
            handler.session(request)["y"] = 2
        except HeadersSent as error:
            raised.append(error)
        return dict(handler.session(request))

    linked = handler.link(plain_app(act))

    def outer(request, start_response):
        handler.session(request)["x"] = 1
        request["sessiontree"].commit()
        return linked(request, start_response)

    answer = Browser(outer, clock).get()
    assert (answer.text, len(answer.cookies), len(raised)) == ("{'x': 1}", 1, 1)
