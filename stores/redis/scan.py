"""How a RedisStore goes through all its sessions: by SCAN, never by KEYS, a batch at a time.

A SCAN answers what was there all the time; what comes or goes meanwhile it may answer or not. It answers in batches of
about the size that is asked for, so what is over goes into the text that says where the next page begins.
"""

from typing import Final

import orjson

from ...clock import Duration, milliseconds
from ...records import FORM, Page, Record
from ..protocol import PAGE, SWEEP_MARGIN_MS
from .keys import RedisKeys, handles_in, text_of
from .pool import BATCH
from .record import ends_of, seen_of
from .scripts import REAP, SWEEP

__all__ = ["RedisScan"]

SMALLEST: Final = 10
"""How many names one SCAN is asked for at least."""

STEP: Final = 100
"""How many records one step of the server removes at most: so long it answers nobody else."""

MOST: Final = 200
"""How many such batches one sweep looks at: the server itself removes what has expired, and there may be millions."""


BEGINNING: Final = ""
"""Where the first batch begins."""


class RedisScan(RedisKeys):
    """``scan``, ``sweep`` and ``sweep_idle``."""

    def scan(self, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records from behind ``after`` on, in the server's order."""
        self._pool.check_open()
        page: list[Record] = []
        cursor, waiting = _place_of(after)
        while True:
            while waiting and len(page) < limit:
                chunk, waiting = waiting[: limit - len(page)], waiting[limit - len(page) :]
                page += self._live(chunk)
            if cursor is None and not waiting:
                return Page(page, None)
            if cursor is None or len(page) >= limit:
                return Page(page, _text_of(cursor, waiting))
            cursor, waiting = self._scanned(cursor, max(SMALLEST, limit))

    def sweep(self, limit: int = 1000) -> int:
        """Remove records that expired an hour ago or more, which the server did not remove by itself.

        That is so where the clocks differ. Only what is due is looked at, in the server; on a cluster, where no index
        of deadlines lies beside every record, all is gone through: a hundred thousand records in one call at most, and
        the next one goes on behind them.
        """
        self._pool.check_open()
        before = self._now() - SWEEP_MARGIN_MS + 1
        return self._sweep(b"ends", before, limit, MOST) if self._pool.is_apart else self._sweep_due(before, limit)

    def sweep_idle(self, older_than: Duration, limit: int = 1000) -> int:
        """Remove records that were last seen longer ago than this many seconds: this goes through all."""
        self._pool.check_open()
        horizon = self._now() - milliseconds(older_than)
        return self._sweep(b"seen", horizon, limit, None)

    # -- within ----------------------------------------------------------------------------

    def _sweep_due(self, before: int, limit: int) -> int:
        """Remove at most this many that ended before a time, a step of the server for each batch."""
        removed, found, asked = 0, 0, 0
        while removed < limit and found == asked:
            asked = min(STEP, limit - removed)
            found, over = self._pool.run(SWEEP, self._due, self._index, before, asked)
            self.announce_all(map(text_of, over))
            removed += len(over)
        return removed

    def _sweep(self, which: bytes, before: int, limit: int, most: int | None) -> int:
        """Remove at most this many that end, or were seen, before a time, going round once from where the last ended.

        What is over when it is looked at must still be so when it is removed.
        """
        removed, looked, cursor = 0, 0, self._swept_to
        has_turned = cursor == BEGINNING
        while removed < limit and (most is None or looked < most):
            following, handles = self._scanned(cursor, BATCH)
            doomed = self._over(which, before, handles)
            chosen = doomed[: limit - removed]
            try:
                calls = [(self._key(handle), self._inline, which, before) for handle in chosen]
                answers = self._pool.run_many(REAP, calls)
            finally:
                self.announce_all(chosen)
            removed += sum(answer is not None for answer in answers)
            looked += 1
            if len(doomed) > len(chosen):
                continue
            cursor = following or BEGINNING
            if following is None and has_turned:
                break
            has_turned = has_turned or following is None
        self._swept_to = cursor
        return removed

    def _over(self, which: bytes, before: int, handles: list[str]) -> list[str]:
        """Return which of these end, or were seen, before a time; what a newer release wrote it sweeps itself."""
        heads = self._pool.read_many([(b"HGET", self._key(handle), b"h") for handle in handles])
        told = ends_of if which == b"ends" else seen_of
        return [
            handle
            for handle, head in zip(handles, heads, strict=True)
            if head and head[0] == FORM and told(head) < before
        ]

    def _scanned(self, cursor: str, size: int) -> tuple[str | None, list[str]]:
        """Return where the next batch begins, None if this was the last, and the handles of one batch."""
        following, keys = self._pool.scan(cursor, self._pattern(), size)
        return following, handles_in(dict.fromkeys(keys), self._before)


def _place_of(after: str | None) -> tuple[str | None, list[str]]:
    """Return the cursor and the handles that wait, as ``_text_of`` wrote them."""
    if after is None:
        return BEGINNING, []
    cursor, *waiting = orjson.loads(after)
    return cursor, [bytes(handle, "latin-1").decode("utf-8", "surrogatepass") for handle in waiting]


def _text_of(cursor: str | None, waiting: list[str]) -> str:
    flat = [handle.encode("utf-8", "surrogatepass").decode("latin-1") for handle in waiting]
    return orjson.dumps([cursor, *flat]).decode()
