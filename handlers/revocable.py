"""Sessions that the client carries, with a list in a store of those that are dead before their deadline.

The list holds a small record for every session that was revoked and every id that was renewed away, until the
token's own deadline; a look costs one lookup for the whole chain. All data still lies in the token.
"""

from collections.abc import Iterator
from hmac import compare_digest
from typing import Final

from ..clock import FOREVER, SKEW_MS, Duration, milliseconds
from ..errors import BadSession, Conflict, ParentInvalid, SessionGone, StoreError
from ..records import PROOF_BYTES, Record
from .caching import Wanted
from .carried import CarriedSession, Sealed
from .commit import Rehearsal
from .context import BEGUN, EXPIRED, LIVE, MERGED, RENEWED, UNSEEN
from .events import asked, emit
from .ids import REVOKED_SESSION, handle_text, named_handle, proof_of, revoked_mark
from .loading import Batch
from .outdated import CURRENT, OVERLAP_MS, RENEWED_AWAY, RenewableSession
from .token import Carried, Identity

__all__ = ["RevocableSession", "marks_of"]

_REVOKED: Final = REVOKED_SESSION
_RENEWED: Final = b"renewed id"
NOBODY: Final = Identity(0, 0, 0, 0, b"", b"", "")
_NOBODYS: Final = bytes(PROOF_BYTES)
"""The proof of a mark: nobody writes to one. That of a renewal tells by its own which renewal it was."""


def marks_of(carried: Carried) -> Iterator[tuple[str, int]]:
    """Yield the handles, and the least versions, of the two records that would speak against this token."""
    who = Identity.read(carried.content)
    yield _mark(_REVOKED, who), 0
    yield _mark(_RENEWED, who), 0


def _mark(what: bytes, who: Identity) -> str:
    """Return the handle of a record that nobody can guess without the session's own handle or id."""
    if what is _REVOKED:
        return revoked_mark(handle_text(who.handle))
    return handle_text(named_handle(what, who.handle, who.id.encode()))


class RevocableSession(RenewableSession, CarriedSession):
    """A session in the client's token that ``revoke()`` and ``renew()`` can refuse all the same."""

    __slots__ = ("_batch", "_came", "_grace", "_is_dead", "_is_listed", "_may_be_listed", "_named", "_replaced")

    _came: Identity
    """Who the session was when it came with the request; NOBODY if none came."""

    def attach(self, batch: Batch | None) -> None:
        """Look the list up in this batch; called once, before the first look."""
        self._batch = batch or Batch(self.handler.store, [])  # type: ignore[arg-type]
        self._grace = 0
        self._came = NOBODY
        self._is_listed = False  # Whether the id that the client came with is on the list,
        self._may_be_listed = False  # or was sent there, and the answer was lost.
        self._named = b""  # What names our renewal there, once it was sent.
        self._is_dead = False  # Whether the list says that the session was revoked.
        self._outdated = CURRENT
        self._overlaps = False
        self._replaced: list[Identity] = []  # Who generate() replaced.

    def _take(self, carried: Carried) -> None:
        try:
            super()._take(carried)
        except ParentInvalid:
            self._came = Identity.read(carried.content)
            raise
        try:
            self._came = self._who()
            self._check_list()
        except BaseException:
            self._untake()
            raise

    def _check_list(self) -> None:
        """Raise BadSession for what is on the list."""
        revoked, renewed = self._batch.records(self._marks())
        if revoked is not None:
            self._is_dead = True
            raise BadSession("The session was revoked.")
        if renewed is not None:
            if not renewed.created - SKEW_MS <= self.handler.now() < renewed.grace:
                # The new token may be under way to the client: nothing is forgotten, and for a while nothing is
                # begun that would take the new token's place.
                self._overlaps = self.handler.now() < renewed.grace + OVERLAP_MS
                raise BadSession("The session has another id by now.")
            self._outdated, self._ready = RENEWED_AWAY, False

    def _marks(self) -> list[Wanted]:
        """Return what would stand on the list if the session had been revoked, or its id renewed away."""
        return [Wanted(self.handler, _mark(what, self._came)) for what in (_REVOKED, _RENEWED)]

    def _untake(self) -> None:
        """Be as unseen as before, or dead for good if the list says so."""
        self._data, self._ready = {}, False
        self._origin = self._identity = self._extras = self._exposed = None
        self._changes = 0
        self.state = UNSEEN
        if self._is_dead:
            self.state = EXPIRED
            self._was = self._came.handle
            self._context.ended = self._context.changed = True

    def _worked_out(self) -> Sealed | None:
        if not self._outdated:
            return super()._worked_out()
        self._check_unchanged(failed=False)
        return None

    def answer(self, failed: bool, rehearsal: Rehearsal | None = None) -> str | None:  # noqa: FBT001 - as in Session
        """Return what the client is told: of an old id in its grace nothing, for a new token may be under way."""
        if self._outdated and self.state == LIVE:
            self._check_unchanged(failed=failed)
            return None
        return super().answer(failed, rehearsal)

    def _begin(self) -> None:
        replaced = self._came if self._still_stands() and not self._outdated else None
        super()._begin()
        self._outdated, self._overlaps = CURRENT, False
        if replaced is not None:
            self._replaced.append(replaced)
            self._context.replacing = True

    def renew(self, grace: Duration = 0) -> None:
        """Give the session a new id; the old one is refused from the commit on.

        For ``grace`` seconds it may still read, never write.
        """
        super().renew(grace)
        self._grace = milliseconds(grace)
        if self._changes & RENEWED and self._origin is not None:
            self._context.replacing = True

    def revoke(self) -> None:
        """End the session at once, its descendants with it, wherever a copy of its token may be.

        Raises StoreUnavailable if the store did not confirm it; then nothing was ended.
        """
        self._look()
        self._still_open()
        self._check_current()
        if self.state == LIVE:
            self._list_replaced()
            if self._still_stands():
                self._list(_REVOKED, self._came)
            self._end()
        elif self.state == MERGED and self._end_merged():
            emit(self.handler, "revoked", handle_text(self._came.handle) or None)
        elif self._ended_with_its_parent():
            self._end_orphan()

    def _end_orphan(self) -> None:
        if self._came is not NOBODY:
            revoked, renewed = self._batch.records(self._marks())
            if renewed is not None:
                self._outdated = RENEWED_AWAY
                self._check_current()
            if revoked is None:
                self._list(_REVOKED, self._came)
        super()._end_orphan()

    def _end_merged(self) -> bool:
        self._list_replaced()
        if self._still_stands():
            self._list(_REVOKED, self._came)
        return super()._end_merged()

    def _still_stands(self) -> bool:
        """Tell whether what came with the request was neither replaced nor ended for good."""
        return self.state in {LIVE, MERGED} and self._origin is not None and not self._changes & BEGUN

    def end_replaced(self, failed: bool) -> None:  # noqa: FBT001 - as in Session
        """List what ``generate()`` replaced, unless the response failed, and the id that a renewal outdated."""
        if not failed:
            self._list_replaced()
        renewed = self._changes & RENEWED and not self._changes & BEGUN
        if self.state == LIVE and renewed and self._origin is not None and not self._outdated:
            grace = self.handler.now() + self._grace
            if not self._is_listed:
                self._list_renewed(grace)

    def _list_renewed(self, grace: int) -> None:
        try:
            is_ours = self._list(_RENEWED, self._came, grace) or (self._may_be_listed and self._has_our_mark())
        except StoreError:
            # Only its answer may have been lost. While nobody can say, the new token is good whatever became of the
            # old one, so the client gets it.
            self._may_be_listed = True
            found = self._has_our_mark()
            self._may_be_listed = bool(found)
            if found is None:
                raise
            is_ours = found
        if not is_ours:
            self._may_be_listed = False
            emit(self.handler, "conflict", handle_text(self._came.handle))
            raise SessionGone("Another request renewed this session meanwhile: begin anew.")
        self._is_listed = True

    def _has_our_mark(self) -> bool | None:
        """Tell whether it was this renewal that outdated the id; None if none has."""
        mark = self._batch.store.load(_mark(_RENEWED, self._came), ())
        return None if mark is None else compare_digest(mark.proof, self._new_proof())

    def _new_proof(self) -> bytes:
        """Return what names this request's renewal, however often the session gets another id in it."""
        if not self._named:
            who = self._who()
            self._named = proof_of(who.handle, who.id.encode())
        return self._named

    def salvage(self) -> str | None:
        """Return the new token of a renewal that may be on the list: it is valid, whatever became of the old one."""
        return self.answer(failed=True) if self._is_listed or self._may_be_listed else None

    def _list_replaced(self) -> None:
        while self._replaced:
            self._list(_REVOKED, self._replaced[-1])
            self._replaced.pop()

    def _list(self, what: bytes, who: Identity, grace: int = 0) -> bool:
        """Put a mark on the list; return False if it was there already."""
        now = self.handler.now()
        proof = self._new_proof() if what is _RENEWED else _NOBODYS
        mark = Record(
            _mark(what, who), self.handler.path, now, who.absolute, FOREVER, FOREVER, proof, now, grace=grace,
        )  # fmt: skip
        try:
            asked(self.handler, handle_text(who.handle), self._batch.store.create, mark)
        except Conflict:
            return False
        emit(self.handler, "listed", handle_text(who.handle), what.decode())
        return True
