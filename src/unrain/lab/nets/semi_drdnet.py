"""Semi-DRDNet, "Detail-recovery Image Deraining via Dual Sample-augmented Contrastive Learning".

Yiyang Shen, Mingqiang Wei, Sen Deng, Wenhan Yang, Yongzhen Wang, Xiao-Ping Zhang, Meng Wang, Jing Qin, 2022.
https://arxiv.org/abs/2204.02772

Reproduced, from the authors' released code of the supervised network (DRD-Net) and with its number of
weights: the rain residual network with squeeze-and-excitation, R and C = O - R; the detail repair network of
structure detail context aggregation blocks, D and B = C + D.

Not reproduced here: the contrastive regularisation, which only training needs: `unrain.lab.training.dscr`.
Ours: squeeze-and-excitation pools over a window of training size instead of the whole picture, which is the
same on training patches (after Chu et al., "Improving Image Restoration by Revisiting Global Information
Aggregation", ECCV 2022), so that a tile comes out as it does within the whole picture; the last convolutions
start at zero, so that an untrained network gives the picture back; `fold` computes no feature at full
resolution; widths and depths to choose.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrain.lab.nets.layers import DilatedConv, RecursiveNet, pad_to_multiple

DetailInput = Literal["rainy", "sum", "both"]

_MULTIPLE = 4


class Separation(NamedTuple):
    """What the network makes of a picture O; all N x 3 x H x W, none clipped.

    Attributes:
        rain: R, the rain layer.
        coarse: C = O - R.
        detail: D, what C lost together with the rain; None when that branch is left off.
        final: B = C + D, or C when the detail branch is left off.
    """

    rain: Tensor
    coarse: Tensor
    detail: Tensor | None
    final: Tensor


class SqueezeExcitation(nn.Module):
    """Scales each channel by what its mean over a window around the pixel says.

    The means live on a grid of cells, and so do the scales. At the picture's border a window moves inwards:
    all have one size, and where the picture is no larger than the window there is one for all pixels, which
    is the global pooling of the paper.

    Shape:
        N x C x H x W -> the same, H and W multiples of `cell`.

    Args:
        width: Channels C.
        cell: Side of a cell in pixels.
        window: Side of the window in cells.
        squeezed: Channels in between.
    """

    def __init__(self, width: int, cell: int, window: int, squeezed: int) -> None:
        super().__init__()
        self.cell, self.window = cell, window
        self.squeeze = nn.Conv2d(width, squeezed, 1, bias=False)
        self.excite = nn.Conv2d(squeezed, width, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features, scaled."""
        cells = F.avg_pool2d(features, self.cell) if self.cell > 1 else features
        # Means of hundreds of pixels need more digits than bf16 has; the grid is small.
        with torch.autocast(features.device.type, enabled=False):
            rows, columns = (window_means(size, self.window, features.device) for size in cells.shape[-2:])
            means = rows @ (cells.float() @ columns.T)
        scales = self.excite(F.relu(self.squeeze(means))).sigmoid()
        return features * (F.interpolate(scales, scale_factor=self.cell) if self.cell > 1 else scales)


def window_means(size: int, window: int, device: torch.device) -> Tensor:
    """Return the matrix that takes `size` values to their means over windows moved inwards at both ends.

    A matrix, since a large average pool is slow in ONNX Runtime and a running sum loses digits.

    Shape:
        size x size; rows add up to 1.
    """
    index = torch.arange(size, device=device)
    first = torch.minimum(index - window // 2, index[-1] + 1 - window).clamp(min=0)[:, None]
    inside = ((index >= first) & (index < first + window)).float()
    return inside / inside.sum(1, keepdim=True)


class RainBlock(nn.Module):
    """Squeeze-and-excitation residual block of the rain residual network.

    Args:
        width: Channels.
        cell: Of the squeeze-and-excitation, in pixels, and
        window: likewise, in cells.
    """

    def __init__(self, width: int, cell: int, window: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            SqueezeExcitation(width, cell, window, squeezed=max(1, width // 16)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return N x C x H x W for N x C x H x W."""
        change: Tensor = self.body(features)
        return features + change


class ContextUnit(nn.Module):
    """Three 3x3 convolutions with dilations 1, 3 and 5 side by side, mixed by a 1x1 convolution.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(DilatedConv(width, dilation) for dilation in (1, 3, 5))
        self.mix = nn.Conv2d(3 * width, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return N x C x H x W for N x C x H x W."""
        mixed: Tensor = self.mix(torch.cat([branch(features) for branch in self.branches], 1))
        return mixed


class DetailBlock(nn.Module):
    """Structure detail context aggregation block (SDCAB) of the detail repair network.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ContextUnit(width),
            nn.BatchNorm2d(width),
            nn.PReLU(width),
            ContextUnit(width),
            nn.BatchNorm2d(width),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return N x C x H x W for N x C x H x W."""
        change: Tensor = self.body(features)
        return features + change


class Branch(nn.Module):
    """The shell that both networks share: F0, blocks, a long skip from F0, and the way out to RGB.

    Shape:
        N x channels x H x W -> N x 3 x H x W, H and W multiples of `fold`.

    Args:
        channels: Of the input.
        width: Of the features.
        fold: Pixels folded into channels inside, fold x fold.
        blocks: What is between F0 and the end of the skip.
    """

    def __init__(self, channels: int, width: int, fold: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.fold = fold
        self.entrance = nn.Sequential(nn.Conv2d(channels * fold * fold, width, 3, padding=1), nn.PReLU(width))
        self.blocks = nn.Sequential(*blocks)
        self.gather = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.exit = nn.Conv2d(width, 3 * fold * fold, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        if self.exit.bias is not None:
            nn.init.zeros_(self.exit.bias)

    def forward(self, picture: Tensor) -> Tensor:
        """Return what the branch is for: the rain layer, or the detail."""
        folded = F.pixel_unshuffle(picture, self.fold) if self.fold > 1 else picture
        first = self.entrance(folded)
        output: Tensor = self.exit(first + self.gather(self.blocks(first))).float()
        return F.pixel_shuffle(output, self.fold) if self.fold > 1 else output


class SemiDRDNet(RecursiveNet):
    """The paper's two networks; one recursion, whose two estimates are C and B.

    Weights of 0.1 and 1 on the two, with L1, are the paper's supervised loss.

    Shape:
        N x 3 x H x W in [0, 1] -> [C, B] of the same shape, any H and W (`step`: multiples of 4).

    Attributes:
        coarse_only: Leaves the detail branch off: C is all there is, at a fourth of the cost. May be changed
            at any time.
    """

    recursive = False

    def __init__(
        self,
        width: int = 64,
        rain_blocks: int = 16,
        detail_blocks: int = 16,
        detail_input: DetailInput = "rainy",
        fold: int = 1,
        window: int = 100,
        coarse_only: bool = False,
    ) -> None:
        """Lay out both networks.

        Args:
            width: Channels of the features.
            rain_blocks: Depth of the rain residual network.
            detail_blocks: Depth of the detail repair network; 0 makes none.
            detail_input: What the detail repair network sees: "rainy" O (as the authors' PyTorch code), "sum"
                O + C (as their Keras code), "both" O beside C (ours).
            fold: Pixels folded into channels at the entrance, fold x fold: 1, 2 or 4.
            window: Side of the window that squeeze-and-excitation pools over, in pixels, a multiple of 4:
                that of the training patches.
            coarse_only: See the attribute.

        Raises:
            ValueError: An argument out of its range.
        """
        super().__init__(multiple=_MULTIPLE, recursions=1)
        if fold not in (1, 2, 4):
            raise ValueError(f"fold is {fold}: give 1, 2 or 4")
        if window < _MULTIPLE or window % _MULTIPLE:
            raise ValueError(f"window is {window}: give a multiple of {_MULTIPLE} pixels")
        if detail_input not in ("rainy", "sum", "both"):
            raise ValueError(f"detail_input is {detail_input!r}: give 'rainy', 'sum' or 'both'")
        cell = _MULTIPLE // fold
        self.rain = Branch(
            3, width, fold, [RainBlock(width, cell, window // _MULTIPLE) for _ in range(rain_blocks)]
        )
        self.detail_input = detail_input
        seen = 6 if detail_input == "both" else 3
        self.detail = (
            Branch(seen, width, fold, [DetailBlock(width) for _ in range(detail_blocks)])
            if detail_blocks
            else None
        )
        self.coarse_only = coarse_only

    def separate(self, rainy: Tensor) -> Separation:
        """Take a picture apart.

        Args:
            rainy: O, N x 3 x H x W in [0, 1], any H and W.

        Returns:
            Rain layer, coarse picture, detail and final picture.
        """
        height, width = rainy.shape[-2:]
        rain, coarse, detail, final = self._separate(pad_to_multiple(rainy, self.multiple))
        seen = (..., slice(height), slice(width))
        return Separation(rain[seen], coarse[seen], None if detail is None else detail[seen], final[seen])

    def _separate(self, rainy: Tensor) -> Separation:
        rain = self.rain(rainy)
        coarse = rainy - rain
        if self.detail is None or self.coarse_only:
            return Separation(rain, coarse, None, coarse)
        if self.detail_input == "both":
            seen = torch.cat([rainy, coarse], 1)
        else:
            seen = rainy if self.detail_input == "rainy" else rainy + coarse
        detail = self.detail(seen)
        return Separation(rain, coarse, detail, coarse + detail)

    def forward(self, rainy: Tensor, recursions: int | None = None) -> list[Tensor]:
        """Derain pictures of any size.

        Args:
            rainy: O, N x 3 x H x W in [0, 1].
            recursions: 1 or None, since there is one recursion only.

        Returns:
            [C, B], or [C] when the detail branch is left off; the result is the last.

        Raises:
            ValueError: When more recursions are asked for.
        """
        if recursions not in (None, 1):
            raise ValueError(f"recursions is {recursions}, but Semi-DRDNet makes one recursion only")
        parts = self.separate(rainy)
        return [parts.coarse] if parts.detail is None else [parts.coarse, parts.final]

    def step(self, rainy: Tensor, estimate: Tensor) -> Tensor:
        """Make the one recursion.

        Args:
            rainy: O, N x 3 x H x W in [0, 1], H and W multiples of 4.
            estimate: Not looked at.

        Returns:
            B, or C when the detail branch is left off; the same shape, not clipped.
        """
        return self._separate(rainy).final

    def rain_in(self, rainy: Tensor, estimates: list[Tensor]) -> Tensor:
        """Return the rain layer R = O - C; what the detail branch gives back is no part of it."""
        return rainy - estimates[0]
