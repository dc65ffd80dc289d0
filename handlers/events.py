"""What happened to sessions, told to whoever asked with ``with_events`` or ``with_logger``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from .handler import Handler

__all__ = ["Event", "Listener", "emit"]


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

_WARNINGS: Final = frozenset({"refused", "duplicate", "late"})


def emit(handler: "Handler", kind: str, handle: str | None = None, reason: str | None = None) -> None:
    """Tell the handler's listener and logger; whatever they raise never reaches the request (CVE-2021-34428)."""
    config = handler.config
    if config.events is None and config.logger is None:
        return
    import logging  # noqa: PLC0415 - a tenth of our import time, for those who asked to be told

    event = Event(kind, handler.path, handle, reason)
    logger = config.logger or logging.getLogger(__name__)
    if config.events is not None:
        try:
            config.events(event)
        except Exception:
            logger.exception("An event listener failed: %s", event)
    if config.logger is not None:
        # %r, so that nothing in a value can begin a new line of the log (CVE-2025-25184).
        logger.log(
            logging.WARNING if kind in _WARNINGS else logging.INFO,
            "session %s %r %r %r",
            kind,
            handler.path,
            handle,
            reason,
        )
