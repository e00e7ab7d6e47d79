"""PReNet, the field's baseline, to measure against (https://arxiv.org/abs/1901.09221, CVPR 2019).

Six recursions with shared weights over concat[O, x]. Unlike the other networks, it hands on more than the
estimate, namely the state of a convolutional LSTM. So it only runs as a whole: seen from outside it is not
recursive, and one `step` makes all its recursions.
"""

import torch
from torch import Tensor, nn

from unrain.lab.nets.layers import RecursiveNet

_WIDTH = 32
_BLOCKS = 5


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def _gate(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(_conv(2 * _WIDTH, _WIDTH), activation)


class PReNet(RecursiveNet):
    """The network with 168,963 parameters; its authors' weights load as they are.

    Shape:
        N x 3 x H x W in [0, 1] -> T estimates of the same shape, any H and W.

    Args:
        recursions: T by default.
    """

    recursive = False
    # 3x3 convolutions one after the other: the first, a gate, two in each block, the last.
    reach = 3 + 2 * _BLOCKS

    def __init__(self, recursions: int = 6) -> None:
        super().__init__(multiple=1, recursions=recursions)
        # The names are those of the published weights.
        self.conv0 = nn.Sequential(_conv(6, _WIDTH), nn.ReLU())
        self.conv_i = _gate(nn.Sigmoid())
        self.conv_f = _gate(nn.Sigmoid())
        self.conv_g = _gate(nn.Tanh())
        self.conv_o = _gate(nn.Sigmoid())
        for number in range(1, _BLOCKS + 1):
            block = nn.Sequential(_conv(_WIDTH, _WIDTH), nn.ReLU(), _conv(_WIDTH, _WIDTH), nn.ReLU())
            self.add_module(f"res_conv{number}", block)
        self.conv = nn.Sequential(_conv(_WIDTH, 3))

    def forward(self, rainy: Tensor, recursions: int | None = None) -> list[Tensor]:
        """Derain pictures and give every estimate on the way, see `RecursiveNet.forward`.

        Raises:
            ValueError: When `recursions` is below one.
        """
        recursions = self.recursions if recursions is None else recursions
        if recursions < 1:
            raise ValueError(f"recursions must be at least 1, not {recursions}")
        estimate = rainy
        hidden = cell = rainy.new_zeros(rainy.shape[0], _WIDTH, *rainy.shape[-2:])
        estimates = []
        for _ in range(recursions):
            seen = torch.cat([self.conv0(torch.cat([rainy, estimate], 1)), hidden], 1)
            cell = self.conv_f(seen) * cell + self.conv_i(seen) * self.conv_g(seen)
            hidden = features = self.conv_o(seen) * torch.tanh(cell)
            for number in range(1, _BLOCKS + 1):
                features = torch.relu(self.get_submodule(f"res_conv{number}")(features) + features)
            estimate = rainy + self.conv(features)
            estimates.append(estimate)
        return estimates

    def step(self, rainy: Tensor, estimate: Tensor) -> Tensor:
        """Make all recursions; the estimate is not looked at.

        Shape:
            rainy, estimate: N x 3 x H x W in [0, 1]; the result likewise.
        """
        return self.forward(rainy)[-1]
