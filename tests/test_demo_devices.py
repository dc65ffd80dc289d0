"""The demo's page of devices: who is logged in under one name, where, and how one ends another."""

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from urllib.parse import urlencode

import pytest
from engines import ENGINES, opened
from support import SECRET, Browser, environ

from sessiontree import CookiePolicy, Metadata, SessionInfo
from sessiontree.cli.agents import agent_name
from sessiontree.cli.demo import Demo, application
from sessiontree.cli.devices import Device, devices
from sessiontree.cli.parts import Frame
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FaultyStore

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 "
    "Mobile/15E148 Safari/604.1"
)
CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')
END = re.compile(r'name="handle" value="([^"]+)">\n<button class="small" aria-label="([^"]+)">End</button>')
NOT_FOUND = "That device was not found"
OTHERS = 'action="/devices/end-others"'
VOID = {"meta", "link", "img", "input"}


class Outline(HTMLParser):
    """The elements of a page: it fails on bad nesting, and knows how deep in lists each article stands."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.labels, self.articles = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        assert set(self.labels) <= set(self.ids)

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        found = dict(attrs)
        assert tag not in {"script", "style"}
        assert not any(name == "style" or name.startswith("on") for name in names)
        assert not (tag == "form" and "form" in self.open)
        assert tag != "li" or self.open[-1] == "ol"
        self.ids += [found["id"]] if "id" in found else []
        self.labels += [found["aria-labelledby"]] if "aria-labelledby" in found else []
        if tag == "article":
            self.articles.append((self.open.count("ol"), found["aria-label"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class Person(Browser):
    """A browser of somebody, with an agent and an address of its own."""

    @classmethod
    def at(cls, app, agent=FIREFOX, address="192.0.2.1"):
        def claiming(request, start_response):
            return app(request | {"HTTP_USER_AGENT": agent, "REMOTE_ADDR": address}, start_response)

        return cls(claiming)

    def token(self, form="/login"):
        return TOKEN.search(self.get(form).text)[1]

    def post(self, path, form="/login", **fields):
        """Send a form with the token of a page."""
        return self.request(path, "POST", urlencode({"csrf_token": self.token(form), **fields}).encode())

    def login(self, name="Ada"):
        assert self.post("/login", name=name).code == 303
        return self

    def step_up(self):
        assert self.post("/sudo", form="/sudo").code == 303
        return self

    def devices(self):
        """Return the page of devices, whose every page is well formed."""
        answer = self.get("/devices")
        assert answer.code == 200
        Outline(answer.text)
        return answer.text

    def ends(self):
        """Return the handle of each device that has a button, by the button's accessible name."""
        return {label: handle for handle, label in END.findall(self.devices())}

    def end(self, handle):
        """End a device, and return what the next page says of it."""
        answer = self.post("/devices/end", handle=handle)
        assert (answer.code, answer.get("Location")) == (303, "/devices")
        return self.devices()

    def end_others(self):
        answer = self.post("/devices/end-others")
        assert (answer.code, answer.get("Location")) == (303, "/devices")
        return self.devices()

    def is_in(self):
        return self.get("/account").code == 200

    @property
    def cookies(self):
        return {cookie.name: cookie.value for cookie in self.jar.cookies()}


@pytest.fixture(params=ENGINES)
def store(request, tmp_path):
    made = opened(request.param, tmp_path)
    yield made
    made.close()


@pytest.fixture
def app(store):
    return application(SECRET, CookiePolicy(), store)


@pytest.fixture
def without_store():
    return application(SECRET, CookiePolicy())


def handle_of(person):
    """Return the handle of a person's user session, as another of the same person sees it."""
    (handle,) = Person.at(person.app).login().ends().values()
    return handle


# -- the tree ----------------------------------------------------------------------------------


def test_two_browsers_of_one_name_see_each_other_and_which_is_which(app):
    desk, phone = Person.at(app).login(), Person.at(app, SAFARI, "198.51.100.9").login()
    for here, mine, other in (
        (desk, "Firefox on Linux", "Safari on iPhone"),
        (phone, "Safari on iPhone", "Firefox on Linux"),
    ):
        page = here.devices()
        assert [name for _, name in Outline(page).articles] == [f"{mine} session", f"{other} session"]
        assert ">2 devices<" in page
        assert "192.0.2.1" in page
        assert "198.51.100.9" in page
        first, second = page.split('<li class="node alive">')[1:]
        assert [first.count("this device"), second.count("this device")] == [1, 0]
        assert ['action="/logout"' in first, 'action="/devices/end"' in first] == [True, False]
        assert ['action="/logout"' in second, 'action="/devices/end"' in second] == [False, True]


def test_each_device_says_when_it_began_was_last_seen_and_ends(app):
    Person.at(app, SAFARI).login()
    first, second = Person.at(app).login().devices().split('<li class="node alive">')[1:]
    for item, seen in ((first, "now"), (second, "just now")):
        assert re.search(r'<dt>Began</dt><dd><time datetime="[-\dT:]+Z">[-\d]{10} [:\d]{8} UTC</time>', item)
        assert re.search(rf'<dt>Last seen</dt><dd><time datetime="[-\dT:]+Z">{seen}</time>', item)
        assert re.search(r"<dt>Ends in</dt>.*<span>(30:00|29:\d\d)</span></time>", item)


def test_the_others_stand_newest_first(app):
    for number in range(3):
        Person.at(app, f"client/{number}").login()
    names = [name for _, name in Outline(Person.at(app).login().devices()).articles]
    assert names == ["Firefox on Linux session", *(f"client/{number} session" for number in (2, 1, 0))]


def test_sudo_sessions_stand_beneath_their_own_device(app):
    """Of two devices, the one that confirmed has a sudo session below it, whoever looks."""
    desk, phone = Person.at(app).login(), Person.at(app, SAFARI).login().step_up()
    assert Outline(desk.devices()).articles == [
        (1, "Firefox on Linux session"),
        (1, "Safari on iPhone session"),
        (2, "sudo session"),
    ]
    assert Outline(phone.devices()).articles == [
        (1, "Safari on iPhone session"),
        (2, "sudo session"),
        (1, "Firefox on Linux session"),
    ]
    assert re.search(r"<span>(10:00|9:5\d)</span>", desk.devices())
    phone.post("/admin/leave", form="/admin")
    assert "sudo session" not in str(Outline(desk.devices()).articles)


def test_one_device_may_have_several_sudo_sessions(app):
    """A browser that lost its sudo cookie confirms again, and the first session lives on."""
    desk = Person.at(app).login().step_up()
    desk.jar.store("__Host-sudo=; Max-Age=0; Path=/; Secure", path="/", secure=True)
    desk.step_up()
    assert [depth for depth, _ in Outline(desk.devices()).articles] == [1, 2, 2]


def test_what_has_ended_is_not_listed(app):
    desk = Person.at(app).login()
    for leave in ("/logout", "/forget"):
        other = Person.at(app, SAFARI).login()
        assert ">2 devices<" in desk.devices()
        other.post(leave)
        assert ">1 device<" in desk.devices()


def test_another_name_is_not_listed(app):
    Person.at(app, SAFARI).login("Eve").step_up()
    assert Outline(Person.at(app).login().devices()).articles == [(1, "Firefox on Linux session")]


def test_a_second_login_in_one_browser_is_still_one_device(app):
    desk = Person.at(app).login().step_up().login()
    assert Outline(desk.devices()).articles == [(1, "Firefox on Linux session")]


# -- ending one --------------------------------------------------------------------------------


def test_a_device_is_ended_by_its_button_and_its_next_request_is_refused(app):
    """The other gets 401 at once, its cookies are deleted, sudo's with them, and its visitor stays."""
    desk, phone = Person.at(app).login(), Person.at(app, SAFARI).login().step_up()
    ((label, handle),) = desk.ends().items()
    assert label.startswith("End Safari on iPhone, address 192.0.2.1, since ")
    page = desk.end(handle)
    assert "That device is logged out" in page
    assert ">1 device<" in page
    refused = phone.get("/account")
    assert refused.code == 401
    assert {line.partition("=")[0] for line in refused.cookies if "Max-Age=0" in line} == {"__Host-user", "__Host-sudo"}
    assert set(phone.cookies) == {"__Host-visitor"}
    assert phone.get("/admin").code == 401
    assert desk.is_in()
    assert phone.get("/").code == 200


def test_ending_a_device_twice_says_that_it_is_gone(app):
    desk, phone = Person.at(app).login(), Person.at(app).login()
    (handle,) = desk.ends().values()
    assert NOT_FOUND not in desk.end(handle)
    assert NOT_FOUND in desk.end(handle)
    assert [desk.is_in(), phone.is_in()] == [True, False]


def test_an_ended_device_can_end_nobody(app):
    """Its form, loaded before, is refused: whoever was thrown out does not throw out in turn."""
    desk, phone = Person.at(app).login(), Person.at(app).login()
    (to_desk,), (to_phone,) = phone.ends().values(), desk.ends().values()
    desk.end(to_phone)
    assert phone.post("/devices/end", handle=to_desk).code == 401
    assert phone.post("/devices/end-others").code == 401
    assert desk.is_in()


def test_a_handle_of_somebody_else_is_not_found_and_harms_nobody(app):
    """LC-12: the answer is the one for a handle that never was (Mattermost CVE-2017-18878)."""
    ada, eve = Person.at(app).login("Ada"), Person.at(app).login("Eve")
    theirs = handle_of(ada)
    assert eve.end(theirs).count(NOT_FOUND) == 1
    assert eve.end("a" * 32).count(NOT_FOUND) == 1
    assert [ada.is_in(), eve.is_in()] == [True, True]


@pytest.mark.parametrize(
    "handle",
    ["", " ", "x", "\0", "../../etc/passwd", "*", "%", "' OR 1=1 --", "A" * 32, "\U0001f333", "a" * 60_000, "a\r\nb"],
    ids=repr,
)
def test_garbage_for_a_handle_is_not_found(app, handle):
    desk, phone = Person.at(app).login(), Person.at(app).login()
    page = desk.end(handle)
    assert NOT_FOUND in page
    assert [desk.is_in(), phone.is_in()] == [True, True]


def test_a_missing_handle_is_not_found(app):
    desk = Person.at(app).login()
    assert desk.post("/devices/end").code == 303
    assert NOT_FOUND in desk.devices()


def test_the_handle_of_a_session_of_another_kind_is_not_found(app, store):
    """A visitor's and a sudo session's handle, and a whole token, end nothing on this page."""
    desk, phone = Person.at(app).login(), Person.at(app).login().step_up()
    demo = Demo(SECRET, CookiePolicy(), store)
    request = environ("/", HTTP_COOKIE=phone.jar.header())
    for wrong in (
        demo.visitor.session(request).handle,
        demo.sudo.session(request).handle,
        phone.cookies["__Host-user"],
    ):
        assert NOT_FOUND in desk.end(wrong)
    assert phone.get("/admin").code == 200


def test_ones_own_handle_logs_out_here(app, store):
    """The page has no button for it; whoever sends it anyway gets what the button for it would do."""
    desk = Person.at(app).login()
    own = handle_of(desk)
    answer = desk.post("/devices/end", handle=own)
    assert (answer.code, answer.get("Location")) == (303, "/")
    assert set(desk.cookies) == {"__Host-visitor"}
    assert not desk.is_in()


# -- ending all others -------------------------------------------------------------------------


def test_ending_all_others_keeps_this_one_and_says_how_many(app):
    desk, others = Person.at(app).login().step_up(), [Person.at(app).login() for _ in range(5)]
    eve = Person.at(app).login("Eve")
    assert OTHERS in desk.devices()
    page = desk.end_others()
    assert "5 other devices are logged out" in page
    assert ">1 device<" in page
    assert OTHERS not in page
    assert desk.get("/admin").code == 200
    assert not any(other.is_in() for other in others)
    assert eve.is_in()


@pytest.mark.parametrize(
    ("others", "said"), [(0, "No other devices are"), (1, "1 other device is"), (2, "2 other devices are")]
)
def test_the_number_of_ended_devices_is_said_in_words_that_agree(app, others, said):
    desk = Person.at(app).login()
    for _ in range(others):
        Person.at(app).login().step_up()
    assert f"{said} logged out. You are still logged in here." in desk.end_others()


def test_the_button_for_all_others_is_there_only_if_there_are_others(app):
    desk = Person.at(app).login()
    assert OTHERS not in desk.devices()
    phone = Person.at(app).login()
    assert OTHERS in desk.devices()
    phone.post("/logout")
    assert OTHERS not in desk.devices()


# -- being refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/devices/end", "/devices/end-others"])
def test_ending_without_a_token_of_this_session_is_a_403_and_ends_nothing(app, path):
    desk, phone = Person.at(app).login(), Person.at(app).login()
    (handle,) = desk.ends().values()
    for fields in ({}, {"csrf_token": ""}, {"csrf_token": "x" * 64}, {"csrf_token": phone.token()}):
        answer = desk.request(path, "POST", urlencode({**fields, "handle": handle}).encode())
        assert (answer.code, answer.cookies) == (403, [])
    assert [desk.is_in(), phone.is_in()] == [True, True]


def test_who_is_not_logged_in_sees_and_ends_nothing(app):
    """A visitor with a good token is refused all the same, and is told nothing of anybody."""
    desk = Person.at(app).login()
    handle, visitor = handle_of(desk), Person.at(app)
    page = visitor.get("/devices")
    assert page.code == 401
    assert "Your devices" not in page.text
    Outline(page.text)
    assert visitor.post("/devices/end", handle=handle).code == 401
    assert visitor.post("/devices/end-others").code == 401
    assert desk.is_in()


@pytest.mark.parametrize(
    ("path", "allowed"), [("/devices", {"GET", "HEAD"}), ("/devices/end", {"POST"}), ("/devices/end-others", {"POST"})]
)
def test_a_wrong_method_is_a_405(app, path, allowed):
    desk, phone = Person.at(app).login(), Person.at(app).login()
    answer = desk.request(path, "GET" if "POST" in allowed else "POST")
    assert (answer.code, set(answer.get("Allow").split(", "))) == (405, allowed)
    assert phone.is_in()


@pytest.mark.parametrize("stored", [True, False])
def test_head_is_get_without_a_body(app, without_store, stored):
    desk = Person.at(app if stored else without_store).login()
    head = desk.request("/devices", "HEAD")
    assert (head.code, head.body, head.get("Cache-Control")) == (200, b"", "no-store")
    assert "Welcome, Ada" in desk.devices()


@pytest.mark.parametrize(
    ("method", "path", "verb"),
    [("GET", "/devices", "find"), ("POST", "/devices/end", "revoke"), ("POST", "/devices/end-others", "find")],
)
def test_an_outage_is_a_503_and_logs_nobody_out(method, path, verb):
    store = FaultyStore(MemoryStore())
    app = application(SECRET, CookiePolicy(), store)
    desk, phone = Person.at(app).login(), Person.at(app).login()
    (handle,) = desk.ends().values()
    body = urlencode({"csrf_token": desk.token(), "handle": handle}).encode()
    store.fail(verb=verb)
    answer = desk.request(path, method, body if method == "POST" else b"")
    assert (answer.code, answer.cookies) == (503, [])
    assert [desk.is_in(), phone.is_in()] == [True, True]


# -- what it tells -----------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False])
def test_no_id_and_no_cookie_stands_in_the_page(app, without_store, store, stored):
    """LC-12: not this device's, not another's, not whole and not in part (django-user-sessions CVE-2020-5224)."""
    app = app if stored else without_store
    demo = Demo(SECRET, CookiePolicy(), store if stored else None)
    people = [Person.at(app).login().step_up(), Person.at(app, SAFARI).login().step_up()]
    for person in people:
        page = person.devices()
        for owner in people:
            request = environ("/", HTTP_COOKIE=owner.jar.header())
            sessions = [handler.session(request) for handler in (demo.visitor, demo.user, demo.sudo)]
            assert all(session.is_live() for session in sessions)
            assert not any(session.id in page for session in sessions)
            for value in owner.cookies.values():
                body = value.rpartition(".")[2]
                assert not any(body[place : place + 16] in page for place in range(0, len(body) - 16, 4))


def test_a_handle_from_the_page_is_no_cookie(app):
    desk = Person.at(app).login()
    handle, thief = handle_of(desk), Person.at(app)
    visitor = desk.cookies["__Host-visitor"]
    for user in (handle, f"v1.{handle}"):
        assert thief.get("/account", HTTP_COOKIE=f"__Host-visitor={visitor}; __Host-user={user}").code == 401
    assert desk.is_in()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(
    "agent",
    [
        "<script>alert(1)</script>",
        '" onmouseover="alert(1)" x="',
        "</li></ol></article><h1>",
        "Mozilla/5.0 (X11; Linux) Gecko/1 Firefox/1<script>",
        "{name} {0} %s &lt;b&gt;",
        "a\x00b\x01c\x1b[31m\x7f\x85\xad",
        "\xff\xfe" * 40,
        "x" * 2048,
        "<" * 2048,
        "(" * 2048,
        "",
        " \t ",
    ],
    ids=lambda agent: repr(agent[:20]),
)
def test_a_hostile_agent_is_text_and_nothing_else(app, without_store, agent, stored):
    """Its page, and in a store the page of every other device, stays well formed, short and printable."""
    app = app if stored else without_store
    hostile = Person.at(app, agent).login().step_up()
    for person in (hostile, Person.at(app).login()):
        page = person.devices()
        assert all(character.isprintable() or character == "\n" for character in page)
        assert len(page) < 10_000
        assert "&amp;amp;" not in page
        names = [name for _, name in Outline(page).articles]
        assert all(len(name) <= 60 + len(" session") for name in names)


def test_the_address_is_escaped_too(app):
    """It is what the server says, and a server behind a socket or a bad proxy may say anything."""
    Person.at(app, SAFARI, '<b title="').login()
    Person.at(app, SAFARI, "").login()
    page = Person.at(app).login().devices()
    assert "&lt;b title=&#34;" in page
    assert "<dd>unknown</dd>" in page


def test_a_name_is_escaped_on_the_page(app):
    page = Person.at(app).login("<script>alert(1)</script>").devices()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_each_button_says_which_device_it_ends(app):
    for agent, address in ((FIREFOX, "192.0.2.1"), (FIREFOX, "192.0.2.2"), (CHROME, "192.0.2.2"), ("curl/8", "")):
        Person.at(app, agent, address).login()
    ends = Person.at(app, SAFARI).login().ends()
    assert len(ends) == 4
    assert [label.rpartition(", since ")[0] for label in ends] == [
        "End curl/8, address unknown",
        "End Chrome on Windows, address 192.0.2.2",
        "End Firefox on Linux, address 192.0.2.2",
        "End Firefox on Linux, address 192.0.2.1",
    ]


@pytest.mark.parametrize("stored", [True, False])
def test_the_page_is_linked_for_those_who_are_logged_in(app, without_store, stored):
    desk, link = Person.at(app if stored else without_store), '<a href="/devices"'
    assert link not in desk.get("/").text
    assert link not in desk.get("/devices").text
    desk.login()
    assert all(link in desk.get(path).text for path in ("/", "/account", "/login", "/devices"))
    assert f'{link} aria-current="page">Devices</a>' in desk.devices()


def test_many_devices_are_all_listed(app):
    """However many a store's page of results holds."""
    for _ in range(120):
        Person.at(app).login()
    desk = Person.at(app).login()
    assert len(END.findall(desk.devices())) == 120
    assert "120 other devices are logged out" in desk.end_others()


# -- without a store ---------------------------------------------------------------------------


def test_without_a_store_the_page_shows_this_device_and_says_why(without_store):
    desk, phone = Person.at(without_store).login(), Person.at(without_store, SAFARI, "198.51.100.9").login()
    assert Outline(desk.devices()).articles == [(1, "Firefox on Linux session")]
    page = desk.step_up().devices()
    assert Outline(page).articles == [(1, "Firefox on Linux session"), (2, "sudo session")]
    assert "no server can list them" in page
    assert "/devices/end" not in page
    assert "Safari" not in page
    assert 'action="/logout"' in page.split('<li class="node alive">')[1]
    assert phone.is_in()


def test_without_a_store_nothing_can_be_ended_from_elsewhere(without_store):
    desk = Person.at(without_store).login()
    for path in ("/devices/end", "/devices/end-others"):
        assert desk.post(path, handle="x").code == 404
    assert desk.is_in()


# -- words -------------------------------------------------------------------------------------

WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
IPAD = "Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X)"
MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"
GALAXY = f"Mozilla/5.0 (Linux; Android 13; SM-S901B) {WEBKIT} SamsungBrowser/25.0"


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        (FIREFOX, "Firefox on Linux"),
        (SAFARI, "Safari on iPhone"),
        (CHROME, "Chrome on Windows"),
        (f"{CHROME} Edg/126.0.0.0", "Edge on Windows"),
        (f"{CHROME} OPR/112.0.0.0", "Opera on Windows"),
        (f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {WEBKIT} Chrome/126.0.0.0 Safari/537.36", "Chrome on ChromeOS"),
        (f"Mozilla/5.0 (Linux; Android 10; K) {WEBKIT} Chrome/126.0.0.0 Mobile Safari/537.36", "Chrome on Android"),
        (f"{GALAXY} Chrome/121.0.0.0 Mobile Safari/537.36", "Samsung Internet on Android"),
        ("Mozilla/5.0 (Android 14; Mobile; rv:127.0) Gecko/127.0 Firefox/127.0", "Firefox on Android"),
        (f"{IPAD} {WEBKIT} FxiOS/127.0 Mobile/15E148 Safari/605.1.15", "Firefox on iPad"),
        (f"{MAC} {WEBKIT} Version/17.4.1 Safari/605.1.15", "Safari on macOS"),
        ("curl/8.5.0", "curl/8.5.0"),
        ("  spaced\t out  ", "spaced out"),
        ("", "A browser without a name"),
        (" \t", "A browser without a name"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        ("a\x00b", "a\ufffdb"),
        ("\ud800\u202e", "\ufffd\ufffd"),
    ],
)
def test_an_agent_is_said_for_people(agent, name):
    assert agent_name(agent) == name


@pytest.mark.parametrize(
    "agent",
    [
        "Mozilla/5.0 (Windows NT 10.0; WOW64; Trident/7.0; rv:11.0) like Gecko",
        f"{CHROME} YaBrowser/24.1",
        CHROME.replace("Chrome/", "HeadlessChrome/"),
        f"{CHROME} (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        f"Mozilla/5.0 {WEBKIT} Chrome/126.0.0.0 Safari/537.36",
        f"Mozilla/5.0 (PlayStation 4) {WEBKIT} Safari/537.36",
        f"Firefox {FIREFOX}",
    ],
)
def test_an_agent_that_says_it_is_something_else_is_not_taken_for_a_browser(agent):
    """What is not wholly known is shown as it came, trimmed."""
    assert agent_name(agent) == agent[:59] + "…"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "just now"), (0, "just now"), (119, "just now"), (120, "2 min ago"), (1799, "29 min ago")],
)
def test_when_a_device_was_last_seen_is_said_to_the_minute(seconds, said):
    """A touch is written once a minute at most, so what is less than two minutes old may be anything less."""
    page = shown(seen=timedelta(seconds=-seconds), ends=timedelta(minutes=30))
    assert f'Z">{said}</time>' in page


@pytest.mark.parametrize(
    ("ends", "said"),
    [(None, "<dd>no deadline</dd>"), (timedelta(seconds=-1), "<span>0:00</span>"), (timedelta(days=3), "3 days")],
)
def test_when_a_device_ends_may_be_never_or_now(ends, said):
    assert said in shown(seen=timedelta(), ends=ends)


def shown(seen, ends):
    """Return a page of one device that is not this one."""
    now = datetime.now(UTC)
    about = Metadata(now, FIREFOX, "192.0.2.1")
    info = SessionInfo("h", "visitor/user", "Ada", about, now, now + seen, None if ends is None else now + ends)
    page = str(devices(Frame("/devices", "token", "Ada", stored=True), [Device(info)], now))
    Outline(page)
    return page
