"""What a request changed in a stored session, kept apart from what it read, and said as changes to a record."""

import sys
from collections.abc import Mapping
from typing import Any, Final

import orjson

from ..records import NOTHING, Changes, Field, Record, as_value, changed_fields, packed, reidentified
from .contents import Flash, Loaded, field_of, flash_field
from .context import DATA, IDENTITY, RENEWED
from .ids import handle_text, proof_of
from .info import ABOVE, PARENT, SUBJECT
from .metadata import LONGEST_AGENT
from .outdated import RenewableSession
from .token import Extras

__all__ = ["TrackedSession"]

MOST_APPLIED: Final = 32
"""How many changes are kept apart from the record that they were made to."""

Edits = tuple[dict[str, Field], list[str]]
"""Fields to write and fields to remove."""


class TrackedSession(RenewableSession):
    """A session that knows what its store has, and so what its store lacks."""

    __slots__ = ("_applied", "_flashed", "_grace", "_record", "_sent", "_version", "_written")

    _record: Record | None
    """What the store has, but for the version and what was applied since; None while it has nothing."""

    def _track(self) -> None:
        """Begin with nothing in the store."""
        self._record = None
        self._applied: list[Changes] = []  # What this request has changed in the record's fields.
        self._version = 0
        self._grace = 0
        self._written: dict[str, None] = {}  # The keys that were written or removed.
        self._flashed: list[Flash] = []  # The flash messages that the store has.
        self._sent: list[Flash] = []  # Those that are on their way to it.

    # -- the mapping -----------------------------------------------------------------------

    def __setitem__(self, key: str, value: Any) -> None:
        """Write the value; the key then has no expiry of its own."""
        super().__setitem__(key, value)
        self._written[key] = None

    def delete(self, key: str) -> None:
        """Remove the key; a missing one is fine."""
        if key in self._look():
            super().delete(key)
            self._written[key] = None
        else:
            self._not_gone()

    def clear(self) -> None:
        """Remove all the data and keep the session."""
        keys = dict.fromkeys(self._look())
        super().clear()
        self._written.update(keys)

    def _is_unwritten(self, key: str) -> bool:
        """Tell whether this request has a value of the key that the store has not yet."""
        return key in self._written or (
            self._exposed is not None and key in self._exposed and self._changed_in_place({key: self._exposed[key]})
        )

    def _expose(self, key: str, value: Any) -> None:
        super()._expose(key, value)
        self._context.late = True

    def _adopt_extras(self, record: Record, data: dict[str, Any] | Loaded) -> dict[str, Any]:
        """Take over what few sessions have: a user, keys that expire, flash messages; return the plain data."""
        subject = record.label.get(SUBJECT)
        loaded = data if isinstance(data, Loaded) else Loaded(data, {}, [])
        if subject or loaded.deadlines or loaded.flashes:
            extras = self._extras = Extras()
            extras.subject, extras.authenticated = subject, record.authenticated
            extras.deadlines, extras.flashes = loaded.deadlines, [message for _, message in loaded.flashes]
            self._flashed = loaded.flashes
            self._ready = self._ready and not loaded.deadlines
        return loaded.data

    # -- what the store lacks --------------------------------------------------------------

    def _new_record(self) -> Record:
        """Return the record of a session that the store does not have; the request may have taken long."""
        if self.handler.idles:
            self._touch_if_due()
        who, extras, now = self._who(), self._extras, self.handler.now()
        handle = handle_text(who.handle)
        sets, _ = self._edits(handle)
        labels = {PARENT: handle_text(who.parent)} if who.parent else {}
        if self._parent is not None and self._parent._handle() != who.parent:
            labels[ABOVE] = handle_text(self._parent._handle())
        if extras is not None and extras.subject:
            labels[SUBJECT] = extras.subject
        deadlines = {field: deadline for field, (_, deadline) in sets.items() if deadline}
        return Record(
            handle, self.handler.path, who.created, who.absolute, who.own, who.idle, self._proof(), now,
            authenticated=0 if extras is None else extras.authenticated,
            labels=orjson.dumps(labels).decode() if labels else "",
            agent=self._context.agent[:LONGEST_AGENT],
            address=self._context.address,
            fields=packed({field: as_value(content) for field, (content, _) in sets.items()}, deadlines),
        )  # fmt: skip

    def _take_note(self, changes: Changes) -> None:
        """Take note of what the store has made of the record, but for its fields and its version."""
        record = self._record
        if record is not None and not changes.is_data:
            self._record = reidentified(record, changes, self.handler.now())

    def _note_fields(self, changes: Changes) -> None:
        """Note what was changed in the record's fields; work it in now and then, for a worker may keep its session."""
        self._applied.append(changes)
        if len(self._applied) >= MOST_APPLIED:
            self._known()

    def _known(self) -> Record:
        """Return the record with the fields that the store has by now, as far as this request knows."""
        record: Record = self._record  # type: ignore[assignment]
        for changes in self._applied:
            fields, _ = changed_fields(record.fields, changes, self.handler.now(), sys.maxsize)  # the store has it
            record = record._replace(fields=fields)
        self._applied = []
        self._record = record
        return record

    def _is_shortened(self, now: int, idle: int, interval: int) -> bool:  # noqa: ARG002 - the record says when it was
        """Tell whether the timeout was longer at the last touch."""
        record = self._record
        return record is not None and record.idle - record.seen > idle

    def _pending(self, *, late: bool = False) -> Changes | None:
        """Return what the store lacks, or None; what comes late is no activity."""
        if self.handler.idles and not late:
            self._touch_if_due()
        record, changes = self._record, self._changes
        if record is None or (not changes & (DATA | IDENTITY) and self._exposed is None):
            return None
        sets, deletes = self._edits(record.handle)
        if not changes & IDENTITY and self._extras is None and not record.labels:
            return Changes(sets, deletes) if sets or deletes else None
        return self._pending_identity(record, sets, deletes)

    def _pending_identity(self, record: Record, sets: dict[str, Field], deletes: list[str]) -> Changes | None:
        """Return what the store lacks where more than fields may have changed."""
        who, proof = self._who(), self._new_proof()
        pending = Changes(
            sets=sets,
            deletes=deletes,
            own=who.own if who.own != record.own else None,
            idle=who.idle if who.idle != record.idle else None,
            proof=proof,
            grace=self._graced(proof),
            authenticated=self._stamp(record),
            labels=self._relabelled(record),
        )
        return pending if any(pending) else None

    def _renewal_only(self) -> Changes | None:
        """Return the new proof alone, which outlives a failed response."""
        proof = self._new_proof()
        return None if proof is None else Changes(proof=proof, grace=self._graced(proof))

    def _graced(self, proof: bytes | None) -> int:
        return self.handler.now() + self._grace if proof and self._grace else 0

    def _proof(self) -> bytes:
        who = self._who()
        return proof_of(who.handle, who.id.encode())

    def _new_proof(self) -> bytes | None:
        """Return the proof of an id that the store does not know yet."""
        if not self._changes & RENEWED or self._record is None:
            return None
        proof = self._proof()
        return proof if proof != self._record.proof else None

    def _stamp(self, record: Record) -> int | None:
        stamp = 0 if self._extras is None else self._extras.authenticated
        return stamp if stamp != record.authenticated else None

    def _relabelled(self, record: Record) -> Mapping[str, str | None]:
        subject = None if self._extras is None else self._extras.subject
        return {SUBJECT: subject} if subject != record.label.get(SUBJECT) else NOTHING

    def _edits(self, handle: str) -> Edits:
        """Return the fields that this request wrote, and those that it removed."""
        data, write, extras = self._data, self.handler.contents.write, self._extras
        deadlines = NOTHING if extras is None else extras.deadlines
        sets: dict[str, Field] = {}
        deletes: list[str] = []
        for key in self._written if self._exposed is None else {**self._written, **self._exposed_and_changed()}:
            field = field_of(key)
            if key in data:
                sets[field] = (write(handle, field, data[key]), deadlines.get(key, 0))
            else:
                deletes.append(field)
        self._sent = []
        if extras is not None and (self._flashed or extras.flashes):
            self._edit_flashes(extras.flashes, handle, sets, deletes)
        return sets, deletes

    def _exposed_and_changed(self) -> dict[str, None]:
        exposed = self._exposed or {}
        return {key: None for key, before in exposed.items() if self._changed_in_place({key: before})}

    def _edit_flashes(
        self, present: list[tuple[str, Any]], handle: str, sets: dict[str, Field], deletes: list[str]
    ) -> None:
        """Remove the flash messages that were taken, and write the new ones, each in a field of its own."""
        now = self.handler.now()
        kept = {id(message) for message in present}
        known = {id(message) for _, message in self._flashed}
        deletes += [field for field, message in self._flashed if id(message) not in kept]
        for place, message in enumerate(present):
            if id(message) not in known:
                field = flash_field(now, place)
                sets[field] = (self.handler.contents.write(handle, field, list(message)), 0)
                self._sent.append((field, message))

    def _drop_edits(self) -> None:
        """Forget what a failed response, or a refused login, would have changed: nothing of it is written later."""
        who, record = self._who(), self._known()
        self._written, self._sent, self._exposed, self._extras = {}, [], None, None
        self._identity = who._replace(own=record.own, idle=record.idle)
        self._changes &= ~(DATA | IDENTITY)
        data = self.handler.contents.read(record, self.handler.now())
        self._data = self._adopt_extras(record, data)

    def _settle(self, record: Record) -> None:
        """Take note of what the store has by now."""
        self._record = record
        self._written.clear()
        if self._flashed or self._sent:
            kept = {id(message) for message in (() if self._extras is None else self._extras.flashes)}
            self._flashed = [flash for flash in (*self._flashed, *self._sent) if id(flash[1]) in kept]
        if self._exposed:
            dumps = self.handler.serializer.dumps
            self._exposed = {key: dumps(self._data[key]) for key in self._exposed if key in self._data}
            self._context.late = True  # What was handed out may still change while the body streams.
