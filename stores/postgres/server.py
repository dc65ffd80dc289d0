"""The server of a PostgresStore: its pool of connections, what its errors mean, and what becomes of it in a fork.

Connections are taken from a psycopg pool and given back to it, which replaces them when they are old or lost. A pool
that ``from_url`` made is the store's own: there the connection that was used last is kept at hand for a while, for the
pool takes as long to give and take one as Python takes for the rest of a verb.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any, Final, TypeVar, TypeVarTuple
from weakref import WeakKeyDictionary, WeakSet

import psycopg
from psycopg import Cursor, Error, conninfo, pq
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool, PoolTimeout, TooManyRequests

from ...clock import LONGEST_WAIT_MS, Clock, Duration, SystemClock, waiting
from ...errors import ConfigError, SessionError, StoreCorrupt, StoreUnavailable
from ...forks import mark
from ...records import LARGEST, closed
from .connection import FAILURES, FRESH, OK, Connection, Statement, seconds
from .schema import admitted, brought_up

__all__ = ["Pool", "PostgresServer", "checked", "connector", "pool_of"]

Pool = ConnectionPool[Any]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

HELD: Final = 60.0
"""How many seconds a connection of our own pool is used before the pool looks at its age again."""

CONNECT_SECONDS: Final = 2
"""How many seconds a new connection may take, if its URL does not say; libpq knows no shorter time."""

SETTINGS: Final = {
    "connect_timeout": str(CONNECT_SECONDS),
    # What the environment or the role says of either would be for other programs.
    "client_encoding": "UTF8",
    "target_session_attrs": "read-write",
}
"""What a URL gets that does not say otherwise."""

HELD_ROW_MS: Final = 5000
"""After how many milliseconds of silence the server ends a transaction."""

ATTEMPTS: Final = 100
"""How often a verb is tried that the server ended for the sake of another transaction; one of them goes on."""

RESETS: Final = 2
"""How often everything is prepared anew for one verb."""

_AGAIN: Final = {"40001", "40P01"}
_UNPREPARED: Final = {"26000", "42P05", "0A000"}
_ABSENT: Final = {"3F000", "42P01", "42883", "42703"}
_DAMAGE: Final = {"XX001", "XX002"}
_ENCODINGS: Final = {b"UTF8", b"UNICODE"}
"""The names of the one in which a text arrives as it was sent."""
_ADVICE: Final = {
    "25006": "takes no writes: connect to the primary, for example with target_session_attrs=read-write in the URL",
    "42501": "does not allow this: grant this role the schema, its tables, sequences and functions",
    "53100": "cannot grow: make room on its disk",
    "53200": "has no memory left: lower work_mem or max_connections, or give it more",
    "53300": "has no connection left: raise max_connections or use fewer",
    "54000": "cannot index a key as long as this: use a shorter handle",
    "57014": "took longer than its statement_timeout: look for what it waits for",
    "57P01": "was told to end the connection: try again",
    "57P02": "has crashed and begins anew: try again",
    "57P03": "begins or ends just now: try again",
}
_LOST: Final = "08"
"""How the codes begin that say of a connection that it is lost."""


class PostgresServer:
    """A database of a server, and the schema in it."""

    def __init__(  # noqa: PLR0913 - each setting is a keyword, and all but one have a default
        self,
        pool: Pool,
        *,
        schema: str = "sessiontree",
        clock: Clock | None = None,
        largest: int = LARGEST,
        timeout: Duration = 0.5,
        prepared: bool = True,
        listen_url: str | None = None,
    ) -> None:
        """Use the connections of a pool; nothing is sent before the first verb.

        ``timeout``, seconds or a timedelta, is how long a verb waits for a connection, and again for the server; a day
        at most. ``prepared=False`` prepares no statements, for a pooler that gives each transaction another connection;
        ``listen_url`` is then where ``watch`` finds the server itself.
        """
        if not isinstance(pool, ConnectionPool):
            raise ConfigError(
                f"A PostgresStore takes a psycopg_pool.ConnectionPool, not a {type(pool).__name__}: pass one, or use "
                "PostgresStore.from_url()."
            )
        super().__init__()
        self.clock: Clock = clock or SystemClock()
        self.largest = largest
        self.schema = admitted(schema)
        self._now = self.clock.now
        self._timeout = checked(timeout)
        self._prepared = prepared
        self._listen_url = listen_url if listen_url is None else completed(listen_url)
        self._pool = pool
        self._owns_pool = False
        self._connections: WeakKeyDictionary[Any, Connection] = WeakKeyDictionary()
        self._idle: list[Connection] = []
        """Connections of our own pool, the last used one last: the pool itself takes longer to give one."""
        self._doubted = 0.0
        """When a connection was lost last: what befell it may have befallen all."""
        self._waiting: list[None] = []
        """One for each thread that waits for the pool."""
        self._closed = False
        self._leaving = Lock()
        self._mark = mark()
        _SERVERS.add(self)

    def create_schema(self) -> None:
        """Create what the store needs in its database, or bring it to this release's version; again is fine.

        Call it once for each deployment, as a role that may create a schema. Any number of processes may call it at
        once, and older releases go on. Raises ConfigError for a schema that is used for something else.
        """
        self._begin_process()
        driver = self._taken_driver()
        self._check_fit(driver)
        try:
            # Neither the cursors nor the rows that an application has its pool make.
            with driver.transaction(), Cursor(driver, row_factory=tuple_row) as cursor:
                # Who waited for another's transaction has to see what it made.
                cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                cursor.execute("SET LOCAL statement_timeout = 0")
                brought_up(cursor.execute, self.schema)
        except Error as error:
            raise self._ours(error) from error
        finally:
            self._pool.putconn(driver)

    def close(self) -> None:
        """Close the connections, if ``from_url`` made them; those in use close with the verb that uses them."""
        self._closed = True
        self._begin_process()
        if self._owns_pool:
            self._return_idle()
            self._pool.close()

    # -- connections -----------------------------------------------------------------------

    def _do(self, verb: Callable[[Connection, *_Ts], _T], *arguments: *_Ts) -> _T:
        """Return what the verb returns, with a connection of its own; here alone psycopg's errors become ours."""
        if not self._mark[0]:
            self._begin_process()
        now = seconds()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._taken(now)
        if (now > connection.used + FRESH or connection.used <= self._doubted) and not connection.is_fresh():
            connection = self._replaced(connection, now)
        connection.used = now
        try:
            try:
                result = verb(connection, *arguments)
            except Error as error:
                result = self._repeated(error, connection, verb, *arguments)
        except BaseException as error:
            self._settle(connection, error)
            self._return(connection)
            if isinstance(error, FAILURES):
                raise self._ours(error) from error
            raise
        if now < connection.until and not self._waiting:
            self._idle.append(connection)
            if self._waiting or self._closed:  # since the look at it
                self._return_idle()
        else:
            self._return(connection)
        return result

    def _taken(self, now: float) -> Connection:
        driver = self._taken_driver()
        connection = self._connections.get(driver)
        if connection is None:
            self._check_fit(driver)
            connection = self._connections[driver] = Connection(driver, self._timeout, prepared=self._prepared)
        if self._owns_pool:
            connection.until = now + HELD
        return connection

    def _check_fit(self, driver: psycopg.Connection[Any]) -> None:
        """Refuse a connection that would show what is no longer so, or other texts than others find.

        The server says both by itself when a connection begins; where it does not, nothing is known.
        """
        told = driver.pgconn.parameter_status
        encoding = (told(b"client_encoding") or b"UTF8").upper().replace(b"-", b"")  # pgbouncer repeats what it is told
        if told(b"in_hot_standby") == b"on":
            reason = "is a standby: add target_session_attrs=read-write to what the pool connects by"
        elif encoding not in _ENCODINGS:
            reason = f"is sent {encoding.decode()}: add client_encoding=utf8 to what the pool connects by"
        else:
            return
        driver.close()
        self._pool.putconn(driver)
        raise StoreUnavailable(f"The session store's PostgreSQL {reason}.")

    def _replaced(self, connection: Connection, now: float) -> Connection:
        """Return a connection that the server has not closed meanwhile, in place of one that it has."""
        while not connection.is_fresh():
            connection.close()
            self._return(connection)
            connection = self._taken(now)
        return connection

    def _return(self, connection: Connection) -> None:
        """Give a connection back to the pool, and with it all that nobody has used for as long."""
        self._pool.putconn(connection.driver)
        with suppress(IndexError):  # there are no more
            while self._idle[0].until <= connection.until:
                self._pool.putconn(self._idle.pop(0).driver)

    def _return_idle(self) -> None:
        with suppress(IndexError):  # as above
            while True:
                self._pool.putconn(self._idle.pop().driver)

    def _taken_driver(self) -> psycopg.Connection[Any]:
        self._check_open()
        self._waiting.append(None)
        try:
            if self._owns_pool:
                self._pool.open()
                self._return_idle()  # what came back since the look at it
            driver: psycopg.Connection[Any] = self._pool.getconn(self._timeout)
        except (PoolTimeout, TooManyRequests) as error:
            raise StoreUnavailable(
                f"No connection to the session store's PostgreSQL within {self._timeout} s: look whether it runs "
                "and is no standby, what the logger psycopg.pool says, and whether the pool has connections enough."
            ) from error
        except Error as error:
            self._check_open()
            raise StoreUnavailable(f"The session store's pool gives no connection: open it ({error}).") from error
        else:
            return driver
        finally:
            self._waiting.pop()

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    def _repeated(
        self, error: Error, connection: Connection, verb: Callable[[Connection, *_Ts], _T], *arguments: *_Ts
    ) -> _T:
        """Do the verb again if the server did nothing of it, and would do it now."""
        for attempt in range(ATTEMPTS):
            if attempt >= RESETS and error.sqlstate in _UNPREPARED:
                break
            self._recover(connection, error)
            try:
                return verb(connection, *arguments)
            except Error as another:
                error = another
        raise error

    def _recover(self, connection: Connection, error: Error) -> None:
        """Make the connection fit for another try, or raise the error if the server may have done something."""
        if connection.pgconn.status == OK and error.sqlstate in _UNPREPARED and self._prepared:
            self._reset(connection)
        elif connection.pgconn.status == OK and error.sqlstate in _AGAIN:
            self._roll_back(connection)
        else:
            raise error

    def _reset(self, connection: Connection) -> None:
        """Have nothing prepared any more: somebody else took it away, or changed what it refers to."""
        self._roll_back(connection)
        connection.forget()
        connection.run(_DEALLOCATE)
        connection.driver._prepared.clear()  # noqa: SLF001 - psycopg's own statements are gone with ours

    def _settle(self, connection: Connection, error: BaseException) -> None:
        """Leave a connection as it was found; one that was torn out of its work is not used again."""
        is_read_only = isinstance(error, Error) and error.sqlstate == "25006"
        if isinstance(error, Error | SessionError | TypeError | ValueError) and not is_read_only:
            with suppress(Error, TimeoutError):
                self._roll_back(connection)
        if is_read_only or connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
            connection.close()
            self._doubted = seconds()

    def _roll_back(self, connection: Connection) -> None:
        if connection.pgconn.transaction_status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR):
            connection.run(_ROLLBACK)

    def _begin_process(self) -> None:
        """Leave to a parent what is its own, where a server has forked in C: then no hook of Python's runs."""
        if self._mark[0]:  # a lock that was held during the fork nobody would release
            return
        with self._leaving:
            if not self._mark[0]:
                self._leave_to_parent()

    def _leave_to_parent(self) -> None:
        """Take a pool of this process's own; what was inherited through a fork is kept, and never touched."""
        here = mark()
        _INHERITED.append((self._pool, self._idle))
        if self._owns_pool:  # an application may have opened its own by now
            _lay_down(self._pool)
        self._pool, self._owns_pool = _like(self._pool), True
        self._idle, self._waiting, self._connections = [], [], WeakKeyDictionary()
        self._mark = here

    def _ours(self, error: BaseException) -> SessionError:
        if not isinstance(error, Error):
            return StoreUnavailable(f"The session store's PostgreSQL did not answer within {self._timeout} s.")
        code = error.sqlstate or ""
        if code in _DAMAGE:
            return StoreCorrupt(f"The session store's PostgreSQL is damaged: restore it from a backup ({error}).")
        if code in _ABSENT:
            return StoreUnavailable(
                f"The schema {self.schema!r} lacks what this release needs: call PostgresStore.create_schema() once, "
                f"as a role that may create it ({error})."
            )
        if code in _UNPREPARED:
            return StoreUnavailable(f"Prepared statements get lost on the way: pass prepared=False ({error}).")
        is_answer = code and not code.startswith(_LOST)
        advice = _ADVICE.get(code, "refused a statement" if is_answer else "did not answer")
        return StoreUnavailable(f"The session store's PostgreSQL {advice} ({error}).")


_ROLLBACK: Final = Statement("ROLLBACK", is_prepared=False)
_DEALLOCATE: Final = Statement("DEALLOCATE ALL", is_prepared=False)
_INHERITED: Final[list[tuple[Pool, list[Connection]]]] = []
"""Pools of a parent process, kept so that nothing closes their connections here."""


def checked(timeout: Duration) -> float:
    """Return the time-out in seconds; raise ConfigError for what is none."""
    return waiting(timeout, LONGEST_WAIT_MS, "PostgresStore")


def pool_of(url: str, timeout: float, most: int, *, is_direct: bool) -> Pool:
    """Return a pool, not yet open, for this URL; raise ConfigError for what is none."""
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigError(f"A PostgresStore has one or more connections, not {most!r}.")
    settings = {"fallback_application_name": "sessiontree"}
    if is_direct:
        # So that the server gives up, and just before we do; a pooler would give what is set here to somebody else.
        # A process that is stopped while it holds a row does not hold it for long.
        settings["options"] = (
            f"-c statement_timeout={max(1, int(timeout * 900))} -c idle_in_transaction_session_timeout={HELD_ROW_MS}"
        )
    return ConnectionPool(
        completed(url, **settings),
        kwargs={"autocommit": True},
        min_size=0,
        max_size=most,
        open=False,
        # The next verb asks for a connection anew; attempts by itself would become rarer and rarer.
        reconnect_timeout=0,
        name="sessiontree",
    )


def completed(url: str, **settings: str) -> str:
    """Return what this URL says, and of our settings what it does not; raise ConfigError for what is no URL."""
    try:
        given = conninfo.conninfo_to_dict(url)
    except Error:
        raise ConfigError(  # without what libpq says, for it quotes the password
            "This is no address of a PostgreSQL: write postgresql://user:password@host:5432/database, and special "
            "characters in percent code, such as %25 for a per cent sign in the password."
        ) from None
    settings |= SETTINGS
    return conninfo.make_conninfo(url, **{name: value for name, value in settings.items() if name not in given})


def connector(pool: Pool, listen_url: str | None) -> Callable[[], psycopg.Connection[Any]]:
    """Return what opens a connection to the server itself, as the pool does, or by a URL of its own."""

    def connect() -> psycopg.Connection[Any]:
        options: dict[str, Any] = {}
        address = listen_url
        if address is None:
            address = completed(pool.conninfo() if callable(pool.conninfo) else pool.conninfo)
            options.update((pool.kwargs() if callable(pool.kwargs) else pool.kwargs) or {})
        options["autocommit"] = True
        # An application's class may be what knows the password.
        driver: psycopg.Connection[Any] = pool.connection_class.connect(address, **options)
        return driver

    return connect


def _like(pool: Pool) -> Pool:
    """Return a new pool, not yet open, that connects as this one does."""
    return ConnectionPool(
        pool.conninfo,
        connection_class=pool.connection_class,
        kwargs=pool.kwargs,
        min_size=0,
        max_size=max(1, pool.max_size or 0),
        open=False,
        configure=pool._configure,  # noqa: SLF001 - there is no other way to ask for these
        check=pool._check,  # noqa: SLF001 - as above
        reset=pool._reset,  # noqa: SLF001 - as above
        max_lifetime=pool.max_lifetime,
        max_idle=pool.max_idle,
        reconnect_timeout=0,
        name=pool.name,
    )


_SERVERS: Final[WeakSet[PostgresServer]] = WeakSet()


def _lay_down(pool: Pool) -> None:
    """Have a parent's pool be closed for this process, or its finalizer would wait for threads of the parent."""
    pool._closed = True  # noqa: SLF001 - close() would end the parent's connections


def _after_in_child() -> None:
    for server in list(_SERVERS):
        server._leaving = Lock()  # noqa: SLF001 - of this module
        _lay_down(server._pool)  # noqa: SLF001 - as above
        server._leave_to_parent()  # noqa: SLF001 - as above


os.register_at_fork(after_in_child=_after_in_child)
