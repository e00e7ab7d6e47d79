"""Training: `unrain train RECIPE --data FOLDER`, readable from top to bottom.

A run lives in its folder (runs/NAME): last.ckpt to go on from, weights.safetensors (the averaged weights and
the model's card) when it ends, csv/ and tensorboard/ with the curves. A run that was killed goes on with the
same patches.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from unrain.errors import UnrainError
from unrain.lab.data.batches import Batches
from unrain.lab.data.pairs import pairs
from unrain.lab.data.rain import RGB8
from unrain.lab.export import load_checkpoint
from unrain.lab.hardware import hardware
from unrain.lab.metrics import psnr_ssim
from unrain.lab.nets import build
from unrain.lab.nets.layers import RecursiveNet, pad_to_multiple
from unrain.lab.training import losses
from unrain.lab.training.optimiser import build_optimiser
from unrain.lab.training.real_rain import RealRain, Seen, derained, driest, frozen_statistics, warmth
from unrain.lab.training.recipe import Distillation, LossWeights, Recipe, read_recipe
from unrain.lab.training.stage import Stage, stage_at

# What a layer was given, and the gradient of its output.
Call = tuple[tuple[Tensor, ...], Tensor]


def loss_of(
    restored: Tensor,
    clean: Tensor,
    weights: LossWeights,
    contrast: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Weigh and add the loss terms for one estimate.

    Args:
        restored: The estimate, N x 3 x H x W in [0, 1].
        clean: What it should be, the same shape.
        weights: Of the terms.
        contrast: The contrastive prior of this batch, where it has a weight.
    """
    total = restored.new_zeros((), dtype=torch.float32)
    if weights.l1:
        total = total + weights.l1 * losses.charbonnier(restored, clean)
    if weights.mse:
        total = total + weights.mse * F.mse_loss(restored.float(), clean.float())
    if weights.psnr:
        total = total - weights.psnr * losses.luma_psnr(restored, clean)
    if weights.ssim:
        total = total + weights.ssim * (1 - losses.ssim(restored, clean))
    if weights.fourier:
        total = total + weights.fourier * losses.fourier(restored, clean)
    if weights.contrastive and contrast is not None:
        total = total + weights.contrastive * contrast(restored)
    return total


def recursive_loss(
    estimates: list[Tensor],
    rainy: Tensor,
    clean: Tensor,
    recipe: Recipe,
    prior: losses.ContrastivePrior | None = None,
) -> Tensor:
    """Add the losses on x_1 .. x_T, so that every number of passes is a good one."""
    weights = recipe.recursion_weights[-len(estimates) :]
    supervised = zip(reversed(estimates), reversed(weights), strict=False)
    contrast = prior.between(clean, rainy) if prior is not None else None
    return torch.stack([w * loss_of(x, clean, recipe.loss, contrast) for x, w in supervised if w]).sum()


def shares(batch: int, weights: Sequence[float]) -> list[int]:
    """Divide a batch by weights, with at least one patch for each."""
    count, total, sizes = len(weights), sum(weights), list[int]()
    for done, weight in enumerate(accumulate(weights), 1):
        end = math.floor(batch * weight / total + 0.5)
        sizes.append(min(max(end, sum(sizes) + 1), batch - (count - done)) - sum(sizes))
    return sizes


def split_passes(net: RecursiveNet, rainy: Tensor, weights: Sequence[float]) -> Tensor:
    """Make one pass over a batch: the first for one share of it, the second for the next, and so on.

    What a pass starts from is computed without gradient: x_t of one share costs t - 1 forward passes of that
    share only.

    Args:
        net: The network.
        rainy: N x 3 x H x W in [0, 1], at least one patch for each pass.
        weights: Of the passes: how large each one's share is.

    Returns:
        x_1 of the first share, .., x_T of the last, N x 3 x H x W.
    """
    height, width = rainy.shape[-2:]
    padded = pad_to_multiple(rainy, net.multiple)
    starts = []
    # As at run time: BatchNorm would learn from these passes, too, and from one share's statistics alone.
    with torch.no_grad(), frozen_statistics(net):
        for done, share in enumerate(torch.split(padded, shares(len(padded), weights))):
            estimate = share
            for _ in range(done):
                estimate = net.step(share, estimate)
            starts.append(estimate)
    # Weights that autocast has rounded without gradient would be used again, and get none.
    torch.clear_autocast_cache()
    return net.step(padded, torch.cat(starts))[..., :height, :width]


class Large:
    """A trained network whose results another one learns.

    Hinton et al., "Distilling the knowledge in a neural network", 2015.
    It is no module, so that checkpoints and weight averaging pass it by, and a copy shares it.

    Args:
        spec: Which network, how many passes it makes, and what its results weigh.
    """

    def __init__(self, spec: Distillation) -> None:
        self.net, self.passes, self.weight = channels_last(spec.load()), spec.recursions, spec.weight

    def __deepcopy__(self, memo: dict[int, object]) -> Large:
        return self

    def __call__(self, rainy: Tensor) -> Tensor:
        """Return its results, N x 3 x H x W in [0, 1], for rainy patches of that shape."""
        with torch.no_grad():
            estimates: list[Tensor] = self.net.to(rainy.device)(rainy, self.passes)
        return estimates[-1].clamp(0, 1)


class Deraining(pl.LightningModule):
    """A network in training on a recipe.

    Args:
        recipe: How it is trained.
        name: The recipe's name, for the card.
        prior: The contrastive prior, if the recipe has one.
        large: The network that it is distilled from, if the recipe has one.
    """

    def __init__(
        self,
        recipe: Recipe,
        name: str = "recipe",
        prior: losses.ContrastivePrior | None = None,
        large: Large | None = None,
    ) -> None:
        super().__init__()
        # Lightning has a `name` of its own.
        self.recipe, self.recipe_name, self.prior, self.large = recipe, name, prior, large
        self.net = channels_last(build(recipe.network, **recipe.arguments))
        self.real = RealRain(recipe.real) if recipe.real else None
        if recipe.compile:
            self.net.compile()
        self.went_on_from: dict[str, Any] = {}
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
        """Run the network on the pairs of a batch and compute the recipe's loss."""
        rainy, clean = (to_unit(side) for side in batch[:2])
        estimates = self.estimates(rainy, stage)
        loss = recursive_loss(estimates, rainy, clean, self.recipe, self.prior)
        if self.large is None:
            return loss
        result = self.large(rainy)
        return loss + self.large.weight * recursive_loss(estimates, rainy, result, self.recipe)

    def estimates(self, rainy: Tensor, stage: Stage) -> list[Tensor]:
        """Run the network as a stage wants it."""
        passes = stage.recursions
        with frozen_statistics(self.net) if stage.keeps_statistics else nullcontext():
            if stage.split:
                return [split_passes(self.net, rainy, self.recipe.recursion_weights[-passes:])]
            whole: list[Tensor] = self.net(rainy, passes)
            return whole

    def real_loss(self, batch: tuple[Tensor, ...], stage: Stage) -> Tensor:
        """Run the network on the real patches of a batch and compute what is learnt from them."""
        assert self.real is not None
        rainy, clean, real, dry = (to_unit(side) for side in batch)
        layers = (rainy - clean).clamp(min=0)
        # By the step, so that a run that was killed goes on as it would have.
        seed = np.random.SeedSequence((self.recipe.seed, self.global_step, self.global_rank))
        random = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        estimates = self.estimates(real, stage)
        rain = self.net.rain_in(real, estimates)
        terms = self.real(Seen(real, rain, estimates[-1], layers, dry), random)
        if self.real.spec.teacher:
            terms["teacher"] = self.taught(real, estimates, layers, stage, random)
        self.log_dict({f"real/{name}": term.detach() for name, term in terms.items()})
        share = warmth(self.recipe.stages, self.global_step, self.real.spec.warmup)
        return self.real.weigh(terms, share)

    def guess(self, real: Tensor, stage: Stage) -> Tensor:
        """Return what the averaged network makes of real patches."""
        assert self.real is not None
        averaging = next(one for one in self.trainer.callbacks if isinstance(one, Averaging))  # type: ignore[attr-defined]
        with torch.no_grad():
            return (driest if self.real.spec.driest else derained)(averaging.net, real, stage.recursions)

    def taught(
        self, real: Tensor, estimates: list[Tensor], layers: Tensor, stage: Stage, random: torch.Generator
    ) -> Tensor:
        """Compare results of real patches with what the averaged network made of them.

        The rain that is there is to go at least as well as the teacher has it. Half of the patches are seen
        with more rain on them, too: synthetic rain on the backgrounds and in the light of real rain.
        """
        guess = self.guess(real, stage)
        loss = recursive_loss(estimates, real, guess, self.recipe)
        half = min(len(real), max(stage.recursions, len(real) // 2))
        chosen = torch.randint(len(layers), (half,), generator=random).to(layers.device)
        rainier = (real[:half] + layers[chosen]).clamp(0, 1)
        more = self.estimates(rainier, stage)
        return (loss + recursive_loss(more, rainier, guess[:half], self.recipe)) / 2

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._errors = {}

    def validation_step(self, batch: tuple[str, RGB8, RGB8], batch_idx: int) -> None:
        """Measure Y-PSNR of every estimate of one whole picture (set, rainy, clean)."""
        name, rainy_picture, clean = batch
        rainy = torch.from_numpy(rainy_picture.copy()).permute(2, 0, 1)[None].to(self.device)
        for t, estimate in enumerate(self.net(to_unit(rainy)), 1):
            picture = (estimate[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            self._errors.setdefault(f"{name}/T{t}", []).append(psnr_ssim.psnr(picture, clean))

    def on_validation_epoch_end(self) -> None:
        """Average over all pictures of all devices."""
        for name, values in self._errors.items():
            total = torch.tensor([sum(values), len(values)], dtype=torch.float64, device=self.device)
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
            self.log(f"psnr/{name}", (total[0] / total[1]).float(), rank_zero_only=True)

    def configure_optimizers(self) -> Any:  # noqa: ANN401  (Lightning's own union of eight types)
        """Return the recipe's optimiser with the stages' learning rates."""
        optimiser, schedule = build_optimiser(self.net.parameters(), self.recipe)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient's norm; Lightning's own clipping refuses fused optimisers, needlessly in bf16."""
        self.log("gradient", nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip))

    def on_train_start(self) -> None:
        """Start the clock of this part of the run."""
        self._resumed = time.monotonic()

    def elapsed(self) -> float:
        """Return the training seconds of all parts of the run."""
        return self.seconds + time.monotonic() - self._resumed

    def card(self) -> dict[str, Any]:
        """Return what the model's card says of its training."""
        recipe, trainer = self.recipe, self.trainer
        scores = {k: round(float(v), 3) for k, v in trainer.callback_metrics.items() if k.startswith("psnr/")}
        return {
            "summary": recipe.summary,
            "recipe": f"{self.recipe_name}.toml",
            "training_data": recipe.training_data,
            "steps": trainer.global_step,
            "wall_time": round(self.elapsed()),
            **({"went_on_from": self.went_on_from} if self.went_on_from else {}),
            **({"share": recipe.share} if recipe.share < 1 else {}),
            **({"distilled_from": Path(recipe.distillation.weights).name} if recipe.distillation else {}),
            "optimiser": recipe.optimiser,
            "hardware": hardware(self.device, trainer.world_size),
            "torch": str(torch.__version__),
            "licence": recipe.licence,
            "validation": scores,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what rebuilds the network, its card so far, and the clock."""
        recipe = self.recipe
        checkpoint["unrain"] = {
            "network": recipe.network,
            "arguments": recipe.arguments,
            "card": self.card(),
            "seconds": self.elapsed(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Set the clock to what earlier parts of the run took."""
        self.seconds = float(checkpoint["unrain"]["seconds"])


def start_from(module: Deraining, initial: Path) -> None:
    """Take over the weights of an earlier run, and note in the card where they come from.

    Raises:
        UnrainError: The file is missing or broken, or holds another network.
    """
    start = load_checkpoint(initial)
    try:
        module.net.load_state_dict(start.net.state_dict())
    except RuntimeError as error:
        reason = str(error).partition("\n")[2].strip().partition("\n")[0]
        raise UnrainError(f"{initial}: weights of another network than the recipe's ({reason})") from error
    earlier = ("recipe", "steps", "wall_time", "went_on_from")
    module.went_on_from = {key: start.card[key] for key in earlier if key in start.card}


def channels_last(net: RecursiveNet) -> RecursiveNet:
    """Lay the weights out with channels last, which convolutions are fastest with."""
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def to_unit(picture: Tensor) -> Tensor:
    """Turn uint8 into float32 in [0, 1], channels last."""
    return picture.to(torch.float32, memory_format=torch.channels_last).div(255)


class Pictures(pl.LightningDataModule):
    """The recipe's data: endless seeded patches, and whole test sets."""

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
        """Return the training batches from one step on."""
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
        """Return the batches that are left to train on."""
        assert self.trainer is not None
        start, rank, world = self.trainer.global_step, self.trainer.global_rank, self.trainer.world_size
        return DataLoader(self.batches(start, rank, world), batch_size=None, num_workers=self.recipe.workers)

    def val_dataloader(self) -> DataLoader[tuple[str, RGB8, RGB8]]:
        """Return this device's share of the whole test sets."""
        assert self.trainer is not None
        mine = self.tests[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(mine, batch_size=None, collate_fn=lambda one: one)  # type: ignore[arg-type]


def preflight(
    net: nn.Module,
    batch: tuple[Tensor, ...],
    recipe: Recipe,
    prior: losses.ContrastivePrior | None = None,
    *,
    tolerance: float = 0.1,
) -> dict[str, float]:
    """Compare each layer's gradients in the training precision with float32 on what one batch brings it.

    Some kernels are wrong in bf16 (dilated convolutions with channels_last on the CPU, torch 2.13: 30 to 60
    per cent off, or not a number; right ones differ by about 1 per cent); training then fails silently.
    Layer by layer, because rounding alone, through ReLU and max-pooling, turns the gradient of a whole
    network (RDMC's by 30 per cent in one pass, by 95 in two) with nothing being wrong. Parameters that start
    at zero are moved off zero in a copy first, since they would hide the gradient of everything before them.

    Args:
        net: The network; it is not changed.
        batch: Rainy and clean patches, N x 3 x H x W uint8; what else is in it is not looked at.
        recipe: Gives the precision and the loss.
        prior: The contrastive prior, if the recipe has one.
        tolerance: Largest allowed relative difference |g - g32| / |g32|.

    Returns:
        The relative difference for each parameter, and each input, of a layer that was compared.

    Raises:
        UnrainError: Gradients are off; the message names the layers.
    """
    probe = copy.deepcopy(net).train()
    generator = torch.Generator().manual_seed(0)
    for parameter in probe.parameters():
        if not parameter.detach().any():
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.data.copy_(noise)
    rainy, clean = (to_unit(side) for side in batch[:2])
    bf16 = recipe.precision == "bf16"
    calls: dict[str, list[Call]] = {}
    layers = {
        name: layer
        for name, layer in probe.named_modules()
        if not list(layer.children()) and (list(layer.parameters()) or list(layer.buffers()))
    }
    hooks = [
        layer.register_forward_hook(_recorder(calls.setdefault(name, []))) for name, layer in layers.items()
    ]
    with torch.autocast(rainy.device.type, torch.bfloat16, enabled=bf16):
        estimates = probe(rainy, max(s.recursions for s in recipe.stages))
        loss = recursive_loss(estimates, rainy, clean, recipe, prior)
    loss.backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    off: dict[str, float] = {}
    for name, layer in layers.items():
        exact, trained = (_gradients(layer, calls[name], exact=one, bf16=bf16) for one in (True, False))
        whole = max((float(g.norm()) for key, g in exact.items() if "input" not in key), default=0.0)
        for key, reference in exact.items():
            size = float(reference.norm())
            difference = float((trained[key] - reference).norm())
            # What all but cancels out is rounding (a bias before normalisation); a NaN counts in any case.
            if size > 1e-3 * whole or not math.isfinite(difference):
                off[f"{name}.{key}"] = difference / max(size, 1e-12)
    wrong = {name: error for name, error in off.items() if not error <= tolerance}
    if wrong:
        named = ", ".join(
            f"{name} ({error:.0%})" if math.isfinite(error) else f"{name} (NaN)"
            for name, error in wrong.items()
        )
        raise UnrainError(
            f"recipe: gradients in {recipe.precision} differ from float32 in {named}; "
            "compute these layers in float32 or change them (dilation, channels)"
        )
    return off


def _recorder(calls: list[Call]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """Return a hook that keeps what a layer is given, and the gradient that comes back to it."""

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given = tuple(one.detach() for one in inputs)
        output.register_hook(lambda gradient: calls.append((given, gradient)))  # type: ignore[no-untyped-call]

    return record


def _gradients(layer: nn.Module, calls: list[Call], *, exact: bool, bf16: bool) -> dict[str, Tensor]:
    """Run a layer alone, as it was called, and return the gradients of its parameters and its inputs."""
    # The reference avoids the memory layout, too, in which those kernels are wrong.
    layer = copy.deepcopy(layer).to(memory_format=torch.contiguous_format) if exact else layer  # type: ignore[call-overload]
    layer.zero_grad()
    gradients: dict[str, Tensor] = {}
    for number, (given, gradient) in enumerate(calls):
        inputs = [one.float().contiguous() if exact else one for one in given]
        inputs = [one.detach().requires_grad_() for one in inputs]
        with torch.autocast(gradient.device.type, torch.bfloat16, enabled=bf16 and not exact):
            output = layer(*inputs)
        output.backward(gradient.to(output.dtype))
        for i, one in enumerate(inputs):
            # Of a few numbers (RDMC's mixture of upsamplings), sums over all pixels, too much cancels out.
            if one.grad is not None and one.dim() == 4:
                gradients[f"input{number}.{i}"] = one.grad.float()
    named = layer.named_parameters()
    return gradients | {name: one.grad.float() for name, one in named if one.grad is not None}


class Progress(TQDMProgressBar):
    """Lightning's bar, which forgets the total when a run goes on from a checkpoint, or has two optimisers.

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

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count all batches of the run, those of its earlier parts included."""
        super().on_train_start(trainer, pl_module)
        self.train_progress_bar.reset(self.total_train_batches)
        self.train_progress_bar.initial = trainer.global_step // self.optimisers


class Averaging(WeightAveraging):
    """Averages weights and statistics over the steps; the averaged network can be asked during training.

    Args:
        decay: Of the exponential moving average; 0 for the last weights.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    @property
    def net(self) -> RecursiveNet:
        """Return the averaged network in evaluation mode."""
        # Lightning has no other way to it.
        assert self._average_model is not None
        module = self._average_model.module
        assert isinstance(module, Deraining)
        return module.net.eval()


class Finish(Callback):
    """Settles the averaged weights, goes back by the recipe's share, and writes them when the run ends."""

    def __init__(self, out: Path, batches: Batches) -> None:
        self.out, self.batches = out, batches

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save weights.safetensors."""
        if trainer.is_global_zero:
            assert isinstance(pl_module, Deraining)
            settle(pl_module, self.batches)
            plan = pl_module.recipe
            if plan.initial and plan.share < 1:
                start = load_checkpoint(Path(plan.initial)).net.to(pl_module.device).state_dict()
                net = pl_module.net
                net.load_state_dict(part_way(start, net.state_dict(), plan.share))
            save_weights(self.out / "weights.safetensors", pl_module)


def part_way(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the weights at a share of the way from some to others, 0 to 1; counters are those of the end."""
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }


def settle(module: Deraining, batches: Batches, count: int = 100) -> None:
    """Take BatchNorm's statistics anew, evenly over the last batches; other networks stay as they are.

    Those of training are a moving average over about ten batches only. The first batch takes their place:
    until then, the first passes of a split batch normalise by them. Where the last stage kept those of
    before, they stay.

    Args:
        module: The network, with the weights to be saved.
        batches: The training data.
        count: How many batches.
    """
    if module.recipe.stages[-1].keeps_statistics:
        return
    steps = module.recipe.steps
    rainy = (batches.batch(step)[0] for step in range(max(0, steps - count), steps))
    bf16 = module.recipe.precision == "bf16"
    layers = [layer for layer in module.net.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not layers:
        return
    momenta, training = [layer.momentum for layer in layers], module.net.training
    for layer in layers:
        # PyTorch's mark for a mean over all batches since the counter was at zero.
        layer.momentum = None
        layer.num_batches_tracked.zero_()  # type: ignore[union-attr]
    module.net.train()
    with torch.no_grad(), torch.autocast(module.device.type, torch.bfloat16, enabled=bf16):
        for batch in rainy:
            module.estimates(to_unit(batch.to(module.device)), module.recipe.stages[-1])
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    module.net.train(training)


def save_weights(path: Path, module: Deraining) -> None:
    """Write weights with what rebuilds the network, and its card, in the header, atomically."""
    header = {
        "network": module.recipe.network,
        "arguments": json.dumps(module.recipe.arguments),
        "card": json.dumps(module.card()),
    }
    state = {name: value.detach().cpu().contiguous() for name, value in module.net.state_dict().items()}
    part = path.with_suffix(".part")
    # Not save_file: its files are readable by nobody else.
    part.write_bytes(save(state, header))
    part.replace(path)


def trainer_for(
    plan: Recipe, out: Path, *, devices: int = 1, optimisers: int = 1, callbacks: Sequence[Callback] = ()
) -> pl.Trainer:
    """Return Lightning's trainer for all stages of a recipe.

    Args:
        plan: The recipe.
        out: Folder of the run.
        devices: How many GPUs (or CPU processes) to use.
        optimisers: How many of them make a step in every batch; Lightning counts each.
        callbacks: Besides checkpoints and the progress bar.
    """
    return pl.Trainer(
        accelerator="auto",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="bf16-mixed" if plan.precision == "bf16" else "32-true",
        max_steps=plan.steps * optimisers,
        max_epochs=-1,
        val_check_interval=min(plan.validate_every or plan.steps, plan.steps),
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if plan.validation else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=50,
        enable_model_summary=False,
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


def train(
    recipe: Path, data: Path, *, devices: int = 1, out: Path | None = None, resume: bool = True
) -> None:
    """Train a recipe, going on from the run's last checkpoint if it has one.

    Args:
        recipe: The TOML file.
        data: The folder that the recipe's sets are in.
        devices: How many GPUs (or CPU processes) to use.
        out: Folder of the run; runs/RECIPE when None.
        resume: Whether to go on from last.ckpt; if not, a run that has one is refused.

    Raises:
        UnrainError: Recipe, data or gradients are not right.
    """
    plan = read_recipe(recipe)
    out = out or Path("runs") / recipe.stem
    out.mkdir(parents=True, exist_ok=True)
    last = out / "last.ckpt"
    if last.exists() and not resume:
        raise UnrainError(f"{last}: a run is there already; give another folder with --out or let it resume")
    pl.seed_everything(plan.seed)
    prior = plan.contrastive.load() if plan.loss.contrastive else None
    large = Large(plan.distillation) if plan.distillation else None
    module = Deraining(plan, recipe.stem, prior, large)
    if plan.initial:
        start_from(module, Path(plan.initial))
    fit(module, Pictures(plan, data), out, devices=devices)


def fit(module: Deraining, pictures: Pictures, out: Path, *, devices: int = 1) -> None:
    """Train by the module's recipe, going on from the folder's last checkpoint if there is one.

    Args:
        module: The network; has the averaged weights afterwards.
        pictures: What it learns from.
        out: Folder of the run, which is there.
        devices: How many GPUs (or CPU processes) to use.

    Raises:
        UnrainError: Gradients are not right.
    """
    plan, last = module.recipe, out / "last.ckpt"
    batches = pictures.batches()
    if not last.exists():
        preflight(module.net, batches.batch(0), plan, module.prior)
        if module.real is not None:
            module.real.learn(batches, plan.stages[-1].patch, plan.seed)
    callbacks = [Averaging(plan.ema), Finish(out, batches)]
    trainer = trainer_for(plan, out, devices=devices, callbacks=callbacks)
    trainer.fit(module, pictures, ckpt_path=last if last.exists() else None, weights_only=True)
