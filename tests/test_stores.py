"""Every store keeps the contract; the suite catches those that do not; and what each store has of its own."""

import re
import sys
import threading
import tracemalloc
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessiontree import (
    BadSession,
    CompareFailed,
    ConfigError,
    Conflict,
    KeyNotFound,
    RecordTooLarge,
    SessionGone,
    StoreCorrupt,
    StoreUnavailable,
    UsageError,
)
from sessiontree.clock import FOREVER, SystemClock
from sessiontree.records import (
    FORM,
    KEEP,
    LARGEST,
    Changes,
    Json,
    Page,
    Record,
    Version,
    changed,
    check_size,
    label_changes,
    pack,
    packed,
    reidentified,
    relabelled,
    split,
    unpack,
    unpacked,
)
from sessiontree.serializer import JsonSerializer
from sessiontree.stores import PerKey, Store, open_store
from sessiontree.stores import memory as memory_module
from sessiontree.stores.conformance import StoreConformance
from sessiontree.stores.conformance.tools import (
    LATE,
    OTHER_PROOF,
    PROOF,
    TurningClock,
    at_once,
    contents,
    fields,
    fresh_handle,
    js,
    json_values,
    key_names,
    new,
)
from sessiontree.stores.memory import MemoryStore
from sessiontree.testing import FakeClock, FaultyStore

ROOT = Path(__file__).resolve().parent.parent
quick = settings(deadline=None, max_examples=100)


@pytest.fixture
def clock():
    return TurningClock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


# -- every store under the suite --------------------------------------------------------------


class TestMemoryStore(StoreConformance):
    def make_store(self, clock):
        return MemoryStore(clock=clock)


class TestFaultyStore(StoreConformance):
    def make_store(self, clock):
        return FaultyStore(MemoryStore(clock=clock))


class TestSqliteStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.path = tmp_path / "sessions.db"

    def make_store(self, clock):
        from sessiontree.stores.sqlite import SqliteStore  # noqa: PLC0415 - tests of other stores run without it

        return SqliteStore(self.path, clock=clock)

    def reopen(self, store):
        return type(store)(self.path, clock=store.clock)


def documented_store():
    """Return the class that docs/stores.md shows."""
    [code] = [
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/stores.md").read_text(), re.DOTALL)
        if "class DictStore" in block
    ]
    scope = {"__name__": "documented"}
    exec(compile(code, "docs/stores.md", "exec"), scope)  # noqa: S102 - it is our own
    return scope["DictStore"]


class TestDocumentedStore(StoreConformance):
    def make_store(self, clock):
        return documented_store()(clock=clock)


def test_the_other_examples_on_the_page_run():
    page = (ROOT / "docs/stores.md").read_text()
    blocks = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "open_store" in block]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/stores.md", "exec"), {})  # noqa: S102 - it is our own


# -- the suite catches stores that break the contract -----------------------------------------


class Upserts(MemoryStore):
    def apply(self, handle, proof, changes):
        if self._get(handle) is None:
            self.create(Record(handle, "user", 0, FOREVER, FOREVER, FOREVER, proof, 0))
        return super().apply(handle, proof, changes)


class LosesUpdates(MemoryStore):
    def apply(self, handle, proof, changes):
        old = self.load(handle)
        threading.Event().wait(0.0005)
        record, sums = changed(old, proof, changes, self.clock.now())
        with self._lock:
            self._replace(self._get(handle), record)
        return Version.of(record.version, sums)


class LoadsExpired(MemoryStore):
    def load(self, handle, keys=None):
        return self._get(handle)


class Overwrites(MemoryStore):
    def create(self, record):
        self.revoke(record.handle)
        super().create(record)


class LeavesLabels(MemoryStore):
    def revoke(self, handle):
        return self._shards.get(handle[:2], {}).pop(handle, None) is not None

    def count(self, label, *values):
        return sum(len(self._handles_of(label, value)) for value in values)


class IgnoresProof(MemoryStore):
    def apply(self, handle, proof, changes):
        record = self.load(handle)
        return super().apply(handle, record.proof if record else proof, changes)


class BringsBack(MemoryStore):
    def _remove_if_same(self, seen):
        pass


class DeletesProlonged(MemoryStore):
    def _remove_if_same(self, seen):
        self.revoke(seen.handle)


class SweepsProlonged(MemoryStore):
    def create(self, record):
        super().create(record)
        self.ends = {**getattr(self, "ends", {}), record.handle: record.ends}

    def sweep(self, limit=1000):
        over = [handle for handle, ends in self.ends.items() if ends <= self.clock.now() - 3_600_000]
        return sum(bool(self._get(handle) and (self.revoke(handle) or True)) for handle in over[:limit])


class NeverCompares(MemoryStore):
    def apply(self, handle, proof, changes):
        return super().apply(handle, proof, changes._replace(expects={}))


class KeepsNoDeadline(MemoryStore):
    def apply(self, handle, proof, changes):
        sets = {key: (content, max(deadline, 0)) for key, (content, deadline) in changes.sets.items()}
        return super().apply(handle, proof, changes._replace(sets=sets))


class TakesKeepForATime(MemoryStore):
    def apply(self, handle, proof, changes):
        sets = {key: (content, deadline * 2) for key, (content, deadline) in changes.sets.items()}
        return super().apply(handle, proof, changes._replace(sets=sets))


class KeepsWhatItReadBefore(MemoryStore):
    def apply(self, handle, proof, changes):
        before = self.load(handle).contents(self.clock.now())
        threading.Event().wait(0.0005)
        sets = {
            key: (content, before.get(key, (None, 0))[1] if deadline == KEEP else deadline)
            for key, (content, deadline) in changes.sets.items()
        }
        return super().apply(handle, proof, changes._replace(sets=sets))


class AppliesInSteps(MemoryStore):
    def apply(self, handle, proof, changes):
        for label, value in changes.labels.items():
            super().apply(handle, proof, Changes(labels={label: value}))
        return super().apply(handle, proof, changes)


class CountsTouches(MemoryStore):
    def apply(self, handle, proof, changes):
        return super().apply(handle, proof, changes._replace(sets=changes.sets or {"": (b"", 1)}))


class LivesToItsDeadline(MemoryStore):
    def load(self, handle, keys=None):
        record = self._get(handle)
        return record if record and record.ends == self.clock.now() else super().load(handle, keys)


class PagesByOffset(MemoryStore):
    def find(self, label, value, after=None, limit=100):
        start = int(after or 0)
        records = [self._get(handle) for handle, _ in self._handles_of(label, value)]
        more = len(records) > start + limit
        return Page(records[start : start + limit], str(start + limit) if more else None)


class SweepsAtOnce(MemoryStore):
    def sweep(self, limit=1000):
        return self._remove_where(
            [record.handle for record in self._in_order("")], lambda record: record.ends <= self.clock.now(), limit
        )


class SweepsBoundlessly(MemoryStore):
    def sweep(self, limit=1000):
        return super().sweep(1_000_000)


class KeepsGrace(MemoryStore):
    def apply(self, handle, proof, changes):
        record = self.load(handle)
        late = record is not None and record.admits(proof, self.clock.now())
        return super().apply(handle, record.proof if late else proof, changes)


class TakesAnySize(MemoryStore):
    def apply(self, handle, proof, changes):
        self.largest = 1 << 30
        try:
            return super().apply(handle, proof, changes)
        finally:
            self.largest = LARGEST


class RefusesNothingClosed(MemoryStore):
    def _check_open(self):
        pass


SUITE = StoreConformance()
BROKEN = [
    (Upserts, SUITE.test_a_write_to_what_is_absent_is_refused_and_writes_nothing, ["sets"]),
    (Upserts, SUITE.test_a_write_after_the_revoke_is_refused_and_revives_nothing, ["labels"]),
    (LosesUpdates, SUITE.test_concurrent_increments_are_exact, ["other"]),
    (LosesUpdates, SUITE.test_different_keys_of_concurrent_writers_all_survive, ["other"]),
    (LosesUpdates, SUITE.test_of_comparisons_at_once_one_wins, ["other"]),
    (LoadsExpired, SUITE.test_live_means_before_each_deadline, ["clock", "idle", 1]),
    (Overwrites, SUITE.test_creating_a_live_handle_conflicts_and_changes_nothing, []),
    (Overwrites, SUITE.test_of_creators_at_once_one_wins, ["other"]),
    (LeavesLabels, SUITE.test_a_revoked_session_is_gone_for_every_later_verb, ["other"]),
    (IgnoresProof, SUITE.test_a_write_with_another_proof_is_refused, ["sets", b"x"]),
    (IgnoresProof, SUITE.test_a_handle_created_again_is_a_new_life, []),
    (BringsBack, SUITE.test_seen_expiry_is_final, ["clock", "own", False]),
    (DeletesProlonged, SUITE.test_a_touch_just_before_expiry_is_seen_makes_the_record_stay, ["other", "clock"]),
    (SweepsProlonged, SUITE.test_a_sweep_leaves_what_was_prolonged, ["clock"]),
    (NeverCompares, SUITE.test_other_contents_than_expected_fail_the_comparison, [{"a": js(2)}]),
    (NeverCompares, SUITE.test_of_comparisons_at_once_one_wins, ["other"]),
    (KeepsNoDeadline, SUITE.test_a_key_that_is_set_to_keep_its_deadline_has_the_one_that_it_had, ["clock", {}]),
    (KeepsNoDeadline, SUITE.test_a_deadline_is_kept_beside_whatever_else_changes, ["clock"]),
    (TakesKeepForATime, SUITE.test_a_key_that_is_set_to_keep_its_deadline_has_the_one_that_it_had, ["clock", {}]),
    (KeepsWhatItReadBefore, SUITE.test_a_deadline_that_is_given_while_others_keep_it_stays, ["other"]),
    (AppliesInSteps, SUITE.test_changes_are_made_all_or_not_at_all, [CompareFailed]),
    (AppliesInSteps, SUITE.test_the_version_grows_by_one_with_each_write, []),
    (CountsTouches, SUITE.test_a_touch_moves_deadlines_and_keeps_the_version, ["clock"]),
    (LivesToItsDeadline, SUITE.test_live_means_before_each_deadline, ["clock", "absolute", 1]),
    (PagesByOffset, SUITE.test_every_survivor_is_found_once_while_records_go_between_pages, [2]),
    (PagesByOffset, SUITE.test_paging_goes_on_behind_a_record_that_is_gone, []),
    (SweepsAtOnce, SUITE.test_a_sweep_removes_what_expired_an_hour_ago, ["clock", "idle"]),
    (SweepsBoundlessly, SUITE.test_a_sweep_removes_at_most_its_limit, ["clock", 0]),
    (KeepsGrace, SUITE.test_a_replaced_proof_may_read_in_its_grace_and_never_write, ["clock"]),
    (TakesAnySize, SUITE.test_a_write_may_fill_the_record_and_no_byte_more, []),
    (RefusesNothingClosed, SUITE.test_a_closed_store_says_so_to_every_verb, []),
]


def run_case(kind, case, arguments):
    clock = TurningClock()
    store = kind(clock=clock)
    case(
        store,
        *({"clock": clock, "other": store}.get(each, each) if isinstance(each, str) else each for each in arguments),
    )


@pytest.mark.parametrize(
    ("kind", "case", "arguments"), BROKEN, ids=[f"{kind.__name__}-{case.__name__}" for kind, case, _ in BROKEN]
)
def test_the_suite_catches_a_store_that_breaks_the_contract(kind, case, arguments):
    run_case(MemoryStore, case, arguments)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_case(kind, case, arguments)


def test_a_subclass_without_a_store_is_told_what_to_define():
    with pytest.raises(NotImplementedError, match="make_store"):
        SUITE.make_store(FakeClock())


# -- records ----------------------------------------------------------------------------------


def a_record(**more):
    plain = {"created": 0, "absolute": FOREVER, "own": FOREVER, "idle": FOREVER, "proof": PROOF, "seen": 0}
    return Record("handle", "user", **{**plain, **more})


@pytest.mark.parametrize("deadlines", [{}, {"user": 5}])
def test_packed_fields_keep_no_more_memory_than_their_bytes(deadlines):
    values = {"user": 48213, "theme": "dark"}
    assert sys.getsizeof(packed(values, deadlines)) == sys.getsizeof(b"") + len(packed(values, deadlines))
    tracemalloc.start()
    try:
        kept = [packed(values, deadlines) for _ in range(1000)]
        assert tracemalloc.get_traced_memory()[0] < 1000 * (sys.getsizeof(kept[0]) + 32)
    finally:
        tracemalloc.stop()


@quick
@given(
    st.dictionaries(key_names, st.tuples(st.binary() | json_values.map(js), st.integers(1, FOREVER - 1) | st.just(0)))
)
def test_contents_come_back_as_they_were_set(data):
    record, _ = changed(a_record(), PROOF, Changes(sets=data), 0)
    found = record.contents(0)
    assert found == data
    assert [type(found[key][0]) for key in data] == [type(content) for content, _ in data.values()]
    assert record.only(list(data)[:1]).contents(0) == {key: data[key] for key in list(data)[:1]}


@pytest.mark.parametrize(
    "value", [b"", b"\0\xff", {"$dict": {"$bytes": "x"}}, (1, 2), "\n", {"a": [None, 1.5]}], ids=ascii
)
def test_what_the_serializer_writes_is_a_content(value):
    serializer = JsonSerializer()
    content = Json(serializer.dumps(value))
    record, _ = changed(a_record(), PROOF, Changes(sets={"k": (content, 0)}), 0)
    found, _ = record.contents(0)["k"]
    assert (serializer.loads(bytes(found)) if isinstance(found, Json) else found) == value


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff", b"{}\n[]", b"{}\n{", b"{}{}", b"{}\n{}\n{}", b'{"a":NaN}'],
)
def test_garbage_is_a_value_error_and_nothing_else(garbage):
    with pytest.raises(ValueError, match="."):  # noqa: RUF043 - whatever it says
        unpacked(garbage)
    for call in (lambda r: r.contents(0), lambda r: r.only(["a"])):
        with pytest.raises(ValueError, match="."):  # noqa: RUF043 - as above
            call(a_record(fields=garbage))


@quick
@given(st.binary(max_size=40))
def test_any_bytes_are_fields_or_a_value_error(data):
    try:
        values, deadlines = unpacked(data)
    except ValueError:
        return
    assert isinstance(values, dict)
    assert isinstance(deadlines, dict)


@pytest.mark.parametrize("kind", LATE)
def test_nothing_is_changed_in_what_is_not_the_writers(kind):
    for record, proof in [
        (a_record(), OTHER_PROOF),
        (a_record(idle=5), PROOF),
        (a_record(previous=b"x", grace=9), b"x"),
    ]:
        with pytest.raises(SessionGone):
            changed(record, proof, LATE[kind], 5)


def test_a_change_leaves_the_record_that_it_came_from_alone():
    record = a_record(fields=fields(n=js(1)))
    after, sums = changed(record, PROOF, Changes(adds={"n": 1}), 7)
    assert (record.contents(0)["n"], after.contents(0)["n"], sums) == ((js(1), 0), (js(2), 0), {"n": 2})
    assert (after.version, after.seen) == (2, 7)


@pytest.mark.parametrize("kind", LATE)
def test_what_changes_say_of_a_record_but_its_fields_is_said_without_them(kind):
    record = a_record(fields=fields(n=js(1), k=js("v")), labels='{"subject":"ann"}')
    after, _ = changed(record, PROOF, LATE[kind], 7)
    assert reidentified(record, LATE[kind], 7) == after._replace(fields=record.fields, version=record.version)


@pytest.mark.parametrize("name", ["agent", "address", "labels"])
def test_what_does_not_fit_beside_the_fields_says_where_it_belongs(name):
    assert unpack("handle", pack(a_record(**{name: "x" * 60_000}))) is not None
    with pytest.raises(UsageError, match="65535 fit"):
        pack(a_record(**{name: "x" * 66_000}))


def test_packed_fields_split_into_values_and_deadlines():
    assert split(fields(n=js(1))) == (b'{"n":1}', b"")
    assert split(fields(n=js(1), c=(js(2), 9))) == (b'{"n":1,"c":2}', b'{"c":9}')


def test_expired_keys_are_dropped_with_the_next_write():
    record = a_record(fields=fields(a=(js(1), 5), b=(js(2), 6)))
    after, _ = changed(record, PROOF, Changes(sets={"c": (js(3), 0)}), 5)
    assert unpacked(after.fields) == ({"b": 2, "c": 3}, {"b": 6})


def test_set_and_increment_of_one_key_in_one_change_add_to_what_is_set():
    after, sums = changed(a_record(), PROOF, Changes(sets={"n": (js(40), 9)}, adds={"n": 2}), 0)
    assert (after.contents(0), sums) == ({"n": (js(42), 9)}, {"n": 42})


def test_a_deadline_is_kept_by_who_says_so_and_by_nobody_else():
    record = a_record(fields=fields(a=(js(1), 9), b=(js(1), 9), c=(js(1), 5), n=(js(1), 9)))
    kept = {key: (js(2), KEEP) for key in ("a", "c", "n", "new")}
    after, sums = changed(record, PROOF, Changes(sets={**kept, "b": (js(2), 0)}, adds={"n": 40}), 5)
    assert (unpacked(after.fields), sums) == (
        ({"a": 2, "b": 2, "n": 42, "c": 2, "new": 2}, {"a": 9, "n": 9}),
        {"n": 42},
    )
    removed, _ = changed(record, PROOF, Changes(sets={"a": (js(2), KEEP)}, deletes=("a",)), 5)
    assert removed.contents(5)["a"] == (js(2), 0), "It was removed, and then there was nothing to keep."


def test_labels_are_set_and_removed():
    assert relabelled("", {"a": "1"}) == '{"a":"1"}'
    assert orjson.loads(relabelled('{"a":"1"}', {"b": "2"})) == {"a": "1", "b": "2"}
    assert relabelled('{"a":"1"}', {"a": None, "b": None}) == ""


def test_what_differs_between_the_labels_of_two_records_is_listed_with_both_values():
    one, other = a_record(labels='{"a":"1","b":"2","c":"3"}'), a_record(labels='{"a":"1","b":"4","d":"5"}')
    assert sorted(label_changes(one, other)) == [("b", "2", "4"), ("c", "3", None), ("d", None, "5")]
    assert list(label_changes(one, one)) == []
    assert list(label_changes(a_record(), a_record(labels='{"a":"1"}'))) == [("a", None, "1")]
    assert a_record(labels='{"a":"1"}').label == {"a": "1"}
    assert a_record().label == {}


def test_the_size_that_is_too_large_is_said():
    check_size(b"12345", 5)
    with pytest.raises(RecordTooLarge, match="6 bytes and this store keeps 5"):
        check_size(b"123456", 5)


def test_a_record_ends_with_the_first_of_its_deadlines():
    assert [a_record(**{name: 5}).ends for name in ("absolute", "own", "idle")] == [5] * 3
    assert a_record(idle=5).is_live(4)
    assert not a_record(idle=5).is_live(5)


def test_a_newer_form_is_unavailable():
    a_record().check_form()
    with pytest.raises(StoreUnavailable, match="newer release"):
        a_record(form=FORM + 1).check_form()


def test_an_empty_previous_proof_admits_nobody():
    record = a_record(grace=FOREVER)
    assert record.admits(PROOF, 0)
    assert not record.admits(OTHER_PROOF, 0)


# -- PerKey -----------------------------------------------------------------------------------


@pytest.fixture
def keys(store):
    return PerKey(store)


def test_per_key_puts_gets_and_deletes(store, keys):
    handle = new(store, fields=fields(theme=js("dark"))).handle
    assert keys.get(handle, "theme") == b'"dark"'
    assert type(keys.get(handle, "theme")) is bytes
    keys.put(handle, "a", b"\0\xff")
    assert keys.get(handle, "a") == b"\0\xff"
    keys.put(handle, "a", b"")
    assert keys.get(handle, "a") == b""
    keys.delete(handle, "a")
    keys.delete(handle, "a")
    assert keys.get(handle, "a") is None
    assert contents(store, handle) == {"theme": js("dark")}


@pytest.mark.parametrize("max_age", [None, 0, 0.0])
def test_per_key_without_a_life_never_expires_by_itself(store, keys, clock, max_age):
    handle = new(store, idle=clock.now() + 9000).handle
    keys.put(handle, "a", b"1", 1)
    keys.put(handle, "a", b"1", max_age)
    assert keys.time_to_expiry(handle, "a") == 9
    forever = new(store).handle
    keys.put(forever, "a", b"1", max_age)
    assert keys.time_to_expiry(forever, "a") is None


def test_per_key_a_positive_life_is_as_long_as_it_says_and_no_longer_than_the_session(store, keys, clock):
    handle = new(store, idle=clock.now() + 9000).handle
    keys.put(handle, "a", b"1", 2)
    keys.put(handle, "b", b"1", 20)
    assert (keys.time_to_expiry(handle, "a"), keys.time_to_expiry(handle, "b")) == (2, 9)
    clock.advance(1.999)
    assert keys.get(handle, "a") == b"1"
    clock.advance(0.001)
    assert keys.get(handle, "a") is None
    with pytest.raises(KeyNotFound):
        keys.time_to_expiry(handle, "a")


@pytest.mark.parametrize("max_age", [-1, -0.0001, -1e9])
def test_per_key_a_negative_life_expires_the_key_now(store, keys, max_age):
    handle = new(store).handle
    keys.put(handle, "a", b"1")
    keys.put(handle, "a", b"2", max_age)
    assert keys.get(handle, "a") is None


def test_per_key_says_what_is_missing(keys, store):
    handle = fresh_handle()
    assert keys.get(handle, "a") is None
    for call in (
        lambda: keys.put(handle, "a", b""),
        lambda: keys.put(handle, "a", b"", -1),
        lambda: keys.delete(handle, "a"),
        lambda: keys.time_to_expiry(handle, "a"),
    ):
        with pytest.raises(BadSession):
            call()
    assert store.load(handle) is None
    with pytest.raises(KeyNotFound, match="'a'"):
        keys.time_to_expiry(new(store).handle, "a")


@pytest.mark.parametrize("content", ["text", 1, None, bytearray(b"x")])
def test_per_key_takes_bytes_alone(keys, store, content):
    handle = new(store).handle
    with pytest.raises(TypeError, match="bytes"):
        keys.put(handle, "a", content)


def test_per_key_writes_though_the_session_is_renewed_meanwhile(store):
    handle = new(store).handle
    faulty = FaultyStore(store)
    faulty.delay(1, lambda: store.apply(handle, PROOF, Changes(proof=OTHER_PROOF)), verb="apply")
    PerKey(faulty).put(handle, "a", b"1")
    assert contents(store, handle) == {"a": b"1"}
    assert [verb for verb, _ in faulty.calls] == ["load", "apply"] * 2


# -- open_store -------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["memory:", "MEMORY:", "memory://", "memory:///"])
def test_a_memory_store_opens_by_its_url(url, clock):
    store = open_store(url, clock=clock)
    assert type(store) is MemoryStore
    assert store.clock is clock
    assert open_store(url).clock == SystemClock()
    assert open_store(url, largest=7).largest == 7


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "''"), ("memory", "'memory'"), ("oracle://x", "'oracle'"), (":", "''"), ("/srv/x.db", "memory:, sqlite:"),
        ("memory:x", "memory:x"), ("memory://host", "memory:"), ("sqlite:", "sqlite:///"), ("sqlite:x.db", "sqlite:///"),
        ("sqlite://x.db", "sqlite:///"), ("sqlite:///", "sqlite:///"), ("sqlite://host/x.db", "sqlite:///"),
    ],
)  # fmt: skip
def test_what_is_no_store_url_is_a_config_error(url, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        open_store(url)


@pytest.mark.parametrize("url", [None, 5, b"memory:", Path("x")])
def test_a_url_is_a_str(url):
    with pytest.raises(ConfigError, match="URL"):
        open_store(url)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_sqlite_store_opens_by_a_relative_or_an_absolute_path(tmp_path, monkeypatch, clock, absolute):
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/sessions.db" if absolute else "sqlite:///sessions.db"
    store = open_store(url, clock=clock)
    handle = new(store).handle
    store.close()
    assert (tmp_path / "sessions.db").is_file()
    again = open_store(url, clock=clock)
    assert again.load(handle) is not None
    again.close()


@pytest.mark.parametrize("url", ["sqlite:///a.db\n", "sqlite:///a\r.db", "redis://:secret@host\n", "memory:\t"])
def test_a_url_with_the_end_of_its_line_makes_no_file_of_another_name(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"strip\(\)") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_sqlite_store_that_cannot_be_opened_is_an_error_of_ours(tmp_path):
    with pytest.raises(ConfigError, match="folder"):
        open_store(f"sqlite:///{tmp_path}/missing/sessions.db")
    (tmp_path / "seen.db").touch(mode=0o644)
    with pytest.raises(ConfigError, match="chmod"):
        open_store(f"sqlite:///{tmp_path}/seen.db")
    (tmp_path / "junk.db").touch(mode=0o600)
    (tmp_path / "junk.db").write_bytes(b"junk" * 1000)
    with pytest.raises(StoreCorrupt):
        open_store(f"sqlite:///{tmp_path}/junk.db")
    page = (Path(__file__).parents[1] / "docs/stores.md").read_text()
    assert "such\nas a folder that does not exist or a file that others may read; `StoreUnavailable`" in page


# -- what a MemoryStore has of its own --------------------------------------------------------


class CountingLock:
    def __init__(self):
        self.lock, self.count = threading.Lock(), 0

    def __enter__(self):
        self.lock.acquire()
        self.count += 1

    def __exit__(self, *_):
        self.lock.release()


def test_a_sweep_lets_others_have_the_lock_after_each_chunk(store, clock):
    for _ in range(600):
        new(store, idle=clock.now())
    for _ in range(600):
        new(store)
    clock.advance(3600)
    store._lock = CountingLock()
    assert store.sweep() == 600
    assert store._lock.count == -(-600 // memory_module.CHUNK)
    assert store.sweep() == 0
    assert store._lock.count == 3, "What has not expired costs no lock."
    assert len(store) == 600


def test_reading_takes_no_lock(store):
    handle = new(store, labels={"subject": "bob"}).handle
    store._lock = CountingLock()
    store.load(handle)
    store.load(handle, ["a"])
    store.load_many([handle])
    store.find("subject", "bob")
    store.count("subject", "bob")
    store.scan()
    assert store._lock.count == 0


def test_readers_beside_writers_never_fail(store):
    done = threading.Event()

    def write():
        while not done.is_set():
            handle = new(store, labels={"subject": "bob"}).handle
            store.apply(handle, PROOF, Changes(idle=store.clock.now()))
            store.load(handle)

    def read():
        try:
            for _ in range(200):
                store.scan()
                store.find("subject", "bob")
                store.count("subject", "bob")
                store.sweep()
                store.sweep_idle(60)
                len(store)
        finally:
            done.set()

    assert at_once(write, write, read, read) == [None] * 4


def test_a_memory_store_leaves_nothing_of_what_it_forgot(store, clock):
    for number in range(50):
        record = new(store, labels={"subject": str(number)}, idle=clock.now() + 60_000 * number + 1)
        store.apply(record.handle, PROOF, Changes(labels={"worker": "1"}, idle=clock.now() + 120_000 * number + 1))
        if number % 2:
            store.revoke(record.handle)
    clock.advance(86_400)
    assert store.sweep() == 25
    assert (len(store), store._shards, store._buckets, store._labelled) == (0, {}, {}, {})
    assert store, "A store is true, also while empty."


def test_a_session_relabelled_meanwhile_counts_once_and_outlives_its_old_label(store):
    """A session that is relabelled while it is counted is met under both values."""
    record = new(store, labels={"worker": "1"})
    taken = store._handles_of
    listed = taken("worker", "1")
    store._handles_of = lambda label, value: listed if value == "1" else taken(label, value)
    store.apply(record.handle, PROOF, Changes(labels={"worker": "2"}))
    assert store.count("worker", "1", "2") == 1
    assert store.find("worker", "1").records == []
    assert store.revoke_where("worker", "1") == 0
    assert store.load(record.handle) is not None


def test_a_session_that_gets_another_of_the_counted_values_meanwhile_counts(store):
    """None is met under neither value, because it left the second for the first between the two looks."""
    record = new(store, labels={"worker": "2"})
    taken = store._handles_of

    def listed(label, value):
        found = taken(label, value)
        if store._lock.acquire(blocking=False):  # Others can write now.
            store._lock.release()
            store.apply(record.handle, PROOF, Changes(labels={"worker": "1"}))
        return found

    store._handles_of = listed
    assert store.count("worker", "1", "2") == 1


def test_a_memory_store_takes_a_limit():
    store = MemoryStore(largest=20)
    assert isinstance(store, Store)
    assert store.clock == SystemClock()
    assert MemoryStore().largest == LARGEST
    with pytest.raises(RecordTooLarge):
        new(store, fields=fields(a=js("x" * 20)))
    handle = new(store).handle
    with pytest.raises(Conflict):
        new(store, handle)
    store.close()
    with pytest.raises(UsageError):
        store.load(handle)
