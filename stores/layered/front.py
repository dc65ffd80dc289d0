"""The front of a LayeredStore: rows in any store, which hold copies of records for seconds and may vanish at any time.

Each handle has at most one row, which the front takes for one more record: of a path that no handler has, under a
name that no session has, without labels, so that nothing finds or counts it. Its fields are

    generation   drawn anew by every drop
    leased       when the filler had not yet asked the primary, in milliseconds since the epoch
    record       the packed record in base64, or nothing: the primary has none
    signature    if there are keys: of the row's name, ``leased`` and the packed record

A row without ``leased`` is a tombstone. A drop changes the generation, or, where there is no row, makes a tombstone; a
fill replaces a row whose generation is still the one that was seen before the primary was asked, or makes one where
there still is none. So a fill whose lease is older than a drop finds another generation, or a row where it saw none:

    a reader                                a writer
    row = load(name)
    primary.load(handle)
                                            primary.revoke(handle)
                                            apply(name): another generation, no record
    apply(name) if row.generation           refused

Every row outlasts every lease that its tombstone has to refuse: it ends twice ``max_staleness`` after it was last
written, whatever becomes of the session in it. A copy is served while ``leased`` <= now < ``leased`` +
``max_staleness``, to the millisecond, and before the record's own deadlines. So whatever happens to the front, nothing
is served that was outdated for longer. One filled by a clock that is ahead is no use until that time has come.

What this process itself changed has a *floor*, the moment of its drop: a copy is served only if it was leased later.
This holds whatever the front does, loses or answers. A drop that failed has its floor one ``max_staleness`` ahead. A
clock that is set back makes a floor for all handles, of the latest time that it had shown.
"""

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any, Final, NamedTuple, TypeVar

import orjson

from ...breaker import Breaker
from ...clock import FOREVER
from ...errors import ConfigError, Conflict, RecordTooLarge, SessionGone, StoreUnavailable
from ...keys import Keys
from ...records import FORM, NOTHING, Changes, Field, Json, Record, pack, packed, unpack, unpacked
from ..log import logger
from ..protocol import Store
from .floors import Floors
from .signatures import Signatures

__all__ = ["Front", "Lease", "Look"]

MOST_TURNS: Final = 4
"""How often a drop begins anew because rows come and go while it is made."""

MOST_BATCHES: Final = 100
"""How many batches one sweep asks the front for at most."""

OVERHEAD: Final = 400
"""How many bytes a row has beside the copy, at most."""

PROOF: Final = b"the front of a layered store".ljust(32, b".")
"""Rows prove nothing, for whoever can write to the front can write rows; what has to be proved, ``keys`` do."""

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_LONGEST_HANDLE: Final = 64
_ANSWERS: Final = (Conflict, RecordTooLarge)

_T = TypeVar("_T")


class Lease(NamedTuple):
    """The right to fill a row with what the primary is asked for after this."""

    since: int
    generation: str | None
    """That of the row there was, None for no row."""


class Look(NamedTuple):
    """What the front says about a handle: whether it knows, what it knows, and else how to tell it."""

    is_known: bool
    record: Record | None = None
    lease: Lease | None = None


UNKNOWN: Final = Look(is_known=False)
ABSENT: Final = Look(is_known=True)


class Front:
    """Copies of a primary's records in another store. Nothing here ever raises because that store fails."""

    def __init__(self, store: Store, staleness: int, name: str, keys: Keys | None) -> None:
        """Keep copies in this store for at most so many milliseconds, under names that end with ``name``."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"The name of a front is up to 32 small letters, digits and hyphens, such as 'shop', not {name!r}."
            )
        self._store = store
        self._now = store.clock.now
        self._staleness = staleness
        self._path = f"front/{name}"
        self._suffix = f".{name}"
        self._signatures = Signatures(keys, name)
        self._floors = Floors(staleness)
        self._latest = 0
        self._breaker = Breaker(1, store.clock)
        self._is_failing = False

    # -- reading ---------------------------------------------------------------------------

    def look(self, handle: str) -> Look:
        """Return what the front has under a handle."""
        since = self._time()
        if not self._may_serve(handle, since):
            return UNKNOWN
        name = handle + self._suffix
        try:
            row = self._ask(self._store.load, name)
        except Exception:  # noqa: BLE001 - noted in _ask
            return UNKNOWN
        return self._judged(handle, name, row, since)

    def look_many(self, handles: Iterable[str]) -> dict[str, Look]:
        """Return what the front has under each of these handles, in one trip."""
        since = self._time()
        looks = dict.fromkeys(handles, UNKNOWN)
        names = {handle: handle + self._suffix for handle in looks if self._may_serve(handle, since)}
        if not names:
            return looks
        try:
            rows = self._ask(self._store.load_many, list(names.values()))
        except Exception:  # noqa: BLE001 - noted in _ask
            return looks
        return looks | {handle: self._judged(handle, name, rows.get(name), since) for handle, name in names.items()}

    def _may_serve(self, handle: str, now: int) -> bool:
        """Tell whether there can be a copy that is late enough; if not, the trip is spared."""
        return self._floors.of(handle) < now and _is_plain(handle)

    def _judged(self, handle: str, name: str, row: Record | None, since: int) -> Look:
        """Return what a row knows, else the lease on the row."""
        if row is None:
            return Look(is_known=False, lease=Lease(since, None))
        values = _values(row)
        generation = values.get("generation")
        if generation.__class__ is not str:
            return UNKNOWN
        known = self._known(handle, name, values)
        return Look(is_known=False, lease=Lease(since, generation)) if known is None else known

    def _known(self, handle: str, name: str, values: Mapping[str, Any]) -> Look | None:
        """Return the record of a row, or that there is none; None for what may not be served."""
        try:
            leased, copy = values["leased"], a2b_base64(values["record"], strict_mode=True)
        except (KeyError, TypeError, ValueError):  # a tombstone, or garbage
            return None
        now = self._time()
        if leased.__class__ is not int or not self._floors.of(handle) < leased <= now < leased + self._staleness:
            return None
        if not self._signatures.verify(values.get("signature"), name, leased, copy):
            return None
        if not copy:
            return ABSENT
        record = _unpacked(handle, copy)
        return Look(is_known=True, record=record) if record is not None and record.is_live(now) else None

    # -- filling ---------------------------------------------------------------------------

    def fill(self, handle: str, record: Record | None, lease: Lease) -> bool:
        """Keep what the primary said, unless the lease is no good any more; return False if the front failed."""
        now, name, copy = self._time(), handle + self._suffix, _copied(record)
        if copy is None or not self._floors.of(handle) < lease.since <= now < lease.since + self._staleness:
            return True
        if len(copy) * 4 // 3 + OVERHEAD > self._store.largest:
            return True
        values = {"leased": lease.since, "record": b2a_base64(copy, newline=False).decode("ascii")}
        if self._signatures:
            values["signature"] = self._signatures.of(name, lease.since, copy)
        try:
            if lease.generation is None:
                self._ask(self._store.create, self._row(name, now, {"generation": token_hex(8), **values}))
            else:
                self._ask(self._store.apply, name, PROOF, self._filling(values, lease.generation, now))
        except _ANSWERS:  # somebody dropped or filled it meanwhile, or it is too large for the front after all
            return True
        except Exception:  # noqa: BLE001 - noted in _ask
            return False
        return True

    def _row(self, name: str, now: int, values: Mapping[str, Any]) -> Record:
        return Record(name, self._path, now, FOREVER, self._end(now), FOREVER, PROOF, now, fields=packed(values))

    def _filling(self, values: Mapping[str, Any], generation: str, now: int) -> Changes:
        return Changes(
            sets={key: _field(value) for key, value in values.items()},
            expects={"generation": Json(orjson.dumps(generation))},
            own=self._end(now),
        )

    def _end(self, now: int) -> int:
        """Return until when a row has to be there that is written now."""
        return now + 2 * self._staleness

    # -- dropping --------------------------------------------------------------------------

    def drop(self, handle: str, *, is_new: bool = False) -> bool:
        """Have no copy served that was leased before this, and refuse fills with such a lease.

        Returns False if that failed: then nobody in this process is served from the front for ``max_staleness``, and
        others are not served for longer. ``is_new`` says that there is hardly a row.
        """
        done, now = False, self._time()
        if not _is_plain(handle):
            return True
        self._floors.raise_to(now, handle)
        try:
            done = self._dropped(handle + self._suffix, now, is_new=is_new)
        except Exception:  # noqa: BLE001, S110 - noted in _ask
            pass
        finally:
            if not done:
                self._floors.raise_to(now, handle, ahead=True)
        return done

    def _dropped(self, name: str, now: int, *, is_new: bool) -> bool:
        generation = token_hex(8)
        changes = Changes(
            sets={"generation": _field(generation)}, deletes=("leased", "record", "signature"), own=self._end(now)
        )
        for turn in range(MOST_TURNS):
            if turn or not is_new:
                with suppress(SessionGone):
                    self._ask(self._store.apply, name, PROOF, changes)
                    return True
            with suppress(Conflict):
                self._ask(self._store.create, self._row(name, now, {"generation": generation}))
                return True
        return False

    def drop_all(self, handles: Sequence[str]) -> None:
        """Drop each; once the front fails it is not asked again."""
        for place, handle in enumerate(handles):
            if not self.drop(handle):
                now = self._time()
                for other in handles[place + 1 :]:
                    self._floors.raise_to(now, other, ahead=True)
                return

    def distrust(self, handle: str | None) -> None:
        """Serve nothing in this process that was leased before this, of this handle, or for None of any."""
        self._floors.raise_to(self._time(), handle)

    # -- housekeeping ----------------------------------------------------------------------

    def sweep(self, limit: int) -> None:
        """Remove what expired long ago, a batch after the other."""
        for _ in range(MOST_BATCHES):
            try:
                if self._ask(self._store.sweep, limit) < limit:
                    return
            except Exception:  # noqa: BLE001 - noted in _ask
                return

    def close(self) -> None:
        """Serve nothing any more, and close the store."""
        self._floors.raise_to(FOREVER, None)
        with suppress(Exception):
            self._store.close()

    def _time(self) -> int:
        """Return the time; if the clock was set back, serve nothing that may have been leased before."""
        latest = self._latest  # Read first: while it only goes forward, no other thread can have seen a later time.
        now = self._now()
        if now > latest:
            self._latest = now
        elif now < latest:
            self._floors.raise_to(latest, None)
        return now

    def _ask(self, verb: Callable[..., _T], *arguments: Any) -> _T:
        """Ask the store, unless it was slow to fail a moment ago; note when it fails, and when it answers again."""
        began = self._breaker.begin()
        if began is None:
            raise StoreUnavailable("The front of this store was slow to fail, and is left alone for a moment.")
        try:
            result = verb(*arguments)
        except _ANSWERS:
            self._breaker.close()
            raise
        except Exception as error:
            self._breaker.count(began)
            self._note(error)
            raise
        self._breaker.close()
        self._is_failing = False
        return result

    def _note(self, error: Exception) -> None:
        """Say that the front fails, once for each time that it begins to."""
        if self._is_failing or self._floors.all == FOREVER:
            return
        self._is_failing = True
        logger().warning(
            "The front of a layered store fails, and the primary is asked until it answers again: %s", error
        )


def _is_plain(handle: str) -> bool:
    """Tell whether a handle is as those of sessions are; no other is ever kept, so every name of a row is plain too."""
    return len(handle) <= _LONGEST_HANDLE and handle.isascii() and handle.isalnum()


def _values(row: Record) -> Mapping[str, Any]:
    try:
        return unpacked(row.fields)[0]
    except ValueError:
        return NOTHING


def _field(value: Any) -> Field:
    return Json(orjson.dumps(value)), 0


def _copied(record: Record | None) -> bytes | None:
    """Return a record as bytes, none of them for no record; None for a record that cannot be kept."""
    if record is None:
        return b""
    if record.form != FORM:
        return None
    try:
        return pack(record)
    except Exception:  # noqa: BLE001 - it has what no packed record can have, and only the primary knows how to keep that
        return None


def _unpacked(handle: str, copy: bytes) -> Record | None:
    try:
        return unpack(handle, copy)
    except StoreUnavailable:  # written by a newer release: the primary says what that means
        return None
