"""What the sessions of a request are about to write, worked out before any of them writes."""

from typing import TYPE_CHECKING, Any

from .context import Context

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Rehearsal"]


class Rehearsal:
    """What sessions are about to write, which is as good as new until anything changes in any of them.

    Whatever changes says so in ``Context.changed``. The rehearsal leaves a mark there, and is over when that is gone.
    """

    __slots__ = ("_context", "_made", "_mark")

    def __init__(self, context: Context) -> None:
        """Begin with nothing."""
        self._context = context
        self._made: dict[str, Any] = {}
        self._mark = object()
        if context.changed:
            context.changed = self._mark

    def keep(self, session: "Session", made: Any) -> None:
        """Keep what a session is about to write, unless it holds what can change in place without a word."""
        if not session.may_change_unseen:
            self._made[session.handler.name] = made

    def made(self, session: "Session") -> Any:
        """Return what was kept of a session; None if there is nothing, or anything has changed since."""
        return self._made.get(session.handler.name) if self._context.changed is self._mark else None
