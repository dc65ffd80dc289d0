"""Sessions that the client carries, whole, in its token; and what it is told when the response begins.

    the session is now               after a 2xx, 3xx, 4xx        after a 5xx
    LIVE as it came                  nothing                      nothing
    LIVE, changed or touched         a new token                  what came under its new id if renewed, else nothing
    LIVE, begun in this request      a new token                  nothing
      after a revocation or expiry   a new token                  forget, if it had a token
      after its parent ended         a new token                  as its parent, if it had a token
    REVOKED                          forget, if it had a token    forget, if it had a token
    MERGED                           forget, if it had a token    nothing
    ORPHANED                         forget, if it had a token    as its parent, if it had a token
    EXPIRED                          forget                       forget; a child as its parent
    ABSENT, UNSEEN                   nothing                      nothing

A token that did not verify is never forgotten: a node with another key ring would log people out.
"""

from typing import TypeAlias

from ..errors import CookieTooLarge
from .commit import Rehearsal
from .context import BEGUN, DATA, IDENTITY, LIVE, RENEWED, UNSEEN
from .cookie import LARGEST_SET_COOKIE
from .events import emit
from .session import Session
from .token import SEPARATE, Identity, write_rest

__all__ = ["CarriedSession", "Sealed"]

Sealed: TypeAlias = tuple[bytes, str]
"""What a token says, and the response header's value that has it, without how long the client keeps it."""


class CarriedSession(Session):
    """A session in the client's token, so the last response wins over an overlapping one."""

    __slots__ = ()

    def answer(self, failed: bool, rehearsal: Rehearsal | None = None) -> str | None:  # noqa: FBT001 - as in Session
        """Return the response header's value that replaces or deletes the client's token; None if it may keep it.

        ``failed`` says that the response is a 5xx: then only an ending and a renewal last.
        """
        if self._turn != self._context.turn and self.state != UNSEEN:
            self._judge()
        if self.state != LIVE or (failed and self._changes & BEGUN):
            return self._farewell(failed=failed)
        if failed:
            return self._renewed_only()
        sealed: Sealed | None = None
        if rehearsal is not None:
            if self.handler.idles:  # Others may have taken long: what is touched is made anew.
                self._touch_if_due()
            sealed = rehearsal.made(self)
        if sealed is not None:
            return self._told(sealed)
        handler, origin = self.handler, self._origin
        if (
            self._changes == DATA
            and origin is not None
            and self._extras is None
            and self._exposed is None
            and not (handler.idles or origin[0] & SEPARATE)
        ):
            # What nearly every write is: data in place of data, by keys that last, in a session whose end stays.
            value = handler.header_value(origin[: self._rest] + handler.serializer.pack(self._data, self._plain))
            if len(value) > LARGEST_SET_COOKIE:
                raise self._too_large(len(value))
            return value
        sealed = self._replacement()
        return None if sealed is None else self._told(sealed)

    def _worked_out(self) -> Sealed | None:
        sealed = self._replacement()
        if sealed is not None:
            self._header(*sealed)
        return sealed

    def _replacement(self) -> Sealed | None:
        """Return the client's next token; None if it may keep the one it has."""
        handler, origin = self.handler, self._origin
        if handler.idles:
            self._touch_if_due()
        changes = self._changes
        if self._exposed is not None and self._changed_in_place(self._exposed):
            changes |= DATA
            self._plain = False
        if not changes:
            return None
        head = self._who().write() if changes & IDENTITY or origin is None else origin[: self._rest]
        if not changes & DATA and origin is not None:
            return self._sealed(head + origin[self._rest :])
        rest = handler.serializer.pack(self._data, self._plain)
        if self._extras is not None:
            rest = write_rest(self._extras, rest)
        return self._sealed(head + rest)

    def _sealed(self, content: bytes) -> Sealed:
        return content, self.handler.header_value(content)

    def regenerate(self) -> None:
        """Begin a new session in place of the one there may be."""
        replaced = self.handle
        super().regenerate()
        if replaced is not None:
            emit(self.handler, "revoked", replaced, "replaced")

    def _renewed_only(self) -> str | None:
        """Return the session as it came, but for its new id, if it has one."""
        if not self._changes & RENEWED or self._origin is None:
            return None
        came = Identity.read(self._origin)
        return self._told(self._sealed(came._replace(id=self._who().id).write() + self._origin[self._rest :]))

    def _told(self, sealed: Sealed) -> str:
        """Return the response header's value, and tell listeners of what it makes last."""
        value = self._header(*sealed)
        self._tell()
        return value

    def _header(self, content: bytes, value: str) -> str:
        """Return the response header's value, with how long the client keeps it, if browsers would keep it at all."""
        if content[0] & SEPARATE:
            value += self._lasting(Identity.read(content))
        if len(value) > LARGEST_SET_COOKIE:
            raise self._too_large(len(value))
        return value

    def _too_large(self, size: int) -> CookieTooLarge:
        """Return the error that names what weighs most."""
        dumps = self.handler.serializer.dumps
        parts = [(len(dumps(value)), repr(key)) for key, value in self._data.items()]
        if self._extras is not None:
            parts += [(len(self._extras.write()), "subject, flash messages and expiries")]
        heaviest = ", ".join(f"{name} ({weight} bytes)" for weight, name in sorted(parts, reverse=True)[:3])
        return CookieTooLarge(
            f"The token of {self.handler.path!r} would have {size} octets, attributes included, and may have "
            f"{LARGEST_SET_COOKIE}. Heaviest keys: {heaviest or 'none'}. Keep less in it, or keep it in a store."
        )
