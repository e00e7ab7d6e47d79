"""Writes a video: encodes frames, copies the packets of all other streams."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from unrain import files
from unrain.errors import UnrainError
from unrain.video.containers import WRITTEN
from unrain.video.frames import FULL, LIMITED, Frame, Item, bit_depth, exact_interpolation
from unrain.video.options import CODECS, ENCODERS, VideoOptions
from unrain.video.reader import Reader

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.codeccontext import VideoCodecContext
    from av.video.format import VideoFormat
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# FFmpeg's names of pixel formats by chroma and bits: the processor's encoders take the first of each.
_FORMATS = {
    ("420", 8): ("yuv420p", "nv12"),
    ("420", 10): ("yuv420p10le", "p010le"),
    ("420", 12): ("yuv420p12le", "p012le"),
    ("422", 8): ("yuv422p", "nv16", "yuyv422"),
    ("422", 10): ("yuv422p10le", "p210le", "y210le"),
    ("422", 12): ("yuv422p12le",),
    ("444", 8): ("yuv444p", "vuyx"),
    ("444", 10): ("yuv444p10le", "yuv444p10msble", "xv30le"),
    ("444", 12): ("yuv444p12le",),
}

# Written by the muxer itself, or true of the source's encoding only.
_NOT_METADATA = re.compile(
    r"major_brand|minor_version|compatible_brands|encoder|vendor_id|DURATION.*|BPS.*|NUMBER_OF_.*|_STATISTICS_.*",
    re.IGNORECASE,
)


@contextlib.contextmanager
def muxing(source: Path, target: Path) -> Iterator[None]:
    """Turn FFmpeg's errors into one that names the source: those of the disk come from `Output`."""
    from av import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise UnrainError(
            f"{source}: cannot be put into {target.suffix.lower()} ({files.one_line(error.strerror)}), "
            "part of it may be damaged: choose another container with -o, such as .mkv"
        ) from error


class Output:
    """The result's file as FFmpeg sees it: never full.

    Of two errors between its own checks PyAV prints the second with a traceback. So the first is kept for
    `check`, and nothing more is written after it.

    Args:
        file: Open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self._position = 0

    def write(self, data: bytes) -> int:
        """Write, unless that has failed before."""
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; this writes what is buffered."""
        if self._error is None:
            try:
                self._position = self._file.seek(offset, whence)
            except OSError as error:
                self._error = error
        elif whence == os.SEEK_SET:
            self._position = offset
        return self._position

    def tell(self) -> int:
        """Return the place."""
        return self._position

    def check(self) -> None:
        """Raise what went wrong.

        Raises:
            OSError: A write failed, for want of space for instance.
        """
        if self._error is not None:
            raise self._error


class Writer:
    """Encodes the frames and copies the packets into the result.

    Attributes:
        frames: Frames written so far.
        until: When the last one ends, in the source's time base.
        warnings: What could not be kept, one sentence each.
    """

    def __init__(self, file: BinaryIO, target: Path, reader: Reader, options: VideoOptions) -> None:
        from av.video.reformatter import VideoReformatter

        self.frames = 0
        self.until = 0
        self.warnings: list[str] = []
        # One for all frames: its tables are made once.
        self._reformatter = VideoReformatter()
        self._file = file
        self._output = Output(file)
        self._target = target
        self._reader = reader
        self._shift = round(reader.origin / reader.time_base)
        self._durations: dict[int, int] = {}
        self._hardware = options.encoder or ""
        name = options.codec_for(target)
        if options.encoder is None or not self._begin_by_hardware(name, options.encoder, options.crf):
            self._begin_by_processor(name, options.crf)
        self._copied = self._add_others(reader.container)
        self._container.metadata.update(_metadata(reader.container.metadata))
        self._container.set_chapters(self._chapters(options))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        # Already closed, except after an error, which must not be hidden by another.
        with contextlib.suppress(Exception):
            self._container.close()

    def _begin_by_hardware(self, name: str, family: str, crf: int | None) -> bool:
        """Begin the result with an encoder that is no part of the processor; say so if that cannot be had."""
        import av

        reader = self._reader
        encoder, options = f"{name}_{family}", ENCODERS[family].settings(name, crf)
        try:
            offered = av.Codec(encoder, "w").video_formats or []
            # Whether it keeps an odd size or cuts it could not be tried.
            if reader.width % 2 or reader.height % 2:
                raise ValueError("odd")
            kind, warnings = self._pixel_format(encoder, offered, even=True)
            context: VideoCodecContext = av.CodecContext.create(encoder, "w")  # type: ignore[assignment]
            context.framerate, context.options = reader.rate, options
            self._set_up(context, name, kind)
            # Some say only at the first frame what they cannot do.
            blank = av.VideoFrame.from_ndarray(np.zeros((reader.height, reader.width, 3), np.uint8), "rgb24")
            if not [*context.encode(blank.reformat(format=kind)), *context.encode(None)]:
                raise ValueError("nothing came out")
            del context
            self._add_video(encoder, name, kind, options)
            self._video.codec_context.open()
        except (av.FFmpegError, UnrainError, OSError, ValueError, RuntimeError, NotImplementedError):
            self.warnings.append(f"{family} cannot encode it here: the processor does")
            self._hardware = ""
            return False
        self.warnings += warnings
        return True

    def _begin_by_processor(self, name: str, crf: int | None) -> None:
        import av

        codec, reader = CODECS[name], self._reader
        if reader.width < codec.least[0] or reader.height < codec.least[1]:
            raise UnrainError(
                f"{self._target}: {reader.width} x {reader.height} is too small for {name}, choose another "
                "--codec"
            )
        options = {**codec.options, "crf": str(codec.crf if crf is None else crf)}
        if name == "av1":
            # SVT-AV1 writes to standard error directly, not through FFmpeg's log.
            os.environ.setdefault("SVT_LOG", "1")
        try:
            offered = av.Codec(codec.encoder, "w").video_formats or []
            kind, warnings = self._pixel_format(name, offered, even=codec.even)
            self._add_video(codec.encoder, name, kind, options)
        except ValueError as error:
            raise UnrainError(
                f"{self._target}: {name} cannot be written here, choose another --codec"
            ) from error
        self.warnings += warnings

    def _add_video(self, encoder: str, name: str, kind: str, options: dict[str, str]) -> None:
        """Open the container, in which nothing is written yet, and add the stream of the frames."""
        import av

        reader = self._reader
        container = WRITTEN[self._target.suffix.lower()]
        self._container = av.open(
            self._output, "w", format=container, container_options=_options(container, reader)
        )
        video: VideoStream = self._container.add_stream(encoder, rate=reader.rate, options=options)  # type: ignore[assignment]
        self._set_up(video.codec_context, name, kind)
        video.time_base = reader.time_base
        if reader.rotation:
            video.set_display_matrix(reader.rotation)
        video.metadata.update(_metadata(reader.stream.metadata))
        video.disposition = reader.stream.disposition
        self._video = video

    def _set_up(self, context: "VideoCodecContext", name: str, kind: str) -> None:
        """Tell an encoder what comes."""
        reader = self._reader
        before = reader.stream.codec_context
        context.width, context.height, context.pix_fmt = reader.width, reader.height, kind
        context.time_base = reader.time_base
        context.color_range = FULL if reader.full_range else LIMITED if before.color_range else 0
        # RGB has no matrix: name the one that it is encoded with.
        context.colorspace = before.colorspace if not reader.format.is_rgb else reader.matrix
        context.color_primaries = before.color_primaries
        context.color_trc = before.color_trc
        if reader.stream.sample_aspect_ratio:
            context.sample_aspect_ratio = reader.stream.sample_aspect_ratio
        if name == "hevc" and self._target.suffix.lower() in (".mp4", ".m4v", ".mov"):
            # Apple's players need this tag.
            context.codec_tag = "hvc1"

    def _pixel_format(
        self, name: str, offered: "Sequence[VideoFormat]", *, even: bool
    ) -> tuple[str, list[str]]:
        """Choose the pixel format: the source's chroma and depth, as far as the encoder can store them.

        Args:
            name: What the encoder is called in warnings.
            offered: What it takes.
            even: Whether width and height must be even where colour is stored at half resolution.

        Returns:
            FFmpeg's name of the format, and what it does not keep.

        Raises:
            UnrainError: There is none.
        """
        reader = self._reader
        warnings: list[str] = []
        names = {format.name for format in offered}
        depth = bit_depth(reader.format)
        fine = reader.format.is_rgb
        across = 1 if fine else 16 // max(1, reader.format.chroma_width(16) or 8)
        down = 1 if fine else 16 // max(1, reader.format.chroma_height(16) or 8)
        odd = bool((across > 1 and reader.width % 2) or (down > 1 and reader.height % 2))
        chroma = "444" if (across, down) == (1, 1) else "422" if down == 1 else "420"
        if odd and even and names.intersection(_FORMATS["444", 10 if depth > 8 else 8]):
            chroma = "444"
            warnings.append(
                f"{reader.width} x {reader.height} is odd: {name} keeps that size with colour at full "
                "resolution (4:4:4), which not every player supports"
            )
        for wanted in (chroma, "444" if chroma == "422" else chroma, "420"):
            for bits in (12, 10, 8):
                kind = next((kind for kind in _FORMATS[wanted, bits] if kind in names), None)
                if bits <= max(8, depth) and kind is not None:
                    if wanted == "420" != chroma:
                        warnings.append(f"{name} stores colour at half resolution (4:2:0)")
                    return kind, [*warnings, *_depth_warnings(name, depth, bits)]
        raise UnrainError(f"{self._target}: {name} cannot store this video, choose another --codec")

    def _add_others(self, container: "InputContainer") -> "dict[int, Stream]":
        """Add the streams that are copied; warn about those that cannot be."""
        copied: dict[int, Stream] = {}
        matroska = self._target.suffix.lower() == ".mkv"
        for stream in container.streams:
            if stream.index == self._reader.stream.index:
                continue
            if stream.type == "data" or (stream.type == "attachment" and not matroska):
                # The muxer rewrites a time code from the metadata of the video stream.
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
        # A codec that FFmpeg does not know has no name either.
        codec = getattr(stream, "name", None)
        name = ", ".join(filter(None, [codec, language if language != "und" else None]))
        holder = self._target.suffix.lower()
        remedy = "" if holder == ".mkv" or stream.type == "data" else ", a name in .mkv after -o keeps them"
        self.warnings.append(
            f"{kind} (stream {stream.index}{': ' * bool(name)}{name}) cannot be kept in {holder}{remedy}"
        )

    def _chapters(self, options: VideoOptions) -> list[Any]:
        chapters: list[Any] = []
        for chapter in self._reader.container.chapters():
            unit = chapter["time_base"]
            if not unit:
                continue
            shift = round(self._reader.origin / unit)
            start, end = max(0, chapter["start"] - shift), chapter["end"] - shift
            last = None if options.duration is None else round(options.duration / unit)
            end = end if last is None else min(end, last)
            if end > start:
                chapters.append({**chapter, "start": start, "end": end})
        return chapters

    def put(self, item: Item) -> None:
        """Write a frame or a packet of another stream."""
        if isinstance(item, Frame):
            self._encode(item)
        elif item.stream_index in self._copied:
            self._copy(item)

    def _encode(self, frame: Frame) -> None:
        from av import VideoFrame

        layout = "rgb24" if frame.pixels.dtype == np.uint8 else "rgb48le"
        encoded = self._reformatter.reformat(
            VideoFrame.from_ndarray(frame.pixels, layout),
            format=self._video.codec_context.pix_fmt,
            dst_colorspace=self._reader.matrix,
            src_color_range=FULL,
            dst_color_range=FULL if self._reader.full_range else LIMITED,
            interpolation=exact_interpolation(),
        )
        encoded.pts = frame.pts - self._shift
        encoded.time_base = self._reader.time_base
        self._durations[encoded.pts] = frame.duration
        self.frames += 1
        self.until = frame.pts + frame.duration
        self._mux(self._encoded(encoded))

    def _encoded(self, frame: "VideoFrame | None") -> "list[Packet[Any]]":
        from av import FFmpegError

        try:
            return self._video.encode(frame)
        except FFmpegError as error:
            if not self._hardware:
                raise
            raise UnrainError(
                f"{self._target}: {self._hardware} failed after {self.frames} frames "
                f"({files.one_line(error.strerror)}), leave out --encoder"
            ) from error

    def _mux(self, packets: "list[Packet[Any]]") -> None:
        for packet in packets:
            # Not every encoder passes the duration on; without it the last frame would only flash up.
            packet.duration = self._durations.pop(packet.pts if packet.pts is not None else -1, 0)
            self._container.mux_one(packet)
        self._output.check()

    def _copy(self, packet: "Packet[Any]") -> None:
        shift = round(self._reader.origin / packet.time_base)
        if packet.pts is not None:
            packet.pts -= shift
        if packet.dts is not None:
            packet.dts -= shift
        packet.stream = self._copied[packet.stream_index]
        self._container.mux_one(packet)
        self._output.check()

    def finish(self) -> None:
        """Write what the encoder still holds, and flush the file to the disk."""
        self._mux(self._encoded(None))
        self._container.close()
        self._output.check()
        # Not in the caller's thread, where Ctrl-C would interrupt it.
        self._file.flush()
        os.fsync(self._file.fileno())


def _options(kind: str, reader: Reader) -> dict[str, str]:
    options: dict[str, str] = {}
    if kind in ("mp4", "mov") and reader.time_base.numerator == 1:
        options["video_track_timescale"] = str(reader.time_base.denominator)
        if any(key.startswith("com.") for key in reader.container.metadata):
            # Phones and cameras write keys that MP4 only stores this way.
            options["movflags"] = "use_metadata_tags"
    return options


def _metadata(found: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in found.items() if not _NOT_METADATA.fullmatch(key)}


def _depth_warnings(name: str, before: int, after: int) -> list[str]:
    if after < min(before, 10):
        return [f"{before} bits per channel are reduced to {after}, the most that {name} has here"]
    if after > 8 and name.startswith("h264"):
        return [
            f"{after} bits per channel are kept, which some players do not support in H.264; more support "
            "--codec hevc"
        ]
    return []
