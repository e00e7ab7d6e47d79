"""A temporal median over five derained frames, which steadies the still areas of a video.

Rain falls elsewhere in every frame; the scene stays. Each frame is compared, block by block, with the two
frames before and after it, both unshifted and shifted along with the whole picture. A block matches if it
differs by no more than deraining can explain. Each pixel becomes the median of the five; where a neighbour
does not match, the pixel itself stands in for it, so at least three frames must agree to change anything.
Moving objects and scene cuts therefore stay as they are, and so do clips without rain, where the network
removed nothing.
"""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from unrain.image import Array
from unrain.layer import luma

Plane = NDArray[np.float32]

REACH = 2
"""Frames before and after that are compared."""

_BLOCK = 16
# Two blocks match if they differ by less than this share of what was removed from both, and by less than
# this many 8-bit levels.
_SHARE = 0.4
_MOST = 16.0
# A difference that never matches, in 8-bit levels.
_FAR = np.float32(1e3)
# Keeps a frame of one colour from a division by nothing.
_LEAST = np.float32(1e-12)

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class _Entry(Generic[Key]):
    """A derained frame and what it takes to compare it with others.

    Attributes:
        key: The caller's key.
        pixels: H x W x 3 RGB.
        luma: H x W, 0 to 255.
        phases: The Fourier transform of the windowed luma, each number of about the size 1.
        removed: For each block, the mean absolute change that deraining made to the luma.
    """

    key: Key
    pixels: Array
    luma: Plane
    phases: NDArray[np.complex64]
    removed: Plane


class TemporalMedian(Generic[Key]):
    """Steadies derained frames, which go in and come out in order, two frames later."""

    def __init__(self) -> None:
        self._window: deque[_Entry[Key]] = deque(maxlen=2 * REACH + 1)
        self._count = 0
        self._given = 0
        self._shifts: dict[tuple[int, int], tuple[int, int]] = {}

    def push(self, key: Key, rainy: Array, derained: Array) -> list[tuple[Key, Array]]:
        """Add a frame.

        Args:
            key: Comes back with the result.
            rainy: The frame before deraining, H x W x 3 RGB, uint8 or uint16.
            derained: The frame after deraining, of the same shape and type.

        Returns:
            Keys and pixels of the frames that now have all their neighbours.
        """
        derained = np.ascontiguousarray(derained)
        scale = 255 / np.iinfo(rainy.dtype).max
        after = luma(derained, scale)
        removed = _around(_differences(luma(rainy, scale), after, (0, 0)))
        self._window.append(_Entry(key, derained, after, _phases(after), removed))
        self._count += 1
        return [self._next()] if self._count - self._given > REACH else []

    def flush(self) -> list[tuple[Key, Array]]:
        """Return the frames that are left, at the end of the clip."""
        return [self._next() for _ in range(self._count - self._given)]

    def _next(self) -> tuple[Key, Array]:
        first = self._count - len(self._window)
        here = self._window[self._given - first]
        stack = [here.pixels]
        for number in range(self._given - REACH, self._given + REACH + 1):
            inside = first <= number < self._count
            if number == self._given:
                continue
            if inside:
                there = self._window[number - first]
                stack.append(_matched(here, there, self._shift(self._given, number, here, there)))
            else:
                stack.append(here.pixels)
        self._given += 1
        for pair in [pair for pair in self._shifts if max(pair) < self._given]:
            del self._shifts[pair]
        return here.key, _median_of_five(*stack)

    def _shift(self, ours: int, theirs: int, here: "_Entry[Any]", there: "_Entry[Any]") -> tuple[int, int]:
        """Find the shift of two frames by their numbers; the way back is the way there."""
        if (back := self._shifts.get((theirs, ours))) is not None:
            return -back[0], -back[1]
        self._shifts[ours, theirs] = _shift(here, there)
        return self._shifts[ours, theirs]


def _phases(plane: Plane) -> NDArray[np.complex64]:
    # Without a scale NumPy computes in double precision, which takes more than twice as long.
    spectrum = np.fft.rfft2((plane - plane.mean()) * _window(*plane.shape), norm="ortho")
    size = np.abs(spectrum)
    phases: NDArray[np.complex64] = spectrum / (size + np.float32(1e-3) * size.mean() + _LEAST)
    return phases.astype(np.complex64, copy=False)


@lru_cache(maxsize=1)
def _window(height: int, width: int) -> Plane:
    return np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)


def _shift(here: "_Entry[Any]", there: "_Entry[Any]") -> tuple[int, int]:
    """Rows and columns by which the other frame must be shifted to match this one (phase correlation)."""
    correlation = np.fft.irfft2(here.phases * there.phases.conj(), s=here.luma.shape)
    peak = np.unravel_index(int(correlation.argmax()), correlation.shape)
    down, right = (
        int(at) - length * (at > length // 2) for at, length in zip(peak, here.luma.shape, strict=True)
    )
    return down, right


def _matched(here: "_Entry[Any]", there: "_Entry[Any]", shifted: tuple[int, int]) -> Array:
    """The other frame's pixels where its blocks match, this frame's elsewhere."""
    allowed = np.minimum(_SHARE * (here.removed + there.removed), _MOST)
    result = here.pixels.copy()
    best = np.full(allowed.shape, np.inf, np.float32)
    # Unshifted for a still camera with moving objects, shifted for a moving camera.
    for shift in {(0, 0), shifted}:
        ours, theirs = _overlap(here.luma.shape, shift)
        means = _differences(here.luma, there.luma, shift)
        fits = (means < allowed) & (means < best)
        best[fits] = means[fits]
        mask = np.repeat(np.repeat(fits, _BLOCK, 0), _BLOCK, 1)[: result.shape[0], : result.shape[1]]
        np.copyto(_whole(result)[ours], _whole(there.pixels)[theirs], where=mask[ours])
    return result


def _whole(pixels: Array) -> NDArray[np.void]:
    """Return pixels as one element each, which are copied twenty times as fast."""
    return pixels.view(f"V{3 * pixels.itemsize}")[..., 0]


def _overlap(
    size: tuple[int, int], shift: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The parts of this frame and of the other that overlap after a shift."""
    (height, width), (down, right) = size, shift
    ours = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
    theirs = slice(max(-down, 0), height - max(down, 0)), slice(max(-right, 0), width - max(right, 0))
    return ours, theirs


def _differences(here: Plane, there: Plane, shift: tuple[int, int]) -> Plane:
    """The mean absolute difference of each block; blocks at the edge may be smaller.

    Args:
        here: H x W.
        there: The other frame, H x W, shifted by fewer rows and columns than it has.
        shift: Rows and columns. What the other does not reach then counts as far away.
    """
    height, width = here.shape
    (down, right), (_, theirs) = _overlap(here.shape, shift)
    firsts = np.arange(0, height, _BLOCK)
    sums = np.empty((len(firsts), width), np.float32)
    # One row of blocks after the other stays in the processor's cache.
    strip = np.full((_BLOCK, width), _FAR, np.float32)
    for first, total in zip(firsts, sums, strict=True):
        rows = strip[: height - first]
        top, bottom = max(first, down.start), min(first + len(rows), down.stop)
        if bottom - top < len(rows):
            rows[:] = _FAR
        if top < bottom:
            inside = rows[top - first : bottom - first, right]
            np.subtract(
                here[top:bottom, right], there[top - shift[0] : bottom - shift[0], theirs], out=inside
            )
            np.abs(inside, out=inside)
        rows.sum(axis=0, out=total)
    columns = np.arange(0, width, _BLOCK)
    high, wide = np.minimum(_BLOCK, height - firsts), np.minimum(_BLOCK, width - columns)
    means: Plane = (np.add.reduceat(sums, columns, axis=1) / np.outer(high, wide)).astype(np.float32)
    return means


def _around(blocks: Plane) -> Plane:
    """The mean over each block and its eight neighbours."""
    padded = np.pad(blocks, 1, mode="edge")
    rows, columns = blocks.shape
    total = sum(padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3))
    means: Plane = np.asarray(total, np.float32) / np.float32(9)
    return means


def _median_of_five(*frames: Array) -> Array:
    """The median by comparisons alone, without sorting or floating point."""
    median = np.empty_like(frames[0])
    # As above: a few rows at a time stay in the cache.
    for first in range(0, len(median), _BLOCK):
        a, b, c, d, e = (frame[first : first + _BLOCK] for frame in frames)
        low = np.maximum(np.minimum(a, b), np.minimum(c, d))
        high = np.minimum(np.maximum(a, b), np.maximum(c, d))
        np.maximum(
            np.minimum(low, high), np.minimum(np.maximum(low, high), e), out=median[first : first + _BLOCK]
        )
    return median
