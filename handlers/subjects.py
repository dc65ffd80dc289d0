"""What a handler knows of the sessions of its users: who is logged in where, how to end that, and how many may be.

Everything here goes by the label that ``bind()`` writes, and costs what the sessions of that one user cost, however
many the store has. The order is the one in which the store's engine bound them, which no clock can disturb.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..clock import FOREVER
from ..errors import StoreError, UsageError
from ..stores.protocol import Confirming, Reloading, fits
from .events import emit
from .info import SUBJECT, live_pages, with_live_ancestors

if TYPE_CHECKING:
    from ..records import Record
    from ..stores.protocol import Store
    from .config import Limit
    from .handler import Handler

__all__ = ["end_all", "end_one", "has_room", "live_sessions", "sweep", "sweep_expired"]


def live_sessions(handler: "Handler", store: "Store", subject: str) -> "list[Record]":
    """Return a subject's live sessions of one handler, the one that was bound first at the head.

    Those whose ancestors are dead are so for good: they are removed on the way, as a load removes what has expired.
    """
    found = [record for page in live_pages(store, SUBJECT, _checked(subject)) for record in page]
    mine = [record for record in found if record.path == handler.path]
    live = with_live_ancestors(handler, mine)
    _remove_orphans(store, mine, live)
    return live


def _remove_orphans(store: "Store", found: "list[Record]", live: "list[Record]") -> int:
    """Remove those that were found and are not live; return how many. If the store fails, another look does it."""
    if len(found) == len(live):
        return 0
    alive, removed = {record.handle for record in live}, 0
    with suppress(StoreError):
        for record in found:
            removed += record.handle not in alive and store.revoke(record.handle)
    return removed


def sweep(handler: "Handler", store: "Store") -> int:
    """Remove from a store what has expired, and a handler's sessions whose ancestors are dead; return how many."""
    removed = sweep_expired(store)
    if handler.parent is None or handler.parent.config.store is None:
        return removed
    after: str | None = None
    while True:
        page, after = store.scan(after)
        mine = [record for record in page if record.path == handler.path]
        removed += _remove_orphans(store, mine, with_live_ancestors(handler, mine))
        if after is None:
            return removed


def sweep_expired(store: "Store") -> int:
    """Remove from a store what has expired, whosever it is; return how many."""
    removed = 0
    while batch := store.sweep():
        removed += batch
    return removed


# -- ending ----------------------------------------------------------------------------------


def end_all(handler: "Handler", store: "Store", subject: str, kept: str | None) -> int:
    """End every session of a subject but the one to keep, until none bound at or before the start is left.

    Whatever is listed at first is ended however it is stamped, for the clocks of several machines differ.
    """
    start, latest, ended = handler.now(), FOREVER, 0
    while True:
        doomed = [
            record
            for record in live_sessions(handler, store, subject)
            if record.handle != kept and record.authenticated <= latest
        ]
        ended += sum(_ended(handler, store, record, "everywhere") for record in doomed)
        if not doomed:
            _confirm(store)
            return ended
        latest = start


def end_one(handler: "Handler", store: "Store", handle: str, subject: str | None) -> bool:
    """End the session of a handle, if it is this handler's and the subject's; return whether it was live."""
    record = store.load(handle, ()) if type(handle) is str else None
    if record is None and type(handle) is str and fits(store, Reloading):
        record = store.reload(handle)
    if record is None:
        _confirm(store)
    if record is None or record.path != handler.path or subject not in {None, record.label.get(SUBJECT)}:
        return False
    was_live = bool(with_live_ancestors(handler, [record]))
    return _ended(handler, store, record, None) and was_live


def _confirm(store: "Store") -> None:
    """Be sure of what an earlier call may have ended without being sure, and which this call no longer finds."""
    if fits(store, Confirming):
        store.confirm()


def _ended(handler: "Handler", store: "Store", record: "Record", reason: str | None) -> bool:
    was_live = store.revoke(record.handle)
    if was_live:
        emit(handler, "revoked", record.handle, reason)
    return was_live


# -- how many there may be -------------------------------------------------------------------


def has_room(handler: "Handler", store: "Store", limit: "Limit", handle: str, subject: str) -> bool:
    """Tell whether a session that was just bound may stay; where the oldest give way, end them.

    It has to be in the store already. Of several logins at once each then sees all that were bound before it, so those
    whom the engine bound first, or last, are the same for everyone, and exactly ``limit.most`` stay.
    """
    live = live_sessions(handler, store, subject)
    if limit.refuses:
        return all(record.handle != handle for record in live[limit.most :])
    for record in live[: -limit.most]:
        _ended(handler, store, record, "limit")
    return True


def _checked(subject: Any) -> str:
    """Return what can be a subject; raise UsageError for what cannot."""
    if type(subject) is not str or not subject:
        raise UsageError("A subject is a non-empty str, as bind() takes it.")
    return subject
