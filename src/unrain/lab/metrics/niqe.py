"""NIQE: how far the statistics of a picture are from those of undistorted photographs. Smaller is better.

"Making a 'Completely Blind' Image Quality Analyzer". Anish Mittal, Rajiv Soundararajan, Alan C. Bovik. IEEE
Signal Processing Letters 20(3), 2013. https://doi.org/10.1109/LSP.2012.2227726

The parameters (mean and covariance of 36 features of pristine photographs, and a 7 x 7 window) come from a
file that the user has: `niqe_pris_params.npz` of the source package basicsr 1.4.2 (Apache-2.0), the same that
the authors' release for MATLAB holds. Blocks of 96 x 96 without overlap, Y rounded, and a cubic reduction by
two as MATLAB's imresize does it; what the blocks do not cover at the right and at the bottom does not count.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve
from scipy.special import gamma

from unrain.errors import UnrainError
from unrain.lab.metrics.psnr_ssim import luma
from unrain.lab.weights_file import weights_file

VARIABLE = "UNRAIN_NIQE"
HINT = (
    "run `pip download --no-deps --no-binary :all: basicsr==1.4.2`, unpack its "
    f"basicsr/metrics/niqe_pris_params.npz and give the file's path in {VARIABLE} or as --metric niqe:FILE"
)
BLOCK = 96

# The file has 12 KB.
_MOST_BYTES = 1_000_000

_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = np.square(gamma(2 / _SHAPES)) / (gamma(1 / _SHAPES) * gamma(3 / _SHAPES))
# MATLAB's imresize by 1/2: the cubic kernel, stretched by two, at the eight pixels around.
_HALVING = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256


@dataclass(frozen=True)
class Niqe:
    """The measure, with its parameters.

    Attributes:
        mean: Of the features of pristine pictures, 36.
        covariance: Of these, 36 x 36.
        window: For local means, 7 x 7.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    window: NDArray[np.float64]

    def __call__(self, picture: NDArray[np.uint8]) -> float:
        """Measure a picture.

        Shape:
            picture: H x W x 3 uint8 RGB, both sides 96 at least and one of them 192.

        Raises:
            ValueError: It is smaller than that, or too flat to measure.
        """
        rows, columns = (side // BLOCK for side in picture.shape[:2])
        if rows * columns < 2:
            raise ValueError(
                f"NIQE needs two blocks of {BLOCK}x{BLOCK}: {picture.shape[1]}x{picture.shape[0]}"
            )
        light = luma(picture)[: rows * BLOCK, : columns * BLOCK]
        scales = []
        for side in (BLOCK, BLOCK // 2):
            if side < BLOCK:
                light = halve(light)
            local = convolve(light, self.window, mode="nearest")
            spread = np.sqrt(np.abs(convolve(np.square(light), self.window, mode="nearest") - local**2))
            normal = (light - local) / (spread + 1)
            scales.append(
                [
                    _features(normal[y : y + side, x : x + side])
                    for x in range(0, columns * side, side)
                    for y in range(0, rows * side, side)
                ]
            )
        features = np.concatenate(scales, axis=1)
        whole = features[~np.isnan(features).any(axis=1)]
        if len(whole) < 2:
            raise ValueError("NIQE needs two blocks that are not flat")
        apart = self.mean - np.nanmean(features, axis=0)
        common = (self.covariance + np.cov(whole, rowvar=False)) / 2
        return float(np.sqrt(apart @ np.linalg.pinv(common) @ apart))


def load_niqe(path: Path | None = None) -> Niqe:
    """Read the parameters.

    Args:
        path: `niqe_pris_params.npz`; the environment variable UNRAIN_NIQE names it when None.

    Raises:
        UnrainError: No file is named, or it is another one.
    """
    path = weights_file(VARIABLE, path, HINT)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
                raise ValueError("far too large")
        with np.load(path, allow_pickle=False) as file:
            mean, covariance, window = (
                np.asarray(file[name], np.float64).squeeze()
                for name in ("mu_pris_param", "cov_pris_param", "gaussian_window")
            )
    # Readers of zip and of arrays raise nearly anything on damaged files.
    except Exception as error:
        raise UnrainError(f"{path}: not the parameters of NIQE; {HINT}") from error
    if mean.shape != (36,) or covariance.shape != (36, 36) or window.shape != (7, 7):
        raise UnrainError(f"{path}: not the parameters of NIQE; {HINT}")
    return Niqe(mean, covariance, window)


def halve(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reduce a picture of even sides by two as MATLAB's imresize does, mirrored at its edges.

    Shape:
        light: H x W. Result: H/2 x W/2.
    """
    for axis in (0, 1):
        grow = [(0, 0), (0, 0)]
        grow[axis] = (3, 3)
        padded = np.moveaxis(np.pad(light, grow, "symmetric"), axis, 0)
        count = (padded.shape[0] - 6) // 2
        reduced = sum(weight * padded[i : i + 2 * count : 2] for i, weight in enumerate(_HALVING))
        light = np.moveaxis(np.asarray(reduced), 0, axis)
    return light


def asymmetric_gaussian(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Fit an asymmetric generalised Gaussian by its moments.

    Returns:
        Its shape, and its left and right standard deviation; NaN where there is nothing on one side.
    """
    below, above = values[values < 0], values[values > 0]
    if not below.size or not above.size:
        return (float("nan"),) * 3
    left, right = float(np.sqrt(np.mean(below**2))), float(np.sqrt(np.mean(above**2)))
    skew = left / right
    ratio = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    ratio = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    return float(_SHAPES[np.argmin(np.square(_RATIOS - ratio))]), left, right


def _features(block: NDArray[np.float64]) -> list[float]:
    """Return the 18 features of a block: of its values, and of their products with four neighbours."""
    shape, left, right = asymmetric_gaussian(block.ravel())
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    found = [shape, scale * (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = asymmetric_gaussian((block * np.roll(block, shift, (0, 1))).ravel())
        scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
        found += [
            shape,
            scale * (right - left) * gamma(2 / shape) / gamma(1 / shape),
            scale * left,
            scale * right,
        ]
    return found
