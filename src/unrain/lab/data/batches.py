"""Random patches of pairs and photographs, and batches of them for every step of a run.

A patch is a pure function of (seed, step, index): a run that was killed resumes with the very patches it
would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from unrain.lab.data.pairs import Pair
from unrain.lab.data.rain import RGB8, RainMaker
from unrain.lab.training.stage import Stage, stage_at


class Source:
    """Where patches come from: pairs, or photographs that a RainMaker rains on, or that stay clean.

    Args:
        pairs: Ready pairs; or
        crossed: The rain of one of them on the clean picture of another: as many pictures in rain as there
            are couples of pairs.
        photos: Clean photographs, with
        layers: Rain layers for the maker, and
        maker: The RainMaker; None leaves the photograph as it is (rainy = clean), which teaches a network to
            leave a clean picture alone.
        turns: Whether patches may also be turned by quarter turns (rain then falls sideways) and upside down;
            without it they are only mirrored left to right.
        flip: Whether patches may be mirrored left to right.
        stride: Patches are cut at multiples of this only.
        exposure: Photographs' values are multiplied by a random factor between these two; what comes out
            above 255 is white, as in an overexposed sky.
        upright: Of so many random squares of a photograph the one with the strongest upright lines is taken:
            fences, reeds, pleats, which a network takes for rain if it has seen few of them.
        enlarged: Photographs are enlarged by a random factor between these two, 1 or more: a fence with
            pickets as wide as near rain.
    """

    def __init__(
        self,
        *,
        pairs: list[Pair] | None = None,
        crossed: bool = False,
        photos: list[RGB8] | None = None,
        layers: list[RGB8] | None = None,
        maker: RainMaker | None = None,
        turns: bool = False,
        flip: bool = True,
        stride: int = 1,
        exposure: tuple[float, float] = (1.0, 1.0),
        upright: int = 1,
        enlarged: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        if (pairs is None) == (photos is None):
            raise ValueError("a source has either pairs or photos")
        self.pairs, self.photos, self.layers = pairs, photos, layers or []
        self.maker, self.turns, self.flip, self.stride = maker, turns, flip, stride
        self.exposure, self.upright, self.enlarged = exposure, upright, enlarged
        self.crossed = crossed

    def __len__(self) -> int:
        """Return how many pictures it draws from."""
        return len(self.pairs if self.pairs is not None else self.photos or [])

    def patch(self, size: int, rng: np.random.Generator, index: int | None = None) -> tuple[RGB8, RGB8]:
        """Draw one random patch, of any picture or of one by number: rainy, clean, size x size x 3 uint8."""
        if index is None:
            index = int(rng.integers(len(self)))
        if self.pairs is not None:
            pair = self.pairs[index]
            rainy, clean = _crop((pair.rainy, pair.clean), size, self.stride, rng)
            if self.crossed:
                other = self.pairs[int(rng.integers(len(self)))]
                (ground,) = _crop((other.clean,), size, self.stride, rng)
                rainy, clean = pair.effect.onto(ground, rainy, clean), ground
        else:
            assert self.photos is not None
            side = size
            if self.enlarged != (1.0, 1.0):
                side = max(8, round(size / np.exp(rng.uniform(*np.log(self.enlarged)))))
            squares = [_crop((self.photos[index],), side, self.stride, rng)[0] for _ in range(self.upright)]
            clean = max(squares, key=upright_lines) if self.upright > 1 else squares[0]
            if side != size:
                clean = np.asarray(Image.fromarray(clean).resize((size, size), Image.Resampling.BICUBIC))
            if self.exposure != (1.0, 1.0):
                factor = np.exp(rng.uniform(*np.log(self.exposure)))
                clean = np.minimum(np.rint(clean * factor), 255).astype(np.uint8)
            rainy, clean = self.maker.pair(clean, self.layers, rng) if self.maker else (clean, clean)
        if self.flip and rng.random() < 0.5:
            rainy, clean = rainy[:, ::-1], clean[:, ::-1]
        if self.turns:
            quarter = int(rng.integers(4))
            rainy, clean = np.rot90(rainy, quarter), np.rot90(clean, quarter)
        return rainy, clean


def upright_lines(picture: RGB8) -> float:
    """Measure how strongly a picture, H x W x 3 uint8, changes from left to right and not downwards.

    Returns:
        Mean of |dx| - |dy| of its green channel where that is above 0, each pixel at most 48: many faint
        lines count more than one bright edge.
    """
    green = picture[..., 1].astype(np.int16)
    across, down = np.abs(np.diff(green, axis=1))[1:], np.abs(np.diff(green, axis=0))[:, 1:]
    return float(np.clip(across - down, 0, 48).mean())


def _crop(sides: tuple[RGB8, ...], size: int, stride: int, rng: np.random.Generator) -> tuple[RGB8, ...]:
    """Cut the same random square out of each side; a side that is too small is mirrored outwards first."""
    height, width = sides[0].shape[:2]
    if height < size or width < size:
        grow = ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0))
        sides = tuple(np.pad(side, grow, "symmetric") for side in sides)
        height, width = sides[0].shape[:2]
    y, x = (stride * rng.integers((side - size) // stride + 1) for side in (height, width))
    return tuple(side[y : y + size, x : x + size] for side in sides)


@dataclass(frozen=True)
class Unpaired:
    """Photographs of real rain, and clean photographs that do not belong to them.

    Attributes:
        rainy: Where patches of real rain come from.
        clean: Where clean patches come from; None for the clean pictures of the sources.
    """

    rainy: Source
    clean: Source | None = None


class Batches(IterableDataset[tuple[Tensor, ...]]):
    """Batches for every step of a run, from any step on: N x 3 x H x W uint8 tensors, rainy and clean.

    In a stage with real rain two tensors more: real patches, and clean ones that do not belong to them.

    Args:
        sources: Where patches come from.
        weights: How often each source is drawn, relative to the others.
        stages: The parts of the run, in order.
        unpaired: What stages with real rain draw from.
        seed: Seed of the run.
        start: First step (not batch index) to produce.
        rank: Number of this device, and
        world: number of devices; each gets its share of every batch.
    """

    def __init__(
        self,
        sources: list[Source],
        weights: list[float],
        stages: tuple[Stage, ...],
        *,
        unpaired: Unpaired | None = None,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.sources, self.stages, self.unpaired, self.seed = sources, stages, unpaired, seed
        self.share: NDArray[np.float64] = np.asarray(weights, np.float64) / np.sum(weights)
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield one batch for each step that is left."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        end = sum(stage.steps for stage in self.stages)
        for step in range(self.start + number, end, workers):
            yield self.batch(step)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return this device's share of the batch of one step."""
        stage, _ = stage_at(self.stages, step)
        sides: list[tuple[RGB8, ...]] = []
        for draw, count in ((self._patch, stage.batch), (self._unpaired, stage.real)):
            drawn = [draw(step, i, stage.patch) for i in range(self.rank, count, self.world)]
            sides += zip(*drawn, strict=True)
        return tuple(torch.from_numpy(np.stack(side).transpose(0, 3, 1, 2)) for side in sides)

    def _patch(self, step: int, index: int, size: int) -> tuple[RGB8, RGB8]:
        return self.patch(size, np.random.default_rng((self.seed, step, index)))

    def _unpaired(self, step: int, index: int, size: int) -> tuple[RGB8, RGB8]:
        assert self.unpaired is not None
        # Another stream than the paired patch of this number.
        rng = np.random.default_rng((self.seed, step, index, 1))
        rainy, _ = self.unpaired.rainy.patch(size, rng)
        _, clean = (self.unpaired.clean or self).patch(size, rng)
        return rainy, clean

    def patch(self, size: int, rng: np.random.Generator) -> tuple[RGB8, RGB8]:
        """Draw one random patch, rainy and clean, size x size x 3 uint8, from any of the sources."""
        return self.sources[int(rng.choice(len(self.sources), p=self.share))].patch(size, rng)
