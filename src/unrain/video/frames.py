"""A frame of a video, its timestamp, and the conversion of its colours to RGB and back."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from unrain.image import Array

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.format import VideoFormat

# swscale's numbers of the colour matrices, by the numbers that files carry (ITU-T H.273).
MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
LIMITED, FULL = 1, 2


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of the source.

    Attributes:
        pixels: H x W x 3 RGB in full range; uint8, or uint16 if the source has more than 8 bits.
        pts: When it is shown, in the source's time base.
        duration: How long it is shown, in the same unit.
    """

    pixels: Array
    pts: int
    duration: int


@dataclass(frozen=True, eq=False)
class DerainedFrame(Frame):
    """A frame after deraining.

    Attributes:
        rainy: Its pixels before, of the same shape and type.
    """

    rainy: Array


class FrameTimes:
    """Chooses the timestamp of each frame, strictly rising even where the file's are not.

    As FFmpeg's own tools do, it trusts the presentation time until that has been wrong more often than the
    decoding time.
    """

    def __init__(self, step: int, *, decoding_order: bool) -> None:
        """Start before the first frame.

        Args:
            step: The usual distance of two frames, in the source's time base, for frames without any time.
            decoding_order: Prefer the decoding time from the start.
        """
        self._step = step
        self._last: int | None = None
        self._last_pts = self._last_dts = -(1 << 63)
        # AVI stores decoding times only; FFmpeg's guess is wrong where frames are reordered.
        self._wrong_pts, self._wrong_dts = int(decoding_order), 0

    def next(self, pts: int | None, dts: int | None) -> int:
        """Choose the timestamp of the next frame from its presentation and decoding time."""
        if dts is not None:
            self._wrong_dts += dts <= self._last_dts
            self._last_dts = dts
        if pts is not None:
            self._wrong_pts += pts <= self._last_pts
            self._last_pts = pts
        shown = pts if pts is not None and (self._wrong_pts <= self._wrong_dts or dts is None) else dts
        if shown is None:
            shown = 0 if self._last is None else self._last + self._step
        # Encoders refuse two frames with the same timestamp.
        self._last = shown if self._last is None else max(shown, self._last + 1)
        return self._last


Item: TypeAlias = "Frame | Packet[Any]"
"""What moves through the pipeline: frames of the main stream, packets of all others."""


class Source(Protocol):
    """Where frames come from, as the pipeline sees it.

    Attributes:
        time_base: Seconds of one unit of the frames' times.
        origin: Where the result starts, in seconds.
        total: How many frames are expected; 0 if that is unknown.
        warnings: What cannot be kept.
        rotation: How players turn the frames: the display matrix of the first, None if they do not.
    """

    time_base: Fraction
    origin: Fraction
    total: int
    rotation: tuple[int, ...] | None
    warnings: list[str]

    def problem(self) -> str:
        """Say why not all of it could be read; empty if it was."""


class Sink(Protocol):
    """Where frames go, as the pipeline sees it.

    Attributes:
        frames: How many were written.
        until: When the last one ends, in the source's unit.
        warnings: What was not kept.
    """

    frames: int
    until: int
    warnings: list[str]

    def put(self, item: Item) -> None:
        """Write a frame or packet."""

    def finish(self) -> None:
        """Write what follows the last frame."""


def quarter_turns(matrix: tuple[int, ...] | None) -> int:
    """Quarter turns to the left, as NumPy counts them, that a display matrix makes; 0 for None."""
    return 0 if matrix is None else -round(math.atan2(matrix[1], matrix[0]) / (math.pi / 2))


def bit_depth(format: "VideoFormat") -> int:
    """Bits of the deepest channel of a pixel format."""
    return max(component.bits for component in format.components)


def exact_interpolation() -> int:
    """Swscale's flags for the most exact conversion of colours."""
    from av.video.reformatter import Interpolation

    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return int(Interpolation.BICUBIC | exact)
