"""Training losses. Every loss takes N x 3 x H x W tensors in [0, 1] and returns a scalar tensor.

A new loss also needs a weight in `recipe.LossWeights` and a term in `objective.estimate_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unrain.lab.nets.vgg import VGG19

_WINDOW = 11
_SIGMA = 1.5
_CONTRAST_EPSILON = 1e-7
# So wide a filter leaves only the mean light of thin, long streaks.
_LOW_PASS = 8.0
_DARK_WINDOW = 15

# Which outputs of VGG-19 the contrastive prior compares, and their weights w_i.
CONTRAST_LAYERS: dict[str, dict[str, float]] = {
    # The paper's numbers read as ordinals of convolutions, as in AECR-Net.
    "paper": {"relu1_1": 1 / 32, "relu2_1": 1 / 16, "relu3_1": 1 / 8, "relu4_1": 1 / 4, "relu5_1": 1.0},
    # The same numbers read as indices of layers, as the released code does.
    "released": {"relu1_1": 1 / 32, "relu1_2": 1 / 16, "pool1": 1 / 8, "relu2_2": 1 / 4, "conv3_2": 1.0},
    # The paper's first three: a third of its arithmetic, for the CPU.
    "cheap": {"relu1_1": 1 / 32, "relu2_1": 1 / 16, "relu3_1": 1 / 8},
}


def _gaussian(device: torch.device) -> Tensor:
    """Return the 11-tap Gaussian of standard deviation 1.5 that SSIM uses, sum 1."""
    at = torch.arange(_WINDOW, dtype=torch.float32, device=device) - _WINDOW // 2
    taps = torch.exp(-at.square() / (2 * _SIGMA**2))
    return taps / taps.sum()


def _blur(image: Tensor) -> Tensor:
    """Filter each channel with the separable SSIM window, valid region only.

    As two products with small matrices, which take half the time of grouped convolutions on a CPU.
    """
    rows, columns = (_windows(size, image.device) for size in image.shape[-2:])
    return rows @ (image @ columns.T)


def _windows(size: int, device: torch.device) -> Tensor:
    """Return the matrix that filters so many values: a row of taps for each place of the window."""
    first = torch.arange(size - _WINDOW + 1, device=device)[:, None]
    taps = _gaussian(device).expand(len(first), -1)
    return torch.zeros(len(first), size, device=device).scatter_(
        1, first + torch.arange(_WINDOW, device=device), taps
    )


def ssim(restored: Tensor, clean: Tensor) -> Tensor:
    """Measure the structural similarity, 1 for equal pictures (Wang et al., 2004).

    Gaussian window 11 x 11, sigma 1.5, constants 0.01 and 0.03 of the peak 1, averaged over the valid region
    and the RGB channels. Computed in float32 whatever the autocast precision, since variances cancel.

    Shape:
        restored, clean: N x C x H x W in [0, 1], H and W at least 11.
    """
    with torch.autocast(restored.device.type, enabled=False):
        # Contiguous, for the products.
        a, b = (picture.float().contiguous() for picture in (restored, clean))
        # Only the sum of the two variances is needed.
        mean_a, squares, ab = _blur(torch.cat([a, a * a + b * b, a * b], 1)).chunk(3, 1)
        mean_b = _blur(b)
        means, both = mean_a.square() + mean_b.square(), mean_a * mean_b
        var, cov = squares - means, ab - both
        return ((2 * both + 1e-4) * (2 * cov + 9e-4) / ((means + 1e-4) * (var + 9e-4))).mean()


def charbonnier(restored: Tensor, clean: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Measure the smooth L1 distance sqrt(d^2 + epsilon^2), averaged (Charbonnier et al., 1994)."""
    return (restored.float() - clean.float()).square().add(epsilon**2).sqrt().mean()


def luma_psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Measure the PSNR on Y in decibels, averaged over the pictures: the score itself, negated a loss.

    Y is BT.601's without rounding (65.481 R + 128.553 G + 24.966 B of 255). As in HINet (Chen et al., 2021),
    with 1e-6 added to the squared error: a perfect picture counts 60 dB and has a finite gradient.
    """
    luma = restored.new_tensor([65.481, 128.553, 24.966], dtype=torch.float32) / 255
    error = torch.einsum("nchw,c->nhw", restored.float() - clean.float(), luma)
    return -10 * error.square().mean((1, 2)).add(1e-6).log10().mean()


def fourier(restored: Tensor, clean: Tensor) -> Tensor:
    """Measure how far both pictures' spectra are apart: the mean |difference| of real and imaginary parts.

    The Fourier transform is orthonormal, so that it counts like a distance of pixels. As the frequency
    reconstruction loss of MIMO-UNet (Cho et al., ICCV 2021), at one scale.
    """
    # No half spectrum: its columns would count once where they and their mirror images stand for two.
    return torch.view_as_real(torch.fft.fft2(restored.float() - clean.float(), norm="ortho")).abs().mean()


def total_variation(restored: Tensor) -> Tensor:
    """Measure how much neighbouring pixels differ: the mean |difference| down plus that across."""
    picture = restored.float()
    down = (picture[..., 1:, :] - picture[..., :-1, :]).abs().mean()
    return down + (picture[..., 1:] - picture[..., :-1]).abs().mean()


def low_pass(picture: Tensor) -> Tensor:
    """Filter with a Gaussian of standard deviation 8 pixels, renormalised at the border.

    As two products with small matrices, in float32.

    Shape:
        N x C x H x W -> the same.
    """
    with torch.autocast(picture.device.type, enabled=False):
        rows, columns = (_smoothing(size, picture.device) for size in picture.shape[-2:])
        return rows @ (picture.float() @ columns.T)


def _smoothing(size: int, device: torch.device) -> Tensor:
    at = torch.arange(size, dtype=torch.float32, device=device)
    taps = torch.exp(-(at[:, None] - at).square() / (2 * _LOW_PASS**2))
    return taps / taps.sum(1, keepdim=True)


def low_pass_identity(restored: Tensor, rainy: Tensor) -> Tensor:
    """Measure the change of colours and light: the mean |difference| of both pictures' low frequencies.

    Removing streaks hardly changes them. It needs no ground truth, so it applies to real rain too.
    """
    return low_pass(restored.float() - rainy.float()).abs().mean()


def dark_channel(restored: Tensor) -> Tensor:
    """Measure the mean dark channel: the least of all channels over 15 x 15 pixels (He et al., CVPR 2009).

    Near 0 for clean photographs without much sky; rain and its veil raise it.
    """
    least = restored.float().amin(1, keepdim=True)
    return -F.max_pool2d(-least, _DARK_WINDOW, stride=1, padding=_DARK_WINDOW // 2).mean()


def contrastive(
    restored: Sequence[Tensor],
    clean: Sequence[Tensor],
    rainy: Sequence[Tensor],
    weights: Sequence[float],
    *,
    per_layer: bool = False,
) -> Tensor:
    """Pull the restored picture towards the clean one and away from the rainy one, in feature space.

    sum_i w_i |phi_i(x) - phi_i(B)| / (sum_i w_i |phi_i(x) - phi_i(O)| + 1e-7), where |.| is the mean absolute
    difference over all elements of a layer, as in AECR-Net (Wu et al., 2021) and RDMC (2023), so that large
    layers count no more than small ones. Only the anchor has a gradient. Distances are float32 whatever the
    precision of the features.

    Args:
        restored: Features phi_i(x) of the anchor, one tensor for each layer.
        clean: Those of the positive; detached here.
        rainy: Those of the negative; detached here.
        weights: w_i.
        per_layer: Add the ratios of the layers, as AECR-Net does, instead of dividing the sums.

    Returns:
        A scalar: 0 for the clean picture; very large for the rainy picture itself.
    """
    near, far = (
        torch.stack([F.l1_loss(x.float(), y.detach().float()) for x, y in zip(restored, others, strict=True)])
        for others in (clean, rainy)
    )
    w = near.new_tensor(weights)
    if per_layer:
        return (w * near / (far + _CONTRAST_EPSILON)).sum()
    return (w * near).sum() / ((w * far).sum() + _CONTRAST_EPSILON)


class ContrastivePrior:
    """The contrastive prior L_c on features of a frozen VGG-19.

    It is not a module, so that checkpoints and weight averaging skip VGG-19 and copies share it.

    Args:
        vgg: The features.
        layers: A key of `CONTRAST_LAYERS`.
        per_layer: See `contrastive`.
        inert: Detach the restored picture, as the released code does: the loss is then a number without any
            effect (for the ablation).
        patches: Compare only so many patches of a batch, for less time; 0 for all of them.
    """

    def __init__(
        self,
        vgg: VGG19,
        layers: str = "paper",
        *,
        per_layer: bool = False,
        inert: bool = False,
        patches: int = 0,
    ) -> None:
        self.vgg, self.per_layer, self.inert = vgg, per_layer, inert
        self.patches = patches or None
        self.weights = CONTRAST_LAYERS[layers]

    def __deepcopy__(self, memo: dict[int, object]) -> ContrastivePrior:
        return self

    def between(self, clean: Tensor, rainy: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the loss of a restored picture, given the clean and the rainy picture.

        Args:
            clean: The positive, N x 3 x H x W in [0, 1].
            rainy: The negative, the same shape.
        """
        vgg = self.vgg.to(clean.device)
        with torch.no_grad():
            both = torch.cat([clean[: self.patches], rainy[: self.patches]])
            targets = [layer.chunk(2) for layer in vgg(both, self.weights)]
        positive, negative = zip(*targets, strict=True)

        def loss(restored: Tensor) -> Tensor:
            compared = restored[: self.patches]
            anchor = vgg(compared.detach() if self.inert else compared, self.weights)
            weights = list(self.weights.values())
            return contrastive(anchor, positive, negative, weights, per_layer=self.per_layer)

        return loss
