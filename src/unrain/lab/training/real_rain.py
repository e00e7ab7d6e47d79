"""Real rain without ground truth: the losses on photographs of rain, beside the supervised ones.

After Semi-DRDNet (https://arxiv.org/abs/2204.02772): contrast in the space of rain layers and in that of
clean pictures (`dscr`, whose encoders are trained first), total variation of the results, and equal low
frequencies. The weights, the dark channel and the teacher are ours: the paper gives none.

None of this is needed after training.
"""

from __future__ import annotations

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

# Differences between views up to four steps of 8 bits are noise, not rain.
NOISE = 4 / 255
# Scale of the smaller copy that `darkest_view` uses.
SMALLER = 0.75


class RealBatch(NamedTuple):
    """The input of the real losses; all N x 3 x H x W float32, pictures in [0, 1].

    Attributes:
        rainy: O_r, patches of real rain.
        rain: R_r, the rain that the network found in them.
        restored: B_r, its results, not clipped.
        layers: Synthetic rain layers.
        clean: Clean patches, unpaired.
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

    def forward(self, batch: RealBatch, random: torch.Generator) -> dict[str, Tensor]:
        """Return each term by its name, an unweighted scalar with gradients for rain and restored only."""
        spec, terms = self.spec, dict[str, Tensor]()
        if self.dscr is not None:
            # In float32: the preflight checks the network's gradients in bf16, not the encoders'.
            with torch.autocast(batch.rainy.device.type, enabled=False):
                contrast = self.dscr.derainer_loss(
                    batch.rain.float(), batch.restored.float(), batch.rainy, batch.layers, batch.clean, random
                )
            terms |= {"rain_contrast": contrast.rain, "clean_contrast": contrast.clean}
        if spec.total_variation:
            terms["total_variation"] = losses.total_variation(batch.restored)
        if spec.low_pass:
            terms["low_pass"] = losses.low_pass_identity(batch.restored, batch.rainy)
        if spec.dark_channel:
            terms["dark_channel"] = losses.dark_channel(batch.restored)
        return terms

    def weigh(self, terms: dict[str, Tensor], share: float) -> Tensor:
        """Return the weighted sum of the terms.

        Args:
            terms: Those of `forward`, and any other that the recipe has a weight for.
            share: The contrast's share of its weight at this step, 0 to 1.
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


def predict(net: RecursiveNet, rainy: Tensor, recursions: int) -> Tensor:
    """Return a network's last estimate x_T, N x 3 x H x W float32 in [0, 1]."""
    estimates: list[Tensor] = net(rainy, recursions)
    return estimates[-1].float().clamp(0, 1)


def darkest_view(net: RecursiveNet, rainy: Tensor, recursions: int) -> Tensor:
    """Derain a picture, its mirror image and a smaller copy, and take the darkest of the three at each pixel.

    Rain adds light, so the darkest view has the least of it. Rain missed in one view is often found in
    another: wide streaks are thinner in the smaller copy. `NOISE` is subtracted from the difference, which
    would otherwise flatten texture. Ours; no paper has it.

    Args:
        net: The network.
        rainy: N x 3 x H x W in [0, 1].
        recursions: How many recursions it runs.

    Returns:
        N x 3 x H x W in [0, 1], nowhere lighter than the network's own result.
    """
    mirrored = predict(net, rainy.flip(-1), recursions).flip(-1)
    smaller = F.interpolate(rainy, scale_factor=SMALLER, mode="bicubic", antialias=True).clamp(0, 1)
    rain = F.interpolate(smaller - predict(net, smaller, recursions), rainy.shape[-2:], mode="bicubic")
    result = predict(net, rainy, recursions)
    darkest = torch.minimum(mirrored, (rainy - rain).clamp(0, 1))
    return result - (result - darkest - NOISE).clamp(min=0)


def contrast_share(stages: tuple[Stage, ...], step: int, warmup: int) -> float:
    """Return the contrast's share of its weight at a step: it rises from 0 to 1 once real rain is drawn."""
    first = 0
    for stage in stages:
        if stage.real:
            break
        first += stage.steps
    return min(1.0, (step - first + 1) / max(1, warmup))
