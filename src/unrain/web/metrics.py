"""What the server tells Prometheus at /metrics: requests, errors, seconds and the queue."""

import re
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unrain.web.queue import JobQueue
from unrain.web.video_queue import VideoQueue

# Other paths count as one: anyone can ask for any.
_PATHS = {
    "/",
    "/api/derain",
    "/api/strength",
    "/api/score",
    "/api/videos",
    "/api/models",
    "/api/limits",
    "/healthz",
    "/readyz",
    "/metrics",
}
_VIDEO = re.compile(r"/api/videos/[^/]+(/frame|/result)?")
_METHODS = {"GET", "HEAD", "POST", "DELETE"}
_VIDEO_SECONDS = (1, 5, 10, 30, 60, 120, 300, 600, 1200, 3600)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """Counts of one server."""

    def __init__(self, queue: JobQueue, videos: VideoQueue) -> None:
        """Start to count.

        Args:
            queue: The queue that is looked at whenever the counts are read.
            videos: The lane of videos, likewise.
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
        self._videos_over = Counter(
            "unrain_videos_over",
            "Videos that are gone, by outcome: fetched, failed, cancelled or expired.",
            ("outcome",),
            registry=self._registry,
        )
        self._video_frames = Counter(
            "unrain_video_frames", "Frames of videos that are gone.", registry=self._registry
        )
        self._video_seconds = Histogram(
            "unrain_video_seconds",
            "Seconds that videos took without waiting.",
            buckets=_VIDEO_SECONDS,
            registry=self._registry,
        )
        videos.over = self._video_over
        gauges = {
            "unrain_videos": ("Videos that are here, fetched ones excluded.", lambda: len(videos.videos)),
            "unrain_video_bytes": ("Bytes of videos on disk.", lambda: videos.size),
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

    def _video_over(self, outcome: str, frames: int, seconds: float) -> None:
        self._videos_over.labels(outcome).inc()
        self._video_frames.inc(frames)
        if seconds:
            self._video_seconds.observe(seconds)

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
        if video := _VIDEO.fullmatch(scope["path"]):
            path = f"/api/videos/ID{video[1] or ''}"
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
