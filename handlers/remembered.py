"""The memory of tokens that verified lately: a browser's next request costs no check, and what it brings is read once.

A token is found by its end, which no two share, and compared whole. There are two generations: when the younger is
full it becomes the older, and what is asked for in the older moves up. No lock is needed, for a race costs at most an
entry. The keys of a codec never change, so nothing here outlives its key; and only what verified is remembered.
"""

from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["Remembered", "TokenCodec"]

T = TypeVar("T")

MEMO_CHARACTERS: Final = 1 << 19
"""How long the tokens of one generation are together at most."""

MEMO_KEY: Final = 40
"""How many of a token's last characters it is found by."""


class TokenCodec(Protocol):
    """Turns bytes into a token and back."""

    current: str
    """The start of every token that the newest key of the ring makes, and of no other."""

    def seal(self, content: bytes) -> str:
        """Return the token that holds the content."""
        ...

    def sealer(self, before: str = "", after: str = "") -> Callable[[bytes], str]:
        """Return a function that returns the token for a content, with this text around it."""
        ...

    def open(self, token: str) -> bytes:
        """Return the content, maybe with blanks behind it.

        Raises BadCookie, always the same, for any text that is no such token.
        """
        ...


class Remembered(Generic[T]):
    """The tokens of a codec, and what each of them says."""

    __slots__ = ("_old", "_read", "_room", "_tokens", "_young", "current", "seal", "sealer")

    def __init__(self, tokens: TokenCodec, read: Callable[[bytes], T]) -> None:
        """Remember nothing yet; ``read`` returns what a verified content says, or raises BadCookie."""
        self._tokens = tokens
        self._read = read
        self._young: dict[str, tuple[str, T]] = {}
        self._old: dict[str, tuple[str, T]] = {}
        self._room = MEMO_CHARACTERS
        self.current, self.seal, self.sealer = tokens.current, tokens.seal, tokens.sealer

    def open(self, token: str) -> T:
        """Return what the token says; raise BadCookie for any text that is no such token."""
        known = self._young.get(token[-MEMO_KEY:])
        if known is not None and known[0] == token:
            return known[1]
        known = self._old.get(token[-MEMO_KEY:])
        if known is None or known[0] != token:
            known = (token, self._read(self._tokens.open(token)))
        self._remember(token, known)
        return known[1]

    def _remember(self, token: str, known: tuple[str, T]) -> None:
        self._room -= len(token)
        if self._room < 0:
            self._old, self._young, self._room = self._young, {}, MEMO_CHARACTERS - len(token)
        self._young[token[-MEMO_KEY:]] = known
