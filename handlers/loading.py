"""One trip to a store for all the sessions of a request: at the first look at any of them, and to write them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import BadCookie, StoreCorrupt, StoreError, StoreUnavailable
from .caching import Wanted, fetch

if TYPE_CHECKING:
    from ..records import Changes, Record, Version
    from ..stores.protocol import Store, Write
    from .handler import Handler

__all__ = ["Batch"]


class Batch:
    """The records of one request in one store. It knows handlers and the text that may hold their tokens."""

    __slots__ = ("_found", "_is_down", "_wanted", "_written", "store")

    def __init__(self, store: "Store", wanted: "list[tuple[Handler, str]]") -> None:
        """Begin without any record; load what these handlers' tokens name once anything is loaded."""
        self.store = store
        self._wanted = wanted
        self._found: dict[str, Record | None] = {}
        self._is_down = False  # Whether the store did not answer: one wait for it is enough for a request.
        self._written: dict[str, tuple[Changes, Version | Exception]] = {}

    def record(self, wanted: Wanted) -> "Record | None":
        """Return the live record; raise StoreUnavailable if the store does not answer, and no cache has it."""
        handle = wanted.handle
        return self._found[handle] if handle in self._found else self.records([wanted])[0]

    def records(self, wanted: list[Wanted]) -> "list[Record | None]":
        """Return the live records, in one trip."""
        missing = [each for each in wanted if each.handle not in self._found]
        if missing:
            try:
                self._load(missing)
            except StoreUnavailable:
                if any(each.handle not in self._found for each in missing):
                    raise
        return [self._found[each.handle] for each in wanted]

    def write(self, writes: "Iterable[Write]") -> None:
        """Have several writes made in one trip, if the store can; ``apply`` then says what came of each."""
        self._written = {}
        apply_many = getattr(self.store, "apply_many", None)
        several = [] if apply_many is None else list(writes)
        if apply_many is None or len(several) < 2:  # noqa: PLR2004 - one is no more than apply()
            return
        self._written = {
            handle: (changes, outcome)
            for (handle, _, changes), outcome in zip(several, _outcomes(apply_many, several), strict=True)
        }

    def made(self, handle: str) -> "Changes | None":
        """Return the very changes that this commit has made to a record already; None if there are none."""
        written = self._written.get(handle)
        return None if written is None else written[0]

    def forget_written(self) -> None:
        """Be done with what this commit wrote, whether or not everybody has asked what came of it."""
        self._written = {}

    def apply(self, handle: str, proof: bytes, changes: "Changes") -> "Version":
        """Do what the store's ``apply`` does, or say what came of it if these very changes have been made."""
        if self.made(handle) is not changes:
            return self.store.apply(handle, proof, changes)
        _, outcome = self._written.pop(handle)
        try:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        finally:
            del outcome  # Its traceback holds this frame.

    def _load(self, asked: list[Wanted]) -> None:
        """Load these and all that is wanted, all in one trip."""
        if self._is_down:
            raise StoreUnavailable("The store of this session did not answer a moment ago: send the request again.")
        wanted, self._wanted = self._wanted, []
        try:
            each_once = {each.handle: each for each in (*asked, *_named(wanted))}
            fetch(self.store, each_once.values(), self._found)
        except StoreUnavailable:
            self._is_down = True
            raise


def _outcomes(apply_many: "Callable[..., list[Version | Exception]]", writes: "list[Write]") -> "list[Any]":
    """Return what came of each write; of an outage an error for each. None holds a frame, which would hold it."""
    try:
        outcomes = apply_many(writes)
    except StoreError as error:
        kind = StoreCorrupt if isinstance(error, StoreCorrupt) else StoreUnavailable
        return [kind(str(error)) for _ in writes]
    return [each.with_traceback(None) if isinstance(each, Exception) else each for each in outcomes]


def _named(wanted: "list[tuple[Handler, str]]") -> Iterator[Wanted]:
    """Yield what the tokens of the request name. Only a token that verifies reaches a cache or the store."""
    for handler, source in wanted:
        tokens = handler.find_tokens(source)
        if len(tokens) == 1 and handler.wanted is not None:
            with suppress(BadCookie):
                for handle, version in handler.wanted(handler.codec.open(tokens[0])):
                    yield Wanted(handler, handle, version)
