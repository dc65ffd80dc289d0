"""How a session is found, judged and loaded in one request.

A session is judged after its parent, and again whenever the parent has changed since.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from ..clock import FOREVER, SKEW_MS
from ..errors import (
    BadCookie,
    BadSession,
    Expired,
    NoCookie,
    NoSession,
    ParentInvalid,
    RejectedError,
    StoreError,
    StoreUnavailable,
)
from ..records import drop_expired
from .context import (
    ABSENT,
    AWAY,
    BEGUN,
    EXPIRED,
    IDENTITY,
    KEY,
    LIVE,
    MERGED,
    ORPHANED,
    REVOKED,
    TOUCHED,
    UNSEEN,
    UNSURE,
    UNTOLD,
    Context,
)
from .events import emit
from .ids import handle_text
from .token import HANDLE, SEPARATE, Carried, Extras, Identity

if TYPE_CHECKING:
    from .handler import Handler

__all__ = ["Looking", "away"]


class Looking:
    """A session as it is found and judged.

    One is made for every session of every request: ``Session()``, then ``enter()``. Slots that are all set
    at once are what the interpreter reads and writes fastest, and an ordinary method does it in half
    the time of an ``__init__``, which is called by way of C.
    """

    __slots__ = (
        "_changes", "_context", "_data", "_ends", "_exposed", "_extras", "_identity", "_origin", "_orphan", "_parent",
        "_plain", "_ready", "_refusal", "_rest", "_source", "_turn", "_was", "handler", "state",
    )  # fmt: skip

    _data: dict[str, Any]
    _refusal: RejectedError
    """Why there is no session; set while ABSENT or EXPIRED."""

    _orphan: str
    """The handle that it had before its parent ended; set while ORPHANED."""

    _was: bytes
    """What its children knew it by; set once what came with the request has ended."""

    _ends: int
    """When it ends, its ancestors aside; this and the next are set while LIVE."""

    _plain: bool
    """Whether every value is plain JSON, as far as nothing was changed in place."""

    _rest: int
    """Where in _origin the data begins, behind identity and id."""

    def enter(self, handler: "Handler", context: Context, source: str, parent: "Looking | None") -> None:
        """Begin unseen: the source is the text of the request that may hold our token."""
        self.handler = handler
        self._context = context
        self._source = source
        self._parent = parent
        self.state = UNSEEN
        self._changes = 0  # What the client's token lacks: DATA, IDENTITY ...
        self._turn = -1  # The context's turn when this session was last judged.
        self._ready = False  # Whether the session is live and _data may be used without _look().
        # The values that can change in place and were handed out, as bytes; None for those that were written.
        self._exposed: dict[str, bytes | None] | None = None
        self._extras: Extras | None = None
        self._origin: bytes | None = None  # The content of the token that came with the request.
        self._identity: Identity | None = None  # Once somebody asked or changed it; else it is still in _origin.

    # -- looking ---------------------------------------------------------------------------

    @property
    def accessed(self) -> bool:
        """Whether anyone looked at this session in this request."""
        return self.state != UNSEEN

    @property
    def has_ended(self) -> bool:
        """Whether the session that came with the request is dead by now, so that nothing under it can live."""
        if self.state in UNSURE:
            return False
        if self._origin is None:
            return self.state == EXPIRED
        return self.state != LIVE or bool(self._changes & BEGUN)

    @property
    def was_ended(self) -> bool:
        """Whether this request ended or replaced the session that it brought, or one above it."""
        replaced = self.state == LIVE and self._origin is not None and bool(self._changes & BEGUN)
        return replaced or self.state in {REVOKED, MERGED, ORPHANED}

    def is_live(self) -> bool:
        """Look, and return whether the session is live at this moment."""
        self._look()
        return self.state == LIVE and self.handler.now() < self._ends_at()

    def require(self) -> None:
        """Look, and raise the RejectedError that says why there is no live session."""
        if self.is_live():
            return
        if self.state == LIVE:
            raise Expired("The session has expired: begin a new one.")
        if self.state == AWAY:
            raise away()
        if self.state in {ABSENT, EXPIRED}:
            raise _again(self._refusal)
        if self.state == ORPHANED:
            raise ParentInvalid("The parent session ended in this request.")
        raise BadSession("The session was revoked, in this request or by another one.")

    def _look(self) -> dict[str, Any]:
        """Judge anew if any session of this request has begun or ended since, drop expired keys, return the data."""
        if self._turn != self._context.turn:
            self._judge()
        if self._extras is not None and self._extras.deadlines:
            drop_expired(self._data, self._extras.deadlines, self.handler.now())
        return self._data

    def _judge(self) -> None:
        """Load at the first look; later, die with the parent session that this one was spawned from."""
        parent = self._parent
        if parent is not None:
            parent._look()
        if self.state == UNSEEN:
            self._load()
        elif parent is not None and self.state == LIVE:
            mine = self._who().parent
            if parent.state != LIVE or parent._lineage() != mine:
                orphan = handle_text(self._handle())
                self._become(ORPHANED)
                self._orphan = orphan
                self._changes |= UNTOLD
        self._turn = self._context.turn

    def _ends_at(self) -> int:
        """Return the deadline of a live session: its own, or an ancestor's if that is earlier."""
        return self._ends if self._parent is None else min(self._ends, self._parent._ends_at())

    def _ends_without_idle(self) -> int:
        """Return how long the cookie may stay in the browser: the idle timeout moves, so it does not count."""
        own = min(self._who().absolute, self._who().own)
        return own if self._parent is None else min(own, self._parent._ends_without_idle())

    def _who(self) -> Identity:
        """Return the identity of a live session, read from its token when it is first asked for."""
        if self._identity is None:
            self._identity = Identity.read(self._origin or b"")
        return self._identity

    def _move(self, *, idle: int, own: int | None = None) -> None:
        """Change the identity's deadlines, so that the client needs a new token."""
        who = self._who()
        self._identity = who._replace(idle=idle, own=who.own if own is None else own)
        self._ends = self._identity.ends
        self._change(IDENTITY)

    def _handle(self) -> bytes:
        """Return the handle of a live session, without reading the rest of its identity."""
        if self._identity is None and self._origin is not None:
            return self._origin[HANDLE]
        return self._who().handle

    def _be_there(self) -> None:
        """Begin for good, where another request could begin the same session at the same time."""

    def _lineage(self) -> bytes:
        """Return what children know a live session by: its handle, unless that one can come again in another life."""
        return self._handle()

    # -- loading ---------------------------------------------------------------------------

    def _load(self) -> None:
        """Find the request's token, verify it, then parse it, then judge it: in this order (ASVS 9.1.1)."""
        handler, context = self.handler, self._context
        if not context.vary and not context.done:
            context.vary = handler.vary
        elif context.vary != handler.vary:
            self._note_the_look(context, handler.vary)
        try:
            # 1. Find every candidate, and let at most one through.
            found = handler.find_tokens(self._source)
            if len(found) != 1:
                found = self._the_one_of(found)
            token = found[0]
            # 2. Verify, and only then 3. parse, unless this token was before; 4. judge, 5. take the data.
            self._take(handler.codec.open(token))
            if not token.startswith(handler.codec.current):
                self._change(KEY)
        except RejectedError as refusal:
            self._refuse(refusal)
        except StoreError as outage:
            self._meet(outage)

    def _note_the_look(self, context: Context, vary: str) -> None:
        """Let the response vary on what this session travels in too, if its headers are not out."""
        if context.done:
            emit(self.handler, "late", reason="vary")
        elif vary not in context.vary.split(", "):
            context.vary += f", {vary}"

    def _change(self, what: int) -> None:
        """Note what the client's token lacks."""
        if what & IDENTITY:
            self._changes &= ~TOUCHED
        self._changes |= what
        self._context.changed = True

    def _the_one_of(self, tokens: list[str]) -> list[str]:
        """Return the one token of several that verifies; raise NoCookie for none and BadCookie for more."""
        if not tokens:
            raise NoCookie("The request carries no token of this session.")
        verified = []
        if not self.handler.transport.strict:
            for token in dict.fromkeys(tokens):
                with suppress(BadCookie):
                    self.handler.codec.open(token)
                    verified.append(token)
        if len(verified) == 1:
            return verified
        emit(self.handler, "duplicate")
        raise BadCookie("The request carries several tokens of this session.")

    def _take(self, carried: Carried) -> None:
        """Take a verified token's session over if it is live; raise the RejectedError that fits if it is not."""
        handler = self.handler
        now, ends, parent = handler.now(), carried.ends, self._parent
        if not carried.created - SKEW_MS <= now < ends:
            self._refuse_time(carried, now)
        if carried.values is not None:
            self._data, self._plain = carried.values.copy(), True
        else:
            self._read_data(carried)
        if parent is None:
            self._ready = self._extras is None or not self._extras.deadlines
        elif not (parent.state == LIVE and now < parent._ends and parent._lineage() == carried.under):
            self._check_parent(parent, carried.under, carried.handle, now)
        self._ends = ends
        self._origin = carried.content
        self._rest = carried.rest
        self.state = LIVE
        if carried.form & SEPARATE or handler.idles:
            self._follow_the_settings()

    def _read_data(self, carried: Carried) -> None:
        """Read the data, which is this request's own."""
        try:
            self._extras, self._data, self._plain = carried.read(self.handler.serializer.unpack)
        except Exception as error:  # A serializer of the user's may raise anything.
            raise BadCookie("The token's data cannot be read back.") from error

    def _follow_the_settings(self) -> None:
        """Have this request counted as activity, or drop the idle deadline that the handler no longer has."""
        if self.handler.idles:
            self._context.changed = True
        elif self._who().idle != FOREVER:
            self._move(idle=FOREVER)
            self._changes |= TOUCHED

    def _refuse_time(self, carried: Carried, now: int) -> NoReturn:
        if now < carried.ends:
            raise BadCookie("The token comes from the future.")
        self.state = EXPIRED
        self._context.ended = self._context.changed = True
        self._was = carried.handle
        emit(self.handler, "expired", handle_text(carried.handle))
        raise Expired("The session has expired: begin a new one.")

    def _check_parent(self, parent: "Looking", under: bytes, handle: bytes, now: int) -> None:
        """Raise ParentInvalid unless the parent's session is live and is the one that ours was spawned from.

        If that one has ended, so has ours, and the client's token can be forgotten. It was looked at just before.
        """
        if self._parent_lives(parent, now) and parent._lineage() == under:
            return
        if parent.has_ended and parent._was == under:
            self.state = EXPIRED
            self._was = handle
            self._context.changed = True
        raise ParentInvalid("The parent session is not live, or is another one.")

    def _check_parent_lives(self, parent: "Looking", handle: bytes, now: int) -> None:
        """Raise ParentInvalid unless the parent's session is live, without asking whether it is the right one.

        So another store need not be asked about a child of what is dead: what came together belongs together.
        """
        if not self._parent_lives(parent, now):
            self._check_parent(parent, parent._was if parent.has_ended else b"", handle, now)

    def _parent_lives(self, parent: "Looking", now: int) -> bool:
        """Tell whether the parent's session is live; raise StoreUnavailable if nobody can say."""
        if parent.state == AWAY:
            raise away()
        return parent.state == LIVE and now < parent._ends

    def _refuse(self, refusal: RejectedError) -> None:
        """Stay absent, and keep the reason."""
        if self.state == UNSEEN:
            self.state = ABSENT
        self._refusal = _again(refusal)
        self._data = {}
        self._extras = None
        if not isinstance(refusal, NoCookie | NoSession) and not self._is_of_our_making(refusal):
            emit(self.handler, "refused", reason=type(refusal).__name__)

    def _is_of_our_making(self, refusal: RejectedError) -> bool:
        """Tell whether there is no session because this request ended its parent, not for what the client brought."""
        parent = self._parent
        return isinstance(refusal, ParentInvalid) and parent is not None and parent.was_ended

    def _meet(self, outage: StoreError) -> None:
        """Answer an outage as the handler was told to: raise, or be empty and read-only for this request.

        A damaged store is no outage that passes: it always raises.
        """
        emit(self.handler, "outage", reason=type(outage).__name__)
        if self.handler.config.outage != "anonymous" or not isinstance(outage, StoreUnavailable):
            raise outage
        self.state = AWAY
        self._data, self._extras = {}, None

    def _become(self, state: int) -> None:
        raise NotImplementedError


def away() -> StoreUnavailable:
    """Return what a session raises whose store does not answer."""
    return StoreUnavailable("The store of this session does not answer, so it can be neither read nor written now.")


def _again(refusal: RejectedError) -> RejectedError:
    """Return a fresh copy of an error, for one that was raised holds our frames, and those hold the session."""
    return type(refusal)(*refusal.args)
