"""Reads a video: frames of its main stream, packets of all others."""

import contextlib
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from unrain import files, image
from unrain.errors import UnrainError
from unrain.video.containers import DEMUXERS, STATES_LENGTH
from unrain.video.frames import FULL, LIMITED, MATRIX, Frame, FrameTimes, Item, bit_depth, exact_interpolation
from unrain.video.options import VideoOptions

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Seconds by which a clip may be shorter than its header states.
_MISSING_END = Fraction(1, 4)
# Seconds from which on a place is looked for instead of decoding all up to there.
_SEEK_FROM = 2
# Transfer characteristics of HDR, by their numbers in ITU-T H.273.
_HDR = {16: "PQ", 18: "HLG"}


@contextlib.contextmanager
def opened(source: Path, hwaccel: str | None = None) -> "Iterator[InputContainer]":
    """Open a video.

    Args:
        source: The video.
        hwaccel: What decodes it, see `VideoOptions`. Where that cannot be had, the processor does: `Reader`
            has a warning then.

    Raises:
        UnrainError: The file is missing, empty, a picture, or not a readable video.
    """
    import av

    with files.opened(source) as file:
        head = file.read(32)
        if not head:
            raise UnrainError(f"{source}: the file is empty, get it again from its source")
        if image.is_picture(head):
            raise UnrainError(f"{source}: a picture, not a video: give it the extension of its format")
        file.seek(0)
        options = {"format_whitelist": DEMUXERS}
        try:
            container = _accelerated(file, options, hwaccel) or av.open(file, "r", container_options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UnrainError(
                f"{source}: not a readable video, or its index is missing because it was cut off "
                f"({_reason(error)}), get it again from its source"
            ) from error
        with container:
            yield container


def _accelerated(file: BinaryIO, options: dict[str, str], hwaccel: str | None) -> "InputContainer | None":
    """Open a video to be decoded by hardware; None if there is no such thing here."""
    import av
    from av.codec.hwaccel import HWAccel

    if hwaccel is None:
        return None
    try:
        return av.open(file, "r", container_options=options, hwaccel=HWAccel(hwaccel))
    except (av.FFmpegError, OSError, ValueError, RuntimeError, NotImplementedError):
        # A damaged file fails the second time too.
        file.seek(0)
        return None


class Reader:
    """Reads the frames of the main video stream and the packets of all others, in the order of the file.

    Attributes:
        stream: The main video stream.
        time_base: Its unit of time, in seconds.
        origin: The time in the source, in seconds, at which the result starts.
        total: The expected number of frames.
        warnings: What is not kept, one sentence each.
    """

    def __init__(
        self, container: "InputContainer", source: Path, options: VideoOptions, max_pixels: int
    ) -> None:
        from av.video.reformatter import VideoReformatter

        self.container = container
        self.stream = _main_stream(container, source)
        # One for all frames: its tables are made once.
        self._reformatter = VideoReformatter()
        self.stream.thread_type = "AUTO"
        self.warnings: list[str] = []
        if options.hwaccel is not None and not self.stream.codec_context.is_hwaccel:
            self.warnings.append(f"{options.hwaccel} cannot decode it here: the processor does")
        self.time_base = self.stream.time_base or Fraction(1, 90_000)
        self._options = options
        # Recorded broadcasts start at any time; a negative start is the encoder's priming.
        begin = Fraction(max(container.start_time or 0, 0), 1_000_000)
        self.origin = begin + options.start
        self._end = None if options.duration is None else self.origin + options.duration
        self._length = Fraction(container.duration or 0, 1_000_000)
        self._stated_end = begin + self._length if container.format.name in STATES_LENGTH else None
        self._reached = Fraction(0)
        self._damaged = 0
        self._first_damage = ""
        self._broken = ""
        self._complete = False
        self._first_seen = False
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self._step = max(1, round(1 / (self.rate * self.time_base)))
        context = self.stream.codec_context
        self.width, self.height = context.width, context.height
        if self.width * self.height > max_pixels:
            raise UnrainError(
                f"{source}: {self.width} x {self.height}, more than the limit of {max_pixels:,} pixels, "
                "raise it with --max-pixels if you trust the file"
            )
        # The size may change midway: the decoder then refuses before it reserves memory.
        context.options = {**context.options, "max_pixels": str(max_pixels)}
        if not context.format:
            raise UnrainError(f"{source}: its video cannot be decoded, get it again from its source")
        self.format = context.format
        self.deep = bit_depth(self.format) > 8
        self.rotation: tuple[int, ...] | None = None
        self.total = self._count()

    def _count(self) -> int:
        whole = not self._options.start and self._options.duration is None
        if whole and self.stream.frames:
            return self.stream.frames
        return round(self.length * self.rate)

    @property
    def length(self) -> Fraction:
        """Seconds of the chosen part; 0 if the file does not tell."""
        seconds = max(self._length - self._options.start, Fraction(0))
        return seconds if self._options.duration is None else min(seconds, self._options.duration)

    @property
    def full_range(self) -> bool:
        """Whether black is 0 and white the largest value."""
        return self.stream.codec_context.color_range == FULL or self.format.name.startswith("yuvj")

    @property
    def matrix(self) -> int:
        """The swscale number of the colour matrix: the file's, or what players assume for its size."""
        guess = 1 if self.width >= 1280 or self.height > 576 else 5
        return MATRIX.get(self.stream.codec_context.colorspace, guess)

    def items(self) -> Iterator[Item]:
        """Yield the frames and the packets of other streams that lie in the chosen part of the clip."""
        from av import FFmpegError

        if self._options.start:
            with contextlib.suppress(FFmpegError):
                self.container.seek(int(self.origin / self.time_base), stream=self.stream)
        times = FrameTimes(self._step, decoding_order=self.container.format.name == "avi")
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
                yield self._converted(frame, pts)
            if self._complete:
                yield from self._rest(packets)
                return

    def frames_from(self, times: Iterable[Fraction]) -> Iterator[Frame]:
        """Yield the first frame from each of several times on; no frame twice.

        What lies between is decoded only where no key frame lies in it.

        Args:
            times: Seconds since the origin, rising.
        """
        from av import FFmpegError

        index = self.stream.index_entries
        frames = self._main_frames()
        last: Frame | None = None
        for time in times:
            wanted = int((self.origin + time) / self.time_base)
            at = last.pts * self.time_base if last is not None else self.origin - self._options.start
            key = index.search_timestamp(wanted)
            # Without an index the container itself finds some place before, or not quite.
            ahead = index[key].timestamp * self.time_base if key >= 0 else self.origin + time - _SEEK_FROM
            if ahead > at:
                with contextlib.suppress(FFmpegError):
                    self.container.seek(wanted, stream=self.stream)
                    frames = self._main_frames()
            if last is not None and last.pts >= wanted:
                continue
            found = next((one for one in frames if one[1] >= wanted), None)
            if found is None or (self._end is not None and found[1] * self.time_base >= self._end):
                return
            last = self._converted(*found)
            yield last

    def _main_frames(self) -> "Iterator[tuple[VideoFrame, int]]":
        """Yield the frames of the main stream with their times, as far as they can be decoded."""
        from av import FFmpegError

        times = FrameTimes(self._step, decoding_order=self.container.format.name == "avi")
        try:
            for packet in self.container.demux(self.stream):
                for frame in self._decoded(packet):
                    yield frame, times.next(frame.pts, frame.dts)
        except (FFmpegError, OSError) as error:
            self._broken = _reason(error)

    def _packets(self) -> "Iterator[Packet[Any]]":
        """Yield all packets that can be read, then an empty one for each stream."""
        from av import FFmpegError

        try:
            for packet in self.container.demux():
                if packet.pts is not None:
                    end = (packet.pts + (packet.duration or 0)) * packet.time_base
                    self._reached = max(self._reached, end)
                yield packet
        except (FFmpegError, OSError) as error:
            self._broken = _reason(error)
            # An empty packet brings out the frames that the decoder still holds.
            yield _empty_packet(self.stream)

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
        """Whether a packet of another stream lies in the chosen part of the clip."""
        if packet.dts is None and packet.pts is None:
            return False
        at = (packet.pts if packet.pts is not None else packet.dts or 0) * packet.time_base
        text = packet.stream.type == "subtitle"
        begin = at + (packet.duration or 0) * packet.time_base if text else at
        # An audio codec's priming lies before zero and belongs to the sound.
        early = self._options.start > 0 and (begin <= self.origin if text else begin < self.origin)
        return not early and (self._end is None or at < self._end)

    def _rest(self, packets: "Iterator[Packet[Any]]") -> "Iterator[Packet[Any]]":
        """Yield the sound of the last frames, which may come after them in the file."""
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
            # Sound that ended early never gets there: stop where no file is interleaved that widely.
            if at >= self._end + 10:
                return

    def _converted(self, frame: "VideoFrame", pts: int) -> Frame:
        if not self._first_seen:
            self._first_seen = True
            self._inspect(frame)
        converted = self._reformatter.reformat(
            frame,
            width=self.width,
            height=self.height,
            format="rgb48le" if self.deep else "rgb24",
            src_colorspace=self.matrix,
            src_color_range=FULL if self.full_range or self.format.is_rgb else LIMITED,
            dst_color_range=FULL,
            interpolation=exact_interpolation(),
        )
        return Frame(converted.to_ndarray(), pts, frame.duration or self._step)

    def _inspect(self, frame: "VideoFrame") -> None:
        """Read from the first frame what is not in the header."""
        data: Any = frame.side_data
        matrix = _side_data(data, "DISPLAYMATRIX")
        self.rotation = struct.unpack("=9i", matrix) if matrix and len(matrix) == 36 else None
        if frame.interlaced_frame:
            self.warnings.append("it is interlaced, but derained as whole frames: deinterlace it first")
        if _side_data(data, "A53_CC"):
            self.warnings.append("closed captions inside its frames are dropped")
        if self.stream.codec_context.color_trc in _HDR:
            kind = _HDR[self.stream.codec_context.color_trc]
            self.warnings.append(
                f"HDR ({kind}): the network was trained on ordinary pictures; mastering metadata is dropped"
            )
        if any(component.is_alpha for component in self.format.components):
            self.warnings.append("its transparency is dropped")

    def why_no_frames(self) -> str:
        """Say why not a single frame could be decoded."""
        if self._options.start and not self._damaged:
            return f"--start {float(self._options.start):g} s is beyond its end ({float(self._length):.1f} s)"
        reason = self._broken or self._first_damage or "there is none"
        return f"no frame can be decoded ({reason}), get it again from its source"

    def problem(self) -> str:
        """Say what is missing from the chosen part of the clip; empty if nothing is."""
        problems = []
        if self._broken:
            problems.append(f"cannot be read to its end ({self._broken})")
        missing = self._stated_end is not None and self._reached < self._stated_end - _MISSING_END
        if missing and not self._complete and self._stated_end is not None:
            problems.append(
                f"cut off: {float(self._reached):.1f} of {float(self._stated_end):.1f} s are in the file"
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
        raise UnrainError(f"{source}: its video codec is not supported, convert it to H.264 first")
    return chosen


def _empty_packet(stream: "Stream") -> "Packet[Any]":
    from av import Packet

    packet: Packet[Any] = Packet()
    packet.stream = stream
    return packet


def _side_data(data: Any, kind: str) -> bytes | None:  # noqa: ANN401  (PyAV's own type says nothing)
    try:
        return bytes(data[kind])
    except KeyError:
        return None


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
