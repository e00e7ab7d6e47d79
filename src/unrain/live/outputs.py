"""Where live frames go: MP4 files that a kill leaves playable, MJPEG over HTTP, an RTSP server."""

import contextlib
import http.server
import io
import ipaddress
import os
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from PIL import Image

from unrain.errors import UnrainError, UsageError
from unrain.files import one_line, writing_error
from unrain.image import RGB8
from unrain.live.camera import shown

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

_TIME_BASE = Fraction(1, 90_000)
# Seconds between key frames: what a kill may cost of a file, and what a client waits for.
_KEY_SECONDS = 1.0
_MOST_CLIENTS = 16
# Seconds that a server has for its answer, and until it is tried again.
_PATIENCE, _AGAIN = 10.0, 2.0
_BOUNDARY = "unrain-frame"


class Output(Protocol):
    """Takes frames one after the other."""

    def put(self, pixels: RGB8, at: float) -> None:
        """Take a frame, and when it was seen, on the clock of `time.monotonic`."""

    def close(self) -> None:
        """Finish."""


def make_output(target: str, segment: float, say: Callable[[str], object]) -> Output:
    """Open an output.

    Args:
        target: A folder for MP4 files; http://ADDRESS:PORT/ to serve MJPEG there; rtsp://... to send to a
            server.
        segment: Seconds after which another MP4 file is begun.
        say: Receives a line when a server is lost or there again.

    Raises:
        UsageError: It is none of these.
        UnrainError: It cannot be opened.
    """
    scheme = urlsplit(target).scheme
    if scheme == "http":
        return MjpegServer(target)
    if scheme == "rtsp":
        return RtspPush(target, say)
    if "://" in target:
        raise UsageError(f"{shown(target)}: give a folder, http://127.0.0.1:PORT/ or rtsp://...")
    return Segments(Path(target), segment)


class _Encoder:
    """H.264 with times from a clock, into any container."""

    def __init__(self, container: "OutputContainer", pixels: RGB8) -> None:
        height, width = (side - side % 2 for side in pixels.shape[:2])
        options = {"preset": "veryfast", "tune": "zerolatency", "crf": "20"}
        stream: VideoStream = container.add_stream("libx264", options=options)
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = stream.time_base = _TIME_BASE
        self.size = pixels.shape[:2]
        self._container, self._stream = container, stream
        self._begun: float | None = None
        self._key = -_KEY_SECONDS
        self._last = -1

    def put(self, pixels: RGB8, at: float) -> None:
        from av import VideoFrame
        from av.video.frame import PictureType

        self._begun = at if self._begun is None else self._begun
        seconds = at - self._begun
        frame = VideoFrame.from_ndarray(
            pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2], "rgb24"
        )
        frame.pts = max(self._last + 1, round(seconds / _TIME_BASE))
        frame.time_base = _TIME_BASE
        self._last = frame.pts
        if seconds >= self._key + _KEY_SECONDS:
            frame.pict_type, self._key = PictureType.I, seconds
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


class Segments:
    """MP4 files in a folder, one after the other. They are fragmented: what is written can be played.

    Unlike every other result they are written under their final name, since a kill must leave them there.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise writing_error(error, folder) from error
        self._folder, self._seconds = folder, seconds
        self._encoder: _Encoder | None = None
        self._begun = 0.0
        self._file: io.FileIO | None = None

    def put(self, pixels: RGB8, at: float) -> None:
        """Write a frame, into another file if the last is long enough or of another size."""
        full = self._encoder is not None and at - self._begun >= self._seconds
        if full or (self._encoder is not None and self._encoder.size != pixels.shape[:2]):
            self.close()
        try:
            if self._encoder is None:
                self._begin(pixels, at)
            assert self._encoder is not None
            self._encoder.put(pixels, at)
        except OSError as error:
            raise writing_error(error, self._folder) from error

    def _begin(self, pixels: RGB8, at: float) -> None:
        import av

        stem = time.strftime("live-%Y%m%d-%H%M%S")
        number = 0
        while self._file is None:
            path = self._folder / f"{stem}{f'-{number}' if number else ''}.mp4"
            number += 1
            with contextlib.suppress(FileExistsError):
                self._file = io.FileIO(path, "x")
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        container = av.open(self._file, "w", format="mp4", container_options=options)
        self._encoder, self._begun = _Encoder(container, pixels), at

    def close(self) -> None:
        """End the file that is being written."""
        encoder, self._encoder = self._encoder, None
        file, self._file = self._file, None
        try:
            if encoder is not None:
                encoder.finish()
        except OSError as error:
            raise writing_error(error, self._folder) from error
        finally:
            if file is not None:
                file.close()


class RtspPush:
    """Sends to an RTSP server in a thread of its own, and connects again when that is lost.

    FFmpeg waits without end for a server that takes nothing: meanwhile the newest frame replaces the others.
    """

    def __init__(self, address: str, say: Callable[[str], object]) -> None:
        self._address, self._say = address, say
        self._newest: tuple[RGB8, float] | None = None
        self._connected = self._stopped = False
        self._busy_since: float | None = None
        self._problem = ""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="unrain-rtsp", daemon=True)

    def put(self, pixels: RGB8, at: float) -> None:
        """Send a frame; dropped while there is no connection, or the server is busy."""
        with self._changed:
            self._newest = pixels, at
            self._changed.notify_all()
            if self._thread.ident is None:
                self._thread.start()
                self._changed.wait_for(lambda: self._connected or self._problem, _PATIENCE)
                if not self._connected:
                    self._stopped = True
                    reason = self._problem or "no answer"
                    raise UnrainError(f"{shown(self._address)}: cannot be sent to ({reason})")
            since = self._busy_since
            if since is not None and time.monotonic() - since > _PATIENCE:
                self._busy_since = None
                self._say(f"{shown(self._address)}: takes no frames")

    def close(self) -> None:
        """End the connection, unless the server does not let go of it."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        import av

        while not self._stopped:
            try:
                self._send_until_lost()
            except (av.FFmpegError, OSError, ValueError) as error:
                with self._changed:
                    self._problem = one_line(getattr(error, "strerror", None) or error)
                    if self._connected:
                        self._say(f"{shown(self._address)}: lost ({self._problem}), trying again")
                    self._connected, self._busy_since = False, None
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._stopped, _AGAIN)

    def _send_until_lost(self) -> None:
        import av

        encoder: _Encoder | None = None
        try:
            while (frame := self._next()) is not None:
                pixels, at = frame
                if encoder is not None and encoder.size != pixels.shape[:2]:
                    return
                if encoder is None:
                    options = {"rtsp_transport": "tcp"}
                    container = av.open(self._address, "w", format="rtsp", options=options)
                    encoder = _Encoder(container, pixels)
                    # Connects.
                    container.start_encoding()
                    with self._changed:
                        self._connected = True
                        self._changed.notify_all()
                    self._say(f"{shown(self._address)}: connected")
                encoder.put(pixels, at)
                self._busy_since = None
        finally:
            if encoder is not None:
                with contextlib.suppress(Exception):
                    encoder.finish()

    def _next(self) -> tuple[RGB8, float] | None:
        """Wait for the newest frame and take it; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._stopped)
            taken, self._newest = self._newest, None
            self._busy_since = time.monotonic()
            return None if self._stopped else taken


class MjpegServer:
    """Serves the frames as MJPEG over HTTP; a client that is slower than the network gets the newest one."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        host = parts.hostname or "127.0.0.1"
        self._jpeg: tuple[int, bytes] = (0, b"")
        self._open = True
        self._changed = threading.Condition()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 10
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._serve(self)

            def log_message(self, *_: object) -> None: ...

        class Server(http.server.ThreadingHTTPServer):
            # On Windows this would share the port with another program.
            allow_reuse_address = os.name == "posix"
            daemon_threads = True

        self._clients = threading.BoundedSemaphore(_MOST_CLIENTS)
        try:
            # Only addresses, so that no name leads to more of the network than was meant.
            self._loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
            self._server = Server(
                ("127.0.0.1" if host == "localhost" else host, 8090 if parts.port is None else parts.port),
                Handler,
            )
        except ValueError as error:
            raise UsageError(
                f"{address}: give an address of this computer, as http://127.0.0.1:8090/"
            ) from error
        except OSError as error:
            raise UnrainError(f"{address}: cannot listen there ({one_line(error.strerror)})") from error
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="unrain-mjpeg", daemon=True).start()

    def put(self, pixels: RGB8, at: float) -> None:
        """Give a frame to every client."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        with self._changed:
            self._jpeg = (self._jpeg[0] + 1, buffer.getvalue())
            self._changed.notify_all()

    def close(self) -> None:
        """End all connections."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        # Another site's page may lead a browser here by a name of its own.
        name = request.headers.get("Host", "").rpartition(":")[0].strip("[]")
        if self._loopback and name not in ("127.0.0.1", "localhost", "::1"):
            request.send_error(421)
            return
        if not self._clients.acquire(blocking=False):
            request.send_error(503)
            return
        try:
            request.send_response(200)
            request.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
            request.send_header("Cache-Control", "no-store")
            request.send_header("X-Content-Type-Options", "nosniff")
            request.end_headers()
            seen = 0
            while True:
                with self._changed:
                    self._changed.wait_for(lambda seen=seen: self._jpeg[0] > seen or not self._open)  # type: ignore[misc]
                    if not self._open:
                        return
                    seen, jpeg = self._jpeg
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                request.wfile.write(head.encode() + jpeg + b"\r\n")
        except OSError:
            # The client has gone, or takes too long.
            return
        finally:
            self._clients.release()
