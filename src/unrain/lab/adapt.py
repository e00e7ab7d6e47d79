"""A shipped model for one's own camera: `unrain adapt MODEL --real FOLDER`.

Fine-tunes a network for some minutes on a folder of rainy pictures, as `unrain.lab.training.real_rain`
learns from real rain. Nobody has clean twins of these, so rain is drawn on clean photographs of one's own,
or, where there are none, on what the network makes of the rainy pictures to begin with. A fifth is held
out: if the network has become worse there by more than `ALLOWED`, it goes part of the way back to where it
started, along the line between the weights (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR
2022).
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
import torch
from torch import Tensor

from unrain import zoo
from unrain.errors import UnrainError
from unrain.lab.bench.candidates import open_derainer
from unrain.lab.data.batches import Source, Unpaired
from unrain.lab.data.pairs import MAX_PIXELS, Pair, paired_folder, pictures, read
from unrain.lab.data.rain import RGB8, RainMaker
from unrain.lab.export import Checkpoint, export_checkpoint, load_checkpoint
from unrain.lab.metrics import psnr_ssim
from unrain.lab.metrics.streaks import Lines, Rainy, removed
from unrain.lab.nets.layers import RecursiveNet
from unrain.lab.training.recipe import LossWeights, Real, Recipe, SourceSpec
from unrain.lab.training.stage import Stage
from unrain.lab.training.train import Deraining, Pictures, fit, part_way, save_weights, start_from

T = TypeVar("T")

# By how much the score on drawn rain may fall, in dB.
ALLOWED = 0.1
# Parts of the way from the old weights to the new ones, tried in this order.
SHARES = (1.0, 0.5, 0.25)

_RAIN = RainMaker(scratch=1.0, cover=0.4, sharpening=1.0, jpeg=0.5)
_DRY = 0.2
_PIECE = 600
_PROBE = 384
_PROBES = 12
_HELD_OUT = 5


@dataclass(frozen=True)
class Adapted:
    """How it went.

    Attributes:
        model: The ONNX file, for `unrain --model`.
        before: Y PSNR in dB on the pairs held out, of the network as it was.
        after: The same of the network as it is now.
        pairs: How many pairs were held out.
        streaks_before: Share of the streak energy of real pictures that the network took away before; None
            where they show too few streaks to tell.
        streaks_after: The same now.
        share: The part of the way that was kept, 0 to 1.
        seconds: How long it took.
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
        """Return whether the score on drawn rain fell by no more than is allowed."""
        return self.after >= self.before - ALLOWED


class Own(Pictures):
    """Pictures that are in memory already, in place of those below a data folder."""

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
        clean: A folder of clean photographs, at best of the same camera; rain is drawn on them.
        pairs: A folder with a rainy and a clean side, to learn from and to measure on besides.
        steps: Optimiser steps.
        out: The ONNX file to write; MODEL-adapted.onnx when None.

    Raises:
        UnrainError: Weights, a folder or a picture is missing or broken, or the file is there already.
    """
    began = time.monotonic()
    path, passes = trainable(model)
    out = out or Path(f"{path.stem if Path(model).suffix else model}-adapted.onnx")
    if out.suffix != ".onnx":
        raise UnrainError(f"{out}: give a name that ends in .onnx")
    if out.exists():
        raise UnrainError(f"{out}: is there already, give another name with -o")
    start = load_checkpoint(path)
    rainy = [_middle(piece) for piece in _pictures(real, "--real")]
    sources, specs, tests, dry = _sources(start.net, passes, rainy, clean, pairs)
    recipe = recipe_for(start, specs, (real.name,), (clean.name,) if clean else (), steps)
    pl.seed_everything(recipe.seed)
    module = Deraining(recipe, "unrain adapt")
    start_from(module, path)
    unpaired = Unpaired(Source(photos=_pieces(real, "--real")), dry)
    before = score(start.net, tests, passes)
    streaks_before = streaks_removed(start.net, rainy, passes)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adapt-", dir=out.parent) as folder:
        fit(module, Own(recipe, sources, unpaired), Path(folder))
        share, after = _blend(module, start.net.state_dict(), tests, passes, before - ALLOWED)
        weights = Path(folder) / "adapted.safetensors"
        save_weights(weights, module)
        card = {
            "summary": f"{path.stem} adapted to the pictures in {real.name}.",
            "recipe": "unrain adapt",
            "training_data": [*start.card.get("training_data", []), *recipe.training_data],
            "drawn_rain": {"pairs": len(tests), "before": round(before, 3), "after": round(after, 3)},
        }
        export_checkpoint(weights, out, default=passes, card=card)
    return Adapted(
        model=out,
        before=before,
        after=after,
        pairs=len(tests),
        streaks_before=streaks_before,
        streaks_after=streaks_removed(module.net, rainy, passes),
        share=share,
        seconds=time.monotonic() - began,
    )


def trainable(model: str) -> tuple[Path, int | None]:
    """Find the weights that a model can be trained on from, and how many passes it makes by default.

    A name of the zoo stands for NAME.safetensors in the folder UNRAIN_WEIGHTS, or in recipes/weights where
    unrain runs from its source; any other text is the path of a checkpoint.

    Raises:
        UnrainError: There are none.
    """
    path = Path(model)
    if path.suffix == ".onnx":
        raise UnrainError(
            f"{path}: an ONNX file cannot be trained on, give the weights.safetensors it is from"
        )
    if path.suffix:
        return path, None
    card = zoo.find(model).card
    own = os.environ.get("UNRAIN_WEIGHTS")
    folder = Path(own) if own else Path(__file__).parents[3] / "recipes" / "weights"
    weights = folder / f"{model}.safetensors"
    if weights.is_file():
        return weights, card.get("recursions") if card.get("recursive") else None
    raise UnrainError(
        f"{weights}: not there; it has the weights of {model} for training, which unrain's source brings in "
        "recipes/weights: give that file in place of the name, or name its folder in UNRAIN_WEIGHTS"
    )


def recipe_for(
    start: Checkpoint,
    specs: tuple[SourceSpec, ...],
    real: tuple[str, ...],
    clean: tuple[str, ...],
    steps: int,
) -> Recipe:
    """Return how a network is adapted; folders in it are named for the card only."""
    passes = start.net.recursions
    split = start.net.recursive and passes > 1
    return Recipe(
        network=start.network,
        arguments=start.arguments,
        sources=specs,
        stages=(
            Stage(
                steps,
                patch=96,
                batch=4,
                real=4,
                recursions=passes,
                split=split,
                lr=1e-4,
                warmup=min(50, steps),
            ),
        ),
        loss=LossWeights(l1=1.0, psnr=0.002, ssim=0.2),
        recursion_weights=(1.0,) * passes if split else (0.1, 1.0),
        real=Real(
            real,
            clean,
            warmup=steps // 4,
            encoder_steps=min(steps, Real.encoder_steps),
            # As recipes/semi-drdnet-s-real.toml: what took more rain (docs/training-log.md).
            total_variation=0.0,
            teacher=0.5,
            driest=True,
        ),
        licence=start.card.get("licence", Recipe.licence),
        ema=0.99,
        checkpoint_every=steps,
        precision=_precision(),
    )


def _precision() -> str:
    """Return bf16 where the machine computes in it, else float32: the processor's emulation is slow."""
    able = torch.cpu.get_capabilities()
    return "bf16" if torch.cuda.is_available() or able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


def _sources(
    net: RecursiveNet, passes: int | None, rainy: list[RGB8], clean: Path | None, pairs: Path | None
) -> tuple[list[Source], tuple[SourceSpec, ...], list[Pair], Source | None]:
    """Return what to learn from, how the card calls it, the pairs held out, and clean pictures."""
    sources: list[Source] = []
    specs: list[SourceSpec] = []
    tests: list[Pair] = []
    dry: Source | None = None
    if pairs is not None:
        taught, held_pairs = _divided(paired_folder(pairs), str(pairs))
        tests = [Pair(one.name, _middle(one.rainy), _middle(one.clean)) for one in held_pairs]
        sources.append(Source(pairs=taught))
        specs.append(SourceSpec(pairs=pairs.name))
    if clean is not None:
        photos, held = _divided(_pieces(clean, "--clean"), str(clean))
        dry = Source(photos=photos)
        sources += [Source(photos=photos, maker=_RAIN), dry]
        specs += [
            SourceSpec(photos=(clean.name,), rain=_RAIN, weight=1 - _DRY),
            SourceSpec(photos=(clean.name,), weight=_DRY),
        ]
    elif pairs is None:
        # Not left dry besides: that would teach to leave the rain alone which is still in them.
        derainer, _ = open_derainer(net, passes)
        photos, held = _divided([derainer(one) for one in rainy], "--real")
        sources.append(Source(photos=photos, maker=_RAIN))
        specs.append(SourceSpec(photos=("results of the network",), rain=_RAIN))
    tests = tests or [_rained_on(_middle(one), number) for number, one in enumerate(held)]
    return sources, tuple(specs), tests[:_PROBES], dry


def _divided(items: list[T], where: str) -> tuple[list[T], list[T]]:
    """Hold out every fifth, and one at least."""
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
    """Read a folder's pictures; of a large one four pieces, since streaks in it reduced would be thinner."""
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
    """Cut a square of at most so many pixels out of the middle."""
    top, left = (max(0, (length - side) // 2) for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def score(net: RecursiveNet, tests: list[Pair], passes: int | None) -> float:
    """Measure the mean Y PSNR on pairs in dB."""
    derainer, _ = open_derainer(net, passes)
    return float(np.mean([psnr_ssim.psnr(derainer(one.rainy), one.clean) for one in tests]))


def streaks_removed(net: RecursiveNet, rainy: list[RGB8], passes: int | None) -> float | None:
    """Measure which share of the streak energy goes from a dozen of the rainy pictures."""
    chosen = [rainy[i * len(rainy) // _PROBES] for i in range(min(_PROBES, len(rainy)))]
    derainer, _ = open_derainer(net, passes)
    lines: list[Lines] = [Rainy(one).compare(derainer(one)) for one in chosen]
    return removed(lines)


def _blend(
    module: Deraining, start: dict[str, Tensor], tests: list[Pair], passes: int | None, least: float
) -> tuple[float, float]:
    """Set the weights to the farthest on the way that scores well enough; return the share and the score."""
    module.to("cpu")
    end = {name: value.clone() for name, value in module.net.state_dict().items()}
    for share in SHARES:
        module.net.load_state_dict(part_way(start, end, share))
        after = score(module.net, tests, passes)
        if after >= least:
            break
    return share, after
