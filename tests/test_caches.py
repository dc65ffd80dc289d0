"""Every cache keeps the contract; the suite catches those that do not; and what two tiers are together."""

import random
import sys
import threading

import cachetools
import pytest
from scheduler import Scenario, Scheduler

from sessiontree import ConfigError
from sessiontree.caches import Cache, Stats
from sessiontree.caches.conformance import CacheConformance, CacheSafety
from sessiontree.caches.conformance.tools import InterruptedClock, a_record, fresh_handle, opened, put, served
from sessiontree.caches.disk import DiskCache
from sessiontree.caches.kept import LONGEST_WHOLE, MOST_WHOLE
from sessiontree.caches.local import LocalCache
from sessiontree.caches.null import NullCache
from sessiontree.caches.protocol import Lingering
from sessiontree.caches.tiered import MOST_SLOW, Aging, TieredCache
from sessiontree.clock import FakeClock, SystemClock, milliseconds, stopwatch
from sessiontree.keys import KeyRing

RING = KeyRing(bytes(range(40)))


class PlainCache:
    """The contract in the fewest words: a lock, a dict, and a count of drops for each handle."""

    def __init__(self, max_staleness=5.0, clock=None):
        self.clock = clock or SystemClock()
        self.max_staleness = max_staleness
        self.lock = threading.RLock()
        self.seconds = stopwatch(self.clock)
        self.entries, self.absent, self.drops = {}, {}, {}
        self.all_drops = self.hits = self.misses = self.old = self.refused = 0
        self.closed = False

    def now(self):
        return round(self.seconds() * 1000)

    def until(self, since):
        return since + milliseconds(self.max_staleness)

    def find(self, handle, min_version, beyond=0):
        record, until, ends = self.entries.get(handle, (None, 0, 0))
        if record is None or self.now() >= min(until + beyond, ends) or record.version < min_version:
            return None
        return record

    def get(self, handle, min_version=0):
        with self.lock:
            record = self.find(handle, min_version)
            if record is not None and not record.is_live(self.clock.now()):
                record = None
            self.hits += record is not None
            self.misses += record is None
            self.old += record is None and handle in self.entries
            return record

    def get_aged(self, handle, min_version=0):
        record = self.get(handle, min_version)
        if record is None:
            return None
        _, until, ends = self.entries[handle]
        return record, self.max_staleness - (until - self.now()) / 1000, (min(until, ends) - self.now()) / 1000

    def stale(self, handle, min_version, beyond):
        with self.lock:
            return self.find(handle, min_version, milliseconds(beyond))

    def is_absent(self, handle):
        return self.now() < self.absent.get(handle, 0)

    def lease(self, handle):
        with self.lock:
            return self.now(), self.drops.get(handle, 0), self.all_drops

    def put(self, handle, record, lease):
        return self.put_aged(handle, record, lease, 0)

    def put_aged(self, handle, record, lease, age):
        with self.lock:
            since, drops, all_drops = lease
            if self.closed or self.is_cancelled(handle, drops, all_drops):
                self.refused += 1
                return False
            until = self.until(since - milliseconds(age))
            if self.now() >= until or (record is not None and not record.is_live(self.clock.now())):
                return False
            return self.keep_absent(handle, until) if record is None else self.keep(handle, record, until)

    def is_cancelled(self, handle, drops, all_drops):
        return drops != self.drops.get(handle, 0) or all_drops != self.all_drops

    def keep(self, handle, record, until):
        present = self.find(handle, 0)
        if present is not None and present.version > record.version:
            return False
        self.absent.pop(handle, None)
        self.entries[handle] = record, until, sys.maxsize
        return True

    def keep_absent(self, handle, until):
        if len(self.absent) >= 100:
            self.absent.clear()
        self.absent[handle] = until
        return True

    def drop(self, handle):
        with self.lock:
            self.drops[handle] = self.drops.get(handle, 0) + 1
            self.entries.pop(handle, None)
            self.absent.pop(handle, None)

    def clear(self):
        with self.lock:
            self.all_drops += 1
            self.entries, self.absent = {}, {}

    def clear_after(self, seconds):
        with self.lock:
            at = self.now() + milliseconds(seconds)
            self.entries = {key: (record, until, min(ends, at)) for key, (record, until, ends) in self.entries.items()}
            self.absent = {key: min(until, at) for key, until in self.absent.items()}

    def stats(self):
        size = sum(len(record.fields) for record, _, _ in self.entries.values())
        return Stats(self.hits, self.misses, self.old, self.refused, sessions=len(self.entries), bytes=size)

    def close(self):
        self.clear()
        self.closed = True


# -- every cache under the suite --------------------------------------------------------------


class TestPlainCache(CacheConformance):
    def make_cache(self, clock):
        return PlainCache(clock=clock)


class TestNullCache(CacheSafety):
    keeps = False

    def make_cache(self, clock):
        return NullCache(clock=clock)


class TestLocalCache(CacheConformance):
    def make_cache(self, clock):
        return LocalCache(clock=clock)


class TestLocalCacheAsLRU(CacheConformance):
    def make_cache(self, clock):
        return LocalCache(max_staleness=1.5, policy=cachetools.LRUCache(100), clock=clock)


class TestLocalCacheAsLFU(CacheConformance):
    def make_cache(self, clock):
        return LocalCache(policy=cachetools.LFUCache(100), clock=clock)


class TestLocalCacheAsTTL(CacheConformance):
    def make_cache(self, clock):
        return LocalCache(policy=cachetools.TTLCache(100, ttl=60), clock=clock)


class TestLocalCacheAsFIFO(CacheConformance):
    def make_cache(self, clock):
        return LocalCache(policy=cachetools.FIFOCache(100), clock=clock)


class TestLocalCacheAsRR(CacheConformance):
    def make_cache(self, clock):
        return LocalCache(policy=cachetools.RRCache(100), clock=clock)


class InFolder:
    """Makes each DiskCache in a folder of its own."""

    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path):
        self.path, self.count = tmp_path, 0

    def disk(self, clock, **more):
        self.count += 1
        return DiskCache(self.path / str(self.count), RING, clock=clock, **more)


class TestDiskCache(InFolder, CacheConformance):
    def make_cache(self, clock):
        return self.disk(clock)

    def reopen(self, cache):
        self.count -= 1
        return self.disk(cache.clock)


class TestPlainBeforePlain(CacheConformance):
    def make_cache(self, clock):
        return TieredCache(PlainCache(2, clock), PlainCache(5, clock))


class TestPlainBeforeShorterPlain(CacheConformance):
    def make_cache(self, clock):
        return TieredCache(PlainCache(5, clock), PlainCache(2, clock))


class TestLocalBeforeLocal(CacheConformance):
    def make_cache(self, clock):
        return TieredCache(LocalCache(max_staleness=2, clock=clock), LocalCache(clock=clock))


class TestLocalBeforeDisk(InFolder, CacheConformance):
    def make_cache(self, clock):
        return TieredCache(LocalCache(clock=clock), self.disk(clock))


class TestDiskBeforeLocal(InFolder, CacheConformance):
    def make_cache(self, clock):
        return TieredCache(self.disk(clock), LocalCache(clock=clock))


class TestDiskBeforeDisk(InFolder, CacheSafety):
    def make_cache(self, clock):
        return TieredCache(self.disk(clock, max_staleness=2), self.disk(clock))


class TestLocalBeforeNull(CacheConformance):
    def make_cache(self, clock):
        return TieredCache(LocalCache(clock=clock), NullCache(clock))


class TestNullBeforeLocal(CacheConformance):
    def make_cache(self, clock):
        return TieredCache(NullCache(clock), LocalCache(clock=clock))


class TestNullBeforeDisk(InFolder, CacheSafety):
    def make_cache(self, clock):
        return TieredCache(NullCache(clock), self.disk(clock))


class TestDiskBeforeNull(InFolder, CacheSafety):
    def make_cache(self, clock):
        return TieredCache(self.disk(clock), NullCache(clock))


class TestTiersBeforeATier(CacheConformance):
    def make_cache(self, clock):
        return TieredCache(TieredCache(PlainCache(1, clock), PlainCache(3, clock)), PlainCache(5, clock))


class TestATierBeforeTiers(CacheConformance):
    def make_cache(self, clock):
        return TieredCache(PlainCache(3, clock), TieredCache(PlainCache(5, clock), PlainCache(2, clock)))


# -- the suite catches caches that break the contract -------------------------------------------


class KeepsDropped(PlainCache):
    def drop(self, handle):
        self.drops[handle] = self.drops.get(handle, 0) + 1


class KeepsCleared(PlainCache):
    def clear(self):
        self.all_drops += 1


class IgnoresDrops(PlainCache):
    def is_cancelled(self, handle, drops, all_drops):
        return all_drops != self.all_drops


class IgnoresClears(PlainCache):
    def is_cancelled(self, handle, drops, all_drops):
        return drops != self.drops.get(handle, 0)


class ForgivesDrops(PlainCache):
    def put(self, handle, record, lease):
        kept = super().put(handle, record, lease)
        self.drops.pop(handle, None)
        return kept


class ChecksTooEarly(PlainCache):
    def put(self, handle, record, lease):
        if self.is_cancelled(handle, *lease[1:]):
            self.refused += 1
            return False
        self.clock.now()
        return super().put(handle, record, self.lease(handle)) and record is not None


class LosesToNothing(PlainCache):
    """Checks the lease and keeps the record in two steps, which a drop can come between."""

    def put(self, handle, record, lease):
        if self.is_cancelled(handle, *lease[1:]):
            return False
        threading.Event().wait(0.002)
        return self.keep(handle, record, self.until(lease[0]))


class AgesFromThePut(PlainCache):
    def put(self, handle, record, lease):
        return super().put(handle, record, (self.now(), *lease[1:]))


class ServesToTheBound(PlainCache):
    def until(self, since):
        return super().until(since) + 1


class PutsTooOld(PlainCache):
    def put(self, handle, record, lease):
        return super().put(handle, record, lease) or (record is None and self.keep_absent(handle, sys.maxsize))


class GrowsYoung(PlainCache):
    def get(self, handle, min_version=0):
        found = super().get(handle, min_version)
        if found is not None:
            self.entries[handle] = found, self.until(self.now()), sys.maxsize
        return found


class IgnoresVersions(PlainCache):
    def get(self, handle, min_version=0):
        return super().get(handle, 0)


class Lowers(PlainCache):
    def keep(self, handle, record, until):
        self.entries.pop(handle, None)
        return super().keep(handle, record, until)


class LooksAtOneDeadline(PlainCache):
    def get(self, handle, min_version=0):
        found = self.find(handle, min_version)
        return found if found is not None and self.clock.now() < found.idle else None


class LooksOnlyWhenFilling(PlainCache):
    def get(self, handle, min_version=0):
        return self.find(handle, min_version)


class KeepsExpired(PlainCache):
    def put(self, handle, record, lease):
        return super().put(handle, record, lease) or (
            record is not None
            and not self.is_cancelled(handle, *lease[1:])
            and self.keep(handle, record, self.until(lease[0]))
        )


class TellsTheWallTime(PlainCache):
    def now(self):
        return self.clock.now()


class ClearsNeverLater(PlainCache):
    def clear_after(self, seconds):
        pass


class ClearsAllLater(PlainCache):
    at = sys.maxsize

    def clear_after(self, seconds):
        self.at = self.now() + milliseconds(seconds)

    def get(self, handle, min_version=0):
        if self.now() >= self.at:
            self.clear()
        return super().get(handle, min_version)


class ClearsAtOnce(PlainCache):
    def clear_after(self, seconds):
        self.clear()


class TakesTheLatestClearing(PlainCache):
    def clear_after(self, seconds):
        at = self.now() + milliseconds(seconds)
        self.entries = {key: (record, until, at) for key, (record, until, _) in self.entries.items()}


class IsAbsentForEver(PlainCache):
    def is_absent(self, handle):
        return handle in self.absent


class StaysAbsent(PlainCache):
    def keep(self, handle, record, until):
        kept = super().keep(handle, record, until)
        self.absent[handle] = until
        return kept


class StaysAbsentThroughDrops(PlainCache):
    def drop(self, handle):
        absent = dict(self.absent)
        super().drop(handle)
        self.absent = absent


class MixesAbsence(PlainCache):
    def keep_absent(self, handle, until):
        if len(self.entries) + len(self.absent) > 50:
            self.entries.clear()
            self.absent.clear()
        return super().keep_absent(handle, until)


class AbsentWhenMissed(PlainCache):
    def is_absent(self, handle):
        return handle not in self.entries


class OneLease(PlainCache):
    def lease(self, handle):
        self.drops[handle] = self.drops.get(handle, 0) + 1
        return super().lease(handle)


class OneCounter(PlainCache):
    def drop(self, handle):
        super().drop(handle)
        self.all_drops += 1


class DropsAll(PlainCache):
    def drop(self, handle):
        super().drop(handle)
        self.entries.clear()


class Changeable:
    def __init__(self, record):
        self.__dict__.update(record._asdict())
        self.is_live, self.contents = record.is_live, record.contents

    def __eq__(self, other):
        return all(getattr(other, name) == value for name, value in self.__dict__.items() if name in other._fields)

    __hash__ = None


class HandsOutItsOwn(PlainCache):
    def keep(self, handle, record, until):
        return super().keep(handle, Changeable(record), until)


class LikesAscii(PlainCache):
    def get(self, handle, min_version=0):
        return super().get(handle.encode("ascii", "replace").decode(), min_version)


class CountsNoMisses(PlainCache):
    def stats(self):
        return Stats(self.hits)


class CountsTwice(PlainCache):
    def get(self, handle, min_version=0):
        self.hits += 1
        return super().get(handle, min_version)


class ServesWhenClosed(PlainCache):
    def close(self):
        self.closed = True


class FillsWhenClosed(PlainCache):
    def close(self):
        self.clear()


class LingersBeyondDrops(PlainCache):
    def keep(self, handle, record, until):
        self.last = {**getattr(self, "last", {}), handle: record}
        return super().keep(handle, record, until)

    def stale(self, handle, min_version, beyond):
        return getattr(self, "last", {}).get(handle)


class LingersForEver(PlainCache):
    def stale(self, handle, min_version, beyond):
        return super().stale(handle, 0, 10**6)


SUITE = CacheConformance()
BROKEN = [
    (KeepsDropped, SUITE.test_what_was_dropped_is_gone, ["other"]),
    (KeepsDropped, SUITE.test_a_drop_ends_what_an_earlier_lease_had_filled, []),
    (KeepsDropped, SUITE.test_threads_with_handles_of_their_own_see_what_they_wrote, []),
    (KeepsCleared, SUITE.test_what_was_cleared_is_gone, ["other"]),
    (IgnoresDrops, SUITE.test_a_drop_cancels_every_earlier_lease, ["other"], {"absent": False}),
    (IgnoresDrops, SUITE.test_a_drop_cancels_every_earlier_lease, ["other"], {"absent": True}),
    (IgnoresDrops, SUITE.test_threads_with_handles_of_their_own_see_what_they_wrote, []),
    (IgnoresDrops, SUITE.test_refused_fills_are_counted, []),
    (IgnoresClears, SUITE.test_a_clear_cancels_every_earlier_lease, ["other"], {"absent": False}),
    (ForgivesDrops, SUITE.test_a_lease_stays_cancelled_whatever_comes_after, []),
    (ChecksTooEarly, SUITE.test_a_drop_or_a_clear_in_the_midst_of_a_fill_wins, ["clock"]),
    (LosesToNothing, SUITE.test_after_a_drop_no_thread_is_served_what_was_before, []),
    (AgesFromThePut, SUITE.test_age_counts_from_the_lease, ["clock"]),
    (AgesFromThePut, SUITE.test_a_lease_that_is_too_old_fills_nothing, ["clock"], {"absent": False}),
    (AgesFromThePut, SUITE.test_absence_is_known_for_max_staleness_after_the_lease, ["clock"]),
    (ServesToTheBound, SUITE.test_an_entry_is_served_until_max_staleness_after_its_lease, ["clock"]),
    (PutsTooOld, SUITE.test_a_lease_that_is_too_old_fills_nothing, ["clock"], {"absent": True}),
    (GrowsYoung, SUITE.test_being_served_makes_nothing_younger, ["clock"]),
    (IgnoresVersions, SUITE.test_a_version_before_the_clients_is_a_miss, []),
    (Lowers, SUITE.test_a_lower_version_never_takes_the_place_of_a_higher_one, []),
    (LooksAtOneDeadline, SUITE.test_an_entry_ends_with_each_deadline, ["clock", "own"]),
    (LooksOnlyWhenFilling, SUITE.test_an_entry_ends_with_each_deadline, ["clock", "idle"]),
    (KeepsExpired, SUITE.test_an_expired_record_is_not_kept, ["clock"]),
    (KeepsExpired, SUITE.test_a_record_that_expires_between_lease_and_put_is_not_kept, ["clock"]),
    (TellsTheWallTime, SUITE.test_a_clock_that_is_set_back_prolongs_nothing, ["clock"]),
    (TellsTheWallTime, SUITE.test_an_entry_that_lies_in_the_future_is_no_younger_when_that_comes, ["clock"]),
    (TellsTheWallTime, SUITE.test_a_lease_of_before_the_clock_was_set_back_fills_nothing_for_longer, ["clock"]),
    (ClearsNeverLater, SUITE.test_what_is_cached_now_is_gone_in_time, ["other", "clock"]),
    (ClearsNeverLater, SUITE.test_what_is_cached_now_can_be_gone_at_once, []),
    (ClearsAllLater, SUITE.test_what_is_filled_after_a_clearing_was_announced_stays, ["clock"]),
    (ClearsAtOnce, SUITE.test_entries_stay_until_a_clearing, ["clock"]),
    (TakesTheLatestClearing, SUITE.test_the_earliest_of_several_clearings_counts, ["clock"]),
    (IsAbsentForEver, SUITE.test_absence_is_known_for_max_staleness_after_the_lease, ["clock"]),
    (StaysAbsent, SUITE.test_absence_ends_with_a_drop_a_clear_and_a_record, ["other", "put"]),
    (StaysAbsentThroughDrops, SUITE.test_absence_ends_with_a_drop_a_clear_and_a_record, ["other", "drop"]),
    (StaysAbsentThroughDrops, SUITE.test_threads_with_handles_of_their_own_see_what_they_wrote, []),
    (MixesAbsence, SUITE.test_no_number_of_absences_takes_a_records_place, []),
    (AbsentWhenMissed, SUITE.test_nothing_is_known_of_what_was_never_put, []),
    (AbsentWhenMissed, SUITE.test_only_a_negative_put_says_that_a_record_is_absent, ["other"]),
    (OneLease, SUITE.test_two_leases_on_one_handle_are_both_good, []),
    (OneCounter, SUITE.test_a_drop_cancels_hardly_any_lease_on_other_handles, []),
    (DropsAll, SUITE.test_a_drop_leaves_other_entries_alone, []),
    (HandsOutItsOwn, SUITE.test_what_is_returned_cannot_be_used_to_change_the_entry, []),
    (LikesAscii, SUITE.test_a_handle_is_any_text, []),
    (CountsNoMisses, SUITE.test_every_get_is_a_hit_or_a_miss, ["clock"]),
    (CountsTwice, SUITE.test_every_get_is_a_hit_or_a_miss, ["clock"]),
    (ServesWhenClosed, SUITE.test_a_closed_cache_misses_everything, []),
    (FillsWhenClosed, SUITE.test_a_closed_cache_misses_everything, []),
    (LingersBeyondDrops, SUITE.test_what_was_dropped_or_cleared_is_never_stale, ["other", "clock"]),
    (LingersForEver, SUITE.test_a_stale_record_is_there_for_as_long_as_it_is_asked_for, ["clock"]),
]


def run_case(kind, case, arguments, named=None):
    clock = InterruptedClock()
    cache = kind(clock=clock)
    known = {"clock": clock, "other": cache}
    case(cache, *(known.get(each, each) if isinstance(each, str) else each for each in arguments), **(named or {}))


@pytest.mark.parametrize("broken", BROKEN, ids=[f"{row[0].__name__}-{row[1].__name__}" for row in BROKEN])
def test_the_suite_catches_a_cache_that_breaks_the_contract(broken):
    kind, case, *arguments = broken
    run_case(PlainCache, case, *arguments)
    with pytest.raises((AssertionError, TypeError, AttributeError, pytest.fail.Exception)):
        run_case(kind, case, *arguments)


def test_a_subclass_without_a_cache_is_told_what_to_define():
    with pytest.raises(NotImplementedError, match="make_cache"):
        SUITE.make_cache(FakeClock())


# -- tiers --------------------------------------------------------------------------------------


@pytest.fixture
def clock():
    return InterruptedClock()


def tiers(clock, first=5.0, second=5.0):
    return TieredCache(PlainCache(first, clock), PlainCache(second, clock))


def test_the_caches_are_what_they_say(clock, tmp_path):
    disk = DiskCache(tmp_path / "cache", RING, clock=clock)
    for cache in (NullCache(clock), LocalCache(clock=clock), disk, tiers(clock), PlainCache(clock=clock)):
        assert isinstance(cache, Cache)
        assert isinstance(cache, Lingering)
    assert all(isinstance(cache, Aging) for cache in (disk, tiers(clock), PlainCache(clock=clock)))
    disk.close()


def test_a_local_cache_is_copied_into_and_out_of(clock):
    """As both tiers, so that an entry keeps its age on its way up."""
    cache = TieredCache(LocalCache(clock=clock), LocalCache(clock=clock))
    record = a_record(cache)
    put(cache.l2, record)
    clock.advance(3)
    assert served(cache, record.handle) == record
    assert served(cache.l1, record.handle) == record
    clock.advance(2)
    assert served(cache.l1, record.handle) is None


def test_tiers_on_two_clocks_are_a_config_error(clock):
    with pytest.raises(ConfigError, match="clock"):
        TieredCache(PlainCache(clock=clock), PlainCache(clock=FakeClock()))
    assert TieredCache(PlainCache(), PlainCache()).clock == SystemClock()


def test_null_cache_counts_misses():
    cache = NullCache()
    assert cache.clock == SystemClock()
    for _ in range(3):
        cache.get("a")
    assert cache.stats() == Stats(misses=3)
    assert not put(cache, a_record(cache))


def test_what_the_second_tier_has_is_copied_into_the_first(clock):
    cache = tiers(clock)
    record = a_record(cache)
    put(cache.l2, record)
    assert served(cache.l1, record.handle) is None
    assert served(cache, record.handle) == record
    assert served(cache.l1, record.handle) == record
    cache.l2.clear()
    assert served(cache, record.handle) == record
    assert cache.stats().hits == 2


@pytest.mark.parametrize(("first", "second"), [(5, 5), (2, 5), (5, 2), (60, 5), (0.5, 60)])
@pytest.mark.parametrize("age", [0, 0.4, 0.999, 1.9])
def test_a_copy_is_served_for_no_longer_than_what_it_is_copied_from_nor_than_its_tier_allows(clock, first, second, age):
    cache = tiers(clock, first, second)
    record = a_record(cache)
    put(cache.l2, record)
    clock.advance(age)
    assert served(cache, record.handle) == record
    left = min(first, second) - age
    if left <= 0:
        assert served(cache.l1, record.handle) is None
        return
    clock.advance(left - 0.001)
    assert served(cache.l1, record.handle) == record
    clock.advance(0.001)
    assert served(cache.l1, record.handle) is None


def test_tiers_that_copy_nothing_are_read_through_all_the_same(clock):
    inner = TieredCache(Basic(PlainCache(clock=clock)), PlainCache(clock=clock))
    cache = TieredCache(PlainCache(clock=clock), inner)
    record = a_record(cache)
    put(inner.l2, record)
    assert served(cache, record.handle) == record
    assert (inner.stats().hits, cache.stats().hits) == (1, 1)


def test_a_second_tier_may_have_leases_that_are_nothing(clock):
    class Unleased(PlainCache):
        def lease(self, handle):
            return None

        def put(self, handle, record, lease):
            return super().put(handle, record, super().lease(handle))

    cache = TieredCache(PlainCache(clock=clock), Unleased(clock=clock))
    record = a_record(cache)
    put(cache, record)
    assert served(cache.l2, record.handle) == record


@pytest.mark.parametrize("seconds", [True, "x", float("nan")])
def test_a_wrong_duration_is_nobodys_failure(clock, seconds):
    cache = tiers(clock)
    record = a_record(cache)
    put(cache.l2, record)
    with pytest.raises(ConfigError):
        cache.clear_after(seconds)
    assert served(cache, record.handle) == record
    assert cache.stats().errors == 0


def test_copies_of_copies_keep_their_age(clock):
    bottom, middle, top = (PlainCache(seconds, clock) for seconds in (5, 9, 7))
    cache = TieredCache(top, TieredCache(middle, bottom))
    record = a_record(cache)
    put(bottom, record)
    clock.advance(2)
    assert served(cache, record.handle) == record
    bottom.clear()
    clock.advance(2.999)
    assert [served(each, record.handle) for each in (top, cache)] == [record] * 2
    clock.advance(0.001)
    assert served(cache, record.handle) is None


def test_a_copy_is_gone_when_what_it_was_copied_from_is_to_be_cleared(clock):
    cache = tiers(clock, 60, 5)
    record = a_record(cache)
    put(cache.l2, record)
    cache.clear_after(2)
    clock.advance(1)
    assert served(cache, record.handle) == record
    clock.advance(1)
    assert served(cache, record.handle) is None


def test_a_clearing_in_the_midst_of_a_copy_counts_for_the_copy(clock):
    cache = tiers(clock)
    record = a_record(cache)
    put(cache.l2, record)
    fill = cache.l1.put_aged

    def late(*arguments):
        cache.clear_after(1)
        return fill(*arguments)

    cache.l1.put_aged = late
    assert served(cache, record.handle) == record
    cache.l1.put_aged = fill
    clock.advance(1)
    assert served(cache, record.handle) is None


class Basic:
    """A cache of nothing but the protocol, which cannot say how old an entry is."""

    def __init__(self, cache):
        self._cache = cache
        self.clock, self.max_staleness = cache.clock, cache.max_staleness

    def __getattr__(self, name):
        if name in {"get_aged", "put_aged", "stale"}:
            raise AttributeError(name)
        return getattr(self._cache, name)


@pytest.mark.parametrize("tier", [1, 2])
def test_without_ages_nothing_is_copied(clock, tier):
    kinds = [PlainCache(clock=clock), PlainCache(clock=clock)]
    cache = TieredCache(*(Basic(each) if number == tier else each for number, each in enumerate(kinds, 1)))
    record = a_record(cache)
    put(cache.l2, record)
    assert served(cache, record.handle) == record
    assert served(cache.l1, record.handle) is None
    assert cache.get_aged(record.handle) is None
    assert cache.put_aged(record.handle, record, cache.lease(record.handle), 1) is False
    assert put(cache, record)
    assert served(cache.l1, record.handle) == record


@pytest.mark.parametrize("tier", [1, 2])
def test_either_tier_may_have_what_is_stale(clock, tier):
    kinds = [PlainCache(clock=clock), PlainCache(clock=clock)]
    cache = TieredCache(*(Basic(each) if number == tier else each for number, each in enumerate(kinds, 1)))
    record = a_record(cache)
    put(cache, record)
    clock.advance(6)
    assert opened(cache.stale(record.handle, 0, 60)) == record
    neither = TieredCache(Basic(PlainCache(clock=clock)), Basic(PlainCache(clock=clock)))
    put(neither, record)
    assert neither.stale(record.handle, 0, 60) is None


class Failing(PlainCache):
    """Raises from whatever verb it is told to."""

    failing = frozenset()

    def __getattribute__(self, name):
        return fail if name in object.__getattribute__(self, "failing") else object.__getattribute__(self, name)


def fail(*arguments):
    raise OSError(arguments)


VERBS = ("get", "get_aged", "is_absent", "lease", "put", "put_aged", "stale")


def test_a_second_tier_that_fails_is_a_miss_and_counted_and_logged_once(clock, caplog):
    cache = TieredCache(PlainCache(clock=clock), Failing(clock=clock))
    record = a_record(cache)
    lease = cache.lease(record.handle)
    cache.l2.failing = frozenset(VERBS)
    assert cache.get(record.handle) is None
    assert not cache.is_absent(record.handle)
    assert cache.put(record.handle, record, lease)
    assert put(cache, record._replace(version=2))
    assert served(cache, record.handle).version == 2
    assert cache.stale("b", 0, 60) is None
    assert [each.name for each in caplog.records] == ["sessiontree.caches"]
    assert cache.stats().errors >= 5
    assert cache.stats().misses == 1


@pytest.mark.parametrize("verb", ["drop", "clear", "clear_after"])
def test_a_second_tier_that_fails_to_forget_is_not_asked_until_all_it_has_is_too_old(clock, verb):
    cache = TieredCache(PlainCache(clock=clock), Failing(clock=clock))
    record = a_record(cache)
    put(cache, record)
    in_flight = cache.lease(record.handle)
    cache.l2.failing = frozenset([verb])
    getattr(cache, verb)(*{"drop": [record.handle], "clear": [], "clear_after": [0]}[verb])
    cache.l2.failing = frozenset()
    cache.put(fresh_handle(), None, in_flight)
    for passed in (0, 1, 3.999):
        clock.advance(passed)
        assert cache.get(record.handle) is None
        assert cache.stale(record.handle, 0, 60) is None
    clock.advance(0.001)
    assert cache.get(record.handle) is None
    assert cache.stale(record.handle, 0, 60) is None, "Who knows what it is of."
    fresh = record._replace(version=2)
    assert put(cache.l2, fresh)
    assert served(cache, record.handle) == fresh


def test_a_second_tier_that_is_slow_several_times_in_a_row_is_left_alone_for_a_moment(clock):
    cache = tiers(clock)
    record = a_record(cache)
    put(cache.l2, record)
    waited = 0.0

    def get_aged(handle, min_version=0):
        nonlocal waited
        waited += 0.06

    cache._breaker._seconds = lambda: waited
    cache.l2.get_aged = get_aged
    for _ in range(MOST_SLOW + 5):
        assert cache.get(record.handle) is None
    assert waited == pytest.approx(0.06 * MOST_SLOW)
    assert (cache.stats().errors, cache.stats().misses) == (5, MOST_SLOW + 5)
    del cache.l2.get_aged
    waited += 1
    assert served(cache, record.handle) == record


def test_a_drop_reaches_the_first_tier_whatever_the_second_does(clock):
    cache = TieredCache(PlainCache(clock=clock), Failing(clock=clock))
    record = a_record(cache)
    put(cache, record)

    def drop(handle):
        raise KeyboardInterrupt

    cache.l2.drop = drop
    with pytest.raises(KeyboardInterrupt):
        cache.drop(record.handle)
    assert cache.l1.get(record.handle) is None


def test_both_tiers_are_closed(clock):
    cache = tiers(clock)
    cache.close()
    assert (cache.l1.closed, cache.l2.closed) == (True, True)


def test_the_sizes_of_both_tiers_are_added(clock):
    cache = tiers(clock)
    put(cache, a_record(cache))
    assert cache.stats().sessions == 2
    cache.l1.clear()
    assert cache.stats().sessions == 1


# -- every interleaving ---------------------------------------------------------------------------


class Stopping:
    """A tier at each of whose verbs an operation may be stopped."""

    def __init__(self, cache, scheduler, name):
        self._cache, self._scheduler, self._name = cache, scheduler, name
        self.clock, self.max_staleness = cache.clock, cache.max_staleness

    def __getattr__(self, verb):
        found = getattr(self._cache, verb)

        def stopped(*arguments):
            self._scheduler.point(f"{self._name}.{verb}")
            return found(*arguments)

        return stopped


class Stopped(Stopping):
    """As above, with the verbs that say what a tier can do."""

    def get_aged(self, *arguments):
        return self.__getattr__("get_aged")(*arguments)

    def put_aged(self, *arguments):
        return self.__getattr__("put_aged")(*arguments)

    def get(self, *arguments):
        return self.__getattr__("get")(*arguments)

    def is_absent(self, *arguments):
        return self.__getattr__("is_absent")(*arguments)

    def lease(self, *arguments):
        return self.__getattr__("lease")(*arguments)

    def put(self, *arguments):
        return self.__getattr__("put")(*arguments)

    def drop(self, *arguments):
        return self.__getattr__("drop")(*arguments)

    def clear(self):
        return self.__getattr__("clear")()

    def clear_after(self, *arguments):
        return self.__getattr__("clear_after")(*arguments)

    def stats(self):
        return self._cache.stats()

    def close(self):
        self._cache.close()


@pytest.fixture(scope="module")
def scheduler():
    with Scheduler() as made:
        yield made


class FirstTierFirst(TieredCache):
    def drop(self, handle):
        self.l1.drop(handle)
        self.l2.drop(handle)

    def clear(self):
        self.l1.clear()
        self.l2.clear()


def scenario(scheduler, kind, *operations):
    """Return readers and fillers beside one that revokes; what is served after that must be what is stored then."""

    def make():
        clock = FakeClock()
        cache = kind(*(Stopped(PlainCache(clock=clock), scheduler, name) for name in ("l1", "l2")))
        old = a_record(cache, "a")
        stored, in_time = {"a": old}, []
        put(cache.l2, old)

        def read():
            cache.get("a")

        def fill():
            lease = cache.lease("a")
            scheduler.point("load")
            cache.put("a", stored["a"], lease)

        def write():
            scheduler.point("write")
            stored["a"] = old._replace(version=2)
            cache.drop("a")

        def revoke():
            scheduler.point("revoke")
            stored["a"] = None
            cache.clear()

        def later():
            scheduler.point("later")
            cache.clear_after(1)
            in_time.append(1)

        def check(run):
            clock.advance(len(in_time))
            for each in (cache, cache.l1, cache.l2):
                assert not in_time or each.get("a") is None, "What was to be cleared is served."
                found = each.get("a")
                assert found is None or found == stored["a"], "What was dropped is served."
                assert not each.is_absent("a") or stored["a"] is None

        known = {"read": read, "fill": fill, "write": write, "revoke": revoke, "later": later}
        return Scenario([known[name] for name in operations], check)

    return make


CROWDS = [
    ("read", "write"), ("read", "revoke"), ("fill", "write"), ("fill", "revoke"), ("read", "fill", "write"),
    ("read", "read", "write"), ("read", "write", "write"), ("read", "fill", "revoke"), ("read", "later"),
    ("read", "read", "later"), ("read", "later", "later"),
]  # fmt: skip


@pytest.mark.parametrize("crowd", CROWDS, ids="-".join)
def test_whatever_comes_between_nothing_is_copied_upward_that_was_dropped(scheduler, crowd):
    count = scheduler.explore(scenario(scheduler, TieredCache, *crowd), preemptions=3)
    assert count > 10


@pytest.mark.parametrize("crowd", [("read", "write"), ("read", "revoke")], ids="-".join)
def test_dropped_the_other_way_round_it_would_be(scheduler, crowd):
    with pytest.raises(AssertionError, match="What was dropped"):
        scheduler.explore(scenario(scheduler, FirstTierFirst, *crowd))


def test_many_threads_on_tiers_of_memory_and_disk_are_served_nothing_that_was_dropped(tmp_path):
    cache = TieredCache(PlainCache(), DiskCache(tmp_path / "cache", RING))
    SUITE.test_after_a_drop_no_thread_is_served_what_was_before(cache)
    random.seed(0)
    SUITE.test_threads_with_handles_of_their_own_see_what_they_wrote(cache)
    cache.close()


def test_a_cache_takes_what_another_one_has_found(clock):
    near, far = LocalCache(clock=clock), LocalCache(clock=clock)
    record = a_record(far)
    put(far, record)
    assert put(near, far.get(record.handle))
    assert served(near, record.handle) == record


def test_the_record_of_an_entry_is_made_once_until_another_one_takes_its_place():
    cache = LocalCache()
    first = a_record(cache)
    others = (a_record(cache) for _ in range(100 * MOST_WHOLE))
    second = next(other for other in others if (hash(other.handle) - hash(first.handle)) % MOST_WHOLE == 0)
    for record in (first, second):
        put(cache, record)
    kept, other = cache.get(first.handle), cache.get(second.handle)
    whole = kept.record()
    assert kept.record() is whole
    assert other.record() == second
    assert kept.record() is not whole
    assert kept.record() == whole == first


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_large_record_is_not_kept_whole_when_its_cache_has_forgotten_it(beyond):
    """A cache counts its bytes, and nobody counts those of the records that are kept whole."""
    cache = LocalCache()
    put(cache, record := a_record(cache, fields=b"x" * (LONGEST_WHOLE + beyond)))
    kept = cache.get(record.handle)
    cache.close()
    whole = kept.record()
    assert whole == record
    assert (kept.record() is whole) == (beyond == 0)


def test_what_replaces_an_entry_has_a_record_of_its_own():
    cache = LocalCache()
    put(cache, record := a_record(cache))
    assert cache.get(record.handle).record() == record
    put(cache, record._replace(version=7))
    assert cache.get(record.handle).record().version == 7


def test_nothing_of_an_entry_can_be_changed():
    cache = LocalCache()
    put(cache, record := a_record(cache))
    kept = cache.get(record.handle)
    for name in ("fields", "version", "until", "labels", "new"):
        with pytest.raises(AttributeError, match="cannot be changed"):
            setattr(kept, name, None)
        with pytest.raises(AttributeError, match="cannot be changed"):
            delattr(kept, name)
    assert kept.record() == kept == record
