"""How a RedisStore talks to its server: connections, what is sent on them, and what a failure means.

redis-py's commands and its pool cost as much as the server's answer, and its ``Connection`` next to nothing. So the
connections are made as the client's pool makes them, with its credentials, TLS and retries while connecting, and lie in
a pool of our own. One is used by one verb at a time. After a failure it is closed: half an answer is never read by
the next verb. A server that says it is a replica was the primary before a failover, and its address may lead to the new
one by now: all connections are made anew then.

What only reads is asked once more if the server closed the connection. What writes is not, for nobody knows whether
the server has done it; instead it is looked first whether the connection still stands, so a restarted server costs
nothing.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final
from weakref import WeakSet

from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import MasterDownError, NoScriptError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as TimedOut

from ...errors import StoreUnavailable
from ...forks import mark
from ...records import closed
from .connection import Connection, made_driver
from .lua import Script

__all__ = ["Command", "Pool", "ours", "packed"]

Command = tuple[Any, ...]
"""The words of a command: bytes, or int."""

BATCH: Final = 500
"""How many commands are sent at once at most."""

_ADVICE: Final = (
    ("NOAUTH|AuthenticationError", "refuses the password: put the right one into the URL"),
    ("NOPERM|NoPermissionError", "does not let this user do that: docs/redis.md says which rights it needs"),
    ("OOM|OutOfMemoryError", "has no memory left: give it more"),
    ("READONLY|ReadOnlyError", "is a replica, which cannot be written: use the address of the primary"),
    ("MASTERDOWN|MasterDownError", "is a replica without a primary: use the address of the primary"),
    ("LOADING|BusyLoadingError", "is still reading its data: try again"),
    ("MOVED|MovedError|CrossSlot", "is one node of a cluster: pass a redis.cluster.RedisCluster"),
    ("CLUSTERDOWN|ClusterDownError|TryAgainError", "is a cluster that lacks a node: try again"),
    ("MISCONF", "cannot save to its disk: look at its log"),
    ("NOREPLICAS", "has too few replicas to accept writes: look at them"),
    ("WRONGTYPE", "has something else under a name of ours: use a prefix of your own"),
    ("unknown command|Unknown Redis command", "lacks a command: this needs Redis 6.2 or Valkey, and scripts"),
)


def ours(error: Exception, name: str) -> StoreUnavailable:
    """Return what a failure of the driver is to our callers."""
    text = f"{type(error).__name__}: {error}"
    known = (advice for signs, advice in _ADVICE if any(sign in text for sign in signs.split("|")))
    unknown = "refused a command" if isinstance(error, ResponseError) else "did not answer"
    advice = "did not answer in time" if isinstance(error, TimedOut) else next(known, unknown)
    return StoreUnavailable(f"The session store at {name} {advice} ({text}).")


def _packer_in_c() -> Any:
    """Return hiredis's function, if it is there."""
    try:
        from hiredis import pack_command  # noqa: PLC0415 - what may be absent
    except ImportError:
        return None
    return pack_command


def _packed(command: Command) -> bytes:
    texts = [word if isinstance(word, bytes) else b"%d" % word for word in command]
    return b"*%d\r\n" % len(texts) + b"".join([b"$%d\r\n%b\r\n" % (len(text), text) for text in texts])


packed: Final[Callable[[Command], bytes]] = _packer_in_c() or _packed
"""Return a command as it is sent."""


class Pool:
    """The connections to one server, which any thread may use."""

    is_apart = False
    """Whether the indexes of labels may lie on another server than the records."""

    def __init__(self, client_pool: Any, timeout: float) -> None:
        """Make connections as a client's pool does; ``timeout`` is for those that have none."""
        self._client_pool = client_pool
        self.timeout = timeout
        self._idle: deque[Connection] = deque()
        self._closed = False
        self._era = object()
        """What the connections share that are not to be made anew before they are used again."""
        self.at_begin: Callable[[], object] | None = None
        """What is called when a forked process first uses the pool."""
        self.name = _name_of(client_pool)
        self._mark = mark()
        _POOLS.add(self)

    # -- one command -----------------------------------------------------------------------

    def read(self, *command: Any) -> Any:
        """Return the answer to a command that changes nothing; None if what lies under that name is not ours."""
        try:
            return self.ask(command, reads=True)
        except RedisError as error:
            self._check(error)
            return None

    def run(self, script: Script, key: bytes, *arguments: Any) -> Any:
        """Return the answer of a script."""
        try:
            try:
                return self.ask((b"EVALSHA", script.name, 1, key, *arguments), reads=False)
            except NoScriptError:
                return self.ask((b"EVAL", script.text, 1, key, *arguments), reads=False)
        except RedisError as error:
            raise ours(error, self.name) from error

    def ask(self, command: Command, *, reads: bool) -> Any:
        """Return the answer to a command; raise what redis-py raises."""
        if not self._mark[0]:
            self._begin()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._made()
        sent = packed(command)
        try:
            try:
                connection.prepare(reads=reads)
                connection.send(sent)
                answer = connection.receive()
            except Disconnected:
                if not reads:
                    raise
                connection.connect()
                connection.send(sent)
                answer = connection.receive()
        except ResponseError as error:
            if _is_demoted(error):
                self._begin_era()
            self._put(connection)
            raise
        except BaseException:
            self.drop(connection)
            raise
        if connection.era is not self._era:
            self._reset(connection)
        self._idle.append(connection)
        if self._closed:
            self.close()
        return answer

    def scan(self, cursor: str, pattern: bytes, size: int) -> tuple[str | None, list[bytes]]:
        """Return where the next batch of names begins, None if this was the last, and the names of one batch."""
        following, keys = self.read(b"SCAN", cursor.encode() or b"0", b"MATCH", pattern, b"COUNT", size)
        return (None if following == b"0" else following.decode()), keys

    # -- many commands ---------------------------------------------------------------------

    def read_many(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers to commands that change nothing, as ``read`` does."""
        answers = self._in_batches(commands, reads=True)
        for place, answer in enumerate(answers):
            if isinstance(answer, ResponseError):
                self._check(answer)
                answers[place] = None
        return answers

    def run_many(self, script: Script, calls: Sequence[tuple[Any, ...]], replicas: int = 0) -> list[Any]:
        """Return the answers of a script, called with each of these keys and their arguments; raise what any means."""
        answers = self.try_many(script, calls, replicas)
        for answer in answers:
            if isinstance(answer, StoreUnavailable):
                raise answer
        return answers

    def try_many(self, script: Script, calls: Sequence[tuple[Any, ...]], replicas: int = 0) -> list[Any]:
        """Return the answers of a script as ``run_many`` does, with what it would raise of one in that one's place.

        If so many replicas do not confirm in time what it wrote, that is StoreUnavailable, though it is written.
        """
        commands = [(b"EVALSHA", script.name, 1, *call) for call in calls]
        answers = self._in_batches(commands, reads=False, replicas=replicas)
        missed = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missed:
            # As many texts, but to those servers alone that have the keys: another one may be away.
            texts = [(b"EVAL", script.text, *commands[place][2:]) for place in missed]
            again = self._in_batches(texts, reads=False, replicas=replicas)
            for place, answer in zip(missed, again, strict=True):
                answers[place] = answer
        return [self._refusal(each) if isinstance(each, ResponseError) else each for each in answers]

    def spread(self, key: bytes) -> list[bytes]:
        """Return names that begin like this one: one of each primary's keys."""
        return [key]

    def _in_batches(self, commands: Sequence[Command], *, reads: bool, replicas: int = 0) -> list[Any]:
        if not commands:
            self.check_open()
        answers: list[Any] = []
        for start in range(0, len(commands), BATCH):
            chunk = commands[start : start + BATCH]
            try:
                try:
                    answers += self.ask_many(chunk, reads=reads, replicas=replicas)
                except Disconnected:
                    if not reads:
                        raise
                    answers += self.ask_many(chunk, reads=False)
            except RedisError as error:
                raise ours(error, self.name) from error
        return answers

    def ask_many(self, commands: Sequence[Command], *, reads: bool, replicas: int = 0) -> list[Any]:
        """Return the answers to commands, which may be errors; raise what redis-py raises about the connection."""
        connection = self.begin(commands, reads=reads, replicas=replicas)
        return self.finish(connection, len(commands), replicas)

    def begin(self, commands: Sequence[Command], *, reads: bool, replicas: int = 0) -> Connection:
        """Send commands, and return the connection on which their answers will come."""
        connection = self._take()
        if replicas:  # the server counts by connection, so it is asked on the same one
            patience = getattr(connection.driver, "socket_timeout", None) or self.timeout
            commands = [*commands, (b"WAIT", replicas, int(patience * 500))]
        try:
            connection.prepare(reads=reads)
            connection.send(b"".join([packed(command) for command in commands]))
        except BaseException:
            self.drop(connection)
            raise
        return connection

    def finish(self, connection: Connection, count: int, replicas: int = 0) -> list[Any]:
        """Return so many answers from a connection."""
        answers: list[Any] = []
        try:
            for _ in range(count + bool(replicas)):
                try:
                    answers.append(connection.receive())
                except ResponseError as error:
                    answers.append(error.with_traceback(None))  # that holds this frame, and it the answers
        except BaseException:
            self.drop(connection)
            raise
        if any(map(_is_demoted, answers)):
            self._begin_era()
        self._put(connection)
        if replicas:
            confirmed = answers.pop()
            if any(map(_has_written, answers)):
                self._check_replicas(confirmed, replicas)
        return answers

    def drop(self, connection: Connection) -> None:
        """Close a connection whose answers nobody will read."""
        connection.driver.disconnect()
        self._put(connection)

    def _check(self, error: RedisError) -> None:
        """Raise what the error is to our callers; something else under a name of ours is no record, and no error."""
        if not str(error).startswith("WRONGTYPE"):
            raise ours(error, self.name) from error

    def _refusal(self, error: ResponseError) -> StoreUnavailable:
        refusal = ours(error, self.name)
        refusal.__cause__ = error
        return refusal

    def _check_replicas(self, confirmed: Any, wanted: int) -> None:
        if isinstance(confirmed, ResponseError):
            raise ours(confirmed, self.name) from confirmed
        if confirmed < wanted:
            raise StoreUnavailable(
                f"The session store at {self.name} has done it, but only {confirmed} of {wanted} replicas confirmed it "
                "in time, so a failover may undo it: try again, and look at the replicas."
            )

    # -- the pool --------------------------------------------------------------------------

    def _take(self) -> Connection:
        if not self._mark[0]:
            self._begin()
        try:
            return self._idle.pop()
        except IndexError:
            return self._made()

    def _made(self) -> Connection:
        self.check_open()
        return Connection(made_driver(self._client_pool, self.timeout), self._era)

    def _begin(self) -> None:
        """Have what a forked process inherited made anew, now that it uses the pool.

        A server that forks in C runs no hooks of Python's: its connections are the parent's still.
        """
        here = mark()
        self._begin_era()
        self._mark = here
        if self.at_begin is not None:
            self.at_begin()

    def _begin_era(self) -> None:
        """Have every connection made anew: the idle ones are closed now, those in use when they are put back."""
        self._era, idle = object(), list[Connection]()
        with suppress(IndexError):
            while True:
                idle.append(self._idle.pop())
        for connection in idle:
            self._put(connection)

    def _reset(self, connection: Connection) -> None:
        """Close a connection that may lead to the wrong server; it is made anew when it is used."""
        connection.driver.disconnect()
        connection.era = self._era

    def _put(self, connection: Connection) -> None:
        if connection.era is not self._era:
            self._reset(connection)
        self._idle.append(connection)
        if self._closed:
            self.close()

    def check_open(self) -> None:
        """Raise UsageError once the pool is closed."""
        if self._closed:
            raise closed()

    def close(self) -> None:
        """Close every connection; those in use close with the verb that uses them."""
        self._closed = True
        while self._idle:
            with suppress(IndexError):  # another thread took the last one
                self._idle.pop().driver.disconnect()

    def leave_to_parent(self) -> None:
        """Close what a forked process inherits, which ends nothing for its parent."""
        for connection in self._idle:
            connection.driver.disconnect()


def _is_demoted(answer: Any) -> bool:
    """Tell whether a server answers that it is a replica; of a command in a script only the text says so, in 6.2."""
    if not isinstance(answer, ResponseError):
        return False
    return isinstance(answer, ReadOnlyError | MasterDownError) or "READONLY" in str(answer)


def _has_written(answer: Any) -> bool:
    """Tell whether a script's answer says that it changed something; errors, and that nothing was there, do not."""
    return answer.__class__ is list or (answer.__class__ is int and answer > 0)


def _name_of(client_pool: Any) -> str:
    """Return where the server is, without the password."""
    settings = client_pool.connection_kwargs
    if hasattr(client_pool, "service_name"):
        return f"the primary {client_pool.service_name}"
    if "path" in settings:
        return str(settings["path"])
    return f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"


_POOLS: Final[WeakSet[Pool]] = WeakSet()


def _after_in_child() -> None:
    """Have every connection made anew when it is needed."""
    for pool in list(_POOLS):
        pool.leave_to_parent()


os.register_at_fork(after_in_child=_after_in_child)
