"""Every example of the pages that promise so runs, in their order, and does what the page says."""

import re
from pathlib import Path

import pytest
from werkzeug.test import Client

ROOT = Path(__file__).resolve().parents[1]


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def tree():
    """What the page about the tree has defined at its end."""
    scope = {}
    for block in blocks_of("docs/tree.md"):
        exec(compile(block, "docs/tree.md", "exec"), scope)  # noqa: S102 - it is our own
    return scope


@pytest.fixture
def client(tree):
    """A function that returns a new browser on the page's views."""

    def view(environ, start_response):
        if environ["PATH_INFO"] == "/begin":
            tree["visitor"].session(environ)["seen"] = True
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b""]
        return tree[environ["PATH_INFO"].strip("/")](environ, start_response)

    def open_browser():
        browser = Client(tree["chain"](*(tree[name] for name in ("visitor", "user", "sudo", "strict", "trip")))(view))
        browser.get("/begin", base_url="https://shop.example")
        return browser

    return open_browser


def post(browser, path, **form):
    return browser.post(path, data=form, base_url="https://shop.example", headers={"User-Agent": "Test/1"})


def get(browser, path):
    return browser.get(path, base_url="https://shop.example")


def test_step_up_opens_the_administration_and_logout_takes_it_along(client):
    browser = client()
    assert get(browser, "/admin").status_code == 401
    assert post(browser, "/login", name="ann").status_code == 303
    assert get(browser, "/admin").status_code == 401
    post(browser, "/confirm")
    assert get(browser, "/admin").text == "administration, 600 s left"
    assert post(browser, "/change_address").text == "changed"
    post(browser, "/logout")
    assert get(browser, "/admin").status_code == 401
    assert post(browser, "/change_address").status_code == 401


def test_devices_are_listed_and_ended(client, tree):
    browsers = [client() for _ in range(2)]
    for browser in browsers:
        post(browser, "/login", name="bob")
    here, there = browsers
    lines = get(here, "/devices").text.splitlines()
    assert [line.endswith("(this device)") for line in lines] == [False, True]
    handle = tree["user"].sessions("bob")[0].handle
    post(here, "/end_device", handle=handle)
    assert get(there, "/devices").status_code == 401
    post(there, "/login", name="bob")
    post(here, "/end_others")
    assert get(there, "/devices").status_code == 401
    assert len(get(here, "/devices").text.splitlines()) == 1


def test_a_second_login_is_refused_where_one_is_the_limit(client):
    assert post(client(), "/strict_login", name="cleo").status_code == 303
    refused = post(client(), "/strict_login", name="cleo")
    assert (refused.status_code, refused.text[:27]) == (409, "You are logged in elsewhere")


def test_a_login_elsewhere_is_taken_over(client, tree):
    browser = client()
    post(browser, "/leave")
    assert post(browser, "/back", state="guessed").status_code == 400
    post(browser, "/leave")
    assert post(browser, "/back", state="random, and sent along").location == "/finish"
    assert get(browser, "/finish").location == "/account"
    assert [info.subject for info in tree["user"].sessions("ann")] == ["ann"]


def test_the_examples_about_caches_run():
    scope = {}
    blocks = blocks_of("docs/caches.md")
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "docs/caches.md", "exec"), scope)  # noqa: S102 - it is our own
    assert scope["user"].config.cache is scope["cache"]
