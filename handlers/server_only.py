"""Server-only sessions: found by an id of the application's own, known to no client, usable outside any request.

The handle is a hash of the handler's path, the parent's handle and the id, so key rotation loses nothing. Each creation
draws a random birth, which is the proof: a late write of an earlier life is refused.
"""

from collections.abc import Callable
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

from ..clock import Duration
from ..errors import (
    Conflict,
    NoSession,
    ParentInvalid,
    RejectedError,
    SessionGone,
    StoreError,
    UsageError,
)
from ..records import Changes, Record
from .commit import Rehearsal
from .context import ABSENT, AWAY, BEGUN, DATA, IDENTITY, LIVE, ORPHANED, TOUCHED, Context
from .events import asked
from .ids import checked_id, handle_bytes, handle_text, named_handle, new_birth
from .info import handle_above, lineage_of
from .loading import Batch
from .outdated import RenewableSession
from .session import Session
from .stored import StoredSession

if TYPE_CHECKING:
    from .handler import Handler

__all__ = ["ServerOnlySession", "generated", "loaded"]

MOST_RACES = 8


class ServerOnlySession(StoredSession):
    """The session of one id. It tells no client anything, and makes no response vary."""

    __slots__ = ("_birth", "_given", "_is_apart")

    _is_apart: bool
    """Whether it was asked for by its id or its handle, so that the end of no request counts the look at it."""

    def attach(self, batch: Batch | None) -> None:
        """Be the session of the handler's fixed id, unless ``name`` says otherwise before the first look."""
        super().attach(batch)
        self._given = self.handler.config.fixed_id or ""
        self._birth = b""
        self._is_apart = False

    def name(self, session_id: str) -> None:
        """Be the session of this id."""
        self._given = session_id

    def _load(self) -> None:
        try:
            handle, now = handle_text(self._derived(self._under())), self.handler.now()
            record = self._fetch(handle, 0, None, now)
            if record is None or record.path != self.handler.path:
                raise NoSession("There is no session of this id.")
            self._adopt(record, now)
        except RejectedError as refusal:
            self._refuse(refusal)
        except StoreError as outage:
            self._meet(outage)

    def _is_of_our_making(self, refusal: RejectedError) -> bool:
        """No client brings anything of such a session, so none is refused anything."""
        return isinstance(refusal, ParentInvalid)

    def _adopt(self, record: Record, now: int) -> None:
        super()._adopt(record, now)
        self._birth = record.proof

    def _under(self) -> bytes:
        """Return the parent's handle, or nothing for a root; raise ParentInvalid if the parent is not live."""
        if self._parent is None:
            return b""
        if not self._parent.is_live():
            if self._parent.state == AWAY:
                self._parent.require()
            raise ParentInvalid("The parent session is not live.")
        return self._parent._lineage()

    def _lineage(self) -> bytes:
        """Return what children know this life by: the handle comes again with the id, and they must not."""
        record = self._record
        return self._handle() if record is None else handle_bytes(lineage_of(record, born=True))

    def _derived(self, under: bytes) -> bytes:
        return named_handle(self.handler.path.encode(), under, self._given.encode())

    def _new_names(self, under: bytes) -> tuple[bytes, str]:
        """Return the handle that follows from the id, and draw a new birth."""
        self._birth = new_birth()
        return self._derived(under), self._given

    def _known_id(self) -> str:
        return self._given

    def _proof(self) -> bytes:
        return self._birth

    def _still_open(self) -> None:
        """Nothing of it travels, so that headers are out does not matter; the write then comes at the end."""
        if self._context.done:
            self._check_not_over()
            self._context.late = True

    def regenerate(self) -> None:
        """Begin a new life of this id in place of the one there may be."""
        RenewableSession.regenerate(self)

    def renew(self, grace: Duration = 0) -> None:  # noqa: ARG002 - as in Session
        """Raise UsageError: the id is the application's own."""
        raise UsageError(f"A session of {self.handler.path!r} keeps the id it was given: revoke it and begin anew.")

    def _renew_at_login(self) -> None:
        """Keep the id at a login: no client can have fixed what it never sees."""

    def abandon(self) -> None:
        """Leave it: no client needs its token."""

    def answer(self, failed: bool, rehearsal: Rehearsal | None = None) -> None:  # noqa: FBT001 - as in Session
        """Write to the store what it lacks; no client is told."""
        if failed and self.state == LIVE and self._record is None:
            # A failed response begins nothing, and ends nothing in its place.
            self._replaced = None
            self._become(ABSENT)
            self._refusal = NoSession("There is no session of this id.")
        super().answer(failed, rehearsal)

    def _end_orphan(self) -> None:
        handle = self._orphan if self.state == ORPHANED else ""
        record = asked(self.handler, handle, self._store.load, handle, ()) if handle else None
        if record is not None and compare_digest(record.proof, self._birth):
            self._revoked(record.handle)
        super()._end_orphan()

    def incr(self, key: str, n: int = 1) -> int:
        """Add ``n`` to the key's integer, in the store and at once; the session is created if it does not exist."""
        self._be_there()
        return super().incr(key, n)

    def update_key(self, key: str, fn: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace the key's value, in the store and at once; the session is created if it does not exist."""
        self._be_there()
        return super().update_key(key, fn, default)

    def _is_nobodys(self) -> bool:
        return False

    def _be_there(self) -> None:
        """Create the session now, so that what follows is atomic among those who begin it at the same time."""
        self.begin()
        super()._be_there()
        if self.state == LIVE and self._record is None:
            self.end_replaced(failed=False)
            self._create()
            self._context.changed = True  # What was rehearsed of it was how it begins.

    def _write_late(self) -> None:
        """Write what changed after the headers, creating the session if need be."""
        self.end_replaced(failed=False)
        if self._record is None:
            self._create()
        else:
            self._update(failed=False, late=True)

    def _create(self, made: Record | None = None) -> None:
        """Insert the record, or, if another request was faster, write into what that one created."""
        for _ in range(MOST_RACES):
            record = made or self._new_record()
            try:
                self._insert(record)
            except Conflict:
                made = None
                if self._join():
                    return
            else:
                self._settle(record)
                self._keep_to_the_limit()
                self._tell()
                return
        raise Conflict(f"The session {self._given!r} of {self.handler.path!r} comes and goes: try again.")

    def _join(self) -> bool:
        """Write what we have into the session that exists by now; return False if it is gone again."""
        store, now, handle = self._store, self.handler.now(), handle_text(self._who().handle)
        sets, deletes = self._edits(handle)
        extras, changes = self._extras, Changes(sets=sets, deletes=deletes)
        record = store.load(handle)
        try:
            if record is not None and any(changes):
                store.apply(handle, record.proof, changes)
                record = store.load(handle)
        except SessionGone:
            return False
        if record is None:
            return False
        self._become(LIVE)
        self._changes &= ~BEGUN
        self._adopt(record, now)
        if extras is not None and extras.subject:
            bound = self._more()
            bound.subject, bound.authenticated = extras.subject, extras.authenticated
            self._change(DATA)
            self._update(failed=False)
        return True


def loaded(handler: "Handler", session_id: str, parent: "Session | str | None") -> ServerOnlySession:
    """Return the live session of an id, outside any request; raise NoSession or ParentInvalid if there is none."""
    session = _by_id(handler, session_id, parent)
    session.require()
    _count(session)
    return session


def generated(handler: "Handler", session_id: str, parent: "Session | str | None") -> ServerOnlySession:
    """Return the live session of an id, outside any request; create it in the store if it does not exist."""
    session = _by_id(handler, session_id, parent)
    if session.is_live():
        _count(session)
        return session
    if session.state != ABSENT:
        session.require()
    if session.parent is not None:
        _count(session.parent)
    above = session.parent
    if isinstance(above, StoredSession) and above.state == LIVE and above._record is None:
        raise UsageError("The parent session is not in its store yet: commit() it first, or begin the child later.")
    session.begin()
    session.answer(failed=False)
    return session


def _by_id(handler: "Handler", session_id: str, parent: "Session | str | None") -> ServerOnlySession:
    checked_id(session_id)
    fixed = handler.config.fixed_id
    if fixed not in {None, session_id}:
        raise UsageError(
            f"Every session of {handler.path!r} has the id {fixed!r}, by fixed_id(): ask for that one, or take "
            "fixed_id() away to have sessions of other ids."
        )
    session = ServerOnlySession()
    _place(session, handler, _parent(handler, parent))
    session.name(session_id)
    return session


def _place(session: Session, handler: "Handler", above: Session | None) -> None:
    """Put a session outside any request, or into the request of its parent."""
    context = Context.apart() if above is None else above._context
    session.enter(handler, context, "", above)
    session.attach(None)
    if isinstance(session, ServerOnlySession):
        session._is_apart = True


def _count(session: Session) -> None:
    """Count this look as activity where that is due, its ancestors' first; those of a request its response counts."""
    if session.parent is not None:
        _count(session.parent)
    if not isinstance(session, StoredSession) or session.state != LIVE or session._outdated:
        return
    is_apart = session._is_apart if isinstance(session, ServerOnlySession) else not session._is_held_by_the_client()
    if is_apart and session._record is not None:
        _touch(session, session._record)


def _touch(session: StoredSession, record: Record) -> None:
    """Move the idle deadline in the store, and nothing else: whatever was written waits for its ``commit()``."""
    who, lacks = session._who(), session._changes
    if session.handler.idles:
        session._touch_if_due()
    idle = session._who().idle
    if idle == record.idle:
        return
    touch = Changes(idle=idle)
    if session._is_touched(record, touch):
        session._take_note(touch)
        session._changes = lacks & ~(IDENTITY | TOUCHED) if lacks & TOUCHED else lacks
    else:
        session._identity, session._ends, session._changes = who, who.ends, lacks


def _parent(handler: "Handler", parent: "Session | str | None") -> Session | None:
    """Return the parent's session, loading it if only its handle was given; raise UsageError for what does not fit."""
    if (parent is None) != (handler.parent is None):
        raise UsageError(
            f"{handler.path!r} is a root, so its sessions have no parent."
            if handler.parent is None
            else f"{handler.path!r} is a child: pass parent=, a Session of {handler.parent.path!r} or its handle."
        )
    if handler.parent is None or parent is None:
        return None
    if isinstance(parent, Session):
        if parent.handler != handler.parent:
            raise UsageError(
                f"The parent must be a session of {handler.parent.path!r}, not of {parent.handler.path!r}."
            )
        return parent
    try:
        return by_handle(handler.parent, parent)
    except RejectedError as error:
        raise ParentInvalid("There is no live parent session of this handle.") from error


def by_handle(handler: "Handler", handle: str) -> Session:
    """Return the session of a handle with all its ancestors; it is live if they all are.

    For code on the server, which has the store in its hands anyway. Raises UsageError if clients keep one of them.
    """
    if handler.config.store is None:
        raise UsageError(
            f"Sessions of {handler.path!r} are kept by the clients: pass the parent's Session, not a handle."
        )
    handle_bytes(handle)
    record = handler.config.store.load(handle)
    above = None
    if handler.parent is not None and record is not None:
        above = by_handle(handler.parent, handle_above(record))
    session = handler.session_class()
    _place(session, handler, above)
    session.stand_for(record)  # type: ignore[attr-defined]
    return session
