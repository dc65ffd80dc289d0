"""How a stored session writes to its store: at once, and what it is after the store refused or failed."""

from collections.abc import Callable, Mapping
from secrets import randbelow
from threading import Event
from typing import TYPE_CHECKING, Any, Final

from ..errors import CompareFailed, SessionGone, StoreError
from ..records import Changes, Record, Version
from ..serializer import IMMUTABLE
from .contents import Loaded, field_of
from .context import AWAY, DATA, LOST
from .events import emit
from .ids import handle_text
from .tracking import TrackedSession

if TYPE_CHECKING:
    from ..stores.protocol import Store

__all__ = ["WritingSession"]

MOST_ATTEMPTS: Final = 1000
PATIENT_ATTEMPTS: Final = 3
LONGEST_WAIT_MS: Final = 8


class WritingSession(TrackedSession):
    """A session whose ``incr`` and ``update_key`` are atomic, and whose store has the last word."""

    __slots__ = ()

    @property
    def _store(self) -> "Store":
        return self.handler.backing  # type: ignore[return-value]

    # -- at once ---------------------------------------------------------------------------

    def incr(self, key: str, n: int = 1) -> int:
        """Add ``n`` to the key's integer, which begins at 0, in the store and at once; return the sum.

        The key keeps its expiry. Raises TypeError for what is no integer, SessionGone for a session that ended.
        """
        if type(n) is not int:
            raise TypeError("incr() adds integers: n must be one.")
        if not self._is_open() or self._record is None or self._is_unwritten(key):
            return super().incr(key, n)
        if not self.handler.contents.adds:
            return int(self.update_key(key, lambda value: _sum(key, value, n), 0))
        field = field_of(key)
        sums = self._apply_now(Changes(adds={field: n}))
        self._know(key, sums[field])
        return sums[field]

    def update_key(self, key: str, fn: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace the key's value by ``fn(value)``, or ``fn(default)``, in the store and at once; return the new value.

        The key keeps its expiry. If another request was faster, ``fn`` is called again with what that one wrote.
        """
        if not self._is_open() or self._record is None or self._is_unwritten(key):
            return super().update_key(key, fn, default)
        record, field = self._record, field_of(key)
        for attempt in range(MOST_ATTEMPTS):
            now = self.handler.now()
            before, deadline = record.contents(now).get(field, (None, 0))
            value = fn(self._read(record, now).get(key, default))
            self.handler.fields.admit(value)
            content = self.handler.contents.write(record.handle, field, value)
            try:
                self._apply_now(Changes(sets={field: (content, deadline)}, expects={field: before}))
            except CompareFailed:
                _wait(attempt)
                record = self._read_again(field)
            else:
                self._know(key, value)
                return value
        raise CompareFailed(f"The key {key!r} was changed by others each of {MOST_ATTEMPTS} times: try again later.")

    def _read_again(self, field: str) -> Record:
        record = self._store.load(handle_text(self._handle()), [field])
        if record is None:
            self._lose()
            raise SessionGone("The session was revoked or has expired meanwhile: begin anew.")
        return record

    def _read(self, record: Record, now: int) -> dict[str, Any]:
        data = self.handler.contents.read(record, now)
        return data.data if isinstance(data, Loaded) else data

    def _know(self, key: str, value: Any) -> None:
        """Show the value that the store has by now."""
        self._data[key] = value
        if self._exposed is not None:
            self._exposed.pop(key, None)
        if value.__class__ not in IMMUTABLE:
            self._expose(key, value)

    # -- with the store's last word --------------------------------------------------------

    def _apply(self, changes: Changes) -> Version:
        """Apply, and if the store refuses or fails, remember it, so that nothing is tried twice."""
        record: Record = self._record  # type: ignore[assignment]
        try:
            return self._store.apply(record.handle, record.proof, changes)
        except SessionGone:
            self._lose()
            raise
        except StoreError as error:
            self._withdraw(error)
            raise

    def _apply_now(self, changes: Changes) -> Mapping[str, int]:
        """Apply at once, and return what increments came to."""
        self._version = version = self._apply(changes)
        self._change(DATA)
        return version.sums

    def _withdraw(self, error: StoreError) -> None:
        """Be neither readable nor writable in what is left of this request: nobody knows what the store has."""
        emit(self.handler, "outage", reason=type(error).__name__)
        self.state = AWAY
        self._data = {}
        self._ready = False

    def _lose(self) -> None:
        """Be gone: another request ended or renewed the session. The client may hold its new token already."""
        emit(self.handler, "conflict", handle_text(self._handle()))
        self._become(LOST)
        self._context.changed = True


def _sum(key: str, value: Any, n: int) -> int:
    if type(value) is not int:
        raise TypeError(f"incr() adds to integers, and the key {key!r} holds something else.")
    return value + n


def _wait(attempt: int) -> None:
    """Give way to whoever was faster: not at all at first, then for a random while of a few milliseconds."""
    if attempt >= PATIENT_ATTEMPTS:
        Event().wait(randbelow(LONGEST_WAIT_MS * 1000) / 1_000_000)
