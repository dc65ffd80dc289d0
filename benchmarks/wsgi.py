"""A client without a network: one prepared environ, copied for every request."""

import io
from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any

Headers = list[tuple[str, str]]
Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

ENVIRON: Environ = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "localhost",
    "HTTP_USER_AGENT": "benchmark/1.0",
    "HTTP_ACCEPT": "*/*",
    "HTTP_ACCEPT_LANGUAGE": "en",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.input": io.BytesIO(),
    "wsgi.errors": io.StringIO(),
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
}


def _start(status: str, headers: Headers, exc_info: object = None) -> None:
    """Take the response's headers and keep nothing."""


def request(app: App, path: str = "/", *cookies: str) -> Callable[[], None]:
    """Return a call that runs one request as a server would, from a fresh environ down to closing the body.

    The requests carry the cookies in turn. The Cookie header is a new str each time, as it is when it comes
    from a socket: one object for all would carry its hash along, and make a table of tokens look too fast.
    """
    environ = {**ENVIRON, "PATH_INFO": path, "HTTP_COOKIE": ""}
    next_header = cycle([cookie.encode("latin-1") for cookie in cookies]).__next__

    def call() -> None:
        fresh = environ.copy()
        fresh["HTTP_COOKIE"] = next_header().decode("latin-1")
        body = app(fresh, _start)
        for _ in body:
            pass
        close = getattr(body, "close", None)
        if close is not None:
            close()

    return call


def cookies_set(app: App, path: str = "/", cookie: str = "") -> str:
    """Run one request and return the Cookie header that a browser would send after it."""
    jar: dict[str, str] = dict(pair.split("=", 1) for pair in cookie.split("; ") if pair)  # type: ignore[misc]
    collected: Headers = []

    def start(status: str, headers: Headers, exc_info: object = None) -> None:
        if not status.startswith("200"):
            raise RuntimeError(f"The request for {path} was answered {status}.")
        collected.extend(headers)

    body = app({**ENVIRON, "PATH_INFO": path, "HTTP_COOKIE": cookie}, start)
    for _ in body:
        pass
    getattr(body, "close", lambda: None)()
    for name, value in collected:
        if name.lower() == "set-cookie":
            key, _, rest = value.partition("=")
            jar[key.strip()] = rest.partition(";")[0]
    return "; ".join(f"{name}={value}" for name, value in jar.items())
