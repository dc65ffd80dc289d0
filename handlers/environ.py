"""What sessiontree reads of a request, whichever framework wrapped it."""

from typing import Any, Final, TypeAlias

from ..errors import UsageError

__all__ = ["REGISTRY", "SELECTED", "Environ", "environ_of"]

Environ: TypeAlias = dict[str, Any]
"""A WSGI environ (PEP 3333)."""

REGISTRY: Final = "sessiontree"
"""The environ key of the one registry of a request."""

SELECTED: Final = "sessiontree.selected"
"""The environ key of the handler that an ``Enforcer`` chose."""


def environ_of(request: object) -> Environ:
    """Return the WSGI environ of a request: the environ itself, or what werkzeug, Flask or Django wrapped.

    Raises UsageError for anything else.
    """
    for candidate in (request, getattr(request, "environ", None), getattr(request, "META", None)):
        if isinstance(candidate, dict):
            return candidate
    raise UsageError(
        f"This is no request, but of type {type(request).__name__}: "
        "pass the WSGI environ, or a werkzeug, Flask or Django request."
    )
