"""For tests of applications: a clock that stands still, a browser's cookie jar, and a store that fails on demand."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from threading import Event, Lock
from typing import Any, Final

from .clock import Clock, Duration, FakeClock, SystemClock, milliseconds
from .errors import StoreUnavailable
from .records import Changes, Page, Record, Version
from .stores.announced import announced
from .stores.announcing import OnChange, Stop
from .stores.protocol import PAGE, Store

__all__ = ["CookieJar", "FakeClock", "FaultyStore", "StoredCookie"]

LARGEST_PAIR: Final = 4096
LARGEST_ATTRIBUTE: Final = 1024
MOST_PER_HOST: Final = 180
LONGEST_LIFE_MS: Final = 400 * 86_400_000

_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_MAX_AGE: Final = re.compile(r"-?[0-9]+", re.ASCII)
_ADDRESS: Final = re.compile(r"[0-9.]+|.*:.*")
_SAME_SITE: Final = {"strict": "Strict", "lax": "Lax", "none": "None"}


@dataclass(slots=True)
class StoredCookie:
    """One cookie as a browser keeps it; times are milliseconds since the epoch, None lasts for the browser session."""

    name: str
    value: str
    domain: str
    host_only: bool = True
    path: str = "/"
    secure: bool = False
    http_only: bool = False
    same_site: str = "Default"
    partitioned: bool = False
    expires: int | None = None
    created: int = 0
    order: int = field(default=0, repr=False)


class CookieJar:
    """A browser's cookie store, after RFC 6265bis sections 5.6 to 5.8, for requests of one site and navigations to it.

    It refuses what browsers refuse: oversized pairs, control characters, Secure from plain http,
    ``__Host-`` and ``__Secure-`` cookies without what they promise. ``clock`` decides what has expired.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        """Begin empty."""
        self._clock = clock or SystemClock()
        self._cookies: dict[tuple[str, str, bool, str], StoredCookie] = {}
        self._count = 0

    def store(self, set_cookie: str, host: str = "example.org", path: str = "/", *, secure: bool = True) -> bool:
        """Take one Set-Cookie value from a response to ``host`` and ``path``; tell whether it was kept.

        A cookie that deletes another one counts as not kept.
        """
        cookie = self._parsed(set_cookie, host.lower(), path)
        if cookie is None or not _acceptable(cookie, secure=secure) or not self._may_overlay(cookie, secure=secure):
            return False
        key = (cookie.name, cookie.domain, cookie.host_only, cookie.path)
        old = self._cookies.pop(key, None)
        if cookie.expires is not None and cookie.expires <= self._clock.now():
            return False
        self._count += 1
        cookie.created, cookie.order = (old.created, old.order) if old else (self._clock.now(), self._count)
        self.cookies()
        self._cookies[key] = cookie
        self._evict(cookie.domain)
        return True

    def header(
        self, host: str = "example.org", path: str = "/", *, secure: bool = True, cross_site: str | None = None
    ) -> str:
        """Return the Cookie header that a browser sends with a request; empty if it sends none.

        ``cross_site`` is the method of a navigation that began on another site's page, such as "POST" for a form there.
        """
        matching = [
            cookie
            for cookie in self.cookies()
            if _matches(cookie, host.lower(), path, secure=secure) and _comes_along(cookie, cross_site)
        ]
        matching.sort(key=lambda cookie: (-len(cookie.path), cookie.order))
        return "; ".join(f"{cookie.name}={cookie.value}" if cookie.name else cookie.value for cookie in matching)

    def cookies(self) -> list[StoredCookie]:
        """Return every cookie that has not expired."""
        now = self._clock.now()
        self._cookies = {
            key: cookie for key, cookie in self._cookies.items() if cookie.expires is None or cookie.expires > now
        }
        return list(self._cookies.values())

    def get(self, name: str) -> str | None:
        """Return the value of the cookie of this name, or None."""
        return next((cookie.value for cookie in self.cookies() if cookie.name == name), None)

    def close_browser(self) -> None:
        """Forget the cookies that last for the browser session."""
        self._cookies = {key: cookie for key, cookie in self._cookies.items() if cookie.expires is not None}

    def _parsed(self, line: str, host: str, path: str) -> StoredCookie | None:
        """Parse a Set-Cookie value (6265bis 5.6); return None for one that is ignored whole."""
        if _CONTROL.search(line):
            return None
        pair, *parts = line.split(";")
        name, equals, value = pair.partition("=")
        if not equals:
            name, value = "", pair
        name, value = name.strip(" \t"), value.strip(" \t")
        if not (name or value) or len((name + value).encode()) > LARGEST_PAIR:
            return None
        attributes = self._attributes(parts)
        domain = attributes.get("domain", "").removeprefix(".").lower()
        if domain and not _covers(domain, host):
            return None
        place = attributes.get("path", "")
        return StoredCookie(
            name,
            value,
            domain or host,
            host_only=not domain,
            path=place if place.startswith("/") else _default_path(path),
            secure="secure" in attributes,
            http_only="httponly" in attributes,
            same_site=_SAME_SITE.get(attributes.get("samesite", "").lower(), "Default"),
            partitioned="partitioned" in attributes,
            expires=self._expiry(attributes),
        )

    def _attributes(self, parts: list[str]) -> dict[str, str]:
        """Return the attributes by name in lower case: of several of one name the last, senseless times left out."""
        attributes = {}
        for part in parts:
            name, _, text = (piece.strip(" \t") for piece in part.partition("="))
            senseless = (name.lower() == "max-age" and not _MAX_AGE.fullmatch(text)) or (
                name.lower() == "expires" and _date(text) is None
            )
            if len(text.encode()) <= LARGEST_ATTRIBUTE and not senseless:
                attributes[name.lower()] = text
        return attributes

    def _expiry(self, attributes: dict[str, str]) -> int | None:
        """Return when the cookie expires: Max-Age counts before Expires, and no life is longer than 400 days."""
        now = self._clock.now()
        if "max-age" in attributes:
            seconds = int(attributes["max-age"][:12])
            return now + min(seconds * 1000, LONGEST_LIFE_MS) if seconds > 0 else 0
        moment = _date(attributes.get("expires", ""))
        return None if moment is None else min(moment, now + LONGEST_LIFE_MS)

    def _may_overlay(self, cookie: StoredCookie, *, secure: bool) -> bool:
        """Plain http may not overlay a Secure cookie (6265bis 5.7 step 16)."""
        if secure or cookie.secure:
            return True
        return not any(
            old.secure
            and old.name == cookie.name
            and (_covers(old.domain, cookie.domain) or _covers(cookie.domain, old.domain))
            and _lies_under(cookie.path, old.path)
            for old in self.cookies()
        )

    def _evict(self, domain: str) -> None:
        """Keep a host's cookies within bounds: what is not Secure goes first, then what is oldest."""
        mine = [key for key, cookie in self._cookies.items() if cookie.domain == domain]
        mine.sort(key=lambda key: (self._cookies[key].secure, self._cookies[key].order))
        for key in mine[: max(0, len(mine) - MOST_PER_HOST)]:
            del self._cookies[key]


def _date(text: str) -> int | None:
    """Return a date of any form that HTTP knows in milliseconds since the epoch; without a zone it is UTC."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _default_path(path: str) -> str:
    head = path.rpartition("/")[0]
    return head if path.startswith("/") and head else "/"


def _acceptable(cookie: StoredCookie, *, secure: bool) -> bool:
    """Check what the attributes and the name's prefix promise together (6265bis 5.7 steps 9 to 22)."""
    if cookie.secure and not secure:
        return False
    if (cookie.same_site == "None" or cookie.partitioned) and not cookie.secure:
        return False
    name = (cookie.name or cookie.value).lower()
    if name.startswith(("__secure-", "__host-", "__http-")) and (not cookie.secure or not cookie.name):
        return False
    if name.startswith("__host-") and not (cookie.host_only and cookie.path == "/"):
        return False
    return cookie.http_only or not name.startswith(("__http-", "__host-http-"))


def _covers(domain: str, host: str) -> bool:
    """Tell whether the host is the domain or lies in it; nothing lies in an address."""
    return host == domain or (host.endswith(f".{domain}") and not _ADDRESS.fullmatch(host))


def _lies_under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder if folder.endswith("/") else f"{folder}/")


def _matches(cookie: StoredCookie, host: str, path: str, *, secure: bool) -> bool:
    if cookie.secure and not secure:
        return False
    if host != cookie.domain and (cookie.host_only or not _covers(cookie.domain, host)):
        return False
    return _lies_under(path, cookie.path)


def _comes_along(cookie: StoredCookie, cross_site: str | None) -> bool:
    """Tell whether SameSite lets the cookie come with a navigation from elsewhere (6265bis 5.8.3); unset is Lax."""
    if cross_site is None or cookie.same_site == "None":
        return True
    return cookie.same_site != "Strict" and cross_site in {"GET", "HEAD", "OPTIONS", "TRACE"}


# -- a store that fails --------------------------------------------------------------------

_GARBAGE: Final = b'{"cut off'
_OPTIONAL: Final = ("apply_many", "reload", "confirm")


@dataclass(slots=True)
class _Fault:
    """What happens at one call from now."""

    left: int
    verb: str | None
    before: Callable[[], object] | None = None
    after: Callable[[Any], Any] | None = None


class FaultyStore:
    """A store in front of another one that fails, loses answers, is slow, or answers garbage, when it is told to.

    ``calls`` lists what was asked for, as pairs of the verb and its first argument, so that a test can count round
    trips. Faults are counted from the moment at which they are asked for, the next call being number 1; with a
    ``verb`` only calls of that verb count. ``close()`` fails only if it is named. It has the optional verbs that the
    store has, and no others.
    """

    def __init__(self, store: Store) -> None:
        """Stand in front of this store, and let every call through."""
        self.inner = announced(store)
        self.clock = store.clock
        self.largest = store.largest
        self.calls: list[tuple[str, object]] = []
        self._faults: list[_Fault] = []
        self._down: Callable[[], None] | None = None
        self._lock = Lock()
        for verb in _OPTIONAL:
            if hasattr(self.inner, verb):
                setattr(self, verb, partial(self._call, verb))

    # -- what goes wrong

    def fail(self, n: int = 1, error: Exception | None = None, verb: str | None = None) -> None:
        """Raise the error (StoreUnavailable, unless given) at the n-th call, which does not reach the store."""
        self._plan(_Fault(n, verb, before=_raiser(error)))

    def fail_after(self, n: int = 1, error: Exception | None = None, verb: str | None = None) -> None:
        """Lose the answer of the n-th call: the store does what was asked, and then the error is raised."""
        raised = _raiser(error)
        self._plan(_Fault(n, verb, after=lambda _: raised()))

    def delay(self, n: int, duration: Duration | Callable[[], object], verb: str | None = None) -> None:
        """Wait so many seconds before the n-th call, or call a function, such as the ``wait`` of a barrier."""
        if not callable(duration):
            seconds = milliseconds(duration) / 1000
            self._plan(_Fault(n, verb, before=lambda: Event().wait(seconds)))
        else:
            self._plan(_Fault(n, verb, before=duration))

    def corrupt(self, n: int = 1, verb: str = "load") -> None:
        """Let the records that the n-th call of the verb returns have fields that cannot be read."""
        self._plan(_Fault(n, verb, after=_corrupted))

    def down(self, error: Exception | None = None) -> None:
        """Fail every call until ``up()``."""
        self._down = _raiser(error)

    def up(self) -> None:
        """Let calls through again; single faults that were asked for stay."""
        self._down = None

    def _plan(self, fault: _Fault) -> None:
        if fault.left < 1:
            raise ValueError("The next call is number 1.")
        known = Store if fault.verb not in _OPTIONAL else self
        if fault.verb is not None and not callable(getattr(known, fault.verb, None)):
            raise ValueError(f"A store has no verb {fault.verb!r}.")
        with self._lock:
            self._faults.append(fault)

    def _due(self, verb: str) -> list[_Fault]:
        """Count this call, and return the faults that are due at it."""
        with self._lock:
            for fault in self._faults:
                if fault.verb == verb or (fault.verb is None and verb != "close"):
                    fault.left -= 1
            due = [fault for fault in self._faults if not fault.left]
            self._faults = [fault for fault in self._faults if fault.left]
        return due

    def _call(self, verb: str, *arguments: Any) -> Any:
        self.calls.append((verb, arguments[0] if arguments else None))
        due = self._due(verb)
        if self._down is not None and verb != "close":
            self._down()
        for fault in due:
            if fault.before is not None:
                fault.before()
        result = getattr(self.inner, verb)(*arguments)
        for fault in due:
            if fault.after is not None:
                result = fault.after(result)
        return result

    # -- the verbs of a store

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record | None:
        """Load, unless a fault is due."""
        record: Record | None = self._call("load", handle, keys)
        return record

    def load_many(self, handles: Sequence[str]) -> dict[str, Record]:
        """Load these, unless a fault is due."""
        records: dict[str, Record] = self._call("load_many", handles)
        return records

    def create(self, record: Record) -> None:
        """Create, unless a fault is due."""
        self._call("create", record)

    def apply(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """Apply, unless a fault is due."""
        version: Version = self._call("apply", handle, proof, changes)
        return version

    def revoke(self, handle: str) -> bool:
        """Revoke, unless a fault is due."""
        return bool(self._call("revoke", handle))

    def find(self, label: str, value: str, after: str | None = None, limit: int = PAGE) -> Page:
        """Find, unless a fault is due."""
        page: Page = self._call("find", label, value, after, limit)
        return page

    def count(self, label: str, *values: str) -> int:
        """Count, unless a fault is due."""
        return int(self._call("count", label, *values))

    def relabel(self, label: str, old: str, new: str) -> int:
        """Relabel, unless a fault is due."""
        return int(self._call("relabel", label, old, new))

    def revoke_where(self, label: str, value: str) -> int:
        """Revoke those with the label, unless a fault is due."""
        return int(self._call("revoke_where", label, value))

    def scan(self, after: str | None = None, limit: int = PAGE) -> Page:
        """Scan, unless a fault is due."""
        page: Page = self._call("scan", after, limit)
        return page

    def sweep(self, limit: int = 1000) -> int:
        """Sweep, unless a fault is due."""
        return int(self._call("sweep", limit))

    def sweep_idle(self, older_than: Duration, limit: int = 1000) -> int:
        """Sweep the idle ones, unless a fault is due."""
        return int(self._call("sweep_idle", older_than, limit))

    def watch(self, on_change: OnChange) -> Stop:
        """Watch, unless a fault is due; the feed itself does not fail."""
        stop: Stop = self._call("watch", on_change)
        return stop

    def listen(self, on_change: OnChange) -> Stop:
        """Hear of what the store behind has changed, also where its answer is lost; no fault is ever due here."""
        stop: Stop = self.inner.listen(on_change)  # type: ignore[attr-defined]
        return stop

    def close(self) -> None:
        """Close the store behind."""
        self._call("close")


def _raiser(error: Exception | None) -> Callable[[], None]:
    def raised() -> None:
        raise error or StoreUnavailable("The store does not answer, because a test told it not to.")

    return raised


def _corrupted(result: Any) -> Any:
    """Return what a verb returned with the fields of each record cut off."""
    if isinstance(result, Record):
        return result._replace(fields=_GARBAGE)
    if isinstance(result, Page):
        return result._replace(records=[_corrupted(record) for record in result.records])
    if isinstance(result, dict):
        return {handle: _corrupted(record) for handle, record in result.items()}
    return result
