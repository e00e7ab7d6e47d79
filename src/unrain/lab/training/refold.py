"""Starts a network from one with other levels, other widths or other numbers of blocks.

RDMC-lite's levels work at a half, a quarter and an eighth of the size; folded 4 x 4, it begins at a quarter.
It takes over the levels that work at the same sizes, wider by copies of channels where it is wider (Chen et
al., "Net2Net", ICLR 2016, https://arxiv.org/abs/1511.05641). Blocks that the source lacks begin near the
identity, and those that it has more of are left out. If the finest level is left out, the entrance is fitted
by least squares to what that level gave to the next; the exit is always fitted to what came out in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unrain.lab.nets.rdmc_lite import GatedBlock, MultiScale, RDMCLite

# Copies of a channel would stay copies: what is added to the weights, as a share of their deviation.
_NOISE = 0.05
# A block that has no counterpart begins near the identity.
_NEARLY_NONE = 0.01
# Ridge, as a share of the mean diagonal: neighbouring pixels are all but equal.
_RIDGE = 1e-6


@dataclass(frozen=True)
class _Channels:
    """Which channel of the source each channel of a wider layer is a copy of."""

    index: Tensor
    copies: Tensor

    @classmethod
    def of(cls, before: int, now: int) -> _Channels:
        index = torch.arange(now) % before
        return cls(index, torch.bincount(index, minlength=before)[index].float())

    def times(self, parts: int) -> _Channels:
        """The channels of a layer that has so many parts of these, one behind the other."""
        size = int(self.index.max()) + 1
        return _Channels(
            torch.cat([self.index + part * size for part in range(parts)]), self.copies.repeat(parts)
        )

    def each(self, parts: int) -> _Channels:
        """The channels of a layer that has so many for each of these, side by side."""
        index = (self.index[:, None] * parts + torch.arange(parts)).flatten()
        return _Channels(index, self.copies.repeat_interleave(parts))


@torch.no_grad()
def refold(net: RDMCLite, source: RDMCLite, pictures: Sequence[Tensor], seed: int = 0) -> None:
    """Set a network's weights from those of one with other blocks, or with finer levels above.

    Args:
        net: Folds 2^k times as many pixels a side and has k levels fewer, with k from 0. It may be wider and
            have more blocks at a level, or fewer; its dilations are those of the source, repeated where it is
            wider.
        source: The network that is there already.
        pictures: Rainy pictures that entrance and exit are fitted on, N x 3 x H x W in [0, 1], H and W
            multiples of both networks'.
        seed: Of the noise that tells copies of channels apart.

    Raises:
        ValueError: The networks do not fit.
    """
    skipped = len(source.encoders) - len(net.encoders)
    if skipped < 0 or net.fold != source.fold * 2**skipped:
        raise ValueError(
            f"a network that folds {net.fold} x {net.fold} at {len(net.encoders)} levels does not go on "
            f"where one that folds {source.fold} x {source.fold} at {len(source.encoders)} does"
        )
    _Copy(net, source, skipped, seed).run()
    if skipped:
        entering = _entering(source, source.encoders[skipped])
        weight, bias = _fitted((F.pixel_unshuffle(rainy, net.fold), entering(rainy)) for rainy in pictures)
        channels = _Channels.of(len(weight), len(net.entrance.weight)).index
        # The picture and its first estimate are the same.
        net.entrance.weight.copy_(weight[channels].repeat(1, 2, 1, 1) / 2)
        _set_bias(net.entrance, bias[channels])
    leaving = _entering(net, net.exit)
    weight, bias = _fitted(
        (leaving(rainy), F.pixel_unshuffle(source.step(rainy, rainy) - rainy, net.fold)) for rainy in pictures
    )
    net.exit.weight.copy_(weight)
    _set_bias(net.exit, bias)


class _Copy:
    """Copies the levels that two networks share."""

    def __init__(self, net: RDMCLite, source: RDMCLite, skipped: int, seed: int) -> None:
        self._net, self._source, self._skipped = net, source, skipped
        self._random = torch.Generator().manual_seed(seed)
        before, now = source.entrance.out_channels << skipped, net.entrance.out_channels
        self._levels = [_Channels.of(before << level, now << level) for level in range(len(net.encoders))]

    def run(self) -> None:
        net, source, skipped, levels = self._net, self._source, self._skipped, self._levels
        if not skipped:
            self._conv(net.entrance, source.entrance, None, levels[0])
        for level, channels in enumerate(levels):
            now, before = (
                _inside(encoder) for encoder in (net.encoders[level], source.encoders[skipped + level])
            )
            self._multi_scale(now[0], before[0], channels)
            self._blocks(now[1:], before[1:], channels)
        for level, (fine, coarse) in enumerate(pairwise(levels)):
            at = skipped + level
            self._conv(net.downs[level], source.downs[at], fine, coarse)
            for ups, others in ((net.ups, source.ups), (net.recruit_coarser, source.recruit_coarser)):
                self._conv(_inside(ups[level])[0], _inside(others[at])[0], coarse, fine.each(4))
            net.gate_coarser[level] = source.gate_coarser[at]
            self._blocks(_inside(net.decoders[level]), _inside(source.decoders[at]), fine)
            if level and net.gate_finer is not None and source.gate_finer is not None:
                finer, other = net.recruit_finer[level - 1], source.recruit_finer[at - 1]
                self._conv(finer, other, levels[level - 1], fine)
                net.gate_finer[level - 1] = source.gate_finer[at - 1]

    def _multi_scale(self, now: nn.Module, before: nn.Module, channels: _Channels) -> None:
        assert isinstance(now, MultiScale)
        assert isinstance(before, MultiScale)
        branches = [before.branches[i % len(before.branches)] for i in range(len(now.branches))]
        for conv, other in zip(now.branches, branches, strict=True):
            if conv.weight.shape != other.weight.shape or conv.dilation != other.dilation:
                raise ValueError(
                    f"dilations do not fit: give those of the source ({len(before.branches)}) over and over, "
                    "one for every group of as many channels as there"
                )
            self._conv(conv, other)
        self._norm(now.norm, before.norm, channels)
        self._conv(now.spread, before.spread, channels, channels)
        self._conv(now.mix, before.mix, channels, channels.times(2))
        now.scale.copy_(before.scale[:, channels.index])

    def _blocks(self, now: Sequence[nn.Module], before: Sequence[nn.Module], channels: _Channels) -> None:
        for number, block in enumerate(now):
            assert isinstance(block, GatedBlock)
            if number >= len(before):
                block.scale1.fill_(_NEARLY_NONE)
                block.scale2.fill_(_NEARLY_NONE)
                continue
            other, double = before[number], channels.times(2)
            assert isinstance(other, GatedBlock)
            self._norm(block.norm1, other.norm1, channels)
            self._conv(block.expand1, other.expand1, channels, double)
            self._conv(block.depthwise, other.depthwise, None, double)
            self._conv(block.project1, other.project1, channels, channels)
            block.scale1.copy_(other.scale1[:, channels.index])
            self._norm(block.norm2, other.norm2, channels)
            self._conv(block.expand2, other.expand2, channels, double)
            self._conv(block.project2, other.project2, channels, channels)
            block.scale2.copy_(other.scale2[:, channels.index])

    def _norm(self, now: nn.LayerNorm, before: nn.LayerNorm, channels: _Channels) -> None:
        now.weight.copy_(before.weight[channels.index])
        now.bias.copy_(before.bias[channels.index])

    def _conv(
        self, now: nn.Module, before: nn.Module, into: _Channels | None = None, out: _Channels | None = None
    ) -> None:
        assert isinstance(now, nn.Conv2d)
        assert isinstance(before, nn.Conv2d)
        weight, bias = before.weight, before.bias
        assert bias is not None
        if out is not None:
            weight, bias = weight[out.index], bias[out.index]
        if into is not None:
            # Copies share what their channel gave.
            weight = weight[:, into.index] / into.copies.view(1, -1, 1, 1)
        if now.weight.numel() > before.weight.numel():
            noise = torch.randn(weight.shape, generator=self._random)
            weight = weight + _NOISE * weight.std() * noise
        now.weight.copy_(weight)
        _set_bias(now, bias)


def _inside(sequence: nn.Module) -> list[nn.Module]:
    return list(sequence.children())


def _set_bias(conv: nn.Conv2d, bias: Tensor) -> None:
    assert conv.bias is not None
    conv.bias.copy_(bias)


def _entering(net: RDMCLite, layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that gives what goes into a layer for a rainy picture, as its own first estimate."""

    def run(rainy: Tensor) -> Tensor:
        found: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        try:
            net.step(rainy, rainy)
        finally:
            handle.remove()
        return found[0]

    return run


def _fitted(examples: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Fit a 3x3 convolution by least squares.

    Args:
        examples: What goes in, N x C x H x W, and what is to come out, N x C' x H x W.

    Returns:
        Its weight, C' x C x 3 x 3, and bias.
    """
    moments = products = torch.zeros(1, dtype=torch.float64)
    for inputs, targets in examples:
        columns = F.unfold(inputs.double(), 3, padding=1).transpose(1, 2).flatten(0, 1)
        columns = F.pad(columns, (0, 1), value=1.0)
        moments = moments + columns.T @ columns
        products = products + columns.T @ targets.double().flatten(2).transpose(1, 2).flatten(0, 1)
    ridge = _RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    solution = torch.linalg.solve(moments + ridge, products).float()
    return solution[:-1].T.reshape(products.shape[1], -1, 3, 3), solution[-1]
