"""What neighbouring frames know: still places of a video, steadied after every frame was derained by itself.

Rain is elsewhere in every frame, the scene is not. Where a block of a frame and the same block of the two
frames before and after it (as it stands, or moved along with the whole picture) differ by no more than the
removal of rain may explain, the median of the five takes the place of each pixel. What does not fit counts as
the pixel itself, so it takes three frames that agree to change anything: moving things and scene cuts stay as
they were, and so do dry clips, in which the network removed nothing.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
Plane = NDArray[np.float32]

REACH = 2
"""Frames before and after that are looked at."""

_BLOCK = 16
# Share of the light that was taken away, by which what is left may still differ.
_SHARE = 0.4
_MOST = 16.0
_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class _Frame(Generic[Key]):
    """A derained frame and what comparing it needs.

    Attributes:
        key: What the caller knows it by.
        pixels: H x W x 3 RGB.
        luma: H x W, 0 to 255.
        spectrum: Its windowed Fourier transform.
        removed: Mean change that the network made to the luma, for each block.
    """

    key: Key
    pixels: Pixels
    luma: Plane
    spectrum: NDArray[np.complex64]
    removed: Plane


class TemporalMedian(Generic[Key]):
    """Takes derained frames in order and gives them back steadied, two frames later."""

    def __init__(self) -> None:
        self._window: deque[_Frame[Key]] = deque(maxlen=2 * REACH + 1)
        self._count = 0
        self._given = 0

    def push(self, key: Key, rainy: Pixels, derained: Pixels) -> list[tuple[Key, Pixels]]:
        """Add a frame.

        Args:
            key: What the frame is known by.
            rainy: H x W x 3 RGB before, uint8 or uint16.
            derained: The same after.

        Returns:
            Keys and pixels of the frames that have all their neighbours now.
        """
        luma = _luma(derained)
        removed = _around(_means(np.abs(_luma(rainy) - luma)))
        self._window.append(_Frame(key, derained, luma, _spectrum(luma), removed))
        self._count += 1
        return [self._next()] if self._count - self._given > REACH else []

    def flush(self) -> list[tuple[Key, Pixels]]:
        """Give the frames that are left; no neighbour will come any more."""
        return [self._next() for _ in range(self._count - self._given)]

    def _next(self) -> tuple[Key, Pixels]:
        first = self._count - len(self._window)
        here = self._window[self._given - first]
        stack = [here.pixels]
        for number in range(self._given - REACH, self._given + REACH + 1):
            inside = first <= number < self._count
            if number != self._given:
                stack.append(_fitted(here, self._window[number - first]) if inside else here.pixels)
        self._given += 1
        return here.key, _median_of_five(*stack)


def _luma(pixels: Pixels) -> Plane:
    scale = np.float32(255 / np.iinfo(pixels.dtype).max)
    luma: Plane = pixels.astype(np.float32) @ (_WEIGHTS * scale)
    return luma


def _spectrum(luma: Plane) -> NDArray[np.complex64]:
    height, width = luma.shape
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    return np.fft.rfft2((luma - luma.mean()) * window).astype(np.complex64)


def _shift(here: "_Frame[Any]", there: "_Frame[Any]") -> tuple[int, int]:
    """By how many rows and columns the other frame has to be moved to lie on this one (phase correlation)."""
    product = here.spectrum * there.spectrum.conj()
    size = np.abs(product)
    correlation = np.fft.irfft2(product / (size + np.float32(1e-3) * size.mean() + 1e-12), s=here.luma.shape)
    peak = np.unravel_index(int(correlation.argmax()), correlation.shape)
    down, right = (
        int(at) - length * (at > length // 2) for at, length in zip(peak, here.luma.shape, strict=True)
    )
    return down, right


def _fitted(here: "_Frame[Any]", there: "_Frame[Any]") -> Pixels:
    """The other frame's pixels where they fit this one's, this one's elsewhere."""
    allowed = np.minimum(_SHARE * (here.removed + there.removed), _MOST)
    result = here.pixels.copy()
    best = np.full(allowed.shape, np.inf, np.float32)
    # As it stands for still cameras with moving things before them; moved along for moving cameras.
    for shift in {(0, 0), _shift(here, there)}:
        ours, theirs = _overlap(here.luma.shape, shift)
        if ours is None or theirs is None:
            continue
        difference = np.full(here.luma.shape, 1e3, np.float32)
        difference[ours] = np.abs(here.luma[ours] - there.luma[theirs])
        means = _means(difference)
        fits = (means < allowed) & (means < best)
        best[fits] = means[fits]
        mask = np.repeat(np.repeat(fits, _BLOCK, 0), _BLOCK, 1)[: result.shape[0], : result.shape[1]]
        np.copyto(result[ours], there.pixels[theirs], where=mask[ours][..., None])
    return result


def _overlap(
    size: tuple[int, ...], shift: tuple[int, int]
) -> tuple[tuple[slice, ...] | None, tuple[slice, ...] | None]:
    """What of this frame, and what of the other, lies on each other after a shift; None for nothing."""
    if any(abs(by) >= length for by, length in zip(shift, size, strict=True)):
        return None, None
    ours = tuple(slice(max(by, 0), length + min(by, 0)) for by, length in zip(shift, size, strict=True))
    theirs = tuple(slice(max(-by, 0), length - max(by, 0)) for by, length in zip(shift, size, strict=True))
    return ours, theirs


def _means(plane: Plane) -> Plane:
    """Means over blocks; those at the edge may be smaller."""
    rows, columns = (np.arange(0, length, _BLOCK) for length in plane.shape)
    sums = np.add.reduceat(np.add.reduceat(plane, rows, axis=0), columns, axis=1)
    high = np.diff(np.append(rows, plane.shape[0]))
    wide = np.diff(np.append(columns, plane.shape[1]))
    means: Plane = (sums / np.outer(high, wide)).astype(np.float32)
    return means


def _around(blocks: Plane) -> Plane:
    """Means over 3 x 3 blocks."""
    padded = np.pad(blocks, 1, mode="edge")
    rows, columns = blocks.shape
    total = sum(padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3))
    means: Plane = np.asarray(total, np.float32) / np.float32(9)
    return means


def _median_of_five(a: Pixels, b: Pixels, c: Pixels, d: Pixels, e: Pixels) -> Pixels:
    """Median by comparisons alone: no sorting, no copy in floating point."""
    low = np.maximum(np.minimum(a, b), np.minimum(c, d))
    high = np.minimum(np.maximum(a, b), np.maximum(c, d))
    median: Pixels = np.maximum(np.minimum(low, high), np.minimum(np.maximum(low, high), e))
    return median
