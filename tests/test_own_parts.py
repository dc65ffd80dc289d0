"""Caches and stores of somebody else's making, with the verbs of the contract and nothing besides."""

from dataclasses import dataclass, field

import pytest
from support import SECRET, Site

from sessiontree import (
    ConfigError,
    Handler,
    NotImplementedByStore,
    with_cache,
    with_clock,
    with_events,
    with_revocations,
    with_store,
)
from sessiontree.caches.local import LocalCache
from sessiontree.stores import PerKey, follow
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore


class MiniCache:
    """Exactly the verbs of a cache."""

    def __init__(self):
        self.records, self.drops, self.calls = {}, {}, []

    def get(self, handle, min_version=0):
        record = self.records.get(handle)
        return record if record is not None and record.version >= min_version else None

    def lease(self, handle):
        return self.drops.get(handle, 0)

    def put(self, handle, record, lease):
        self.calls.append(record.handle)
        if self.drops.get(handle, 0) == lease:
            self.records[handle] = record

    def drop(self, handle):
        self.drops[handle] = self.drops.get(handle, 0) + 1
        self.records.pop(handle, None)

    def clear(self):
        for handle in list(self.records):
            self.drop(handle)

    def clear_after(self, seconds):
        raise AssertionError("No handler asks for this.")

    def stats(self):
        return None


class MiniStore:
    """Exactly the verbs of a store, but for the feed, which is optional."""

    def __init__(self, store):
        self._store, self.clock, self.largest = store, store.clock, store.largest


for _verb in (
    "load", "load_many", "create", "apply", "revoke", "find", "count", "relabel", "revoke_where", "scan", "sweep",
    "sweep_idle", "close",
):  # fmt: skip
    setattr(MiniStore, _verb, lambda self, *a, _verb=_verb, **more: getattr(self._store, _verb)(*a, **more))


@pytest.fixture
def clock():
    return FakeClock()


def test_a_cache_with_the_seven_verbs_is_one(clock):
    cache, store, told = MiniCache(), FaultyStore(MemoryStore(clock=clock)), []
    s = Site(Handler("v", SECRET, with_clock(clock), with_store(store), with_cache(cache), with_events(told.append)))
    s.visit(lambda session: session.update(n=1))
    s.visit(dict)
    store.calls.clear()
    assert s.visit(dict) == {"n": 1}
    assert store.calls == []
    cookies = s.browser.jar.header()
    s.visit(lambda session: session.revoke())
    for _ in range(2):
        assert not s.visit(lambda session: session.is_live(), s.another_browser(), HTTP_COOKIE=cookies)
    assert len(cache.calls) == 1  # It was never told of what there is not.
    assert not [event for event in told if event.kind == "cache"]


def test_a_cache_of_ones_own_keeps_keys_too():
    keys = PerKey(MiniCache())
    keys.put("h", "k", b"v", 60)
    assert keys.get("h", "k") == b"v"
    assert 59 < keys.time_to_expiry("h", "k") <= 60


def test_a_store_without_a_feed_is_one(clock):
    store = MiniStore(MemoryStore(clock=clock))
    s = Site(Handler("v", SECRET, with_clock(clock), with_store(store), with_cache(LocalCache(clock=clock))))
    s.visit(lambda session: session.bind("ann"))
    assert s.visit(lambda session: session.subject) == "ann"
    other = s.handler.configure(with_cache(LocalCache(clock=clock)))
    assert other.revoke_all("ann") == 1
    assert not s.visit(lambda session: session.is_live())
    for call in (s.handler.follow, lambda: follow(store, LocalCache(clock=clock))):
        with pytest.raises(NotImplementedByStore, match="MiniStore has no feed"):
            call()
    assert s.handler.sweep() == 0


def test_keys_of_a_store_without_a_feed_are_its_sessions(clock):
    store = MiniStore(MemoryStore(clock=clock))
    s = Site(Handler("v", SECRET, with_clock(clock), with_store(store)))
    s.visit(lambda session: session.update(n=1))
    handle = s.visit(lambda session: session.handle)
    PerKey(store).put(handle, "k", b"v")
    assert s.visit(lambda session: session["k"]) == b"v"


class HalfCache(MiniCache):
    lease = put = property()


class HalfStore(MiniStore):
    find = property()


@dataclass
class Unhashable(MiniCache):
    records: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    ("option", "part", "says"),
    [
        (with_cache, HalfCache(), r"with_cache\(\) takes a cache, and HalfCache has no 'lease' and no 'put'\."),
        (with_store, HalfStore(MemoryStore()), r"with_store\(\) takes a store, and HalfStore has no 'find'\."),
        (with_revocations, HalfStore(MemoryStore()), r"with_revocations\(\) .* has no 'find'\."),
        (with_cache, 5, r"with_cache\(\) takes a cache, for example LocalCache\(max_sessions=10_000\), not int\."),
        (with_cache, LocalCache, "not type"),
        (with_store, LocalCache(), "for example .* not LocalCache"),
        (with_store, "sqlite:///x.db", r"takes a store, for example open_store\('sqlite:///sessions.db'\), not str\."),
        (with_cache, Unhashable(), "can be hashed"),
    ],
)
def test_a_part_that_is_not_whole_is_refused_by_what_it_lacks(option, part, says):
    with pytest.raises(ConfigError, match=says):
        option(part)
