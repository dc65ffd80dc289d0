"""The demo: a small application with three kinds of session, each spawned from the one before.

    visitor     anybody
      user      who logged in
        sudo    who confirmed it less than ten minutes ago

A request passes a chain, outermost first: the looks of a response, the table of routes, the
visitor, the guard against forged forms, the user, sudo, and then one view. The views that
need a session stand behind an Enforcer each.
"""

from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from markupsafe import Markup
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge
from werkzeug.routing import Map, Rule
from werkzeug.utils import redirect
from werkzeug.wrappers import Request, Response

from ..errors import CookieTooLarge, RejectedError
from ..handlers import CookiePolicy, Csrf, Enforcer, Handler, chain
from ..handlers.options import with_absolute_timeout, with_cookie, with_encryption, with_idle_timeout, with_store
from ..keys import Keys
from . import pages
from .devices import Device, devices
from .notes import VISITS, form_name, form_next, form_note, notes_in

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from ..stores import Store

__all__ = ["Demo", "application"]

IDLE: Final = 30 * 60
SUDO: Final = 10 * 60
MOST_FLASHES: Final = 3
VIEW: Final = "sessiontree_demo.view"
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def application(keys: Keys, policy: CookiePolicy, store: "Store | None" = None) -> "WSGIApplication":
    """Return the demo as a WSGI application, its sessions in the store, or without one in sealed cookies."""
    demo = Demo(keys, policy, store)
    return chain(dressed, demo.routed, demo.visitor, demo.csrf, demo.user, demo.sudo)(show)


class Demo:
    """The handlers of the demo, and its views: each takes a request and returns a response."""

    def __init__(self, keys: Keys, policy: CookiePolicy, store: "Store | None" = None) -> None:
        """Describe the three kinds of session, the guards, and which view answers what."""
        self.stored = store is not None
        self.visitor = Handler("visitor", keys, with_cookie(policy), with_encryption(), with_store(store))
        self.user = self.visitor.spawn("user", with_idle_timeout(IDLE))
        self.sudo = self.user.spawn("sudo", with_absolute_timeout(SUDO))
        self.csrf = Csrf(self.visitor)
        self.routes = self._routes()
        self.stylesheet = files(__package__).joinpath("demo.css").read_bytes()

    def _routes(self) -> Map:
        logged_in = Enforcer(self.visitor, self.user, on_refusal=self.refused)
        confirmed = Enforcer(self.visitor, self.user, self.sudo, on_refusal=self.refused)
        table = [
            ("GET", "/", self.home),
            ("POST", "/notes", self.write_note),
            ("POST", "/notes/delete", self.delete_note),
            ("GET", "/login", self.login_form),
            ("POST", "/login", self.login),
            ("GET", "/logout", self.logout_form),
            ("POST", "/logout", self.logout),
            ("POST", "/forget", self.forget),
            ("GET", "/account", logged_in.guard(self.account)),
            ("GET", "/sudo", logged_in.guard(self.sudo_form)),
            ("POST", "/sudo", logged_in.guard(self.step_up)),
            ("GET", "/admin", confirmed.guard(self.admin)),
            ("POST", "/admin/leave", confirmed.guard(self.leave)),
            ("GET", "/devices", logged_in.guard(self.devices)),
            ("GET", "/demo.css", self.style),
            ("GET", "/icon.svg", self.icon),
        ]
        if self.stored:  # What a browser keeps cannot be ended from elsewhere.
            table += [
                ("POST", "/devices/end", logged_in.guard(self.end_device)),
                ("POST", "/devices/end-others", logged_in.guard(self.end_others)),
            ]
        # Without the merging of slashes no path is ever redirected.
        return Map([Rule(path, endpoint=view, methods=[method]) for method, path, view in table], merge_slashes=False)

    def routed(self, app: "WSGIApplication") -> "WSGIApplication":
        """Return a link that finds the view, so that a wrong path or method costs no session a look."""

        def match(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
            request = Request(environ)
            environ[VIEW], _ = self.routes.bind("demo").match(request.path, request.method)
            return app(environ, start_response)

        return match

    # -- anybody ---------------------------------------------------------------------------

    def home(self, request: Request) -> Response:
        """Show the tree of the browser's sessions and the notes in the visitor's."""
        return self._home(request)

    def _home(self, request: Request, error: str | None = None) -> Response:
        frame = self._frame(request)
        visitor = self.visitor.session(request)
        if request.method == "GET":
            visitor.incr(VISITS)
        nodes = [
            pages.Node.of(visitor, visits=visitor.get(VISITS, 0)),
            pages.Node.of(self.user.session(request), life=IDLE),
            pages.Node.of(self.sudo.session(request), life=SUDO),
        ]
        notes = notes_in(visitor)
        if error is None:
            return _html(pages.home(frame, nodes, notes))
        return _html(pages.home(frame, nodes, notes, request.form, error), 400)

    def write_note(self, request: Request) -> Response:
        """Write one key of the visitor's session, with a life of its own if it is given one."""
        visitor = self.visitor.session(request)
        try:
            note = form_note(request.form, notes_in(visitor))
        except ValueError as error:
            return self._home(request, str(error))
        visitor.put(note.key, {"text": note.text, "life": note.life}, max_age=note.life)
        span = "" if note.life is None else f" for {note.life} s"
        self._flash(request, f"“{note.key}” is put{span}.")
        return redirect("/", 303)

    def delete_note(self, request: Request) -> Response:
        """Delete one key of the visitor's session."""
        key = request.form.get("key", "")
        visitor = self.visitor.session(request)
        if any(note.key == key for note in notes_in(visitor)):
            visitor.delete(key)
            self._flash(request, f"“{key}” is deleted.")
        return redirect("/", 303)

    def login_form(self, request: Request) -> Response:
        """Ask who it is."""
        return _html(pages.login(self._frame(request), form_next(request.args)))

    def login(self, request: Request) -> Response:
        """Log in whoever gives a name: there are no passwords in this demo."""
        onward = form_next(request.form)
        try:
            name = form_name(request.form)
        except ValueError as error:
            return _html(pages.login(self._frame(request), onward, request.form.get("name", ""), str(error)), 400)
        # 1. A new id for the visitor: nobody who planted the old one comes along (fixation, ASVS 7.2.4).
        self.visitor.session(request).renew()
        # 2. A new user session in place of the one there may be: nothing of a former user stays behind.
        user = self.user.generate(request)
        user.bind(name)
        user["logged_in"] = datetime.now(UTC)
        self._flash(request, f"Welcome, {name}. Your visitor session has a new id and a user session under it.")
        return redirect(onward or "/account", 303)

    def logout_form(self, request: Request) -> Response:
        """Ask before logging out: a link that ends a session could be planted in any page."""
        return _html(pages.logout(self._frame(request)))

    def logout(self, request: Request) -> Response:
        """End the user session, and sudo with it; the visitor stays."""
        user = self.user.session(request)
        if user.is_live():
            user.revoke()
            self._flash(request, "You are logged out. The sudo session, if there was one, ended with the user's.")
        return redirect("/", 303)

    def forget(self, request: Request) -> Response:
        """End the visitor's session, and with it the whole tree."""
        self.visitor.session(request).revoke()
        return redirect("/", 303)

    # -- behind an Enforcer ----------------------------------------------------------------

    def account(self, request: Request) -> Response:
        """Show what is known of the user session."""
        user, sudo = self.user.session(request), self.sudo.session(request)
        return _html(pages.account(self._frame(request), user, pages.Node.of(sudo, life=SUDO)))

    def sudo_form(self, request: Request) -> Response:
        """Ask the user to confirm who it is."""
        return _html(pages.sudo(self._frame(request), pages.Node.of(self.sudo.session(request), life=SUDO)))

    def step_up(self, request: Request) -> Response:
        """Begin a sudo session under the user's."""
        user = self.user.session(request)
        user.renew()
        self.sudo.generate(request).bind(user.subject)
        self._flash(request, "Confirmed. A sudo session lives under your user session for ten minutes.")
        return redirect("/admin", 303)

    def admin(self, request: Request) -> Response:
        """Show what only a fresh confirmation opens."""
        return _html(pages.admin(self._frame(request), pages.Node.of(self.sudo.session(request), life=SUDO)))

    def leave(self, request: Request) -> Response:
        """End the sudo session; the user stays logged in."""
        self.sudo.session(request).revoke()
        self._flash(request, "The sudo session has ended. You are still logged in.")
        return redirect("/account", 303)

    def devices(self, request: Request) -> Response:
        """Show the tree of a user's sessions, on whatever device they are."""
        now = datetime.now(UTC)
        user, sudo = self.user.session(request), self.sudo.session(request)
        if self.stored:
            subject = self._subject(request)
            shown = Device.listed(user, self.user.sessions(subject), self.sudo.sessions(subject))
        else:
            shown = [Device.alone(user, sudo)]
        return _html(devices(self._frame(request), shown, now))

    def end_device(self, request: Request) -> Response:
        """End one session of this user by its handle; one of somebody else's is not found (ASVS 7.5.2)."""
        handle = request.form.get("handle", "")
        if handle == self.user.session(request).handle:
            return self.logout(request)
        if self.user.revoke(handle, subject=self._subject(request)):
            self._flash(request, "That device is logged out, and any sudo session beneath it has ended too.")
        else:
            self._flash(request, "That device was not found: perhaps it is logged out already.")
        return redirect("/devices", 303)

    def end_others(self, request: Request) -> Response:
        """End every session of this user but the one of this request (ASVS 7.4.3)."""
        ended = self.user.revoke_all(self._subject(request), keep=self.user.session(request))
        number = "1 other device is" if ended == 1 else f"{ended or 'No'} other devices are"
        self._flash(request, f"{number} logged out. You are still logged in here.")
        return redirect("/devices", 303)

    def _subject(self, request: Request) -> str:
        """Return who is logged in; never None, for a ``revoke()`` with that as its subject would end anybody's."""
        return self.user.session(request).subject or ""

    def refused(self, request: Request, _error: RejectedError) -> Response:
        """Answer 401 with the way in; the same whatever was wrong with the session."""
        frame = self._frame(request, begin=False)
        # The way to the administration leads through the confirmation.
        onward = "/sudo" if request.path.startswith("/admin") else request.path
        response = _html(pages.unauthorized(frame, onward), 401)
        response.headers["WWW-Authenticate"] = f'Session realm="{self.visitor.name}"'
        return response

    # -- files -----------------------------------------------------------------------------

    def style(self, request: Request) -> Response:
        """Send the stylesheet: it looks at no session, so it sets no cookie and varies on none."""
        return _file(request, self.stylesheet, "text/css")

    def icon(self, request: Request) -> Response:
        """Send the icon."""
        return _file(request, pages.ICON.encode(), "image/svg+xml")

    # -- what views share ------------------------------------------------------------------

    def _frame(self, request: Request, *, begin: bool = True) -> pages.Frame:
        """Return what every page shows, and unless told otherwise begin a session for its forms."""
        token = self.csrf.token(request) if begin or self.visitor.loaded(request) else None
        flashes = [] if request.method == "HEAD" else self.visitor.session(request).flashes()
        texts = [str(text) for _, text in flashes]
        return pages.Frame(request.path, token, self.user.session(request).subject, texts, stored=self.stored)

    def _flash(self, request: Request, text: str) -> None:
        """Flash to the visitor, and keep only the latest few: a client that never looks must not fill its cookie."""
        visitor = self.visitor.session(request)
        waiting = visitor.flashes()[1 - MOST_FLASHES :]
        for _, earlier in waiting:
            visitor.flash(earlier)
        visitor.flash(text)


def show(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
    """Call the view that the routes found: the innermost application of the chain."""
    response: Response = environ[VIEW](Request(environ))
    return response(environ, start_response)


def dressed(app: "WSGIApplication") -> "WSGIApplication":
    """Return a link that turns errors into pages and gives every response its security headers."""

    def outermost(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
        try:
            response = Response.from_app(app, environ, buffered=True)
        except CookieTooLarge:
            response = _problem(RequestEntityTooLarge())
        except HTTPException as error:
            response = _problem(error)
        if response.status_code == 403:  # noqa: PLR2004 - the guard against forged forms says it in one line of text
            response.data = pages.problem(403)
            response.mimetype = "text/html"
        response.headers.update(HEADERS)
        return response(environ, start_response)

    return outermost


def _html(page: Markup, status: int = 200) -> Response:
    response = Response(page, status, mimetype="text/html")
    response.headers["Cache-Control"] = "no-store"
    return response


def _problem(error: HTTPException) -> Response:
    code = error.code or BadRequest.code
    response = _html(pages.problem(code), code)
    allow = dict(error.get_headers()).get("Allow")
    if allow:
        response.headers["Allow"] = allow
    return response


def _file(request: Request, content: bytes, mimetype: str) -> Response:
    response = Response(content, mimetype=mimetype)
    response.headers["Cache-Control"] = "no-cache"  # Ask each time, and be told that nothing changed.
    response.add_etag()
    response.make_conditional(request)
    return response
