"""The rain layer, what a picture and its derained one differ by: how much of it to take away, and what it is.

Everything here goes through a picture in strips of rows, so that a large one needs no second copy in floats.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from unrain.errors import UsageError
from unrain.image import Array

MOST_STRENGTH = 1.5
"""The greatest strength: half as much again as was found."""

HARDLY_ANY_RAIN = 0.3 / 255
"""The mean absolute change, as a share of the full range, below which hardly any rain was found.

All of Kodak24 is below it and 18 % of the photographs of real rain are (docs/benchmark.md).
"""

_LUMA = (0.299, 0.587, 0.114)
# So few that a strip and its copies in floats stay in the processor's cache.
_VALUES = 1 << 17


def check_strength(strength: float) -> None:
    """Refuse a strength that makes no sense.

    Args:
        strength: The share of the rain layer that is taken away.

    Raises:
        UsageError: It is not from 0 to `MOST_STRENGTH`.
    """
    if not 0 <= strength <= MOST_STRENGTH:  # also true when it is not a number
        raise UsageError(f"strength is {strength:g}: give 0 to {MOST_STRENGTH:g}")


def at_strength(rainy: Array, derained: Array, strength: float) -> Array:
    """Take a share of the rain layer away: rainy - strength (rainy - derained), clipped and rounded once.

    Args:
        rainy: H x W or H x W x 3; uint8 or uint16 in full range, or float in [0, 1].
        derained: The same picture with all of the layer taken away, of the same shape and dtype.
        strength: 0 to `MOST_STRENGTH`; at 0 the result equals `rainy` and at 1 `derained`, bit for bit.

    Returns:
        Of the same shape and dtype; `derained` itself at 1.

    Raises:
        UsageError: The strength is out of range.
    """
    check_strength(strength)
    if strength == 1:
        return derained
    if strength == 0:
        return rainy.copy()
    result = np.empty_like(derained)
    whole = result.dtype.kind == "u"
    # Single precision holds every product of 8 bits far more finely than it is rounded to.
    kind = np.dtype(np.float32) if result.dtype == np.uint8 else np.dtype(np.float64)
    most = np.iinfo(result.dtype).max if whole else 1
    for rows in _strips(rainy):
        before = rainy[rows].astype(kind)
        values = np.subtract(before, derained[rows], dtype=kind)
        np.multiply(values, kind.type(strength), out=values)
        np.subtract(before, values, out=values)
        if whole:
            np.rint(values, out=values)
        result[rows] = np.clip(values, 0, most, out=values)
    return result


def taken(rainy: Array, derained: Array) -> Array:
    """Return the light that was taken away: max(rainy - derained, 0), of the same shape and dtype."""
    layer: Array = rainy - np.minimum(rainy, derained)
    return layer


def mean_change(rainy: Array, derained: Array) -> float:
    """Return the mean absolute change over all pixels and colours, as a share of the full range.

    Args:
        rainy: H x W or H x W x 3; uint8 or uint16 in full range, or float in [0, 1].
        derained: Of the same shape and dtype.
    """
    total = 0.0
    for rows in _strips(rainy):
        before, after = rainy[rows], derained[rows]
        total += float((np.maximum(before, after) - np.minimum(before, after)).sum(dtype=np.float64))
    most = np.iinfo(rainy.dtype).max if rainy.dtype.kind == "u" else 1
    return total / rainy.size / float(most)


def difference(rainy: Array, derained: Array) -> Array:
    """Return rainy - derained modulo the number of levels: all of the layer, in as many bits as the picture.

    Args:
        rainy: H x W or H x W x 3, uint8 or uint16.
        derained: Of the same shape and dtype; `rainy` minus the returned difference, in the same type, is it.
    """
    wrapped: NDArray[np.unsignedinteger] = rainy - derained
    return wrapped


def luma(picture: NDArray[np.generic], scale: float = 1.0) -> NDArray[np.float32]:
    """Return the luminance, Y' of BT.601 in full range.

    Not by a product with a vector: threads of BLAS, once woken, keep a core busy that the network needs.

    Args:
        picture: H x W x 3.
        scale: What each value is multiplied by.

    Returns:
        H x W.
    """
    result = np.empty(picture.shape[:2], np.float32)
    for rows in _strips(picture):
        values = picture[rows].astype(np.float32)
        total = result[rows]
        np.multiply(values[..., 0], np.float32(_LUMA[0] * scale), out=total)
        for colour in (1, 2):
            total += values[..., colour] * np.float32(_LUMA[colour] * scale)
    return result


def _strips(image: NDArray[np.generic]) -> Iterator[slice]:
    """Yield the rows of a picture, few at a time."""
    rows = max(1, _VALUES // max(1, image[0].size))
    for start in range(0, len(image), rows):
        yield slice(start, start + rows)
