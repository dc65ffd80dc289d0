"""All that a store promises, in one class."""

from ...clock import FakeClock
from ..protocol import Store
from .applying import Applying, Pipelines, Writing
from .ending import Closing, Revoking, Sweeping
from .listing import Labelling, Scanning
from .loading import AnyData, Creating, Loading
from .watching import Watching

__all__ = ["StoreConformance"]


class StoreConformance(
    Loading, Creating, Applying, Revoking, Labelling, Scanning, Sweeping, AnyData, Writing, Pipelines, Watching,
    Closing,
):  # fmt: skip
    """Every sentence of the contract; define ``make_store``, and ``reopen`` if the engine can be opened twice."""

    def test_it_is_a_store(self, store: Store, clock: FakeClock) -> None:
        assert isinstance(store, Store)
        assert store.clock is clock
        assert store.largest > 0
