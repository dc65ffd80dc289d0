"""Who began a session: when, with what, from where."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import orjson

from ..clock import Clock, SystemClock
from .environ import environ_of

__all__ = ["Metadata"]

LONGEST_AGENT: Final = 512


@dataclass(frozen=True, slots=True)
class Metadata:
    """When a session began (UTC), and the user agent and ip address of the client.

    The address is what the WSGI server, or werkzeug's ProxyFix, says it is, never a raw header,
    which any client can write.
    """

    start: datetime
    user_agent: str
    ip_address: str

    @classmethod
    def of(cls, request: object, clock: Clock | None = None) -> "Metadata":
        """Return the metadata of a session that begins now with this request."""
        environ = environ_of(request)
        agent, address = environ.get("HTTP_USER_AGENT", ""), environ.get("REMOTE_ADDR", "")
        return cls.at((clock or SystemClock()).now(), agent, address)

    @classmethod
    def at(cls, start: int, agent: str, address: str) -> "Metadata":
        """Return the metadata of a session that began at this time in milliseconds since the epoch."""
        return cls(datetime.fromtimestamp(start / 1000, UTC), agent[:LONGEST_AGENT], address)

    def to_json(self) -> str:
        """Return an object of the three names, with the start as RFC 3339 in UTC."""
        start = self.start.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"start": start, "user_agent": self.user_agent, "ip_address": self.ip_address}
        return orjson.dumps(fields).decode()
