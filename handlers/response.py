"""Response headers: ours joined to the application's, and the few answers that we give ourselves."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from ..errors import StoreUnavailable

if TYPE_CHECKING:
    from wsgiref.types import StartResponse

    from .environ import Environ
    from .transport import Header

__all__ = ["NO_STORE", "merged", "refuse", "refuse_for"]

NO_STORE: Final = ("Cache-Control", "no-store")
RETRY_AFTER_SECONDS: Final = 5
HARMLESS: Final = frozenset(
    {"Content-Type", "Content-Length", "Content-Language", "Content-Disposition", "Location", "ETag", "Last-Modified"}
    | {"Date", "Server", "X-Frame-Options", "X-Content-Type-Options", "Referrer-Policy", "Content-Security-Policy"}
    | {"Cross-Origin-Opener-Policy", "Strict-Transport-Security", "Permissions-Policy", "Allow", "Retry-After"}
)
"""Some of the response headers, as they are commonly spelled, that have nothing to do with ours."""


def merged(headers: "list[Header]", ours: "list[Header]", vary: str) -> "list[Header]":
    """Return a new list: the application's headers, our own, Vary, and no caching of what sets a cookie.

    The application's list is left alone, for it may serve many requests.
    """
    for name, _ in headers:
        if name not in HARMLESS:
            return _merged_one_by_one(headers, ours, vary)
    return [*headers, *ours, ("Vary", vary), NO_STORE] if ours else [*headers, ("Vary", vary)]


def _merged_one_by_one(headers: "list[Header]", ours: "list[Header]", vary: str) -> "list[Header]":
    result: list[Header] = []
    varied: list[str] = []
    cached: list[str] = []
    for header in headers:
        name = header[0].lower()
        if name == "vary":
            varied.append(header[1])
        elif ours and name == "cache-control":
            cached.append(header[1])
        elif not (ours and _is_set_again(name, header[1], ours)):
            result.append(header)
    result += ours
    result.append(("Vary", _varied(varied, vary)))
    if ours:
        result += [("Cache-Control", value) for value in cached] if cached and _is_private(cached) else [NO_STORE]
    return result


def _is_set_again(name: str, value: str, ours: "list[Header]") -> bool:
    """Tell whether we send this header or cookie too: one name, one Set-Cookie (RFC 6265bis 4.1.1)."""
    if name != "set-cookie":
        return any(own.lower() == name for own, _ in ours)
    start = value.partition("=")[0] + "="
    return any(text.startswith(start) for own, text in ours if own == "Set-Cookie")


def _varied(present: list[str], wanted: str) -> str:
    """Join what the response already varies on with what it must vary on; ``*`` says it all."""
    names = [name.strip() for value in present for name in value.split(",") if name.strip()]
    if "*" in names:
        return "*"
    lower = {name.lower() for name in names}
    return ", ".join(names + [name for name in wanted.split(", ") if name.lower() not in lower])


def _is_private(values: list[str]) -> bool:
    """Tell whether no cache between us and the browser would keep the response, cookie and all (RFC 9111 7.3)."""
    directives = {part.partition("=")[0].strip().lower() for value in values for part in value.split(",")}
    return bool(directives & {"private", "no-store"}) and not directives & {"public", "s-maxage"}


def refuse(
    environ: "Environ",
    start_response: "StartResponse",
    status: str,
    headers: "Iterable[Header]" = (),
    exc_info: Any = None,
) -> list[bytes]:
    """Answer with a status and its name as plain text, never to be cached."""
    body = f"{status}\n".encode()
    fixed = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), NO_STORE]
    start_response(status, [*fixed, *headers], *([exc_info] if exc_info else []))
    return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else body]


def refuse_for(
    environ: "Environ",
    start_response: "StartResponse",
    error: Exception,
    headers: "Iterable[Header]" = (),
    exc_info: Any = None,
) -> list[bytes]:
    """Answer 503 for a store that did not respond, 409 for a request that came too late."""
    if isinstance(error, StoreUnavailable):
        retry = ("Retry-After", str(RETRY_AFTER_SECONDS))
        return refuse(environ, start_response, "503 Service Unavailable", [retry, *headers], exc_info)
    return refuse(environ, start_response, "409 Conflict", headers, exc_info)
