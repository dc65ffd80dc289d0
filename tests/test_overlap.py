"""Requests that really overlap, in threads and in processes: what the schedules of test_interleavings.py cannot show.

This file is also the program of the worker processes: each has a handler and a store of its own, and is told by lines
on its standard input what to do, so that the test decides who is where.
"""

import subprocess
import sys
from ast import literal_eval
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from threading import Barrier

import pytest
from engines import ENGINES, opened
from support import SECRET, SOAK, environ, run

from sessiontree import Handler, with_store
from sessiontree.stores.sqlite import SqliteStore

WAIT = 60
PROCESSES = 8
INCREMENTS = 1000
APPENDING = 4
APPENDS = 50 * min(SOAK, 10)
ACTION = "test.action"


def site(store):
    """Return an application behind a handler, which does what the environ says."""
    handler = Handler("user", SECRET, with_store(store))

    def app(request, start_response):
        result = request[ACTION](handler.session(request))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [repr(result).encode()]

    return handler.link(app)


def visit(app, cookie, action):
    return run(app, environ(HTTP_COOKIE=cookie, **{ACTION: action}), validate=False)


def logged_in(app):
    """Return the cookie of a new session."""
    (line,) = visit(app, "", lambda session: session.update(user="ann")).cookies
    return line.partition(";")[0]


def data(app, cookie):
    return literal_eval(visit(app, cookie, dict).text)


# -- the program of the worker processes ----------------------------------------------------------


def tell(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def told():
    return sys.stdin.readline().strip()


def work_inside(session, key):
    """Say when the session is loaded, and write once told to go on."""
    assert session["user"] == "ann"
    tell("inside")
    told()
    session[key] = key


def work_increments(app, cookie, name):
    for _ in range(INCREMENTS):
        assert visit(app, cookie, lambda session: session.incr("n")).code == 200, name


def work_appends(app, cookie, name):
    for number in range(APPENDS):
        action = append_to_log(f"{name} {number}")
        assert visit(app, cookie, action).code == 200, name


def append_to_log(entry):
    return lambda session: session.update_key("log", lambda log: [*log, entry], [])


def work(path, cookie, task, name):
    """Do one task in this process, and print what came of it."""
    store = SqliteStore(path, timeout=WAIT)
    app = site(store)
    if task == "write":
        answer = visit(app, cookie, lambda session: work_inside(session, name))
        tell(f"{answer.code} {len(answer.cookies)}")
    elif task == "logout":
        answer = visit(app, cookie, lambda session: session.revoke())
        tell(f"{answer.code} {len(answer.cookies)}")
    else:
        tell("inside")
        told()
        {"incr": work_increments, "append": work_appends}[task](app, cookie, name)
        tell("done")
    store.close()


class Worker:
    """A process that does one task; ``with`` ends it, whatever happened."""

    def __init__(self, path, cookie, task, name="w"):
        command = [sys.executable, __file__, str(path), cookie, task, name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hears(self):
        """Return the next line that it prints; an empty one if it ended without."""
        return self._process.stdout.readline().strip()

    def go_on(self):
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        if raised[0] is not None:
            self._process.kill()
        self._process.communicate(timeout=WAIT)
        assert raised[0] is not None or self._process.returncode == 0


def together(workers):
    """Let workers go on at one moment, when all of them are inside; return what they say at their ends."""
    for worker in workers:
        assert worker.hears() == "inside"
    for worker in workers:
        worker.go_on()
    return [worker.hears() for worker in workers]


# -- threads --------------------------------------------------------------------------------------


@pytest.fixture(params=ENGINES)
def store(request, tmp_path):
    made = opened(request.param, tmp_path)
    yield made
    made.close()


def at_once(calls):
    """Make the calls in threads at the same time; return what they returned, in their order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(WAIT) for future in [pool.submit(call) for call in calls]]


def meeting(count):
    """Return what makes actions that write one key, when so many requests have loaded the session."""
    barrier = Barrier(count, timeout=WAIT)

    def writing(key):
        def act(session):
            assert session["user"] == "ann"
            barrier.wait()
            session[key] = key

        return act

    return writing


@pytest.mark.parametrize("count", [2, 8])
def test_st_15_overlapping_writers_of_different_keys_in_threads_all_survive(store, count):
    app = site(store)
    cookie = logged_in(app)
    for turn in range(5):
        writing, keys = meeting(count), [f"{turn}.{number}" for number in range(count)]
        answers = at_once([partial(visit, app, cookie, writing(key)) for key in keys])
        assert [(answer.code, answer.cookies) for answer in answers] == [(200, [])] * count
        assert {key: key for key in keys}.items() <= data(app, cookie).items()
    assert len(data(app, cookie)) == 1 + 5 * count


def test_a_write_in_a_thread_that_another_one_logged_out_is_answered_409_without_a_cookie(store):
    app = site(store)
    cookie = logged_in(app)
    loaded, ended = Barrier(2, timeout=WAIT), Barrier(2, timeout=WAIT)

    def late(session):
        assert session["user"] == "ann"
        loaded.wait()
        ended.wait()
        session["late"] = True

    def logout(session):
        loaded.wait()
        session.revoke()
        ended.wait()

    written, logged_out = at_once([lambda: visit(app, cookie, late), lambda: visit(app, cookie, logout)])
    assert (written.code, written.cookies) == (409, [])
    assert logged_out.code == 200
    assert data(app, cookie) == {}


def test_increments_from_threads_are_exact(store):
    app = site(store)
    cookie = logged_in(app)

    def count():
        return [visit(app, cookie, lambda session: session.incr("n")).code for _ in range(INCREMENTS)]

    assert at_once([count] * 4) == [[200] * INCREMENTS] * 4
    assert data(app, cookie)["n"] == 4 * INCREMENTS


# -- processes ------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions.db"


@pytest.fixture
def app(path):
    """The application in this process, beside those in the workers."""
    store = SqliteStore(path, timeout=WAIT)
    yield site(store)
    store.close()


def test_st_15_overlapping_writers_of_different_keys_in_processes_all_survive(app, path):
    cookie = logged_in(app)
    keys = ["a", "b", "c"]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(path, cookie, "write", key)) for key in keys]
        assert together(workers) == ["200 0"] * 3
    assert data(app, cookie) == {"user": "ann", "a": "a", "b": "b", "c": "c"}


def test_increments_from_eight_processes_are_exact(app, path):
    cookie = logged_in(app)
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(path, cookie, "incr")) for _ in range(PROCESSES)]
        assert together(workers) == ["done"] * PROCESSES
    assert data(app, cookie)["n"] == PROCESSES * INCREMENTS


def test_updates_of_one_list_from_four_processes_lose_nothing_and_repeat_nothing(app, path):
    cookie = logged_in(app)
    with ExitStack() as stack:
        names = [f"worker{number}" for number in range(APPENDING)]
        workers = [stack.enter_context(Worker(path, cookie, "append", name)) for name in names]
        assert together(workers) == ["done"] * APPENDING
    log = data(app, cookie)["log"]
    assert sorted(log) == sorted(f"{name} {number}" for name in names for number in range(APPENDS))
    for name in names:
        assert [entry for entry in log if entry.startswith(f"{name} ")] == [f"{name} {n}" for n in range(APPENDS)]


@pytest.mark.parametrize("ended_by", ["this process", "another worker"])
def test_a_write_in_a_process_that_another_one_logged_out_is_answered_409_without_a_cookie(app, path, ended_by):
    cookie = logged_in(app)
    with Worker(path, cookie, "write", "late") as late:
        assert late.hears() == "inside"
        if ended_by == "this process":
            assert visit(app, cookie, lambda session: session.revoke()).code == 200
        else:
            with Worker(path, cookie, "logout") as other:
                assert other.hears() == "200 1"
        late.go_on()
        assert late.hears() == "409 0"
    assert data(app, cookie) == {}


def test_a_write_in_a_process_whose_id_another_one_renewed_is_answered_409_without_a_cookie(app, path):
    cookie = logged_in(app)
    with Worker(path, cookie, "write", "late") as late:
        assert late.hears() == "inside"
        (line,) = visit(app, cookie, lambda session: session.renew()).cookies
        late.go_on()
        assert late.hears() == "409 0"
    assert data(app, line.partition(";")[0]) == {"user": "ann"}
    assert data(app, cookie) == {}


if __name__ == "__main__":
    work(*sys.argv[1:])
