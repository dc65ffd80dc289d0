"""``sessiontree bench``: measure sessions on this machine, print a table, and write JSON, a page and a picture."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Final, NoReturn

import orjson

from ...errors import ConfigError
from .compare import compared, read
from .crew import BenchError
from .options import plan_of, store_name
from .page import page, picture
from .report import broken_promises, shown
from .run import measured

__all__ = ["bench"]

WIDTH: Final = 30
SHOWN_EVERY_S: Final = 0.1
INTERRUPTED: Final = 130
"""What shells say of a command that Ctrl-C ended."""


def bench(arguments: argparse.Namespace, version: str) -> int:
    """Do what the arguments ask for; return the exit code, 1 if an update was lost or a session served too long.

    Ctrl-C and SIGTERM end it, with code 130; no process and no session stays behind. Settings that cannot be are a
    usage error. Raises StoreError if a store does not work.
    """
    try:
        if arguments.compare:
            print(compared(*map(read, arguments.compare)))
            return 0
        return _measure(arguments, version)
    except ConfigError as error:
        _refuse(arguments.parser, error)
    except BenchError as error:
        print(f"sessiontree: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sessiontree: the bench was stopped; nothing of it is left in the stores", file=sys.stderr)
        return INTERRUPTED


def _refuse(parser: argparse.ArgumentParser, error: ConfigError) -> NoReturn:
    """Leave as for an argument that is none."""
    parser.error(str(error))


def _measure(arguments: argparse.Namespace, version: str) -> int:
    plan = plan_of(arguments)
    if plan.processes > 1 and any(store_name(url) == "memory" for url in plan.stores):
        raise ConfigError(
            "The store 'memory:' belongs to one process: use --processes 1, or a store such as --store sqlite:"
        )
    before = signal.signal(signal.SIGTERM, _interrupt)
    progress = _Bar()
    try:
        found = measured(plan, progress, version=version, peers=arguments.peers)
    finally:
        progress.clear()
        signal.signal(signal.SIGTERM, before)
    print(shown(found), flush=True)
    broken = [*_unwritten(arguments, found), *broken_promises(found)]
    for sentence in broken:
        print(f"sessiontree: {sentence}", file=sys.stderr)
    return 1 if broken else 0


def _unwritten(arguments: argparse.Namespace, found: dict[str, Any]) -> Iterator[str]:
    """Write the files that were asked for; yield a sentence for each that could not be."""
    wanted: list[tuple[Path | None, Callable[[], bytes]]] = [
        (arguments.json, lambda: orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)),
        (arguments.html, lambda: page(found).encode()),
        (arguments.svg, lambda: picture(found).encode()),
    ]
    for path, make in wanted:
        try:
            if path is not None:
                path.write_bytes(make())
        except OSError as error:
            yield f"{str(path)!r} could not be written: {error.strerror}"


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Stop for SIGTERM as for Ctrl-C."""
    raise KeyboardInterrupt


class _Bar:
    """A bar on stderr, if that is a terminal."""

    def __init__(self) -> None:
        self.total = 1.0
        self._done = 0.0
        self._shown = sys.stderr.isatty()
        self._wide = 0
        self._next = 0.0

    def step(self, amount: float, label: str) -> None:
        """Show what is begun now; it will be so much of the whole."""
        if self._shown and monotonic() >= self._next:
            share = min(1.0, self._done / self.total)
            line = f"[{'#' * round(share * WIDTH):<{WIDTH}}] {share:4.0%}  {label}"
            sys.stderr.write(f"\r{line:<{self._wide}}")
            sys.stderr.flush()
            self._wide = len(line)
            self._next = monotonic() + SHOWN_EVERY_S
        self._done += amount

    def clear(self) -> None:
        """Wipe the bar away."""
        if self._wide:
            sys.stderr.write(f"\r{' ' * self._wide}\r")
            sys.stderr.flush()
