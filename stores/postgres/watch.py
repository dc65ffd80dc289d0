"""How a PostgresStore hears what other processes change in its schema: LISTEN, on a connection of its own.

NOTIFY is not free. It is a transaction that waits for a lock of the whole server's, so whoever writes sends one only
while somebody watches, and behind the write, in a transaction of its own: within the write it would hold that lock
until the disk has everything, and all writers of the server would wait in one line. Whether somebody watches stands in
a table of hardly any rows, which every write looks into. A watcher holds an advisory lock for as long as its connection
lives, and whoever comes across the row of one that does not removes it: no clock is asked, and a watcher that was
killed leaves nothing behind for long.

A writer that began before the watcher was there does not know of it. So a feed begins when those have ended that write
just then.

A connection to a server that was stopped, or that the network forgot, says nothing, as one does where nothing happens.
So after each second of silence the thread asks for an answer.
"""

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import ref

import psycopg
from psycopg import OperationalError

from ..announcing import Announcing, OnChange, Stop
from ..log import logger
from .connection import FAILURES, Connection, Statement
from .rows import bigint

if TYPE_CHECKING:
    from .server import PostgresServer

__all__ = ["Feed", "Source"]

REST: Final = 0.1
"""How many seconds the thread waits at most before it looks whether anybody still listens."""

SILENCE: Final = 1.0
"""After how many seconds without news the server is asked for an answer."""

LONGEST: Final = 1.0
"""How many seconds the thread rests at most before it tries to connect again; these rests double."""

POOLED: Final = (
    "Who watches the schema %r reaches the server through a pooler, and in transaction mode hears nothing: pass the "
    "server itself as listen_url=."
)


class Source(NamedTuple):
    """Where to listen, and what for."""

    connect: Callable[[], psycopg.Connection[Any]]
    schema: str
    channel: str
    timeout: float

    def statement(self, sql: str, types: str = "") -> Statement:
        """Return a statement about this schema."""
        return Statement(sql.format(s=f'"{self.schema}"', channel=self.channel, lock=lock_class(self.schema)), types)


def lock_class(schema: str) -> int:
    """Return the first half of the number of each watcher's advisory lock, which is the schema's own."""
    return int.from_bytes(sha256(b"watchers of " + schema.encode()).digest()[:4]) >> 1


def tidied(source: Source) -> Statement:
    """Return what removes watchers whose connection is gone, in one statement."""
    return source.statement("DELETE FROM {s}.watchers WHERE pg_try_advisory_xact_lock({lock}, id::int)")


class Ear:
    """A connection that listens."""

    def __init__(self, source: Source) -> None:
        """Be heard of by all who write from now on; raise psycopg's errors, and TimeoutError."""
        self._source = source
        self._connection = Connection(source.connect(), source.timeout, prepared=False)
        try:
            [process] = self._ask("SELECT pg_backend_pid()")
            self.is_pooled = int.from_bytes(process) != self._connection.pgconn.backend_pid
            """Whether something in between has given the connection a number of its own, as poolers do."""
            self._number = self._numbered()
            self._ask("LISTEN {channel}")
            self._connection.run(tidied(source))  # before our own row: nothing hinders who holds its lock
            self._ask("INSERT INTO {s}.watchers VALUES ($1)", "bigint", bigint(self._number))
            self._await_writers()
        except BaseException:
            self.close()
            raise

    def news(self, seconds: float) -> list[str | None]:
        """Return the handles of what was changed, waiting so long for the first; raise if the connection is lost."""
        told = self._told()
        if not told and self._connection.wait(seconds):
            self._connection.pgconn.consume_input()
            told = self._told()
        return told

    def check(self) -> None:
        """Ask the server for an answer, and for the row that says we watch."""
        if not self._ask("SELECT FROM {s}.watchers WHERE id = $1", "bigint", bigint(self._number), is_found=True):
            raise OperationalError("somebody has removed what says that this process watches")

    def leave(self) -> None:
        """Be heard of no more, if that can be done."""
        with suppress(*FAILURES):
            self._ask("DELETE FROM {s}.watchers WHERE id = $1", "bigint", bigint(self._number))
        self.close()

    def close(self) -> None:
        """Hang up."""
        with suppress(*FAILURES):
            self._connection.driver.close()

    def _numbered(self) -> int:
        """Return a number of our own, with its lock."""
        while True:
            [number] = self._ask("SELECT nextval('{s}.watchers_id') % 2147483647")
            if self._ask("SELECT pg_try_advisory_lock({lock}, $1::int)", "bigint", number) == [b"\1"]:
                return int.from_bytes(number)

    def _told(self) -> list[str | None]:
        told: dict[str | None, None] = {}
        while notice := self._connection.pgconn.notifies():
            told[notice.extra.decode() or None] = None
        return list(told)

    def _await_writers(self) -> None:
        """Return when all have ended who wrote when we came, or after a while.

        Who has looked into ``watchers`` holds a lock there to the end, and who waits for a row or a label has looked,
        but not yet written.
        """
        writing = (
            "SELECT string_agg(DISTINCT virtualtransaction, ' ') FROM pg_locks WHERE pid <> pg_backend_pid() AND"
            " (relation = '{s}.watchers'::regclass AND mode = 'AccessShareLock'"
            " OR relation = '{s}.sessions'::regclass AND mode = 'RowExclusiveLock')"
        )
        before = set((self._ask(writing)[0] or b"").split())
        for _ in range(int(self._source.timeout * 100)):
            before &= set((self._ask(writing)[0] or b"").split())
            if not before:
                return
            Event().wait(0.01)

    def _ask(self, sql: str, types: str = "", *values: bytes, is_found: bool = False) -> Any:
        result = self._connection.run(self._source.statement(sql, types), values)
        if is_found:
            return result.ntuples > 0
        return [result.get_value(row, 0) for row in range(result.ntuples) if result.nfields]


class Feed(Announcing):
    """Announces what anybody changes in one schema, from a thread that runs for as long as somebody listens."""

    def __init__(self, server: "PostgresServer", source: Source) -> None:
        """Begin with nobody who listens, and no thread; the store is not held."""
        super().__init__()
        self._server = ref(server)
        self._source = source
        self._lock = Lock()
        self._thread: Thread | None = None
        self._ear: Ear | None = None

    def watch(self, on_change: OnChange) -> Stop:
        """Announce what is changed from now on; raise psycopg's errors, and TimeoutError."""
        with self._lock:
            stop = self.listen(on_change)
            if self._thread is None:
                try:
                    ear = Ear(self._source)
                    if ear.is_pooled:
                        logger().warning(POOLED, self._source.schema)
                    self._start(ear)
                except BaseException:
                    stop()
                    raise
            return stop

    def end(self) -> None:
        """Tell everybody that the feed is over; the thread ends soon."""
        self.announce(None)
        self._listeners.clear()

    def begin_process(self) -> None:
        """Start a thread in a forked process, for those who listened in the parent; they are told of a loss first."""
        with self._lock:
            if self._thread is not None or not self._listeners:
                return
            try:
                self._start(None)
            except RuntimeError as error:  # the process may have no more threads; its verbs need none
                logger().warning("Nobody watches the schema %r: %s", self._source.schema, error)

    def leave_to_parent(self) -> None:
        """Have neither thread nor connection, in a process that was forked; nothing is closed."""
        self._lock = Lock()
        _INHERITED.append(self._ear)
        self._thread = self._ear = None

    # -- the thread ------------------------------------------------------------------------

    def _start(self, ear: Ear | None) -> None:
        self._ear = ear
        thread = Thread(target=self._run, args=(self._lock,), name="sessiontree-watch", daemon=True)
        thread.start()
        self._thread = thread

    def _run(self, lock: Lock) -> None:
        silence, failures = 0.0, 0
        while self._is_wanted(lock):
            try:
                if self._ear is None:
                    self._ear = Ear(self._source)
                    failures = 0
                    self.announce(None)
                news = self._ear.news(REST)
                self.announce_all(news)
                silence = 0.0 if news else silence + REST
                if silence >= SILENCE:
                    silence = 0.0
                    self._ear.check()
            except BaseException as error:  # noqa: BLE001 - whatever it is, the feed must not end in silence
                failures += 1
                self._lose(error, failures)

    def _is_wanted(self, lock: Lock) -> bool:
        """Tell whether anybody listens; if not, this is no longer the thread that does the work."""
        with lock:
            if self._listeners and self._server() is not None:
                return True
            self._thread = None
            ear, self._ear = self._ear, None
        if ear is not None:
            ear.leave()
        self.announce(None)
        return False

    def _lose(self, error: BaseException, failures: int) -> None:
        """Say once that the feed is lost, and rest before the next try."""
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.close()
        if failures == 1:
            logger().warning(
                "What others change in the schema %r is not heard of for now: %s", self._source.schema, error
            )
            with suppress(BaseException):
                self.announce(None)
        Event().wait(min(0.01 * 2 ** min(failures, 10), LONGEST))


_INHERITED: Final[list[Ear | None]] = []
"""Connections of a parent process, kept so that nothing closes them here."""
