"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA_TYPE = "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._requests = Counter(
            "costream_requests",
            "Requests answered",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "costream_request_seconds",
            "Time from the first byte of a request to the last of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "costream_stage_seconds",
            "Time of the stages of a search",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "costream_batch_size",
            "Items that went through the model together",
            ["kind"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.in_flight = Gauge(
            "costream_in_flight", "Requests being answered now", registry=registry
        )
        self.waiting = Gauge(
            "costream_waiting", "Items that wait for the model", ["kind"], registry=registry
        )
        self.items = Gauge("costream_items", "Items in the index", registry=registry)
        self.thumbnails = Counter(
            "costream_thumbnails", "Thumbnails asked for", ["outcome"], registry=registry
        )

    def count(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        """Note one answered request.

        Args:
            scope: Of ASGI, after routing.
            status: Of the answer; 499 when the client had gone.
            seconds: That it took.
        """
        # What clients make up (paths, methods) must not become names: each costs memory for ever.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus' text form."""
        return generate_latest(self._registry)
