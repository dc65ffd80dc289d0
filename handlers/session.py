"""The Session: one live session inside one request, as a mapping from str to values.

    Looking -> Life -> SessionMapping -> Session          found; its lives; keys and values; what you hold
      CarriedSession                                      the client keeps it
      RenewableSession                                    ids of before a renewal are known
        RevocableSession, also a CarriedSession             ended for good by a list in a store
        TrackedSession -> WritingSession -> LimitedSession  a store keeps it: what changed; how it is written; how many
          -> AnsweringSession -> EndingSession              what a response writes of it; what ends, and when
          -> StoredSession                                  how it is found
               ServerOnlySession                              no client holds it

Each of these classes is told in a file of its name.
"""

from typing import TYPE_CHECKING, Any, Final

from ..clock import FOREVER, SKEW_MS, Duration, milliseconds
from ..errors import ConfigError, SessionGone, UsageError
from .commit import Rehearsal
from .context import AWAY, BEGUN, DATA, IDENTITY, LIVE, MERGED, RENEWED, REVOKED, UNTOLD
from .events import emit
from .ids import generated_id, handle_text
from .info import SessionInfo, moment, moment_of_end
from .looking import away
from .mapping import MISSING, SessionMapping
from .metadata import Metadata
from .token import HANDLE, JSON, Identity

if TYPE_CHECKING:
    from ..stores.protocol import Write
    from .loading import Batch
    from .transport import Header

__all__ = ["Session"]

LONGEST_SUBJECT: Final = 1024
"""How many bytes of UTF-8 a subject may have: every store keeps an index of them."""


class Session(SessionMapping):
    """A mapping that lasts from request to request.

    Nothing is read before the first look and nothing is begun before the first write. Values are JSON
    plus bytes, datetime, date, timedelta, Decimal, UUID, set and tuple; anything else is a
    TypeError. A missing key is KeyNotFound, which is a KeyError. Writes raise SessionGone after
    ``revoke()``, ParentInvalid without a parent session, and HeadersSent after the response has begun.

    Where it is kept is its handler's choice: in the client's token, where the last response wins over an
    overlapping one, or in a store, where neither loses what the other wrote.
    """

    __slots__ = ("_merged",)

    _merged: "list[tuple[Session, str | None]]"
    """What was merged into this session and ends with its commit, and its handles; not set before the first."""

    # -- lives -----------------------------------------------------------------------------

    def touch(self, max_age: Duration | None = MISSING) -> None:
        """Prolong the session now, as a look does by itself in its time.

        With ``max_age`` the session gets a life of its own from now, within its absolute timeout: a
        positive one in a cookie that outlives the browser, 0 or None in a browser-session cookie; a
        negative one ends it. The keys' expiries stay. Without a live session there is nothing to prolong, also
        where it ran out during this request.
        """
        config = self.handler.config
        life = None if max_age is MISSING or max_age is None else milliseconds(max_age)
        if life is not None and life < 0:
            self.revoke()
            return
        if not self._is_open() or not self.is_live():
            return
        now = self.handler.now()
        own = self._who().own
        if max_age is not MISSING:
            own = now + life if life else FOREVER
        self._move(own=own, idle=now + config.idle if config.idle else FOREVER)

    def renew(self, grace: Duration = 0) -> None:
        """Give the session a new id; its data, its handle and its children stay.

        In the client's token ``grace`` has no effect, for the old token cannot be refused.
        """
        if milliseconds(grace) < 0:
            raise ConfigError("renew() takes a grace of 0 or more seconds.")
        if self._is_open():
            self._identity = self._who()._replace(id=generated_id(self.handler.config.id_generator))
            self._change(IDENTITY | RENEWED | UNTOLD)

    def revoke(self) -> None:
        """End the session at once, its descendants with it, and delete the client's copy.

        Reads are then empty and writes raise SessionGone. A copy of the token that somebody kept
        stays valid until its deadline: a store, or a list of revocations, is the cure.
        """
        self._look()
        self._still_open()
        if self.state == AWAY:
            raise away()
        if self.state == LIVE:
            self._end()
        elif self.state == MERGED and self._end_merged():
            emit(self.handler, "revoked", None if self._origin is None else handle_text(self._origin[HANDLE]))
        elif self._ended_with_its_parent():
            self._end_orphan()

    def merge(self, other: "Session") -> None:
        """Lay another live session's keys over ours, with their expiries, and revoke it; our deadlines stay.

        Its flash messages come along, behind ours. In this request it has ended at once, its descendants with it;
        for good it ends after our commit, so that a response that fails loses the data of neither. Who revokes it, or
        begins it anew with ``generate()``, ends it before that.
        """
        if other is self or self._descends_from(other):
            raise UsageError("merge() takes another session, and none of our ancestors.")
        if not other.is_live():
            raise SessionGone(f"The session {other.handler.path!r} to merge is not live: see other.is_live() first.")
        data = dict(other._writable())
        deadlines = {} if other._extras is None else dict(other._extras.deadlines)
        self._writable()
        for key, value in data.items():
            self[key] = value
        if deadlines:
            self._more().deadlines.update(deadlines)
            self._ready = False
        for category, message in other.flashes():
            self.flash(message, category)
        self._merged = [*getattr(self, "_merged", ()), (other, other.handle)]
        self._context.merging = True
        self._change(DATA)
        other._become(MERGED)

    def _descends_from(self, other: "Session") -> bool:
        parent = self._parent
        while parent is not None and parent is not other:
            parent = parent._parent
        return parent is not None

    # -- who -------------------------------------------------------------------------------

    def bind(self, subject: str | None) -> None:
        """Tie the session to a user and stamp the time of authentication; None unties it.

        A session that existed before also gets a new id, against fixation (ASVS 7.2.4).
        """
        if subject is None:
            if self._is_open() and self._extras is not None:
                self._extras.subject, self._extras.authenticated = None, 0
                self._change(DATA)
            return
        if type(subject) is not str or not subject:
            raise UsageError("bind() takes the subject as a non-empty str, or None.")
        JSON.admit(subject)
        if len(subject.encode()) > LONGEST_SUBJECT:
            raise UsageError(f"A subject has at most {LONGEST_SUBJECT} bytes: bind a user's id, and keep more as data.")
        self._writable()
        if not self._changes & BEGUN:
            self._renew_at_login()
        extras = self._more()
        extras.subject, extras.authenticated = subject, self.handler.now()
        self._change(DATA)

    def _renew_at_login(self) -> None:
        self.renew()

    def fresh_within(self, seconds: Duration) -> bool:
        """Tell whether ``bind()`` authenticated the user at most that long ago."""
        window = milliseconds(seconds)
        self._look()
        if self._extras is None or not self._extras.authenticated:
            return False
        return -SKEW_MS <= self.handler.now() - self._extras.authenticated <= window

    @property
    def subject(self) -> str | None:
        """The user whom ``bind()`` tied to this session."""
        self._look()
        return None if self._extras is None else self._extras.subject

    @property
    def id(self) -> str | None:
        """The secret that proves ownership, or None while there is no session. Never log it."""
        self._look()
        return self._who().id if self.state == LIVE else None

    @property
    def handle(self) -> str | None:
        """The public name, the same for the session's whole life, or None while there is no session."""
        self._look()
        return handle_text(self._handle()) if self.state == LIVE else None

    @property
    def parent(self) -> "Session | None":
        """The parent's session in this request, or None for a session of a root handler."""
        return self._parent  # type: ignore[return-value]

    @property
    def metadata(self) -> Metadata:
        """The session's start, with the user agent and ip address of this request."""
        self._look()
        start = self._who().created if self.state == LIVE else self.handler.now()
        return Metadata.at(start, self._context.agent, self._context.address)

    def children(self) -> list[SessionInfo]:
        """Return the live sessions that were spawned from this one, newest first.

        Those are the ones in its store, and those that the handlers linked in this request keep elsewhere: in another
        store, or carried by this client. Raises ConfigError where clients carry this session and all children.
        """
        self._look()
        lineage = handle_text(self._lineage()) if self.is_live() else None
        family = None if self._context.family is None else self._context.family()
        ends = 0 if lineage is None else self._ends_at()
        here = self._children_here(lineage, ends)
        apart = None if family is None else family(self.handler, lineage, ends, self._source)
        if here is None and apart is None:
            raise ConfigError(f"children() needs a store: add with_store() to {self.handler.path!r} or to a child.")
        if not apart:
            return here or []
        return sorted([*(here or []), *apart], key=lambda info: info.created, reverse=True)

    def _children_here(self, lineage: str | None, ends: int) -> list[SessionInfo] | None:  # noqa: ARG002 - for stores
        """Return the live children in the session's own store, newest first; None if it has none."""
        return None

    def info(self) -> SessionInfo:
        """Return what others may see of this session: what a store would list, but that it was seen just now.

        Raises the RejectedError that says why, if there is no live session.
        """
        self.require()
        who, parent = self._who(), self.parent
        return SessionInfo(
            handle_text(who.handle),
            self.handler.path,
            self.subject,
            self.metadata,
            moment(who.created),
            moment(self.handler.now()),
            moment_of_end(self._ends_at()),
            None if parent is None else parent.handle,
        )

    # -- flash messages --------------------------------------------------------------------

    def flash(self, message: Any, category: str = "message") -> None:
        """Keep a message until ``flashes()`` takes it, in this request or a later one."""
        if type(category) is not str:
            raise TypeError(f"The category of a flash message must be a str, not {type(category).__name__}.")
        JSON.admit(message)
        self._writable()
        self._more().flashes.append((category, message))
        self._change(DATA)

    def flashes(self) -> list[tuple[str, Any]]:
        """Take every flash message, as a list of (category, message)."""
        self._look()
        if self._extras is None or not self._extras.flashes:
            return []
        self._writable()
        taken, self._extras.flashes = self._extras.flashes, []
        self._change(DATA)
        return taken

    # -- state -----------------------------------------------------------------------------

    @property
    def new(self) -> bool:
        """Whether this session did not come with the request."""
        self._look()
        return self.state != LIVE or bool(self._changes & BEGUN)

    @property
    def modified(self) -> bool:
        """Whether this request changed the data, in place or otherwise."""
        return bool(self._changes & DATA) or (self._exposed is not None and self._changed_in_place(self._exposed))

    @property
    def expires_in(self) -> float | None:
        """The seconds this session has left, or None if it has no deadline or does not exist."""
        if not self.is_live() or self._ends_at() >= FOREVER:
            return None
        return (self._ends_at() - self.handler.now()) / 1000

    def commit(self) -> "list[Header]":
        """Return the response headers that make the changes of this session last, its parents' first.

        The middleware does this by itself, and sees to Vary and Cache-Control too, which are yours to send if you
        commit by hand: a response with these headers must not be cached. Calling it again repeats the headers.
        """
        line, rehearsal = self._from_the_root(), Rehearsal(self._context)
        for session in line:
            if session.may_write:
                session.rehearse(rehearsal)
        for session in line:
            session.end_replaced(failed=False)
        answers = [(session, session.answer(failed=False, rehearsal=rehearsal)) for session in line if session.accessed]
        for session in line:
            answers += [(other, other.answer(failed=False)) for other in session.end_merged()]
        return [(session.handler.transport.response_header, text) for session, text in answers if text is not None]

    # -- inside ----------------------------------------------------------------------------

    def _from_the_root(self) -> "list[Session]":
        """Return the sessions above this one, the root's first, and this one."""
        return [self] if self.parent is None else [*self.parent._from_the_root(), self]

    def plain_write(self, batch: "Batch", rehearsal: Rehearsal) -> "Write | None":  # noqa: ARG002 - for who has a store
        """Return what this batch may write for us together with others, or None."""
        return None

    @property
    def may_write(self) -> bool:
        """Whether this session may have something to write or to tell the client."""
        return self.state == LIVE and (self._changes != 0 or self._exposed is not None)

    @property
    def may_change_unseen(self) -> bool:
        """Whether a value that can change in place was handed out or written."""
        return self._exposed is not None

    def rehearse(self, rehearsal: Rehearsal) -> None:
        """Raise what would keep this session from being written, whatever others do; write nothing."""
        if self._turn != self._context.turn:
            self._judge()
        if self.state == LIVE:
            if getattr(self, "_merged", None) and not self.is_live():
                raise SessionGone(f"The session {self.handler.path!r} has expired meanwhile: nothing was merged.")
            rehearsal.keep(self, self._worked_out())

    def _worked_out(self) -> Any:
        """Return what ``answer`` will write; raise TypeError for what is no data, TooLarge for too much of it."""
        raise NotImplementedError

    @property
    def has_more_to_say(self) -> bool:
        """Whether this session may have to write what is no plain write, and may be refused it."""
        return self.state == LIVE and self._changes != 0

    def attach(self, batch: "Batch | None") -> None:
        """Read from this batch, or alone, where the handler has a store; called once, before the first look."""

    def end_replaced(self, failed: bool) -> None:  # noqa: FBT001 - as answer()
        """End what ``generate()`` replaced and what a renewal outdated: before anything else is written."""

    def end_merged(self) -> "list[Session]":
        """End for good what was merged into this session, once this one is written; return what that was."""
        ended: list[Session] = []
        while self._context.merging and getattr(self, "_merged", None):
            other, handle = self._merged[-1]
            if other.state == MERGED and other._end_merged():
                emit(other.handler, "revoked", handle, "merged")
            ended += [*other.end_merged(), other]
            self._merged.pop()
        return ended

    def forget_merged(self) -> None:
        """Let what was merged into this session be, where this one was not written."""
        self._merged = []

    def _end_merged(self) -> bool:
        """End for good what was merged into another session; return whether it was live until now."""
        self._become(REVOKED)
        return True

    def salvage(self) -> str | None:
        """Return what the client must be told although the commit failed, lest a finished renewal log it out."""
        return None

    def abandon(self) -> None:
        """End what began in this request, for the response is refused and no client will get its token."""

    def finish(self) -> None:
        """Write what changed after the headers went out, where that is possible."""

    def answer(self, failed: bool, rehearsal: Rehearsal | None = None) -> str | None:  # noqa: FBT001 - as above
        """Make the changes last; return the response header's value that replaces or deletes the client's token.

        None lets the client keep what it has. ``failed`` says that the response is a 5xx: then only an ending
        and a renewal last. What was rehearsed is not worked out again.
        """
        raise NotImplementedError

    def _lasting(self, identity: Identity) -> str:
        """Return what makes the client keep a token as long as its session has a life of its own."""
        if identity.own == FOREVER:
            return ""
        now = self.handler.now()
        ends = min(identity.own, identity.absolute)
        if self._parent is not None:
            ends = min(ends, self._parent._ends_without_idle())
        return self.handler.transport.lasting(max(1, -(-(ends - now) // 1000)), now // 1000)
