"""The demo as its users meet it: a process of its own, a socket, and a browser's cookies."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from itertools import pairwise
from secrets import token_hex
from threading import Barrier
from urllib.parse import urlencode

import pytest

from sessiontree.testing import CookieJar

REQUESTS = 10_000 // 20 * int(os.environ.get("SESSIONTREE_SOAK", "1"))
THREADS = 16
STARTUP = 20
# The server leaves its open sockets to the end of the process.
WARNINGS = ("-W", "error", "-W", "ignore::ResourceWarning")
FORM = re.compile(r'^.*<input type="hidden" name="csrf_token" value="([^"]+)">', re.MULTILINE)
ADMIN = "Ten minutes, and then it is over"
ACCOUNT = "The user session"


@dataclass
class Reply:
    """One response over the socket."""

    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def text(self):
        return self.body.decode()

    @property
    def cookies(self):
        return self.headers.get_all("Set-Cookie", [])

    @property
    def token(self):
        """The token of the page's forms."""
        return FORM.search(self.text).group(1)


class Client:
    """A browser's cookies and forms, over a socket; ``https`` stands for a TLS proxy in front."""

    def __init__(self, port, *, https=False, agent="test/1"):
        self.port, self.https, self.agent = port, https, agent
        self.jar = CookieJar()

    def request(self, method, path, body=None, **headers):
        cookie = self.jar.header("127.0.0.1", path, secure=self.https)
        headers = {name.replace("_", "-"): value for name, value in headers.items()} | {"User-Agent": self.agent}
        if cookie:
            headers.setdefault("Cookie", cookie)
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            reply = Reply(response.status, response.headers, response.read())
        for line in reply.cookies:
            self.jar.store(line, "127.0.0.1", path, secure=self.https)
        return reply

    def get(self, path="/", **headers):
        return self.request("GET", path, **headers)

    def post(self, path, fields=(), **headers):
        headers.setdefault("Content_Type", "application/x-www-form-urlencoded")
        return self.request("POST", path, urlencode(fields), **headers)

    def send(self, path, *, form="/", **fields):
        """Fill in a form of a page and send it."""
        return self.post(path, {"csrf_token": self.get(form).token, **fields})

    def login(self, name="Ada"):
        reply = self.send("/login", form="/login", name=name)
        assert (reply.status, reply.headers["Location"]) == (303, "/account")
        return self

    def step_up(self):
        reply = self.send("/sudo", form="/sudo")
        assert (reply.status, reply.headers["Location"]) == (303, "/admin")
        return self

    def statuses(self, *paths):
        return [self.get(path).status for path in paths]


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return listener.getsockname()[1]


@contextmanager
def running(*arguments, **variables):
    """Run the demo in a process of its own and yield it with its port; stop it by its own pid."""
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if key != "SESSIONTREE_DEMO_SECRET"} | variables
    process = subprocess.Popen(
        [sys.executable, *WARNINGS, "-m", "sessiontree", "demo", "--port", str(port), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        answering(port, process)
        yield process, port
    finally:
        process.terminate()  # It puts its store away; only one that does not end is killed.
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate(timeout=10)


def answering(port, process):
    """Wait until the demo answers."""
    deadline = time.monotonic() + STARTUP
    while True:
        try:
            Client(port).get("/demo.css")
        except OSError:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the demo does not answer"
            time.sleep(0.02)
        else:
            return


@pytest.fixture(scope="module", params=[(), ("--store", "cookies")], ids=["store", "cookies"])
def port(request):
    with running(*request.param) as (process, port):
        yield port
        process.terminate()
        assert "Traceback" not in process.communicate(timeout=10)[0]


@pytest.fixture
def client(port):
    return Client(port)


# -- coming in ---------------------------------------------------------------------------------


def test_a_visitor_gets_one_session_and_its_visits_are_counted(client):
    first, second = client.get(), client.get()
    assert [first.status, second.status] == [200, 200]
    assert "new in this request" in first.text
    assert "new in this request" not in second.text
    assert "<dt>Visits</dt><dd>2</dd>" in second.text
    assert [cookie.name for cookie in client.jar.cookies()] == ["visitor"]


def test_login_leads_to_the_account(client):
    """A plain client without Origin or Sec-Fetch headers logs in with a name and the form's token."""
    client.login("Grace Hopper")
    account = client.get("/account")
    assert account.status == 200
    assert account.text.count("Grace Hopper") >= 2
    assert ACCOUNT in account.text
    assert "Welcome, Grace Hopper" in account.text
    assert "Welcome, Grace Hopper" not in client.get("/account").text


def test_login_gives_the_visitor_a_new_token_and_keeps_its_handle(client):
    """Whoever planted the old visitor cookie is not carried along, and the old token opens no user page."""
    handle = re.search(r"<code>([a-z2-7]{32})</code>", client.get().text).group(1)
    before = client.jar.header("127.0.0.1", secure=False)
    client.login()
    assert handle in client.get().text
    assert client.get("/account", Cookie=before).status == 401


def test_a_token_from_before_the_login_is_refused_after_it(client):
    old = client.get().token
    client.login()
    assert client.post("/logout", {"csrf_token": old}).status == 403
    assert client.get("/account").status == 200


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "two\nlines", "\u202etxt"])
def test_login_asks_again_for_a_name_that_is_none(client, name):
    reply = client.send("/login", form="/login", name=name)
    assert reply.status == 400
    assert 'role="alert"' in reply.text
    assert reply.token
    assert client.get("/account").status == 401


def test_names_are_stripped_and_escaped(client):
    client.login("  <script>alert(1)</script> ")
    for path in ("/", "/account", "/login", "/logout"):
        text = client.get(path).text
        assert "<script" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_second_login_takes_nothing_of_the_first_along(client):
    client.login("Ada").step_up()
    client.login("Mallory")
    assert client.statuses("/account", "/admin") == [200, 401]
    assert "Ada" not in client.get("/account").text


@pytest.mark.parametrize(
    ("onward", "location"),
    [
        ("/sudo", "/sudo"),
        ("/account", "/account"),
        ("//evil.example", "/account"),
        ("https://evil.example/sudo", "/account"),
        ("/\\evil.example", "/account"),
        ("/sudo\r\nX: y", "/account"),
    ],
)
def test_login_goes_on_to_our_own_pages_only(client, onward, location):
    form = client.get("/login?" + urlencode({"next": onward}))
    assert ('name="next"' in form.text) == (onward == location)
    reply = client.post("/login", {"csrf_token": form.token, "name": "Ada", "next": onward})
    assert (reply.status, reply.headers["Location"]) == (303, location)


# -- stepping up -------------------------------------------------------------------------------


def test_the_administration_needs_all_three_sessions(client):
    assert client.statuses("/account", "/sudo", "/admin") == [401, 401, 401]
    client.login()
    assert client.statuses("/account", "/sudo", "/admin") == [200, 200, 401]
    client.step_up()
    assert client.statuses("/account", "/sudo", "/admin") == [200, 200, 200]
    assert re.search(r"(10:00|9:\d\d)</span></time>", client.get("/admin").text)


def test_leaving_the_administration_keeps_the_user(client):
    client.login().step_up()
    assert client.send("/admin/leave", form="/admin").status == 303
    assert client.statuses("/account", "/admin") == [200, 401]


def test_a_sudo_cookie_of_one_user_session_is_worth_nothing_in_another(port):
    """A child session is live under the one parent that it was spawned from."""
    ada, eve = Client(port).login("Ada").step_up(), Client(port).login("Eve")
    stolen = f"{eve.jar.header('127.0.0.1', secure=False)}; sudo={ada.jar.get('sudo')}"
    assert eve.get("/admin", Cookie=stolen).status == 401
    assert eve.get("/account", Cookie=stolen).status == 200


# -- being refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "secret"), [("/account", ACCOUNT), ("/sudo", "It is me"), ("/admin", ADMIN)])
def test_a_refusal_is_a_401_with_nothing_of_the_page(client, path, secret):
    reply = client.get(path)
    assert reply.status == 401
    assert secret not in reply.text
    assert "/login" in reply.text
    assert reply.headers["WWW-Authenticate"] == 'Session realm="visitor"'
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["Vary"] == "Cookie"
    assert reply.cookies == []


def test_a_user_without_sudo_is_led_to_the_confirmation(client):
    reply = client.login().get("/admin")
    assert (reply.status, ADMIN in reply.text, 'href="/sudo"' in reply.text) == (401, False, True)


def test_a_refused_post_does_nothing(client):
    """A form with a good token and no user session does not step up."""
    assert client.send("/sudo").status == 401
    assert client.jar.get("sudo") is None


@pytest.mark.parametrize("name", ["visitor", "user", "sudo"])
def test_a_tampered_cookie_is_no_session(client, name):
    """Each changed character anywhere in a cookie makes its holder anonymous there, and everywhere below."""
    client.login("Ada").step_up()
    client.get()  # It takes the flash messages, so that no later response has a reason to set a cookie.
    good = {cookie.name: cookie.value for cookie in client.jar.cookies()}
    value = good[name]
    for place in range(0, len(value), 17):
        other = "A" if value[place] != "A" else "B"
        bad = good | {name: value[:place] + other + value[place + 1 :]}
        header = "; ".join(f"{key}={text}" for key, text in bad.items())
        reply = Client(client.port).get("/admin", Cookie=header)
        assert (reply.status, ADMIN in reply.text, reply.cookies) == (401, False, [])
    assert client.get("/admin").status == 200


def test_a_token_of_one_handler_is_none_of_another(client):
    client.login()
    visitor = client.jar.get("visitor")
    assert Client(client.port).get("/account", Cookie=f"visitor={visitor}; user={visitor}").status == 401


def test_doubled_cookies_that_disagree_are_refused(port):
    """Two sessions that both verify: nobody can tell which one the browser's owner meant."""
    ada, eve = (Client(port).login(name).jar.header("127.0.0.1", secure=False) for name in ("Ada", "Eve"))
    assert Client(port).get("/account", Cookie=f"{ada}; {eve}").status == 401
    assert Client(port).get("/account", Cookie=f"{ada}; {ada}").status == 200


# -- forged forms ------------------------------------------------------------------------------

FORMS = ["/login", "/logout", "/sudo", "/notes", "/notes/delete", "/forget", "/admin/leave"]


@pytest.mark.parametrize("path", FORMS)
def test_a_form_without_a_token_of_this_session_is_a_403(port, path):
    """No token, a made-up one, and another visitor's good one are all refused alike, and nothing changes."""
    client, other = Client(port).login().step_up(), Client(port)
    before = client.jar.cookies()
    tokens = [{}, {"csrf_token": ""}, {"csrf_token": "x" * 64}, {"csrf_token": other.get().token}]
    for fields in tokens:
        reply = client.post(path, {**fields, "name": "Eve", "key": "k", "value": "v"})
        assert (reply.status, reply.cookies) == (403, [])
        assert reply.headers.get_content_type() == "text/html"
    assert client.jar.cookies() == before
    assert client.get("/admin").status == 200


def test_the_token_also_comes_in_a_header(client):
    token = client.get("/login").token
    assert client.post("/login", {"name": "Ada"}, X_CSRF_Token=token).status == 303


def test_a_form_without_any_cookie_is_a_403(client):
    token = client.get().token
    assert Client(client.port).post("/login", {"csrf_token": token, "name": "Ada"}).status == 403


# -- going out ---------------------------------------------------------------------------------


def test_logout_ends_the_user_and_sudo_and_keeps_the_visitor(client):
    client.login().step_up()
    client.send("/notes", key="kept", value="by the visitor", max_age="")
    reply = client.send("/logout", form="/account")
    assert (reply.status, reply.headers["Location"]) == (303, "/")
    erased = {line.partition("=")[0] for line in reply.cookies if "Max-Age=0" in line}
    assert erased == {"user", "sudo"}
    assert [cookie.name for cookie in client.jar.cookies()] == ["visitor"]
    assert client.statuses("/account", "/sudo", "/admin") == [401, 401, 401]
    home = client.get().text
    assert "by the visitor" in home
    assert "Ada" not in home


def test_logout_says_so_once(client):
    client.login()
    client.get()
    client.send("/logout")
    assert "You are logged out" in client.get().text
    assert "You are logged out" not in client.get().text


def test_looking_at_logout_logs_nobody_out(client):
    """GET asks, as an image in a foreign page could send it; POST with a token does it."""
    client.login()
    page = client.get("/logout")
    assert page.status == 200
    assert client.get("/account").status == 200
    assert client.post("/logout", {"csrf_token": page.token}).status == 303
    assert client.get("/account").status == 401
    assert client.get("/logout").status == 200


def test_logging_out_twice_is_fine(client):
    client.login()
    token = client.get().token
    assert [client.post("/logout", {"csrf_token": token}).status for _ in range(2)] == [303, 303]


def test_sudo_does_not_come_back_with_the_next_login(client):
    """The old sudo cookie, kept aside, was spawned from a user session that is not this one."""
    client.login().step_up()
    kept = client.jar.get("sudo")
    client.send("/logout", form="/account")
    client.login()
    header = f"{client.jar.header('127.0.0.1', secure=False)}; sudo={kept}"
    assert client.get("/admin", Cookie=header).status == 401


def test_forgetting_the_visitor_ends_the_whole_tree(client):
    client.login().step_up()
    reply = client.send("/forget")
    assert {line.partition("=")[0] for line in reply.cookies if "Max-Age=0" in line} == {"visitor", "user", "sudo"}
    assert client.jar.cookies() == []


# -- several devices -----------------------------------------------------------------------------


@pytest.mark.parametrize("button", ["/devices/end", "/devices/end-others"])
def test_one_browser_ends_another_by_a_button(port, button):
    """Both see both; the one that is ended gets 401 with its next request, and the other stays. Needs a store."""
    name = token_hex(8)
    desk, phone = Client(port, agent="desk/1").login(name), Client(port, agent="phone/2").login(name)
    page = desk.get("/devices").text
    if "no server can list them" in page:
        assert ("phone/2" in page, desk.send(button).status) == (False, 404)
        return
    assert all("desk/1" in text and "phone/2" in text for text in (page, phone.get("/devices").text))
    (handle,) = re.findall(r'name="handle" value="([^"]+)"', page)
    reply = desk.send(button, form="/devices", handle=handle)
    assert (reply.status, reply.headers["Location"]) == (303, "/devices")
    assert phone.get("/devices").status == 401
    assert phone.jar.get("user") is None
    assert "phone/2" not in desk.get("/devices").text


# -- keys --------------------------------------------------------------------------------------


def test_a_key_is_put_shown_escaped_and_deleted(client):
    client.get()
    reply = client.send("/notes", key='"k"', value="<b>&amp;</b>", max_age="0")
    assert (reply.status, reply.headers["Location"]) == (303, "/")
    home = client.get().text
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in home
    assert "no expiry" in home
    client.send("/notes/delete", key='"k"')
    client.get()
    assert "&lt;b&gt;" not in client.get().text


def test_a_key_with_a_life_is_gone_after_it(client):
    """The real clock runs here: the one test that waits."""
    client.get()
    client.send("/notes", key="brief", value="a-second-of-fame", max_age="1")
    client.send("/notes", key="long", value="an-hour-of-fame", max_age="3600")
    before = client.get().text
    assert "a-second-of-fame" in before
    time.sleep(1.05)
    after = client.get().text
    assert "a-second-of-fame" not in after
    assert "an-hour-of-fame" in after


@pytest.mark.parametrize(
    "fields",
    [
        {"key": "", "value": "v"},
        {"key": "k", "value": " "},
        {"key": "k" * 33, "value": "v"},
        {"key": "k", "value": "v" * 201},
        {"key": "k", "value": "a\0b"},
        {"key": "visits", "value": "1000000"},
        {"key": "k", "value": "v", "max_age": "-1"},
        {"key": "k", "value": "v", "max_age": "86401"},
        {"key": "k", "value": "v", "max_age": "1e3"},
        {"key": "k", "value": "v", "max_age": "9" * 5000},
        {"key": "k", "value": "v", "max_age": "\u0661"},
    ],
)
def test_what_is_no_key_is_refused_and_can_be_corrected(client, fields):
    reply = client.send("/notes", **fields)
    assert reply.status == 400
    assert 'role="alert"' in reply.text
    assert "Delete" not in client.get().text


def test_the_fullest_session_still_fits_in_its_cookie(client):
    """However much is typed, the demo says no before the browser would lose the cookie."""
    client.login("\U0001f333" * 64)
    refused = 0
    for number in range(20):
        reply = client.send("/notes", key=f"{number}" + "\U0001f333" * 30, value='"\\' * (110 - 5 * number))
        refused += reply.status == 400
        assert reply.status in {303, 400}
    assert refused
    token = client.get().token
    for _ in range(10):
        client.post("/notes/delete", {"csrf_token": token, "key": "none"})
        reply = client.post("/notes", {"csrf_token": token, "key": "k" * 32, "value": "v"})
        assert reply.status in {303, 400}
    assert client.statuses("/", "/account") == [200, 200]


# -- paths, methods, headers -------------------------------------------------------------------

PAGES = ["/", "/login", "/logout", "/account", "/devices", "/sudo", "/admin"]
PATHS = [*PAGES, "/demo.css", "/icon.svg"]


@pytest.mark.parametrize("path", ["/nothing", "/login/", "/demo.py", "/../demo.css", "/%00", "/%ff"])
def test_an_unknown_path_is_a_404_that_looks_at_no_session(client, path):
    client.login()
    reply = client.get(path)
    assert (reply.status, reply.headers["Vary"], reply.cookies) == (404, None, [])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/", {"GET", "HEAD"}),
        ("POST", "/account", {"GET", "HEAD"}),
        ("DELETE", "/login", {"GET", "HEAD", "POST"}),
        ("PUT", "/demo.css", {"GET", "HEAD"}),
        ("GET", "/notes", {"POST"}),
        ("GET", "/forget", {"POST"}),
        ("OPTIONS", "/admin", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_ones(client, method, path, allowed):
    reply = client.request(method, path)
    assert reply.status == 405
    assert set(reply.headers["Allow"].split(", ")) == allowed
    assert reply.cookies == []


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_head_is_get_without_a_body(port, path):
    for prepare in (Client, lambda port: Client(port).login().step_up()):
        client = prepare(port)
        head, get = client.request("HEAD", path), client.get(path)
        assert (head.status, head.body) == (get.status, b"")
        assert head.headers["Content-Type"] == get.headers["Content-Type"]


def test_head_takes_no_flash_message(client):
    client.login()
    client.request("HEAD", "/account")
    assert "Welcome" in client.get("/account").text


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_every_response_has_its_security_headers(client, path):
    headers = client.get(path).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"


@pytest.mark.parametrize("path", PAGES)
def test_pages_obey_their_own_content_security_policy(port, path):
    """No script, no inline style, nothing from elsewhere."""
    text = Client(port).login().step_up().get(path).text
    assert not re.search(r"<script|<style|\bstyle=|\bon\w+=|(src|href|action)=\"(?!/)", text)


def test_pages_are_never_stored(client):
    client.login().step_up()
    assert {client.get(path).headers["Cache-Control"] for path in PAGES} == {"no-store"}


@pytest.mark.parametrize("path", ["/demo.css", "/icon.svg"])
def test_files_touch_no_session(client, path):
    """An untouched session costs nothing: no Set-Cookie, no Vary; and a file is sent once."""
    client.login()
    reply = client.get(path)
    assert (reply.status, reply.headers["Vary"], reply.cookies) == (200, None, [])
    assert client.get(path, If_None_Match=reply.headers["ETag"]).status == 304


def test_the_stylesheet_knows_every_class_that_counts(client):
    """A page hands a number over as one class per bit, so each bit needs its rule with its weight."""
    rules = dict(re.findall(r"\.(b\d+) { --b\d+: (\d+); }", client.get("/demo.css").text))
    assert rules == {f"b{bit}": str(1 << bit) for bit in range(17)}


def test_a_body_that_is_too_large_is_refused(client):
    token = client.get().token
    reply = client.post("/notes", {"csrf_token": token, "key": "k", "value": "v" * 70_000})
    assert reply.status in {403, 413}


def test_plain_cookies_carry_what_plain_http_allows(client):
    (line,) = client.get().cookies
    assert line.startswith("visitor=v1.")
    assert line.endswith("; Path=/; HttpOnly; SameSite=Lax")


def test_values_cannot_be_read_in_the_cookie(client):
    client.get()
    client.send("/notes", key="k", value="plain-to-see", max_age="")
    assert "plain-to-see" in client.get().text
    assert b"plain-to-see" not in _unpacked(client.jar.get("visitor"))


def _unpacked(token):
    from base64 import b64decode  # noqa: PLC0415

    body = token.rpartition(".")[2]
    return b64decode(body + "=" * (-len(body) % 4))


# -- the process -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_serves_and_stops_cleanly(number):
    with running() as (process, port):
        Client(port).get()
        process.send_signal(number)
        output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert f"Serving http://127.0.0.1:{port}/" in output
    assert "sessions end with this process" in output
    assert output.endswith("Stopped.\n")
    assert "Traceback" not in output
    assert "Warning" not in output


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_port_zero_is_any_free_one_and_the_line_names_it(host):
    with subprocess.Popen(
        [sys.executable, "-m", "sessiontree", "demo", "--host", host, "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        line = next(line for line in process.stdout if line.startswith("Serving"))
        port = int(re.match(rf"Serving http://{host}:(\d+)/ ", line).group(1))
        with closing(socket.create_connection((host, port))):
            process.terminate()
            assert process.wait(10) == 0


def test_sessions_end_with_the_process_unless_it_is_given_a_secret():
    """With SESSIONTREE_DEMO_SECRET a restart logs nobody out; with a random secret it does."""
    for variables, status in (({}, 401), ({"SESSIONTREE_DEMO_SECRET": token_hex(32)}, 200)):
        with running(**variables) as (_, port):
            jar = Client(port).login().jar
        with running(**variables) as (_, port):
            client = Client(port)
            client.jar = jar
            assert client.get("/account").status == status


def test_a_store_of_ones_own_outlives_the_demo_and_a_logout_is_the_end_of_every_copy(tmp_path):
    store, secret = ("--store", f"sqlite:///{tmp_path}/demo.db"), {"SESSIONTREE_DEMO_SECRET": token_hex(32)}
    with running(*store, **secret) as (_, port):
        jar = Client(port).login().jar
    with running(*store, **secret) as (_, port):
        client, thief = Client(port), Client(port)
        client.jar, kept = jar, jar.header("127.0.0.1", "/", secure=False)
        assert client.get("/account").status == 200
        client.send("/logout", form="/logout")
        assert thief.get("/account", Cookie=kept).status == 401


@pytest.mark.parametrize("url", ["nothing://here", "sqlite:///no/such/folder/demo.db", "memory:x"])
def test_a_store_that_cannot_be_is_one_line_and_no_traceback(url):
    command = [sys.executable, "-m", "sessiontree", "demo", "--port", "0", "--store", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr.count("\n"), "Traceback" in done.stderr) == (1, 1, False)


def test_behind_tls_the_cookies_are_secure_and_bound_to_the_host():
    with running("--behind-tls") as (_, port):
        client = Client(port, https=True).login().step_up()
        assert client.get("/admin").status == 200
        assert {cookie.name for cookie in client.jar.cookies()} == {"__Host-visitor", "__Host-user", "__Host-sudo"}
        assert all(cookie.secure and cookie.http_only for cookie in client.jar.cookies())
        plain = Client(port)
        plain.get()
        assert plain.jar.cookies() == []


# -- many at once ------------------------------------------------------------------------------

SECRET = re.compile(r"secret-[0-9a-f]{32}")


class Soaker:
    """One client that does everything, in a thread of its own, and looks for secrets that are not its own."""

    def __init__(self, port):
        self.client = Client(port)
        self.secret = f"secret-{token_hex(16)}"
        self.requests = 0

    def run(self, barrier, requests):
        barrier.wait()
        while self.requests < requests:
            for step in (self.write, self.enter, self.leave):
                step()
        return self.requests

    def write(self):
        token = self.sees("GET", "/").token
        self.sees("POST", "/notes", csrf_token=token, key="mine", value=self.secret, max_age="600")
        assert self.secret in self.sees("GET", "/").text
        self.sees("GET", "/demo.css")
        self.sees("GET", "/admin", status=401)

    def enter(self):
        token = self.sees("GET", "/login").token
        self.sees("POST", "/login", csrf_token=token, name=self.secret)
        assert self.secret in self.sees("GET", "/account").text
        self.sees("POST", "/sudo", csrf_token=self.sees("GET", "/sudo").token)
        assert self.secret in self.sees("GET", "/admin").text
        self.sees("POST", "/sudo", status=403, csrf_token="forged")

    def leave(self):
        token = self.sees("GET", "/logout").token
        self.sees("POST", "/logout", csrf_token=token)
        assert "You are logged out" in self.sees("GET", "/").text
        self.sees("GET", "/account", status=401)
        self.sees("GET", "/nothing", status=404)
        self.sees("POST", "/notes/delete", csrf_token=self.sees("GET", "/").token, key="mine")
        self.sees("GET", "/")
        assert self.secret not in self.sees("GET", "/").text

    def sees(self, method, path, status=None, **fields):
        self.requests += 1
        reply = self.client.get(path) if method == "GET" else self.client.post(path, fields)
        assert reply.status == (status or (200 if method == "GET" else 303)), f"{method} {path}: {reply.text}"
        found = set(SECRET.findall(reply.text + str(reply.headers)))
        assert found <= {self.secret}, "another client's value was seen"
        return reply


def test_many_clients_at_once_never_see_each_other(port):
    """Sixteen threads with a client and a secret value each: every page shows that client's own and no other."""
    soakers = [Soaker(port) for _ in range(THREADS)]
    barrier = Barrier(THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        done = list(pool.map(lambda soaker: soaker.run(barrier, -(-REQUESTS // THREADS)), soakers))
    assert sum(done) >= REQUESTS
    handles = [soaker.client.jar.get("visitor") for soaker in soakers]
    assert all(one != other for one, other in pairwise(sorted(handles)))
