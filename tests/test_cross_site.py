"""cross_site(): a login at another site comes back as a POST, with which only this handler's cookie comes."""

import pytest
from support import SECRET, Browser, plain_app

from sessiontree import (
    ConfigError,
    CookiePolicy,
    Handler,
    NoCookie,
    chain,
    server_only,
    with_absolute_timeout,
    with_clock,
    with_cookie,
    with_eager,
    with_encryption,
    with_header,
    with_max_sessions,
    with_store,
)
from sessiontree.handlers import cross_site
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock


class Shop:
    """A site that lets another one say who somebody is."""

    def __init__(self, *options):
        self.clock = FakeClock()
        self.visitor = Handler("visitor", SECRET, with_clock(self.clock), *options)
        self.user = self.visitor.spawn("user")
        self.trip = cross_site(self.visitor)
        self.app = chain(self.visitor, self.user, self.trip)(plain_app(self.act))
        self.browser = Browser(self.app, self.clock)

    def act(self, request):
        return getattr(self, request["PATH_INFO"].strip("/"))(request)

    def login(self, request):
        self.visitor.session(request)["basket"] = ["tea"]
        self.trip.generate(request).update(state="expected", onward="/pay")

    def back(self, request):
        """Where the provider's form is posted to: no other cookie comes along."""
        with pytest.raises(NoCookie):
            self.visitor.load(request)
        trip = self.trip.load(request)
        assert trip.pop("state") == request["QUERY_STRING"]
        trip["name"] = "ann"

    def finish(self, request):
        visitor = self.visitor.session(request)
        visitor.merge(self.trip.load(request))
        visitor.renew()
        user = self.user.generate(request)
        user.bind(visitor.pop("name"))
        return visitor.pop("onward"), visitor["basket"], user.subject

    def who(self, request):
        return self.user.session(request).subject, self.trip.loaded(request)


@pytest.mark.parametrize("kept", ["in a store", "in the cookie"])
def test_a_login_elsewhere_and_back(kept):
    clock = FakeClock()
    shop = Shop(with_clock(clock), with_store(MemoryStore(clock=clock) if kept == "in a store" else None))
    browser = shop.browser
    browser.get("/login")
    posted = browser.jar.header(cross_site="POST")
    assert [pair.partition("=")[0] for pair in posted.split("; ")] == ["__Host-visitor-return"]
    assert browser.request("/back", "POST", QUERY_STRING="expected", HTTP_COOKIE=posted).code == 200
    linked = browser.jar.header(cross_site="GET")
    assert linked == browser.jar.header(), "a redirect to a page of the site brings every cookie"
    assert browser.get("/finish", HTTP_COOKIE=linked).text == repr(("/pay", ["tea"], "ann"))
    assert browser.get("/who").text == repr(("ann", False))
    assert browser.jar.get("__Host-visitor-return") is None


def test_it_lasts_ten_minutes_whatever_the_handler_does():
    shop = Shop(with_absolute_timeout(None), with_eager())
    shop.browser.get("/login")
    assert shop.trip.config.eager is False
    shop.clock.advance(599)
    assert shop.browser.get("/who").text == repr((None, True))
    shop.clock.advance(2)
    assert shop.browser.get("/who").text == repr((None, False))
    assert cross_site(shop.visitor, 60).config.absolute == 60_000


def test_it_has_everything_else_of_the_handler():
    store = MemoryStore()
    policy = CookiePolicy(name="sid", domain="example.org", same_site="Strict")
    handler = Handler("user", SECRET, with_store(store), with_encryption(), with_cookie(policy), with_max_sessions(2))
    trip = cross_site(handler)
    assert (trip.name, trip.path, trip.parent) == ("user-return", "user-return", None)
    assert (trip.config.store, trip.config.encrypted, trip.config.limit) == (store, True, None)
    assert trip.config.policy == CookiePolicy(name="sid-return", domain="example.org", same_site="None")
    assert cross_site(handler) == trip


def test_what_has_no_secure_cookie_is_refused():
    store = MemoryStore()
    with pytest.warns(UserWarning, match="Secure"):
        insecure = Handler("a", SECRET, with_cookie(CookiePolicy(insecure_dev=True)))
    for handler in (
        Handler("a", SECRET, with_header("X-Session")),
        Handler("a", SECRET, with_store(store), server_only),
        insecure,
    ):
        with pytest.raises(ConfigError):
            cross_site(handler)
    with pytest.raises(ConfigError, match="more than 0"):
        cross_site(Handler("a", SECRET), 0)
