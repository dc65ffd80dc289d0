"""What the demo takes from its forms, checked: a name, a page to go on to, a key with a value and a life."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import orjson

from ..errors import KeyNotFound
from ..handlers import Session

__all__ = ["VISITS", "Note", "form_name", "form_next", "form_note", "notes_in"]

VISITS: Final = "visits"
ONWARD: Final = ("/account", "/devices", "/sudo")

LONGEST_NAME: Final = 64
LONGEST_KEY: Final = 32
LONGEST_TEXT: Final = 200
LONGEST_LIFE: Final = 86_400
MOST_NOTES: Final = 8
MOST_BYTES: Final = 1000


@dataclass(frozen=True, slots=True)
class Note:
    """One key that the visitor wrote: its text, the life it was given, and what is left of that, in seconds."""

    key: str
    text: str
    life: int | None
    left: float | None = None


def notes_in(session: Session) -> list[Note]:
    """Return the notes of a session, in the order of their first writing."""
    notes = []
    for key in list(session):
        with suppress(KeyNotFound):  # It may expire while we look.
            value = session[key]
            if isinstance(value, dict):
                notes.append(Note(key, value["text"], value["life"], session.ttl(key)))
    return notes


def form_name(form: Mapping[str, str]) -> str:
    """Return the name to log in with; raise ValueError for one that is empty, too long or not printable."""
    return _text(form, "name", LONGEST_NAME)


def form_next(form: Mapping[str, str]) -> str | None:
    """Return the page to go on to if it is one of ours: a redirect must never lead away (CWE-601)."""
    onward = form.get("next")
    return onward if onward in ONWARD else None


def form_note(form: Mapping[str, str], present: list[Note]) -> Note:
    """Return the note to write; raise ValueError, with a reason for people, if it is not acceptable."""
    note = Note(_text(form, "key", LONGEST_KEY), _text(form, "value", LONGEST_TEXT), _life(form))
    if note.key == VISITS:
        raise ValueError(f"The key “{VISITS}” is the demo's own: choose another.")
    others = [other for other in present if other.key != note.key]
    if len(others) >= MOST_NOTES:
        raise ValueError(f"There are {MOST_NOTES} keys already: delete one, or let one expire.")
    if sum(_weight(each) for each in [*others, note]) > MOST_BYTES:
        raise ValueError("All of it must fit in one session: delete a key, or write less.")
    return note


def _weight(note: Note) -> int:
    """Return about how many bytes the note takes: its key stands beside the value and beside the deadline."""
    return 2 * len(orjson.dumps(note.key)) + len(orjson.dumps(note.text))


def _text(form: Mapping[str, str], field: str, longest: int) -> str:
    text = form.get(field, "").strip()
    if not text:
        raise ValueError(f"The {field} is empty.")
    if len(text) > longest or not text.isprintable():
        raise ValueError(f"The {field} must have at most {longest} printable characters.")
    return text


def _life(form: Mapping[str, str]) -> int | None:
    """Return the life in seconds, or None for a key that has none of its own."""
    text = form.get("max_age", "").strip() or "0"
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(LONGEST_LIFE)) or int(text) > LONGEST_LIFE:
        raise ValueError(f"The life must be a whole number of seconds, at most {LONGEST_LIFE}.")
    return int(text) or None
