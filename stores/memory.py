"""A store in this process's memory: for tests, for one process, and the model of what a store does.

Reading takes no lock, except to count several values of a label. Writing takes one, for the length of one record's
change, and sweeping takes it for a few hundred records at a time: expired records lie in buckets by the minute, so
nothing ever goes through all of them. Records lie in shards by the first characters of their handle, so that growing is
never one long step either.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Final

from ..clock import FOREVER, Clock, Duration, SystemClock, milliseconds
from ..errors import SessionGone
from ..forks import Held
from ..records import (
    FORM,
    LARGEST,
    Changes,
    Page,
    Record,
    Version,
    changed,
    check_numbers,
    check_size,
    closed,
    gone,
    label_changes,
    narrowed,
    taken,
)
from .announcing import Announcing, OnChange, Stop
from .protocol import PAGE, SWEEP_MARGIN_MS

__all__ = ["MemoryStore"]

BUCKET_MS: Final = 60_000
CHUNK: Final = 256
"""How many records a sweep removes before it lets others have the lock."""

PREFIX: Final = 2
"""How many characters of a handle name its shard: 1,024 shards of our handles."""

_NONE: Final[dict[str, Record]] = {}


class MemoryStore(Held, Announcing):
    """Keeps records in dicts. They are gone with the process, and a forked process has a copy of its own."""

    def __init__(self, *, clock: Clock | None = None, largest: int = LARGEST) -> None:
        """Begin empty, with the clock that decides what has expired, and the largest fields of a record in bytes."""
        super().__init__()
        self.clock: Clock = clock or SystemClock()
        self.largest = largest
        self._now = self.clock.now
        self._shards: dict[str, dict[str, Record]] = {}
        self._buckets: dict[int, set[str]] = {}
        self._labelled: dict[tuple[str, str], dict[str, int]] = {}
        self._drawn = 0
        self._closed = False

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record | None:
        """Return the live record or None."""
        record = self._shards.get(handle[:PREFIX], _NONE).get(handle)
        if record is None or self._closed:
            self._check_open()
            return None
        if record.form != FORM:
            record.check_form()
        now = self._now()
        if not (now < record.absolute and now < record.own and now < record.idle):  # is_live(), without its frame
            self._remove_if_same(record)
            return None
        return record if keys is None else narrowed(record, keys)

    def load_many(self, handles: Sequence[str]) -> dict[str, Record]:
        """Return the live records among these."""
        found = ((handle, self.load(handle)) for handle in handles)
        return {handle: record for handle, record in found if record is not None}

    def create(self, record: Record) -> None:
        """Insert the record; raise Conflict if its handle lives."""
        check_size(record.fields, self.largest)
        check_numbers(record)
        try:
            with self._lock:
                self._check_open()
                old = self._get(record.handle)
                if old is not None and old.is_live(self._now()):
                    raise taken()
                if old is not None:
                    self._remove(old)
                self._put(record)
                for name, value in record.label.items():
                    self._index(record.handle, name, value)
        finally:
            if self._listeners:
                self.announce(record.handle)

    def apply(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """Make all the changes or none."""
        try:
            with self._lock:
                if self._closed:
                    raise closed()
                shard, now = self._shards.get(handle[:PREFIX], _NONE), self._now()
                old = shard.get(handle)
                if old is None:
                    raise gone()
                try:
                    record, sums = changed(old, proof, changes, now, self.largest)
                except SessionGone:
                    if not old.is_live(now):
                        self._remove(old)
                    raise
                if changes.idle is None and changes.own is None:
                    shard[handle] = record
                else:
                    self._replace(old, record)
                if changes.labels:
                    self._reindex(old, record)
        finally:
            if self._listeners:
                self.announce(handle)
        return Version.of(record.version, sums)

    def revoke(self, handle: str) -> bool:
        """End the session; return whether it was live."""
        try:
            with self._lock:
                self._check_open()
                record = self._get(handle)
                if record is None:
                    return False
                self._remove(record)
                return record.is_live(self._now())
        finally:
            if self._listeners:
                self.announce(handle)

    def find(self, label: str, value: str, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records that have the label, in the order in which they got it."""
        start, last = int(after or 0), 0
        page: list[Record] = []
        now = self._now()
        for handle, drawn in self._handles_of(label, value):
            if drawn <= start:
                continue
            if len(page) == limit:
                return Page(page, str(last))
            record = self._get(handle)
            # A writer may have taken the label away since the list was copied.
            if record is not None and record.is_live(now) and record.label.get(label) == value:
                page.append(record)
                last = drawn
        return Page(page, None)

    def count(self, label: str, *values: str) -> int:
        """Return how many live records have the label with any of these values."""
        now = self._now()
        return sum(record is not None and record.is_live(now) for record in map(self._get, self._all_of(label, values)))

    def relabel(self, label: str, old: str, new: str) -> int:
        """Give every live record of the old value the new one."""
        moved = 0
        for handle, _ in self._handles_of(label, old):
            with self._lock:
                record, now = self._get(handle), self._now()
                if record is None or record.label.get(label) != old or not record.is_live(now):
                    continue
                after, _ = changed(record, record.proof, Changes(labels={label: new}), now, self.largest)
                self._replace(record, after)
                self._reindex(record, after)
                moved += 1
            self.announce_all((handle,))
        return moved

    def revoke_where(self, label: str, value: str) -> int:
        """Revoke every record that has the label."""
        revoked = 0
        for handle, _ in self._handles_of(label, value):
            with self._lock:
                record = self._get(handle)
                if record is None or record.label.get(label) != value:
                    continue
                self._remove(record)
                revoked += record.is_live(self._now())
            self.announce_all((handle,))
        return revoked

    def scan(self, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records from behind a handle on, in the order of their handles."""
        self._check_open()
        page: list[Record] = []
        for record in self._in_order(after or ""):
            if len(page) == limit:
                return Page(page, page[-1].handle)
            if record.is_live(self._now()):
                page.append(record)
        return Page(page, None)

    def sweep(self, limit: int = 1000) -> int:
        """Remove records that expired an hour ago or more, the earliest first."""
        self._check_open()
        horizon, removed = self._now() - SWEEP_MARGIN_MS, 0
        for bucket in sorted(list(self._buckets)):  # noqa: C414 - list() is one step, which no writer can disturb
            if bucket * BUCKET_MS > horizon or removed >= limit:
                break
            handles = list(self._buckets.get(bucket, ()))
            removed += self._remove_where(handles, lambda record: record.ends <= horizon, limit - removed)
        return removed

    def sweep_idle(self, older_than: Duration, limit: int = 1000) -> int:
        """Remove records that were last seen longer ago than this many seconds."""
        self._check_open()
        horizon, removed = self._now() - milliseconds(older_than), 0
        for prefix in list(self._shards):
            if removed >= limit:
                break
            handles = [
                record.handle for record in list(self._shards.get(prefix, _NONE).values()) if record.seen < horizon
            ]
            removed += self._remove_where(handles, lambda record: record.seen < horizon, limit - removed)
        return removed

    def watch(self, on_change: OnChange) -> Stop:
        """Call ``on_change(handle)`` for each change, as ``listen`` does: nobody else can change anything."""
        self._check_open()
        return self.listen(on_change)

    def close(self) -> None:
        """Forget everything, and tell whoever listens so."""
        with self._lock:
            self._closed = True
            self._shards, self._buckets, self._labelled = {}, {}, {}
        self.announce(None)
        self._listeners.clear()

    def __len__(self) -> int:
        """Return how many records there are, expired ones included."""
        return sum(map(len, list(self._shards.values())))

    def __bool__(self) -> bool:
        """Be true, also while empty."""
        return True

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    def _get(self, handle: str) -> Record | None:
        return self._shards.get(handle[:PREFIX], _NONE).get(handle)

    def _handles_of(self, label: str, value: str) -> list[tuple[str, int]]:
        """Return a copy, which no writer can disturb, of who has the label."""
        self._check_open()
        return list(self._labelled.get((label, value), {}).items())

    def _all_of(self, label: str, values: Collection[str]) -> set[str]:
        """Return who has the label with any of these values, also those that go from one value to another meanwhile."""
        with self._lock if len(values) > 1 else nullcontext():
            return {handle for value in values for handle, _ in self._handles_of(label, value)}

    def _in_order(self, after: str) -> Iterator[Record]:
        for prefix in sorted(list(self._shards)):  # noqa: C414 - as in sweep()
            if prefix >= after[:PREFIX]:
                records = list(self._shards.get(prefix, _NONE).values())
                yield from sorted(record for record in records if record.handle > after)

    # -- with the lock held ----------------------------------------------------------------

    def _put(self, record: Record) -> None:
        self._shards.setdefault(record.handle[:PREFIX], {})[record.handle] = record
        ends = record.ends
        if ends < FOREVER:
            self._buckets.setdefault(ends // BUCKET_MS, set()).add(record.handle)

    def _replace(self, old: Record, record: Record) -> None:
        if old.idle == record.idle and old.own == record.own:
            self._shards[record.handle[:PREFIX]][record.handle] = record
        else:
            self._unbucket(old)
            self._put(record)

    def _remove(self, record: Record) -> None:
        shard = self._shards[record.handle[:PREFIX]]
        del shard[record.handle]
        if not shard:
            del self._shards[record.handle[:PREFIX]]
        self._unbucket(record)
        for name, value in record.label.items():
            self._unindex(record.handle, name, value)

    def _unbucket(self, record: Record) -> None:
        bucket = record.ends // BUCKET_MS
        handles = self._buckets.get(bucket)
        if handles is not None:
            handles.discard(record.handle)
            if not handles:
                del self._buckets[bucket]

    def _index(self, handle: str, name: str, value: str) -> None:
        self._drawn += 1
        self._labelled.setdefault((name, value), {})[handle] = self._drawn

    def _unindex(self, handle: str, name: str, value: str) -> None:
        handles = self._labelled.get((name, value))
        if handles is not None:
            handles.pop(handle, None)
            if not handles:
                del self._labelled[name, value]

    def _reindex(self, old: Record, record: Record) -> None:
        for name, before, after in label_changes(old, record):
            if before is not None:
                self._unindex(record.handle, name, before)
            if after is not None:
                self._index(record.handle, name, after)

    # -- taking the lock -------------------------------------------------------------------

    def _remove_if_same(self, seen: Record) -> None:
        """Remove what was found expired, unless it was prolonged or replaced since."""
        with self._lock:
            if self._get(seen.handle) is seen:
                self._remove(seen)
        self.announce_all((seen.handle,))

    def _remove_where(self, handles: Sequence[str], doomed: Callable[[Record], bool], limit: int) -> int:
        """Remove at most this many of the doomed, a chunk at a time, so that nobody waits long for the lock."""
        removed = 0
        for start in range(0, len(handles), CHUNK):
            swept: list[str] = []
            with self._lock:
                for handle in handles[start : start + CHUNK]:
                    record = self._get(handle)
                    if record is not None and doomed(record) and removed + len(swept) < limit:
                        self._remove(record)
                        swept.append(handle)
            self.announce_all(swept)
            removed += len(swept)
            if removed >= limit:
                break
        return removed
