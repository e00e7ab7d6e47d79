"""Real rain without ground truth: what any network learns from it beside its supervised training.

After Semi-DRDNet (https://arxiv.org/abs/2204.02772): contrast in the space of rain layers and in that of
clean pictures (`dscr`; its encoders learn before all else), total variation of the results and equal low
frequencies. The weights are our choice, and so are the dark channel and the teacher: the paper does
not say.

Nothing of this is needed once training is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrain.lab.data.batches import Batches
from unrain.lab.nets.layers import RecursiveNet
from unrain.lab.training import losses
from unrain.lab.training.dscr import DSCR, PLAIN, Augmentation, Samples, train_encoders
from unrain.lab.training.recipe import Real
from unrain.lab.training.stage import Stage

# What one view is darker than the network's result by noise, not by rain: four steps of 8 bits.
NOISE = 4 / 255
# Side of the smaller copy that `driest` looks at, as a part of the picture's.
SMALLER = 0.75


class Seen(NamedTuple):
    """What the terms are computed from; all N x 3 x H x W float32, pictures in [0, 1].

    Attributes:
        rainy: O_r, patches of real rain.
        rain: R_r, the rain that the network found in them.
        restored: B_r, its results, not clipped.
        layers: Synthetic rain layers.
        clean: Clean patches that do not belong to the real ones.
    """

    rainy: Tensor
    rain: Tensor
    restored: Tensor
    layers: Tensor
    clean: Tensor


class RealRain(nn.Module):
    """The terms of the loss on real patches, and the encoders that two of them need.

    Args:
        spec: The weights of the terms; one of weight 0 is not computed.
    """

    def __init__(self, spec: Real) -> None:
        super().__init__()
        self.spec = spec
        self.augmentation = Augmentation() if spec.augment else PLAIN
        contrast = spec.rain_contrast or spec.clean_contrast
        self.dscr = DSCR(self.augmentation).requires_grad_(False) if contrast else None

    def learn(self, batches: Batches, size: int, seed: int) -> None:
        """Train the encoders, if there are any, on the synthetic patches of a run."""
        if self.dscr is not None:
            samples = Samples(batches, size)
            steps = self.spec.encoder_steps
            trained = train_encoders(samples, steps=steps, seed=seed, augmentation=self.augmentation)
            self.dscr.load_state_dict(trained.state_dict())

    def forward(self, seen: Seen, random: torch.Generator) -> dict[str, Tensor]:
        """Return each term by its name, a scalar, not weighted; gradients are for rain and restored only."""
        spec, terms = self.spec, dict[str, Tensor]()
        if self.dscr is not None:
            # In float32: nobody checks the encoders' gradients in bf16, as the preflight does the network's.
            with torch.autocast(seen.rainy.device.type, enabled=False):
                contrast = self.dscr.derainer_loss(
                    seen.rain.float(), seen.restored.float(), seen.rainy, seen.layers, seen.clean, random
                )
            terms |= {"rain_contrast": contrast.rain, "clean_contrast": contrast.clean}
        if spec.total_variation:
            terms["total_variation"] = losses.total_variation(seen.restored)
        if spec.low_pass:
            terms["low_pass"] = losses.low_pass_identity(seen.restored, seen.rainy)
        if spec.dark_channel:
            terms["dark_channel"] = losses.dark_channel(seen.restored)
        return terms

    def weigh(self, terms: dict[str, Tensor], share: float) -> Tensor:
        """Weigh the terms and add them up.

        Args:
            terms: Those of `forward`, and any other that the recipe has a weight for.
            share: Of its weight that the contrast has at this step, 0 to 1.
        """
        spec = self.spec
        weights = {
            "rain_contrast": share * spec.rain_contrast,
            "clean_contrast": share * spec.clean_contrast,
            "total_variation": spec.total_variation,
            "low_pass": spec.low_pass,
            "dark_channel": spec.dark_channel,
            "teacher": spec.teacher,
        }
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def derained(net: RecursiveNet, rainy: Tensor, recursions: int) -> Tensor:
    """Return a network's last estimate x_T, N x 3 x H x W float32 in [0, 1]."""
    estimates: list[Tensor] = net(rainy, recursions)
    return estimates[-1].float().clamp(0, 1)


def driest(net: RecursiveNet, rainy: Tensor, recursions: int) -> Tensor:
    """Derain a picture, its mirror image and a smaller copy, and take the darkest of the three at each pixel.

    Rain is light that was added, so the darkest has the least of it. Rain that escapes a network the one way
    is often found the other: wide streaks are thinner in the smaller copy. Darker by less than `NOISE` does
    not count, and beyond it what exceeds it: texture would be levelled. Ours; no paper has it.

    Args:
        net: The network.
        rainy: N x 3 x H x W in [0, 1].
        recursions: How many passes it makes.

    Returns:
        N x 3 x H x W in [0, 1], nowhere lighter than what the network makes of the picture as it is.
    """
    mirrored = derained(net, rainy.flip(-1), recursions).flip(-1)
    smaller = F.interpolate(rainy, scale_factor=SMALLER, mode="bicubic", antialias=True).clamp(0, 1)
    rain = F.interpolate(smaller - derained(net, smaller, recursions), rainy.shape[-2:], mode="bicubic")
    result = derained(net, rainy, recursions)
    darkest = torch.minimum(mirrored, (rainy - rain).clamp(0, 1))
    return result - (result - darkest - NOISE).clamp(min=0)


def warmth(stages: tuple[Stage, ...], step: int, warmup: int) -> float:
    """Return the share of its weight that the contrast has at a step: from 0 to 1 once real rain begins."""
    first = 0
    for stage in stages:
        if stage.real:
            break
        first += stage.steps
    return min(1.0, (step - first + 1) / max(1, warmup))


@contextmanager
def frozen_statistics(net: nn.Module) -> Iterator[None]:
    """Let a network normalise by the statistics that it has, as at run time, and learn none from a batch."""
    layers = [one for one in net.modules() if isinstance(one, nn.BatchNorm2d) and one.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
