"""How a RedisStore finds records by a label: one sorted set for each label and value, in the order of being given it.

A number is drawn when the label is given, in the same step, so whoever pages meets each record once, and what is
labelled meanwhile comes at the end. An entry may outlive its record, which the server takes away by itself: so what is
found is checked, and entries that are wrong leave the set if they still have the number that was seen; and who enters
one looks whether a few others still have their records. A set goes when the last record in it must have ended: whoever
prolongs a record prolongs its sets. On a cluster, where they lie elsewhere, the deadline that never moves decides.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from ...records import Changes, Page, Record
from ..protocol import PAGE
from .apart import LAST, RedisApart
from .keys import bytes_of, text_of
from .pool import BATCH
from .record import arguments_of, digest_of, ends_of, pair_of
from .scripts import ANYWAY, APPLY, FORGET, REVOKE

__all__ = ["RedisIndex"]

ATTEMPTS: Final = 5
"""How often a record is looked at again that was renewed while it was being relabelled."""


class Entry(NamedTuple):
    """A handle in an index, and its number there."""

    handle: str
    number: int


class RedisIndex(RedisApart):
    """``find``, ``count``, ``relabel`` and ``revoke_where``."""

    largest: int
    _replicas: int
    _anyway: tuple[bytes, ...]

    def find(self, label: str, value: str, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records that have the label, in the order in which they got it."""
        page, last = list[Record](), int(after or 0)
        for entries in self._entries(label, value, last, lambda: limit - len(page) + 1):
            records, now = self._records(entry.handle for entry in entries), self._now()
            wrong = list[Entry]()
            for entry in entries:
                if len(page) >= limit:
                    self._forget(label, value, wrong)
                    return Page(page, str(last))
                record, _ = records.get(entry.handle, _NOTHING)
                last = entry.number
                if record is None or record.label.get(label) != value:
                    wrong.append(entry)
                elif record.is_live(now):
                    page.append(record)
            self._forget(label, value, wrong)
        return Page(page, None)

    def count(self, label: str, *values: str) -> int:
        """Return how many live records have the label with any of these values."""
        self._pool.check_open()
        counted = set[str]()
        for value in dict.fromkeys(values):
            for entries in self._entries(label, value, 0):
                pair, now = pair_of(label, value), self._now()
                answers = self._pool.read_many([(b"HMGET", self._key(each.handle), b"h", b"l") for each in entries])
                for entry, (head, labels) in zip(entries, [answer or _NOTHING for answer in answers], strict=True):
                    if labels is not None and pair in labels.split(b"\n") and now < ends_of(head):
                        counted.add(entry.handle)
        return len(counted)

    def relabel(self, label: str, old: str, new: str) -> int:
        """Give every live record of the old value the new one, a batch at a time."""
        self._pool.check_open()
        moved, page = 0, Page([], "0")
        while page.after is not None:
            page = self.find(label, old, page.after, BATCH)
            try:
                moved += self._relabel(page.records, label, old, new)
            finally:
                self.announce_all(record.handle for record in page.records)
        return moved

    def revoke_where(self, label: str, value: str) -> int:
        """Revoke every record that has the label, a batch at a time.

        Where replicas are asked, something is written in any case: what they did not confirm in time the last time may
        have left nothing to revoke.
        """
        self._pool.check_open()
        live, has_written = 0, False
        for entries in self._entries(label, value, 0):
            pair = pair_of(label, value)
            try:
                calls = [(self._key(each.handle), self._inline, pair, *self._anyway) for each in entries]
                answers = self._pool.run_many(REVOKE, calls, self._replicas)
            finally:
                self.announce_all(entry.handle for entry in entries)
            now = self._now()
            live += sum(answer is not None and now < ends_of(answer[0]) for answer in answers)
            has_written = has_written or any(answer is not None for answer in answers)
            gone = [entry for entry, answer in zip(entries, answers, strict=True) if not (answer and answer[0])]
            self._forget(label, value, gone)
        if self._replicas and (self._pool.is_apart or not has_written):
            self.confirm()  # what was written says nothing of other nodes
        return live

    def confirm(self) -> None:
        """Have replicas confirm what was written before, on every primary; without ``wait_replicas`` do nothing."""
        if not self._replicas:
            return
        names = self._pool.spread(self._index + ANYWAY)
        self._pool.run_many(REVOKE, [(name, self._inline, b"", ANYWAY) for name in names], self._replicas)

    # -- within ----------------------------------------------------------------------------

    def _entries(
        self, label: str, value: str, last: int, size: Callable[[], int] = lambda: BATCH
    ) -> Iterator[list[Entry]]:
        """Return the entries of an index behind a number, a batch at a time."""
        try:
            key = self._index + digest_of(pair_of(label, value))
        except TypeError:  # half a surrogate pair, which no label can have
            self._pool.check_open()
            return
        if self._pool.is_apart:
            self._settle(key, label, value)
        while True:
            asked = max(1, min(BATCH, size()))
            # One more than is asked for, since one may be the last number.
            answer = self._pool.read(
                b"ZRANGEBYSCORE", key, b"(%d" % last, b"+inf", b"WITHSCORES", b"LIMIT", 0, asked + 1
            )
            entries = [Entry(text_of(name), number) for name, number in _numbered(answer) if name != LAST][:asked]
            if entries:
                yield entries
                last = entries[-1].number
            if len(entries) < asked:
                return

    def _forget(self, label: str, value: str, entries: Sequence[Entry]) -> None:
        """Take entries out of an index, unless they were entered anew since."""
        if entries:
            flat = [word for handle, number in entries for word in (bytes_of(handle), number)]
            self._pool.run(FORGET, self._index + digest_of(pair_of(label, value)), *flat)

    def _relabel(self, records: Sequence[Record], label: str, old: str, new: str) -> int:
        """Relabel one batch in one send, and then one by one what was changed meanwhile."""
        calls = [self._relabelling(record, label, old, new) for record in records]
        until = max((record.absolute for record in records), default=0)
        with self._entering([record.handle for record in records], [pair_of(label, new)], until) as entered:
            answers = self._pool.run_many(APPLY, calls)
            for record, answer in zip(records, answers, strict=True):
                if answer.__class__ is list:
                    entered(record.handle, answer)
        pairs = zip(records, answers, strict=True)
        return sum(
            answer.__class__ is list or self._relabel_again(each.handle, label, old, new) for each, answer in pairs
        )

    def _relabel_again(self, handle: str, label: str, old: str, new: str) -> bool:
        for _ in range(ATTEMPTS):
            records = self._live([handle])
            if not records or records[0].label.get(label) != old:
                return False
            with self._entering([handle], [pair_of(label, new)], records[0].absolute) as entered:
                answer = self._pool.run(APPLY, *self._relabelling(records[0], label, old, new))
                if answer.__class__ is list:
                    entered(handle, answer)
                    return True
        return False

    def _relabelling(self, record: Record, label: str, old: str, new: str) -> tuple[Any, ...]:
        """Return the call that relabels a record if it still has the old value."""
        changes = Changes(labels={label: new})
        arguments = arguments_of(record.proof, changes, self._now(), self.largest) or ()
        return (self._key(record.handle), self._inline, *arguments, pair_of(label, old))


_NOTHING: Final = (None, None)


def _numbered(answer: list[bytes]) -> list[tuple[bytes, int]]:
    words = iter(answer or ())
    return [(name, int(float(number))) for name, number in zip(words, words, strict=True)]
