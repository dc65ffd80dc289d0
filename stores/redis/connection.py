"""One connection of a RedisStore: redis-py's own, which lies in ours as its ``driver``, and whether it still stands."""

import select
from typing import Any

__all__ = ["Connection", "made_driver"]


def made_driver(pool: Any, timeout: float) -> Any:
    """Return a new connection of redis-py's as a pool of its own would make it, which is not one of the pool's.

    A pool counts what it ever made, and has no word for what is no longer needed. The older protocol takes a quarter
    less time to read, and every release of redis-py speaks it.
    """
    # A server tells of its maintenance in the newer protocol alone; when it cuts us off, we come back without.
    settings = {name: value for name, value in pool.connection_kwargs.items() if not name.startswith("maint_")}
    driver = pool.connection_class(**{**settings, "protocol": 2})
    for name in ("socket_timeout", "socket_connect_timeout"):
        if getattr(driver, name, timeout) is None:
            setattr(driver, name, timeout)
    return driver


class Connection:
    """One connection, and whether it still stands."""

    __slots__ = ("_is_ready", "_watched", "driver", "era")

    def __init__(self, driver: Any, era: object) -> None:
        """Take a connection of redis-py's, connected or not, that is right for as long as its pool's era lasts."""
        self.driver = driver
        self.era = era
        self._watched: Any = None
        self._is_ready: Any = None

    def prepare(self, *, reads: bool) -> None:
        """Connect, if there is no connection, or, before a write, if the server has closed it.

        Then something can be read, and nobody asked for anything. Sending would connect too, but not as a Sentinel's
        connection does, which asks for the primary first.
        """
        connected = self.driver._sock  # noqa: SLF001 - there is no other way to learn this without a round trip
        if connected is not None:
            if reads or not self._has_news(connected):
                return
            self.driver.disconnect()
        self.driver.connect()

    def _has_news(self, connected: Any) -> bool:
        if connected is not self._watched:
            self._watched, self._is_ready = connected, self.driver.can_read
            if hasattr(select, "poll"):  # what replaces threads may take it away
                poll = select.poll()
                poll.register(connected.fileno(), select.POLLIN)
                self._is_ready = poll.poll
        return bool(self._is_ready(0))
