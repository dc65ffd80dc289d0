"""A stored session whose user may have a limited number of them, exactly so however many log in at once.

The session is bound in the store first and counted then, in the order in which the store's engine bound them all. If
its user has the full number already, nothing of the login lasts: a session that began in this request is ended, and one
that was there before belongs to nobody and has what it had.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from ..errors import LimitReached, StoreError
from ..records import Changes, Record
from .claim import written
from .context import REVOKED
from .events import emit
from .info import SUBJECT
from .subjects import has_room
from .writing import WritingSession

__all__ = ["LimitedSession"]


@contextmanager
def _undone(undo: Callable[[], object]) -> Iterator[None]:
    """Undo a login that is refused. If that fails twice it stands: StoreUnavailable, so that one asks anew."""
    try:
        yield
    except LimitReached:
        with suppress(StoreError):
            undo()
            raise
        undo()
        raise
    except StoreError:
        with suppress(StoreError):
            undo()
        raise


class LimitedSession(WritingSession):
    """A session that is bound only as far as ``with_max_sessions()`` lets its user have one more."""

    __slots__ = ("_answered",)

    _answered: str | None
    """The response header's value that gives the client its new token, once the store has what it says."""

    def _keep_to_the_limit(self) -> None:
        """End what was just begun if its user has the full number of sessions, and raise LimitReached."""
        record: Record = self._record  # type: ignore[assignment]
        if not self._is_limited(record.label):
            return
        try:
            with _undone(lambda: self._store.revoke(record.handle)):
                self._check_limit(record)
        except (LimitReached, StoreError):
            self._become(REVOKED)
            raise

    def _give_up_the_place(self, record: Record) -> None:
        """End what may have been written although the answer was lost: nobody has its cookie to log it out."""
        if self._is_limited(record.label):
            with suppress(StoreError):
                self._store.revoke(record.handle)

    def _apply_within_the_limit(self, changes: Changes) -> None:
        """Apply; where that binds the session to a user, see then whether it may stay, and else undo all of it.

        Nobody can write in between what is undone: the binding gives the session a new id, which no client has yet. A
        session that keeps its id, as no client holds it, is bound first, and gets the rest if it may stay.
        """
        if not self._is_limited(changes.labels):
            self._apply(changes)
            self._take_note(changes)
        elif changes.proof is not None:
            self._bind_or_undo(changes)
        else:
            self._bind_or_undo(Changes(labels=changes.labels, authenticated=changes.authenticated, seen=changes.seen))
            rest = changes._replace(labels={}, authenticated=None)
            if any(rest._replace(seen=None)):
                self._apply(rest)
                self._take_note(rest)

    def _bind_or_undo(self, changes: Changes) -> None:
        undoing = self._undoing(self._known(), changes)
        self._apply(changes)
        if changes.proof is not None:
            self._answered = self._header_value(failed=True)  # The new id holds, whatever becomes of the rest.
        self._take_note(changes)
        self._tell()

        def undo() -> None:
            self._apply(undoing)
            self._take_note(undoing)
            self._drop_edits()

        with _undone(undo):
            self._check_limit(self._known())

    def _undoing(self, record: Record, changes: Changes) -> Changes:
        """Return what makes the record again what it was before the changes, but for its id and that it is nobody's."""
        before, touched = record.contents(self.handler.now()), [*changes.sets, *changes.deletes]
        return Changes(
            sets={field: before[field] for field in touched if field in before},
            deletes=[field for field in touched if field not in before],
            own=None if changes.own is None else record.own,
            idle=None if changes.idle is None else record.idle,
            authenticated=0,
            labels={SUBJECT: None},
        )

    def _is_limited(self, labels: Mapping[str, str | None]) -> bool:
        return self.handler.config.limit is not None and labels.get(SUBJECT) is not None

    def _check_limit(self, record: Record) -> None:
        limit = self.handler.config.limit
        if limit is None or has_room(self.handler, self._store, limit, record.handle, record.label[SUBJECT]):
            return
        emit(self.handler, "refused", record.handle, LimitReached.__name__)
        raise LimitReached(
            f"The user has {limit.most} live sessions of {self.handler.path!r} already, and may have no more: let one "
            "be ended first, for example on a page that lists handler.sessions()."
        )

    def _header_value(self, *, failed: bool = False) -> str:
        """Return the response header's value that gives the client its token; after a failure, for the life it had."""
        who = self._who()
        if failed and self._record is not None:
            who = who._replace(own=self._record.own)
        return self.handler.header_value(written(who.absolute, self._version, who.handle, who.id)) + self._lasting(who)
