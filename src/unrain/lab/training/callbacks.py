"""Callbacks of a run: the progress bar, and the weights that it ends with."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, TQDMProgressBar

from unrain.lab.checkpoint import interpolate_weights, load_checkpoint, save_checkpoint
from unrain.lab.data.batches import Batches
from unrain.lab.training.module import Deraining


class Progress(TQDMProgressBar):
    """Lightning's bar, with the right total when a run resumes or has two optimisers.

    Args:
        optimisers: How many of them make a step in every batch; Lightning counts each.
    """

    def __init__(self, optimisers: int = 1) -> None:
        super().__init__(refresh_rate=20)
        self.optimisers = optimisers

    @property
    def total_train_batches(self) -> int:
        """Return the batches of the whole run."""
        return self.trainer.max_steps // self.optimisers

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return what stands behind the bar, less the name of a folder of curves."""
        found = super().get_metrics(trainer, pl_module)
        found.pop("v_num", None)
        return found

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count all batches of the run, those of its earlier parts included."""
        super().on_train_start(trainer, pl_module)
        self.train_progress_bar.reset(self.total_train_batches)
        self.train_progress_bar.initial = trainer.global_step // self.optimisers


class SaveWeights(Callback):
    """Writes weights.safetensors when the run ends.

    BatchNorm is recalibrated first, and the averaged weights are interpolated by the recipe's share.

    Args:
        out: Folder of the run.
        batches: The training data.
    """

    def __init__(self, out: Path, batches: Batches) -> None:
        self.out, self.batches = out, batches

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Recalibrate, interpolate and save."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Deraining)
        pl_module.recalibrate(self.batches)
        recipe, net = pl_module.recipe, pl_module.net
        if recipe.initial and recipe.share < 1:
            start = load_checkpoint(Path(recipe.initial.weights)).net.to(pl_module.device).state_dict()
            net.load_state_dict(interpolate_weights(start, net.state_dict(), recipe.share))
        save_checkpoint(self.out / "weights.safetensors", pl_module.checkpoint())
