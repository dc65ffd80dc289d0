"""Tokens: bytes to text that only a holder of the key can make, and back.

``v1.<key id>.<body>``; the body is one run of standard base64 without padding characters.
Signed, it is the padded content and the HMAC-SHA256 of it. Sealed, it is a 4-byte epoch, a
12-byte nonce, and the padded content in segments of AES-256-GCM. What a token is for never
stands in it: format, purpose, realm and handler path are in the sub-key, so a token shown
anywhere else is simply one that does not verify.

A token has exactly one spelling. Blanks at the content's end make the body a multiple of three bytes,
so base64 has neither ``=`` nor a spare bit that could be flipped unseen. They stay when a token is
opened: JSON ignores them, and cutting them off would copy every token once more.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from ..clock import Clock, SystemClock
from ..errors import BadCookie, CookieTooLarge
from ..keys import EPOCH_BYTES, PIECE, HourlyKeys, KeyRing, Keys, joined
from ..serializer import JsonSerializer
from .encoding import NONCE_BYTES, decode, encode, nonce
from .remembered import Remembered, TokenCodec

__all__ = [
    "LARGEST_TOKEN",
    "CookieCodec",
    "FieldSealer",
    "SealedTokens",
    "SignedTokens",
    "token_codec",
]

VERSION: Final = "v1"
LARGEST_TOKEN: Final = 4093
MAC_BYTES: Final = 32
TAG_BYTES: Final = 16
HEADER_BYTES: Final = EPOCH_BYTES + NONCE_BYTES
SEGMENT: Final = PIECE - TAG_BYTES
LONGEST_SINGLE: Final = SEGMENT - 2
PADDINGS: Final = (b"", b" ", b"  ")
# A segment's associated data is its place and their number, so that none can be moved, dropped or added.
ONLY: Final = bytes((0, 1))
FIRST: Final = bytes((0, 2))
SECOND: Final = bytes((1, 2))


def token_codec(keys: KeyRing, purpose: str, path: str, *, sealed: bool, clock: Clock) -> TokenCodec:
    """Return the codec for one purpose of one handler path."""
    return SealedTokens(keys, purpose, path, clock) if sealed else SignedTokens(keys, purpose, path)


class SignedTokens:
    """Tokens that anyone can read and only a holder of the key can make."""

    __slots__ = ("_mac", "_macs", "_prefix_size", "current", "seal")

    seal: Callable[[bytes], str]
    """Returns the token that holds the content."""

    def __init__(self, keys: KeyRing, purpose: str, path: str) -> None:
        """Bind to a ring, a purpose and a handler path."""
        subkeys = keys.subkeys(f"{purpose}/signed", path, form=VERSION)
        self._macs = {_prefix(name): HMAC(key, SHA256()) for name, key in subkeys}
        self.current = _prefix(subkeys[0][0])
        self._mac = self._macs[self.current]
        self._prefix_size = len(self.current)
        self.seal = self.sealer()

    def sealer(self, before: str = "", after: str = "") -> Callable[[bytes], str]:
        """Return a function that returns the token for a content, with this text around it."""
        start, keyed = before + self.current, self._mac

        def seal(content: bytes) -> str:
            content += PADDINGS[-(len(content) + MAC_BYTES) % 3]
            mac = keyed.copy()
            if len(content) <= PIECE:
                mac.update(content)
            else:
                _feed(mac, content)
            return f"{start}{encode(content + mac.finalize())}{after}"

        return seal

    def open(self, token: str) -> bytes:
        """Return the content, maybe with blanks behind it; raise BadCookie for any text that is no such token."""
        size = self._prefix_size
        try:
            mac = self._macs[token[:size]].copy()
            raw = _body(token, size)
            content = raw[:-MAC_BYTES]
            if len(content) <= PIECE:
                mac.update(content)
            else:
                _feed(mac, content)
            mac.verify(raw[-MAC_BYTES:])
        except (KeyError, ValueError, InvalidSignature):
            raise _refusal() from None
        return content


class SealedTokens:
    """Tokens that only a holder of the key can make or read."""

    __slots__ = ("_keys", "_prefix_size", "current", "seal")

    seal: Callable[[bytes], str]
    """Returns the token that holds the content."""

    def __init__(self, keys: KeyRing, purpose: str, path: str, clock: Clock) -> None:
        """Bind to a ring, a purpose, a handler path, and the clock that tells the epoch."""
        subkeys = keys.subkeys(f"{purpose}/sealed", path, form=VERSION)
        self._keys = {_prefix(name): HourlyKeys(key, clock) for name, key in subkeys}
        self.current = _prefix(subkeys[0][0])
        self._prefix_size = len(self.current)
        self.seal = self.sealer()

    def sealer(self, before: str = "", after: str = "") -> Callable[[bytes], str]:
        """Return a function that returns the token for a content, with this text around it."""
        start, latest = before + self.current, self._keys[self.current].latest

        def seal(content: bytes) -> str:
            _, epoch, cipher = latest()
            first = nonce()
            if len(content) <= LONGEST_SINGLE:
                content += PADDINGS[-(len(content) + HEADER_BYTES + TAG_BYTES) % 3]
                return f"{start}{encode(epoch + first + cipher.encrypt(first, content, ONLY))}{after}"
            content += PADDINGS[-(len(content) + HEADER_BYTES + 2 * TAG_BYTES) % 3]
            head = cipher.encrypt(first, content[:SEGMENT], FIRST)
            tail = cipher.encrypt(_next(first), content[SEGMENT:], SECOND)
            return f"{start}{encode(b''.join((epoch, first, head, tail)))}{after}"

        return seal

    def open(self, token: str) -> bytes:
        """Return the content, maybe with blanks behind it; raise BadCookie for any text that is no such token."""
        size = self._prefix_size
        try:
            keys = self._keys[token[:size]]
            raw = _body(token, size)
            cipher = keys.known(raw[:EPOCH_BYTES])
            return _opened_of_new_epoch(keys, raw) if cipher is None else _opened(cipher, raw)
        except (KeyError, ValueError, InvalidTag):
            raise _refusal() from None


class FieldSealer:
    """Seals the contents of a store's fields, each bound to its session and key, so that none fits elsewhere.

    A sealed field is the key's id, an epoch, a nonce, and AES-256-GCM. Whoever can write to the store can still put
    an older content of the same field back.
    """

    __slots__ = ("_current", "_keys")

    def __init__(self, keys: KeyRing, path: str, clock: Clock) -> None:
        """Bind to a ring, a handler path, and the clock that tells the epoch."""
        subkeys = keys.subkeys("field/sealed", path, form=VERSION)
        self._keys = {name: HourlyKeys(key, clock) for name, key in subkeys}
        self._current = subkeys[0][0]

    def seal(self, content: bytes, *place: str) -> bytes:
        """Return the content sealed for this place: the session's handle and the key."""
        _, epoch, cipher = self._keys[self._current].latest()
        once, bound = nonce(), joined(map(str.encode, place))
        return b"".join((self._current.encode(), epoch, once, cipher.encrypt(once, content, bound)))

    def open(self, sealed: bytes, *place: str) -> bytes:
        """Return the content; raise ValueError if it was not sealed for this place with a key of the ring."""
        size = len(self._current)
        name, epoch = sealed[:size].decode("ascii", "replace"), sealed[size : size + EPOCH_BYTES]
        start = size + HEADER_BYTES
        once = sealed[size + EPOCH_BYTES : start]
        try:
            keys = self._keys[name]
            cipher = keys.known(epoch) or _derived(keys, epoch)
            content = cipher.decrypt(once, sealed[start:], joined(map(str.encode, place)))
        except (KeyError, ValueError, InvalidTag):
            raise ValueError("A sealed field does not open: it was altered, moved, or its key is gone.") from None
        keys.keep(epoch, cipher)
        return content


class CookieCodec:
    """Signed (or encrypted) maps as text, by themselves: no request, no session, no cookie attributes.

    ``encode`` takes values and, for some of their keys, deadlines in integer milliseconds since the
    epoch; ``decode`` gives both back. What a deadline means is the caller's affair.

    >>> codec = CookieCodec("basket", bytes(range(32)))
    >>> codec.decode(codec.encode({"apples": 3}, {"apples": 1_900_000_000_000}))
    ({'apples': 3}, {'apples': 1900000000000})
    """

    __slots__ = ("_serializer", "_tokens")

    def __init__(self, name: str, keys: Keys, *, encrypted: bool = False, clock: Clock | None = None) -> None:
        """Bind to a name, so that text made for one name never decodes for another."""
        ring = KeyRing.of(keys)
        tokens = token_codec(ring, "cookie codec", name, sealed=encrypted, clock=clock or SystemClock())
        self._tokens = Remembered(tokens, bytes)
        self._serializer = JsonSerializer()

    def encode(self, values: Mapping[str, Any], expiries: Mapping[str, int] | None = None) -> str:
        """Return the text that holds both maps.

        Raises TypeError for a value that would not come back exactly, CookieTooLarge above 4093 characters.
        """
        token = self._tokens.seal(self._serializer.dumps([dict(values), dict(expiries or {})]))
        if len(token) > LARGEST_TOKEN:
            raise CookieTooLarge(f"The text has {len(token)} characters and may have {LARGEST_TOKEN}: keep less in it.")
        return token

    def decode(self, text: str) -> tuple[dict[str, Any], dict[str, int]]:
        """Return the values and the expiries; raise BadCookie if ``encode`` did not make this text."""
        if not isinstance(text, str):
            raise _refusal()
        both: Any = self._serializer.loads(self._tokens.open(text))
        return both[0], both[1]


def _prefix(key_id: str) -> str:
    return f"{VERSION}.{key_id}."


def _body(token: str, start: int) -> bytes:
    """Return the bytes of a token's body; raise ValueError for what is too long, and for another spelling of it.

    Our bodies are whole groups of three bytes, so base64 that is padded is not how we spell one.
    """
    if len(token) > LARGEST_TOKEN or token.endswith("="):
        raise ValueError("No token of ours is so long, or padded.")
    return decode(token[start:])


def _refusal() -> BadCookie:
    """Return the one answer to every token that does not verify: it must not say why (ASVS 11.2.5)."""
    return BadCookie("The token does not verify.")


def _feed(mac: HMAC, content: bytes) -> None:
    """Take a large content in; no token is larger than two pieces, neither of which gives up the interpreter lock."""
    mac.update(content[:PIECE])
    mac.update(content[PIECE:])


def _derived(keys: HourlyKeys, epoch: bytes) -> AESGCM:
    """Return the key of an epoch that may be; raise ValueError for one to come."""
    if keys.is_to_come(epoch):
        raise ValueError("The epoch lies in the future.")
    return keys.derive(epoch)


def _opened_of_new_epoch(keys: HourlyKeys, raw: bytes) -> bytes:
    epoch = raw[:EPOCH_BYTES]
    cipher = _derived(keys, epoch)
    content = _opened(cipher, raw)
    keys.keep(epoch, cipher)
    return content


def _opened(cipher: AESGCM, raw: bytes) -> bytes:
    """Return the content of a sealed body of one or two segments; no token is large enough for three."""
    first = raw[EPOCH_BYTES:HEADER_BYTES]
    if len(raw) <= HEADER_BYTES + PIECE:
        return cipher.decrypt(first, raw[HEADER_BYTES:], ONLY)
    middle = HEADER_BYTES + PIECE
    return cipher.decrypt(first, raw[HEADER_BYTES:middle], FIRST) + cipher.decrypt(_next(first), raw[middle:], SECOND)


def _next(first: bytes) -> bytes:
    """Return the second segment's nonce: the first's with one bit turned, so that each token uses up a pair."""
    return first[:-1] + bytes((first[-1] ^ 1,))
