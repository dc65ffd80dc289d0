"""A stack: a store, a cache in front of it, a handler on both, and an application behind that.

Its sessions are bound to a subject of the run's own, so that all of them can be removed at the end, whatever else the
store holds.
"""

import tracemalloc
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import cachetools

from ...caches.local import LocalCache
from ...caches.protocol import Cache
from ...caches.tiered import TieredCache
from ...errors import ConfigError, NotImplementedByStore, StoreError
from ...handlers import Handler
from ...handlers.info import SUBJECT
from ...handlers.options import with_absolute_timeout, with_cache, with_store
from ...records import Changes, Record, Version, pack, unpack
from ...stores import Store, open_store
from ...stores.announced import Announced
from ...stores.following import follow
from ...stores.memory import MemoryStore
from .client import USE, Answer, Use, ask, kept
from .options import POLICIES, SQLITE, Plan

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["GATE", "Counting", "Setting", "Stack", "bare", "data_of", "read_two", "remove", "writing"]

HOUR: Final = 3600
ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz "
VALUES: Final = 1024
"""How many values a writer has at least, under each key in turn, so that hardly one is written over itself."""

TRACED: Final = 500
SCATTERED: Final = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""Multiples of it are as scattered as handles are."""

GATE: Final = "401 Unauthorized"
PLAIN: Final = ("Content-Type", "text/plain")


@dataclass(frozen=True, slots=True)
class Setting:
    """What all processes of one run share."""

    plan: Plan
    secret: str
    subject: str
    folder: str
    """Where caches on disk and files of the run's own lie; it is removed at the end."""


class Counting(Announced):
    """Stands in front of a store and counts the trips to it, and the bytes of records that go either way.

    A record that is loaded counts as it lies packed; of a change what is sent: names and contents of the keys.
    """

    def __init__(self, store: Store) -> None:
        """Begin at zero."""
        super().__init__(store)
        self.moved = array("q")
        """The bytes of each trip. To append one is a single step, whatever other threads do."""

        self.around = 0
        """How many bytes a packed record has besides its fields, which is the same for all of a run."""

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record | None:
        """As the store does."""
        record = self.inner.load(handle, keys)
        self.moved.append(0 if record is None else self.around + len(record.fields))
        return record

    def load_many(self, handles: Sequence[str]) -> dict[str, Record]:
        """As the store does."""
        found = self.inner.load_many(handles)
        self.moved.append(sum(self.around + len(record.fields) for record in found.values()))
        return found

    def create(self, record: Record) -> None:
        """As the store does."""
        self.moved.append(self.around + len(record.fields))
        super().create(record)

    def apply(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """As the store does."""
        self.moved.append(sum(len(key) + len(content) for key, (content, _) in changes.sets.items()))
        return super().apply(handle, proof, changes)

    def revoke(self, handle: str) -> bool:
        """As the store does."""
        self.moved.append(0)
        return super().revoke(handle)


class Stack:
    """One store with one cache in one process. ``store`` is another stack's, where both are to share the object."""

    def __init__(self, setting: Setting, number: int, store: Counting | None = None) -> None:
        """Open the store and the cache."""
        plan = setting.plan
        url, self.spec = plan.stacks[number]
        self.plan, self.subject = plan, setting.subject
        self._owned = store is None
        self.store = store or Counting(opened(url, setting.folder))
        try:
            self.cache = _cache(self.spec, setting, number)
            options = (with_store(self.store), with_cache(self.cache), with_absolute_timeout(HOUR))
            self.handler = Handler("bench", setting.secret, *options)
        except BaseException:
            self.close()
            raise
        self.app = self.handler.link(_page(self.handler))
        self.gate = self.handler.link(_gate(self.handler))
        self.cookies: list[bytes] = []
        self.hearing: bool | None = None
        """Whether the cache hears of changes elsewhere; None before ``hear()``."""

    def make(self, count: int, data: dict[str, Any]) -> list[bytes]:
        """Make sessions of this data, by a request each, and return their cookies."""

        def begin(session: Any) -> None:
            session.update(data)
            session.bind(self.subject)

        return [kept(_expected(ask(self.app, b"", begin)), b"") for _ in range(count)]

    def weigh(self, cookie: bytes) -> dict[str, int | None]:
        """Return how many bytes one of the sessions takes, here and there."""
        handles: list[str] = []
        _expected(ask(self.app, cookie, lambda session: handles.append(session.handle)))
        record = self.store.inner.load(handles[0])
        if record is None:
            raise StoreError("The store has lost a session that it had confirmed.")
        packed = pack(record)
        self.store.around = len(packed) - len(record.fields)
        inner = getattr(self.store.inner, "inner", self.store.inner)
        return {
            "cookie": len(cookie),
            "record": len(packed),
            "store": _traced(record, MemoryStore().create) if isinstance(inner, MemoryStore) else None,
            "cache": _traced(record, _filling(self.plan, self.spec)),
        }

    def hear(self) -> str | None:
        """Have the cache hear of changes by other processes; return why it cannot."""
        if self.cache is None:
            return "there is no cache"
        try:
            self._stop = follow(self.store, self.cache)
        except NotImplementedByStore:
            self.hearing = False
            return "this store has no watch"
        self.hearing = True
        return None

    def ignore(self) -> None:
        """Hear of nothing more."""
        if self.hearing:
            self._stop()
        self.hearing = None

    def close(self) -> None:
        """Let go of the cache and the store."""
        cache = getattr(self, "cache", None)
        if cache is not None:
            cache.close()
        if self._owned:
            self.store.close()


def opened(url: str, folder: str) -> Store:
    """Return the store of a URL; "sqlite:" is a file of the run's own."""
    return open_store(f"sqlite:///{folder}/sessions.db" if url == SQLITE else url)


def remove(store: Store, subject: str) -> None:
    """Remove every session that the run has made in a store."""
    store.revoke_where(SUBJECT, subject)


def _page(handler: Handler) -> "WSGIApplication":
    """Return an application that does with its session what the request asks for."""

    def page(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
        environ[USE](handler.session(environ))
        start_response("200 OK", [PLAIN])
        return [b"ok"]

    return page


def _gate(handler: Handler) -> "WSGIApplication":
    """Return an application that says whether the session is live."""

    def gate(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
        start_response("200 OK" if handler.loaded(environ) else GATE, [PLAIN])
        return [b"ok"]

    return gate


def bare(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:  # noqa: ARG001 - it looks at none
    """Be the same page without a session."""
    start_response("200 OK", [PLAIN])
    return [b"ok"]


def _expected(answer: Answer) -> Answer:
    if not answer.succeeded:
        raise StoreError(f"A request that had to succeed was answered {answer.status!r}: does the store work?")
    return answer


# -- data ------------------------------------------------------------------------------------


def data_of(plan: Plan) -> dict[str, str]:
    """Return what every session holds at first: keys of text that are of the asked size."""
    dice = Random(plan.seed)  # the same text in every run of this seed, and no secret
    return {f"k{number}": "".join(dice.choices(ALPHABET, k=plan.size)) for number in range(plan.keys)}


def read_two(session: Any) -> None:
    """Read two keys."""
    session["k0"]
    session["k1"]


def writing(plan: Plan, dice: Random) -> Use:
    """Return what reads two keys and writes one, each time another, with another value."""
    text = "".join(dice.choices(ALPHABET, k=plan.size))
    keys = [f"k{number}" for number in range(plan.keys)][2:] or ["k1"]
    values = range(max(VALUES, 4 * plan.keys))
    changes = cycle([(keys[number % len(keys)], f"{number:04}{text}"[: plan.size]) for number in values]).__next__

    def read_two_write_one(session: Any) -> None:
        session["k0"]
        session["k1"]
        key, value = changes()
        session[key] = value

    return read_two_write_one


# -- caches ----------------------------------------------------------------------------------


def _cache(spec: str, setting: Setting, number: int) -> Cache | None:
    """Return the cache that a word stands for."""
    kind, _, rest = spec.partition(":")
    if kind == "none":
        return None
    if kind == "local":
        return LocalCache(setting.plan.cache_sessions, setting.plan.max_staleness, _policy(rest, setting.plan))
    disk = _disk(rest or f"{setting.folder}/cache{number}", setting)
    if kind == "disk":
        return disk
    return TieredCache(LocalCache(setting.plan.cache_sessions, setting.plan.max_staleness), disk)


def _policy(name: str, plan: Plan) -> Any:
    """Return an empty cache of cachetools; those that expire entries do so no sooner than the LocalCache."""
    most, staleness = plan.cache_sessions, plan.max_staleness
    made: dict[str, Callable[[], Any]] = {
        "fifo": lambda: cachetools.FIFOCache(most),
        "lfu": lambda: cachetools.LFUCache(most),
        "lru": lambda: cachetools.LRUCache(most),
        "rr": lambda: cachetools.RRCache(most),
        "tlru": lambda: cachetools.TLRUCache(most, lambda _key, _value, now: now + staleness),
        "ttl": lambda: cachetools.TTLCache(most, staleness),
    }
    return made[name]() if name in POLICIES else None


def _disk(folder: str, setting: Setting) -> Cache:
    try:
        from ...caches.disk import DiskCache  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            "The caches 'disk' and 'tiered' need the disk extra: pip install 'sessiontree[disk]', or leave them out."
        ) from error
    if not Path(folder).parent.is_dir():
        raise ConfigError(f"There is no folder for the cache {folder!r}: make the one above it first.")
    return DiskCache(folder, setting.secret, max_staleness=setting.plan.max_staleness)


# -- memory ----------------------------------------------------------------------------------


def _filling(plan: Plan, spec: str) -> Callable[[Record], object] | None:
    """Return what keeps a record as such a cache does in memory, or None for one that keeps nothing there."""
    kind, _, rest = spec.partition(":")
    if kind not in {"local", "tiered"}:
        return None
    roomy = replace(plan, cache_sessions=4 * TRACED)
    cache = LocalCache(roomy.cache_sessions, HOUR, _policy(rest, roomy))
    return lambda record: cache.put(record.handle, record, cache.lease(record.handle))


def _traced(record: Record, keep: Callable[[Record], object] | None) -> int | None:
    """Return how many bytes of memory each of many such records takes once it is kept."""
    if keep is None:
        return None
    packed = pack(record)
    with _tracing():
        keep(_copy(packed, 0))
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, TRACED + 1):
            keep(_copy(packed, number))
        return (tracemalloc.get_traced_memory()[0] - before) // TRACED


def _copy(packed: bytes, number: int) -> Record:
    """Return a record of the same contents that shares nothing with any other."""
    record = unpack(f"{number * SCATTERED % (1 << 128):032x}", packed)
    if record is None:
        raise StoreError("A record that was packed a moment ago cannot be unpacked.")
    return record


@contextmanager
def _tracing() -> Iterator[None]:
    was_on = tracemalloc.is_tracing()
    if not was_on:
        tracemalloc.start()
    try:
        yield
    finally:
        if not was_on:
            tracemalloc.stop()
