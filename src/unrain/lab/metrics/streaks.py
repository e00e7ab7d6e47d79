"""Measures for real rain, without a clean picture to compare with: what went of the streaks, and of the rest.

Both are ours; no paper has them. Rain is thin, bright and falls in one direction, while the fine structure of
photographs has about as much energy across that direction as along it. So:

- Streak filter. Minus the second derivative across a direction of a Gaussian that is `WIDTHS` pixels wide and
  `LENGTH` times as long: positive on thin lines that are brighter than both sides (Lindeberg, "Edge detection
  and ridge detection with automatic scale selection", IJCV 1998, for the scaling by the squared width). The
  largest answer over widths and a spread of `SPREAD` degrees, squared where positive, meaned over the picture
  is the line energy E(direction).
- The rain's direction d is the one, up to 45 degrees from the vertical, with the most energy beyond that at a
  right angle to it, E(d) - E(d + 90), in the rainy picture.
- Excess of streaks: x = ln(E(d) / E(d + 90)): 0 for photographs in the mean, 1 to 2 under rain. It does not
  change with contrast.
- Detail kept: k = min(1, sqrt(E'(p) / E(p))), the smallest over the directions p = d + 90, d + 45 and d - 45,
  where rain has little part: what blurring takes from lines that are no streaks. E' is the result's.
- Share of the streak energy removed, of a set: (1 - mean x' / mean x) * k, where x' is the results' excess
  and k the geometric mean over the pictures. 0 for the rainy pictures themselves, about 1 for clean ones (a
  little less where rain lay over lines of the picture, too), above 1 where lines of the picture went with the
  rain. A blurred rainy picture keeps most of its excess, and loses k. Only pictures whose rainy excess is
  `LEAST_EXCESS` or more count: in others a share of next to nothing would be all noise.
- Change away from streaks: the mean absolute difference between result and rainy picture, in steps of 8 bits,
  over the pixels that are further than `MARGIN` from any streak-like line of the rainy picture.

A single picture may hold a picket fence: only means over a set are to be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import binary_dilation

from unrain.lab.data.rain import RGB8

WIDTHS = (1.2, 2.0)
LENGTH = 6.0
SPREAD = (-6.0, 0.0, 6.0)
DIRECTIONS = tuple(range(-45, 46, 5))
# An answer of the streak filter from which on a pixel may be rain, in steps of 8 bits, and the way around it.
STREAK = 3.0
MARGIN = 3
# A third more energy along the rain than across it; half of the photographs of real rain have it.
LEAST_EXCESS = 0.3

_PAD = 40
# So small against any photograph that it matters only to flat ones.
_FLOOR = 1e-3


@dataclass(frozen=True)
class Lines:
    """Line energies of a result and of its rainy picture, at the rain's direction.

    Attributes:
        excess: ln(E(d) / E(d + 90)) of the result.
        rainy_excess: The same of the rainy picture.
        kept: The detail that the result kept, 0..1.
        away: Mean absolute change away from streaks, in steps of 8 bits; None where no pixel is away.
    """

    excess: float
    rainy_excess: float
    kept: float
    away: float | None


class Rainy:
    """A rainy picture and where its streaks may be, to compare results with.

    Args:
        picture: H x W x 3 uint8.
    """

    def __init__(self, picture: RGB8) -> None:
        self.picture = picture
        spectrum = _Spectrum(picture)
        self.direction = max(
            DIRECTIONS, key=lambda d: spectrum.energy(d, simple=True) - spectrum.energy(d + 90, simple=True)
        )
        self.along = spectrum.energy(self.direction)
        self.others = [spectrum.energy(self.direction + turn) for turn in (90, 45, -45)]
        near = binary_dilation(spectrum.lines(self.direction) > STREAK, iterations=MARGIN)
        self.away: NDArray[np.bool_] = ~near

    def compare(self, result: RGB8) -> Lines:
        """Measure a result.

        Args:
            result: H x W x 3 uint8, derained.

        Raises:
            ValueError: It has another size than the rainy picture.
        """
        if result.shape != self.picture.shape:
            raise ValueError(f"pictures differ in size: {result.shape} and {self.picture.shape}")
        spectrum = _Spectrum(result)
        others = [spectrum.energy(self.direction + turn) for turn in (90, 45, -45)]
        kept = min(after / before for after, before in zip(others, self.others, strict=True))
        change = np.abs(result.astype(np.int16) - self.picture).mean(-1)
        return Lines(
            excess=float(np.log(spectrum.energy(self.direction) / others[0])),
            rainy_excess=float(np.log(self.along / self.others[0])),
            kept=float(min(1.0, np.sqrt(kept))),
            away=float(change[self.away].mean()) if self.away.any() else None,
        )


def measurable(lines: Iterable[Lines]) -> list[Lines]:
    """Return those whose rainy picture has streaks enough to say what went of them."""
    return [one for one in lines if one.rainy_excess >= LEAST_EXCESS]


def removed(lines: Iterable[Lines]) -> float | None:
    """Return the share of the streak energy that went from a set; None where there is none to speak of."""
    counted = measurable(lines)
    if not counted:
        return None
    before = float(np.mean([one.rainy_excess for one in counted]))
    after = float(np.mean([one.excess for one in counted]))
    kept = float(np.exp(np.mean(np.log([max(one.kept, 1e-6) for one in counted]))))
    return (1 - after / before) * kept


class _Spectrum:
    """A picture's grey values, mirrored outwards, ready to be filtered."""

    def __init__(self, picture: RGB8) -> None:
        grey = np.pad(picture.astype(np.float32).mean(-1), _PAD, "symmetric")
        self.size = tuple(fft.next_fast_len(side, real=True) for side in grey.shape)
        self.inside = tuple(slice(_PAD, side - _PAD) for side in grey.shape)
        self.values = fft.rfft2(grey, self.size)
        self.y = (2 * np.pi * fft.fftfreq(self.size[0])).astype(np.float32)[:, None]
        self.x = (2 * np.pi * fft.rfftfreq(self.size[1])).astype(np.float32)[None]

    def energy(self, direction: float, *, simple: bool = False) -> float:
        """Return E(direction); the simple one has one width and no spread."""
        lines = self.line(direction, sum(WIDTHS) / len(WIDTHS)) if simple else self.lines(direction)
        return float(np.mean(np.square(np.maximum(lines, 0)))) + _FLOOR

    def lines(self, direction: float) -> NDArray[np.float32]:
        """Return the largest answer over widths and spread, H x W."""
        found = [self.line(direction + turn, width) for width in WIDTHS for turn in SPREAD]
        return np.asarray(np.maximum.reduce(found), np.float32)

    def line(self, direction: float, width: float) -> NDArray[np.float32]:
        """Answer of one filter, for lines that fall at this angle from the vertical, H x W."""
        angle = np.deg2rad(direction)
        along = self.x * np.float32(np.sin(angle)) + self.y * np.float32(np.cos(angle))
        across = self.x * np.float32(np.cos(angle)) - self.y * np.float32(np.sin(angle))
        across = np.square(np.float32(width) * across)
        kernel = across * np.exp(-(across + np.square(np.float32(LENGTH * width) * along)) / 2)
        return np.asarray(fft.irfft2(self.values * kernel, self.size)[self.inside], np.float32)
