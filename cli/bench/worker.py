"""A process of ``sessiontree bench``: it does what it is told, line by line, and ends when nobody tells it more."""

import os
import signal
import sys
from contextlib import suppress
from typing import Any, BinaryIO

import orjson

from ...errors import SessionError
from .node import Node
from .options import Plan
from .stack import Setting

__all__ = ["main", "serve"]


def main() -> int:
    """Work for the process at the other end of the pipes."""
    # Ctrl-C goes to the whole group of processes: the one that began this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What other libraries print must not get among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with suppress(BrokenPipeError), answers:  # nobody is left to answer
        serve(sys.stdin.buffer, answers)
    return 0


def serve(orders: BinaryIO, answers: BinaryIO) -> None:
    """Answer every line with a line."""
    told = orjson.loads(orders.readline())
    settings: dict[str, Any] = told.pop("plan")
    for name in ("stores", "caches"):
        settings[name] = tuple(settings[name])
    node = Node(Setting(Plan(**settings), **told))
    try:
        for line in orders:
            answers.write(orjson.dumps(_answer(node, line)) + b"\n")
            answers.flush()
    finally:
        node.close()


def _answer(node: Node, line: bytes) -> dict[str, Any]:
    order = orjson.loads(line)
    try:
        return {"result": node.calls[order["call"]](**order["arguments"])}
    except SessionError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - it is told to the user, who is at the other end
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    sys.exit(main())
