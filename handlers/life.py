"""The life of one session in one request: how it is begun, counted as activity, and ended."""

from typing import Any, Final

from ..clock import FOREVER
from ..errors import HeadersSent, ParentInvalid, SessionGone
from .context import (
    ABSENT,
    AWAY,
    BEGUN,
    DATA,
    ENDED,
    EXPIRED,
    IDENTITY,
    LIVE,
    LOST,
    MERGED,
    ORPHAN,
    ORPHANED,
    REVOKED,
    TOUCHED,
    UNSURE,
    UNTOLD,
)  # fmt: skip
from .events import emit
from .ids import generated_id, handle_text, new_handle
from .looking import Looking, away
from .token import Identity

__all__ = ["Life"]

LONGEST_TOUCH_INTERVAL_MS: Final = 60_000


class Life(Looking):
    """A session as it is begun, prolonged and ended."""

    __slots__ = ()

    _parent: "Life | None"

    # -- beginning -------------------------------------------------------------------------

    def wake(self) -> None:
        """Begin the session of an eager handler if there is none and there can be one."""
        self._look()
        if self.state in {ABSENT, EXPIRED} and self._parent_is_live():
            self._begin()

    def begin(self) -> None:
        """Begin the session if there is none, as a first write does, and raise what that would raise."""
        self._look()
        if self.state != LIVE:
            self._writable()

    def regenerate(self) -> None:
        """Begin a new session in place of the one there may be."""
        self._look()
        self._still_open()
        if self.state == AWAY:
            raise away()
        self._begin()

    def _still_open(self) -> None:
        if self._context.done:
            raise HeadersSent(
                f"The response has begun, so the token of {self.handler.path!r} can no longer reach the client: "
                "write to the session before the first byte, or keep it in a store."
            )

    def _writable(self) -> dict[str, Any]:
        """Return the data of a session that may be written to, beginning one if there is none."""
        self._look()
        self._still_open()
        self._not_gone()
        if self.state != LIVE:
            self._begin()
        return self._data

    def _not_gone(self) -> None:
        """Raise SessionGone if the session was ended in this request and no new one can take its place."""
        if self.state == AWAY:
            raise away()
        if self.state == LOST:
            raise SessionGone("Another request ended or renewed this session: let the client send this one again.")
        if self.state in {REVOKED, MERGED} or (self.state == ORPHANED and not self._parent_is_live()):
            raise SessionGone(
                f"The session {self.handler.path!r} was ended in this request: begin a new one with generate()."
            )

    def _parent_is_live(self) -> bool:
        return self._parent is None or self._parent.is_live()

    def _begin(self) -> None:
        """Begin a session: new handle, new id, no data, deadlines from now."""
        parent, config = self._parent, self.handler.config
        now = self.handler.now()
        absolute = now + config.absolute if config.absolute else FOREVER
        under = b""
        if parent is not None:
            if not parent.is_live():
                if parent.state == AWAY:
                    raise away()
                raise ParentInvalid(
                    f"{self.handler.path!r} cannot begin without its parent session: write to the parent first, "
                    "or call its handler's generate()."
                )
            parent._be_there()
            under = parent._lineage()
            absolute = min(absolute, parent._who().absolute)
        own = now + config.max_age if config.max_age else FOREVER
        idle = now + config.idle if config.idle else FOREVER
        handle, session_id = self._new_names(under)
        before = self._what_ended()
        self._become(LIVE)
        self._identity = Identity(now, absolute, own, idle, handle, under, session_id)
        self._ends = self._identity.ends
        self._change(BEGUN | IDENTITY | DATA | UNTOLD | before)

    def _what_ended(self) -> int:
        """Return, as a bit of what the client's token lacks, what became of the session that came with the request."""
        if self.state == EXPIRED and self._is_of_our_making(self._refusal):
            return self._changes & ENDED or ORPHAN
        if self.state == EXPIRED or (self.state == REVOKED and self._origin is not None):
            return ENDED
        return self._changes & (ENDED | ORPHAN)

    def _new_names(self, under: bytes) -> tuple[bytes, str]:  # noqa: ARG002 - where the handle is given, it depends on it
        """Return the handle and the id of a session that begins under this parent's handle."""
        return new_handle(), generated_id(self.handler.config.id_generator)

    # -- counting as activity --------------------------------------------------------------

    def _touch_if_due(self) -> None:
        """Count this request as activity, if the last one that counted is long enough ago."""
        idle, now = self.handler.config.idle, self.handler.now()
        interval = min(LONGEST_TOUCH_INTERVAL_MS, idle // 10)
        ends = self._who().idle
        # Due after the interval; at once if the timeout is new or was shortened by more than clocks may differ; never
        # for what is over.
        due = ends - idle + interval <= now or self._is_shortened(now, idle, interval)
        if due and now < self._ends_at():
            is_asked = self._changes & IDENTITY and not self._changes & TOUCHED
            self._move(idle=now + idle)
            self._changes |= 0 if is_asked else TOUCHED

    def _is_shortened(self, now: int, idle: int, interval: int) -> bool:
        """Tell whether the timeout was longer at the last touch, by more than clocks may differ."""
        return self._who().idle > now + idle + interval

    # -- telling ---------------------------------------------------------------------------

    def _tell(self) -> None:
        """Tell listeners, once and when it lasts, that the session began, has another id, or ended with its parent."""
        if not self._changes & UNTOLD:
            return
        self._changes &= ~UNTOLD
        if self.state == ORPHANED:
            emit(self.handler, "revoked", self._orphan, "its parent ended")
        else:
            emit(self.handler, "created" if self._changes & BEGUN else "renewed", handle_text(self._handle()))

    # -- ending ----------------------------------------------------------------------------

    def _end(self) -> None:
        """Be revoked. Listeners hear of it only if they had been told that the session began."""
        handle, known = handle_text(self._handle()), not (self._changes & BEGUN and self._changes & UNTOLD)
        self._become(REVOKED)
        if known:
            emit(self.handler, "revoked", handle)

    def _ended_with_its_parent(self) -> bool:
        """Tell whether a parent that was replaced took the session along, which a failed response would bring back."""
        if self._parent is None or self._parent.state == REVOKED:
            return False
        return self.state == ORPHANED or (self.state == EXPIRED and self._is_of_our_making(self._refusal))

    def _end_orphan(self) -> None:
        """Be revoked, where the parent that was replaced took the session along."""
        handle = self._orphan if self.state == ORPHANED else handle_text(self._was)
        self._changes |= ENDED
        self._become(REVOKED)
        emit(self.handler, "revoked", handle)

    def _become(self, state: int) -> None:
        """Begin or end a life: nothing of the former one is left."""
        if self.state == LIVE:
            self._was = self._lineage()
        self.state = state
        self._context.turn += 1
        self._turn = self._context.turn
        self._changes &= ENDED | ORPHAN
        self._data = {}
        self._plain = True
        self._extras = self._exposed = self._identity = None
        self._ready = state == LIVE and self._parent is None
        if self._origin is not None or self._changes:
            self._context.ended = self._context.changed = True

    def _farewell(self, *, failed: bool) -> str | None:
        """Return the header's value that has the client forget its token, or None if it is to keep it or has none."""
        if not self._is_to_be_forgotten(failed=failed):
            return None
        self._tell()
        return self.handler.transport.erasure

    def _is_to_be_forgotten(self, *, failed: bool) -> bool:
        """Tell whether the client holds a token that verified and whose session is dead for good."""
        if self._is_unsure():
            return False
        if self._changes & ENDED:
            return True
        if self._changes & ORPHAN and self._parent is not None:
            return not failed or self._parent._is_to_be_forgotten(failed=True)
        has_token = self._origin is not None or self.state == EXPIRED
        if not has_token or (failed and self.state == MERGED):  # What it was to go into was not written.
            return False
        if failed and self._parent is not None and self.state != REVOKED:
            # After a 5xx a parent that was only replaced is not: then its children are not dead either.
            return self._parent._is_to_be_forgotten(failed=True)
        return self.state != LIVE

    def _is_unsure(self) -> bool:
        """Tell whether this session, or one that it depends on, may well live on for another request."""
        return self.state in UNSURE or (
            self.state == ORPHANED and self._parent is not None and self._parent._is_unsure()
        )
