"""Who decides: handlers, their sessions, and the links that put them in front of an application."""

from .chain import chain
from .codec import CookieCodec
from .cookie import CookiePolicy
from .cross_site import cross_site
from .csrf import Csrf
from .enforcer import Enforcer
from .events import Event, LoggingListener, each_of
from .handler import Handler
from .info import SessionInfo
from .metadata import Metadata
from .session import Session

__all__ = [
    "CookieCodec",
    "CookiePolicy",
    "Csrf",
    "Enforcer",
    "Event",
    "Handler",
    "LoggingListener",
    "Metadata",
    "Session",
    "SessionInfo",
    "chain",
    "cross_site",
    "each_of",
]
