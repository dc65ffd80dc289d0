"""A store in Redis or Valkey: shared by any number of machines, one hash for each session, one command for each look.

Reading a session is one HGETALL, and every change of one is one script, so it is made whole or not at all, and what
goes over the wire is what changes. What a script cannot do exactly is done in Python on what was loaded, and written if
the record's head is still the same. Our clock alone decides what is live: the server's own expiry takes away what
nobody has asked for since, a minute later.
"""

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from threading import Event
from typing import Any, Final

from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from ...clock import LONGEST_WAIT_MS, Clock, Duration, SystemClock, waiting
from ...errors import ConfigError, NotImplementedByStore, SessionError, StoreUnavailable
from ...records import LARGEST, Changes, Record, Version, changed, check_size, gone, taken
from ..announcing import OnChange, Stop, both
from ..protocol import Write
from .index import RedisIndex
from .pool import Pool
from .record import arguments_of, difference, ends_of, hash_of, name_of, pair_of, partial_record_of, record_of
from .scan import RedisScan
from .scripts import ANYWAY, APPLY, CREATE, GONE, REVOKE, SWAP
from .watch import Feed

__all__ = ["RedisStore"]

ATTEMPTS: Final = 20
"""How often a change that is made in Python begins anew, because somebody else was faster."""

PAUSE: Final = 0.0005
"""The longest pause before the second attempt, in seconds; it doubles with each further one, up to 32 times this."""


class RedisStore(RedisIndex, RedisScan):
    """Keeps records on a Redis or Valkey server, under names that begin with a prefix."""

    _feed: Feed | None = None

    def __init__(  # noqa: PLR0913 - settings, each with its default
        self,
        client: Redis | RedisCluster,
        *,
        prefix: str = "sessiontree",
        clock: Clock | None = None,
        largest: int = LARGEST,
        timeout: Duration = 0.5,
        wait_replicas: int = 0,
    ) -> None:
        """Use this client's connections; ``timeout``, seconds or a timedelta, is for a client that waits for ever.

        A revocation and a new proof wait until ``wait_replicas`` replicas have it, at most half of the timeout;
        if they have not then, that is StoreUnavailable, though it is done on the primary. Nothing is sent before the
        first verb. Raises ConfigError for settings that cannot be right, such as a timeout of more than a day.
        """
        if isinstance(wait_replicas, bool) or not isinstance(wait_replicas, int) or wait_replicas < 0:
            raise ConfigError(f"wait_replicas is a number of replicas, not {wait_replicas!r}: pass for example 1.")
        if not isinstance(prefix, str) or not prefix:
            raise ConfigError(f"The prefix of a RedisStore is a text, not {prefix!r}: pass for example 'sessiontree'.")
        super().__init__(_pool_of(client, _seconds(timeout)), prefix, clock or SystemClock())
        self.largest = largest
        self._replicas = wait_replicas
        self._anyway = (ANYWAY,) if wait_replicas else ()
        self._client: Any = client

    @classmethod
    def from_url(cls, url: str, *, timeout: Duration = 0.5, **settings: Any) -> "RedisStore":
        """Return a store on the server of this URL: ``redis://``, ``rediss://`` for TLS, or ``unix://``."""
        wait = _seconds(timeout)
        try:
            client = Redis.from_url(url, socket_timeout=wait, socket_connect_timeout=wait, retry=Retry(NoBackoff(), 1))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"This is no URL of a Redis server: {error}.") from error
        return cls(client, timeout=timeout, **settings)

    # -- the verbs -------------------------------------------------------------------------

    def load(self, handle: str, keys: Collection[str] | None = None) -> Record | None:
        """Return the live record or None."""
        if keys is None:
            answer = self._pool.read(b"HGETALL", self._key(handle))
            found = record_of(handle, answer) if answer else None
        else:
            names = [name for name in map(_name_or_nothing, dict.fromkeys(keys)) if name]
            answer = self._pool.read(b"HMGET", self._key(handle), b"h", b"t", b"l", *names)
            found = None if answer is None else partial_record_of(handle, names, answer)
        if found is None:
            return None
        record, head = found
        now = self._now()
        if not (now < record.absolute and now < record.own and now < record.idle):  # is_live(), without its frame
            self._remove_expired({handle: head})
            return None
        return record

    def load_many(self, handles: Sequence[str]) -> dict[str, Record]:
        """Return the live records among these, in one send."""
        found, now = self._records(handles), self._now()
        expired = {handle: head for handle, (record, head) in found.items() if not record.is_live(now)}
        if expired:
            self._remove_expired(expired)
        return {handle: record for handle, (record, _) in found.items() if handle not in expired}

    def create(self, record: Record) -> None:
        """Insert the record; raise Conflict if its handle lives."""
        check_size(record.fields, self.largest)
        new = hash_of(record)
        try:
            now = self._now()
            key, arguments = self._key(record.handle), (self._inline, now, new.head, new.labels, *new.items())
            with self._entering(
                [record.handle], new.labels.split(b"\n") if new.labels else (), record.absolute
            ) as entered:
                answer = self._pool.run(CREATE, key, *arguments)
                if answer is not None:
                    entered(record.handle, (1, b"", new.labels, record.absolute - now))
        finally:
            if self._listeners:
                self.announce(record.handle)
        if answer is None:
            raise taken()

    def apply(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """Make all the changes or none."""
        try:
            arguments = arguments_of(proof, changes, self._now(), self.largest)
            if arguments is None:
                return self._apply_slowly(handle, proof, changes)
            if changes.proof is None and not changes.labels:
                answer = self._pool.run(APPLY, self._key(handle), self._inline, *arguments)
            else:
                answer = self._applied(handle, changes, arguments)
            return self._told(answer, handle, proof, changes)
        finally:
            if self._listeners:
                self.announce(handle)

    def apply_many(self, writes: Sequence[Write]) -> list[Version | Exception]:
        """Do what as many calls of ``apply`` do, in one trip if they are about different records and give no label."""
        handles, now = [handle for handle, _, _ in writes], self._now()
        asked = [
            None if changes.labels or changes.proof is not None else arguments_of(proof, changes, now, self.largest)
            for _, proof, changes in writes
        ]
        if None in asked or len(set(handles)) < len(handles):
            return [_outcome(self.apply, *write) for write in writes]
        calls = [(self._key(each), self._inline, *(more or ())) for each, more in zip(handles, asked, strict=True)]
        try:
            answers = self._pool.try_many(APPLY, calls)
            return [
                answer if isinstance(answer, StoreUnavailable) else _outcome(self._told, answer, *write)
                for answer, write in zip(answers, writes, strict=True)
            ]
        finally:
            self.announce_all(handles)

    def revoke(self, handle: str) -> bool:
        """End the session; return whether it was live."""
        try:
            answer = self._revoked(handle)
        finally:
            if self._listeners:
                self.announce(handle)
        return answer is not None and self._now() < ends_of(answer[0])

    def watch(self, on_change: OnChange) -> Stop:
        """Call ``on_change(handle)`` for each change: of this object before its verb returns, of others soon after.

        A daemon thread with a connection of its own hears of them, and again of what this object did; it is one for
        all who watch, and ends when the last of them stops or the store closes. A lost connection is
        ``on_change(None)``, when it is lost and when it is back. A forked process gets a thread when it first uses the
        store, and then ``on_change(None)`` comes first.
        """
        self._pool.check_open()
        if self._pool.is_apart:
            raise NotImplementedByStore("A RedisStore on a cluster has no feed: caches are right after max_staleness.")
        feed = Feed(self, self._client.connection_pool, self._pool.name, self._before)
        feed = self.__dict__.setdefault("_feed", feed)  # in one step: two threads get one feed
        self._pool.at_begin = feed.begin_process
        stop_others = feed.watch(on_change)
        return both(self.listen(on_change), stop_others)

    def close(self) -> None:
        """Close every connection, those in use with the verb that uses them, and tell who watches that it is over."""
        self._pool.close()
        if self._feed is not None:
            self._feed.end()
        self._listeners.clear()

    # -- within ----------------------------------------------------------------------------

    def _found(self, handle: str) -> tuple[Record, bytes] | None:
        """Return the record and its head, expired or not."""
        answer = self._pool.read(b"HGETALL", self._key(handle))
        return record_of(handle, answer) if answer else None

    def _applied(self, handle: str, changes: Changes, arguments: Sequence[Any]) -> Any:
        """Return the script's answer to what is more than data: labels, which are entered, and a new proof."""
        call = (self._key(handle), self._inline, *arguments)
        with self._entering([handle], _pairs_of(changes), None) as entered:
            [answer] = self._pool.run_many(APPLY, [call], self._replicas if changes.proof is not None else 0)
            if answer.__class__ is list:
                entered(handle, answer)
        return answer

    def _told(self, answer: Any, handle: str, proof: bytes, changes: Changes) -> Version:
        """Return the version that the script answered, or raise what it means; what it left to us is done now."""
        if answer.__class__ is list:
            return Version.of(answer[0], dict(zip(changes.adds, map(int, answer[4:]), strict=True)))
        if answer > 0:
            return Version(answer)
        if answer == GONE:
            raise gone()
        return self._apply_slowly(handle, proof, changes)

    def _apply_slowly(self, handle: str, proof: bytes, changes: Changes) -> Version:
        """Change the record in Python, and write what differs if its head is still the same."""
        for attempt in range(ATTEMPTS):
            found, now = self._found(handle), self._now()
            if found is None:
                raise gone()
            record, head = found
            if not record.is_live(now):
                self._remove_expired({handle: head})
            after, sums = changed(record, proof, changes, now, self.largest)
            if self._swap(record, head, after, now):
                return Version.of(after.version, sums)
            _pause(attempt)
        raise StoreUnavailable(f"The session {handle!r} was changed by others again and again: try again.")

    def _swap(self, record: Record, head: bytes, after: Record, now: int) -> bool:
        new = hash_of(after)
        old = hash_of(record)
        names, written = difference(old, new)
        call = (self._key(record.handle), self._inline, head, new.head, now, new.labels, len(names), *names, *written)
        replicas = self._replicas if after.proof is not record.proof else 0
        given = [pair for pair in new.labels.split(b"\n") if pair and pair not in old.labels.split(b"\n")]
        with self._entering([record.handle], given, record.absolute) as entered:
            [answer] = self._pool.run_many(SWAP, [call], replicas)
            if answer:
                entered(record.handle, (1, old.labels, new.labels, record.absolute - now))
        return bool(answer)

    def _revoked(self, handle: str) -> Any:
        """Return head and labels of a record that is gone now, None if there was none."""
        call = (self._key(handle), self._inline, b"", *self._anyway)
        if not self._replicas:
            return self._pool.run(REVOKE, *call)
        [answer] = self._pool.run_many(REVOKE, [call], self._replicas)
        if self._pool.is_apart and not answer[0]:
            self.confirm()
        return answer


def _pool_of(client: Any, timeout: float) -> Pool:
    """Return a pool of connections to a client's server, or to its cluster; raise ConfigError for what is neither."""
    if isinstance(client, RedisCluster):
        from .cluster import ClusterPool  # noqa: PLC0415 - for those alone who have one

        return ClusterPool(client, timeout)
    if not isinstance(client, Redis):
        kind = f"{type(client).__module__}.{type(client).__qualname__}"
        raise ConfigError(
            f"A RedisStore takes a redis.Redis or a redis.cluster.RedisCluster, not {kind}: pass one of these, "
            "or take RedisStore.from_url(url)."
        )
    return Pool(client.connection_pool, timeout)


def _seconds(timeout: Duration) -> float:
    return waiting(timeout, LONGEST_WAIT_MS, "RedisStore")


def _outcome(verb: Callable[..., Version], *arguments: Any) -> Version | Exception:
    """Return what a verb returns or would raise; it raises what leaves open what was done."""
    try:
        return verb(*arguments)
    except StoreUnavailable as error:
        if isinstance(error.__cause__, ResponseError):  # the server refused it
            return error
        raise
    except (SessionError, TypeError) as error:
        return error


def _name_or_nothing(key: str) -> bytes:
    """Return the name of a key's field, or nothing for what no record can have."""
    with suppress(TypeError):
        return name_of(key)
    return b""


def _pairs_of(changes: Changes) -> list[bytes]:
    """Return the labels that are set."""
    return [pair_of(label, value) for label, value in changes.labels.items() if value is not None]


def _pause(attempt: int) -> None:
    """Wait a random part of what is longer with each attempt."""
    Event().wait(PAUSE * 2 ** min(attempt, 5) * int.from_bytes(os.urandom(2)) / 65536)
