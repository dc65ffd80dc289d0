"""The commit of several sessions: what would keep one of them from being written is found before any is.

Each works out what it will write. Then what was replaced ends, what is data alone goes to its store in one trip, each
session answers, and at last what was merged into another ends. Whoever is alone in a request, and replaces nothing,
only answers.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from .context import Context

if TYPE_CHECKING:
    from ..stores.protocol import Write
    from .loading import Batch
    from .session import Session
    from .transport import Header

__all__ = ["Rehearsal", "committed"]


def committed(sessions: "Collection[Session]", context: Context, *, failed: bool) -> "list[Header]":
    """Make their changes last; return a header for every token that the client must replace or forget, parents first.

    After a failed response only endings and renewals last.
    """
    answers: list[Header] = []
    rehearsal = None if failed else _rehearsed(sessions, context)
    if context.replacing:
        for session in sessions:
            session.end_replaced(failed)
    batches = (context.batches or {}).values()
    if rehearsal is not None:
        # If one of these is refused, those behind it are made nevertheless: they are under way already.
        for batch in batches:
            batch.write(_plain_writes(sessions, batch, rehearsal))
    try:
        for session in sessions:
            answer = session.answer(failed, rehearsal)
            if answer is not None:
                answers.append((session.handler.transport.response_header, answer))
    finally:
        for batch in batches:
            batch.forget_written()
    if context.merging:
        _settle_merged(sessions, failed=failed)
    return answers


def _rehearsed(sessions: "Collection[Session]", context: Context) -> "Rehearsal | None":
    """Raise what a session cannot write, such as a value that is no data, before any other has written anything.

    Where all are carried by the client nothing is written before all have their tokens.
    """
    writers = [session for session in sessions if session.may_write]
    write = len(writers) > 1 and any(session.handler.store is not None for session in writers)
    is_due = write or context.replacing or context.merging
    if not is_due and not context.batches:
        return None
    rehearsal = Rehearsal(context)
    if is_due:
        for session in writers:
            session.rehearse(rehearsal)
    return rehearsal


def _plain_writes(sessions: "Collection[Session]", batch: "Batch", rehearsal: "Rehearsal") -> "Iterator[Write]":
    """Yield what sessions of one store have to write, up to the first that has more to write than data."""
    for session in sessions:
        write = session.plain_write(batch, rehearsal)
        if write is not None:
            yield write
        elif session.has_more_to_say:
            return


def _settle_merged(sessions: "Collection[Session]", *, failed: bool) -> None:
    """End what was merged into other sessions, or let it be where these were not written."""
    for session in sessions:
        if failed:
            session.forget_merged()
        else:
            session.end_merged()


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
