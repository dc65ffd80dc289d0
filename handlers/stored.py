"""Sessions that a store remembers. The client holds a token that names the record and proves that it may.

What a request changed is kept apart from what it read, and goes to the store as one ``apply`` when the response
begins, so of two requests that overlap neither loses what the other wrote. ``revoke``, ``incr`` and ``update_key``
act at once. A store that refuses a write, because the session was revoked or renewed meanwhile, raises
SessionGone: nothing brings a dead session back.
"""

from contextlib import suppress
from hmac import compare_digest
from typing import Final

from ..clock import FOREVER, Duration, milliseconds
from ..errors import (
    BadSession,
    Conflict,
    Expired,
    HeadersSent,
    ParentInvalid,
    RejectedError,
    SessionGone,
    StoreError,
    StoreUnavailable,
    UsageError,
)
from ..records import Changes, Record, changed_fields, check_size
from ..stores.protocol import Write
from .caching import Wanted, at_hand, loaded_one, reloaded, stale
from .claim import Claim
from .context import BEGUN, DATA, EXPIRED, IDENTITY, KEY, LIVE, MERGED, ORPHANED, RENEWED, REVOKED, TOUCHED, UNSEEN
from .events import asked, emit
from .ids import handle_bytes, handle_text
from .info import PARENT, SessionInfo, children_in
from .limited import LimitedSession
from .loading import Batch
from .metadata import Metadata
from .outdated import CURRENT, OVERLAP_MS, RENEWED_AWAY, STALE
from .rehearsal import Rehearsal
from .token import Identity

__all__ = ["StoredSession"]

MOST_HANDLES: Final = 3


class StoredSession(LimitedSession):
    """A session in a store, where two overlapping requests that write different keys both survive."""

    __slots__ = ("_batch", "_claim", "_replaced", "_seen_version")

    _seen_version: int
    """The version of which the client's token tells."""

    _claim: Claim | None
    """What the client's token says."""

    def attach(self, batch: Batch | None) -> None:
        """Read from this batch, or alone; called once, before the first look.

        It begins what the classes beneath keep, too: a call of each would cost every request half a microsecond.
        """
        self._track()
        self._batch = batch
        self._claim = None
        self._lost = None
        self._answered = None
        self._outdated = CURRENT
        self._overlaps = False
        self._seen_version = 0
        self._replaced: list[str] | None = None  # The handles of what generate() replaced.

    # -- loading ---------------------------------------------------------------------------

    def _take(self, claim: Claim) -> None:  # type: ignore[override]
        """Take a verified token's session over if the store says it is live; raise what fits if it is not."""
        handler, batch = self.handler, self._batch
        now = handler.now()
        self._claim, self._seen_version = claim, claim.version
        if now >= claim.absolute:
            self._see_dead(claim.handle)
            raise self._dead(claim.handle, Expired("The session has expired: begin a new one."))
        parent = self._parent
        if parent is not None and parent.handler.store is not handler.store:
            self._check_parent_lives(parent, claim.raw_handle, now)
        if batch is None and handler.cache is None and handler.config.outage == "raise":
            record = self._store.load(claim.handle)
            if record is not None and record.version < claim.version:
                record = reloaded(self._store, record)
        else:
            record = self._fetch(claim, now)
        if record is None:
            raise self._dead(claim.handle, BadSession("The store no longer has this session: begin a new one."))
        if not compare_digest(record.proof, claim.proof):
            self._outdated = self._outdated or RENEWED_AWAY
        if record.path != handler.path or (self._outdated and not record.admits(claim.proof, now)):
            # It was renewed, and the new token may be under way to the client: nothing is forgotten, and for a
            # while nothing is begun that would take the new token's place. Under a dead parent nothing could be begun.
            self._outdated = CURRENT
            self._overlaps = now < record.seen + OVERLAP_MS and (parent is None or self._parent_lives(parent, now))
            raise BadSession("The session has another id by now.")
        self._adopt(record, now)

    def _fetch(self, claim: Claim, now: int) -> Record | None:
        """Return the record through what stands in front of the store, or, if that is down, what a cache still has."""
        handler = self.handler
        if handler.cache is not None and self._batch is None:
            record = at_hand(handler, claim.handle, claim.version, now)
            if record is not None:
                return record
        wanted = Wanted(handler, claim.handle, claim.version)
        try:
            return loaded_one(self._store, wanted) if self._batch is None else self._batch.record(wanted)
        except StoreUnavailable as outage:
            record = stale(wanted)
            if record is None:
                raise
            emit(self.handler, "outage", claim.handle, type(outage).__name__)
            self._outdated = STALE
            return record

    def _see_dead(self, handle: str) -> None:
        """Have the store see that a session has expired, and so forget it, lest a clock set back should revive it."""
        try:
            if self._batch is None:
                self._store.load(handle, ())
            else:
                self._batch.record(Wanted(self.handler, handle))
        except StoreError as error:
            emit(self.handler, "outage", handle, type(error).__name__)

    def _dead(self, handle: str, refusal: Expired | BadSession) -> Expired | BadSession:
        """Note that the client's token can be forgotten, and return the reason."""
        self.state = EXPIRED
        self._context.ended = self._context.changed = True
        self._was = handle_bytes(handle)
        emit(self.handler, "expired" if isinstance(refusal, Expired) else "absent", handle)
        return refusal

    def _adopt(self, record: Record, now: int) -> None:
        """Be the session of a live record."""
        labels, parent = record.labels, self._parent
        if parent is not None:
            handle = handle_bytes(record.handle) if self._claim is None else self._claim.raw_handle
            self._check_parent(parent, handle_bytes(record.label.get(PARENT, "")), handle, now)
        try:
            data = self.handler.contents.read(record, now)
        except Exception as error:  # A serializer of the user's may raise anything.
            emit(self.handler, "corrupt", record.handle, type(error).__name__)
            raise BadSession(
                "The session's data cannot be read back: it was written with another serializer or encryption, or with "
                "a key that is no longer in the ring."
            ) from error
        self._ready = parent is None and not self._outdated
        if labels or data.__class__ is not dict:
            data = self._adopt_extras(record, data)
        self._data = data
        self._plain = False
        self._record, self._version = record, record.version
        self._ends = record.absolute if record.idle == record.own == FOREVER else record.ends
        self._origin = record.fields
        self.state = LIVE
        if self.handler.idles or record.idle != FOREVER:
            self._follow_the_settings()

    def stand_for(self, record: Record | None) -> None:
        """Be the session of a record that code on the server asked for by its handle, where no id proves anything."""
        try:
            if record is None or record.path != self.handler.path:
                raise BadSession("There is no such session.")
            self._adopt(record, self.handler.now())
        except RejectedError as refusal:
            self._refuse(refusal)
        self._turn = self._context.turn

    def _who(self) -> Identity:
        """Return the identity of a live session, from its record."""
        if self._identity is None and self._record is not None:
            record, under = self._record, self._record.label.get(PARENT)
            self._identity = Identity(
                record.created, record.absolute, record.own, record.idle, self._handle(),
                handle_bytes(under) if under else b"", self._known_id(),
            )  # fmt: skip
        return super()._who()

    def _known_id(self) -> str:
        return "" if self._claim is None else self._claim.id

    def _handle(self) -> bytes:
        if self._identity is not None:
            return self._identity.handle
        if self._claim is not None:
            return self._claim.raw_handle
        return handle_bytes(self._record.handle) if self._record is not None else b""

    # -- beginning and ending --------------------------------------------------------------

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

    def _become(self, state: int) -> None:
        merged = self._record.handle if state == MERGED and self._record is not None else None
        super()._become(state)
        self._track()
        self._outdated, self._overlaps = CURRENT, False
        if state != ORPHANED:
            self._claim = None
        self._lost = merged

    def end_replaced(self, failed: bool) -> None:  # noqa: FBT001 - as in Session
        """Revoke what ``generate()`` replaced, unless the response failed."""
        if not failed:
            self._revoke_replaced()

    def _revoke_replaced(self) -> None:
        while self._replaced:
            if self._revoked(self._replaced[-1]):
                emit(self.handler, "revoked", self._replaced[-1], "replaced")
            self._replaced.pop()

    def _revoked(self, handle: str) -> bool:
        return asked(self.handler, handle, self._store.revoke, handle)

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

    # -- the commit ------------------------------------------------------------------------

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
        made = None if rehearsal is None else rehearsal.made(self)
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

    def _written_together(self, record: Record) -> Changes | None:
        """Return what the batch has written for us. It is not worked out again: a nonce or a flash would be another."""
        return None if self._batch is None else self._batch.made(record.handle)

    def _is_plain(self, record: Record) -> bool:
        """Tell whether the session has nothing but keys that last, none of which could change in place."""
        return self._exposed is None and self._extras is None and not (record.labels or self.handler.idles)

    def salvage(self) -> str | None:
        """Return the new token of a renewal that the store has made already."""
        return self._answered if self.state == LIVE and self._changes & RENEWED else None

    def abandon(self) -> None:
        """End the record of a session that began in this request, for no client will get its token."""
        if self.state == LIVE and self._changes & BEGUN and self._record is not None:
            with suppress(StoreError):
                self._revoked(self._record.handle)

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

    def _is_held_by_the_client(self) -> bool:
        """Tell whether the client of this request holds the session; if not, it was loaded by its handle."""
        return self._claim is not None or bool(self._changes & BEGUN)

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

    # -- looking around --------------------------------------------------------------------

    @property
    def metadata(self) -> Metadata:
        """The session's start, with the user agent and ip address of the request that began it."""
        self._look()
        if self._record is None:
            return super().metadata
        return Metadata.at(self._record.created, self._record.agent, self._record.address)

    def _children_here(self, lineage: str | None, ends: int) -> list[SessionInfo]:
        """Return the live children in this store, newest first."""
        if lineage is None or self._record is None:
            return []
        return asked(self.handler, None, children_in, self._store, lineage, ends)


def _most_bytes(changes: Changes) -> int:
    """Return more bytes than the changes can add to packed fields: names are escaped there, and bytes are base64."""
    return sum(6 * len(field) + 2 * len(content) + 64 for field, (content, _) in changes.sets.items())
