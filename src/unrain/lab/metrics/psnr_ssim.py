"""The field's metrics, as its MATLAB scripts compute them.

PSNR and SSIM on the Y channel of BT.601 "studio" YCbCr (MATLAB's rgb2ycbcr: Y in 16..235, peak 255), pictures
rounded to 8 bit first, SSIM with an 11 x 11 Gaussian window of sigma 1.5, averaged over the valid region.
Y is rounded too, since MATLAB answers 8 bit with 8 bit: that alone takes 0.04 dB from PReNet's figure.

Beside them the same on RGB: one error over all three channels for PSNR, the mean of the channels for SSIM.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

_Y = np.array([65.481, 128.553, 24.966]) / 255.0


def luma(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return Y as MATLAB's rgb2ycbcr gives it for 8 bit: whole numbers.

    Shape:
        picture: H x W x 3 uint8 RGB. Result: H x W, 16..235.
    """
    return np.rint(picture.astype(np.float64) @ _Y + 16.0)


def psnr(restored: NDArray[np.uint8], clean: NDArray[np.uint8]) -> float:
    """Return the Y-channel PSNR in dB, peak 255; infinity for equal pictures.

    Raises:
        ValueError: The pictures differ in size or are not 8 bit.
    """
    _check(restored, clean)
    return _psnr(luma(restored), luma(clean))


def psnr_rgb(restored: NDArray[np.uint8], clean: NDArray[np.uint8]) -> float:
    """Return the PSNR over all three channels in dB, peak 255; infinity for equal pictures.

    Raises:
        ValueError: The pictures differ in size or are not 8 bit.
    """
    _check(restored, clean)
    return _psnr(restored.astype(np.float64), clean.astype(np.float64))


def ssim(restored: NDArray[np.uint8], clean: NDArray[np.uint8]) -> float:
    """Return the Y-channel SSIM, engine scikit-image with MATLAB's window.

    Raises:
        ValueError: The pictures differ in size, are not 8 bit or are smaller than 11 x 11.
    """
    _check(restored, clean)
    return _ssim(luma(restored), luma(clean))


def ssim_rgb(restored: NDArray[np.uint8], clean: NDArray[np.uint8]) -> float:
    """Return the mean of the three channels' SSIM, with the same window.

    Raises:
        ValueError: The pictures differ in size, are not 8 bit or are smaller than 11 x 11.
    """
    _check(restored, clean)
    one, other = restored.astype(np.float64), clean.astype(np.float64)
    return sum(_ssim(one[..., i], other[..., i]) for i in range(3)) / 3


def _psnr(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    error = float(np.mean(np.square(one - other)))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def _ssim(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            one, other, data_range=255.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )


def _check(restored: NDArray[np.uint8], clean: NDArray[np.uint8]) -> None:
    if restored.shape != clean.shape:
        raise ValueError(f"pictures differ in size: {restored.shape} and {clean.shape}")
    if restored.dtype != np.uint8 or clean.dtype != np.uint8:
        raise ValueError(f"metrics are defined on 8-bit pictures, got {restored.dtype} and {clean.dtype}")
