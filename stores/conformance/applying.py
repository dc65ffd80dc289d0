"""What ``apply`` promises, and ``apply_many`` where a store has it."""

from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Any

import pytest

from ...clock import FOREVER, FakeClock
from ...errors import (
    CompareFailed,
    RecordTooLarge,
    SessionGone,
    UsageError,
)
from ...records import KEEP, Changes, Content, Version, unpacked
from ..protocol import Pipelining, Store
from .tools import (
    LATE,
    OTHER_PROOF,
    PROOF,
    StoreCases,
    applier,
    at_once,
    contents,
    fields,
    fresh_handle,
    js,
    loaded,
    new,
)

__all__ = ["Applying", "Pipelines", "Writing"]

HOUR = 3600


class Applying(StoreCases):
    """``apply``."""

    def test_sets_deletes_and_adds_leave_what_is_not_named(self, store: Store, other: Store) -> None:
        record = new(store, fields=fields(a=js(1), b=js(2), c=js(3), n=js(40)))
        changes = Changes(sets={"a": (js("new"), 0), "d": (b"\0", 0)}, deletes=("b", "missing"), adds={"n": 2, "m": -1})
        version = store.apply(record.handle, PROOF, changes)
        expected = {"a": js("new"), "c": js(3), "n": js(42), "d": b"\0", "m": js(-1)}
        assert contents(store, record.handle) == contents(other, record.handle) == expected
        assert dict(version.sums) == {"n": 42, "m": -1}
        found = loaded(store, record.handle)
        unchanged = record._replace(version=found.version, fields=found.fields)
        assert found == unchanged

    @pytest.mark.parametrize("number", [1 << 63, -(1 << 63) - 1, 1 << 70])
    @pytest.mark.parametrize("name", ["created", "absolute", "own", "idle", "seen", "authenticated", "grace"])
    def test_a_number_of_more_than_64_bits_is_its_writers_mistake(self, store: Store, name: str, number: int) -> None:
        record, numbers = new(store), dict[str, Any]({name: number})
        with pytest.raises(UsageError, match="64 bits"):
            store.create(record._replace(handle=fresh_handle(), **numbers))
        if name in {"created", "absolute"} or (name == "seen" and number < 0):
            return  # no change can name it, or it is earlier than what is there
        proof = OTHER_PROOF if name == "grace" else None
        for sets in ({}, {"k": (js(1), 0)}):
            with pytest.raises(UsageError, match="64 bits"):
                store.apply(record.handle, PROOF, Changes(sets=sets, proof=proof)._replace(**numbers))
        assert loaded(store, record.handle) == record

    def test_the_version_grows_by_one_with_each_write(self, store: Store) -> None:
        record = new(store, fields=fields(n=js(1)))
        writes = [changes for kind, changes in LATE.items() if kind not in {"a deadline", "a touch", "nothing"}]
        writes.sort(key=lambda changes: changes.proof is not None)
        for number, changes in enumerate(writes, 1):
            assert store.apply(record.handle, PROOF, changes) == record.version + number
            assert loaded(store, record.handle).version == record.version + number

    def test_a_touch_moves_deadlines_and_keeps_the_version(self, store: Store, clock: FakeClock) -> None:
        record = new(store, own=clock.now() + 1000, idle=clock.now() + 1000)
        later = clock.now() + 5000
        touch = Changes(own=later + 1, idle=later, seen=clock.now() + 1)
        assert store.apply(record.handle, PROOF, touch) == record.version
        assert loaded(store, record.handle) == record._replace(own=later + 1, idle=later, seen=clock.now() + 1)
        clock.advance(4.999)
        assert store.load(record.handle) is not None
        clock.advance(0.001)
        assert store.load(record.handle) is None

    def test_a_deadline_may_come_nearer(self, store: Store, clock: FakeClock) -> None:
        record = new(store)
        store.apply(record.handle, PROOF, Changes(own=clock.now() + 1))
        clock.advance(0.001)
        assert store.load(record.handle) is None

    def test_seen_never_moves_back(self, store: Store, clock: FakeClock) -> None:
        record = new(store)
        clock.advance(10)
        store.apply(record.handle, PROOF, Changes(sets={"a": (js(1), 0)}))
        assert loaded(store, record.handle).seen == clock.now()
        store.apply(record.handle, PROOF, Changes(seen=record.seen))
        assert loaded(store, record.handle).seen == clock.now()

    def test_a_login_is_remembered(self, store: Store, clock: FakeClock) -> None:
        record = new(store)
        store.apply(record.handle, PROOF, Changes(authenticated=clock.now(), labels={"subject": "bob"}))
        assert loaded(store, record.handle).authenticated == clock.now()
        assert loaded(store, record.handle).label == {"subject": "bob"}

    def test_setting_a_key_replaces_its_deadline(self, store: Store, clock: FakeClock) -> None:
        soon = clock.now() + 1000
        record = new(store, fields=fields(a=(js(1), soon), b=js(1), c=(js(1), soon)))
        sets = {"a": (js(2), 0), "b": (js(2), soon), "c": (js(2), soon + 1)}
        store.apply(record.handle, PROOF, Changes(sets=sets))
        assert loaded(store, record.handle).contents(clock.now()) == sets
        clock.advance(1)
        assert contents(store, record.handle) == {"a": js(2), "c": js(2)}

    @pytest.mark.parametrize(
        "before", [{}, {"a": js(1), "b": js(1), "over": None, "missing": None}], ids=["anything", "expected"]
    )
    def test_a_key_that_is_set_to_keep_its_deadline_has_the_one_that_it_had(
        self, store: Store, clock: FakeClock, before: dict[str, Content | None]
    ) -> None:
        soon = clock.now() + 1000
        record = new(store, fields=fields(a=(js(1), soon), b=js(1), c=(js(1), soon + 1), over=(js(1), clock.now())))
        for key in ("a", "b", "over", "missing"):
            expects = {key: before[key]} if before else {}
            store.apply(record.handle, PROOF, Changes(sets={key: (b"2", KEEP)}, expects=expects))
        found = loaded(store, record.handle).contents(clock.now())
        assert found == {
            "a": (b"2", soon), "b": (b"2", 0), "c": (js(1), soon + 1), "over": (b"2", 0), "missing": (b"2", 0),
        }  # fmt: skip
        clock.advance(1)
        assert contents(store, record.handle).keys() == {"b", "c", "over", "missing"}
        expects = {"a": None} if before else {}
        store.apply(record.handle, PROOF, Changes(sets={"a": (js(3), KEEP)}, expects=expects))
        clock.advance(0.001)
        found = loaded(store, record.handle).contents(clock.now())
        assert found["a"] == (js(3), 0), "An expired key is a missing one."

    @pytest.mark.parametrize(("had", "given"), [(0, 1000), (1000, 0), (1000, 9000)])
    def test_a_deadline_that_is_kept_is_the_one_that_somebody_else_gave_meanwhile(
        self, store: Store, other: Store, clock: FakeClock, had: int, given: int
    ) -> None:
        had, given = (clock.now() + life if life else 0 for life in (had, given))
        record = new(store, fields=fields(a=(js(1), had), b=(js(1), had)))
        read = loaded(store, record.handle).contents(clock.now())["a"]
        other.apply(record.handle, PROOF, Changes(sets={"a": (js(1), given)}))
        store.apply(record.handle, PROOF, Changes(sets={"a": (js(2), KEEP)}, expects={"a": read[0]}))
        assert loaded(other, record.handle).contents(clock.now()) == {"a": (js(2), given), "b": (js(1), had)}

    def test_a_deadline_is_kept_beside_whatever_else_changes(self, store: Store, clock: FakeClock) -> None:
        soon = clock.now() + 1000
        several = {key: (js(1), soon) for key in "abcdn"}
        record = new(store, labels={"subject": "bob"}, fields=fields(**several, e=js(1)))
        changes = Changes(
            sets={"a": (js(2), KEEP), "b": (js(2), 0), "c": (js(2), soon + 1), "n": (js(2), KEEP), "e": (js(2), KEEP)},
            deletes=("d",), adds={"n": 40, "m": 1}, expects={"a": js(1), "b": js(1), "m": None}, idle=FOREVER - 1,
            proof=OTHER_PROOF, labels={"subject": "eve"},
        )  # fmt: skip
        assert dict(store.apply(record.handle, PROOF, changes).sums) == {"n": 42, "m": 1}
        assert loaded(store, record.handle).contents(clock.now()) == {
            "a": (js(2), soon), "b": (js(2), 0), "c": (js(2), soon + 1), "n": (js(42), soon), "e": (js(2), 0),
            "m": (js(1), 0),
        }  # fmt: skip
        assert store.count("subject", "eve") == 1

    def test_a_deadline_that_is_kept_takes_its_room(self, store: Store, clock: FakeClock) -> None:
        soon = clock.now() + 1000
        most = store.largest - len(fields(a=(js(""), soon), b=js(1)))
        record = new(store, fields=fields(a=(js("x" * most), soon), b=js(1)))
        store.apply(record.handle, PROOF, Changes(sets={"a": (js("y" * most), KEEP)}))
        before = loaded(store, record.handle)
        with pytest.raises(RecordTooLarge):
            store.apply(record.handle, PROOF, Changes(sets={"a": (js("z" * (most + 1)), KEEP)}))
        assert loaded(store, record.handle) == before

    def test_an_increment_keeps_the_deadline_and_begins_at_0(self, store: Store, clock: FakeClock) -> None:
        soon = clock.now() + 1000
        record = new(store, fields=fields(n=(js(41), soon)))
        assert dict(store.apply(record.handle, PROOF, Changes(adds={"n": 1, "m": 5})).sums) == {"n": 42, "m": 5}
        assert loaded(store, record.handle).contents(clock.now()) == {"n": (js(42), soon), "m": (js(5), 0)}
        clock.advance(1)
        assert dict(store.apply(record.handle, PROOF, Changes(adds={"n": 1})).sums) == {"n": 1}
        assert loaded(store, record.handle).contents(clock.now())["n"] == (js(1), 0), "An expired key is a missing one."

    @pytest.mark.parametrize(
        "value", [js("1"), js(1.5), js(None), js(True), js([1]), b"1", js((1 << 64) - 1)], ids=ascii
    )
    def test_an_increment_of_no_integer_is_a_type_error(self, store: Store, value: Content) -> None:
        record = new(store, fields=fields(n=value))
        before = loaded(store, record.handle)
        with pytest.raises(TypeError):
            store.apply(record.handle, PROOF, Changes(adds={"n": 1}))
        assert loaded(store, record.handle) == before

    @pytest.mark.parametrize("content", [b"", b"5", b"\xff"], ids=ascii)
    def test_bytes_are_no_integer_though_they_look_like_one(self, store: Store, content: bytes) -> None:
        record = new(store, fields=fields(n=(js(1), 0)))
        before = loaded(store, record.handle)
        with pytest.raises(TypeError):
            store.apply(record.handle, PROOF, Changes(sets={"n": (content, 0)}, adds={"n": 1}))
        assert loaded(store, record.handle) == before

    def test_expected_contents_let_the_changes_through(self, store: Store, clock: FakeClock) -> None:
        record = new(store, fields=fields(a=js({"x": [1]}), b=b"\0", over=(js(1), clock.now())))
        expects: dict[str, Content | None] = {"a": js({"x": [1]}), "b": b"\0", "missing": None, "over": None}
        store.apply(record.handle, PROOF, Changes(sets={"a": (js(2), 0)}, expects=expects))
        assert contents(store, record.handle) == {"a": js(2), "b": b"\0"}

    @pytest.mark.parametrize(
        "expects", [{"a": js(2)}, {"a": None}, {"missing": js(1)}, {"a": js(1), "b": b""}], ids=ascii
    )
    def test_other_contents_than_expected_fail_the_comparison(
        self, store: Store, expects: dict[str, Content | None]
    ) -> None:
        record = new(store, fields=fields(a=js(1), b=b"\0"))
        before = loaded(store, record.handle)
        with pytest.raises(CompareFailed):
            store.apply(record.handle, PROOF, Changes(sets={"a": (js(9), 0)}, expects=expects))
        assert loaded(store, record.handle) == before

    @pytest.mark.parametrize("error", [CompareFailed, TypeError, RecordTooLarge, SessionGone])
    def test_changes_are_made_all_or_not_at_all(self, store: Store, error: type[Exception]) -> None:
        record = new(store, labels={"subject": "bob"}, fields=fields(a=js(1), b=js("text"), n=js(1)))
        before = loaded(store, record.handle)
        large = js("x" * store.largest) if error is RecordTooLarge else js(2)
        changes = Changes(
            sets={"c": (large, 0)}, deletes=("a",), adds={"n": 1, **({"b": 1} if error is TypeError else {})},
            expects={"a": js(2 if error is CompareFailed else 1)}, own=1, idle=1, seen=FOREVER, proof=OTHER_PROOF,
            grace=FOREVER, authenticated=1, labels={"subject": "eve", "worker": "1"},
        )  # fmt: skip
        with pytest.raises(error):
            store.apply(record.handle, OTHER_PROOF if error is SessionGone else PROOF, changes)
        assert loaded(store, record.handle) == before
        assert (store.count("subject", "bob"), store.count("subject", "eve"), store.count("worker", "1")) == (1, 0, 0)

    @pytest.mark.parametrize("kind", LATE)
    def test_a_write_to_what_is_absent_is_refused_and_writes_nothing(self, store: Store, kind: str) -> None:
        handle = fresh_handle()
        with pytest.raises(SessionGone):
            store.apply(handle, PROOF, LATE[kind])
        assert store.load(handle) is None
        assert store.count("subject", "late") == 0

    @pytest.mark.parametrize("kind", LATE)
    def test_a_write_after_the_revoke_is_refused_and_revives_nothing(self, store: Store, kind: str) -> None:
        record = new(store, labels={"subject": "bob"}, fields=fields(n=js(1)))
        store.revoke(record.handle)
        with pytest.raises(SessionGone):
            store.apply(record.handle, PROOF, LATE[kind])
        assert store.load(record.handle) is None
        assert store.count("subject", "bob", "late") == 0

    @pytest.mark.parametrize("kind", LATE)
    def test_a_write_after_expiry_is_refused_and_deletes_the_record(
        self, store: Store, clock: FakeClock, kind: str
    ) -> None:
        record = new(store, idle=clock.now() + 1, fields=fields(n=js(1)))
        clock.advance(0.001)
        with pytest.raises(SessionGone):
            store.apply(record.handle, PROOF, LATE[kind])
        clock.advance(-1)
        assert store.load(record.handle) is None, "The record came back when the clock was set back."

    @pytest.mark.parametrize("kind", LATE)
    @pytest.mark.parametrize("proof", [OTHER_PROOF, PROOF[:-1], PROOF + b"p", b"", b"p"], ids=ascii)
    def test_a_write_with_another_proof_is_refused(self, store: Store, kind: str, proof: bytes) -> None:
        record = new(store, fields=fields(n=js(1)))
        before = loaded(store, record.handle)
        with pytest.raises(SessionGone):
            store.apply(record.handle, proof, LATE[kind])
        assert loaded(store, record.handle) == before
        assert store.count("subject", "late") == 0

    def test_a_replaced_proof_may_read_in_its_grace_and_never_write(self, store: Store, clock: FakeClock) -> None:
        record, grace = new(store), clock.now() + 30_000
        store.apply(record.handle, PROOF, Changes(proof=OTHER_PROOF, grace=grace))
        found = loaded(store, record.handle)
        assert (found.proof, found.previous, found.grace) == (OTHER_PROOF, PROOF, grace)
        for changes in LATE.values():
            with pytest.raises(SessionGone):
                store.apply(record.handle, PROOF, changes)
        assert loaded(store, record.handle) == found
        clock.advance(29.999)
        assert [loaded(store, record.handle).admits(proof, clock.now()) for proof in (PROOF, OTHER_PROOF)] == [True] * 2
        clock.advance(0.001)
        assert not loaded(store, record.handle).admits(PROOF, clock.now())
        store.apply(record.handle, OTHER_PROOF, Changes(sets={"a": (js(1), 0)}))
        assert contents(store, record.handle) == {"a": js(1)}

    def test_a_second_renewal_forgets_the_first_proof(self, store: Store, clock: FakeClock) -> None:
        record = new(store)
        store.apply(record.handle, PROOF, Changes(proof=OTHER_PROOF, grace=FOREVER))
        store.apply(record.handle, OTHER_PROOF, Changes(proof=b"r" * 32))
        found = loaded(store, record.handle)
        assert [found.admits(proof, clock.now()) for proof in (PROOF, OTHER_PROOF, b"r" * 32)] == [False, False, True]

    def test_of_renewals_at_once_one_wins(self, store: Store, other: Store) -> None:
        record = new(store)
        proofs = [bytes([number]) * 32 for number in range(8)]
        results = at_once(
            *(
                applier(each, record, Changes(proof=proof, grace=FOREVER))
                for each, proof in zip([store, other] * 4, proofs, strict=True)
            )
        )
        assert [type(result) for result in results].count(SessionGone) == 7
        assert loaded(store, record.handle).version == record.version + 1


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

    def test_a_deadline_that_is_given_while_others_keep_it_stays(self, store: Store, other: Store) -> None:
        record, over = new(store, fields=fields(a=js(0))), Event()

        def exchanged(each: Store, number: int, deadline: int) -> Content | None:
            """Return the content that was there if it could be replaced by one that is so much more."""
            content = contents(each, record.handle)["a"]
            changes = Changes(sets={"a": (js(int(content) + number), deadline)}, expects={"a": content})
            with suppress(CompareFailed):
                each.apply(record.handle, PROOF, changes)
                return content
            return None

        def keeper(each: Store) -> Callable[[], object]:
            return lambda: [exchanged(each, 1, KEEP) for _ in iter(over.is_set, True)]

        def giver() -> list[int]:
            """Give deadlines that no comparison shows; return those that the next writer undid."""
            undone = []
            try:
                for deadline in (FOREVER - 1, 0) * 10:
                    content = next(filter(None, (exchanged(other, 0, deadline) for _ in range(1000))))
                    assert any(contents(other, record.handle)["a"] != content for _ in range(10_000))
                    if loaded(other, record.handle).contents(store.clock.now())["a"][1] != deadline:
                        undone.append(deadline)
            finally:
                over.set()
            return undone

        undone, *_ = at_once(giver, keeper(store), keeper(other))
        assert undone == []

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

    def test_a_deadline_is_kept_in_one_trip_with_others(self, store: Store, clock: FakeClock) -> None:
        if not isinstance(store, Pipelining):
            pytest.skip("This store makes one write at a time.")
        soon = clock.now() + 1000
        records = [new(store, fields=fields(n=(js(1), soon), m=js(1))) for _ in range(3)]
        sets, expects = {"n": (js(2), KEEP)}, {"n": js(1)}
        several = [Changes(sets), Changes(sets, expects=expects), Changes(sets, ("m",), expects={"n": js(3)})]
        found = store.apply_many([(record.handle, PROOF, each) for record, each in zip(records, several, strict=True)])
        assert [each if isinstance(each, Version) else type(each) for each in found] == [2, 2, CompareFailed]
        after = [loaded(store, record.handle).contents(clock.now()) for record in records]
        assert after == [{"n": (js(number), soon), "m": (js(1), 0)} for number in (2, 2, 1)]
