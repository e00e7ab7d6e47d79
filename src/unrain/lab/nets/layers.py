"""What networks share: any picture size, the loop x_t = step(O, x_{t-1}), dilation with right gradients."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


def _mirrored(size: int, target: int, device: torch.device) -> Tensor:
    """Indices 0..target-1 folded back into 0..size-1 by mirroring at both ends, as often as needed."""
    period = max(2 * (size - 1), 1)
    index = torch.arange(target, device=device) % period
    return torch.minimum(index, (period - index) % period) if size > 1 else torch.zeros_like(index)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Extend a picture at the bottom and right by reflection until both sides are multiples.

    Unlike torch's own reflection this also works where the padding is wider than the picture.

    Args:
        image: N x C x H x W, any H and W from 1.
        multiple: What both sides of the result are divisible by.

    Returns:
        N x C x H' x W'; the very same tensor when nothing has to be added.
    """
    height, width = image.shape[-2:]
    padded_height, padded_width = (-(-side // multiple) * multiple for side in (height, width))
    if padded_height != height:
        image = image.index_select(-2, _mirrored(height, padded_height, image.device))
    if padded_width != width:
        image = image.index_select(-1, _mirrored(width, padded_width, image.device))
    return image


class DilatedConv(nn.Conv2d):
    """A 3x3 convolution which stays in fp32 where bf16 on the CPU gives wrong gradients.

    Seen with torch 2.13 in channels_last: NaN weight gradients at 24 channels, right at 8, 16, 32 and 64.
    """

    def __init__(self, channels: int, dilation: int, *, bias: bool = True) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, bias=bias)
        self.exact = dilation > 1 and channels != 8 and channels % 16 != 0

    def forward(self, input: Tensor) -> Tensor:
        """Return N x C x H x W for N x C x H x W."""
        if self.exact and input.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)


class RecursiveNet(nn.Module, ABC):
    """A network that looks at the rainy picture O several times: x_0 = O, x_t = step(O, x_{t-1}).

    Attributes:
        multiple: What height and width must be divisible by inside `step`.
        recursions: How many recursions `forward` makes when it is not told otherwise (T).
        recursive: Whether `step` looks at the estimate; if not, one recursion is all there is.
        levels: Over how many sizes it was trained from coarse to fine; the trainer and checkpoints set it.
        reach: How many pixels away one recursion looks at most; None where nobody has counted.
    """

    recursive: bool = True
    reach: int | None = None

    def __init__(self, multiple: int, recursions: int) -> None:
        """Remember the size rule and the default number of recursions.

        Raises:
            ValueError: When either is below one.
        """
        super().__init__()
        if multiple < 1 or recursions < 1:
            raise ValueError(f"multiple and recursions start at 1, not {multiple} and {recursions}")
        self.multiple = multiple
        self.recursions = recursions
        self.levels = 1

    @abstractmethod
    def step(self, rainy: Tensor, estimate: Tensor) -> Tensor:
        """Make one recursion.

        Args:
            rainy: O, N x 3 x H x W in [0, 1], H and W multiples of `multiple`.
            estimate: x_{t-1}, the same shape; O itself in the first recursion.

        Returns:
            x_t, the same shape, not clipped.
        """

    def forward(self, rainy: Tensor, recursions: int | None = None) -> list[Tensor]:
        """Derain pictures of any size and give every estimate on the way.

        Args:
            rainy: O, N x 3 x H x W in [0, 1].
            recursions: T for this call; the network's own when None.

        Returns:
            x_1 .. x_T, each N x 3 x H x W; the result is the last.

        Raises:
            ValueError: When `recursions` is below one.
        """
        recursions = self.recursions if recursions is None else recursions
        if recursions < 1:
            raise ValueError(f"recursions must be at least 1, not {recursions}")
        height, width = rainy.shape[-2:]
        padded = pad_to_multiple(rainy, self.multiple)
        estimate = padded
        estimates = []
        for _ in range(recursions):
            estimate = self.step(padded, estimate)
            estimates.append(estimate[..., :height, :width])
        return estimates

    def rain_in(self, rainy: Tensor, estimates: list[Tensor]) -> Tensor:
        """Return the rain that the network found in pictures: O - x_T.

        Args:
            rainy: O, N x 3 x H x W in [0, 1].
            estimates: What `forward` gave for it.

        Returns:
            The same shape, not clipped.
        """
        return rainy - estimates[-1]
