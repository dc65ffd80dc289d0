"""What the SQLite store has of its own: its file, its processes, and what it does when the disk or a process fails."""

import gc
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from contextlib import closing, contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
from support import SOAK

from sessiontree import (
    ConfigError,
    Conflict,
    SessionGone,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from sessiontree.clock import FOREVER
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import (
    OTHER_PROOF,
    PROOF,
    TurningClock,
    at_once,
    contents,
    fields,
    handles_of,
    js,
    loaded,
    new,
)
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.stores.sqlite import file as sqlite_file
from sessiontree.stores.sqlite import store as sqlite_module
from sessiontree.stores.sqlite.file import APPLICATION, STEPS
from sessiontree.stores.sqlite.store import BATCH

NOBODY = 65534
PRELUDE = """
import os, resource, signal, sys
from sessiontree import SessionGone, StoreUnavailable
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import PROOF, contents, fields, js, new
from sessiontree.stores.sqlite import SqliteStore
path = sys.argv[1]
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions.db"


@pytest.fixture
def clock():
    return TurningClock()


@pytest.fixture
def store(path, clock):
    with closing(SqliteStore(path, clock=clock)) as store:
        yield store


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


def finished(process):
    """Return what the process printed; it must end well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def run(script, *arguments):
    with running(script, *arguments) as process:
        return finished(process)


def sql(path, *statements):
    """Run statements as a stranger would; return the last one's rows."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


@contextmanager
def traced(store):
    """Collect the statements that the store's connection runs."""
    [connection] = store._idle
    statements = []
    connection.driver.set_trace_callback(statements.append)
    yield statements
    connection.driver.set_trace_callback(None)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# -- the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o777])
def test_st_9_the_files_are_the_owners_alone_whatever_the_umask(path, umask):
    before = os.umask(umask)
    try:
        with closing(SqliteStore(path)) as store:
            new(store)
            files = sorted(path.parent.iterdir())
            assert [file.name for file in files] == ["sessions.db", "sessions.db-shm", "sessions.db-wal"]
            assert {mode(file) for file in files} == {0o600}
    finally:
        os.umask(before)


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o620, 0o602])
def test_st_9_a_file_that_others_may_use_is_refused_with_what_to_do(path, loose):
    SqliteStore(path).close()
    path.chmod(loose)
    with pytest.raises(ConfigError, match="chmod 600"):
        SqliteStore(path)


def test_a_missing_folder_is_a_setting_to_change(tmp_path):
    with pytest.raises(ConfigError, match="create it"):
        SqliteStore(tmp_path / "missing" / "sessions.db")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="create it"):
        SqliteStore(tmp_path / "file" / "sessions.db")
    with pytest.raises(ConfigError, match="is no file"):
        SqliteStore(tmp_path)


@pytest.mark.parametrize("wrong", ["", ":memory:", b"bytes", "a\0b"])
def test_what_names_no_file_is_refused(wrong):
    with pytest.raises(ConfigError):
        SqliteStore(wrong)


@pytest.mark.parametrize("timeout", [-1, True, "5", None, float("nan"), float("inf"), 86_401, timedelta(days=2)])
def test_a_timeout_is_a_duration_of_a_day_at_most(path, timeout):
    with pytest.raises(ConfigError):
        SqliteStore(path, timeout=timeout)
    assert not path.exists()


@pytest.mark.parametrize("timeout", [0, 1e-9, 0.05, 86_400, timedelta(seconds=5), timedelta(days=1)])
def test_a_timeout_is_seconds_or_a_timedelta(path, timeout):
    with closing(SqliteStore(path, timeout=timeout)) as store:
        assert store.load("nobody") is None


def test_any_file_name_will_do_and_a_later_chdir_changes_nothing(tmp_path, monkeypatch, clock):
    monkeypatch.chdir(tmp_path)
    with closing(SqliteStore("a?mode=ro&b#c%41 ä.db", clock=clock)) as store:
        monkeypatch.chdir("/")
        record = new(store)
        assert at_once(lambda: store.load(record.handle), lambda: store.load(record.handle)) == [record, record]
        assert (tmp_path / "a?mode=ro&b#c%41 ä.db").exists()


def test_an_empty_file_is_a_new_store(path):
    path.touch(0o600)
    with closing(SqliteStore(path)) as store:
        new(store)
    assert sql(path, "PRAGMA journal_mode", "PRAGMA user_version") == [(len(STEPS),)]


def test_a_schema_of_a_newer_release_is_a_rolling_deployment(path):
    SqliteStore(path).close()
    sql(path, "PRAGMA user_version=77")
    with pytest.raises(StoreUnavailable, match=f"77.*{len(STEPS)}"):
        SqliteStore(path)
    assert sql(path, "PRAGMA user_version") == [(77,)]


def test_an_older_schema_is_brought_up_step_by_step_and_keeps_its_data(path, monkeypatch):
    with closing(SqliteStore(path)) as store:
        record = new(store)
    monkeypatch.setattr(sqlite_file, "STEPS", (*STEPS, ("CREATE TABLE more (x)", "INSERT INTO more VALUES (1)")))
    for _ in range(2):
        with closing(SqliteStore(path)) as store:
            assert store.load(record.handle) == record
    assert sql(path, "SELECT * FROM more") == [(1,)]


def test_a_step_that_fails_leaves_the_file_as_it_was(path, monkeypatch):
    SqliteStore(path).close()
    monkeypatch.setattr(sqlite_file, "STEPS", (*STEPS, ("CREATE TABLE more (x)", "INSERT INTO nothing VALUES (1)")))
    with pytest.raises(StoreError):
        SqliteStore(path)
    assert sql(path, "SELECT count(*) FROM sqlite_master WHERE name = 'more'") == [(0,)]
    assert sql(path, "PRAGMA user_version") == [(len(STEPS),)]


@pytest.mark.parametrize("statement", ["CREATE TABLE theirs (x)", "PRAGMA user_version=1", "PRAGMA application_id=5"])
def test_a_database_of_another_application_is_left_alone(path, statement):
    path.touch(0o600)
    sql(path, statement)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="choose another path"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_eight_processes_open_a_file_that_does_not_exist(path):
    script = "sys.stdin.read(1); store = SqliteStore(path); new(store); print(len(store.scan().records)); store.close()"
    for round_ in range(SOAK):
        file = path.with_name(f"{round_}.db")
        starters = [running(script, file) for _ in range(8)]
        processes = [starter.__enter__() for starter in starters]
        for process in processes:
            process.stdin.write("x")
            process.stdin.flush()
        assert all(int(finished(process)) for process in processes)
        for starter in starters:
            starter.__exit__(None, None, None)
        with closing(SqliteStore(file)) as store:
            assert len(store.scan().records) == 8


def test_a_store_that_cannot_be_opened_leaves_no_connection_open(path):
    path.touch(0o600)
    sql(path, "PRAGMA application_id=5")
    with pytest.raises(ConfigError) as caught:
        SqliteStore(path)
    frames, trace = [], caught.value.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    [store] = {frame.f_locals["self"] for frame in frames if frame.f_code.co_name == "__init__"}
    assert store._idle == []


def test_the_header_says_whose_file_it_is(store, path):
    assert sql(path, "PRAGMA application_id") == [(APPLICATION,)]


# -- what a verb costs ------------------------------------------------------------------------


def test_a_load_is_one_select_and_an_apply_one_statement(store):
    record = new(store)
    with traced(store) as statements:
        store.load(record.handle)
        store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)}, adds={"n": 1}))
        new(store)
        store.load_many([record.handle, "other", record.handle])
    assert [statement.split()[0] for statement in statements] == ["SELECT", "UPDATE", "INSERT", "SELECT"]


def test_only_what_must_never_come_back_waits_for_the_disk(store):
    record, other = new(store), new(store, labels={"subject": "bob"})
    with traced(store) as statements:
        store.apply(record.handle, PROOF, Changes(idle=FOREVER - 1))
        assert "PRAGMA synchronous=FULL" not in statements
        for verb in (
            lambda: store.apply(record.handle, PROOF, Changes(proof=OTHER_PROOF)),
            lambda: store.revoke(record.handle),
            lambda: store.revoke_where("subject", "bob"),
        ):
            statements.clear()
            verb()
            assert statements[0] == "PRAGMA synchronous=FULL"
            assert statements[-1] == "PRAGMA synchronous=NORMAL"
    assert store._idle[0].cursor.execute("PRAGMA synchronous").fetchall() == [(1,)]
    assert store.load(other.handle) is None


def test_a_refused_renewal_leaves_the_connection_as_it_was(store):
    record = new(store)
    with pytest.raises(SessionGone):
        store.apply(record.handle, OTHER_PROOF, Changes(proof=OTHER_PROOF))
    assert store._idle[0].cursor.execute("PRAGMA synchronous").fetchall() == [(1,)]


def test_a_sweep_uses_its_index_and_other_verbs_do_not_go_through_the_table(store, path):
    with closing(sqlite3.connect(path)) as connection:
        for statement, index in (
            (sqlite_module._SWEEP, "sessions_ends"),
            (sqlite_module._FIND, "labels_value"),
            (sqlite_module._REVOKE_WHERE, "labels_value"),
            (sqlite_module._COUNT % "?, ?", "labels_value"),
            (sqlite_module._SCAN, "sqlite_autoindex_sessions_1"),
            (sqlite_module._LOAD, "sqlite_autoindex_sessions_1"),
        ):
            plan = connection.execute("EXPLAIN QUERY PLAN " + statement, (1,) * statement.count("?")).fetchall()
            steps = [step[3] for step in plan]
            assert any(index in step for step in steps), steps
            assert not any("TEMP B-TREE" in step for step in steps), steps


def test_a_session_relabelled_while_it_is_counted_counts_once(store, path):
    """Whatever is between two looks, here another store object, and however many values are asked for."""
    record = new(store, labels={"worker": "1"})
    with closing(SqliteStore(path)) as other:

        def move(_):
            there = other.find("worker", "1").records
            other.relabel("worker", *("1", last) if there else (last, "1"))

        for values in (["1", "2"], ["1", *map(str, range(10, 10 + BATCH)), "2"]):
            last = values[-1]
            for asked in (values, values[::-1]):
                store._idle[0].driver.set_trace_callback(move)
                assert store.count("worker", *asked) == 1
                store._idle[0].driver.set_trace_callback(None)
                other.relabel("worker", last, "1")
    assert store.load(record.handle).label == {"worker": "1"}


def test_no_transaction_is_over_many_rows(store):
    count = BATCH + 20
    for number in range(count):
        new(store, f"h{number:05}", labels={"subject": "bob"}, idle=store.clock.now() + 1000)
    assert store.relabel("subject", "bob", "eve") == store.count("subject", "eve") == count
    assert len(store.find("subject", "eve", limit=count).records) == len(store.scan(limit=count).records) == count
    store.clock.advance(2)
    assert store.sweep_idle(1, limit=10) == 10
    assert store.sweep_idle(1, limit=count) == count - 10
    for number in range(count):
        new(store, f"h{number:05}", labels={"subject": "bob"})
    assert store.revoke_where("subject", "bob") == count
    assert sql(store.path, "SELECT count(*) FROM labels") == [(0,)]


# -- garbage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        "record = 'text'",
        "record = x''",
        "record = x'01'",
        "record = substr(record, 1, 98)",
        "record = substr(record, 1, 105)",
    ],
)
def test_a_row_that_nobody_could_have_written_is_no_session(store, path, garbage):
    record = new(store)
    sql(path, f"UPDATE sessions SET {garbage}")  # noqa: S608 - the cases above
    assert store.load(record.handle) is None
    assert store.load(record.handle, ["a"]) is None
    assert store.load_many([record.handle]) == {}
    assert store.scan().records == []
    for changes in (Changes(sets={"a": (js(1), 0)}), Changes(idle=1)):
        with pytest.raises(SessionGone):
            store.apply(record.handle, PROOF, changes)


def test_fields_that_are_no_json_hold_no_keys_and_take_none(store, path):
    record = new(store)
    [(raw,)] = sql(path, "SELECT record FROM sessions")
    sql(path, f"UPDATE sessions SET record = x'{raw[: -len(record.fields)].hex()}7b'")  # noqa: S608 - a blob of ours
    assert store.load(record.handle, ["a"]) is None
    with pytest.raises(SessionGone):
        store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)}))


@pytest.mark.parametrize("text", ["x'); DROP TABLE sessions; --", "%", "_", '"', "a' OR 'a' = 'a", ";", "\\"])
def test_st_11_what_looks_like_sql_is_a_name_like_any_other(store, text):
    record = new(store, text, labels={text: text})
    store.apply(text, record.proof, Changes(sets={text: (js(1), 0)}, labels={"subject": text}))
    assert store.load(text).contents(0) == {text: (js(1), 0)}
    assert store.load(text, [text]).contents(0) == {text: (js(1), 0)}
    assert [found.handle for found in store.find(text, text).records] == [text]
    assert store.find("subject", "a").records == []
    assert store.count("subject", text) == 1
    assert store.relabel("subject", text, text + text) == 1
    assert store.revoke(text)
    assert store.scan().records == []


def test_half_a_surrogate_pair_is_in_no_database(store):
    half = "\ud800"
    assert store.load(half) is None
    assert store.load_many([half]) == {}
    assert store.revoke(half) is False
    assert store.find("subject", half).records == store.find(half, "bob").records == []
    assert store.count("subject", half) == store.relabel("subject", half, "x") == store.revoke_where(half, "x") == 0
    for changes in (Changes(), Changes(idle=1)):
        with pytest.raises(SessionGone):
            store.apply(half, PROOF, changes)
    with pytest.raises(UsageError):
        new(store, half)


# -- threads and processes --------------------------------------------------------------------

ADDER = """
store = SqliteStore(path, timeout=60)
sys.stdin.read(1)
for _ in range(int(sys.argv[2])):
    store.apply("shared", PROOF, Changes(adds={"n": 1}, sets={sys.argv[3]: (js(1), 0)}))
store.close()
"""


def test_increments_of_eight_processes_are_exact_and_every_key_survives(store, path):
    rounds = 50 * SOAK
    new(store, "shared")
    starters = [running(ADDER, path, rounds, f"key{number}") for number in range(8)]
    processes = [starter.__enter__() for starter in starters]
    for process in processes:
        process.stdin.write("x")
        process.stdin.flush()
    for process in processes:
        finished(process)
    for starter in starters:
        starter.__exit__(None, None, None)
    expected = {"n": js(8 * rounds), **{f"key{number}": js(1) for number in range(8)}}
    assert contents(store, "shared") == expected
    assert loaded(store, "shared").version == 1 + 8 * rounds


def test_threads_that_write_different_keys_lose_none(store):
    new(store, "shared")

    def writer(number):
        for round_ in range(20 * SOAK):
            store.apply("shared", PROOF, Changes(sets={f"key{number}": (js(round_), 0)}, adds={"n": 1}))

    assert at_once(*(lambda number=number: writer(number) for number in range(8))) == [None] * 8
    last = js(20 * SOAK - 1)
    assert contents(store, "shared") == {"n": js(160 * SOAK), **{f"key{number}": last for number in range(8)}}


def test_a_forked_child_has_connections_and_locks_of_its_own(path):
    assert run(
        """
        store = SqliteStore(path)
        new(store, "shared")
        from_child, to_parent = os.pipe()
        from_parent, to_child = os.pipe()
        child = os.fork()
        if not child:
            store.apply("shared", PROOF, Changes(adds={"n": 1}))
            os.write(to_parent, b"x")
            os.read(from_parent, 1)
            # The parent closed its last connection; the log must not have gone with it.
            store.apply("shared", PROOF, Changes(adds={"n": 1}))
            store.close()
            os._exit(0)
        os.read(from_child, 1)
        store.apply("shared", PROOF, Changes(adds={"n": 1}))
        store.close()
        os.write(to_child, b"x")
        assert os.waitpid(child, 0)[1] == 0
        store = SqliteStore(path)
        print(contents(store, "shared")["n"].decode())
        store.close()
        """,
        path,
    ).strip() == "3"  # fmt: skip


def test_a_connection_that_was_inherited_is_neither_used_nor_closed(store):
    record = new(store)
    [inherited] = store._idle
    store._mark[0] = 0
    assert store.load(record.handle) == record
    assert inherited not in store._idle
    assert inherited.driver.execute("SELECT 1").fetchall() == [(1,)], "It is still open."
    assert [inherited] in sqlite_file._INHERITED
    sqlite_file._INHERITED.remove([inherited])
    inherited.driver.close()


def test_forks_that_python_was_not_told_of_use_no_connection_of_a_parent(path):
    """Some servers fork in C, and no hook of Python's runs; nor does one in a child's child."""
    assert run(
        """
        import ctypes
        store = SqliteStore(path)
        handle = new(store).handle
        older = store._idle[:]
        for generation in (0, 1, 2):
            store.apply(handle, PROOF, Changes(adds={"n": 1}))
            [mine] = store._idle
            assert (mine in older) == (generation == 0)
            older.append(mine)
            child = generation < 2 and ctypes.PyDLL(None).fork()
            if child:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                assert store._idle == [mine]
                assert contents(store, handle)["n"] == b"3"
                break
        print(generation, flush=True)
        os._exit(0)
        """,
        path,
    ).split() == ["2", "1", "0"]  # fmt: skip


# -- errors and interruptions -----------------------------------------------------------------


class Stop(BaseException):
    """What a signal handler may raise anywhere."""


def stop():
    raise Stop


@pytest.mark.parametrize("frames", [{"_swap"}, {"_apply_locked"}])
@pytest.mark.parametrize("changes", [Changes(adds={"n": 1}), Changes(idle=FOREVER - 1), Changes(proof=OTHER_PROOF)])
def test_whatever_is_raised_within_a_verb_undoes_it(store, changes, frames):
    record = new(store, fields=fields(n=js(1)))
    if "_swap" in frames:
        store.load(record.handle)
    else:
        store._idle[-1].last = (record.handle, b"what it was before")
    real = store._now

    def now():
        if sys._getframe(1).f_code.co_name in frames:
            stop()
        return real()

    store._now = now
    with pytest.raises(Stop):
        store.apply(record.handle, PROOF, changes)
    store._now = real
    assert store.load(record.handle) == record
    store.apply(record.handle, PROOF, changes)


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_that_raise_leave_no_lock_and_no_half_of_a_write(store, path):
    """A connection that a signal tore away between two steps is closed by the collector, which newer Pythons tell."""
    new(store, "shared")

    def handler(_signal, _frame):
        raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    done = 0
    gc.collect()
    gc.disable()  # what a signal raises while garbage is collected, Python drops
    try:
        for round_ in range(100 * SOAK):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00005 + round_ % 50 * 0.00001)
                for _ in range(1000):
                    store.apply("shared", PROOF, Changes(adds={"n": 1}, idle=FOREVER - round_ if round_ % 2 else None))
                    done += 1
            except (Stop, StoreUnavailable):
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
        gc.collect()
    with closing(SqliteStore(path, timeout=0)) as other:
        other.apply("shared", PROOF, Changes(adds={"n": 1}))
        count = int(contents(other, "shared")["n"])
    assert done < count <= done + 1 + 100 * SOAK
    assert int(contents(store, "shared")["n"]) == count


def test_a_locked_file_is_unavailable_and_only_for_writers(path, clock):
    with closing(SqliteStore(path, clock=clock, timeout=0.05)) as store:
        record, brief = new(store, labels={"subject": "bob"}), new(store, idle=clock.now() + 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as stranger:
            stranger.execute("BEGIN EXCLUSIVE")
            for verb in (
                lambda: store.apply(record.handle, PROOF, Changes(adds={"n": 1})),
                lambda: store.apply(record.handle, PROOF, Changes(idle=1)),
                lambda: store.revoke(record.handle),
                lambda: store.revoke_where("subject", "bob"),
                lambda: store.relabel("subject", "bob", "eve"),
                lambda: new(store),
            ):
                with pytest.raises(StoreUnavailable, match="locked") as caught:
                    verb()
                assert isinstance(caught.value.__cause__, sqlite3.Error)
            assert store.load(record.handle) == record
            clock.advance(1)
            assert store.load(brief.handle) is None, "It cannot be deleted, and it has expired all the same."
            stranger.execute("ROLLBACK")
        store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
        assert contents(store, record.handle) == {"n": js(1)}


def test_a_file_that_says_no_is_not_told_as_one_that_says_nothing(store, path):
    record = new(store)
    sql(path, "CREATE TRIGGER few BEFORE UPDATE ON sessions BEGIN SELECT RAISE(ABORT, 'few'); END")
    with pytest.raises(StoreUnavailable, match=r"refused a statement .*few"):
        store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)}))
    assert store.load(record.handle) == record


def test_a_full_database_is_unavailable_until_there_is_room(store):
    record = new(store, fields=fields(a=js(1)))
    [connection] = store._idle
    [(pages,)] = connection.driver.execute("PRAGMA page_count").fetchall()
    connection.driver.execute(f"PRAGMA max_page_count={pages + 2}")
    large = Changes(sets={"large": (js("x" * 100_000), 0)})
    for verb in (
        lambda: store.apply(record.handle, PROOF, large),
        lambda: store.apply(record.handle, PROOF, large._replace(idle=FOREVER - 1)),
        lambda: new(store, fields=fields(large=js("x" * 100_000)), labels={"subject": "bob"}),
    ):
        with pytest.raises(StoreUnavailable, match="make room"):
            verb()
        assert store.load(record.handle) == record
    connection.driver.execute("PRAGMA max_page_count=1000000")
    assert store.apply(record.handle, PROOF, large) == 2


def test_a_full_disk_is_unavailable_until_there_is_room(path):
    run(
        """
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = SqliteStore(path)
        record = new(store, fields=fields(a=js(1)))
        store.close()
        store = SqliteStore(path)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        written = 0
        try:
            while True:
                new(store, f"h{written}", fields=fields(a=js("x" * 5000)))
                written += 1
        except StoreUnavailable as error:
            assert "disk" in str(error), error
        assert 3 < written < 40, written
        for changes in (Changes(sets={"b": (js("x" * 50_000), 0)}), Changes(idle=1 << 60, labels={"a": "b"})):
            try:
                store.apply(record.handle, PROOF, changes)
            except StoreUnavailable:
                pass
            else:
                raise AssertionError("It was written to a full disk.")
        assert store.load(record.handle) == record
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.apply(record.handle, PROOF, Changes(sets={"b": (js(1), 0)}))
        store.close()
        store = SqliteStore(path)
        assert contents(store, record.handle) == {"a": js(1), "b": js(1)}
        assert {f"h{number}" for number in range(written)} < {r.handle for r in store.scan(limit=1000).records}
        store.close()
        """,
        path,
    )


READ_ONLY = """
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    store = SqliteStore(path)
    print(contents(store, "shared"))
    new(store, "other")
except StoreUnavailable as error:
    assert "let this user" in str(error) or "whether this user" in str(error), error
else:
    raise AssertionError("It was written.")
"""


@pytest.fixture
def folder():
    """Return a folder that another user can reach; pytest's own are closed."""
    with TemporaryDirectory() as above:
        Path(above).chmod(0o755)
        folder = Path(above) / "folder"
        folder.mkdir()
        yield folder
        folder.chmod(0o700)


@pytest.mark.parametrize("what", ["folder", "file", "missing"])
def test_what_may_not_be_written_is_unavailable_and_loses_nothing(folder, what):
    path = folder / "sessions.db"
    if what != "missing":
        with closing(SqliteStore(path)) as store:
            record = new(store, "shared")
    if os.geteuid() == 0:
        for each in (folder, *folder.iterdir()):
            os.chown(each, NOBODY, NOBODY)
    if what == "file":
        path.chmod(0o400)
    else:
        folder.chmod(0o500)
    run(READ_ONLY, path)
    folder.chmod(0o700)
    if what != "missing":
        path.chmod(0o600)
        with closing(SqliteStore(path)) as store:
            assert store.load("shared") == record
            new(store)


def test_what_is_no_database_is_corrupt_and_left_alone(path):
    path.write_bytes(b"garbage " * 1000)
    path.chmod(0o600)
    with pytest.raises(StoreCorrupt) as caught:
        SqliteStore(path)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert path.read_bytes() == b"garbage " * 1000


def test_damage_in_the_middle_is_never_taken_for_a_session(path):
    with closing(SqliteStore(path)) as store:
        records = {record.handle: record for record in (new(store, fields=fields(a=js("x" * 900))) for _ in range(200))}
    data = bytearray(path.read_bytes())
    for page in range(8, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    outcomes = set()
    with closing(SqliteStore(path)) as store:
        for handle, record in records.items():
            for verb, *rest in ((store.load,), (store.apply, PROOF, Changes(adds={"n": 1}))):
                try:
                    result = verb(handle, *rest)
                except (StoreCorrupt, SessionGone) as error:
                    result = error
                assert result is None or isinstance(result, StoreCorrupt | SessionGone | int) or result == record
                outcomes.add(type(result))
    assert StoreCorrupt in outcomes


def test_a_table_that_is_gone_is_damage(store, path):
    sql(path, "DROP TABLE sessions")
    with pytest.raises(StoreCorrupt):
        store.load("any")


def test_a_file_that_is_gone_is_not_made_anew_by_a_later_connection(path):
    with closing(SqliteStore(path)) as store:
        store._drain()
        path.rename(path.with_name("elsewhere.db"))
        with pytest.raises(StoreUnavailable, match="cannot be opened"):
            store.load("any")
        assert not path.exists()


def test_closing_while_others_work_ends_every_one_of_them_well(path):
    for _ in range(5 * SOAK):
        store = SqliteStore(path)
        record = new(store)

        def work(store=store, handle=record.handle):
            for number in range(100_000):
                store.apply(handle, PROOF, Changes(sets={"a": (js(number), 0)}))

        def close(store=store, handle=record.handle):
            while loaded(store, handle).version < 20:
                pass
            store.close()

        *ended, closed = at_once(work, work, work, close)
        assert closed is None
        assert {type(error) for error in ended} == {UsageError}
        assert store._idle == []
        store.close()


# -- the death of a writer --------------------------------------------------------------------

WRITER = """
import random
draw = random.Random(int(sys.argv[2]))
store = SqliteStore(path)
live = []
for number in range(1_000_000):
    what = draw.choice(["create", "apply", "apply", "label", "revoke"]) if len(live) > 3 else "create"
    if what == "create":
        handle = f"{sys.argv[2]}-{number}"
        live.append(handle)
        print("begin", what, handle, 0, flush=True)
        new(store, handle, fields=fields(n=js(0)), labels={"subject": "bob"})
    else:
        handle = draw.choice(live)
        print("begin", what, handle, number, flush=True)
        if what == "revoke":
            live.remove(handle)
            assert store.revoke(handle)
        else:
            labels = {"worker": str(number)} if what == "label" else {}
            store.apply(handle, PROOF, Changes(sets={"n": (js(number), 0)}, labels=labels))
    print("done", what, handle, number if what != "create" else 0, flush=True)
"""


def outcome_of(lines):
    """Return what was acknowledged last of each handle, None for revoked, and the one verb that nobody knows of."""
    known, open_ = {}, None
    for line in lines:
        step, what, handle, number = line.split()
        if step == "begin":
            open_ = (what, handle, int(number))
        else:
            known[handle] = None if what == "revoke" else int(number)
            open_ = None
    return known, open_


def check_survivors(store, known, unsure, what, number):
    """Check what is known of each handle; of the last unsure one, the verb under way is done or not done at all."""
    found = {}
    for start in range(0, len(known), 200):
        found |= store.load_many(list(known)[start : start + 200])
    for handle, last in known.items():
        states = {last, None if what == "revoke" else number} if handle in unsure else {last}
        state = orjson.loads(found[handle].fields)["n"] if handle in found else None
        assert state in states
    subjects = set(handles_of(store.find("subject", "bob", limit=100_000)))
    assert subjects - unsure == found.keys() - unsure, "Labels and sessions are one."


def test_st_10_what_a_killed_writer_was_told_stays_and_what_it_revoked_stays_gone(path):
    draw, known, unsure = random.Random(5), {}, set()
    for round_ in range(20 if SOAK == 1 else 500):
        with running(WRITER, path, round_) as process:
            lines = [process.stdout.readline() for _ in range(draw.randrange(1, 400))]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.read().splitlines(keepends=True)
        acknowledged, under_way = outcome_of(line for line in lines if line.endswith("\n"))
        what, handle, number = under_way or ("", "", 0)
        known |= acknowledged
        unsure.add(handle)
        with closing(SqliteStore(path)) as store:
            check_survivors(store, known, unsure, what, number)
            new(store)
        known.pop(handle, None)  # what became of it is looked at once
    assert sum(state is None for state in known.values()) > 20
    assert sum(state is not None for state in known.values()) > 20


# -- the pool ---------------------------------------------------------------------------------


def test_a_verb_within_a_verb_has_a_connection_of_its_own(store, clock):
    record = new(store)
    store.load(record.handle)
    clock.then = lambda: store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
    assert store.apply(record.handle, PROOF, Changes(adds={"n": 1})) == 3
    assert len(store._idle) == 2


def test_pages_come_in_order_across_many_statements(store):
    handles = sorted(new(store).handle for _ in range(30))
    page, found = store.scan(limit=7), []
    while page.after is not None:
        found += handles_of(page)
        page = store.scan(page.after, 7)
    found += handles_of(page)
    assert found == handles
    assert all(first < second for first, second in pairwise(found))


def test_a_conflict_leaves_no_transaction_open(store):
    record = new(store, labels={"subject": "bob"})
    for labels in ({}, {"subject": "eve"}):
        with pytest.raises(Conflict):
            new(store, record.handle, labels=labels)
    assert not any(connection.driver.in_transaction for connection in store._idle)
    assert store.count("subject", "eve") == 0
