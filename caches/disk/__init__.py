"""A cache on this machine's disk.

``cache`` has the verbs. What it trusts goes down from there: ``databases``, ``rows``, and how these are kept apart from
others' (``files``) and closed to them (``seal``).
"""

from .cache import DiskCache

__all__ = ["DiskCache"]
