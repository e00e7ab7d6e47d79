"""Frames of a video through a `Derainer`; everything else in the file stays what it is (PyAV).

Three threads work at once, with a bounded number of frames between them: one decodes, the caller's takes the
rain out, one steadies and encodes. Sound, subtitles, cover and attachments are copied as packets, without
being decoded. Timestamps are never computed: every frame keeps its own, in the time base of the source.

FFmpeg is only ever handed open files and known containers, so that no play list in disguise can make it open
another file or an address.
"""

import contextlib
import os
import re
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unrain import files, image
from unrain.errors import UnrainError, UsageError
from unrain.steady import Steadier

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.format import VideoFormat
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from unrain.derainer import Derainer

Pixels = NDArray[Any]

WRITTEN = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
"""Extensions that a result may have, and FFmpeg's name for the container."""

SUFFIXES = {*WRITTEN, ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".flv"}
SUFFIXES |= {".3gp", ".3g2", ".ogv"}
"""Extensions by which a file is taken for a video."""

_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,live_flv,ogg,h264,hevc,m4v"
)
# Containers whose header says how long the whole is, so that a missing end can be told.
_TELLS_LENGTH = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
# Frames between two threads: enough that neither waits for the other's jitter, little enough for 4K.
_AHEAD = 4
_MISSING_END = Fraction(1, 4)
# swscale's numbers of matrices, by the numbers that files carry (ITU-T H.273).
_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_LIMITED, _FULL = 1, 2
_UNSPECIFIED = 2
_HDR = {16: "PQ", 18: "HLG"}
# Written by the muxer itself, or true of the old picture only.
_NOT_METADATA = re.compile(
    r"major_brand|minor_version|compatible_brands|encoder|vendor_id|DURATION.*|BPS.*|NUMBER_OF_.*|_STATISTICS_.*",
    re.IGNORECASE,
)


class OptionError(UsageError):
    """An option that cannot be, or not together with another."""


@dataclass(frozen=True)
class Codec:
    """A way to compress the result.

    Attributes:
        encoder: FFmpeg's name.
        crf: Quality unless something else is asked for; less is better and larger.
        worst: The largest number that the encoder knows.
        options: What else to tell it.
        even: Whether it wants an even height and width where colour is stored at half of them.
    """

    encoder: str
    crf: int
    worst: int
    options: dict[str, str] = field(default_factory=dict)
    even: bool = True


CODECS = {
    "h264": Codec("libx264", 18, 51),
    "hevc": Codec("libx265", 20, 51, {"x265-params": "log-level=none"}),
    "vp9": Codec("libvpx-vp9", 24, 63, {"row-mt": "1", "cpu-used": "3"}, even=False),
    "av1": Codec("libsvtav1", 24, 63, {"preset": "8"}),
}


@dataclass(frozen=True)
class Settings:
    """What is wanted of a result.

    Attributes:
        codec: One of `CODECS`; None takes H.264, in WebM VP9.
        crf: The encoder's quality, less is better; None takes the codec's own.
        start: Where to begin, in seconds.
        duration: How many seconds to take; None goes on to the end.
        neighbours: Whether still places are steadied with what the frames before and after know.

    Raises:
        OptionError: The codec is unknown or a number impossible.
    """

    codec: str | None = None
    crf: int | None = None
    start: Fraction = Fraction(0)
    duration: Fraction | None = None
    neighbours: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.codec is not None and self.codec not in CODECS:
            raise OptionError(f"--codec {self.codec}: unknown, choose one of {', '.join(CODECS)}")
        worst = CODECS[self.codec or "h264"].worst
        if self.crf is not None and not 0 <= self.crf <= worst:
            raise OptionError(f"--crf {self.crf}: give 0 (best) to {worst}")
        if self.duration is not None and self.duration <= 0:
            raise OptionError("--duration: give more than 0 seconds")


@dataclass(frozen=True)
class Report:
    """What became of a video.

    Attributes:
        frames: How many frames the result has.
        seconds: How much of the clip they cover.
        recursions: The most passes that a frame took.
        warnings: What could not be kept as it was, one sentence each.
        problem: Why the result is not the whole clip; empty when it is.
        interrupted: Whether that was Ctrl-C.
    """

    frames: int
    seconds: float
    recursions: int
    warnings: tuple[str, ...] = ()
    problem: str = ""
    interrupted: bool = False


def is_video(path: Path) -> bool:
    """Whether a file's name says that it is a video."""
    return path.suffix.lower() in SUFFIXES


def beside(source: Path) -> Path:
    """Where the result of a video goes if nobody says; Matroska takes what old containers hold."""
    suffix = source.suffix if source.suffix.lower() in WRITTEN else ".mkv"
    return source.with_name(f"{source.stem}_derained{suffix}")


def parse_time(text: str, option: str) -> Fraction:
    """Read a time: seconds, MM:SS or HH:MM:SS, each with decimals.

    Raises:
        OptionError: It is no such time.
    """
    match = re.fullmatch(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?|\.\d+)", text.strip())
    if not match or (match[2] and float(match[3]) >= 60):
        raise OptionError(f"{option} {text}: give seconds, MM:SS or HH:MM:SS, such as 90, 1:30 or 0:01:30.5")
    hours, minutes, seconds = (Fraction(part) if part else Fraction(0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def derain(
    source: Path,
    target: Path,
    derainer: "Derainer",
    settings: Settings | None = None,
    *,
    max_pixels: int = image.MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Take the rain out of a video.

    The result appears whole or not at all, with one exception: Ctrl-C finishes the file with the frames that
    are done. A second Ctrl-C leaves nothing.

    Args:
        source: The video.
        target: The result; its extension, one of `WRITTEN`, decides the container.
        derainer: What takes the rain out of each frame.
        settings: Codec, quality and part of the clip.
        max_pixels: Refuse frames with more pixels than this.
        progress: Called with the frames done and, as far as that is known, the frames in all.

    Returns:
        What became of it: look at `problem`, since of a damaged clip what could be read is written.

    Raises:
        UnrainError: Nothing could be read or written, or PyAV is missing.
        KeyboardInterrupt: Ctrl-C came before the first frame was done.
    """
    settings = settings or Settings()
    _library(source)
    with _opened(source) as container:
        reader = _Reader(container, source, settings, max_pixels)
        items = reader.items()
        early: list[Any] = []
        while not (early and isinstance(early[-1], Shot)):
            item = next(items, None)
            if item is None:
                raise UnrainError(f"{source}: {reader.why_nothing()}")
            early.append(item)
        with files.replacing(target) as file, _written(target):
            writer = _Writer(file, target, reader, settings)
            with writer:
                work = _Work(reader, writer, derainer, settings, progress)
                interrupted = work.run(early, items)
            return work.report(interrupted=interrupted)


def _library(source: Path) -> ModuleType:
    try:
        import av
    except ModuleNotFoundError as error:
        raise UnrainError(
            f"{source}: videos need {error.name}, which is not here: pip install 'unrain[video]'"
        ) from error
    return av


# ------------------------------------------------------------------------------------------- the pipeline


@dataclass(frozen=True, eq=False)
class Shot:
    """One frame.

    Attributes:
        pixels: H x W x 3 RGB, uint8 or, from sources with more than 8 bits, uint16; full range.
        pts: When it is shown, in the source's time base.
        duration: For how long, in the same unit.
    """

    pixels: Pixels
    pts: int
    duration: int


@dataclass(frozen=True, eq=False)
class _Derained(Shot):
    """A frame without its rain.

    Attributes:
        rainy: Its pixels before.
    """

    rainy: Pixels


class _Pipe:
    """A queue between two threads which holds few frames, and which either end can shut.

    Packets of sound do not count: they are small, and must not keep frames from being decoded ahead.
    """

    def __init__(self, room: int) -> None:
        self._items: deque[Any] = deque()
        self._room = room
        self._shots = 0
        self._ended = False
        self._shut = False
        self._changed = threading.Condition()

    def put(self, item: Any) -> bool:  # noqa: ANN401
        """Add an item once there is room; False if nobody wants it any more."""
        with self._changed:
            counts = isinstance(item, Shot)
            while counts and self._shots >= self._room and not self._shut:
                # Without a time-out Windows would not let Ctrl-C through.
                self._changed.wait(0.5)
            if self._shut:
                return False
            self._items.append(item)
            self._shots += counts
            self._changed.notify_all()
            return True

    def end(self) -> None:
        """Say that nothing more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def shut(self) -> None:
        """Say that nothing more is wanted, and forget what is there."""
        with self._changed:
            self._shut = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._changed:
                while not self._items and not self._ended and not self._shut:
                    self._changed.wait(0.5)
                if not self._items:
                    return
                item = self._items.popleft()
                self._shots -= isinstance(item, Shot)
                self._changed.notify_all()
            yield item


class _Work:
    """Reader, network and writer at once."""

    def __init__(
        self,
        reader: "_Reader",
        writer: "_Writer",
        derainer: "Derainer",
        settings: Settings,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._derainer = derainer
        self._progress = progress
        self._steadier: Steadier[Shot] | None = Steadier() if settings.neighbours else None
        self._incoming = _Pipe(_AHEAD)
        self._outgoing = _Pipe(_AHEAD)
        self._done = 0
        self._recursions = 0

    def run(self, early: "Sequence[Any]", rest: "Iterator[Any]") -> bool:
        """Work through all items; return whether Ctrl-C ended it early.

        Raises:
            KeyboardInterrupt: It came before the first frame was done, or twice.
        """
        interrupted = False
        with ThreadPoolExecutor(2, "unrain-video") as threads:
            reading = threads.submit(self._read, early, rest)
            writing = threads.submit(self._write)
            try:
                try:
                    self._derain()
                except KeyboardInterrupt:
                    interrupted = True
                    if not self._done:
                        self._outgoing.shut()
                        raise
            finally:
                self._incoming.shut()
                self._outgoing.end()
            try:
                writing.result()
            except KeyboardInterrupt:
                # All frames are done already: only a second one may throw them away.
                if interrupted:
                    self._outgoing.shut()
                    raise
                interrupted = True
                writing.result()
            reading.result()
        return interrupted

    def _read(self, early: "Sequence[Any]", rest: "Iterator[Any]") -> None:
        try:
            for item in early:
                self._incoming.put(item)
            for item in rest:
                if not self._incoming.put(item):
                    return
        finally:
            self._incoming.end()

    def _derain(self) -> None:
        for item in self._incoming:
            if not isinstance(item, Shot):
                if not self._outgoing.put(item):
                    return
                continue
            found = self._derainer.derain(item.pixels)
            self._recursions = max(self._recursions, found.recursions)
            if not self._outgoing.put(_Derained(found.image, item.pts, item.duration, item.pixels)):
                return
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, max(self._done, self._reader.total))

    def _write(self) -> None:
        try:
            for item in self._outgoing:
                for ready in self._steadied(item):
                    self._writer.put(ready)
            # Those that waited for neighbours.
            for shot, pixels in self._steadier.flush() if self._steadier is not None else ():
                self._writer.put(replace(shot, pixels=pixels))
            self._writer.finish()
        finally:
            # After an error nothing must wait for room that will never be there.
            self._outgoing.shut()

    def _steadied(self, item: Any) -> list[Any]:  # noqa: ANN401
        """Give what is ready once this item is there; packets always are."""
        if self._steadier is None or not isinstance(item, _Derained):
            return [item]
        ready = self._steadier.push(item, item.rainy, item.pixels)
        return [replace(shot, pixels=pixels) for shot, pixels in ready]

    def report(self, *, interrupted: bool) -> Report:
        """Sum up."""
        seconds = float(self._writer.until * self._reader.time_base - self._reader.origin)
        problem = self._reader.problem()
        if interrupted:
            problem = f"stopped after {self._writer.frames} frames ({seconds:.1f} s)"
        warnings = tuple(dict.fromkeys((*self._reader.warnings, *self._writer.warnings)))
        return Report(self._writer.frames, seconds, self._recursions, warnings, problem, interrupted)


# ------------------------------------------------------------------------------------------------ reading


@contextlib.contextmanager
def _opened(source: Path) -> "Iterator[InputContainer]":
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
            container = av.open(file, "r", container_options={"format_whitelist": _DEMUXERS})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UnrainError(
                f"{source}: no video that can be read, or one whose index is missing because it was cut off "
                f"({_reason(error)}), get it again from its source"
            ) from error
        with container:
            yield container


class _Reader:
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
        self._told_end = begin + self._length if container.format.name in _TELLS_LENGTH else None
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
        self.deep = _depth(self.format) > 8
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
        return self.stream.codec_context.color_range == _FULL or self.format.name.startswith("yuvj")

    @property
    def matrix(self) -> int:
        """Number of the matrix in swscale; where the file is silent, what players take for this size."""
        guess = 1 if self.width >= 1280 or self.height > 576 else 5
        return _MATRIX.get(self.stream.codec_context.colorspace, guess)

    def items(self) -> "Iterator[Any]":
        """Give frames (`Shot`) and the packets of other streams, from the start asked for to the end."""
        from av import FFmpegError

        if self._settings.start:
            with contextlib.suppress(FFmpegError):
                self.container.seek(int(self.origin / self.time_base), stream=self.stream)
        times = _Times(self._step, decoding_order=self.container.format.name == "avi")
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
            src_color_range=_FULL if self.full_range or self.format.is_rgb else _LIMITED,
            dst_color_range=_FULL,
            interpolation=_interpolation(),
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


class _Times:
    """Makes sense of a frame's times: rising ones, whatever the file says.

    As FFmpeg's own tools do: the time of showing is believed until it went wrong more often than that of
    decoding.
    """

    def __init__(self, step: int, *, decoding_order: bool) -> None:
        self._step = step
        self._last: int | None = None
        self._last_pts = self._last_dts = -(1 << 63)
        # AVI has no other times than those of decoding; FFmpeg's guess is wrong where frames are reordered.
        self._wrong_pts, self._wrong_dts = int(decoding_order), 0

    def next(self, pts: int | None, dts: int | None) -> int:
        """Decide on the time of the next frame."""
        if dts is not None:
            self._wrong_dts += dts <= self._last_dts
            self._last_dts = dts
        if pts is not None:
            self._wrong_pts += pts <= self._last_pts
            self._last_pts = pts
        shown = pts if pts is not None and (self._wrong_pts <= self._wrong_dts or dts is None) else dts
        if shown is None:
            shown = 0 if self._last is None else self._last + self._step
        # An encoder takes no two frames at one time.
        self._last = shown if self._last is None else max(shown, self._last + 1)
        return self._last


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


def _depth(format: "VideoFormat") -> int:
    return max(component.bits for component in format.components)


def _interpolation() -> int:
    from av.video.reformatter import Interpolation

    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return int(Interpolation.BICUBIC | exact)


# ------------------------------------------------------------------------------------------------ writing


@contextlib.contextmanager
def _written(target: Path) -> Iterator[None]:
    """Turn FFmpeg's errors into ours."""
    from av import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise files.writing_error(OSError(error.errno, error.strerror), target) from error


class _Writer:
    """Encodes frames and copies packets into the new file.

    Attributes:
        frames: How many frames went in.
        until: When the last one ends, in the source's time base.
        warnings: What could not be kept.
    """

    def __init__(self, file: BinaryIO, target: Path, reader: _Reader, settings: Settings) -> None:
        import av

        self.frames = 0
        self.until = 0
        self.warnings: list[str] = []
        self._file = file
        self._target = target
        self._reader = reader
        kind = WRITTEN[target.suffix.lower()]
        self._container = av.open(file, "w", format=kind, container_options=_options(kind, reader))
        self._shift = round(reader.origin / reader.time_base)
        self._durations: dict[int, int] = {}
        name = settings.codec or ("vp9" if kind == "webm" else "h264")
        self._video = self._add_video(name, settings.crf)
        self._copied = self._add_others(reader.container)
        self._container.metadata.update(_metadata(reader.container.metadata))
        self._container.set_chapters(self._chapters(settings))

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        # Closed already unless something went wrong, and what that was is known.
        with contextlib.suppress(Exception):
            self._container.close()

    def _add_video(self, name: str, crf: int | None) -> "VideoStream":
        codec, reader = CODECS[name], self._reader
        before = reader.stream.codec_context
        options = {**codec.options, "crf": str(codec.crf if crf is None else crf)}
        if name == "av1":
            # It writes to standard error by itself, past FFmpeg's log.
            os.environ.setdefault("SVT_LOG", "1")
        try:
            stream = self._container.add_stream(codec.encoder, rate=reader.rate, options=options)
        except ValueError as error:
            held = "vp9 or av1" if self._target.suffix.lower() == ".webm" else ", ".join(CODECS)
            raise UnrainError(f"{self._target}: cannot hold {name}, choose --codec {held}") from error
        video: VideoStream = stream  # type: ignore[assignment]
        context = video.codec_context
        context.width, context.height = reader.width, reader.height
        context.pix_fmt = self._pixel_format(codec, name, stream.codec.video_formats or [])
        context.time_base = video.time_base = reader.time_base
        context.color_range = _FULL if reader.full_range else _LIMITED if before.color_range else 0
        # RGB has no matrix: the one that it is encoded with must be said.
        context.colorspace = before.colorspace if not reader.format.is_rgb else reader.matrix
        context.color_primaries = before.color_primaries
        context.color_trc = before.color_trc
        if reader.stream.sample_aspect_ratio:
            context.sample_aspect_ratio = reader.stream.sample_aspect_ratio
        if name == "hevc" and self._target.suffix.lower() in (".mp4", ".m4v", ".mov"):
            # Apple's players want this name.
            context.codec_tag = "hvc1"
        if reader.rotation:
            video.set_display_matrix(reader.rotation)
        video.metadata.update(_metadata(reader.stream.metadata))
        video.disposition = reader.stream.disposition
        return video

    def _pixel_format(self, codec: Codec, name: str, offered: "Sequence[VideoFormat]") -> str:
        """Choose how colours are stored: as in the source, as far as the codec can."""
        reader = self._reader
        names = {format.name for format in offered}
        depth = _depth(reader.format)
        fine = reader.format.is_rgb
        across = 1 if fine else 16 // max(1, reader.format.chroma_width(16) or 8)
        down = 1 if fine else 16 // max(1, reader.format.chroma_height(16) or 8)
        odd = bool((across > 1 and reader.width % 2) or (down > 1 and reader.height % 2))
        chroma = "444" if (across, down) == (1, 1) else "422" if down == 1 else "420"
        if odd and codec.even and f"yuv444p{'10le' * (depth > 8)}" in names:
            chroma = "444"
            self.warnings.append(
                f"{reader.width} x {reader.height} is odd: {name} keeps that size with colour at full "
                "resolution (4:4:4), which not every player shows"
            )
        for wanted in (chroma, "444" if chroma == "422" else chroma, "420"):
            for bits, suffix in ((12, "12le"), (10, "10le"), (8, "")):
                if bits <= max(8, depth) and f"yuv{wanted}p{suffix}" in names:
                    if wanted != chroma:
                        self.warnings.append(f"{name} stores colour at half resolution (4:2:0)")
                    self._say_depth(name, depth, bits)
                    return f"yuv{wanted}p{suffix}"
        raise UnrainError(f"{self._target}: {name} cannot store this video, choose another --codec")

    def _say_depth(self, name: str, before: int, after: int) -> None:
        if after < min(before, 10):
            self.warnings.append(f"{before} bits a channel are reduced to {after}: {name} has no more here")
        elif after > 8 and name == "h264":
            self.warnings.append(
                f"{after} bits a channel are kept: some players show no H.264 with more than 8, "
                "--codec hevc is shown by more"
            )

    def _add_others(self, container: "InputContainer") -> "dict[int, Stream]":
        """Make room for what is copied; say what is not."""
        copied: dict[int, Stream] = {}
        matroska = self._target.suffix.lower() == ".mkv"
        for stream in container.streams:
            if stream.index == self._reader.stream.index:
                continue
            if stream.type == "data" or (stream.type == "attachment" and not matroska):
                # A time code is written anew, from the metadata of the video.
                if "timecode" not in stream.metadata:
                    self._dropped(stream)
                continue
            try:
                new = self._container.add_stream_from_template(stream, opaque=True)
            except ValueError:
                self._dropped(stream)
                continue
            new.metadata.update(_metadata(stream.metadata))
            new.disposition = stream.disposition
            copied[stream.index] = new
        return copied

    def _dropped(self, stream: "Stream") -> None:
        kind = {"audio": "sound", "subtitle": "subtitles", "video": "a second picture"}.get(
            stream.type, stream.type
        )
        language = stream.metadata.get("language", "und")
        name = ", ".join(filter(None, [stream.name, language if language != "und" else None]))
        holder = self._target.suffix.lower()
        remedy = "" if holder == ".mkv" or stream.type == "data" else ", a name in .mkv after -o keeps them"
        self.warnings.append(
            f"{kind} (stream {stream.index}{': ' * bool(name)}{name}) cannot be kept in {holder}{remedy}"
        )

    def _chapters(self, settings: Settings) -> list[Any]:
        chapters: list[Any] = []
        for chapter in self._reader.container.chapters():
            unit = chapter["time_base"]
            if not unit:
                continue
            shift = round(self._reader.origin / unit)
            start, end = max(0, chapter["start"] - shift), chapter["end"] - shift
            last = None if settings.duration is None else round(settings.duration / unit)
            end = end if last is None else min(end, last)
            if end > start:
                chapters.append({**chapter, "start": start, "end": end})
        return chapters

    def put(self, item: Any) -> None:  # noqa: ANN401
        """Write a frame or a packet of another stream."""
        if isinstance(item, Shot):
            self._encode(item)
        elif item.stream_index in self._copied:
            self._copy(item)

    def _encode(self, shot: Shot) -> None:
        from av import VideoFrame

        frame = VideoFrame.from_ndarray(shot.pixels, "rgb24" if shot.pixels.dtype == np.uint8 else "rgb48le")
        frame = frame.reformat(
            format=self._video.codec_context.pix_fmt,
            dst_colorspace=self._reader.matrix,
            src_color_range=_FULL,
            dst_color_range=_FULL if self._reader.full_range else _LIMITED,
            interpolation=_interpolation(),
        )
        frame.pts = shot.pts - self._shift
        frame.time_base = self._reader.time_base
        self._durations[frame.pts] = shot.duration
        self.frames += 1
        self.until = shot.pts + shot.duration
        self._mux(self._video.encode(frame))

    def _mux(self, packets: "list[Packet[Any]]") -> None:
        for packet in packets:
            # Not every encoder hands the duration on, and without it the last frame would be a blink.
            packet.duration = self._durations.pop(packet.pts if packet.pts is not None else -1, 0)
            self._container.mux_one(packet)

    def _copy(self, packet: "Packet[Any]") -> None:
        shift = round(self._reader.origin / packet.time_base)
        if packet.pts is not None:
            packet.pts -= shift
        if packet.dts is not None:
            packet.dts -= shift
        packet.stream = self._copied[packet.stream_index]
        self._container.mux_one(packet)

    def finish(self) -> None:
        """Bring out what the encoder still holds, and the file onto the disk."""
        self._mux(self._video.encode(None))
        self._container.close()
        # Here, because in the caller's thread Ctrl-C would break it off.
        self._file.flush()
        os.fsync(self._file.fileno())


def _options(kind: str, reader: _Reader) -> dict[str, str]:
    options: dict[str, str] = {}
    if kind in ("mp4", "mov") and reader.time_base.numerator == 1:
        options["video_track_timescale"] = str(reader.time_base.denominator)
        if any(key.startswith("com.") for key in reader.container.metadata):
            # Keys of phones and cameras have a place of their own.
            options["movflags"] = "use_metadata_tags"
    return options


def _metadata(found: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in found.items() if not _NOT_METADATA.fullmatch(key)}


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
