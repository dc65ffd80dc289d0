"""Every engine, for tests that each of them must pass: ``@pytest.fixture(params=ENGINES)`` and ``opened``."""

import secrets
from functools import cache
from pathlib import Path
from typing import Any

from servers import postgres, valkey

from sessiontree.clock import Clock
from sessiontree.stores import Store, open_store

ENGINES = ("memory", "sqlite", "redis", "postgres")
PATIENCE = 20.0
"""How many seconds a verb may take on a machine that does much else."""

_SCHEMA = "engines"


def opened(kind: str, folder: Path, clock: Clock | None = None, **settings: Any) -> Store:
    """Return an empty store of this kind; two of one kind at a time would not be apart."""
    if kind == "memory":
        return open_store("memory:", clock=clock, **settings)
    settings.setdefault("timeout", PATIENCE)
    if kind == "sqlite":
        return open_store(f"sqlite:///{folder / 's.db'}", clock=clock, **settings)
    if kind == "redis":
        return open_store(valkey.started("valkey").url, prefix=secrets.token_hex(8), clock=clock, **settings)
    url = _with_schema()
    postgres.run_sql(url, f"DELETE FROM {_SCHEMA}.sessions")  # noqa: S608 - our own name
    return open_store(url, schema=_SCHEMA, clock=clock, **settings)


@cache
def _with_schema() -> str:
    url = postgres.server("wheel 16").url
    store = open_store(url, schema=_SCHEMA)
    store.create_schema()  # type: ignore[attr-defined]
    store.close()
    return url
