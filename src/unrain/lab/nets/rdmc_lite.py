"""RDMC-lite: the three ideas of RDMC in blocks that cost a fraction.

The network as published (https://arxiv.org/abs/2305.18092) is in `rdmc.py`.

What is the paper's: the recursion x_t = O + g(concat[O, x_{t-1}]) with shared weights; multi-scale
extraction by three parallel 3x3 convolutions with dilations 1, 2 and 3 at every encoder level; cross-level
recruitment, gated skips from the encoder levels above and below into each decoder level, each times one
learnt scalar.

What is ours: the 2x2 pixel folding before the first convolution, so that no feature is computed at full
resolution; gated depthwise blocks (after Chen et al., "Simple Baselines for Image Restoration", ECCV 2022,
without its global pooling, so that tiles equal the whole picture) in place of BN-ReLU double convolutions;
three levels in place of five; one encoder whose dilations share a block in place of three encoders;
addition in place of concatenation; a limit to the colour of the layer that is taken away, since rain has
hardly any of its own; and a threshold below which nothing is taken away: that is grain rather than rain.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrain.lab.nets.layers import RecursiveNet


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel, N x C x H x W."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise, then scale and shift each channel."""
        # In bf16 the CPU adds up the gradients of scale and shift in bf16, too: 50 to 80 per cent off.
        return super().forward(features.float().permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _in_parts(features: Tensor, conv: nn.Conv2d, parts: int, norm: ChannelNorm | None = None) -> list[Tensor]:
    """Normalise, if wanted, convolve 1 x 1 and split by channels.

    Exported to ONNX, each part has a convolution of its own, the normalisation is plain arithmetic, and its
    scale and shift are in the convolution's weights. ONNX Runtime then re-orders less memory on the way.
    """
    if not torch.onnx.is_in_onnx_export():
        return list(conv(features if norm is None else norm(features)).chunk(parts, 1))
    kernel, shift = conv.weight, conv.bias
    assert shift is not None
    if norm is not None:
        shift = shift + kernel.flatten(1) @ norm.bias
        kernel = kernel * norm.weight[:, None, None]
        pixels = features.flatten(2)
        mean = features.new_full((1, 1, features.shape[1]), 1 / features.shape[1])
        centred = pixels - mean @ pixels
        features = (centred * torch.rsqrt(mean @ centred.square() + norm.eps)).view_as(features)
    size = len(kernel) // parts
    return [
        F.conv2d(features, kernel[at : at + size], shift[at : at + size])
        for at in range(0, len(kernel), size)
    ]


def _folded(pictures: Tensor, conv: nn.Conv2d, fold: int) -> Tensor:
    """Fold pixels into channels, and convolve; exported to ONNX, one convolution with a stride does both."""
    if not torch.onnx.is_in_onnx_export():
        return conv(F.pixel_unshuffle(pictures, fold))  # type: ignore[no-any-return]
    count, _, high, wide = conv.weight.shape
    kernel = conv.weight.view(count, -1, fold, fold, high, wide).permute(0, 1, 4, 2, 5, 3)
    kernel = kernel.reshape(count, -1, high * fold, wide * fold)
    return F.conv2d(pictures, kernel, conv.bias, stride=fold, padding=(high // 2 * fold, wide // 2 * fold))


def _unfolded(features: Tensor, fold: int) -> Tensor:
    """Unfold channels into pixels of three colours; exported to ONNX, each colour for itself.

    The planes of one colour each are what the arithmetic that follows is fastest with.
    """
    if not torch.onnx.is_in_onnx_export():
        return F.pixel_shuffle(features, fold)
    return torch.cat([F.pixel_shuffle(colour, fold) for colour in features.chunk(3, 1)], 1)


def _largest(planes: Tensor) -> Tensor:
    """Return the largest of a pixel's three values, N x 1 x H x W."""
    if not torch.onnx.is_in_onnx_export():
        return planes.amax(1, keepdim=True)
    red, green, blue = planes.chunk(3, 1)
    return torch.maximum(torch.maximum(red, green), blue)


def _scaled(features: Tensor, conv: nn.Conv2d, scale: Tensor) -> Tensor:
    """Convolve 1 x 1 and multiply each channel, by way of the weights: they are fewer than the pixels."""
    assert conv.bias is not None
    return F.conv2d(features, conv.weight * scale.view(-1, 1, 1, 1), conv.bias * scale.flatten())


class MultiScale(nn.Module):
    """Multi-scale extraction: one group of channels for each dilation, gated, added to the input.

    Args:
        width: Channels. Dilated convolutions have right gradients in bf16 on the CPU only where a group has 8
            channels or a multiple of 16.
        dilations: One group each.
    """

    def __init__(self, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        if width % len(dilations):
            raise ValueError(
                f"width {width} does not divide into {len(dilations)} groups, one for each dilation"
            )
        group = width // len(dilations)
        self.norm = ChannelNorm(width)
        self.spread = nn.Conv2d(width, width, 1)
        self.branches = nn.ModuleList(nn.Conv2d(group, group, 3, padding=d, dilation=d) for d in dilations)
        self.mix = nn.Conv2d(width, 2 * width, 1)
        self.scale = nn.Parameter(torch.full((1, width, 1, 1), 0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Return N x C x H x W for N x C x H x W."""
        groups = _in_parts(features, self.spread, len(self.branches), self.norm)
        scales = [branch(group) for branch, group in zip(self.branches, groups, strict=True)]
        value, gate = _in_parts(torch.cat(scales, 1), self.mix, 2)
        scaled: Tensor = value * gate * self.scale
        return features + scaled


class GatedBlock(nn.Module):
    """Two gated residual branches: depthwise 3x3 in the first, pointwise in the second.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(width)
        self.expand1 = nn.Conv2d(width, 2 * width, 1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.project1 = nn.Conv2d(width, width, 1)
        self.scale1 = nn.Parameter(torch.full((1, width, 1, 1), 0.1))
        self.norm2 = ChannelNorm(width)
        self.expand2 = nn.Conv2d(width, 2 * width, 1)
        self.project2 = nn.Conv2d(width, width, 1)
        self.scale2 = nn.Parameter(torch.full((1, width, 1, 1), 0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Return N x C x H x W for N x C x H x W."""
        if torch.onnx.is_in_onnx_export():
            kernel, shift = self.depthwise.weight, self.depthwise.bias
            assert shift is not None
            half = len(kernel) // 2
            value, gate = (
                F.conv2d(part, kernel[at : at + half], shift[at : at + half], padding=1, groups=half)
                for at, part in zip((0, half), _in_parts(features, self.expand1, 2, self.norm1), strict=True)
            )
        else:
            value, gate = self.depthwise(self.expand1(self.norm1(features))).chunk(2, 1)
        features = features + _scaled(value * gate, self.project1, self.scale1)
        value, gate = _in_parts(features, self.expand2, 2, self.norm2)
        return features + _scaled(value * gate, self.project2, self.scale2)


class RDMCLite(RecursiveNet):
    """RDMC-lite.

    Args:
        width: Channels of the first level; level k has 2^k times as many.
        encoder: Gated blocks at each level, finest first, after its multi-scale extraction.
        decoder: Gated blocks at each decoder level, finest first; one level less.
        recursions: T by default.
        dilations: Of the multi-scale extraction.
        fold: Pixels folded into channels at the entrance, fold x fold.
        chroma: Share of the layer's Cb and Cr that is kept, but all where the rainy picture is saturated:
            there the colour behind the rain is lost, and has to be given back.
        threshold: What would change a pixel by less than this, in steps of 8 bits, is left out (`garrote`).
            For a last stage or after training: an untrained network changes nothing, and would stay so.
    """

    def __init__(
        self,
        width: int = 48,
        encoder: Sequence[int] = (2, 2, 4),
        decoder: Sequence[int] = (2, 2),
        recursions: int = 2,
        dilations: Sequence[int] = (1, 2, 3),
        fold: int = 2,
        chroma: float = 1.0,
        threshold: float = 0.0,
    ) -> None:
        levels = len(encoder)
        if len(decoder) != levels - 1:
            raise ValueError(f"{levels} encoder levels need {levels - 1} decoder levels, not {len(decoder)}")
        super().__init__(multiple=fold * 2 ** (levels - 1), recursions=recursions)
        self.fold, self.chroma, self.threshold = fold, chroma, threshold
        widths = [width * 2**k for k in range(levels)]
        self.entrance = nn.Conv2d(6 * fold * fold, width, 3, padding=1)
        self.encoders = nn.ModuleList(
            nn.Sequential(MultiScale(w, dilations), *(GatedBlock(w) for _ in range(blocks)))
            for w, blocks in zip(widths, encoder, strict=True)
        )
        self.downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, stride=2) for w in widths[:-1])
        self.ups = nn.ModuleList(Up(2 * w, w) for w in widths[:-1])
        # Cross-level recruitment: into decoder level k from encoder levels k - 1 (finer) and k + 1 (coarser).
        self.recruit_finer = nn.ModuleList(nn.Conv2d(w // 2, w, 2, stride=2) for w in widths[1:-1])
        self.recruit_coarser = nn.ModuleList(Up(2 * w, w) for w in widths[:-1])
        # No parameter without elements: it would never get a gradient, which DDP takes for a mistake.
        self.gate_finer = nn.Parameter(torch.zeros(levels - 2)) if levels > 2 else None
        self.gate_coarser = nn.Parameter(torch.zeros(levels - 1))
        self.decoders = nn.ModuleList(
            nn.Sequential(*(GatedBlock(w) for _ in range(blocks)))
            for w, blocks in zip(widths[:-1], decoder, strict=True)
        )
        self.exit = nn.Conv2d(width, 3 * fold * fold, 3, padding=1)
        # The first estimate of an untrained network is the rainy picture itself.
        nn.init.zeros_(self.exit.weight)
        if self.exit.bias is not None:
            nn.init.zeros_(self.exit.bias)

    def extra_repr(self) -> str:
        """Name what the layers do not show."""
        return f"chroma={self.chroma:g}, threshold={self.threshold:g}"

    def step(self, rainy: Tensor, estimate: Tensor) -> Tensor:
        """Make one recursion: x_t = O + g(concat[O, x_{t-1}]).

        Shape:
            rainy, estimate: N x 3 x H x W in [0, 1], H and W multiples of `multiple`; the result likewise.
        """
        features = _folded(torch.cat([rainy, estimate], 1), self.entrance, self.fold)
        encoded = []
        for level, encoder in enumerate(self.encoders):
            if level:
                features = self.downs[level - 1](features)
            features = encoder(features)
            encoded.append(features)
        for level in reversed(range(len(self.decoders))):
            features = self._joined(level, features, encoded)
            if level and self.gate_finer is not None:
                finer = self.recruit_finer[level - 1](encoded[level - 1])
                features = features + self.gate_finer[level - 1] * finer
            features = self.decoders[level](features)
        change = _unfolded(self.exit(features), self.fold).float()
        if self.chroma != 1:
            change = limit_chroma(change, rainy, self.chroma)
        return rainy + (garrote(change, self.threshold / 255) if self.threshold else change)

    def _joined(self, level: int, features: Tensor, encoded: Sequence[Tensor]) -> Tensor:
        """Add up what goes into a decoder level: from below, from its encoder, and recruited."""
        up, recruit = self.ups[level], self.recruit_coarser[level]
        gate, coarser = self.gate_coarser[level], encoded[level + 1]
        if not torch.onnx.is_in_onnx_export():
            features = up(features) + encoded[level]
            return features + gate * recruit(coarser)  # type: ignore[no-any-return]
        # Both are added before the one shuffle that they share.
        assert isinstance(up, Up)
        assert isinstance(recruit, Up)
        conv, other = up.conv, recruit.conv
        assert conv.bias is not None
        assert other.bias is not None
        both = F.conv2d(features, conv.weight, conv.bias + gate * other.bias)
        both = both + F.conv2d(coarser, gate * other.weight)
        return F.pixel_shuffle(both, 2) + encoded[level]


def limit_chroma(change: Tensor, rainy: Tensor, share: float) -> Tensor:
    """Keep a change's Y and a share of its Cb and Cr; all of them where the picture is saturated.

    Args:
        change: What is added to the picture, N x 3 x H x W.
        rainy: The picture, the same shape, in [0, 1]. It counts as saturated where a channel is close to 1:
            from 0.95, where a little more than the share is kept, to 0.99, where all is.
        share: From 0, no change of colour, to 1.
    """
    luma = 0.299 * change[:, :1] + 0.587 * change[:, 1:2] + 0.114 * change[:, 2:]
    saturated = ((_largest(rainy) - 0.95) / 0.04).clamp(0, 1)
    limited: Tensor = luma + (share + (1 - share) * saturated) * (change - luma)
    return limited


def garrote(change: Tensor, threshold: float) -> Tensor:
    """Shrink a change towards none: by 1 - (threshold / m)^2, or to 0 below the threshold.

    The non-negative garrote (Gao, "Wavelet shrinkage denoising using the non-negative garrote", 1998): unlike
    soft thresholding, it leaves large values all but unchanged.

    Args:
        change: N x 3 x H x W; m is the largest of a pixel's three magnitudes, so that its colour stays.
        threshold: Above 0, in the change's units.
    """
    magnitude = _largest(change.abs()).clamp(min=threshold)
    shrunk: Tensor = change * (1 - (threshold / magnitude).square())
    return shrunk


class Up(nn.Sequential):
    """Double the resolution: 1x1 convolution, then pixel shuffle."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.Conv2d(channels, 4 * width, 1), nn.PixelShuffle(2))

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        conv = self[0]
        assert isinstance(conv, nn.Conv2d)
        return conv
