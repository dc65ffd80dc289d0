"""What no cache may ever do: serve what should be gone."""

import random
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import product

import pytest

from ...clock import FakeClock
from ..protocol import Cache, Lingering
from .tools import (
    DEADLINES,
    MOMENT,
    CacheCases,
    InterruptedClock,
    a_record,
    at_once,
    fresh_handle,
    look,
    opened,
    put,
    served,
)

__all__ = ["Ageing", "Closing", "Forgetting", "Lasting"]


def _forgotten(cache: Cache, handle: str) -> bool:
    """Tell whether a cache knows nothing at all about a handle."""
    return cache.get(handle) is None and not cache.is_absent(handle)


class Forgetting(CacheCases):
    """What was dropped or cleared is gone, and so is every lease of before."""

    def test_nothing_is_known_of_what_was_never_put(self, cache: Cache) -> None:
        assert _forgotten(cache, fresh_handle())
        assert (cache.stats().hits, cache.stats().misses, cache.stats().stale) == (0, 1, 0)

    def test_what_was_dropped_is_gone(self, cache: Cache, other: Cache) -> None:
        record = self.filled(cache)
        other.drop(record.handle)
        assert _forgotten(cache, record.handle)
        assert _forgotten(other, record.handle)

    def test_what_was_cleared_is_gone(self, cache: Cache, other: Cache) -> None:
        records = [self.filled(cache) for _ in range(5)]
        other.clear()
        assert all(_forgotten(each, record.handle) for record in records for each in (cache, other))

    def test_dropping_and_clearing_what_is_not_there_is_fine(self, cache: Cache) -> None:
        handle = fresh_handle()
        for _ in range(2):
            cache.drop(handle)
            cache.clear()
        assert _forgotten(cache, handle)

    @pytest.mark.parametrize("absent", [False, True])
    def test_a_drop_cancels_every_earlier_lease(self, cache: Cache, other: Cache, *, absent: bool) -> None:
        record = a_record(cache)
        leases = [cache.lease(record.handle), other.lease(record.handle)]
        other.drop(record.handle)
        for each, lease in zip((cache, other), leases, strict=True):
            assert not each.put(record.handle, None if absent else record, lease)
            assert _forgotten(cache, record.handle)

    @pytest.mark.parametrize("absent", [False, True])
    def test_a_clear_cancels_every_earlier_lease(self, cache: Cache, other: Cache, *, absent: bool) -> None:
        records = [a_record(cache) for _ in range(5)]
        leases = [cache.lease(record.handle) for record in records]
        other.clear()
        for record, lease in zip(records, leases, strict=True):
            assert not cache.put(record.handle, None if absent else record, lease)
            assert _forgotten(cache, record.handle)

    def test_a_lease_stays_cancelled_whatever_comes_after(self, cache: Cache) -> None:
        old = a_record(cache)
        cancelled = cache.lease(old.handle)
        cache.drop(old.handle)
        new = self.filled(cache, old.handle, version=2)
        assert not cache.put(old.handle, old, cancelled)
        assert not cache.put(old.handle, old._replace(version=9), cancelled)
        assert served(cache, old.handle) == (new if self.keeps else None)
        cache.drop(old.handle)
        cache.clear()
        assert not cache.put(old.handle, old, cancelled)
        assert _forgotten(cache, old.handle)

    def test_a_drop_ends_what_an_earlier_lease_had_filled(self, cache: Cache) -> None:
        record = a_record(cache)
        early, late = cache.lease(record.handle), cache.lease(record.handle)
        cache.put(record.handle, record, early)
        cache.drop(record.handle)
        assert not cache.put(record.handle, record, late)
        assert _forgotten(cache, record.handle)

    def test_a_drop_or_a_clear_in_the_midst_of_a_fill_wins(self, cache: Cache, clock: InterruptedClock) -> None:
        for asked in range(5):
            for is_drop in (True, False):
                record = self.filled(cache)
                lease = cache.lease(record.handle)
                clock.meanwhile(partial(cache.drop, record.handle) if is_drop else cache.clear, asked)
                cache.put(record.handle, record, lease)
                clock.settle()
                assert _forgotten(cache, record.handle)

    def test_after_a_drop_no_thread_is_served_what_was_before(self, cache: Cache) -> None:
        handle = fresh_handle()
        stored, confirmed = 1, 1
        done = False

        def write() -> None:
            nonlocal stored, confirmed, done
            try:
                for version in range(2, 120):
                    stored = version
                    cache.drop(handle)
                    confirmed = version
            finally:
                done = True

        def check() -> None:
            least = confirmed
            found = served(cache, handle)
            assert found is None or found.version >= least, "An earlier version than one that a drop confirmed."

        def read() -> None:
            while not done:
                check()
                lease = cache.lease(handle)
                cache.put(handle, a_record(cache, handle, version=stored), lease)
            check()

        assert at_once(write, read, read, read) == [None] * 4

    def test_threads_with_handles_of_their_own_see_what_they_wrote(self, cache: Cache) -> None:
        results = at_once(*(_Owner(cache, seed).work for seed in range(8)))
        assert results == [None] * 8


class _Owner:
    """A thread that alone writes and reads a few sessions, so that it knows what there is."""

    def __init__(self, cache: Cache, seed: int) -> None:
        self.cache = cache
        self.random = random.Random(seed)  # noqa: S311 - to be repeatable
        self.versions: dict[str, int | None] = {fresh_handle(): None for _ in range(3)}
        self.latest = 0

    def work(self) -> None:
        for _ in range(120):
            handle = self.random.choice(list(self.versions))
            self.random.choice([self.read, self.read, self.fill, self.fill, self.write, self.revoke, self.lose])(handle)

    def read(self, handle: str) -> None:
        found, version = served(self.cache, handle), self.versions[handle]
        assert found is None or (found.handle, found.version) == (handle, version)
        assert not self.cache.is_absent(handle) or version is None

    def fill(self, handle: str) -> None:
        lease, version = self.cache.lease(handle), self.versions[handle]
        self.cache.put(handle, None if version is None else a_record(self.cache, handle, version=version), lease)

    def write(self, handle: str) -> None:
        self._become(handle, self.latest + 1)

    def revoke(self, handle: str) -> None:
        self._become(handle, None)

    def lose(self, handle: str) -> None:
        lease, version = self.cache.lease(handle), self.versions[handle]
        self.write(handle)
        stale = None if version is None else a_record(self.cache, handle, version=version)
        assert not self.cache.put(handle, stale, lease)

    def _become(self, handle: str, version: int | None) -> None:
        self.latest = version or self.latest
        self.versions[handle] = version
        self.cache.drop(handle)


class Ageing(CacheCases):
    """What is too old, or past its deadline, is a miss."""

    def test_an_entry_is_served_until_max_staleness_after_its_lease(self, cache: Cache, clock: FakeClock) -> None:
        record = self.filled(cache)
        clock.advance(cache.max_staleness - MOMENT if self.keeps else 0)
        assert served(cache, record.handle) == (record if self.keeps else None)
        clock.advance(MOMENT)
        assert _forgotten(cache, record.handle)

    def test_age_counts_from_the_lease(self, cache: Cache, clock: FakeClock) -> None:
        record = a_record(cache)
        lease = cache.lease(record.handle)
        clock.advance(max(0, cache.max_staleness - MOMENT))
        assert cache.put(record.handle, record, lease) is self.keeps
        assert served(cache, record.handle) == (record if self.keeps else None)
        clock.advance(MOMENT)
        assert _forgotten(cache, record.handle)

    @pytest.mark.parametrize("absent", [False, True])
    def test_a_lease_that_is_too_old_fills_nothing(self, cache: Cache, clock: FakeClock, *, absent: bool) -> None:
        record = a_record(cache)
        lease = cache.lease(record.handle)
        clock.advance(cache.max_staleness)
        assert not cache.put(record.handle, None if absent else record, lease)
        assert _forgotten(cache, record.handle)

    def test_being_served_makes_nothing_younger(self, cache: Cache, clock: FakeClock) -> None:
        record = self.filled(cache)
        for _ in range(10):
            cache.get(record.handle)
            clock.advance(cache.max_staleness / 10)
        clock.advance(MOMENT)
        assert _forgotten(cache, record.handle)

    def test_a_version_before_the_clients_is_a_miss(self, cache: Cache) -> None:
        record = self.filled(cache, version=7)
        assert served(cache, record.handle, 8) is None
        for version in (0, 6, 7):
            assert served(cache, record.handle, version) == (record if self.keeps else None)

    @pytest.mark.parametrize("deadline", DEADLINES)
    def test_an_entry_ends_with_each_deadline(self, cache: Cache, clock: FakeClock, deadline: str) -> None:
        for life in (1, 2, 500):
            record = self.filled(cache, **{deadline: clock.now() + life})
            clock.advance((life - 1) / 1000)
            assert served(cache, record.handle) == (record if self.keeps else None)
            clock.advance(MOMENT)
            assert cache.get(record.handle) is None

    def test_an_expired_record_is_not_kept(self, cache: Cache, clock: FakeClock) -> None:
        for deadline, ago in product(DEADLINES, (0, 1, 10**9)):
            record = a_record(cache, **{deadline: clock.now() - ago})
            assert not put(cache, record)
            assert cache.get(record.handle) is None

    def test_a_record_that_expires_between_lease_and_put_is_not_kept(self, cache: Cache, clock: FakeClock) -> None:
        record = a_record(cache, idle=clock.now() + 1)
        lease = cache.lease(record.handle)
        clock.advance(MOMENT)
        assert not cache.put(record.handle, record, lease)
        assert cache.get(record.handle) is None

    def test_a_clock_that_is_set_back_prolongs_nothing(self, cache: Cache, clock: FakeClock) -> None:
        """Forward for most of the staleness, back by most of that, and on: as much has passed as went forward."""
        record, absent = self.filled(cache), fresh_handle()
        cache.put(absent, None, cache.lease(absent))
        clock.advance(cache.max_staleness * 0.75)
        look(cache, record.handle, absent)
        clock.advance(cache.max_staleness * -0.5)
        look(cache, record.handle, absent)
        clock.advance(cache.max_staleness * 0.25 + MOMENT)
        assert _forgotten(cache, record.handle)
        assert not cache.is_absent(absent)

    def test_an_entry_that_lies_in_the_future_is_no_younger_when_that_comes(
        self, cache: Cache, clock: FakeClock
    ) -> None:
        record = self.filled(cache)
        clock.advance(-cache.max_staleness * 3 - 1)
        look(cache, record.handle)
        clock.advance(cache.max_staleness * 3 + 1)
        assert _forgotten(cache, record.handle)

    def test_a_lease_of_before_the_clock_was_set_back_fills_nothing_for_longer(
        self, cache: Cache, clock: FakeClock
    ) -> None:
        record = a_record(cache)
        lease = cache.lease(record.handle)
        clock.advance(-3600)
        look(cache, record.handle)
        cache.put(record.handle, record, lease)
        clock.advance(cache.max_staleness)
        assert _forgotten(cache, record.handle)

    def test_a_lower_version_never_takes_the_place_of_a_higher_one(self, cache: Cache) -> None:
        new = self.filled(cache, version=5)
        old = new._replace(version=4)
        assert not put(cache, old)
        assert served(cache, new.handle) == (new if self.keeps else None)

    def test_what_is_cached_now_is_gone_in_time(self, cache: Cache, other: Cache, clock: FakeClock) -> None:
        records, absent = [self.filled(cache) for _ in range(5)], fresh_handle()
        cache.put(absent, None, cache.lease(absent))
        other.clear_after(cache.max_staleness / 2)
        clock.advance(cache.max_staleness / 2)
        for each in (cache, other):
            assert all(_forgotten(each, record.handle) for record in records)
            assert not each.is_absent(absent)

    def test_what_is_cached_now_can_be_gone_at_once(self, cache: Cache) -> None:
        for seconds in (0, timedelta(0)):
            record = self.filled(cache)
            cache.clear_after(seconds)
            assert _forgotten(cache, record.handle)

    def test_the_earliest_of_several_clearings_counts(self, cache: Cache, clock: FakeClock) -> None:
        record = self.filled(cache)
        for share in (0.75, 0.25, 0.5, 2):
            cache.clear_after(cache.max_staleness * share)
        clock.advance(cache.max_staleness / 4)
        assert _forgotten(cache, record.handle)
        cache.clear_after(cache.max_staleness)
        assert _forgotten(cache, record.handle)

    def test_clearing_later_than_staleness_prolongs_nothing(self, cache: Cache, clock: FakeClock) -> None:
        record = self.filled(cache)
        cache.clear_after(cache.max_staleness * 10)
        clock.advance(cache.max_staleness)
        assert _forgotten(cache, record.handle)


class Lasting(CacheCases):
    """``stale``, for caches that have it."""

    @pytest.fixture
    def lingering(self, cache: Cache) -> Lingering:
        """Return the cache, if it can be asked for what is too old."""
        if not isinstance(cache, Lingering):
            pytest.skip("This cache has no stale().")
        return cache

    def test_a_stale_record_is_there_for_as_long_as_it_is_asked_for(
        self, lingering: Lingering, clock: FakeClock
    ) -> None:
        record = self.filled(lingering, version=3)
        clock.advance(lingering.max_staleness + 1 - MOMENT)
        expected = record if self.keeps else None
        assert lingering.get(record.handle) is None
        assert opened(lingering.stale(record.handle, 0, 1)) == expected
        assert opened(lingering.stale(record.handle, 3, 1)) == expected
        assert lingering.stale(record.handle, 4, 1) is None
        clock.advance(MOMENT)
        assert lingering.stale(record.handle, 0, 1) is None

    def test_nothing_stale_is_known_of_what_was_never_put(self, lingering: Lingering) -> None:
        assert lingering.stale(fresh_handle(), 0, 3600) is None

    def test_what_was_dropped_or_cleared_is_never_stale(
        self, lingering: Lingering, other: Lingering, clock: FakeClock
    ) -> None:
        forgets: list[Callable[[str], object]] = [other.drop, lambda _: other.clear(), lambda _: other.clear_after(0)]
        for forget, age in product(forgets, (0, lingering.max_staleness)):
            record = self.filled(lingering)
            clock.advance(age)
            forget(record.handle)
            assert lingering.stale(record.handle, 0, 3600) is None
            assert other.stale(record.handle, 0, 3600) is None
            clock.advance(1)
            assert lingering.stale(record.handle, 0, 3600) is None


class Closing(CacheCases):
    """``close``."""

    def test_a_closed_cache_misses_everything(self, cache: Cache) -> None:
        record = self.filled(cache)
        lease = cache.lease(record.handle)
        cache.close()
        cache.close()
        assert _forgotten(cache, record.handle)
        assert not cache.put(record.handle, record, lease)
        assert not put(cache, record)
        assert not cache.put(record.handle, None, cache.lease(record.handle))
        cache.drop(record.handle)
        cache.clear_after(1)
        assert _forgotten(cache, record.handle)
        assert cache.stats().sessions == 0
