"""A recipe's data: seeded training patches that never end, and whole test sets for validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from unrain.lab.data.batches import Batches
from unrain.lab.data.pairs import pairs
from unrain.lab.data.rain import RGB8
from unrain.lab.training.recipe import Recipe


class RecipeData(pl.LightningDataModule):
    """The training patches and validation pictures of a recipe.

    Args:
        recipe: Names the sets.
        root: The folder that the sets are in.

    Raises:
        UnrainError: A set is missing or damaged.
    """

    def __init__(self, recipe: Recipe, root: Path) -> None:
        super().__init__()
        self.recipe, self.root = recipe, root
        self.sources = [spec.load(root) for spec in recipe.sources]
        self.unpaired = recipe.real.load(root) if recipe.real else None
        self.tests = [
            (name.replace("/", "-"), pair.rainy, pair.clean)
            for name in recipe.validation
            for pair in pairs(root, name)
        ]

    def batches(self, start: int = 0, rank: int = 0, world: int = 1) -> Batches:
        """Return the training batches from one step on, of one device out of several."""
        recipe = self.recipe
        weights = [spec.weight for spec in recipe.sources]
        return Batches(
            self.sources,
            weights,
            recipe.stages,
            unpaired=self.unpaired,
            seed=recipe.seed,
            start=start,
            rank=rank,
            world=world,
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the remaining training batches."""
        assert self.trainer is not None
        start, rank, world = self.trainer.global_step, self.trainer.global_rank, self.trainer.world_size
        return DataLoader(self.batches(start, rank, world), batch_size=None, num_workers=self.recipe.workers)

    def val_dataloader(self) -> DataLoader[tuple[str, RGB8, RGB8]]:
        """Return this device's share of the validation pictures."""
        assert self.trainer is not None
        mine = self.tests[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(mine, batch_size=None, collate_fn=lambda one: one)  # type: ignore[arg-type]


def resized(picture: RGB8, factor: float) -> RGB8:
    """Return a picture at so many times its size, by Lanczos: its rain gets as wide as in larger pictures."""
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def to_unit(picture: Tensor) -> Tensor:
    """Turn uint8 into float32 in [0, 1], channels last."""
    return picture.to(torch.float32, memory_format=torch.channels_last).div(255)
