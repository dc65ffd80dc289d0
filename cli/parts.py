"""The parts of the demo's pages: the frame, the forms, the tree, and countdowns that need no script.

The content security policy forbids scripts and style attributes alike, so a page hands a
number to the stylesheet as classes, one for each bit of it: 23 seconds are ``b0 b1 b2 b4``.
The stylesheet adds them up and lets a custom property run from there to 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from markupsafe import Markup

from ..handlers import Session

__all__ = [
    "BAR",
    "ICON",
    "MINUTE",
    "NODE",
    "Frame",
    "Node",
    "button",
    "clock",
    "csrf_field",
    "facts",
    "lasting",
    "page",
    "running",
    "tree",
]

DAY: Final = 86_400
HOUR: Final = 3600
MINUTE: Final = 60
BITS: Final = 17
"""Enough for a day of seconds; the stylesheet has a class for each."""

ICON: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#1d6f48"/>'
    '<path d="M9 9v14h14M9 16h9" fill="none" stroke="#9fe0bd" stroke-width="2.5"/>'
    '<g fill="#fff"><circle cx="9" cy="8" r="3.5"/><circle cx="18" cy="16" r="3.5"/>'
    '<circle cx="23" cy="23" r="3.5"/></g></svg>'
)
BAR: Final = Markup('<span class="bar" aria-hidden="true"></span>')


@dataclass(frozen=True, slots=True)
class Frame:
    """What every page shows: where it is, who is logged in, flash messages, and the token for its forms."""

    path: str
    token: str | None = None
    name: str | None = None
    flashes: Sequence[str] = ()
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One session of the tree as a page shows it; times are in seconds."""

    name: str
    live: bool
    new: bool
    handle: str | None
    subject: str | None
    left: float | None
    life: int | None
    visits: int | None

    @classmethod
    def of(cls, session: Session, life: int | None = None, visits: int | None = None) -> "Node":
        """Describe a session of this request; ``life`` is the longest that it can have left."""
        live = session.is_live()
        return cls(
            session.handler.name, live, session.new, session.handle, session.subject, session.expires_in, life, visits
        )


# -- the frame -------------------------------------------------------------------------------

_PAGE: Final = Markup("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · sessiontree</title>
<link rel="stylesheet" href="/demo.css">
<link rel="icon" href="/icon.svg" type="image/svg+xml">
</head>
<body>
<header class="top"><div class="wide">
<a class="brand" href="/"><img src="/icon.svg" alt="" width="28" height="28">sessiontree</a>
<nav aria-label="Pages">{links}</nav>
<div class="who">{who}</div>
</div></header>
<main class="wide">
{flashes}{content}
</main>
<footer class="wide"><p>A demonstration. {kept}</p></footer>
</body>
</html>
""")
_IN_COOKIES: Final = (
    "The sessions lie in sealed cookies: nobody but this server can read or change them. Ending one deletes the "
    "browser's copy; a copy kept elsewhere lasts until its deadline."
)
_IN_A_STORE: Final = (
    "The sessions lie in this server's store, each value sealed; the cookies only name them and prove whose they are. "
    "Ending one ends every copy of its cookie, and nothing brings it back."
)

_LINKS: Final = (("/", "Home"), ("/account", "Account"), ("/devices", "Devices"), ("/admin", "Admin"))
_FOR_USERS: Final = ("/devices",)
"""Who is not logged in has no devices, and the way to log in stands beside the links."""


def page(frame: Frame, title: str, content: Markup) -> Markup:
    """Return the whole page."""
    links = [
        Markup('<a href="{}"{}>{}</a>').format(path, Markup(' aria-current="page"') if path == frame.path else "", text)
        for path, text in _LINKS
        if frame.name is not None or path not in _FOR_USERS
    ]
    flashes = [Markup('<p class="flash" role="status">{}</p>\n').format(text) for text in frame.flashes]
    kept = _IN_A_STORE if frame.stored else _IN_COOKIES
    return _PAGE.format(
        title=title, links=_joined(links), who=_who(frame), flashes=_joined(flashes), content=content, kept=kept
    )


def _who(frame: Frame) -> Markup:
    if frame.name is None:
        return Markup('<a class="button" href="/login">Log in</a>')
    return Markup('<span class="name">{}</span>{}').format(frame.name, button(frame, "/logout", "Log out"))


def _joined(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts)


# -- forms -----------------------------------------------------------------------------------


def csrf_field(frame: Frame) -> Markup:
    """Return the hidden field that every form needs."""
    return Markup('<input type="hidden" name="csrf_token" value="{}">').format(frame.token)


def button(frame: Frame, path: str, text: str, kind: str = "", fields: Markup | None = None) -> Markup:
    """Return a form that is one button, or a link to it if the page has no token to send along."""
    if frame.token is None:
        return Markup('<a class="button {}" href="{}">{}</a>').format(kind, path, text)
    return Markup('<form method="post" action="{}">\n{}\n{}<button class="{}">{}</button></form>').format(
        path, csrf_field(frame), fields or "", kind, text
    )


# -- time ------------------------------------------------------------------------------------


def lasting(seconds: float) -> str:
    """Return a duration for people: 29 days, 3 h 20 min, or 9:59."""
    whole = ceil(seconds)
    if whole > DAY:
        return f"{round(whole / DAY)} days" if whole >= 2 * DAY else "1 day"
    if whole > HOUR:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // MINUTE}:{whole % MINUTE:02}"


def clock(left: float) -> Markup:
    """Return the time left, as the stylesheet counts it down inside ``running()``."""
    kind = "clock" if left <= HOUR else "still"
    return Markup('<time class="{}" datetime="PT{}S"><span>{}</span></time>').format(kind, ceil(left), lasting(left))


def running(left: float, life: float, content: Markup, kind: str = "") -> Markup:
    """Return a block in which the stylesheet counts from ``left`` seconds to 0, out of ``life``."""
    return Markup('<div class="life sum {}"><div class="left sum {} {}">{}</div></div>').format(
        _bits(max(left, life)), _bits(left), kind, content
    )


def _bits(seconds: float) -> str:
    number = min(ceil(seconds), (1 << BITS) - 1)
    return " ".join(f"b{bit}" for bit in range(BITS) if number >> bit & 1)


# -- the tree --------------------------------------------------------------------------------

NODE: Final = Markup("""\
<li class="node {state}"><article aria-label="{name} session">
<header><h3>{name}</h3>{badges}<div class="actions">{actions}</div></header>
{body}
</article>{children}</li>""")
"""One session as an item of a list, with the list of its children inside it."""


def tree(frame: Frame, nodes: Sequence[Node]) -> Markup:
    """Return the sessions as nested lists, the root first, each inside the one it was spawned from."""
    inner = Markup("")
    for place in reversed(range(len(nodes))):
        node = nodes[place]
        parent_lives = place == 0 or nodes[place - 1].live
        item = NODE.format(
            state="alive" if node.live else "dead",
            name=node.name,
            badges=_badges(node),
            actions=_actions(frame, node, parent_lives=parent_lives),
            body=_facts(node) if node.live else Markup('<p class="quiet">{}</p>').format(_absence(node)),
            children=inner,
        )
        inner = Markup('<ol class="tree">{}</ol>').format(item)
    return inner


def _badges(node: Node) -> Markup:
    if not node.live:
        return Markup('<span class="badge">not live</span>')
    new = Markup('<span class="badge new">new in this request</span>') if node.new else ""
    return Markup('<span class="badge on">live</span>{}').format(new)


def _absence(node: Node) -> str:
    return {"user": "Nobody is logged in.", "sudo": "Not confirmed within the last ten minutes."}.get(node.name, "")


def _facts(node: Node) -> Markup:
    """Return what is public of a live session; its id is not."""
    rows = [("Handle", Markup("<code>{}</code>").format(node.handle))]
    if node.subject is not None:
        rows.append(("Bound to", Markup("<b>{}</b>").format(node.subject)))
    if node.visits is not None:
        rows.append(("Visits", Markup("{}").format(node.visits)))
    if node.left is not None and node.life is not None:
        rows.append(("Ends in", running(node.left, node.life, clock(node.left) + BAR, "inline")))
    elif node.left is not None:
        rows.append(("Ends in", Markup("{}").format(lasting(node.left))))
    return facts(rows)


def facts(rows: Sequence[tuple[str, Markup]]) -> Markup:
    """Return a list of names and what they stand for."""
    return Markup('<dl class="facts">{}</dl>').format(
        _joined([Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*row) for row in rows])
    )


def _actions(frame: Frame, node: Node, *, parent_lives: bool) -> Markup:
    live = {"visitor": ("/forget", "Forget me"), "user": ("/logout", "Log out"), "sudo": ("/admin/leave", "End it")}
    begin = {"user": ("/login", "Log in"), "sudo": ("/sudo", "Step up")}
    if node.live:
        path, text = live[node.name]
        return button(frame, path, text, "small")
    if parent_lives and node.name in begin:
        path, text = begin[node.name]
        return Markup('<a class="button strong small" href="{}">{}</a>').format(path, text)
    return Markup("")
