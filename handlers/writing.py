"""How a stored session writes to its store: at once, and what it is after the store refused or failed."""

from collections.abc import Callable
from hmac import compare_digest
from secrets import randbelow
from threading import Event
from typing import TYPE_CHECKING, Any, Final

from ..errors import CompareFailed, SessionGone, StoreError
from ..records import KEEP, Changes, Json, Record, Version
from ..serializer import IMMUTABLE
from .caching import forget
from .contents import Loaded, field_of
from .context import DATA, LOST
from .events import emit
from .ids import handle_text
from .mapping import check_key
from .tracking import TrackedSession

if TYPE_CHECKING:
    from ..stores.protocol import Store
    from .loading import Batch

__all__ = ["WritingSession"]

MOST_ATTEMPTS: Final = 1000
PATIENT_ATTEMPTS: Final = 3
LONGEST_WAIT_MS: Final = 8


class WritingSession(TrackedSession):
    """A session whose ``incr`` and ``update_key`` are atomic, and whose store has the last word."""

    __slots__ = ("_batch", "_lost")

    _batch: "Batch | None"
    """Through which it reads and writes together with other sessions of the request; None if it does so alone."""

    _lost: str | None
    """The handle of what this request had and may still end: the store refused it a write, or it was merged away."""

    @property
    def _store(self) -> "Store":
        return self.handler.store  # type: ignore[return-value]

    # -- at once ---------------------------------------------------------------------------

    def incr(self, key: str, n: int = 1) -> int:
        """Add ``n`` to the key's integer, which begins at 0, in the store and at once; return the sum.

        The key keeps its expiry. Raises TypeError for what is no integer, SessionGone for a session that ended.
        """
        check_key(key)
        if type(n) is not int:
            raise TypeError("incr() adds integers: n must be one.")
        if not self._is_open() or self._record is None or self._is_unwritten(key):
            return super().incr(key, n)
        if not self.handler.contents.adds:
            return int(self.update_key(key, lambda value: _sum(key, value, n), 0))
        field = field_of(key)
        total = self._apply(Changes(adds={field: n})).sums[field]
        deadline = 0 if self._extras is None else self._extras.deadlines.get(key, 0)
        self._know(key, total, Changes(sets={field: (Json(b"%d" % total), deadline)}))
        return total

    def update_key(self, key: str, fn: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace the key's value by ``fn(value)``, or ``fn(default)``, in the store and at once; return the new value.

        The key keeps its expiry, also one that another request gave it meanwhile. If another request was faster, ``fn``
        is called again with what that one wrote.
        """
        check_key(key)
        if not self._is_open() or self._record is None or self._is_unwritten(key):
            return super().update_key(key, fn, default)
        record, field = self._known().only([field_of(key)]), field_of(key)
        for attempt in range(MOST_ATTEMPTS):
            now = self.handler.now()
            before, deadline = record.contents(now).get(field, (None, 0))
            value = fn(self._read(record, now).get(key, default))
            self.handler.serializer.admit(value)
            content = self.handler.contents.write(record.handle, field, value)
            try:
                # Another request may have given the same value another life, which no comparison shows.
                self._apply(Changes(sets={field: (content, KEEP)}, expects={field: before}))
            except CompareFailed:
                _wait(attempt)
                record = self._read_again(field)
            else:
                self._know(key, value, Changes(sets={field: (content, deadline)}))
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

    def _know(self, key: str, value: Any, changes: Changes) -> None:
        """Show the value that the store has by now, and how long it lasts there."""
        self._note_fields(changes)
        _, deadline = changes.sets[field_of(key)]
        if deadline:
            self._more().deadlines[key] = deadline
            self._ready = False
        elif self._extras is not None:
            self._extras.deadlines.pop(key, None)
        self._change(DATA)
        self._data[key] = value
        if self._exposed is not None:
            self._exposed.pop(key, None)
        if value.__class__ not in IMMUTABLE:
            self._expose(key, value)

    # -- with the store's last word --------------------------------------------------------

    def _apply(self, changes: Changes) -> Version:
        """Apply, and take note of the version. What a store refuses is lost; after an outage one may try again."""
        record: Record = self._record  # type: ignore[assignment]
        try:
            version = (self._batch or self.handler.store).apply(record.handle, record.proof, changes)  # type: ignore[union-attr]
        except SessionGone:
            self._lose()
            raise
        except StoreError as error:
            emit(self.handler, "outage", record.handle, type(error).__name__)
            version = self._made_it(changes, error)
        self._version = version
        return version

    def _made_it(self, changes: Changes, error: StoreError) -> Version:
        """Return the version if the store has the new proof, and only its answer was lost: else raise the error.

        A renewal that nobody told the client of would log it out.
        """
        record: Record = self._record  # type: ignore[assignment]
        if changes.proof is not None:
            found = self._store.load(record.handle, ())
            if found is not None and compare_digest(found.proof, changes.proof):
                return Version(found.version)
        try:
            raise error
        finally:
            del error  # Its traceback holds this frame.

    def _lose(self) -> None:
        """Be gone: another request ended or renewed the session. The client may hold its new token already."""
        handle = handle_text(self._handle())
        forget(self.handler, handle)  # What a cache has of it is not what the store has.
        emit(self.handler, "conflict", handle)
        self._become(LOST)
        self._lost = handle
        self._context.changed = True


def _sum(key: str, value: Any, n: int) -> int:
    if type(value) is not int:
        raise TypeError(f"incr() adds to integers, and the key {key!r} holds something else.")
    return value + n


def _wait(attempt: int) -> None:
    """Give way to whoever was faster: not at all at first, then for a random while of a few milliseconds."""
    if attempt >= PATIENT_ATTEMPTS:
        Event().wait(randbelow(LONGEST_WAIT_MS * 1000) / 1_000_000)
