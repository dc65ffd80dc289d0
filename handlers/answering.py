"""A stored session as it answers when the response begins: its store gets what it lacks, its client a token.

What a request changed was kept apart from what it read, and goes to the store as one ``apply``, so of two requests that
overlap neither loses what the other wrote. Before that it is asked what it will write, for among several sessions none
writes where one cannot. What changes while the body streams is written when the request ends.
"""

from contextlib import suppress
from typing import Any, Final

from ..clock import FOREVER
from ..errors import Conflict, HeadersSent, SessionGone, StoreError
from ..records import Changes, Record, changed_fields, check_size
from ..stores.protocol import Write
from .claim import Claim
from .commit import Rehearsal
from .context import BEGUN, DATA, IDENTITY, KEY, LIVE, RENEWED, TOUCHED, UNSEEN
from .events import asked, emit
from .ids import handle_text
from .limited import LimitedSession
from .loading import Batch

__all__ = ["AnsweringSession"]

MOST_HANDLES: Final = 3


class AnsweringSession(LimitedSession):
    """A session whose changes go to its store together, and whose client is told what it must know of them."""

    __slots__ = ("_claim", "_seen_version")

    _seen_version: int
    """The version of which the client's token tells."""

    _claim: Claim | None
    """What the client's token says."""

    def answer(self, failed: bool, rehearsal: Rehearsal | None = None) -> str | None:  # noqa: FBT001 - as in Session
        """Write to the store what it lacks; return the header's value that replaces or deletes the client's token."""
        if self._turn != self._context.turn and self.state != UNSEEN:
            self._judge()
        if self.state != LIVE or (failed and self._record is None):
            return self._farewell(failed=failed)
        if self._outdated:  # The new token may be under way to the client, or the store does not answer.
            self._check_unchanged(failed=failed)
            return None
        record, handler = self._record, self.handler
        made = None if rehearsal is None else self._rehearsed(rehearsal)
        if record is None:
            self._create(made)
            self._answered = self._header_value()
        elif self._changes == DATA and not failed and self._is_plain(record):
            # What nearly every write is: a few keys and nothing else.
            if self._written:
                changes = self._written_together(record) or made or Changes(*self._edits(record.handle))
                self._apply(changes)
                self._note_fields(changes)
                self._written.clear()
        else:
            self._update(made, failed=failed)
            if failed:
                self._drop_edits()
        if handler.versioned and self._version > self._seen_version and self._is_held_by_the_client():
            # On another process, an older copy in front of the store must not hide this write from the one who made it.
            self._answered = self._header_value(failed=failed)
            self._seen_version = self._version
        return self._answered

    def _rehearsed(self, rehearsal: Rehearsal) -> Any:
        """Return what was rehearsed, unless others took so long that the request must count as activity anew."""
        if self.handler.idles and (self._record is None or self._written_together(self._record) is None):
            self._touch_if_due()
        return rehearsal.made(self)

    def _is_plain(self, record: Record) -> bool:
        """Tell whether the session has nothing but keys that last, none of which could change in place."""
        return self._exposed is None and self._extras is None and not (record.labels or self.handler.idles)

    def _written_together(self, record: Record) -> Changes | None:
        """Return what the batch has written for us. It is not worked out again: a nonce or a flash would be another."""
        return None if self._batch is None else self._batch.made(record.handle)

    def _create(self, made: Record | None = None) -> None:
        """Insert the record; a handle that exists already is another session's, so a new one is drawn."""
        for attempt in range(1, MOST_HANDLES + 1):
            record = made or self._new_record()
            try:
                self._insert(record)
            except Conflict:
                if attempt == MOST_HANDLES:
                    raise
                made = None
                handle, session_id = self._new_names(self._who().parent)
                self._identity = self._who()._replace(handle=handle, id=session_id)
                self._context.turn += 1  # Children that began under the old handle are not this session's.
                self._turn = self._context.turn
            else:
                self._settle(record)
                self._keep_to_the_limit()
                self._tell()
                return

    def _insert(self, record: Record) -> None:
        try:
            self._store.create(record)
        except StoreError as error:
            emit(self.handler, "outage", record.handle, type(error).__name__)
            self._give_up_the_place(record)
            raise
        self._version = 1

    def _update(self, made: Changes | None = None, *, failed: bool, late: bool = False) -> None:
        """Apply what this request changed."""
        record = self._record
        if record is None:
            return
        changes = self._renewal_only() if failed else self._written_together(record) or made or self._pending(late=late)
        if changes is None and self._changes & KEY and not failed and self._answered is None:
            changes = Changes(seen=self.handler.now())  # Only a token that is still the newest is signed again.
        if changes is not None:
            if changes.is_touch and (self._changes & TOUCHED or not self._changes & IDENTITY):
                if not self._is_touched(record, changes):
                    self._identity, self._ends = None, record.ends
                    self._changes &= ~(IDENTITY | KEY | TOUCHED)
                    return
                self._take_note(changes)
            else:
                self._apply_within_the_limit(changes)
            self._note_fields(changes)
            self._settle(self._record or record)
            if changes.proof is not None:
                self._tell()
        if self._changes & (KEY | IDENTITY) and self._needs_token(changes, failed=failed):
            self._answered = self._header_value(failed=failed)

    def _is_touched(self, record: Record, changes: Changes) -> bool:
        """Count this request as activity; if that fails, it costs nobody the answer to a read."""
        try:
            (self._batch or self._store).apply(record.handle, record.proof, changes)
        except (SessionGone, StoreError) as error:
            emit(self.handler, "untouched", record.handle, type(error).__name__)
            return False
        return True

    def _needs_token(self, changes: Changes | None, *, failed: bool) -> bool:
        """Tell whether the client must be told: of a new id, a new key, a new life, or to keep the token longer."""
        if not self._is_held_by_the_client():
            return False
        if changes is not None and changes.proof is not None:
            return True
        if failed:
            return False
        if self._changes & KEY:
            return True
        return changes is not None and (
            changes.own is not None or (changes.idle is not None and self._who().own != FOREVER)
        )

    def _is_held_by_the_client(self) -> bool:
        """Tell whether the client of this request holds the session; if not, it was loaded by its handle."""
        return self._claim is not None or bool(self._changes & BEGUN)

    # -- among several sessions ------------------------------------------------------------

    def _worked_out(self) -> Record | Changes | None:
        if self._outdated:
            self._check_unchanged(failed=False)
            return None
        largest = self._store.largest
        if self._record is None:
            begun = self._new_record()
            check_size(begun.fields, largest)
            return begun
        changes = self._pending()
        if changes is not None and len(self._record.fields) + _most_bytes(changes) > largest:
            changed_fields(self._known().fields, changes, self.handler.now(), largest)
        if changes is not None and changes.grace:
            return None  # It is counted from when it is written, and others may take long.
        return changes

    def plain_write(self, batch: Batch, rehearsal: Rehearsal) -> Write | None:
        """Return what ``answer`` will apply, where that is neither a new id nor a new label: these are made alone."""
        record = self._record
        if self._batch is not batch or record is None or self.state != LIVE or self._outdated:
            return None
        if self._turn != self._context.turn or self._new_proof() is not None:
            return None
        changes: Changes | None = rehearsal.made(self)
        if changes is None:
            changes = self._pending()
            rehearsal.keep(self, changes)
        return None if changes is None or changes.labels else (record.handle, record.proof, changes)

    # -- where the response is refused -----------------------------------------------------

    def salvage(self) -> str | None:
        """Return the new token of a renewal that the store has made already."""
        return self._answered if self.state == LIVE and self._changes & RENEWED else None

    def abandon(self) -> None:
        """End the record of a session that began in this request, for no client will get its token."""
        if self.state == LIVE and self._changes & BEGUN and self._record is not None:
            with suppress(StoreError):
                self._revoked(self._record.handle)

    def _revoked(self, handle: str) -> bool:
        return asked(self.handler, handle, self._store.revoke, handle)

    # -- after the headers -----------------------------------------------------------------

    def _still_open(self) -> None:
        """Let a session that the client knows be written to after the headers; its token need not change."""
        if self._context.done:
            if self.state != LIVE or self._record is None:
                super()._still_open()
            self._check_not_over()
            self._context.late = True

    def _check_not_over(self) -> None:
        if self._context.over:
            raise HeadersSent("The request is over, so nothing more is written in it: write while it lasts.")

    def finish(self) -> None:
        """Write what changed after the headers went out, and end what was merged; what then goes wrong is an event."""
        if self.state != LIVE or self._outdated:
            return
        handle = handle_text(self._handle())
        try:
            self._write_late()
            self.end_merged()
        except Exception as error:  # noqa: BLE001 - the response is out, and other sessions wait for their turn
            emit(self.handler, "late", handle, type(error).__name__)

    def _write_late(self) -> None:
        if self._record is not None:
            self._update(failed=False, late=True)


def _most_bytes(changes: Changes) -> int:
    """Return more bytes than the changes can add to packed fields: names are escaped there, and bytes are base64."""
    return sum(6 * len(field) + 2 * len(content) + 64 for field, (content, _) in changes.sets.items())
