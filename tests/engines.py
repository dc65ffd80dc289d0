"""Every engine, for tests that each of them must pass: ``@pytest.fixture(params=ENGINES)`` and ``opened``."""

import secrets
from collections.abc import Callable
from functools import cache, partial
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
    return opener(kind, folder, **settings)(clock=clock)


def opener(kind: str, folder: Path, **settings: Any) -> Callable[..., Store]:
    """Return what opens one empty place, each time with connections of its own, on the clock that it is given."""
    if kind == "memory":
        return partial(open_store, "memory:", **settings)
    settings.setdefault("timeout", PATIENCE)
    if kind == "sqlite":
        return partial(open_store, f"sqlite:///{folder / 's.db'}", **settings)
    if kind == "redis":
        return partial(open_store, valkey.started("valkey").url, prefix=secrets.token_hex(8), **settings)
    url = _with_schema()
    postgres.run_sql(url, f"DELETE FROM {_SCHEMA}.sessions")  # noqa: S608 - our own name
    return partial(open_store, url, schema=_SCHEMA, **settings)


@cache
def _with_schema() -> str:
    url = postgres.server("wheel 16").url
    store = open_store(url, schema=_SCHEMA)
    store.create_schema()  # type: ignore[attr-defined]
    store.close()
    return url
