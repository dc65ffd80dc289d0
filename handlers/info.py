"""What a store tells of sessions to whoever lists them: never an id, and nothing that works as a token."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from ..clock import FOREVER
from .ids import handle_text, named_handle, revoked_mark
from .metadata import Metadata

if TYPE_CHECKING:
    from ..records import Record
    from ..stores.protocol import Store
    from .handler import Handler

__all__ = [
    "ABOVE",
    "PARENT",
    "SUBJECT",
    "SessionInfo",
    "children_in",
    "handle_above",
    "lineage_of",
    "live_pages",
    "moment",
    "moment_of_end",
    "with_live_ancestors",
]

LISTED: Final = 1000
"""How many records are asked for at a time where all are wanted."""

PARENT: Final = "parent"
"""The label that says whose child a session is: its parent's handle, or that life of it."""

ABOVE: Final = "above"
"""The label that holds the parent's handle where ``PARENT`` holds something else."""

SUBJECT: Final = "subject"
"""The label that holds the user."""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One live session as others may see it; times are in UTC, and ``expires_at`` is None for no deadline.

    ``parent`` is the handle of the session that it was spawned from, None for a session of a root handler.
    """

    handle: str
    handler: str
    subject: str | None
    metadata: Metadata
    created: datetime
    seen: datetime
    expires_at: datetime | None
    parent: str | None = None

    @classmethod
    def of(cls, record: "Record") -> "SessionInfo":
        """Return what may be seen of a record."""
        return cls(
            record.handle,
            record.path,
            record.label.get(SUBJECT),
            Metadata.at(record.created, record.agent, record.address),
            moment(record.created),
            moment(record.seen),
            moment_of_end(record.ends),
            handle_above(record) or None,
        )


def live_pages(store: "Store", label: str, value: str) -> "Iterator[list[Record]]":
    """Yield page after page of the live records that have a label, in the order in which they got it."""
    after: str | None = None
    while True:
        records, after = store.find(label, value, after, LISTED)
        yield records
        if after is None:
            return


def children_in(store: "Store", lineage: str, ends: int) -> list[SessionInfo]:
    """Return what a store has of the children of a live session that ends then, newest first."""
    pages = live_pages(store, PARENT, lineage)
    return [SessionInfo.of(_ending(record, ends)) for page in pages for record in page][::-1]


def with_live_ancestors(handler: "Handler", records: "list[Record]") -> "list[Record]":
    """Return those of a handler's live records whose ancestors are live too, none ending later than they do.

    Of ancestors that clients carry only their list of revocations can be asked, if they have one.
    """
    above = handler.parent
    if above is None or above.store is None or not records:
        return records
    if above.config.store is None:
        marks = {under: revoked_mark(under) for under in map(handle_above, records)}
        listed = above.store.load_many(list(marks.values()))
        return [record for record in records if marks[handle_above(record)] not in listed]
    parents = above.store.load_many(list({handle_above(record) for record in records}))
    here = [parent for parent in parents.values() if parent.path == above.path]
    born = above.config.server_only
    alive = {lineage_of(parent, born=born): parent.ends for parent in with_live_ancestors(above, here)}
    return [_ending(record, alive[under]) for record in records if (under := record.label.get(PARENT, "")) in alive]


def _ending(record: "Record", ends: int) -> "Record":
    """Return the record as one that ends no later than this."""
    return record if record.own <= ends else record._replace(own=ends)


def handle_above(record: "Record") -> str:
    """Return the handle of the parent's record."""
    label = record.label
    return label.get(ABOVE) or label.get(PARENT, "")


def lineage_of(record: "Record", *, born: bool) -> str:
    """Return what a record's children know it by: its handle, or, where that can come again, this life of it."""
    if not born:
        return record.handle
    return handle_text(named_handle(b"life", record.handle.encode(), record.proof))


def moment(time: int) -> datetime:
    """Return a time in milliseconds since the epoch as a datetime in UTC."""
    return datetime.fromtimestamp(time / 1000, UTC)


def moment_of_end(time: int) -> datetime | None:
    """Return a deadline as a datetime in UTC, or None for none."""
    return None if time >= FOREVER else moment(time)
