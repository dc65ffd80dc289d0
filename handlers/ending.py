"""How a stored session ends, and what ends with it: its record, the one that it replaces, or the id that it had.

``revoke()`` acts at once. The id that ``renew()`` gives away ends with the commit, also of a response that failed; what
``generate()`` replaces, and what was merged into another session, only where it did not. Nothing brings a dead session
back: a store refuses whoever still writes to one.
"""

from hmac import compare_digest

from ..clock import Duration, milliseconds
from ..errors import HeadersSent, ParentInvalid, UsageError
from .answering import AnsweringSession
from .context import EXPIRED, LIVE, MERGED, ORPHANED, REVOKED
from .events import asked, emit
from .ids import handle_text
from .outdated import CURRENT, RENEWED_AWAY

__all__ = ["EndingSession"]


class EndingSession(AnsweringSession):
    """A session that is replaced, renewed, revoked and merged away, for good, for its store knows of it."""

    __slots__ = ("_replaced",)

    _replaced: list[str] | None
    """The handles of what ``generate()`` replaced; None before the first."""

    # -- what it replaces ------------------------------------------------------------------

    def regenerate(self) -> None:
        """Begin a new session in place of the one there may be."""
        if self._context.done:
            raise self._too_late()
        super().regenerate()

    def _begin(self) -> None:
        """Begin a session; the record of the one before is revoked at the commit."""
        old = self._record.handle if self._record is not None and not self._outdated else self._lost
        super()._begin()
        if old is not None:
            self._replaced = [*(self._replaced or ()), old]
            self._context.replacing = True

    def end_replaced(self, failed: bool) -> None:  # noqa: FBT001 - as in Session
        """Revoke what ``generate()`` replaced, unless the response failed."""
        if not failed:
            self._revoke_replaced()

    def _revoke_replaced(self) -> None:
        while self._replaced:
            if self._revoked(self._replaced[-1]):
                emit(self.handler, "revoked", self._replaced[-1], "replaced")
            self._replaced.pop()

    # -- its id ----------------------------------------------------------------------------

    def renew(self, grace: Duration = 0) -> None:
        """Give the session a new id; its data, its handle and its children stay.

        The old id is refused from the commit on; for ``grace`` seconds it may still read, never write.
        """
        if self._context.done:
            raise self._too_late()
        if self._is_nobodys():
            raise UsageError("This session was loaded by its handle: only the client's own request can renew its id.")
        super().renew(grace)
        self._grace = milliseconds(grace)

    def _is_nobodys(self) -> bool:
        """Tell whether no client of this request holds the session's id."""
        self._look()
        return self.state == LIVE and not self._is_held_by_the_client()

    def _too_late(self) -> HeadersSent:
        return HeadersSent(f"The response has begun, so no new token of {self.handler.path!r} can reach the client.")

    # -- the session itself ----------------------------------------------------------------

    def revoke(self) -> None:
        """End the session at once, in the store too, and its descendants with it; delete the client's token.

        Reads are then empty and writes raise SessionGone. Raises StoreUnavailable if the store did not confirm it.
        """
        self._look()
        self._check_current()
        if self.state == LIVE:
            self._revoke_replaced()
            if self._record is not None:
                self._revoked(self._record.handle)
            self._end()
        elif self._lost is not None:
            handle = self._lost
            if self._end_merged():
                emit(self.handler, "revoked", handle)
        elif self.state == EXPIRED and not isinstance(self._refusal, ParentInvalid):
            # An earlier try may have ended it and not been confirmed: this one is, or raises as that did. Under a dead
            # parent nobody has compared the id, which may have been renewed away.
            self._revoked(handle_text(self._was))
        elif self._ended_with_its_parent():
            self._end_orphan()

    def _end_orphan(self) -> None:
        claim = self._claim
        record = None if claim is None else asked(self.handler, claim.handle, self._store.load, claim.handle, ())
        if claim is not None and record is not None and record.path == self.handler.path:
            if not compare_digest(record.proof, claim.proof):
                self._outdated = RENEWED_AWAY
                self._check_current()
            self._revoked(record.handle)
        super()._end_orphan()

    def _end_merged(self) -> bool:
        """End what was merged away, or what another request renewed and this one had proved whose it is."""
        self._revoke_replaced()
        was_live = self._lost is not None and self._revoked(self._lost)
        self._become(REVOKED)
        return was_live

    def _become(self, state: int) -> None:
        merged = self._record.handle if state == MERGED and self._record is not None else None
        super()._become(state)
        self._track()
        self._outdated, self._overlaps = CURRENT, False
        if state != ORPHANED:
            self._claim = None
        self._lost = merged
