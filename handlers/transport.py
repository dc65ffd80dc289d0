"""How a token travels: in a cookie, or in a header that both sides set."""

import re
from types import MethodType
from typing import Final, Protocol

from ..errors import ConfigError
from .cookie import CookiePolicy, CookieWriter, cookie_values, lasting

__all__ = ["CookieTransport", "Header", "HeaderTransport", "NoTransport", "Transport", "checked_header"]

Header = tuple[str, str]

_FIELD_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,62}", re.ASCII)
_TAKEN: Final = frozenset(
    {"cookie", "set-cookie", "content-type", "content-length", "host", "vary", "cache-control", "status"}
    # No WSGI application may send these (PEP 3333, hop-by-hop).
    | {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers", "transfer-encoding"}
    | {"upgrade"}
)


class Transport(Protocol):
    """Carries the tokens of one handler."""

    vary: str
    """The request header that responses depend on."""

    key: str
    """The environ key of the text that may hold our token."""

    response_header: str
    """The response header that new tokens travel in."""

    strict: bool
    """Whether no honest client can ever send two tokens."""

    @property
    def place(self) -> str:
        """What no two handlers of one chain may share: the cookie's or the header's name."""
        ...

    def tokens(self, source: str) -> list[str]:
        """Return what may be our token, in order."""
        ...

    before: str
    """What precedes the token in the response header's value."""

    after: str
    """What follows it there."""

    erasure: str
    """The response header's value that makes the client forget its token."""

    def lasting(self, seconds: int, now: int) -> str:
        """Return what follows in addition if the client shall keep the token so long; both times are in seconds."""
        ...


class CookieTransport:
    """Tokens in a cookie."""

    __slots__ = ("_name", "after", "before", "erasure", "strict", "tokens")

    vary: str = "Cookie"
    key: str = "HTTP_COOKIE"
    response_header: str = "Set-Cookie"

    def __init__(self, policy: CookiePolicy, name: str) -> None:
        """Carry tokens in the cookie of this policy and name."""
        writer = CookieWriter(policy, name)
        self._name = name
        # Only a host itself can set a __Host- cookie, and only one: a second one is an attack.
        self.strict = name.startswith("__Host-")
        # A function bound to its first argument: a partial is called by way of C, and this is not.
        self.tokens = MethodType(cookie_values, name)
        self.before, self.after, self.erasure = writer.before, writer.after, writer.erasure

    @property
    def place(self) -> str:
        """The cookie's name."""
        return f"the cookie name {self._name!r}"

    def lasting(self, seconds: int, now: int) -> str:
        """Return the attributes Max-Age and Expires."""
        return lasting(seconds, now)


class HeaderTransport:
    """Tokens in a header of the same name in request and response; ``Authorization`` means Bearer."""

    __slots__ = ("before", "key", "response_header", "vary")

    strict: bool = True
    after: str = ""
    erasure: str = ""

    def __init__(self, name: str) -> None:
        """Carry tokens in the header of this name."""
        self.response_header = self.vary = name
        self.key = "HTTP_" + name.upper().replace("-", "_")
        self.before = "Bearer " if name.lower() == "authorization" else ""

    @property
    def place(self) -> str:
        """The header's name, without case."""
        return f"the header {self.response_header.lower()!r}"

    def tokens(self, source: str) -> list[str]:
        """Return the header's value without its scheme, if there is one."""
        text = source.strip(" \t")
        if self.before:
            if text[: len(self.before)].lower() != self.before.lower():
                return []
            text = text[len(self.before) :].strip(" \t")
        return [text] if text else []

    def lasting(self, seconds: int, now: int) -> str:  # noqa: ARG002 - a header says nothing of time
        """Return nothing: how long it keeps a token is the client's affair."""
        return ""


class NoTransport:
    """Of server-only sessions: nothing travels."""

    __slots__ = ("place",)

    vary: str = ""
    key: str = ""
    response_header: str = ""
    strict: bool = True
    before: str = ""
    after: str = ""
    erasure: str = ""

    def __init__(self, path: str) -> None:
        """Take no place but that of the handler's path."""
        self.place = f"the path {path!r}"

    def tokens(self, source: str) -> list[str]:  # noqa: ARG002 - there are none
        """Return nothing."""
        return []

    def lasting(self, seconds: int, now: int) -> str:  # noqa: ARG002 - nothing is sent
        """Return nothing."""
        return ""


def checked_header(name: object) -> str:
    """Return the name if tokens can travel in a header of that name; raise ConfigError if not."""
    if not isinstance(name, str) or not _FIELD_NAME.fullmatch(name):
        raise ConfigError(f"with_header() takes a header name of letters, digits and '-', not {name!r}.")
    if name.lower() in _TAKEN:
        raise ConfigError(f"The header {name} has a meaning of its own: use for example 'X-Session'.")
    return name
