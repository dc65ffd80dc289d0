"""What the conformance cases share: fixtures, records, contents, threads, and a clock with something in between."""

import base64
import secrets
from collections.abc import Callable, Iterator, Mapping
from threading import Barrier, Thread
from typing import Any, Final

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from ...clock import FOREVER, FakeClock
from ...records import Changes, Content, Field, Json, Page, Record, as_value, packed
from ..protocol import Store

__all__ = [
    "BOUNDARIES",
    "DEADLINES",
    "LATE",
    "OTHER_PROOF",
    "PROOF",
    "StoreCases",
    "TurningClock",
    "all_pages",
    "applier",
    "at_once",
    "contents",
    "creator",
    "examples",
    "fields",
    "fresh_handle",
    "handles_of",
    "js",
    "json_values",
    "key_names",
    "loaded",
    "new",
    "revoker",
]

MINUTE: Final = 60_000
PROOF: Final = b"p" * 32
OTHER_PROOF: Final = b"q" * 32
BOUNDARIES: Final = (1, 36 * 60 * MINUTE, 60 * 24 * 60 * MINUTE)
"""Lives in milliseconds whose last one is looked at: the shortest, more than a day, more than 2**32 milliseconds."""

DEADLINES: Final = ("absolute", "own", "idle")

examples: Final = settings(deadline=None, max_examples=50)
key_names: Final = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
json_values: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(key_names.filter(lambda key: key != "$bytes"), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


class StoreCases:
    """The fixtures of every case; a case that needs no second store has the arguments ``store`` and ``clock``."""

    def make_store(self, clock: FakeClock) -> Store:
        """Return a fresh, empty store on this clock; called once for each case."""
        raise NotImplementedError("Define make_store(self, clock) in your subclass of StoreConformance.")

    def reopen(self, store: Store) -> Store | None:  # noqa: ARG002 - for a subclass to use
        """Return a second store on the data and the clock of this one; None if the engine has no such thing."""
        return None

    @pytest.fixture
    def clock(self) -> FakeClock:
        """Return the clock of the case, at 2030-01-01."""
        return TurningClock()

    @pytest.fixture
    def store(self, clock: FakeClock) -> Iterator[Store]:
        """Make the store, and close it at the end."""
        store = self.make_store(clock)
        yield store
        store.close()

    @pytest.fixture
    def other(self, store: Store) -> Iterator[Store]:
        """Open the data a second time, or take the same store where that cannot be."""
        other = self.reopen(store)
        yield store if other is None else other
        if other is not None:
            other.close()


class TurningClock(FakeClock):
    """A clock at which a function can be called in the very moment at which a store asks for the time."""

    def __init__(self) -> None:
        """Start with nothing to call."""
        super().__init__()
        self.then: Callable[[], object] | None = None

    def now(self) -> int:
        """Call what is to be called, once, and return the time after it."""
        then, self.then = self.then, None
        if then is not None:
            then()
        return super().now()


# -- records ---------------------------------------------------------------------------------


def fresh_handle() -> str:
    """Return a handle as sessions have them: 20 random bytes in base32."""
    return base64.b32encode(secrets.token_bytes(20)).decode().lower()


def js(value: Any) -> Json:
    """Return a content that is JSON."""
    return Json(orjson.dumps(value))


def fields(**contents: Content | Field) -> bytes:
    """Return packed fields of these contents, or pairs of a content and a deadline."""
    pairs = {key: content if isinstance(content, tuple) else (content, 0) for key, content in contents.items()}
    return packed(
        {key: as_value(content) for key, (content, _) in pairs.items()},
        {key: deadline for key, (_, deadline) in pairs.items() if deadline},
    )


def new(store: Store, handle: str | None = None, /, **more: Any) -> Record:
    """Create a record that never expires, unless told otherwise, and return it; ``labels`` may be a dict."""
    now = store.clock.now()
    plain = {"path": "user", "created": now, "absolute": FOREVER, "own": FOREVER, "idle": FOREVER, "proof": PROOF}
    if isinstance(more.get("labels"), Mapping):
        more["labels"] = orjson.dumps(more["labels"]).decode()
    record = Record(**{"handle": handle or fresh_handle(), "seen": now, **plain, **more})
    store.create(record)
    return record


def loaded(store: Store, handle: str) -> Record:
    """Return the record, which must be live."""
    record = store.load(handle)
    assert record is not None, "The record is live, and load() returned None."
    return record


def contents(store: Store, handle: str) -> dict[str, Content]:
    """Return the contents of the live keys of a record, which must be live."""
    return {key: content for key, (content, _) in loaded(store, handle).contents(store.clock.now()).items()}


def handles_of(page: Page) -> list[str]:
    """Return the handles of a page in their order."""
    return [record.handle for record in page.records]


def all_pages(
    read: Callable[[str | None, int], Page], limit: int, between: Callable[[], object] = lambda: None
) -> list[str]:
    """Return the handles of all pages, calling ``between`` after each; a page must not be longer than its limit."""
    found: list[str] = []
    page = read(None, limit)
    while True:
        assert len(page.records) <= limit
        found += handles_of(page)
        if page.after is None:
            return found
        assert len(found) < 1000, "The pages never end."
        between()
        page = read(page.after, limit)


# -- changes ---------------------------------------------------------------------------------

LATE: Final[dict[str, Changes]] = {
    "sets": Changes(sets={"a": (js(2), 0)}),
    "deletes": Changes(deletes=("a",)),
    "adds": Changes(adds={"n": 1}),
    "expects": Changes(expects={"nothing": None}),
    "a deadline": Changes(idle=FOREVER - 1),
    "a touch": Changes(seen=FOREVER),
    "a new proof": Changes(proof=b"z" * 32, grace=FOREVER),
    "a login": Changes(authenticated=1),
    "labels": Changes(labels={"subject": "late"}),
    "nothing": Changes(),
}
"""Every kind of change, for a writer that comes too late."""


# -- threads ---------------------------------------------------------------------------------


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call these in threads that begin together, and return what each returned or raised."""
    barrier = Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(place: int, call: Callable[[], Any]) -> None:
        barrier.wait(30)
        try:
            results[place] = call()
        except Exception as error:  # noqa: BLE001 - whatever it is, the case judges it
            results[place] = error

    threads = [Thread(target=run, args=(place, call)) for place, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "A call of the store never returns."
    return results


def creator(store: Store, handle: str, proof: bytes) -> Callable[[], Record]:
    """Return a call that creates a record."""
    return lambda: new(store, handle, proof=proof)


def applier(store: Store, record: Record, changes: Changes) -> Callable[[], int]:
    """Return a call that applies changes with the first proof."""
    return lambda: store.apply(record.handle, PROOF, changes)


def revoker(store: Store, handle: str) -> Callable[[], bool]:
    """Return a call that revokes."""
    return lambda: store.revoke(handle)
