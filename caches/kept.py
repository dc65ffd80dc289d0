"""A record as a cache keeps it: packed into bytes of exactly its size, and unpacked by each request that uses it."""

from ..records import Record, pack, unpack

__all__ = ["Kept"]


class Kept:
    """One entry: a packed record, its version, and until when it may be served, by the cache's own reckoning.

    It answers for the record it holds, so it can be used in its place; whoever uses more than a little of it takes
    ``record()`` once. Nothing of it can be changed by who gets it.
    """

    __slots__ = ("handle", "raw", "until", "version")

    handle: str
    raw: bytes
    until: float
    version: int

    def __init__(self, record: Record, until: float) -> None:
        """Pack the record."""
        self._set("handle", record.handle)
        self._set("raw", pack(record))
        self._set("until", until)
        self._set("version", record.version)

    def end(self, until: float) -> None:
        """Be served no longer than until then."""
        self._set("until", min(self.until, until))

    def __setattr__(self, name: str, value: object) -> None:
        """Raise AttributeError: others get the same entry."""
        raise AttributeError(
            f"What a cache keeps cannot be changed: {name} of a record is set by apply(), in its store."
        )

    _set = object.__setattr__

    def record(self) -> Record:
        """Return the record; raise ValueError for garbage, which memory of our own never is."""
        record = unpack(self.handle, self.raw)
        if record is None:
            raise ValueError("What a cache has kept is no record.")
        return record

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same record."""
        if isinstance(other, Kept):
            other = other.record()
        return isinstance(other, Record) and self.record() == other

    def __hash__(self) -> int:
        """Hash as the record does."""
        return hash(self.record())


def _answering(name: str) -> property:
    return property(lambda kept: getattr(kept.record(), name), doc=f"The record's ``{name}``.")


# Not by __getattr__: a class that has one is slow at every attribute it has.
for _name in vars(Record):
    if not _name.startswith("_") and _name not in Kept.__slots__:
        setattr(Kept, _name, _answering(_name))
