"""A network in training: what a step, a validation and a checkpoint of it are."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from unrain.errors import UnrainError
from unrain.files import one_line
from unrain.lab.checkpoint import Checkpoint, load_checkpoint, sha256
from unrain.lab.data.batches import Batches
from unrain.lab.data.rain import RGB8
from unrain.lab.hardware import hardware
from unrain.lab.metrics import psnr_ssim
from unrain.lab.nets import build, package_of
from unrain.lab.nets.layers import RecursiveNet
from unrain.lab.nets.rdmc_lite import RDMCLite
from unrain.lab.training.averaging import Averaging
from unrain.lab.training.batch_norm import frozen_statistics, recalibrate_batchnorm
from unrain.lab.training.data import resized, to_unit
from unrain.lab.training.losses import ContrastivePrior
from unrain.lab.training.objective import recursive_loss, split_recursions
from unrain.lab.training.octaves import coarse_to_fine
from unrain.lab.training.optimiser import build_optimiser
from unrain.lab.training.real_rain import RealBatch, RealRain, contrast_share, darkest_view, predict
from unrain.lab.training.recipe import Distillation, Initial, Recipe, differences, fingerprint
from unrain.lab.training.refold import refold
from unrain.lab.training.stage import Stage, stage_at

# Batches whose patches `refold` fits on.
_REFOLD_BATCHES = 64


class DistillationTeacher:
    """A trained network whose results another network learns.

    Hinton et al., "Distilling the knowledge in a neural network", 2015.
    It is not a module, so that checkpoints and weight averaging skip it and copies share it.

    Args:
        spec: Which network, its recursions, and the weight of its results.
    """

    def __init__(self, spec: Distillation) -> None:
        self.net, self.recursions = channels_last(spec.load()), spec.recursions
        self.weight = spec.weight

    def __deepcopy__(self, memo: dict[int, object]) -> DistillationTeacher:
        return self

    def __call__(self, rainy: Tensor) -> Tensor:
        """Derain patches, N x 3 x H x W in [0, 1], without gradient."""
        with torch.no_grad():
            estimates: list[Tensor] = self.net.to(rainy.device)(rainy, self.recursions)
        return estimates[-1].clamp(0, 1)


class Deraining(pl.LightningModule):
    """A network in training on a recipe.

    Args:
        recipe: How it is trained.
        name: The recipe's name, for the card.
        prior: The contrastive prior, if the recipe has one.
        teacher: The network that it is distilled from, if the recipe has one.
    """

    def __init__(
        self,
        recipe: Recipe,
        name: str = "recipe",
        prior: ContrastivePrior | None = None,
        teacher: DistillationTeacher | None = None,
    ) -> None:
        super().__init__()
        # Lightning has a `name` of its own.
        self.recipe, self.recipe_name, self.prior, self.teacher = recipe, name, prior, teacher
        self.net = channels_last(_network(recipe, name))
        self.net.levels = 2 if any(stage.lifted for stage in recipe.stages) else 1
        self.real = RealRain(recipe.real) if recipe.real else None
        if recipe.compile:
            self.net.compile()
        self.initial_card: dict[str, Any] = {}
        self.seconds = 0.0
        self._resumed = time.monotonic()
        self._errors: dict[str, list[float]] = {}

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Return the loss of one batch (N x 3 x H x W uint8: rainy and clean, and perhaps real and clean)."""
        stage = stage_at(self.recipe.stages, self.global_step)[0]
        loss = self.loss(batch, stage)
        self.log("loss", loss.detach(), prog_bar=True)
        return loss + self.real_loss(batch, stage) if stage.real else loss

    def loss(self, batch: tuple[Tensor, ...], stage: Stage) -> Tensor:
        """Compute the recipe's loss on the pairs of a batch."""
        rainy, clean = (to_unit(side) for side in batch[:2])
        estimates = self.estimates(rainy, stage)
        loss = recursive_loss(estimates, rainy, clean, self.recipe, self.prior)
        if self.teacher is None:
            return loss
        result = self.teacher(rainy)
        return loss + self.teacher.weight * recursive_loss(estimates, rainy, result, self.recipe)

    def estimates(self, rainy: Tensor, stage: Stage) -> list[Tensor]:
        """Run the network with a stage's recursions, each on its share of the batch if the stage is split."""
        recursions = stage.recursions
        with frozen_statistics(self.net) if stage.keeps_statistics else nullcontext():
            if stage.split:
                weights = self.recipe.recursion_weights[-recursions:]
                return [split_recursions(self.net, rainy, weights, stage.lifted)]
            whole: list[Tensor] = self.net(rainy, recursions)
            return whole

    def real_loss(self, batch: tuple[Tensor, ...], stage: Stage) -> Tensor:
        """Compute the loss on the real patches of a batch."""
        assert self.real is not None
        rainy, clean, real, unpaired = (to_unit(side) for side in batch)
        layers = (rainy - clean).clamp(min=0)
        # By the step: a run that was killed resumes with the same numbers.
        seed = np.random.SeedSequence((self.recipe.seed, self.global_step, self.global_rank))
        random = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        estimates = self.estimates(real, stage)
        rain = self.net.rain_in(real, estimates)
        terms = self.real(RealBatch(real, rain, estimates[-1], layers, unpaired), random)
        if self.real.spec.teacher:
            terms["teacher"] = self.teacher_loss(real, estimates, layers, stage, random)
        self.log_dict({f"real/{name}": term.detach() for name, term in terms.items()})
        share = contrast_share(self.recipe.stages, self.global_step, self.real.spec.warmup)
        return self.real.weigh(terms, share)

    def pseudo_clean(self, real: Tensor, stage: Stage) -> Tensor:
        """Derain real patches with the averaged network, without gradient."""
        assert self.real is not None
        averaging = next(one for one in self.trainer.callbacks if isinstance(one, Averaging))  # type: ignore[attr-defined]
        with torch.no_grad():
            derain = darkest_view if self.real.spec.darkest else predict
            return derain(averaging.net, real, stage.recursions)

    def teacher_loss(
        self, real: Tensor, estimates: list[Tensor], layers: Tensor, stage: Stage, random: torch.Generator
    ) -> Tensor:
        """Compute the loss against the averaged network's results of the same real patches.

        Half of the patches are derained a second time with a synthetic rain layer added, so that synthetic
        rain is learnt on the backgrounds and in the light of real rain.
        """
        target = self.pseudo_clean(real, stage)
        loss = recursive_loss(estimates, real, target, self.recipe)
        half = min(len(real), max(stage.recursions, len(real) // 2))
        chosen = torch.randint(len(layers), (half,), generator=random).to(layers.device)
        rainier = (real[:half] + layers[chosen]).clamp(0, 1)
        more = self.estimates(rainier, stage)
        return (loss + recursive_loss(more, rainier, target[:half], self.recipe)) / 2

    def on_validation_epoch_start(self) -> None:
        """Start a new validation."""
        self._errors = {}

    def validation_step(self, batch: tuple[str, RGB8, RGB8], batch_idx: int) -> None:
        """Measure Y-PSNR of every estimate of one whole picture (set, rainy, clean), and of larger copies."""
        name, rainy, clean = batch
        for t, estimate in enumerate(self.net(self._picture(rainy)), 1):
            self._errors.setdefault(f"{name}/T{t}", []).append(_psnr(estimate, clean))
        for levels in range(2, self.recipe.validation_levels + 1):
            larger = [resized(side, 2 ** (levels - 1)) for side in (rainy, clean)]
            estimate = coarse_to_fine(self.net, self._picture(larger[0]), levels)
            self._errors.setdefault(f"{name}/x{2 ** (levels - 1)}", []).append(_psnr(estimate, larger[1]))

    def _picture(self, picture: RGB8) -> Tensor:
        return to_unit(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].to(self.device))

    def on_validation_epoch_end(self) -> None:
        """Average over all pictures of all devices."""
        for name, values in self._errors.items():
            total = torch.tensor([sum(values), len(values)], dtype=torch.float64, device=self.device)
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
            self.log(f"psnr/{name}", (total[0] / total[1]).float(), rank_zero_only=True)

    def configure_optimizers(self) -> Any:  # noqa: ANN401  (Lightning's own union of eight types)
        """Return the recipe's optimiser and the stages' learning rates."""
        optimiser, schedule = build_optimiser(self.net.parameters(), self.recipe)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient's norm; Lightning's own clipping refuses fused optimisers, needlessly in bf16."""
        self.log("gradient", nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip))

    def on_train_start(self) -> None:
        """Start the clock of this part of the run, and check that all processes begin at the same step.

        Raises:
            UnrainError: They do not: another machine has not the same checkpoints.
        """
        self._resumed = time.monotonic()
        first = self.trainer.strategy.broadcast(self.global_step)
        if first != self.global_step:
            raise UnrainError(
                f"process {self.global_rank} resumes at step {self.global_step}, the first one at {first}: "
                "give all machines the same folder with --out"
            )

    def elapsed(self) -> float:
        """Return the training seconds of all parts of the run."""
        return self.seconds + time.monotonic() - self._resumed

    def card(self) -> dict[str, Any]:
        """Return the training part of the model's card."""
        recipe, trainer = self.recipe, self.trainer
        scores = {k: round(float(v), 3) for k, v in trainer.callback_metrics.items() if k.startswith("psnr/")}
        return {
            "summary": recipe.summary,
            **({"network_package": package} if (package := package_of(recipe.network)) else {}),
            "recipe": f"{self.recipe_name}.toml",
            "training_data": recipe.training_data,
            "steps": trainer.global_step,
            "wall_time": round(self.elapsed()),
            **({"went_on_from": self.initial_card} if self.initial_card else {}),
            **({"share": recipe.share} if recipe.share < 1 else {}),
            **({"distilled_from": Path(recipe.distillation.weights).name} if recipe.distillation else {}),
            "optimiser": recipe.optimiser,
            "levels": self.net.levels,
            "hardware": hardware(self.device, trainer.world_size),
            "precision": "bf16" if recipe.bf16 else "fp32",
            "torch": str(torch.__version__),
            "licence": recipe.licence,
            "validation": scores,
        }

    def checkpoint(self) -> Checkpoint:
        """Return the network with its card, to be saved."""
        return Checkpoint(self.net, self.recipe.network, self.recipe.arguments, self.card())

    def recalibrate(self, batches: Batches, count: int = 100) -> None:
        """Recalibrate BatchNorm on the last training batches, unless the last stage froze its statistics.

        Args:
            batches: The training data.
            count: How many batches.
        """
        recipe = self.recipe
        last = recipe.stages[-1]
        if last.keeps_statistics:
            return
        steps = range(max(0, recipe.steps - count), recipe.steps)
        rainy = (to_unit(batches.batch(step)[0].to(self.device)) for step in steps)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            recalibrate_batchnorm(self.net, lambda batch: self.estimates(batch, last), rainy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what rebuilds the network, the recipe, the card so far, and the clock."""
        recipe = self.recipe
        checkpoint["unrain"] = {
            "network": recipe.network,
            "arguments": recipe.arguments,
            "recipe": fingerprint(recipe),
            "card": self.card(),
            "seconds": self.elapsed(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this recipe, and set the clock to what earlier parts took.

        Raises:
            UnrainError: The recipe differs in something that changes the training.
        """
        path, ours = self.trainer.ckpt_path, checkpoint["unrain"]
        if "recipe" not in ours:
            rank_zero_warn(f"{path}: from an earlier version, without its recipe: resuming unchecked")
        elif changed := differences(ours["recipe"], fingerprint(self.recipe)):
            raise UnrainError(
                f"{path}: the run was started with another recipe, which differs in {', '.join(changed)}; "
                "undo the change, or start a new run in another folder with --out"
            )
        self.seconds = float(ours["seconds"])


def start_from(module: Deraining, initial: Initial, batches: Batches | None = None) -> None:
    """Load the weights that a recipe starts from, and note in the card where they come from.

    Args:
        module: Its network gets the weights.
        initial: Where they are.
        batches: The training patches, which `refold` fits the entrance and the exit on.

    Raises:
        UnrainError: The file is missing or damaged, is not the one that the recipe names by its SHA-256, or
            holds another network, or one that cannot be refolded to the recipe's.
    """
    path = Path(initial.weights)
    if not path.is_file():
        remedy = f"; get it with: {initial.source} > {path}" if initial.source else ""
        raise UnrainError(f"{path}: no such checkpoint{remedy}")
    if initial.sha256 and (found := sha256(path)) != initial.sha256:
        raise UnrainError(f"{path}: its SHA-256 is {found}, but the recipe starts from {initial.sha256}")
    start = load_checkpoint(path)
    if initial.refold:
        _refold(module, start.net, path, batches)
    else:
        try:
            module.net.load_state_dict(start.net.state_dict())
        except RuntimeError as error:
            reason = str(error).partition("\n")[2].strip().partition("\n")[0]
            raise UnrainError(f"{path}: weights of another network than the recipe's ({reason})") from error
    earlier = ("recipe", "steps", "wall_time", "mean_with", "went_on_from")
    module.initial_card = {key: start.card[key] for key in earlier if key in start.card}


def _refold(module: Deraining, source: RecursiveNet, path: Path, batches: Batches | None) -> None:
    net = module.net
    if batches is None or not isinstance(net, RDMCLite) or not isinstance(source, RDMCLite):
        raise UnrainError(f"{path}: refold is for training rdmc_lite from rdmc_lite; leave it out")
    pictures = [to_unit(batches.batch(step)[0]) for step in range(min(_REFOLD_BATCHES, module.recipe.steps))]
    try:
        refold(net, source.eval(), pictures, module.recipe.seed)
    except ValueError as error:
        raise UnrainError(f"{path}: cannot be refolded to the recipe's network: {error}") from error


def _network(recipe: Recipe, name: str) -> RecursiveNet:
    """Make the network that a recipe names.

    Raises:
        UnrainError: There is no such network, or it does not take these arguments.
    """
    try:
        return build(recipe.network, **recipe.arguments)
    except (TypeError, ValueError) as error:
        raise UnrainError(f"{name}.toml: network and [arguments] do not fit ({one_line(error)})") from error


def _psnr(estimate: Tensor, clean: RGB8) -> float:
    """Return the Y-PSNR of one estimate, 1 x 3 x H x W, rounded to 8 bits."""
    picture = (estimate[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return psnr_ssim.psnr(picture, clean)


def channels_last(net: RecursiveNet) -> RecursiveNet:
    """Store the weights channels last, the fastest layout for convolutions."""
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
