"""Pictures for training and measuring: pairs, photographs, rain layers, and random patches of them.

Everything is held in memory as uint8, so that a patch costs microseconds; a picture above `MAX_PIXELS` is
reduced. A patch is a pure function of (seed, step, index): a run that was killed goes on with the very
patches it would have seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from unrain.errors import UnrainError
from unrain.lab.rain import Picture, RainMaker, add_layer

MAX_PIXELS = 1_500_000
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
RAIN_FOLDERS = ("rain", "rainy", "input", "rainy_image", "X2")
CLEAN_FOLDERS = ("clean", "norain", "target", "ground_truth", "gt", "GT")
_TURNS = {"id": 0, "rot90": 1, "rot180": 2, "rot270": 3}


@dataclass(frozen=True)
class Pair:
    """One rainy picture and its clean twin, H x W x 3 uint8 each."""

    name: str
    rainy: Picture
    clean: Picture


def read(path: Path) -> Picture:
    """Read a picture as H x W x 3 uint8 RGB.

    Raises:
        UnrainError: The file is no readable picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UnrainError(f"{path}: not a readable picture ({error}); remove or replace it") from error


def size_of(path: Path) -> tuple[int, int]:
    """Return a picture's width and height without decoding it.

    Raises:
        UnrainError: The file is no readable picture.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise UnrainError(f"{path}: not a readable picture ({error}); remove or replace it") from error


def pictures(folder: Path) -> list[Path]:
    """List the picture files of a folder and its sub-folders, sorted.

    Raises:
        UnrainError: There is no such folder or it has no pictures.
    """
    if not folder.is_dir():
        raise UnrainError(f"{folder}: no such folder; give the folder that holds it with --data")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise UnrainError(f"{folder}: no pictures in it")
    return found


def pairs(root: Path, name: str, *, without_twins_in: str | None = None) -> list[Pair]:
    """Read a set of pairs: a packed set listed in `root/pairs.jsonl`, or the folder `root/name`.

    In a folder, the two sides are sub-folders (rain and clean, input and target, ...) and partners are
    matched by name, not by sort order; the prefixes "rain-" and "norain-" of the official Rain100L files
    are understood.

    Args:
        root: The data folder.
        name: The set, for example "rain100l/train".
        without_twins_in: Leave out pairs whose background also occurs in the test part of that set, for
            example "Rain800" (packed sets only).

    Raises:
        UnrainError: A missing folder, a missing partner (named), or partners that differ in size.
    """
    rows = [row for row in packed(root, name) if without_twins_in not in row.get("twin_in", [])]
    if rows:
        return [_unpack(root, row) for row in rows]
    if without_twins_in is not None:
        raise UnrainError(
            f"{root / 'pairs.jsonl'}: needed to leave out pairs that occur in {without_twins_in}"
        )
    return paired_folder(root / name)


def packed(root: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a set in `root/pairs.jsonl`; none where there is no such file or set."""
    manifest = root / "pairs.jsonl"
    if not manifest.is_file():
        return []
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [row for row in rows if row["set"] == name]


def _unpack(root: Path, row: dict[str, Any]) -> Pair:
    """Rebuild one packed pair: a clean photo and a rain layer, or both sides in one picture."""
    if row["kind"] == "side":
        both = read(root / row["rain"])
        half = both.shape[1] // 2
        return Pair(row["name"], both[:, half : 2 * half], both[:, :half])
    clean = read(root / row["clean"])
    turn = row["turn"]
    if turn in _TURNS:
        clean = np.rot90(clean, _TURNS[turn])
    else:
        clean = clean[:, ::-1] if turn == "fliplr" else clean[::-1]
    rain = read(root / row["rain"])
    if row["kind"] == "layer":
        rain = add_layer(clean, rain[..., 0])
    return Pair(row["name"], rain, np.ascontiguousarray(clean))


def paired_folder(folder: Path) -> list[Pair]:
    """Read pairs from a folder with a rainy and a clean sub-folder, matched by name.

    Raises:
        UnrainError: See `pairs`.
    """
    if not folder.is_dir():
        raise UnrainError(f"{folder}: no such folder; give the folder that holds it with --data")
    here = {p.name: p for p in folder.iterdir() if p.is_dir()}
    sides = []
    for names in (RAIN_FOLDERS, CLEAN_FOLDERS):
        side = next((here[n] for n in names if n in here), None)
        if side is None:
            raise UnrainError(f"{folder}: needs a sub-folder called one of {', '.join(names)}")
        sides.append({_key(p): p for p in pictures(side)})
    rain, clean = sides
    for mine, other, what in ((rain, clean, "clean"), (clean, rain, "rainy")):
        lonely = sorted(mine.keys() - other.keys())
        if lonely:
            raise UnrainError(
                f"{mine[lonely[0]]}: no {what} partner of that name ({len(lonely)} without one)"
            )
    found = []
    for key in sorted(rain):
        pair = Pair(key, read(rain[key]), read(clean[key]))
        if pair.rainy.shape != pair.clean.shape:
            raise UnrainError(
                f"{rain[key]}: {pair.rainy.shape[1]}x{pair.rainy.shape[0]}, its clean partner "
                f"{pair.clean.shape[1]}x{pair.clean.shape[0]}; partners must have one size"
            )
        found.append(pair)
    return found


def _key(path: Path) -> str:
    """Name a picture as its partner is named: without extension and Rain100L's prefixes."""
    return re.sub(r"^(no)?rain-", "", path.stem)


def photographs(root: Path, names: tuple[str, ...]) -> list[Picture]:
    """Read clean photographs from folders below the root; those above MAX_PIXELS are reduced."""
    return [_reduced(path) for name in names for path in pictures(root / name)]


def _reduced(path: Path) -> Picture:
    picture = read(path)
    factor = int(np.ceil(np.sqrt(picture.shape[0] * picture.shape[1] / MAX_PIXELS)))
    return np.asarray(Image.fromarray(picture).reduce(factor)) if factor > 1 else picture


def rain_layers(root: Path, names: tuple[str, ...]) -> list[Picture]:
    """Read grey rain layers (H x W uint8) from folders below the root."""
    return [np.asarray(read(path)[..., 0]) for name in names for path in pictures(root / name)]


class Source:
    """Where patches come from: pairs, or photographs that a RainMaker rains on, or that stay dry.

    Args:
        pairs: Ready pairs; or
        photos: Clean photographs, with
        layers: Rain layers for the maker, and
        maker: The RainMaker; None leaves the photograph dry (rainy = clean), which teaches a network to leave
            a dry picture alone.
        turns: Whether patches may also be turned by quarter turns (rain then falls sideways) and upside down;
            without it they are only mirrored left to right.
        flip: Whether patches may be mirrored left to right.
        stride: Patches are cut at multiples of this only.
        exposure: Photographs' values are multiplied by a random factor between these two; what comes out
            above 255 is white, as in an overexposed sky.
    """

    def __init__(
        self,
        *,
        pairs: list[Pair] | None = None,
        photos: list[Picture] | None = None,
        layers: list[Picture] | None = None,
        maker: RainMaker | None = None,
        turns: bool = False,
        flip: bool = True,
        stride: int = 1,
        exposure: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        if (pairs is None) == (photos is None):
            raise ValueError("a source has either pairs or photos")
        self.pairs, self.photos, self.layers = pairs, photos, layers or []
        self.maker, self.turns, self.flip, self.stride = maker, turns, flip, stride
        self.exposure = exposure

    def __len__(self) -> int:
        """Return how many pictures it draws from."""
        return len(self.pairs if self.pairs is not None else self.photos or [])

    def patch(self, size: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
        """Draw one random patch, rainy and clean, size x size x 3 uint8."""
        index = int(rng.integers(len(self)))
        if self.pairs is not None:
            pair = self.pairs[index]
            rainy, clean = _crop((pair.rainy, pair.clean), size, self.stride, rng)
        else:
            assert self.photos is not None
            (clean,) = _crop((self.photos[index],), size, self.stride, rng)
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


def _crop(
    sides: tuple[Picture, ...], size: int, stride: int, rng: np.random.Generator
) -> tuple[Picture, ...]:
    """Cut the same random square out of each side; a side that is too small is mirrored outwards first."""
    height, width = sides[0].shape[:2]
    if height < size or width < size:
        grow = ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0))
        sides = tuple(np.pad(side, grow, "symmetric") for side in sides)
        height, width = sides[0].shape[:2]
    y, x = (stride * rng.integers((side - size) // stride + 1) for side in (height, width))
    return tuple(side[y : y + size, x : x + size] for side in sides)


@dataclass(frozen=True)
class Stage:
    """One part of a training run.

    Attributes:
        steps: How many optimiser steps it lasts.
        patch: Side of the square patches.
        batch: Patches in a step, over all devices.
        real: Patches of real rain in a step, besides, over all devices.
        recursions: Passes T in this stage.
        split: Whether each pass has a share of the batch to itself and starts from a finished estimate, so
            that T passes cost little more than one; if not, gradients run back through all of them.
        lr: Peak learning rate; each stage has a cosine of its own, down to zero.
        warmup: Steps of linear warm-up before the peak.
        milestones: Steps within the stage at which the learning rate falls, in place of the cosine, and
        factor: what it is multiplied by there.
        frozen: Whether BatchNorm keeps the statistics that it has and normalises by them; beside real rain it
            does in any case.
    """

    steps: int
    patch: int = 64
    batch: int = 8
    real: int = 0
    recursions: int = 1
    split: bool = False
    lr: float = 1e-3
    warmup: int = 200
    milestones: tuple[int, ...] = ()
    factor: float = 0.2
    frozen: bool = False

    @property
    def keeps_statistics(self) -> bool:
        """Return whether BatchNorm learns no statistics: those of real rain would not be those of pairs."""
        return self.frozen or self.real > 0


@dataclass(frozen=True)
class Unpaired:
    """Photographs of real rain, and clean photographs that do not belong to them.

    Attributes:
        rainy: Where patches of real rain come from.
        clean: Where clean patches come from; None for the clean sides of the sources.
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
        sides: list[tuple[Picture, ...]] = []
        for draw, count in ((self._patch, stage.batch), (self._unpaired, stage.real)):
            drawn = [draw(step, i, stage.patch) for i in range(self.rank, count, self.world)]
            sides += zip(*drawn, strict=True)
        return tuple(torch.from_numpy(np.stack(side).transpose(0, 3, 1, 2)) for side in sides)

    def _patch(self, step: int, index: int, size: int) -> tuple[Picture, Picture]:
        return self.patch(size, np.random.default_rng((self.seed, step, index)))

    def _unpaired(self, step: int, index: int, size: int) -> tuple[Picture, Picture]:
        assert self.unpaired is not None
        # Another stream than the paired patch of this number.
        rng = np.random.default_rng((self.seed, step, index, 1))
        rainy, _ = self.unpaired.rainy.patch(size, rng)
        _, clean = (self.unpaired.clean or self).patch(size, rng)
        return rainy, clean

    def patch(self, size: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
        """Draw one random patch, rainy and clean, size x size x 3 uint8, from any of the sources."""
        return self.sources[int(rng.choice(len(self.sources), p=self.share))].patch(size, rng)


def stage_at(stages: tuple[Stage, ...], step: int) -> tuple[Stage, int]:
    """Return the stage of a step, and the step within it; beyond the end, the end of the last stage."""
    for stage in stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    return stages[-1], stages[-1].steps
