"""Reads a video: frames of its main stream, packets of all others."""

import contextlib
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unrain import files, image
from unrain.errors import UnrainError
from unrain.video.containers import DEMUXERS, TELLS_LENGTH
from unrain.video.frames import FULL, LIMITED, MATRIX, Shot, Times, bit_depth, interpolation
from unrain.video.options import Settings

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_MISSING_END = Fraction(1, 4)
_HDR = {16: "PQ", 18: "HLG"}


@contextlib.contextmanager
def opened(source: Path) -> "Iterator[InputContainer]":
    """Open a video.

    Raises:
        UnrainError: The file is missing, empty, a picture, or no video that FFmpeg knows.
    """
    import av

    try:
        file = source.open("rb")
    except OSError as error:
        raise UnrainError(f"{source}: {files.reading_problem(error)}") from error
    with file:
        head = file.read(32)
        if not head:
            raise UnrainError(f"{source}: the file is empty, get it again from its source")
        if image.is_picture(head):
            raise UnrainError(f"{source}: a picture, not a video: give it the extension of its format")
        file.seek(0)
        try:
            container = av.open(file, "r", container_options={"format_whitelist": DEMUXERS})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UnrainError(
                f"{source}: no video that can be read, or one whose index is missing because it was cut off "
                f"({_reason(error)}), get it again from its source"
            ) from error
        with container:
            yield container


class Reader:
    """Frames of the main video stream and packets of all others, in the order of the file.

    Attributes:
        stream: The main video stream.
        time_base: Its unit of time in seconds.
        origin: The moment in the source, in seconds, that becomes the result's zero.
        total: How many frames will come, as far as that is known.
        warnings: What will not be kept.
    """

    def __init__(
        self, container: "InputContainer", source: Path, settings: Settings, max_pixels: int
    ) -> None:
        self.container = container
        self.stream = _main_stream(container, source)
        self.stream.thread_type = "AUTO"
        self.warnings: list[str] = []
        self.time_base = self.stream.time_base or Fraction(1, 90_000)
        self._settings = settings
        # Streams cut out of a broadcast begin anywhere; a negative beginning is the encoder's run-up.
        begin = Fraction(max(container.start_time or 0, 0), 1_000_000)
        self.origin = begin + settings.start
        self._end = None if settings.duration is None else self.origin + settings.duration
        self._length = Fraction(container.duration or 0, 1_000_000)
        self._told_end = begin + self._length if container.format.name in TELLS_LENGTH else None
        self._reached = Fraction(0)
        self._damaged = 0
        self._first_damage = ""
        self._broke = ""
        self._complete = False
        self._got_shot = False
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self._step = max(1, round(1 / (self.rate * self.time_base)))
        context = self.stream.codec_context
        self.width, self.height = context.width, context.height
        if self.width * self.height > max_pixels:
            raise UnrainError(
                f"{source}: {self.width} x {self.height}, more than the limit of {max_pixels:,} pixels, "
                "raise it with --max-pixels if you trust the file"
            )
        if not context.format:
            raise UnrainError(f"{source}: nothing in its video can be decoded, get it again from its source")
        self.format = context.format
        self.deep = bit_depth(self.format) > 8
        self.rotation: tuple[int, ...] | None = None
        self.total = self._count()

    def _count(self) -> int:
        whole = not self._settings.start and self._settings.duration is None
        if whole and self.stream.frames:
            return self.stream.frames
        seconds = max(self._length - self._settings.start, Fraction(0))
        if self._settings.duration is not None:
            seconds = min(seconds, self._settings.duration)
        return round(seconds * self.rate)

    @property
    def full_range(self) -> bool:
        """Whether black is 0 and white the largest number."""
        return self.stream.codec_context.color_range == FULL or self.format.name.startswith("yuvj")

    @property
    def matrix(self) -> int:
        """Number of the matrix in swscale; where the file is silent, what players take for this size."""
        guess = 1 if self.width >= 1280 or self.height > 576 else 5
        return MATRIX.get(self.stream.codec_context.colorspace, guess)

    def items(self) -> "Iterator[Any]":
        """Give frames (`Shot`) and the packets of other streams, from the start asked for to the end."""
        from av import FFmpegError

        if self._settings.start:
            with contextlib.suppress(FFmpegError):
                self.container.seek(int(self.origin / self.time_base), stream=self.stream)
        times = Times(self._step, decoding_order=self.container.format.name == "avi")
        packets = self._packets()
        for packet in packets:
            if packet.stream_index != self.stream.index:
                if self._wanted(packet):
                    yield packet
                continue
            for frame in self._decoded(packet):
                pts = times.next(frame.pts, frame.dts)
                if pts * self.time_base < self.origin:
                    continue
                if self._end is not None and pts * self.time_base >= self._end:
                    self._complete = True
                    break
                yield self._shot(frame, pts)
            if self._complete:
                yield from self._rest(packets)
                return

    def _packets(self) -> "Iterator[Packet[Any]]":
        """All packets, as far as they can be read; an empty one of each stream at the end."""
        from av import FFmpegError

        try:
            for packet in self.container.demux():
                if packet.pts is not None:
                    end = (packet.pts + (packet.duration or 0)) * packet.time_base
                    self._reached = max(self._reached, end)
                yield packet
        except (FFmpegError, OSError) as error:
            self._broke = _reason(error)
            # What the decoder still holds.
            yield from (packet for packet in [_flush(self.stream)] if packet is not None)

    def _decoded(self, packet: "Packet[Any]") -> "Iterator[VideoFrame]":
        from av import FFmpegError

        try:
            frames = self.stream.codec_context.decode(packet if packet.size else None)
        except EOFError:
            return
        except FFmpegError as error:
            self._damaged += 1
            self._first_damage = self._first_damage or _reason(error)
            return
        for frame in frames:
            if frame.is_corrupt:
                self._damaged += 1
            yield frame

    def _wanted(self, packet: "Packet[Any]") -> bool:
        """Whether a packet of sound or text lies in the part that is asked for."""
        if packet.dts is None and packet.pts is None:
            return False
        at = (packet.pts if packet.pts is not None else packet.dts or 0) * packet.time_base
        text = packet.stream.type == "subtitle"
        begin = at + (packet.duration or 0) * packet.time_base if text else at
        # The run-up of an audio codec lies before zero and belongs to the sound.
        early = self._settings.start > 0 and (begin <= self.origin if text else begin < self.origin)
        return not early and (self._end is None or at < self._end)

    def _rest(self, packets: "Iterator[Packet[Any]]") -> "Iterator[Packet[Any]]":
        """Give what sound belongs to the last frames; it may lie behind them in the file."""
        assert self._end is not None
        waiting = {stream.index for stream in self.container.streams.audio}
        for packet in packets:
            if not waiting or packet.dts is None:
                return
            at = packet.dts * packet.time_base
            if packet.stream_index != self.stream.index and self._wanted(packet):
                yield packet
            if at >= self._end:
                waiting.discard(packet.stream_index)
            # A stream of sound that ended long ago is waited for no longer than files are interleaved.
            if at >= self._end + 10:
                return

    def _shot(self, frame: "VideoFrame", pts: int) -> Shot:
        if not self._got_shot:
            self._got_shot = True
            self._look_at(frame)
        converted = frame.reformat(
            width=self.width,
            height=self.height,
            format="rgb48le" if self.deep else "rgb24",
            src_colorspace=self.matrix,
            src_color_range=FULL if self.full_range or self.format.is_rgb else LIMITED,
            dst_color_range=FULL,
            interpolation=interpolation(),
        )
        return Shot(converted.to_ndarray(), pts, frame.duration or self._step)

    def _look_at(self, frame: "VideoFrame") -> None:
        """Learn from the first frame what no header says."""
        data: Any = frame.side_data
        matrix = _side_data(data, "DISPLAYMATRIX")
        self.rotation = struct.unpack("=9i", matrix) if matrix and len(matrix) == 36 else None
        if frame.interlaced_frame:
            self.warnings.append(
                "its fields are interlaced: they are taken as whole frames, deinterlace first"
            )
        if _side_data(data, "A53_CC"):
            self.warnings.append("closed captions inside its frames are dropped")
        if self.stream.codec_context.color_trc in _HDR:
            kind = _HDR[self.stream.codec_context.color_trc]
            self.warnings.append(
                f"HDR ({kind}): the network has learnt from ordinary pictures; mastering data are dropped"
            )
        if any(component.is_alpha for component in self.format.components):
            self.warnings.append("its transparency is dropped")

    def why_nothing(self) -> str:
        """Say why there is not one frame."""
        if self._settings.start and not self._damaged:
            return (
                f"--start {float(self._settings.start):g} s is beyond its end ({float(self._length):.1f} s)"
            )
        reason = self._broke or self._first_damage or "there is none"
        return f"no frame can be decoded ({reason}), get it again from its source"

    def problem(self) -> str:
        """Say what is missing of the part that was asked for; empty if nothing is."""
        problems = []
        if self._broke:
            problems.append(f"cannot be read to its end ({self._broke})")
        missing = self._told_end is not None and self._reached < self._told_end - _MISSING_END
        if missing and not self._complete and self._told_end is not None:
            problems.append(
                f"cut off: {float(self._reached):.1f} of {float(self._told_end):.1f} s are in the file"
            )
        if self._damaged:
            reason = f" ({self._first_damage})" if self._first_damage else ""
            problems.append(f"{self._damaged} frames are damaged{reason}")
        return ", ".join(problems)


def _main_stream(container: "InputContainer", source: Path) -> "VideoStream":
    from av.stream import Disposition

    moving = [
        stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic
    ]
    if not moving:
        kinds = sorted({stream.type for stream in container.streams})
        raise UnrainError(f"{source}: there is no video in it, only {' and '.join(kinds) or 'nothing'}")
    best = container.streams.best("video")
    chosen = next((stream for stream in moving if best is not None and stream.index == best.index), moving[0])
    if chosen.codec_context is None:
        raise UnrainError(f"{source}: its video codec is not known here, convert it to H.264 first")
    return chosen


def _flush(stream: "Stream") -> "Packet[Any] | None":
    from av import Packet

    packet = Packet()
    packet.stream = stream
    return packet


def _side_data(data: Any, kind: str) -> bytes | None:  # noqa: ANN401  (PyAV's own type says nothing)
    try:
        return bytes(data[kind])
    except KeyError:
        return None


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
