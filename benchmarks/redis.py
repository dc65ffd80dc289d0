"""Sessions in Redis: ``python -m benchmarks.redis``. It starts a Valkey of its own, on a unix socket."""

import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import cycle

import hiredis

from benchmarks import asgi, store_peers, wsgi
from benchmarks.frameworks import SECRET, Pair
from benchmarks.harness import Call
from benchmarks.payload import COUNTER, next_count
from benchmarks.peers import Uses
from benchmarks.remote import TESTS, Engine, main
from sessiontree.records import Changes, Json, Record
from sessiontree.stores import open_store

PACKAGES = ("redis", "hiredis", "flask-session", "pyramid_session_redis", "beaker", "django", "starsessions")
PING = b"*1\r\n$4\r\nPING\r\n"


def engine(stack: ExitStack) -> Engine:
    """Start the server, and return what is measured on it."""
    sys.path.append(str(TESTS))
    from servers.valkey import Valkey

    server = Valkey()
    server.start()
    stack.callback(server.remove)
    prefix = secrets.token_hex(4)
    store = stack.enter_context(closing(open_store(server.url, prefix=prefix)))
    raw = stack.enter_context(socket.socket(socket.AF_UNIX))
    raw.connect(str(server.path))
    url = f"unix://{server.path}"
    return Engine(
        name="Redis",
        store=store,
        floor={"read": partial(_round_trip, raw), "write": partial(_round_trip, raw)},
        what="one round trip of a raw socket",
        budgets={"read": 1.6, "write": 3.2},
        by_hand=partial(_by_hand, raw, prefix),
        peers={
            "Flask-Session": partial(_flask_session, url),
            "pyramid_session_redis": partial(_pyramid, url),
            "Beaker, ext:redis": partial(_beaker, url),
            "Django, RedisCache": partial(_django, url),
            "starsessions": partial(_starsessions, url),
        },
    )


def _round_trip(raw: socket.socket) -> bytes:
    raw.sendall(PING)
    return raw.recv(64)


def _by_hand(raw: socket.socket, prefix: str, held: Sequence[Record]) -> dict[str, Call]:
    """Return what sends what our verbs send, as a relay has seen it, and takes in the answers with hiredis."""
    loads, applies = zip(*_commands(raw.getpeername(), prefix, held), strict=True)
    load, apply, reader = cycle(loads).__next__, cycle(applies).__next__, hiredis.Reader()

    def exchange(command: bytes) -> None:
        raw.sendall(command)
        answer = False
        while answer is False:
            reader.feed(raw.recv(65536))
            answer = reader.gets()

    def write() -> None:
        exchange(load())
        exchange(apply())

    return {"read": lambda: exchange(load()), "write": write}


def _commands(path: str, prefix: str, held: Sequence[Record]) -> Iterator[tuple[bytes, bytes]]:
    """Yield what loading each record sends to the server, and what writing one key of it does."""
    from servers.relay import Relay

    relay = Relay(path)
    with closing(relay), closing(open_store(f"redis://127.0.0.1:{relay.port}", prefix=prefix)) as store:
        for record in held:
            store.load(record.handle)
            load = relay.counts.last
            store.apply(record.handle, record.proof, Changes({COUNTER: (Json(b"%d" % next_count()), 0)}))
            yield load, relay.counts.last


def _flask_session(url: str, uses: Uses) -> Pair:
    from redis import Redis

    return store_peers.flask_session_in({"SESSION_TYPE": "redis", "SESSION_REDIS": Redis.from_url(url)}, uses)


def _beaker(url: str, uses: Uses) -> Pair:
    return store_peers.beaker_in({"session.type": "ext:redis", "session.url": url}, uses)


def _django(url: str, uses: Uses) -> Pair:
    cache = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url}
    store_peers.configure_django(cache, {"ENGINE": "django.db.backends.dummy"})
    return store_peers.django_in("cache", uses)


def _starsessions(url: str, uses: Uses) -> Pair:
    from starsessions.stores.redis import RedisStore

    return replace(store_peers.starsessions_in(RedisStore(url), uses), client=asgi.OnLoop())


def _pyramid(url: str, uses: Uses) -> Pair:
    from pyramid.config import Configurator
    from pyramid.request import Request
    from pyramid.response import Response
    from pyramid_session_redis import RedisSessionFactory

    def view(request: Request) -> Response:
        use = uses.get(request.matchdict["path"])
        if use is not None:
            use(request.session)
        return Response("ok")

    def application(factory: Callable[..., object] | None) -> Callable[..., object]:
        config = Configurator(session_factory=factory)
        config.add_route("all", "/{path}")
        config.add_view(view, route_name="all")
        made: Callable[..., object] = config.make_wsgi_app()
        return made

    return Pair(application(RedisSessionFactory(SECRET, redis_url=url)), application(None), wsgi)


if __name__ == "__main__":
    main(engine, PACKAGES, __doc__)
