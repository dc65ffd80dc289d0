"""Secrets: one ring of master keys, and a sub-key of its own for every purpose.

A master key is never used itself. HKDF-SHA256 (RFC 5869) makes a sub-key for each pair of
purpose and handler path, so a token made for one place never verifies in another. The
first key of a ring signs, all of them verify, and the id of the key travels in the token,
so a token costs one check however long the ring is.
"""

import base64
import hmac
import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .clock import Clock
from .errors import ConfigError

__all__ = ["EPOCH_BYTES", "PIECE", "HourlyKeys", "KeyRing", "Keys", "Secret", "derived", "joined"]

Secret: TypeAlias = bytes | str
"""One master secret: at least 32 bytes, or a str that stands for its UTF-8 bytes."""

SHORTEST: Final = 32
LARGEST_RING: Final = 64
FEWEST_DISTINCT: Final = 10
LONGEST_PERIOD: Final = 16

PIECE: Final = 2047
"""How many bytes OpenSSL is given at once where requests wait for it: for more its callers give up the interpreter lock
and then wait for it, 5 ms at a time beside a busy thread."""

EPOCH_BYTES: Final = 4
EPOCH_MS: Final = 3_600_000
KEPT_EPOCHS: Final = 1024

# Published defaults and the words that mark a line of documentation. Compared without case
# and punctuation, and long enough that no random secret in hex or base64 holds one by chance.
PLACEHOLDERS: Final = (
    "changeme", "changethis", "changeinproduction", "replaceme", "replacethis",
    "yoursecret", "yourownsecret", "yourownrandom", "your256bit", "yourkeyhere",
    "secretkeyhere", "insertsecret", "insertyour", "putyour", "placeholder",
    "djangoinsecure", "notagreatsecret", "supersecretkey", "thisisasecret", "thisismysecret",
    "thisismyscretkey", "thisisnotasecret", "donotuseinproduction", "notsecureatall",
    "insecuresecret", "insecurekey", "astringsecretatleast", "temporarykey", "testnondevsecret",
    "complexrandomsecret", "somesecretkey", "secretsecretsecret", "passwordpassword", "supersecretjwttoken",
    "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    "sk9f73s3ljtxvcmt3blb3ljtqtskighxvcmt3blbkfjlk7u",
    "hpryyvrimyxpw5sbb1xecmn1kfsdcqkvbi2qjxbvhqk", "255d861b5ea159969aa3922530ec40b1",
    "6116487bcda152c2b5b5c8022c45e263",
    "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
)  # fmt: skip


class KeyRing:
    """One or more master secrets, newest first: the first signs, all verify.

    To roll a key over several machines, deploy ``[old, new]`` first and ``[new, old]`` next;
    take the old one out when no token of its time can be live. ``realm`` keeps apart two
    deployments that share a secret. Raises ConfigError for a secret that is short, repeated
    or a well-known placeholder; ``sessiontree keygen`` prints a good one. A ring is
    immutable, hashable, and never shows a secret.
    """

    __slots__ = ("_fingerprints", "_ids", "_masters", "_realm")

    def __init__(self, secrets: Secret | Iterable[Secret], *, realm: str = "") -> None:
        """Take one secret, or a list of them with the newest first."""
        masters = [_master(secret) for secret in _listed(secrets)]
        if not 1 <= len(masters) <= LARGEST_RING:
            raise ConfigError(f"A key ring holds 1 to {LARGEST_RING} secrets, not {len(masters)}.")
        if type(realm) is not str:
            raise ConfigError("The realm of a key ring must be a str, for example 'staging'.")
        self._masters = tuple(masters)
        self._realm = realm
        self._ids = tuple(self._name(master) for master in masters)
        self._fingerprints = tuple(self._subkey(master, "fingerprint") for master in masters)
        if len(set(self._ids)) != len(self._ids):
            raise ConfigError("The key ring holds one secret twice: remove the copy.")

    @classmethod
    def of(cls, keys: "Keys") -> "KeyRing":
        """Return the ring itself, or a new ring of what was given."""
        return keys if isinstance(keys, KeyRing) else cls(keys)

    @property
    def ids(self) -> tuple[str, ...]:
        """The public ids of the keys, in the ring's order; they travel in every token."""
        return self._ids

    def subkeys(self, purpose: str, path: str = "", *, form: str = "v1") -> tuple[tuple[str, bytes], ...]:
        """Return (key id, 32-byte sub-key) for every key of the ring, newest first.

        The sub-key is bound to the format, the purpose, the realm and the handler path.
        """
        return tuple(
            (name, self._subkey(master, purpose, path, form=form))
            for name, master in zip(self._ids, self._masters, strict=True)
        )

    def sign(self, data: Secret, purpose: str) -> str:
        """Return a detached signature of the data: the key's id, a dot, and base64url of HMAC-SHA256.

        The purpose keeps uses apart: a signature for one never verifies for another.

        >>> ring = KeyRing(bytes(range(32)))
        >>> signature = ring.sign("bob@example.org", "unsubscribe")
        >>> ring.verify("bob@example.org", signature, "unsubscribe")
        True
        >>> ring.verify("bob@example.org", signature, "password reset")
        False
        """
        key = self._subkey(self._masters[0], "application", purpose)
        return f"{self._ids[0]}.{_signature(key, data)}"

    def verify(self, data: Secret, signature: str, purpose: str) -> bool:
        """Tell whether ``sign`` made this signature of the data with any key of this ring.

        Compared in constant time; whatever the signature is, the answer is a bool.
        """
        name, _, mac = str(signature).partition(".")
        if name not in self._ids:
            return False
        key = self._subkey(self._masters[self._ids.index(name)], "application", purpose)
        return hmac.compare_digest(_signature(key, data).encode(), mac.encode("utf-8", "replace"))

    def __eq__(self, other: object) -> bool:
        """Tell whether the other ring holds the same secrets in the same order and realm."""
        if not isinstance(other, KeyRing):
            return NotImplemented
        pairs = zip(self._fingerprints, other._fingerprints, strict=False)
        same = [hmac.compare_digest(mine, theirs) for mine, theirs in pairs]
        return len(self._fingerprints) == len(other._fingerprints) and all(same)

    def __hash__(self) -> int:
        """Hash the fingerprints, from which no secret can be had."""
        return hash(self._fingerprints)

    def __repr__(self) -> str:
        """Show the public ids only."""
        return f"KeyRing(ids={list(self._ids)})"

    def _name(self, master: bytes) -> str:
        """Return the public id of a key: 8 characters of base32, of a sub-key used for nothing else."""
        digest = _hkdf(master, _context("v1", "key id", "", ""))
        return base64.b32encode(digest[:5]).decode().lower()

    def _subkey(self, master: bytes, purpose: str, path: str = "", *, form: str = "v1") -> bytes:
        return _hkdf(master, _context(form, purpose, self._realm, path))


class HourlyKeys:
    """The AES-GCM keys of one sub-key, one for every hour.

    A random nonce of 96 bits is safe for about 2^32 messages under one key (NIST SP 800-38D), so every hour has a key
    of its own. A message names it by its epoch: the number of the hour since 1970, in ``EPOCH_BYTES`` bytes.
    """

    __slots__ = ("_clock", "_kept", "_latest", "_subkey")

    def __init__(self, subkey: bytes, clock: Clock) -> None:
        """Derive them from a sub-key; the clock tells the hour."""
        self._subkey = subkey
        self._clock = clock
        self._kept: dict[bytes, AESGCM] = {}
        self._latest: tuple[int, bytes, AESGCM] | None = None

    def latest(self) -> tuple[int, bytes, AESGCM]:
        """Return this hour's number, its epoch and its key."""
        number = self._clock.now() // EPOCH_MS
        latest = self._latest
        return latest if latest is not None and latest[0] == number else self._next(number)

    def known(self, epoch: bytes) -> AESGCM | None:
        """Return a key that was kept."""
        return self._kept.get(epoch)

    def derive(self, epoch: bytes) -> AESGCM:
        """Return the key of any epoch."""
        return AESGCM(derived(self._subkey, "epoch", epoch.hex()))

    def is_to_come(self, epoch: bytes) -> bool:
        """Tell whether an hour lies ahead, of this and of the next, which another machine's clock may have begun."""
        return int.from_bytes(epoch, "big") > self._clock.now() // EPOCH_MS + 1

    def keep(self, epoch: bytes, cipher: AESGCM) -> None:
        """Keep a key that fitted; one that did not is not kept, so that forged epochs push nothing out."""
        if epoch not in self._kept:
            if len(self._kept) >= KEPT_EPOCHS:
                self._kept.clear()
            self._kept[epoch] = cipher

    def _next(self, number: int) -> tuple[int, bytes, AESGCM]:
        epoch = max(number, 0).to_bytes(EPOCH_BYTES, "big")  # A clock from before 1970 has a key all the same.
        cipher = self.known(epoch) or self.derive(epoch)
        self.keep(epoch, cipher)
        self._latest = latest = number, epoch, cipher
        return latest


Keys: TypeAlias = KeyRing | Secret | list[Secret] | tuple[Secret, ...]
"""What a handler takes as its keys: a ring, one secret, or a list of secrets with the newest first."""


def _listed(secrets: Secret | Iterable[Secret]) -> list[Secret]:
    """Return the secrets as a list; a bare str or bytes is one secret and never iterated."""
    if isinstance(secrets, bytes | str):
        return [secrets]
    if isinstance(secrets, list | tuple):
        return list(secrets)
    raise ConfigError(
        f"Keys must be bytes, a str, or a list of them with the newest first, not {type(secrets).__name__}: "
        "`sessiontree keygen` prints a good one."
    )


def _master(secret: Secret) -> bytes:
    """Return the bytes of one secret that is fit to be one."""
    if not isinstance(secret, bytes | str):
        raise ConfigError(f"A secret must be bytes or a str, not {type(secret).__name__}.")
    try:
        master = secret.encode() if isinstance(secret, str) else bytes(secret)
    except UnicodeEncodeError:
        raise ConfigError("A secret given as a str must be valid text: pass bytes.") from None
    weakness = _weakness(master)
    if weakness:
        raise ConfigError(f"The secret {weakness}: use the output of `sessiontree keygen`.")
    return master


def _weakness(master: bytes) -> str | None:
    """Say why these bytes are no secret, or return None (OWASP ASVS 13.3.1, CVE-2023-27524)."""
    if len(master) < SHORTEST:
        return f"has {len(master)} bytes and needs {SHORTEST}"
    if len(set(master)) < FEWEST_DISTINCT:
        return f"has fewer than {FEWEST_DISTINCT} distinct bytes"
    if any(master == (master[:n] * (len(master) // n + 1))[: len(master)] for n in range(1, LONGEST_PERIOD + 1)):
        return "repeats one short piece"
    plain = re.sub(rb"[^a-z0-9]", b"", master.lower()).decode()
    if any(word in plain for word in PLACEHOLDERS):
        return "is a well-known placeholder"
    return None


def joined(parts: Iterable[bytes]) -> bytes:
    """Return the parts as one, each with its length in front, so that no two lists of parts give the same bytes."""
    return b"".join([len(part).to_bytes(4, "big") + part for part in parts])


def _context(*fields: str) -> bytes:
    try:
        return joined(map(str.encode, fields))
    except (TypeError, UnicodeEncodeError):
        raise ConfigError(f"A purpose, name or realm must be valid text, not one of {fields!r}.") from None


def derived(key: bytes, *fields: str) -> bytes:
    """Return a 32-byte sub-key of a sub-key, bound to the fields."""
    return _hkdf(key, _context(*fields))


def _hkdf(master: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), length=32, salt=None, info=info).derive(master)


def _signature(key: bytes, data: Secret) -> str:
    if not isinstance(data, bytes | str):
        raise ConfigError(f"Only bytes and str can be signed, not {type(data).__name__}: encode the data first.")
    raw = data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(hmac.digest(key, raw, "sha256")).rstrip(b"=").decode()
