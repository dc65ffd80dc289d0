"""What the tests share: a browser over WSGI, applications, and handlers of every make."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from sessiontree import Handler, chain, with_clock
from sessiontree.testing import CookieJar, FakeClock

SECRET = bytes(range(7, 200, 5))
OTHER_SECRET = bytes(range(3, 120, 3))
SOAK = int(os.environ.get("SESSIONTREE_SOAK", "1"))
"""How many times the usual number of rounds the long tests run."""


@dataclass
class Answer:
    """One response."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def code(self) -> int:
        return int(self.status.split()[0])

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) <= 1, f"{name} occurs {len(values)} times"
        return values[0] if values else None

    @property
    def cookies(self) -> list[str]:
        return self.all("Set-Cookie")

    @property
    def text(self) -> str:
        return self.body.decode()


def environ(path: str = "/", method: str = "GET", **more: Any) -> dict[str, Any]:
    """Return a fresh WSGI environ; its Cookie header is ``HTTP_COOKIE`` among the keywords."""
    made: dict[str, Any] = {}
    setup_testing_defaults(made)
    made.update(PATH_INFO=path, REQUEST_METHOD=method, REMOTE_ADDR="192.0.2.7", HTTP_USER_AGENT="Test/1", **more)
    made["wsgi.url_scheme"] = "https"
    made.setdefault("QUERY_STRING", "")
    return made


def run(app: Callable[..., Iterable[bytes]], request: dict[str, Any], *, validate: bool = True) -> Answer:
    """Run a WSGI application as a server does, under wsgiref's validator: iterate, close, pass errors on."""
    started: list[Any] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        if exc_info and written:
            raise exc_info[1].with_traceback(exc_info[2])
        assert not started or exc_info, "start_response was called twice without exc_info"
        started[:] = [status, list(headers)]
        return written.append

    body = (validator(app) if validate else app)(request, start_response)
    try:
        for chunk in body:
            assert started, "the body began before start_response"
            written.append(chunk)
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            close()
    return Answer(started[0], started[1], b"".join(written))


@dataclass
class Browser:
    """A client with a browser's cookie jar, which talks to a WSGI application."""

    app: Callable[..., Iterable[bytes]]
    clock: Any = None
    secure: bool = True
    jar: CookieJar = field(init=False)

    def __post_init__(self) -> None:
        self.jar = CookieJar(self.clock)

    def request(self, path: str = "/", method: str = "GET", body: bytes = b"", **more: Any) -> Answer:
        header = self.jar.header(path=path, secure=self.secure)
        if header:
            more.setdefault("HTTP_COOKIE", header)
        if body:
            more.update(CONTENT_LENGTH=str(len(body)))
            more.setdefault("CONTENT_TYPE", "application/x-www-form-urlencoded")
            more["wsgi.input"] = BytesIO(body)
        answer = run(self.app, environ(path, method, **more))
        for line in answer.cookies:
            self.jar.store(line, path=path, secure=self.secure)
        return answer

    def get(self, path: str = "/", **more: Any) -> Answer:
        return self.request(path, **more)


def plain_app(act: Callable[[dict[str, Any]], Any], status: str = "200 OK") -> Callable[..., Iterable[bytes]]:
    """Return an application that acts on the environ, then answers with what came of it."""

    def app(request: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        result = act(request)
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [repr(result).encode()]

    return app


class Site:
    """One handler in front of one application, whose action each request chooses."""

    def __init__(self, handler: Handler, *others: Handler, clock: Any = None) -> None:

        self.handler = handler
        self.handlers = (handler, *others)
        self.clock = clock or handler.config.clock
        self.status = "200 OK"
        self.headers: list[tuple[str, str]] = [("Content-Type", "text/plain")]
        self.result: Any = None
        self.action: Callable[..., Any] = lambda *sessions: None
        self.app = chain(*self.handlers)(self._application)
        self.browser = Browser(self.app, self.clock)

    def _application(self, request: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.result = self.action(*(handler.session(request) for handler in self.handlers))
        start_response(self.status, self.headers)
        return [b"done"]

    def visit(self, action: Callable[..., Any], browser: Browser | None = None, **more: Any) -> Any:
        """Make a request in which the application does this with the sessions; return what came of it."""
        self.action = action
        self.answer = (browser or self.browser).get(**more)
        return self.result

    def another_browser(self) -> Browser:
        return Browser(self.app, self.clock)


def clocked(name: str = "visitor", *options: Any) -> tuple[Handler, FakeClock]:
    """Return a handler on a clock of its own."""
    clock = FakeClock()
    return Handler(name, SECRET, with_clock(clock), *options), clock


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what another thread or process brings about; fail if it never comes."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "It never came."
        time.sleep(0.001)
