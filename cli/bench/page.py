"""What a run found as one page, or as one picture: nothing in either is fetched from anywhere."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any, Final

from . import plots
from .report import Section, heading, sections
from .svg import STYLE, Panel, fragment, stacked, text

__all__ = ["page", "picture"]

WIDTH: Final = 888.0
MARGIN: Final = 16.0
GAP: Final = 14.0
TOP: Final = 92.0
NAME_SPACE: Final = "http://www.w3.org/2000/svg"
"""A name that pictures have to carry; nobody fetches it."""

Plot = Callable[[dict[str, Any], float], Panel]

_PAGE_STYLE: Final = """\
:root { color-scheme: light dark; --ground: #f4f6f2; --card: #fff; --text: #17211b; --quiet: #5b6a61; --edge: #dbe2db; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0e1411; --card: #161e1a; --text: #e5ece7; --quiet: #93a29a; --edge: #28332d; }
}
*, ::before, ::after { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.55 system-ui, sans-serif; }
main { width: min(68rem, 100% - 2.5rem); margin: 2.5rem auto 4rem; display: grid; gap: 1.25rem;
  grid-template-columns: repeat(2, minmax(0, 1fr)); }
header, .wide, h2 { grid-column: 1 / -1; }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.25rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .5rem; }
h2 { font-size: 1.1rem; margin: 1rem 0 -.25rem; }
p { margin: 0; color: var(--quiet); }
figure { margin: 0; padding: 1.1rem 1.25rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: 14px; overflow-x: auto; }
svg { display: block; width: 100%; height: auto; }
figure.wide svg { min-width: 44rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--edge); }
thead th { border-top: 0; color: var(--quiet); font-weight: 550; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 550; }
.note { font-size: .85rem; margin-top: .6rem; }
@media (max-width: 50rem) { main { grid-template-columns: minmax(0, 1fr); } }
"""

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sessiontree bench</title>
<style>
{style}</style>
</head>
<body>
<main>
<header><h1>sessiontree bench</h1>{facts}</header>
{content}
</main>
</body>
</html>
"""


def page(found: dict[str, Any]) -> str:
    """Return everything that was found as HTML: plots first, then every figure in tables."""
    facts = "".join(f"<p>{escape(line)}</p>" for line in heading(found).splitlines())
    cards = [_card(panel, width) for row in _plots(found, everything=True) for panel, width in row]
    tables = [_table(section) for section in sections(found)]
    return _PAGE.format(
        style=STYLE + _PAGE_STYLE, facts=facts, content="\n".join([*cards, "<h2>Every figure</h2>", *tables])
    )


def picture(found: dict[str, Any]) -> str:
    """Return what matters most as one SVG file."""
    body, height = stacked(_plots(found, everything=False), MARGIN, GAP, TOP)
    lines = heading(found).splitlines()
    head = text(MARGIN, 30, "sessiontree bench", "head") + "".join(
        text(MARGIN, 48 + 15 * place, line, "quiet") for place, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="{NAME_SPACE}" viewBox="0 0 {WIDTH:.0f} {height:.0f}" width="{WIDTH:.0f}" height="{height:.0f}">'
        f"<title>sessiontree bench</title><style>{STYLE}</style>"
        f'<rect width="{WIDTH:.0f}" height="{height:.0f}" rx="16" class="ground"/>{head}{body}</svg>\n'
    )


def _plots(found: dict[str, Any], *, everything: bool) -> list[list[tuple[Panel, float]]]:
    """Return the plots in rows, each with its width."""
    rows: list[Sequence[Plot]] = [[plots.latency], [plots.throughput, plots.trips]]
    if everything or any(each["hit_ratio"] for each in found["stacks"]):
        rows.append([plots.hits, plots.moved])
    if everything:
        rows.append([plots.sizes])
    if found["revocation"]:
        rows.append([plots.lag])
    if found["peers"]:
        rows.append([plots.peers])
    return [[(plot(found, _width(row)), _width(row)) for plot in row] for row in rows]


def _width(row: Sequence[Plot]) -> float:
    """Return how wide a plot is inside its card, of as many as lie in the row."""
    return (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row) - 2 * MARGIN


def _card(panel: Panel, width: float) -> str:
    wide = ' class="wide"' if width > WIDTH / 2 else ""
    return f"<figure{wide}>{fragment(panel, width)}</figure>"


def _table(section: Section) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in section.head)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in section.rows
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    return f'<figure class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>{notes}</figure>'
