"""Rain at every size: pictures shrunk by octaves, and the rain layer of a small one lifted to full size.

A network knows rain as it looks in pictures of a certain size. In a large photograph the same rain is several
times as wide; shrunk by the right number of octaves it is what the network knows. The layer that it finds
there, enlarged, is subtracted from the photograph, which keeps every other detail at full size.

A network that was trained from coarse to fine looks again, octave by octave, at what the coarser one left:
RDMC's recursion over sizes. A finer octave is computed in blocks, and only where much is left.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.float32]

WORKING_SIDE = 800
"""The long side, in pixels, at which rain is known best; the coarsest octave is the closest to it."""

# The coarsest octave with this share of the greatest energy (RMS of its layer) wins: coarser costs less.
# An octave too fine misses wide rain and one too coarse blurs narrow rain: both find less energy.
ENOUGH = 0.985
# A second look at the coarsest octave changes the result only where it finds this share of what was found.
LEFT_OVER = 0.12
# Below this energy an octave has found hardly any rain, and the coarsest is taken.
HARDLY_ANY = 2.5 / 255

# A block of a finer octave is computed where its estimate is expected to change by this share of the layer
# found in the whole picture (RMS), and by this much of the full range.
WORTH_SHARE = 0.28
WORTH_CHANGE = 1 / 255
# Where every sample changes by this share of what the coarser octave found there, the rain is finer all over
# the picture, and that much is enough.
FINER = 0.2
BLOCK = 512
"""Side of a block of a finer octave, in its pixels."""
CHEAP_SIDE = 1300
"""A finer octave whose long side is no longer, in pixels, is always computed whole: it costs little."""

_STRIP = 64
# A bicubic interpolation looks no farther, in pixels of the layer.
_SUPPORT = 3
# Blocks end in a ramp, drawn in cells of so many pixels.
_CELL = 32


def coarsest(height: int, width: int) -> int:
    """Return how often a picture is halved until its long side is closest to `WORKING_SIDE`; 0 for never."""
    return max(0, round(math.log2(max(height, width) / WORKING_SIDE)))


def shrink(image: NDArray[np.generic], octave: int, scale: float = 1.0) -> Floats:
    """Halve a picture several times.

    Args:
        image: H x W or H x W x 3, any number type.
        octave: How often; 0 only converts.
        scale: What stands for 1.

    Returns:
        ceil(H / 2^octave) x ceil(W / 2^octave), in [0, 1] for values from 0 to `scale`.
    """
    if octave == 0:
        return np.asarray(image, np.float32) / np.float32(scale)
    # Means of blocks first, a Lanczos filter for the last octave only: a fraction of the time and memory.
    means = _means(image, 2 ** (octave - 1))
    if means.shape[0] % 2 or means.shape[1] % 2:
        grow = [(0, side % 2) for side in means.shape[:2]] + [(0, 0)] * (means.ndim - 2)
        means = np.pad(means, grow, mode="edge")
    means /= np.float32(scale)
    size = (means.shape[1] // 2, means.shape[0] // 2)
    small = _each(means, lambda one: one.resize(size, Image.Resampling.LANCZOS))
    return np.clip(small, 0, 1, out=small)


def lift(layer: Floats, octave: int, rows: slice, columns: slice) -> Floats:
    """Enlarge a part of a layer to full size by bicubic interpolation.

    Args:
        layer: Of the octave: h x w or h x w x 3.
        octave: How often the picture was halved.
        rows: Rows of the full-size picture.
        columns: Its columns.

    Returns:
        len(rows) x len(columns), or x 3; the same values whatever is asked for together.
    """
    if octave == 0:
        return layer[rows, columns]
    factor = 2**octave
    (near_rows, rows), (near_columns, columns) = (
        _near(side, factor, extent) for side, extent in zip((rows, columns), layer.shape, strict=False)
    )
    near = layer[near_rows, near_columns]
    return _each(near, lambda one: _enlarged(one, factor, rows, columns, Image.Resampling.BICUBIC))


@dataclass(frozen=True, eq=False)
class Start:
    """What an octave starts from: the layer of a coarser one, and which blocks are worth computing.

    Attributes:
        layer: Of the coarser octave, h x w or h x w x 3, to be subtracted.
        octave: How often the picture was halved from this octave to that one.
        wanted: For each block of `BLOCK` pixels whether it is computed; None for all.
        top: First row of the picture, if it is a part of what the layer belongs to.
        left: First column.
    """

    layer: Floats
    octave: int
    wanted: NDArray[np.bool_] | None = None
    top: int = 0
    left: int = 0

    def estimate(self, rainy: Floats, y: NDArray[np.intp], x: NDArray[np.intp]) -> Floats:
        """Subtract the lifted layer from some pixels.

        Args:
            rainy: 3 x h x w in [0, 1].
            y: The picture's row of each of the h rows.
            x: The same for columns.

        Returns:
            3 x h x w in [0, 1].
        """
        rows, columns = _around(y + self.top), _around(x + self.left)
        lifted = lift(self.layer, self.octave, rows, columns)
        lifted = take(lifted, y + self.top - rows.start, x + self.left - columns.start)
        estimate: Floats = rainy - by_colour(lifted)
        return np.clip(estimate, 0, 1, out=estimate)

    def share(self, y: NDArray[np.intp], x: NDArray[np.intp]) -> Floats | None:
        """Return how much of a computed pixel is taken, h x w: 1 in a wanted block, with a ramp at its edge.

        Returns:
            None for all of all.
        """
        if self.wanted is None or self.wanted.all():
            return None
        cells = np.kron(self.wanted, np.full((BLOCK // _CELL,) * 2, 255, np.uint8))
        # The ramp is inside the block: what is beside it need not be computed.
        inner = Image.fromarray(cells).filter(ImageFilter.MinFilter(3)).filter(ImageFilter.BoxBlur(1))
        rows, columns = _around(y), _around(x)
        smooth = Image.fromarray(np.asarray(inner, np.float32) / np.float32(255))
        share: Floats = np.asarray(_enlarged(smooth, _CELL, rows, columns, Image.Resampling.BILINEAR))
        chosen: Floats = share[(y - rows.start)[:, None], x - columns.start]
        return chosen


@dataclass(frozen=True)
class Sample:
    """What a finer octave found in a window of the picture.

    Attributes:
        top: Of the window, in pixels of the coarser octave's layer.
        left: The same.
        change: How much the estimate changed there, see `effect`.
        found: The energy (RMS) of the coarser octave's layer there.
    """

    top: int
    left: int
    change: float
    found: float


def effect(before: Floats, after: Floats, octave: int) -> float:
    """Measure how much an octave changes its estimate (RMS), what it gives back of wider rain left out.

    Rain too wide for an octave is no rain to it, and it brightens what a coarser one had darkened: that is
    no reason to compute it.

    Args:
        before: The estimate, h x w x 3 in [0, 1].
        after: What the octave makes of it.
        octave: How often the picture was halved from this octave to the coarser one.
    """
    back = np.maximum(shrink(after, octave) - shrink(before, octave), 0)
    return rms(after - before - lift(back, octave, slice(0, before.shape[0]), slice(0, before.shape[1])))


def blocks(shape: tuple[int, ...], layer: Floats, octave: int, samples: list[Sample]) -> Start:
    """Choose the blocks of an octave that are worth computing.

    A block is expected to change like the sample nearest to it, in proportion to what the coarser octave
    found in both. Rain that the coarser octave does not see at all may be everywhere. A block is worth it
    where much changes beside the whole picture, or anything at all if every sample says that rain is finer.

    Args:
        shape: Height and width of the picture in this octave.
        layer: What the coarser octave found.
        octave: How often the picture was halved from this octave to that one.
        samples: One at least.
    """
    side = BLOCK >> octave
    most = math.hypot(*(sample.change for sample in samples)) / math.sqrt(len(samples))
    enough = max(WORTH_CHANGE, WORTH_SHARE * max(rms(layer), most))
    if all(sample.change >= FINER * sample.found for sample in samples):
        enough = WORTH_CHANGE
    wanted = np.zeros([-(-extent // BLOCK) for extent in shape[:2]], np.bool_)
    for row, column in np.ndindex(*wanted.shape):
        y, x = row * side, column * side
        near = min(samples, key=lambda one: math.hypot(one.top - y, one.left - x))
        expected = near.change
        if near.found > HARDLY_ANY / 10:
            expected *= rms(layer[y : y + side, x : x + side]) / near.found
        wanted[row, column] = expected > enough
    return Start(layer, octave, wanted)


def take(image: NDArray[Any], y: NDArray[np.intp], x: NDArray[np.intp]) -> NDArray[Any]:
    """Return rows and columns of a picture in any order; a view where they follow each other."""
    rows, columns = (
        slice(int(index[0]), int(index[0]) + len(index))
        if np.array_equal(index, np.arange(index[0], index[0] + len(index)))
        else index
        for index in (y, x)
    )
    if isinstance(rows, slice) or isinstance(columns, slice):
        return image[rows, columns]
    return image[rows[:, None], columns]


def by_colour(pixels: NDArray[Any]) -> NDArray[Any]:
    """View pixels, h x w x 3 or h x w when grey, as 3 planes or 1."""
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _around(index: NDArray[np.intp]) -> slice:
    return slice(int(index.min()), int(index.max()) + 1)


def _near(side: slice, factor: int, extent: int) -> tuple[slice, slice]:
    """Return what an interpolation needs of a layer for some full-size rows or columns, and these in it."""
    first = max(0, side.start // factor - _SUPPORT)
    stop = min(extent, -(-side.stop // factor) + _SUPPORT)
    return slice(first, stop), slice(side.start - first * factor, side.stop - first * factor)


def _enlarged(
    one: Image.Image, factor: int, rows: slice, columns: slice, kind: Image.Resampling
) -> Image.Image:
    size = (columns.stop - columns.start, rows.stop - rows.start)
    box = tuple(edge / factor for edge in (columns.start, rows.start, columns.stop, rows.stop))
    return one.resize(size, kind, box=box)


def strips(height: int) -> Iterator[slice]:
    """Yield the rows of a picture in strips, from top to bottom."""
    for start in range(0, height, _STRIP):
        yield slice(start, min(start + _STRIP, height))


def windows(layer: Floats, side: int) -> list[tuple[int, int]]:
    """Choose where a finer octave is sampled: in each quarter of the picture, where most rain was found.

    Args:
        layer: Found at the coarsest octave, h x w or h x w x 3.
        side: Of a square window, in pixels of the layer.

    Returns:
        Top and left of each window.
    """
    found = np.abs(layer) if layer.ndim == 2 else np.abs(layer).mean(axis=2)
    side_y, side_x = (min(side, extent) for extent in found.shape)
    total = np.pad(found, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    sums = (
        total[side_y:, side_x:]
        - total[:-side_y, side_x:]
        - total[side_y:, :-side_x]
        + total[:-side_y, :-side_x]
    )
    chosen = []
    for rows in np.array_split(np.arange(len(sums)), min(2, len(sums))):
        for columns in np.array_split(np.arange(sums.shape[1]), min(2, sums.shape[1])):
            part = sums[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            y, x = np.unravel_index(int(part.argmax()), part.shape)
            chosen.append((int(rows[0] + y), int(columns[0] + x)))
    return chosen


def choose(energies: list[float]) -> int:
    """Return the octave to work at, by the energy (RMS) of what each octave finds, finest first."""
    most = max(energies)
    if most < HARDLY_ANY:
        return len(energies) - 1
    return max(octave for octave, energy in enumerate(energies) if energy >= ENOUGH * most)


def rms(layer: Floats) -> float:
    """Return the root of the mean square."""
    # Not by a product of vectors: threads of BLAS, once woken, keep a core busy that the network needs.
    total = sum(float(np.square(layer[rows]).sum()) for rows in strips(len(layer)))
    return math.sqrt(total / layer.size)


def _means(image: NDArray[np.generic], block: int) -> Floats:
    """Average blocks of block x block pixels; the last row and column are repeated to fill theirs.

    Each colour is a plane in memory, as Pillow has its own.
    """
    height, width = (-(-side // block) for side in image.shape[:2])
    colours = 1 if image.ndim == 2 else image.shape[2]
    planes = np.empty((colours, height, width), np.float32)
    # Sums of whole numbers are exact in these.
    kind: type[np.generic] = np.float32
    if image.dtype.kind != "f":
        kind = np.uint16 if image.dtype == np.uint8 and block <= 16 else np.uint32
    for rows in strips(height):
        part = image[rows.start * block : rows.stop * block]
        short = [-side % block for side in part.shape[:2]]
        if any(short):
            part = np.pad(part, [(0, side) for side in short] + [(0, 0)] * (part.ndim - 2), mode="edge")
        # Rows first, which follow each other in memory: a fraction of the time of a mean over two axes.
        sums = part[::block].astype(kind)
        for row in range(1, block):
            sums += part[row::block]
        values = sums.reshape(len(sums), -1)
        for colour, plane in enumerate(planes):
            total = values[:, colour :: block * colours]
            for column in range(1, block):
                total = total + values[:, colour + column * colours :: block * colours]
            plane[rows] = total
    planes /= np.float32(block**2)
    return planes[0] if image.ndim == 2 else planes.transpose(1, 2, 0)


def _each(image: Floats, change: Callable[[Image.Image], Image.Image]) -> Floats:
    """Apply a change of Pillow's to each channel in single precision; the result has planes in memory."""
    changed = [change(Image.fromarray(np.ascontiguousarray(plane))) for plane in by_colour(image)]
    planes = np.empty((len(changed), changed[0].height, changed[0].width), np.float32)
    for plane, one in zip(planes, changed, strict=True):
        plane[:] = np.asarray(one)
    return planes[0] if image.ndim == 2 else planes.transpose(1, 2, 0)
