"""A record as a cache keeps it: small, and made whole again for requests that use it, faster than unpacked."""

import sys
from struct import Struct
from typing import Final, Self

from ..records import PROOF_BYTES, Record, check_proof

__all__ = ["Kept", "opened"]

_NUMBERS: Final = Struct(f"8q{PROOF_BYTES}s")
"""What has one size in every record; it never leaves this process."""

MOST_WHOLE: Final = 1024
"""How many records are kept whole for the next requests, which takes half a megabyte where sessions are small."""

LONGEST_WHOLE: Final = 4096
"""How many bytes of fields such a record may have: it stays when the cache that it comes from has forgotten it."""

_WHOLE: Final[list[tuple[object, Record]]] = [(None, Record("", "", 0, 0, 0, 0, b"", 0))] * MOST_WHOLE
"""Entries with the records that were made of them last, each in the place of its handle. It takes no lock."""


class _Unsealed:
    """An entry while it is made, when nobody else has it: its attributes are set as fast as any."""

    __slots__ = (
        "_numbers", "address", "agent", "fields", "handle", "labels", "path", "previous", "until", "version",
    )  # fmt: skip

    address: str
    agent: str
    fields: bytes
    handle: str
    labels: str
    path: str
    previous: bytes
    until: float
    version: int
    _numbers: bytes


class Kept(_Unsealed):
    """One entry: a record, its version, and until when it may be served, by the cache's own reckoning.

    It answers for the record it holds, so it can be used in its place; whoever uses more than a little of it takes
    ``record()`` once. Nothing of it can be changed by whoever gets it.
    """

    __slots__ = ()

    def __new__(cls, record: Record, until: float) -> Self:
        """Take the record apart; raise UsageError for a proof that is not 32 bytes."""
        (handle, path, created, absolute, own, idle, proof, seen, version, authenticated, previous, grace, labels,
         agent, address, fields, form) = record  # fmt: skip
        check_proof(proof)
        made = _Unsealed()
        made.handle, made.version, made.until = handle, version, until
        made._numbers = _NUMBERS.pack(created, absolute, own, idle, seen, authenticated, grace, form, proof)  # noqa: SLF001 - our own
        # Handlers have one path, and clients few agents: many entries share each.
        made.path, made.agent = sys.intern(path), sys.intern(agent)
        made.address, made.labels, made.previous = address, labels, previous
        made.fields = fields[:1] + fields[1:]  # a copy, and so of exactly this size
        made.__class__ = cls
        return made  # type: ignore[return-value]

    def end(self, until: float) -> None:
        """Be served no longer than until then."""
        object.__setattr__(self, "until", min(self.until, until))

    def __setattr__(self, name: str, value: object) -> None:
        """Raise AttributeError: others get the same entry."""
        raise AttributeError(
            f"What a cache keeps cannot be changed: {name} of a record is set by apply(), in its store."
        )

    def __delattr__(self, name: str) -> None:
        """Raise AttributeError as well."""
        self.__setattr__(name, None)

    @property
    def size(self) -> int:
        """How many bytes the record's contents have."""
        texts = len(self.path) + len(self.agent) + len(self.address) + len(self.labels)
        return _NUMBERS.size + texts + len(self.previous) + len(self.fields)

    def record(self) -> Record:
        """Return the record. A small one is made once for several requests, if these come soon after one another."""
        place = hash(self.handle) % MOST_WHOLE
        kept, whole = _WHOLE[place]
        if kept is self:
            return whole
        created, absolute, own, idle, seen, authenticated, grace, form, proof = _NUMBERS.unpack(self._numbers)
        whole = tuple.__new__(  # as _make() does, without a frame of its own
            Record,
            (self.handle, self.path, created, absolute, own, idle, proof, seen, self.version, authenticated,
             self.previous, grace, self.labels, self.agent, self.address, self.fields, form),
        )  # fmt: skip
        if len(self.fields) <= LONGEST_WHOLE:
            _WHOLE[place] = self, whole
        return whole

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same record."""
        if isinstance(other, Kept):
            other = other.record()
        return isinstance(other, Record) and self.record() == other

    def __hash__(self) -> int:
        """Hash as the record does."""
        return hash(self.record())


def opened(found: Record | Kept | None) -> Record | None:
    """Return the record that a cache has found, whole; None if it has found none."""
    return found.record() if isinstance(found, Kept) else found


def _answering(name: str) -> property:
    return property(lambda kept: getattr(kept.record(), name), doc=f"The record's ``{name}``.")


# Not by __getattr__: a class that has one is slow at every attribute it has.
for _name in vars(Record):
    if not _name.startswith("_") and _name not in _Unsealed.__slots__:
        setattr(Kept, _name, _answering(_name))
