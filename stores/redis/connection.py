"""One connection of a RedisStore: redis-py's own, which lies in ours as its ``driver``, and how it is talked on.

redis-py connects, with all that takes: credentials, TLS, Sentinel, retries. What is said then costs it six frames an
answer, and Python one more call of the system before each that sends or reads, if the socket has a time-out. So where
the socket is the system's own, commands are sent on it and answers read from it here, and only an answer is waited for.
"""

import _socket
import select
from collections.abc import Callable
from math import ceil
from typing import Any, Final

from redis.connection import AbstractConnection
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as TimedOut

Reader: Any
try:
    from hiredis import Reader
except ImportError:
    Reader = None

__all__ = ["Connection", "made_driver"]

CHUNK: Final = 1 << 16
"""How many bytes of an answer are read at once."""

_LONGEST_POLL: Final = 2**31 - 1
"""The longest wait that the system takes, in milliseconds: 24 days."""

_AS_BYTES: Final = False
"""What a reader is told that decodes for other users of the client."""

_WAYS: Final = ("recv", "recv_into", "send", "sendall")
"""How we, and redis-py, talk on a socket: one that has another way of its own for any is no plain one."""

_BEFORE_MOVE: Final = {
    "host": "orig_host_address",
    "socket_timeout": "orig_socket_timeout",
    "socket_connect_timeout": "orig_socket_connect_timeout",
}
"""Where redis-py keeps settings that it changes while a node moves."""


def made_driver(pool: Any, timeout: float) -> Any:
    """Return a new connection of redis-py's as a pool of its own would make it, which is not one of the pool's.

    A pool counts what it ever made, and has no word for what is no longer needed. The older protocol takes a quarter
    less time to read, and every release of redis-py speaks it.
    """
    # A server tells of its maintenance in the newer protocol alone; when it cuts us off, we come back without. So what
    # the pool has for as long as a node moves is not for us, who would keep it.
    given = pool.connection_kwargs.copy()
    settings = {name: value for name, value in given.items() if not name.startswith("maint")}
    if given.get("maintenance_notification_hash") is not None:
        settings.update({name: given[before] for name, before in _BEFORE_MOVE.items() if name in given})
    driver = pool.connection_class(**{**settings, "protocol": 2})
    for name in ("socket_timeout", "socket_connect_timeout"):
        if getattr(driver, name, timeout) is None:
            setattr(driver, name, timeout)
    return driver


class Connection:
    """One connection, and whether it still stands."""

    __slots__ = ("_has_news", "_watched", "driver", "era", "receive", "send")

    def __init__(self, driver: Any, era: object) -> None:
        """Take a connection of redis-py's, connected or not, that is right for as long as its pool's era lasts."""
        self.driver = driver
        self.era = era
        self.send: Callable[[bytes], None]
        """Send a packed command, or several as one, once it is prepared; raise what redis-py raises."""
        self.receive: Callable[[], Any]
        """Return one answer; raise what redis-py raises."""
        self._attach(None)

    def prepare(self, *, reads: bool) -> None:
        """Connect, if there is no connection, or, before a write, if the server has closed it.

        Then something can be read, and nobody asked for anything. Sending would connect too, but not as a Sentinel's
        connection does, which asks for the primary first.
        """
        connected = self.driver._sock  # noqa: SLF001 - there is no other way to learn this without a round trip
        if connected is None:
            self.connect()
            return
        if connected is not self._watched:
            self._attach(connected)
        if not reads and self._has_news(0):
            self.connect()

    def connect(self) -> None:
        """Connect anew."""
        self.driver.disconnect()
        self.driver.connect()
        self._attach(self.driver._sock)  # noqa: SLF001 - as above

    def _attach(self, connected: Any) -> None:
        """Take the ways to talk on this socket, None for none yet."""
        driven = _Driven(self.driver)
        way: _Direct | _Driven = driven
        self._has_news: Callable[[int], Any] = driven.has_news
        if connected is not None and hasattr(select, "poll"):  # what replaces threads may take it away
            poll = select.poll()
            poll.register(connected.fileno(), select.POLLIN)
            self._has_news = poll.poll
            if _is_plain(self.driver, connected):
                way = _Direct(self.driver, connected, poll.poll)
        self.send, self.receive = way.send, way.receive
        self._watched = connected


class _Driven:
    """Talks in redis-py's own way, which is right on every socket."""

    __slots__ = ("_driver",)

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def send(self, command: bytes) -> None:
        self._driver.send_packed_command((command,))

    def receive(self) -> Any:
        return self._driver.read_response(disable_decoding=True)

    def has_news(self, timeout: int) -> bool:
        try:
            return bool(self._driver.can_read(timeout))
        except Disconnected:
            return True


class _Direct:
    """Talks on the socket itself, with the driver's reader, so that an answer is to both of them the same.

    The time-out is that of each wait for a part of an answer, and that of all of one send, as it is the driver's.
    """

    __slots__ = ("_connected", "_feed", "_gets", "_nothing", "_patience", "_recv", "_send", "_timeout", "_wait")

    def __init__(self, driver: Any, connected: Any, wait: Callable[[int], Any]) -> None:
        """Take a socket from its driver, which does no more with it than close it; ``wait`` tells what to read."""
        self._connected, self._timeout = connected, connected.gettimeout()
        self._wait, self._patience = wait, min(ceil(self._timeout * 1000), _LONGEST_POLL)
        connected.settimeout(0)
        self._send, self._recv = connected.send, connected.recv
        reader = driver._parser._reader  # noqa: SLF001 - as _is_plain() found it
        self._feed, self._gets, self._nothing = reader.feed, reader.gets, reader.gets(_AS_BYTES)

    def send(self, command: bytes) -> None:
        try:
            try:
                count = self._send(command)
            except BlockingIOError:
                count = 0
            if count < len(command):
                self._send_rest(memoryview(command)[count:])
        except TimeoutError as error:
            raise TimedOut("Timeout writing to socket") from error
        except OSError as error:
            raise Disconnected(f"Error {error.errno} while writing to socket. {error.strerror}.") from error

    def _send_rest(self, rest: memoryview) -> None:
        """Send what the system had no room for."""
        self._connected.settimeout(self._timeout)
        self._connected.sendall(rest)
        self._connected.settimeout(0)

    def receive(self) -> Any:
        answer = self._gets(_AS_BYTES)
        try:
            while answer is self._nothing:
                if not self._wait(self._patience):
                    raise TimedOut("Timeout reading from socket")
                part = self._recv(CHUNK)
                if not part:
                    raise Disconnected("Connection closed by server.")
                self._feed(part)
                answer = self._gets(_AS_BYTES)
        except TimeoutError as error:  # the system's: it gave up to send something again
            raise TimedOut("Timeout reading from socket") from error
        except OSError as error:
            raise Disconnected(f"Error while reading from socket: {error.args}") from error
        if isinstance(answer, RedisError):
            try:
                raise answer
            finally:
                del answer  # which holds this frame
        return answer


def _is_plain(driver: Any, connected: Any) -> bool:
    """Tell whether nothing lies between us and a socket of the system.

    That would be TLS, what replaces threads, and somebody else's connection that sends or reads in its own way, as a
    Sentinel's does. Health checks are the driver's too.
    """
    kind, reader = type(driver), getattr(getattr(driver, "_parser", None), "_reader", None)
    return (
        Reader is not None
        and isinstance(reader, Reader)
        and not reader.has_data()
        and all(getattr(type(connected), name, None) is getattr(_socket.socket, name) for name in _WAYS)
        and bool(connected.gettimeout())
        and kind.send_packed_command is AbstractConnection.send_packed_command
        and kind.read_response is AbstractConnection.read_response
        and not driver.health_check_interval
    )
