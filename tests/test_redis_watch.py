"""What a RedisStore hears of other processes' changes, what it says when it cannot, and what that costs.

Run with ``-s`` to see how long it takes another process to hear of a revocation.
"""

import gc
import itertools
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import pytest
from redis import Redis
from servers import valkey
from support import SOAK

from sessiontree import StoreUnavailable, UsageError
from sessiontree.clock import FOREVER
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import PROOF, TurningClock, fields, js, new
from sessiontree.stores.conformance.watching import ANNOUNCED, Heard
from sessiontree.stores.redis import RedisStore

NUMBERS = itertools.count(1)
THREAD = "sessiontree-watch"


@pytest.fixture(scope="module", params=["valkey", "redis"])
def server(request):
    return valkey.started(request.param)


@pytest.fixture
def prefix():
    return f"watch-{os.getpid()}-{next(NUMBERS)}"


@pytest.fixture
def clock():
    return TurningClock()


@pytest.fixture
def store(server, prefix, clock):
    with closing(RedisStore.from_url(server.url, prefix=prefix, clock=clock)) as made:
        yield made


@pytest.fixture
def elsewhere(server, prefix, clock):
    with closing(RedisStore.from_url(server.url, prefix=prefix, clock=clock)) as made:
        yield made


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def client(server):
    with Redis.from_url(server.url) as made:
        yield made


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def ended(threads):
    for thread in threads:
        thread.join(10)
    return not any(thread.is_alive() for thread in threads)


# -- what is heard --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["listen", "watch"])
@pytest.mark.parametrize("kind", [*ANNOUNCED, "a touch"])
def test_a_change_is_announced_before_its_verb_returns(store, clock, way, kind):
    told = []
    record = new(store, labels={"subject": "bob"}, fields=fields(n=js(1)))
    stop = getattr(store, way)(told.append)
    clock.advance(2)
    if kind == "a touch":
        store.apply(record.handle, PROOF, Changes(seen=clock.now(), idle=FOREVER - 1))
    else:
        ANNOUNCED[kind](store, record.handle)
    assert told[:1] == [record.handle]
    stop()


@pytest.mark.parametrize("kind", [*ANNOUNCED, "a touch"])
def test_what_others_change_is_heard_by_its_handle(store, elsewhere, clock, heard, kind):
    record = new(store, labels={"subject": "bob"}, fields=fields(n=js(1)))
    stop = store.watch(heard.on_change)
    clock.advance(2)
    if kind == "a touch":
        elsewhere.apply(record.handle, PROOF, Changes(seen=clock.now(), idle=FOREVER - 1))
    else:
        ANNOUNCED[kind](elsewhere, record.handle)
    assert heard.has(record.handle)
    assert set(heard.forget()) == {record.handle}, "Nothing was lost, and nothing else has changed."
    stop()


@pytest.mark.parametrize("handle", ["", "a}b", "{x}", "é\0", "\udc80", "*", "x" * 1000], ids=ascii)
def test_any_handle_is_heard_as_it_is(store, elsewhere, heard, handle):
    stop = store.watch(heard.on_change)
    new(elsewhere, handle or "{}")
    assert heard.has(handle or "{}")
    assert None not in heard.forget()
    stop()


def test_another_prefix_is_not_heard_of(server, store, prefix, clock, heard):
    stop = store.watch(heard.on_change)
    with closing(RedisStore.from_url(server.url, prefix=prefix + "x", clock=clock)) as stranger:
        stranger.revoke(new(stranger).handle)
    handle = new(store).handle
    assert heard.has(handle)
    assert set(heard.forget()) == {handle}
    stop()


@pytest.mark.parametrize("command", ["flushall", "flushdb"])
def test_an_emptied_server_is_announced_as_anything(store, client, heard, command):
    stop = store.watch(heard.on_change)
    getattr(client, command)()
    assert heard.has("nothing but None")
    stop()


def test_what_the_server_takes_away_by_itself_is_heard(store, client, heard):
    record = new(store)
    stop = store.watch(heard.on_change)
    client.pexpire(store._key(record.handle), 1)
    assert heard.has(record.handle)
    stop()


# -- lost and back --------------------------------------------------------------------------------


def tracker(client):
    return next(each for each in client.client_list() if "t" in each["flags"] and int(each["sub"]))


def test_a_lost_connection_is_said_once_and_announced_and_so_is_its_return(store, elsewhere, client, heard, caplog):
    stop = store.watch(heard.on_change)
    lost = []
    extra = store.listen(lost.append)
    with caplog.at_level(logging.WARNING, "sessiontree.stores"):
        client.client_kill_filter(_id=tracker(client)["id"])
        assert heard.has("nothing but None")
        back(store, elsewhere, heard)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not heard of for now" in caplog.records[0].message
    stop()
    extra()


def back(store, elsewhere, heard):
    """Wait until the feed tells handles again."""
    for _ in range(1000):
        heard.forget()
        handle = new(elsewhere).handle
        if heard.has(handle) and None not in heard.forget():
            return
    raise AssertionError("The feed never came back.")


def test_a_server_that_dies_is_lost_and_one_that_comes_back_is_heard_again(clock, prefix, heard, caplog):
    server = valkey.Valkey()
    server.start()
    try:
        with (
            closing(RedisStore.from_url(server.url, prefix=prefix, clock=clock)) as store,
            closing(RedisStore.from_url(server.url, prefix=prefix, clock=clock)) as elsewhere,
            caplog.at_level(logging.WARNING, "sessiontree.stores"),
        ):
            stop = store.watch(heard.on_change)
            server.kill()
            assert heard.has("nothing but None")
            heard.forget()
            with pytest.raises(StoreUnavailable):
                store.load("a")
            with pytest.raises(StoreUnavailable):
                elsewhere.watch(heard.on_change)
            server.start()
            assert heard.has("nothing but None"), "What was changed meanwhile nobody knows."
            back(store, elsewhere, heard)
            assert len(caplog.records) == 1
            stop()
    finally:
        server.remove()


def test_a_server_that_no_longer_answers_is_lost(clock, prefix, heard, caplog, monkeypatch):
    monkeypatch.setattr("sessiontree.stores.redis.watch.PATIENCE", 0.1)
    server = valkey.Valkey()
    server.start()
    try:
        with closing(RedisStore.from_url(server.url, prefix=prefix, clock=clock)) as store:
            stop = store.watch(heard.on_change)
            with caplog.at_level(logging.WARNING, "sessiontree.stores"):
                server.pause()
                assert heard.has("nothing but None")
                server.go_on()
            stop()
    finally:
        server.remove()


# -- what it costs --------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_first_verb_and_no_thread_runs_until_somebody_watches(server, client, prefix):
    before = len(client.client_list())
    with closing(RedisStore.from_url(server.url, prefix=prefix)) as store:
        store.listen(print)
        assert len(client.client_list()) == before
        store.load("a")
        assert len(client.client_list()) == before + 1
        assert watchers() == []


def test_all_who_watch_share_one_thread_which_ends_with_the_last(store, client, heard):
    store.load("a")
    before = len(client.client_list())
    stops = [store.watch(heard.on_change) for _ in range(3)]
    threads = watchers()
    assert len(threads) == 1
    assert len(client.client_list()) == before + 1
    for stop in stops:
        assert threads[0].is_alive()
        stop()
        stop()
    assert ended(threads)
    stop = store.watch(heard.on_change)
    handle = new(store).handle
    assert heard.has(handle)
    stop()
    assert ended(watchers())


def test_a_thread_ends_with_its_store(server, prefix, heard, monkeypatch):
    monkeypatch.setattr("sessiontree.stores.redis.watch.PATIENCE", 0.05)
    closed = RedisStore.from_url(server.url, prefix=prefix)
    stop = closed.watch(heard.on_change)
    threads = watchers()
    closed.close()
    assert heard.forget() == [None]
    assert ended(threads)
    stop()
    with pytest.raises(UsageError):
        closed.watch(heard.on_change)
    forgotten = RedisStore.from_url(server.url, prefix=prefix)
    forgotten.watch(heard.on_change)
    threads = watchers()
    del forgotten
    gc.collect()
    assert ended(threads)


def test_watchers_that_come_and_go_at_once_all_hear(store, elsewhere):
    def come_and_go():
        for _ in range(20 * SOAK):
            heard = Heard()
            stop = store.watch(heard.on_change)
            results.append(heard.has(new(elsewhere).handle))
            stop()

    results = []
    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [True] * 80 * SOAK
    assert ended(watchers())


# -- other processes ------------------------------------------------------------------------------

TOP = """
import os, signal, sys, warnings
sys.path.insert(0, sys.argv[3])
from sessiontree.stores.conformance.watching import Heard
from sessiontree.stores.conformance.tools import new
from sessiontree.stores.redis import RedisStore
url, prefix = sys.argv[1], sys.argv[2]
warnings.simplefilter("ignore")
def made():
    return RedisStore.from_url(url, prefix=prefix)
"""


def output(script, server, prefix):
    argv = [sys.executable, "-c", TOP + textwrap.dedent(script), server.url, prefix, str(Path(__file__).parent)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60 * SOAK, check=False)
    return done.stdout, done.stderr, done.returncode


def test_a_forked_child_hears_for_itself_and_its_parent_goes_on(server, prefix):
    script = """
    store, other, heard = made(), made(), Heard()
    store.watch(heard.on_change)
    first = new(other).handle
    assert heard.has(first)
    heard.forget()
    child_tells, to_parent = os.pipe()
    parent_tells, to_child = os.pipe()
    child = os.fork()
    if not child:
        try:
            assert heard.forget() == []
            assert store.load(first) is not None, "The first use of the store starts the thread."
            assert heard.has("nothing but None")
            os.write(to_parent, b"x")
            handle = os.read(parent_tells, 100).decode()
            assert heard.has(handle)
            store.close()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.read(child_tells, 1)
    handle = new(other).handle
    assert heard.has(handle)
    assert None not in heard.forget(), "The parent lost nothing by the fork."
    os.write(to_child, handle.encode())
    assert os.waitpid(child, 0)[1] == 0
    assert heard.has(new(other).handle)
    assert None not in heard.forget()
    print("well", flush=True)
    """
    assert output(script, server, prefix) == ("well\n", "", 0)


def test_a_forked_child_that_watches_before_it_does_anything_else_has_one_thread(server, prefix):
    """Two would read from one connection what is half the other's."""
    script = """
    import threading
    store, other, heard, more = made(), made(), Heard(), Heard()
    store.watch(heard.on_change)
    child = os.fork()
    if not child:
        try:
            store.watch(more.on_change)
            for _ in range(20):
                handle = new(store).handle
                assert heard.has(handle)
                assert more.has(handle)
            assert sum(each.name == "sessiontree-watch" and each.is_alive() for each in threading.enumerate()) == 1
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    for _ in range(20):
        assert heard.has(new(other).handle)
    assert os.waitpid(child, 0)[1] == 0
    assert heard.has(new(other).handle)
    assert None not in heard.forget(), "The parent lost nothing by the fork."
    print("well", flush=True)
    """
    assert output(script, server, prefix) == ("well\n", "", 0)


def test_a_child_that_was_forked_in_c_waits_for_no_lock_of_the_feed_and_ends_none(server, prefix):
    script = """
    import ctypes, signal
    store, other, heard = made(), made(), Heard()
    stop = store.watch(heard.on_change)
    assert heard.has(new(other).handle)
    heard.forget()
    for act in (lambda: store.load("a"), stop, store.close):
        with store._feed._lock:
            child = ctypes.PyDLL(None).fork()
            if not child:
                signal.alarm(20)
                act()
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert heard.has(new(other).handle)
    assert None not in heard.forget(), "The parent lost nothing by the fork."
    print("well", flush=True)
    """
    assert output(script, server, prefix) == ("well\n", "", 0)


def test_a_process_may_fork_at_any_moment(server, prefix):
    script = f"""
    import threading
    store, other, heard, done = made(), made(), Heard(), threading.Event()
    store.watch(heard.on_change)
    def work():
        while not done.is_set():
            store.revoke(new(store).handle)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range({20 * SOAK}):
        handle = new(other).handle
        child = os.fork()
        if not child:
            signal.alarm(20)
            try:
                ok = store.load(handle) is not None and store.revoke(handle)
                ok = ok and heard.has(handle)
            finally:
                os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0, number
        assert heard.has(handle)
        assert None not in heard.forget()
    done.set()
    for thread in threads:
        thread.join()
    print("well", flush=True)
    """
    assert output(script, server, prefix) == ("well\n", "", 0)


def test_a_process_ends_at_once_though_it_watches(server, prefix):
    script = """
    store, heard = made(), Heard()
    stop = store.watch(heard.on_change)
    print("over", flush=True)
    """
    assert output(script, server, prefix) == ("over\n", "", 0)


def test_how_long_a_revocation_takes_to_be_heard_elsewhere(server, store, prefix, clock):
    """The other process writes down when its revoke returned; no figure is asserted."""
    script = """
    import time
    store = made()
    for line in sys.stdin:
        store.revoke(line.strip())
        print(time.perf_counter(), flush=True)
    """
    times = {}
    arrived = threading.Event()

    def on_change(handle):
        times.setdefault(handle, time.perf_counter())
        arrived.set()

    argv = [sys.executable, "-c", TOP + textwrap.dedent(script), server.url, prefix, str(Path(__file__).parent)]
    took = []
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(100):
            handle = new(store).handle
            stop = store.watch(on_change)
            times.clear()
            arrived.clear()
            process.stdin.write(handle + "\n")
            process.stdin.flush()
            returned = float(process.stdout.readline())
            while handle not in times:
                assert arrived.wait(10)
                arrived.clear()
            took.append(times[handle] - returned)
        process.stdin.close()
        process.send_signal(signal.SIGTERM)
    stop()
    print(f"\nheard {median(took) * 1000:.3f} ms after the revoke returned (median)")  # noqa: T201 - for -s
