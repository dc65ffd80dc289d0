"""How labels are given on a cluster, where an index and a record may lie on different servers.

One step cannot do both there, and whoever does one after the other may die in between. So an entry to come is written
into the index first, then the record, and then the entry gets its number, which is drawn after the record is live.
Whoever reads an index looks at the entries to come as well: one whose record has the label is given a number by the
reader, and one that is still to come after a minute, and whose record has not the label, is taken away.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import Any, Final

from ...errors import StoreError
from .keys import RedisKeys, bytes_of, text_of
from .pool import BATCH
from .record import absolute_of, digest_of
from .scripts import FORGET, NUMBER, PEND

__all__ = ["LAST", "RedisApart"]

LAST: Final = b"\xff"
"""What holds the last number, and ends the handle in the name of an entry to come: no handle has these bytes."""

AGE: Final = 60_000_000
"""For how many microseconds an entry may be under way."""

TOKEN_BYTES: Final = 8
"""What tells the entry to come of one writer from another's for the same record."""

SELDOM: Final = 8
"""One of so many writers looks for entries whose records the server took away by itself."""

LOOKS: Final = 16
"""How many entries, drawn at random, such a writer looks at: two for each entry that came meanwhile."""

Entered = Callable[[str, Sequence[Any]], None]
"""What is told the handle of a record that was written, and the answer of the script: labels before and after."""


class RedisApart(RedisKeys):
    """Enters records into indexes that no script can reach."""

    _entered = 0
    """How many times labels were given."""

    def _entering(
        self, handles: Sequence[str], pairs: Iterable[bytes], until: int | None
    ) -> AbstractContextManager[Entered]:
        """Return what the records are written in: entries to come before it, numbers after it, if that is necessary.

        ``until`` is the last deadline of these records, None if it must be looked for.
        """
        return _Entering(self, handles, list(pairs), until) if self._pool.is_apart else _INLINE

    def _settle(self, key: bytes, label: str, value: str) -> None:
        """Give numbers to entries to come whose records are live, and take away those of writers that died."""
        for members in self._under_way(key):
            handles = [text_of(member[: -TOKEN_BYTES - 1]) for member in members]
            records, now, flat = self._records(handles), self._now(), list[Any]()
            for handle, member in zip(handles, members, strict=True):
                record = records[handle][0] if handle in records else None
                has_label = record is not None and record.label.get(label) == value
                left = record.absolute - now if record is not None and has_label else b""
                flat += (bytes_of(handle), member, left)
            self._pool.run(NUMBER, key, -1, AGE, *flat)

    def _under_way(self, key: bytes) -> Iterator[list[bytes]]:
        """Yield the entries to come of an index, a batch at a time.

        Others leave meanwhile, so each batch begins at the number of the one before, which several may have.
        """
        seen, since, size = set[bytes](), b"-inf", BATCH
        while True:
            words = self._pool.read(b"ZRANGEBYSCORE", key, since, b"(0", b"WITHSCORES", b"LIMIT", 0, size) or []
            members = [member for member in words[::2] if member not in seen]
            if members:
                yield members
            if len(words) < 2 * size:
                return
            seen.update(members)
            since = words[-1]
            size = BATCH + words[1::2].count(since)

    def tidy(self, pairs: Iterable[bytes]) -> None:
        """Forget some of what the server took away by itself, if it is time for that, and if it can be done now."""
        self._entered += 1
        if self._entered % SELDOM:
            return
        with suppress(StoreError):
            for pair in pairs:
                key = self._index + digest_of(pair)
                words: Iterator[bytes] = iter(self._pool.read(b"ZRANDMEMBER", key, LOOKS, b"WITHSCORES") or ())
                entries = [each for each in zip(words, words, strict=True) if LAST not in each[0]]
                there = self._pool.read_many([(b"EXISTS", self._key(text_of(handle))) for handle, _ in entries])
                gone = [word for entry, is_there in zip(entries, there, strict=True) if not is_there for word in entry]
                if gone:
                    self._pool.run(FORGET, key, *gone)

    def until(self, handles: Iterable[str]) -> int:
        """Return the last deadline of records, as far as these are there."""
        heads = self._pool.read_many([(b"HGET", self._key(handle), b"h") for handle in handles])
        return max(map(absolute_of, heads), default=0)

    def number(self, pair: bytes, since: int, flat: Sequence[Any]) -> None:
        """Give numbers in the index of a label, if that can be done now; whoever reads it does it otherwise."""
        with suppress(StoreError):
            self._pool.run(NUMBER, self._index + digest_of(pair), since, 0, *flat)

    def pend(self, pair: bytes, until: int, members: Sequence[bytes]) -> int:
        """Write entries to come into an index that lives until then at least, and return the last number."""
        return int(float(self._pool.run(PEND, self._index + digest_of(pair), until - self._now(), *members)))


class _Entering:
    """Records that are being written with labels; what is not known to be written is left for readers to see."""

    def __init__(self, store: RedisApart, handles: Sequence[str], pairs: Sequence[bytes], until: int | None) -> None:
        token = os.urandom(TOKEN_BYTES)
        self._store, self._pairs, self._until = store, pairs, until
        self._members = {handle: bytes_of(handle) + LAST + token for handle in handles}
        self._since: list[int] = []
        self._written: dict[str, Sequence[Any]] = {}

    def __enter__(self) -> Entered:
        members = list(self._members.values())
        if self._pairs:
            until = self._store.until(self._members) if self._until is None else self._until
            self._since = [self._store.pend(pair, until, members) for pair in self._pairs]
        return self._written.__setitem__

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            return
        for pair, since in zip(self._pairs, self._since, strict=True):
            flat: list[Any] = []
            for handle, member in self._members.items():
                flat += (bytes_of(handle), member, self._left(pair, handle))
            self._store.number(pair, since, flat)
        if self._pairs:
            self._store.tidy(self._pairs)

    def _left(self, pair: bytes, handle: str) -> Any:
        """Return how long a record may live that was given the label now, and nothing for others."""
        if handle not in self._written:
            return b""
        _, before, after, left, *_ = self._written[handle]
        return left if pair in after.split(b"\n") and pair not in before.split(b"\n") else b""


def _ignore(handle: str, answer: Sequence[Any]) -> None:
    """Do nothing: the script has done it."""


_INLINE: Final[AbstractContextManager[Entered]] = nullcontext(_ignore)
