"""The command line.

``keygen`` prints a secret, ``demo`` serves a demonstration, ``sweep`` tidies a store, ``bench`` measures one.
"""

import argparse
import secrets
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from ..clock import milliseconds
from ..errors import SessionError
from ..keys import SHORTEST
from .bench.options import DESCRIPTION, add_arguments

__all__ = ["main"]

LARGEST_PORT: Final = 65_535


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 for success, 1 for a failure that is said on stderr.

    Wrong arguments leave with SystemExit and code 2, ``--help`` and ``--version`` with code 0.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except SessionError as error:
        print(f"sessiontree: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sessiontree", description="Web sessions that form a tree.")
    parser.add_argument("--version", action="version", version=f"sessiontree {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    text = "print a new secret, in one line of base64url text, good for KeyRing(...)"
    keygen = commands.add_parser("keygen", help=text, description=text[0].upper() + text[1:] + ".")
    keygen.add_argument(
        "--bytes", type=_size, default=SHORTEST, metavar="N", help="random bytes in it (default: %(default)s)"
    )
    keygen.set_defaults(run=_keygen)

    text = "serve a small application that shows visitor, user and sudo sessions at work"
    demo = commands.add_parser("demo", help=text, description=text[0].upper() + text[1:] + ".")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    demo.add_argument("--port", type=_port, default=8000, help="port, 0 for any free one (default: %(default)s)")
    demo.add_argument(
        "--behind-tls",
        action="store_true",
        help="browsers come over https, through a proxy in front: send Secure __Host- cookies",
    )
    demo.add_argument(
        "--store",
        metavar="URL",
        help="a store for the sessions, or 'cookies' to seal them in cookies (default: a SQLite file, gone at the end)",
    )
    demo.set_defaults(run=_demo)

    text = "remove the expired records of a store"
    sweep = commands.add_parser("sweep", help=text, description=text[0].upper() + text[1:] + ".")
    sweep.add_argument("--store", required=True, metavar="URL", help="the store, such as sqlite:///sessions.db")
    sweep.add_argument("--once", action="store_true", help="make one pass and exit, with code 1 if it failed")
    sweep.add_argument(
        "--interval", type=_seconds, default=60.0, metavar="S", help="seconds between two passes (default: 60)"
    )
    sweep.add_argument("--limit", type=_count, default=1000, metavar="N", help="records in a batch (default: 1000)")
    sweep.set_defaults(run=_sweep)

    bench = commands.add_parser("bench", help=DESCRIPTION, description=DESCRIPTION[0].upper() + DESCRIPTION[1:] + ".")
    add_arguments(bench)
    bench.set_defaults(run=_bench, parser=bench)
    return parser


def _keygen(arguments: argparse.Namespace) -> int:
    print(secrets.token_urlsafe(arguments.bytes))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from .serve import serve  # noqa: PLC0415 - keygen needs neither werkzeug nor waitress

    return serve(arguments.host, arguments.port, behind_tls=arguments.behind_tls, store=arguments.store)


def _sweep(arguments: argparse.Namespace) -> int:
    from .sweep import sweep  # noqa: PLC0415 - as above

    return sweep(arguments.store, once=arguments.once, interval=arguments.interval, limit=arguments.limit)


def _bench(arguments: argparse.Namespace) -> int:
    from .bench.command import bench  # noqa: PLC0415 - as above

    return bench(arguments, _version())


def _version() -> str:
    try:
        return version("sessiontree")
    except PackageNotFoundError:
        return "(not installed)"


def _size(text: str) -> int:
    size = int(text) if text.isascii() and text.isdigit() else 0
    if size < SHORTEST:
        raise argparse.ArgumentTypeError(f"a secret has {SHORTEST} bytes or more, not {text!r}")
    return size


def _port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= port <= LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to {LARGEST_PORT}, not {text!r}")
    return port


def _seconds(text: str) -> float:
    try:
        seconds = milliseconds(float(text)) / 1000
    except ValueError:  # ConfigError is one.
        seconds = 0.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"an interval is a number of seconds above 0, not {text!r}")
    return seconds


def _count(text: str) -> int:
    count = int(text) if text.isascii() and text.isdigit() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"a batch has 1 record or more, not {text!r}")
    return count
