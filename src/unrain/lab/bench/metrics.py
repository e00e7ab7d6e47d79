"""The field's metrics, as its MATLAB scripts compute them.

PSNR and SSIM on the Y channel of BT.601 "studio" YCbCr (MATLAB's rgb2ycbcr: Y in 16..235, peak 255), pictures
rounded to 8 bit first, SSIM with an 11 x 11 Gaussian window of sigma 1.5, averaged over the valid region.
Y is rounded too, since MATLAB answers 8 bit with 8 bit: that alone takes 0.04 dB from PReNet's figure.
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
    error = float(np.mean(np.square(luma(restored) - luma(clean))))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(restored: NDArray[np.uint8], clean: NDArray[np.uint8]) -> float:
    """Return the Y-channel SSIM, engine scikit-image with MATLAB's window.

    Raises:
        ValueError: The pictures differ in size, are not 8 bit or are smaller than 11 x 11.
    """
    _check(restored, clean)
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            luma(restored),
            luma(clean),
            data_range=255.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def _check(restored: NDArray[np.uint8], clean: NDArray[np.uint8]) -> None:
    if restored.shape != clean.shape:
        raise ValueError(f"pictures differ in size: {restored.shape} and {clean.shape}")
    if restored.dtype != np.uint8 or clean.dtype != np.uint8:
        raise ValueError(f"metrics are defined on 8-bit pictures, got {restored.dtype} and {clean.dtype}")
