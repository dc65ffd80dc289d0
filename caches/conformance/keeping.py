"""What a cache is for: to have what was put, to know what is absent, and to count."""

import random
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ...clock import FOREVER, FakeClock
from ...records import FORM, LARGEST, Record, packed
from ..protocol import Cache
from .tools import MOMENT, CacheCases, a_record, fresh_handle, put, served

__all__ = ["Absence", "Counting", "Keeping"]

HANDLES = ("a", "a" * 500, "\0", "a\0b", "é", "e\u0301", "\U0001f36a", "\ud800", "\udfff\ud800", "'\"%_\\", " ", "../a")
INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


class Keeping(CacheCases):
    """What was put is there."""

    def test_a_record_comes_back_whole(self, cache: Cache, other: Cache) -> None:
        record = Record(
            fresh_handle(), "visitor/user", 1, FOREVER - 1, FOREVER - 2, FOREVER - 3, b"\0\xff" * 16, 4, version=5,
            authenticated=6, previous=b"\xff" * 32, grace=7, labels='{"subject":"bob"}', agent="Mozilla/5.0 (é)",
            address="2001:db8::1", fields=packed({"a": [1, {"b": None}], "c": 1.5}, {"c": FOREVER}),
        )  # fmt: skip
        assert put(cache, record)
        assert served(cache, record.handle) == record
        assert served(other, record.handle) == record

    def test_any_record_comes_back_whole(self, cache: Cache) -> None:
        @settings(deadline=None, max_examples=50)
        @given(st.builds(
            Record, st.sampled_from(HANDLES), TEXTS, INTEGERS, st.just(FOREVER), st.just(FOREVER), st.just(FOREVER),
            st.binary(min_size=32, max_size=32), INTEGERS, INTEGERS, INTEGERS, st.sampled_from([b"", b"x" * 32]),
            INTEGERS, TEXTS, TEXTS, TEXTS, st.binary(max_size=300), st.just(FORM),
        ))  # fmt: skip
        def check(record: Record) -> None:
            cache.drop(record.handle)
            assert put(cache, record)
            assert served(cache, record.handle, record.version) == record

        check()

    def test_a_record_that_nobody_can_pack_is_at_worst_not_kept(self, cache: Cache) -> None:
        odd: list[dict[str, Any]] = [{"proof": b"short"}, {"version": 1 << 70}, {"form": -1}, {"agent": "\ud800"}]
        for more in odd:
            record = a_record(cache, **more)
            kept = put(cache, record)
            assert served(cache, record.handle) == (record if kept else None)

    def test_a_handle_is_any_text(self, cache: Cache) -> None:
        records = [self.filled(cache, handle, version=number) for number, handle in enumerate(HANDLES)]
        assert [served(cache, handle) for handle in HANDLES] == records
        for record in records:
            cache.drop(record.handle)
            assert cache.get(record.handle) is None
            absent = cache.put(record.handle, None, cache.lease(record.handle))
            assert (absent, cache.is_absent(record.handle)) == (True, True)
            assert put(cache, record)
        assert [served(cache, handle) for handle in HANDLES] == records

    def test_a_record_has_any_size_up_to_the_largest(self, cache: Cache) -> None:
        for size in (0, 1, 2000, 2047, 2048, 4096, 65_536, LARGEST):
            content = random.Random(size).randbytes(size // 2).hex()  # noqa: S311 - to be repeatable
            self.filled(cache, fields=packed({"a": content}))

    def test_what_is_returned_cannot_be_used_to_change_the_entry(self, cache: Cache) -> None:
        record = self.filled(cache)
        found = cache.get(record.handle)
        for name in ("handle", "version", "fields", "raw", "idle", "proof"):
            with suppress(AttributeError, TypeError):
                setattr(found, name, None)
        again = served(cache, record.handle)
        assert again is not None
        again.contents(0).clear()
        assert served(cache, record.handle) == record

    def test_two_leases_on_one_handle_are_both_good(self, cache: Cache) -> None:
        record = a_record(cache)
        first, second = cache.lease(record.handle), cache.lease(record.handle)
        assert cache.put(record.handle, record, second)
        assert cache.put(record.handle, record._replace(version=2), first)
        assert served(cache, record.handle) == record._replace(version=2)

    def test_the_same_or_a_higher_version_takes_the_place_of_the_entry(self, cache: Cache, clock: FakeClock) -> None:
        record = self.filled(cache, version=5)
        for idle, version in ((FOREVER - 1, 5), (FOREVER - 2, 6)):
            record = self.filled(cache, record.handle, version=version, idle=idle)
        clock.advance(cache.max_staleness / 2)
        self.filled(cache, record.handle, version=6)
        clock.advance(cache.max_staleness / 2)
        assert served(cache, record.handle) is not None, "The later fill is younger."

    def test_after_a_drop_a_lower_version_is_taken(self, cache: Cache) -> None:
        record = self.filled(cache, version=5)
        cache.drop(record.handle)
        assert put(cache, record._replace(version=4))
        assert served(cache, record.handle) == record._replace(version=4)

    def test_after_a_drop_a_new_lease_is_good(self, cache: Cache, other: Cache) -> None:
        record = a_record(cache)
        for forget in (other.drop, lambda _: other.clear(), cache.drop, lambda _: cache.clear()):
            forget(record.handle)
            assert put(cache, record)
            assert served(other, record.handle) == record

    def test_a_drop_leaves_other_entries_alone(self, cache: Cache) -> None:
        records = [self.filled(cache) for _ in range(50)]
        cache.drop(records[0].handle)
        assert [served(cache, record.handle) for record in records[1:]] == records[1:]

    def test_a_drop_cancels_hardly_any_lease_on_other_handles(self, cache: Cache) -> None:
        records = [a_record(cache) for _ in range(1000)]
        leases = [cache.lease(record.handle) for record in records]
        cache.drop(fresh_handle())
        refused = [not cache.put(record.handle, record, lease) for record, lease in zip(records, leases, strict=True)]
        assert sum(refused) <= 10

    def test_what_is_filled_after_a_clearing_was_announced_stays(self, cache: Cache, clock: FakeClock) -> None:
        old = self.filled(cache)
        cache.clear_after(cache.max_staleness / 2)
        assert served(cache, old.handle) == old
        new = self.filled(cache)
        again = self.filled(cache, old.handle, version=2)
        clock.advance(cache.max_staleness / 2)
        assert served(cache, new.handle) == new
        assert served(cache, old.handle) == again

    def test_entries_stay_until_a_clearing(self, cache: Cache, clock: FakeClock) -> None:
        record = self.filled(cache)
        cache.clear_after(cache.max_staleness / 2)
        clock.advance(cache.max_staleness / 2 - MOMENT)
        assert served(cache, record.handle) == record


class Absence(CacheCases):
    """Negative entries."""

    def test_only_a_negative_put_says_that_a_record_is_absent(self, cache: Cache, other: Cache) -> None:
        handle = fresh_handle()
        assert not cache.is_absent(handle)
        assert cache.put(handle, None, cache.lease(handle))
        for each in (cache, other):
            assert each.is_absent(handle)
            assert each.get(handle) is None
            assert not each.is_absent(fresh_handle())

    def test_absence_is_known_for_max_staleness_after_the_lease(self, cache: Cache, clock: FakeClock) -> None:
        handle = fresh_handle()
        lease = cache.lease(handle)
        clock.advance(cache.max_staleness / 2)
        assert cache.put(handle, None, lease)
        clock.advance(cache.max_staleness / 2 - MOMENT)
        assert cache.is_absent(handle)
        clock.advance(MOMENT)
        assert not cache.is_absent(handle)

    @pytest.mark.parametrize("forget", ["drop", "clear", "put"])
    def test_absence_ends_with_a_drop_a_clear_and_a_record(self, cache: Cache, other: Cache, forget: str) -> None:
        record = a_record(cache)
        assert cache.put(record.handle, None, cache.lease(record.handle))
        if forget == "put":
            assert put(other, record)
        else:
            other.drop(record.handle) if forget == "drop" else other.clear()
        assert not cache.is_absent(record.handle)
        assert not other.is_absent(record.handle)

    def test_no_number_of_absences_takes_a_records_place(self, cache: Cache) -> None:
        records = [self.filled(cache) for _ in range(20)]
        before = cache.stats()
        for _ in range(1500):
            handle = fresh_handle()
            cache.put(handle, None, cache.lease(handle))
        assert [served(cache, record.handle) for record in records] == records
        assert (cache.stats().sessions, cache.stats().evictions) == (before.sessions, before.evictions)

    def test_absence_is_no_record(self, cache: Cache) -> None:
        handle = fresh_handle()
        cache.put(handle, None, cache.lease(handle))
        assert (cache.stats().sessions, cache.stats().bytes) == (0, 0)


class Counting(CacheCases):
    """``stats``."""

    def test_every_get_is_a_hit_or_a_miss(self, cache: Cache, clock: FakeClock) -> None:
        record = self.filled(cache, version=2)
        for handle, version in [(record.handle, 0), (record.handle, 2), (record.handle, 3), (fresh_handle(), 0)]:
            cache.get(handle, version)
        clock.advance(cache.max_staleness)
        cache.get(record.handle)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.stale, stats.errors) == (3, 3, 2, 0)
        assert stats.ratio == 0.5

    def test_an_expired_entry_is_a_stale_one(self, cache: Cache, clock: FakeClock) -> None:
        record = self.filled(cache, idle=clock.now() + 1)
        clock.advance(MOMENT)
        cache.get(record.handle)
        assert (cache.stats().hits, cache.stats().misses, cache.stats().stale) == (1, 1, 1)

    def test_refused_fills_are_counted(self, cache: Cache) -> None:
        record = a_record(cache)
        lease = cache.lease(record.handle)
        cache.drop(record.handle)
        cache.put(record.handle, record, lease)
        assert cache.stats().refused >= 1
        assert cache.stats().errors == 0

    def test_sessions_and_bytes_are_of_now(self, cache: Cache) -> None:
        assert (cache.stats().sessions, cache.stats().bytes) == (0, 0)
        one = self.filled(cache)
        first = cache.stats()
        self.filled(cache)
        second = cache.stats()
        assert second.sessions == 2 * first.sessions > 0
        assert second.bytes == 2 * first.bytes > 0
        self.filled(cache, one.handle, version=2)
        assert cache.stats().sessions == second.sessions
        cache.drop(one.handle)
        assert cache.stats().sessions == first.sessions
        cache.clear()
        assert (cache.stats().sessions, cache.stats().bytes) == (0, 0)

    def test_asking_for_stats_changes_nothing(self, cache: Cache) -> None:
        self.filled(cache)
        assert cache.stats() == cache.stats()
