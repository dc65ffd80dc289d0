"""One process's part of a run: its stacks, and the calls that are made to them, from this process or from another.

Calls take and return plain JSON, for they may come through a pipe.
"""

from collections.abc import Callable
from threading import Event
from typing import Any

from . import lag, load, lost, peers
from .stack import Counting, Setting, Stack, data_of

__all__ = ["Node"]


class Node:
    """Opens stacks as they are asked for. ``stores`` are another node's, used by number in place of opening one."""

    def __init__(self, setting: Setting, stores: dict[int, Counting] | None = None) -> None:
        """Open nothing yet."""
        self.setting = setting
        self.stopped = Event()
        """Set to have every loop end early."""

        self._stores = stores or {}
        self._stacks: dict[int, Stack] = {}
        self.calls: dict[str, Callable[..., Any]] = {
            each.__name__: each
            for each in (
                self.take,
                self.load,
                self.write_over,
                self.hear,
                self.ignore,
                self.warm,
                self.poll,
                self.poll_all,
                self.peers,
            )
        }

    def stack(self, number: int) -> Stack:
        """Return one of the stacks of the plan."""
        if number not in self._stacks:
            self._stacks[number] = Stack(self.setting, number, self._stores.get(number))
        return self._stacks[number]

    def opened(self) -> list[Stack]:
        """Return the stacks that were asked for."""
        return list(self._stacks.values())

    def make(self, number: int, count: int) -> list[str]:
        """Make sessions, and return their cookies."""
        cookies = self.stack(number).make(count, data_of(self.setting.plan))
        return [cookie.decode("latin-1") for cookie in cookies]

    def close(self) -> None:
        """Close every stack."""
        while self._stacks:
            self._stacks.popitem()[1].close()

    # -- calls -----------------------------------------------------------------------------

    def take(self, stack: int, cookies: list[str]) -> None:
        """Ask for these sessions from now on."""
        self.stack(stack).cookies = [cookie.encode("latin-1") for cookie in cookies]

    def load(self, stack: int, who: str, requests: int | None, seconds: float | None) -> dict[str, Any]:
        """Make requests; return a ``Slice``."""
        return load.load(self.stack(stack), who, requests, seconds, self.stopped)

    def write_over(self, stack: int, who: str, workers: int, requests: int) -> list[dict[str, Any]]:
        """Write to few sessions from many threads; return what each was told is written."""
        return lost.write_over(self.stack(stack), who, workers, requests, self.stopped)

    def hear(self, stack: int) -> str | None:
        """Let the cache hear of changes elsewhere; return why it cannot."""
        return self.stack(stack).hear()

    def ignore(self, stack: int) -> None:
        """Let the cache hear of nothing more."""
        self.stack(stack).ignore()

    def warm(self, stack: int, numbers: list[int]) -> None:
        """Read sessions, so that the cache has them."""
        lag.warm(self.stack(stack), numbers)

    def poll(self, stack: int, number: int, limit: float) -> dict[str, int]:
        """Ask for one session until it is refused."""
        return lag.poll(self.stack(stack), number, limit, self.stopped)

    def poll_all(self, stack: int, limit: float) -> dict[str, dict[str, int]]:
        """Ask for every session until it is refused."""
        return lag.poll_all(self.stack(stack), limit, self.stopped)

    def peers(self, requests: int, rounds: int, pairs: int) -> dict[str, Any]:
        """Measure other libraries beside the stacks."""
        stacks = [self.stack(number) for number in range(len(self.setting.plan.names))]
        return peers.beside(self.setting, stacks, requests, rounds, pairs)
