"""Training losses. Every loss takes N x 3 x H x W tensors in [0, 1] and returns a scalar tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = 11
_SIGMA = 1.5


def _gaussian(device: torch.device) -> Tensor:
    """Return the 11-tap Gaussian of standard deviation 1.5 that SSIM uses, sum 1."""
    at = torch.arange(_WINDOW, dtype=torch.float32, device=device) - _WINDOW // 2
    taps = torch.exp(-at.square() / (2 * _SIGMA**2))
    return taps / taps.sum()


def _blur(image: Tensor) -> Tensor:
    """Filter each channel with the separable SSIM window, valid region only."""
    channels = image.shape[1]
    taps = _gaussian(image.device).to(image.dtype)
    row = taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(image, row, groups=channels), row.transpose(2, 3), groups=channels)


def ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Measure the structural similarity, 1 for equal pictures (Wang et al., 2004).

    Gaussian window 11 x 11, sigma 1.5, constants 0.01 and 0.03 of the peak 1, averaged over the valid region
    and the RGB channels. Computed in float32 whatever the autocast precision, since variances cancel.

    Shape:
        restored, clean: N x C x H x W in [0, 1], H and W at least 11.
    """
    with torch.autocast(restored.device.type, enabled=False):
        a, b = restored.float(), clean.float()
        # One call for the five moments: the grouped convolution costs as much for one picture as for few.
        moments = _blur(torch.cat([a, b, a * a, b * b, a * b], 1))
        mean_a, mean_b, aa, bb, ab = moments.chunk(5, 1)
        var = aa - mean_a.square() + bb - mean_b.square()
        cov = ab - mean_a * mean_b
        luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a.square() + mean_b.square() + 1e-4)
        return (luminance * (2 * cov + 9e-4) / (var + 9e-4)).mean()


def charbonnier(restored: Tensor, clean: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Measure the smooth L1 distance sqrt(d^2 + epsilon^2), averaged (Charbonnier et al., 1994)."""
    return (restored.float() - clean.float()).square().add(epsilon**2).sqrt().mean()
