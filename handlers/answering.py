"""What a session tells the client when the response begins: a new token, to forget the old one, or nothing.

    the session is now               after a 2xx, 3xx, 4xx        after a 5xx
    LIVE as it came                  nothing                      nothing
    LIVE, changed or touched         a new token                  what came under its new id if renewed, else nothing
    LIVE, begun in this request      a new token                  nothing
      after a revocation or expiry   a new token                  forget, if it had a token
      after its parent ended         a new token                  as its parent, if it had a token
    REVOKED                          forget, if it had a token    forget, if it had a token
    ORPHANED                         forget, if it had a token    as its parent, if it had a token
    EXPIRED                          forget                       forget; a child as its parent
    ABSENT, UNSEEN                   nothing                      nothing

A token that did not verify is never forgotten: a node with another key ring would log people out.
"""

from typing import Final

from ..clock import FOREVER
from ..errors import CookieTooLarge
from .cookie import LARGEST_SET_COOKIE
from .life import BEGUN, DATA, ENDED, EXPIRED, IDENTITY, LIVE, RENEWED, REVOKED, UNSEEN, Life
from .token import SEPARATE, Identity, write_rest

__all__ = ["Answering"]

LONGEST_TOUCH_INTERVAL_MS: Final = 60_000


class Answering(Life):
    """A session's life, and the answer to the client that comes of it."""

    __slots__ = ()

    def answer(self, failed: bool) -> "str | None":  # noqa: FBT001 - positional, for speed
        """Return the response header's value that replaces or deletes the client's token; None if it may keep it.

        ``failed`` says that the response is a 5xx: then only an ending and a renewal last.
        """
        if self._turn != self._context.turn and self.state != UNSEEN:
            self._judge()
        if self.state != LIVE or (failed and self._changes & BEGUN):
            return self.handler.transport.erasure if self._is_to_be_forgotten(failed=failed) else None
        if failed:
            return self._renewed_only()
        if self.handler.idles:
            self._touch_if_due()
        changes, origin = self._changes, self._origin
        if self._exposed is not None and self._changed_in_place(self._exposed):
            changes |= DATA
            self._plain = False
        if not changes:
            return None
        head = self._who().write() if changes & IDENTITY or origin is None else origin[: self._rest]
        if not changes & DATA and origin is not None:
            return self._written(head + origin[self._rest :])
        rest = self.handler.fields.pack(self._data, self._plain)
        if self._extras is not None:
            rest = write_rest(self._extras, rest)
        return self._written(head + rest)

    def _is_to_be_forgotten(self, *, failed: bool) -> bool:
        """Tell whether the client holds a token that verified and whose session is dead for good."""
        if self._changes & ENDED:
            return True
        if self._origin is None and self.state != EXPIRED:
            return False
        if failed and isinstance(self._parent, Answering) and self.state != REVOKED:
            # After a 5xx a parent that was only replaced is not: then its children are not dead either.
            return self._parent._is_to_be_forgotten(failed=True)
        return self.state != LIVE

    def _renewed_only(self) -> str | None:
        """Return the session as it came, but for its new id, if it has one."""
        if not self._changes & RENEWED or self._origin is None:
            return None
        came = Identity.read(self._origin)
        return self._written(came._replace(id=self._who().id).write() + self._origin[self._rest :])

    def _changed_in_place(self, exposed: dict[str, bytes | None]) -> bool:
        """Tell whether a list, dict, set or tuple that was handed out or written differs from what we have as bytes."""
        dumps = self.handler.fields.dumps
        return any(
            before is None or dumps(self._data[key]) != before for key, before in exposed.items() if key in self._data
        )

    def _touch_if_due(self) -> None:
        """Count this request as activity, if the last one that counted is long enough ago."""
        idle, now = self.handler.config.idle, self.handler.now()
        interval = min(LONGEST_TOUCH_INTERVAL_MS, idle // 10)
        ends = self._who().idle
        # Due after the interval; at once if the timeout is new or was shortened; never for what is over.
        due = ends - idle + interval <= now or ends > now + idle
        if due and now < self._ends_at():
            self._move(idle=now + idle)

    def _written(self, content: bytes) -> str:
        """Return the response header's value, if browsers would keep it."""
        transport = self.handler.transport
        value = f"{transport.before}{self.handler.tokens.seal(content)}{transport.after}"
        if content[0] & SEPARATE:
            value += self._lasting(Identity.read(content))
        if len(value) > LARGEST_SET_COOKIE:
            raise CookieTooLarge(self._weighed(len(value)))
        return value

    def _lasting(self, identity: Identity) -> str:
        """Return what makes the client keep a token as long as its session has a life of its own."""
        if identity.own == FOREVER:
            return ""
        now = self.handler.now()
        ends = min(identity.own, identity.absolute)
        if self._parent is not None:
            ends = min(ends, self._parent._ends_without_idle())
        return self.handler.transport.lasting(max(1, -(-(ends - now) // 1000)), now // 1000)

    def _weighed(self, size: int) -> str:
        dumps = self.handler.fields.dumps
        parts = [(len(dumps(value)), repr(key)) for key, value in self._data.items()]
        if self._extras is not None:
            parts += [(len(self._extras.write()), "subject, flash messages and expiries")]
        heaviest = ", ".join(f"{name} ({weight} bytes)" for weight, name in sorted(parts, reverse=True)[:3])
        return (
            f"The cookie of {self.handler.path!r} would have {size} octets and may have {LARGEST_SET_COOKIE}. "
            f"Heaviest keys: {heaviest or 'none'}. Keep less in it, or keep the session in a store."
        )
