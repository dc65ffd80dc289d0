"""The files of a cache on disk: in a folder of ours alone, and removed without following a link."""

import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from ...errors import ConfigError

__all__ = [
    "FILES", "KEY_BYTES", "LEFT_OVER", "TEMPORARY", "ForeignError", "boot", "check_private", "make_private",
    "private_folder", "private_key", "remove_database",
]  # fmt: skip

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

FILES: Final = ("cache.db", "cache.db-wal", "cache.db-shm")
LEFT_OVER: Final = re.compile(r"[0-9a-f]{32}")
TEMPORARY: Final = re.compile(r"(current|key)\.[0-9a-f]{16}")
KEY_BYTES: Final = 32


class ForeignError(Exception):
    """A database is not as one of ours made it."""


def private_folder(directory: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a folder that is ours alone, made if there is none (docs/security.md, ST-9)."""
    named = os.fspath(directory)
    if not isinstance(named, str) or not named or "\0" in named:
        raise ConfigError(f"A DiskCache needs the path of a folder, not {named!r}.")
    path = Path(os.path.abspath(named))  # noqa: PTH100 - resolves no link, and a later chdir() changes nothing
    try:
        with suppress(FileExistsError):
            path.mkdir(0o700)
            path.chmod(0o700)  # No umask may take the owner's rights.
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"The folder {path} cannot be made or looked at: let this user do it ({error}).") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"{path} is a link or a file: give a DiskCache a folder of its own.")
    if found.st_uid != os.geteuid():
        raise ConfigError(f"The folder {path} belongs to another user: give a DiskCache a folder of its own.")
    if found.st_mode & 0o077:
        raise ConfigError(f"Others may use {path}, where sessions are to lie: run chmod 700 on it.")
    return path


def private_key(path: Path) -> bytes:
    """Return the key in a file that is ours alone."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        is_private = _is_private_file(os.fstat(descriptor))
        key = os.read(descriptor, KEY_BYTES + 1) if is_private else b""
    finally:
        os.close(descriptor)
    if len(key) != KEY_BYTES:
        raise ConfigError(f"The key {path} is damaged or not this user's alone: remove it, and a new one is made.")
    return key


def check_private(path: Path) -> None:
    """Raise ForeignError for a database that another may have put there, or that lies elsewhere."""
    try:
        folder, file = path.parent.lstat(), path.lstat()
    except FileNotFoundError:
        raise ForeignError from None
    if not stat.S_ISDIR(folder.st_mode) or not _is_ours(folder) or not _is_private_file(file):
        raise ForeignError


def _is_private_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and _is_ours(found) and found.st_nlink == 1


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077


def make_private(path: Path, content: bytes) -> None:
    """Make a file that is ours alone."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def remove_database(folder: Path) -> None:
    """Remove a folder with a database, and nothing that is not of it; a link goes without what it names."""
    with suppress(OSError):
        if not stat.S_ISDIR(folder.lstat().st_mode):
            folder.unlink()
            return
        for name in FILES:
            with suppress(OSError):
                (folder / name).unlink()
        folder.rmdir()


def boot() -> bytes:
    """Return what names this boot of the machine, or nothing where there is no such thing."""
    try:
        return BOOT_ID.read_bytes().strip()
    except OSError:
        return b""
