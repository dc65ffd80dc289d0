"""The least that a signed cookie can cost in one request: what our figures are multiples of."""

import hmac

import orjson
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from benchmarks.harness import Call
from benchmarks.payload import SIZES, application_data

KEY = bytes(range(32))


def nothing() -> None:
    """Do nothing: the price of the loop and the call."""


def floor(payload: bytes) -> Call:
    """Return FLOOR: verify, parse, dump and sign with what the standard library and orjson have."""
    sign, loads, dumps, key = hmac.digest, orjson.loads, orjson.dumps, KEY

    def call() -> None:
        sign(key, payload, "sha256")
        sign(key, dumps(loads(payload)), "sha256")

    return call


def hard_floor(payload: bytes) -> Call:
    """Return the same work with the cheapest HMAC there is: a keyed state of cryptography's, copied."""
    keyed, loads, dumps = HMAC(KEY, SHA256()), orjson.loads, orjson.dumps

    def sign(content: bytes) -> bytes:
        mac = keyed.copy()
        mac.update(content)
        return mac.finalize()

    def call() -> None:
        sign(payload)
        sign(dumps(loads(payload)))

    return call


def floor_cases() -> dict[str, Call]:
    """Return FLOOR, the hard floor and the empty call, for each size."""
    cases: dict[str, Call] = {"nothing": nothing}
    for size, (length, keys) in SIZES.items():
        payload = orjson.dumps(application_data(length, keys))
        cases[f"floor {size}"] = floor(payload)
        cases[f"hard floor {size}"] = hard_floor(payload)
    return cases
