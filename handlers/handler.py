"""The Handler: an immutable description of one kind of session."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ..errors import ConfigError, UsageError
from ..keys import KeyRing, Keys
from ..serializer import CustomFields, JsonSerializer
from ..stores.announced import announced
from ..stores.following import follow
from ..stores.protocol import Reloading, fits
from .caching import attach
from .carried import CarriedSession
from .claim import claim_tokens
from .codec import FieldSealer, token_codec
from .config import DEFAULT_ABSOLUTE, Config
from .contents import CachedContents, Contents, OpaqueContents, PlainContents
from .environ import REGISTRY, Environ, environ_of
from .events import asked, emit
from .info import SessionInfo
from .options import HandlerOption, Option
from .registry import Registry
from .remembered import Remembered
from .revocable import RevocableSession, marks_of
from .server_only import ServerOnlySession, generated, loaded
from .session import Session
from .stored import StoredSession
from .subjects import end_all, end_one, live_sessions, sweep, sweep_expired
from .token import carried_tokens
from .transport import CookieTransport, HeaderTransport, NoTransport, Transport
from .wsgi import link

if TYPE_CHECKING:
    from collections.abc import Callable
    from wsgiref.types import WSGIApplication

    from ..caches.protocol import Cache
    from ..stores.protocol import Store

__all__ = ["Handler"]

DEEPEST_TREE: Final = 16


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Handler:
    """One kind of session: its name, keys, lives, cookie and place in the tree.

    A handler is a value: frozen, hashable, equal to another of the same settings, and shared by any
    number of threads. Raises ConfigError when it is built, never at the first request.
    """

    config: Config
    """Every setting."""

    parent: "Handler | None"
    """The handler whose sessions ours depend on; None for a root."""

    name: str = field(compare=False)
    path: str = field(compare=False)
    """The names from the root down to this one: "visitor/user"."""

    # What requests need of that, worked out once.

    transport: Transport = field(compare=False)
    """How tokens travel."""

    vary: str = field(compare=False)
    """The request header that they come in."""

    find_tokens: "Callable[[str], list[str]]" = field(compare=False)
    """Returns what may be our token in that header, in order."""

    codec: Remembered[Any] = field(compare=False)
    """Makes tokens and opens them: what one says is a Carried, or a Claim where a store has the sessions."""

    header_value: "Callable[[bytes], str]" = field(compare=False)
    """Returns the value of the response header that gives the client a token with this content."""

    serializer: JsonSerializer | CustomFields = field(compare=False)
    """What values are written with."""

    contents: Contents = field(compare=False)
    """What fields of a store are written with: the same, sealed if that was asked for."""

    now: "Callable[[], int]" = field(compare=False)
    """Returns the time in milliseconds since the epoch."""

    idles: bool = field(compare=False)
    """Whether there is an idle timeout."""

    session_class: "type[Session]" = field(compare=False)
    """The kind of Session, which decides where one is kept."""

    store: "Store | None" = field(compare=False)
    """Where sessions are kept, or the list of those that were revoked; it announces each change. None for neither."""

    cache: "Cache | None" = field(compare=False)
    """What stands in front of the store, if anything does."""

    versioned: bool = field(compare=False)
    """Whether what is read may be older than the store, so that the client's token tells which version it has seen."""

    wanted: "Callable[[Any], Iterable[tuple[str, int]]] | None" = field(compare=False)
    """Returns the handles of the records that a verified token asks for, and their least versions."""

    def __init__(self, name: str, keys: Keys, *options: HandlerOption) -> None:
        """Describe the sessions of this name, signed with these keys."""
        built = _configured(Config(name=name, keys=KeyRing.of(keys)), None, options)
        _settle(self, built.config, built.parent)

    def configure(self, *options: HandlerOption) -> "Handler":
        """Return a new handler with these options; this one is unchanged."""
        return _configured(self.config, self.parent, options)

    def spawn(self, name: str, *options: HandlerOption) -> "Handler":
        """Return a child handler, whose sessions live only while their parent's session lives.

        It inherits everything but the name, the cookie's name, the three lives, ``with_eager``, ``server_only``,
        ``fixed_id`` and ``with_max_sessions``; nor a cache, where it is server-only or kept by the client; nor
        ``with_outage("stale")``, where it has no cache.
        """
        config = replace(
            self.config,
            name=name,
            policy=replace(self.config.policy, name=None),
            max_age=0,
            idle=0,
            absolute=DEFAULT_ABSOLUTE,
            eager=False,
            server_only=False,
            fixed_id=None,
            limit=None,
            cache_is_inherited=self.config.cache is not None,
            outage_is_inherited=self.config.outage == "stale",
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

        Raises NoCookie, BadCookie, BadSession, Expired or ParentInvalid if there is none, NoSession for a handler with
        ``fixed_id``, and StoreUnavailable if nobody can say.
        """
        session = self.session(request)
        session.require()
        return session

    def generate(self, request: object) -> "Session":
        """Begin a new session with a new id and no data, in place of the one there may be."""
        session = self.session(request)
        session.regenerate()
        return session

    def load_by_id(self, id: str, parent: "Session | str | None" = None) -> "Session":  # noqa: A002 - as the contract spells it
        """Return the live server-only session of an id, inside or outside a request; ``commit()`` it by hand.

        With an idle timeout this counts as activity, at once and throttled as everywhere; a ``commit()`` later does so
        for who holds the session for long. If the store cannot note it, that is the event ``untouched`` and no more.
        ``parent``, a Session or its handle, is required iff the handler has a parent. Raises NoSession if there is
        none, ParentInvalid without a live parent, NoID for what cannot be an id, UsageError where clients hold the
        sessions or ``fixed_id`` says another id, and StoreUnavailable if nobody can say.
        """
        self._check_server_only("load_by_id")
        return loaded(self, id, parent)

    def generate_by_id(self, id: str, parent: "Session | str | None" = None) -> "Session":  # noqa: A002 - as the contract spells it
        """Return the live server-only session of an id; create it at once, atomically, unless it exists.

        Raises what ``load_by_id`` does, but for NoSession.
        """
        self._check_server_only("generate_by_id")
        return generated(self, id, parent)

    def sessions(self, subject: str) -> list[SessionInfo]:
        """Return the live sessions of this handler that are bound to a subject, newest first; never an id.

        Raises ConfigError without a store, UsageError for what is no subject, and StoreUnavailable.
        """
        live = asked(self, None, live_sessions, self, self._store(f"sessions({subject!r})"), subject)
        return [SessionInfo.of(record) for record in reversed(live)]

    def revoke_all(self, subject: str, keep: "Session | str | None" = None) -> int:
        """Log a subject out everywhere, but for the session to keep; return how many sessions were ended.

        It goes on until none that was bound at or before its start is left. Descendants end too, and do not count. To
        keep a handle that is none of the subject's keeps nothing. Raises what ``sessions`` does.
        """
        kept = self._handle_of(keep) if isinstance(keep, Session) else keep
        return asked(self, None, end_all, self, self._store(f"revoke_all({subject!r})"), subject, kept)

    def revoke(self, handle: str, subject: str | None = None) -> bool:
        """End a session by its public name; return whether it was live.

        A session of another handler, or not bound to ``subject`` where one is given, is not found: False. A
        ``subject`` of None lets any pass, so for a user's own list see first that somebody is logged in. A request that
        has loaded the session already finds out when it writes. Raises ConfigError without a store, and
        StoreUnavailable if the store did not confirm it: call it again.
        """
        return asked(self, None, end_one, self, self._store("revoke()"), handle, subject)

    def follow(self) -> "Callable[[], None]":
        """Have the cache drop what other processes change, within milliseconds; return what stops it.

        Call it once in each process, for each cache. That the feed was lost is an event; the cache has dropped all
        then, and what others change is served for its ``max_staleness`` at most. Raises ConfigError without a cache,
        and NotImplementedByStore where the store has no feed.
        """
        if self.cache is None:
            raise ConfigError(f"follow() is for a handler with a cache: add with_cache() to {self.path!r}.")
        store = self._store("follow()")
        if not hasattr(self.config.store, "watch"):  # What announces its changes has the verb all the same.
            store = self.config.store  # type: ignore[assignment]
        return follow(store, self.cache, on_loss=lambda: emit(self, "feed"))

    def sweep(self) -> int:
        """Remove what expired an hour ago or more from the store, and this handler's sessions whose ancestors are dead.

        Returns how many records that were. Only a child handler has such orphans; to find them it goes through the
        whole store. Of a handler with_revocations() it is the list that is swept. Raises ConfigError without either,
        and StoreUnavailable.
        """
        listing = self.config.revocations
        if self.config.store is None and listing is not None:
            return asked(self, None, sweep_expired, listing)
        return asked(self, None, sweep, self, self._store("sweep()"))

    def __copy__(self) -> "Handler":
        """Return the handler itself: nobody can change it."""
        return self

    def __deepcopy__(self, memo: object) -> "Handler":
        """Return the handler itself: its stores, caches and keys are shared by all who have it."""
        return self

    def __reduce__(self) -> NoReturn:
        """Raise TypeError: a handler holds secrets and connections, and another process needs its own."""
        raise TypeError(
            f"The handler {self.path!r} is not pickled: build it in a module that each process imports, and look it up "
            "there."
        )

    def _handle_of(self, session: "Session") -> str | None:
        """Return the handle of a session of ours; raise UsageError for another handler's, which would keep nothing."""
        if session.handler.path != self.path:
            raise UsageError(
                f"keep= takes a session of {self.path!r}, and this is one of {session.handler.path!r}, so nothing "
                "would be kept."
            )
        return session.handle

    def _store(self, call: str) -> "Store":
        if self.config.store is None or self.store is None:
            raise ConfigError(
                f"{call} needs a store: {self.path!r} keeps its sessions in the browser: add with_store()."
            )
        return self.store

    def _check_server_only(self, call: str) -> None:
        if not self.config.server_only:
            raise UsageError(
                f"{call}() is for server-only sessions, and clients hold those of {self.path!r}: use load(request), "
                "or add server_only()."
            )

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
    config = config.settled()
    config.check()
    ancestors = list(_ancestry(parent))
    if len(ancestors) >= DEEPEST_TREE:
        raise ConfigError(f"{config.name!r} would lie deeper than {DEEPEST_TREE} levels: flatten the tree.")
    if any(ancestor.name == config.name for ancestor in ancestors):
        raise ConfigError(
            f"{config.name!r} is already an ancestor: a session cannot spawn itself; choose another name."
        )
    path = "/".join([*(ancestor.name for ancestor in reversed(ancestors)), config.name])
    serializer = config.serializer if type(config.serializer) is JsonSerializer else CustomFields(config.serializer)
    carrier, codec, store = _transport(config, path), _codec(config, path, serializer), _announcing_store(config)
    if config.cache is not None and store is not None:
        # It hears what other handlers on this store object change, from now on.
        attach(config.cache, store, config.stale_for / 1000)
    settled: dict[str, Any] = {
        "config": config,
        "parent": parent,
        "name": config.name,
        "path": path,
        "transport": carrier,
        "vary": carrier.vary,
        "find_tokens": carrier.tokens,
        "codec": codec,
        "header_value": codec.sealer(carrier.before, carrier.after),
        "serializer": serializer,
        "now": config.clock.now,
        "idles": config.idle > 0,
        "session_class": _session_class(config),
        "store": store,
        "cache": config.cache,
        "contents": _contents(config, path, serializer),
        "versioned": config.cache is not None or (store is not None and fits(store, Reloading)),
        "wanted": _wanted(config),
    }
    for name, value in settled.items():
        object.__setattr__(handler, name, value)


def _transport(config: Config, path: str) -> Transport:
    if config.server_only:
        return NoTransport(path)
    if config.header is not None:
        return HeaderTransport(config.header)
    return CookieTransport(config.policy, config.policy.name_for(config.name))


def _announcing_store(config: Config) -> "Store | None":
    """Return the store to use: one that announces what is changed."""
    store = config.store if config.store is not None else config.revocations
    return None if store is None else announced(store)


def _session_class(config: Config) -> "type[Session]":
    """Return the class that decides where a session of this handler is kept."""
    if config.server_only:
        return ServerOnlySession
    if config.store is not None:
        return StoredSession
    return CarriedSession if config.revocations is None else RevocableSession


def _codec(config: Config, path: str, serializer: Any) -> Remembered[Any]:
    if config.store is not None:
        return claim_tokens(config.keys, path)
    tokens = token_codec(config.keys, "session", path, sealed=config.encrypted, clock=config.clock)
    return carried_tokens(tokens, serializer.shared)


def _contents(config: Config, path: str, serializer: Any) -> Contents:
    """Return what reads and writes the fields in a store."""
    if type(serializer) is JsonSerializer and not config.encrypted:
        return PlainContents(serializer) if config.cache is None else CachedContents(serializer)
    return OpaqueContents(serializer, FieldSealer(config.keys, path, config.clock) if config.encrypted else None)


def _wanted(config: Config) -> "Callable[[Any], Iterable[tuple[str, int]]] | None":
    """Return what names the records that a verified token of this handler asks for, and their least versions."""
    if config.server_only:
        return None
    return marks_of if config.store is None else lambda claim: ((claim.handle, claim.version),)


def _ancestry(handler: Handler | None) -> Iterator[Handler]:
    """Yield the handler, its parent, and so on up to the root."""
    while handler is not None:
        yield handler
        handler = handler.parent
