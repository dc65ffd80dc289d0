"""What happened to sessions, told to whoever asked with ``with_events`` or ``with_logger``.

    kind       when                                              what ``reason`` says
    created    a session was begun                               nothing
    renewed    it got a new id: by ``renew()``, at a login       nothing
    revoked    it was ended before its time                      nothing for ``revoke()``; "replaced" by ``generate()``;
                                                                 "its parent ended"; "merged"; "everywhere" for
                                                                 ``revoke_all()``; "limit" for ``with_max_sessions()``
    listed     it is carried, and its token is refused from now  "revoked session", "renewed id"
    expired    a request brought one that is past a deadline     nothing
    absent     a request brought one that its store has not      nothing
    duplicate  a request brought several tokens for one session  nothing
    corrupt    the stored data of one cannot be read back        the error's class
    refused    a request had no live session, or may not go on   the error's class; "csrf"
    conflict   a write was refused, for another request had      nothing
               ended or renewed the session meanwhile
    untouched  a request could not be counted as activity        the error's class
    late       behind the headers a write failed, or a first     the error's class; "vary"
               look came, which needs a ``Vary`` among them
    outage     the store did not answer, or is damaged           the error's class
    cache      a cache failed, and the store was asked instead   the error's class
    feed       the feed that ``follow()`` listens to was lost:   nothing
               the cache dropped all, and until the feed is
               back an entry may be ``max_staleness`` old

One request may tell of several: behind ``expired``, ``absent``, ``duplicate`` and ``corrupt``, which say what was
found, comes the ``refused`` that says what was done. A session that no request asks for any more ends silently. A
reason is always one of these words or the name of an error's class: never a text with data in it.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from ..errors import ConfigError, StoreError

if TYPE_CHECKING:
    import logging

    from .handler import Handler

__all__ = ["REASONS", "Event", "Listener", "LoggingListener", "asked", "each_of", "emit"]

_T = TypeVar("_T")

REASONS: Final = frozenset({
    "csrf", "everywhere", "its parent ended", "limit", "merged", "renewed id", "replaced", "revoked session", "vary",
})  # fmt: skip
"""Every reason but the classes of errors."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: what, to which handler's session, and why.

    ``handle`` is the session's public name, never its id, or None if there is no session.
    """

    kind: str
    handler: str
    handle: str | None = None
    reason: str | None = None


Listener: TypeAlias = Callable[[Event], object]
"""What ``with_events`` takes: called with each event, in the request's own thread."""


def each_of(*listeners: Listener) -> Listener:
    """Return a listener that tells each of these, in this order; one that fails does not silence the next.

    What they raise comes out as one ExceptionGroup once all were told. Raises ConfigError for what cannot be called.
    """
    for listener in listeners:
        if not callable(listener):
            raise ConfigError(f"each_of() takes functions, not {type(listener).__name__}.")

    def tell(event: Event) -> None:
        failures: list[Exception] = []
        for listener in listeners:
            try:
                listener(event)
            except Exception as failure:  # noqa: BLE001 - a listener may raise anything
                failures.append(failure)
        try:
            if failures:
                raise ExceptionGroup("Event listeners failed.", failures)
        finally:
            del failures  # Each of them holds this frame.

    return tell


# The numbers are logging's own. The module is a tenth of our import time, so it is left to those who log.
_INFO: Final = 20
_WARNING: Final = 30
_ERROR: Final = 40

# An error is what somebody has to mend. A warning is a request that was turned away, or something that was asked for
# and not done: worth a look if there are many. The rest is the ordinary life of sessions.
_LEVELS: Final = {
    "created": _INFO,
    "renewed": _INFO,
    "revoked": _INFO,
    "listed": _INFO,
    "expired": _INFO,
    "absent": _INFO,
    "duplicate": _WARNING,
    "corrupt": _ERROR,
    "refused": _WARNING,
    "conflict": _WARNING,
    "untouched": _WARNING,
    "late": _WARNING,
    "outage": _ERROR,
    "cache": _WARNING,
    "feed": _WARNING,
}


class LoggingListener:
    """A listener that logs each event on one line: what ``with_logger`` does, with levels of your own.

    The record also has the attributes ``sessiontree_kind``, ``sessiontree_handler``, ``sessiontree_handle`` and
    ``sessiontree_reason``, for formatters that write structured logs; the last two are None where there is none.
    """

    __slots__ = ("_levels", "_logger")

    def __init__(self, logger: "logging.Logger | None" = None, levels: "Mapping[str, int] | None" = None) -> None:
        """Log to this logger, else to "sessiontree.events"; ``levels`` has the levels of kinds that are to differ.

        Raises ConfigError for what is no logger, a kind that does not exist, and a level that is no int.
        """
        import logging  # noqa: PLC0415 - see the levels above

        if logger is not None and not isinstance(logger, logging.Logger):
            raise ConfigError(f"LoggingListener() takes a logging.Logger or None, not {type(logger).__name__}.")
        for kind, level in (levels or {}).items():
            if kind not in _LEVELS or type(level) is not int:
                raise ConfigError(f"A level is an int for one of {', '.join(_LEVELS)}, not {level!r} for {kind!r}.")
        self._logger = _default_logger() if logger is None else logger
        self._levels = {**_LEVELS, **levels} if levels else _LEVELS

    def __call__(self, event: Event) -> None:
        """Log the event."""
        # %r, so that nothing in a value can begin a new line of the log (CVE-2025-25184). The attributes are flat and
        # carry our name, because one that another library has set already is a KeyError.
        self._logger.log(
            self._levels.get(event.kind, _INFO),
            "session %s %r %r %r",
            event.kind,
            event.handler,
            event.handle,
            event.reason,
            extra={
                "sessiontree_kind": event.kind,
                "sessiontree_handler": event.handler,
                "sessiontree_handle": event.handle,
                "sessiontree_reason": event.reason,
            },
        )


def emit(handler: "Handler", kind: str, handle: str | None = None, reason: str | None = None) -> None:
    """Tell the handler's listener and logger; whatever they raise never reaches the request (CVE-2021-34428)."""
    config = handler.config
    listener, logger = config.events, config.logger
    if listener is None and logger is None:
        return
    event = Event(kind, handler.path, handle, reason)
    if listener is not None:
        _tell(listener, event, logger)
    if logger is not None:
        _tell(LoggingListener(logger), event, None)


def asked(handler: "Handler", handle: str | None, verb: Callable[..., _T], *arguments: Any) -> _T:
    """Ask a store something, and tell of an outage if it fails, before the error goes on."""
    try:
        return verb(*arguments)
    except StoreError as error:
        emit(handler, "outage", handle, type(error).__name__)
        raise


def _tell(listener: Listener, event: Event, logger: "logging.Logger | None") -> None:
    """Tell one listener, and log to this logger, or to our own, that it failed."""
    try:
        listener(event)
    except Exception:  # noqa: BLE001 - a listener may raise anything
        with suppress(Exception):  # The filters of a logger are the user's, too.
            (_default_logger() if logger is None else logger).exception("An event listener failed: %s", event)


def _default_logger() -> "logging.Logger":
    import logging  # noqa: PLC0415 - see the levels above

    return logging.getLogger("sessiontree.events")
