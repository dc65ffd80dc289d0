"""One process that uses a store without rest: ``python worker.py SETTINGS``, JSON, and one line of JSON for each step.

Each session belongs to the worker that makes it, and all use it; when it is found dead, its owner makes the next one.
A worker writes its own key in every session, counting up, so a reader knows what it must find there at least.
"""

import base64
import hashlib
import json
import mmap
import random
import sys
import time
from pathlib import Path
from typing import Any

from chaos.history import FAILED, GONE, OK, Step
from sessiontree import SessionGone, StoreUnavailable
from sessiontree.clock import FOREVER, SystemClock
from sessiontree.records import Changes, Json, Record, unpacked
from sessiontree.stores import Store, open_store
from sessiontree.stores.layered import LayeredStore

PROOF = b"c" * 32
SLOTS = 12
REST = 0.002
"""How many seconds a worker rests between two steps on average, for there is one machine for all."""

VERBS = {"read": 50, "write": 25, "add": 17, "revoke": 1, "list": 2}


def opened(settings: dict[str, Any]) -> Store:
    """Return the store of the settings: a URL, or a primary's with a front's."""
    primary = open_store(settings["url"], **settings.get("options", {}))
    if "front" not in settings:
        return primary
    front = open_store(settings["front"], **settings.get("front_options", {}))
    return LayeredStore(primary, front, max_staleness=settings["staleness"])


def handle_of(seed: int, slot: int, generation: int) -> str:
    """Return the handle of a slot's so many-th session, which all workers work out alike."""
    digest = hashlib.sha256(f"{seed}/{slot}/{generation}".encode()).digest()[:20]
    return base64.b32encode(digest).decode().lower()


class Worker:
    """One process's part of the history."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.number, self.seed, self.workers = settings["worker"], settings["seed"], settings["workers"]
        self.store = opened(settings)
        self.dice = random.Random(f"{self.seed}/{self.number}")
        self.key = f"w{self.number}"
        self.written = 0
        self.until = time.monotonic() + settings["seconds"]
        with Path(settings["board"]).open("r+b") as board:
            self.generations = memoryview(mmap.mmap(board.fileno(), 0)).cast("I")
        self.log = Path(settings["log"]).open("w")  # noqa: SIM115 - for as long as the process

    def run(self) -> None:
        """Take step after step until the time is up."""
        for slot in range(SLOTS):
            if slot % self.workers == self.number:
                self.make(slot)
        while time.monotonic() < self.until:
            slot = self.dice.randrange(SLOTS)
            generation = self.generations[slot]
            if generation:
                verb = self.dice.choices(list(VERBS), VERBS.values())[0]
                outcome = self.step(verb, handle_of(self.seed, slot, generation))
                if outcome == GONE and slot % self.workers == self.number and self.generations[slot] == generation:
                    self.make(slot, generation)
            time.sleep(self.dice.random() * 2 * REST)
        self.log.close()

    def make(self, slot: int, before: int = 0) -> None:
        """Make the next session of a slot; one that may or may not have been made is left alone."""
        self.generations[slot] = 0
        for generation in range(before + 1, before + 1000):
            if self.step("create", handle_of(self.seed, slot, generation)) == OK:
                self.generations[slot] = generation
                return
            if time.monotonic() > self.until:
                return

    def step(self, verb: str, handle: str) -> str:
        """Ask the store for one thing, and write down what came of it; any other error ends the worker."""
        began = time.monotonic()
        value: Any = None
        try:
            value = getattr(self, f"_{verb}")(handle)
            outcome = GONE if verb == "read" and value is None else OK
        except SessionGone:
            outcome = GONE
        except StoreUnavailable:
            outcome = FAILED
        value = [self.key, self.written] if verb == "write" else value
        self.log.write(json.dumps(Step(self.number, verb, handle, value, began, time.monotonic(), outcome)) + "\n")
        return outcome

    def _create(self, handle: str) -> None:
        now = SystemClock().now()
        labels = json.dumps({"subject": str(self.seed)})
        self.store.create(Record(handle, "chaos", now, FOREVER, FOREVER, FOREVER, PROOF, now, labels=labels))

    def _read(self, handle: str) -> dict[str, Any] | None:
        record = self.store.load(handle)
        return None if record is None else unpacked(record.fields)[0]

    def _write(self, handle: str) -> None:
        self.written += 1
        self.store.apply(handle, PROOF, Changes(sets={self.key: (Json(str(self.written).encode()), 0)}))

    def _add(self, handle: str) -> None:
        self.store.apply(handle, PROOF, Changes(adds={"sum": 1}))

    def _revoke(self, handle: str) -> None:
        self.store.revoke(handle)

    def _list(self, handle: str) -> list[str]:
        found: list[str] = []
        after: str | None = None
        while True:
            page = self.store.find("subject", str(self.seed), after)
            found += [record.handle for record in page.records]
            after = page.after
            if after is None:
                return found


if __name__ == "__main__":
    Worker(json.loads(sys.argv[1])).run()
