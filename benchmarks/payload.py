"""What the sessions hold: plain JSON scalars of an exact size, and what requests do with them."""

import random
from collections.abc import MutableMapping
from itertools import cycle
from typing import Any

import orjson

SIZES = {"small": (200, 7), "big": (2500, 31)}
"""Bytes of JSON and number of keys."""

COUNTER = "visits"

_WORDS = ("blue", "river", "stone", "garden", "paper", "window", "morning", "copper", "quiet", "letter")
_BASE: dict[str, Any] = {"user": 48213, COUNTER: 1000, "lang": "en", "tz": "UTC", "theme": "dark", "cart": 3}

next_count = cycle(range(1001, 10_000)).__next__
"""Returns a number of four digits that the last request did not write."""


def application_data(size: int, keys: int) -> dict[str, Any]:
    """Return this many keys whose JSON has exactly this many bytes."""
    data = dict(_BASE)
    extra = keys - len(data) - 1
    room = (size - len(orjson.dumps(data))) // (extra + 1)
    dice = random.Random(keys)
    for number in range(extra):
        name = f"setting_{number:02}"
        text_size = max(1, room - len(f',"{name}":""'))
        data[name] = dice.randrange(10_000, 100_000) if number % 3 == 0 else _text(text_size, dice)
    data["note"] = ""
    data["note"] = _text(size - len(orjson.dumps(data)), dice)
    if len(orjson.dumps(data)) != size:
        raise ValueError(f"{keys} keys do not fit into {size} bytes of JSON.")
    return data


def _text(size: int, dice: random.Random) -> str:
    text = ""
    while len(text) < size:
        text += dice.choice(_WORDS) + " "
    return text[: size - 1] + "."


def read_two(session: MutableMapping[str, Any]) -> None:
    """Read two keys."""
    session["user"]
    session["theme"]


def read_two_write_one(session: MutableMapping[str, Any]) -> None:
    """Read two keys and give a third a value it did not have."""
    session["user"]
    session["theme"]
    session[COUNTER] = next_count()
