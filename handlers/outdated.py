"""Sessions that know when their client came with an id of before a renewal."""

from typing import Any, Final

from ..errors import SessionGone
from .context import AWAY
from .looking import away
from .session import Session

__all__ = ["CURRENT", "OVERLAP_MS", "RENEWED_AWAY", "STALE", "RenewableSession"]

CURRENT: Final = 0
"""The session may be read and written to."""

RENEWED_AWAY: Final = 1
"""It may be read, in the grace of a renewal that gave it another id than the client's."""

STALE: Final = 2
"""It may be read, as a cache had it: its store does not answer."""

OVERLAP_MS: Final = 10_000
"""How long after a renewal a request that began with the old id may still come in, in milliseconds."""


class RenewableSession(Session):
    """A session whose old ids are refused.

    While the client's id is outdated, the session may be read in its grace and never written to, and nothing is begun
    in its place, for that would take the place of the new token on its way to the client.
    """

    __slots__ = ("_outdated", "_overlaps")

    _outdated: int
    """CURRENT, or why the session may be read and not written to: RENEWED_AWAY or STALE."""

    _overlaps: bool
    """Whether there is no session here, for the id was renewed away, and the new token may still be under way."""

    def wake(self) -> None:
        """Begin the session of an eager handler if there is none and there can be one."""
        self._look()
        if not self._outdated and not self._overlaps:
            super().wake()

    def regenerate(self) -> None:
        """Begin a new session in place of the one there may be; raise StoreUnavailable if nobody can say."""
        self._look()
        if self._outdated == STALE:
            raise away()
        super().regenerate()

    def flashes(self) -> list[tuple[str, Any]]:
        """Take every flash message; of what may only be read, return them and leave them there."""
        self._look()
        if not self._outdated:
            return super().flashes()
        return [] if self._extras is None else list(self._extras.flashes)

    def _check_unchanged(self, *, failed: bool) -> None:
        """Raise what a write would have raised if a value was changed in place that can only be read."""
        if failed or self._exposed is None:
            return
        for key, before in self._exposed.items():
            if self._changed_in_place({key: before}) and not self._is_as_before(self._data[key], before):
                self._check_current()

    def _is_as_before(self, value: Any, before: bytes | None) -> bool:
        """Tell whether a value is the same in other bytes, as a serializer of the user's may write it."""
        fields = self.handler.serializer
        writes_the_same = fields.dumps(value) == fields.dumps(value)
        # Python takes 1 for True, so where bytes can tell they do.
        return before is not None and not writes_the_same and fields.loads(before) == value

    def _be_there(self) -> None:
        """Begin nothing beneath an id that was renewed away."""
        self._check_current()

    def _not_gone(self) -> None:
        super()._not_gone()
        self._check_current()

    def _check_current(self) -> None:
        """Raise if this request has no say in what becomes of the session."""
        if self.state == AWAY or self._outdated == STALE:
            raise away()
        if self._outdated or self._overlaps:
            raise SessionGone(
                "This request carries an id that was renewed: let the client send it again, with the new one."
            )
