"""One connection to the file of a SqliteStore; the driver's own is ``sqlite3.Connection`` wherever both are named."""

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

__all__ = ["Connection", "connected", "every_row"]


class Connection:
    """One connection, with what is prepared for it."""

    __slots__ = ("cursor", "driver", "last")

    def __init__(self, driver: sqlite3.Connection) -> None:
        """Have seen nothing yet."""
        self.driver = driver
        self.cursor = driver.cursor()
        self.last = ("", b"")
        """The handle and the packed record that this connection read or wrote last: only ever compared."""

    def close(self) -> None:
        """Close it, whatever SQLite says to that."""
        with suppress(sqlite3.Error):
            self.driver.close()


def connected(uri: str, timeout: float) -> Connection:
    """Return a new connection, which any thread may use; raise what sqlite3 raises."""
    driver = sqlite3.connect(
        uri, timeout=timeout, isolation_level=None, check_same_thread=False, cached_statements=128, uri=True
    )
    try:
        # No mmap_size: it saves a tenth of a read, and a file that shrinks kills the process then.
        driver.execute("PRAGMA synchronous=NORMAL")
        driver.execute("PRAGMA journal_size_limit=16777216")
        return Connection(driver)
    except BaseException:
        driver.close()
        raise


def every_row(connection: Connection, sql: str, arguments: Sequence[Any]) -> list[Any]:
    """Return every row of a statement."""
    return connection.cursor.execute(sql, arguments).fetchall()
