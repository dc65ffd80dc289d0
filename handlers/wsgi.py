"""The link: a handler in front of a WSGI application (PEP 3333).

The outermost link of a request opens its registry and wraps ``start_response``; the links
inside find the registry and step aside. A linked application knows the handlers inside it,
so the outermost link knows them all, and a wrong order is found when the chain is built.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigError, LimitReached, SessionGone, StoreUnavailable
from .environ import REGISTRY, Environ
from .registry import Linked, Registry, clash_between
from .response import refuse_for

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication

    from .handler import Handler
    from .transport import Header

__all__ = ["check_inside", "inside_of", "link", "linked_handlers", "seen_through"]

ANSWERED: Final = (SessionGone, LimitReached, StoreUnavailable)
"""What we answer ourselves if it escapes from the application; anything else is the server's to handle."""

_ATTRIBUTE: Final = "sessiontree_handlers"


def linked_handlers(app: object) -> "Mapping[str, Handler]":
    """Return the handlers that are linked in front of an application, outermost first, by name."""
    return getattr(app, _ATTRIBUTE, {})


def seen_through(app: "WSGIApplication", inner: "WSGIApplication") -> "WSGIApplication":
    """Return the application that a plain function put in front of another, with the inner handlers still known."""
    handlers = linked_handlers(inner)
    if not handlers or linked_handlers(app):
        return app

    def passed(environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        return app(environ, start_response)

    setattr(passed, _ATTRIBUTE, handlers)
    return passed


def inside_of(
    handlers: "Iterable[Handler]", guard: object, guarded: "WSGIApplication", app: "WSGIApplication"
) -> "WSGIApplication":
    """Return the guarded application, which knows the handlers linked inside it as ``app`` does.

    Raises ConfigError if one of the guard's own handlers is among them, for it would be asked too late.
    """
    check_inside(handlers, guard, app)
    setattr(guarded, _ATTRIBUTE, linked_handlers(app))
    return guarded


def check_inside(handlers: "Iterable[Handler]", guard: object, app: object) -> None:
    """Raise ConfigError if a handler of the guard is linked inside it, in the application that it guards."""
    inner = linked_handlers(app)
    for handler in handlers:
        if inner.get(handler.name) == handler:
            name = type(guard).__name__
            raise ConfigError(f"{name}({handler.path}) stands outside its handler: link {handler.path!r} first.")


def link(handler: "Handler", app: "WSGIApplication") -> "WSGIApplication":  # noqa: C901 - one frame for each request
    """Return an application that gives every request of ``app`` a session of this handler."""
    inner = linked_handlers(app)
    _check(handler, inner)
    handlers = Linked({handler.name: handler, **inner})
    name = handler.name
    if handler.config.eager:
        app = _waking(handler, app)

    def linked(environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        registry: Registry | None = environ.get(REGISTRY)
        if registry is not None and registry.linked and not registry.closed:
            if registry.linked.get(name) is not handler:
                registry.join(handlers)
            return app(environ, start_response)
        if registry is None or registry.is_spent:
            registry = environ[REGISTRY] = Registry()
            registry.enter(handlers)
        else:
            registry.adopt(handlers)  # Somebody outside looked at a session: what it opened becomes ours.

        # As the outermost link: commit when the response begins, close when it ends.
        def start(status: str, headers: "list[Header]", exc_info: Any = None) -> Any:
            headers = registry.headers(environ, status, headers)
            if exc_info is None:
                return start_response(status, headers)
            return start_response(status, headers, exc_info)

        try:
            body = app(environ, start)
        except ANSWERED as error:
            registry.end(failed=True)
            return _refuse(environ, start_response, error, registry)
        except BaseException:
            registry.end(failed=True)
            raise
        if body.__class__ is list or body.__class__ is tuple:
            registry.end()
            return body
        return _watched(body, environ, start_response, registry)

    setattr(linked, _ATTRIBUTE, handlers)
    return linked


def _waking(handler: "Handler", app: "WSGIApplication") -> "WSGIApplication":
    """Return the application, in front of which every request gets a session even if nobody writes to it."""

    def woken(environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        handler.session(environ).wake()
        return app(environ, start_response)

    return woken


def _refuse(environ: Environ, start_response: "StartResponse", error: Exception, registry: Registry) -> list[bytes]:
    """Answer for an application that a commit or a look has stopped."""
    exc_info = sys.exc_info() if registry.done else None
    return refuse_for(environ, start_response, error, registry.salvage(), exc_info)


def _watched(
    body: Iterable[bytes], environ: Environ, start_response: "StartResponse", registry: Registry
) -> Iterable[bytes]:
    """Return a body that may still run application code, so that we see it fail and end."""
    if registry.done and _is_server_file(body, environ):
        registry.end()
        return body
    try:
        return _Body(body, environ, start_response, registry)
    except BaseException:
        registry.end(failed=True)
        if hasattr(body, "close"):
            body.close()
        raise


def _is_server_file(body: object, environ: Environ) -> bool:
    """Tell whether the server will send this body without Python, which wrapping would forfeit (PEP 3333)."""
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


class _Body:
    """A response body that may still run application code, and so may still fail or need closing."""

    __slots__ = ("_app_body", "_environ", "_failed", "_items", "_registry", "_start_response")

    def __init__(
        self, body: Iterable[bytes], environ: Environ, start_response: "StartResponse", registry: Registry
    ) -> None:
        self._app_body = body
        self._items = iter(body)
        self._environ = environ
        self._start_response = start_response
        self._registry = registry
        self._failed = False  # Whether an exception came out of it, so that it saves nothing more.

    def __iter__(self) -> "_Body":
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._items)
        except StopIteration:
            raise
        except ANSWERED as error:
            self._failed = True
            answer = _refuse(self._environ, self._start_response, error, self._registry)
            self._items = iter(answer[1:])
            return answer[0]
        except BaseException:
            self._failed = True
            raise

    def close(self) -> None:
        try:
            close = getattr(self._app_body, "close", None)
            if close is not None:
                close()
        except BaseException:
            self._failed = True
            raise
        finally:
            self._registry.end(failed=self._failed)


def _check(handler: "Handler", inner: "Mapping[str, Handler]") -> None:
    """Raise ConfigError for a chain in which two handlers clash or a child stands outside its parent."""
    for other in inner.values():
        clash = clash_between(handler, other)
        if clash is not None:
            raise ConfigError(clash)
        if handler.parent is not None and handler.parent == other:
            raise ConfigError(f"{handler.path!r} stands outside its parent: link {other.path!r} first.")
