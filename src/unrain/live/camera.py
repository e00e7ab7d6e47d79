"""A camera's newest frame: whatever is slower than the camera never works on an old one."""

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from unrain.errors import UnrainError, UsageError
from unrain.files import one_line
from unrain.image import RGB8

if TYPE_CHECKING:
    from av.container import InputContainer

# Seconds without a picture after which a connection counts as lost, and the longest wait before another try.
_SILENCE, _LONGEST_WAIT = 5.0, 10.0
_DEVICE = re.compile(r"/dev/video[0-9]+")
# What FFmpeg may open for each kind of address, so that no playlist in it leads to a file or elsewhere.
_PROTOCOLS = {"rtsp": "rtsp,rtp,tcp,udp", "rtsps": "rtsp,rtp,tcp,udp,tls", "http": "http,tcp"}
_PROTOCOLS["https"] = "http,https,tcp,tls"
_FORMATS = "rtsp,rtp,sdp,mpjpeg,mjpeg,mpegts,flv,mov,matroska,webm,h264,hevc,jpeg_pipe"


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A frame that came in.

    Attributes:
        pixels: H x W x 3 RGB.
        at: When it was decoded, on the clock of `time.monotonic`.
        number: Counted from 1, dropped ones included.
    """

    pixels: RGB8
    at: float
    number: int


class Camera:
    """Reads a camera in a thread of its own, keeps its newest frame, and connects again when it is lost.

    Attributes:
        received: Frames so far.
        dropped: How many of them were replaced by a newer one before anybody took them.
        connections: How often it was connected.
    """

    def __init__(self, address: str, say: Callable[[str], object], max_pixels: int) -> None:
        """Check an address; `start` connects.

        Args:
            address: rtsp://, rtsps://, http:// or https://, or a device such as /dev/video0.
            say: Receives a line when the connection is lost or there again.
            max_pixels: Refuse larger frames.

        Raises:
            UsageError: It is no such address.
        """
        scheme = urlsplit(address).scheme
        if not _DEVICE.fullmatch(address) and scheme not in _PROTOCOLS:
            raise UsageError(
                f"{shown(address)}: give an address that begins with rtsp://, rtsps://, http:// or https://, "
                "or a device such as /dev/video0"
            )
        if _DEVICE.fullmatch(address) and sys.platform != "linux":
            raise UsageError(f"{address}: devices are read on Linux only, give the address of a camera")
        self.received = self.dropped = self.connections = 0
        self._address = address
        self._say = say
        self._max_pixels = max_pixels
        self._newest: LiveFrame | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="unrain-camera", daemon=True)

    def start(self) -> None:
        """Connect, and read from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Let go of the camera."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(2 * _SILENCE)

    def newest(self, patience: float) -> LiveFrame | None:
        """Take the newest frame; None if there is no new one within so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._stopped, patience)
            taken, self._newest = self._newest, None
            return taken

    def _run(self) -> None:
        wait = 1.0
        lost = ""
        while not self._stopped:
            before = self.received
            reason = self._read_until_lost()
            if self._stopped:
                return
            wait = 1.0 if self.received > before else min(2 * wait, _LONGEST_WAIT)
            if reason != lost or self.received > before:
                self._say(f"{shown(self._address)}: lost ({reason}), trying again")
            lost = reason
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, wait)

    def _read_until_lost(self) -> str:
        """Read frames; return why there are no more."""
        import av

        try:
            with self._opened() as container:
                stream = container.streams.video[0]
                # Threads that each hold a frame back would add to the latency.
                stream.thread_type = "SLICE"
                context = stream.codec_context
                context.options = {**context.options, "max_pixels": str(self._max_pixels)}
                started = False
                for frame in container.decode(stream):
                    if self._stopped:
                        return ""
                    if not started:
                        started = True
                        self.connections += 1
                        self._say(f"{shown(self._address)}: {frame.width} x {frame.height}, connected")
                    self._put(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            return one_line(getattr(error, "strerror", None) or error)
        return "the stream ended"

    def _opened(self) -> "InputContainer":
        import av

        options = {"fflags": "nobuffer", "flags": "low_delay"}
        device = _DEVICE.fullmatch(self._address)
        kind: Any = "v4l2" if device else None
        if not device:
            scheme = urlsplit(self._address).scheme
            options |= {"protocol_whitelist": _PROTOCOLS[scheme], "format_whitelist": _FORMATS}
            # A stream of unknown rate need not be watched for seconds before its first frame.
            options |= {"analyzeduration": "1000000", "probesize": "500000"}
            if scheme.startswith("rtsp"):
                options["rtsp_transport"] = "tcp"
        return av.open(self._address, "r", format=kind, options=options, timeout=(_SILENCE, _SILENCE))

    def _put(self, pixels: RGB8) -> None:
        with self._changed:
            self.received += 1
            self.dropped += self._newest is not None
            self._newest = LiveFrame(pixels, time.monotonic(), self.received)
            self._changed.notify_all()


def shown(address: str) -> str:
    """Return an address without the password in it."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(address)
        if "@" in parts.netloc:
            return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))
    return address


def check_library(command: str) -> None:
    """Say how to install what reads cameras if it is missing.

    Raises:
        UnrainError: It is.
    """
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise UnrainError(
            f"{command}: needs {error.name}, which is not installed: pip install 'unrain[video]'"
        ) from error
