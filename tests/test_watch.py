"""What stores tell of changes: each object of its own before the verb returns, and SQLite of other processes' too.

Run with ``-s`` to see how long it takes another process to hear of a revocation, and what it costs to wait for one.
"""

import gc
import logging
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from contextlib import closing, contextmanager
from statistics import median
from types import SimpleNamespace

import pytest
from support import SOAK

from sessiontree import CompareFailed, Conflict, SessionGone, StoreUnavailable, UsageError, forks
from sessiontree.clock import FOREVER
from sessiontree.records import Changes
from sessiontree.stores.announcing import Announcing
from sessiontree.stores.conformance import StoreConformance
from sessiontree.stores.conformance.tools import (
    OTHER_PROOF,
    PROOF,
    TurningClock,
    at_once,
    fields,
    fresh_handle,
    js,
    new,
)
from sessiontree.stores.conformance.watching import ANNOUNCED, Heard
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.stores.sqlite import watch as sqlite_watch
from sessiontree.stores.sqlite.file import STEPS
from sessiontree.testing import FaultyStore

HOUR = 3600
THREAD = "sessiontree-watch"


@pytest.fixture
def clock():
    return TurningClock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions.db"


@pytest.fixture
def sqlite(path, clock):
    with closing(SqliteStore(path, clock=clock, timeout=0.05)) as store:
        yield store


@pytest.fixture
def elsewhere(sqlite, path, clock):
    """Another object on the same file, which knows nothing of the first."""
    with closing(SqliteStore(path, clock=clock)) as store:
        yield store


@pytest.fixture(params=["memory", "sqlite"])
def store(request, clock):
    return MemoryStore(clock=clock) if request.param == "memory" else request.getfixturevalue("sqlite")


@pytest.fixture
def told():
    return []


@pytest.fixture
def heard():
    return Heard()


def sql(path, *statements):
    """Run statements as a stranger would; return the last one's rows."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def ended(thread):
    thread.join(10)
    return not thread.is_alive()


# -- in the writer's thread -------------------------------------------------------------------


def attempt(verb, *arguments):
    """Call it, whatever comes of it."""
    try:
        return verb(*arguments)
    except (Conflict, SessionGone, CompareFailed, TypeError) as error:
        return error


@pytest.mark.parametrize("way", ["listen", "watch"])
@pytest.mark.parametrize("kind", [*ANNOUNCED, "a touch"])
def test_a_change_is_announced_before_its_verb_returns(store, clock, told, way, kind):
    record = new(store, labels={"subject": "bob"}, fields=fields(n=js(1)))
    getattr(store, way)(told.append)
    clock.advance(2)
    if kind == "a touch":
        store.apply(record.handle, PROOF, Changes(seen=clock.now(), idle=FOREVER - 1))
    else:
        ANNOUNCED[kind](store, record.handle)
    assert told[:1] == [record.handle]


def test_creating_is_announced_for_somebody_may_know_that_there_was_nothing(store, told):
    store.listen(told.append)
    handles = [new(store, labels=labels).handle for labels in ({}, {"subject": "bob"})]
    assert told == handles


@pytest.mark.parametrize("deadline", ["absolute", "own", "idle"])
@pytest.mark.parametrize(
    "verb", [lambda store, handle: store.load(handle), lambda store, handle: store.load_many([handle])]
)
def test_seen_expiry_is_announced(store, clock, told, deadline, verb):
    record = new(store, **{deadline: clock.now() + 1})
    store.listen(told.append)
    assert verb(store, record.handle)
    assert told == []
    clock.advance(1)
    assert not verb(store, record.handle)
    assert told == [record.handle]


def test_every_record_of_many_is_announced_when_they_change_at_once(store, clock, told):
    store.listen(told.append)
    bobs = [new(store, labels={"subject": "bob"}).handle for _ in range(3)]
    new(store, labels={"subject": "ann"})
    told.clear()
    assert store.relabel("subject", "bob", "eve") == 3
    assert sorted(told) == sorted(bobs)
    told.clear()
    assert store.revoke_where("subject", "eve") == 3
    assert sorted(told) == sorted(bobs)
    over = [new(store, idle=clock.now() + 1).handle for _ in range(250)]
    clock.advance(HOUR + 1)
    told.clear()
    assert store.sweep(200) == len(told) == 200
    assert store.sweep(200) == 50
    assert sorted(told) == sorted(over)
    told.clear()
    assert store.sweep_idle(1) == len(told) == 1


def test_reading_announces_nothing(store, told):
    record = new(store, labels={"subject": "bob"})
    store.listen(told.append)
    store.load(record.handle)
    store.load(fresh_handle())
    store.load_many([record.handle])
    store.find("subject", "bob")
    store.count("subject", "bob")
    store.scan()
    store.sweep()
    store.sweep_idle(1)
    assert told == []


@pytest.mark.parametrize(
    ("error", "act"),
    [
        (SessionGone, lambda store, handle: store.apply(handle, OTHER_PROOF, Changes(adds={"n": 1}))),
        (SessionGone, lambda store, handle: store.apply(handle, OTHER_PROOF, Changes(proof=PROOF))),
        (CompareFailed, lambda store, handle: store.apply(handle, PROOF, Changes(expects={"n": js(2)}))),
        (TypeError, lambda store, handle: store.apply(handle, PROOF, Changes(adds={"t": 1}))),
        (Conflict, lambda store, handle: new(store, handle)),
        (Conflict, lambda store, handle: new(store, handle, labels={"subject": "bob"})),
        (bool, lambda store, handle: store.revoke(handle) and store.revoke(handle)),
    ],
)
def test_what_was_refused_is_announced_too_for_the_writer_may_have_believed_a_cache(store, told, error, act):
    record = new(store, fields=fields(n=js(1), t=js("text")))
    store.listen(told.append)
    assert isinstance(attempt(act, store, record.handle), error)
    assert set(told) == {record.handle}


@pytest.mark.parametrize("kind", [*ANNOUNCED, "create"])
def test_a_change_whose_answer_is_lost_is_announced(store, clock, told, kind):
    faulty = FaultyStore(store)
    record = new(store, labels={"subject": "bob"}, fields=fields(n=js(1)))
    faulty.listen(told.append)
    clock.advance(2)
    faulty.fail_after(1)
    act, handle = ANNOUNCED.get(kind, new), record.handle if kind in ANNOUNCED else fresh_handle()
    with pytest.raises(StoreUnavailable):
        act(faulty, handle)
    assert told == [handle]


def test_a_change_that_never_reached_the_store_is_not_announced(store, told):
    faulty = FaultyStore(store)
    handle = new(faulty).handle
    faulty.listen(told.append)
    faulty.fail(1)
    with pytest.raises(StoreUnavailable):
        faulty.revoke(handle)
    assert told == []
    stop = faulty.watch(told.append)
    assert faulty.calls[-1][0] == "watch"
    faulty.revoke(handle)
    assert told[:2] == [handle, handle], "Each of the two was told at once."
    stop()


class Silent:
    """A store of somebody else's making, which announces nothing by itself."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        if name == "listen":
            raise AttributeError(name)
        return getattr(self._store, name)


def test_a_faulty_store_listens_to_any_store(clock, told):
    faulty = FaultyStore(Silent(MemoryStore(clock=clock)))
    handle = new(faulty).handle
    faulty.listen(told.append)
    faulty.fail_after(1)
    with pytest.raises(StoreUnavailable):
        faulty.revoke(handle)
    assert told == [handle]


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda store, handle: store.apply(handle, PROOF, Changes(adds={"n": 1})), "handle"),
        (lambda store, handle: store.apply(handle, PROOF, Changes(proof=OTHER_PROOF)), "handle"),
        (lambda store, handle: store.revoke(handle), "handle"),
        (lambda store, handle: new(store, handle), "handle"),
        (lambda store, handle: store.revoke_where("subject", "bob"), None),
        (lambda store, handle: store.relabel("subject", "bob", "eve"), None),
        (lambda store, handle: store.sweep_idle(1), "handle"),
    ],
)
def test_a_verb_that_failed_announces_what_it_was_about(sqlite, told, act, expected):
    handle = new(sqlite, labels={"subject": "bob"}).handle
    sqlite.clock.advance(2)
    sqlite.listen(told.append)
    with closing(sqlite3.connect(sqlite.path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            act(sqlite, handle)
    assert told == [handle if expected else None]


def test_a_sweep_that_failed_announces_nothing_for_what_has_expired_is_in_no_cache(sqlite, path, clock, told):
    over = new(sqlite, idle=clock.now() + 1).handle
    clock.advance(2 * HOUR)
    sqlite.listen(told.append)
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            sqlite.sweep()
        assert told == []
        assert sqlite.load(over) is None
    assert told == [over], "It could not be deleted, and it is over all the same."


class Stop(BaseException):
    """What a signal's handler may raise anywhere."""


def test_a_writer_that_was_torn_away_announces_what_it_was_about(store, told, clock):
    record = new(store)
    store.listen(told.append)

    def tear():
        raise Stop

    clock.then = tear
    with pytest.raises(Stop):
        store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
    assert told == [record.handle]


def test_who_listens_may_use_the_store(store):
    record, found = new(store, labels={"subject": "bob"}), []

    def on_change(handle):
        found.append(None if handle is None else store.load(handle))

    store.listen(on_change)
    store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)}))
    assert found[0].version == 2
    store.relabel("subject", "bob", "eve")
    store.revoke_where("subject", "eve")
    assert found[-1] is None


def test_a_closed_memory_store_has_forgotten_everything_and_says_so(clock, told):
    store = MemoryStore(clock=clock)
    stop = store.watch(told.append)
    store.close()
    store.close()
    assert told == [None]
    stop()
    with pytest.raises(UsageError):
        store.watch(told.append)


# -- who listens ------------------------------------------------------------------------------


class Cache:
    """What listens by a method."""

    def __init__(self):
        self.dropped = []

    def drop(self, handle):
        self.dropped.append(handle)


class Slotted:
    """What nothing can refer to weakly."""

    __slots__ = ("dropped",)

    def __init__(self):
        self.dropped = []

    def drop(self, handle):
        self.dropped.append(handle)


def test_a_listener_hears_until_it_is_stopped_and_stopping_again_is_fine():
    told, other, source = [], [], Announcing()
    stop, _ = source.listen(told.append), source.listen(other.append)
    source.announce("a")
    stop()
    stop()
    source.announce("b")
    source.announce(None)
    assert (told, other) == (["a"], ["a", "b", None])


@pytest.mark.parametrize("wrong", [None, "f", 5, []])
def test_what_cannot_be_called_cannot_listen(wrong):
    with pytest.raises(UsageError, match="on_change"):
        Announcing().listen(wrong)


@pytest.mark.parametrize("kind", [Cache, Slotted])
def test_one_function_may_listen_twice_and_each_is_stopped_by_itself(kind):
    source, cache = Announcing(), kind()
    first, second = source.listen(cache.drop), source.listen(cache.drop)
    source.announce("a")
    first()
    source.announce("b")
    second()
    source.announce("c")
    assert cache.dropped == ["a", "a", "b"]


def test_a_cache_is_not_kept_alive_by_what_it_listens_to(store):
    cache, told = Cache(), []
    store.listen(cache.drop)
    store.listen(told.append)
    new(store)
    assert len(cache.dropped) == 1
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
    assert len(store._listeners) == 1
    new(store)
    assert len(told) == 2


def test_a_listener_does_not_keep_the_store_alive(clock):
    store, stops = MemoryStore(clock=clock), []
    stops.append(store.listen(Cache().drop))
    stops.append(store.listen(print))
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
    for stop in stops:
        stop()


def test_a_listener_that_raises_is_logged_once_and_hinders_nobody(store, told, caplog):
    def broken(handle):
        raise LookupError("broken")

    store.listen(broken)
    store.listen(told.append)
    record = new(store)
    assert store.apply(record.handle, PROOF, Changes(adds={"n": 1})) == 2
    assert store.revoke(record.handle) is True
    assert told == [record.handle] * 3
    [entry] = caplog.records
    assert (entry.name, entry.levelno) == ("sessiontree.stores", logging.ERROR)
    assert "broken" in entry.getMessage()
    assert entry.exc_info[0] is LookupError


def test_a_listener_may_stop_itself_and_let_others_listen(told):
    source, stops = Announcing(), []

    def once(handle):
        told.append(handle)
        stops.pop()()
        source.listen(told.append)

    stops.append(source.listen(once))
    source.announce("a")
    source.announce("b")
    assert told == ["a", "b"]


def test_listeners_come_and_go_in_any_thread_while_others_are_told():
    source, done = Announcing(), threading.Event()
    steady = Heard()
    source.listen(steady.on_change)

    def come_and_go():
        for number in range(300 * SOAK):
            cache = Cache()
            stop = source.listen(cache.drop)
            if number % 3:
                stop()
            else:
                weakref.finalize(cache, stop)

    def tell():
        count = 0
        while not done.is_set():
            source.announce(str(count))
            count += 1
        return count

    def all_of_them():
        try:
            return at_once(*[come_and_go] * 6)
        finally:
            done.set()

    first, second, result = at_once(tell, tell, all_of_them)
    assert result == [None] * 6
    gc.collect()
    assert len(source._listeners) == 1
    assert len(steady.forget()) == first + second


# -- the suite catches stores whose feed breaks the contract ----------------------------------


class NeverAnnounces(MemoryStore):
    def announce(self, handle):
        pass


class AnnouncesTooEarly(MemoryStore):
    def revoke(self, handle):
        self.announce(handle)
        listeners, self._listeners = self._listeners, {}
        try:
            return super().revoke(handle)
        finally:
            self._listeners = listeners


class NeverStops(MemoryStore):
    def watch(self, on_change):
        super().watch(on_change)
        return lambda: None


class LetsListenersRaise(MemoryStore):
    def announce(self, handle):
        for listener in self._listeners:
            listener._found()(handle)


class StopsOnce(MemoryStore):
    def watch(self, on_change):
        stops = [super().watch(on_change)]
        return lambda: stops.pop()()


class AnnouncesSome(MemoryStore):
    def announce(self, handle):
        if handle is None or hash(handle) % 4:
            super().announce(handle)


SUITE = StoreConformance()
CHANGE = SUITE.test_a_change_is_announced_wherever_it_is_made
DONE = SUITE.test_what_is_announced_has_been_done
STOPPED = SUITE.test_who_stopped_hears_nothing_more_and_others_do
RAISES = SUITE.test_a_watcher_that_raises_hinders_nobody
MANY = SUITE.test_every_one_of_many_changes_is_announced


@pytest.mark.parametrize(
    ("kind", "case", "arguments"),
    [
        (NeverAnnounces, CHANGE, ["clock", "revoke", False]),
        (NeverAnnounces, CHANGE, ["clock", "sets", True]),
        (AnnouncesTooEarly, DONE, []),
        (NeverStops, STOPPED, []),
        (StopsOnce, STOPPED, []),
        (LetsListenersRaise, RAISES, []),
        (AnnouncesSome, MANY, []),
    ],
)
def test_the_suite_catches_a_feed_that_breaks_the_contract(kind, case, arguments, monkeypatch):
    monkeypatch.setattr(Heard, "has", lambda self, handle: handle in self._told or None in self._told)
    for each in (MemoryStore, kind):
        store = each(clock=TurningClock())
        values = [{"clock": store.clock}.get(one, one) for one in arguments]
        if each is MemoryStore:
            case(store, store, *values)
        else:
            with pytest.raises((AssertionError, RuntimeError, IndexError)):
                case(store, store, *values)


# -- a file, watched --------------------------------------------------------------------------


@pytest.fixture(params=["bell", "no bell"])
def bell(request, monkeypatch):
    """Let the system tell when the file is written to, or let it not, as most do."""
    if request.param == "no bell":
        monkeypatch.setattr(sqlite_watch, "_inotify", lambda path: -1)


@pytest.mark.usefixtures("bell")
def test_another_object_on_the_file_is_heard(sqlite, elsewhere, heard):
    record = new(sqlite)
    stop = sqlite.watch(heard.on_change)
    elsewhere.revoke(record.handle)
    assert heard.has(record.handle)
    assert set(heard.forget()) == {record.handle}, "Nothing was lost."
    stop()


@pytest.mark.usefixtures("bell")
def test_what_strangers_and_older_releases_write_is_heard(sqlite, path, heard):
    """The triggers are in the file, so whoever writes to it fills the table, with plain statements."""
    handles = [new(sqlite, labels={"subject": "bob"}).handle for _ in range(3)]
    stop = sqlite.watch(heard.on_change)
    for number, statement in enumerate(
        (
            "DELETE FROM sessions WHERE handle = '{}'",
            "UPDATE sessions SET ends = 5 WHERE handle = '{}'",
            "INSERT INTO sessions VALUES ('{}-', 5, x'00')",
        )
    ):
        sql(path, statement.format(handles[number]))
        assert heard.has(handles[number] + "-" * (number == 2))
        assert None not in heard.forget()
    stop()


def test_a_file_that_was_watched_is_of_the_same_schema(sqlite, path, heard, clock):
    record = new(sqlite)
    sqlite.watch(heard.on_change)()
    assert sql(path, "PRAGMA user_version") == [(len(STEPS),)]
    sqlite.close()
    with closing(SqliteStore(path, clock=clock)) as again:
        assert again.load(record.handle) == record
        assert again.apply(record.handle, PROOF, Changes(labels={"subject": "bob"})) == 2
        assert again.revoke_where("subject", "bob") == 1
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_what_is_rolled_back_is_not_announced(sqlite, path, heard, elsewhere):
    handles = [new(sqlite).handle for _ in range(2)]
    stop = sqlite.watch(heard.on_change)
    sql(path, "BEGIN IMMEDIATE", f"DELETE FROM sessions WHERE handle = '{handles[0]}'", "ROLLBACK")  # noqa: S608 - ours
    elsewhere.revoke(handles[1])
    assert heard.has(handles[1])
    assert heard.forget() == [handles[1]]
    stop()


def test_watchers_share_one_thread_and_the_last_one_ends_it(sqlite, elsewhere):
    heards, before = [Heard() for _ in range(3)], watchers()
    stops = [sqlite.watch(each.on_change) for each in heards]
    [thread] = set(watchers()) - set(before)
    for number, stop in enumerate(stops):
        assert thread.is_alive()
        handle = new(elsewhere).handle
        assert all(each.has(handle) for each in heards[number:])
        stop()
    assert ended(thread)
    assert sqlite._feed._connection is None
    stop = sqlite.watch(heards[0].on_change)
    heards[0].forget()
    assert heards[0].has(new(elsewhere).handle), "The next one begins another."
    stop()


def test_a_cache_that_is_collected_ends_the_thread(sqlite):
    cache = Cache()
    sqlite.watch(cache.drop)
    thread = sqlite._feed._thread
    del cache
    gc.collect()
    assert ended(thread)
    assert sqlite._listeners == sqlite._feed._listeners == {}


def test_a_store_that_is_collected_ends_the_thread_and_says_so(path, heard):
    store = SqliteStore(path)
    store.watch(heard.on_change)
    thread = store._feed._thread
    del store
    gc.collect()
    assert ended(thread)
    assert None in heard.forget()


def test_closing_while_others_write_ends_the_feed_and_says_so(path, clock, elsewhere):
    for _ in range(5 * SOAK):
        store, heard, done = SqliteStore(path, clock=clock), Heard(), threading.Event()
        stop = store.watch(heard.on_change)
        thread = store._feed._thread

        def write(done=done):
            while not done.is_set():
                elsewhere.revoke(new(elsewhere).handle)

        def close(store=store, heard=heard, done=done):
            try:
                with heard._more:
                    assert heard._more.wait_for(lambda: len(heard._told) > 20, 10)
                store.close()
            finally:
                done.set()

        assert at_once(write, close) == [None, None]
        assert None in heard.forget()
        assert ended(thread)
        assert store._feed._connection is None
        stop()
        with pytest.raises(UsageError):
            store.watch(heard.on_change)


def test_a_store_that_cannot_be_written_to_cannot_be_watched(sqlite, path, heard):
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            sqlite.watch(heard.on_change)
    assert sqlite._feed._thread is None
    assert sqlite._listeners == sqlite._feed._listeners == {}


def watch_and_end(store, heard, elsewhere=None):
    """Watch, hear something, stop, and wait until the thread is over."""
    stop = store.watch(heard.on_change)
    thread = store._feed._thread
    assert elsewhere is None or heard.has(new(elsewhere).handle)
    stop()
    assert ended(thread)
    assert store._feed._thread is None


def descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208 - a count


def test_a_thousand_watchers_leave_no_thread_and_no_connection(sqlite, elsewhere, heard):
    watch_and_end(sqlite, heard, elsewhere)
    gc.collect()
    before = descriptors()
    for number in range(1000):
        if number % 100:
            sqlite.watch(heard.on_change)()
        else:
            watch_and_end(sqlite, heard, elsewhere)
    watch_and_end(sqlite, heard)
    assert descriptors() == before
    assert sqlite._listeners == sqlite._feed._listeners == {}
    assert len(sqlite._idle) == 1


def test_many_threads_that_watch_at_once_get_one_thread(sqlite, elsewhere):
    heards, before = [Heard() for _ in range(8)], set(watchers())
    stops = at_once(*(lambda each=each: sqlite.watch(each.on_change) for each in heards))
    assert len(set(watchers()) - before) == 1
    handle = new(elsewhere).handle
    assert all(each.has(handle) for each in heards)
    for stop in stops:
        stop()


def test_a_watched_log_can_be_emptied(sqlite, path, elsewhere, heard):
    """A reader that never ends would keep the log from being written from its beginning again, and it would grow."""
    stop = sqlite.watch(heard.on_change)
    for _ in range(20):
        assert heard.has(new(elsewhere).handle)
    busy = 1
    while busy:  # A reading may just be under way.
        [(busy, _, _)] = sql(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.with_name("sessions.db-wal").stat().st_size == 0
    heard.forget()
    assert heard.has(new(elsewhere).handle)
    stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has such bells")
def test_the_bell_hangs_where_the_log_is_though_the_path_be_a_link(path, clock, elsewhere, heard):
    link = path.with_name("link.db")
    link.symlink_to(path)
    with closing(SqliteStore(link, clock=clock)) as store:
        store.watch(heard.on_change)
        assert heard.has(new(elsewhere).handle)
        bell = store._feed._bell
        assert bell._descriptor >= 0
        new(elsewhere)
        assert bell.rest(10) is True, "It rings at the next write."


@pytest.mark.parametrize("lacking", ["file", "ctypes", "poll"])
def test_without_a_bell_every_rest_is_short(tmp_path, monkeypatch, lacking):
    if lacking == "ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    if lacking == "poll":
        monkeypatch.delattr("select.poll")
    file = tmp_path / "sessions.db-wal"
    if lacking != "file":
        file.touch()
    before, bell = descriptors(), sqlite_watch.Bell()
    bell.hang(str(file))
    assert bell._descriptor == -1
    assert bell.rest(3600) is False
    assert descriptors() == before
    bell.close()


# -- what is lost -----------------------------------------------------------------------------


def test_who_fell_behind_what_is_kept_is_told_that_all_may_have_changed(sqlite, path, elsewhere, heard):
    stop = sqlite.watch(heard.on_change)
    with sqlite._feed._lock:
        for _ in range(5):
            new(elsewhere)
        sql(path, "DELETE FROM changes WHERE seq < (SELECT max(seq) FROM changes) - 1")
    assert heard.has("nothing but None")
    heard.forget()
    handle = new(elsewhere).handle
    assert heard.has(handle)
    assert handle in heard.forget(), "From here on nothing is lost."
    stop()


@pytest.fixture
def brief(monkeypatch):
    """A lease of few changes, so that a test can see it end."""
    monkeypatch.setattr(sqlite_watch, "LEASE", 20)


@pytest.mark.usefixtures("brief")
def test_the_lease_is_renewed_in_time_and_the_table_stays_small(sqlite, path, elsewhere, heard):
    stop = sqlite.watch(heard.on_change)
    for _ in range(200):
        handle = new(elsewhere).handle
        assert heard.has(handle)
        assert handle in heard.forget()
    [(rows, until, last)] = sql(
        path, "SELECT count(*), (SELECT until FROM changes_lease), (SELECT max(seq) FROM changes) FROM changes"
    )
    assert last >= 200
    assert rows <= 40
    assert until > last
    stop()


@pytest.mark.usefixtures("brief")
def test_a_watcher_that_is_gone_costs_no_more_than_its_lease(sqlite, path, elsewhere, heard):
    watch_and_end(sqlite, heard)
    for _ in range(50):
        new(elsewhere)
    [(rows, last)] = sql(path, "SELECT count(*), max(seq) FROM changes")
    assert rows <= 21
    new(elsewhere)
    assert sql(path, "SELECT max(seq) FROM changes") == [(last,)]


def test_a_lease_that_ended_unnoticed_is_noticed(sqlite, path, elsewhere, heard):
    """It could not be renewed when its last change was read, for somebody else was writing."""
    stop = sqlite.watch(heard.on_change)
    with sqlite._feed._lock:
        sql(path, "UPDATE changes_lease SET until = (SELECT max(seq) FROM changes)")
        [(seq,)] = sql(path, "SELECT max(seq) FROM changes")
        sqlite._feed._place = sqlite_watch.Place(seq, seq)
        new(elsewhere)
        assert sql(path, "SELECT max(seq) FROM changes") == [(seq,)], "Nobody wrote that down."
    assert heard.has("nothing but None")
    heard.forget()
    assert heard.has(new(elsewhere).handle)
    stop()


def triggers(path):
    return sorted(name for (name,) in sql(path, "SELECT name FROM sqlite_master WHERE type = 'trigger'"))


@pytest.mark.usefixtures("brief")
def test_the_triggers_go_when_a_file_is_opened_that_nobody_watches(sqlite, path, clock, elsewhere, heard):
    def reopen():
        SqliteStore(path, clock=clock, timeout=0).close()
        return triggers(path)

    watch_and_end(sqlite, heard)
    laid = ["changes_delete", "changes_insert", "changes_update", "sessions_gone"]
    assert reopen() == laid, "Somebody may have promised to read."
    for _ in range(50):
        new(elsewhere)
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        assert reopen() == laid, "That somebody else writes keeps nobody from opening the file."
    assert reopen() == ["sessions_gone"]
    assert sql(path, "SELECT count(*) FROM changes") == [(1,)]
    assert elsewhere.revoke(new(elsewhere).handle)
    stop = sqlite.watch(heard.on_change)
    handle = new(elsewhere).handle
    assert heard.has(handle)
    assert heard.forget() == [handle]
    assert reopen() == laid
    stop()


@pytest.mark.usefixtures("brief")
def test_a_watcher_whose_triggers_went_while_it_stood_still_is_told_of_a_loss(sqlite, path, clock, elsewhere, heard):
    stop = sqlite.watch(heard.on_change)
    with sqlite._feed._lock:
        for _ in range(50):
            new(elsewhere)
        SqliteStore(path, clock=clock).close()
        assert triggers(path) == ["sessions_gone"]
        new(elsewhere)
    assert heard.has("nothing but None")
    heard.forget()
    assert heard.has(new(elsewhere).handle)
    stop()


@pytest.mark.usefixtures("brief")
def test_changes_that_were_not_written_down_are_a_loss_to_everybody(sqlite, path, clock, elsewhere):
    first, second = Heard(), Heard()
    with closing(SqliteStore(path, clock=clock)) as late:
        stop = sqlite.watch(first.on_change)
        with sqlite._feed._lock:
            for _ in range(50):
                new(elsewhere)
            stop_late = late.watch(second.on_change)
        assert first.has("nothing but None"), "Somebody renewed the lease first, and left a mark."
        first.forget()
        second.forget()
        handle = new(elsewhere).handle
        assert first.has(handle)
        assert second.has(handle)
        stop()
        stop_late()


@pytest.mark.usefixtures("brief")
def test_while_somebody_else_writes_the_lease_waits_and_nothing_is_lost(sqlite, path, elsewhere, heard):
    stop = sqlite.watch(heard.on_change)
    with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        for _ in range(15):
            handle = new(elsewhere).handle
        stranger.execute("BEGIN IMMEDIATE")
        assert heard.has(handle)
        stranger.execute("ROLLBACK")
    for _ in range(50):
        handle = new(elsewhere).handle
        assert heard.has(handle)
    assert None not in heard.forget()
    stop()


@pytest.mark.parametrize("damage", ["DROP TRIGGER changes_delete", "SELECT 1"])
def test_what_a_stranger_took_away_is_laid_again(sqlite, elsewhere, heard, damage, caplog):
    stop = sqlite.watch(heard.on_change)
    sql(sqlite.path, "BEGIN", damage, "DELETE FROM changes", "COMMIT")
    assert heard.has("nothing but None")
    heard.forget()
    handle = new(elsewhere).handle
    assert heard.has(handle)
    heard.forget()
    elsewhere.revoke(handle)
    assert heard.has(handle)
    assert heard.forget() == [handle]
    assert caplog.records == []
    stop()


@pytest.mark.usefixtures("bell")
def test_a_file_that_is_gone_is_a_loss_and_one_that_comes_is_followed(sqlite, path, heard, caplog, monkeypatch):
    often, lose = threading.Event(), sqlite_watch.Feed._lose

    def counted(feed, error, failures):
        if failures == 4:
            often.set()
        lose(feed, error, failures)

    monkeypatch.setattr(sqlite_watch.Feed, "_lose", counted)
    stop = sqlite.watch(heard.on_change)
    away = path.with_name("away.db")
    for file in list(path.parent.iterdir()):
        file.rename(file.with_name(file.name.replace("sessions", "away")))
    assert often.wait(10)
    assert heard.forget() == [None], "It is said once, however often it is tried."
    [entry] = caplog.records
    assert (entry.name, entry.levelno) == ("sessiontree.stores", logging.WARNING)
    assert str(path) in entry.getMessage()
    with closing(SqliteStore(path)) as anew:
        assert heard.has("nothing but None"), "What was changed in between is not known."
        heard.forget()
        handle = new(anew).handle
        assert heard.has(handle)
        stop()
    assert away.exists()


def test_an_outage_may_be_of_any_length(sqlite, heard, monkeypatch):
    monkeypatch.setattr(sqlite_watch, "LONGEST", 0.001)
    stop = sqlite.watch(heard.on_change)
    sqlite._feed._lose(OSError("for weeks"), 1_000_000)
    assert heard.has("nothing but None"), "It begins anew, for this was no reading of the thread's own."
    stop()


def test_a_bell_that_breaks_is_a_loss_and_hung_again(sqlite, elsewhere, heard, monkeypatch):
    hung = []

    class Breaking(sqlite_watch.Bell):
        def hang(self, path):
            hung.append(path)
            super().hang(path)

        def rest(self, seconds):
            if len(hung) == 1 and self._descriptor >= 0:
                raise OSError("This bell is broken.")
            return super().rest(seconds)

    monkeypatch.setattr(sqlite_watch, "Bell", Breaking)
    monkeypatch.setattr(sqlite_watch, "_inotify", lambda path: os.open(os.devnull, os.O_RDONLY))
    stop = sqlite.watch(heard.on_change)
    assert heard.has("nothing but None")
    heard.forget()
    assert heard.has(new(elsewhere).handle)
    assert len(hung) == 2
    stop()


def put_in_place(file, path):
    """Replace a database by another one; the log of the first must not be applied to the second."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    file.replace(path)


@pytest.fixture
def first_look(monkeypatch):
    """Two events: ``begin`` lets the feed look at its file, and ``done`` says that it did so once."""
    look = SimpleNamespace(begin=threading.Event(), done=threading.Event())

    class Watched(sqlite_watch.Bell):
        def rest(self, seconds):
            look.begin.wait(10)
            return super().rest(seconds)

        def hang(self, path):
            super().hang(path)
            look.done.set()

    monkeypatch.setattr(sqlite_watch, "Bell", Watched)
    return look


@pytest.mark.parametrize("when", ["before the first look", "later"])
@pytest.mark.parametrize("with_what", ["a new file", "a backup"])
def test_a_file_that_is_replaced_in_one_step_is_noticed(path, heard, first_look, with_what, when):
    sqlite, other = SqliteStore(path), path.with_name("other.db")
    stop = sqlite.watch(heard.on_change)
    if when == "later":
        first_look.begin.set()
        assert first_look.done.wait(10)
    if with_what == "a backup":  # which has the very row that was read last
        sql(path, f"VACUUM INTO '{other}'")
    else:
        SqliteStore(other).close()
    put_in_place(other, path)
    first_look.begin.set()
    assert heard.has("nothing but None")
    stop()
    sqlite.close()


def test_a_file_of_somebody_else_is_left_as_it_is(sqlite, path, heard, caplog):
    stop = sqlite.watch(heard.on_change)
    foreign = path.with_name("foreign.db")
    sql(foreign, "CREATE TABLE theirs (x)")
    put_in_place(foreign, path)
    assert heard.has("nothing but None")
    thread = sqlite._feed._thread
    assert thread.is_alive()
    assert sql(path, "INSERT INTO theirs VALUES (1)", "SELECT name FROM sqlite_master") == [("theirs",)]
    assert len(caplog.records) == 1
    stop()
    assert ended(thread)


def test_a_watcher_that_raises_anything_at_all_leaves_the_feed_running(sqlite, elsewhere, heard):
    def leave(handle):
        raise SystemExit

    stop_leaving = sqlite.watch(leave)
    stop = sqlite.watch(heard.on_change)
    for _ in range(3):
        heard.forget()
        assert heard.has(new(elsewhere).handle)
    assert sqlite._feed._thread.is_alive()
    with pytest.raises(SystemExit):
        new(sqlite)
    stop_leaving()
    stop()


# -- processes --------------------------------------------------------------------------------

PRELUDE = """
import os, signal, sys, time
from sessiontree.records import Changes
from sessiontree.stores.conformance.watching import Heard
from sessiontree.stores.conformance.tools import PROOF, js, new
from sessiontree.stores.sqlite import SqliteStore
path = sys.argv[1]
"""


@contextmanager
def running(script, *arguments):
    """Run a script in a process of its own, which is over at the end."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


REVOKER = """
store = SqliteStore(path)
for line in sys.stdin:
    handle = line.strip()
    store.revoke(handle)
    print(time.monotonic_ns(), flush=True)
"""


@pytest.mark.parametrize("ringing", [True, False])
def test_every_revocation_in_another_process_is_heard_of(sqlite, path, monkeypatch, ringing):
    if not ringing:
        monkeypatch.setattr(sqlite_watch, "_inotify", lambda path: -1)
    handles, when, draw = [new(sqlite).handle for _ in range(200)], {}, random.Random(7)
    more = threading.Condition()

    def on_change(handle):
        with more:
            when.setdefault(handle, time.monotonic_ns())
            more.notify_all()

    lags = []
    with running(REVOKER, path) as process:
        stop = sqlite.watch(on_change)
        for handle in handles:
            threading.Event().wait(draw.uniform(0, 0.005))  # as users come; nothing depends on it
            process.stdin.write(f"{handle}\n")
            process.stdin.flush()
            revoked = int(process.stdout.readline())
            with more:
                assert more.wait_for(lambda handle=handle: handle in when, 5)
            lags.append((when[handle] - revoked) / 1e6)
        stop()
    assert None not in when
    way = "with" if ringing else "without"
    figures = f"median {median(lags):.2f} ms, most {max(lags):.2f} ms"
    print(f"\nfrom the return of revoke() to another process, {way} a bell: {figures}")  # noqa: T201 - for -s


def test_a_writer_that_is_killed_leaves_nothing_unheard(sqlite, path, heard):
    stop = sqlite.watch(heard.on_change)
    script = """
    store = SqliteStore(path)
    while True:
        record = new(store)
        store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)}))
        store.revoke(record.handle)
        print(record.handle, flush=True)
    """
    for round_ in range(2):
        with running(script, path) as process:
            handles = [process.stdout.readline().strip() for _ in range(5 + 20 * round_)]
            process.send_signal(signal.SIGKILL)
            handles += [line.strip() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        assert all(heard.has(handle) for handle in handles)
        assert None not in heard.forget()
    handle = new(sqlite).handle
    assert heard.has(handle)
    stop()


def test_a_watcher_that_is_killed_holds_nothing_up(sqlite, path, heard):
    script = """
    store, heard = SqliteStore(path), Heard()
    store.watch(heard.on_change)
    print("watching", flush=True)
    for line in sys.stdin:
        assert heard.has(line.strip())
        print("heard", flush=True)
    """
    with running(script, path) as process:
        assert process.stdout.readline() == "watching\n"
        process.stdin.write(f"{new(sqlite).handle}\n")
        process.stdin.flush()
        assert process.stdout.readline() == "heard\n"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    stop = sqlite.watch(heard.on_change)
    assert heard.has(new(sqlite).handle)
    assert None not in heard.forget()
    stop()
    sqlite._drain()
    assert sql(path, "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA integrity_check") == [("ok",)]


def test_a_watcher_that_was_stopped_for_a_while_catches_up(sqlite, path):
    script = """
    store, heard = SqliteStore(path), Heard()
    store.watch(heard.on_change)
    print("watching", flush=True)
    handles = sys.stdin.readline().split()
    print(all(heard.has(handle) for handle in handles), None in heard.forget(), flush=True)
    """
    with running(script, path) as process:
        assert process.stdout.readline() == "watching\n"
        process.send_signal(signal.SIGSTOP)
        handles = [new(sqlite).handle for _ in range(500)]
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(" ".join(handles) + "\n", 30)
    assert out == "True False\n", err


def test_no_connection_of_a_feed_is_open_at_the_moment_of_a_fork(sqlite, elsewhere, heard):
    stop = sqlite.watch(heard.on_change)
    assert heard.has(new(elsewhere).handle)
    forks._before()
    try:
        assert sqlite._feed._connection is None
        assert sqlite._feed._lock.locked()
    finally:
        forks._after_in_parent()
    heard.forget()
    handle = new(elsewhere).handle
    assert heard.has(handle)
    assert heard.forget() == [handle], "Nothing was lost."
    stop()


def test_a_forked_child_hears_for_itself_and_its_parent_goes_on(path):
    """The child's first word is None, and both hear a third party; the child takes no rings from the parent."""
    script = """
    import warnings
    warnings.simplefilter("ignore")
    store, other, heard = SqliteStore(path), SqliteStore(path), Heard()
    store.watch(heard.on_change)
    first = new(other).handle
    assert heard.has(first)
    heard.forget()
    other.close()
    child_tells, to_parent = os.pipe()
    parent_tells, to_child = os.pipe()
    child = os.fork()
    if not child:
        try:
            assert heard.forget() == []
            assert store.load(first) is not None, "The first use of the store starts the thread."
            assert heard.has("nothing but None")
            heard.forget()
            if sys.platform.startswith("linux"):
                files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
                assert sum("inotify" in file for file in files) == 1, files
            os.write(to_parent, b"x")
            handle = os.read(parent_tells, 100).decode()
            assert heard.has(handle)
            assert None not in heard.forget()
            store.close()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.read(child_tells, 1)
    third = SqliteStore(path)
    handle = new(third).handle
    assert heard.has(handle)
    assert None not in heard.forget(), "The parent lost nothing by the fork."
    os.write(to_child, handle.encode())
    assert os.waitpid(child, 0)[1] == 0
    assert heard.has(new(third).handle)
    print("well", flush=True)
    """
    with running(script, path) as process:
        out, err = process.communicate(timeout=60)
    assert out == "well\n", err


def test_a_process_may_fork_at_any_moment(path):
    """Forks beside readings, writers and watchers that come and go; no child hangs, and no file is damaged."""
    script = """
    import threading, warnings
    warnings.simplefilter("ignore")
    store, other, heard, done = SqliteStore(path), SqliteStore(path), Heard(), threading.Event()
    store.watch(heard.on_change)
    def come_and_go():
        while not done.is_set():
            store._feed.listen(heard.on_change)()
    thread = threading.Thread(target=come_and_go)
    thread.start()
    for number in range(int(sys.argv[2])):
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
        heard.forget()
    done.set()
    thread.join()
    print("well", flush=True)
    """
    with running(script, path, 10 * SOAK) as process:
        out, err = process.communicate(timeout=120 * SOAK)
    assert out == "well\n", err
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_process_ends_at_once_though_it_watches(path):
    script = """
    store, heard = SqliteStore(path), Heard()
    stop = store.watch(heard.on_change)
    print("over", flush=True)
    """
    with running(script, path) as process:
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "over\n", "")


@pytest.mark.usefixtures("bell")
def test_waiting_costs_little(sqlite, heard, request):
    stop = sqlite.watch(heard.on_change)
    rest = threading.Event().wait
    rest(0.2)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    rest(0.5 * SOAK)
    after, took = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"\n{request.node.name}: {100 * used / took:.2f} % of a core")  # noqa: T201 - for -s
    stop()
