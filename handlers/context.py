"""What the sessions of one request share, and the states that each of them can be in.

UNSEEN    nobody has looked yet, nothing was read
ABSENT    the request has no live session here; the first write begins one
EXPIRED   likewise, and the client's token verified, so that it may be deleted
LIVE      it came with the request, or was begun in it
ORPHANED  its parent ended in this request
REVOKED   it was ended in this request
LOST      the store refused a write, because another request had ended or renewed it
AWAY      nobody can say, because the store does not answer
MERGED    its data went into another session of this request, whose commit ends it
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias
from weakref import WeakMethod

if TYPE_CHECKING:
    from .handler import Handler
    from .info import SessionInfo
    from .loading import Batch

__all__ = [
    "ABSENT", "AWAY", "BEGUN", "DATA", "ENDED", "EXPIRED", "IDENTITY", "KEY", "LIVE", "LOST", "MERGED", "ORPHAN",
    "ORPHANED", "RENEWED", "REVOKED", "TOUCHED", "UNSEEN", "UNSURE", "UNTOLD", "Context",
]  # fmt: skip

UNSEEN: Final = 0
ABSENT: Final = 1
EXPIRED: Final = 2
LIVE: Final = 3
ORPHANED: Final = 4
REVOKED: Final = 5
LOST: Final = 6
AWAY: Final = 7
MERGED: Final = 8

UNSURE: Final = frozenset({LOST, AWAY})
"""The states in which the session may well live on for another request, so that the client forgets nothing."""

# What the client's token lacks, as bits.

DATA: Final = 1
"""Keys, flash messages, the user."""

IDENTITY: Final = 2
"""The id, or when it ends."""

RENEWED: Final = 4
"""The id, of a session that came with the request."""

BEGUN: Final = 8
"""All of it: the session was begun in this request."""

KEY: Final = 16
"""A signature by the newest key."""

ENDED: Final = 32
"""That a session of before, whose token the client holds, was revoked or had expired when this one began."""

UNTOLD: Final = 64
"""Nothing: it is listeners who have not been told yet that the session began, or has another id."""

TOUCHED: Final = 128
"""What IDENTITY says, which is what a look does by itself: nobody asked for it."""

ORPHAN: Final = 256
"""That a session of before, whose token the client holds, ended with its parent in this request."""


Family: TypeAlias = "Callable[[Handler, str | None, int, str], list[SessionInfo] | None]"
"""Returns the live children that are kept elsewhere than their parent, or None where no handler keeps any so.

It takes the parent's handler, what its children know it by (None unless it is live), when it ends, and the text with
its token.
"""


class Context:
    """What the sessions of one request share. It knows no session, no environ and no start_response."""

    __slots__ = (
        "address", "agent", "batches", "changed", "done", "ended", "family", "late", "merging", "over", "replacing",
        "turn", "vary",
    )  # fmt: skip

    agent: str
    address: str

    @classmethod
    def apart(cls) -> "Context":
        """Return the context of a session outside any request."""
        context = cls()
        context.enter("", "", done=False)
        return context

    def enter(self, agent: str, address: str, done: bool) -> None:  # noqa: FBT001 - positional, for speed
        """Hold the user agent, the ip address, and whether the response headers are out."""
        self.agent = agent
        self.address = address
        self.done = done
        # Whether any session may have something to tell the client: true, and a Rehearsal's mark until the next change.
        self.changed: object = False
        self.turn = 0  # Counts the lives that began or ended in this request, so that children notice.
        self.ended = False  # Whether any session that came with the request is dead by now.
        self.vary = ""  # The request headers that the response depends on, because a session was looked at.
        self.batches: dict[int, Batch] | None = None  # What was read from each store.
        self.merging = False  # Whether any session has something to end once all are written.
        self.replacing = False  # Whether any session has something to end before others are written.
        self.over = False  # Whether the request has ended, so that nothing more can be written in it.
        self.family: WeakMethod[Family] | None = None  # Set where a child may be kept apart from its parent.
        self.late = False  # Whether anything was written to a stored session since the headers went out.
