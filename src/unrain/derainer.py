"""The one way a picture goes through a network: pad, tile, run, blend.

A recursion needs `halo` pixels of context and no more, so the recursions are tiled one after the other: tile
crops grow by one halo whatever the number of recursions. Crops start at multiples of the network's own
`multiple` and end where the padded picture ends, so that pooling and zero padding inside the network
fall where they fall in the whole picture. A tiled result is thus the whole picture's, and the linear
blending over `overlap` pixels only smooths what is left of the difference.

With `until` the recursions end where another one would hardly show. That is decided for the picture as a
whole, after all tiles of a recursion.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unrain import zoo
from unrain.devices import Processor
from unrain.engine import Engine, NetworkEngine, Planes, open_engine
from unrain.errors import UsageError
from unrain.image import Array, from_pil, read, to_pil
from unrain.layer import HARDLY_ANY_RAIN, at_strength, check_strength, mean_change, taken
from unrain.octaves import (
    CHEAP_SIDE,
    HARDLY_ANY,
    LEFT_OVER,
    Sample,
    Start,
    blocks,
    by_colour,
    choose,
    coarsest,
    effect,
    lift,
    rms,
    shrink,
    strips,
    take,
    windows,
)

if TYPE_CHECKING:
    from unrain.score import Scorer

Progress = Callable[[int, int], None]

_WHOLE_UP_TO = 1_500_000
_DEFAULT_TILE = 1152
# A bigger picture needs the memory itself. Not below ten halos, which would be computed again and again.
_SMALL_TILE_FROM = 2_500_000
_SMALL_TILE = 832
_LEAST_HALOS = 10
MOST_LEVELS = 8
# Side of a sample of a finer octave, in that octave's pixels, and its context: less than a tile's does for a
# decision.
_SAMPLE = 96
_CONTEXT = 16
# Sides of parts of a tile that are computed alone, in pixels.
_BOX = 64
_HALF_PRECISION_FROM = 8_000_000


@dataclass(frozen=True, eq=False)
class Derained:
    """A picture without its rain.

    Attributes:
        image: The result, with the shape and dtype of the input.
        rainy: The input itself, not a copy.
        recursions: How many recursions were computed; with `until` perhaps fewer than allowed.
        octaves: At which sizes the network ran, in turn: 0 is full size, 1 half, 2 a quarter.
        shares: On what share of the picture it ran at each of them.
    """

    image: Array
    rainy: Array
    recursions: int
    octaves: tuple[int, ...] = (0,)
    shares: tuple[float, ...] = (1.0,)

    @property
    def rain_layer(self) -> Array:
        """The light that was taken away, max(input - result, 0), computed when asked for."""
        return taken(self.rainy, self.image)

    @property
    def hardly_any_rain(self) -> bool:
        """Whether the picture is all but unchanged: its mean absolute change is below `HARDLY_ANY_RAIN`."""
        return mean_change(self.rainy, self.image) < HARDLY_ANY_RAIN

    @property
    def plan(self) -> tuple[int, ...]:
        """The octaves for the other frames of a shot: those that ran on half of the picture at least."""
        return tuple(o for o, share in zip(self.octaves, self.shares, strict=True) if share >= 0.5)

    @property
    def sizes(self) -> str:
        """The sizes at which the network ran, for people: "at 1/4 of its size and then full size (30 %)"."""
        names = [
            ("full size" if octave == 0 else f"1/{2**octave} of its size")
            + (f" ({share:.0%})" if share < 1 else "")
            for octave, share in zip(self.octaves, self.shares, strict=True)
        ]
        return f"at {' and then '.join(names)}"

    def at(self, strength: float) -> Array:
        """Return the result with more or less of the rain taken away; the network is not run again.

        Args:
            strength: 0 for none, 1 for what was found, up to 1.5 for half as much again.

        Returns:
            input - strength (input - `image`), clipped and rounded once, with the shape and dtype of the
            input: equal to the input at 0, `image` itself at 1.

        Raises:
            UsageError: The strength is out of range.
        """
        return at_strength(self.rainy, self.image, strength)


@dataclass(frozen=True)
class _Span:
    """One tile along one axis: what is fed to the network and what is kept of it.

    Attributes:
        crop: What is fed in, halo included.
        start: First kept pixel.
        stop: Behind the last kept pixel, `overlap` pixels inside what the next tile keeps.
        blend: How many of the first kept pixels the tile before has given already.
    """

    crop: slice
    start: int
    stop: int
    blend: int


def _spans(extent: int, tile: int, *, halo: int, overlap: int, multiple: int) -> list[_Span]:
    """Cut 0..extent into tiles which need at most `tile` pixels with their context.

    `extent`, `tile` and `halo` are multiples of `multiple`; `tile` holds two halos, the overlap and one more.
    """
    if extent <= tile:
        return [_Span(slice(0, extent), 0, extent, 0)]
    shared = 2 * halo + _up(overlap, multiple)
    # Crops of one size: no sliver at the end that costs a whole halo; libraries prepare for one size only.
    stride = _up(math.ceil((extent - shared) / math.ceil((extent - shared) / (tile - shared))), multiple)
    size = stride + shared
    firsts = range(0, extent - shared, stride)
    crops = [slice(start, start + size) for start in (min(first, extent - size) for first in firsts)]
    starts = [0, *(first + halo for first in firsts[1:])]
    stops = [*(start + overlap for start in starts[1:]), extent]
    blends = [0] + [overlap] * (len(crops) - 1)
    return [_Span(*span) for span in zip(crops, starts, stops, blends, strict=True)]


@dataclass(frozen=True)
class _Grid:
    """The tiles of a padded picture.

    Attributes:
        y: For each padded row the picture's row it mirrors: no padded copy is ever made.
        x: The same for columns.
        rows: Tiles from top to bottom.
        columns: Tiles from left to right.
    """

    y: NDArray[np.intp]
    x: NDArray[np.intp]
    rows: list[_Span]
    columns: list[_Span]

    @property
    def height(self) -> int:
        return len(self.y)

    @property
    def width(self) -> int:
        return len(self.x)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _blend(before: Planes, after: Planes, axis: int) -> None:
    """Replace the values of `after` by a linear passage from `before` to `after` along an axis."""
    width = after.shape[axis]
    share = np.arange(1, width + 1, dtype=np.float32) / np.float32(width + 1)
    share = share.reshape([-1 if dimension == axis else 1 for dimension in range(after.ndim)])
    after -= before
    after *= share
    after += before


class Derainer:
    """Takes the rain out of pictures: files, Pillow images and arrays.

    Example:
        >>> derainer = Derainer()                      # doctest: +SKIP
        >>> derained = derainer(rainy)                 # doctest: +SKIP
        >>> layer = derainer.derain(rainy).rain_layer  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | zoo.Model | Engine = zoo.DEFAULT,
        *,
        recursions: int | None = None,
        until: float | None = None,
        tile: int | None = None,
        overlap: int = 16,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        levels: int | None = None,
    ) -> None:
        """Open a model.

        Args:
            model: A name from the zoo, an .onnx file, or an engine of your own.
            recursions: How often the network runs over the picture; the model's own number when None.
            until: Stop early, each picture for itself, after a recursion that changed it by less than this:
                the mean absolute difference of x_t and x_{t-1} over all pixels and colours, both clipped to
                what can be seen, in steps of 8 bits. x_0 is the picture itself, so one without rain may stop
                after the first recursion. `recursions` is then the most.
            tile: Side of the largest square fed to the network, in pixels. None takes pictures up to
                1.5 megapixels whole, and bigger ones in tiles of 1152 or, from 2.5 megapixels on, 832 if the
                network's context allows it.
            overlap: Width of the linear passage between tiles, in pixels.
            device: What the network runs on, see `Processor`; an engine of your own has its own.
            precision: What it computes in, see `Processor`.
            threads: CPU threads, 0 for one on every physical core.
            levels: How many sizes of a picture are looked at, each half of the one before; 1 for full size
                only. None takes as many as bring the long side closest to 800 pixels.

        Raises:
            UsageError: There is no such model, device or precision, or a number does not fit the model.
            UnrainError: The model cannot be opened, or the device cannot be had.
        """
        if isinstance(model, str | Path):
            model = zoo.find(model)
        self._processor = Processor(device, precision, threads)
        if isinstance(model, zoo.Model):
            model = open_engine(model, self._processor)
        self.engine: Engine = model
        self._threads = getattr(model, "threads", threads) or os.cpu_count() or 1
        if recursions is not None and recursions < 1:
            raise UsageError(f"recursions is {recursions}: give 1 or more")
        if recursions is not None and recursions > 1 and not self.engine.recursive:
            raise UsageError(f"recursions is {recursions}, but this model has one only: leave it out")
        if until is not None and not until > 0:
            raise UsageError(f"until is {until}: give more than 0, in steps of 8 bits")
        if until is not None and not self.engine.recursive:
            raise UsageError(f"until is {until}, but this model has one recursion only: leave it out")
        if levels is not None and not 1 <= levels <= MOST_LEVELS:
            raise UsageError(f"levels is {levels}: give 1 to {MOST_LEVELS}")
        if overlap < 0:
            raise UsageError(f"overlap is {overlap}: give 0 or more pixels")
        self.recursions = (recursions or self.engine.recursions) if self.engine.recursive else 1
        self.until = until
        self._levels = levels
        self._multiple = self.engine.multiple
        self._halo = _up(self.engine.halo, self._multiple)
        self._overlap = overlap
        smallest = 2 * self._halo + _up(overlap, self._multiple) + self._multiple
        if tile is not None and tile < smallest:
            raise UsageError(
                f"tile is {tile}: this model needs {self._halo} pixels of context on every side, "
                f"so give at least {smallest}"
            )
        self._chosen_tile = None if tile is None else tile // self._multiple * self._multiple
        self._default_tile = max(_up(_DEFAULT_TILE, self._multiple), smallest)
        small = max(_SMALL_TILE, _LEAST_HALOS * self._halo)
        self._small_tile = min(self._default_tile, max(_up(small, self._multiple), smallest))

    @property
    def processor(self) -> str:
        """What the network runs on and computes in: "openvino in bf16"; empty if the engine does not say."""
        device, precision = (getattr(self.engine, name, "") for name in ("device", "precision"))
        return f"{device} in {precision}" if device else ""

    @property
    def scorer(self) -> "Scorer":
        """What tells how likely it rains in a picture, where the network runs and in its precision.

        Of an engine that does not open files its device is not known: then on what was asked for.
        """
        from unrain.score import scorer

        return scorer(self.engine.processor if isinstance(self.engine, NetworkEngine) else self._processor)

    @overload
    def __call__(self, image: Array, *, strength: float = 1.0) -> Array: ...

    @overload
    def __call__(self, image: str | Path | Image.Image, *, strength: float = 1.0) -> Image.Image: ...

    def __call__(
        self, image: Array | str | Path | Image.Image, *, strength: float = 1.0
    ) -> Array | Image.Image:
        """Take the rain out of a picture.

        Args:
            image: A file (turned upright as its EXIF says), a Pillow image, or an array: H x W x 3 RGB or
                H x W grey, uint8 or uint16 in full range, or float in [0, 1].
            strength: How much of the rain is taken away: 0 none, 1 what is found, up to 1.5.

        Returns:
            For an array, an array of the same shape and dtype. Otherwise a Pillow image with the same alpha
            and metadata. Pillow has no 16-bit colour: a file with it comes back rounded to 8 bits.

        Raises:
            UsageError: It is no such picture, or the strength is out of range.
            UnrainError: The file cannot be read.
        """
        check_strength(strength)
        if isinstance(image, np.ndarray):
            return self.derain(image).at(strength)
        if isinstance(image, str | Path):
            picture = read(Path(image))
        elif isinstance(image, Image.Image):
            picture = from_pil(image)
        else:
            raise UsageError(
                f"a picture is a file name, a Pillow image or a NumPy array, not {type(image).__name__}: "
                "open bytes with PIL.Image.open(io.BytesIO(data)), turn sequences into np.asarray(data)"
            )
        return to_pil(replace(picture, pixels=self.derain(picture.pixels).at(strength)))

    def derain(
        self, image: Array, *, progress: Progress | None = None, octaves: tuple[int, ...] | None = None
    ) -> Derained:
        """Take the rain out of an array and keep what the rain layer is computed from.

        Args:
            image: H x W x 3, or H x W when grey; uint8 or uint16 in full range, or float in [0, 1].
            progress: Called with (done, in all) after every tile of every recursion, also of those that
                `until` may save.
            octaves: At which sizes the network runs, as `Derained.octaves` of an earlier frame of the same
                shot says; None finds out.

        Returns:
            Result, rain layer, number of recursions, and octaves.

        Raises:
            UsageError: The array is no such picture.
        """
        _check(image)
        last = coarsest(*image.shape[:2]) if self._levels is None else self._levels - 1
        if last == 0 or octaves == (0,):
            return self._at_full_size(image, progress)
        progress = progress or (lambda done, total: None)
        if self.engine.levels > 1:
            return self._coarse_to_fine(image, last, octaves, progress)
        if octaves is None:
            return self._at_best_octave(image, last, progress)
        derained = Derained(image, image, 0, (), ())
        for octave in octaves:
            derained = self._at(derained, octave)
        return derained

    def _coarse_to_fine(
        self, image: Array, last: int, octaves: tuple[int, ...] | None, progress: Progress
    ) -> Derained:
        """Start at the coarsest octave; each finer one starts from what was found, where it pays."""
        steps = tuple(range(last, -1, -1)) if octaves is None else octaves
        at = steps[0]
        derained, layer = self._found(image, at, _part(progress, 0, len(steps)))
        ran, shares, recursions = [at], [1.0], derained.recursions
        for number, octave in enumerate(steps[1:], 1):
            start = Start(layer, at - octave)
            if octaves is None and max(image.shape[:2]) > CHEAP_SIDE << octave:
                start = self._worth(image, octave, start)
            if start.wanted is not None and not start.wanted.any():
                continue
            now = _part(progress, number, len(steps))
            if octave:
                derained, layer = self._found(image, octave, now, start)
            else:
                derained = self._at_full_size(image, now, start)
            at = octave
            ran.append(octave)
            shares.append(1.0 if start.wanted is None else float(start.wanted.mean()))
            recursions = max(recursions, derained.recursions)
        result = derained.image if at == 0 else _subtract(image, layer, at, self._threads)
        progress(1, 1)
        return Derained(result, image, recursions, tuple(ran), tuple(shares))

    def _worth(self, image: Array, octave: int, start: Start) -> Start:
        """Find the blocks of an octave that are worth computing, from samples where the most was found."""
        side = _SAMPLE >> start.octave
        samples = []
        for top, left in windows(start.layer, side):
            inner = start.layer[top : top + side, left : left + side]
            edges = ((top, inner.shape[0], image.shape[0]), (left, inner.shape[1], image.shape[1]))
            (rows, y), (columns, x) = (
                self._window(first << start.octave, extent << start.octave, whole, octave)
                for first, extent, whole in edges
            )
            crop = shrink(image[rows, columns], octave, _full_scale(image.dtype))
            local = replace(start, top=rows.start >> octave, left=columns.start >> octave)
            before = local.estimate(_planes(crop, *_indices(crop)), *_indices(crop))
            after = _planes(self._at_full_size(crop, start=local).image, *_indices(crop))
            before, after = (planes[:, y, x].transpose(1, 2, 0) for planes in (before, after))
            samples.append(Sample(top, left, effect(before, after, start.octave), rms(inner)))
        shape = tuple(-(-extent >> octave) for extent in image.shape[:2])
        return blocks(shape, start.layer, start.octave, samples)

    def _at_best_octave(self, image: Array, last: int, progress: Progress) -> Derained:
        """Work at the octave in which the rain is seen best, and lift what is found there to full size.

        For networks that do not know lifted estimates. The coarsest octave is looked at again, for wider rain
        that is left.
        """
        small, found = self._found(image, last)
        progress(5, 100)
        energies = []
        for octave in range(last):
            energies.append(self._energy(image, octave, last, found))
            progress(5 + 15 * (octave + 1) // last, 100)
        chosen = choose([*energies, rms(found)])
        start = Derained(image, image, 0, (), ())
        if chosen == last:
            lifted = _subtract(image, found, last, self._threads)
            derained = Derained(lifted, image, small.recursions, (last,))
        else:
            derained = self._at(
                start, chosen, lambda done, total: progress(20 * total + 75 * done, 100 * total)
            )
            _, left = self._found(derained.image, last)
            if rms(left) > LEFT_OVER * max(energies[chosen], rms(found)):
                cleaner = _subtract(derained.image, left, last, self._threads)
                derained = replace(derained, image=cleaner, octaves=(chosen, last), shares=(1.0, 1.0))
        progress(100, 100)
        return derained

    def _at(self, before: Derained, octave: int, progress: Progress | None = None) -> Derained:
        """Run the network on what an octave before left, shrunk to this one."""
        if octave == 0:
            derained = self._at_full_size(before.image, progress)
            image = derained.image
        else:
            derained, found = self._found(before.image, octave, progress)
            image = _subtract(before.image, found, octave, self._threads)
        recursions = max(before.recursions, derained.recursions)
        return Derained(image, before.rainy, recursions, (*before.octaves, octave), (*before.shares, 1.0))

    def _found(
        self, image: Array, octave: int, progress: Progress | None = None, start: Start | None = None
    ) -> tuple[Derained, Planes]:
        """Run the network on a shrunk picture: its result, and the layer that it takes away."""
        derained = self._at_full_size(shrink(image, octave, _full_scale(image.dtype)), progress, start)
        layer: Planes = derained.rainy - derained.image
        return derained, layer

    def _energy(self, image: Array, octave: int, last: int, found: Planes) -> float:
        """Estimate the energy of what an octave would find, from windows where the coarsest found most."""
        step, side = 2 ** (last - octave), _SAMPLE >> (last - octave)
        fine, coarse = [], []
        for top, left in windows(found, side):
            inner = found[top : top + side, left : left + side]
            rows, rows_inside = self._window(top * step, inner.shape[0] * step, image.shape[0], octave)
            columns, columns_inside = self._window(left * step, inner.shape[1] * step, image.shape[1], octave)
            _, layer = self._found(image[rows, columns], octave)
            fine.append(rms(layer[rows_inside, columns_inside]))
            coarse.append(rms(inner))
        energy, there = (math.hypot(*values) / math.sqrt(len(values)) for values in (fine, coarse))
        # The windows are no fair sample: their share of the coarsest octave's energy tells by how much.
        return energy * rms(found) / there if there > HARDLY_ANY / 10 else energy

    def _window(self, start: int, extent: int, whole: int, octave: int) -> tuple[slice, slice]:
        """Return the full-size pixels that pixels of an octave depend on, and where these are in the crop."""
        factor = 2**octave
        first, stop = max(0, start - _CONTEXT), start + extent + _CONTEXT
        return slice(first * factor, min(stop * factor, whole)), slice(start - first, start - first + extent)

    def _at_full_size(
        self, image: Array, progress: Progress | None = None, start: Start | None = None
    ) -> Derained:
        """Run every recursion over a picture as it is, from itself or from what a coarser octave found."""
        grid = self._grid(*image.shape[:2])
        kept = np.float16 if grid.height * grid.width >= _HALF_PRECISION_FROM else np.float32
        result = np.empty_like(image, order="C", subok=False)
        total = self.recursions * len(grid.rows) * len(grid.columns)
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, total)

        estimate: NDArray[Any] | None = None
        spare: NDArray[Any] | None = None
        for recursion in range(1, self.recursions + 1):
            last = recursion == self.recursions
            target: NDArray[Any] | None = None
            if not last:
                target = np.empty((3, grid.height, grid.width), kept) if spare is None else spare
            change = 0.0
            for top, planes in self._recursion(image, estimate, grid, count, start):
                if target is not None:
                    target[:, top : top + planes.shape[1]] = planes
                if self.until is not None and not last:
                    change += _change(image, estimate, planes, grid, top)
                # Any recursion may be the last: writing each keeps all its digits and takes no memory.
                if last or self.until is not None:
                    _write(result, planes, top)
            if self.until is not None and change * 255 < self.until * 3 * math.prod(image.shape[:2]):
                break
            spare, estimate = estimate, target
        return Derained(result, image, recursion)

    def _grid(self, image_height: int, image_width: int) -> _Grid:
        height, width = _up(image_height, self._multiple), _up(image_width, self._multiple)
        tile = self._chosen_tile
        if tile is None:
            if height * width <= _WHOLE_UP_TO:
                tile = max(height, width)
            else:
                tile = self._default_tile if height * width < _SMALL_TILE_FROM else self._small_tile
        shape = {"halo": self._halo, "overlap": self._overlap, "multiple": self._multiple}
        return _Grid(
            y=np.pad(np.arange(image_height), (0, height - image_height), mode="reflect"),
            x=np.pad(np.arange(image_width), (0, width - image_width), mode="reflect"),
            rows=_spans(height, tile, **shape),
            columns=_spans(width, tile, **shape),
        )

    def _recursion(
        self,
        image: Array,
        estimate: NDArray[Any] | None,
        grid: _Grid,
        count: Callable[[], None],
        start: Start | None,
    ) -> Iterator[tuple[int, Planes]]:
        """Give the next estimate from top to bottom: first row and planes, 3 x rows x padded width."""
        carried: Planes | None = None
        for i, row in enumerate(grid.rows):
            strip = np.empty((3, row.stop - row.start, grid.width), np.float32)
            for column in grid.columns:
                y, x = grid.y[row.crop], grid.x[column.crop]
                rainy = before = _planes(image, y, x)
                if estimate is not None:
                    before = estimate[:, row.crop, column.crop].astype(np.float32)
                elif start is not None:
                    before = start.estimate(rainy, y, x)
                share = None if start is None else start.share(y, x)
                _place(strip, self._step(rainy, before, share), row, column)
                count()
            if carried is not None:
                _blend(carried, strip[:, : row.blend], axis=1)
            end = grid.rows[i + 1].start if i + 1 < len(grid.rows) else row.stop
            carried = strip[:, end - row.start :].copy()
            yield row.start, strip[:, : end - row.start]

    def _step(self, rainy: Planes, before: Planes, share: Planes | None) -> Planes:
        """Make a recursion on a tile, where a share of its result is wanted: 3 x h x w, and h x w."""
        after: Planes
        if share is None:
            after = self.engine.step(rainy[None], before[None])[0]
            return after
        after = before.copy()
        for box in self._boxes(share > 0):
            inner = (slice(None), *box)
            there = share[tuple(box)]
            step = self.engine.step(rainy[None][:, *inner], before[None][:, *inner])[0]
            after[*inner] += there * (step - before[*inner])
        return after

    def _boxes(self, wanted: NDArray[np.bool_]) -> list[list[slice]]:
        """Find the parts that hold all wanted pixels with their context, on a grid of the network's.

        Parts so close that their contexts meet are one; a coarse grid keeps the number of sizes
        small, for each of which a library may prepare anew.
        """
        grid = _up(_BOX, self._multiple)

        def spans(marked: NDArray[np.bool_]) -> list[tuple[slice, slice]]:
            """Of each run of marked places where it is, and with its context."""
            places = np.flatnonzero(marked)
            runs = np.split(places, np.flatnonzero(np.diff(places) > 2 * self._halo + grid) + 1)
            found = []
            for run in runs if len(places) else []:
                first, stop = int(run[0]), int(run[-1]) + 1
                low = max(0, (first - self._halo) // grid * grid)
                high = min(len(marked), _up(stop + self._halo, grid))
                found.append((slice(first, stop), slice(low, high)))
            return found

        return [
            [rows, columns]
            for own, rows in spans(np.asarray(wanted.any(axis=1)))
            for _, columns in spans(np.asarray(wanted[own].any(axis=0)))
        ]


def _indices(image: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the numbers of a picture's rows and of its columns."""
    return np.arange(image.shape[0]), np.arange(image.shape[1])


def _part(progress: Progress, number: int, parts: int) -> Progress:
    """Return what reports the progress of one part out of several equal ones."""
    return lambda done, total: progress(number * total + done, parts * total)


def _check(image: Array) -> None:
    if not isinstance(image, np.ndarray):
        raise UsageError(f"a picture is a NumPy array, not {type(image).__name__}: give np.asarray(picture)")
    if image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise UsageError(f"the array has shape {image.shape}: give H x W x 3, or H x W when grey")
    if image.size == 0:
        raise UsageError(f"the array has shape {image.shape}: there is no pixel in it")
    if image.dtype.kind == "u" and image.dtype.itemsize <= 2:
        return
    if image.dtype.kind != "f":
        raise UsageError(f"the array holds {image.dtype}: convert it to uint8, uint16 or float in [0, 1]")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 1):  # also true when a value is not a number
        raise UsageError(f"the array holds floats from {low} to {high}: scale them to [0, 1]")


def _subtract(image: Array, layer: Planes, octave: int, threads: int) -> Array:
    """Subtract a layer of an octave from the picture, rounded once, in strips of rows."""
    scale = _full_scale(image.dtype)
    layer = layer * np.float32(scale)
    result = np.empty_like(image, order="C", subok=False)

    def subtract(rows: slice) -> None:
        lifted = lift(layer, octave, rows, slice(0, image.shape[1]))
        # Colour by colour, since a layer has planes in memory and a picture has not.
        for before, taken_away, after in zip(
            *map(by_colour, (image[rows], lifted, result[rows])), strict=True
        ):
            values = before - taken_away
            if image.dtype.kind != "f":
                np.rint(values, out=values)
            np.clip(values, 0, scale, out=values)
            after[...] = values

    with ThreadPoolExecutor(threads, "unrain-strips") as pool:
        for _ in pool.map(subtract, strips(image.shape[0])):
            pass
    return result


def _full_scale(dtype: np.dtype[Any]) -> int:
    return 1 if dtype.kind == "f" else int(np.iinfo(dtype).max)


def _planes(image: Array, y: NDArray[np.intp], x: NDArray[np.intp]) -> Planes:
    """Cut out the given rows and columns as 3 x h x w in [0, 1]; grey is repeated."""
    crop = take(image, y, x)
    planes = np.empty((3, *crop.shape[:2]), np.float32)
    planes[:] = by_colour(crop)
    planes /= np.float32(_full_scale(image.dtype))
    return planes


def _change(image: Array, estimate: NDArray[Any] | None, planes: Planes, grid: _Grid, start: int) -> float:
    """Sum up how much the rows from `start` on differ from the estimate before, padding left out."""
    height, width = image.shape[:2]
    after = planes[:, : max(height - start, 0), :width]
    rows = slice(start, start + after.shape[1])
    if estimate is None:
        before = _planes(image, grid.y[rows], grid.x[:width])
    else:
        before = estimate[:, rows, :width].astype(np.float32)
    np.clip(before, 0, 1, out=before)
    before -= np.clip(after, 0, 1)
    return float(np.abs(before, out=before).sum(dtype=np.float64))


def _place(strip: Planes, tile: Planes, row: _Span, column: _Span) -> None:
    """Put the kept part of a tile into its strip, passing over from the tile before."""
    top, left = row.start - row.crop.start, column.start - column.crop.start
    kept = tile[:, top : top + row.stop - row.start, left : left + column.stop - column.start]
    passage = slice(column.start, column.start + column.blend)
    before = strip[:, :, passage].copy()
    strip[:, :, column.start : column.stop] = kept
    _blend(before, strip[:, :, passage], axis=2)


def _write(result: Array, planes: Planes, start: int) -> None:
    """Round planes into the rows of the result from `start` on, leaving the padding out; uses `planes` up."""
    height, width = result.shape[:2]
    visible = planes[:, : height - start, :width]
    rows = result[start : start + visible.shape[1]]
    np.clip(visible, 0, 1, out=visible)
    grey = result.ndim == 2
    values = visible.mean(axis=0) if grey else visible.transpose(1, 2, 0)
    if result.dtype.kind != "f":
        values *= np.float32(_full_scale(result.dtype))
        np.rint(values, out=values)
    rows[...] = values
