"""All that a cache promises, in two classes."""

from ...clock import FakeClock
from ..protocol import Cache
from .keeping import Absence, Counting, Keeping
from .safety import Ageing, Closing, Forgetting, Lasting

__all__ = ["CacheConformance", "CacheSafety"]


class CacheSafety(Forgetting, Ageing, Lasting, Closing):
    """What no cache may get wrong: it serves nothing that should be gone."""


class CacheConformance(CacheSafety, Keeping, Absence, Counting):
    """Every sentence of the protocol. Subclass it, and define ``make_cache`` and, if entries are shared, ``reopen``."""

    def test_it_is_a_cache(self, cache: Cache, clock: FakeClock) -> None:
        assert isinstance(cache, Cache)
        assert cache.clock is clock
        assert cache.max_staleness > 0
