"""The mapping that a Session is: keys and values, what they cost and how long they last."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Final, NoReturn, Self, SupportsIndex

from ..clock import Duration, milliseconds
from ..errors import KeyNotFound
from ..serializer import IMMUTABLE
from .context import DATA, LIVE
from .life import Life
from .token import JSON, Extras

__all__ = ["MISSING", "SessionMapping", "check_key"]

MISSING: Final[Any] = object()
"""What stands for no argument where None is one."""


class SessionMapping(Life, MutableMapping[str, Any]):
    """What a Session is to who reads and writes it.

    A list, dict, set or tuple that was handed out is kept as bytes too, so that a change in place is noticed.
    """

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        """Return the value of the key; raise KeyNotFound if there is none."""
        data = self._data if self._ready else self._look()
        try:
            value = data[key]
        except KeyError:
            raise KeyNotFound(f"The session has no key {key!r}.") from None
        if value.__class__ not in IMMUTABLE:
            self._expose(key, value)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of the key, or the default."""
        data = self._data if self._ready else self._look()
        value = data.get(key, default)
        if value.__class__ not in IMMUTABLE and key in data:
            self._expose(key, value)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        """Write the value; the key then has no expiry of its own."""
        if key.__class__ is not str or not key.isascii():
            check_key(key)
        plain = self.handler.serializer.admit(value)
        data = self._data if self._ready and not self._context.done else self._writable()
        if not plain:
            self._plain = False
        if value.__class__ not in IMMUTABLE:
            self._exposed = self._exposed or {}
            self._exposed[key] = None
        elif self._exposed is not None:
            self._exposed.pop(key, None)
        data[key] = value
        if self._extras is not None:
            self._extras.deadlines.pop(key, None)
        self._changes |= DATA
        self._context.changed = True

    def __delitem__(self, key: str) -> None:
        """Remove the key; raise KeyNotFound if there is none."""
        if key not in self._look():
            raise KeyNotFound(f"The session has no key {key!r}.")
        self.delete(key)

    def __contains__(self, key: object) -> bool:
        """Tell whether the session has the key."""
        return key in (self._data if self._ready else self._look())

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys, in the order of their first writing."""
        return iter(list(self._look()))

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._look())

    def __ior__(self, other: Mapping[str, Any]) -> Self:
        """Write every key of the other mapping."""
        self.update(other)
        return self

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        """Return a dict of this session's keys and the other's, which win."""
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        """Return a dict of the other's keys and this session's, which win."""
        return {**other, **self}

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Raise TypeError: a session belongs to its request, and what a copy of it is told nobody would write."""
        raise TypeError("A session is not copied or pickled: take its data, dict(session), or its handle.")

    def __repr__(self) -> str:
        """Show the handler; a look would load, and data has no place in a log."""
        return f"<Session {self.handler.path}>"

    def put(self, key: str, value: Any, max_age: Duration | None = None) -> None:
        """Write the value with a life of its own.

        A positive ``max_age`` lets the key live that long, though never longer than its session; 0 or
        None gives it no expiry of its own; a negative one expires it now.
        """
        life = 0 if max_age is None else milliseconds(max_age)
        self[key] = value
        if life < 0:
            self.delete(key)
        elif life > 0:
            self._more().deadlines[key] = self.handler.now() + life
            self._ready = False

    def delete(self, key: str) -> None:
        """Remove the key; a missing one is fine."""
        data = self._look()
        self._not_gone()
        if key in data:
            del self._writable()[key]
            self._change(DATA)
            if self._extras is not None:
                self._extras.deadlines.pop(key, None)

    def pop(self, key: str, default: Any = MISSING) -> Any:
        """Remove the key and return its value, or the default; raise KeyNotFound if there is neither."""
        value = self._look().get(key, MISSING)
        if value is not MISSING:
            self.delete(key)
            return value
        if default is MISSING:
            raise KeyNotFound(f"The session has no key {key!r}.")
        return default

    def popitem(self) -> tuple[str, Any]:
        """Remove one key and return it with its value; raise KeyNotFound if there is none."""
        for key in self:
            return key, self.pop(key)
        raise KeyNotFound("The session has no keys.")

    def clear(self) -> None:
        """Remove all the data and keep the session."""
        data = self._look()
        self._not_gone()
        if data:
            self._writable().clear()
            self._change(DATA)
            if self._extras is not None:
                self._extras.deadlines.clear()

    def ttl(self, key: str) -> float | None:
        """Return the seconds that the key has left, or None if it has no expiry of its own.

        Raises KeyNotFound if there is no such key.
        """
        if key not in self._look():
            raise KeyNotFound(f"The session has no key {key!r}.")
        deadline = self._extras.deadlines.get(key) if self._extras is not None else None
        if deadline is None:
            return None
        return (min(deadline, self._ends_at()) - self.handler.now()) / 1000

    def update_key(self, key: str, fn: Callable[[Any], Any], default: Any = None) -> Any:
        """Replace the key's value by ``fn(value)``, or ``fn(default)`` if it has none; return the new value.

        The key keeps its expiry. In the client's token the last response wins over an overlapping one.
        """
        self._is_open()
        value = fn(self.get(key, default))
        self._write(key, value)
        return value

    def incr(self, key: str, n: int = 1) -> int:
        """Add ``n`` to the key's integer, which begins at 0; return the sum.

        The key keeps its expiry. In the client's token the last response wins over an overlapping one.
        """
        self._is_open()
        value = self.get(key, 0)
        if type(value) is not int or type(n) is not int:
            raise TypeError(f"incr() adds integers; {key!r} and n must both be one.")
        self._write(key, value + n)
        return value + n

    # -- inside ----------------------------------------------------------------------------

    def _write(self, key: str, value: Any) -> None:
        """Write the value, and leave the key's expiry as it is."""
        self._look()
        deadline = None if self._extras is None else self._extras.deadlines.get(key)
        self[key] = value
        if deadline is not None:
            self._more().deadlines[key] = deadline

    def _expose(self, key: str, value: Any) -> None:
        """Remember the value's bytes as it is handed out, for it can be changed in place unseen."""
        if self._exposed is None:
            self._exposed = {}
            self._context.changed = True
        if key not in self._exposed:
            self._exposed[key] = self.handler.serializer.dumps(value)

    def _changed_in_place(self, exposed: dict[str, bytes | None]) -> bool:
        """Tell whether a list, dict, set or tuple that was handed out or written differs from what we have as bytes."""
        dumps = self.handler.serializer.dumps
        return any(
            before is None or dumps(self._data[key]) != before for key, before in exposed.items() if key in self._data
        )

    def _more(self) -> Extras:
        if self._extras is None:
            self._extras = Extras()
        return self._extras

    def _is_open(self) -> bool:
        """Return whether there is a session to change; raise if it is gone or the response has begun."""
        self._look()
        self._still_open()
        self._not_gone()
        return self.state == LIVE


def check_key(key: object) -> None:
    """Raise TypeError for what cannot be a key."""
    if type(key) is not str:
        raise TypeError(f"The keys of a session are str, not {type(key).__name__}.")
    JSON.admit(key)
