"""A server that the tests started: wait for it, kill it, pause it, start it again, stop it."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

REQUIRED = os.environ.get("SESSIONTREE_REQUIRE_SERVERS") == "1"
"""Whether a server that cannot be had fails the tests instead of skipping them."""

READY_SECONDS = 60.0


def unavailable(reason: str) -> NoReturn:
    """Skip the tests of a server that cannot be had here, or fail them where servers are required."""
    if REQUIRED:
        pytest.fail(f"{reason} SESSIONTREE_REQUIRE_SERVERS=1 asks for it all the same.", pytrace=False)
    pytest.skip(reason)


def free_port() -> int:
    """Return a loopback port that nobody listened on a moment ago."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def private_folder(name: str) -> Path:
    """Return a new folder that nobody else may look into; the path is short enough for a socket in it."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))


class Process:
    """One server process; ``start`` again after ``kill`` or ``stop`` finds the same port and folder."""

    def __init__(self, argv: Sequence[str], folder: Path, is_ready: Callable[[], bool], **popen: Any) -> None:
        self.argv, self.folder, self.is_ready, self.popen = list(argv), folder, is_ready, popen
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "The server was never started."
        return self._process.pid

    def start(self) -> None:
        """Start the server, and return when it answers."""
        with self.log.open("ab", buffering=0) as log:
            self._process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self.popen)
        deadline = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.argv[0]} did not start:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return self.is_ready()
        except OSError:
            return False

    def kill(self) -> None:
        """End it as a power cut does."""
        self._end(signal.SIGKILL)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it in its own way."""
        self._end(how)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(how)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Let it answer nothing, its connections open."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        os.kill(self.pid, signal.SIGCONT)

    def remove(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, and remove all that it wrote."""
        self.stop(how)
        shutil.rmtree(self.folder, ignore_errors=True)
