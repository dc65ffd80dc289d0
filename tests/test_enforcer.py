"""The Enforcer: what is behind it provably does not run without the sessions it requires."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SECRET, Browser, clocked, environ, plain_app, run
from werkzeug.wrappers import Request, Response

from sessiontree import (
    ConfigError,
    Enforcer,
    Handler,
    NoCookie,
    NoSession,
    RejectedError,
    SessionError,
    StoreUnavailable,
    UsageError,
    chain,
    with_clock,
    with_id_generator,
)
from sessiontree.testing import FakeClock


class House:
    """Three handlers, a page that counts its runs, and browsers that hold chosen sessions."""

    def __init__(self):
        self.visitor, self.clock = clocked("visitor")
        self.user = self.visitor.spawn("user")
        self.admin = Handler("admin", SECRET, with_clock(self.clock))
        self.handlers = {"visitor": self.visitor, "user": self.user, "admin": self.admin}
        self.runs = 0
        self.selected = None

    def page(self, request):
        self.runs += 1
        self.selected = request.get("sessiontree.selected")
        return "SECRET"

    def behind(self, enforcer, **options):
        return chain(*self.handlers.values(), enforcer)(plain_app(self.page, **options))

    def cookies(self, *names):
        def begin(request):
            for name in names:
                self.handlers[name].session(request)["n"] = 1

        browser = Browser(chain(*self.handlers.values())(plain_app(begin)), self.clock)
        browser.get()
        return browser.jar.header()

    def ask(self, enforcer, *names, app=None, **more):
        before = self.runs
        answer = run(app or self.behind(enforcer), environ(HTTP_COOKIE=self.cookies(*names), **more))
        assert (self.runs > before) == (answer.code == 200)
        assert (b"SECRET" in answer.body) == (answer.code == 200)
        return answer


@pytest.fixture
def house():
    return House()


def test_all_sessions_are_required(house):
    enforcer = Enforcer(house.visitor, house.user)
    assert house.ask(enforcer, "visitor", "user").code == 200
    assert house.ask(enforcer, "visitor").code == 401
    assert house.ask(enforcer).code == 401


def test_a_refusal_says_nothing_but_no(house):
    answers = [
        house.ask(Enforcer(house.user)),
        house.ask(Enforcer(house.user), "visitor"),
        run(house.behind(Enforcer(house.user)), environ(HTTP_COOKIE="__Host-user=v1.forged")),
    ]
    for answer in answers:
        assert answer.status == "401 Unauthorized"
        assert answer.get("WWW-Authenticate") == 'Session realm="user"'
        assert answer.get("Cache-Control") == "no-store"
        assert answer.get("Vary") == "Cookie"
        assert answer.cookies == []
    assert len({(answer.body, tuple(answer.headers)) for answer in answers}) == 1


def test_a_session_begun_in_this_request_is_not_enough(house):
    def beginning(app):
        def begin(request, start_response):
            house.visitor.session(request)["n"] = 1
            return app(request, start_response)

        return begin

    app = chain(house.visitor, beginning, Enforcer(house.visitor))(plain_app(house.page))
    assert run(app, environ()).code == 401
    assert house.runs == 0


def test_an_expired_session_is_refused_and_its_cookie_deleted(house):
    cookie = house.cookies("admin")
    house.clock.advance(31 * 86_400)
    answer = run(house.behind(Enforcer(house.admin)), environ(HTTP_COOKIE=cookie))
    assert (answer.code, house.runs) == (401, 0)
    assert "Max-Age=0" in answer.cookies[0]


@given(st.sets(st.sampled_from(["visitor", "user", "admin"])))
@settings(max_examples=20, deadline=None)
def test_modes_agree_with_their_definition(names):
    house = House()
    held = names if "visitor" in names else names - {"user"}
    sessions = [house.user, house.admin]
    live = [name for name in ("user", "admin") if name in held]
    expected = {
        Enforcer(*sessions): len(live) == 2,
        Enforcer.any_of(*sessions): len(live) >= 1,
        Enforcer.one_of(*sessions): len(live) == 1,
        Enforcer.highest(*sessions): len(live) >= 1,
    }
    for enforcer, passes in expected.items():
        assert (house.ask(enforcer, *sorted(held, reverse=True)).code == 200) is passes


def test_highest_selects_the_first_live_handler(house):
    enforcer = Enforcer.highest(house.admin, house.user, house.visitor)
    for names, chosen in [
        (("visitor",), house.visitor), (("visitor", "user"), house.user),
        (("visitor", "user", "admin"), house.admin), (("admin",), house.admin),
    ]:  # fmt: skip
        assert house.ask(enforcer, *names).code == 200
        assert house.selected is chosen


def test_guard_protects_a_wsgi_application(house):
    guarded = Enforcer(house.user).guard(plain_app(house.page))
    app = chain(house.visitor, house.user)(guarded)
    assert house.ask(None, "visitor", "user", app=app).code == 200
    assert house.ask(None, "visitor", app=app).code == 401


def test_guard_protects_a_view(house):
    @Enforcer(house.user).guard
    def view(request, name, *, greeting):
        """Greet."""
        house.runs += 1
        return Response(f"{greeting} {name} SECRET")

    assert view.__doc__ == "Greet."

    @Request.application
    def application(request):
        return view(request, "bob", greeting="hello")

    app = chain(house.visitor, house.user)(application)
    assert house.ask(None, "visitor", "user", app=app).text == "hello bob SECRET"
    refused = house.ask(None, "visitor", app=app)
    assert (refused.code, refused.get("Cache-Control")) == (401, "no-store")
    assert refused.get("WWW-Authenticate") == 'Session realm="user"'
    with pytest.raises(UsageError):
        view()


def test_on_refusal_answers_in_your_words(house):
    seen = []

    def login_page(request, error):
        seen.append((type(request), request.path, error))
        return Response("please log in", 403, {"X-Why": type(error).__name__})

    enforcer = Enforcer(house.user, on_refusal=login_page)
    answer = house.ask(enforcer, "visitor")
    assert (answer.code, answer.text, answer.get("X-Why")) == (403, "please log in", "NoCookie")
    assert issubclass(seen[0][0], Request)
    assert isinstance(seen[0][2], NoCookie)
    assert house.ask(enforcer, "visitor", "user").code == 200
    guarded = chain(house.visitor, house.user)(enforcer.guard(plain_app(house.page)))
    assert house.ask(None, "visitor", app=guarded).text == "please log in"


def test_an_outage_is_503_and_never_401(house):
    def down():
        raise StoreUnavailable("down")

    class Down:
        current = "v1."

        def open(self, token):
            raise StoreUnavailable("down")

    object.__setattr__(house.admin, "codec", Down())
    for enforcer in (
        Enforcer(house.admin),
        Enforcer.one_of(house.admin, house.user),
        Enforcer.highest(house.admin, house.user),
    ):
        answer = run(house.behind(enforcer), environ(HTTP_COOKIE=house.cookies("visitor", "user") + "; __Host-admin=x"))
        assert (answer.code, answer.get("Retry-After"), house.runs) == (503, "5", 0)
    either = Enforcer.any_of(house.admin, house.user)
    cookie = house.cookies("visitor", "user") + "; __Host-admin=x"
    assert run(house.behind(either), environ(HTTP_COOKIE=cookie)).code == 200
    assert run(house.behind(either), environ(HTTP_COOKIE="__Host-admin=x")).code == 503


def test_one_of_refuses_two(house):
    errors = []
    enforcer = Enforcer.one_of(
        house.admin, house.user, on_refusal=lambda request, error: errors.append(error) or Response("", 401)
    )
    assert house.ask(enforcer, "visitor", "user", "admin").code == 401
    assert isinstance(errors[0], NoSession)


@pytest.mark.parametrize(
    "build",
    [
        Enforcer, lambda: Enforcer("visitor"), lambda: Enforcer.any_of(), lambda: Enforcer(None),
        lambda: Enforcer(Handler("a", SECRET), on_refusal="page"), lambda: Enforcer(Handler("a", SECRET), mode="some"),
    ],
)  # fmt: skip
def test_a_wrong_enforcer_is_refused_when_it_is_built(build):
    with pytest.raises(ConfigError):
        build()


def test_every_refusal_is_a_session_error():
    assert issubclass(RejectedError, SessionError)
    handler = Handler("a", SECRET, with_clock(FakeClock()), with_id_generator(lambda: "x"))
    with pytest.raises(RejectedError):
        handler.load(environ())
