"""The Handler: an immutable description of one kind of session."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ..errors import ConfigError
from ..keys import KeyRing, Keys
from ..serializer import CustomFields, JsonSerializer
from .codec import TokenCodec, token_codec
from .config import DEFAULT_ABSOLUTE, Config
from .environ import REGISTRY, Environ, environ_of
from .options import HandlerOption, Option
from .registry import Registry
from .transport import CookieTransport, HeaderTransport, Transport
from .wsgi import link

if TYPE_CHECKING:
    from collections.abc import Callable
    from wsgiref.types import WSGIApplication

    from .session import Session

__all__ = ["Handler"]

DEEPEST_TREE: Final = 16


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Handler:
    """One kind of session: its name, keys, lives, cookie and place in the tree.

    A handler is a value: frozen, hashable, equal to another of the same settings, and shared by any
    number of threads. Raises ConfigError when it is built, never at the first request.
    """

    config: Config
    parent: "Handler | None"
    name: str = field(compare=False)
    path: str = field(compare=False)
    transport: Transport = field(compare=False)
    vary: str = field(compare=False)
    find: "Callable[[str], list[str]]" = field(compare=False)
    tokens: TokenCodec = field(compare=False)
    fields: JsonSerializer | CustomFields = field(compare=False)
    now: "Callable[[], int]" = field(compare=False)
    idles: bool = field(compare=False)

    def __init__(self, name: str, keys: Keys, *options: HandlerOption) -> None:
        """Describe the sessions of this name, signed with these keys."""
        built = _configured(Config(name=name, keys=KeyRing.of(keys)), None, options)
        _settle(self, built.config, built.parent)

    def configure(self, *options: HandlerOption) -> "Handler":
        """Return a new handler with these options; this one is unchanged."""
        return _configured(self.config, self.parent, options)

    def spawn(self, name: str, *options: HandlerOption) -> "Handler":
        """Return a child handler, whose sessions live only while their parent's session lives.

        It inherits everything but the name, the cookie's name, the three lives and eagerness.
        """
        config = replace(
            self.config,
            name=name,
            policy=replace(self.config.policy, name=None),
            max_age=0,
            idle=0,
            absolute=DEFAULT_ABSOLUTE,
            eager=False,
        )
        return _configured(config, self, options)

    def spawned(self, child: "Handler") -> "Handler":
        """Return a copy of a handler, linked as a child under this one; both stay unchanged."""
        if not isinstance(child, Handler):
            raise ConfigError(f"spawned() takes a Handler, not {type(child).__name__}.")
        return _built(child.config, self)

    def link(self, app: "WSGIApplication") -> "WSGIApplication":
        """Return a WSGI application: this handler as one link in front of the application."""
        return link(self, app)

    def session(self, request: object) -> "Session":
        """Return this handler's session of the request, unread until it is first looked at.

        Without a live session in the request it is an empty new one; no cookie, however bad, raises.
        Raises UsageError if the handler is not linked while others are.
        """
        environ: Environ = request if request.__class__ is dict else environ_of(request)
        registry: Registry | None = environ.get(REGISTRY)
        if registry is None:
            registry = environ[REGISTRY] = Registry.bare()
        return registry.session(self, environ)

    def loaded(self, request: object) -> bool:
        """Load the session if need be and return whether it is live now."""
        return self.session(request).is_live()

    def load(self, request: object) -> "Session":
        """Return the live session of the request.

        Raises NoCookie, BadCookie, Expired or ParentInvalid if there is none.
        """
        session = self.session(request)
        session.require()
        return session

    def generate(self, request: object) -> "Session":
        """Begin a new session with a new id and no data, in place of the one there may be."""
        session = self.session(request)
        session.regenerate()
        return session

    def sessions(self, subject: str) -> NoReturn:
        """Raise ConfigError: only a store can list the sessions of a subject."""
        raise _needs_store(self, f"sessions({subject!r})")

    def revoke_all(self, subject: str, keep: object = None) -> NoReturn:  # noqa: ARG002 - the contract's parameter
        """Raise ConfigError: only a store can end the sessions of a subject."""
        raise _needs_store(self, f"revoke_all({subject!r})")

    def __repr__(self) -> str:
        """Show the path; secrets stay in the ring."""
        return f"<Handler {self.path}>"


def _configured(config: Config, parent: Handler | None, options: Iterable[HandlerOption]) -> Handler:
    """Apply the options and check the result once, so that their order does not matter."""
    for option in options:
        if isinstance(option, Option):
            config = option.change(config)
            continue
        if not callable(option):
            raise ConfigError(f"An option is a function from Handler to Handler, not {type(option).__name__}.")
        changed = option(_built(config, parent))
        if not isinstance(changed, Handler):
            raise ConfigError(f"The option {option!r} returned a {type(changed).__name__}: return the new Handler.")
        config, parent = changed.config, changed.parent
    return _built(config, parent)


def _built(config: Config, parent: Handler | None) -> Handler:
    handler = Handler.__new__(Handler)
    _settle(handler, config, parent)
    return handler


def _settle(handler: Handler, config: Config, parent: Handler | None) -> None:
    """Check the settings and make of them what requests need, once and for all."""
    config.check()
    ancestors = list(_line(parent))
    if len(ancestors) >= DEEPEST_TREE:
        raise ConfigError(f"{config.name!r} would lie deeper than {DEEPEST_TREE} levels: flatten the tree.")
    if any(ancestor.name == config.name for ancestor in ancestors):
        raise ConfigError(
            f"{config.name!r} is already an ancestor: a session cannot spawn itself; choose another name."
        )
    path = "/".join([*(ancestor.name for ancestor in reversed(ancestors)), config.name])
    plain = type(config.serializer) is JsonSerializer
    carrier = _transport(config)
    settled: dict[str, Any] = {
        "config": config,
        "parent": parent,
        "name": config.name,
        "path": path,
        "transport": carrier,
        "vary": carrier.vary,
        "find": carrier.tokens,
        "tokens": token_codec(config.keys, "session", path, sealed=config.encrypted, clock=config.clock),
        "fields": config.serializer if plain else CustomFields(config.serializer),
        "now": config.clock.now,
        "idles": config.idle > 0,
    }
    for name, value in settled.items():
        object.__setattr__(handler, name, value)


def _transport(config: Config) -> Transport:
    if config.header is not None:
        return HeaderTransport(config.header)
    return CookieTransport(config.policy, config.policy.name_for(config.name))


def _line(handler: Handler | None) -> Iterator[Handler]:
    """Yield the handler, its parent, and so on up to the root."""
    while handler is not None:
        yield handler
        handler = handler.parent


def _needs_store(handler: Handler, call: str) -> ConfigError:
    return ConfigError(f"{call} needs a store: {handler.path!r} keeps its sessions in the browser, one by one.")
