"""RDMC, "Contrastive Learning Based Recursive Dynamic Multi-Scale Network for Image Deraining".

Zhiying Jiang, Risheng Liu, Shuzhou Yang, Zengxi Zhang, Xin Fan, 2023.
https://arxiv.org/abs/2305.18092

Reproduced, from the authors' released code and with its number of weights: the recursion
x_t = O + g(concat[O, x_{t-1}]), the three dilated encoders (MFE), the decoder with its learnt mixture of
two upsamplings, the eight gated skips between levels that do not match (DCR).

Not reproduced: the authors' final choice of two "down" and two "up" skips, which they have not published.
Here all eight are on unless `gates` names some, and their strengths are saved with the weights.
Ours: any picture size by reflection; pixel centres kept in upsampling (align_corners=False), so that a
tile comes out as it does within the whole picture; gates start at 0.1, so that every skip learns at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrain.lab.nets.layers import DilatedConv, RecursiveNet

DOWN_GATES = ("down0", "down1", "down2", "down3")
UP_GATES = ("up0", "up1", "up2", "up3")
GATES = DOWN_GATES + UP_GATES

_GATE_START = 0.1


class _Encoder(nn.Module):
    """One scale of the MFE: five units of two convolutions, halving the picture in between."""

    def __init__(self, widths: Sequence[int], dilation: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels_in, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                DilatedConv(channels, dilation, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for channels_in, channels in zip((6, *widths[:-1]), widths, strict=True)
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        levels: list[Tensor] = []
        for unit in self.units:
            levels.append(unit(F.max_pool2d(levels[-1], 2) if levels else features))
        return levels


def _double_conv(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def _down_skip(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(channels),
        nn.LeakyReLU(0.2, inplace=True),
    )


def _input_skip(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(6, channels, 1), nn.BatchNorm2d(channels), nn.LeakyReLU(0.2, inplace=True))


def _up_skip(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False),
        *_double_conv(channels_in, channels),
    )


class _Doubling(nn.Module):
    """Twice the size by p_1 bilinear + p_2 bicubic interpolation, p the softmax of two scalars.

    Both are one 5x5 filter for each of the four output phases, as `F.interpolate` gives them for
    align_corners=False; as a convolution they take a fraction of the time of ONNX Runtime's bicubic Resize.
    """

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        bilinear = torch.tensor([0, 0.25, 0.75, 0, 0])
        # Keys' kernel with a = -0.75 at the distances 1.75, 0.75, 0.25 and 1.25.
        bicubic = torch.tensor([-9, 67, 225, -27, 0]) / 256
        both = []
        for even in (bilinear, bicubic):
            phases = torch.stack([even, even.flip(0)])
            both.append(torch.einsum("ai,bj->abij", phases, phases).flatten(0, 1))
        self.register_buffer("filters", torch.stack(both), persistent=False)

    def forward(self, features: Tensor, mixture: Tensor) -> Tensor:
        channels = features.shape[1]
        bilinear, bicubic = mixture.softmax(0).unbind()
        filters = bilinear * self.filters[0] + bicubic * self.filters[1]
        padded = F.pad(features, (2, 2, 2, 2), mode="replicate")
        phases = [F.conv2d(padded, one.expand(channels, 1, 5, 5), groups=channels) for one in filters]
        return F.pixel_shuffle(torch.stack(phases, 2).flatten(1, 2), 2)


class RDMC(RecursiveNet):
    """The paper's network g with its recursion.

    With width w the three encoders have w, 2w, 4w, 8w, 8w channels at H, H/2, H/4, H/8, H/16.

    Shape:
        N x 3 x H x W in [0, 1] -> T estimates of the same shape, any H and W (`step`: multiples of 16).

    Attributes:
        gates: The strength of each skip which exists, by name; saved with the weights.
        upsampling: The two scalars whose softmax mixes bilinear and bicubic upsampling.
    """

    def __init__(
        self,
        width: int = 32,
        recursions: int = 3,
        dilations: Sequence[int] = (1, 2, 3),
        gates: Sequence[str] = GATES,
    ) -> None:
        """Lay out encoders, decoder and the chosen skips.

        Args:
            width: Channels of each encoder at full resolution, a positive even number.
            recursions: Default number of recursions T.
            dilations: One encoder for each; the paper's are 1, 2, 3.
            gates: Names of the skips to build, from `GATES`; a skip left out has no weights and no gate.

        Raises:
            ValueError: When a gate is unknown, or width or dilations make no network.
        """
        super().__init__(multiple=16, recursions=recursions)
        if unknown := sorted(set(gates) - set(GATES)):
            raise ValueError(f"no gate is called {', '.join(unknown)}: choose from {', '.join(GATES)}")
        if width < 2 or width % 2 or not dilations:
            raise ValueError(f"width {width} must be even and positive, and dilations {dilations} not empty")
        encoder_widths = (width, 2 * width, 4 * width, 8 * width, 8 * width)
        self.encoders = nn.ModuleList(_Encoder(encoder_widths, dilation) for dilation in dilations)
        e1, e2, e3, e4, e5 = (len(dilations) * channels for channels in encoder_widths)
        d1, d2, d3, d4 = (channels // 2 for channels in (e1, e2, e3, e4))
        self.decoders = nn.ModuleList(
            [
                _double_conv(e5 + e4, d4),
                _double_conv(d4 + e3, d3),
                _double_conv(d3 + e2, d2),
                _double_conv(d2 + e1, d1),
            ]
        )
        self.output = nn.Conv2d(d1, 3, 1)
        self.upsampling = nn.Parameter(torch.zeros(2))
        self.doubling = _Doubling()
        skips = {
            "down0": lambda: _down_skip(e3),
            "down1": lambda: _down_skip(e2),
            "down2": lambda: _down_skip(e1),
            "down3": lambda: _input_skip(d1),
            "up0": lambda: _up_skip(e4, d3),
            "up1": lambda: _up_skip(e3, d2),
            "up2": lambda: _up_skip(e2, d1),
            "up3": lambda: _double_conv(e1, 3),
        }
        chosen = [name for name in GATES if name in gates]
        self.skips = nn.ModuleDict({name: skips[name]() for name in chosen})
        self.gates = nn.ParameterDict({name: torch.tensor(_GATE_START) for name in chosen})

    def _up(self, features: Tensor) -> Tensor:
        doubled: Tensor = self.doubling(features, self.upsampling)
        return doubled

    def _recruit(self, target: Tensor, **sources: Tensor) -> Tensor:
        for name, source in sources.items():
            if name in self.gates:
                target = target + self.gates[name] * self.skips[name](source)
        return target

    def step(self, rainy: Tensor, estimate: Tensor) -> Tensor:
        """Compute x_t = O + g(concat[O, x_{t-1}]): g predicts minus the rain.

        Args:
            rainy: O, N x 3 x H x W in [0, 1], H and W multiples of 16.
            estimate: x_{t-1}, the same shape.

        Returns:
            x_t, the same shape, not clipped.
        """
        both = torch.cat([rainy, estimate], dim=1)
        levels = zip(*(encoder(both) for encoder in self.encoders), strict=True)
        e1, e2, e3, e4, e5 = (torch.cat(parts, dim=1) for parts in levels)
        to4, to3, to2, to1 = self.decoders
        d4 = self._recruit(to4(torch.cat([self._up(e5), e4], dim=1)), down0=e3)
        d3 = self._recruit(to3(torch.cat([self._up(d4), e3], dim=1)), down1=e2, up0=e4)
        d2 = self._recruit(to2(torch.cat([self._up(d3), e2], dim=1)), down2=e1, up1=e3)
        d1 = self._recruit(to1(torch.cat([self._up(d2), e1], dim=1)), down3=both, up2=e2)
        return rainy + self._recruit(self.output(d1), up3=e1)
