"""The demo's pages as HTML. Whatever comes from outside is escaped where ``Markup.format`` puts it in."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Final

from markupsafe import Markup

from ..handlers import Session
from .notes import Note
from .parts import BAR, ICON, Frame, Node, button, clock, csrf_field, page, running, tree

__all__ = ["ICON", "Frame", "Node", "account", "admin", "home", "login", "logout", "problem", "sudo", "unauthorized"]

RECENT: Final = 300
EXAMPLE: Final = {"key": "coupon", "value": "SPRING-25", "max_age": "30"}

_HOME: Final = Markup("""\
<section class="intro">
<h1>Sessions that form a tree</h1>
<p>You are a <b>visitor</b>. Log in, and a <b>user</b> session is spawned from it; confirm it, and a <b>sudo</b> session
from that. Each lives only while the one above it lives, so ending one ends all that is below.</p>
</section>
<div class="columns">
<section aria-labelledby="tree"><h2 id="tree">Your tree</h2>{tree}</section>
<section aria-labelledby="keys"><h2 id="keys">Keys with a life of their own</h2>
{notes}
<form class="card grid" method="post" action="/notes">
{csrf}
{error}<label>Key <input name="key" required maxlength="32" value="{key}" autocomplete="off"></label>
<label>Value <input name="value" required maxlength="200" value="{value}" autocomplete="off"></label>
<label>Life in seconds <input name="max_age" type="number" min="0" max="86400" value="{max_age}"></label>
<button class="strong">Put</button>
<p class="quiet"><code>session.put(key, value, max_age=seconds)</code>, where 0 gives it no expiry of its own.</p>
</form>
</section>
</div>
""")

_NOTE: Final = Markup("""\
<div class="line"><code class="key">{key}</code><span class="value">{value}</span>{clock}{delete}</div>{bar}""")

_LOGIN: Final = Markup("""\
<section class="narrow card">
<h1>Log in</h1>
<p class="quiet">There are no passwords in this demo: any name will do.</p>
{already}<form class="stack" method="post" action="/login">
{csrf}
{onward}{error}<label>Name
<input name="name" required maxlength="64" value="{name}" autocomplete="username" autofocus></label>
<button class="strong">Log in</button>
</form>
<p class="quiet">Logging in gives the visitor session a new id, against session fixation, and spawns a user session from
it, bound to your name. It ends when you leave it alone for half an hour.</p>
</section>
""")

_LOGOUT: Final = Markup("""\
<section class="narrow card">
<h1>Log out?</h1>
<p>{text}</p>
<div class="stack">{button}</div>
</section>
""")

_ACCOUNT: Final = Markup("""\
<section class="intro"><h1>{name}</h1>
<p>This page stands behind <code>Enforcer(visitor, user)</code>: without a live user session its view does not run.</p>
</section>
<div class="columns">
<section aria-labelledby="session"><h2 id="session">The user session</h2>
<dl class="card facts">
<div><dt>Handle</dt><dd><code>{handle}</code></dd></div>
<div><dt>Logged in</dt><dd>{logged_in}</dd></div>
<div><dt>Fresh</dt><dd>{recent}</dd></div>
<div><dt>Began</dt><dd>{start}</dd></div>
<div><dt>Address</dt><dd>{address}</dd></div>
<div><dt>Browser</dt><dd>{agent}</dd></div>
</dl></section>
<section aria-labelledby="children"><h2 id="children">Its children</h2>{children}
<p class="quiet">A child session needs its parent in every request. Log out, and sudo is gone in the same response.</p>
</section>
</div>
""")

_SUDO: Final = Markup("""\
<section class="narrow card">
<h1>Confirm that it is you</h1>
<p>A real application would ask for a password or a passkey here. <b>This demo asks for nothing</b>: the button is
all.</p>
{already}<div class="stack">{button}</div>
<p class="quiet">It spawns a sudo session from your user session, with an absolute timeout of ten minutes that nothing
prolongs.</p>
</section>
""")

_ADMIN: Final = Markup("""\
<section class="intro"><h1>Administration</h1>
<p>This page stands behind <code>Enforcer(visitor, user, sudo)</code>: all three must be live.</p></section>
<section class="card ringed">{ring}
<div><h2>Ten minutes, and then it is over</h2>
<p>The sudo session has <code>with_absolute_timeout(600)</code>. No click on this page makes it longer, and when it
ends you are still logged in as {name}.</p>
<div class="stack">{leave}</div></div>
</section>
""")

_PROBLEM: Final = Markup("""\
<section class="narrow card">
<p class="status">{code}</p>
<h1>{title}</h1>
<p>{text}</p>
<div class="stack">{way}</div>
</section>
""")

_PROBLEMS: Final = {
    403: (
        "This form is not yours",
        "It carries no token of your session, or an older one. Try again.",
    ),
    404: ("There is nothing here", "No page of the demo has this address."),
    405: ("Not this way", "The page is there, but it does not answer this kind of request."),
    413: ("Too much", "That is more than fits in a request or in a cookie."),
}


def home(
    frame: Frame,
    nodes: Sequence[Node],
    notes: Sequence[Note],
    typed: Mapping[str, str] = EXAMPLE,
    error: str | None = None,
) -> Markup:
    """Return the page of the tree and the keys, its form filled with what was typed if that was refused."""
    rows = Markup("").join(_note(frame, note) for note in notes)
    content = _HOME.format(
        tree=tree(frame, nodes),
        notes=Markup('<ul class="notes card">{}</ul>').format(rows) if rows else Markup(""),
        csrf=csrf_field(frame),
        error=_error(error),
        **{field: typed.get(field, "") for field in EXAMPLE},
    )
    return page(frame, "Home", content)


def _note(frame: Frame, note: Note) -> Markup:
    field = Markup('<input type="hidden" name="key" value="{}">\n').format(note.key)
    line = _NOTE.format(
        key=note.key,
        value=note.text,
        clock=Markup('<span class="still">no expiry</span>') if note.left is None else clock(note.left),
        delete=button(frame, "/notes/delete", "Delete", "small", field),
        bar=BAR if note.left is not None else "",
    )
    if note.left is not None:
        line = running(note.left, note.life or note.left, line)
    return Markup("<li>{}</li>").format(line)


def login(frame: Frame, onward: str | None, typed: str = "", error: str | None = None) -> Markup:
    """Return the form that asks for a name, filled with what was typed if that was refused."""
    already = Markup("<p>You are logged in as <b>{}</b>. Logging in again begins a new session.</p>\n")
    field = Markup('<input type="hidden" name="next" value="{}">\n')
    content = _LOGIN.format(
        already=already.format(frame.name) if frame.name is not None else "",
        csrf=csrf_field(frame),
        onward=field.format(onward) if onward else "",
        name=typed,
        error=_error(error),
    )
    return page(frame, "Log in", content)


def logout(frame: Frame) -> Markup:
    """Return the question before logging out."""
    if frame.name is None:
        text, way = Markup("Nobody is logged in."), Markup('<a class="button" href="/">Home</a>')
    else:
        text = Markup("The session of <b>{}</b> ends, and sudo with it. You stay a visitor.").format(frame.name)
        way = button(frame, "/logout", "Log out", "strong")
    return page(frame, "Log out", _LOGOUT.format(text=text, button=way))


def account(frame: Frame, user: Session, child: Node) -> Markup:
    """Return the page about the user session."""
    about = user.metadata
    content = _ACCOUNT.format(
        name=user.subject,
        handle=user.handle,
        logged_in=f"{user['logged_in']:%Y-%m-%d %H:%M:%S} UTC",
        recent="yes, within 5 minutes" if user.fresh_within(RECENT) else "no, longer than 5 minutes ago",
        start=f"{about.start:%Y-%m-%d %H:%M:%S} UTC",
        address=about.ip_address,
        agent=about.user_agent or "unknown",
        children=tree(frame, [child]),
    )
    return page(frame, "Account", content)


def sudo(frame: Frame, node: Node) -> Markup:
    """Return the form that confirms the user."""
    already = Markup('<p>You have already. <a href="/admin">Administration</a> is open.</p>\n') if node.live else ""
    content = _SUDO.format(already=already, button=button(frame, "/sudo", "It is me", "strong"))
    return page(frame, "Confirm", content)


def admin(frame: Frame, node: Node) -> Markup:
    """Return the page that needs a sudo session."""
    left = node.left or 0
    ring = running(left, node.life or left, Markup('<div class="ring">{}</div>').format(clock(left)), "inline")
    leave = button(frame, "/admin/leave", "End the sudo session")
    return page(frame, "Administration", _ADMIN.format(ring=ring, name=frame.name, leave=leave))


def unauthorized(frame: Frame, onward: str) -> Markup:
    """Return the page for whoever lacks a session: it leads to the one that is missing."""
    if frame.name is not None:
        title, text = "Confirm first", "This page opens for ten minutes after you have confirmed that it is you."
        path, label = "/sudo", "Confirm"
    else:
        title, text = "Log in first", "This page is for users, and no user session came with your request."
        path, label = f"/login?next={onward}", "Log in"
    way = Markup('<a class="button strong" href="{}">{}</a>').format(path, label)
    return page(frame, title, _PROBLEM.format(code=HTTPStatus.UNAUTHORIZED, title=title, text=text, way=way))


def problem(code: int) -> Markup:
    """Return the page for an error that has nothing to do with any session."""
    title, text = _PROBLEMS.get(code, (HTTPStatus(code).phrase, HTTPStatus(code).description))
    way = Markup('<a class="button" href="/">Home</a>')
    return page(Frame(""), title, _PROBLEM.format(code=code, title=title, text=text, way=way))


def _error(text: str | None) -> Markup | str:
    return Markup('<p class="error" role="alert">{}</p>\n').format(text) if text else ""
