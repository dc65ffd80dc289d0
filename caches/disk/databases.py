"""Which database of a folder is in use: opened if it is as it was made, and begun anew if it is not.

A database is never replaced under its name, for SQLite, where it still has the old file open, would later remove the
log of the new one. So a link says which is in use, and to forget everything is to remove that link.
"""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path
from threading import Event
from typing import Final, NamedTuple

from ...clock import Clock, SystemClock, stopwatch
from ...errors import ConfigError
from ...forks import is_inherited
from ...keys import KeyRing, Keys
from .files import (
    FILES,
    KEY_BYTES,
    LEFT_OVER,
    TEMPORARY,
    ForeignError,
    boot,
    check_private,
    make_private,
    private_key,
    remove_database,
)
from .rows import SCHEMA, SETTINGS_HELD, Rows, connected, digest, is_damage
from .seal import MARK, Seal

__all__ = ["Databases", "FailedError", "OthersError", "Place"]

BEGINNING: Final = 0.5
"""How many seconds a process waits for another one that begins a database."""

PLACE: Final = re.compile(r"([0-9a-f]{32})\.([0-9]{1,18})\.([0-9]{1,18})\.([0-9]{1,18})")

_MARK: Final = "CREATE TABLE Mark (mark BLOB NOT NULL)"
_DROPS: Final = "CREATE TABLE Drops (stripe INTEGER PRIMARY KEY, number INTEGER NOT NULL)"


class FailedError(Exception):
    """The disk did not do what it was asked: to the caller a miss."""


class OthersError(ForeignError):
    """A database was begun with keys that are not ours."""


class Place(NamedTuple):
    """What ``current`` says: the database's name, and which of its entries are gone.

    An entry holds the era in which it was filled, and each ``clear_after`` begins a new one. Those of an era before
    ``floor`` are gone, and those of one before ``era`` are at this time.
    """

    name: str
    floor: int = 0
    era: int = 0
    at: int = 0


class Databases:
    """The databases of one folder, of which one is in use."""

    def __init__(self, folder: Path, keys: Keys | None, clock: Clock, room: int, timeout: float) -> None:
        """Look after a folder that is ours alone; its databases have so much room, and wait so many seconds for others.

        ``keys`` are a handler's, or None for the key in the folder. Raises ConfigError for one that cannot be used.
        """
        self.folder = folder
        self._link = folder / "current"
        self._room, self._timeout = room, timeout
        self._waited = stopwatch(SystemClock())
        self._known = ("", Place(""))
        self._logged: set[str] = set()
        self.unsaid: list[tuple[str, tuple[object, ...]]] = []
        """What is yet to be logged."""
        self._clock = clock
        self._has_keys = keys is not None
        self.seals = self._seals(self._ring(keys))
        self.boot = boot()

    def place(self) -> Place | None:
        """Return what is in use; None if nothing is, or nothing that we would have written."""
        try:
            text = os.readlink(self._link)  # noqa: PTH115 - half the time
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINVAL}:
                return None
            raise
        known, place = self._known
        if text != known:
            match = PLACE.fullmatch(text)
            if match is None:
                return None
            place = Place(match[1], int(match[2]), int(match[3]), int(match[4]))
            self._known = text, place
        return place

    def point(self, place: Place) -> None:
        """Say what is in use from now on."""
        temporary = self.folder / f"current.{secrets.token_hex(8)}"
        temporary.symlink_to(".".join(map(str, place)))
        temporary.replace(self._link)

    def forget(self, name: str | None = None, *, keeps: bool = False) -> None:
        """Have nothing in use, or not the database of this name; then take it away, or set it aside."""
        place = self.place()
        if place is None or name not in {None, place.name}:
            return
        self._link.unlink(missing_ok=True)
        folder = self.folder / place.name
        if keeps:
            aside = self.folder / "damaged"
            remove_database(aside)
            with suppress(OSError):
                folder.rename(aside)
        remove_database(folder)

    def set_aside(self, name: str, error: Exception) -> None:
        """Leave a damaged database where its owner can look at it, and have it in use no longer."""
        self.log("The cache in %s was damaged, and is begun anew; the old one lies in its folder damaged: %r", error)
        self.forget(name, keeps=True)

    def give_way(self, name: str, error: Exception) -> None:
        """Have a database of other keys in use no longer."""
        self.log("The cache in %s was begun with other keys: give each ring of keys a folder of its own (%r)", error)
        self.forget(name, keeps=True)

    def log(self, message: str, *details: object) -> None:
        """Have ``say`` log what went wrong, each kind of it once."""
        if message not in self._logged:
            self._logged.add(message)
            self.unsaid.append((message, (self.folder, *details)))

    def say(self) -> None:
        """Log what there is to say; for outside the gate, since a fork that waits for that may have logging's lock."""
        import logging  # noqa: PLC0415 - it takes longer to import than a cache, and is rarely needed

        logger = logging.getLogger("sessiontree.caches")
        with suppress(IndexError):  # another thread has said the last of it
            while self.unsaid:
                message, details = self.unsaid.pop(0)
                logger.warning(message, *details)

    def adopted(self, name: str) -> Rows | None:
        """Open a database that another process began, or an earlier one; None if it is not to be used.

        Raises OthersError for one that was begun with other keys, which is left as it is.
        """
        path = self.folder / name / FILES[0]
        if is_inherited(path):
            self.forget(name)
            return None
        try:
            check_private(path)
            if self._checked(path) == self.boot:
                return self._rows_of(path)
            self.forget(name)
        except Exception as error:
            if isinstance(error, OthersError) or not is_damage(error):
                raise
            self.set_aside(name, error)
        return None

    def files(self) -> list[Path]:
        """Return every database that lies here."""
        with suppress(OSError):
            return [folder / FILES[0] for folder in self.folder.iterdir()]
        return []

    def _checked(self, path: Path) -> bytes:
        """Return in which boot a database was begun; raise ForeignError if it is not as it was made."""
        connection = connected(path, self._timeout)
        try:
            schema = connection.execute(SCHEMA).fetchall()
            if ("table", "Mark", "Mark", _MARK) not in schema or any(row[0] == "view" for row in schema):
                raise ForeignError
            ((mark,),) = connection.execute("SELECT CAST(mark AS BLOB) FROM Mark LIMIT 2").fetchall()
            content = self._opened(mark, path.parent.name)
            if content is None and not self._has_keys:
                # Who empties folders of temporary files took the key, and another process made a new one.
                with suppress(OSError, ConfigError):
                    self.seals = self._seals(KeyRing(private_key(self.folder / "key")))
                content = self._opened(mark, path.parent.name)
            if content is None:
                raise OthersError
            if content[:KEY_BYTES] != digest(schema, connection.execute(SETTINGS_HELD).fetchall()):
                raise ForeignError
        finally:
            connection.close()
        return content[KEY_BYTES:]

    def _opened(self, mark: bytes, name: str) -> bytes | None:
        """Return what a database's mark says; None if no key of ours opens it."""
        opened = (seal.open(mark, MARK, name, "") for seal in self.seals)
        return next((each for each in opened if each is not None), None)

    def begun(self) -> tuple[Place, Rows]:
        """Begin a database, and have it in use."""
        self._sweep()
        place = Place(secrets.token_hex(16))
        folder = self.folder / place.name
        folder.mkdir(0o700)
        try:
            folder.chmod(0o700)
            make_private(folder / FILES[0], b"")
            rows = self._rows_of(folder / FILES[0])
            rows.use(self._mark, place)
            self.point(place)
        except BaseException:
            remove_database(folder)
            raise
        return place, rows

    def _rows_of(self, path: Path) -> Rows:
        return Rows(path, self._room, self._timeout)

    def _mark(self, rows: Rows, place: Place) -> None:
        """Add what is ours, and seal what the database is."""
        with rows.transact():
            rows.execute(_MARK)
            rows.execute(_DROPS)
            content = digest(rows.execute(SCHEMA), rows.execute(SETTINGS_HELD)) + self.boot
            rows.execute("INSERT INTO Mark VALUES (?)", self.seals[0].seal(content, MARK, place.name, ""))

    def _sweep(self) -> None:
        """Remove what processes left behind that were killed while they began something. Only with the lock."""
        for path in self.folder.iterdir():
            if LEFT_OVER.fullmatch(path.name):
                remove_database(path)
            elif TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other thread or process begin a database or a key meanwhile; raise FailedError if one never ends."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.folder / "lock", flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            until = self._waited() + BEGINNING
            while not _is_taken(descriptor):
                if self._waited() >= until:
                    raise FailedError
                Event().wait(0.002)
            yield
        finally:
            # A process that was forked meanwhile has the lock too, and only this takes it from both.
            flock(descriptor, LOCK_UN)
            os.close(descriptor)

    def _seals(self, ring: KeyRing) -> list[Seal]:
        return [Seal(key, self._clock) for _, key in ring.subkeys("cache/disk")]

    def _ring(self, keys: Keys | None) -> KeyRing:
        """Return the ring of these keys, or of the key in the folder, which is made if there is none."""
        if keys is not None:
            return KeyRing.of(keys)
        path = self.folder / "key"
        try:
            with self.locked():
                if not os.path.lexists(path):
                    temporary = self.folder / f"key.{secrets.token_hex(8)}"
                    make_private(temporary, secrets.token_bytes(KEY_BYTES))
                    temporary.rename(path)
            return KeyRing(private_key(path))
        except (OSError, FailedError) as error:
            raise ConfigError(f"The key {path} cannot be read or made: let this user do it ({error!r}).") from error


def _is_taken(descriptor: int) -> bool:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True
