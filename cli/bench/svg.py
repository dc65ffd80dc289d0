"""Drawing: a few shapes as SVG, two kinds of plots, and nothing that has to be fetched."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log10
from typing import Any, Final

from .figures import PER_DECADE

__all__ = [
    "MICRO",
    "MILLI",
    "STYLE",
    "Axis",
    "Bar",
    "Curve",
    "Panel",
    "Ridge",
    "bars",
    "fragment",
    "ridges",
    "stacked",
    "text",
]

STYLE: Final = """\
.ground { fill: #f4f6f2; } .card { fill: #fff; stroke: #dbe2db; }
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #17211b; }
.title { font-size: 14px; font-weight: 600; } .head { font-size: 20px; font-weight: 650; }
.quiet { fill: #5b6a61; font-size: 11px; } .strong { font-weight: 650; }
.grid { stroke: #e4eae4; } .base { stroke: #b9c4bc; } .limit { stroke: #a4342a; stroke-dasharray: 4 3; }
.whisker { stroke: #17211b; stroke-opacity: .55; stroke-width: 1.5; }
.one { fill: #0d7a5f; stroke: #0d7a5f; } .two { fill: #d9822b; stroke: #d9822b; }
.other { fill: #9aa69f; stroke: #9aa69f; } .second { fill: #c3ccc6; stroke: #c3ccc6; }
.light { fill: #85c4b2; stroke: #85c4b2; }
.area { fill-opacity: .35; stroke-width: 1.5; stroke-linejoin: round; } .bar { stroke: none; } .ink { fill: #17211b; }
.lost { fill: #a4342a; font-weight: 650; }
@media (prefers-color-scheme: dark) {
.ground { fill: #0e1411; } .card { fill: #161e1a; stroke: #28332d; } text { fill: #e5ece7; } .quiet { fill: #93a29a; }
.grid { stroke: #26312b; } .base { stroke: #46534b; } .limit { stroke: #f29488; } .whisker { stroke: #e5ece7; }
.one { fill: #4fc79f; stroke: #4fc79f; } .two { fill: #f0a95a; stroke: #f0a95a; }
.other { fill: #6d7a72; stroke: #6d7a72; } .second { fill: #4a564f; stroke: #4a564f; }
.light { fill: #2c7d65; stroke: #2c7d65; } .lost { fill: #f29488; } .ink { fill: #e5ece7; }
}
"""
"""Both themes. Plain classes, for some viewers of pictures know no variables."""

ROW: Final = 26.0
BAR: Final = 13.0
RIDGE: Final = 46.0
TOP: Final = 28.0
LEGEND: Final = 16.0
AXIS: Final = 22.0
LETTER: Final = 6.7
GAP: Final = 10.0
COLUMN: Final = 68.0
MICRO, MILLI, SECOND = 1.0, 1e3, 1e6


@dataclass(frozen=True, slots=True)
class Panel:
    """A piece of a picture, drawn from its upper left corner, and its height."""

    title: str
    body: str
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of bars, each a value with its spread, its text and its class."""

    label: str
    values: Sequence[tuple[float, float, float, str, str]]
    note: str = ""
    note_class: str = "quiet"


@dataclass(frozen=True, slots=True)
class Curve:
    """A histogram, as pairs of a bar's number and its count, and its class."""

    counts: Sequence[Sequence[int]]
    kind: str


@dataclass(frozen=True, slots=True)
class Ridge:
    """One row of histograms over one line, with marks on the line and figures beside it."""

    label: str
    curves: Sequence[Curve]
    marks: Sequence[float] = ()
    figures: Sequence[str] = ()
    limit: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """How ridges are read: the heads of the figures beside them, how many microseconds a value of 1 is, the least."""

    columns: Sequence[str]
    unit: float = MICRO
    least: float = 0.0
    """Where the scale begins; what is less counts as that. 0 for the least value there is."""


@dataclass
class _Scale:
    """From a value to a place, in powers of ten."""

    low: int
    high: int
    left: float
    right: float
    ticks: list[int] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        share = (log10(value) * PER_DECADE - self.low) / (self.high - self.low)
        return self.left + min(1.0, max(0.0, share)) * (self.right - self.left)


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """Return a line of text."""
    classes = f' class="{kind}"' if kind else ""
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{classes}{at}>{escape(content)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    size = f'width="{max(1.0, width):.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} rx="2.5" class="bar {kind}"/>'


def _head(title: str, legend: Iterable[tuple[str, str]]) -> tuple[list[str], float]:
    """Return the title, below it what each class means, and where the plot begins."""
    parts, x = [text(0, 15, title, "title")], 0.0
    for label, kind in legend:
        parts += [_rect(x, 26, 9, 9, kind), text(x + 14, 35, label, "quiet")]
        x += 14 + LETTER * len(label) + GAP
    return parts, TOP + (LEGEND if x else 0)


def _label_width(labels: Iterable[str]) -> float:
    return LETTER * max((len(label) for label in labels), default=0) + GAP


# -- bars ------------------------------------------------------------------------------------


def bars(
    title: str, rows: Sequence[Bar], width: float, legend: Sequence[tuple[str, str]] = (), most: float = 0
) -> Panel:
    """Return rows of bars from zero on, each with a whisker for its spread and its value beside it."""
    left = _label_width(row.label for row in rows)
    beside = LETTER * max((len(value[3]) for row in rows for value in row.values), default=0) + GAP
    notes = LETTER * max((len(row.note) for row in rows), default=0)
    room = max(20.0, width - left - beside - (notes + GAP if notes else 0))
    largest = most or max((max(value[0], value[2]) for row in rows for value in row.values), default=0) or 1
    parts, y = _head(title, legend)
    top = y
    for row in rows:
        height = BAR * len(row.values) + (ROW - BAR)
        parts.append(text(0, y + height / 2 + 4, row.label))
        for place, value in enumerate(row.values):
            parts.append(_bar(value, left, y + (ROW - BAR) / 2 + place * BAR, room / largest, thin=len(row.values) > 1))
        if row.note:
            parts.append(text(width, y + height / 2 + 4, row.note, row.note_class, "end"))
        y += height
    parts.append(_line(left, top, left, y, "base"))
    return Panel(title, "".join(parts), y + 2)


def _bar(value: tuple[float, float, float, str, str], left: float, y: float, scale: float, *, thin: bool) -> str:
    size, low, high, label, kind = value
    height = BAR - 2 if thin else BAR
    end = left + max(size, high) * scale
    parts = [_rect(left, y, size * scale, height, kind)] if size > 0 else []
    if (high - low) * scale > 1:
        parts.append(
            _line(left + max(0.0, low) * scale, y + height / 2, left + high * scale, y + height / 2, "whisker")
        )
    parts.append(text(end + 6, y + height - 2, label, "quiet"))
    return "".join(parts)


# -- ridges ----------------------------------------------------------------------------------


def ridges(
    title: str,
    rows: Sequence[Ridge],
    width: float,
    legend: Sequence[tuple[str, str]],
    axis: Axis,
) -> Panel:
    """Return a histogram over a logarithmic scale for each row."""
    right = width - COLUMN * len(axis.columns) - GAP
    scale = _scale(rows, _label_width(row.label for row in rows), right, axis.least)
    parts, top = _head(title, legend)
    bottom = top + RIDGE * len(rows)
    parts += [
        text(width - COLUMN * place, 35, column, "quiet", "end") for place, column in enumerate(reversed(axis.columns))
    ]
    for tick in scale.ticks:
        x = scale(10.0**tick)
        parts += [
            _line(x, top, x, bottom, "grid"),
            text(x, bottom + 16, _unit(10.0**tick * axis.unit), "quiet", "middle"),
        ]
    for place, row in enumerate(rows):
        parts.append(_ridge(row, scale, top + RIDGE * (place + 1), width))
    return Panel(title, "".join(parts), bottom + AXIS)


def _scale(rows: Sequence[Ridge], left: float, right: float, least: float) -> _Scale:
    counted = [bar for row in rows for curve in row.curves for bar, _ in curve.counts]
    limits = [floor(log10(row.limit) * PER_DECADE) for row in rows if row.limit]
    floor_bar = floor(log10(least) * PER_DECADE) if least else min(counted, default=0)
    low = max(floor_bar, min(counted, default=0)) - 2
    high = max([*counted, *limits, low + PER_DECADE]) + 3
    ticks = list(range(ceil(low / PER_DECADE), floor(high / PER_DECADE) + 1))
    return _Scale(low, high, left, right, ticks)


def _ridge(row: Ridge, scale: _Scale, base: float, width: float) -> str:
    parts = [text(0, base - 4, row.label), _line(scale.left, base, scale.right, base, "base")]
    parts += [_area(curve, scale, base) for curve in row.curves]
    if row.limit is not None:
        x = scale(row.limit)
        parts.append(_line(x, base - RIDGE + 6, x, base, "limit"))
    for size, mark in zip((3.4, 2.7, 2.0), row.marks, strict=False):
        parts.append(f'<circle cx="{scale(mark):.1f}" cy="{base:.1f}" r="{size}" class="ink"/>')
    if row.note:
        parts.append(text(scale.left + GAP, base - 6, row.note, "quiet"))
    parts += [
        text(width - COLUMN * place, base - 4, figure, "", "end") for place, figure in enumerate(reversed(row.figures))
    ]
    return "".join(parts)


def _area(curve: Curve, scale: _Scale, base: float) -> str:
    """Return the outline of a histogram, as high as its row; what lies below the scale is counted at its beginning."""
    heights: dict[int, int] = {}
    for bar, count in curve.counts:
        place = max(bar, scale.low + 1)
        heights[place] = heights.get(place, 0) + count
    if not heights:
        return ""
    factor = (RIDGE - 10) / max(heights.values())
    first, last = min(heights), max(heights)
    points = [
        (first - 1, 0.0),
        *((bar, heights.get(bar, 0) * factor) for bar in range(first, last + 1)),
        (last + 1, 0.0),
    ]
    path = " L".join(f"{scale(10 ** ((bar + 0.5) / PER_DECADE)):.1f} {base - height:.1f}" for bar, height in points)
    return f'<path d="M{path} Z" class="area {curve.kind}"/>'


def _unit(microseconds: float) -> str:
    for size, name in ((SECOND, "s"), (MILLI, "ms")):
        if microseconds >= size:
            return f"{microseconds / size:g} {name}"
    return f"{microseconds:g} µs"


# -- pictures --------------------------------------------------------------------------------


def stacked(rows: Sequence[Sequence[tuple[Panel, float]]], margin: float, gap: float, top: float) -> tuple[str, float]:
    """Return panels as cards in rows, each with its width, and the height of it all."""
    parts, y = [], top
    for row in rows:
        x, tallest = margin, max(panel.height for panel, _ in row)
        for panel, width in row:
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width + 2 * margin:.1f}" height="{tallest + 2 * margin:.1f}" '
                f'rx="12" class="card"/><g transform="translate({x + margin:.1f} {y + margin:.1f})">{panel.body}</g>'
            )
            x += width + 2 * margin + gap
        y += tallest + 2 * margin + gap
    return "".join(parts), y - gap + margin


def fragment(panel: Panel, width: float) -> str:
    """Return a panel as a picture inside a page, which needs no name space."""
    label: Any = escape(panel.title, quote=True)
    return (
        f'<svg viewBox="0 0 {width:.0f} {panel.height:.0f}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{panel.body}</svg>"
    )
