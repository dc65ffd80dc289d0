"""Stores: what must remember. Each engine is a module of its own; ``open_store`` picks one by its URL."""

from .following import follow
from .opening import open_store
from .perkey import PerKey
from .protocol import Store

__all__ = ["PerKey", "Store", "follow", "open_store"]
