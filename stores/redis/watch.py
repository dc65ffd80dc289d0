"""How a RedisStore hears what other objects and other processes change, within a millisecond.

The server keeps no list for that and writers do nothing: it tells a client of every name with our prefix that was
written (client-side caching, in its broadcast mode). One connection asks to be told, and is told: it redirects to
itself, so that it cannot lose one without the other, and speaks the older protocol, which every release of redis-py
reads. A connection that is lost may have missed changes, and so may one that comes back: both are announced as None.
"""

import os
from contextlib import suppress
from socket import SHUT_RDWR
from threading import Event, Lock, Thread
from typing import Any, Final
from weakref import WeakSet, ref

from redis.exceptions import RedisError

from ..announcing import Announcing, OnChange, Stop
from ..log import logger
from .connection import made_driver
from .keys import handles_in
from .pool import ours

__all__ = ["LONGEST", "PATIENCE", "Feed"]

PATIENCE: Final = 1.0
"""After how many seconds of silence the server is asked whether it is there; after as many again the feed is lost."""

SHORTEST: Final = 0.01
LONGEST: Final = 1.0
"""How many seconds the thread rests between two tries to connect; these rests double."""

CHANNEL: Final = b"__redis__:invalidate"


class Feed(Announcing):
    """Announces what anybody changes under a prefix, from a thread that runs for as long as somebody listens."""

    def __init__(self, owner: object, pool: Any, name: str, prefix: bytes) -> None:
        """Begin with nobody who listens, and nothing sent; the owner is not held."""
        super().__init__()
        self._owner = ref(owner)
        self._pool, self._name, self._prefix = pool, name, prefix
        self._lock = Lock()
        self._thread: Thread | None = None
        self._connection: Any = None
        """What is listened to; None while the feed is lost."""
        _FEEDS.add(self)

    def watch(self, on_change: OnChange) -> Stop:
        """Announce what is changed from now on; raise StoreUnavailable if the server is not there."""
        with self._lock:
            if self._thread is None:
                try:
                    self._connection = self._connected()
                except RedisError as error:
                    raise ours(error, self._name) from error
                self._start()
            stop = self.listen(on_change)
        return lambda: self._leave(stop)

    def end(self) -> None:
        """Tell everybody that the feed is over. The thread ends at once."""
        self.announce(None)
        self._listeners.clear()
        self._wake()

    def begin_process(self) -> None:
        """Start a thread in a forked process, for those who listened in the parent, unless it has one."""
        if self._thread is not None:  # here, or in a parent that forked in C: then the lock may be held for ever
            return
        with self._lock:
            if self._listeners and self._thread is None:
                try:
                    self._start()
                except RuntimeError as error:  # the process may have no more threads; its verbs need none
                    logger().warning("Nobody hears what is changed at %s: %s", self._name, error)

    def leave_to_parent(self) -> None:
        """Drop what a forked process inherits, which has no thread yet."""
        self._lock, self._thread, connection, self._connection = Lock(), None, self._connection, None
        if connection is not None:
            connection.disconnect()

    def _leave(self, stop: Stop) -> None:
        stop()
        if not self._listeners:
            self._wake()

    def _wake(self) -> None:
        """End what the thread waits for, so that it looks whether it is wanted.

        The connection is not closed here: redis-py would open it again, for a thread that is in the midst of reading,
        and nothing would ever be heard on it. Nor is a parent's, which forked in C.
        """
        with suppress(Exception):
            if self._connection.pid == os.getpid():
                self._connection._sock.shutdown(SHUT_RDWR)  # noqa: SLF001 - there is no other way to it

    # -- the thread ------------------------------------------------------------------------

    def _start(self) -> None:
        thread = Thread(target=self._run, name="sessiontree-watch", daemon=True)
        thread.start()
        self._thread = thread

    def _run(self) -> None:
        failures = 0
        while self._is_wanted():
            try:
                if self._connection is None:
                    connection = self._connected()
                    with self._lock:
                        self._connection = connection
                    failures = 0
                    self.announce(None)
                self.announce_all(self._heard())
            except BaseException as error:  # noqa: BLE001 - whatever it is, the feed must not end in silence
                if self._is_wanted():
                    failures += 1
                    self._lose(error, failures)

    def _is_wanted(self) -> bool:
        """Tell whether anybody listens; if not, this is no longer the thread that does the work."""
        with self._lock:
            if self._listeners and self._owner() is not None:
                return True
            self._thread = None
            self._disconnect()
            return False

    def _heard(self) -> list[str | None]:
        """Wait, and return the handles that were announced, or None for all; nothing is an answer too."""
        connection = self._connection
        if not connection.can_read(PATIENCE):
            connection.send_command("PING", check_health=False)
            if not connection.can_read(PATIENCE):
                raise TimeoutError("The server does not answer.")
        message = connection.read_response(disable_decoding=True)
        if message[0] != b"message":
            return []
        return [None] if message[2] is None else [*handles_in(message[2], self._prefix)]

    def _lose(self, error: BaseException, failures: int) -> None:
        """Say once that the feed is lost, and rest before the next try."""
        with self._lock:
            was_there = self._connection is not None
            self._disconnect()
        if was_there:
            logger().warning("What is changed at %s is not heard of for now: %s", self._name, error)
            with suppress(BaseException):
                self.announce(None)
        Event().wait(min(SHORTEST * 2 ** min(failures, 10), LONGEST))

    def _connected(self) -> Any:
        """Return a connection that is told of changes from now on; raise what redis-py raises."""
        connection = made_driver(self._pool, PATIENCE)
        try:
            connection.connect()
            own = _asked(connection, "CLIENT", "ID")
            _asked(connection, "CLIENT", "TRACKING", "ON", "REDIRECT", own, "BCAST", "PREFIX", self._prefix)
            _asked(connection, "SUBSCRIBE", CHANNEL)
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.disconnect()


def _asked(connection: Any, *command: Any) -> Any:
    connection.send_command(*command)
    return connection.read_response(disable_decoding=True)


_FEEDS: Final[WeakSet[Feed]] = WeakSet()


def _after_in_child() -> None:
    for feed in list(_FEEDS):
        feed.leave_to_parent()


os.register_at_fork(after_in_child=_after_in_child)
