"""PostgreSQL in every interleaving: verbs, stopped before each statement, and requests, stopped around each verb.

The scenarios and the promises are those of ``test_interleavings``, ``test_tree_races`` and ``test_tree_model``. Between
two statements of one verb others make theirs on the server itself; what would wait there for a row that a transaction
holds is not scheduled before that has ended.
"""

from contextlib import closing, contextmanager
from itertools import combinations_with_replacement

import pytest
from hypothesis import settings
from scheduler import Scheduler
from servers.postgres import connected, run_sql, server
from support import SOAK

pytest.importorskip("psycopg_pool")

import test_interleavings as interleavings
import test_tree_model as tree_model
import test_tree_races as tree_races
from test_interleavings import ACTIONS, MOST_PREEMPTIONS, PAIRS, TRIPLES, OperationClock, Server, requests_at_once, told

from sessiontree.stores.postgres import PostgresStore
from sessiontree.stores.postgres.connection import Connection

SCHEMA = "races"
READS = (b"SELECT ROW(", b"SELECT count(")
ENDS = (b"COMMIT", b"ROLLBACK")


@pytest.fixture(scope="module")
def url():
    found = server("wheel 16").url
    with closing(PostgresStore.from_url(found, schema=SCHEMA)) as store:
        store.create_schema()
    yield found
    run_sql(found, f"DROP SCHEMA {SCHEMA} CASCADE")


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler() as made:
        yield made


@pytest.fixture(scope="module")
def clock(scheduler):
    return OperationClock(scheduler)


class Statements:
    """Stops each operation before its statements, and knows whose transaction holds the row."""

    def __init__(self, scheduler):
        self.scheduler, self.run = scheduler, Connection.run
        self.reset()

    def reset(self):
        self.holder, self.has_skipped = None, False

    def stop(self, connection, statement, values=()):
        sql = statement.sql
        if self.scheduler.is_scheduling and not sql.startswith(b"BEGIN"):
            self.scheduler.point(sql.decode()[:60], lambda: self.is_free(connection, sql))
        if b"SKIP LOCKED" in sql and self.holder not in (None, connection):
            self.has_skipped = True
        if sql.endswith(b"FOR NO KEY UPDATE"):
            self.holder = connection
        try:
            return self.run(connection, statement, values)
        finally:
            if sql.startswith(ENDS):
                self.holder = None

    def is_free(self, connection, sql):
        waits = b"SKIP LOCKED" not in sql and (not sql.startswith(READS) or sql.endswith(b"FOR NO KEY UPDATE"))
        return self.holder in (None, connection) or not waits


@contextmanager
def emptied(url, clock):
    """What empties the one store and returns it, with connections enough."""
    with connected(url) as plain, closing(PostgresStore.from_url(url, schema=SCHEMA, clock=clock)) as store:
        store._idle.extend([store._taken(0.0) for _ in range(4)])

        def made():
            plain.execute(f"DELETE FROM {SCHEMA}.sessions", prepare=True)  # noqa: S608 - a name of ours
            return store

        yield made


@pytest.fixture
def make_store(url, scheduler, clock, monkeypatch):
    statements = Statements(scheduler)
    with emptied(url, clock) as made:
        made().load_many(["a", "b"])
        monkeypatch.setattr(Connection, "run", lambda connection, *rest: statements.stop(connection, *rest))

        def fresh():
            statements.reset()
            return made()

        fresh.statements = statements
        yield fresh


PROMISES = (
    interleavings.check_the_dead_stay_dead,
    interleavings.check_a_write_is_whole_or_refused,
    interleavings.check_one_proof_is_renewed_once,
    interleavings.check_who_prolonged_it_keeps_it,
    interleavings.check_versions_count_the_writes,
)


@pytest.fixture
def judging(make_store, monkeypatch):
    """What a sweep leaves because somebody holds it is the next one's: no order of the verbs explains that."""
    judge = interleavings.judge

    def judged(history):
        if not make_store.statements.has_skipped:
            judge(history)
            return
        for promise in PROMISES:
            promise(history)

    monkeypatch.setattr(interleavings, "judge", judged)


@pytest.mark.usefixtures("judging")
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_every_interleaving_of_two_verbs_keeps_the_promises(make_store, scheduler, clock, names):
    count = scheduler.explore(interleavings.verbs_at_once(make_store, clock, names))
    told("postgres", names, count)
    if set(names) <= {"revoke", "apply", "renew", "touch"} and names[0] == names[1] != "renew":
        assert count == 2, "each is one statement"


@pytest.mark.usefixtures("judging")
@pytest.mark.parametrize("names", TRIPLES if SOAK > 1 else TRIPLES[::4], ids="-".join)
def test_three_verbs_keep_the_promises_with_few_preemptions(make_store, scheduler, clock, names):
    told(
        "postgres",
        names,
        scheduler.explore(interleavings.verbs_at_once(make_store, clock, names), MOST_PREEMPTIONS - 1),
    )


# -- requests -------------------------------------------------------------------------------------

REQUESTS = list(combinations_with_replacement(ACTIONS, 2))
TOLD = [names for names in REQUESTS if set(names) <= {"logout", "write", "renew", "incr", "touch"}]


@pytest.fixture
def app(url, scheduler, clock):
    with emptied(url, clock) as made:
        yield Server(made, scheduler, clock)


@pytest.mark.parametrize("names", REQUESTS if SOAK > 1 else TOLD, ids="-".join)
def test_every_interleaving_of_two_requests_keeps_the_promises(app, scheduler, clock, names):
    told("postgres", names, scheduler.explore(requests_at_once(app, clock, names, folded=SOAK == 1)))


# -- trees ----------------------------------------------------------------------------------------


class Stores(tree_races.Stores):
    """The stores of a tree, with PostgreSQL where the scenarios have a file."""

    def __init__(self, url, *rest):
        super().__init__(*rest)
        self._context = emptied(url, self._clock)

    def __getitem__(self, kind):
        if kind == "sqlite" and kind not in self.made:
            self.made[kind] = tree_races.SteppingStore(self._context.__enter__(), self._scheduler)
        return super().__getitem__(kind)

    def close(self):
        if "sqlite" in self.made:
            self._context.__exit__(None, None, None)


WAYS = ("sqlite", "memory, sqlite")
BESIDE = ("create-child", "write-child", "revoke-parent", "renew-parent", "generate-parent", "handler.revoke_all")
TREES = [
    (way, names)
    for way, names in tree_races.PAIRS
    if way in WAYS and (SOAK > 1 or (set(names) <= set(BESIDE) and len(set(names)) == 2))
]


@pytest.fixture(scope="module")
def world(request, url, scheduler, clock, tmp_path_factory):
    stores = Stores(url, scheduler, clock, tmp_path_factory.mktemp("stores"))
    yield tree_races.World(stores, clock, request.param)
    stores.close()


@pytest.mark.parametrize(("world", "names"), TREES, indirect=["world"], ids=tree_races.named)
def test_lc_16_in_every_interleaving_of_two_operations_no_child_outlives_its_parent(scheduler, world, names):
    told(world.way, names, scheduler.explore(tree_races.at_once(world, names)))


class WalkOverPostgres(tree_model.Walk):
    """The random walk over PostgreSQL; each restart opens the schema anew."""

    url = ""

    def opened(self):
        if self.store:
            self.store.close()
        else:
            run_sql(self.url, f"DELETE FROM {SCHEMA}.sessions")  # noqa: S608 - a name of ours
        return PostgresStore.from_url(self.url, schema=SCHEMA, clock=self.clock)


@pytest.fixture
def walked(url):
    WalkOverPostgres.url = url


@pytest.mark.usefixtures("walked")
class TestLc16TheTreeHolds(WalkOverPostgres.TestCase):
    settings = settings(tree_model.TestLc16TheTreeHoldsInMemory.settings, max_examples=5 * SOAK)
