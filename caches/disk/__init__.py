"""A cache on this machine's disk.

``cache`` has the verbs. Below it are the database in use (``current``) and all there are of them (``databases``), their
tables (``rows``), and how these are kept apart from others' (``files``) and closed to them (``seal``).
"""

from .cache import DiskCache

__all__ = ["DiskCache"]
