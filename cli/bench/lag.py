"""How long a revoked session is still served elsewhere: one side revokes, the other asks all the time.

The lag runs from the return of ``revoke()`` to the end of the first request that is refused, on the machine's monotonic
clock, which all processes share; it is below zero where the refusal came first. Beside it stands the last request that
was still served, by when it began: that is what ``max_staleness`` bounds.

Where changes are heard of at once, sessions are revoked one at a time, each after a short rest, so that nothing keeps
step with a feed that looks every few milliseconds. Where they are not, a lag takes seconds, so all sessions are asked
for in turn, and revoked one by one meanwhile.
"""

from collections.abc import Callable
from random import Random
from threading import Event
from time import monotonic_ns
from typing import Any, Final, NamedTuple, Protocol

from .client import ask
from .stack import GATE, Stack

__all__ = ["Elsewhere", "Lag", "all_at_once", "one_by_one", "poll", "poll_all", "warm"]


class Lag(NamedTuple):
    """Seconds from the return of a revoke."""

    refused: float | None
    """To the first refusal; None if none came."""

    served: float
    """To the beginning of the last request that was served, 0 if none was."""


SHORTEST_REST: Final = 0.0005
LONGEST_REST: Final = 0.0085
"""Seconds between a session's last look and its revoke, where a feed is heard: up to twice as long as that rests."""

SOON: Final = 0.0015
"""The same where there is no feed."""

PACE: Final = 0.0002
"""Seconds between two looks. A thread that never rests would keep the one that hears of changes from its work."""

MARGIN: Final = 10.0
"""For how many seconds beyond ``max_staleness`` a refusal is waited for."""


class Elsewhere(Protocol):
    """The other side: another process, or another thread where the store is this process's own."""

    def start(self, call: str, **arguments: Any) -> Callable[[], Any]:
        """Begin a call there, and return what waits for its result."""
        ...


# -- there -----------------------------------------------------------------------------------


def warm(stack: Stack, numbers: list[int]) -> None:
    """Read sessions, so that the cache has them."""
    for number in numbers:
        ask(stack.gate, stack.cookies[number], None)


def poll(stack: Stack, number: int, limit: float, stopped: Event) -> dict[str, int]:
    """Ask for one session until it is refused."""
    return _poll(stack, [number], limit, stopped)[str(number)]


def poll_all(stack: Stack, limit: float, stopped: Event) -> dict[str, dict[str, int]]:
    """Ask for all sessions in turn until every one is refused."""
    return _poll(stack, list(range(len(stack.cookies))), limit, stopped)


def _poll(stack: Stack, numbers: list[int], limit: float, stopped: Event) -> dict[str, dict[str, int]]:
    """Return when each was refused, 0 if never, and when its last request began that was served."""
    found = {str(number): {"refused": 0, "served": 0} for number in numbers}
    end, rest = monotonic_ns() + round(limit * 1e9), Event().wait
    while numbers and not stopped.is_set():
        left = []
        for number in numbers:
            began = monotonic_ns()
            answer = ask(stack.gate, stack.cookies[number], None)
            if answer.status == GATE:
                found[str(number)]["refused"] = monotonic_ns()
                continue
            left.append(number)
            if answer.succeeded:
                found[str(number)]["served"] = began
        numbers = left
        if monotonic_ns() > end:
            break
        rest(PACE)
    return found


# -- here ------------------------------------------------------------------------------------


def one_by_one(stack: Stack, elsewhere: Elsewhere, number: int, seen: Callable[[], object], *, fed: bool) -> list[Lag]:
    """Revoke every session of the stack, each when the other side, which a feed may tell, has just read it."""
    longest = LONGEST_REST if fed else SOON
    dice, limit = Random(stack.plan.seed), stack.plan.max_staleness + MARGIN
    lags = []
    for place, cookie in enumerate(stack.cookies):
        elsewhere.start("warm", stack=number, numbers=[place, place])()
        result = elsewhere.start("poll", stack=number, number=place, limit=limit)
        Event().wait(dice.uniform(SHORTEST_REST, longest))
        returned = _revoke(stack, cookie)
        lags.append(_lag(returned, **result()))
        seen()
    return lags


def all_at_once(stack: Stack, elsewhere: Elsewhere, number: int, seen: Callable[[], object]) -> list[Lag]:
    """Revoke every session of the stack, spread over the time that one entry of the cache is served."""
    dice, most = Random(stack.plan.seed), stack.plan.max_staleness
    order = list(range(len(stack.cookies)))
    dice.shuffle(order)
    elsewhere.start("warm", stack=number, numbers=order)()
    result = elsewhere.start("poll_all", stack=number, limit=2 * most + MARGIN)
    start, returned = monotonic_ns(), {}
    for turn, place in enumerate(order):
        due = start / 1e9 + most * (turn + dice.random()) / len(order)
        Event().wait(max(0.0, due - monotonic_ns() / 1e9))
        returned[place] = _revoke(stack, stack.cookies[place])
        seen()
    return [_lag(returned[int(place)], **times) for place, times in result().items()]


def _revoke(stack: Stack, cookie: bytes) -> int:
    """Revoke a session in a request, and return when that was confirmed."""
    returned: list[int] = []

    def use(session: Any) -> None:
        session.revoke()
        returned.append(monotonic_ns())

    ask(stack.app, cookie, use)
    return returned[0]


def _lag(returned: int, refused: int, served: int) -> Lag:
    return Lag((refused - returned) / 1e9 if refused else None, max(0, served - returned) / 1e9)
