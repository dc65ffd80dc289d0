"""A deterministic scheduler: runs a few operations in every order in which their steps can interleave.

Each operation runs in a thread of its own, so that ordinary code can be scheduled, but only one runs at a time. It
runs until its next *point*, which stands before a step that others can notice (taking a lock, reading what is shared,
a statement), and there hands the baton to whoever the schedule says. A schedule is the list of who made each step.

All schedules are found by running: follow a prefix of choices, go on with whoever runs, and come back for each choice
that was not taken (depth first, stateless). A point may say when its step can be made; until then its operation is not
runnable, so blocking is part of the model and nothing ever waits. If nobody can go on, that is a deadlock.
"""

import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock, Thread, get_ident
from typing import Any, NamedTuple, Self

MOST_STEPS = 1000
"""An operation that makes more never ends: it waits for something in a loop."""

NOBODY = -1


class Deadlock(AssertionError):
    """No operation can go on, and not all have ended."""


class Unrepeatable(AssertionError):
    """The same choices led elsewhere than before: something besides the schedule decides."""


class Abandoned(BaseException):
    """Ends the operations of a run that failed; no ordinary handler may catch it."""


class Scenario(NamedTuple):
    """Operations on a state that is made anew for every run, and what must hold after each."""

    operations: Sequence[Callable[[], Any]]
    check: Callable[["Run"], object]


class Step(NamedTuple):
    operation: int
    label: str


def always() -> bool:
    return True


@dataclass(eq=False)
class Run:
    """One execution of all operations: who made which step, and what came of it."""

    operations: Sequence[Callable[[], Any]]
    prefix: Sequence[int]
    bound: int | None
    steps: list[Step] = field(default_factory=list)
    options: list[list[int]] = field(default_factory=list)
    results: dict[int, Any] = field(default_factory=dict)
    began: dict[int, int] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    pending: dict[int, tuple[str, Callable[[], bool]]] = field(default_factory=dict)
    launched: int = 0
    running: int = NOBODY
    preemptions: int = 0
    failure: BaseException | None = None

    @property
    def schedule(self) -> str:
        """Who made each step, as ``replay`` takes it."""
        return " ".join(str(step.operation) for step in self.steps)

    def is_before(self, first: int, second: int) -> bool:
        """Tell whether one operation had returned when the other made its first step."""
        return self.ended[first] < self.began.get(second, 0)

    def pass_on(self) -> int:
        """Return who runs next: each operation to its first point, then whoever is chosen; NOBODY at the end."""
        if self.failure is None and self.launched < len(self.operations):
            self.running = self.launched
            self.launched += 1
        elif self.failure is not None or not self.pending:
            self.running = NOBODY
        else:
            self.running = self._chosen()
        return self.running

    def _chosen(self) -> int:
        options = self._options(self.running if self.steps else NOBODY)
        place = len(self.steps)
        if not options:
            return self._fail(Deadlock("No operation can go on."))
        choice = self.prefix[place] if place < len(self.prefix) else options[0]
        if choice not in options:
            return self._fail(Unrepeatable(f"Step {place} cannot be made by operation {choice}, only by {options}."))
        if place >= MOST_STEPS:
            return self._fail(Deadlock(f"After {place} steps the operations still go on."))
        self.preemptions += options[0] == self.running != choice
        self.options.append(options)
        self.steps.append(Step(choice, self.pending.pop(choice)[0]))
        self.began.setdefault(choice, place)
        return choice

    def _options(self, leaving: int) -> list[int]:
        """Return who can go on, first the one that runs; only that one if it may not be preempted any more."""
        runnable = [number for number, (_, ready) in sorted(self.pending.items()) if ready()]
        if leaving not in runnable:
            return runnable
        if self.bound is not None and self.preemptions >= self.bound:
            return [leaving]
        return [leaving, *(number for number in runnable if number != leaving)]

    def _fail(self, failure: BaseException) -> int:
        self.failure = failure
        return NOBODY

    def following(self) -> list[int] | None:
        """Return the prefix of the next schedule, depth first; None after the last one."""
        for place in range(len(self.steps) - 1, -1, -1):
            options = self.options[place]
            untried = options.index(self.steps[place].operation) + 1
            if untried < len(options):
                return [*(step.operation for step in self.steps[:place]), options[untried]]
        return None

    def story(self) -> str:
        """Tell the schedule, how to repeat it, each step, and who waits for what."""
        lines = [f"schedule, for replay(scenario, {self.schedule!r}):"]
        lines += [f"    {number}  {label}" for number, label in self.steps]
        lines += [f"    {number}  waits before: {label}" for number, (label, _) in sorted(self.pending.items())]
        lines += [f"    {number}  came to {result!r}" for number, result in sorted(self.results.items())]
        return "\n".join(lines)


class _Worker:
    """A thread that runs one operation of each run; its baton is a lock that is taken while it has to wait."""

    def __init__(self, scheduler: "Scheduler", number: int) -> None:
        self.number = number
        self.baton = Lock()
        self.baton.acquire()
        self.unwinding = False
        self._scheduler = scheduler
        self.thread = Thread(target=self._work, name=f"operation {number}", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        self._scheduler.enlist(self)
        while True:
            self.baton.acquire()
            run = self._scheduler.run
            if run is None:
                return
            self._operate(run)
            self._scheduler.hand_on(run)

    def _operate(self, run: Run) -> None:
        self.unwinding = False
        try:
            run.results[self.number] = run.operations[self.number]()
        except Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 - the run fails with it, in the main thread
            run.failure = run.failure or error
        run.ended[self.number] = len(run.steps) - 1


class Scheduler:
    """Explores scenarios. Use it as a context manager: its threads live as long as it does."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self._workers: list[_Worker] = []
        self._by_thread: dict[int, _Worker] = {}
        self._main = Lock()
        self._main.acquire()

    def __enter__(self) -> Self:
        """Stay on one processor, as the threads made here will: to wake another one for each step takes longer."""
        if hasattr(os, "sched_setaffinity"):
            self._processors = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {sorted(self._processors)[os.getpid() % len(self._processors)]})
        return self

    def __exit__(self, *raised: object) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._processors)
        self.run = None
        for worker in self._workers:
            worker.baton.release()
            worker.thread.join()

    # -- what scenarios call -------------------------------------------------------------

    def point(self, label: str, ready: Callable[[], bool] = always) -> None:
        """Stand before a step, which can be made once ``ready``; outside of operations this does nothing."""
        worker, run = self._by_thread.get(get_ident()), self.run
        if worker is None or run is None or worker.unwinding:
            return
        run.pending[worker.number] = label, ready
        following = run.pass_on()
        if following != worker.number:
            self._wake(following)
            worker.baton.acquire()
        if run.failure is not None:
            worker.unwinding = True
            raise Abandoned

    def retry(self, label: str) -> None:
        """Stand before a step that was just refused: it can be tried again once somebody else has made one."""
        run = self.run
        if run is not None:
            steps = len(run.steps)
            self.point(label, lambda: len(run.steps) > steps)

    @property
    def current(self) -> int:
        """Whose step this is, NOBODY outside of operations."""
        return NOBODY if self.run is None else self.run.running

    @property
    def is_scheduling(self) -> bool:
        """Whether this thread is that of an operation."""
        return self.run is not None and get_ident() in self._by_thread

    # -- what tests call -----------------------------------------------------------------

    def explore(self, scenario: Callable[[], Scenario], preemptions: int | None = None) -> int:
        """Run every schedule, or those with at most so many preemptions, and return how many there are.

        A preemption is a switch away from an operation that could go on.
        """
        count, prefix = 0, []
        while prefix is not None:
            prefix = self._execute(scenario, prefix, preemptions).following()
            count += 1
        return count

    def replay(self, scenario: Callable[[], Scenario], schedule: str) -> Run:
        """Run one schedule, as the story of a failure gives it, and check it again."""
        return self._execute(scenario, [int(number) for number in schedule.split()], None)

    # -- the baton -----------------------------------------------------------------------

    def enlist(self, worker: _Worker) -> None:
        self._by_thread[get_ident()] = worker

    def hand_on(self, run: Run) -> None:
        self._wake(run.pass_on())

    def _wake(self, number: int) -> None:
        (self._main if number == NOBODY else self._workers[number].baton).release()

    def _execute(self, scenario: Callable[[], Scenario], prefix: Sequence[int], bound: int | None) -> Run:
        operations, check = scenario()
        while len(self._workers) < len(operations):
            self._workers.append(_Worker(self, len(self._workers)))
        run = self.run = Run(operations, prefix, bound)
        try:
            self.hand_on(run)
            self._main.acquire()
            self._conclude(run)
            check(run)
        except BaseException as error:
            error.add_note(run.story())
            raise
        return run

    def _conclude(self, run: Run) -> None:
        """Raise what went wrong, after the operations that it left standing have ended, one after the other."""
        if run.failure is None:
            return
        for number in sorted(set(range(run.launched)) - set(run.ended)):
            self._wake(number)
            self._main.acquire()
        raise run.failure


class ScheduledLock:
    """In place of a ``threading.Lock``: whoever wants it while it is held is not runnable."""

    def __init__(self, scheduler: Scheduler, name: str = "lock") -> None:
        self._scheduler, self._name = scheduler, name
        self._held = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: FBT001, FBT002 - as in threading
        self._scheduler.point(f"acquire {self._name}", self._is_free if blocking else always)
        if self._held and not blocking:
            return False
        assert not self._held, f"{self._name} would be taken twice"
        self._held = True
        return True

    def release(self) -> None:
        self._scheduler.point(f"release {self._name}")
        self._held = False

    def locked(self) -> bool:
        return self._held

    def _is_free(self) -> bool:
        return not self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *raised: object) -> None:
        self.release()


# -- SQLite ------------------------------------------------------------------------------------

_WRITES = ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "INSERT", "UPDATE", "DELETE", "REPLACE")


class Database:
    """Opens connections whose statements are points. Use ``connect`` in place of ``sqlite3.connect``.

    Who holds the write lock is tracked, so that a statement that needs it is not runnable meanwhile. The engine has
    the last word: with no busy timeout it refuses at once what meets a lock, and that is tried again later. A
    PRAGMA is no point, for it changes nothing that another connection sees, and no disk is waited for.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.writer: sqlite3.Connection | None = None
        self.refused = 0

    def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = _connect(*arguments, **options, factory=_Connection)
        connection.database = self
        connection.execute("PRAGMA busy_timeout=0")
        return connection

    def enter(self, connection: sqlite3.Connection, sql: str) -> None:
        """Stand before a statement; one that begins to write takes the write lock."""
        label = sql.partition("\n")[0][:60]
        if connection.in_transaction or not sql.lstrip().upper().startswith(_WRITES):
            self.scheduler.point(label)
        else:
            self.scheduler.point(label, lambda: self.writer is None)
            self.writer = connection

    def leave(self, connection: sqlite3.Connection) -> None:
        """Note that a statement ended; with it, unless a transaction goes on, the write lock is free."""
        if self.writer is connection and not connection.in_transaction:
            self.writer = None

    def insist(self, connection: sqlite3.Connection, sql: str, execute: Callable[[], Any]) -> Any:
        """Execute, and what meets another's lock again whenever somebody else has gone on."""
        while True:
            try:
                return execute()
            except sqlite3.OperationalError as error:
                self.leave(connection)
                if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or not self._is_scheduling():
                    raise
                self.refused += 1
                self.scheduler.retry(f"again: {sql[:40]}")

    def _is_scheduling(self) -> bool:
        return self.scheduler.is_scheduling


_connect = sqlite3.connect


class _Connection(sqlite3.Connection):
    database: Database

    def cursor(self, *_: object) -> sqlite3.Cursor:
        return super().cursor(_Cursor)

    def rollback(self) -> None:
        self.database.enter(self, "ROLLBACK")
        super().rollback()
        self.database.leave(self)

    def create_function(self, name: str, narg: int, func: Callable[..., Any], **options: Any) -> None:
        def called(*arguments: Any) -> Any:
            self.database.scheduler.point(f"inside {name}")
            return func(*arguments)

        super().create_function(name, narg, called, **options)


class _Cursor(sqlite3.Cursor):
    _has_rows = False

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> "_Cursor":
        if sql.startswith("PRAGMA"):
            return super().execute("PRAGMA synchronous=OFF" if "synchronous" in sql else sql)
        database = self.connection.database
        database.enter(self.connection, sql)
        database.insist(self.connection, sql, lambda: super(_Cursor, self).execute(sql, parameters))
        # What returns rows of what it wrote holds the lock until they are fetched.
        self._has_rows = self.description is not None and database.writer is self.connection
        if not self._has_rows:
            database.leave(self.connection)
        return self

    def executemany(self, sql: str, parameters: Any) -> "_Cursor":
        database, rows = self.connection.database, list(parameters)
        database.enter(self.connection, sql)
        database.insist(self.connection, sql, lambda: super(_Cursor, self).executemany(sql, rows))
        database.leave(self.connection)
        return self

    def fetchone(self) -> Any:
        return self._fetched(super().fetchone)

    def fetchall(self) -> list[Any]:
        return self._fetched(super().fetchall)

    def _fetched(self, fetch: Callable[[], Any]) -> Any:
        if not self._has_rows:
            return fetch()
        self._has_rows = False
        self.connection.database.scheduler.point("fetch what was written")
        rows = fetch()
        self.connection.database.leave(self.connection)
        return rows
