"""What a store promises. Each sentence here is a case of ``sessiontree.stores.conformance``.

A store is the authority: what it acknowledged stays, and what it revoked never comes back. It is used by any number
of threads at once, and, if its engine has several processes, by those too. It decides by its own ``clock``.

Every verb raises StoreUnavailable while its engine does not answer, which is never the same as "not there", and
UsageError once the store is closed. A handle is the str of ``Session.handle``, and any str may be asked for.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol, TypeAlias, TypeGuard, TypeVar, runtime_checkable

from ..clock import Clock, Duration
from ..records import Changes, Page, Record, Version

__all__ = [
    "OPTIONAL",
    "PAGE",
    "SWEEP_MARGIN_MS",
    "Confirming",
    "Pipelining",
    "Reloading",
    "Store",
    "Write",
    "fits",
    "missing",
]

PAGE: Final = 100
"""How many records a page has, unless the caller says otherwise."""

SWEEP_MARGIN_MS: Final = 3_600_000
"""How long a record must have expired before a sweep removes it, for the clocks of several machines differ."""

OPTIONAL: Final = frozenset({"watch"})
"""What a handler's store may go without: who asks for the feed gets NotImplementedByStore."""

Write: TypeAlias = tuple[str, bytes, Changes]
"""What ``apply`` takes."""

_P = TypeVar("_P")


def fits(candidate: object, protocol: type[_P]) -> TypeGuard[_P]:
    """Tell whether an object has what one of these protocols names and is not optional, be it by ``__getattr__``.

    From Python 3.12 on ``isinstance()`` no longer asks that, and a store may well stand behind somebody's proxy.
    """
    return not isinstance(candidate, type) and not missing(candidate, protocol, OPTIONAL)


def missing(candidate: object, protocol: type, optional: Collection[str] = ()) -> list[str]:
    """Return, in order, what one of these protocols names and an object has not, but for what it may go without."""
    return sorted(name for name in _names(protocol).difference(optional) if not hasattr(candidate, name))


def _names(protocol: type) -> frozenset[str]:
    """Return what a protocol and those that it is made of name."""
    parts = [vars(base) | base.__annotations__ for base in protocol.__mro__ if getattr(base, "_is_protocol", False)]
    return frozenset(name for part in parts for name in part if not name.startswith("_"))


@runtime_checkable
class Store(Protocol):
    """Remembers records of sessions."""

    clock: Clock
    """What decides whether a record is live: now < each of its deadlines."""

    largest: int
    """How many bytes the packed fields of one record may take; RecordTooLarge above it, and nothing is written."""

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record | None:
        """Return the live record, with all its fields or only those of these keys; None if there is none.

        Absent, expired and garbage are all None. Expiry is checked here, whatever sweeps, and seen expiry is
        final: the record is deleted, if its version and deadlines are still the same. A record that a newer
        release wrote is StoreUnavailable.
        """
        ...

    def load_many(self, handles: Sequence[str]) -> dict[str, Record]:
        """Return the live records among these by handle, in one round trip; else as ``load``."""
        ...

    def create(self, record: Record) -> None:
        """Insert the record, with its labels; raise Conflict, and change nothing, if the handle exists and is live."""
        ...

    def apply(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """Make all the changes in one atomic step, or none; return the new version.

        Raises SessionGone if there is no live record, or ``proof`` is not its current one; CompareFailed if ``expects``
        does not hold; TypeError for an increment of what is no integer. Fields that are not named stay as they are.
        The version grows by one, but not when only deadlines move.
        """
        ...

    def revoke(self, handle: str) -> bool:
        """End the session for every later verb; return whether it was live. Revoking again is fine."""
        ...

    def find(self, label: str, value: str, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records that have the label, in the order in which they got it, from behind ``after`` on."""
        ...

    def count(self, label: str, *values: str) -> int:
        """Return how many live records have the label with any of these values; no values count none."""
        ...

    def relabel(self, label: str, old: str, new: str) -> int:
        """Give every live record of the old value the new one; return how many there were."""
        ...

    def revoke_where(self, label: str, value: str) -> int:
        """Revoke every record that has the label; return how many were live."""
        ...

    def scan(self, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records from behind ``after`` on.

        One that lives through the whole scan comes once; others may come or not.
        """
        ...

    def sweep(self, limit: int = 1000) -> int:
        """Remove at most this many records that expired an hour ago or more; return how many.

        A record that was prolonged meanwhile stays. Several processes may sweep at once.
        """
        ...

    def sweep_idle(self, older_than: Duration, limit: int = 1000) -> int:
        """Remove at most this many records last seen more than ``older_than`` seconds ago; return how many."""
        ...

    def watch(self, on_change: Callable[[str | None], object]) -> Callable[[], None]:
        """Call ``on_change(handle)`` after changes, ``on_change(None)`` if the feed was lost; return what stops it.

        Optional: raises NotImplementedByStore where there is no feed.
        """
        ...

    def close(self) -> None:
        """Let go of the engine. Closing again is fine."""
        ...


@runtime_checkable
class Pipelining(Store, Protocol):
    """A store that can make several writes in one round trip; the sessions of one request are written so."""

    def apply_many(self, writes: Sequence[Write]) -> list[Version | Exception]:
        """Do what as many calls of ``apply`` do, in this order; return for each its version or what it would raise.

        One that fails hinders no other. Raises StoreUnavailable if nobody can say what was done.
        """
        ...


@runtime_checkable
class Reloading(Protocol):
    """What a store has besides if ``load`` may answer what is no longer so."""

    def reload(self, handle: str) -> Record | None:
        """Return the live record as it is now, or None.

        Asked for where a client brings the version of a later write than the record that was loaded.
        """
        ...


@runtime_checkable
class Confirming(Protocol):
    """What a store has besides if it waits until others confirm what it wrote, such as replicas."""

    def confirm(self) -> None:
        """Return once all that was written before is confirmed; raise StoreUnavailable if it is not in time.

        Asked for where a revocation finds nothing to end: an earlier one may have ended it without being sure.
        """
        ...
