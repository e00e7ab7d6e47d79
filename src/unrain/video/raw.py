"""Raw frames from a pipe to a pipe, as FFmpeg and GStreamer write and read them: no container, no codec.

They go through the same pipeline as the frames of a file, and none of it needs PyAV.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from unrain.errors import UnrainError
from unrain.files import reading_problem
from unrain.layer import check_strength
from unrain.video.frames import Frame, Item
from unrain.video.options import OptionError, VideoOptions
from unrain.video.pipeline import Pipeline, VideoReport

if TYPE_CHECKING:
    from unrain.derainer import Derainer

_NAME = "standard input"
_KINDS: dict[str, np.dtype[Any]] = {"rgb24": np.dtype("u1"), "rgb48le": np.dtype("<u2")}


@dataclass(frozen=True)
class RawFormat:
    """What a frame in a pipe looks like: height x width x RGB, row by row, without any padding.

    Attributes:
        width: In pixels.
        height: In pixels.
        kind: FFmpeg's name of the pixel format: rgb24 or rgb48le.
    """

    width: int
    height: int
    kind: str = "rgb24"

    @property
    def length(self) -> int:
        """How many bytes a frame has."""
        return self.width * self.height * 3 * _KINDS[self.kind].itemsize


def parse_raw(text: str, most_pixels: int) -> RawFormat:
    """Parse WIDTHxHEIGHT or WIDTHxHEIGHT:FORMAT.

    Args:
        text: What the user wrote.
        most_pixels: Refuse frames with more.

    Raises:
        OptionError: It is something else.
    """
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})(?::(\w+))?", text.strip())
    if not match or not (int(match[1]) and int(match[2])) or (match[3] or "rgb24") not in _KINDS:
        kinds = " or ".join(f"1920x1080:{kind}" for kind in _KINDS)
        raise OptionError(f"--raw {text}: give the size of the frames, such as 1920x1080, {kinds}")
    width, height = int(match[1]), int(match[2])
    if width * height > most_pixels:
        raise OptionError(f"--raw {text}: more than {most_pixels:,} pixels, --max-pixels allows more")
    return RawFormat(width, height, match[3] or "rgb24")


def derain_raw(
    source: BinaryIO,
    target: BinaryIO,
    form: RawFormat,
    derainer: "Derainer",
    options: VideoOptions | None = None,
    *,
    strength: float = 1.0,
) -> VideoReport:
    """Take the rain out of raw frames while they arrive.

    Args:
        source: Where frames come from, until it ends.
        target: Where they go, in the same format, each as soon as it is done.
        form: The format.
        derainer: Derains each frame.
        options: Of these only `neighbours`, which holds each frame back until the next one is there.
        strength: How much of the rain is taken away: 0 none, 1 what is found, up to 1.5.

    Returns:
        The outcome; if the source ended within a frame, `problem` says so.

    Raises:
        UsageError: The strength is out of range.
        UnrainError: Nothing came, or it cannot be read.
        OSError: The target cannot be written.
        KeyboardInterrupt: Ctrl-C before the first frame was done.
    """
    check_strength(strength)
    reader, writer = _Reader(source, form), _Writer(target, form)
    pipeline = Pipeline(reader, writer, derainer, options or VideoOptions(), strength, None)
    interrupted = pipeline.run([], reader.items())
    if not writer.frames:
        raise UnrainError(reader.problem() or f"{_NAME}: ended before the first frame")
    return pipeline.report(interrupted=interrupted)


class _Reader:
    """Cuts a stream into frames, which are numbered in place of timestamps."""

    def __init__(self, source: BinaryIO, form: RawFormat) -> None:
        self.warnings: list[str] = []
        self.time_base, self.origin, self.total = Fraction(1), Fraction(0), 0
        self.rotation: tuple[int, ...] | None = None
        self._source = source
        self._form = form
        self._problem = ""

    def items(self) -> Iterator[Item]:
        """Give the frames as they arrive."""
        form, number = self._form, 0
        while True:
            data = self._read()
            if not data:
                return
            if len(data) < form.length:
                self._problem = (
                    f"{_NAME}: ends within frame {number + 1}, after {len(data):,} of {form.length:,} bytes: "
                    f"is it {form.width}x{form.height} {form.kind}?"
                )
                return
            pixels = np.frombuffer(data, _KINDS[form.kind]).reshape(form.height, form.width, 3)
            yield Frame(pixels.astype(pixels.dtype.newbyteorder("="), copy=False), number, 1)
            number += 1

    def _read(self) -> bytes:
        try:
            # The buffer of standard input waits for a whole frame, or the end.
            return self._source.read(self._form.length)
        except OSError as error:
            raise UnrainError(f"{_NAME}: {reading_problem(error)}") from error

    def problem(self) -> str:
        """Say why not all of the stream was derained; empty if it was."""
        return self._problem


class _Writer:
    """Writes frames one after the other."""

    def __init__(self, target: BinaryIO, form: RawFormat) -> None:
        self.warnings: list[str] = []
        self.frames = self.until = 0
        self._target = target
        self._form = form

    def put(self, item: Item) -> None:
        """Write a frame, and let the next program have it at once."""
        assert isinstance(item, Frame)
        self._target.write(item.pixels.astype(_KINDS[self._form.kind], order="C", copy=False).tobytes())
        self._target.flush()
        self.frames += 1
        self.until = self.frames

    def finish(self) -> None:
        """Nothing follows the last frame."""
