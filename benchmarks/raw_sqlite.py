"""What SQLite itself costs: the calls of sqlite3 that no store on it can do without, and JSON by orjson.

One table of a handle and a blob, one connection, one cursor that is used again and again, statements that stay
prepared, WAL, synchronous NORMAL, autocommit. No expiry, no proof, no threads, no errors.
"""

import sqlite3
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import orjson

from benchmarks.harness import Call
from benchmarks.payload import COUNTER, next_count

SELECT = "SELECT fields FROM sessions WHERE handle = ?"
INSERT = "INSERT INTO sessions VALUES (?, ?)"
UPDATE = "UPDATE sessions SET fields = ? WHERE handle = ?"
DELETE = "DELETE FROM sessions WHERE handle = ?"


class Raw:
    """A file of blobs by handle."""

    def __init__(self, path: Path, rows: Sequence[tuple[str, bytes]] = (), *, synchronous: str = "NORMAL") -> None:
        """Make the file, or open it again, and add the rows."""
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.cursor = self.connection.cursor()
        self.cursor.execute("PRAGMA journal_mode=WAL").fetchall()
        self.cursor.execute(f"PRAGMA synchronous={synchronous}")
        # WITHOUT ROWID would save a sixth of a small read, and cost a big write twice its time.
        self.cursor.execute("CREATE TABLE IF NOT EXISTS sessions (handle TEXT NOT NULL PRIMARY KEY, fields BLOB)")
        self.add(rows)

    def add(self, rows: Sequence[tuple[str, bytes]]) -> list[str]:
        """Insert the rows and return their handles."""
        self.cursor.execute("BEGIN")
        if rows:  # nothing is prepared for a table of another form, which is opened only to be read
            self.cursor.executemany(INSERT, rows)
        self.cursor.execute("COMMIT")
        return [handle for handle, _ in rows]

    def select(self, handles: Sequence[str], sql: str = SELECT) -> Call:
        """Return a call that reads the next row."""
        execute, next_handle = self.cursor.execute, cycle(handles).__next__

        def call() -> None:
            execute(sql, (next_handle(),)).fetchone()

        return call

    def read(self, handles: Sequence[str]) -> Call:
        """Return a call that reads the next row and parses it."""
        execute, next_handle, loads = self.cursor.execute, cycle(handles).__next__, orjson.loads

        def call() -> None:
            loads(execute(SELECT, (next_handle(),)).fetchone()[0])

        return call

    def write(self, handles: Sequence[str]) -> Call:
        """Return a call that reads the next row, changes one key and writes the row."""
        execute, next_handle, loads, dumps = self.cursor.execute, cycle(handles).__next__, orjson.loads, orjson.dumps

        def call() -> None:
            handle = next_handle()
            data = loads(execute(SELECT, (handle,)).fetchone()[0])
            data[COUNTER] = next_count()
            execute(UPDATE, (dumps(data), handle))

        return call

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
