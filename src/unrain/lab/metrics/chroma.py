"""How much the colour of a picture changes, apart from its brightness.

Rain is nearly without colour of its own: a result whose Cb and Cr are far from the clean picture's has lost
colour that was not the rain's. This measure is ours, not the field's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Cb and Cr of BT.601 "studio" YCbCr, MATLAB's rgb2ycbcr, beside the Y of `psnr_ssim`.
_CB_CR = np.array([[-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], np.float32) / np.float32(255)
# A 12-megapixel picture in floats would take 300 MB at once.
_ROWS = 256


def chroma_change(picture: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Return the mean absolute difference of Cb and Cr, both alike, over all pixels.

    Cb and Cr are not rounded: the changes of interest are often below one step.

    Shape:
        picture, reference: H x W x 3 uint8 RGB.

    Returns:
        In steps of 8 bits of studio-range Cb and Cr (16..240); 0 for pictures that differ in Y only.

    Raises:
        ValueError: The pictures differ in size or are not 8 bit.
    """
    if picture.shape != reference.shape:
        raise ValueError(f"pictures differ in size: {picture.shape} and {reference.shape}")
    if picture.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(f"metrics are defined on 8-bit pictures, got {picture.dtype} and {reference.dtype}")
    total = 0.0
    for start in range(0, picture.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        # The transform is linear: one of the difference does for two.
        change = (picture[rows].astype(np.float32) - reference[rows]) @ _CB_CR.T
        total += float(np.abs(change).sum(dtype=np.float64))
    return float(total / (2 * picture.shape[0] * picture.shape[1]))
