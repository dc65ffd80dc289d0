"""Records as a server makes them, for stores that are filled without requests."""

import random
import time
from collections.abc import Iterator
from typing import Any

from sessiontree.records import Record, packed

HOUR_MS = 3_600_000
EXPIRED_MS = 3 * HOUR_MS
"""How long ago the last of the expired records expired: longer than any sweep waits."""

_PATH = "visitor"
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_AGENTS = tuple(
    f"Mozilla/5.0 (X11; Linux x86_64; rv:{number}.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{number}.0.0.0"
    f" Safari/537.{number}"
    for number in range(100, 140)
)
"""About 110 characters each. Many sessions have the same, but each has it as an object of its own."""


def values(dice: random.Random) -> dict[str, Any]:
    """Return the data of one session: five keys."""
    number = dice.randrange(10_000, 100_000)
    return {"user": number, "visits": number % 97, "lang": "en", "theme": "dark", "note": f"as of number {number}"}


def records(count: int, *, expired: bool = False, seed: int = 1) -> Iterator[Record]:
    """Return this many records, all different; the expired ones ran out within the same half hour."""
    dice, now = random.Random(seed), time.time_ns() // 1_000_000
    for number in range(count):
        created = now - 24 * HOUR_MS + dice.randrange(HOUR_MS)
        idle = now - EXPIRED_MS - dice.randrange(HOUR_MS // 2) if expired else now + HOUR_MS + dice.randrange(HOUR_MS)
        agent = _AGENTS[number % len(_AGENTS)]
        yield Record(
            handle="".join(dice.choices(_BASE32, k=32)),
            path=_PATH,
            created=created,
            absolute=created + 30 * 24 * HOUR_MS,
            own=created + 14 * 24 * HOUR_MS,
            idle=idle,
            proof=dice.randbytes(32),
            seen=created + 1000,
            agent=agent[:1] + agent[1:],
            address=f"198.51.{number >> 8 & 255}.{number & 255}",
            fields=packed(values(dice)),
        )
