"""One small application in each other library, with its sessions and without.

The settings are the defaults, except where another makes the library faster: nothing is written at a mere read, SQLite
has its write-ahead log and a connection that stays open. No library is imported before it is asked for.
"""

import sqlite3
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, NamedTuple

from .client import USE, Ask, ask, ask_asgi
from .stack import bare, read_two

__all__ = ["BUILDERS", "Peer"]


class Peer(NamedTuple):
    """One library: its application, the same without sessions, and what makes a request to either."""

    name: str
    kept: str
    """Where its sessions are."""

    app: Any
    bare: Any
    ask: Ask
    ours: bool = False


def _flask_session(name: str, folder: Path) -> Peer:
    flask, file_system = import_module("flask"), import_module("cachelib.file").FileSystemCache
    extension = import_module("flask_session").Session

    def view() -> str:
        use = flask.request.environ[USE]
        if use is not None:
            use(flask.session)
        return "ok"

    def application() -> Any:
        app = flask.Flask("bench")
        app.add_url_rule("/", view_func=view)
        return app

    app = application()
    app.config["SESSION_TYPE"] = "cachelib"
    app.config["SESSION_CACHELIB"] = file_system(str(folder), threshold=0)
    app.config["SESSION_REFRESH_EACH_REQUEST"] = False
    extension(app)
    return Peer(name, "files", app, application(), ask)


def _beaker(name: str, folder: Path) -> Peer:
    middleware = import_module("beaker.middleware").SessionMiddleware

    def page(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        use = environ[USE]
        if use is not None:
            session = environ["beaker.session"]
            use(session)
            if use is not read_two:
                session.save()
        return bare(environ, start_response)

    options = {"session.type": "file", "session.data_dir": str(folder), "session.save_accessed_time": False}
    return Peer(name, "files", middleware(page, options), page, ask)


def _starsessions(name: str, _folder: Path) -> Peer:
    starsessions = import_module("starsessions")
    starlette = import_module("starlette.applications").Starlette
    middleware, route = import_module("starlette.middleware").Middleware, import_module("starlette.routing").Route
    response = import_module("starlette.responses").PlainTextResponse

    async def view(request: Any) -> Any:
        use = request.scope[USE]
        if use is not None:
            await starsessions.load_session(request)
            use(request.session)
        return response("ok")

    routes = [route("/", view)]
    sessions = [middleware(starsessions.SessionMiddleware, store=starsessions.InMemoryStore())]
    return Peer(name, "memory", starlette(routes=routes, middleware=sessions), starlette(routes=routes), ask_asgi)


def _django(name: str, folder: Path) -> Peer:
    django_settings(folder)
    handler = import_module("django.core.handlers.wsgi").WSGIHandler
    override = import_module("django.test").override_settings
    plain = handler()
    with override(
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        SESSION_ENGINE="django.contrib.sessions.backends.cached_db",
    ):
        app = handler()
    return Peer(name, "SQLite and locmem", app, plain, ask)


def django_settings(folder: Path) -> None:
    """Configure Django, which it allows one time in a process, and make its table."""
    django, conf = import_module("django"), import_module("django.conf")
    response = import_module("django.http").HttpResponse

    def view(request: Any) -> Any:
        use = request.META[USE]
        if use is not None:
            use(request.session)
        return response("ok")

    file = folder / "django.db"
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    conf.settings.configure(
        SECRET_KEY=token_hex(),
        ALLOWED_HOSTS=["localhost"],
        ROOT_URLCONF=(import_module("django.urls").path("", view),),
        INSTALLED_APPS=["django.contrib.sessions"],
        CACHES={
            "default": {
                "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
                "OPTIONS": {"MAX_ENTRIES": 100_000},
            }
        },
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": file, "CONN_MAX_AGE": None}},
        USE_TZ=True,
        LOGGING_CONFIG=None,
    )
    django.setup()
    _django_table()


def _django_table() -> None:
    session = import_module("django.contrib.sessions.models").Session
    connection = import_module("django.db").connection
    import_module("django.db.backends.signals").connection_created.connect(_relax, weak=False)
    with connection.schema_editor() as editor:
        editor.create_model(session)


def _relax(sender: object, connection: Any, **_: object) -> None:  # noqa: ARG001 - Django's signal names it
    connection.cursor().execute("PRAGMA synchronous=NORMAL")


BUILDERS: Final[dict[str, Callable[[str, Path], Peer]]] = {
    "Flask-Session": _flask_session,
    "Django cached_db": _django,
    "Beaker": _beaker,
    "starsessions": _starsessions,
}
