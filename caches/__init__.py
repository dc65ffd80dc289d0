"""What may forget: caches in front of stores. None of them is ever the only copy, and none has the last word."""

from .protocol import Cache, Lease
from .stats import Stats

__all__ = ["Cache", "Lease", "Stats"]
