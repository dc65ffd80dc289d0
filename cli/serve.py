"""Serving the demo: its secret, its port, what it says on the console, and how it stops."""

import logging
import os
import secrets
import signal
import sys
import warnings
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from ..handlers import CookiePolicy
from ..keys import KeyRing
from ..stores import open_store
from ..stores.sweeper import Sweeper
from .demo import application

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from ..stores import Store

__all__ = ["COOKIES", "SECRET", "serve"]

COOKIES: Final = "cookies"
"""In place of a store's URL: keep the sessions in the browser, sealed."""

SECRET: Final = "SESSIONTREE_DEMO_SECRET"  # noqa: S105 - the variable's name, not a secret
THREADS: Final = 8
LARGEST_BODY: Final = 64 * 1024


def serve(host: str, port: int, *, behind_tls: bool, store: str | None) -> int:
    """Serve the demo until Ctrl-C or SIGTERM and return the exit code.

    ``store`` is a store's URL, COOKIES, or None for a SQLite file that is gone with the demo; with a secret in the
    environment, which is there to outlive it, None is COOKIES. Raises ConfigError if that secret is not fit to be one,
    or no store has such a URL.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with ExitStack() as at_the_end:
            return _serve(host, port, behind_tls=behind_tls, store=_store(store, at_the_end))
    except KeyboardInterrupt:  # The server takes one for its end; this one came before or after.
        return 0


def _store(url: str | None, at_the_end: ExitStack) -> "Store | None":
    """Open the store, have it swept while the demo runs, and put all of it away at the end."""
    if url == COOKIES or (url is None and os.environ.get(SECRET)):
        return None
    if url is None:
        folder = at_the_end.enter_context(TemporaryDirectory(prefix="sessiontree-demo-"))
        url = f"sqlite:///{folder}/sessions.db"
    store = open_store(url)
    at_the_end.callback(store.close)
    at_the_end.enter_context(Sweeper(store))
    return store


def _serve(host: str, port: int, *, behind_tls: bool, store: "Store | None") -> int:
    keys = KeyRing(os.environ.get(SECRET) or secrets.token_bytes(32))
    app = _application(keys, behind_tls=behind_tls, store=store)
    try:
        server = _listen(app, host, port)
    except ModuleNotFoundError:
        return _failed("the demo needs the waitress server: pip install 'sessiontree[cli]'")
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        return _failed(f"cannot listen on {host}, port {port}: {reason}. Choose another with --host or --port.")
    _announce(host, _bound_port(server), behind_tls=behind_tls, stored=store is not None)
    server.run()
    print("Stopped.", flush=True)
    return 0


def _application(keys: KeyRing, *, behind_tls: bool, store: "Store | None") -> "WSGIApplication":
    if behind_tls:
        return application(keys, CookiePolicy(), store)
    with warnings.catch_warnings():
        # _announce() says it in our own words.
        warnings.filterwarnings("ignore", message="The session cookie has no Secure attribute")
        return application(keys, CookiePolicy(insecure_dev=True), store)


def _listen(app: "WSGIApplication", host: str, port: int) -> Any:
    from waitress import create_server  # type: ignore[import-untyped]  # noqa: PLC0415 - an optional dependency

    # It warns of each request that waits for a thread, which is what requests do.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    return create_server(app, host=host, port=port, threads=THREADS, max_request_body_size=LARGEST_BODY)


def _bound_port(server: Any) -> int:
    """Return the port, which port 0 left to the system; a name such as localhost may have several sockets."""
    several = getattr(server, "effective_listen", None)
    return int(several[0][1] if several else server.effective_port)


def _announce(host: str, port: int, *, behind_tls: bool, stored: bool) -> None:
    print("The sessions are in a store." if stored else "The sessions are in sealed cookies.")
    if os.environ.get(SECRET):
        print(f"The secret is {SECRET}: sessions outlive this process.")
    else:
        print(f"The secret is new: sessions end with this process. Set {SECRET} to keep them.")
    if behind_tls:
        print("The cookies are Secure: they work only through the TLS proxy in front of this address.")
    else:
        print("The cookies are not Secure, for plain http on your own machine: use --behind-tls anywhere else.")
    print(f"Serving http://{f'[{host}]' if ':' in host else host}:{port}/ - stop with Ctrl-C.", flush=True)


def _failed(reason: str) -> int:
    print(f"sessiontree: {reason}", file=sys.stderr)
    return 1


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Stop for SIGTERM as for Ctrl-C."""
    raise KeyboardInterrupt
