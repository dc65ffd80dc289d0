"""From samples to figures: percentiles of all of them, how they are spread, and how far one run tells."""

from collections import Counter
from collections.abc import Callable, Sequence
from math import floor, log10, sqrt
from statistics import median, quantiles
from typing import Any, Final

__all__ = ["PER_DECADE", "SHARES", "figure", "histogram", "percentile", "percentiles", "with_error"]

PER_DECADE: Final = 20
"""How many bars a histogram has from one power of ten to the next."""

SHARES: Final = {"p50": 0.5, "p99": 0.99, "p999": 0.999}

QUARTERS: Final = 4
CERTAIN: Final = 1.96
"""How many standard errors leave one run in twenty out."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the least sample that this share of the samples, which are in order, does not exceed."""
    return ordered[min(len(ordered) - 1, max(0, -floor(-share * len(ordered)) - 1))]


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """Return the percentiles that are reported, of samples in any order."""
    ordered = sorted(samples)
    return {name: percentile(ordered, share) for name, share in SHARES.items()}


def figure(value: float, rounds: Sequence[float]) -> dict[str, Any]:
    """Return a figure of a whole run with the quartiles of its rounds, which tell how much is noise."""
    if len(rounds) < QUARTERS:
        return {"value": value, "low": min(rounds), "high": max(rounds)}
    low, _, high = quantiles(rounds, n=QUARTERS, method="inclusive")
    return {"value": value, "low": low, "high": high}


def with_error(samples: Sequence[float]) -> dict[str, Any]:
    """Return a median with the samples between which the true one lies, 19 times in 20 (by the binomial law)."""
    ordered = sorted(samples)
    reach = CERTAIN * sqrt(len(ordered)) / 2
    middle = len(ordered) / 2
    low, high = max(0, floor(middle - reach)), min(len(ordered) - 1, floor(middle + reach))
    return {"value": median(ordered), "low": ordered[low], "high": ordered[high]}


def histogram(samples: Sequence[float], scale: Callable[[float], float] = float, least: float = 0.001) -> list[Any]:
    """Return pairs of a bar's number and its count: bar n begins at 10 to the n / PER_DECADE."""
    counts = Counter(floor(log10(max(least, scale(each))) * PER_DECADE) for each in samples)
    return [list(pair) for pair in sorted(counts.items())]
