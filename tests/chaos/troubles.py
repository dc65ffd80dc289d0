"""A run: workers, what befalls the servers meanwhile, and the history that came of it."""

import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chaos.history import FAILED, Step, broken_promises
from chaos.worker import SLOTS

WORKERS = 4
TESTS = Path(__file__).parents[1]


class Run(NamedTuple):
    """What came of it."""

    steps: list[Step]
    wrong: list[str]

    @property
    def slowest_failure(self) -> float:
        """How many seconds the slowest verb took that failed."""
        return max((step.ended - step.began for step in self.steps if step.outcome == FAILED), default=0.0)

    def told(self) -> str:
        """Return what happened, in one line."""
        outcomes = {
            outcome: sum(step.outcome == outcome for step in self.steps) for outcome in ("ok", "gone", "failed")
        }
        return f"{len(self.steps)} steps {outcomes}, the slowest failure took {self.slowest_failure:.2f} s"


def run(
    folder: Path, settings: dict[str, Any], seconds: float, troubles: Sequence[Callable[[], None]], pause: float = 1.0
) -> Run:
    """Have workers use a store for so long, and one trouble after another befall its servers meanwhile."""
    seed = secrets.randbits(32)
    board = folder / "board"
    board.write_bytes(bytes(4 * SLOTS))
    common = {**settings, "seed": seed, "workers": WORKERS, "seconds": seconds, "board": str(board)}
    logs = [folder / f"steps-{number}" for number in range(WORKERS)]
    said = folder / "said"
    with said.open("ab") as err:
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "chaos.worker", json.dumps({**common, "worker": number, "log": str(log)})],
                env={**os.environ, "PYTHONPATH": str(TESTS)},
                cwd=TESTS,
                stderr=err,
            )
            for number, log in enumerate(logs)
        ]
    try:
        while not all(memoryview(board.read_bytes()).cast("I")):
            assert not any(worker.poll() for worker in workers), said.read_text()
            time.sleep(0.01)  # Until every session is there.
        _befall(troubles, seconds, pause, random.Random(seed))
        for worker in workers:
            assert worker.wait(60) == 0, f"A worker met an error that a store must not raise: {said.read_text()}"
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    steps = [Step(*json.loads(line)) for log in logs for line in log.read_text().splitlines()]
    return Run(steps, broken_promises(steps, settings.get("staleness", 0.0)))


def _befall(troubles: Sequence[Callable[[], None]], seconds: float, pause: float, dice: random.Random) -> None:
    """Let each trouble come in turn, in a new order each time round; the last part of the time is quiet."""
    until = time.monotonic() + seconds - pause
    while time.monotonic() < until:
        for trouble in dice.sample(troubles, len(troubles)):
            time.sleep(pause * (0.5 + dice.random()))
            if time.monotonic() >= until:
                return
            trouble()
