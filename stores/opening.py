"""``open_store``: a store by its URL, importing only the engine that is asked for."""

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..clock import Clock
from ..errors import ConfigError

if TYPE_CHECKING:
    from .protocol import Store

__all__ = ["open_store"]

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def open_store(url: str, *, clock: Clock | None = None, **settings: Any) -> "Store":
    """Return the store of this URL.

    ``memory:``, ``sqlite:///relative/path`` and ``sqlite:////absolute/path`` are built in; ``redis://``,
    ``rediss://`` (TLS), ``unix://`` (a Redis socket) and ``postgresql://`` need the extra of that name. Raises
    ConfigError for any other scheme and for control characters, and StoreUnavailable or StoreCorrupt if the engine
    cannot be opened. Further settings are the store's own.
    """
    if not isinstance(url, str):
        raise ConfigError(f"open_store() takes a URL, not {type(url).__name__}.")
    if control := _CONTROL.search(url):
        raise ConfigError(
            f"The URL of a store has no control characters, and this one has {control[0]!r}: call strip() on what you "
            "read from a file."
        )
    scheme, colon, rest = url.partition(":")
    opener = _OPENERS.get(scheme.lower()) if colon else None
    if opener is None:
        raise ConfigError(
            f"No store has the URL scheme {scheme!r}: use one of {', '.join(map('{}:'.format, _OPENERS))}."
        )
    if clock is not None and (isinstance(clock, type) or not isinstance(clock, Clock)):
        raise ConfigError("clock is an object whose now() returns integer milliseconds, such as a FakeClock().")
    return opener(rest, clock=clock, **settings)


def _memory(rest: str, **settings: Any) -> "Store":
    from .memory import MemoryStore  # noqa: PLC0415 - an engine is imported when it is asked for

    if rest.strip("/"):
        raise ConfigError(f"The URL of a MemoryStore is 'memory:' and nothing else, not {'memory:' + rest!r}.")
    return MemoryStore(**settings)


def _sqlite(rest: str, **settings: Any) -> "Store":
    from .sqlite import SqliteStore  # noqa: PLC0415 - as above

    path = rest.removeprefix("///")
    if path == rest or not path or "?" in path or "#" in path:
        raise ConfigError(
            "The URL of a SqliteStore is 'sqlite:///relative/path' or 'sqlite:////absolute/path' and nothing more: "
            "settings are arguments of open_store()."
        )
    return SqliteStore(path, **settings)


def _redis(rest: str, *, scheme: str = "redis", **settings: Any) -> "Store":
    from .redis import RedisStore  # noqa: PLC0415 - as above

    return RedisStore.from_url(f"{scheme}:{rest}", **settings)


def _postgres(rest: str, **settings: Any) -> "Store":
    from .postgres import PostgresStore  # noqa: PLC0415 - as above

    return PostgresStore.from_url(f"postgresql:{rest}", **settings)


_OPENERS: "Final[dict[str, Callable[..., Store]]]" = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
    "rediss": partial(_redis, scheme="rediss"),
    "unix": partial(_redis, scheme="unix"),
    "postgresql": _postgres,
    "postgres": _postgres,
}
