"""Our sessions under measurement: handlers, applications that use them, and cookies that are known to work."""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from benchmarks.payload import COUNTER, SIZES, application_data, next_count
from benchmarks.wsgi import App, Environ, cookies_set
from sessiontree import Handler, chain, with_encryption

SECRET = "0f8e2c7d91b64a35e7c2d8f0a1b3948576fedcba"
KINDS = ("signed", "sealed")

TOKENS = 4000
"""So many that no table of a million characters can have kept one until its next turn."""

_OK = "200 OK"
_PLAIN = ("Content-Type", "text/plain")


def handler(kind: str) -> Handler:
    """Return a handler whose cookies are signed or sealed."""
    return Handler("visitor", SECRET, *([with_encryption()] if kind == "sealed" else []))


def three(root: Handler) -> list[Handler]:
    """Return the root, its child and its grandchild."""
    child = root.spawn("user")
    return [root, child, child.spawn("job")]


def bare(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    """Answer without a session."""
    start_response(_OK, [_PLAIN])
    return [b"ok"]


def reading(session_of: Handler) -> App:
    """Return an application that reads two keys."""

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        session = session_of.session(environ)
        session["user"]
        session["theme"]
        start_response(_OK, [_PLAIN])
        return [b"ok"]

    return app


def writing(session_of: Handler) -> App:
    """Return an application that reads two keys and changes a third."""

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        session = session_of.session(environ)
        session["user"]
        session["theme"]
        session[COUNTER] = next_count()
        start_response(_OK, [_PLAIN])
        return [b"ok"]

    return app


def filled(line: Sequence[Handler], data: dict[str, Any]) -> str:
    """Return the cookies of a browser whose session of every handler holds the data."""

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        for each in line:
            each.session(environ).update(data)
        start_response(_OK, [])
        return []

    return checked(line[-1], cookies_set(chain(*line)(app)), data)


def checked(session_of: Handler, cookie: str, data: dict[str, Any]) -> str:
    """Return the cookie if requests with it find the data and can change the counter; raise if not."""
    before = held(session_of, cookie)
    line = [session_of]
    while line[0].parent is not None:
        line.insert(0, line[0].parent)
    after = held(session_of, cookies_set(chain(*line)(writing(session_of)), cookie=cookie))
    if before != data or after != {**data, COUNTER: after[COUNTER]} or after == data:
        raise RuntimeError(f"{session_of!r} did not keep its data: nothing here would mean anything.")
    return cookie


def held(session_of: Handler, cookie: str) -> dict[str, Any]:
    """Return what the session of that cookie holds."""
    return dict(session_of.load({"HTTP_COOKIE": cookie}))


def renewed(session_of: Handler, cookie: str, count: int) -> list[str]:
    """Return this many different cookies of the same session, whose counters differ."""
    cookies = []
    for _ in range(count):
        session = session_of.session({"HTTP_COOKIE": cookie})
        session[COUNTER] = next_count()
        [(_, line)] = session.commit()
        cookies.append(line.partition(";")[0])
    return cookies


def envelope() -> int:
    """Return the bytes that a token's content has beyond the application's JSON."""
    data, ours = application_data(*SIZES["small"]), handler("signed")
    token = filled([ours], data).partition("=")[2]
    return len(ours.codec.open(token).content) - len(orjson.dumps(data))


def data_of(size: str, *, on_top: bool = False) -> dict[str, Any]:
    """Return data whose JSON has the size with the token's own envelope, or, with that on top, by itself."""
    length, keys = SIZES[size]
    return application_data(length if on_top else length - envelope(), keys)
