"""The conformance cases of one record: what ``load``, ``create``, ``apply`` and ``revoke`` promise, and ``watch``."""

from collections.abc import Callable
from functools import partial
from threading import Condition, Thread
from typing import Any

import pytest

from ..clock import FOREVER, FakeClock
from ..errors import (
    CompareFailed,
    Conflict,
    NotImplementedByStore,
    RecordTooLarge,
    SessionGone,
    StoreUnavailable,
)
from ..records import FORM, Changes, Content, Record
from .conformance_tools import (
    BOUNDARIES,
    DEADLINES,
    LATE,
    OTHER_PROOF,
    PROOF,
    StoreCases,
    TurningClock,
    applier,
    at_once,
    contents,
    creator,
    fields,
    fresh_handle,
    handles_of,
    js,
    loaded,
    new,
    revoker,
)
from .protocol import Store

__all__ = ["Applying", "Creating", "Loading", "Revoking", "Watching"]

HOUR = 3600
STRANGE_HANDLES = (
    "", " ", "a", "A" * 32, "x" * 100_000, "\0", "a\0b", "../../etc/passwd", "%", "_", "*",
    "'; DROP TABLE sessions; --", "é", "e\u0301", "\U0001f36a", "\udc80", "\ud800", "\n", "None", "__proto__",
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


class Revoking(StoreCases):
    """``revoke``."""

    def test_revoking_says_whether_the_session_was_live(self, store: Store, other: Store, clock: FakeClock) -> None:
        record, over = new(store), new(store, own=clock.now() + 1)
        clock.advance(1)
        assert store.revoke(record.handle) is True
        assert store.revoke(record.handle) is other.revoke(record.handle) is False
        assert store.revoke(over.handle) is False
        assert store.revoke(fresh_handle()) is False

    def test_a_revoked_session_is_gone_for_every_later_verb(self, store: Store, other: Store) -> None:
        record, stays = (new(store, labels={"subject": "bob"}) for _ in range(2))
        store.revoke(record.handle)
        for each in (store, other):
            assert each.load(record.handle) is None
            assert each.load(record.handle, ["a"]) is None
            assert set(each.load_many([record.handle, stays.handle])) == {stays.handle}
            assert handles_of(each.find("subject", "bob")) == handles_of(each.scan()) == [stays.handle]
            assert each.count("subject", "bob") == 1
        assert store.relabel("subject", "bob", "eve") == 1
        assert store.revoke_where("subject", "eve") == 1

    def test_a_handle_created_again_is_a_new_life(self, store: Store) -> None:
        old = new(store, labels={"subject": "bob"}, fields=fields(n=js(1)))
        store.apply(old.handle, PROOF, Changes(sets={"b": (js(1), FOREVER)}))
        store.revoke(old.handle)
        new(store, old.handle, proof=OTHER_PROOF)
        for changes in LATE.values():
            with pytest.raises(SessionGone):
                store.apply(old.handle, PROOF, changes)
        assert contents(store, old.handle) == {}
        assert store.count("subject", "bob") == 0
        store.apply(old.handle, OTHER_PROOF, Changes())

    def test_of_revokes_at_once_one_ended_the_session(self, store: Store, other: Store) -> None:
        for _ in range(5):
            handle = new(store).handle
            assert sorted(at_once(*(revoker(each, handle) for each in [store, other] * 4))) == [False] * 7 + [True]

    def test_a_revoke_that_races_writers_wins(self, store: Store, other: Store) -> None:
        for _ in range(10):
            record = new(store, labels={"subject": "bob"})
            changes = Changes(sets={"a": (js(1), 0)}, labels={"subject": "eve"}, idle=FOREVER - 1)
            results = at_once(*[applier(other, record, changes)] * 4, revoker(store, record.handle))
            assert results[-1] is True
            assert all(isinstance(result, int | SessionGone) for result in results[:-1])
            assert store.load(record.handle) is other.load(record.handle) is None
            assert store.count("subject", "bob", "eve") == 0


class Heard:
    """What a watcher was told, for a while at most waited for."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._told: list[str | None] = []
        self._more = Condition()

    def on_change(self, handle: str | None) -> None:
        """Take what is told."""
        with self._more:
            self._told.append(handle)
            self._more.notify_all()

    def has(self, handle: str) -> bool:
        """Wait until the record is announced, or that any may have changed; tell whether that came."""
        with self._more:
            return self._more.wait_for(lambda: handle in self._told or None in self._told, 10)

    def forget(self) -> list[str | None]:
        """Return what was told, and begin anew."""
        with self._more:
            told, self._told = self._told, []
            return told


def watched(store: Store, on_change: Callable[[str | None], object]) -> Callable[[], None]:
    """Watch the store, or skip the case where there is nothing to watch."""
    try:
        return store.watch(on_change)
    except NotImplementedByStore:
        pytest.skip("This store announces nothing.")


def apply_to(changes: Changes, store: Store, handle: str) -> None:
    """Make the changes with the first proof."""
    store.apply(handle, PROOF, changes)


ANNOUNCED: dict[str, Callable[[Store, str], object]] = {
    **{kind: partial(apply_to, changes) for kind, changes in LATE.items() if kind not in {"a touch", "nothing"}},
    "revoke": lambda store, handle: store.revoke(handle),
    "relabel": lambda store, _: store.relabel("subject", "bob", "eve"),
    "revoke_where": lambda store, _: store.revoke_where("subject", "bob"),
    "sweep_idle": lambda store, _: store.sweep_idle(1),
}
"""What others must hear of. That a record has expired they see by themselves."""


class Watching(StoreCases):
    """``watch``, for stores that announce changes."""

    @pytest.mark.parametrize("kind", ANNOUNCED)
    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_a_change_is_announced_wherever_it_is_made(
        self,
        store: Store,
        other: Store,
        clock: FakeClock,
        kind: str,
        elsewhere: bool,  # noqa: FBT001 - a parameter
    ) -> None:
        record, heard = new(store, labels={"subject": "bob"}, fields=fields(n=js(1))), Heard()
        stop = watched(store, heard.on_change)
        clock.advance(2)
        ANNOUNCED[kind](other if elsewhere else store, record.handle)
        assert heard.has(record.handle)
        stop()

    def test_what_is_announced_has_been_done(self, store: Store, other: Store) -> None:
        handles = [new(store).handle for _ in range(20)]
        seen, heard = dict[str | None, bool](), Heard()

        def on_change(handle: str | None) -> None:
            seen.setdefault(handle, any(store.load(each) for each in handles if handle in {each, None}))
            heard.on_change(handle)

        stop = watched(store, on_change)
        for handle in handles:
            other.revoke(handle)
            assert heard.has(handle)
            assert seen.get(handle) is False or None in seen
        stop()

    def test_who_stopped_hears_nothing_more_and_others_do(self, store: Store, other: Store) -> None:
        first, second = Heard(), Heard()
        stop, stop_second = watched(store, first.on_change), watched(store, second.on_change)
        before, after = new(store).handle, new(store).handle
        other.revoke(before)
        assert first.has(before)
        assert second.has(before)
        stop()
        stop()
        first.forget()
        second.forget()
        other.revoke(after)
        assert second.has(after)
        assert after not in first.forget()
        stop_second()
        stop_second()

    def test_a_watcher_that_raises_hinders_nobody(self, store: Store, other: Store) -> None:
        heard = Heard()

        def fail(_: str | None) -> None:
            raise RuntimeError("The cache of this watcher is broken.")

        stops = [watched(store, fail), watched(store, heard.on_change)]
        for writer in (store, other):
            record = new(store)
            writer.apply(record.handle, PROOF, Changes(adds={"n": 1}))
            assert heard.has(record.handle)
            heard.forget()
            assert writer.revoke(record.handle) is True
            assert heard.has(record.handle)
            heard.forget()
        for stop in stops:
            stop()

    def test_every_one_of_many_changes_is_announced(self, store: Store, other: Store) -> None:
        heard = Heard()
        stop = watched(store, heard.on_change)
        handles = [new(store).handle for _ in range(100)]
        at_once(
            lambda: [store.revoke(handle) for handle in handles[::2]],
            lambda: [other.revoke(handle) for handle in handles[1::2]],
        )
        assert all(heard.has(handle) for handle in handles)
        stop()

    def test_a_watched_store_can_be_closed_and_stopped_afterwards(self, store: Store) -> None:
        stop = watched(store, Heard().on_change)
        store.close()
        stop()
