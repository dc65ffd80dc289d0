"""What a RedisStore's parts share: the names of keys, and reading and removing records."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from ...clock import Clock
from ...errors import StoreError
from ...records import Record
from ..announcing import Announcing
from .pool import Pool
from .record import record_of
from .scripts import REMOVE

__all__ = ["RedisKeys", "bytes_of", "handles_in", "text_of"]


class RedisKeys(Announcing):
    """A prefix on a server; what lies there is ours."""

    clock: Clock

    def __init__(self, pool: Pool, prefix: str, clock: Clock) -> None:
        """Use this prefix, which may hold any characters."""
        super().__init__()
        self.clock = clock
        self._now = clock.now
        self._pool = pool
        self._before = prefix.encode("utf-8", "surrogatepass") + b":{"
        self._index = prefix.encode("utf-8", "surrogatepass") + b":i:"
        self._due = self._index + b"due"
        self._inline = b"" if pool.is_apart else self._index
        """What scripts are told of the indexes: nothing, if these lie elsewhere."""
        self._swept_to = ""

    def _key(self, handle: str) -> bytes:
        """Return the name of a session's hash; the braces keep what is one session's in one slot of a cluster."""
        return b"%b%b}" % (self._before, bytes_of(handle))

    def _pattern(self) -> bytes:
        """Return what a SCAN finds our sessions by, with each sign that means something there escaped."""
        escaped = b"".join(b"\\" + sign if sign in b"\\*?[]^-" else sign for sign in _signs(self._before))
        return escaped + b"*}"

    def _records(self, handles: Iterable[str]) -> dict[str, tuple[Record, bytes]]:
        """Return records and their heads by handle, in one send: all that are there, expired or not."""
        wanted = list(dict.fromkeys(handles))
        answers = self._pool.read_many([(b"HGETALL", self._key(handle)) for handle in wanted])
        found = dict[str, tuple[Record, bytes]]()
        for handle, answer in zip(wanted, answers, strict=True):
            if answer and (record := record_of(handle, answer)) is not None:
                found[handle] = record
        return found

    def _live(self, handles: Iterable[str]) -> list[Record]:
        """Return the live records among these, in their order. A listing is no look: what has expired stays."""
        found, now = self._records(handles).values(), self._now()
        return [record for record, _ in found if record.is_live(now)]

    def _remove_expired(self, heads: Mapping[str, bytes]) -> None:
        """Remove what was found expired, unless it was prolonged since, if that can be done at all."""
        with suppress(StoreError):
            self._pool.run_many(REMOVE, [(self._key(handle), self._inline, head) for handle, head in heads.items()])
        self.announce_all(heads)


def handles_in(names: Iterable[bytes], before: bytes) -> list[str]:
    """Return the handles in names that begin so; a name that is no text is not ours."""
    handles = list[str]()
    for name in names:
        with suppress(UnicodeDecodeError):
            handles.append(text_of(name[len(before) : -1]))
    return handles


def text_of(raw: bytes) -> str:
    """Return the text that ``bytes_of`` was given."""
    return raw.decode("utf-8", "surrogatepass")


def bytes_of(text: str) -> bytes:
    """Return a handle's bytes; half a surrogate pair, which is no text, is nevertheless a handle that is not there."""
    return text.encode("utf-8", "surrogatepass")


def _signs(raw: bytes) -> Sequence[bytes]:
    return [raw[place : place + 1] for place in range(len(raw))]
