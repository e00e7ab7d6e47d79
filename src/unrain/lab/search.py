"""Which cross-level skips to keep: `unrain search RECIPE --data FOLDER`.

The first-order differentiable search of DARTS (Liu et al., 2019, https://arxiv.org/abs/1806.09055), as RDMC
uses it: the training data is divided into two halves; in every step the architecture (the strengths of the
skips and the two scalars of the upsampling) learns on one half with the weights fixed, then the weights learn
on the other half with the architecture fixed. The strongest skips are kept.

A search lives in its folder (runs/NAME): last.ckpt, which it resumes from and which holds the architecture
like every other weight, and NAME-found.toml at the end, a recipe for `unrain train`.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from unrain.errors import UnrainError
from unrain.lab.data.batches import Batches, Source
from unrain.lab.nets.rdmc import DOWN_GATES, RDMC, UP_GATES
from unrain.lab.training.data import RecipeData
from unrain.lab.training.module import Deraining, start_from
from unrain.lab.training.optimiser import build_optimiser
from unrain.lab.training.preflight import preflight
from unrain.lab.training.recipe import Recipe, Search, read_recipe, write_recipe
from unrain.lab.training.resume import LAST, last_whole
from unrain.lab.training.train import trainer_for

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        skips: The strength of every skip, strongest first.
        kept: Those that are kept.
        bilinear: The share of bilinear upsampling; the rest is bicubic.
        recipe: The recipe with the kept skips.
    """

    skips: dict[str, float]
    kept: tuple[str, ...]
    bilinear: float
    recipe: Path


class Both(IterableDataset[tuple[Batch, Batch]]):
    """Pairs of batches, one of each half, for every step."""

    def __init__(self, trained: Batches, held_back: Batches) -> None:
        self.trained, self.held_back = trained, held_back

    def __iter__(self) -> Iterator[tuple[Batch, Batch]]:
        """Yield both batches of each remaining step."""
        yield from zip(self.trained, self.held_back, strict=True)


def halves(source: Source, rng: np.random.Generator) -> tuple[Source, Source]:
    """Divide a source's shuffled pictures and rain layers into two disjoint sources.

    Raises:
        ValueError: There is only one picture, or one layer.
    """
    one, other = copy.copy(source), copy.copy(source)
    if source.pairs is not None:
        one.pairs, other.pairs = _halves(source.pairs, rng)
    if source.photos is not None:
        one.photos, other.photos = _halves(source.photos, rng)
    if source.layers:
        one.layers, other.layers = _halves(source.layers, rng)
    return one, other


def _halves(items: list[Any], rng: np.random.Generator) -> tuple[list[Any], list[Any]]:
    if len(items) < 2:
        raise ValueError("one picture cannot be divided")
    shuffled = [items[i] for i in rng.permutation(len(items))]
    return shuffled[: len(items) // 2], shuffled[len(items) // 2 :]


class Halves(RecipeData):
    """The recipe's data in two halves."""

    def __init__(self, recipe: Recipe, root: Path) -> None:
        super().__init__(recipe, root)
        rng = np.random.default_rng(recipe.seed)
        try:
            divided = [halves(source, rng) for source in self.sources]
        except ValueError as error:
            raise UnrainError(f"{root}: every source of a search needs two pictures or more") from error
        self.sides = [list(side) for side in zip(*divided, strict=True)]

    def both(self, start: int = 0) -> Both:
        """Return the batches of both halves from one step on."""
        recipe = self.recipe
        weights = [spec.weight for spec in recipe.sources]
        trained, held_back = (
            Batches(side, weights, recipe.stages, seed=recipe.seed + number, start=start)
            for number, side in enumerate(self.sides)
        )
        return Both(trained, held_back)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the remaining batches."""
        assert self.trainer is not None
        both = self.both(self.trainer.global_step // 2)
        return DataLoader(both, batch_size=None, num_workers=self.recipe.workers)


class Searching(Deraining):
    """A network whose architecture and weights are learnt in turn, each on its half of the data."""

    def __init__(self, recipe: Recipe, search: Search, **options: Any) -> None:  # noqa: ANN401  (Deraining's own)
        super().__init__(recipe, **options)
        self.automatic_optimization = False
        self.search = search

    def architecture(self) -> list[nn.Parameter]:
        """Return the strengths of the skips and the scalars of the upsampling."""
        assert isinstance(self.net, RDMC)
        return [*self.net.gates.values(), self.net.upsampling]

    def configure_optimizers(self) -> Any:  # noqa: ANN401  (Lightning's own union of eight types)
        """Return Adam for the architecture, and AdamW with its schedule for the weights."""
        search, architecture = self.search, self.architecture()
        chosen = {id(parameter) for parameter in architecture}
        weights = [parameter for parameter in self.net.parameters() if id(parameter) not in chosen]
        optimiser, schedule = build_optimiser(weights, self.recipe)
        adam = torch.optim.Adam(
            architecture,
            lr=search.architecture_lr,
            betas=search.architecture_betas,
            weight_decay=search.architecture_decay,
        )
        return [adam, optimiser], [schedule]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]  # noqa: ANN401
        """Make a step of the architecture on the half held back, then one of the weights on the other."""
        trained, held_back = batch
        optimisers: Any = self.optimizers()
        for name, optimiser, half in zip(
            ("architecture", "loss"), optimisers, (held_back, trained), strict=True
        ):
            # Neither step may see the other's gradients.
            self.zero_grad()
            self.toggle_optimizer(optimiser)
            loss = self.loss(half, self.search)
            self.manual_backward(loss)
            optimiser.step()
            self.untoggle_optimizer(optimiser)
            self.log(name, loss.detach(), prog_bar=True)
        schedule: Any = self.lr_schedulers()
        schedule.step()
        assert isinstance(self.net, RDMC)
        self.log_dict({f"skip/{name}": gate.detach() for name, gate in self.net.gates.items()})
        self.log("bilinear", self.net.upsampling.detach().softmax(0)[0])


def kept(strengths: dict[str, float], keep: int) -> tuple[str, ...]:
    """Return the strongest "down" and "up" skips by magnitude: the weights behind a skip absorb its sign."""
    ranked = sorted(strengths, key=lambda name: -abs(strengths[name]))
    return tuple(
        name for gates in (DOWN_GATES, UP_GATES) for name in [one for one in ranked if one in gates][:keep]
    )


def search(recipe: Path, data: Path, *, out: Path | None = None) -> Found:
    """Search by a recipe, resuming from the last checkpoint if there is one.

    Args:
        recipe: The TOML file, with a [search] table.
        data: The folder that the recipe's sets are in.
        out: Folder of the search; runs/RECIPE, or runs/RECIPE-search where RECIPE does not end so, when None.

    Raises:
        UnrainError: Recipe, data or gradients are not right, or the network has nothing to search.
    """
    whole = read_recipe(recipe)
    if whole.search is None:
        raise UnrainError(f"{recipe}: has no [search] table; see recipes/rdmc/rdmc-search.toml")
    plan = dataclasses.replace(whole, stages=(whole.search,), validation=())
    name = f"{recipe.stem.removesuffix('-search')}-search"
    out = out or Path("runs") / name
    pl.seed_everything(plan.seed, verbose=False)
    prior = plan.contrastive.load() if plan.loss.contrastive else None
    module = Searching(plan, whole.search, name=recipe.stem, prior=prior)
    if not isinstance(module.net, RDMC) or not module.net.gates:
        raise UnrainError(f"{recipe}: its network has no skips to choose from; take rdmc with its gates")
    if plan.initial:
        start_from(module, plan.initial)
    halved = Halves(plan, data)
    out.mkdir(parents=True, exist_ok=True)
    last = last_whole(out)
    if last is None:
        preflight(module.net, halved.both().trained.batch(0), plan, prior)
    trainer = trainer_for(plan, out, optimisers=2)
    with warnings.catch_warnings():
        # The checkpoint is meant to follow the step.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
        trainer.fit(module, halved, ckpt_path=last, weights_only=True)
    trainer.save_checkpoint(out / LAST)
    strengths = {name: float(gate.detach()) for name, gate in module.net.gates.items()}
    chosen = kept(strengths, whole.search.keep)
    found = dataclasses.replace(
        whole,
        arguments={**whole.arguments, "gates": list(chosen)},
        search=None,
        # Weights of the network with all skips do not fit the network with some of them.
        initial=None,
    )
    path = out / f"{out.name}-found.toml"
    write_recipe(found, path, f"Skips found by `unrain search {recipe.name}`, seed {plan.seed}.")
    return Found(
        skips=dict(sorted(strengths.items(), key=lambda item: -abs(item[1]))),
        kept=chosen,
        bilinear=float(module.net.upsampling.detach().softmax(0)[0]),
        recipe=path,
    )
