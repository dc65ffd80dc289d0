"""What a cache counts."""

from dataclasses import dataclass

__all__ = ["Stats"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the cache began, and its size now. Under many threads a few hits may go uncounted."""

    hits: int = 0
    misses: int = 0
    """Every ``get`` that returned None, the stale ones among them."""

    stale: int = 0
    """Misses for which there was an entry: too old, of too low a version, or expired."""

    refused: int = 0
    """Fills whose lease had been cancelled."""

    evictions: int = 0
    """Entries that gave way to others."""

    errors: int = 0
    """Calls at which the cache failed; each was a miss, or nothing was kept."""

    sessions: int = 0
    """How many records there are now."""

    bytes: int = 0
    """How many bytes these take, packed."""

    @property
    def ratio(self) -> float:
        """The share of hits among all ``get``s, 0 if there were none."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0
