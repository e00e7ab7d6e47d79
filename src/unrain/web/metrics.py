"""What the server tells Prometheus at /metrics: requests, errors, seconds and the queue."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unrain.web.queue import JobQueue

# Other paths count as one: anyone can ask for any.
_PATHS = {
    "/",
    "/api/derain",
    "/api/strength",
    "/api/models",
    "/api/limits",
    "/healthz",
    "/readyz",
    "/metrics",
}
_METHODS = {"GET", "HEAD", "POST"}
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """Counts of one server."""

    def __init__(self, queue: JobQueue) -> None:
        """Start to count.

        Args:
            queue: The queue that is looked at whenever the counts are read.
        """
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "unrain_requests",
            "Requests that were answered, by path, method and status.",
            ("path", "method", "status"),
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "unrain_request_seconds",
            "Seconds from the head of a request to the end of its answer, by path.",
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.picture_seconds = Histogram(
            "unrain_picture_seconds",
            "Seconds that pictures took without waiting.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        gauges = {
            "unrain_pictures": ("Pictures that wait or are processed.", lambda: len(queue.pending)),
            "unrain_busy_seconds": (
                "Seconds for which the same picture has been in the network.",
                lambda: queue.busy,
            ),
            "unrain_reserved_bytes": ("Bytes of pictures and answers in memory.", lambda: queue.reserved),
            "unrain_ready": ("Whether the server takes pictures.", lambda: not queue.unready),
        }
        for name, (text, look) in gauges.items():
            Gauge(name, text, registry=self._registry).set_function(look)

    def text(self) -> bytes:
        """Return all counts in Prometheus's text format."""
        return generate_latest(self._registry)


class Counted:
    """Counts requests on their way to an application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, queue: JobQueue) -> None:
        """Count for an application.

        Args:
            app: The application.
            metrics: Where to count.
            queue: Knows how many requests are under way.
        """
        self._app, self._metrics, self._queue = app, metrics, queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in _PATHS else "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        start, status = time.monotonic(), "none"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        self._queue.requests += method == "POST"
        try:
            await self._app(scope, receive, counted)
        finally:
            self._queue.requests -= method == "POST"
            self._metrics.requests.labels(path, method, status).inc()
            self._metrics.request_seconds.labels(path).observe(time.monotonic() - start)
