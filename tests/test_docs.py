"""Every example of the pages that promise so runs, in their order, and does what the page says."""

import re
import sys
from pathlib import Path
from types import ModuleType
from urllib.parse import urlencode

import pytest
from django.conf import settings as django_settings
from django.test import override_settings
from django.urls import path
from engines import opened
from support import OTHER_SECRET, SECRET, Browser, Site, environ, plain_app, run

from sessiontree import (
    BadSession,
    ConfigError,
    Handler,
    NoSession,
    SessionGone,
    chain,
    server_only,
    with_encryption,
    with_store,
)
from sessiontree.clock import SystemClock
from sessiontree.stores import open_store
from sessiontree.testing import FakeClock, FaultyStore

ROOT = Path(__file__).resolve().parents[1]
DAY = 86_400


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def carried_out(page, scope):
    """Run a page's examples one after the other, and return what they have defined at its end."""
    for block in blocks_of(page):
        exec(compile(block, page, "exec"), scope)  # noqa: S102 - it is our own
    return scope


@pytest.fixture
def clock(monkeypatch):
    """The machine's clock, which a test moves."""
    clock = FakeClock()
    monkeypatch.setattr(SystemClock, "now", lambda _: clock.now())
    return clock


def post(browser, path, **form):
    return browser.request(path, "POST", urlencode(form).encode() or b"nothing=")


def get(browser, path):
    return browser.get(path)


# -- docs/tree.md -----------------------------------------------------------------------------


@pytest.fixture
def tree(clock):
    return carried_out("docs/tree.md", {})


@pytest.fixture
def client(tree, clock):
    """A function that returns a new browser on the page's views."""

    def view(request, start_response):
        name = request["PATH_INFO"].strip("/")
        if name == "write":
            tree["visitor"].session(request)["cart"] = ["tea"]
            tree["user"].session(request)["seen"] = True  # A session that is live before anybody has logged in.
        views = {"write": plain_app(lambda _: "written"), "cart": plain_app(lambda _: cart(request))}
        return (views.get(name) or tree[name])(request, start_response)

    def cart(request):
        return tree["visitor"].session(request).get("cart"), tree["member"].session(request).subject

    names = ("visitor", "user", "sudo", "member", "strict", "trip")
    site = chain(*(tree[name] for name in names))(view)
    return lambda: Browser(site, clock)


def test_step_up_opens_the_administration_and_logout_takes_it_along(client):
    browser = client()
    assert get(browser, "/admin").code == 401
    assert post(browser, "/login", name="ann").code == 303
    assert get(browser, "/admin").code == 401
    post(browser, "/confirm")
    assert get(browser, "/admin").text == "administration, 600 s left"
    assert post(browser, "/change_address").text == "changed"
    post(browser, "/logout")
    assert get(browser, "/admin").code == 401
    assert post(browser, "/change_address").code == 401


@pytest.mark.parametrize("login", ["/login", "/remembered_login"])
def test_a_login_needs_no_earlier_visit_and_one_that_ended_meanwhile_is_no_hindrance(client, clock, login):
    browser = client()
    assert post(browser, login, name="ann").code == 303
    clock.advance(31 * DAY)
    assert post(browser, login, name="ann").code == 303
    assert get(browser, "/cart").code == 200
    browser = client()
    get(browser, "/write")
    clock.advance(31 * DAY)
    assert post(browser, login, name="ann").code == 303


def test_a_login_keeps_what_the_visitor_had_and_refuses_the_id_of_before(client):
    browser = client()
    get(browser, "/write")
    before = browser.jar.header()
    assert post(browser, "/login", name="ann").code == 303
    assert get(browser, "/cart").text == "(['tea'], None)"
    assert get(client(), "/cart").text == client().get("/cart", HTTP_COOKIE=before).text == "(None, None)"


def test_a_login_form_that_is_sent_twice_at_once_logs_in_twice(client):
    browser = client()
    get(browser, "/write")
    before = browser.jar.header()
    assert post(browser, "/login", name="ann").code == 303
    assert browser.request("/login", "POST", b"name=ann", HTTP_COOKIE=before).code == 303
    assert get(browser, "/devices").code == 200
    assert get(browser, "/cart").text == "(None, None)"


def test_a_login_is_remembered_by_every_level_or_ends_with_the_browser(client, clock):
    for form, remembered in (({}, "None"), ({"remember": "on"}, "'ann'")):
        browser = client()
        post(browser, "/remembered_login", name="ann", **form)
        assert get(browser, "/cart").text == "(None, 'ann')"
        browser.jar.close_browser()
        clock.advance(13 * DAY)
        assert get(browser, "/cart").text == f"(None, {remembered})"
        clock.advance(2 * DAY)
        assert get(browser, "/cart").text == "(None, None)"


def test_a_visitor_of_long_standing_is_remembered_as_long_and_keeps_what_it_had(client, clock):
    browser = client()
    get(browser, "/write")
    clock.advance(25 * DAY)
    assert get(browser, "/cart").text == "(['tea'], None)"
    post(browser, "/remembered_login", name="ann", remember="on")
    clock.advance(13 * DAY)
    assert get(browser, "/cart").text == "(['tea'], 'ann')"


def test_devices_are_listed_and_ended(client, tree):
    browsers = [client() for _ in range(2)]
    for browser in browsers:
        post(browser, "/login", name="bob")
    here, there = browsers
    lines = get(here, "/devices").text.splitlines()
    assert [line.endswith("(this device)") for line in lines] == [False, True]
    handle = tree["user"].sessions("bob")[0].handle
    post(here, "/end_device", handle=handle)
    assert get(there, "/devices").code == 401
    post(there, "/login", name="bob")
    post(here, "/end_others")
    assert get(there, "/devices").code == 401
    assert len(get(here, "/devices").text.splitlines()) == 1


def test_a_session_of_nobody_lists_and_ends_nothing(client, tree):
    victim, nobody = client(), client()
    post(victim, "/login", name="ann")
    get(nobody, "/write")
    [info] = tree["user"].sessions("ann")
    for answer in (
        post(nobody, "/end_device", handle=info.handle),
        post(nobody, "/end_others"),
        get(nobody, "/devices"),
    ):
        assert (answer.code, answer.get("Location")) == (303, "/login")
    assert get(victim, "/devices").code == 200


def test_a_second_login_is_refused_where_one_is_the_limit(client):
    assert post(client(), "/strict_login", name="cleo").code == 303
    refused = post(client(), "/strict_login", name="cleo")
    assert (refused.code, refused.text[:27]) == (409, "You are logged in elsewhere")


def test_who_closed_the_browser_is_let_in_again_where_one_login_is_the_limit(client, clock):
    browser = client()
    assert post(browser, "/strict_login", name="cleo").code == 303
    browser.jar.close_browser()
    assert post(browser, "/strict_login", name="cleo").code == 409
    clock.advance(900)
    assert post(browser, "/strict_login", name="cleo").code == 303


def test_a_login_elsewhere_is_taken_over(client, tree):
    browser = client()
    assert (post(browser, "/back").code, get(browser, "/finish").get("Location")) == (400, "/login")
    post(browser, "/leave")
    assert post(browser, "/back", state="guessed").code == 400
    assert post(browser, "/back").code == 400, "Not even who sends no state, where there is none any more."
    post(browser, "/leave")
    assert post(browser, "/back", state="random, and sent along").get("Location") == "/finish"
    assert get(browser, "/finish").get("Location") == "/account"
    assert [info.subject for info in tree["user"].sessions("ann")] == ["ann"]


# -- docs/caches.md, docs/stores.md, docs/security.md -----------------------------------------


def test_the_examples_about_caches_run():
    scope = carried_out("docs/caches.md", {})
    assert scope["user"].config.cache is scope["cache"]


def test_the_examples_about_stores_run_and_a_worker_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = carried_out("docs/stores.md", {"__name__": "documented"})
    job = scope["job"]
    assert job.load_by_id("import-42")["done"] == 3
    scope["run"]("import-42", "abcde")
    session = job.load_by_id("import-42")
    assert session["done"] == 5
    job.revoke(session.handle)
    session["done"] = 6
    with pytest.raises(SessionGone):
        session.commit()
    scope["store"].close()
    job.config.store.close()


@pytest.mark.parametrize(("kind", "behind"), [("memory", 0), ("sqlite", 0), ("redis", 1), ("postgres", 1)])
def test_a_request_that_is_refused_may_have_written_part_of_it(kind, behind, tmp_path):
    store = opened(kind, tmp_path)
    above = Handler("above", SECRET, with_store(store))
    handlers = above, above.spawn("ended"), above.spawn("behind")
    site = Site(*handlers)
    site.visit(lambda *sessions: [session.update(n=0) for session in sessions])

    def write_while_one_ends(*sessions):
        for session in sessions:
            session["n"] = 1
        store.revoke(sessions[1].handle)

    site.visit(write_while_one_ends)
    assert site.answer.code == 409
    assert site.visit(lambda *sessions: [session.get("n") for session in sessions]) == [1, None, behind]
    store.close()


def test_an_old_key_may_go_when_the_absolute_timeout_of_what_it_made_is_over(clock):
    store = open_store("memory:")

    def handler(*keys):
        return Handler("job", list(keys), with_store(store), server_only(), with_encryption())

    session = handler(SECRET, OTHER_SECRET).generate_by_id("sealed")
    session["n"] = 1
    session.commit()
    rolling = handler(OTHER_SECRET, SECRET)
    assert rolling.load_by_id("sealed")["n"] == 1
    with pytest.raises(BadSession):
        handler(OTHER_SECRET).load_by_id("sealed")
    again = rolling.load_by_id("sealed")
    again["n"] = 2
    again.commit()
    assert handler(OTHER_SECRET).load_by_id("sealed")["n"] == 2
    clock.advance(30 * DAY)
    with pytest.raises(NoSession):
        rolling.load_by_id("sealed")


# -- docs/applications.md ---------------------------------------------------------------------


@pytest.fixture
def application(monkeypatch):
    """Yield what the page has defined, as a module of a Django project; its store fails on demand."""
    page = "docs/applications.md"
    shop = ModuleType("shop.sessions")
    monkeypatch.setitem(sys.modules, shop.__name__, shop)
    monkeypatch.delenv("SHOP_OVER_HTTP", raising=False)
    if not django_settings.configured:
        django_settings.configure(ALLOWED_HOSTS=["*"])
    common = ["django.middleware.common.CommonMiddleware", "django.middleware.http.ConditionalGetMiddleware"]
    ours = ["shop.sessions.SessionErrors"]
    monkeypatch.setattr("sessiontree.stores.open_store", lambda url, opened=open_store: FaultyStore(opened(url)))
    with override_settings(LOGGING_CONFIG=None, ROOT_URLCONF=shop.__name__, MIDDLEWARE=common + ours):
        scope = carried_out(page, vars(shop))
        assert scope["MIDDLEWARE"][-1:] == ours
        yield scope


def log_in(scope, request):
    scope["visitor"].session(request)["seen"] = True
    scope["user"].generate(request).bind("ann")


def end_meanwhile(scope, request):
    """End the user's session behind its back, and write to both."""
    session = scope["user"].session(request)
    scope["visitor"].session(request)["half"] = True
    scope["user"].revoke(session.handle)
    session.incr("n")


def check_errors(scope, site):
    """See an application through a login, an outage and a session that is ended meanwhile."""
    browser, store = Browser(site), scope["store"]
    assert get(browser, "/orders/7").code == 401
    assert get(browser, "/login").code == 200
    assert get(browser, "/orders/7").text == "order 7 of ann"
    cookies = browser.jar.header()
    store.down()
    for place in ("/", "/orders/7"):
        answer = get(browser, place)
        assert (answer.code, answer.get("Retry-After"), answer.cookies) == (503, "5", [])
    store.up()
    assert browser.jar.header() == cookies
    assert get(browser, "/gone").code == 409
    assert get(browser, "/half").text == "True"  # What the view wrote to the other session is saved.
    assert get(browser, "/orders/7").code == 401
    store.fail_after(verb="apply")
    answer = get(browser, "/write")  # It fails as the response begins.
    assert (answer.code, answer.get("Retry-After")) == (503, "5")


def test_flask_answers_as_the_page_says(application):
    from flask import request  # noqa: PLC0415

    app, visitor = application["app"], application["visitor"]

    @app.get("/login")
    def login():
        log_in(application, request)
        return "welcome"

    @app.get("/gone")
    def gone():
        end_meanwhile(application, request)

    @app.get("/half")
    def half():
        return str(visitor.session(request).get("half"))

    @app.get("/write")
    def write():
        visitor.session(request)["k"] = 1
        return "written"

    check_errors(application, app)
    unlinked = type(app).wsgi_app.__get__(app)
    user = application["user"]
    private = chain(visitor, user, application["Enforcer"](user))(unlinked)
    assert get(Browser(private), "/").code == 401


def test_django_answers_as_the_page_says(application):
    answer, visitor = application["HttpResponse"], application["visitor"]

    def login(request):
        log_in(application, request)
        return answer("welcome")

    def write(request):
        visitor.session(request)["k"] = 1
        return answer("written")

    def order(request, number):
        return answer(f"order {number} of {application['user'].session(request).subject}")

    application["urlpatterns"] = [
        path("", lambda request: answer(f"visit {visitor.session(request).incr('visits')}")),
        path("login", login),
        path("gone", lambda request: end_meanwhile(application, request)),
        path("half", lambda request: answer(str(visitor.session(request).get("half")))),
        path("write", write),
        path("account", application["private"](application["account"].__wrapped__)),
        path("orders/<int:number>", application["private"](order)),
    ]
    check_errors(application, application["application"])
    browser = Browser(application["application"])
    refused = get(browser, "/account")
    assert (refused.get("WWW-Authenticate"), refused.get("Cache-Control")) == ('Session realm="user"', "no-store")
    get(browser, "/login")
    assert get(browser, "/account").text == "account of ann"


def test_a_refusal_of_ones_own_is_asked_in_no_outage(application):
    visitor, user = application["visitor"], application["user"]
    site = chain(visitor, user, application["members"])(plain_app(lambda _: "inside"))
    browser = Browser(chain(visitor, user)(plain_app(lambda request: log_in(application, request))))
    refused = run(site, environ("/orders"))
    assert (refused.code, refused.get("Location")) == (303, "/login?next=/orders")
    get(browser, "/")
    application["store"].down()
    assert run(site, environ(HTTP_COOKIE=browser.jar.header())).code == 503


def test_a_form_needs_its_token(application):
    browser = Browser(application["site"])
    assert post(browser, "/", text="Hello").code == 403
    [token] = re.findall('name="csrf_token" value="(.*?)"', get(browser, "/").text)
    assert post(browser, "/", text="Hello").code == 403
    assert post(browser, "/", text="Hello", csrf_token=token).text == "Thank you for 'Hello'."
    assert browser.request("/", "POST", b"text=Hello", HTTP_X_CSRF_TOKEN=token).code == 200


def test_a_token_travels_in_a_header(application):
    api = application["api"]
    site = api.link(plain_app(lambda request: api.session(request).incr("n")))
    first = run(site, environ())
    assert first.cookies == []
    assert run(site, environ(HTTP_X_SESSION=first.get("X-Session"))).text == "2"
    with pytest.raises(ConfigError):
        chain(api, api.spawn("child"))(site)


def test_an_eager_session_begins_with_the_first_request(application):
    visitor, counted = application["visitor"], application["counted"]
    assert run(visitor.link(plain_app(lambda _: None)), environ()).cookies == []
    answer = run(counted.link(plain_app(lambda _: None)), environ())
    assert (len(answer.cookies), answer.get("Cache-Control")) == (1, "no-store")


def test_a_cookie_for_plain_http_is_one_only_where_it_is_asked_for(application, monkeypatch):
    def cookie():
        handler = application["trying"]
        site = handler.link(plain_app(lambda request: handler.session(request).update(n=1)))
        return run(site, environ()).cookies[0]

    assert cookie().startswith("__Host-visitor=")
    assert "; Secure" in cookie()
    monkeypatch.setenv("SHOP_OVER_HTTP", "1")
    with pytest.warns(UserWarning, match="no Secure attribute"):
        exec(blocks_of("docs/applications.md")[-1], application)  # noqa: S102 - it is our own
    assert cookie().startswith("visitor=")
    assert "; Secure" not in cookie()
