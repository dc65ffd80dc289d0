"""A client without a network: whole requests to WSGI and ASGI applications, each timed by itself.

A request carries, besides its cookie, what is to be done with its session: a function under ``USE``. The time runs
from the call of the application until its body is closed; making the request is the client's own.
"""

import io
from collections.abc import Callable, Coroutine, Iterable, MutableMapping
from time import perf_counter_ns
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = ["OK", "USE", "Answer", "Ask", "Use", "ask", "ask_asgi", "kept"]

Session: TypeAlias = MutableMapping[str, Any]
Use: TypeAlias = Callable[[Any], object]
"""What a request does with its session."""

USE: Final = "sessiontree.bench.use"
OK: Final = "200"

_ENVIRON: Final[dict[str, Any]] = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "443",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "localhost",
    "HTTP_USER_AGENT": "bench/1",
    "HTTP_ACCEPT": "*/*",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "https",
    "wsgi.input": io.BytesIO(),
    "wsgi.errors": io.StringIO(),
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}
_SCOPE: Final[dict[str, Any]] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "https",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "client": ("127.0.0.1", 50000),
    "server": ("localhost", 443),
}
_HEADERS: Final = ((b"host", b"localhost"), (b"user-agent", b"bench/1"), (b"accept", b"*/*"))


class Answer(NamedTuple):
    """What came of one request; its times are nanoseconds of ``perf_counter_ns``."""

    began: int
    ended: int
    status: str
    headers: Iterable[tuple[str, str]]

    @property
    def succeeded(self) -> bool:
        """Whether the status is 200."""
        return self.status[:3] == OK


Ask: TypeAlias = Callable[[Any, bytes, Use | None], Answer]


def ask(app: Any, cookie: bytes, use: Use | None) -> Answer:
    """Make one request to a WSGI application, as a server would.

    The Cookie header is a new str each time, as it is when it comes from a socket: one object for all would carry its
    hash along, and make a table of tokens look too fast.
    """
    environ = _ENVIRON.copy()
    environ["HTTP_COOKIE"] = cookie.decode("latin-1")
    environ[USE] = use
    status, headers = "", []

    def start_response(line: str, fields: list[tuple[str, str]], _: object = None) -> Callable[[bytes], object]:
        nonlocal status, headers
        status, headers = line, fields
        return _ignore

    began = perf_counter_ns()
    body = app(environ, start_response)
    for _ in body:
        pass
    close = getattr(body, "close", None)
    if close is not None:
        close()
    return Answer(began, perf_counter_ns(), status, headers)


def ask_asgi(app: Any, cookie: bytes, use: Use | None) -> Answer:
    """Make one request to an ASGI application, whose coroutine is driven by hand, without an event loop."""
    headers = [*_HEADERS, (b"cookie", cookie)] if cookie else [*_HEADERS]
    scope = {**_SCOPE, "headers": headers, "state": {}, USE: use}
    started: list[Any] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            started.append(message)

    began = perf_counter_ns()
    _run(app(scope, _receive, send))
    ended = perf_counter_ns()
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in started[0]["headers"]]
    return Answer(began, ended, str(started[0]["status"]), fields)


def kept(answer: Answer, cookie: bytes) -> bytes:
    """Return the Cookie header of the next request: the one before, or what the answer set in its place."""
    for name, value in answer.headers:
        if name.lower() == "set-cookie":
            cookie = value.partition(";")[0].encode("latin-1")
    return cookie


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def _run(coroutine: Coroutine[Any, Any, object]) -> None:
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("The application waited for something, which it cannot without an event loop.")


def _ignore(_: bytes) -> None:
    """Take what an application writes by hand."""
