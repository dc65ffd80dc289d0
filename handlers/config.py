"""Every setting of a handler as one frozen value, and the checks that take several of them together."""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ..clock import Clock, SystemClock
from ..errors import ConfigError
from ..keys import KeyRing
from ..serializer import JsonSerializer, Serializer
from .cookie import CookiePolicy
from .events import Listener
from .ids import IdGenerator, new_id

if TYPE_CHECKING:
    import logging

    from ..caches.protocol import Cache
    from ..stores.protocol import Store

__all__ = ["DEFAULT_ABSOLUTE", "LIMIT_POLICIES", "OUTAGES", "Config", "Limit"]

OUTAGES: Final = ("raise", "anonymous", "stale")
"""What a handler can do while its store does not answer."""

LIMIT_POLICIES: Final = ("refuse", "oldest")
"""Who gives way when a user has the full number of sessions: the newest or the oldest."""

DEFAULT_ABSOLUTE: Final = 30 * 86_400_000
"""The default absolute timeout in milliseconds: 30 days (NIST SP 800-63B-4, AAL1)."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limit:
    """How many live sessions of a handler a user may have, and who gives way above that."""

    most: int
    policy: str

    @property
    def refuses(self) -> bool:
        """Whether the newest gives way."""
        return self.policy == "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one handler; all durations are milliseconds and 0 means none."""

    name: str
    keys: KeyRing
    policy: CookiePolicy = CookiePolicy()
    header: str | None = None
    max_age: int = 0
    idle: int = 0
    absolute: int = DEFAULT_ABSOLUTE
    id_generator: IdGenerator = new_id
    encrypted: bool = False
    serializer: Serializer = JsonSerializer()
    eager: bool = False
    store: "Store | None" = None
    cache: "Cache | None" = None
    cache_is_inherited: bool = False
    revocations: "Store | None" = None
    server_only: bool = False
    fixed_id: str | None = None
    limit: Limit | None = None
    outage: str = "raise"
    stale_for: int = 0
    outage_is_inherited: bool = False
    clock: Clock = SystemClock()
    logger: "logging.Logger | None" = None
    events: Listener | None = None

    def settled(self) -> "Config":
        """Return the settings without a cache that was inherited and does not fit, or an answer that came to use one.

        What clients carry needs none, and of a server-only session nobody brings a version to hold a cache to.
        """
        settled = self
        if self.cache_is_inherited and (self.store is None or self.server_only):
            settled = replace(settled, cache=None, cache_is_inherited=False)
        if self.outage_is_inherited and settled.cache is None:
            settled = replace(settled, outage="raise", stale_for=0, outage_is_inherited=False)
        return settled

    def check(self) -> None:
        """Raise ConfigError for a name that cannot be one, and for settings that contradict each other."""
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"The handler name {self.name!r} must start with a letter and have at most 63 letters, digits, "
                "'_', '.' or '-'."
            )
        self._check_lives()
        self._check_store()

    def _check_lives(self) -> None:
        if self.idle and self.absolute and self.idle > self.absolute:
            raise ConfigError(
                f"The idle timeout of {self.name!r} ({self.idle / 1000:g} s) is longer than its absolute timeout "
                f"({self.absolute / 1000:g} s): shorten the first, or lengthen the second with with_absolute_timeout()."
            )

    def _check_store(self) -> None:
        if self.server_only and self.store is None:
            raise ConfigError(f"{self.name!r} is server-only, so it needs a store: add with_store().")
        if self.limit is not None and self.store is None:
            raise ConfigError(f"{self.name!r} cannot count the sessions of a user without a store: add with_store().")
        if self.fixed_id is not None and not self.server_only:
            raise ConfigError(f"{self.name!r} has a fixed id, which clients must not choose: add server_only().")
        if self.eager and self.server_only and self.fixed_id is None:
            raise ConfigError(
                f"{self.name!r} has no session for each request: leave with_eager() out, or add fixed_id()."
            )
        if self.revocations is not None and self.store is None and not self.absolute:
            raise ConfigError(
                f"{self.name!r} would have to list its revocations for ever: give it an absolute timeout with "
                "with_absolute_timeout()."
            )
        if self.cache is not None and self.store is None:
            raise ConfigError(f"{self.name!r} has a cache and nothing behind it: add with_store(), or take it away.")
        if self.outage == "stale" and not hasattr(self.cache, "stale"):
            raise ConfigError(
                f"{self.name!r} has no cache that can serve stale sessions: add with_cache(LocalCache()), or take "
                'with_outage("stale") away.'
            )
        for part in (self.store, self.revocations, self.cache):
            if part is not None and getattr(part, "clock", self.clock) != self.clock:
                raise ConfigError(
                    f"{self.name!r} and its {type(part).__name__} tell the time by different clocks: pass one clock to "
                    "both, with_clock(clock) and clock=clock."
                )
