"""Two runs side by side: the ratio of every figure, and whether it is more than noise.

Noise is what the rounds of one run differ by among themselves. Two figures differ if the middle halves of their rounds
lie apart, and by more than ``LEAST``, for two runs of the same program lie a little apart too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from ...errors import ConfigError
from .report import number, table
from .run import SCHEMA

__all__ = ["compared", "read"]

LEAST: Final = 0.05
"""By how much two figures differ at least, as a share."""

SAME: Final = "within the noise"
DIFFERENT: Final = "DIFFERS"

HIGHER_IS_BETTER: Final = frozenset({"requests/s", "hit ratio"})


def read(path: Path) -> dict[str, Any]:
    """Return what a run wrote as JSON. Raises ConfigError for a file that is not that."""
    try:
        found = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read ({error.strerror}): name two files written by --json."
        ) from None
    except ValueError:
        raise ConfigError(f"{str(path)!r} is no JSON: name two files written by --json.") from None
    if not isinstance(found, dict) or found.get("tool") != "sessiontree bench":
        raise ConfigError(f"{str(path)!r} was not written by sessiontree bench --json: name two files that were.")
    if found.get("schema") != SCHEMA:
        raise ConfigError(
            f"{str(path)!r} has schema {found.get('schema')!r} and this release reads {SCHEMA}: measure again."
        )
    return found


def compared(one: dict[str, Any], two: dict[str, Any]) -> str:
    """Return a table with the figures that both runs have, and lines on what else is not the same."""
    before, after = dict(_figures(one)), dict(_figures(two))
    rows = [_row(name, before[name], after[name]) for name in before if name in after]
    head = ("", "A", "B", "B / A", "", "")
    lines = [*_differences(one, two), *_alone("A", before, after), *_alone("B", after, before)]
    if not rows:
        return "\n".join([*lines, "The runs have nothing in common: compare runs of the same stores and caches."])
    return "\n".join([*lines, *([""] if lines else []), table(head, rows)])


def _row(name: tuple[str, str], one: dict[str, Any], two: dict[str, Any]) -> tuple[str, ...]:
    stack, measure = name
    different = _differ(one, two)
    better = ""
    if different:
        better = "better" if (two["value"] > one["value"]) == (measure in HIGHER_IS_BETTER) else "worse"
    ratio = f"{two['value'] / one['value']:.2f}x" if one["value"] else "-"
    return (
        f"{stack}: {measure}",
        number(one["value"]),
        number(two["value"]),
        ratio,
        DIFFERENT if different else SAME,
        better,
    )


def _differ(one: dict[str, Any], two: dict[str, Any]) -> bool:
    apart = one["high"] < two["low"] or two["high"] < one["low"]
    return bool(apart and abs(two["value"] - one["value"]) > LEAST * abs(one["value"]))


def _figures(found: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield every figure that has a spread, by its stack and what it is."""
    for each in found["stacks"]:
        for share, name in (("p50", "p50 us"), ("p99", "p99 us"), ("p999", "p99.9 us")):
            yield (each["name"], name), each["latency_us"][share]
        yield (each["name"], "requests/s"), each["throughput"]
        if each["hit_ratio"] is not None:
            yield (each["name"], "hit ratio"), each["hit_ratio"]
        yield (each["name"], "round trips"), each["trips"]
        yield (each["name"], "bytes"), each["bytes"]
        for place, size in each["session_bytes"].items():
            if size is not None:
                yield (each["name"], f"bytes per session, {place}"), {"value": size, "low": size, "high": size}
    for each in found["revocation"]:
        if each.get("median_ms"):
            watch = "with watch" if each["watch"] else "without watch"
            yield (each["name"], f"revocation lag ms, {watch}"), each["median_ms"]
    for each in (found["peers"] or {}).get("results", ()):
        yield (each["name"], "read us over bare"), each["read"]
        yield (each["name"], "write us over bare"), each["write"]


def _differences(one: dict[str, Any], two: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each setting in which the runs differ, for then figures may differ because of it."""
    for part, text in (("machine", "on another machine"), ("options", "asked for otherwise")):
        for name in sorted(one[part].keys() | two[part].keys()):
            left, right = one[part].get(name), two[part].get(name)
            if left != right:
                yield f"{text}: {name} {_plain(left)} in A, {_plain(right)} in B"
    if one["version"] != two["version"]:
        yield f"sessiontree {one['version']} in A, {two['version']} in B"


def _plain(value: Any) -> str:
    if value is None:
        return "not given"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _alone(run: str, mine: dict[Any, Any], other: dict[Any, Any]) -> Iterator[str]:
    stacks = dict.fromkeys(stack for stack, _ in mine)
    both = {stack for stack, _ in other}
    yield from (f"only in {run}: {stack}" for stack in stacks if stack not in both)
