"""A frame, its time, and the way of its colours from the file to RGB and back."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unrain.image import Array

if TYPE_CHECKING:
    from av.video.format import VideoFormat

# swscale's numbers of matrices, by the numbers that files carry (ITU-T H.273).
MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
LIMITED, FULL = 1, 2


@dataclass(frozen=True, eq=False)
class Shot:
    """One frame.

    Attributes:
        pixels: H x W x 3 RGB, uint8 or, from sources with more than 8 bits, uint16; full range.
        pts: When it is shown, in the source's time base.
        duration: For how long, in the same unit.
    """

    pixels: Array
    pts: int
    duration: int


@dataclass(frozen=True, eq=False)
class DerainedShot(Shot):
    """A frame without its rain.

    Attributes:
        rainy: Its pixels before.
    """

    rainy: Array


class Times:
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


def bit_depth(format: "VideoFormat") -> int:
    """Bits of the deepest channel of a pixel format."""
    return max(component.bits for component in format.components)


def interpolation() -> int:
    """The flags of swscale that convert colours most exactly."""
    from av.video.reformatter import Interpolation

    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
    return int(Interpolation.BICUBIC | exact)
