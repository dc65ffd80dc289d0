"""One small application in each framework, with its cookie sessions and without.

A builder takes what is to be done with the session at each path, and returns the two applications. The
settings are the defaults, except where another makes the peer faster: JSON rather than pickle, no
cookie re-issued at a mere read, no logging, no debug mode.
"""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from benchmarks import asgi, wsgi

SECRET = "b1946ac92492d2347c6235b4d2611184"

Use = Callable[[MutableMapping[str, Any]], object]
Uses = Mapping[str, Use]


@dataclass(frozen=True)
class Pair:
    """An application that has sessions, the same application without them, and the client for both."""

    app: Any
    bare: Any
    client: Any
    sealed: bool = False


def flask(uses: Uses) -> Pair:
    from flask import Flask, session

    def view(path: str) -> str:
        use = uses.get(path)
        if use is not None:
            use(session)
        return "ok"

    def application(secret: str | None) -> Flask:
        app = Flask("benchmark")
        app.secret_key = secret  # Without one Flask has no sessions.
        app.add_url_rule("/<path>", view_func=view)
        return app

    return Pair(application(SECRET), application(None), wsgi)


def starlette(uses: Uses) -> Pair:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.sessions import SessionMiddleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    async def view(request: Request) -> Response:
        use = uses.get(request.path_params["path"])
        if use is not None:
            use(request.session)
        return PlainTextResponse("ok")

    routes = [Route("/{path}", view)]
    sessions = [Middleware(SessionMiddleware, secret_key=SECRET)]
    return Pair(Starlette(routes=routes, middleware=sessions), Starlette(routes=routes), asgi)


def django(uses: Uses) -> Pair:
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, HttpResponse
    from django.test import override_settings
    from django.urls import path as route

    def view(request: HttpRequest, path: str) -> HttpResponse:
        use = uses.get(path)
        if use is not None:
            use(request.session)  # type: ignore[arg-type]
        return HttpResponse("ok")

    settings.configure(
        SECRET_KEY=SECRET,
        ALLOWED_HOSTS=["localhost"],
        ROOT_URLCONF=(route("<path>", view),),
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        LOGGING_CONFIG=None,
    )
    django.setup()
    bare = WSGIHandler()
    with override_settings(MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"]):
        app = WSGIHandler()
    return Pair(app, bare, wsgi)


def pyramid(uses: Uses) -> Pair:
    from pyramid.config import Configurator
    from pyramid.request import Request
    from pyramid.response import Response
    from pyramid.session import SignedCookieSessionFactory

    def view(request: Request) -> Response:
        use = uses.get(request.matchdict["path"])
        if use is not None:
            use(request.session)
        return Response("ok")

    def application(factory: Any) -> Any:
        config = Configurator(session_factory=factory)
        config.add_route("all", "/{path}")
        config.add_view(view, route_name="all")
        return config.make_wsgi_app()

    # The default reissue_time=0 would write a cookie at each read.
    factory = SignedCookieSessionFactory(SECRET, reissue_time=None, timeout=None)
    return Pair(application(factory), application(None), wsgi)


def beaker(uses: Uses) -> Pair:
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

    options = {
        "session.type": "cookie",
        "session.validate_key": SECRET,
        "session.data_serializer": "json",
        "session.save_accessed_time": False,
    }
    return Pair(SessionMiddleware(app, options), app, wsgi)


def litestar(uses: Uses) -> Pair:
    from litestar import Litestar, Request, get
    from litestar.middleware.session.client_side import CookieBackendConfig

    @get("/{path:str}")
    async def view(request: Request, path: str) -> str:
        use = uses.get(path)
        if use is not None:
            use(request.session)
        return "ok"

    def application(middleware: list[Any]) -> Litestar:
        return Litestar([view], middleware=middleware, openapi_config=None, logging_config=None)

    sessions = CookieBackendConfig(secret=SECRET.encode())
    return Pair(application([sessions.middleware]), application([]), asgi, sealed=True)


BUILDERS: dict[str, Callable[[Uses], Pair]] = {
    "Flask": flask,
    "Starlette": starlette,
    "Django": django,
    "Pyramid": pyramid,
    "Beaker": beaker,
    "Litestar": litestar,
}
