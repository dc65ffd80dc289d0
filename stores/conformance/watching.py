"""What ``watch`` promises, where a store has a feed."""

from collections.abc import Callable
from functools import partial
from threading import Condition

import pytest

from ...clock import FakeClock
from ...errors import (
    NotImplementedByStore,
)
from ...records import Changes
from ..protocol import Store
from .tools import (
    LATE,
    PROOF,
    StoreCases,
    at_once,
    fields,
    js,
    new,
)

__all__ = ["Heard", "Watching"]

HOUR = 3600


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
