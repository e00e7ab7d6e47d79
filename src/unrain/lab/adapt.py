"""Adapt a shipped model to one's own camera: `unrain adapt MODEL --real FOLDER`.

Fine-tunes a network for some minutes on a folder of rainy pictures with the losses of
`unrain.lab.training.real_rain`. These have no ground truth, so rain is also added to one's own clean
photographs or, without any, to the network's own results. A fifth of the pairs is held out: if the score on
them falls by more than `ALLOWED`, the weights are interpolated back towards the start (Wortsman et al.,
"Robust fine-tuning of zero-shot models", CVPR 2022).
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytorch_lightning as pl
from torch import Tensor

from unrain import zoo
from unrain.errors import UnrainError, UsageError
from unrain.lab.bench.candidates import open_derainer
from unrain.lab.checkpoint import Checkpoint, interpolate_weights, load_checkpoint, save_checkpoint
from unrain.lab.data.batches import Source, Unpaired
from unrain.lab.data.pairs import MAX_PIXELS, Pair, paired_folder, pictures, read
from unrain.lab.data.rain import RGB8, RainMaker
from unrain.lab.export import export_checkpoint
from unrain.lab.metrics import psnr_ssim
from unrain.lab.metrics.streaks import Lines, Rainy, removed
from unrain.lab.nets.layers import RecursiveNet
from unrain.lab.training.data import RecipeData
from unrain.lab.training.module import Deraining, start_from
from unrain.lab.training.recipe import Initial, LossWeights, Real, Recipe, SourceSpec
from unrain.lab.training.stage import Stage
from unrain.lab.training.train import fit

T = TypeVar("T")

# How far the score on synthetic rain may fall, in dB.
ALLOWED = 0.1
# Shares of the new weights in the interpolation, tried in this order.
SHARES = (1.0, 0.5, 0.25)

_RAIN = RainMaker(scratch=1.0, cover=0.4, sharpening=1.0, jpeg=0.5)
_CLEAN = 0.2
_PIECE = 600
_PROBE = 384
_PROBES = 12
_HELD_OUT = 5


@dataclass(frozen=True)
class Adapted:
    """The result of adapting a model.

    Attributes:
        model: The ONNX file, for `unrain --model`.
        before: Y PSNR in dB of the original network on the held-out pairs.
        after: The same of the adapted network.
        pairs: How many pairs were held out.
        streaks_before: Share of the real pictures' streak energy that the original network removes; None
            where they show too few streaks to tell.
        streaks_after: The same of the adapted network.
        share: The share of the new weights that was kept, 0 to 1.
        seconds: Wall time.
    """

    model: Path
    before: float
    after: float
    pairs: int
    streaks_before: float | None
    streaks_after: float | None
    share: float
    seconds: float

    @property
    def kept(self) -> bool:
        """Return whether the score on synthetic rain fell by no more than is allowed."""
        return self.after >= self.before - ALLOWED


class LoadedData(RecipeData):
    """Pictures that are already in memory, instead of those below a data folder."""

    def __init__(self, recipe: Recipe, sources: list[Source], unpaired: Unpaired) -> None:
        # Not the one that reads a data folder.
        pl.LightningDataModule.__init__(self)
        self.recipe, self.sources, self.unpaired, self.tests = recipe, sources, unpaired, []


def adapt(
    model: str,
    real: Path,
    *,
    clean: Path | None = None,
    pairs: Path | None = None,
    steps: int = 500,
    out: Path | None = None,
) -> Adapted:
    """Fine-tune a model on rainy pictures and export it.

    Args:
        model: A name of the zoo, or a checkpoint of `unrain train`.
        real: A folder of rainy pictures.
        clean: A folder of clean photographs, ideally of the same camera; rain is added to them.
        pairs: A folder of pairs to learn from and to measure on as well.
        steps: Optimiser steps.
        out: The ONNX file to write; MODEL-adapted.onnx when None.

    Raises:
        UnrainError: Weights, a folder or a picture is missing or damaged, or the file exists.
    """
    began = time.monotonic()
    path, recursions = trainable(model)
    out = out or Path(f"{path.stem if Path(model).suffix else model}-adapted.onnx")
    if out.suffix != ".onnx":
        raise UsageError(f"{out}: give a name that ends in .onnx")
    if out.exists():
        raise UnrainError(f"{out}: is there already, give another name with -o")
    start = load_checkpoint(path)
    rainy = [_middle(piece) for piece in _pictures(real, "--real")]
    sources, specs, tests, unpaired = _sources(start.net, recursions, rainy, clean, pairs)
    recipe = recipe_for(start, specs, (real.name,), (clean.name,) if clean else (), steps)
    pl.seed_everything(recipe.seed, verbose=False)
    module = Deraining(recipe, "unrain adapt")
    start_from(module, Initial(str(path)))
    photographed = Unpaired(Source(photos=_pieces(real, "--real")), unpaired)
    before = score(start.net, tests, recursions)
    streaks_before = streaks_removed(start.net, rainy, recursions)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adapt-", dir=out.parent) as folder:
        fit(module, LoadedData(recipe, sources, photographed), Path(folder))
        share, after = _blend(module, start.net.state_dict(), tests, recursions, before - ALLOWED)
        weights = Path(folder) / "adapted.safetensors"
        save_checkpoint(weights, module.checkpoint())
        card = {
            "summary": f"{path.stem} adapted to the pictures in {real.name}.",
            "recipe": "unrain adapt",
            "training_data": [*start.card.get("training_data", []), *recipe.training_data],
            "drawn_rain": {"pairs": len(tests), "before": round(before, 3), "after": round(after, 3)},
        }
        export_checkpoint(weights, out, default=recursions, card=card)
    return Adapted(
        model=out,
        before=before,
        after=after,
        pairs=len(tests),
        streaks_before=streaks_before,
        streaks_after=streaks_removed(module.net, rainy, recursions),
        share=share,
        seconds=time.monotonic() - began,
    )


def trainable(model: str) -> tuple[Path, int | None]:
    """Find the weights that a model can be fine-tuned from, and its default number of recursions.

    A name of the zoo stands for NAME.safetensors in the folder UNRAIN_WEIGHTS, in this package, which has
    those of the default model and of the smallest, or in recipes/weights where unrain runs from its source;
    any other text is the path of a checkpoint.

    Raises:
        UnrainError: There are none.
    """
    path = Path(model)
    if path.suffix == ".onnx":
        raise UsageError(f"{path}: an ONNX file cannot be trained, give the weights.safetensors it is from")
    if path.suffix:
        return path, None
    card = zoo.find(model).card
    own = os.environ.get("UNRAIN_WEIGHTS")
    here = Path(__file__)
    folders = [Path(own)] if own else [here.parent / "weights", here.parents[3] / "recipes" / "weights"]
    for folder in folders:
        weights = folder / f"{model}.safetensors"
        if weights.is_file():
            return weights, card.get("recursions") if card.get("recursive") else None
    raise UnrainError(
        f"{model}: its weights for training are not {f'in {own}' if own else 'part of the package'}; take "
        f"recipes/weights/{model}.safetensors of unrain's source, and give that file in place of the name"
    )


def recipe_for(
    start: Checkpoint,
    specs: tuple[SourceSpec, ...],
    real: tuple[str, ...],
    clean: tuple[str, ...],
    steps: int,
) -> Recipe:
    """Return the recipe that a network is adapted by; its folders are named for the card only."""
    recursions = start.net.recursions
    lifted = start.net.levels > 1
    split = lifted or (start.net.recursive and recursions > 1)
    return Recipe(
        network=start.network,
        arguments=start.arguments,
        sources=specs,
        stages=(
            Stage(
                steps,
                patch=96,
                batch=4 + lifted,
                real=4,
                recursions=recursions,
                split=split,
                lifted=float(lifted),
                lr=1e-4,
                warmup=min(50, steps),
            ),
        ),
        loss=LossWeights(l1=1.0, psnr=0.002, ssim=0.2),
        recursion_weights=(1.0,) * recursions if split else (0.1, 1.0),
        real=Real(
            real,
            clean,
            warmup=steps // 4,
            encoder_steps=min(steps, Real.encoder_steps),
            # As recipes/semi-drdnet/semi-drdnet-s-real.toml: removes more rain (docs/training-log.md).
            total_variation=0.0,
            teacher=0.5,
            darkest=True,
        ),
        licence=start.card.get("licence", Recipe.licence),
        ema=0.99,
        checkpoint_every=steps,
    )


def _sources(
    net: RecursiveNet, recursions: int | None, rainy: list[RGB8], clean: Path | None, pairs: Path | None
) -> tuple[list[Source], tuple[SourceSpec, ...], list[Pair], Source | None]:
    """Return the sources, their lines for the card, the held-out pairs, and unpaired clean pictures."""
    sources: list[Source] = []
    specs: list[SourceSpec] = []
    tests: list[Pair] = []
    unpaired: Source | None = None
    if pairs is not None:
        taught, held_pairs = _divided(paired_folder(pairs), str(pairs))
        tests = [Pair(one.name, _middle(one.rainy), _middle(one.clean)) for one in held_pairs]
        sources.append(Source(pairs=taught))
        specs.append(SourceSpec(pairs=pairs.name))
    if clean is not None:
        photos, held = _divided(_pieces(clean, "--clean"), str(clean))
        unpaired = Source(photos=photos)
        sources += [Source(photos=photos, maker=_RAIN), unpaired]
        specs += [
            SourceSpec(photos=(clean.name,), rain=_RAIN, weight=1 - _CLEAN),
            SourceSpec(photos=(clean.name,), weight=_CLEAN),
        ]
    elif pairs is None:
        # Not as clean pictures too: the network would learn to leave the remaining rain alone.
        derainer, _ = open_derainer(net, recursions)
        photos, held = _divided([derainer(one) for one in rainy], "--real")
        sources.append(Source(photos=photos, maker=_RAIN))
        specs.append(SourceSpec(photos=("results of the network",), rain=_RAIN))
    tests = tests or [_rained_on(_middle(one), number) for number, one in enumerate(held)]
    return sources, tuple(specs), tests[:_PROBES], unpaired


def _divided(items: list[T], where: str) -> tuple[list[T], list[T]]:
    """Hold out every fifth, at least one."""
    if len(items) < 2:
        raise UnrainError(f"{where}: one picture is too few, give two or more")
    held = set(range(len(items) - 1, -1, -_HELD_OUT))
    return [one for i, one in enumerate(items) if i not in held], [items[i] for i in sorted(held)]


def _rained_on(clean: RGB8, number: int) -> Pair:
    return Pair(str(number), _RAIN(clean, [], np.random.default_rng(number)), clean)


def _pictures(folder: Path, option: str) -> list[RGB8]:
    if not folder.is_dir():
        raise UnrainError(f"{folder}: no such folder, give one with pictures after {option}")
    return [read(path) for path in pictures(folder)]


def _pieces(folder: Path, option: str) -> list[RGB8]:
    """Read a folder's pictures, a large one as four pieces: scaled down, its streaks would be thinner."""
    found: list[RGB8] = []
    for picture in _pictures(folder, option):
        height, width = picture.shape[:2]
        if height * width <= MAX_PIXELS:
            found.append(picture)
            continue
        for rows in np.array_split(picture, 2):
            found += [_middle(part, _PIECE).copy() for part in np.array_split(rows, 2, axis=1)]
    return found


def _middle(picture: RGB8, side: int = _PROBE) -> RGB8:
    """Crop the middle to at most `side` pixels each way."""
    top, left = (max(0, (length - side) // 2) for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def score(net: RecursiveNet, tests: list[Pair], recursions: int | None) -> float:
    """Measure the mean Y PSNR on pairs, in dB."""
    derainer, _ = open_derainer(net, recursions)
    return float(np.mean([psnr_ssim.psnr(derainer(one.rainy), one.clean) for one in tests]))


def streaks_removed(net: RecursiveNet, rainy: list[RGB8], recursions: int | None) -> float | None:
    """Measure the share of streak energy removed from a dozen of the rainy pictures."""
    chosen = [rainy[i * len(rainy) // _PROBES] for i in range(min(_PROBES, len(rainy)))]
    derainer, _ = open_derainer(net, recursions)
    lines: list[Lines] = [Rainy(one).compare(derainer(one)) for one in chosen]
    return removed(lines)


def _blend(
    module: Deraining, start: dict[str, Tensor], tests: list[Pair], recursions: int | None, least: float
) -> tuple[float, float]:
    """Keep the largest share of the new weights that scores well enough; return share and score."""
    module.to("cpu")
    end = {name: value.clone() for name, value in module.net.state_dict().items()}
    for share in SHARES:
        module.net.load_state_dict(interpolate_weights(start, end, share))
        after = score(module.net, tests, recursions)
        if after >= least:
            break
    return share, after
