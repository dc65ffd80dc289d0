"""What a forked process was told is true elsewhere, whatever its parent's threads were in the midst of."""

import ctypes
import gc
import mmap
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import weakref
from contextlib import ExitStack, closing

import pytest

from sessiontree import forks
from sessiontree.forks import SHUT, Gate, Held, mark
from sessiontree.stores.conformance.tools import new
from sessiontree.stores.sqlite import SqliteStore

PRELUDE = """
import os, select, signal, sys, threading, warnings
from datetime import timedelta
from sessiontree import StoreUnavailable, forks
from sessiontree.caches.disk import DiskCache
from sessiontree.clock import SystemClock
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import PROOF, contents, js, new
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.stores.sweeper import Sweeper

warnings.simplefilter("ignore")  # Python warns about forks beside threads, which are what this is about.
folder = sys.argv[1]
sqlite = folder + "/sessions.db"


class Child:
    \"\"\"A forked process that says what each of these calls returned when it is asked for the next.\"\"\"

    def __init__(self, *calls):
        from_parent, self.to_child = os.pipe()
        self.from_child, to_parent = os.pipe()
        self.pid = os.fork()
        if self.pid:
            return
        signal.alarm(30)
        for call in calls:
            os.read(from_parent, 1)
            try:
                answer = str(call())
            except BaseException as error:
                answer = type(error).__name__
            os.write(to_parent, answer.encode() or b"-")
        os.read(from_parent, 1)
        os._exit(0)

    def answer(self):
        os.write(self.to_child, b"x")
        return os.read(self.from_child, 99).decode() if select.select([self.from_child], [], [], 10)[0] else "hangs"

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        for descriptor in (self.to_child, self.from_child):
            os.close(descriptor)


class Busy:
    \"\"\"A thread that does something again and again.\"\"\"

    def __init__(self, work):
        self.over = threading.Event()
        began = threading.Event()
        def run():
            while not self.over.is_set():
                work()
                began.set()
        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        began.wait()

    def end(self):
        self.over.set()
        self.thread.join()


def is_live(handle):
    other = SqliteStore(sqlite)
    try:
        return other.load(handle) is not None
    finally:
        other.close()
"""


def run(script, *arguments):
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, "well\n"), ran.stdout + ran.stderr


# -- beside threads at work -------------------------------------------------------------------

BESIDE = {
    "a thread that finds": "Busy(lambda: store.find('subject', 'joe'))",
    "a thread that writes": "Busy(lambda: store.apply('busy', PROOF, Changes(adds={'n': 1})))",
    "a thread that opens and closes": "Busy(lambda: SqliteStore(sqlite).close())",
    "a thread that opens, and lets go": "Busy(lambda: SqliteStore(sqlite))",
    "a sweeper": "Swept()",
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_what_a_child_was_told_is_true_elsewhere(tmp_path, beside):
    """The parent's next closing of its last connection must not take away the log that the child writes to.

    It closes it for another fork, or with the store.
    """
    run(
        """
        class Swept:
            def __init__(self):
                self.sweepers = [Sweeper(store, interval=0.001) for _ in range(2)]
                for sweeper in self.sweepers:
                    sweeper.start()
            def end(self):
                for sweeper in self.sweepers:
                    sweeper.stop()

        for number in range(6):
            store = SqliteStore(sqlite, timeout=1)
            if not number:
                new(store, "busy")
            handle = new(store).handle
            busy = eval(sys.argv[2])
            child = Child(
                lambda: store.load(handle) is not None,
                lambda: store.apply(handle, PROOF, Changes(sets={"x": (js(1), 0)})),
                lambda: store.revoke(handle),
            )
            assert child.answer() == "True"
            busy.end()
            if number % 2:
                Child().end()
            else:
                store.close()
            assert child.answer() == "2"
            assert child.answer() == "True"
            assert not is_live(handle)
            child.end()
            store.close()
        print("well")
        """,
        tmp_path,
        beside,
    )


def test_a_watch_does_not_pass_through_a_fork_either(tmp_path):
    run(
        """
        store, other = SqliteStore(sqlite), SqliteStore(sqlite)
        store.watch(lambda handle: None)
        handle = new(store).handle
        busy = Busy(lambda: new(other))
        children = [Child(lambda: store.revoke(handle)) for _ in range(5)]
        assert [child.answer() for child in children] == ["True", *["False"] * 4]
        busy.end()
        for child in children:
            child.end()
        store.close()
        other.close()
        assert not is_live(handle)
        print("well")
        """,
        tmp_path,
    )


def test_a_child_of_a_process_with_a_busy_cache_answers(tmp_path):
    """What a child dropped, its parent's threads no longer find, and the database stays the same one."""
    run(
        """
        store, cache = SqliteStore(sqlite), DiskCache(folder + "/cache", bytes(range(40)))
        record = new(store)
        def serve():
            cache.put("busy", record, cache.lease("busy"))
            cache.get("busy")
        cache.put("kept", record, cache.lease("kept"))
        name = cache._databases.place().name
        threads = [Busy(serve), Busy(lambda: cache.get("kept"))]
        for number in range(10):
            child = Child(
                lambda: cache.get("kept") is not None,
                lambda: cache.put("child's", record, cache.lease("child's")),
                lambda: cache.drop("kept"),
            )
            assert child.answer() == "True", number
            assert child.answer() == "True", number
            assert child.answer() == "None", number
            assert cache.get("kept") is None
            assert cache.get("child's") is not None
            assert cache.put("kept", record, cache.lease("kept"))
            child.end()
        for thread in threads:
            thread.end()
        assert cache._databases.place().name == name
        assert cache.stats().errors == 0
        cache.close()
        store.close()
        print("well")
        """,
        tmp_path,
    )


def test_threads_that_fork_at_once_do_not_wait_for_each_other(tmp_path):
    run(
        """
        store = SqliteStore(sqlite)
        handle = new(store).handle
        store.watch(lambda handle: None)
        answers = []
        def fork():
            for _ in range(5):
                child = Child(lambda: store.load(handle) is not None)
                answers.append(child.answer())
                child.end()
        busy = Busy(lambda: store.find("subject", "joe"))
        threads = [threading.Thread(target=fork) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        busy.end()
        store.close()
        assert answers == ["True"] * 15, answers
        print("well")
        """,
        tmp_path,
    )


def test_a_fork_waits_for_a_verb_within_a_verb(tmp_path):
    """The inner verb must not wait for the fork, which waits for the outer one."""
    run(
        """
        forks.PATIENCE = 60.0
        inner = SqliteStore(folder + "/inner.db")
        seen = new(inner).handle
        class Looking(SystemClock):
            def now(self):
                inner.load(seen)
                return super().now()
        store = SqliteStore(sqlite, clock=Looking())
        handle = new(store).handle
        busy = Busy(lambda: store.apply(handle, PROOF, Changes(sets={"x": (js(1), 0)})))
        for _ in range(8):
            child = Child(lambda: (store.load(handle) is not None, inner.revoke(seen) or True))
            assert child.answer() == "(True, True)"
            child.end()
        busy.end()
        store.close()
        inner.close()
        print("well")
        """,
        tmp_path,
    )


# -- what a fork cannot wait for --------------------------------------------------------------


def test_a_child_forked_within_a_verb_leaves_the_file_alone(tmp_path):
    """The fork does not wait for its own thread; the child is told what to change, and other files are its own."""
    run(
        """
        forks.PATIENCE = 3600.0
        apart = SqliteStore(folder + "/apart.db")
        other = new(apart).handle
        children = []
        class Forking(SystemClock):
            armed = False
            def now(self):
                if self.armed:
                    self.armed = False
                    children.append(Child(
                        lambda: store.load(handle), lambda: second.load(handle), lambda: SqliteStore(sqlite),
                        lambda: apart.revoke(other), said, store.close,
                    ))
                return super().now()
        def said():
            try:
                store.load(handle)
            except StoreUnavailable as error:
                return "fork while no verb runs" in str(error)
        store = SqliteStore(sqlite, clock=Forking())
        second = SqliteStore(sqlite)
        handle = new(store).handle
        second.load(handle)
        store.clock.armed = True
        assert store.apply(handle, PROOF, Changes(labels={"subject": "joe"})) == 2
        [child] = children
        assert [child.answer() for _ in range(6)] == [*["StoreUnavailable"] * 3, "True", "True", "None"]
        child.end()
        assert store.load(handle) is not None, "The parent goes on."
        child = Child(lambda: store.revoke(handle), lambda: apart.load(other))
        assert child.answer() == "True", "The next fork is one as any other."
        assert child.answer() == "None", "What was revoked there is revoked here."
        child.end()
        assert store.load(handle) is None
        for each in (store, second, apart):
            each.close()
        print("well")
        """,
        tmp_path,
    )


def test_a_child_that_returns_into_its_parents_verb_uses_its_connection_no_more(tmp_path):
    run(
        """
        class Over(Exception):
            pass
        class Forking(SystemClock):
            armed = False
            def now(self):
                if self.armed:
                    self.armed = False
                    if not os.fork():
                        raise Over
                return super().now()
        store = SqliteStore(sqlite, clock=Forking())
        handle = new(store).handle
        parent = os.getpid()
        store.clock.armed = True
        try:
            store.apply(handle, PROOF, Changes(labels={"subject": "joe"}))
        except Over:
            try:
                store.load(handle)
            except StoreUnavailable:
                store.close()
                sys.exit(7)  # with all that Python does at its end
        assert os.getpid() == parent
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
        assert store.load(handle).label == {"subject": "joe"}
        store.close()
        print("well")
        """,
        tmp_path,
    )


def test_a_verb_that_does_not_end_keeps_a_fork_for_a_while_only(tmp_path):
    run(
        """
        forks.PATIENCE = 0.2
        class Stuck(SystemClock):
            def __init__(self):
                self.go_on, self.here = threading.Event(), threading.Event()
            def now(self):
                if threading.current_thread() is thread:
                    self.here.set()
                    self.go_on.wait()
                return super().now()
        clock, thread = Stuck(), None
        store = SqliteStore(sqlite, clock=clock)
        handle = new(store).handle
        thread = threading.Thread(target=store.apply, args=(handle, PROOF, Changes(labels={"subject": "joe"})))
        thread.start()
        clock.here.wait()
        child = Child(lambda: store.load(handle), lambda: SqliteStore(sqlite))
        assert child.answer() == child.answer() == "StoreUnavailable"
        child.end()
        clock.go_on.set()
        thread.join()
        child = Child(lambda: store.revoke(handle))
        assert child.answer() == "True"
        child.end()
        assert not is_live(handle)
        store.close()
        print("well")
        """,
        tmp_path,
    )


def test_a_child_may_fork_in_the_midst_of_its_first_verb(tmp_path):
    """While it leaves its parent's connections alone, which one thread does: the grandchild does not wait for that."""
    run(
        """
        class Forking(SqliteStore):
            armed = False
            def _begin_process(self):
                super()._begin_process()
                if self.armed:
                    self.armed = False
                    self.child = Child(lambda: self.load(handle), lambda: 1)
        store = Forking(sqlite)
        handle = new(store).handle
        store.armed = True
        child = Child(lambda: store.load(handle) is not None, lambda: store.child.answer(), lambda: store.child.end())
        assert [child.answer() for _ in range(3)] == ["True", "StoreUnavailable", "None"]
        child.end()
        print("well")
        """,
        tmp_path,
    )


def test_a_child_forked_within_a_call_of_a_cache_begins_another_database(tmp_path):
    run(
        """
        store, cache = SqliteStore(sqlite), DiskCache(folder + "/cache", bytes(range(40)))
        other = DiskCache(folder + "/cache", bytes(range(40)))
        record = new(store)
        cache.put("kept", record, cache.lease("kept"))
        name = cache._databases.place().name
        children = []
        def work(rows, place):
            children.append(Child(
                lambda: other.get("kept"),
                lambda: other._databases.place().name == name,
                lambda: cache.put("kept", record, cache.lease("kept")),
                lambda: cache.get("kept") is not None,
            ))
        cache._current.do(work)
        assert [children[0].answer() for _ in range(4)] == ["None", "False", "True", "True"]
        assert cache.get("kept") is not None, "The parent goes along."
        children[0].end()
        for each in (cache, other, store):
            each.close()
        print("well")
        """,
        tmp_path,
    )


def test_a_fork_that_has_the_lock_of_logging_waits_for_no_cache_that_wants_it(tmp_path):
    """Modules that are imported later than ours prepare for a fork before us, and logging takes its lock."""
    run(
        """
        import logging
        forks.PATIENCE = 3600.0
        cache, begun = DiskCache(folder + "/cache"), threading.Event()
        def fail(rows, place):
            begun.set()
            while not forks.SHUT:
                threading.Event().wait(0.001)
            raise ValueError
        class Watching(logging.Handler):
            def emit(self, record):
                inside.append(cache._current._gate.inside.copy())
        inside = []
        logging.getLogger("sessiontree.caches").addHandler(Watching())
        def work():
            try:
                cache._current.do(fail)
            except Exception as error:
                failed.append(type(error).__name__)
        failed = []
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        child = Child(lambda: forks._inherited)
        assert child.answer() == "set()"
        child.end()
        thread.join()
        assert failed == ["FailedError"] and inside == [[], []], (failed, inside)
        print("well")
        """,
        tmp_path,
    )


# -- what is only in memory -------------------------------------------------------------------


def test_a_fork_within_a_verb_of_a_memory_store_ends_and_both_go_on(tmp_path):
    """It cannot wait for its own thread. The child has a lock of its own, and what the store held before the verb."""
    run(
        """
        forks.PATIENCE = 0.1
        children = []
        class Forking(SystemClock):
            armed = False
            def now(self):
                if self.armed:
                    self.armed = False
                    children.append(Child(
                        lambda: store.revoke(handle), lambda: store.load(handle), lambda: new(store) is not None,
                        lambda: os.waitstatus_to_exitcode(os.waitpid(os.fork() or os._exit(store.revoke(other)), 0)[1]),
                    ))
                return super().now()
        store = MemoryStore(clock=Forking())
        handle, other = new(store).handle, new(store).handle
        store.clock.armed = True
        assert store.apply(handle, PROOF, Changes(sets={"x": (js(1), 0)})) == 2
        [child] = children
        assert [child.answer() for _ in range(4)] == ["True", "None", "True", "1"]
        child.end()
        assert store.load(handle).version == 2, "The parent goes on."
        child = Child(lambda: store.revoke(handle))
        assert child.answer() == "True", "The next fork is one as any other."
        child.end()
        assert store.revoke(handle)
        print("well")
        """,
        tmp_path,
    )


def test_a_fork_waits_for_a_verb_of_a_memory_store_though_stores_come_and_go(tmp_path):
    """No child inherits a lock that a thread of the parent holds, or half of a change."""
    run(
        """
        forks.PATIENCE = 3600.0
        store = MemoryStore()
        handle = new(store).handle
        def relabel():
            store.apply(handle, PROOF, Changes(labels={"subject": "bob"}))
            store.apply(handle, PROOF, Changes(labels={"subject": "joe"}))
        busy = [Busy(relabel), Busy(lambda: [MemoryStore() for _ in range(50)])]
        for _ in range(50):
            child = Child(
                lambda: store.count("subject", "bob", "joe"),
                lambda: store.apply(handle, PROOF, Changes(adds={"n": 1})) and len(store._labelled),
            )
            assert [child.answer(), child.answer()] == ["1", "1"]
            child.end()
        for each in busy:
            each.end()
        print("well")
        """,
        tmp_path,
    )


def test_a_child_begins_with_an_empty_cache_though_a_thread_fills_it(tmp_path):
    """Half of what a policy does would be neither kept nor forgotten there."""
    run(
        """
        from collections import UserDict
        from sessiontree.caches.local import LocalCache
        begun, forked = threading.Event(), threading.Event()
        class InTwoSteps(UserDict):
            def __init__(self):
                super().__init__()
                self.order = []
            def __setitem__(self, key, value):
                super().__setitem__(key, value)
                begun.set()
                forked.wait(0.2)
                self.order.append(key)
            def popitem(self):
                if not self.order:
                    raise KeyError
                key = self.order.pop()
                return key, self.data.pop(key)
        store = MemoryStore()
        cache, record = LocalCache(policy=InTwoSteps()), new(store)
        os.register_at_fork(after_in_parent=forked.set)
        thread = threading.Thread(target=cache.put, args=(record.handle, record, cache.lease(record.handle)))
        thread.start()
        begun.wait()
        child = Child(
            lambda: cache.get(record.handle),
            lambda: cache.put(record.handle, record, cache.lease(record.handle)),
            lambda: cache.get(record.handle) is not None,
        )
        assert [child.answer() for _ in range(3)] == ["None", "True", "True"]
        child.end()
        thread.join()
        assert cache.get(record.handle) is not None
        print("well")
        """,
        tmp_path,
    )


def test_a_lock_that_a_thread_does_not_let_go_keeps_a_fork_for_a_while_only(monkeypatch):
    """All locks together keep it that long; the child gets others, also of those that it could take."""
    monkeypatch.setattr(forks, "PATIENCE", 0.05)
    first, second, free = Held(), Held(), Held()
    with first._lock, second._lock:
        child = os.fork()
        if not child:
            os._exit(sum(each._lock.acquire(blocking=False) for each in (first, second, free)))
        assert not free._lock.locked()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_fork_that_python_announces_late_leaves_locks_as_they_are():
    """Some servers fork in C, and tell Python afterwards."""
    held = Held()
    lock = held._lock
    with lock:
        forks._after_in_child()
    assert held._lock is lock


# -- marks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["Python", "C"])
@pytest.mark.parametrize("made", [forks.mark, forks._Asking])
def test_a_mark_is_true_in_the_process_that_made_it_alone(made, fork):
    marks = [made()]
    child = fork()
    if not child:
        seen = [bool(each[0]) for each in marks]
        marks.append(made())
        grandchild = fork()
        if not grandchild:
            os._exit(sum(bool(each[0]) for each in [*marks, made()]))
        is_one = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 1
        os._exit(seen == [False] and is_one and [bool(each[0]) for each in marks] == [False, True])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert marks[0][0]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux wipes pages")
@pytest.mark.parametrize(
    ("name", "value"),
    [("_WIPE_ON_FORK", 9999), ("_NO_ADVICE", mmap.MADV_NORMAL)],
    ids=["a kernel without the advice", "an emulator that nods"],
)
def test_a_mark_is_no_page_where_none_is_wiped(monkeypatch, name, value):
    assert isinstance(mark(), mmap.mmap)
    monkeypatch.setattr(forks, name, value)
    assert isinstance(mark(), forks._Asking)


# -- gates ------------------------------------------------------------------------------------


class Owner:
    def __init__(self):
        self.gate = Gate(self.rest, lambda: ())
        self.rested = 0

    def rest(self):
        self.rested += 1


def test_a_gate_holds_its_owner_not_and_is_gone_with_it():
    owner = Owner()
    gate, gone = owner.gate, weakref.ref(owner.gate)
    assert gate in forks._gates()
    held = weakref.ref(owner)
    del owner
    gc.collect()
    assert held() is None
    gate.rest()
    del gate
    gc.collect()
    assert gone() is None


def test_who_enters_during_a_fork_waits_until_it_is_over_and_who_forks_does_not():
    owner, done, entered = Owner(), threading.Event(), threading.Event()

    def enter():
        with owner.gate:
            entered.set()
            done.wait(30)

    forks._before()
    thread = threading.Thread(target=enter)
    try:
        with owner.gate:
            assert owner.gate.inside == [threading.get_ident()]
        thread.start()
        assert owner.rested == 1
        assert not entered.is_set()
    finally:
        forks._after_in_parent()
    assert entered.wait(30)
    assert owner.gate.inside == [thread.ident]
    done.set()
    thread.join()
    assert owner.gate.inside == SHUT == []


def test_a_fork_while_a_store_is_made_rests_every_other(tmp_path):
    """Whatever the order in which the fork comes to them, one that has nothing yet is no trouble."""

    class Forking(SqliteStore):
        def _begin_process(self):
            child = os.fork()
            if not child:
                os._exit(sum(len(each._idle) for each in others))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            super()._begin_process()

    with ExitStack() as stack:
        others = [stack.enter_context(closing(SqliteStore(tmp_path / f"{number}.db"))) for number in range(8)]
        stack.enter_context(closing(Forking(tmp_path / "last.db")))


@pytest.mark.parametrize("way", ["close", "forget"])
def test_a_store_that_is_gone_has_no_connection_left(tmp_path, way):
    path = tmp_path / "sessions.db"
    store = SqliteStore(path)
    new(store)
    [connection] = [each.driver for each in store._idle]
    if way == "close":
        store.close()
    del store
    assert not os.path.lexists(f"{path}-wal"), "The last connection that is closed takes the log away."
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
    with closing(SqliteStore(path)) as store:
        assert len(store.scan().records) == 1
