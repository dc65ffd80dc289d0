"""What ``find``, ``count``, ``relabel``, ``revoke_where`` and ``scan`` promise."""

from functools import partial
from threading import Event

import pytest
from hypothesis import given

from ...clock import FOREVER, FakeClock
from ...errors import (
    SessionGone,
)
from ...records import Changes
from ..protocol import Store
from .tools import (
    OTHER_PROOF,
    PROOF,
    StoreCases,
    all_pages,
    at_once,
    examples,
    fields,
    handles_of,
    js,
    key_names,
    loaded,
    new,
)

__all__ = ["Labelling", "Scanning"]

HOUR = 3600


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
