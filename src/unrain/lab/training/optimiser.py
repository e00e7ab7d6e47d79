"""Optimisers by name (AdamW, or Muon with AdamW for all but matrices) and the learning rate's schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_step

from unrain.lab.hardware import has_bf16
from unrain.lab.training.stage import Stage, stage_at

if TYPE_CHECKING:
    from unrain.lab.training.recipe import Recipe

OPTIMISERS = ("adamw", "muon")

# A kernel with a side shorter than this has nothing to gain from orthogonalisation.
SHORTEST_SIDE = 24


def build_optimiser(
    parameters: Iterable[nn.Parameter], recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """Build a recipe's optimiser, and the schedule that sets its learning rate over all stages."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    betas = (recipe.betas[0], recipe.betas[1])
    optimiser: torch.optim.Optimizer
    if recipe.optimiser == "muon":
        optimiser = Muon(
            trained,
            momentum=recipe.momentum,
            iterations=recipe.newton_schulz,
            betas=betas,
            weight_decay=recipe.weight_decay,
            adamw_lr=recipe.adamw_lr,
        )
    else:
        # A rate of 1: the schedule below is absolute.
        optimiser = torch.optim.AdamW(
            trained, lr=1.0, betas=betas, weight_decay=recipe.weight_decay, fused=True
        )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate(recipe.stages, step))
    return optimiser, schedule


def learning_rate(stages: tuple[Stage, ...], step: int) -> float:
    """Return the learning rate of a step.

    Each stage has a linear warm-up, then a cosine to zero, or drops at the stage's milestones.
    """
    stage, within = stage_at(stages, step)
    if stage.milestones:
        decay = stage.factor ** sum(milestone <= within for milestone in stage.milestones)
    else:
        decay = 0.5 * (1 + math.cos(math.pi * within / stage.steps))
    return stage.lr * min(1.0, (within + 1) / max(1, stage.warmup)) * decay


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels, AdamW for everything else.

    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024
    (https://kellerjordan.github.io/posts/muon). The update of a kernel, as a matrix (outputs x the rest), is
    its Nesterov momentum with all singular values moved close to 1, times 0.2 sqrt(longer side), so that
    AdamW's learning rates carry over (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982).

    Under DDP each process makes the same update from the same averaged gradients.

    Args:
        parameters: What is trained.
        lr: Learning rate of the kernels.
        momentum: Of the kernels.
        iterations: Newton-Schulz iterations.
        betas: AdamW's.
        weight_decay: Decoupled, for both.
        adamw_lr: AdamW's learning rate, relative to `lr`.
        eps: AdamW's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float = 1.0,
        momentum: float = 0.9,
        iterations: int = 5,
        betas: tuple[float, float] = (0.9, 0.9),
        weight_decay: float = 0.0,
        adamw_lr: float = 1.0,
        eps: float = 1e-8,
    ) -> None:
        kinds: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for parameter in parameters:
            kinds[is_matrix(parameter)].append(parameter)
        shared = {"weight_decay": weight_decay}
        matrices = {"params": kinds[True], "lr": lr, "momentum": momentum, "iterations": iterations}
        others = {"params": kinds[False], "lr": lr * adamw_lr, "betas": betas, "eps": eps}
        super().__init__([{**one, **shared} for one in (matrices, others) if one["params"]], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Make one step; return what the closure returns."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if trained:
                (self._orthogonal if "momentum" in group else self._adamw)(group, trained)
        return loss

    def _orthogonal(self, group: dict[str, Any], kernels: list[Tensor]) -> None:
        """Update kernels; those of one shape are orthogonalised together."""
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        for kernel in kernels:
            self.state[kernel].setdefault("momentum", torch.zeros_like(kernel))
        momenta = [self.state[kernel]["momentum"] for kernel in kernels]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(kernels, 1 - group["lr"] * group["weight_decay"])
        same: defaultdict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for kernel, update in zip(kernels, ahead, strict=True):
            matrix = update.flatten(1)
            same[matrix.shape[0], matrix.shape[1]].append((kernel, matrix))
        for (rows, columns), pairs in same.items():
            updates = orthogonalised(torch.stack([matrix for _, matrix in pairs]), group["iterations"])
            rate = group["lr"] * 0.2 * math.sqrt(max(rows, columns))
            for (kernel, _), update in zip(pairs, updates, strict=True):
                kernel.sub_(update.view(kernel.shape).to(kernel.dtype), alpha=rate)

    def _adamw(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        """Update everything else with PyTorch's AdamW."""
        for weight in weights:
            if not self.state[weight]:
                self.state[weight].update(
                    step=torch.zeros((), device=weight.device),
                    mean=torch.zeros_like(weight),
                    square=torch.zeros_like(weight),
                )
        states = [self.state[weight] for weight in weights]
        adamw_step(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def is_matrix(parameter: Tensor) -> bool:
    """Return whether Muon updates a parameter: a kernel that is not depthwise and not too small."""
    if parameter.dim() != 4 or parameter.shape[1] == 1:
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= SHORTEST_SIDE


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Move all singular values of matrices close to 1 by Newton-Schulz iteration, in bf16 where there is one.

    Jordan et al.'s quintic, which is fast rather than exact: singular values end between 0.7 and 1.2.

    Args:
        matrices: K x rows x columns.
        iterations: How many.

    Returns:
        The same shape, bf16 or float32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).float()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    if has_bf16(x.device.type):
        x = x.bfloat16()
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
