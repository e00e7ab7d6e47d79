"""Training from coarse to fine: estimates that come from half the size.

In a large picture RDMC's recursion runs over octaves: a level works on O shrunk, and its estimate is what the
coarser level found, lifted. This is the torch side of `unrain.octaves`, for patches and validation.
"""

import torch.nn.functional as F
from torch import Tensor

from unrain.lab.nets.layers import RecursiveNet, pad_to_multiple


def halve(image: Tensor) -> Tensor:
    """Shrink pictures to half their size, N x 3 x H x W to N x 3 x ceil(H / 2) x ceil(W / 2), in [0, 1]."""
    size = [-(-side // 2) for side in image.shape[-2:]]
    return F.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def lift(rainy: Tensor, small: Tensor, derained: Tensor) -> Tensor:
    """Subtract the rain layer of half-size pictures from the pictures.

    Args:
        rainy: O, N x 3 x H x W in [0, 1].
        small: O at half the size.
        derained: What a network made of that; values outside [0, 1] are clipped.

    Returns:
        N x 3 x H x W in [0, 1].
    """
    layer = small - derained.clamp(0, 1)
    return (rainy - F.interpolate(layer, size=rainy.shape[-2:], mode="bicubic", antialias=True)).clamp(0, 1)


def coarse_to_fine(net: RecursiveNet, rainy: Tensor, levels: int) -> Tensor:
    """Derain pictures octave by octave, each starting from the lifted estimate of the coarser one.

    Args:
        net: The network; one recursion is made at each level.
        rainy: O, N x 3 x H x W in [0, 1].
        levels: How many sizes, each half of the one before; 1 for the pictures as they are.

    Returns:
        The estimate at full size, N x 3 x H x W, not clipped.
    """
    height, width = rainy.shape[-2:]
    padded = pad_to_multiple(rainy, net.multiple)
    start = lifted_estimate(net, padded, levels) if levels > 1 else padded
    return net.step(padded, start)[..., :height, :width]


def lifted_estimate(net: RecursiveNet, rainy: Tensor, levels: int = 2) -> Tensor:
    """Return the estimate that the finest of so many levels starts from, N x 3 x H x W in [0, 1]."""
    small = halve(rainy)
    return lift(rainy, small, coarse_to_fine(net, small, levels - 1))
