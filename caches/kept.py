"""A record as a cache keeps it: small, and made whole again by each request that uses it, faster than unpacked."""

import sys
from struct import Struct
from typing import Final

from ..records import PROOF_BYTES, Record, check_proof

__all__ = ["Kept", "opened"]

_NUMBERS: Final = Struct(f"8q{PROOF_BYTES}s")
"""What has one size in every record; it never leaves this process."""


class Kept:
    """One entry: a record, its version, and until when it may be served, by the cache's own reckoning.

    It answers for the record it holds, so it can be used in its place; whoever uses more than a little of it takes
    ``record()`` once. Nothing of it can be changed by whoever gets it.
    """

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

    def __init__(self, record: Record, until: float) -> None:
        """Take the record apart; raise UsageError for a proof that is not 32 bytes."""
        check_proof(record.proof)
        numbers = _NUMBERS.pack(
            record.created, record.absolute, record.own, record.idle, record.seen, record.authenticated, record.grace,
            record.form, record.proof,
        )  # fmt: skip
        for name, value in (
            ("handle", record.handle),
            ("version", record.version),
            ("until", until),
            ("_numbers", numbers),
            # Handlers have one path, and clients few agents: many entries share each.
            ("path", sys.intern(record.path)),
            ("agent", sys.intern(record.agent)),
            ("address", record.address),
            ("labels", record.labels),
            ("previous", record.previous),
            ("fields", record.fields[:1] + record.fields[1:]),  # a copy, and so of exactly this size
        ):
            self._set(name, value)

    def end(self, until: float) -> None:
        """Be served no longer than until then."""
        self._set("until", min(self.until, until))

    def __setattr__(self, name: str, value: object) -> None:
        """Raise AttributeError: others get the same entry."""
        raise AttributeError(
            f"What a cache keeps cannot be changed: {name} of a record is set by apply(), in its store."
        )

    _set = object.__setattr__

    @property
    def size(self) -> int:
        """How many bytes the record's contents have."""
        texts = self.path, self.agent, self.address, self.labels, self.previous, self.fields
        return _NUMBERS.size + sum(map(len, texts))

    def record(self) -> Record:
        """Return the record."""
        created, absolute, own, idle, seen, authenticated, grace, form, proof = _NUMBERS.unpack(self._numbers)
        return tuple.__new__(  # as _make() does, without a frame of its own
            Record,
            (self.handle, self.path, created, absolute, own, idle, proof, seen, self.version, authenticated,
             self.previous, grace, self.labels, self.agent, self.address, self.fields, form),
        )  # fmt: skip

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
    if not _name.startswith("_") and _name not in Kept.__slots__:
        setattr(Kept, _name, _answering(_name))
