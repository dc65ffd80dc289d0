"""One connection of a PostgresStore: statements are sent through libpq and their answers waited for, but never long.

A verb is one statement in one round trip. psycopg's cursors would take half as long again, so statements are prepared
once for each connection and sent through ``psycopg.pq``, which psycopg offers for that. Nothing is sent by a call that
waits: it would hang for as long as a server that was stopped keeps its connections open. So a verb waits for the
socket, at most ``timeout`` seconds, and gives the connection up after that. The driver's own connection is called
``psycopg.Connection`` wherever both are named, and lies in ours as its ``driver``.
"""

import select
from collections.abc import Callable, Sequence
from hashlib import sha256
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from typing import Any, Final
from weakref import WeakKeyDictionary

import psycopg
from psycopg import Error, OperationalError, pq
from psycopg.errors import error_from_result

from ...clock import SystemClock, stopwatch

__all__ = ["FAILURES", "OIDS", "OK", "Connection", "Result", "Statement", "seconds"]

FAILURES: Final = (Error, TimeoutError)
"""What a statement raises."""

Result = pq.abc.PGresult
BINARY: Final = pq.Format.BINARY
OK: Final = pq.ConnStatus.OK
_GOOD: Final = {pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK}
_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC
OIDS: Final = {"bytea": 17, "bigint": 20, "text": 25, "bytea[]": 1001, "text[]": 1009, "bigint[]": 1016}
"""The numbers of PostgreSQL's types."""


FRESH: Final = 1.0
"""For how many seconds nobody looks whether a connection that was just used is still there."""

_SILENT: Final = 3
"""After how many empty answers to one of several statements no more will come; a whole one has two at most."""

seconds: Final = stopwatch(SystemClock())
"""How time passes, for waiting alone."""


class Statement:
    """One statement, with the types of its parameters; all travel as bytes."""

    __slots__ = ("formats", "name", "oids", "sql")

    def __init__(self, sql: str, types: str = "", *, is_prepared: bool = True) -> None:
        """Name it for what it says, so that stores which share a connection share it too."""
        self.sql = sql.encode()
        self.name = b"sessiontree_" + sha256(self.sql).hexdigest()[:24].encode() if is_prepared else b""
        self.oids = [OIDS[each] for each in types.split()]
        self.formats = [BINARY] * len(self.oids) or None


_PREPARED: Final[WeakKeyDictionary[psycopg.Connection[Any], set[bytes]]] = WeakKeyDictionary()
"""What is prepared on each connection, whichever store has done it."""


class Connection:
    """One connection, with what is prepared on it."""

    __slots__ = ("_milliseconds", "_prepared", "_wait", "driver", "pgconn", "until", "used")

    def __init__(self, driver: psycopg.Connection[Any], timeout: float, *, prepared: bool) -> None:
        """Have prepared nothing yet; ``timeout`` is how many seconds the server has for each statement."""
        self.driver = driver
        self.pgconn = driver.pgconn
        self.until = 0.0
        """When it goes back to its pool, which may replace it."""
        self.used = 0.0
        """When it was used last."""
        self._prepared = _PREPARED.setdefault(driver, set()) if prepared else None
        self._wait = _waiter(self.pgconn.socket)
        self._milliseconds = timeout * 1000

    def is_fresh(self) -> bool:
        """Tell whether the server has not hung up since the last time.

        It says why before it does, and nothing else to who has asked for nothing.
        """
        return not self._wait(0)

    def run(self, statement: Statement, values: Sequence[bytes | None] = ()) -> Result:
        """Return what a statement returns; raise psycopg's errors, and TimeoutError."""
        pgconn, prepared = self.pgconn, self._prepared
        if prepared is None or not statement.name:
            pgconn.send_query_params(statement.sql, values, statement.oids, statement.formats, BINARY)
        else:
            if statement.name not in prepared:
                self._prepare(statement, prepared)
            pgconn.send_query_prepared(statement.name, values, statement.formats, BINARY)
        return self._result()

    def run_many(self, asked: Sequence[tuple[Statement, Sequence[bytes | None]]]) -> list[Result | Error]:
        """Return what prepared statements return, or the errors, that are sent together, each a transaction."""
        for statement, _ in asked:
            if self._prepared is not None and statement.name not in self._prepared:
                self._prepare(statement, self._prepared)
        try:
            return self._piped(asked)
        except BaseException:
            self.close()
            raise

    def _piped(self, asked: Sequence[tuple[Statement, Sequence[bytes | None]]]) -> list[Result | Error]:
        pgconn = self.pgconn
        pgconn.enter_pipeline_mode()
        for statement, values in asked:
            pgconn.send_query_prepared(statement.name, values, statement.formats, BINARY)
            pgconn.pipeline_sync()
        deadline = self._deadline()
        if pgconn.flush():
            self._flush(deadline)
        results = [self._committed(deadline) for _ in asked]
        pgconn.exit_pipeline_mode()
        return results

    def _committed(self, deadline: float) -> Result | Error:
        """Return what came of one of several statements, once the synchronisation has ended its transaction.

        An error that comes with the commit stands behind the result, which it makes untrue.
        """
        found: Result | Error | None = None
        silent = 0
        while True:
            result = self._next(deadline)
            if result is None:
                silent += 1
                if silent == _SILENT:
                    raise found if isinstance(found, Error) else OperationalError("the connection was lost")
            elif result.status == _SYNC and found is not None:
                return found
            else:
                found = result if result.status in _GOOD else error_from_result(result)

    def close(self) -> None:
        """Hang up, and go back to the pool at the next occasion, which replaces the connection."""
        self.until = 0.0
        self.driver.close()

    def wait(self, duration: float) -> bool:
        """Wait at most so long until the server says something; tell whether it does."""
        return bool(self._wait(duration * 1000))

    def forget(self) -> None:
        """Prepare everything anew, under the same names."""
        if self._prepared is not None:
            self._prepared.clear()

    def _result(self) -> Result:
        """Return the one result of what was sent, when the server is ready for more."""
        pgconn = self.pgconn
        if pgconn.flush():
            self._flush(self._deadline())
        if not self._wait(self._milliseconds):
            raise TimeoutError
        pgconn.consume_input()
        if pgconn.is_busy():
            self._finish(self._deadline())
        result = pgconn.get_result()
        if pgconn.is_busy():
            self._finish(self._deadline())
        last = pgconn.get_result()
        if result is None:
            raise OperationalError("the connection was lost")
        if last is not None:  # an error that came with the commit
            self._next(self._deadline())
            raise error_from_result(last if result.status in _GOOD else result)
        if result.status not in _GOOD:
            raise error_from_result(result)
        return result

    def _prepare(self, statement: Statement, prepared: set[bytes]) -> None:
        self.pgconn.send_prepare(statement.name, statement.sql, statement.oids)
        self._result()
        prepared.add(statement.name)

    def _deadline(self) -> float:
        return seconds() + self._milliseconds / 1000

    def _next(self, deadline: float) -> Result | None:
        if self.pgconn.is_busy():
            self._finish(deadline)
        return self.pgconn.get_result()

    def _finish(self, deadline: float) -> None:
        """Wait for the rest of an answer that came in pieces."""
        while self.pgconn.is_busy():
            if not self._wait(max(0.0, (deadline - seconds()) * 1000)):
                raise TimeoutError
            self.pgconn.consume_input()

    def _flush(self, deadline: float) -> None:
        """Send the rest of what is larger than the socket takes at once."""
        with DefaultSelector() as selector:
            selector.register(self.pgconn.socket, EVENT_READ | EVENT_WRITE)
            while self.pgconn.flush():
                ready = selector.select(max(0.0, deadline - seconds()))
                if not ready:
                    raise TimeoutError
                if ready[0][1] & EVENT_READ:
                    self.pgconn.consume_input()


def _waiter(descriptor: int) -> Callable[[float], object]:
    """Return what waits at most so many milliseconds until a socket has something to read, and tells whether it has."""
    if not hasattr(select, "poll"):  # what replaces threads may take it away
        return lambda milliseconds: select.select([descriptor], [], [], milliseconds / 1000)[0]
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return poll.poll
