"""Sessions that a store remembers. The client holds a token that names the record and proves that it may.

How one is found is told here: the token's claim is judged, the record comes from a cache or the store, and is judged
before its fields are read. What becomes of it then is told in the classes beneath.
"""

from hmac import compare_digest

from ..clock import FOREVER
from ..errors import BadSession, Expired, RejectedError, StoreError, StoreUnavailable
from ..records import Record
from .caching import Wanted, at_hand, loaded_one, reloaded, stale
from .claim import Claim
from .context import EXPIRED, LIVE
from .ending import EndingSession
from .events import asked, emit
from .ids import handle_bytes
from .info import PARENT, SessionInfo, children_in
from .loading import Batch
from .metadata import Metadata
from .outdated import CURRENT, OVERLAP_MS, RENEWED_AWAY, STALE
from .token import Identity

__all__ = ["StoredSession"]


class StoredSession(EndingSession):
    """A session in a store, where two overlapping requests that write different keys both survive."""

    __slots__ = ()

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
        self._replaced = None

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
            record = self._fetch(claim.handle, claim.version, batch, now)
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

    def _fetch(self, handle: str, version: int, batch: Batch | None, now: int) -> Record | None:
        """Return the record through what stands in front of the store, or, if that is down, what a cache still has."""
        handler = self.handler
        if handler.cache is not None and batch is None:
            record = at_hand(handler, handle, version, now)
            if record is not None:
                return record
        wanted = Wanted(handler, handle, version)
        try:
            return loaded_one(self._store, wanted) if batch is None else batch.record(wanted)
        except StoreUnavailable as outage:
            record = stale(wanted)
            if record is None:
                raise
            emit(handler, "outage", handle, type(outage).__name__)
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

    # -- who it is -------------------------------------------------------------------------

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
