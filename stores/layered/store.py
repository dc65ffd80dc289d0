"""A store in front of another: the primary is the truth, the front remembers for a few seconds what the primary said.

Every change goes to the primary first, and the verb returns what the primary answered. Then the handle is dropped from
the front, also after a change that failed, for it may have been made. How the front is kept from ever undoing a
change, and from bringing the dead back, is told in ``front``. What follows from it:

* **In this store object** a change is seen by everything that begins after it has returned, whatever the front does.
* **Elsewhere too**, if the front took the drop and has kept it, for the drop comes before the answer: who comes with
  the cookie of a completed write finds nothing in the front and is read from the primary. ``load`` needs no version.
* **For who made the change** at once, on any process: the client's token has the version of its last write, and what
  is older is read anew (``reload``).
* **For others elsewhere after at most** ``max_staleness``, if the front failed or lost what it had; and a cache of the
  handler in front of this store keeps what it read for its own ``max_staleness`` on top. Machines whose clocks differ
  add the difference.
* **While the front fails**, every verb asks the primary. At most one call of a verb waits for the front, and one that
  was slow to fail is left alone for a second.
* **While the primary fails**, a copy that is fresh is still served, as it would be if the primary were up: that needs
  no primary, and is never more outdated than promised. All else raises StoreUnavailable, and nothing is written to the
  front alone.
* **That the primary has no record** is kept as well. ``create`` drops it before it returns.

Only whole records are kept. Labels are looked up in the primary.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ...caches.protocol import MAX_STALENESS
from ...clock import Clock, Duration, milliseconds
from ...errors import ConfigError, StoreError
from ...keys import Keys
from ...records import Changes, Page, Record, Version, narrowed
from ..announcing import Announcing, OnChange, Stop
from ..protocol import PAGE, Confirming, Pipelining, Reloading, Store, Write, fits
from .front import Front

__all__ = ["LayeredStore"]


class LayeredStore(Announcing):
    """Reads through a front that may fail, forget and be shared by any number of processes, and writes to a primary.

    Every process that writes to the primary does so through a LayeredStore over the same front; what is written past it
    is seen after ``max_staleness`` seconds. ``name`` keeps the layers of different primaries apart in one front. With
    ``keys``, those of a handler for example, copies are signed, and whoever can write to the front alone can make up no
    session. It has the optional verbs that the primary has, and ``reload``. Raises ConfigError for stores of different
    clocks, a staleness that is not above 0, and a bad name.
    """

    def __init__(  # noqa: PLR0913 - each setting is a keyword, and all have a default
        self,
        primary: Store,
        front: Store,
        *,
        max_staleness: Duration = MAX_STALENESS,
        name: str = "front",
        keys: Keys | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Stand in front of these two; ``clock``, if given, is theirs."""
        super().__init__()
        for store in (primary, front):
            if not fits(store, Store):
                raise ConfigError(f"A LayeredStore is made of two stores, and a {type(store).__name__} is none.")
        if primary is front:
            raise ConfigError("A LayeredStore needs two stores: what is in front of itself saves no trip.")
        if front.clock != primary.clock or clock not in (None, primary.clock):
            raise ConfigError("The two stores of a LayeredStore tell the time by different clocks: pass one to both.")
        staleness = milliseconds(max_staleness)
        if staleness <= 0:
            raise ConfigError("max_staleness is above 0 seconds: if nothing may be outdated, take the primary alone.")
        self.clock = primary.clock
        self.largest = primary.largest
        self.max_staleness = staleness / 1000
        self.primary = primary
        self.front = front
        self._front = Front(front, staleness, name, keys)
        self._reload = primary.reload if fits(primary, Reloading) else primary.load
        if fits(primary, Confirming):
            self.confirm = primary.confirm

    def __getattr__(self, name: str) -> Any:
        """Have ``apply_many`` if the primary has it. Kept in an attribute it would hold us, and with us connections."""
        if name == "apply_many" and fits(self.__dict__.get("primary"), Pipelining):
            return self._apply_many
        raise AttributeError(f"A {type(self).__name__} over this primary has no {name}.", name=name, obj=self)

    # -- reading ---------------------------------------------------------------------------

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record | None:
        """Return the live record or None, from the front if that knows."""
        look = self._front.look(handle)
        if look.is_known:
            return None if look.record is None else narrowed(look.record, keys)
        record = self.primary.load(handle, keys)
        if look.lease is not None and keys is None:
            self._front.fill(handle, record, look.lease)
        return record

    def load_many(self, handles: Sequence[str]) -> dict[str, Record]:
        """Return the live records among these, in one trip to the front and at most one to the primary."""
        looks = self._front.look_many(handles)
        missing = [handle for handle, look in looks.items() if not look.is_known]
        loaded = self.primary.load_many(missing) if missing or not looks else {}
        for handle in missing:
            lease = looks[handle].lease
            if lease is not None and not self._front.fill(handle, loaded.get(handle), lease):
                break
        found = {handle: look.record if look.is_known else loaded.get(handle) for handle, look in looks.items()}
        return {handle: record for handle, record in found.items() if record is not None}

    def reload(self, handle: str) -> Record | None:
        """Return the live record from the primary, or None; what the front has of it is not served here any more."""
        self._front.distrust(handle)
        return self._reload(handle)

    def find(self, label: str, value: str, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records that have the label, from the primary."""
        return self.primary.find(label, value, after, limit)

    def count(self, label: str, *values: str) -> int:
        """Return how many live records the primary has with the label and any of these values."""
        return self.primary.count(label, *values)

    def scan(self, after: str | None = None, limit: int = PAGE) -> Page:
        """Return live records of the primary from behind ``after`` on."""
        return self.primary.scan(after, limit)

    # -- changing one record ---------------------------------------------------------------

    def create(self, record: Record) -> None:
        """Insert the record into the primary; raise Conflict if its handle lives there."""
        try:
            self.primary.create(record)
        finally:
            self._drop(record.handle, is_new=True)

    def apply(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """Make all the changes in the primary, or none."""
        try:
            return self.primary.apply(handle, proof, changes)
        finally:
            self._drop(handle)

    def _apply_many(self, writes: Sequence[Write]) -> list[Version | Exception]:
        """Do what as many calls of ``apply`` do, in one trip to the primary."""
        try:
            return self.primary.apply_many(writes)  # type: ignore[attr-defined, no-any-return]
        finally:
            handles = [handle for handle, _, _ in writes]
            self._front.drop_all(handles)
            self.announce_all(handles)

    def revoke(self, handle: str) -> bool:
        """End the session in the primary; return whether it was live."""
        try:
            return self.primary.revoke(handle)
        finally:
            self._drop(handle)

    def _drop(self, handle: str, *, is_new: bool = False) -> None:
        """Drop first, then announce: a cache that is told reads no older copy."""
        self._front.drop(handle, is_new=is_new)
        if self._listeners:
            self.announce(handle)

    # -- changing many records -------------------------------------------------------------

    def relabel(self, label: str, old: str, new: str) -> int:
        """Give every live record of the old value the new one, in the primary."""
        with self._dropping((label, old), (label, new)):
            return self.primary.relabel(label, old, new)

    def revoke_where(self, label: str, value: str) -> int:
        """Revoke every record that has the label, in the primary."""
        with self._dropping((label, value)):
            return self.primary.revoke_where(label, value)

    def sweep_idle(self, older_than: Duration, limit: int = 1000) -> int:
        """Remove records of the primary that were last seen longer ago than this many seconds."""
        with self._dropping():
            return self.primary.sweep_idle(older_than, limit)

    @contextmanager
    def _dropping(self, *labelled: tuple[str, str]) -> Iterator[None]:
        """Drop what is changed within.

        A primary that announces its changes tells which records these are. Of another one those are dropped that have
        one of the labels before or after, and what is not found, because others change it meanwhile, is not served here
        either; it is elsewhere, for ``max_staleness``.
        """
        listen: Callable[[OnChange], Stop] | None = getattr(self.primary, "listen", None)
        changed: list[str | None] = [] if listen else [None, *self._labelled(labelled)]
        stop = listen(changed.append) if listen else lambda: None
        try:
            yield
        finally:
            stop()
            with suppress(StoreError):
                changed += () if listen else self._labelled(labelled)
            self._drop_all(dict.fromkeys(changed))

    def _labelled(self, labelled: Iterable[tuple[str, str]]) -> list[str]:
        """Return the handles of all live records that have one of the labels."""
        handles = []
        for label, value in labelled:
            page = self.primary.find(label, value)
            handles += [record.handle for record in page.records]
            while page.after is not None:
                page = self.primary.find(label, value, page.after)
                handles += [record.handle for record in page.records]
        return handles

    def _drop_all(self, changed: Iterable[str | None]) -> None:
        if None in changed:
            self._front.distrust(None)
        self._front.drop_all([handle for handle in changed if handle is not None])
        self.announce_all(changed)

    # -- the rest --------------------------------------------------------------------------

    def sweep(self, limit: int = 1000) -> int:
        """Remove records of the primary that expired an hour ago or more; what expired so in the front, goes too."""
        removed = self.primary.sweep(limit)
        self._front.sweep(limit)
        return removed

    def watch(self, on_change: OnChange) -> Stop:
        """Watch the primary. What is announced is at once served to nobody here from an older copy."""
        watchers = Announcing()
        watchers.listen(on_change)

        def changed(handle: str | None) -> None:
            self._front.distrust(handle)
            watchers.announce(handle)

        return self.primary.watch(changed)

    def close(self) -> None:
        """Close both stores."""
        self._front.close()
        try:
            self.primary.close()
        finally:
            self.announce(None)
            self._listeners.clear()
