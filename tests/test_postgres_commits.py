"""What the PostgreSQL store makes of an error that comes with the commit, behind a result that was good.

A deferred trigger makes such errors here; in the field they are those of a role whose transactions are serializable, of
a constraint of somebody's own, and of a server that is ended meanwhile.
"""

import logging
import signal
import threading
from contextlib import closing, suppress
from functools import partial

import pytest
from servers.postgres import KINDS, connected, run_sql, server, started

pytest.importorskip("psycopg_pool")

from psycopg.errors import ProgramLimitExceeded

from sessiontree import StoreUnavailable
from sessiontree.records import Changes
from sessiontree.stores.conformance.tools import OTHER_PROOF, PROOF, at_once, contents, fields, js, new
from sessiontree.stores.conformance.watching import Heard
from sessiontree.stores.postgres import PostgresStore

SCHEMA = "commits"
ADD = Changes(adds={"n": 1})


@pytest.fixture
def url():
    found = server(KINDS[0]).url
    with closing(PostgresStore.from_url(found, schema=SCHEMA)) as store:
        store.create_schema()
    yield found
    run_sql(found, f"DROP SCHEMA {SCHEMA} CASCADE")


@pytest.fixture
def store(url):
    with closing(PostgresStore.from_url(url, schema=SCHEMA)) as store:
        yield store


@pytest.fixture(params=["alone", "watched"])
def stop(request, store):
    """Whether anybody watches, so that each write goes through a pipe."""
    stop = store.watch(lambda _: None) if request.param == "watched" else lambda: None
    new(store)
    yield stop
    stop()


def refuse(url, code, times, handle=""):
    """Let commits of writes to this record, or to any, fail so often with this error."""
    run_sql(
        url,
        f"CREATE SEQUENCE {SCHEMA}.refused",
        f"""CREATE FUNCTION {SCHEMA}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF '{handle}' IN ('', NEW.handle) AND nextval('{SCHEMA}.refused') <= {times} THEN
                RAISE 'refused' USING ERRCODE = '{code}';
            END IF;
            RETURN NULL;
        END $$""",
        f"""CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON {SCHEMA}.sessions
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.refuse()""",
    )


@pytest.mark.parametrize("code", ["40001", "40P01"])
@pytest.mark.parametrize(
    "changes", [ADD, Changes(sets={"n": (js(2), 0)}), Changes(adds={"n": 1}, proof=OTHER_PROOF)],
    ids=["increment", "plain", "renewal"],
)  # fmt: skip
def test_a_commit_that_fails_for_the_sake_of_another_is_made_again(url, store, stop, code, changes):
    record = new(store, fields=fields(n=js(1)))
    refuse(url, code, 3)
    assert store.apply(record.handle, PROOF, changes) == 2
    assert contents(store, record.handle) == {"n": js(2)}
    created = new(store)
    assert store.load(created.handle) == created
    assert store._pool.get_stats()["connections_num"] == 1


def test_of_several_commits_the_one_that_fails_is_made_again_and_no_other(url, store, stop):
    records = [new(store) for _ in range(3)]
    refuse(url, "40001", 1, records[1].handle)
    found = store.apply_many([(record.handle, PROOF, ADD) for record in records])
    assert [each.sums for each in found] == [{"n": 1}] * 3
    assert [contents(store, record.handle)["n"] for record in records] == [js(1)] * 3
    assert store._pool.get_stats()["connections_num"] == 1


def test_a_commit_that_is_refused_is_an_outage_that_says_why_and_nothing_is_written(url, store, stop):
    records = [new(store) for _ in range(3)]
    refuse(url, "23514", 1000, records[1].handle)
    with pytest.raises(StoreUnavailable, match="refused"):
        store.apply(records[1].handle, PROOF, ADD)
    found = store.apply_many([(record.handle, PROOF, ADD) for record in records])
    assert [str(each) for each in (found[0], found[2])] == ["2", "2"]
    assert isinstance(found[1], StoreUnavailable)
    assert "refused" in str(found[1])
    assert [contents(store, record.handle) for record in records] == [{"n": js(1)}, {}, {"n": js(1)}]
    assert store._pool.get_stats()["connections_num"] == 1, "The connection is as good as before."


def test_sessions_of_a_role_whose_transactions_are_serializable_lose_no_increment(url, stop):
    serializable = f"{url}&options=-c%20default_transaction_isolation%3Dserializable"
    with closing(PostgresStore.from_url(serializable, schema=SCHEMA, timeout=5)) as other:
        records = [new(other, labels={"subject": "bob"}) for _ in range(4)]

        def write(place):
            for round_ in range(15):
                pair = [records[(place + round_) % 4], records[(place + round_ + 1) % 4]]
                made = other.apply_many([(record.handle, PROOF, ADD) for record in pair])
                assert all(isinstance(each, int) for each in made), made
                other.sweep_idle(10**6)
                other.relabel("subject", "bob", "bob")

        assert at_once(*(partial(write, place) for place in range(4))) == [None] * 4
        assert sum(int(contents(other, record.handle)["n"]) for record in records) == 4 * 15 * 2


# -- a notification that fails ----------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded():
    """A server whose queue of notifications is small."""
    found = started("wheel 18", max_notify_queue_pages="64")
    with closing(PostgresStore.from_url(found.url, schema=SCHEMA)) as store:
        store.create_schema()
    yield found.url
    found.process.remove(signal.SIGINT)


def fill(url):
    """Fill the queue of notifications, and return the connection that keeps it from being read."""
    lazy = connected(url)
    lazy.execute("LISTEN anything")
    lazy.execute("BEGIN")
    lazy.execute("SELECT 1")
    shout = "SELECT pg_notify('anything', repeat('y', 7800) || n) FROM generate_series(1, 20) n"
    with suppress(ProgramLimitExceeded):
        for _ in range(100):
            run_sql(url, shout)
    return lazy


def test_a_full_queue_of_notifications_fails_no_write_costs_no_connection_and_is_said_once(crowded, caplog):
    heard = Heard()
    watching, writing = (PostgresStore.from_url(crowded, schema=SCHEMA, timeout=5) for _ in range(2))
    with closing(watching), closing(writing):
        stop = watching.watch(heard.on_change)
        first, second, third = (new(writing) for _ in range(3))
        assert heard.has(third.handle)
        with caplog.at_level(logging.WARNING, "sessiontree.stores"), closing(fill(crowded)):
            assert writing.revoke(first.handle) is True
            assert writing.apply_many([(each.handle, PROOF, ADD) for each in (second, third)]) == [2, 2]
            assert writing.apply(second.handle, PROOF, ADD) == 3
        assert writing._pool.get_stats()["connections_num"] == 1
        [said] = caplog.records
        assert "too many notifications" in said.getMessage()
        heard.forget()
        for _ in range(500):  # until the server has noticed that nobody is late any more
            run_sql(crowded, "SELECT pg_notification_queue_usage()")
            writing.apply(third.handle, PROOF, ADD)
            if not writing._is_mute:
                break
            threading.Event().wait(0.02)
        assert heard.has(third.handle)
        assert caplog.records == [said]
        stop()
