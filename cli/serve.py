"""Serving the demo: its secret, its port, what it says on the console, and how it stops."""

import logging
import os
import secrets
import signal
import sys
import warnings
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from ..handlers import CookiePolicy
from ..keys import KeyRing
from .demo import application

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

__all__ = ["SECRET", "serve"]

SECRET: Final = "SESSIONTREE_DEMO_SECRET"  # noqa: S105 - the variable's name, not a secret
THREADS: Final = 8
LARGEST_BODY: Final = 64 * 1024


def serve(host: str, port: int, *, behind_tls: bool) -> int:
    """Serve the demo until Ctrl-C or SIGTERM and return the exit code.

    Raises ConfigError if the environment's secret is not fit to be one.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _serve(host, port, behind_tls=behind_tls)
    except KeyboardInterrupt:  # The server takes one for its end; this one came before or after.
        return 0


def _serve(host: str, port: int, *, behind_tls: bool) -> int:
    app = _application(KeyRing(os.environ.get(SECRET) or secrets.token_bytes(32)), behind_tls=behind_tls)
    try:
        server = _listen(app, host, port)
    except ModuleNotFoundError:
        return _failed("the demo needs the waitress server: pip install 'sessiontree[cli]'")
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        return _failed(f"cannot listen on {host}, port {port}: {reason}. Choose another with --host or --port.")
    _announce(host, _bound_port(server), behind_tls=behind_tls)
    server.run()
    print("Stopped.", flush=True)
    return 0


def _application(keys: KeyRing, *, behind_tls: bool) -> "WSGIApplication":
    if behind_tls:
        return application(keys, CookiePolicy())
    with warnings.catch_warnings():
        # _announce() says it in our own words.
        warnings.filterwarnings("ignore", message="The session cookie has no Secure attribute")
        return application(keys, CookiePolicy(insecure_dev=True))


def _listen(app: "WSGIApplication", host: str, port: int) -> Any:
    from waitress import create_server  # type: ignore[import-untyped]  # noqa: PLC0415 - an optional dependency

    # It warns of each request that waits for a thread, which is what requests do.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    return create_server(app, host=host, port=port, threads=THREADS, max_request_body_size=LARGEST_BODY)


def _bound_port(server: Any) -> int:
    """Return the port, which port 0 left to the system; a name such as localhost may have several sockets."""
    several = getattr(server, "effective_listen", None)
    return int(several[0][1] if several else server.effective_port)


def _announce(host: str, port: int, *, behind_tls: bool) -> None:
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
