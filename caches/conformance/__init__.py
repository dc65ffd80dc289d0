"""The conformance suite: what ``protocol.py`` says, sentence by sentence, for any cache.

It needs pytest and hypothesis. A cache's test file is this:

    from sessiontree.caches.conformance import CacheConformance

    class TestMyCache(CacheConformance):
        def make_cache(self, clock):           # a fresh, empty cache
            return MyCache(clock=clock)

        def reopen(self, cache):               # a second one on the same entries; leave it out if nobody shares them
            return MyCache(clock=cache.clock)

A cache may forget anything at any time, but the suite leaves it no reason to. To serve nothing that should be gone is
another matter: that is in ``CacheSafety``, which a cache passes too that keeps nothing and says ``keeps = False``.

A failure shows the values that were compared.
"""

import pytest

PARTS = ("keeping", "safety", "suite", "tools")

pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in PARTS))

from .suite import CacheConformance, CacheSafety

__all__ = ["CacheConformance", "CacheSafety"]
