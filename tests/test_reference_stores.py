"""What the tests of earlier systems check of a store, in our words, and their flaws as tests that they stay away."""

import pytest
from engines import ENGINES, opened

from sessiontree import Conflict, RecordTooLarge, SessionGone
from sessiontree.clock import FOREVER
from sessiontree.records import Changes, Json, Record
from sessiontree.stores import PerKey
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore
from sessiontree.testing import FakeClock


@pytest.fixture(params=ENGINES)
def store(request, tmp_path):
    clock = FakeClock()
    made = opened(request.param, tmp_path, clock)
    yield made
    made.close()


def entry(store, handle, labels="", life=1000, **fields):
    now = store.clock.now()
    raw = b"{" + b",".join(b'"%s":%s' % (key.encode(), value) for key, value in fields.items()) + b"}"
    record = Record(handle, "visitor", now, now + life, FOREVER, FOREVER, b"p" * 32, now, labels=labels, fields=raw)
    store.create(record)
    return record


def test_find_commit_update_expiry_and_delete_as_every_go_store_has_them(store):
    entry(store, "a", a=b"1")
    assert store.load("missing") is None
    with pytest.raises(Conflict):
        entry(store, "a", a=b"2")
    store.apply("a", b"p" * 32, Changes(sets={"a": (Json(b"2"), 0)}))
    assert store.load("a").contents(0) == {"a": (b"2", 0)}
    assert store.revoke("missing") is False
    assert (store.revoke("a"), store.revoke("a"), store.load("a")) == (True, False, None)
    entry(store, "b", life=100)
    store.clock.advance(0.099)
    assert store.load("b") is not None
    store.clock.advance(0.001)
    assert store.load("b") is None


def test_all_returns_exactly_the_live_and_cleaning_removes_more_than_one(store):
    for number in range(3):
        entry(store, f"live{number}", life=10**9)
    for number in range(2):
        entry(store, f"dead{number}", life=10)
    store.clock.advance(1)
    assert sorted(record.handle for record in store.scan().records) == ["live0", "live1", "live2"]
    store.clock.advance(3600)
    assert store.sweep() == 2
    assert store.sweep() == 0


def test_by_worker_operations_are_selective_and_keep_the_rest_of_an_entry(store):
    for number in range(4):
        entry(store, f"s{number}", labels=f'{{"worker":"w{number % 2}","subject":"ann"}}', n=b"%d" % number)
    assert store.count("worker", "w0", "w1", "nobody") == 4
    assert store.count("worker") == 0
    assert store.relabel("worker", "nobody", "w9") == 0
    assert store.relabel("worker", "w0", "w1") == 2
    moved = store.load("s0")
    assert (moved.label, moved.contents(0)) == ({"worker": "w1", "subject": "ann"}, {"n": (b"0", 0)})
    assert store.revoke_where("worker", "w0") == 0
    assert store.revoke_where("worker", "w1") == 4
    assert store.find("subject", "ann").records == []


def test_a_size_limit_is_a_setting_of_the_store(tmp_path):
    for make in (MemoryStore, lambda **settings: SqliteStore(tmp_path / "s.db", **settings)):
        store = make(clock=FakeClock(), largest=100)
        with pytest.raises(RecordTooLarge):
            entry(store, "big", a=b'"' + b"x" * 100 + b'"')
        record = entry(store, "small", a=b"1")
        with pytest.raises(RecordTooLarge):
            store.apply("small", record.proof, Changes(sets={"b": (b"x" * 100, 0)}))
        assert store.load("small").contents(0) == {"a": (b"1", 0)}
        store.close()


def test_get_put_delete_and_time_to_expiry_by_handle_and_key(store):
    entry(store, "a", life=60_000)
    keys = PerKey(store)
    keys.put("a", "no expiry", b"1", 0)
    keys.put("a", "an hour", b"2", 3600)
    keys.put("a", "ten seconds", b"3", 10)
    assert [keys.time_to_expiry("a", key) for key in ("no expiry", "an hour", "ten seconds")] == [60, 60, 10]
    keys.put("a", "no expiry", b"x", -1)
    assert (keys.get("a", "no expiry"), keys.get("a", "an hour")) == (None, b"2")
    keys.delete("a", "an hour")
    assert keys.get("a", "an hour") is None


def test_a_commit_in_flight_never_brings_a_destroyed_session_back(store):
    record = entry(store, "a", a=b"1")
    store.revoke("a")
    with pytest.raises(SessionGone):
        store.apply("a", record.proof, Changes(sets={"a": (Json(b"2"), 0)}))
    assert store.load("a") is None
