"""The scheduler finds every schedule, once each, and says how to repeat the one that fails."""

import sqlite3
from math import comb, factorial
from types import SimpleNamespace

import pytest
from scheduler import Abandoned, Database, Deadlock, Scenario, ScheduledLock, Scheduler, Unrepeatable


@pytest.fixture
def scheduler():
    with Scheduler() as made:
        yield made


def steps(scheduler, count, log=None, name=""):
    """Return an operation of so many steps."""

    def operation():
        for number in range(count):
            scheduler.point(f"step {number}")
            if log is not None:
                log.append(name)
        return count

    return operation


def unchecked(*operations):
    return lambda: Scenario(operations, lambda run: None)


def several(*counts):
    """Return how many interleavings operations of so many steps have."""
    total = factorial(sum(counts))
    for count in counts:
        total //= factorial(count)
    return total


# -- every schedule, once -----------------------------------------------------------------------


def test_two_operations_of_five_steps_have_252_schedules(scheduler):
    assert scheduler.explore(unchecked(steps(scheduler, 5), steps(scheduler, 5))) == comb(10, 5) == 252


@pytest.mark.parametrize("counts", [(1,), (3,), (1, 1), (2, 3), (4, 1), (0, 2), (2, 2, 2), (1, 2, 3), (1, 1, 1, 1)])
def test_there_are_as_many_schedules_as_the_formula_says(scheduler, counts):
    assert scheduler.explore(unchecked(*(steps(scheduler, count) for count in counts))) == several(*counts)


def test_every_schedule_is_another_order_of_the_steps(scheduler):
    seen = set()

    def scenario():
        log = []
        return Scenario(
            [steps(scheduler, 3, log, "a"), steps(scheduler, 3, log, "b")], lambda run: seen.add("".join(log))
        )

    assert scheduler.explore(scenario) == len(seen) == comb(6, 3)
    assert {"aaabbb", "bbbaaa", "ababab"} <= seen


def bounded(first, second, preemptions):
    """Return in how many orders of two operations' steps at most so many switches leave one that could go on.

    With i blocks of the one and j of the other, every switch but those at an operation's end is a preemption: one
    operation ends last, and the switch to its last block, at the other's end, is free.
    """
    total = 0
    for blocks_of_first in range(1, first + 1):
        for blocks_of_second in range(1, second + 1):
            orders = {0: 2, 1: 1}.get(abs(blocks_of_first - blocks_of_second), 0)
            if blocks_of_first + blocks_of_second - 2 <= preemptions:
                total += orders * comb(first - 1, blocks_of_first - 1) * comb(second - 1, blocks_of_second - 1)
    return total


@pytest.mark.parametrize("preemptions", range(10))
@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 3), (5, 5)])
def test_a_bound_keeps_the_schedules_with_at_most_so_many_preemptions(scheduler, first, second, preemptions):
    scenario = unchecked(steps(scheduler, first), steps(scheduler, second))
    assert scheduler.explore(scenario, preemptions) == bounded(first, second, preemptions)


def test_without_preemptions_only_the_orders_of_whole_operations_are_left(scheduler):
    assert scheduler.explore(unchecked(*[steps(scheduler, 4)] * 3), 0) == factorial(3)


def test_a_bound_above_what_is_possible_leaves_all(scheduler):
    assert scheduler.explore(unchecked(*[steps(scheduler, 2)] * 3), 99) == several(2, 2, 2)


def test_two_explorations_see_the_same_schedules_in_the_same_order(scheduler):
    def explored():
        seen = []
        scheduler.explore(
            lambda: Scenario([steps(scheduler, 3), steps(scheduler, 2)], lambda run: seen.append(run.schedule))
        )
        return seen

    assert explored() == explored()
    assert explored()[0] == "0 0 0 1 1"
    assert explored()[-1] == "1 0 1 0 0"


# -- what operations see ------------------------------------------------------------------------


def test_only_one_operation_runs_at_a_time_and_knows_which_it_is(scheduler):
    inside = []

    def operation():
        mine = None
        for _ in range(3):
            scheduler.point("step")
            assert mine in {None, scheduler.current}
            mine = scheduler.current
            inside.append(mine)
            assert inside.pop() == mine
            assert not inside
        return mine

    def check(run):
        assert run.results == {0: 0, 1: 1}

    assert scheduler.explore(lambda: Scenario([operation] * 2, check)) == comb(6, 3)


def test_a_run_tells_who_had_returned_before_who_began(scheduler):
    def check(run):
        order = run.schedule
        assert run.is_before(0, 1) == (order == "0 0 1 1")
        assert run.is_before(1, 0) == (order == "1 1 0 0")

    scheduler.explore(lambda: Scenario([steps(scheduler, 2)] * 2, check))


def test_points_outside_of_operations_do_nothing(scheduler):
    scheduler.point("nobody's")
    scheduler.retry("nobody's")
    with ScheduledLock(scheduler) as taken:
        assert taken
    assert not scheduler.is_scheduling


# -- finding what is wrong ----------------------------------------------------------------------


def adding(scheduler, guard=None):
    """Two operations that read, then write: the update of one is lost unless a lock is held meanwhile."""

    def scenario():
        shared = SimpleNamespace(value=0)
        lock = ScheduledLock(scheduler) if guard else None

        def add():
            if lock is not None:
                lock.acquire()
            scheduler.point("read")
            value = shared.value
            scheduler.point("write")
            shared.value = value + 1
            if lock is not None:
                lock.release()

        def check(run):
            assert shared.value == 2, "an update was lost"

        return Scenario([add, add], check)

    return scenario


def test_a_lost_update_is_found_and_its_story_repeats_it(scheduler):
    with pytest.raises(AssertionError, match="an update was lost") as found:
        scheduler.explore(adding(scheduler))
    (story,) = found.value.__notes__
    assert "replay(scenario, '0 1 1 0')" in story
    assert "    0  read\n    1  read\n    1  write\n    0  write" in story
    with pytest.raises(AssertionError, match="an update was lost"):
        scheduler.replay(adding(scheduler), "0 1 1 0")


def test_another_schedule_of_the_same_scenario_replays_well(scheduler):
    assert scheduler.replay(adding(scheduler), "0 0 1 1").schedule == "0 0 1 1"


def test_with_a_lock_no_update_is_lost_and_nobody_runs_while_it_is_held(scheduler):
    assert scheduler.explore(adding(scheduler, guard=True)) == 2


def test_what_an_operation_raises_fails_the_run_with_its_story(scheduler):
    def failing():
        scheduler.point("before it fails")
        raise ValueError("of the operation")

    with pytest.raises(ValueError, match="of the operation") as raised:
        scheduler.explore(unchecked(failing, steps(scheduler, 3)))
    assert "before it fails" in raised.value.__notes__[0]
    assert scheduler.explore(unchecked(steps(scheduler, 2), steps(scheduler, 2))) == comb(4, 2)


def deadlocking(scheduler, undone):
    """Two operations that take two locks, each in its own order."""

    def scenario():
        left, right = ScheduledLock(scheduler, "left"), ScheduledLock(scheduler, "right")

        def take(first, second):
            try:
                with first, second:
                    pass
            except Abandoned:
                undone.append(first)
                raise

        return Scenario([lambda: take(left, right), lambda: take(right, left)], lambda run: None)

    return scenario


def test_a_deadlock_is_found_and_says_who_waits_for_what(scheduler):
    undone = []
    with pytest.raises(Deadlock, match="No operation can go on") as found:
        scheduler.explore(deadlocking(scheduler, undone))
    story = found.value.__notes__[0]
    assert "0  waits before: acquire right" in story
    assert "1  waits before: acquire left" in story
    assert len(undone) == 2


def test_an_operation_that_waits_in_a_loop_is_a_deadlock_too(scheduler):
    def waiting():
        while True:
            scheduler.point("look again")

    with pytest.raises(Deadlock, match="still go on"):
        scheduler.explore(unchecked(waiting))


def test_a_scenario_that_depends_on_more_than_the_schedule_is_refused(scheduler):
    counts = iter([3, 1, 1, 1])
    with pytest.raises(Unrepeatable, match="only by"):
        scheduler.explore(lambda: unchecked(*[steps(scheduler, next(counts))] * 2)())


# -- locks --------------------------------------------------------------------------------------


def test_a_lock_that_is_not_waited_for_says_that_it_is_held(scheduler):
    seen = set()

    def scenario():
        lock = ScheduledLock(scheduler)

        def attempt():
            taken = lock.acquire(blocking=False)
            if taken:
                assert lock.locked()
                lock.release()
            return taken

        return Scenario([attempt, attempt], lambda run: seen.add(tuple(sorted(run.results.values()))))

    scheduler.explore(scenario)
    assert seen == {(True, True), (False, True)}


# -- SQLite -------------------------------------------------------------------------------------


@pytest.fixture
def database(scheduler, tmp_path):
    """A table of one number, two scheduled connections to it, and a plain one that puts it back to 0."""
    database = Database(scheduler)
    plain = sqlite3.connect(tmp_path / "toy.db", isolation_level=None)
    plain.execute("PRAGMA journal_mode=WAL")
    plain.execute("PRAGMA synchronous=OFF")
    plain.execute("CREATE TABLE toy (value)")
    plain.execute("INSERT INTO toy VALUES (0)")
    options = {"isolation_level": None, "check_same_thread": False}
    connections = [database.connect(tmp_path / "toy.db", **options) for _ in range(2)]
    yield SimpleNamespace(database=database, plain=plain, connections=connections)
    for connection in [plain, *connections]:
        connection.close()


def summing(toy, act):
    def scenario():
        toy.plain.execute("UPDATE toy SET value = 0")
        cursors = [connection.cursor() for connection in toy.connections]

        def check(run):
            assert toy.plain.execute("SELECT value FROM toy").fetchone() == (2,), "an update was lost"

        return Scenario([lambda: act(cursors[0]), lambda: act(cursors[1])], check)

    return scenario


def read_then_write(cursor):
    ((value,),) = cursor.execute("SELECT value FROM toy").fetchall()
    cursor.execute("UPDATE toy SET value = ?", (value + 1,))


def in_a_transaction(cursor):
    cursor.execute("BEGIN IMMEDIATE")
    read_then_write(cursor)
    cursor.execute("COMMIT")


def returning(cursor):
    assert cursor.execute("UPDATE toy SET value = value + 1 RETURNING value").fetchone() is not None


def test_statements_are_points_so_that_a_lost_update_is_found(scheduler, database):
    with pytest.raises(AssertionError, match="an update was lost") as found:
        scheduler.explore(summing(database, read_then_write))
    assert "0  SELECT value FROM toy" in found.value.__notes__[0]


def test_who_needs_the_write_lock_is_not_runnable_while_another_has_it(scheduler, database):
    assert scheduler.explore(summing(database, in_a_transaction)) == 2
    assert not database.database.refused


def test_a_statement_that_returns_what_it_wrote_holds_the_lock_until_that_is_fetched(scheduler, database):
    assert scheduler.explore(summing(database, returning)) == 2
    assert not database.database.refused


def test_a_lock_that_nobody_knew_of_is_waited_for_all_the_same(scheduler, database):
    def hidden(cursor):
        cursor.execute("BEGIN")  # takes the write lock only with the first write
        cursor.execute("UPDATE toy SET value = value + 1")
        cursor.execute("COMMIT")

    assert scheduler.explore(summing(database, hidden)) > 2
    assert database.database.refused > 0


def test_what_a_statement_calls_is_a_point_inside_it(scheduler, database):
    for connection in database.connections:
        connection.create_function("plus_one", 1, lambda value: value + 1)
    labels = set()

    def scenario():
        made = summing(database, lambda cursor: cursor.execute("UPDATE toy SET value = plus_one(value)"))()
        return Scenario(made.operations, lambda run: (labels.update(label for _, label in run.steps), made.check(run)))

    assert scheduler.explore(scenario) == 2
    assert "inside plus_one" in labels


def test_a_rollback_frees_the_write_lock(scheduler, database):
    def scenario():
        cursors = [connection.cursor() for connection in database.connections]

        def undone():
            cursors[0].execute("BEGIN IMMEDIATE")
            cursors[0].connection.rollback()

        return Scenario([undone, lambda: cursors[1].execute("DELETE FROM toy WHERE value = 9")], lambda run: None)

    assert scheduler.explore(scenario) == 2


def test_statements_in_bulk_are_one_point(scheduler, database):
    rows = [(9,), (9,)]

    def scenario():
        cursors = [connection.cursor() for connection in database.connections]
        operations = [
            lambda: cursors[0].executemany("INSERT INTO toy VALUES (?)", rows),
            lambda: cursors[1].executemany("DELETE FROM toy WHERE value = ?", rows),
        ]
        return Scenario(operations, lambda run: None)

    assert scheduler.explore(scenario) == 2
