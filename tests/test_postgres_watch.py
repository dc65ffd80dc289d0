"""What PostgreSQL tells of changes that others make: LISTEN and NOTIFY, and what happens when that is lost.

Run with ``-s`` to see how long it takes another process to hear of a revocation.
"""

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing, contextmanager
from functools import partial
from statistics import median

import pytest
from servers.postgres import KINDS, bouncer, connected, run_sql, server, started

pytest.importorskip("psycopg_pool")

from psycopg_pool import ConnectionPool

from sessiontree import StoreUnavailable
from sessiontree.errors import NotImplementedByStore
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import OTHER_PROOF, PROOF, TurningClock, at_once, fresh_handle, js, new
from sessiontree.stores.conformance.watching import Heard
from sessiontree.stores.postgres import PostgresStore
from sessiontree.stores.postgres.connection import Connection
from sessiontree.stores.postgres.rows import label_of, lock_of
from sessiontree.stores.postgres.watch import lock_class

SCHEMA = "watched"
THREAD = "sessiontree-watch"
ROUNDS = 200


@pytest.fixture(scope="module")
def url():
    found = server(KINDS[0])
    with closing(PostgresStore.from_url(found.url, schema=SCHEMA)) as store:
        store.create_schema()
    yield found.url
    run_sql(found.url, f"DROP SCHEMA {SCHEMA} CASCADE")


@pytest.fixture
def clock():
    return TurningClock()


@pytest.fixture
def store(url, clock):
    run_sql(url, f"DELETE FROM {SCHEMA}.sessions", f"DELETE FROM {SCHEMA}.watchers")  # noqa: S608 - a name of ours
    with closing(PostgresStore.from_url(url, schema=SCHEMA, clock=clock)) as store:
        yield store
    assert ended()


@pytest.fixture
def elsewhere(url, clock):
    with closing(PostgresStore.from_url(url, schema=SCHEMA, clock=clock)) as store:
        yield store


@pytest.fixture
def heard():
    return Heard()


def watchers():
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def ended():
    for thread in watchers():
        thread.join(10)
    return not watchers()


def until(holds):
    """Wait until it holds."""
    for _ in range(500):
        if holds():
            return True
        threading.Event().wait(0.02)
    return False


def rows(url):
    return run_sql(url, f"SELECT count(*) FROM {SCHEMA}.watchers")[0][0]  # noqa: S608 - a name of ours


def hang_up(url):
    """End the connections that listen."""
    watching = f"locktype = 'advisory' AND classid = {lock_class(SCHEMA)}"
    return run_sql(url, f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {watching}")  # noqa: S608 - ours


def test_while_nobody_watches_no_notification_is_sent(store, elsewhere, heard, monkeypatch):
    sent, run, run_many = [], Connection.run, Connection.run_many
    change = Changes(adds={"n": 1})

    def recording(connection, statement, values=()):
        sent.append(b"pg_notify" in statement.sql)
        return run(connection, statement, values)

    def recording_many(connection, asked):
        sent.append(b"pg_notify" in asked[-1][0].sql and "in the same trip")
        return run_many(connection, asked)

    records = [new(elsewhere) for _ in range(3)]
    monkeypatch.setattr(Connection, "run", recording)
    monkeypatch.setattr(Connection, "run_many", recording_many)

    def write():
        sent.clear()
        elsewhere.apply(records[0].handle, PROOF, change)
        return sent[-2:]

    def write_all():
        sent.clear()
        elsewhere.apply_many([(record.handle, PROOF, change) for record in records])
        return sent[-2:]

    assert (write(), write_all()) == ([False], [False])
    stop = store.watch(heard.on_change)
    assert [write(), write(), write_all()] == [[False, True], ["in the same trip"], ["in the same trip"]]
    assert all(heard.has(record.handle) for record in records)
    stop()
    assert ended()
    assert [write(), write(), write_all()] == [["in the same trip"], [False], [False]]


@pytest.mark.parametrize("together", [False, True])
def test_the_first_write_after_somebody_came_is_told_too(store, elsewhere, heard, together):
    records = [new(elsewhere) for _ in range(3)]
    stop = store.watch(heard.on_change)
    if together:
        elsewhere.apply_many([(record.handle, PROOF, Changes(adds={"n": 1})) for record in records])
    else:
        for record in records:
            elsewhere.apply(record.handle, PROOF, Changes(adds={"n": 1}))
    assert all(heard.has(record.handle) for record in records)
    stop()


def test_watchers_share_one_thread_and_the_last_one_ends_it(store, url):
    stops = at_once(*[lambda: store.watch(lambda _: None)] * 8)
    assert (len(watchers()), rows(url)) == (1, 1)
    for stop in stops[1:]:
        stop()
    assert len(watchers()) == 1
    stops[0]()
    assert ended()
    assert rows(url) == 0


def test_a_store_that_is_collected_ends_the_thread(url, clock, heard):
    store = PostgresStore.from_url(url, schema=SCHEMA, clock=clock)
    store.watch(heard.on_change)
    store._return_idle()
    store._pool.close()
    del store
    gc.collect()
    assert ended()
    assert None in heard.forget()


def test_closing_says_that_it_is_over(store, heard):
    store.watch(heard.on_change)
    store.close()
    assert None in heard.forget()
    assert ended()


def test_a_feed_that_is_lost_says_so_once_and_again_when_it_is_back(store, elsewhere, url, caplog):
    told = []
    stop = store.watch(told.append)
    for round_ in range(1, 3):
        hang_up(url)
        assert until(lambda round_=round_: told.count(None) >= 2 * round_), told
    record = new(elsewhere)
    assert until(lambda: record.handle in told)
    stop()
    lost = [entry for entry in caplog.records if entry.name == "sessiontree.stores"]
    assert [entry.levelno for entry in lost] == [logging.WARNING] * 2
    assert ended()
    assert rows(url) == 0


def test_a_row_that_somebody_removed_is_a_loss_and_laid_again(store, elsewhere, url, heard):
    stop = store.watch(heard.on_change)
    run_sql(url, f"DELETE FROM {SCHEMA}.watchers")  # noqa: S608 - a name of ours
    assert until(lambda: rows(url) == 1)
    assert None in heard.forget()
    record = new(elsewhere)
    assert heard.has(record.handle)
    stop()


def test_a_watcher_that_was_killed_costs_nothing_after_the_next_sweep_or_watcher(store, elsewhere, url, heard):
    for tidy in (elsewhere.sweep, lambda: store.watch(heard.on_change)()):
        run_sql(url, f"INSERT INTO {SCHEMA}.watchers VALUES (99999999)")  # noqa: S608 - a name of ours
        stop = store.watch(heard.on_change)
        tidy()
        assert rows(url) == 1, "The living one stays."
        stop()
        assert ended()
        assert rows(url) == 0


def test_watchers_of_two_schemas_in_one_database_know_nothing_of_each_other(store, elsewhere, url, clock, heard):
    with closing(PostgresStore.from_url(url, schema="beside", clock=clock)) as beside:
        beside.create_schema()
        run_sql(
            url,
            f"SELECT setval('{SCHEMA}.watchers_id', 500), setval('beside.watchers_id', 500)",
        )
        others = Heard()
        stops = [store.watch(heard.on_change), beside.watch(others.on_change)]
        here, there = new(elsewhere), new(beside)
        assert heard.has(here.handle)
        assert others.has(there.handle)
        assert (there.handle in heard.forget(), here.handle in others.forget()) == (False, False)
        beside.sweep()
        assert rows(url) == 1
        for stop in stops:
            stop()
    assert ended()
    run_sql(url, "DROP SCHEMA beside CASCADE")


def test_a_write_that_began_before_the_watcher_came_is_over_when_it_is_there(store, url, heard):
    record = new(store)
    with connected(url) as slow:
        slow.execute("BEGIN")
        slow.execute(f"DELETE FROM {SCHEMA}.sessions")  # noqa: S608 - a name of ours
        threading.Timer(0.1, lambda: slow.execute("COMMIT")).start()
        stop = store.watch(heard.on_change)
        assert store.load(record.handle) is None, "It has ended, or the watcher would never hear of it."
    stop()


def blocked(url):
    """Tell whether anybody waits for a lock."""
    return run_sql(url, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")[0][0] > 0


@contextmanager
def waiting_for(url, statement, verb):
    """Have a verb wait, in a thread of its own, for what a stranger's statement locks; yield what lets it go on."""
    with connected(url) as stranger:
        stranger.execute("BEGIN")
        stranger.execute(statement)
        thread = threading.Thread(target=verb)
        thread.start()
        assert until(lambda: blocked(url))
        yield lambda: stranger.execute("COMMIT")
        stranger.execute("COMMIT")
        thread.join()


def lock_of_label(name, value):
    return f"SELECT pg_advisory_xact_lock({lock_of(SCHEMA, label_of(name), label_of(value))})"


@pytest.mark.parametrize(
    "changes",
    [Changes(adds={"n": 1}), Changes(sets={"n": (js(1), 0)}), Changes(proof=OTHER_PROOF), Changes(labels={"w": "1"})],
    ids=["increment", "plain", "renewal", "label"],
)
def test_a_write_that_waits_when_the_watcher_comes_is_over_when_it_is_there(store, elsewhere, url, changes):
    record = new(elsewhere)
    lock = f"SELECT FROM {SCHEMA}.sessions FOR UPDATE"
    if changes.labels:
        lock = lock_of_label("w", "1")
    with waiting_for(url, lock, lambda: elsewhere.apply(record.handle, PROOF, changes)) as let_go:
        threading.Timer(0.1, let_go).start()
        stop = store.watch(lambda _: None)
        assert store.load(record.handle).version == 2, "It has ended, or the watcher would never hear of it."
    stop()


def test_a_creation_that_waits_when_the_watcher_comes_is_over_when_it_is_there(store, elsewhere, url):
    handle = fresh_handle()
    creation = partial(new, elsewhere, handle, labels={"subject": "bob"})
    with waiting_for(url, lock_of_label("subject", "bob"), creation) as let_go:
        threading.Timer(0.1, let_go).start()
        stop = store.watch(lambda _: None)
        assert store.load(handle) is not None
    stop()


def test_writes_of_one_process_that_wait_while_another_of_its_writes_is_told_are_told_too(url, store, clock, heard):
    with closing(PostgresStore.from_url(url, schema=SCHEMA, clock=clock, timeout=5)) as busy:
        records = [new(busy) for _ in range(3)]
        add = Changes(adds={"n": 1})
        stop = store.watch(heard.on_change)
        lock = f"SELECT FROM {SCHEMA}.sessions WHERE handle = '{records[0].handle}' FOR UPDATE"
        both = [(record.handle, PROOF, add) for record in records[:2]]
        with waiting_for(url, lock, lambda: busy.apply_many(both)):
            busy.apply(records[2].handle, PROOF, add)
        assert all(heard.has(record.handle) for record in records)
    stop()


@pytest.mark.parametrize("together", [True, False])
def test_whoever_may_not_notify_writes_all_the_same_and_keeps_the_connection(store, url, clock, caplog, together):
    tables = f"ALL TABLES IN SCHEMA {SCHEMA}"
    run_sql(
        url, "CREATE ROLE mute LOGIN", f"GRANT USAGE ON SCHEMA {SCHEMA} TO mute",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO mute",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO mute", "REVOKE EXECUTE ON FUNCTION pg_notify FROM public",
    )  # fmt: skip
    try:
        with ConnectionPool(url, kwargs={"user": "mute"}, min_size=1, max_size=1, open=True) as pool:
            pool.wait()
            writer = PostgresStore(pool, schema=SCHEMA, clock=clock)
            stop = store.watch(lambda _: None)
            for _ in range(2):
                record = new(writer)
                if together:
                    assert writer.apply_many([(record.handle, PROOF, Changes(adds={"n": 1}))]) == [2]
                assert writer.revoke(record.handle) is True
            assert pool.get_stats()["connections_num"] == 1
            writer.close()
            stop()
        assert [entry.name for entry in caplog.records] == ["sessiontree.stores"]
    finally:
        run_sql(url, "GRANT EXECUTE ON FUNCTION pg_notify TO public", "DROP OWNED BY mute", "DROP ROLE mute")


def test_a_store_behind_a_pooler_announces_each_write_of_several_once(url, clock):
    told = []
    with closing(PostgresStore.from_url(url, schema=SCHEMA, clock=clock, prepared=False)) as pooled:
        records = [new(pooled) for _ in range(2)]
        pooled.listen(told.append)
        pooled.apply_many([(record.handle, PROOF, Changes(adds={"n": 1})) for record in records])
    assert told == [record.handle for record in records]


def test_who_listens_through_a_pooler_is_warned(url, clock, caplog):
    pooler = bouncer(server(KINDS[0]))
    for listen_url, warnings in ((url, 0), (pooler, 1)):
        pooled = PostgresStore.from_url(pooler, schema=SCHEMA, clock=clock, prepared=False, listen_url=listen_url)
        with closing(pooled):
            pooled.watch(print)()
        assert ended()
        assert ["listen_url" in entry.getMessage() for entry in caplog.records] == [True] * warnings


def test_without_the_server_nothing_can_be_watched(clock):
    store = PostgresStore.from_url("postgresql://x@127.0.0.1:1/x", timeout=0.2, clock=clock)
    with pytest.raises(StoreUnavailable):
        store.watch(print)
    assert watchers() == []
    assert store._feed._listeners == store._listeners == {}


def test_behind_a_pooler_a_way_to_the_server_itself_is_needed(url, clock, heard, elsewhere):
    alone = PostgresStore.from_url(url, schema=SCHEMA, clock=clock, prepared=False)
    with closing(alone), pytest.raises(NotImplementedByStore, match="listen_url"):
        alone.watch(heard.on_change)
    pooled = PostgresStore.from_url(url, schema=SCHEMA, clock=clock, prepared=False, listen_url=url)
    with closing(pooled) as store:
        stop = store.watch(heard.on_change)
        record = new(elsewhere)
        assert heard.has(record.handle)
        stop()


def test_the_connections_of_an_applications_pool_are_not_listened_on(url, clock, heard, elsewhere):
    with ConnectionPool(url, min_size=1, max_size=1, open=True) as pool:
        store = PostgresStore(pool, schema=SCHEMA, clock=clock)
        stop = store.watch(heard.on_change)
        with pool.connection():
            assert heard.has(new(elsewhere).handle)
        stop()
        store.close()


def test_a_watcher_that_raises_anything_at_all_leaves_the_feed_running(store, elsewhere, heard):
    def fail(_):
        raise SystemExit

    stops = [store.watch(fail), store.watch(heard.on_change)]
    for _ in range(2):
        assert heard.has(new(elsewhere).handle)
        heard.forget()
    for stop in stops:
        stop()


def test_a_handle_longer_than_a_notification_is_any(store, heard, elsewhere, monkeypatch):
    monkeypatch.setattr("sessiontree.stores.postgres.apply.LONGEST", 10)
    stop = store.watch(heard.on_change)
    record = new(elsewhere)
    assert until(lambda: None in heard.forget())
    assert elsewhere.load(record.handle) == record
    stop()


def test_many_changes_in_one_batch_are_all_told(store, elsewhere, heard):
    handles = [new(elsewhere, labels={"subject": "bob"}).handle for _ in range(700)]
    stop = store.watch(heard.on_change)
    assert elsewhere.revoke_where("subject", "bob") == 700
    assert all(heard.has(handle) for handle in handles)
    stop()


def test_a_server_that_stands_still_is_a_loss(clock):
    own = started(KINDS[0])
    told = []
    try:
        with closing(PostgresStore.from_url(own.url, clock=clock, timeout=0.2)) as store:
            store.create_schema()
            store.watch(told.append)
            [(pid,)] = run_sql(
                own.url,
                f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = {lock_class('sessiontree')}",  # noqa: S608 - a name of ours
            )
            os.kill(pid, signal.SIGSTOP)
            try:
                assert until(lambda: None in told)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert until(lambda: told.count(None) > 1)
    finally:
        own.process.remove(signal.SIGINT)
    assert ended()


def test_a_forked_child_hears_for_itself_and_its_parent_goes_on(store, elsewhere, url, heard):
    stop = store.watch(heard.on_change)
    first = new(elsewhere)
    assert heard.has(first.handle)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            heard.forget()
            store.load("anything")  # the first use
            told_first = until(lambda: None in heard.forget())
            record = new(store)
            status = 0 if told_first and heard.has(record.handle) and len(watchers()) == 1 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    heard.forget()
    assert heard.has(new(elsewhere).handle)
    stop()


SCRIPT = """
    import sys
    from sessiontree.stores.conformance.tools import new
    from sessiontree.stores.postgres import PostgresStore
    store = PostgresStore.from_url(sys.argv[1], schema=sys.argv[2])
    handles = [new(store).handle for _ in range(int(sys.argv[3]))]
    print(*handles, flush=True)
    import time
    for handle in handles:
        sys.stdin.readline()
        store.revoke(handle)
        print(time.monotonic_ns(), flush=True)
"""


@contextmanager
def another_process(*arguments):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_every_revocation_in_another_process_is_heard_of(store, url):
    times, more = {}, threading.Condition()

    def on_change(handle):
        with more:
            times[handle] = time.monotonic_ns()
            more.notify_all()

    stop = store.watch(on_change)
    with another_process(url, SCHEMA, ROUNDS) as process:
        handles = process.stdout.readline().split()
        with more:
            assert more.wait_for(lambda: set(handles) <= set(times), 10)
        late = []
        for handle in handles:
            times.pop(handle)
            process.stdin.write("\n")
            process.stdin.flush()
            done = int(process.stdout.readline())
            with more:
                assert more.wait_for(lambda handle=handle: handle in times, 10)
            late.append((times[handle] - done) / 1e6)
    sys.stdout.write(f"revoked there, heard of here after {median(late):.2f} ms (median of {ROUNDS})\n")
    stop()


def test_a_process_ends_at_once_though_it_watches(url):
    script = f"""
        from sessiontree.stores.postgres import PostgresStore
        store = PostgresStore.from_url({url!r}, schema={SCHEMA!r})
        store.watch(print)
        store.load("x")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=30)
