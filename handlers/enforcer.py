"""The Enforcer: a link that lets a request through only with the sessions it requires."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from ..errors import ConfigError, NoSession, RejectedError, SessionError, StoreUnavailable
from .environ import SELECTED, Environ, environ_of
from .handler import Handler
from .response import refuse, refuse_for
from .wsgi import check_inside, inside_of

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication

    from werkzeug.wrappers import Request, Response

__all__ = ["Enforcer", "Refusal"]

Refusal: TypeAlias = "Callable[[Request, RejectedError], Response]"
"""What ``on_refusal`` takes: a function of the request and the reason that returns your own response."""

Mode = Literal["all", "any", "one", "highest"]
_WSGI_ARGUMENTS: Final = 2


class Enforcer:
    """Lets a request through only if every handler's session is live and was so before this request.

    Any other request is answered 401, always in the same words, and what is behind the Enforcer does not run.
    A store that does not answer makes it 503, never 401. ``on_refusal(request, error)`` may return
    a response of your own. Raises ConfigError for no handler, or something else than handlers.
    """

    __slots__ = ("_handlers", "_mode", "_on_refusal")

    def __init__(self, *handlers: Handler, mode: Mode = "all", on_refusal: "Refusal | None" = None) -> None:
        """Require the sessions of all these handlers, or what the mode says of them."""
        if not handlers or not all(isinstance(handler, Handler) for handler in handlers):
            raise ConfigError(f"An Enforcer takes one or more Handlers, not {_listed(handlers)}.")
        if mode not in get_args(Mode):
            raise ConfigError(f"The mode of an Enforcer is one of {get_args(Mode)}, not {mode!r}.")
        if on_refusal is not None and not callable(on_refusal):
            raise ConfigError("on_refusal is a function of the request and the error.")
        self._mode = mode
        self._handlers = handlers
        self._on_refusal = on_refusal

    @classmethod
    def any_of(cls, *handlers: Handler, on_refusal: "Refusal | None" = None) -> "Enforcer":
        """Require the session of at least one of these handlers; the first live one is selected.

        A store that does not answer is passed over while there is another handler to ask.
        """
        return cls(*handlers, mode="any", on_refusal=on_refusal)

    @classmethod
    def one_of(cls, *handlers: Handler, on_refusal: "Refusal | None" = None) -> "Enforcer":
        """Require the session of exactly one of these handlers, which is selected."""
        return cls(*handlers, mode="one", on_refusal=on_refusal)

    @classmethod
    def highest(cls, *handlers: Handler, on_refusal: "Refusal | None" = None) -> "Enforcer":
        """Require the session of at least one handler, the highest first, and select the first live one.

        ``environ["sessiontree.selected"]`` is then that handler, as it is for ``any_of`` and ``one_of``. While a store
        does not answer, nobody can say that no higher session lives: 503.
        """
        return cls(*handlers, mode="highest", on_refusal=on_refusal)

    def link(self, app: "WSGIApplication") -> "WSGIApplication":
        """Return the application behind this guard; raise ConfigError if it would stand outside its handlers."""

        def enforced(environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
            refusal = self._refusal(environ)
            if refusal is None:
                return app(environ, start_response)
            return self._answer(environ, start_response, refusal)

        return inside_of(self._handlers, self, enforced, app)

    def guard(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Return a view, or a WSGI application, that runs only with the required sessions.

        A view is called as ``view(request, ...)`` and refused with a werkzeug Response.
        """
        check_inside(self._handlers, self, view)

        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if len(args) == _WSGI_ARGUMENTS and not kwargs and isinstance(args[0], dict) and callable(args[1]):
                environ, start_response = args
                refusal = self._refusal(environ)
                return view(*args) if refusal is None else self._answer(environ, start_response, refusal)
            environ = environ_of(args[0] if args else None)
            refusal = self._refusal(environ)
            return view(*args, **kwargs) if refusal is None else self._response(environ, refusal)

        return guarded

    def _refusal(self, environ: Environ) -> SessionError | None:
        """Return why the request must not pass, or None if it may."""
        live: list[Handler] = []
        refusals: list[SessionError] = []
        for handler in self._handlers:
            refusal = _refused(handler, environ)
            if refusal is None:
                live.append(handler)
            elif self._mode == "all" or (self._mode != "any" and isinstance(refusal, StoreUnavailable)):
                return refusal  # With a store down, nobody can say which session is the highest or the only one.
            else:
                refusals.append(refusal)
            if live and self._mode in {"any", "highest"}:
                break
        if self._mode == "all":
            return None
        return self._select(environ, live, refusals)

    def _select(self, environ: Environ, live: list[Handler], refusals: list[SessionError]) -> SessionError | None:
        if not live:
            return next((refusal for refusal in refusals if isinstance(refusal, StoreUnavailable)), refusals[0])
        if len(live) > 1:
            return NoSession(f"Exactly one of {len(self._handlers)} sessions may be live, and {len(live)} are.")
        environ[SELECTED] = live[0]
        return None

    def _answer(self, environ: Environ, start_response: "StartResponse", refusal: SessionError) -> Iterable[bytes]:
        if self._on_refusal is not None and isinstance(refusal, RejectedError):
            return self._response(environ, refusal)(environ, start_response)
        if not isinstance(refusal, RejectedError):
            return refuse_for(environ, start_response, refusal)
        challenge = ("WWW-Authenticate", f'Session realm="{self._handlers[0].name}"')
        return refuse(environ, start_response, "401 Unauthorized", [challenge])

    def _response(self, environ: Environ, refusal: SessionError) -> "Response":
        """Return the refusal as a werkzeug Response."""
        from werkzeug.wrappers import Request, Response  # noqa: PLC0415 - imported on first use, it takes its time

        if self._on_refusal is not None and isinstance(refusal, RejectedError):
            return self._on_refusal(Request(environ), refusal)
        taken: list[Any] = []
        body = self._answer(environ, lambda *head: taken.extend(head), refusal)  # type: ignore[arg-type]
        status, headers = taken[:2]
        return Response(b"".join(body), status, headers)


def _refused(handler: Handler, environ: Environ) -> SessionError | None:
    try:
        session = handler.load(environ)
    except (RejectedError, StoreUnavailable) as refusal:
        return refusal
    return NoSession("The session was begun in this very request.") if session.new else None


def _listed(handlers: tuple[object, ...]) -> str:
    """Return what was passed, for a message: the types alone, for values may be secret."""
    return ", ".join(type(handler).__name__ for handler in handlers) or "none"
