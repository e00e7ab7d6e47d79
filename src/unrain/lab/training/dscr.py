"""Dual sample-augmented contrastive regularisation (DSCR): what rain and what clean pictures look like.

The idea is Semi-DRDNet's (https://arxiv.org/abs/2204.02772): contrast in the space of rain layers and in the
space of clean pictures, with augmented samples, to learn from real rain without ground truth. The
implementation is ours. Two encoders embed pictures on the unit sphere. In the rain space, the rain layer that
a derainer finds in a real picture is pulled towards synthetic layers and away from backgrounds; in the clean
space, its result is pulled towards clean photographs and away from rainy pictures.

The encoders learn from synthetic samples alone, whose labels are certain (`DSCR.encoder_loss`); the derainer
gets gradients through its own pictures alone, with keys and encoders fixed (`DSCR.derainer_loss`). None of
this is needed after training.

`python -m unrain.lab.training.dscr --data FOLDER` trains the encoders for a minute and reports how well they
separate pictures that they have not seen.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cyclopts
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from unrain.lab.data.batches import Batches, Source
from unrain.lab.data.pairs import pictures, read
from unrain.lab.data.rain import RainMaker

# Largest gradient norm of a batch of real patches in a space, divided evenly among them. In the clean space
# it is mostly smaller; a faint rain layer's, which the encoder normalises, was a hundred times as large.
_PULL = 2.0
# Mean light above which a patch counts as rain: one without a streak would be a wrong label.
_RAIN_LEVEL = 1 / 255


class Spaces(NamedTuple):
    """One loss, a scalar, for each space."""

    rain: Tensor
    clean: Tensor


def info_nce(queries: Tensor, positives: Tensor, negatives: Tensor, temperature: float = 0.07) -> Tensor:
    """Measure how much nearer the queries are to the positives than to the negatives.

    The mean over all queries q and positives p of -log(e^(q.p/t) / (e^(q.p/t) + sum_n e^(q.n/t))): every
    positive competes with the negatives, not with the other positives. Computed in float32.

    Shape:
        queries: N x D. positives: P x D. negatives: M x D. All of length 1.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, positives, negatives = (side.float() for side in (queries, positives, negatives))
        attraction = queries @ positives.T / temperature
        repulsion = (queries @ negatives.T / temperature).logsumexp(1, keepdim=True)
        return F.softplus(repulsion - attraction).mean()


@dataclass(frozen=True)
class Augmentation:
    """Augmented samples of a batch; all randomness comes from a `torch.Generator`.

    Photographs are rotated as layers are, so that the blur of a rotation gives nothing away.

    Attributes:
        flip: Whether samples may be mirrored left to right.
        angle: Largest rotation in degrees, either way.
        intensity: Least and most factor on a layer's light.
        sums: Share of layers to which another one is added.
        exposure: Least and most factor on a photograph's light.
    """

    flip: bool = True
    angle: float = 20.0
    intensity: tuple[float, float] = (0.5, 1.5)
    sums: float = 0.5
    exposure: tuple[float, float] = (0.75, 1.25)

    def layers(self, layers: Tensor, random: torch.Generator) -> Tensor:
        """Return other rain layers, N x C x H x W in [0, 1]."""
        others = self._turn(layers, random) * _factors(layers, self.intensity, random)
        added = torch.rand(len(layers), generator=random, device=random.device) < self.sums
        # Shifted by one: a layer added to itself is only brighter.
        partners = others.roll(1, 0) * added.to(layers.device).float().view(-1, 1, 1, 1)
        return (others + partners).clamp(0, 1)

    def photos(self, photos: Tensor, random: torch.Generator) -> Tensor:
        """Return other photographs, N x C x H x W in [0, 1]."""
        return (self._turn(photos, random) * _factors(photos, self.exposure, random)).clamp(0, 1)

    def _turn(self, pictures: Tensor, random: torch.Generator) -> Tensor:
        """Mirror and rotate each picture about its centre, with reflected borders."""
        count, (height, width) = len(pictures), pictures.shape[-2:]
        draw = torch.rand(2, count, generator=random, device=random.device).to(pictures.device)
        mirror = (draw[0] < 0.5).float() * -2 + 1 if self.flip else torch.ones_like(draw[0])
        if not self.angle:
            return torch.where(mirror.view(-1, 1, 1, 1) < 0, pictures.flip(-1), pictures).float()
        turn = torch.deg2rad((draw[1] * 2 - 1) * self.angle)
        cos, sin = turn.cos(), turn.sin()
        zero = torch.zeros_like(cos)
        # In grid_sample's coordinates both sides are 2 long, whatever they are in pixels.
        matrix = torch.stack(
            [mirror * cos, -sin * height / width, zero, mirror * sin * width / height, cos, zero], 1
        ).view(-1, 2, 3)
        grid = F.affine_grid(matrix, [count, 1, height, width], align_corners=False)
        return F.grid_sample(pictures.float(), grid, padding_mode="reflection", align_corners=False)


# Samples as they are.
PLAIN = Augmentation(flip=False, angle=0.0, intensity=(1.0, 1.0), sums=0.0, exposure=(1.0, 1.0))


def _factors(pictures: Tensor, bounds: tuple[float, float], random: torch.Generator) -> Tensor:
    draw = torch.rand(len(pictures), generator=random, device=random.device).to(pictures.device)
    return (bounds[0] + (bounds[1] - bounds[0]) * draw).view(-1, 1, 1, 1)


class Encoder(nn.Module):
    """Embeds pictures on the unit sphere.

    Normalises each picture once, after the first convolution: after every one, all embeddings are nearly the
    same, and streaks on a photograph are hardly ever found (docs/semi-drdnet.md).

    Shape:
        N x 3 x H x W, sides from 32 -> N x `dimensions`.

    Args:
        dimensions: Of the embedding.
        widths: Channels after each convolution; each halves the resolution.
    """

    def __init__(self, dimensions: int = 128, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        levels: list[nn.Module] = []
        for channels_in, channels in pairwise((3, *widths)):
            levels += [
                nn.Conv2d(channels_in, channels, 3, stride=2, padding=1),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        levels.insert(1, nn.InstanceNorm2d(widths[0]))
        self.features = nn.Sequential(*levels)
        self.head = nn.Sequential(
            nn.Linear(widths[-1], widths[-1]),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(widths[-1], dimensions),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Return one vector of length 1 for each picture."""
        return F.normalize(self.head(self.features(pictures).mean((2, 3))).float(), dim=1)


class DSCR(nn.Module):
    """Two encoders and their two losses.

    Args:
        augmentation: How keys are varied.
        temperature: Of InfoNCE.
    """

    def __init__(self, augmentation: Augmentation | None = None, temperature: float = 0.07) -> None:
        super().__init__()
        self.rain, self.clean = Encoder(), Encoder()
        self.augmentation = augmentation or Augmentation()
        self.temperature = temperature

    def encoder_loss(self, layers: Tensor, clean: Tensor, random: torch.Generator) -> Spaces:
        """Compute the encoders' losses on synthetic samples.

        Rain space: layers with augmented layers, against augmented photographs. Clean space: photographs with
        augmented photographs, against photographs with augmented streaks added. Queries are not augmented,
        like a derainer's pictures later.

        Args:
            layers: Rain layers, N x 3 x H x W in [0, 1]; those without rain are left out.
            clean: Clean photographs, the same shape; need not belong to the layers.
            random: The source of randomness.

        Returns:
            Both losses; without gradient for anything but the encoders, and 0 when no layer has rain.
        """
        layers, clean = with_rain(layers.detach()), clean.detach()
        if not len(layers):
            return Spaces(clean.new_zeros(()), clean.new_zeros(()))
        streaks, photos, rainy = self._keys(layers, clean, random)
        return Spaces(
            self._compare(self.rain, layers, streaks, photos),
            self._compare(self.clean, clean, photos, rainy),
        )

    def _compare(self, encoder: Encoder, queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        sides = [queries, positives, negatives]
        embedded = encoder(torch.cat(sides)).split([len(side) for side in sides])
        return info_nce(embedded[0], embedded[1], embedded[2], self.temperature)

    def derainer_loss(
        self,
        rain: Tensor,
        restored: Tensor,
        rainy: Tensor,
        layers: Tensor,
        clean: Tensor,
        random: torch.Generator,
    ) -> Spaces:
        """Compute a derainer's losses on real pictures against synthetic layers and clean photographs.

        Patches where the derainer found no rain count 0 in the rain space, since there may be none. No
        patch's gradient is larger than its share of `_PULL`.

        Args:
            rain: R_r, the rain that the derainer found, N x 3 x H x W.
            restored: B_r, its result, the same shape.
            rainy: O_r, the real pictures, the same shape.
            layers: Synthetic rain layers, M x 3 x H x W in [0, 1]; those without rain are left out.
            clean: Clean photographs, K x 3 x H x W in [0, 1]; need not belong to the others.
            random: The source of randomness.

        Returns:
            Both losses, with gradient for `rain` and `restored` only; 0 when no layer has rain.
        """
        layers, found = with_rain(layers.detach()), rain[_has_rain(rain.detach().clamp(min=0))]
        if not len(layers):
            return Spaces(rain.sum() * 0, restored.sum() * 0)
        with torch.no_grad():
            streaks, photos, rained = self._keys(layers, clean, random)
            drops, backgrounds = self.rain(streaks), self.rain(photos)
            clean_keys, rainy_keys = self.clean(photos), self.clean(torch.cat([rainy.detach(), rained]))
        # Patches that were left out still count in the mean.
        share = len(found) / len(rain)
        return Spaces(
            share * self._pull(self.rain, found, drops, backgrounds),
            self._pull(self.clean, restored, clean_keys, rainy_keys),
        )

    def _pull(self, encoder: Encoder, pictures: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Compare pictures with embedded keys; each gradient is clipped before any weight applies."""
        if not len(pictures):
            return pictures.sum()
        with torch.enable_grad():
            queries = pictures.detach().requires_grad_()
            loss = info_nce(_fixed(encoder, queries), positives, negatives, self.temperature)
            (gradient,) = torch.autograd.grad(loss, queries)
        most = _PULL / len(pictures)
        length = gradient.flatten(1).norm(dim=1).clamp(min=most).view(-1, 1, 1, 1)
        pulled: Tensor = loss.detach() + (gradient * most / length * (pictures - pictures.detach())).sum()
        return pulled

    def _keys(self, layers: Tensor, clean: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return augmented layers, augmented photographs, and those photographs with augmented streaks."""
        streaks = self.augmentation.layers(layers, random)
        photos = self.augmentation.photos(clean, random)
        chosen = torch.randint(len(layers), (len(clean),), generator=random, device=random.device)
        more = self.augmentation.layers(layers, random)[chosen.to(layers.device)]
        return streaks, photos, (photos + more).clamp(0, 1)


def with_rain(layers: Tensor) -> Tensor:
    """Return the layers of a batch that contain rain, N x C x H x W."""
    return layers[_has_rain(layers)]


def _has_rain(layers: Tensor) -> Tensor:
    return layers.mean((1, 2, 3)) > _RAIN_LEVEL


def _fixed(encoder: Encoder, pictures: Tensor) -> Tensor:
    """Embed with gradients for the pictures, none for the encoder."""
    weights = {name: weight.detach() for name, weight in encoder.named_parameters()}
    embedded: Tensor = functional_call(encoder, weights, (pictures,))
    return embedded


@dataclass(frozen=True)
class Samples:
    """Synthetic rain layers, and the photographs under them.

    Attributes:
        source: Where patches come from; for batches, their sources.
        size: Side of the patches.
    """

    source: Source | Batches
    size: int = 64

    def batch(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return layers and the clean patches under them, each N x 3 x H x W in [0, 1]."""
        drawn = [self.source.patch(self.size, rng) for _ in range(count)]
        rainy, clean = (np.stack(side).transpose(0, 3, 1, 2) for side in zip(*drawn, strict=True))
        ground_truth = torch.from_numpy(clean).float() / 255
        return (torch.from_numpy(rainy).float() / 255 - ground_truth).clamp(min=0), ground_truth


def train_encoders(
    samples: Samples,
    *,
    steps: int = 400,
    batch: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
    augmentation: Augmentation | None = None,
) -> DSCR:
    """Train both encoders alone on synthetic rain, with Adam and a cosine down to zero.

    Args:
        samples: What to learn from.
        steps: Optimiser steps.
        batch: Patches in a step.
        lr: Learning rate at the start.
        seed: Of weights, patches and augmentation.
        augmentation: How keys are varied.
    """
    torch.manual_seed(seed)
    dscr = DSCR(augmentation)
    random, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    optimiser = torch.optim.Adam(dscr.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rain, clean = dscr.encoder_loss(*samples.batch(batch, rng), random)
        optimiser.zero_grad()
        (rain + clean).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return dscr.eval()


def separation(dscr: DSCR, known: Samples, unknown: Samples, *, count: int = 256, seed: int = 1) -> Spaces:
    """Measure how often the encoders tell new samples apart.

    A sample is assigned to the class whose mean embedding over known samples is nearer. Both classes count
    equally, so that guessing gives 0.5.

    Args:
        dscr: The encoders.
        known: Samples that the means are taken over.
        unknown: Samples to tell apart.
        count: Of each kind.
        seed: Of the patches.

    Returns:
        Share of correct answers: rain layers from backgrounds, and clean photographs from rainy ones.
    """
    rng = np.random.default_rng(seed)
    rain, clean = [], []
    with torch.inference_mode():
        for samples in (known, unknown):
            layers, photos = samples.batch(count, rng)
            rainy = (photos + layers)[_has_rain(layers)]
            rain.append((dscr.rain(with_rain(layers)), dscr.rain(photos)))
            clean.append((dscr.clean(photos), dscr.clean(rainy)))
    return Spaces(_right(*rain), _right(*clean))


def _right(known: tuple[Tensor, Tensor], unknown: tuple[Tensor, Tensor]) -> Tensor:
    """Return the share of unknown embeddings, of two classes, that are nearer to the mean of their own."""
    means = torch.stack([side.mean(0) for side in known])
    nearer = [torch.cdist(side, means).argmin(1) == label for label, side in enumerate(unknown)]
    return torch.stack([side.float().mean() for side in nearer]).mean()


def measure(
    data: Path, *, photos: int = 160, steps: int = 400, size: int = 64, count: int = 256, seed: int = 0
) -> None:
    """Train the encoders on four fifths of the photographs and rain layers, and tell the others apart.

    Args:
        data: The folder with clean/ and layers/.
        photos: How many photographs to use, evenly from all.
        steps: Optimiser steps.
        size: Side of the patches.
        count: Samples of each kind to tell apart.
        seed: Of the run.
    """
    start = time.monotonic()
    found = pictures(data / "clean")
    chosen = [found[i * len(found) // photos] for i in range(min(photos, len(found)))]
    both = [[read(path) for path in chosen], [read(path)[..., 0] for path in pictures(data / "layers")]]
    held_in, held_out = (
        [[one for i, one in enumerate(side) if (i % 5 == 4) == out] for side in both] for out in (False, True)
    )
    known, unknown, drawn = (
        Samples(Source(photos=clean, layers=layers, maker=RainMaker(scratch=scratch)), size)
        for (clean, layers), scratch in ((held_in, 0.0), (held_out, 0.0), (held_out, 1.0))
    )
    dscr = train_encoders(known, steps=steps, seed=seed)
    torch.manual_seed(seed)
    for name, encoders in (("untrained", DSCR().eval()), ("trained", dscr)):
        for kind, samples in (("held-out layers", unknown), ("rain drawn from scratch", drawn)):
            rain, clean = separation(encoders, known, samples, count=count)
            sys.stdout.write(
                f"{name}, {kind}: rain from backgrounds {rain:.1%}, clean from rainy {clean:.1%}\n"
            )
    sys.stdout.write(f"{steps} steps, {time.monotonic() - start:.0f} s\n")


if __name__ == "__main__":
    cyclopts.run(measure)
