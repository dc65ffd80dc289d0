"""One store in front of another: ``store`` has the verbs, ``front`` what may lie in the front and be believed."""

from .store import LayeredStore

__all__ = ["LayeredStore"]
