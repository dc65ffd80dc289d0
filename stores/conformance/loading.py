"""What ``load``, ``load_many`` and ``create`` promise, for any handle and any data."""

import string
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ...clock import FOREVER, FakeClock
from ...errors import (
    Conflict,
    RecordTooLarge,
    SessionGone,
    StoreUnavailable,
)
from ...records import FORM, Changes, Content, Record
from ..protocol import Store
from .tools import (
    BOUNDARIES,
    DEADLINES,
    OTHER_PROOF,
    PROOF,
    StoreCases,
    TurningClock,
    at_once,
    contents,
    creator,
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

__all__ = ["AnyData", "Creating", "Loading"]

HOUR = 3600
STRANGE_HANDLES = (
    "", " ", "a", "A" * 32, "x" * 100_000, "\0", "a\0b", "../../etc/passwd", "%", "_", "*",
    "'; DROP TABLE sessions; --", "é", "e\u0301", "\U0001f36a", "\udc80", "\ud800", "\n", "None", "__proto__",
)  # fmt: skip
STRANGE_KEYS = (
    "", "\0", "a\0b", "\U0001f36a", "\U00020000", "e\u0301", "é", "k" * 5000, "__proto__", "constructor", "$date",
    "$bytes", "$.a", "a.b", "a[0]", '"', "\\", "\n", "\r\n", "'", "%", "{}", " ", "A", "a", "\ufeff", "\u202e", "1",
)  # fmt: skip


class Loading(StoreCases):
    """``load`` and ``load_many``."""

    def test_what_was_created_is_loaded_whole(self, store: Store, other: Store) -> None:
        record = new(
            store, path="visitor/user", own=FOREVER - 2, idle=FOREVER - 1, authenticated=7, previous=OTHER_PROOF,
            grace=9, labels={"subject": "é\0\U0001f36a", "parent": ""}, agent="é\0", address="::1",
            fields=fields(a=js(1), b=(b"\0\xff", FOREVER - 3)),
        )  # fmt: skip
        for each in (store, other):
            found = loaded(each, record.handle)
            assert found._replace(labels="", fields=b"") == record._replace(labels="", fields=b"")
            assert found.label == record.label
            assert found.contents(0) == record.contents(0)

    def test_an_absent_record_is_none(self, store: Store) -> None:
        assert store.load(fresh_handle()) is None

    @pytest.mark.parametrize("handle", STRANGE_HANDLES, ids=lambda handle: ascii(handle[:40]))
    def test_any_str_may_be_asked_for_as_a_handle(self, store: Store, handle: str) -> None:
        assert store.load(handle) is None
        assert store.load(handle, ["a"]) is None
        assert store.load_many([handle]) == {}
        assert store.revoke(handle) is False
        with pytest.raises(SessionGone):
            store.apply(handle, PROOF, Changes())

    @pytest.mark.parametrize("deadline", DEADLINES)
    @pytest.mark.parametrize("life", BOUNDARIES)
    def test_live_means_before_each_deadline(self, store: Store, clock: FakeClock, deadline: str, life: int) -> None:
        record = new(store, **{deadline: clock.now() + life})
        clock.advance((life - 1) / 1000)
        assert store.load(record.handle) is not None, "It has one millisecond left."
        clock.advance(0.001)
        assert store.load(record.handle) is None, "A deadline that has come is over."

    @pytest.mark.parametrize("deadline", DEADLINES)
    @pytest.mark.parametrize("life", [-BOUNDARIES[1], -1, 0])
    def test_a_record_created_past_its_deadline_is_never_live(
        self, store: Store, clock: FakeClock, deadline: str, life: int
    ) -> None:
        record = new(store, labels={"subject": "bob"}, **{deadline: clock.now() + life})
        assert store.load(record.handle) is None
        assert store.load_many([record.handle]) == {}
        assert store.count("subject", "bob") == 0

    def test_keys_load_only_these(self, store: Store) -> None:
        record = new(store, fields=fields(a=js(1), b=(js(2), FOREVER - 1), c=js(3)))
        found = store.load(record.handle, ["b", "c", "missing"])
        assert found is not None
        assert found.contents(0) == {"b": (js(2), FOREVER - 1), "c": (js(3), 0)}
        assert found._replace(fields=b"") == loaded(store, record.handle)._replace(fields=b"")
        nothing = store.load(record.handle, [])
        assert nothing is not None
        assert nothing.contents(0) == {}

    @pytest.mark.parametrize("life", BOUNDARIES)
    def test_a_key_lives_until_its_own_deadline(self, store: Store, clock: FakeClock, life: int) -> None:
        record = new(store, fields=fields(a=(js(1), clock.now() + life), b=js(2)))
        clock.advance((life - 1) / 1000)
        assert contents(store, record.handle) == {"a": js(1), "b": js(2)}
        clock.advance(0.001)
        assert contents(store, record.handle) == {"b": js(2)}
        found = store.load(record.handle, ["a"])
        assert found is not None
        assert found.contents(clock.now()) == {}

    @pytest.mark.parametrize("life", [-BOUNDARIES[1], -1, 0])
    def test_a_key_set_past_its_deadline_is_never_live(self, store: Store, clock: FakeClock, life: int) -> None:
        record = new(store)
        store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), clock.now() + life)}))
        assert contents(store, record.handle) == {}

    def test_garbage_is_none_or_its_readers_to_judge(self, store: Store) -> None:
        record = new(store, fields=b'{"cut off')
        assert store.load(record.handle, ["a"]) is None
        found = store.load(record.handle)
        if found is not None:
            with pytest.raises(ValueError, match=r"\w"):
                found.contents(0)

    def test_a_record_of_a_newer_release_is_unavailable_and_stays(self, store: Store) -> None:
        record = new(store, form=FORM + 1)
        for call in (lambda: store.load(record.handle), lambda: store.load_many([record.handle])):
            with pytest.raises(StoreUnavailable):
                call()
        with pytest.raises(StoreUnavailable):
            store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)}))
        with pytest.raises(Conflict):
            store.create(record)
        assert store.revoke(record.handle) is True

    @pytest.mark.parametrize("deadline", DEADLINES)
    @pytest.mark.parametrize("many", [False, True])
    def test_seen_expiry_is_final(self, store: Store, clock: FakeClock, deadline: str, many: bool) -> None:  # noqa: FBT001 - a parameter
        record = new(store, labels={"subject": "bob"}, **{deadline: clock.now() + 1000})
        clock.advance(1)
        assert (store.load_many([record.handle]).get(record.handle) if many else store.load(record.handle)) is None
        clock.advance(-HOUR)
        assert store.load(record.handle) is None, "The record came back when the clock was set back."
        assert store.count("subject", "bob") == 0

    def test_a_touch_just_before_expiry_is_seen_makes_the_record_stay(
        self, store: Store, other: Store, clock: TurningClock
    ) -> None:
        """The load asks for the time when it is over; a moment before, somebody else prolonged the session."""
        record = new(store, idle=clock.now() + 1000)
        answers: list[Any] = []
        touch = Thread(
            target=lambda: answers.extend(
                at_once(lambda: other.apply(record.handle, PROOF, Changes(idle=FOREVER, own=FOREVER - 1)))
            )
        )

        def between() -> None:
            touch.start()
            touch.join(0.3)  # A store may hold a lock here; then the touch comes later, and is refused.
            clock.advance(1)

        clock.then = between
        store.load(record.handle)
        touch.join(30)
        if isinstance(answers[0], SessionGone):
            assert store.load(record.handle) is None
        else:
            assert store.load(record.handle) is not None, "A touch was acknowledged, and the session is gone."

    def test_load_many_returns_the_live_ones_by_handle(self, store: Store, clock: FakeClock) -> None:
        live = [new(store, fields=fields(a=js(number))) for number in range(3)]
        over = new(store, idle=clock.now())
        revoked = new(store)
        store.revoke(revoked.handle)
        asked = [live[2].handle, fresh_handle(), over.handle, live[0].handle, revoked.handle, live[2].handle]
        found = store.load_many(asked)
        assert set(found) == {live[0].handle, live[2].handle}
        assert all(found[handle] == store.load(handle) for handle in found)
        assert store.load_many([]) == {}


class Creating(StoreCases):
    """``create``."""

    def test_creating_a_live_handle_conflicts_and_changes_nothing(self, store: Store) -> None:
        record = new(store, labels={"subject": "bob"}, fields=fields(a=js(1)))
        before = loaded(store, record.handle)
        with pytest.raises(Conflict):
            new(store, record.handle, proof=OTHER_PROOF, labels={"subject": "eve"}, fields=fields(a=js(2)))
        assert loaded(store, record.handle) == before
        assert (store.count("subject", "bob"), store.count("subject", "eve")) == (1, 0)

    def test_creating_replaces_an_expired_record_and_its_labels(self, store: Store, clock: FakeClock) -> None:
        old = new(store, idle=clock.now() + 1, labels={"subject": "bob"}, fields=fields(a=js(1)))
        clock.advance(1)
        record = new(store, old.handle, proof=OTHER_PROOF, fields=fields(b=js(2)))
        assert contents(store, record.handle) == {"b": js(2)}
        assert loaded(store, record.handle).proof == OTHER_PROOF
        assert handles_of(store.find("subject", "bob")) == []
        with pytest.raises(SessionGone):
            store.apply(record.handle, PROOF, Changes())

    def test_a_record_is_found_by_each_label_it_was_created_with(self, store: Store, other: Store) -> None:
        record = new(store, labels={"subject": "bob", "worker": "7"})
        for each in (store, other):
            assert handles_of(each.find("subject", "bob")) == handles_of(each.find("worker", "7")) == [record.handle]

    def test_of_creators_at_once_one_wins(self, store: Store, other: Store) -> None:
        for _ in range(5):
            handle = fresh_handle()
            proofs = [bytes([number]) * 32 for number in range(8)]
            calls = [creator(each, handle, proof) for each, proof in zip([store, other] * 4, proofs, strict=True)]
            results = at_once(*calls)
            winners = [result for result in results if isinstance(result, Record)]
            assert len(winners) == 1
            assert all(isinstance(result, Record | Conflict) for result in results)
            assert loaded(store, handle).proof == winners[0].proof


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
