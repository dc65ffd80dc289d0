"""The chain: several links in front of one application, outermost first."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from ..errors import ConfigError
from .csrf import Csrf
from .enforcer import Enforcer
from .handler import Handler
from .wsgi import seen_through

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

__all__ = ["Link", "Linkable", "chain"]


class Linkable(Protocol):
    """Anything that can stand in a chain: a Handler, an Enforcer, a Csrf, or yours."""

    def link(self, app: "WSGIApplication") -> "WSGIApplication":
        """Return an application that does its work and calls ``app``."""
        ...


Link: TypeAlias = "Linkable | Callable[[WSGIApplication], WSGIApplication]"
"""One link: an object with ``link(app)``, or a function from application to application."""


def chain(*links: Link) -> "Callable[[WSGIApplication], WSGIApplication]":
    """Return a function that puts the links in front of an application, the first one outermost.

    ``chain(visitor, Enforcer(visitor), user)(app)`` is ``visitor.link(Enforcer(visitor).link(user.link(app)))``.
    Raises ConfigError for handlers that clash, a child outside its parent, and an Enforcer or Csrf outside its
    handlers. Where one of them is in the application or in a link of yours, the returned function raises it.
    """
    wrappers = [_wrapper(link) for link in links]
    _check([link for link in links if type(link) in _OURS])

    def build(app: "WSGIApplication") -> "WSGIApplication":
        for wrap in reversed(wrappers):
            outer = wrap(app)
            if not callable(outer):
                raise ConfigError(f"The link {wrap!r} returned no application: return a function of environ and start.")
            app = seen_through(outer, app)
        return app

    return build


_OURS: Final = (Handler, Enforcer, Csrf)
"""Links that do nothing but look where they stand when they are put in front of an application."""


def _check(links: "list[Any]") -> None:
    """Raise what putting these in front of any application would raise."""
    app: Any = _nothing
    for link in reversed(links):
        app = link.link(app)


def _nothing(_environ: Any, _start_response: Any) -> Any:
    """Stand for an application that nobody calls."""


def _wrapper(link: Any) -> "Callable[[WSGIApplication], WSGIApplication]":
    wrap = getattr(link, "link", link)
    if not callable(wrap):
        raise ConfigError(f"A link has a link(app) method or is a function of an app, and {link!r} is neither.")
    return wrap  # type: ignore[no-any-return]
