"""Where stores say what is wrong but fails nothing: the logger ``sessiontree.stores``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from logging import Logger

__all__ = ["logger"]


def logger() -> "Logger":
    """Return the logger of all stores."""
    import logging  # noqa: PLC0415 - it takes longer to import than a store, and is needed when something is wrong

    return logging.getLogger("sessiontree.stores")
