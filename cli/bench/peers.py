"""Ours beside other session libraries: the same data, the same requests, each over its own bare application.

What is told is the overhead: the median of a request with sessions less the median of the same application's request
without, both of one round, in which every library has its turn. Then two requests of one session overlap, for certain,
since each waits for the other between what it reads and what it writes; a library that writes the whole session loses
one of the two keys.
"""

import gc
import logging
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from random import Random
from statistics import median
from threading import Barrier, BrokenBarrierError, Thread
from typing import Any, Final

from .client import Ask, Use, ask, kept
from .figures import figure
from .peers_apps import BUILDERS, Peer
from .stack import Setting, Stack, bare, data_of, read_two, writing

__all__ = ["beside"]

SESSIONS: Final = 50
MEET_S: Final = 2.0
"""How long a request waits for the other one, at most: some libraries let requests of one session take turns."""

READ: Final = "read"
WRITE: Final = "write"
BARE: Final = "bare"


def beside(setting: Setting, stacks: Sequence[Stack], requests: int, rounds: int, pairs: int) -> dict[str, Any]:
    """Measure the stacks of the plan and every library that is installed.

    Returns figures in microseconds, and what is missing.
    """
    for name in ("django", "asyncio"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    plan = setting.plan
    ours = [
        Peer(f"sessiontree, {name}", "", stack.app, bare, ask, ours=True)
        for name, stack in zip(plan.names, stacks, strict=True)
    ]
    theirs, missing = _found(setting)
    measured = [_Measured(peer, setting) for peer in (*ours, *theirs)]
    dice = Random(plan.seed)
    for each in measured:
        each.warm()
    for _ in range(rounds):
        gc.collect()
        turns = [(each, case) for each in measured for case in (BARE, READ, WRITE)]
        dice.shuffle(turns)
        for each, case in turns:
            each.run(case, requests)
    return {"results": [each.result(pairs) for each in measured], "missing": missing, "pairs": pairs}


def _found(setting: Setting) -> tuple[list[Peer], list[str]]:
    """Return every library that is installed and keeps what it is given, and a line for each other one."""
    found, missing = [], []
    for name, build in BUILDERS.items():
        folder = Path(setting.folder, name.replace(" ", "-").lower())
        folder.mkdir()
        try:
            peer = build(name, folder)
            _check(peer, data_of(setting.plan))
        except ImportError:
            missing.append(f"{name} is not installed: pip install 'sessiontree[bench]'")
        except Exception as error:  # noqa: BLE001 - a library may break in any way, and the others are still wanted
            # Its type alone, for a message may name folders of this machine.
            missing.append(f"{name} is left out, for it does not work here: {type(error).__name__}")
        else:
            found.append(peer)
    return found, missing


def _check(peer: Peer, data: dict[str, str]) -> None:
    """Raise RuntimeError for a library that does not keep its sessions: its figures would mean nothing."""
    seen: list[dict[str, Any]] = []

    def look(session: Any) -> None:
        seen.append({key: session.get(key) for key in (*data, "more")})

    cookie = _begun(peer, data)
    peer.ask(peer.app, cookie, look)
    cookie = kept(peer.ask(peer.app, cookie, _setting("more", "x")), cookie)
    peer.ask(peer.app, cookie, look)
    if seen != [{**data, "more": None}, {**data, "more": "x"}]:
        raise RuntimeError("it does not keep what it is given")


def _begun(peer: Peer, data: dict[str, str]) -> bytes:
    answer = peer.ask(peer.app, b"", lambda session: session.update(data))
    if not answer.succeeded:
        raise RuntimeError(f"it answers {answer.status}")
    return kept(answer, b"")


def _setting(key: str, value: str) -> Use:
    def use(session: Any) -> None:
        session[key] = value

    return use


class _Measured:
    """One library: its sessions, and what each round took, in nanoseconds of the median request."""

    def __init__(self, peer: Peer, setting: Setting) -> None:
        plan = setting.plan
        self.peer = peer
        self.data = data_of(plan)
        # What is written is not what is read, for no cache has any use where each read follows a write.
        self.cookies = {case: [self._begin(setting) for _ in range(SESSIONS)] for case in (READ, WRITE)}
        self.cookies[BARE] = self.cookies[READ]
        self.rounds: dict[str, list[float]] = {BARE: [], READ: [], WRITE: []}
        self._turn = cycle(range(SESSIONS)).__next__
        self._uses: dict[str, Use | None] = {BARE: None, READ: read_two, WRITE: writing(plan, Random(plan.seed))}

    def _begin(self, setting: Setting) -> bytes:
        if not self.peer.ours:
            return _begun(self.peer, self.data)
        # Sessions of ours have to be found again at the end, for their store may be no copy.
        subject = setting.subject

        def begin(session: Any) -> None:
            session.update(self.data)
            session.bind(subject)

        return kept(ask(self.peer.app, b"", begin), b"")

    def warm(self) -> None:
        """Ask for every session once, uncounted, so that caches have what they can have."""
        for case in self.rounds:
            self.run(case, SESSIONS)
            self.rounds[case].clear()

    def run(self, case: str, requests: int) -> None:
        """Make so many requests of one sort."""
        make: Ask = self.peer.ask
        app = self.peer.bare if case == BARE else self.peer.app
        use, cookies, taken = self._uses[case], self.cookies[case], []
        for _ in range(requests):
            turn = self._turn()
            answer = make(app, cookies[turn], use)
            taken.append(answer.ended - answer.began)
            if case == WRITE:
                cookies[turn] = kept(answer, cookies[turn])
        self.rounds[case].append(median(taken))

    def result(self, pairs: int) -> dict[str, Any]:
        """Return the overheads, and what was lost where requests overlap."""
        return {
            "name": self.peer.name,
            "kept": self.peer.kept,
            "ours": self.peer.ours,
            READ: self._net(READ),
            WRITE: self._net(WRITE),
            "lost": sum(self._lost(number) for number in range(pairs)),
        }

    def _net(self, case: str) -> dict[str, Any]:
        nets = [(whole - empty) / 1000 for whole, empty in zip(self.rounds[case], self.rounds[BARE], strict=True)]
        return figure(median(nets), nets)

    def _lost(self, number: int) -> int:
        """Let two requests of one session overlap, each with a key of its own; return how many keys are missing."""
        cookie, value = self.cookies[WRITE][number % SESSIONS], str(number)
        barrier = Barrier(2)
        threads = [
            Thread(target=_quietly, args=(self.peer, cookie, _meeting(barrier, key, value)), daemon=True)
            for key in ("left", "right")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found: list[Any] = []
        self.peer.ask(self.peer.app, cookie, lambda session: found.extend(map(session.get, ("left", "right"))))
        return sum(each != value for each in found)


def _meeting(barrier: Barrier, key: str, value: str) -> Use:
    """Return what reads, waits for the other request, and writes."""

    def use(session: Any) -> None:
        session.get("k0")
        try:
            barrier.wait(MEET_S)
        except BrokenBarrierError:  # they take turns
            barrier.abort()
        session[key] = value

    return use


def _quietly(peer: Peer, cookie: bytes, use: Use) -> None:
    with suppress(Exception):  # its key is missing then, and that is what is counted
        peer.ask(peer.app, cookie, use)
