"""The same data and the same work in other libraries that keep sessions on the server, and in ours beside them.

The settings are the defaults, except where another makes the peer faster: nothing is written at a mere read, no
count of files is kept, SQLite has its write-ahead log and a connection that stays open. A peer that is missing, or
does not keep what it was given, is named and left out.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import asgi, wsgi
from benchmarks.frameworks import SECRET, Pair, Use
from benchmarks.harness import Call, Samples, Spread, measure, ratios, table
from benchmarks.payload import SIZES
from benchmarks.peers import Uses, working_cookie
from benchmarks.sessions import bare
from benchmarks.stored import OPERATIONS, STINT_NS, handler
from sessiontree.stores import Store
from sessiontree.stores.memory import MemoryStore
from sessiontree.stores.sqlite import SqliteStore

PACKAGES = ("flask", "flask-session", "cachelib", "beaker", "django", "starlette", "starsessions")
MEMORY = "ours, memory"
SQLITE = "ours, SQLite"

Paths = Mapping[str, Use]


@dataclass(frozen=True)
class Result:
    """One operation at one size in one library: microseconds over its own bare application."""

    library: str
    size: str
    operation: str
    us: Spread
    beside: str
    times: Spread
    """How many times what ours of the same kind takes in the same round."""


def ours(store: Store, uses: Paths) -> Pair:
    """Return the application of ours."""
    visitor = handler(store)

    def app(environ: wsgi.Environ, start_response: Callable[..., Any]) -> list[bytes]:
        use = uses.get(environ["PATH_INFO"][1:])
        if use is not None:
            use(visitor.session(environ))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    return Pair(visitor.link(app), bare, wsgi)


def ours_in_memory(uses: Paths, folder: Path) -> Pair:
    return ours(MemoryStore(), uses)


def ours_in_sqlite(uses: Paths, folder: Path) -> Pair:
    return ours(SqliteStore(folder / "ours.db"), uses)


def flask_session(uses: Paths, folder: Path) -> Pair:
    from cachelib.file import FileSystemCache

    cache = FileSystemCache(str(folder), threshold=0)
    return flask_session_in({"SESSION_TYPE": "cachelib", "SESSION_CACHELIB": cache}, uses)


def flask_session_in(settings: dict[str, Any], uses: Paths) -> Pair:
    from flask import Flask, session
    from flask_session import Session

    def view(path: str) -> str:
        use = uses.get(path)
        if use is not None:
            use(session)
        return "ok"

    def application() -> Flask:
        app = Flask("benchmark")
        app.add_url_rule("/<path>", view_func=view)
        return app

    app = application()
    app.config.update(settings, SESSION_REFRESH_EACH_REQUEST=False)
    for each in settings.values():
        if hasattr(each, "init_app"):
            each.init_app(app)
    Session(app)
    return Pair(app, application(), wsgi)


def beaker(kind: str, uses: Paths, folder: Path) -> Pair:
    return beaker_in({"session.type": kind, "session.data_dir": str(folder)}, uses)


def beaker_in(options: dict[str, Any], uses: Paths) -> Pair:
    from beaker.middleware import SessionMiddleware

    def app(environ: wsgi.Environ, start_response: Callable[..., Any]) -> list[bytes]:
        path = environ["PATH_INFO"][1:]
        use = uses.get(path)
        if use is not None:
            session = environ["beaker.session"]
            use(session)
            if not path.endswith("read"):
                session.save()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    return Pair(SessionMiddleware(app, {**options, "session.save_accessed_time": False}), app, wsgi)


def beaker_in_memory(uses: Paths, folder: Path) -> Pair:
    return beaker("memory", uses, folder)


def beaker_in_files(uses: Paths, folder: Path) -> Pair:
    return beaker("file", uses, folder)


def django(engine: str, uses: Paths, folder: Path) -> Pair:
    _set_up_django(folder)
    return django_in(engine, uses)


def django_in(engine: str, uses: Paths) -> Pair:
    """Return the applications of a Django that is configured."""
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, HttpResponse
    from django.test import override_settings
    from django.urls import path as route

    def view(request: HttpRequest, path: str) -> HttpResponse:
        use = uses.get(path)
        if use is not None:
            use(request.session)  # type: ignore[arg-type]
        return HttpResponse("ok")

    # Each pair has an address table of its own, for the view knows what is to be done at each path.
    class Own(WSGIHandler):
        def get_response(self, request: HttpRequest) -> Any:
            request.urlconf = urls  # type: ignore[attr-defined]
            return super().get_response(request)

    urls = (route("<path>", view),)
    plain = Own()
    with override_settings(
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}",
    ):
        app = Own()
    return Pair(app, plain, wsgi)


def _set_up_django(folder: Path) -> None:
    """Configure Django for all its engines at once, which it allows one time in a process."""
    from django.conf import settings

    if settings.configured:
        return
    file = folder / "django.db"
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    locmem = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 100_000}}
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "CONN_MAX_AGE": None}
    configure_django(locmem, database, SESSION_FILE_PATH=str(folder))
    from django.db.backends.signals import connection_created

    connection_created.connect(_relax, weak=False)
    make_table()


def configure_django(cache: dict[str, Any], database: dict[str, Any], **more: Any) -> None:
    """Configure Django with this cache and this database."""
    import django
    from django.conf import settings

    settings.configure(
        SECRET_KEY=SECRET,
        ALLOWED_HOSTS=["localhost"],
        ROOT_URLCONF=(),
        INSTALLED_APPS=["django.contrib.sessions"],
        CACHES={"default": cache},
        DATABASES={"default": database},
        USE_TZ=True,
        LOGGING_CONFIG=None,
        **more,
    )
    django.setup()


def make_table() -> None:
    """Make the table of Django's sessions."""
    from django.contrib.sessions.models import Session
    from django.db import connection as ours_of_this_thread

    with ours_of_this_thread.schema_editor() as editor:
        editor.create_model(Session)


def _relax(sender: object, connection: Any, **_: object) -> None:
    connection.cursor().execute("PRAGMA synchronous=NORMAL")


def django_in_memory(uses: Paths, folder: Path) -> Pair:
    return django("cache", uses, folder)


def django_in_files(uses: Paths, folder: Path) -> Pair:
    return django("file", uses, folder)


def django_in_sqlite(uses: Paths, folder: Path) -> Pair:
    return django("db", uses, folder)


def starsessions(uses: Paths, folder: Path) -> Pair:
    from starsessions import InMemoryStore

    return starsessions_in(InMemoryStore(), uses)


def starsessions_in(store: Any, uses: Paths) -> Pair:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route
    from starsessions import SessionMiddleware, load_session

    async def view(request: Request) -> Response:
        use = uses.get(request.path_params["path"])
        if use is not None:
            await load_session(request)
            use(request.session)
        return PlainTextResponse("ok")

    routes = [Route("/{path}", view)]
    sessions = [Middleware(SessionMiddleware, store=store)]
    return Pair(Starlette(routes=routes, middleware=sessions), Starlette(routes=routes), asgi)


BUILDERS: dict[str, tuple[str, Callable[[Paths, Path], Pair]]] = {
    MEMORY: (MEMORY, ours_in_memory),
    "Beaker, memory": (MEMORY, beaker_in_memory),
    "Django, locmem cache": (MEMORY, django_in_memory),
    "starsessions, memory": (MEMORY, starsessions),
    SQLITE: (SQLITE, ours_in_sqlite),
    "Flask-Session, cachelib files": (SQLITE, flask_session),
    "Beaker, files": (SQLITE, beaker_in_files),
    "Django, files": (SQLITE, django_in_files),
    "Django, db on SQLite": (SQLITE, django_in_sqlite),
}
"""By library: which of ours it is held against, and what builds its applications."""


def pairs(uses: Uses, folder: Path) -> tuple[dict[str, Pair], list[str]]:
    """Return the applications of everything that is installed and works, and a line for each that does not."""

    def in_a_folder(number: int, build: Callable[[Paths, Path], Pair]) -> Pair:
        own = folder / f"peer{number}"
        own.mkdir()
        return build(uses, own)

    builders = {name: partial(in_a_folder, number, build) for number, (name, (_, build)) in enumerate(BUILDERS.items())}
    return working(builders, uses, {ours for ours, _ in BUILDERS.values()})


def working(
    builders: Mapping[str, Callable[[], Pair]], uses: Uses, ours: Collection[str]
) -> tuple[dict[str, Pair], list[str]]:
    """Return the applications that can be built and keep their data, and a line for each that cannot; ours must."""
    found, missing = {}, []
    for name, build in builders.items():
        try:
            pair = build()
            for size in SIZES:
                working_cookie(name, pair, uses, size)
        except ImportError as error:
            missing.append(f"{name} is not installed ({error}): pip install 'sessiontree[bench]'")
        except Exception as error:
            if name in ours:
                raise
            # A peer may break in any way, and the others are still wanted.
            missing.append(f"{name} counts as not installed, for it does not work: {error!r}")
        else:
            found[name] = pair
    return found, missing


def run(rounds: int, folder: Path, sessions: int) -> tuple[list[Result], list[str]]:
    """Measure ours and every peer, interleaved; also return a line for each peer that is missing."""
    uses = Uses(on_top=True)
    found, missing = pairs(uses, folder)
    cases = {case: call for name, pair in found.items() for case, call in _cases(name, pair, uses, sessions)}
    samples = measure(cases, rounds, stint=STINT_NS)
    results = [_result(samples, *key) for key in _keys(found)]
    return results, missing


def _keys(found: Mapping[str, Pair]) -> Iterator[tuple[str, str, str]]:
    return ((name, size, operation) for name in found for size in SIZES for operation in OPERATIONS)


def _cases(name: str, pair: Pair, uses: Uses, sessions: int) -> Iterator[tuple[str, Call]]:
    for size in SIZES:
        cookies = [working_cookie(name, pair, uses, size) for _ in range(sessions)]
        uses.shown.clear()
        yield f"{name} {size} bare", pair.client.request(pair.bare, f"/{size}-untouched", *cookies)
        for operation in OPERATIONS:
            yield f"{name} {size} {operation}", pair.client.request(pair.app, f"/{size}-{operation}", *cookies)


def _result(samples: Samples, name: str, size: str, operation: str) -> Result:
    def net(library: str) -> list[float]:
        return samples.net(f"{library} {size} {operation}", f"{library} {size} bare")

    taken, beside = net(name), BUILDERS[name][0]
    times = Spread.of(ratios(taken, net(beside)))
    return Result(name, size, OPERATIONS[operation], Spread.of([value / 1000 for value in taken]), beside, times)


def shown(results: list[Result]) -> str:
    """Return a line for each library."""
    rows: dict[str, list[str]] = {}
    head = [""]
    for result in results:
        column = f"{result.size}: {result.operation}"
        if column not in head:
            head += [column, ""]
        figures = [f"{result.us.median:.1f}", f"{result.times.median:.1f}x"]
        rows.setdefault(result.library, [result.library]).extend(figures)
    title = "Peers: microseconds over each one's own bare application, and times what ours of the same kind takes"
    return table(title, head, rows.values())
