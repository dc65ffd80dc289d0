"""Csrf: a link that refuses state-changing requests which did not come from our own pages.

A token is a random mask and HMAC-SHA256 of the mask and the session's id, under a key of its
own. It is another text each time, so that compression gives nothing away (BREACH); it fits one
session only, and none after a renewal. It comes back in a header or a form field and never in
a cookie, so nobody can plant one.
"""

import base64
import hmac
from collections.abc import Iterable
from io import BytesIO
from secrets import token_bytes
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from ..errors import ConfigError, RejectedError, StoreUnavailable
from .environ import Environ
from .events import emit
from .handler import Handler
from .response import refuse, refuse_for
from .wsgi import inside_of

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication

__all__ = ["Csrf"]

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
HEADER: Final = "HTTP_X_CSRF_TOKEN"
FIELD: Final = "csrf_token"
LARGEST_FORM: Final = 64 * 1024
MASK_BYTES: Final = 16
MAC_BYTES: Final = 32
FORM: Final = "application/x-www-form-urlencoded"


class Csrf:
    """Answers 403 to every POST, PUT, PATCH, DELETE ... without the token of the handler's live session.

    The token comes in the header ``X-CSRF-Token``, or in the field ``csrf_token`` of an urlencoded form
    of at most 64 KiB, which the application then reads as if nobody had before it.
    """

    __slots__ = ("_handler", "_keys")

    def __init__(self, handler: Handler) -> None:
        """Bind the tokens to the sessions of this handler."""
        if not isinstance(handler, Handler):
            raise ConfigError(f"Csrf takes a Handler, not {type(handler).__name__}.")
        self._handler = handler
        self._keys = dict(handler.config.keys.subkeys("csrf", handler.path))

    def token(self, request: object) -> str:
        """Return a token for a form or a script of this response, beginning the session if there is none."""
        session = self._handler.session(request)
        session.begin()
        mask = token_bytes(MASK_BYTES)
        name, key = next(iter(self._keys.items()))
        return f"{name}.{_text(mask + _mac(key, mask, str(session.id)))}"

    def link(self, app: "WSGIApplication") -> "WSGIApplication":
        """Return the application behind this guard; raise ConfigError if it would stand outside its handler."""

        def guarded(environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
            if environ["REQUEST_METHOD"] in SAFE_METHODS:
                return app(environ, start_response)
            try:
                session_id = self._handler.load(environ).id
            except RejectedError:
                session_id = None
            except StoreUnavailable as outage:
                return refuse_for(environ, start_response, outage)
            if session_id is not None and any(self._fits(given, session_id) for given in _given(environ)):
                return app(environ, start_response)
            emit(self._handler, "refused", reason="csrf")
            return refuse(environ, start_response, "403 Forbidden")

        return inside_of((self._handler,), self, guarded, app)

    def _fits(self, token: str, session_id: str) -> bool:
        """Tell whether the token was made for this session, in constant time."""
        name, _, text = token.partition(".")
        key = self._keys.get(name)
        if key is None:
            return False
        try:
            raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        except ValueError:
            return False
        mask, mac = raw[:MASK_BYTES], raw[MASK_BYTES:]
        if _text(raw) != text:
            return False
        return len(raw) == MASK_BYTES + MAC_BYTES and hmac.compare_digest(mac, _mac(key, mask, session_id))


def _mac(key: bytes, mask: bytes, session_id: str) -> bytes:
    return hmac.digest(key, mask + session_id.encode(), "sha256")


def _text(raw: bytes) -> str:
    """Return 48 bytes as 64 characters of base64url, which needs no padding."""
    return base64.urlsafe_b64encode(raw).decode()


def _given(environ: Environ) -> list[str]:
    """Return the tokens that the client sent back: the header's if there is one, else the form field's."""
    header = environ.get(HEADER)
    return [header] if header is not None else _form_tokens(environ)


def _form_tokens(environ: Environ) -> list[str]:
    """Read a small urlencoded body, put it back, and return the token fields in it."""
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != FORM:
        return []
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return []
    if not 0 < length <= LARGEST_FORM:
        return []
    body = environ["wsgi.input"].read(length)
    environ["wsgi.input"] = BytesIO(body)
    try:
        return parse_qs(body.decode(), max_num_fields=1000).get(FIELD, [])
    except ValueError:
        return []
