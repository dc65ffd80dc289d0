"""What ``revoke``, ``sweep``, ``sweep_idle`` and ``close`` promise."""

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest

from ...clock import FOREVER, FakeClock
from ...errors import (
    SessionGone,
    UsageError,
)
from ...records import Changes
from ..protocol import SWEEP_MARGIN_MS, Store
from .tools import (
    DEADLINES,
    LATE,
    OTHER_PROOF,
    PROOF,
    StoreCases,
    TurningClock,
    applier,
    at_once,
    contents,
    fields,
    fresh_handle,
    handles_of,
    js,
    loaded,
    new,
    revoker,
)

__all__ = ["Closing", "Revoking", "Sweeping"]

HOUR = 3600


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
