"""Every error that sessiontree raises, as one tree.

    SessionError
      UsageError                        the programmer's: change the code
        ConfigError                       a setting is wrong or contradicts another
        HeadersSent                       too late: the response has begun
        NotImplementedByStore             the engine cannot do this
      RejectedError                     the client's: it holds no live session
        NoCookie                          it sent no token
        NoID                              an id is empty, too long, or no text
        BadCookie                         the token does not verify
        BadSession                        the store no longer has the session
        Expired                           the token is past its own deadline
        NoSession                         there is no session of that id
        ParentInvalid                     the parent session is not live
      KeyNotFound (also a KeyError)     the session has no such key
      TooLarge                          too many bytes
        CookieTooLarge                    for a cookie
        RecordTooLarge                    for the store
      Conflict                          somebody else was faster
        SessionGone                       the session was revoked meanwhile
        CompareFailed                     the value is not the expected one
        LimitReached                      the subject has its full number of sessions
      StoreError                        the store's
        StoreUnavailable                  it did not answer: try again
        StoreCorrupt                      it is damaged as a whole: restore it

``error.retryable`` says whether the same call may succeed later without a change.
"""

__all__ = [
    "BadCookie",
    "BadSession",
    "CompareFailed",
    "ConfigError",
    "Conflict",
    "CookieTooLarge",
    "Expired",
    "HeadersSent",
    "KeyNotFound",
    "LimitReached",
    "NoCookie",
    "NoID",
    "NoSession",
    "NotImplementedByStore",
    "ParentInvalid",
    "RecordTooLarge",
    "RejectedError",
    "SessionError",
    "SessionGone",
    "StoreCorrupt",
    "StoreError",
    "StoreUnavailable",
    "TooLarge",
    "UsageError",
]


class SessionError(Exception):
    """The root of the tree: catch it to catch everything that sessiontree raises."""

    retryable: bool = False


class UsageError(SessionError):
    """The calling code is wrong; no retry helps."""


class ConfigError(UsageError, TypeError, ValueError):
    """A setting or a duration has the wrong type or value, or contradicts another setting.

    It is a TypeError and a ValueError too, so that code which checks its arguments in
    Python's usual way catches it.
    """


class HeadersSent(UsageError):
    """The response headers are out, so the browser can no longer be told of a change."""


class NotImplementedByStore(UsageError):
    """The engine behind this store has no way to do what was asked."""


class RejectedError(SessionError):
    """The client presented no live session; a client that logs in again is let in."""


class NoCookie(RejectedError):
    """The request carries no token for this handler."""


class NoID(RejectedError):
    """A session id, given or generated, is empty, too long, or not a str."""


class BadCookie(RejectedError):
    """The token does not verify: forged, damaged, doubled, or signed with a key this ring lacks."""


class BadSession(RejectedError):
    """The token verifies, but the store has no such session any more."""


class Expired(RejectedError):
    """The token verifies, but one of its deadlines has passed."""


class NoSession(RejectedError):
    """No session lives under this id."""


class ParentInvalid(RejectedError):
    """The parent session is not live, or is not the one this session was spawned from."""


class KeyNotFound(SessionError, KeyError):
    """The session has no such key, or the key's own life is over."""

    def __str__(self) -> str:
        """Say the message plainly; KeyError alone would quote it."""
        return Exception.__str__(self)


class TooLarge(SessionError):
    """A value or a session has more bytes than allowed."""


class CookieTooLarge(TooLarge):
    """The Set-Cookie value, or the text of a header or a CookieCodec, would exceed 4093 octets.

    Every browser keeps a cookie of that size, attributes included (draft-ietf-httpbis-rfc6265bis section 5.6).
    """


class RecordTooLarge(TooLarge):
    """The record would exceed the store's limit."""


class Conflict(SessionError):
    """Another request was faster."""


class SessionGone(Conflict):
    """The session was revoked or replaced, so nothing more can be written to it."""


class CompareFailed(Conflict):
    """A compare-and-set found another value than the expected one."""

    retryable = True


class LimitReached(Conflict):
    """The subject already has as many live sessions as ``with_max_sessions`` allows."""


class StoreError(SessionError):
    """The store failed; the session itself may be perfectly well."""


class StoreUnavailable(StoreError):
    """The store did not answer in time; what was asked may be tried again."""

    retryable = True


class StoreCorrupt(StoreError):
    """The store as a whole is damaged."""
