"""Nothing is shared between requests: in threads, in processes, one after the other."""

import ctypes
import multiprocessing
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import SECRET, SOAK, Browser, clocked, environ, plain_app

from sessiontree import Handler, chain, with_encryption
from sessiontree.handlers.encoding import nonce


@pytest.mark.parametrize("sealed", [False, True])
def test_cx_7_ten_thousand_mixed_requests_from_sixteen_threads_never_mix_their_data(sealed):
    visitor, clock = clocked("visitor", with_encryption(sealed))
    user = visitor.spawn("user")
    wrong: list[object] = []

    def page(request):
        action, _, mine = request["PATH_INFO"][1:].partition("/")
        v, u = visitor.session(request), user.session(request)
        if action == "write":
            v["mine"] = mine
            u["mine"] = [mine]
        elif action == "append":
            u.setdefault("mine", []).append(mine)
        elif action == "fail":
            v["mine"] = "lost"
            raise LookupError(mine)
        elif action == "logout":
            v.revoke()
        return v.get("mine"), u.get("mine")

    app = chain(visitor, user)(plain_app(page))

    def client(number):
        browser, choose, mine = Browser(app, clock), random.Random(number), f"client{number}"
        browser.get(f"/write/{mine}")
        for _ in range(10_000 * SOAK // 20 // 16):
            action = choose.choice(["write", "append", "read", "fail", "logout", "read", "write"])
            try:
                text = browser.get(f"/{action}/{mine}").text
            except LookupError:
                continue
            if action == "logout":
                browser.get(f"/write/{mine}")
            seen = set(text.replace("'", " ").replace("[", " ").replace("]", " ").replace(",", " ").split())
            if seen - {mine, "(", ")", "None", "(None", "None)"}:
                wrong.append((number, text))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(client, range(16)))
    assert wrong == []


def test_two_requests_of_one_handler_at_once_each_see_their_own(request):
    handler, clock = clocked()
    barrier = threading.Barrier(2, timeout=10)

    def page(made):
        session = handler.session(made)
        session["mine"] = made["PATH_INFO"]
        barrier.wait()
        return session["mine"]

    app = handler.link(plain_app(page))
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda path: Browser(app, clock).get(path).text, ["/a", "/b"]))
    assert answers == ["'/a'", "'/b'"]


def test_a_second_client_in_the_same_process_sees_nothing_of_the_first():
    handler, clock = clocked()
    seen = []
    app = handler.link(plain_app(lambda r: seen.append(dict(handler.session(r))) or handler.session(r).update(who="a")))
    Browser(app, clock).get()
    Browser(app, clock).get()
    assert seen == [{}, {}]


def test_ca_10_what_one_request_mutates_no_other_request_sees():
    handler, clock = clocked()
    browser = Browser(handler.link(plain_app(lambda r: handler.session(r).update(items=[1]))), clock)
    browser.get()
    requests = [environ(HTTP_COOKIE=browser.jar.header()) for _ in range(2)]
    first, second = (handler.session(request) for request in requests)
    first["items"].append(2)
    assert second["items"] == [1]


def _identities(count):
    handler = Handler("visitor", SECRET, with_encryption())
    found = []
    for _ in range(count):
        made = environ()
        session = handler.session(made)
        session["n"] = 1
        found.append((session.id, session.handle, made["sessiontree"].commit()[0][1]))
    return found


def test_id_2_ids_are_unique_across_threads_and_forks():
    _identities(3)  # So that the pool of nonces is filled before the fork.
    each = 1000 * SOAK // 20
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = [identity for part in pool.map(_identities, [each] * 8) for identity in part]
    with ThreadPoolExecutor(8) as pool:
        found += [identity for part in pool.map(_identities, [each] * 8) for identity in part]
    for column in zip(*found, strict=True):
        assert len(set(column)) == len(found)


def test_ws_4_no_lock_is_held_while_the_application_runs():
    handler, clock = clocked("visitor", with_encryption())
    other_done = threading.Event()

    def page(request):
        handler.session(request)["n"] = request["PATH_INFO"]
        if request["PATH_INFO"] == "/slow":
            assert other_done.wait(10), "the other request had to wait for this one"
        return "ok"

    app = handler.link(plain_app(page))
    slow = threading.Thread(target=Browser(app, clock).get, args=("/slow",))
    slow.start()
    Browser(app, clock).get("/fast")
    other_done.set()
    slow.join(10)
    assert not slow.is_alive()


def test_cr_6_nonces_differ_after_a_fork_that_python_was_not_told_of():
    """Some servers fork in C, and no hook of Python's runs; nor does one in a child's child."""
    nonce()
    read, write = os.pipe()
    child = ctypes.PyDLL(None).fork()
    if not child:
        os.write(write, b"".join(nonce() for _ in range(100)))
        grandchild = ctypes.PyDLL(None).fork()
        os.write(write, b"".join(nonce() for _ in range(100)))
        if grandchild:
            os.waitpid(grandchild, 0)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    every = [theirs[i : i + 12] for i in range(0, len(theirs), 12)] + [nonce() for _ in range(300)]
    assert len(set(every)) == len(every) == 600
