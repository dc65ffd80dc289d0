"""A store in Redis or Valkey.

``store`` has the verbs. What they are built of goes down from there: what finds (``index``, ``scan``) and what hears
(``watch``), then names (``keys``), connections (``pool``, ``cluster``, ``connection``), what lies there (``record``),
and ``scripts``.
"""

from .store import RedisStore

__all__ = ["RedisStore"]
