"""Options: functions from a handler to a new handler, each of which changes one setting.

Several are checked together, after the last one, so ``Handler(name, keys, *options)`` and
``handler.configure(*options)`` take ours in any order. Your own option is any function that
takes a handler and returns one; what stands before it is checked before it is called.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from weakref import ref

from ..clock import Clock, Duration, milliseconds
from ..errors import ConfigError
from ..serializer import Serializer
from .config import LIMIT_POLICIES, OUTAGES, Limit
from .cookie import CookiePolicy
from .events import Listener
from .ids import IdGenerator, checked_id
from .transport import checked_header

if TYPE_CHECKING:
    import logging

    from ..caches.protocol import Cache
    from ..stores.protocol import Store
    from .config import Config
    from .handler import Handler

__all__ = [
    "HandlerOption",
    "Option",
    "fixed_id",
    "server_only",
    "with_absolute_timeout",
    "with_cache",
    "with_clock",
    "with_cookie",
    "with_eager",
    "with_encryption",
    "with_events",
    "with_header",
    "with_id_generator",
    "with_idle_timeout",
    "with_logger",
    "with_max_age",
    "with_max_sessions",
    "with_outage",
    "with_revocations",
    "with_serializer",
    "with_store",
]


HandlerOption: TypeAlias = "Callable[[Handler], Handler]"
"""An option: a function from a handler to a new one."""


@dataclass(frozen=True, slots=True)
class Option:
    """One change of settings, applied by calling it with a handler."""

    changes: tuple[tuple[str, Any], ...]

    def change(self, config: "Config") -> "Config":
        """Return the settings with this change, not yet checked."""
        return replace(config, **dict(self.changes))

    def __call__(self, handler: "Handler") -> "Handler":
        """Return a new handler with this change; the old one is unchanged."""
        return handler.configure(self)


def _option(**changes: Any) -> Option:
    return Option(tuple(changes.items()))


def with_cookie(policy: CookiePolicy) -> Option:
    """Send the token in a cookie with the attributes of this policy; a ``with_header()`` before it counts no more."""
    _expect(policy, CookiePolicy, "with_cookie() takes a CookiePolicy")
    if policy.insecure_dev:
        warnings.warn(
            "The session cookie has no Secure attribute (insecure_dev=True), so anyone on the network can read it: "
            "never deploy this.",
            stacklevel=2,
        )
    return _option(policy=policy, header=None)


def with_max_age(max_age: Duration | None) -> Option:
    """Let the session live this long from its creation, in a cookie that outlives the browser.

    0 or None makes it a browser-session cookie. Raises ConfigError for a negative life.
    """
    life = 0 if max_age is None else milliseconds(max_age)
    if life < 0:
        raise ConfigError("with_max_age() takes no negative life: pass None for a browser-session cookie.")
    return _option(max_age=life)


def with_idle_timeout(timeout: Duration | None) -> Option:
    """End the session this long after it was last looked at; None turns it off.

    The session is touched at most once per min(60 s, timeout / 10), so it may end earlier by that much.
    """
    return _option(idle=_timeout(timeout, "with_idle_timeout"))


def with_absolute_timeout(timeout: Duration | None) -> Option:
    """End the session this long after its creation, whatever happens; None turns it off."""
    return _option(absolute=_timeout(timeout, "with_absolute_timeout"))


def with_id_generator(f: IdGenerator) -> Option:
    """Take session ids from this function of no argument, for example ``sessiontree.handlers.ids.uuid7``."""
    return _option(id_generator=_callable(f, "with_id_generator"))


def with_store(store: "Store | None") -> Option:
    """Keep the sessions in this store; the client holds a small token. None keeps them in the client's token.

    The store's clock must be the handler's.
    """
    return _option(store=None if store is None else _store(store, "with_store"))


def with_cache(cache: "Cache | None") -> Option:
    """Read the sessions through this cache, which may be anything that forgets; None reads from the store alone.

    Whatever is changed through the same store object is refused at once; what another process changes, at most the
    cache's ``max_staleness`` later, or as soon as ``store.watch()`` tells. The cache's clock must be the handler's.
    """
    return _option(cache=None if cache is None else _cache(cache), cache_is_inherited=False)


def with_revocations(store: "Store | None") -> Option:
    """Keep the sessions in the client's token, and in this store a list of those that ended before their deadline.

    Then ``revoke()`` and ``renew()`` refuse every copy of the old token. A look costs one lookup. It needs an
    absolute timeout, and changes nothing for a handler that has a store for its sessions.
    """
    return _option(revocations=None if store is None else _store(store, "with_revocations"))


class _ServerOnly(Option):
    """An option that may be passed as it is, or called first."""

    __slots__ = ()

    def __call__(self, handler: "Handler | None" = None) -> Any:
        """Return the option itself, or a new handler whose sessions no client knows."""
        return self if handler is None else handler.configure(self)


server_only: Final = _ServerOnly((("server_only", True),))
"""``server_only()``: sessions that no client knows, found by an id of yours with ``handler.load_by_id()``.

No cookie is ever sent for them, and they can be used outside any request. It needs a store.
"""


def fixed_id(id: str) -> Option:  # noqa: A002 - the contract spells it so, and callers do by keyword
    """Give every request the one server-only session of this id, which the first write creates.

    ``load_by_id`` and ``generate_by_id`` then take no other. Raises NoID for what cannot be an id.
    """
    return _option(fixed_id=checked_id(id))


def with_max_sessions(n: int, policy: str = "refuse") -> Option:
    """Let a subject have at most this many live sessions of this handler, exactly so however many log in at once.

    Above that ``"oldest"`` ends the one that was bound first, and ``"refuse"`` refuses the new one: the commit raises
    LimitReached, which becomes a 409 if it escapes, and nothing of the login lasts. It needs a store. Children do not
    inherit it.
    """
    if type(n) is not int or n < 1:
        raise ConfigError(f"with_max_sessions() takes an int of 1 or more, not {n!r}.")
    if policy not in LIMIT_POLICIES:
        raise ConfigError(f"with_max_sessions() takes {' or '.join(map(repr, LIMIT_POLICIES))}, not {policy!r}.")
    return _option(limit=Limit(n, policy))


def with_outage(answer: str, stale_for: Duration | None = None) -> Option:
    """Choose what a look does while the store does not answer.

    ``"raise"`` raises StoreUnavailable, which becomes a 503 if it escapes; ``"anonymous"`` shows an empty session that
    cannot be written to; ``"stale"`` shows what the cache still has for ``stale_for`` seconds beyond its
    ``max_staleness``, which can be read and not written to, and raises for what it has not. None of them replaces a
    cookie or logs anyone out.
    """
    if answer not in OUTAGES:
        raise ConfigError(f"with_outage() takes one of {', '.join(map(repr, OUTAGES))}, not {answer!r}.")
    if (answer == "stale") != (stale_for is not None):
        raise ConfigError("with_outage('stale', stale_for=...) takes both, and the other answers take no stale_for.")
    beyond = 0 if stale_for is None else milliseconds(stale_for)
    if beyond < 0:
        raise ConfigError("with_outage() takes a stale_for of 0 seconds or more.")
    return _option(outage=answer, stale_for=beyond, outage_is_inherited=False)


def with_encryption(on: bool = True) -> Option:  # noqa: FBT001, FBT002 - reads well: with_encryption(False) on a child
    """Seal the token, so that the client cannot read what is in it; in a store, seal each field."""
    return _option(encrypted=_expect(on, bool, "with_encryption() takes True or False"))


def with_serializer(s: Serializer) -> Option:
    """Write values with this serializer's ``dumps(value) -> bytes`` and ``loads(bytes)``."""
    _expect(s, Serializer, "with_serializer() takes an object with dumps() and loads()")
    return _option(serializer=s)


def with_header(name: str) -> Option:
    """Carry the token in this request and response header, and no cookie; ``"Authorization"`` means Bearer."""
    return _option(header=checked_header(name))


def with_eager() -> Option:
    """Create a session for every request that has none, even if nothing is written to it."""
    return _option(eager=True)


def with_clock(clock: Clock) -> Option:
    """Take the time from this clock."""
    if not isinstance(clock, Clock) or isinstance(clock, type) or type(clock.now()) is not int:
        raise ConfigError("with_clock() takes a Clock: an object whose now() returns integer milliseconds.")
    return _option(clock=clock)


def with_logger(logger: "logging.Logger | None") -> Option:
    """Log every event to this logger: handles only, never an id, a token, a secret or data."""
    import logging  # noqa: PLC0415 - a tenth of our import time, for those who log

    if logger is not None:
        _expect(logger, logging.Logger, "with_logger() takes a logging.Logger or None")
    return _option(logger=logger)


def with_events(f: Listener | None) -> Option:
    """Call this function with every ``Event``; what it raises is logged and goes no further."""
    return _option(events=None if f is None else _callable(f, "with_events"))


def _cache(cache: Any) -> Any:
    from ..caches.protocol import OPTIONAL, Cache  # noqa: PLC0415 - only those who have a cache

    _complete(cache, Cache, OPTIONAL, "with_cache() takes a cache", "LocalCache(max_sessions=10_000)")
    try:
        hash(ref(cache))
    except TypeError as error:
        raise ConfigError(f"with_cache() takes a cache that can be hashed and referred to weakly: {error}.") from error
    return cache


def _store(store: Any, name: str) -> Any:
    from ..stores.protocol import OPTIONAL, Store  # noqa: PLC0415 - only those who have a store

    _complete(store, Store, OPTIONAL, f"{name}() takes a store", "open_store('sqlite:///sessions.db')")
    return store


def _complete(candidate: Any, protocol: type, optional: "frozenset[str]", otherwise: str, such_as: str) -> None:
    """Raise ConfigError for what lacks any of a protocol, and say what; or, if it lacks most, what to take instead."""
    from ..stores.protocol import missing  # noqa: PLC0415 - as above

    lacking = missing(candidate, protocol, optional)
    name = type(candidate).__name__
    if isinstance(candidate, type) or 2 * len(lacking) > len(missing(None, protocol, optional)):
        raise ConfigError(f"{otherwise}, for example {such_as}, not {name}.")
    if lacking:
        raise ConfigError(f"{otherwise}, and {name} has no {' and no '.join(map(repr, lacking))}.")


def _timeout(timeout: Duration | None, name: str) -> int:
    if timeout is None:
        return 0
    life = milliseconds(timeout)
    if life <= 0:
        raise ConfigError(f"{name}() takes more than 0 seconds: pass None to turn it off.")
    return life


def _callable(function: Any, name: str) -> Any:
    if not callable(function):
        raise ConfigError(f"{name}() takes a function, not {type(function).__name__}.")
    return function


def _expect(value: Any, kind: type, otherwise: str) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"{otherwise}, not {type(value).__name__}.")
    return value
