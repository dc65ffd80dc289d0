"""Two sessions, one inside the other: a visitor who counts, and a user who logs in."""

from wsgiref.simple_server import make_server

from werkzeug.wrappers import Request, Response

from sessiontree import Enforcer, Handler, chain

visitor = Handler("visitor", b"9Qe1vXw7ZkT3mB5uYh8cN2rLs6dJ4fGa")  # your own: `sessiontree keygen`
user = visitor.spawn("user")  # lives only while its visitor's session lives


@Request.application
def app(request: Request) -> Response:
    """Count the visits, and log in whoever asks for it."""
    visits = visitor.session(request).incr("visits")
    if request.path == "/login":
        user.session(request).bind("alice")
    return Response(f"visit {visits} of {user.session(request).subject or 'nobody'}\n")


private = Enforcer(user).guard(app)  # 401 without a live user session
site = chain(visitor, user)(lambda env, start: (private if env["PATH_INFO"] == "/private" else app)(env, start))

if __name__ == "__main__":
    make_server("127.0.0.1", 8000, site).serve_forever()
