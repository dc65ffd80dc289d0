"""How a RedisStore talks to a cluster: each command to the node that has its key, many of them to all nodes at once.

Which node has what is redis-py's knowledge, which is asked for each command and renewed when a node answers that a key
has moved. Each node has a pool of its own.
"""

from collections.abc import Sequence
from contextlib import suppress
from threading import Event
from typing import Any, Final

from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import TimeoutError as TimedOut

from ...errors import StoreUnavailable
from .pool import Command, Pool

__all__ = ["ClusterPool"]

HOPS: Final = 8
"""How many times a command is sent on, from node to node or because slots are on the move."""

PAUSE: Final = 0.02
"""How many seconds it waits while slots are on the move."""

TRIES: Final = 1 << 18
"""How many names are tried, to find one for each primary: sixteen for every slot."""

_KEY_AT: Final = {b"EVALSHA": 3, b"EVAL": 3}
"""Where the key stands in a command, if not behind its name."""


class ClusterPool(Pool):
    """The pools of all nodes of a cluster."""

    is_apart = True

    def __init__(self, client: Any, timeout: float) -> None:
        """Ask this client where things are."""
        node = client.get_default_node() or client.get_primaries()[0]
        self._client = client
        self._pools: dict[str, Pool] = {}
        super().__init__(node.redis_connection.connection_pool, timeout)
        self.name = f"the cluster of {node.name}"

    def ask(self, command: Command, *, reads: bool, replicas: int = 0) -> Any:
        """Return the answer to a command, from whichever node has its key now."""
        key = command[_KEY_AT.get(command[0], 1)]
        pool, is_asking = self._pool_of(key), False
        for hop in range(HOPS):
            try:
                return _asked(pool, command, reads=reads, replicas=replicas, is_asking=is_asking)
            except MovedError as error:
                self._renew()
                pool, is_asking = self._pool_at(error.host, error.port), False
            except AskError as error:  # of which a MovedError is a kind
                pool, is_asking = self._pool_at(error.host, error.port), True
            except (TryAgainError, ClusterDownError):
                if hop == HOPS - 1:
                    raise
                Event().wait(PAUSE)
                self._renew()
                pool, is_asking = self._pool_of(key), False
            except (Disconnected, TimedOut):
                self._renew()
                if not reads or hop:
                    raise
                pool, is_asking = self._pool_of(key), False
        raise StoreUnavailable(f"The key is on the move between the nodes of {self.name}: try again.")

    def ask_many(self, commands: Sequence[Command], *, reads: bool, replicas: int = 0) -> list[Any]:
        """Return the answers to commands: every node is sent its part before the first answer is read."""
        parts: dict[Pool, list[int]] = {}
        for place, command in enumerate(commands):
            parts.setdefault(self._pool_of(command[_KEY_AT.get(command[0], 1)]), []).append(place)
        answers: list[Any] = [None] * len(commands)
        begun = []
        try:
            for pool, places in parts.items():
                connection = pool.begin([commands[place] for place in places], reads=reads, replicas=replicas)
                begun.append((pool, connection, places))
            while begun:
                pool, connection, places = begun.pop()
                for place, answer in zip(places, pool.finish(connection, len(places), replicas), strict=True):
                    answers[place] = answer
        except (Disconnected, TimedOut):
            self._renew()
            raise
        finally:
            for pool, connection, _ in begun:
                pool.drop(connection)
        for place, answer in enumerate(answers):
            if isinstance(answer, AskError | TryAgainError | ClusterDownError):
                answers[place] = self._asked_again(commands[place], reads=reads, replicas=replicas)
        return answers

    def spread(self, key: bytes) -> list[bytes]:
        """Return names that begin like this one: one of each primary's keys, as far as one of its slots is met."""
        if self._client.keyslot(key + b"0") == self._client.keyslot(key + b"1"):
            return [key]  # the prefix has braces, so all that is ours lies in one slot
        owners = {slot: nodes[0].name for slot, nodes in list(self._client.nodes_manager.slots_cache.items()) if nodes}
        missing, names = set(owners.values()), list[bytes]()
        for number in range(TRIES):
            name = key + b"%d" % number
            owner = owners.get(self._client.keyslot(name))
            if owner in missing:
                missing.remove(owner)
                names.append(name)
                if not missing:
                    break
        return names

    def scan(self, cursor: str, pattern: bytes, size: int) -> tuple[str | None, list[bytes]]:
        """Return where the next batch of names begins, and the names of one batch: node after node, in their order."""
        names = sorted(node.name for node in self._client.get_primaries())
        name, _, rest = cursor.rpartition("/")
        if not name:
            name, rest = names[0], "0"
        node = self._client.nodes_manager.nodes_cache.get(name)
        following, keys = (None, []) if node is None else self._pool_to(node).scan(rest, pattern, size)
        if following is not None:
            return f"{name}/{following}", keys
        later = [each for each in names if each > name]
        return (f"{later[0]}/0" if later else None), keys

    def close(self) -> None:
        """Close the connections to every node."""
        super().close()
        for pool in list(self._pools.values()):
            pool.close()

    # -- within ----------------------------------------------------------------------------

    def _asked_again(self, command: Command, *, reads: bool, replicas: int) -> Any:
        try:
            return self.ask(command, reads=reads, replicas=replicas)
        except ResponseError as error:
            return error

    def _pool_of(self, key: bytes) -> Pool:
        self.check_open()
        return self._pool_to(self._client.nodes_manager.get_node_from_slot(self._client.keyslot(key)))

    def _pool_at(self, host: str, port: int) -> Pool:
        node = self._client.get_node(host, port)
        if node is None:
            self._renew()
            node = self._client.get_node(host, port)
        if node is None:
            raise StoreUnavailable(f"{self.name} names a node that it does not list, {host}:{port}: try again.")
        return self._pool_to(node)

    def _pool_to(self, node: Any) -> Pool:
        pool = self._pools.get(node.name)
        if pool is None:
            if node.redis_connection is None:
                self._client.get_redis_connection(node)
            pool = self._pools.setdefault(node.name, Pool(node.redis_connection.connection_pool, self.timeout))
        return pool

    def _renew(self) -> None:
        """Ask the cluster where things are now, if it says."""
        with suppress(RedisError):
            self._client.nodes_manager.initialize()


def _asked(pool: Pool, command: Command, *, reads: bool, replicas: int, is_asking: bool) -> Any:
    """Return a node's answer; ``is_asking`` is for a key that is on the move to it."""
    if not (is_asking or replicas):
        return pool.ask(command, reads=reads)
    commands = [(b"ASKING",), command] if is_asking else [command]
    answers = pool.ask_many(commands, reads=reads, replicas=replicas)
    for answer in answers:
        if isinstance(answer, ResponseError):  # of ASKING too: without it, the command is answered with a way back
            raise answer
    return answers[-1]
