"""The training objective: the weighted loss of each estimate, and recursions that share a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from unrain.lab.nets.layers import RecursiveNet, pad_to_multiple
from unrain.lab.training import losses
from unrain.lab.training.batch_norm import frozen_statistics
from unrain.lab.training.octaves import lifted_estimate
from unrain.lab.training.recipe import LossWeights, Recipe


def estimate_loss(
    estimate: Tensor,
    clean: Tensor,
    weights: LossWeights,
    contrast: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Add up the weighted loss terms of one estimate.

    Args:
        estimate: The network's result, N x 3 x H x W in [0, 1].
        clean: The ground truth, the same shape.
        weights: The weights of the terms.
        contrast: The contrastive prior of this batch, if it has a weight.
    """
    total = estimate.new_zeros((), dtype=torch.float32)
    if weights.l1:
        total = total + weights.l1 * losses.charbonnier(estimate, clean)
    if weights.mse:
        total = total + weights.mse * F.mse_loss(estimate.float(), clean.float())
    if weights.psnr:
        total = total - weights.psnr * losses.luma_psnr(estimate, clean)
    if weights.ssim:
        total = total + weights.ssim * (1 - losses.ssim(estimate, clean))
    if weights.fourier:
        total = total + weights.fourier * losses.fourier(estimate, clean)
    if weights.contrastive and contrast is not None:
        total = total + weights.contrastive * contrast(estimate)
    return total


def recursive_loss(
    estimates: list[Tensor],
    rainy: Tensor,
    clean: Tensor,
    recipe: Recipe,
    prior: losses.ContrastivePrior | None = None,
) -> Tensor:
    """Add up the weighted losses of x_1 .. x_T, so that every number of recursions gives a good result.

    Args:
        estimates: x_1 .. x_T, each N x 3 x H x W in [0, 1].
        rainy: The input, the same shape.
        clean: The ground truth, the same shape.
        recipe: Gives the weights.
        prior: The contrastive prior, if the recipe has one.
    """
    weights = recipe.recursion_weights[-len(estimates) :]
    supervised = zip(reversed(estimates), reversed(weights), strict=False)
    contrast = prior.between(clean, rainy) if prior is not None else None
    return torch.stack([w * estimate_loss(x, clean, recipe.loss, contrast) for x, w in supervised if w]).sum()


def shares(batch: int, weights: Sequence[float]) -> list[int]:
    """Divide a batch in proportion to weights, with at least one patch for each."""
    count, total, sizes = len(weights), sum(weights), list[int]()
    for done, weight in enumerate(accumulate(weights), 1):
        end = math.floor(batch * weight / total + 0.5)
        sizes.append(min(max(end, sum(sizes) + 1), batch - (count - done)) - sum(sizes))
    return sizes


def split_recursions(
    net: RecursiveNet, rainy: Tensor, weights: Sequence[float], lifted: float = 0.0
) -> Tensor:
    """Run one recursion on a batch: the first on one share of it, the second on the next, and so on.

    The estimates that recursions start from are computed without gradient: x_t of a share costs t - 1 forward
    recursions on that share only. One share more may start from what is found at half the size.

    Args:
        net: The network.
        rainy: N x 3 x H x W in [0, 1], at least one patch for each share.
        weights: The relative size of each recursion's share.
        lifted: That of the share which starts from the lifted estimate of the half-size picture; 0 for none.

    Returns:
        x_1 of the first share, .., x_T of the last or last but one, N x 3 x H x W.
    """
    height, width = rainy.shape[-2:]
    padded = pad_to_multiple(rainy, net.multiple)
    parts = torch.split(padded, shares(len(padded), [*weights, lifted] if lifted else weights))
    starts = []
    # As at inference: BatchNorm would learn from these recursions too, from one share's statistics alone.
    with torch.no_grad(), frozen_statistics(net):
        for done, share in enumerate(parts[: len(weights)]):
            estimate = share
            for _ in range(done):
                estimate = net.step(share, estimate)
            starts.append(estimate)
        starts += [lifted_estimate(net, share) for share in parts[len(weights) :]]
    # Autocast would reuse the weights that it rounded without gradient, and they would get none.
    torch.clear_autocast_cache()
    return net.step(padded, torch.cat(starts))[..., :height, :width]
