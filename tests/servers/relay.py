"""A relay in front of a server's socket: it counts turns and bytes, cuts answers in half, and can fall silent.

A turn is an answer to something sent: what a client sends in one go, and what comes back, are one round trip, however
many commands that holds.
"""

import selectors
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import Final

CHUNK: Final = 1 << 16


@dataclass
class Counts:
    """What went through since the last ``reset``."""

    turns: int = 0
    sent: int = 0
    """How many bytes went to the server."""
    received: int = 0
    """How many came back."""
    connections: int = 0
    last: bytes = b""
    """What a client sent last."""


@dataclass(eq=False)
class _Link:
    """One client's connection and the server's."""

    client: socket.socket
    server: socket.socket
    asked: bool = field(default=False)
    """Whether something went to the server that was not answered yet."""


class Relay:
    """Listens on a loopback port and passes everything on, in a thread of its own."""

    def __init__(self, address: tuple[str, int] | str) -> None:
        """Stand in front of a host and port, or of a unix socket."""
        self.address = address
        self.counts = Counts()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._cuts = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Count from zero."""
        with self._lock:
            self.counts = Counts(connections=len(self._links))

    def cut(self, answers: int = 1) -> None:
        """Pass only half of so many of the next answers, and break their connections."""
        with self._lock:
            self._cuts += answers

    def close(self) -> None:
        """Break every connection, and listen no more."""
        self._closed = True
        socket.create_connection(("127.0.0.1", self.port)).close()  # wakes the thread
        self._thread.join()
        for link in list(self._links):
            self._end(link)
        self._listener.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._accept()
                elif key.data in self._links:
                    self._pass(key.data, key.fileobj)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            if isinstance(self.address, str):
                server = socket.socket(socket.AF_UNIX)
                server.connect(self.address)
            else:
                server = socket.create_connection(self.address, 5)
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            client.close()
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(client, server)
        with self._lock:
            self._links.add(link)
            self.counts.connections += 1
        self._selector.register(client, selectors.EVENT_READ, link)
        self._selector.register(server, selectors.EVENT_READ, link)

    def _pass(self, link: _Link, come: object) -> None:
        source, target = (link.client, link.server) if come is link.client else (link.server, link.client)
        try:
            data = source.recv(CHUNK)
            if not data:
                raise ConnectionError
            if self._is_cut(link, data, from_client=source is link.client):
                target.sendall(data[: len(data) // 2])
                raise ConnectionError
            target.sendall(data)
        except OSError:
            self._end(link)

    def _is_cut(self, link: _Link, data: bytes, *, from_client: bool) -> bool:
        """Count, and tell whether this answer is one to cut."""
        with self._lock:
            if from_client:
                self.counts.sent += len(data)
                self.counts.last = data
                link.asked = True
                return False
            self.counts.received += len(data)
            if not link.asked:
                return False
            link.asked = False
            self.counts.turns += 1
            if not self._cuts:
                return False
            self._cuts -= 1
            return True

    def _end(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)
        for end in (link.client, link.server):
            self._selector.unregister(end)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a farewell
            end.close()
