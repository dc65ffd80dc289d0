"""The plots of a run, each from what was found and a width."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from .report import number
from .svg import MILLI, Axis, Bar, Curve, Panel, Ridge, bars, ridges

__all__ = ["hits", "lag", "latency", "moved", "peers", "sizes", "throughput", "trips"]

Shown = Callable[[float], str]
SHARES: Final = ("p50", "p99", "p999")
LEAST_LAG_MS: Final = 0.01
"""What is refused sooner counts as that soon."""


def latency(found: dict[str, Any], width: float) -> Panel:
    """Return how long requests take, reads and writes apart."""
    rows = [
        Ridge(
            each["name"],
            [
                Curve(each[sort]["histogram"], kind)
                for sort, kind in (("writes_us", "two"), ("reads_us", "one"))
                if each[sort]
            ],
            [each["latency_us"][share]["value"] for share in SHARES],
            [number(each["latency_us"][share]["value"]) for share in SHARES],
        )
        for each in found["stacks"]
    ]
    legend = (("reads", "one"), ("writes", "two"))
    return ridges("Latency of a whole request", rows, width, legend, Axis(("p50 µs", "p99 µs", "p99.9 µs")))


def throughput(found: dict[str, Any], width: float) -> Panel:
    """Return requests per second."""
    return _bars(found, "throughput", "Requests per second", width, lambda value: f"{value:,.0f}")


def hits(found: dict[str, Any], width: float) -> Panel:
    """Return the hit ratio of each cache."""
    rows = [Bar(each["name"], [_value(each["hit_ratio"], _percent, "one")]) for each in found["stacks"]]
    return bars("Hit ratio of the cache", rows, width, most=1.0)


def _percent(ratio: float) -> str:
    return f"{ratio:.1%}"


def trips(found: dict[str, Any], width: float) -> Panel:
    """Return round trips to the store per request."""
    return _bars(found, "trips", "Round trips to the store, per request", width, number)


def moved(found: dict[str, Any], width: float) -> Panel:
    """Return bytes of records per request."""
    return _bars(found, "bytes", "Bytes to and from the store, per request", width, number)


def _bars(found: dict[str, Any], name: str, title: str, width: float, shown: Shown) -> Panel:
    return bars(title, [Bar(each["name"], [_value(each[name], shown, "one")]) for each in found["stacks"]], width)


def _value(figure: dict[str, Any] | None, shown: Shown, kind: str) -> tuple[float, float, float, str, str]:
    if figure is None:
        return 0.0, 0.0, 0.0, "no cache", kind
    return figure["value"], figure["low"], figure["high"], shown(figure["value"]), kind


def sizes(found: dict[str, Any], width: float) -> Panel:
    """Return how many bytes a session takes, here and there."""
    kinds = (("cookie", "two"), ("record", "light"), ("store", "other"), ("cache", "one"))
    rows = [
        Bar(
            each["name"],
            [(size, size, size, f"{size:,} B", kind) for name, kind in kinds if (size := each["session_bytes"][name])],
        )
        for each in found["stacks"]
    ]
    legend = (("cookie", "two"), ("record, packed", "light"), ("memory: store", "other"), ("memory: cache", "one"))
    return bars("Bytes per session", rows, width, legend)


def lag(found: dict[str, Any], width: float) -> Panel:
    """Return how long after a revoke sessions are refused elsewhere."""
    rows = [_lag(each) for each in found["revocation"]]
    legend = (("hears of changes", "one"), ("does not", "two"), ("max_staleness", "lost"))
    title = f"From revoke to refusal elsewhere, {_revokes(found)} revokes each"
    return ridges(title, rows, width, legend, Axis(("median ms", "p99 ms", "served ms"), MILLI, LEAST_LAG_MS))


def _revokes(found: dict[str, Any]) -> str:
    return f"{found['options']['revokes']:,}"


def _lag(each: dict[str, Any]) -> Ridge:
    label = f"{each['name']}, {'watch' if each['watch'] else 'no watch'}"
    if "unavailable" in each:
        return Ridge(label, (), note=each["unavailable"])
    median, p99, most = (each["median_ms"] or {}).get("value"), each["p99_ms"], each["max_ms"]
    marks = [max(LEAST_LAG_MS, value) for value in (median, p99, most) if value is not None]
    heard = each["watch"] or each["between"] == "threads" or not each["cached"]
    curve = Curve(each["histogram"], "one" if heard else "two")
    limit = each["max_staleness_s"] * 1000 if each["cached"] else None
    return Ridge(label, [curve], marks, [number(value) for value in (median, p99, each["served_ms"])], limit)


def peers(found: dict[str, Any], width: float) -> Panel:
    """Return ours beside the other libraries, each over its own bare application."""
    pairs = found["peers"]["pairs"]
    results: Sequence[dict[str, Any]] = found["peers"]["results"]
    theirs = sorted((each for each in results if not each["ours"]), key=lambda each: each["write"]["value"])
    ranked = [*(each for each in results if each["ours"]), *theirs]
    rows = [
        Bar(
            each["name"] + (f", {each['kept']}" if each["kept"] else ""),
            [
                _value(each["read"], lambda value: f"{number(value)} µs", "one" if each["ours"] else "other"),
                _value(each["write"], lambda value: f"{number(value)} µs", "light" if each["ours"] else "second"),
            ],
            f"{each['lost']} of {pairs} lost",
            "lost" if each["lost"] else "strong",
        )
        for each in ranked
    ]
    sorts = ("read 2", "read 2, write 1")
    legend = [*zip(sorts, ("one", "light"), strict=True), *zip(sorts, ("other", "second"), strict=True)]
    return bars("What sessions add to a request; updates lost where two overlap", rows, width, legend)
