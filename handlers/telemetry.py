"""Sessions in the metrics of OpenTelemetry: ``with_events(OpenTelemetryListener())``.

It needs the API alone (``pip install sessiontree[otel]``), which does nothing until the application sets up an SDK. For
OpenTelemetry's logs use ``LoggingListener`` and its bridge from ``logging``.
"""

from typing import Final

from opentelemetry.metrics import Meter, get_meter

from .events import REASONS, Event

__all__ = ["OpenTelemetryListener"]

OTHER: Final = "_OTHER"
"""What OpenTelemetry's conventions write for a value outside a closed set."""


class OpenTelemetryListener:
    """A listener that counts events in ``sessiontree.session.events``, by what happened, to whose session, and why.

    The attributes are ``sessiontree.event.kind``, ``sessiontree.handler.path`` and, where there is a reason,
    ``sessiontree.event.reason``. Each has few values, all of which stand in code; a handle is never among them, for a
    time series for every session would be without bound.

    There is no gauge of live sessions: one that no request asks for any more ends silently, so ``created`` less all
    endings would only ever grow.
    """

    __slots__ = ("_counter",)

    def __init__(self, meter: Meter | None = None) -> None:
        """Count with this meter, else with that of the application's provider, which may be set later."""
        meter = get_meter("sessiontree") if meter is None else meter
        self._counter = meter.create_counter(
            "sessiontree.session.events", unit="{event}", description="What happened to sessions."
        )

    def __call__(self, event: Event) -> None:
        """Count the event."""
        attributes = {"sessiontree.event.kind": event.kind, "sessiontree.handler.path": event.handler}
        if event.reason is not None:
            attributes["sessiontree.event.reason"] = _bounded(event.reason)
        self._counter.add(1, attributes)


def _bounded(reason: str) -> str:
    """Return a reason that is one of our words or looks like the name of a class; _OTHER for any other."""
    return reason if reason in REASONS or reason.isidentifier() else OTHER
