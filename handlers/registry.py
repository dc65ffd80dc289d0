"""The registry: which handlers a request has, and its one session for each.

There is one registry in a request's environ, however many links the chain has, and one
commit for all its sessions. It holds no environ and no start_response, and its sessions do
not hold it, so a finished request is freed at once, without the garbage collector.
"""

from typing import TYPE_CHECKING, Final
from weakref import WeakMethod

from ..errors import UsageError
from .commit import committed
from .context import Context
from .environ import Environ
from .info import SessionInfo, children_in
from .loading import Batch
from .response import merged
from .server_only import ServerOnlySession
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..stores.protocol import Store
    from .handler import Handler
    from .transport import Header

__all__ = ["Linked", "Registry", "clash_between"]


class Linked(dict[str, "Handler"]):
    """The handlers of a chain, outermost first, by name, and what many requests need to know of them.

    ``sharing`` are those that load from one store together; ``apart`` are those whose sessions are kept elsewhere than
    their parents', by the parent's name.
    """

    __slots__ = ("apart", "sharing")

    def __init__(self, handlers: "Mapping[str, Handler]") -> None:
        """Find both out once for all requests."""
        super().__init__(handlers)
        self.apart: dict[str, list[Handler]] = {}
        for handler in handlers.values():
            if handler.parent is not None and handler.parent.config.store is not handler.config.store:
                self.apart.setdefault(handler.parent.name, []).append(handler)
        by_store: dict[int, list[Handler]] = {}
        for handler in handlers.values():
            if handler.store is not None and handler.wanted is not None:
                by_store.setdefault(id(handler.store), []).append(handler)
        self.sharing = {store: sharing for store, sharing in by_store.items() if len(sharing) > 1}


_UNLINKED: Final = Linked({})


class Registry:
    """The sessions of one request, by handler name."""

    __slots__ = ("__weakref__", "_context", "_sessions", "closed", "done", "linked")

    def enter(self, linked: Linked) -> None:
        """Begin with the handlers of the chain, outermost first, and no session."""
        self.linked = linked
        self.done = False
        self.closed = False
        self._sessions: dict[str, Session] = {}
        self._context: Context | None = None

    @classmethod
    def bare(cls) -> "Registry":
        """Return a registry for a request that passed no link: it takes any handler, and you commit it."""
        registry = cls()
        registry.enter(_UNLINKED)
        return registry

    @property
    def is_spent(self) -> bool:
        """Whether its request is over, or it was committed by hand and had nothing to tell the client.

        One that had is kept: a second answer for the same sessions would undo the first, so writes now raise.
        """
        return self.closed or (self.done and (self._context is None or not self._context.changed))

    def join(self, handlers: "Mapping[str, Handler]") -> None:
        """Add the handlers of an inner chain that the outer links could not see."""
        for handler in handlers.values():
            for other in self.linked.values():
                clash = None if other == handler else clash_between(handler, other)
                if clash is not None:
                    raise UsageError(clash)
        self.adopt(Linked({**self.linked, **handlers}))

    def adopt(self, linked: Linked) -> None:
        """Take these for the handlers of the chain, also for what was looked at before they were known."""
        self.linked = linked
        if self._context is not None and linked.apart:
            self._context.family = WeakMethod(self.kept_apart)  # Sessions must not hold us.

    def session(self, handler: "Handler", environ: Environ) -> Session:
        """Return the request's session of this handler; raise UsageError if it is not linked while others are."""
        name = handler.name
        session = self._sessions.get(name)
        if self.linked.get(name) is not handler:
            self._check_linked(handler)
        if session is not None:
            return session
        if handler.session_class is ServerOnlySession and handler.config.fixed_id is None:
            raise UsageError(
                f"{handler.path!r} is server-only, so no request has a session of it: use load_by_id() or "
                "generate_by_id(), or add fixed_id()."
            )
        parent = None if handler.parent is None else self.session(handler.parent, environ)
        context = self._context
        if context is None:
            get = environ.get
            context = Context()
            context.enter(get("HTTP_USER_AGENT", ""), get("REMOTE_ADDR", ""), self.done)
            if self.linked.apart:
                context.family = WeakMethod(self.kept_apart)
            self._context = context  # Not before: a signal may stop us anywhere, and what is known here must be whole.
        session = handler.session_class()
        session.enter(handler, context, environ.get(handler.transport.key, ""), parent)
        if handler.store is not None:
            session.attach(self._batch(handler.store, context, environ) if self.linked.sharing else None)
        self._sessions[name] = session
        return session

    def commit(self) -> "list[Header]":
        """Return the response headers that make every change of this request last; calling it again repeats them."""
        context = self._context
        answers = [] if context is None else committed(self._sessions.values(), context, failed=False)
        self.done = True
        if context is not None:
            context.done = True
        return answers

    def headers(self, environ: Environ, status: str, headers: "list[Header]") -> "list[Header]":
        """Return the application's response headers with ours among them: the response begins now.

        After a 5xx the data is dropped; revocations and renewals last.
        """
        context = self._context
        if context is None:
            self.done = True
            return headers
        if context.ended:
            self._follow_the_ended(environ)
        if not context.changed:
            answers = []
        elif len(self._sessions) != 1 or context.replacing or context.merging or context.batches:
            answers = committed(self._sessions.values(), context, failed=status.startswith("5"))
        else:  # Nearly every request that writes: its commit has to do with no other.
            [session] = self._sessions.values()
            answer = session.answer(status.startswith("5"))
            answers = [] if answer is None else [(session.handler.transport.response_header, answer)]
        self.done = context.done = True
        return merged(headers, answers, context.vary) if context.vary else headers

    def salvage(self) -> "list[Header]":
        """Return the headers that a refusal must send in place of the application's response: they are all there is.

        After a commit they repeat what lasts of it. Of a commit that failed they save renewals, and end what began.
        """
        context = self._context
        if context is None:
            return []
        if self.done:
            return committed(self._sessions.values(), context, failed=True)
        for session in self._sessions.values():
            session.abandon()
        salvaged = ((session, session.salvage()) for session in self._sessions.values())
        return [(session.handler.transport.response_header, token) for session, token in salvaged if token is not None]

    def end(self, *, failed: bool = False) -> None:
        """Close the request. What stored sessions changed after the headers is written first, unless it failed."""
        context = self._context
        self.closed = True
        if context is None:
            return
        if context.late and self.done and not failed:
            context.late = False
            for session in self._sessions.values():
                session.finish()
        context.over = True
        if context.merging:
            for session in self._sessions.values():
                session.forget_merged()

    def kept_apart(self, parent: "Handler", lineage: str | None, ends: int, source: str) -> "list[SessionInfo] | None":
        """Return the live children of a session that are in other stores, or in this request; None for no such handler.

        A child that travels in another header than its parent is known once its handler was asked for it.
        """
        handlers = self.linked.apart.get(parent.name)
        if handlers is None:
            return None
        found: list[SessionInfo] = []
        for handler in handlers:
            store, key = handler.config.store, handler.transport.key
            if store is not None:
                found += [] if lineage is None else children_in(store, lineage, ends)
            elif handler.name in self._sessions or key == parent.transport.key:
                child = self.session(handler, {key: source})
                found += [child.info()] if child.is_live() else []
        return found

    def _batch(self, store: "Store", context: Context, environ: Environ) -> Batch | None:
        """Return what loads in one trip for all handlers that read from this store, if there are several."""
        sharing = self.linked.sharing.get(id(store))
        if sharing is None:
            return None
        if context.batches is None:
            context.batches = {}
        batch = context.batches.get(id(store))
        if batch is None:
            wanted = [(handler, environ.get(handler.transport.key, "")) for handler in sharing]
            batch = context.batches[id(store)] = Batch(store, wanted)
        return batch

    def _check_linked(self, handler: "Handler") -> None:
        """Let an equal handler through, and in a bare registry any; raise UsageError for another."""
        if self.linked:
            if self.linked.get(handler.name) != handler:
                raise UsageError(
                    f"The handler {handler.path!r} is not linked in front of this application: add it to the chain."
                )
        elif handler.name in self._sessions and self._sessions[handler.name].handler != handler:
            raise UsageError(f"Another handler named {handler.name!r} is used in this request: rename one.")

    def _follow_the_ended(self, environ: Environ) -> None:
        """Look at the linked children of sessions that ended, so that their cookies go with them."""
        for handler in self.linked.values():
            parent = None if handler.parent is None else self._sessions.get(handler.parent.name)
            if parent is not None and parent.has_ended:
                self.session(handler, environ).is_live()


def clash_between(handler: "Handler", other: "Handler") -> str | None:
    """Say what two handlers of one request must not share but do, or return None."""
    if other.name == handler.name:
        return f"Two handlers of one request are named {handler.name!r}: rename one."
    if other.transport.place == handler.transport.place:
        return (
            f"{handler.path!r} and {other.path!r} both use {handler.transport.place}: "
            "give one of them its own with_cookie() or with_header()."
        )
    return None
