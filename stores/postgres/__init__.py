"""A store in PostgreSQL.

``store`` has the verbs; beneath it a row is written (``apply``) and watched (``watch``), a server is reached
(``server``, ``connection``), and a table is laid out (``schema``, ``rows``, ``sql``).
"""

from .store import PostgresStore

__all__ = ["PostgresStore"]
