"""A cache that keeps nothing, to turn caching off where a cache is asked for."""

from ..clock import Clock, Duration, SystemClock
from ..records import Record
from .protocol import Lease
from .stats import Stats

__all__ = ["NullCache"]


class NullCache:
    """Keeps nothing, and counts the misses."""

    max_staleness: float = 0.0

    def __init__(self, clock: Clock | None = None) -> None:
        """Have missed nothing yet."""
        self.clock: Clock = clock or SystemClock()
        self._misses = 0

    def get(self, handle: str, min_version: int = 0) -> None:  # noqa: ARG002 - as for every method here
        """Miss."""
        self._misses += 1

    def stale(self, handle: str, min_version: int, beyond: float) -> None:
        """Miss, uncounted."""

    def is_absent(self, handle: str) -> bool:  # noqa: ARG002
        """Know of nothing that it is absent."""
        return False

    def lease(self, handle: str) -> Lease:  # noqa: ARG002
        """Return a lease that is good for nothing."""
        return None

    def put(self, handle: str, record: Record | None, lease: Lease) -> bool:  # noqa: ARG002
        """Keep nothing."""
        return False

    def drop(self, handle: str) -> None:
        """Have nothing to forget."""

    def clear(self) -> None:
        """Have nothing to forget."""

    def clear_after(self, seconds: Duration) -> None:
        """Have nothing to forget."""

    def stats(self) -> Stats:
        """Return how many misses there were."""
        return Stats(misses=self._misses)

    def close(self) -> None:
        """Have nothing to let go of."""
