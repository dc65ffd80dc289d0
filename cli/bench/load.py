"""The load: requests to one stack from so many threads, for so many sessions, some asked for more than others."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import accumulate, cycle, islice
from random import Random
from threading import Barrier, Event, Thread
from time import perf_counter_ns
from typing import Any, Final

from .client import Use, ask, kept
from .options import Plan
from .stack import Stack, read_two, writing

__all__ = ["Slice", "load", "zipf"]

DRAWN: Final = 1 << 16
"""How many requests are drawn beforehand; a longer run goes through them again."""


@dataclass
class Slice:
    """What came of the requests of one process in one round; times are nanoseconds."""

    reads: list[int] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    failed: int = 0
    began: int = 0
    ended: int = 0
    trips: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0


@lru_cache(maxsize=1)
def zipf(sessions: int, skew: float) -> list[float]:
    """Return the running sums of how often each session is asked for, the first the most."""
    return list(accumulate(rank**-skew for rank in range(1, sessions + 1)))


def load(stack: Stack, who: str, requests: int | None, seconds: float | None, stopped: Event) -> dict[str, Any]:
    """Make so many requests from each thread, or for so long; return a Slice as a dict."""
    plan = stack.plan
    before = _counts(stack)
    drawn = min(DRAWN, requests or DRAWN)
    clients = [_Client(stack, f"{who}/{thread}", drawn, stopped) for thread in range(plan.threads)]
    if len(clients) == 1:
        clients[0].run(requests, seconds, None)
    else:
        _together(clients, requests, seconds)
    failures = [client.error for client in clients if client.error is not None]
    if failures:
        raise failures[0]
    whole = Slice(began=min(each.part.began for each in clients), ended=max(each.part.ended for each in clients))
    for client in clients:
        whole.reads += client.part.reads
        whole.writes += client.part.writes
        whole.failed += client.part.failed
    whole.trips, whole.bytes, whole.hits, whole.misses = (
        after - earlier for after, earlier in zip(_counts(stack), before, strict=True)
    )
    return asdict(whole)


def _together(clients: "list[_Client]", requests: int | None, seconds: float | None) -> None:
    start = Barrier(len(clients))
    threads = [Thread(target=client.run, args=(requests, seconds, start), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _counts(stack: Stack) -> tuple[int, int, int, int]:
    moved = stack.store.moved
    if stack.cache is None:
        return len(moved), sum(moved), 0, 0
    stats = stack.cache.stats()
    return len(moved), sum(moved), stats.hits, stats.misses


class _Client:
    """One thread, which makes one request after the other."""

    def __init__(self, stack: Stack, name: str, drawn: int, stopped: Event) -> None:
        dice = Random(f"{stack.plan.seed}/{name}")  # the same sessions each time, and no secret
        self.part = Slice()
        self.error: BaseException | None = None
        self._stack = stack
        self._stopped = stopped
        self._read: Use = read_two
        self._picks = _picks(stack.plan, dice, len(stack.cookies), drawn)
        self._write = writing(stack.plan, dice)

    def run(self, requests: int | None, seconds: float | None, start: Barrier | None) -> None:
        """Make the requests, all at once with the other threads."""
        picks = islice(self._picks, requests)
        if start is not None:
            start.wait()
        self.part.began = self.part.ended = perf_counter_ns()
        until = None if seconds is None else self.part.began + round(seconds * 1e9)
        try:
            for number, writes in picks:
                if self._ask(number, writes=writes, until=until) or self._stopped.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - it is raised again by whoever waits for the thread
            self.error = error

    def _ask(self, number: int, *, writes: bool, until: int | None) -> bool:
        """Make one request; tell whether the time is up."""
        part, cookies = self.part, self._stack.cookies
        cookie = cookies[number]
        answer = ask(self._stack.app, cookie, self._write if writes else self._read)
        part.ended = answer.ended
        if not answer.succeeded:
            part.failed += 1
        else:
            (part.writes if writes else part.reads).append(answer.ended - answer.began)
            if writes:
                cookies[number] = kept(answer, cookie)
        return until is not None and answer.ended >= until


def _picks(plan: Plan, dice: Random, sessions: int, drawn: int) -> Iterator[tuple[int, bool]]:
    """Return what yields which session is asked for next, and whether the request writes."""
    numbers = dice.choices(range(sessions), cum_weights=zipf(sessions, plan.zipf), k=drawn)
    return cycle([(number, dice.random() >= plan.reads) for number in numbers])
