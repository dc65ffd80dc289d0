"""A store in one file of SQLite: ``store`` has the verbs, ``file`` the connections, ``watch`` the feed."""

from .store import SqliteStore

__all__ = ["SqliteStore"]
