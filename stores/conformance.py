"""The conformance suite: what ``protocol.py`` says, sentence by sentence, for any store.

It needs pytest and hypothesis. A store's test file is this:

    import pytest
    from sessiontree.stores.conformance import StoreConformance

    class TestMyStore(StoreConformance):
        @pytest.fixture(autouse=True)
        def _folder(self, tmp_path):
            self.path = tmp_path / "data"

        def make_store(self, clock):           # a fresh, empty store
            return MyStore(self.path, clock=clock)

        def reopen(self, store):               # a second one on the same data; leave it out if there is none
            return MyStore(self.path, clock=store.clock)

So that a failure shows the values it compared, the first lines of its ``conftest.py`` are these:

    import pytest
    pytest.register_assert_rewrite(
        "sessiontree.stores.conformance",
        "sessiontree.stores.conformance_cases",
        "sessiontree.stores.conformance_tools",
    )
"""

import string
from collections.abc import Callable
from functools import partial
from threading import Event, Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ..clock import FOREVER, FakeClock
from ..errors import (
    CompareFailed,
    RecordTooLarge,
    SessionGone,
    UsageError,
)
from ..records import Changes, Content, Version, unpacked
from .conformance_cases import Applying, Creating, Loading, Revoking, Watching
from .conformance_tools import (
    DEADLINES,
    OTHER_PROOF,
    PROOF,
    StoreCases,
    TurningClock,
    all_pages,
    applier,
    at_once,
    contents,
    examples,
    fields,
    fresh_handle,
    handles_of,
    js,
    json_values,
    key_names,
    loaded,
    new,
)
from .protocol import SWEEP_MARGIN_MS, Pipelining, Store

__all__ = ["StoreConformance"]

HOUR = 3600
STRANGE_KEYS = (
    "", "\0", "a\0b", "\U0001f36a", "\U00020000", "e\u0301", "é", "k" * 5000, "__proto__", "constructor", "$date",
    "$bytes", "$.a", "a.b", "a[0]", '"', "\\", "\n", "\r\n", "'", "%", "{}", " ", "A", "a", "\ufeff", "\u202e", "1",
)  # fmt: skip


class Labelling(StoreCases):
    """``find``, ``count``, ``relabel`` and ``revoke_where``."""

    def test_records_are_found_in_the_order_of_getting_the_label(self, store: Store) -> None:
        records = [new(store) for _ in range(6)]
        order = [records[place] for place in (3, 0, 5, 1, 4, 2)]
        for record in order:
            store.apply(record.handle, PROOF, Changes(labels={"subject": "bob"}))
        last = new(store, labels={"subject": "bob"})
        expected = [record.handle for record in (*order, last)]
        assert handles_of(store.find("subject", "bob")) == expected
        for limit in range(1, len(expected) + 2):
            assert all_pages(partial(store.find, "subject", "bob"), limit) == expected

    def test_nothing_found_is_an_empty_last_page(self, store: Store) -> None:
        assert store.find("subject", "nobody") == ([], None)

    def test_found_records_are_whole(self, store: Store) -> None:
        record = new(store, labels={"subject": "bob"}, fields=fields(a=js(1)))
        assert store.find("subject", "bob").records == [store.load(record.handle)]

    @pytest.mark.parametrize("limit", range(1, 9))
    def test_every_survivor_is_found_once_while_records_go_between_pages(self, store: Store, limit: int) -> None:
        records = [new(store, labels={"subject": "bob"}).handle for _ in range(8)]
        doomed = [records[0], records[7], records[3], records[4]]
        found = all_pages(
            partial(store.find, "subject", "bob"),
            limit,
            lambda: store.revoke((doomed or [""]).pop()),
        )
        survivors = [handle for handle in records if store.load(handle)]
        assert [handle for handle in found if handle in survivors] == survivors
        assert len(found) == len(set(found))

    def test_paging_goes_on_behind_a_record_that_is_gone(self, store: Store) -> None:
        records = [new(store, labels={"subject": "bob"}).handle for _ in range(4)]
        page = store.find("subject", "bob", None, 2)
        for handle in records[:2]:
            store.revoke(handle)
        assert handles_of(store.find("subject", "bob", page.after, 2)) == records[2:]

    def test_a_record_that_gets_the_label_again_goes_to_the_end(self, store: Store) -> None:
        first, second = (new(store, labels={"subject": "bob"}).handle for _ in range(2))
        store.apply(first, PROOF, Changes(labels={"subject": None}))
        assert loaded(store, first).label == {}
        assert handles_of(store.find("subject", "bob")) == [second]
        store.apply(first, PROOF, Changes(labels={"subject": "bob"}))
        assert handles_of(store.find("subject", "bob")) == [second, first]

    def test_a_record_keeps_its_place_while_it_keeps_the_label(self, store: Store) -> None:
        first, second = (new(store, labels={"subject": "bob"}).handle for _ in range(2))
        for labels in ({"worker": "1"}, {"worker": None}, {"subject": "bob"}):
            store.apply(first, PROOF, Changes(labels=labels))
            assert handles_of(store.find("subject", "bob")) == [first, second], labels

    def test_a_new_life_gets_its_labels_anew(self, store: Store, clock: FakeClock) -> None:
        for over in (True, False):
            first = new(store, idle=clock.now() + 1, labels={"subject": "bob"}).handle
            second = new(store, labels={"subject": "bob"}).handle
            if over:
                clock.advance(0.001)
            else:
                store.revoke(first)
            new(store, first, proof=OTHER_PROOF, labels={"subject": "bob"})
            assert handles_of(store.find("subject", "bob")) == [second, first]
            store.revoke_where("subject", "bob")

    def test_a_label_has_one_value_and_leaves_the_others_alone(self, store: Store) -> None:
        record = new(store, labels={"subject": "bob", "worker": "1"})
        store.apply(record.handle, PROOF, Changes(labels={"subject": "eve", "parent": "x"}))
        assert loaded(store, record.handle).label == {"subject": "eve", "worker": "1", "parent": "x"}
        assert [store.count(*pair) for pair in [("subject", "bob"), ("subject", "eve"), ("worker", "1")]] == [0, 1, 1]

    def test_expired_records_are_neither_found_nor_counted(self, store: Store, clock: FakeClock) -> None:
        new(store, idle=clock.now() + 1000, labels={"subject": "bob"})
        stays = new(store, labels={"subject": "bob"}).handle
        assert store.count("subject", "bob") == 2
        clock.advance(1)
        assert store.count("subject", "bob") == 1
        assert handles_of(store.find("subject", "bob")) == [stays]

    def test_expired_records_take_no_place_on_a_page(self, store: Store, clock: FakeClock) -> None:
        for _ in range(5):
            new(store, idle=clock.now() + 1, labels={"subject": "bob"})
        stays = [new(store, labels={"subject": "bob"}).handle for _ in range(2)]
        clock.advance(1)
        assert all_pages(partial(store.find, "subject", "bob"), 2) == stays

    def test_count_takes_any_number_of_values(self, store: Store) -> None:
        for value in ("a", "a", "b", "c"):
            new(store, labels={"worker": value})
        asked = [(), ("a",), ("a", "b"), ("a", "a"), ("a", "b", "c", "d"), ("d",)]
        assert [store.count("worker", *values) for values in asked] == [0, 2, 3, 2, 4, 0]
        assert store.count("another", "a") == 0

    def test_relabel_moves_every_live_record(self, store: Store, other: Store, clock: FakeClock) -> None:
        moved = [new(store, labels={"worker": "1", "subject": "bob"}) for _ in range(3)]
        before, stays = new(store, labels={"worker": "2"}), new(store, labels={"worker": "3"})
        new(store, idle=clock.now(), labels={"worker": "1"})
        assert store.relabel("worker", "1", "2") == 3
        assert handles_of(other.find("worker", "2"))[0] == before.handle
        assert set(handles_of(other.find("worker", "2"))) == {before.handle, *(record.handle for record in moved)}
        assert (store.count("worker", "1"), store.count("worker", "3"), store.count("subject", "bob")) == (0, 1, 3)
        found = loaded(store, moved[0].handle)
        assert (found.label, found.version) == ({"worker": "2", "subject": "bob"}, moved[0].version + 1)
        assert loaded(store, stays.handle).label == {"worker": "3"}
        assert store.relabel("worker", "1", "2") == 0

    def test_revoke_where_ends_every_session_of_the_label(self, store: Store, other: Store, clock: FakeClock) -> None:
        bobs = [new(store, labels={"subject": "bob"}).handle for _ in range(250)]
        stays = new(store, labels={"subject": "eve", "worker": "bob"}).handle
        new(store, idle=clock.now(), labels={"subject": "bob"})
        assert store.revoke_where("subject", "bob") == 250
        assert other.load_many([*bobs, stays]).keys() == {stays}
        assert store.count("subject", "bob") == 0
        assert store.revoke_where("subject", "bob") == 0
        with pytest.raises(SessionGone):
            store.apply(bobs[0], PROOF, Changes())

    def test_names_and_values_of_labels_are_any_text(self, store: Store) -> None:
        @examples
        @given(key_names, key_names)
        def check(name: str, value: str) -> None:
            record = new(store, labels={name: value})
            assert handles_of(store.find(name, value)) == [record.handle]
            assert loaded(store, record.handle).label == {name: value}
            assert store.revoke_where(name, value) == store.count(name, value) + 1

        check()

    def test_values_of_labels_are_compared_exactly(self, store: Store) -> None:
        values = ["bob", "Bob", "bob ", "bo", "b%", "b_b", "é", "e\u0301", "", "bob\0"]
        for value in values:
            new(store, labels={"subject": value})
        assert [store.count("subject", value) for value in values] == [1] * len(values)


class Scanning(StoreCases):
    """``scan``."""

    def test_a_scan_pages_through_every_live_record(self, store: Store, clock: FakeClock) -> None:
        assert store.scan() == ([], None)
        new(store, idle=clock.now())
        expected = {new(store, fields=fields(a=js(number))).handle for number in range(7)}
        for limit in range(1, 9):
            found = all_pages(store.scan, limit)
            assert (set(found), len(found)) == (expected, 7)
        assert all(record == store.load(record.handle) for record in store.scan().records)

    @pytest.mark.parametrize("limit", [1, 2, 3, 7])
    def test_what_lives_through_the_whole_scan_comes_once(self, store: Store, limit: int) -> None:
        stays = {new(store).handle for _ in range(20)}
        goes = [new(store).handle for _ in range(10)]

        def between() -> None:
            new(store)
            if goes:
                store.revoke(goes.pop())
            store.apply(next(iter(stays)), PROOF, Changes(sets={"a": (js(1), 0)}, idle=FOREVER - 1))

        # A record is born for each page, so the pages could go on for ever: those that live through it suffice.
        found: list[str] = []
        page = store.scan(None, limit)
        while page.after is not None and len(found) < 500:
            found += handles_of(page)
            between()
            page = store.scan(page.after, limit)
        found += handles_of(page)
        assert sorted(handle for handle in found if handle in stays) == sorted(stays)
        assert len(found) == len(set(found))

    def test_a_scan_beside_writers_raises_nothing(self, store: Store, other: Store) -> None:
        stays = {new(store, labels={"subject": "bob"}).handle for _ in range(50)}
        done = Event()

        def write() -> None:
            while not done.is_set():
                other.revoke(new(other, labels={"subject": "bob"}).handle)

        def read() -> list[set[str]]:
            try:
                scans = [set(all_pages(store.scan, 7)) for _ in range(5)]
                return [*scans, set(all_pages(partial(store.find, "subject", "bob"), 7))]
            finally:
                done.set()

        results = at_once(write, write, read)
        assert results[:2] == [None, None]
        assert all(stays <= found for found in results[2]), results[2]


class Sweeping(StoreCases):
    """``sweep`` and ``sweep_idle``."""

    @pytest.mark.parametrize("deadline", DEADLINES)
    def test_a_sweep_removes_what_expired_an_hour_ago(self, store: Store, clock: FakeClock, deadline: str) -> None:
        record = new(store, labels={"subject": "bob"}, **{deadline: clock.now() + 1000})
        new(store)
        clock.advance(1 + SWEEP_MARGIN_MS / 1000 - 0.001)
        assert store.sweep() == 0, "The margin of one hour is not over."
        clock.advance(0.001)
        assert store.sweep() == 1
        assert store.sweep() == 0
        clock.advance(-2 * HOUR)
        assert store.load(record.handle) is None
        assert store.count("subject", "bob") == 0
        assert len(store.scan().records) == 1

    def test_a_sweep_leaves_what_is_within_its_margin_as_it_was(self, store: Store, clock: FakeClock) -> None:
        record = new(store, idle=clock.now() + 1000)
        clock.advance(HOUR)
        assert store.sweep() == 0
        clock.advance(-HOUR)
        assert store.load(record.handle) == record, "The clock of this machine was wrong: the session lives."

    @pytest.mark.parametrize("apart", [0, 100_000])
    def test_a_sweep_removes_at_most_its_limit(self, store: Store, clock: FakeClock, apart: int) -> None:
        for number in range(7):
            new(store, idle=clock.now() + apart * number)
        clock.advance(7 * HOUR)
        assert [store.sweep(3) for _ in range(4)] == [3, 3, 1, 0]

    def test_a_sweep_leaves_what_was_prolonged(self, store: Store, clock: FakeClock) -> None:
        records = [new(store, idle=clock.now() + 1000) for _ in range(3)]
        store.apply(records[0].handle, PROOF, Changes(idle=FOREVER))
        store.apply(records[1].handle, PROOF, Changes(idle=clock.now() + 1000 + HOUR * 1000))
        clock.advance(1 + HOUR)
        assert store.sweep() == 1
        clock.advance(-HOUR)
        assert [record.handle for record in records if store.load(record.handle)] == [
            records[0].handle,
            records[1].handle,
        ]

    def test_a_sweep_leaves_a_new_life_of_an_expired_handle(self, store: Store, clock: FakeClock) -> None:
        old = new(store, idle=clock.now() + 1000)
        clock.advance(2 * HOUR)
        new(store, old.handle, proof=OTHER_PROOF)
        assert store.sweep() == 0
        assert loaded(store, old.handle).proof == OTHER_PROOF

    def test_a_sweep_leaves_what_is_prolonged_as_it_begins(
        self, store: Store, other: Store, clock: TurningClock
    ) -> None:
        record = new(store, idle=clock.now() + 1000)
        answers: list[Any] = []
        touch = Thread(
            target=lambda: answers.extend(at_once(lambda: other.apply(record.handle, PROOF, Changes(idle=FOREVER))))
        )

        def between() -> None:
            touch.start()
            touch.join(0.3)
            clock.advance(2 * HOUR)

        clock.then = between
        removed = store.sweep()
        touch.join(30)
        assert (removed, isinstance(answers[0], SessionGone)) in {(0, False), (1, True), (0, True)}
        assert (store.load(record.handle) is None) == isinstance(answers[0], SessionGone)

    def test_two_sweeps_at_once_share_the_work(self, store: Store, other: Store, clock: FakeClock) -> None:
        for _ in range(200):
            new(store, idle=clock.now())
        live = [new(store).handle for _ in range(20)]
        clock.advance(HOUR)

        def sweep(each: Store) -> int:
            return sum(each.sweep(10) for _ in range(20))

        results = at_once(lambda: sweep(store), lambda: sweep(other))
        assert sum(results) + store.sweep() + store.sweep() == 200, results
        assert len(store.load_many(live)) == 20

    def test_sweep_idle_removes_what_was_last_seen_too_long_ago(self, store: Store, clock: FakeClock) -> None:
        records = [new(store, labels={"subject": "bob"}).handle for _ in range(3)]
        clock.advance(10)
        store.apply(records[0], PROOF, Changes(seen=clock.now()))
        store.apply(records[1], PROOF, Changes(sets={"a": (js(1), 0)}))
        assert store.sweep_idle(10) == 0, "More than that long ago, not exactly."
        clock.advance(0.001)
        assert store.sweep_idle(10) == 1
        assert handles_of(store.find("subject", "bob")) == records[:2]
        assert set(handles_of(store.scan())) == set(records[:2])

    def test_sweep_idle_removes_at_most_its_limit(self, store: Store, clock: FakeClock) -> None:
        for _ in range(4):
            new(store)
        for number in range(3):
            new(store, f"aa{number}")
        clock.advance(2)
        assert [store.sweep_idle(1, 3) for _ in range(4)] == [3, 3, 1, 0]


class AnyData(StoreCases):
    """Keys, contents and sizes."""

    def test_strange_keys_are_keys_like_others(self, store: Store) -> None:
        record = new(store)
        expected: dict[str, Content] = {key: js(key) for key in STRANGE_KEYS}
        for key, content in expected.items():
            store.apply(record.handle, PROOF, Changes(sets={key: (content, 0)}))
            found = store.load(record.handle, [key])
            assert found is not None
            assert found.contents(0) == {key: (content, 0)}
        assert contents(store, record.handle) == expected
        store.apply(record.handle, PROOF, Changes(deletes=STRANGE_KEYS[::2]))
        assert set(contents(store, record.handle)) == set(STRANGE_KEYS[1::2])

    def test_keys_are_any_text_and_contents_any_bytes_or_json(self, store: Store, other: Store) -> None:
        record = new(store)
        content = st.binary(max_size=200) | json_values.map(js)

        @examples
        @given(st.dictionaries(key_names, content, max_size=8))
        def check(data: dict[str, Content]) -> None:
            old = contents(store, record.handle)
            sets = {key: (content, 0) for key, content in data.items()}
            store.apply(record.handle, PROOF, Changes(sets=sets, deletes=old.keys() - data.keys()))
            found = contents(other, record.handle)
            assert found == data
            assert [type(found[key]) for key in data] == [type(content) for content in data.values()]

        check()

    def test_contents_and_deadlines_are_created_as_given(self, store: Store) -> None:
        @examples
        @given(
            st.dictionaries(
                st.text(string.ascii_letters, max_size=9), st.tuples(st.binary(), st.integers(1, FOREVER - 1))
            )
        )
        def check(data: dict[str, tuple[Content, int]]) -> None:
            record = new(store, fields=fields(**data))
            assert loaded(store, record.handle).contents(0) == data

        check()

    def test_a_record_may_be_as_large_as_the_store_says_and_no_byte_more(self, store: Store) -> None:
        room = store.largest - len(fields(k=js("")))
        record = new(store, fields=fields(k=js("x" * room)))
        assert contents(store, record.handle) == {"k": js("x" * room)}
        handle = fresh_handle()
        with pytest.raises(RecordTooLarge):
            new(store, handle, labels={"subject": "bob"}, fields=fields(k=js("x" * (room + 1))))
        assert store.load(handle) is None
        assert store.count("subject", "bob") == 0

    def test_a_write_may_fill_the_record_and_no_byte_more(self, store: Store) -> None:
        room = store.largest - len(fields(k=js("")))
        record = new(store, fields=fields(k=js("")))
        store.apply(record.handle, PROOF, Changes(sets={"k": (js("x" * room), 0)}))
        before = loaded(store, record.handle)
        with pytest.raises(RecordTooLarge):
            store.apply(record.handle, PROOF, Changes(sets={"k": (js("x" * (room + 1)), 0)}))
        with pytest.raises(RecordTooLarge):
            store.apply(record.handle, PROOF, Changes(sets={"l": (js(""), 0)}))
        assert loaded(store, record.handle) == before
        store.apply(record.handle, PROOF, Changes(sets={"k": (js(1), 0)}))
        assert contents(store, record.handle) == {"k": js(1)}


class Writing(StoreCases):
    """Threads that write at once."""

    def test_different_keys_of_concurrent_writers_all_survive(self, store: Store, other: Store) -> None:
        record = new(store)

        def writer(place: int) -> Callable[[], object]:
            each = (store, other)[place % 2]
            keys = [f"{place}-{number}" for number in range(25)]
            return lambda: [each.apply(record.handle, PROOF, Changes(sets={key: (js(1), 0)})) for key in keys]

        results = at_once(*map(writer, range(8)))
        assert len(contents(store, record.handle)) == 200, results
        assert loaded(store, record.handle).version == record.version + 200

    def test_concurrent_increments_are_exact(self, store: Store, other: Store) -> None:
        record = new(store)

        def adder(place: int) -> Callable[[], list[int]]:
            each = (store, other)[place % 2]
            return lambda: [each.apply(record.handle, PROOF, Changes(adds={"n": 1})).sums["n"] for _ in range(100)]

        results = at_once(*map(adder, range(8)))
        assert contents(store, record.handle) == {"n": js(800)}
        assert sorted(total for sums in results for total in sums) == list(range(1, 801)), "Each sum is answered once."

    def test_of_comparisons_at_once_one_wins(self, store: Store, other: Store) -> None:
        for _ in range(5):
            record = new(store)
            results = at_once(
                *(
                    applier(each, record, Changes(sets={"a": (js(place), 0)}, expects={"a": None}))
                    for place, each in enumerate([store, other] * 4)
                )
            )
            winners = [place for place, result in enumerate(results) if isinstance(result, int)]
            assert len(winners) == 1, results
            assert [type(result) for result in results].count(CompareFailed) == 7
            assert contents(store, record.handle) == {"a": js(winners[0])}

    def test_many_sessions_written_at_once_stay_apart(self, store: Store, other: Store) -> None:
        records = [new(store) for _ in range(8)]

        def writer(place: int) -> Callable[[], object]:
            each, record = (store, other)[place % 2], records[place]
            return lambda: [each.apply(record.handle, PROOF, Changes(adds={f"n{place}": 1})) for _ in range(25)]

        at_once(*map(writer, range(8)))
        expected = [{f"n{place}": js(25)} for place in range(8)]
        assert [contents(store, record.handle) for record in records] == expected

    def test_labels_changed_at_once_leave_one_value_and_one_place(self, store: Store, other: Store) -> None:
        record = new(store, labels={"worker": "0"})
        changes = [Changes(labels={"worker": str(number)}) for number in range(1, 9)]
        results = at_once(
            *(applier(each, record, change) for each, change in zip([store, other] * 4, changes, strict=True)),
            lambda: store.relabel("worker", "0", "9"),
        )
        values = [str(number) for number in range(10)]
        assert sum(store.count("worker", value) for value in values) == 1, results
        assert store.count("worker", loaded(store, record.handle).label["worker"]) == 1


class Pipelines(StoreCases):
    """``apply_many``, of a store that has it."""

    def test_many_writes_in_one_trip_are_each_what_apply_does(self, store: Store, clock: FakeClock) -> None:
        if not isinstance(store, Pipelining):
            pytest.skip("This store makes one write at a time.")
        records = [new(store, fields=fields(n=(js(1), 0))) for _ in range(5)]
        store.revoke(records[1].handle)
        writes = [
            (records[0].handle, PROOF, Changes(sets={"a": (js("x"), 0)})),
            (records[1].handle, PROOF, Changes(sets={"a": (js("x"), 0)})),
            (records[2].handle, OTHER_PROOF, Changes(deletes=["n"])),
            (records[3].handle, PROOF, Changes(sets={"n": (js("no number"), 0)})),
            (records[3].handle, PROOF, Changes(adds={"n": 1})),
            (records[4].handle, PROOF, Changes(adds={"n": 41}, expects={"n": js(1)})),
            (records[4].handle, PROOF, Changes(deletes=["n"], expects={"n": js(1)})),
            (records[0].handle, PROOF, Changes(idle=clock.now() + 1000)),
        ]
        found = store.apply_many(writes)
        assert [each if isinstance(each, Version) else type(each) for each in found] == [
            2, SessionGone, SessionGone, 2, TypeError, 2, CompareFailed, 2,
        ]  # fmt: skip
        assert isinstance(found[5], Version)
        assert found[5].sums == {"n": 42}
        assert unpacked(loaded(store, records[0].handle).fields)[0] == {"n": 1, "a": "x"}
        assert unpacked(loaded(store, records[4].handle).fields)[0] == {"n": 42}
        assert store.load(records[1].handle) is None
        assert store.apply_many([]) == []


class Closing(StoreCases):
    """``close``."""

    def test_a_closed_store_says_so_to_every_verb(self, store: Store) -> None:
        record = new(store, labels={"subject": "bob"})
        store.close()
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: store.load(record.handle), lambda: store.load(fresh_handle()),
            lambda: store.load(record.handle, ["a"]), lambda: store.load_many([record.handle]),
            lambda: store.create(record), lambda: store.apply(record.handle, PROOF, Changes()),
            lambda: store.revoke(record.handle), lambda: store.find("subject", "bob"),
            lambda: store.count("subject", "bob"), lambda: store.relabel("subject", "bob", "eve"),
            lambda: store.revoke_where("subject", "bob"), store.scan, store.sweep, lambda: store.sweep_idle(1),
            lambda: store.watch(lambda _: None),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(UsageError):
                call()

    def test_what_was_written_outlives_the_store_object(self, store: Store) -> None:
        record = new(store, labels={"subject": "bob"}, fields=fields(a=js(1)))
        revoked = new(store)
        store.revoke(revoked.handle)
        again = self.reopen(store)
        if again is None:
            return
        store.close()
        assert loaded(again, record.handle).contents(0) == record.contents(0)
        assert handles_of(again.find("subject", "bob")) == [record.handle]
        assert again.load(revoked.handle) is None
        again.close()


class StoreConformance(
    Loading, Creating, Applying, Revoking, Labelling, Scanning, Sweeping, AnyData, Writing, Pipelines, Watching,
    Closing,
):  # fmt: skip
    """Every sentence of the contract; define ``make_store``, and ``reopen`` if the engine can be opened twice."""

    def test_it_is_a_store(self, store: Store, clock: FakeClock) -> None:
        assert isinstance(store, Store)
        assert store.clock is clock
        assert store.largest > 0
