"""Cookies as browsers understand them: the policy, the Set-Cookie line, and our scan of the Cookie header.

Written against draft-ietf-httpbis-rfc6265bis (6265bis below) and for our own cookies only: nothing
of a neighbour's cookie is ever decoded, and no neighbour can hide ours.
"""

import re
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Final, Literal, get_args

from ..errors import ConfigError

__all__ = ["LARGEST_SET_COOKIE", "LONGEST_COOKIE_LIFE", "CookiePolicy", "CookieWriter", "cookie_values", "lasting"]

LARGEST_SET_COOKIE: Final = 4093
"""The most octets of a whole Set-Cookie value, attributes included, that every browser keeps."""

LONGEST_COOKIE_LIFE: Final = 34_560_000
"""The longest Max-Age that browsers honour, in seconds: 400 days (6265bis section 5.5)."""

LARGEST_HEADER: Final = 16_384
MOST_DUPLICATES: Final = 8
LARGEST_PATH: Final = 1024
LARGEST_DOMAIN: Final = 253
LARGEST_NAME: Final = 256

SameSite = Literal["Strict", "Lax", "None"]

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_PATH: Final = re.compile(r"/[!-+\--:<-~]*", re.ASCII)
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_THE_PAST: Final = "Thu, 01 Jan 1970 00:00:00 GMT"
_PREFIXES: Final = ("__Host-Http-", "__Host-", "__Http-", "__Secure-")


@dataclass(frozen=True, slots=True)
class CookiePolicy:
    """Every attribute of a session cookie, checked together when it is built.

    ``name`` is ``__Host-`` and the handler's name unless given. ``insecure_dev=True`` is for clients
    on plain http: the plain handler name, no Secure, and a warning. Raises ConfigError for whatever
    a browser would refuse or ignore (6265bis sections 4.1.3 and 5.7).
    """

    name: str | None = None
    domain: str | None = None
    path: str = "/"
    secure: bool = True
    http_only: bool = True
    same_site: SameSite = "Lax"
    partitioned: bool = False
    insecure_dev: bool = False

    def __post_init__(self) -> None:
        """Check every attribute, and all of them together."""
        for flag in (field.name for field in fields(self) if field.type is bool):
            if type(getattr(self, flag)) is not bool:
                raise ConfigError(f"CookiePolicy({flag}=...) must be True or False.")
        self._check_domain_and_path()
        self._check_security()
        if self.name is not None:
            self._check_name(self.name)

    @property
    def sends_secure(self) -> bool:
        """Whether the cookie carries Secure: always, but with ``insecure_dev=True``."""
        return not self.insecure_dev

    def name_for(self, handler: str) -> str:
        """Return the cookie's name for the handler of that name."""
        if self.name is not None:
            return self.name
        name = handler if self.insecure_dev else f"__Host-{handler}"
        self._check_name(name)
        return name

    def _check_domain_and_path(self) -> None:
        if self.domain is not None and not _is_domain(self.domain):
            raise ConfigError(f"The cookie domain {self.domain!r} is no host name: write it as in 'example.com'.")
        if not isinstance(self.path, str) or not _PATH.fullmatch(self.path) or len(self.path) > LARGEST_PATH:
            raise ConfigError(
                f"The cookie path {self.path!r} must start with '/', hold no ';', ',' or control character, "
                f"and have at most {LARGEST_PATH} characters."
            )

    def _check_security(self) -> None:
        if self.same_site not in get_args(SameSite):
            raise ConfigError(f"same_site must be 'Strict', 'Lax' or 'None', not {self.same_site!r}.")
        if not self.secure and not self.insecure_dev:
            raise ConfigError("A cookie without Secure is sent over plain http: say insecure_dev=True if you mean it.")
        if self.insecure_dev and self.same_site == "None":
            raise ConfigError("SameSite=None needs Secure: take insecure_dev=True away, or use 'Lax'.")
        if self.insecure_dev and self.partitioned:
            raise ConfigError("Partitioned needs Secure: take insecure_dev=True away.")

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not _TOKEN.fullmatch(name) or len(name) > LARGEST_NAME:
            raise ConfigError(f"The cookie name {name!r} must be an RFC 9110 token: letters, digits, '-', '_', '.'.")
        prefix = next((known for known in _PREFIXES if name.lower().startswith(known.lower())), None)
        if prefix is None:
            return
        if not name.startswith(prefix):
            raise ConfigError(f"The cookie name {name!r} must spell its prefix {prefix}, as browsers compare it.")
        if not self.sends_secure:
            raise ConfigError(f"A {prefix} cookie needs Secure: take insecure_dev=True away, or the prefix.")
        if "Host-" in prefix and (self.domain is not None or self.path != "/"):
            raise ConfigError(f"A {prefix} cookie has Path=/ and no Domain: name it '__Secure-...' instead.")
        if "Http-" in prefix and not self.http_only:
            raise ConfigError(f"A {prefix} cookie needs http_only=True.")


def _is_domain(text: str) -> bool:
    return isinstance(text, str) and len(text) <= LARGEST_DOMAIN and _DOMAIN.fullmatch(text) is not None


class CookieWriter:
    """Knows what stands around the value in the Set-Cookie lines of one policy; all of it is joined beforehand."""

    __slots__ = ("after", "before", "erasure")

    def __init__(self, policy: CookiePolicy, name: str) -> None:
        """Join the attributes of the policy."""
        parts = [
            f"Domain={policy.domain}" if policy.domain else "",
            f"Path={policy.path}",
            "Secure" if policy.sends_secure else "",
            "HttpOnly" if policy.http_only else "",
            f"SameSite={policy.same_site}",
            "Partitioned" if policy.partitioned else "",
        ]
        self.before = f"{name}="
        self.after = "".join(f"; {part}" for part in parts if part)
        # Browsers remove a cookie only if the attributes that identify it are repeated (6265bis 5.7).
        self.erasure = f"{self.before}{self.after}; Max-Age=0; Expires={_THE_PAST}"


def lasting(seconds: int, now: int) -> str:
    """Return the attributes of a cookie that outlives the browser, at most 400 days (6265bis 5.5)."""
    seconds = min(seconds, LONGEST_COOKIE_LIFE)
    return f"; Max-Age={seconds}; Expires={_http_date(now + seconds)}"


@lru_cache(maxsize=64)
def _http_date(seconds: int) -> str:
    from email.utils import formatdate  # noqa: PLC0415 - a fifth of our import time, and few cookies persist

    return formatdate(seconds, usegmt=True)


def cookie_values(name: str, header: str) -> list[str]:
    """Return the values of every cookie of exactly this name in a Cookie header, in its order.

    Pairs end at ``;`` and nowhere else; a name and a value lose the blanks around them; quotes and
    percent signs mean nothing (6265bis section 5.6). Linear in the header; a header above 16 KiB
    counts as empty, and no more than eight values are looked at.
    """
    if len(header) > LARGEST_HEADER:
        return []
    start = header.find(name)
    if start < 0:
        return []
    after = start + len(name)
    if header.startswith("=", after) and (not start or header[start - 2 : start] == "; "):
        # A well-formed pair: unless the name stands once more behind it, this is the only one.
        end = header.find(";", after)
        if end < 0:
            return [header[after + 1 :].strip(" \t")]
        if header.find(name, end) < 0:
            return [header[after + 1 : end].strip(" \t")]
    return _all_values(header, name, start)


def _all_values(header: str, name: str, start: int) -> list[str]:
    """Return the values of every pair of this name, the first of which may begin at ``start``."""
    values: list[str] = []
    while start >= 0 and len(values) < MOST_DUPLICATES:
        after = start + len(name)
        if _begins_pair(header, start):
            equals = _skip_blanks(header, after)
            if header[equals : equals + 1] == "=":
                end = header.find(";", equals)
                values.append(header[equals + 1 : end if end >= 0 else len(header)].strip(" \t"))
        start = header.find(name, after)
    return values


def _begins_pair(header: str, start: int) -> bool:
    """Tell whether only blanks lie between this place and the ``;`` or the start before it."""
    before = start - 1
    while before >= 0 and header[before] in " \t":
        before -= 1
    return before < 0 or header[before] == ";"


def _skip_blanks(header: str, place: int) -> int:
    while header[place : place + 1] in (" ", "\t"):
        place += 1
    return place
