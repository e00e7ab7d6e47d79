"""Training: `unrain train RECIPE --data FOLDER`, readable from top to bottom.

A run lives in its folder (runs/NAME): last.ckpt, which it resumes from with the same patches after it was
killed, and previous.ckpt in case that one is damaged; weights.safetensors (the averaged weights and the
model's card) at the end; csv/ and tensorboard/ with the curves.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from unrain.errors import UnrainError, UsageError
from unrain.lab.training.averaging import Averaging
from unrain.lab.training.callbacks import Progress, SaveWeights
from unrain.lab.training.data import RecipeData
from unrain.lab.training.module import Deraining, DistillationTeacher, start_from
from unrain.lab.training.preflight import preflight
from unrain.lab.training.recipe import Recipe, read_recipe
from unrain.lab.training.resume import CheckpointFiles, checkpoints, last_whole


def train(
    recipe: Path,
    data: Path,
    *,
    devices: int = 1,
    nodes: int = 1,
    out: Path | None = None,
    resume: bool = True,
) -> Path | None:
    """Train a recipe, resuming from the run's last checkpoint if there is one.

    Args:
        recipe: The TOML file.
        data: The folder that the recipe's sets are in.
        devices: How many GPUs (or CPU processes) to use on each machine.
        nodes: How many machines there are; each runs this, started by torchrun or Slurm.
        out: Folder of the run, which all machines share; runs/RECIPE when None.
        resume: Whether to resume from the last checkpoint; if not, a folder that has one is refused.

    Returns:
        The trained weights; None in processes that leave them to another to write.

    Raises:
        UnrainError: Recipe, data or gradients are not right, or the checkpoint is damaged or of another
            recipe.
    """
    plan = read_recipe(recipe)
    check_processes(plan, devices, nodes)
    out = out or Path("runs") / recipe.stem
    out.mkdir(parents=True, exist_ok=True)
    result = out / "weights.safetensors"
    if not resume and (there := checkpoints(out)):
        raise UnrainError(
            f"{there[0]}: a run is there already; give another folder with --out or let it resume"
        )
    if plan.initial and Path(plan.initial.weights) == result.resolve():
        raise UnrainError(
            f"{result}: the recipe starts from this file and would overwrite it; give another --out"
        )
    pl.seed_everything(plan.seed, verbose=False)
    prior = plan.contrastive.load() if plan.loss.contrastive else None
    teacher = DistillationTeacher(plan.distillation) if plan.distillation else None
    module = Deraining(plan, recipe.stem, prior, teacher)
    patches = RecipeData(plan, data)
    if plan.initial:
        start_from(module, plan.initial, patches.batches())
    writes = fit(module, patches, out, devices=devices, nodes=nodes)
    return result if writes else None


def check_processes(plan: Recipe, devices: int, nodes: int) -> None:
    """Check that there are as many processes as were asked for, and that they can share every batch.

    Raises:
        UsageError: Whoever started the processes started another number, or a batch cannot be shared.
    """
    processes = devices * nodes
    started = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS", "")
    if nodes > 1 and not started:
        raise UsageError(
            f"--nodes {nodes}: start it on every machine with torchrun or srun, for example torchrun "
            f"--nnodes {nodes} --nproc-per-node {devices} -m unrain train"
        )
    if "WORLD_SIZE" in os.environ and int(os.environ.get("LOCAL_WORLD_SIZE", devices)) != devices:
        raise UsageError(
            f"--devices {devices}: but torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes here, "
            "give both the same number"
        )
    if nodes > 1 and int(started) != processes:
        raise UsageError(
            f"--devices {devices} --nodes {nodes}: make {processes} processes, but {started} were started"
        )
    for stage in plan.stages:
        if stage.batch % processes or stage.real % processes:
            raise UsageError(
                f"a batch of {stage.batch if stage.batch % processes else stage.real} cannot be shared out "
                f"evenly to {processes} processes, choose another number of --devices or --nodes"
            )


def fit(module: Deraining, data: RecipeData, out: Path, *, devices: int = 1, nodes: int = 1) -> bool:
    """Train by the module's recipe, resuming from the folder's last checkpoint if there is one.

    Args:
        module: The network; has the averaged weights afterwards.
        data: The training and validation pictures.
        out: Folder of the run; it exists.
        devices: How many GPUs (or CPU processes) to use on each machine.
        nodes: How many machines there are.

    Returns:
        Whether this process writes the result.

    Raises:
        UnrainError: Gradients are not right, or the checkpoint is damaged or of another recipe.
    """
    plan, last = module.recipe, last_whole(out)
    batches = data.batches()
    if last is None:
        preflight(module.net, batches.batch(0), plan, module.prior)
        if module.real is not None:
            module.real.learn(batches, plan.stages[-1].patch, plan.seed)
    callbacks = [Averaging(plan.ema), SaveWeights(out, batches)]
    trainer = trainer_for(plan, out, devices=devices, nodes=nodes, callbacks=callbacks)
    trainer.fit(module, data, ckpt_path=last, weights_only=True)
    return trainer.is_global_zero


def trainer_for(
    plan: Recipe,
    out: Path,
    *,
    devices: int = 1,
    nodes: int = 1,
    optimisers: int = 1,
    callbacks: Sequence[Callback] = (),
) -> pl.Trainer:
    """Return Lightning's trainer for all stages of a recipe.

    Args:
        plan: The recipe.
        out: Folder of the run.
        devices: How many GPUs (or CPU processes) to use on each machine.
        nodes: How many machines there are.
        optimisers: How many of them make a step in every batch; Lightning counts each.
        callbacks: Besides checkpoints and the progress bar.
    """
    # Lightning advertises services, and warns of what is meant: a run that resumes has files in its folder.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
    return pl.Trainer(
        accelerator="auto",
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision="bf16-mixed" if plan.bf16 else "32-true",
        max_steps=plan.steps * optimisers,
        max_epochs=-1,
        val_check_interval=min(plan.validate_every or plan.steps, plan.steps),
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if plan.validation else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=50,
        enable_model_summary=False,
        plugins=[CheckpointFiles()],
        logger=[TensorBoardLogger(out, name="", version="tensorboard"), CSVLogger(out, name="csv")],
        callbacks=[
            ModelCheckpoint(
                out,
                "last",
                every_n_train_steps=plan.checkpoint_every * optimisers,
                save_top_k=1,
                enable_version_counter=False,
            ),
            LearningRateMonitor("step"),
            Progress(optimisers),
            *callbacks,
        ],
    )
