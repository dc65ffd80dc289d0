"""A run: the plan carried out, and all that was found as one dict of plain JSON."""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from random import Random
from secrets import token_hex, token_urlsafe
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

from ...errors import SessionError
from .crew import Here, There
from .figures import figure, histogram, percentile, percentiles, with_error
from .lag import Lag, all_at_once, one_by_one
from .load import Slice
from .lost import SESSIONS, Written, missing
from .node import Node
from .options import Plan, cache_name, store_name
from .stack import Setting, remove

__all__ = ["SCHEMA", "Progress", "measured"]

SCHEMA: Final = 1
"""The form of the JSON; a change that older readers would misread is a new number."""

CHUNK: Final = 100
WARM_UP: Final = 20
"""The share of a run that is made first and not counted, as its divisor."""

LAG_STEPS: Final = 10
PEER_STEPS: Final = 15
PEERS: Final = {"requests": 50, "rounds": 30, "pairs": 100}
PEERS_QUICK: Final = {"requests": 10, "rounds": 3, "pairs": 5}


class Progress(Protocol):
    """What is told how far the run is."""

    total: float

    def step(self, amount: float, label: str) -> None:
        """Say what is begun now; it is so much of ``total``."""
        ...


def measured(plan: Plan, progress: Progress, *, version: str, peers: bool) -> dict[str, Any]:
    """Carry the plan out; return what was found.

    Raises ConfigError for a stack that cannot be built, StoreError for a store that does not work, and BenchError for
    a process that ended early. Whatever happens, no session of the run stays in a store.
    """
    with ExitStack() as at_the_end:
        folder = at_the_end.enter_context(TemporaryDirectory(prefix="sessiontree-bench-", ignore_cleanup_errors=True))
        run = _Run(Setting(plan, token_urlsafe(32), f"bench-{token_hex(8)}", folder), progress, at_the_end)
        modes = 0 if not plan.revokes else sum(1 if cache == "none" else 2 for _, cache in plan.stacks)
        progress.total = len(plan.stacks) * (3 + plan.rounds) + modes * LAG_STEPS + peers * PEER_STEPS
        return {
            "schema": SCHEMA,
            "tool": "sessiontree bench",
            "version": version,
            "machine": _machine(),
            "options": _options(plan),
            "stacks": run.load(),
            "lost": run.lost(),
            # Before anybody watches: for a while after that a store records changes for the feed, at every write.
            "peers": run.peers() if peers else None,
            "revocation": run.revocation(),
        }


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
    }


def _options(plan: Plan) -> dict[str, Any]:
    """Return the plan without what is nobody else's business: no URL and no folder."""
    stores, caches = [store_name(url) for url in plan.stores], [cache_name(spec) for spec in plan.caches]
    return {**asdict(plan), "stores": stores, "caches": caches}


class _Run:
    """The sections of a run, one after the other, on the same stacks."""

    def __init__(self, setting: Setting, progress: Progress, at_the_end: ExitStack) -> None:
        self._setting, self._plan, self._progress = setting, setting.plan, progress
        self._at_the_end = at_the_end
        self._home = Node(setting)
        at_the_end.callback(self._home.close)
        at_the_end.callback(self._clean)
        several = self._plan.processes > 1
        self._crew: Sequence[Here | There] = (
            [self._closed(There(setting)) for _ in range(self._plan.processes)]
            if several
            else [self._closed(Here(self._home))]
        )
        self._elsewhere: There | None = None

    def _closed(self, member: Any) -> Any:
        """Have a member of the crew be closed at the end."""
        self._at_the_end.callback(member.close)
        return member

    def _clean(self) -> None:
        """Remove our sessions from every store that was opened, as far as it still answers."""
        for stack in self._home.opened():
            with suppress(SessionError):
                remove(stack.store, self._setting.subject)

    def _everywhere(self, call: str, **arguments: Any) -> list[Any]:
        """Have every member do the same at the same time, and wait for all."""
        waiting = [
            member.start(call, **(arguments | ({"who": f"{arguments['who']}/{place}"} if "who" in arguments else {})))
            for place, member in enumerate(self._crew)
        ]
        return [wait() for wait in waiting]

    def _named(self) -> Iterator[tuple[int, str]]:
        return enumerate(self._plan.names)

    # -- requests --------------------------------------------------------------------------

    def load(self) -> list[dict[str, Any]]:
        """Measure requests to every stack, round by round, so that what disturbs one disturbs its neighbours."""
        plan = self._plan
        begun = [self._begin(number, name) for number, name in self._named()]
        rounds: list[list[Slice]] = [[] for _ in begun]
        dice, order = Random(plan.seed), list(range(len(begun)))
        for turn in range(plan.rounds):
            dice.shuffle(order)
            for number in order:
                self._progress.step(1, f"{plan.names[number]}: requests, round {turn + 1} of {plan.rounds}")
                rounds[number].append(self._slice(number, f"{turn}", plan.rounds))
        return [
            {"name": name, "store": name.split(" + ")[0], "cache": name.split(" + ")[1], **begun[number]}
            | _summary(rounds[number])
            for number, name in self._named()
        ]

    def _begin(self, number: int, name: str) -> dict[str, Any]:
        """Fill one stack, and ask it for a while that is not counted."""
        plan, cookies = self._plan, list[str]()
        while len(cookies) < plan.sessions:
            self._progress.step(CHUNK / plan.sessions if plan.sessions > CHUNK else 1, f"{name}: sessions")
            cookies += self._home.make(number, min(CHUNK, plan.sessions - len(cookies)))
        self._everywhere("take", stack=number, cookies=cookies)
        weight = self._home.stack(number).weigh(cookies[0].encode("latin-1"))
        deaf = self._everywhere("hear", stack=number)[0] if plan.watch else "not asked for"
        self._slice(number, "warm-up", WARM_UP)
        return {"session_bytes": weight, "watch": "on" if deaf is None else deaf}

    def _slice(self, number: int, who: str, share: int) -> Slice:
        """Make this part of all requests, in every process at once."""
        plan = self._plan
        each = -(-plan.requests // (share * plan.processes * plan.threads)) if plan.seconds is None else None
        seconds = None if plan.seconds is None else plan.seconds / share
        parts = [
            Slice(**part) for part in self._everywhere("load", stack=number, who=who, requests=each, seconds=seconds)
        ]
        whole = Slice(began=min(part.began for part in parts), ended=max(part.ended for part in parts))
        for part in parts:
            whole.reads += part.reads
            whole.writes += part.writes
            for name in ("failed", "trips", "bytes", "hits", "misses"):
                setattr(whole, name, getattr(whole, name) + getattr(part, name))
        return whole

    # -- lost updates ----------------------------------------------------------------------

    def lost(self) -> list[dict[str, Any]]:
        """Look for writes that were confirmed and are missing."""
        return [self._lost(number, name) for number, name in self._named()]

    def _lost(self, number: int, name: str) -> dict[str, Any]:
        plan = self._plan
        self._progress.step(2, f"{name}: overlapping writes")
        cookies = self._home.make(number, SESSIONS)
        self._home.take(number, cookies)
        self._everywhere("take", stack=number, cookies=cookies)
        threads = max(2, plan.threads)
        told = self._everywhere("write_over", stack=number, who="w", workers=threads, requests=plan.writes)
        written = [Written(**each) for workers in told for each in workers]
        return {
            "name": name,
            "processes": plan.processes,
            "threads": threads,
            "requests": sum(each.requests for each in written),
            "failed": sum(each.failed for each in written),
            "lost": missing(self._home.stack(number), written),
        }

    # -- revocation ------------------------------------------------------------------------

    def revocation(self) -> list[dict[str, Any]]:
        """Measure how long what is revoked here is served elsewhere, with the store's watch and without."""
        if not self._plan.revokes:
            return []
        return [
            self._lag(number, name, fed=fed)
            for number, name in self._named()
            for fed in ([False] if self._plan.stacks[number][1] == "none" else [True, False])
        ]

    def _lag(self, number: int, name: str, *, fed: bool) -> dict[str, Any]:
        plan, stack = self._plan, self._home.stack(number)
        stack.ignore()
        row = {"name": name, "watch": fed, "max_staleness_s": plan.max_staleness, "cached": stack.cache is not None}
        with ExitStack() as at_the_end:
            shared, elsewhere = self._other_side(number, at_the_end)
            row |= {"between": "threads" if shared else "processes"}
            deaf = elsewhere.start("hear", stack=number)() if fed else None
            if deaf is not None:
                self._progress.step(LAG_STEPS, name)
                return {**row, "unavailable": deaf}
            cookies = self._home.make(number, plan.revokes)
            self._home.take(number, cookies)
            elsewhere.start("take", stack=number, cookies=cookies)()
            seen = partial(self._progress.step, LAG_STEPS / plan.revokes, f"{name}: revokes")
            if fed or shared or stack.cache is None:
                lags = one_by_one(stack, elsewhere, number, seen, fed=fed)
            else:
                lags = all_at_once(stack, elsewhere, number, seen)
            elsewhere.start("ignore", stack=number)()
        return {**row, **_lag_summary(lags)}

    def _other_side(self, number: int, at_the_end: ExitStack) -> tuple[bool, Here | There]:
        """Return another handler on the same object for a store of this process alone, else another process."""
        if store_name(self._plan.stacks[number][0]) == "memory":
            node = Node(self._setting, {number: self._home.stack(number).store})
            at_the_end.callback(node.close)
            here = Here(node)
            at_the_end.callback(here.close)
            return True, here
        if self._elsewhere is None:
            self._elsewhere = self._closed(There(self._setting))
        return False, self._elsewhere

    # -- others ----------------------------------------------------------------------------

    def peers(self) -> dict[str, Any]:
        """Measure the other libraries in a process of their own, for some of them can be set up but once."""
        self._progress.step(PEER_STEPS, "other libraries")
        there: There = self._closed(There(self._setting))
        found: dict[str, Any] = there.start("peers", **(PEERS_QUICK if self._plan.quick else PEERS))()
        return found


# -- sums ------------------------------------------------------------------------------------


def _summary(rounds: list[Slice]) -> dict[str, Any]:
    """Return the figures of one stack: of all samples, with the spread of the rounds."""
    reads = [each for part in rounds for each in part.reads]
    writes = [each for part in rounds for each in part.writes]
    asked = sum(map(_asked, rounds))
    if not reads and not writes:
        raise SessionError("Not one request succeeded: does the store work?")
    per_round = [percentiles([*part.reads, *part.writes]) for part in rounds if part.reads or part.writes]
    latency = {
        name: figure(value / 1000, [each[name] / 1000 for each in per_round])
        for name, value in percentiles([*reads, *writes]).items()
    }
    return {
        "requests": asked,
        "failed": sum(part.failed for part in rounds),
        "latency_us": latency,
        "reads_us": _sort(reads),
        "writes_us": _sort(writes),
        "throughput": _of_rounds(rounds, lambda part: _asked(part) * 1e9 / max(1, part.ended - part.began)),
        "hit_ratio": _hits(rounds),
        "trips": _of_rounds(rounds, lambda part: part.trips / max(1, _asked(part))),
        "bytes": _of_rounds(rounds, lambda part: part.bytes / max(1, _asked(part))),
    }


def _asked(part: Slice) -> int:
    return len(part.reads) + len(part.writes) + part.failed


def _sort(samples: list[int]) -> dict[str, Any] | None:
    """Return the percentiles and the histogram of requests of one sort, in microseconds."""
    if not samples:
        return None
    found = {name: value / 1000 for name, value in percentiles(samples).items()}
    return {**found, "count": len(samples), "histogram": histogram(samples, lambda each: each / 1000)}


def _of_rounds(rounds: list[Slice], ask: Callable[[Slice], float]) -> dict[str, Any]:
    values = [ask(part) for part in rounds]
    return figure(median(values), values)


def _hits(rounds: list[Slice]) -> dict[str, Any] | None:
    if not any(part.hits + part.misses for part in rounds):
        return None
    return _of_rounds(rounds, lambda part: part.hits / max(1, part.hits + part.misses))


def _lag_summary(lags: list[Lag]) -> dict[str, Any]:
    """Return the lags in milliseconds; a refusal that came before the revoke had returned is none."""
    waited = [max(0.0, lag.refused * 1000) for lag in lags if lag.refused is not None]
    ordered = sorted(waited)
    return {
        "revokes": len(lags),
        "never": len(lags) - len(waited),
        "median_ms": with_error(waited) if waited else None,
        "p99_ms": percentile(ordered, 0.99) if waited else None,
        "max_ms": ordered[-1] if waited else None,
        "served_ms": max(lag.served for lag in lags) * 1000,
        "histogram": histogram(waited),
    }
