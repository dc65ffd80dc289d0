"""The same client for ASGI applications: their coroutine is driven by hand, without a server or an event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from itertools import cycle
from typing import Any

Scope = dict[str, Any]
Message = dict[str, Any]
App = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Coroutine[Any, Any, None]
]
Run = Callable[[Coroutine[Any, Any, None]], object]
"""What runs a coroutine to its end."""


class OnLoop:
    """The same client for applications that wait for sockets, on an event loop of its own."""

    def __init__(self) -> None:
        """Begin a loop."""
        run = asyncio.new_event_loop().run_until_complete
        self.request = partial(request, run=run)
        self.cookies_set = partial(cookies_set, run=run)


SCOPE: Scope = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "query_string": b"",
    "root_path": "",
    "client": ("127.0.0.1", 50000),
    "server": ("localhost", 80),
}
HEADERS = ((b"host", b"localhost"), (b"user-agent", b"benchmark/1.0"), (b"accept", b"*/*"), (b"accept-language", b"en"))


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Message) -> None:
    """Take a message of the response and keep nothing."""


def request(app: App, path: str, *cookies: str, run: Run | None = None) -> Callable[[], None]:
    """Return a call that runs one request to its end; the requests carry the cookies in turn."""
    drive = run or _run
    scope = _scope(path, "")
    next_headers = cycle([_scope(path, cookie)["headers"] for cookie in cookies]).__next__

    def call() -> None:
        drive(app({**scope, "headers": [*next_headers()], "state": {}}, _receive, _send))

    return call


def cookies_set(app: App, path: str = "/", cookie: str = "", run: Run | None = None) -> str:
    """Run one request and return the Cookie header that a browser would send after it."""
    pairs: list[str] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] != 200:
                raise RuntimeError(f"The request for {path} was answered {message['status']}.")
            found = [value.decode() for name, value in message["headers"] if name.lower() == b"set-cookie"]
            pairs.extend(value.partition(";")[0] for value in found)

    (run or _run)(app({**_scope(path, cookie), "state": {}}, _receive, send))
    return "; ".join(pairs) or cookie


def _scope(path: str, cookie: str) -> Scope:
    headers = [*HEADERS, *([(b"cookie", cookie.encode())] if cookie else [])]
    return {**SCOPE, "path": path, "raw_path": path.encode(), "headers": headers}


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("The application waited for something: it cannot be measured without an event loop.")
