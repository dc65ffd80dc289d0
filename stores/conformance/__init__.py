"""The conformance suite: what ``protocol.py`` says, sentence by sentence, for any store.

It needs pytest and hypothesis. A store's test file is this:

    import pytest
    from sessiontree.stores.conformance import StoreConformance

    class TestMyStore(StoreConformance):
        @pytest.fixture(autouse=True)
        def _folder(self, tmp_path):
            self.path = tmp_path / "data"

        def make_store(self, clock):           # a fresh, empty store
            return MyStore(self.path, clock=clock)

        def reopen(self, store):               # a second one on the same data; leave it out if there is none
            return MyStore(self.path, clock=store.clock)

A failure shows the values that were compared.
"""

import pytest

PARTS = ("applying", "ending", "listing", "loading", "suite", "tools", "watching")

pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in PARTS))

from .suite import StoreConformance

__all__ = ["StoreConformance"]
