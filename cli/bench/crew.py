"""Who does the work of a run: this process's own node in a thread beside, or nodes in processes of their own.

Another process is ``python -m sessiontree.cli.bench.worker``. It is told what to do, and answers, one line of JSON at a
time; it ends when its input does, so none outlives the run that began it, however that ends.
"""

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final

import orjson

from ...errors import SessionError
from .node import Node
from .stack import Setting

__all__ = ["BenchError", "Here", "There", "setting_line"]

PATIENCE_S: Final = 5


class BenchError(Exception):
    """Something went wrong in a process or a thread beside; its text is for the user."""


class Here:
    """A node of this process, whose calls run in a thread, so that the main one can be interrupted."""

    def __init__(self, node: Node) -> None:
        """Begin no thread yet."""
        self._node = node
        self._thread: Thread | None = None

    def start(self, call: str, **arguments: Any) -> Callable[[], Any]:
        """Begin a call, and return what waits for its result."""
        answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def run() -> None:
            try:
                answers.put((self._node.calls[call](**arguments), None))
            except BaseException as error:  # noqa: BLE001 - it is raised again by whoever waits
                answers.put((None, error))

        def wait() -> Any:
            result, error = answers.get()
            if error is not None:
                raise error
            return result

        self._thread = Thread(target=run, name=f"bench-{call}", daemon=True)
        self._thread.start()
        return wait

    def close(self) -> None:
        """Have what is still running end early, and wait for that."""
        self._node.stopped.set()
        if self._thread is not None:
            self._thread.join(PATIENCE_S)


class There:
    """A node in a process of its own."""

    def __init__(self, setting: Setting) -> None:
        """Begin the process."""
        command = [sys.executable, "-m", "sessiontree.cli.bench.worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - ours
        self._send(setting_line(setting))

    def start(self, call: str, **arguments: Any) -> Callable[[], Any]:
        """Begin a call, and return what waits for its result."""
        self._send(orjson.dumps({"call": call, "arguments": arguments}))
        return self._result

    def close(self) -> None:
        """End the process, at once if it is still at work."""
        process = self._process
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _send(self, line: bytes) -> None:
        try:
            self._process.stdin.write(line + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except OSError as error:
            raise self._ended() from error

    def _result(self) -> Any:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise self._ended()
        answer = orjson.loads(line)
        if "error" in answer:
            raise BenchError(answer["error"])
        return answer["result"]

    def _ended(self) -> BenchError:
        return BenchError(f"a process of the bench ended early, with code {self._process.wait()}; its reason is above")


def setting_line(setting: Setting) -> bytes:
    """Return what another process is told first."""
    return orjson.dumps(asdict(setting))


def told(error: BaseException) -> str:
    """Return an error as a sentence for the user."""
    return str(error) if isinstance(error, SessionError) else repr(error)
