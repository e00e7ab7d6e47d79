"""A network of your own: one class, which the entry point in pyproject.toml names."""

import torch
from torch import Tensor, nn

from unrain.lab.nets.layers import RecursiveNet


class OwnNetwork(RecursiveNet):
    """Residual blocks of 3x3 convolutions over concat[O, x_{t-1}]; what they find is subtracted.

    Shape:
        N x 3 x H x W in [0, 1] -> T estimates of the same shape, any H and W.

    Args:
        width: Channels.
        blocks: Residual blocks.
        recursions: T by default.
    """

    def __init__(self, width: int = 16, blocks: int = 3, recursions: int = 2) -> None:
        # A network that halves the picture three times inside says multiple=8 here.
        super().__init__(multiple=1, recursions=recursions)
        self.first = nn.Conv2d(6, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)
            )
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        # An untrained network that changes nothing is the best start.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def step(self, rainy: Tensor, estimate: Tensor) -> Tensor:
        """Make one recursion: N x 3 x H x W in [0, 1], H and W multiples of `multiple`; not clipped."""
        features = self.first(torch.cat([rainy, estimate], 1))
        for block in self.blocks:
            features = features + block(features)
        layer: Tensor = self.last(features)
        return rainy - layer
